package eventlog

import (
	"bytes"
	"testing"
)

// FuzzParse reads anything and draws every claim from what is accepted. What is
// accepted must account for every byte, and the PCRs it replays to must explain it.
func FuzzParse(f *testing.F) {
	// Seeds are small: the fuzzer spends its time on shortening long ones.
	f.Add(agile([]Algorithm{SHA256}, made{pcr: 4, typ: EFIAction, data: []byte("Calling")}, made{pcr: 4, typ: Separator, data: zero4},
		made{pcr: 4, typ: 0x80000003, data: []byte("MZ"), digest: []byte("image")}))
	f.Add(agile([]Algorithm{SHA256}, made{pcr: 8, typ: 0xd, data: []byte("grub_cmd: ls\x00"), digest: []byte("ls")},
		made{pcr: 11, typ: 0xd, data: []byte("l"), digest: []byte(".linux\x00")}, made{pcr: 11, typ: 0xd, data: []byte("kernel")}))
	f.Add(legacy(secureBootEvents(1)...))
	f.Add(legacy(made{typ: NoAction, data: []byte("StartupLocality\x00\x03")}))
	f.Add(agile([]Algorithm{SHA1, SHA256, SM3}, secureBootEvents(0)...))
	f.Add(append(agile([]Algorithm{SHA512}, made{pcr: 0, typ: EFIHCRTM, data: []byte("HCRTM")}), make([]byte, 64)...))
	f.Add(header(append([]byte("Spec ID Event02\x00"), make([]byte, 9)...)))
	list := variable(imageSecurity, "dbx", signatureList(28+48, 0, 48, make([]byte, 48)))
	f.Add(agile([]Algorithm{SHA256}, made{pcr: 7, typ: EFIDriverConfig, data: list}))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Parse(data)
		if err != nil {
			return
		}
		checkCovered(t, l, data)
		for _, bank := range l.Banks() {
			checkClaims(t, l, bank)
		}
	})
}

// checkCovered asks that events follow one another and padding follows them.
func checkCovered(t *testing.T, l *Log, data []byte) {
	for i := 1; i < len(l.Events); i++ {
		e, end := &l.Events[i-1], l.Events[i].Offset
		if !bytes.Equal(data[end-len(e.Data):end], e.Data) || end <= e.Offset {
			t.Fatalf("event %d does not end where event %d begins", i-1, i)
		}
	}
	tail := data[len(data)-l.Padding:]
	if len(bytes.Trim(tail, "\x00")) != 0 && len(bytes.Trim(tail, "\xff")) != 0 {
		t.Fatalf("%x was taken for padding", tail)
	}
}

func checkClaims(t *testing.T, l *Log, bank string) {
	claim := l.SecureBoot(bank)
	if (claim.State == Unknown) != (claim.Reason != "") {
		t.Fatalf("secure boot is %v for reason %q", claim.State, claim.Reason)
	}
	pcrs, err := l.Replay(bank)
	if err != nil {
		return
	}
	if _, err := l.Measurements(bank, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14); err != nil {
		t.Fatal(err)
	}
	if sections, err := l.UKISections(bank); err != nil && sections != nil {
		t.Fatalf("sections with an error: %v", err)
	}
	extended := false
	for i := range l.Events {
		extended = extended || l.Events[i].Type != NoAction
	}
	_, err = l.Summary(bank, pcrs)
	if (err == nil) != extended {
		t.Fatalf("the log's own PCRs: %v", err)
	}
	for pcr := range pcrs {
		pcrs[pcr][0] ^= 1
		if l.Explain(bank, pcrs) == nil {
			t.Fatalf("another value of PCR %d was explained", pcr)
		}
		pcrs[pcr][0] ^= 1
	}
}

// FuzzSignatures asks that what is accepted comes back from its parts.
func FuzzSignatures(f *testing.F) {
	f.Add(signatureList(28+48, 0, 48, make([]byte, 48)))
	f.Add(signatureList(28+48, 16, 32, make([]byte, 48)))
	f.Add(signatureList(28, 0, 48, nil))
	f.Add(signatureList(28+48, 0xffffffff, 17, make([]byte, 48)))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parseSignatures(data)
		if err != nil {
			return
		}
		n := 0
		for _, s := range all {
			n += 16 + len(s.Data)
		}
		if n > len(data) {
			t.Fatalf("%d bytes of signatures in %d", n, len(data))
		}
	})
}

// FuzzVariable asks that an accepted variable fills its bytes.
func FuzzVariable(f *testing.F) {
	f.Add(variable(globalVariable, "SecureBoot", []byte{1}))
	f.Add(variable(imageSecurity, "db", nil))
	f.Add(patchName(variable(globalVariable, "PK", []byte{1}), 1<<63))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := parseVariable(data)
		if err != nil {
			return
		}
		if !bytes.HasSuffix(data, v.Data) || len(v.Data) > len(data)-32 || len(v.Vendor.String()) != 36 {
			t.Fatalf("%x was read as %+v", data, v)
		}
	})
}

func FuzzDecodePCRs(f *testing.F) {
	f.Add([]byte(`{"0":"00ff"}`))
	f.Add([]byte(`{"sha256":{"23":"0x00"}}`))
	f.Add([]byte("  sha256:\n    0 : 0x00FF\n    23: 0x00\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		pcrs, err := DecodePCRs(data, "sha256")
		if err == nil && len(pcrs) == 0 {
			t.Fatal("no values were accepted")
		}
		for pcr := range pcrs {
			if pcr < 0 || pcr >= pcrCount {
				t.Fatalf("PCR %d was accepted", pcr)
			}
		}
	})
}
