package ima

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/go-json-experiment/json"
)

// FuzzParse reads anything as a list. What is accepted must account for every byte,
// replay to a PCR 10 by which all of it is proved, and survive judgement.
func FuzzParse(f *testing.F) {
	list, _ := localBoot(f, "uki-systemd-stub")
	f.Add(list)
	f.Add(binaryList(everyTemplate()...))
	f.Add(asciiList(everyTemplate()...))
	for _, m := range everyTemplate() {
		f.Add(m.binary())
		f.Add(m.ascii())
		m.hash = hashes[1]
		f.Add(m.binary())
		f.Add(bytes.TrimSpace(m.ascii()))
	}
	judge, err := NewJudge(Rules{Digests: []string{"sha256:0000000000000000000000000000000000000000000000000000000000000000"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Parse(data)
		if err != nil {
			return
		}
		end, alone := 0, true
		for i := range l.Entries {
			e := &l.Entries[i]
			if e.Offset != end || e.Size <= 0 || e.String() == "" {
				t.Fatalf("entry %d is at %d, the one before ended at %d", i, e.Offset, end)
			}
			end += e.Size
			alone = alone && e.PCR == PCR
		}
		if end != len(data) {
			t.Fatalf("entries end at %d of %d", end, len(data))
		}
		_ = judge.Check(l.Entries)
		s, err := l.Summary("sha256")
		if err != nil {
			t.Fatal(err)
		}
		entries, err := Prove("sha256", data, s.PCRs[PCR])
		if alone && err != nil || len(entries) > len(l.Entries) {
			t.Fatalf("%d of %d entries proved, %v", len(entries), len(l.Entries), err)
		}
	})
}

// FuzzVerify asks that no bytes are a signature but those that the key made.
func FuzzVerify(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	keys := mustKeyring(f, key.Public())
	f.Add([]byte{3, 2, 4, 0, 0, 0, 0, 0, 0})
	f.Add(append([]byte{3, 2, 4, 0, 0, 0, 0, 0, 8}, 0x30, 6, 2, 1, 1, 2, 1, 1))
	f.Fuzz(func(t *testing.T, sig []byte) {
		e := Entry{Algorithm: "sha256", FileDigest: sum32[:], Signature: sig}
		if keys.Verify(&e) == nil {
			t.Fatalf("%x is a signature", sig)
		}
	})
}

func FuzzRules(f *testing.F) {
	f.Add([]byte(`{"digests":["sha256:0000000000000000000000000000000000000000000000000000000000000000"],"ignore":["/tmp/"]}`))
	f.Add([]byte(`{"files":{"/bin/a":[]},"signed":[]}`))
	r, _ := newKeys(f)
	signed, err := json.Marshal(signedBelow(f, "/bin/", mustKeyring(f, r.Public())))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	e := parseOne(f, file("/bin/never", [32]byte{0x5e}, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		judge, err := ParseRules(data)
		if err != nil {
			return
		}
		if judge.Check([]Entry{e}) == nil && !bytes.Contains(data, []byte("5e")) && !judge.ignored(e.Path()) {
			t.Fatalf("%s allows what it does not name", data)
		}
	})
}
