package ima

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"
)

// TestProve proves the project's own boots: list, quote and boot aggregate agree, and
// what the kernel measured after the quote is left out.
func TestProve(t *testing.T) {
	for _, name := range []string{"secureboot-shim-grub", "uki-systemd-stub"} {
		list, pcrs := localBoot(t, name)
		later := append(bytes.Clone(list), binaryList(samples(2)...)...)
		cut := append(bytes.Clone(list), binaryList(samples(1)...)[:30]...)
		for what, l := range map[string][]byte{"as quoted": list, "grown": later, "cut off while it grew": cut} {
			entries, err := Prove("sha256", l, pcrs[PCR])
			if err != nil || len(entries) != 6 {
				t.Fatalf("%s, %s: %d entries, %v", name, what, len(entries), err)
			}
			if err := entries[0].BootAggregate("sha256", pcrs); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestAttackAnotherBootsList(t *testing.T) {
	list, pcrs := localBoot(t, "secureboot-shim-grub")
	other, otherPCRs := localBoot(t, "uki-systemd-stub")
	if _, err := Prove("sha256", other, pcrs[PCR]); err == nil {
		t.Error("another boot's list was proved")
	}
	entries, err := Prove("sha256", list, pcrs[PCR])
	if err != nil {
		t.Fatal(err)
	}
	if err := entries[0].BootAggregate("sha256", otherPCRs); err == nil {
		t.Error("another boot's aggregate was accepted")
	}
	eight := maps.Clone(pcrs)
	delete(eight, 3)
	for what, err := range map[string]error{
		"PCR missing": entries[0].BootAggregate("sha256", eight),
		"no PCRs":     entries[0].BootAggregate("sha256", nil),
		"other bank":  entries[0].BootAggregate("sha384", pcrs),
		"SHA-1":       entries[0].BootAggregate("sha1", pcrs),
		"other entry": entries[1].BootAggregate("sha256", pcrs),
	} {
		if err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

// TestBootAggregateOfEight: earlier kernels leave PCR 8 and 9 out.
func TestBootAggregateOfEight(t *testing.T) {
	pcrs := make(map[int][]byte)
	var first []byte
	for i := range 10 {
		pcrs[i] = bytes.Repeat([]byte{byte(i)}, 32)
		if i < 8 {
			first = append(first, pcrs[i]...)
		}
	}
	digest := sha256Hash.sum(first)
	entry := func(d [32]byte) *Entry {
		l, err := Parse(binaryList(file(bootAggregate, d, nil)))
		if err != nil {
			t.Fatal(err)
		}
		return &l.Entries[0]
	}
	if err := entry([32]byte(digest[:32])).BootAggregate("sha256", pcrs); err != nil {
		t.Error(err)
	}
	if err := entry([32]byte{}).BootAggregate("sha256", pcrs); err == nil {
		t.Error("an aggregate of zeros, as without a TPM, was accepted")
	}
}

// TestAttackListEdited: whatever is done to a proved entry, no prefix fits any more.
func TestAttackListEdited(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := drawEntries(t)
		quoted := extended(sha256Hash, entries...)
		i := rapid.IntRange(0, len(entries)-1).Draw(t, "entry")
		edited := slices.Clone(entries)
		kind := rapid.SampledFrom([]string{"remove", "repeat", "swap", "content", "violation", "other PCR", "insert"}).Draw(t, "edit")
		switch kind {
		case "remove":
			edited = slices.Delete(edited, i, i+1)
		case "repeat":
			edited = slices.Insert(edited, i, edited[i])
		case "swap":
			j := rapid.IntRange(0, len(entries)-1).Draw(t, "other")
			if bytes.Equal(entries[i].binary(), entries[j].binary()) || entries[i].violation && entries[j].violation {
				t.Skip("the same entry twice")
			}
			edited[i], edited[j] = edited[j], edited[i]
		case "content":
			if edited[i].violation {
				t.Skip("nothing covers the content of a violation")
			}
			edited[i] = file("/bin/evil", [32]byte{6, 6, 6}, nil)
		case "violation":
			edited[i].violation = !edited[i].violation
		case "other PCR":
			edited[i].pcr = 11
		case "insert":
			m := file("/bin/evil", [32]byte{6, 6, 6}, nil)
			m.pcr = rapid.SampledFrom([]uint32{PCR, 11}).Draw(t, "pcr")
			edited = slices.Insert(edited, i, m)
		}
		// Adding behind the quoted entries is no edit: the same are proved.
		if got, err := Prove("sha256", binaryList(edited...), quoted); err == nil && !same(got, entries) {
			t.Fatalf("%s: other entries were proved", kind)
		}
		if got, err := Prove("sha256", binaryList(entries...), quoted); err != nil || len(got) != len(entries) {
			t.Fatalf("unedited: %d of %d entries, %v", len(got), len(entries), err)
		}
	})
}

// same reports whether the entries are those that were made.
func same(got []Entry, entries []made) bool {
	return slices.EqualFunc(got, entries, func(e Entry, m made) bool {
		return e.PCR == int(m.pcr) && e.Violation == m.violation && bytes.Equal(e.Digest, m.digest()) && (m.violation || bytes.Contains(m.binary(), e.Data))
	})
}

// TestAttackOtherPCR: an entry that names another PCR is not proved by this one, and
// one behind the prefix does not matter.
func TestAttackOtherPCR(t *testing.T) {
	evil := file("/bin/evil", sum32, nil)
	evil.pcr = 11
	entries := samples(2)
	quoted := extended(sha256Hash, entries...)
	if _, err := Prove("sha256", binaryList(entries[0], evil, entries[1]), quoted); err == nil || !strings.Contains(err.Error(), "PCR 11") {
		t.Errorf("got %v", err)
	}
	if got, err := Prove("sha256", binaryList(entries[0], entries[1], evil), quoted); err != nil || len(got) != 2 {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

// TestAttackWeakTemplateHash: SHA-1 alone, or padded into the sha256 bank by an old
// kernel, proves nothing.
func TestAttackWeakTemplateHash(t *testing.T) {
	entries := samples(3)
	entries[1].violation = true
	list := binaryList(entries...)
	if _, err := Prove("sha1", list, extended(hashes[0], entries...)); err == nil {
		t.Error("the SHA-1 bank was proved")
	}
	pcr := make([]byte, 32)
	for _, e := range entries {
		digest := append(e.digest(), make([]byte, 12)...)
		if e.violation {
			digest = bytes.Repeat([]byte{0xff}, 32)
		}
		sum := sha256Hash.sum(append(pcr, digest...))
		pcr = bytes.Clone(sum[:32])
	}
	if _, err := Prove("sha256", list, pcr); err == nil || !strings.Contains(err.Error(), "padded with zeros") {
		t.Errorf("got %v", err)
	}
}

// TestEveryBank proves in the stronger banks too.
func TestEveryBank(t *testing.T) {
	entries := append(samples(3), everyTemplate()[:12]...)
	for _, h := range hashes[1:] {
		got, err := Prove(h.name, asciiList(entries...), extended(h, entries...))
		if err != nil || len(got) != len(entries) {
			t.Errorf("%s: %d entries, %v", h.name, len(got), err)
		}
	}
}

func TestAttackNothingMeasured(t *testing.T) {
	list := binaryList(samples(1)...)
	for what, quoted := range map[string][]byte{"zeros": make([]byte, 32), "nil": nil, "short": make([]byte, 20), "ones": bytes.Repeat([]byte{0xff}, 32)} {
		if _, err := Prove("sha256", list, quoted); err == nil {
			t.Errorf("%s: proved", what)
		}
	}
	quoted := extended(sha256Hash, samples(1)...)
	if _, err := Prove("sha256", nil, quoted); err == nil {
		t.Error("an empty list was proved")
	}
	if _, err := Parse(nil); err == nil {
		t.Error("an empty list was read")
	}
}

// TestAdvance follows a list that grows, in both formats, with the state kept as JSON.
func TestAdvance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := drawEntries(t)
		encode := rapid.SampledFrom([]func(...made) []byte{binaryList, asciiList}).Draw(t, "format")
		whole := encode(entries...)
		s, err := NewState("sha256")
		if err != nil {
			t.Fatal(err)
		}
		for proved := 0; proved < len(entries); {
			upTo := rapid.IntRange(proved, len(entries)).Draw(t, "quoted")
			quoted := extended(sha256Hash, entries[:upTo]...)
			if upTo == 0 {
				continue
			}
			got, err := s.Advance(whole[s.Offset:], quoted)
			if err != nil || len(got) != upTo-proved || s.Entries != upTo {
				t.Fatalf("from %d to %d: %d entries, %v", proved, upTo, len(got), err)
			}
			for i, e := range got {
				if end := e.Offset + e.Size; !bytes.Equal(whole[e.Offset:end], encode(entries[proved+i])) {
					t.Fatalf("entry %d is said to be at %d", proved+i, e.Offset)
				}
			}
			proved = upTo
			kept, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			s = new(State)
			if err := json.Unmarshal(kept, s); err != nil {
				t.Fatal(err)
			}
		}
		if s.Offset != len(whole) {
			t.Fatalf("offset %d of %d", s.Offset, len(whole))
		}
	})
}

// TestAttackState: a state is refused unless Advance left it so, and is left alone by
// a list that does not fit.
func TestAttackState(t *testing.T) {
	entries := samples(4)
	s, err := NewState("sha256")
	if err != nil {
		t.Fatal(err)
	}
	list, quoted := binaryList(entries...), extended(sha256Hash, entries[:2]...)
	if _, err := s.Advance(list, quoted); err != nil {
		t.Fatal(err)
	}
	before := *s
	for what, quoted := range map[string][]byte{
		"another boot":  extended(sha256Hash, entries[2:]...),
		"rolled back":   extended(sha256Hash, entries[:1]...),
		"unknown value": bytes.Repeat([]byte{1}, 32),
	} {
		if _, err := s.Advance(list[s.Offset:], quoted); err == nil {
			t.Errorf("%s: proved", what)
		}
	}
	if s.Offset != before.Offset || s.Entries != before.Entries || !bytes.Equal(s.PCR, before.PCR) {
		t.Errorf("the state is %+v, it was %+v", s, before)
	}
	next := extended(sha256Hash, entries...)
	for what, bad := range map[string]State{
		"zero":                 {},
		"SHA-1":                {Bank: "sha1", PCR: make([]byte, 20)},
		"no value":             {Bank: "sha256"},
		"short value":          {Bank: "sha256", PCR: make([]byte, 20)},
		"negative":             {Bank: "sha256", PCR: before.PCR, Entries: -1, Offset: -1},
		"value and no entry":   {Bank: "sha256", PCR: before.PCR},
		"entries and no value": {Bank: "sha256", PCR: make([]byte, 32), Entries: 2, Offset: 9},
		"violations":           {Bank: "sha256", PCR: before.PCR, Entries: 2, Offset: before.Offset, Violations: 3},
	} {
		if _, err := bad.Advance(list[before.Offset:], next); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if got, err := s.Advance(list[s.Offset:], next); err != nil || len(got) != 2 {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

// TestAttackRelabelledTemplate: no digest covers a template's name. Whoever shows the
// list could have a field that a user filled, such as the command line of a kexec,
// read as the path or the digest, and so hide an entry behind a rule.
func TestAttackRelabelledTemplate(t *testing.T) {
	allowed := sum32
	judge, err := NewJudge(Rules{
		Files:  map[string][]string{"/usr/bin/tool": {"sha256:" + hex.EncodeToString(allowed[:])}},
		Ignore: []string{"/var/log/"},
	})
	if err != nil {
		t.Fatal(err)
	}
	hidden := []byte("/var/log/x root=/dev/evil\x00") // as a kernel takes it for its command line
	sum := sha256.Sum256(hidden)
	measured := made{pcr: PCR, template: "ima-buf", fields: [][]byte{digestNG("sha256", sum[:]), []byte("kexec-cmdline\x00"), hidden}}
	claimed := made{pcr: PCR, template: "ima-buf", fields: [][]byte{digestNG("sha256", sum[:]), []byte("/usr/bin/tool\x00"), digestNG("sha256", allowed[:])}}
	for _, tt := range []struct {
		made
		names []string
	}{
		{measured, []string{"d-ng|xattrnames|n-ng", "buf|xattrnames|n-ng", "d-ng|n-ng|n", "xattrnames|xattrvalues|n-ng"}},
		{claimed, []string{"xattrnames|n-ng|d-ng", "buf|n-ng|d-ng", "d|n-ng|d-ng"}},
	} {
		quoted := extended(sha256Hash, tt.made)
		for _, name := range append(tt.names, tt.template) {
			tt.template = name
			entries, err := Prove("sha256", binaryList(tt.made), quoted)
			if err == nil {
				err = judge.Check(entries)
			}
			if err == nil {
				t.Errorf("%s: what no rule allows passes as %v", name, &entries[0])
			} else if name != "ima-buf" && !strings.Contains(err.Error(), "a digest comes first, then a name") {
				t.Errorf("%s: refused for another reason: %v", name, err)
			}
		}
	}
}
