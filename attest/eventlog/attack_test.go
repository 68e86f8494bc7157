package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
)

// attacked is a real log of a machine with secure boot on, and what its TPM quoted.
func attacked(t testing.TB) (*Log, []byte, PCRs) {
	t.Helper()
	data, quoted := localBoot(t, "secureboot-shim-grub")
	l := mustParse(t, data)
	if err := l.Explain("sha256", quoted); err != nil {
		t.Fatal(err)
	}
	return l, bytes.Clone(data), quoted
}

// unexplained asks for the PCRs that an attack must leave unexplained.
func unexplained(t *testing.T, data []byte, quoted PCRs, pcrs ...int) {
	t.Helper()
	err := mustParse(t, data).Explain("sha256", quoted)
	var no *UnexplainedError
	if !errors.As(err, &no) || !slices.Equal(no.PCRs, pcrs) || len(no.Reason) != len(pcrs) {
		t.Errorf("got %v, wanted PCRs %v unexplained", err, pcrs)
	}
}

// end returns the offset behind the event.
func (l *Log) end(i int) int {
	if i+1 < len(l.Events) {
		return l.Events[i+1].Offset
	}
	return len(l.data) - l.Padding
}

// without returns the log without the events that drop selects.
func (l *Log) without(drop func(*Event) bool) []byte {
	out := bytes.Clone(l.data[:l.Events[0].Offset])
	for i := range l.Events {
		if e := &l.Events[i]; !drop(e) {
			out = append(out, l.data[e.Offset:l.end(i)]...)
		}
	}
	return out
}

func TestAttackAllEventsOfOnePCRRemoved(t *testing.T) {
	l, _, quoted := attacked(t)
	for pcr, value := range quoted {
		if allZeros(value) {
			continue
		}
		unexplained(t, l.without(func(e *Event) bool { return int(e.PCR) == pcr }), quoted, pcr)
	}
}

func allZeros(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func TestAttackAnyEventRemovedOrRepeated(t *testing.T) {
	l, data, quoted := attacked(t)
	for i := range l.Events {
		e := &l.Events[i]
		unexplained(t, l.without(func(other *Event) bool { return other == e }), quoted, int(e.PCR))
		twice := slices.Concat(data[:l.end(i)], data[e.Offset:])
		unexplained(t, twice, quoted, int(e.PCR))
	}
}

func TestAttackTailTruncated(t *testing.T) {
	l, data, quoted := attacked(t)
	for i := len(l.Events) - 1; i > 0; i-- {
		err := mustParse(t, data[:l.Events[i].Offset]).Explain("sha256", quoted)
		if err == nil {
			t.Fatalf("the first %d of %d events explain the quote", i, len(l.Events))
		}
	}
	// Zeros in its place look like the padding of a log that ended there.
	cut := l.Events[len(l.Events)-1].Offset
	unexplained(t, append(data[:cut:cut], make([]byte, len(data)-cut)...), quoted, 5)
}

func TestAttackDigestsZeroed(t *testing.T) {
	l, data, quoted := attacked(t)
	b, err := l.bank("sha256")
	if err != nil {
		t.Fatal(err)
	}
	all := bytes.Clone(data)
	for i := range l.Events {
		e := &l.Events[i]
		one := bytes.Clone(data)
		clear(one[e.at[b.slot]:][:b.size])
		clear(all[e.at[b.slot]:][:b.size])
		unexplained(t, one, quoted, int(e.PCR))
	}
	if err := mustParse(t, all).Explain("sha256", quoted); err == nil {
		t.Error("zero digests explain the quote")
	}
}

// TestAttackTypeSpoofing changes types and nothing else. EV_NO_ACTION hides an event
// from the replay; any other type leaves the replay as it is and may at most end a
// claim.
func TestAttackTypeSpoofing(t *testing.T) {
	l, data, quoted := attacked(t)
	want, err := l.BootApplications("sha256")
	if err != nil {
		t.Fatal(err)
	}
	types := []Type{Separator, EFIAction, EFIDriverConfig, EFIVariableAuthority, 0x80000003, 0x80000004, 0xd, 5, 0x1337}
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != 4 && e.PCR != 7 {
			continue
		}
		unexplained(t, retyped(data, e, NoAction), quoted, int(e.PCR))
		for _, typ := range types {
			spoofed := mustParse(t, retyped(data, e, typ))
			if err := spoofed.Explain("sha256", quoted); err != nil {
				t.Errorf("event %d as %v: %v", i, typ, err)
			}
			if claim := spoofed.SecureBoot("sha256"); claim.State == Off || claim.State == On && len(claim.PostSeparator) != 3 {
				t.Errorf("event %d as %v: secure boot is %v with %d authorities", i, typ, claim.State, len(claim.PostSeparator))
			}
			got, err := spoofed.BootApplications("sha256")
			if err != nil || len(got) != len(want) {
				t.Errorf("event %d as %v: %d boot applications, %v, wanted %d", i, typ, len(got), err, len(want))
			}
		}
	}
}

func retyped(data []byte, e *Event, typ Type) []byte {
	data = bytes.Clone(data)
	binary.LittleEndian.PutUint32(data[e.Offset+4:], uint32(typ))
	return data
}

// TestAttackHiddenBootApplication gives an image's event, as data, the very bytes that its
// Authenticode digest is of, so that the data hashes to the digest.
func TestAttackHiddenBootApplication(t *testing.T) {
	image := append([]byte("MZ\x90\x00\x03"), bytes.Repeat([]byte("evil"), 16)...)
	for _, typ := range []Type{EFIAction, Separator, 5, 0xd} {
		l := mustParse(t, agile([]Algorithm{SHA256}, made{pcr: 4, typ: Separator, data: zero4}, made{pcr: 4, typ: typ, data: image}))
		if apps, err := l.BootApplications("sha256"); err != nil || len(apps) != 1 {
			t.Errorf("as %v: %d boot applications, %v", typ, len(apps), err)
		}
	}
	// An action called an application is none, and the other way round.
	l := mustParse(t, agile([]Algorithm{SHA256}, made{pcr: 4, typ: 0x80000003, data: []byte("Calling EFI Application from Boot Option")}))
	if apps, err := l.BootApplications("sha256"); err != nil || len(apps) != 0 {
		t.Errorf("an action was listed: %v, %v", apps, err)
	}
}

// TestAttackEventTextEdited changes each byte of what the log shows as text. The
// edit must not show.
func TestAttackEventTextEdited(t *testing.T) {
	l, data, quoted := attacked(t)
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != 8 {
			continue
		}
		start := l.end(i) - len(e.Data)
		for off := range e.Data {
			edited := bytes.Clone(data)
			edited[start+off] ^= 0x02
			el := mustParse(t, edited)
			if err := el.Explain("sha256", quoted); err != nil {
				t.Fatal(err) // digests are as they were
			}
			was, is := textOf(t, l, i), textOf(t, el, i)
			if is != "" && is != was {
				t.Fatalf("event %d shows %q, measured was %q", i, is, was)
			}
		}
	}
}

func textOf(t *testing.T, l *Log, event int) string {
	t.Helper()
	all, err := l.Measurements("sha256", int(l.Events[event].PCR))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(m Measurement) bool { return m.Event == event })
	return all[i].Text
}

// TestAttackTerminalEscape: text that hashes may still attack the terminal.
func TestAttackTerminalEscape(t *testing.T) {
	for _, text := range []string{"\x1b[2Jgood", "a\rb", "a\u202eb", "\x9b1m", "a\x00b", "\xff\xfe"} {
		l := mustParse(t, agile([]Algorithm{SHA256}, made{pcr: 8, typ: 0xd, data: []byte(text)}))
		if got := textOf(t, l, 0); got != "" {
			t.Errorf("%q is shown as %q", text, got)
		}
	}
	for text, want := range map[string]string{"boot now\x00": "boot now", "a\tb\n": "a\tb\n", "a\x00b\x00\x00\x00": "ab", "é": "é"} {
		l := mustParse(t, agile([]Algorithm{SHA256}, made{pcr: 8, typ: 0xd, data: []byte(text)}))
		if got := textOf(t, l, 0); got != want {
			t.Errorf("%q is shown as %q", text, got)
		}
	}
}

// TestAttackUnknownEventTypes: they are extended like others, and end what is said of
// PCR 7.
func TestAttackUnknownEventTypes(t *testing.T) {
	l, data, quoted := attacked(t)
	spoofed := bytes.Clone(data)
	for i := range l.Events {
		binary.LittleEndian.PutUint32(spoofed[l.Events[i].Offset+4:], 0xdead0000+uint32(i))
	}
	sl := mustParse(t, spoofed)
	if err := sl.Explain("sha256", quoted); err != nil {
		t.Error(err)
	}
	if claim := sl.SecureBoot("sha256"); claim.State != Unknown || claim.Reason == "" {
		t.Errorf("secure boot is %v", claim.State)
	}
}

// TestAttackSignatureHeaderSize: sizes inside a signature list reach past it.
func TestAttackSignatureHeaderSize(t *testing.T) {
	body := bytes.Repeat([]byte{7}, 48)
	good := signatureList(28+48, 0, 48, body)
	tests := []struct {
		name string
		list []byte
		ok   bool
	}{
		{"good", good, true},
		{"two lists", slices.Concat(good, good), true},
		{"with a header", signatureList(28+48, 16, 32, body), true},
		{"empty", signatureList(28, 0, 48, nil), true},
		{"SignatureHeaderSize one too many", signatureList(28+48, 49, 48, body), false},
		{"SignatureHeaderSize 2^32-1", signatureList(28+48, 0xffffffff, 48, body), false},
		{"SignatureHeaderSize wraps", signatureList(28+48, 0xffffffe4, 48, body), false},
		{"SignatureListSize 0", signatureList(0, 0, 48, body), false},
		{"SignatureListSize 27", signatureList(27, 0, 48, body), false},
		{"SignatureListSize past the end", signatureList(28+49, 0, 49, body), false},
		{"SignatureListSize 2^32-1", signatureList(0xffffffff, 0, 48, body), false},
		{"SignatureSize 0", signatureList(28+48, 0, 0, body), false},
		{"SignatureSize 16", signatureList(28+48, 0, 16, body), false},
		{"SignatureSize does not divide", signatureList(28+48, 0, 47, body), false},
		{"list cut off", good[:20], false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			events := secureBootEvents(1)
			events[1].data = variable(globalVariable, "PK", tt.list)
			claim := mustParse(t, agile([]Algorithm{SHA256}, events...)).SecureBoot("sha256")
			if tt.ok && claim.State != On || !tt.ok && (claim.State != Unknown || !strings.Contains(claim.Reason, "ignature")) {
				t.Errorf("secure boot is %v: %s", claim.State, claim.Reason)
			}
		})
	}
}

// TestAttackEmptyLog: a header and no events explain no PCR, not even those that are
// zero.
func TestAttackEmptyLog(t *testing.T) {
	_, _, quoted := attacked(t)
	empty := agile([]Algorithm{SHA256})
	var extended []int
	for _, pcr := range slices.Sorted(maps.Keys(quoted)) {
		if !allZeros(quoted[pcr]) {
			extended = append(extended, pcr)
		}
	}
	unexplained(t, empty, quoted, extended...)
	if _, err := Parse(nil); err == nil {
		t.Error("no log at all was accepted")
	}
}

// TestAttackAllZeroBank: a TPM whose bank nobody extended was not measured.
func TestAttackAllZeroBank(t *testing.T) {
	_, data, quoted := attacked(t)
	for pcr := range quoted {
		quoted[pcr] = make([]byte, 32)
	}
	if err := mustParse(t, agile([]Algorithm{SHA256})).Explain("sha256", quoted); err == nil || !strings.Contains(err.Error(), "no measured boot") {
		t.Errorf("got %v", err)
	}
	unexplained(t, data, quoted, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)
	if err := mustParse(t, data).Explain("sha256", PCRs{11: make([]byte, 32)}); err == nil {
		t.Error("a quote of nothing but an untouched PCR was explained")
	}
}

// TestAttackWeakOrMissingBank: SHA-1 and SM3 are never judged, and a missing bank is
// not an empty one.
func TestAttackWeakOrMissingBank(t *testing.T) {
	l, _, _ := attacked(t)
	for _, bank := range []string{"sha1", "sm3", "sha512", "", "SHA256", "md5"} {
		pcrs, err := l.Replay(bank)
		if bank != "sha1" && err == nil {
			t.Errorf("bank %q was replayed", bank)
		}
		if err := l.Explain(bank, pcrs); err == nil {
			t.Errorf("bank %q explains", bank)
		}
		if bank != "sha1" && l.SecureBoot(bank).State != Unknown {
			t.Errorf("bank %q has a secure boot state", bank)
		}
	}
}

func TestAttackQuotedShape(t *testing.T) {
	l, _, quoted := attacked(t)
	for name, q := range map[string]PCRs{
		"nil":        nil,
		"none":       {},
		"PCR 24":     {24: make([]byte, 32)},
		"PCR -1":     {-1: make([]byte, 32)},
		"short":      {0: quoted[0][:31]},
		"long":       {0: append(bytes.Clone(quoted[0]), 0)},
		"nil value":  {0: nil},
		"sha1 value": {0: make([]byte, 20)},
	} {
		if err := l.Explain("sha256", q); err == nil {
			t.Errorf("%s was explained", name)
		}
	}
}

// TestAttackSecondBoot appends a forged boot behind a real one, as an attacker can who
// owns the system afterwards and extends what he likes.
func TestAttackSecondBoot(t *testing.T) {
	forged := secureBootEvents(1)
	relabelled := secureBootEvents(0)
	for i := range relabelled {
		relabelled[i].typ = EFIVariableAuthority
	}
	garbled := secureBootEvents(0)
	for i := range garbled {
		garbled[i].digest, garbled[i].data = garbled[i].data, []byte("garbled")
	}
	asAuthority := append(secureBootEvents(0), forged...)
	for i := 3; i < 6; i++ {
		asAuthority[i].typ = EFIVariableAuthority
	}
	for name, events := range map[string][]made{
		"as it is":                append(secureBootEvents(0), forged...),
		"first boot relabelled":   append(relabelled, forged...),
		"first boot garbled":      append(garbled, forged...),
		"second boot relabelled":  asAuthority,
		"second SecureBoot alone": append(secureBootEvents(0), forged[0]),
		"second separator alone":  append(secureBootEvents(1), forged[2]),
	} {
		claim := mustParse(t, agile([]Algorithm{SHA256}, events...)).SecureBoot("sha256")
		if claim.State != Unknown || claim.Reason == "" || claim.PK != nil || claim.Variables != nil {
			t.Errorf("%s: secure boot is %v", name, claim.State)
		}
	}
}

func TestAttackSecondSeparatorPCR4(t *testing.T) {
	image := made{pcr: 4, typ: 0x80000003, data: []byte("path"), digest: []byte("image")}
	separator := made{pcr: 4, typ: Separator, data: zero4}
	l := mustParse(t, agile([]Algorithm{SHA256}, image, separator, image, separator))
	if apps, err := l.BootApplications("sha256"); err == nil {
		t.Errorf("listed %v", apps)
	}
	l = mustParse(t, agile([]Algorithm{SHA256}, image, separator, image))
	apps, err := l.BootApplications("sha256")
	if err != nil || len(apps) != 2 || !apps[0].BeforeSeparator || apps[1].BeforeSeparator {
		t.Errorf("listed %v, %v", apps, err)
	}
}

// TestAttackUKISections: a section's name is told by its digest, never by the text
// beside it.
func TestAttackUKISections(t *testing.T) {
	name := func(s string) made { return made{pcr: 11, typ: 0xd, data: []byte("."), digest: append([]byte(s), 0)} }
	content := made{pcr: 11, typ: 0xd, data: []byte(".linux\x00"), digest: []byte("kernel")}
	good := []made{name(".linux"), content, name(".cmdline"), content}
	sections, err := mustParse(t, agile([]Algorithm{SHA256}, good...)).UKISections("sha256")
	if err != nil || len(sections) != 2 || sections[1].Name != ".cmdline" {
		t.Errorf("%v, %v", sections, err)
	}
	for what, events := range map[string][]made{
		"only a name":      {name(".linux")},
		"only content":     {content},
		"unknown name":     {name(".evil"), content},
		"name in the text": {{pcr: 11, typ: 0xd, data: []byte(".linux\x00"), digest: []byte("x")}, content},
	} {
		if sections, err := mustParse(t, agile([]Algorithm{SHA256}, events...)).UKISections("sha256"); err == nil {
			t.Errorf("%s: %v", what, sections)
		}
	}
}

// TestLeftOut: known events that are missing from the log are named, not accepted.
func TestLeftOut(t *testing.T) {
	data, quoted := localBoot(t, "uki-systemd-stub")
	l := mustParse(t, data)
	b, err := l.bank("sha256")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"enter-initrd", "leave-initrd"} {
		digest := SHA256.sum([]byte(text))
		next := SHA256.sum(slices.Concat(quoted[11], digest[:b.size]))
		quoted[11] = bytes.Clone(next[:b.size])
	}
	unexplained(t, data, quoted, 11)
	if err := l.Explain("sha256", quoted); !strings.Contains(err.Error(), `["enter-initrd" "leave-initrd"]`) {
		t.Errorf("got %v", err)
	}
}
