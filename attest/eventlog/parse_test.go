package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// TestRefuse builds logs with one fault each; the error must say where and what.
func TestRefuse(t *testing.T) {
	event := made{pcr: 1, typ: 8, data: []byte{1, 2}}
	two := []Algorithm{SHA1, SHA256}
	good := agile(two, event)
	body := len(header(specID(two...))) // where the first event begins
	patch := func(log []byte, off int, v ...byte) []byte {
		log = bytes.Clone(log)
		copy(log[off:], v)
		return log
	}
	spec := func(change func([]byte) []byte) []byte { return header(change(specID(two...))) }
	tests := []struct {
		name   string
		log    []byte
		offset int
		reason string
	}{
		{"nothing", nil, 0, "empty"},
		{"zeros only", make([]byte, 4096), 0, "padding"},
		{"ones only", bytes.Repeat([]byte{0xff}, 64), 0, "padding"},
		{"text", []byte("not\nan event log, but text that is long enough\n"), 28, "event data of"},
		{"too long", make([]byte, maxLog+1), 0, "more than"},
		{"cut in PCR", good[:body+3], body, "PCR index"},
		{"cut in type", good[:body+7], body + 4, "event type"},
		{"cut in count", good[:body+11], body + 8, "digest count"},
		{"cut in algorithm", good[:body+13], body + 12, "algorithm"},
		{"cut in digest", good[:body+20], body + 14, "sha1 digest"},
		{"cut in size", good[:len(good)-3], len(good) - 6, "event size"},
		{"cut in data", good[:len(good)-1], len(good) - 6, "event data of 2 bytes, 1 left"},
		{"one digest fewer", patch(good, body+8, 1), body + 8, "1 digests, the header declares 2"},
		{"2^32-1 digests", patch(good, body+8, 0xff, 0xff, 0xff, 0xff), body + 8, "4294967295 digests"},
		{"undeclared algorithm", patch(good, body+12, 0x0c), body + 12, "sha384 is not one"},
		{"PCR 24", patch(good, body, 24), body, "PCR 24"},
		{"PCR 2^32-1", patch(good, body, 0xff, 0xff, 0xff, 0xff), body, "PCR 4294967295"},
		{"data of 2^32-1 bytes", patch(good, len(good)-6, 0xff, 0xff, 0xff, 0xff), len(good) - 6, "event data of 4294967295 bytes, 2 left"},
		{"header for PCR 1", patch(good, 0, 1), 0, "PCR 1"},
		{"header cut short", spec(func(b []byte) []byte { return b[:20] }), 0, "20 bytes"},
		{"no algorithms", header(specID()), 0, "0 algorithms"},
		{"9 algorithms", header(specID(1, 2, 3, 4, 5, 6, 7, 8, 9)), 0, "9 algorithms"},
		{"2^32-1 algorithms", spec(func(b []byte) []byte { return patch(b, 24, 0xff, 0xff, 0xff, 0xff) }), 0, "4294967295 algorithms"},
		{"algorithms past the end", spec(func(b []byte) []byte { return b[:32] }), 0, "no room"},
		{"algorithm twice", header(specID(SHA256, SHA256)), 0, "sha256 twice"},
		{"sha256 of 20 bytes", spec(func(b []byte) []byte { return patch(b, 34, 20) }), 0, "sha256 digests of 20 bytes"},
		{"unknown algorithm of 0 bytes", header(specID(0x99)), 0, "0x0099 digests of 0 bytes"},
		{"unknown algorithm of 65 bytes", spec(func(b []byte) []byte { return patch(b, 32, 0x99, 0, 65) }), 0, "65 bytes"},
		{"no vendorInfoSize", spec(func(b []byte) []byte { return b[:len(b)-1] }), 0, "vendorInfoSize"},
		{"bytes behind the vendor's", spec(func(b []byte) []byte { return append(b, 0, 7) }), 0, "2 bytes follow"},
		{"locality 1", legacy(made{typ: NoAction, data: []byte("StartupLocality\x00\x01")}), 0, "locality 1"},
		{"locality missing", legacy(made{typ: NoAction, data: []byte("StartupLocality\x00")}), 0, "16 bytes"},
		{"two localities", legacy(made{typ: NoAction, data: []byte("StartupLocality\x00\x03")}, made{typ: NoAction, data: []byte("StartupLocality\x00\x00")}), 49, "3 before"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(tt.log)
			var refused *ParseError
			if !errors.As(err, &refused) {
				t.Fatalf("got %v, wanted a ParseError", err)
			}
			if refused.Offset != tt.offset || !strings.Contains(refused.Reason, tt.reason) {
				t.Errorf("got %v, wanted offset %d and %q", err, tt.offset, tt.reason)
			}
		})
	}
}

// TestRefuseSecondDigest repeats one algorithm in place of another.
func TestRefuseSecondDigest(t *testing.T) {
	log := agile([]Algorithm{SHA256, SM3}, made{data: zero4})
	second := len(log) - len(zero4) - 4 - 32 - 2
	binary.LittleEndian.PutUint16(log[second:], uint16(SHA256))
	if _, err := Parse(log); err == nil || !strings.Contains(err.Error(), "second sha256 digest") {
		t.Errorf("got %v", err)
	}
}

// TestAttackVendorInfoSizeOverrun: a size that reaches past the event, in the
// headers of all three formats.
func TestAttackVendorInfoSizeOverrun(t *testing.T) {
	for _, data := range [][]byte{
		specID(SHA256),
		append([]byte("Spec ID Event00\x00"), make([]byte, 9)...),
		append([]byte("Spec ID Event02\x00"), make([]byte, 9)...),
	} {
		if _, err := Parse(header(data)); err != nil {
			t.Errorf("%.15s: %v", data, err)
		}
		for _, size := range []byte{1, 0xff} {
			data[len(data)-1] = size
			if _, err := Parse(header(data)); err == nil || !strings.Contains(err.Error(), "vendorInfoSize is") {
				t.Errorf("%.15s: got %v", data, err)
			}
		}
		data[len(data)-1] = 3
		if _, err := Parse(header(append(data, 'a', 'b', 'c'))); err != nil {
			t.Errorf("%.15s with vendor information: %v", data, err)
		}
	}
}

// TestPadding: logs cut from ACPI memory end in zeros or ones.
func TestPadding(t *testing.T) {
	events := []made{{pcr: 0, typ: 8, data: []byte{9}}, {pcr: 0, typ: Separator, data: zero4}}
	for _, log := range [][]byte{agile([]Algorithm{SHA256}, events...), legacy(events...)} {
		want := mustParse(t, log)
		for _, fill := range []byte{0, 0xff} {
			for _, n := range []int{1, 3, 31, 32, 33, 4096} {
				l := mustParse(t, append(bytes.Clone(log), bytes.Repeat([]byte{fill}, n)...))
				if len(l.Events) != len(want.Events) || l.Padding != n {
					t.Errorf("%d bytes %#x: %d events and %d bytes of padding", n, fill, len(l.Events), l.Padding)
				}
			}
		}
		for _, tail := range [][]byte{{0, 1}, {0xff, 0}, {1, 0, 0, 0}} {
			if _, err := Parse(append(bytes.Clone(log), tail...)); err == nil {
				t.Errorf("%x behind the log was taken for padding", tail)
			}
		}
	}
}

// TestCarried: what is unknown is kept and still extended.
func TestCarried(t *testing.T) {
	const vendor Algorithm = 0x0027
	spec := specID(SHA256, SM3, vendor)
	spec[len(spec)-3] = 32 // sha3-256 has a size that only the header tells
	log := header(spec)
	digest := SHA256.sum([]byte("x"))
	e := le32(le32(le32(nil, 3), 0xcafe0001), 3)
	for i, a := range []Algorithm{vendor, SM3, SHA256} { // in an order of its own
		e = binary.LittleEndian.AppendUint16(e, uint16(a))
		e = append(e, byte(i+1))
		e = append(e, digest[1:32]...)
	}
	log = append(log, append(le32(e, 1), 'x')...)
	log = append(log, made{pcr: 0xffffffff, typ: NoAction, data: []byte("vendor")}.agile3(t, spec)...)
	l := mustParse(t, log)
	if len(l.Events) != 2 || l.Events[0].Type.String() != "0xcafe0001" || l.Events[1].Type.String() != "EV_NO_ACTION" {
		t.Fatalf("events %+v", l.Events)
	}
	for bank, first := range map[string]byte{"sha256": 3, "sm3": 2, "0x0027": 1} {
		if got := l.Digest(&l.Events[0], bank); len(got) != 32 || got[0] != first {
			t.Errorf("%s digest %x", bank, got)
		}
	}
	if l.Digest(&l.Events[0], "sha1") != nil {
		t.Error("a digest of a bank that is not there")
	}
	if _, err := l.Replay("sm3"); err == nil {
		t.Error("sm3 was replayed")
	}
	pcrs := mustReplay(t, l, "sha256")
	if len(pcrs) != 1 || pcrs[3] == nil {
		t.Errorf("PCRs %v", pcrs)
	}
}

// agile3 returns the event with 32 zero bytes for each of three algorithms.
func (e made) agile3(t *testing.T, spec []byte) []byte {
	t.Helper()
	b := le32(le32(le32(nil, e.pcr), uint32(e.typ)), 3)
	for i := range 3 {
		b = append(append(b, spec[28+4*i:30+4*i]...), make([]byte, 32)...)
	}
	return append(le32(b, uint32(len(e.data))), e.data...)
}
