package eventlog

import (
	"bytes"
	"crypto"
	"maps"
	"slices"
	"testing"

	_ "crypto/sha1"
	_ "crypto/sha256"
	_ "crypto/sha512"

	"pgregory.net/rapid"
)

// drawEvents makes events of any type but EV_NO_ACTION.
func drawEvents(t *rapid.T, min int) []made {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) made {
		return made{
			pcr:  rapid.Uint32Range(0, pcrCount-1).Draw(t, "pcr"),
			typ:  Type(rapid.Uint32Range(4, 0x80000100).Filter(func(v uint32) bool { return Type(v) != EFIHCRTM }).Draw(t, "type")),
			data: rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "data"),
		}
	}), min, 20).Draw(t, "events")
}

// simpleReplay is the definition, written again with other means.
func simpleReplay(events []made, h crypto.Hash, first []byte) map[int][]byte {
	pcrs := make(map[int][]byte)
	for _, e := range events {
		old, ok := pcrs[int(e.pcr)]
		switch {
		case ok:
		case e.pcr == 0:
			old = first
		case e.pcr >= 17 && e.pcr <= 22:
			old = bytes.Repeat([]byte{0xff}, h.Size())
		default:
			old = make([]byte, h.Size())
		}
		digest := h.New()
		digest.Write(e.measured())
		next := h.New()
		next.Write(append(bytes.Clone(old), digest.Sum(nil)...))
		pcrs[int(e.pcr)] = next.Sum(nil)
	}
	return pcrs
}

func equalPCRs(a PCRs, b map[int][]byte) bool {
	return maps.EqualFunc(a, b, func(x, y []byte) bool { return bytes.Equal(x, y) })
}

func TestReplayIsTheDefinition(t *testing.T) {
	banks := map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}
	rapid.Check(t, func(t *rapid.T) {
		events := drawEvents(t, 1)
		l, err := Parse(agile([]Algorithm{SHA512, SHA1, SHA256, SHA384}, events...))
		if err != nil {
			t.Fatal(err)
		}
		for name, h := range banks {
			pcrs, err := l.Replay(name)
			if err != nil || !equalPCRs(pcrs, simpleReplay(events, h, make([]byte, h.Size()))) {
				t.Fatalf("%s: %v, %v", name, pcrs, err)
			}
			if err := l.Explain(name, pcrs); (err == nil) != (name != "sha1") {
				t.Fatalf("%s: %v", name, err)
			}
		}
		old, err := Parse(legacy(events...))
		if err != nil {
			t.Fatal(err)
		}
		pcrs, err := old.Replay("sha1")
		if err != nil || !equalPCRs(pcrs, simpleReplay(events, crypto.SHA1, make([]byte, 20))) {
			t.Fatalf("SHA-1 format: %v, %v", pcrs, err)
		}
	})
}

// TestLocality: PCR 0 begins at the locality of the startup, or at 4 after an H-CRTM.
func TestLocality(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := append([]made{{pcr: 0, typ: 8, data: []byte("version")}}, drawEvents(t, 0)...)
		locality := rapid.SampledFrom([]byte{0, 3, 4}).Draw(t, "locality")
		start := made{pcr: 0, typ: NoAction, data: append([]byte("StartupLocality\x00"), locality)}
		hcrtm := rapid.Bool().Draw(t, "hcrtm")
		want := make([]byte, 32)
		want[31] = locality
		if hcrtm {
			events[0].typ = EFIHCRTM
			want[31] = 4
		}
		l, err := Parse(agile([]Algorithm{SHA256}, append([]made{start}, events...)...))
		if err != nil {
			t.Fatal(err)
		}
		pcrs, err := l.Replay("sha256")
		if err != nil || !equalPCRs(pcrs, simpleReplay(events, crypto.SHA256, want)) {
			t.Fatalf("locality %d, H-CRTM %v: %v, %v", locality, hcrtm, pcrs, err)
		}
	})
}

// TestLateHCRTM: only the first event of PCR 0 tells of an H-CRTM.
func TestLateHCRTM(t *testing.T) {
	events := []made{{pcr: 0, typ: 8, data: []byte("version")}, {pcr: 0, typ: EFIHCRTM, data: []byte("HCRTM")}}
	pcrs := mustReplay(t, mustParse(t, agile([]Algorithm{SHA256}, events...)), "sha256")
	if !equalPCRs(pcrs, simpleReplay(events, crypto.SHA256, make([]byte, 32))) {
		t.Errorf("PCRs %v", pcrs)
	}
}

// TestAnyFlippedBit: no single bit of a log changes what is explained without being
// noticed, unless it is in a type or in data, which are comments.
func TestAnyFlippedBit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := drawEvents(t, 2)
		log := agile([]Algorithm{SHA256}, events...)
		l, err := Parse(log)
		if err != nil {
			t.Fatal(err)
		}
		pcrs, err := l.Replay("sha256")
		if err != nil {
			t.Fatal(err)
		}
		off := rapid.IntRange(l.Events[0].Offset, len(log)-1).Draw(t, "offset")
		flipped := bytes.Clone(log)
		flipped[off] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		fl, err := Parse(flipped)
		if err != nil || fl.Explain("sha256", pcrs) != nil {
			return
		}
		i := slices.IndexFunc(l.Events, func(e Event) bool { return e.Offset > off }) - 1
		if i < -1 {
			i = len(l.Events) - 1
		}
		e := &l.Events[max(i, 0)]
		at := off - e.Offset
		if typ, data := at >= 4 && at < 8, at >= 4+4+4+2+32+4; !typ && !data {
			t.Fatalf("flipping byte %d of event %d goes unnoticed", at, i)
		}
	})
}
