package proof

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/transparency-dev/formats/log"
	tdnote "github.com/transparency-dev/formats/note"
	tdproof "github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
)

// world is a log with n notaries.
type world struct {
	trust    Trust
	log      hsm.Key
	notaries []hsm.Key
}

func newKey(t testing.TB, name string, kind hsm.Kind) hsm.Key {
	t.Helper()
	uri := "file:" + filepath.Join(t.TempDir(), name+".pem")
	if _, err := file.Generate(uri, kind); err != nil {
		t.Fatal(err)
	}
	k, err := file.Open(uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newWorld(t testing.TB, n, quorum int) *world {
	t.Helper()
	w := &world{log: newKey(t, "log", hsm.KindEd25519)}
	w.trust = Trust{Origin: "example.com/log", LogName: "example.com/log", LogKey: w.log.Public().(ed25519.PublicKey), Quorum: quorum}
	for i := range n {
		k := newKey(t, fmt.Sprint("notary", i), hsm.KindEd25519)
		w.notaries = append(w.notaries, k)
		w.trust.Witnesses = append(w.trust.Witnesses, Witness{fmt.Sprintf("n%d.example.com", i), k.Public().(ed25519.PublicKey)})
	}
	return w
}

func (w *world) checkpoint(size uint64) Checkpoint {
	return Checkpoint{Origin: w.trust.Origin, Size: size, Root: sha256.Sum256([]byte{byte(size)}), State: sha256.Sum256([]byte("state"))}
}

func (w *world) sign(t testing.TB, c Checkpoint) []byte {
	t.Helper()
	signed, err := SignCheckpoint(context.Background(), c, w.trust.LogName, w.log)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func (w *world) cosign(t testing.TB, signed []byte, notaries ...int) []byte {
	t.Helper()
	for _, i := range notaries {
		line, err := Cosign(context.Background(), signed, w.trust.Witnesses[i].Name, w.notaries[i], uint64(1000+i))
		if err != nil {
			t.Fatal(err)
		}
		at, err := VerifyCosignature(signed, line, w.trust.Witnesses[i])
		if err != nil || at != uint64(1000+i) {
			t.Fatalf("time %d: %v", at, err)
		}
		if signed, err = AddCosignature(signed, line); err != nil {
			t.Fatal(err)
		}
	}
	return signed
}

func TestOpen(t *testing.T) {
	w := newWorld(t, 4, 3)
	c := w.checkpoint(7)
	signed := w.sign(t, c)
	got, sigs, err := Open(signed, w.trust)
	if err != nil || got != c || len(sigs) != 0 {
		t.Fatalf("%v %v: %v", got, sigs, err)
	}
	two := w.cosign(t, signed, 3, 0)
	if _, _, err := OpenFinal(two, w.trust); !errors.Is(err, ErrNotFinal) {
		t.Fatalf("two of three cosignatures: %v", err)
	}
	got, sigs, err = OpenFinal(w.cosign(t, two, 2), w.trust)
	want := []Cosignature{{"n0.example.com", 1000}, {"n2.example.com", 1002}, {"n3.example.com", 1003}}
	if err != nil || got != c || fmt.Sprint(sigs) != fmt.Sprint(want) {
		t.Fatalf("%v %v: %v", got, sigs, err)
	}
}

// Two other implementations read what we sign: x/mod's note and
// transparency-dev's cosignature/v1 and checkpoint.
func TestAgainstOtherImplementations(t *testing.T) {
	w := newWorld(t, 2, 1)
	c := w.checkpoint(12345)
	signed := w.cosign(t, w.sign(t, c), 0, 1)

	vkey, err := note.NewEd25519VerifierKey(w.trust.LogName, w.trust.LogKey)
	if err != nil {
		t.Fatal(err)
	}
	logVerifier, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	verifiers := []note.Verifier{logVerifier}
	for _, x := range w.trust.Witnesses {
		vkey, err := note.NewEd25519VerifierKey(x.Name, x.Key)
		if err != nil {
			t.Fatal(err)
		}
		v, err := tdnote.NewVerifierForCosignatureV1(vkey)
		if err != nil {
			t.Fatal(err)
		}
		verifiers = append(verifiers, v)
	}
	n, err := note.Open(signed, note.VerifierList(verifiers...))
	if err != nil || len(n.Sigs) != 3 || len(n.UnverifiedSigs) != 0 {
		t.Fatalf("%+v: %v", n, err)
	}
	for i, s := range n.Sigs[1:] {
		at, err := tdnote.CoSigV1Timestamp(s)
		if err != nil || at.Unix() != int64(1000+i) {
			t.Fatalf("time %v: %v", at, err)
		}
	}
	parsed, rest, _, err := log.ParseCheckpoint(signed, w.trust.Origin, logVerifier)
	if err != nil || parsed.Size != c.Size || !bytes.Equal(parsed.Hash, c.Root[:]) {
		t.Fatalf("%+v: %v", parsed, err)
	}
	if want := "state " + base64.StdEncoding.EncodeToString(c.State[:]) + "\n"; string(rest) != want {
		t.Fatalf("extension %q, want %q", rest, want)
	}
}

// And we read what another implementation cosigned.
func TestOpensForeignCosignature(t *testing.T) {
	w := newWorld(t, 0, 1)
	skey, vkey, err := note.GenerateKey(nil, "other.example.com")
	if err != nil {
		t.Fatal(err)
	}
	s, err := tdnote.NewSignerForCosignatureV1(skey)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(vkey[strings.LastIndex(vkey[:len("other.example.com+")+9], "+")+1:])
	if err != nil {
		t.Fatal(err)
	}
	w.trust.Witnesses = []Witness{{"other.example.com", ed25519.PublicKey(raw[1:])}}
	c := w.checkpoint(3)
	signed, err := note.Sign(&note.Note{Text: string(c.Marshal())}, s)
	if err != nil {
		t.Fatal(err)
	}
	foreign := signed[bytes.LastIndex(signed, []byte("\n\n"))+2:]
	signed, err = AddCosignature(w.sign(t, c), foreign)
	if err != nil {
		t.Fatal(err)
	}
	got, sigs, err := OpenFinal(signed, w.trust)
	if err != nil || got != c || len(sigs) != 1 || sigs[0].Time == 0 {
		t.Fatalf("%v %v: %v", got, sigs, err)
	}
}

func TestTrustRefuses(t *testing.T) {
	w := newWorld(t, 4, 3)
	signed := w.cosign(t, w.sign(t, w.checkpoint(7)), 0, 1, 2)
	if _, _, err := OpenFinal(signed, w.trust); err != nil {
		t.Fatal(err)
	}
	small := make(ed25519.PublicKey, 32)
	small[0] = 1 // the identity: a key for which anyone can sign anything
	for name, change := range map[string]func(*Trust){
		"quorum zero":            func(t *Trust) { t.Quorum = 0 },
		"quorum negative":        func(t *Trust) { t.Quorum = -1 },
		"quorum above witnesses": func(t *Trust) { t.Quorum = 5 },
		"no witnesses":           func(t *Trust) { t.Witnesses = nil },
		"no origin":              func(t *Trust) { t.Origin = "" },
		"another origin":         func(t *Trust) { t.Origin = "example.com/log2" },
		"no log name":            func(t *Trust) { t.LogName = "" },
		"no log key":             func(t *Trust) { t.LogKey = nil },
		"another log key":        func(t *Trust) { t.LogKey = t.Witnesses[0].Key },
		"small order log key":    func(t *Trust) { t.LogKey = small },
		"a witness without key":  func(t *Trust) { t.Witnesses = append(t.Witnesses, Witness{Name: "x"}) },
		"a witness without name": func(t *Trust) { t.Witnesses = append(t.Witnesses, Witness{Key: t.LogKey}) },
		"a small order witness":  func(t *Trust) { t.Witnesses = append(t.Witnesses, Witness{"x", small}) },
		"zero":                   func(t *Trust) { *t = Trust{} },
	} {
		trust := w.trust
		trust.Witnesses = append([]Witness(nil), w.trust.Witnesses...)
		change(&trust)
		if c, _, err := OpenFinal(signed, trust); err == nil || c != (Checkpoint{}) {
			t.Errorf("%s: opened %v, %v", name, c, err)
		}
	}
}

// One notary listed under three names, or one name with three keys, is one.
func TestAttackOneWitnessManyTimes(t *testing.T) {
	w := newWorld(t, 3, 2)
	key := w.notaries[0]
	w.trust.Witnesses = []Witness{
		{"a.example.com", key.Public().(ed25519.PublicKey)},
		{"b.example.com", key.Public().(ed25519.PublicKey)},
		{"a.example.com", w.notaries[1].Public().(ed25519.PublicKey)},
		{"a.example.com", key.Public().(ed25519.PublicKey)},
	}
	signed := w.sign(t, w.checkpoint(9))
	for _, s := range []struct {
		name string
		key  hsm.Key
	}{{"a.example.com", key}, {"b.example.com", key}, {"a.example.com", w.notaries[1]}} {
		line, err := Cosign(context.Background(), signed, s.name, s.key, 5)
		if err != nil {
			t.Fatal(err)
		}
		if signed, err = AddCosignature(signed, line); err != nil {
			t.Fatal(err)
		}
	}
	_, sigs, err := Open(signed, w.trust)
	if err != nil || len(sigs) != 1 {
		t.Fatalf("%v: %v", sigs, err)
	}
	if _, _, err := OpenFinal(signed, w.trust); !errors.Is(err, ErrNotFinal) {
		t.Fatalf("one witness made a quorum of two: %v", err)
	}
}

// The log key cosigns as a witness: it does not count.
func TestAttackLogAsWitness(t *testing.T) {
	w := newWorld(t, 1, 1)
	w.trust.Witnesses = append(w.trust.Witnesses, Witness{"w.example.com", w.trust.LogKey})
	signed := w.sign(t, w.checkpoint(9))
	line, err := Cosign(context.Background(), signed, "w.example.com", w.log, 5)
	if err != nil {
		t.Fatal(err)
	}
	if signed, err = AddCosignature(signed, line); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenFinal(signed, w.trust); !errors.Is(err, ErrNotFinal) {
		t.Fatalf("the log vouched for itself: %v", err)
	}
}

// A cosignature without the log's signature, or of another checkpoint, or with
// its time changed, is none.
func TestAttackCosignature(t *testing.T) {
	w := newWorld(t, 2, 1)
	c := w.checkpoint(9)
	signed := w.sign(t, c)
	line, err := Cosign(context.Background(), signed, w.trust.Witnesses[0].Name, w.notaries[0], 77)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenFinal(append(append(c.Marshal(), '\n'), line...), w.trust); err == nil {
		t.Error("final without the log's signature")
	}
	other := c
	other.State[0] ^= 1
	moved, err := AddCosignature(w.sign(t, other), line)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenFinal(moved, w.trust); err == nil {
		t.Error("a cosignature counted for another state")
	}
	if _, err := VerifyCosignature(w.sign(t, other), line, w.trust.Witnesses[0]); err == nil {
		t.Error("a cosignature verified for another state")
	}
	if _, err := VerifyCosignature(signed, line, w.trust.Witnesses[1]); err == nil {
		t.Error("a cosignature verified for another witness")
	}
	name, _, raw, err := parseLine(line)
	if err != nil {
		t.Fatal(err)
	}
	raw[7]++
	later := bytes.Clone(signed)
	later = append(later, []byte(fmt.Sprintf("%s%s %s\n", linePrefix, name, base64.StdEncoding.EncodeToString(append(keyID4(w.trust.Witnesses[0]), raw...))))...)
	if _, _, err := Open(later, w.trust); err == nil {
		t.Error("a cosignature with another time passed")
	}
	for _, at := range []uint64{0, 1 << 63} {
		if _, err := Cosign(context.Background(), signed, w.trust.Witnesses[0].Name, w.notaries[0], at); err == nil {
			t.Errorf("cosigned at time %d", at)
		}
	}
}

func keyID4(w Witness) []byte {
	h := keyHash(w.Name, algCosignature, w.Key)
	return []byte{byte(h >> 24), byte(h >> 16), byte(h >> 8), byte(h)}
}

func TestAddCosignatureTwice(t *testing.T) {
	w := newWorld(t, 1, 1)
	once := w.cosign(t, w.sign(t, w.checkpoint(1)), 0)
	if twice := w.cosign(t, once, 0); !bytes.Equal(once, twice) {
		t.Fatalf("the note grew:\n%s", twice)
	}
	for _, bad := range []string{"", "— x\n", "— x AAAA", "— x AAAAAAAA\n— y AAAAAAAA\n", "x AAAAAAAA\n", "— x AAAAAAA=\n\n", "— x AAAAAAB=\n"} {
		if _, err := AddCosignature(once, []byte(bad)); err == nil {
			t.Errorf("%q was added", bad)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	w := newWorld(t, 0, 0)
	good := w.checkpoint(1)
	p256 := newKey(t, "p256", hsm.KindP256)
	for name, try := range map[string]func() error{
		"no key":      func() error { _, err := SignCheckpoint(context.Background(), good, "x", nil); return err },
		"a P-256 key": func() error { _, err := SignCheckpoint(context.Background(), good, "x", p256); return err },
		"no name":     func() error { _, err := SignCheckpoint(context.Background(), good, "", w.log); return err },
		"a plus":      func() error { _, err := SignCheckpoint(context.Background(), good, "a+b", w.log); return err },
		"no origin": func() error {
			_, err := SignCheckpoint(context.Background(), Checkpoint{Size: 1}, "x", w.log)
			return err
		},
		"an injection": func() error {
			c := good
			c.Origin = "a\n5"
			_, err := SignCheckpoint(context.Background(), c, "x", w.log)
			return err
		},
		"too large": func() error {
			c := good
			c.Size = MaxSize + 1
			_, err := SignCheckpoint(context.Background(), c, "x", w.log)
			return err
		},
		"no note": func() error { _, err := Cosign(context.Background(), good.Marshal(), "x", w.log, 1); return err },
	} {
		if try() == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestParseCheckpointRefuses(t *testing.T) {
	good := string(newWorld(t, 0, 0).checkpoint(10).Marshal())
	if _, err := ParseCheckpoint([]byte(good)); err != nil {
		t.Fatal(err)
	}
	l := strings.SplitAfter(good, "\n")
	for name, bad := range map[string]string{
		"empty":              "",
		"no state":           l[0] + l[1] + l[2],
		"two extensions":     good + l[3],
		"another extension":  l[0] + l[1] + l[2] + "time 5\n",
		"no last newline":    strings.TrimSuffix(good, "\n"),
		"carriage return":    strings.ReplaceAll(good, "\n", "\r\n"),
		"leading zero":       l[0] + "010\n" + l[2] + l[3],
		"plus sign":          l[0] + "+10\n" + l[2] + l[3],
		"negative":           l[0] + "-1\n" + l[2] + l[3],
		"beyond uint64":      l[0] + "18446744073709551616\n" + l[2] + l[3],
		"beyond MaxSize":     l[0] + fmt.Sprint(uint64(MaxSize+1)) + "\n" + l[2] + l[3],
		"empty origin":       "\n" + l[1] + l[2] + l[3],
		"bidi in the origin": "example\u202e.com\n" + l[1] + l[2] + l[3],
		"short root":         l[0] + l[1] + "AAAA\n" + l[3],
		"long root":          l[0] + l[1] + base64.StdEncoding.EncodeToString(make([]byte, 33)) + "\n" + l[3],
		"loose root":         l[0] + l[1] + strings.Repeat("A", 42) + "B=\n" + l[3],
		"state in capitals":  l[0] + l[1] + l[2] + "S" + l[3][1:],
	} {
		if c, err := ParseCheckpoint([]byte(bad)); err == nil {
			t.Errorf("%s: parsed as %v", name, c)
		}
	}
}

func TestVerifyLeaf(t *testing.T) {
	w := newWorld(t, 4, 3)
	l := leaves(100)
	tree := NewTree(l)
	c := Checkpoint{Origin: w.trust.Origin, Size: 100, Root: tree.Root()}
	path, err := tree.Prove(42)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proof{Index: 42, Path: path, Checkpoint: w.cosign(t, w.sign(t, c), 0, 1, 2)}
	text := p.Marshal()

	var other tdproof.TLogProof
	if err := other.Unmarshal(text); err != nil || other.Index != 42 || len(other.Hashes) != len(path) || !bytes.Equal(other.Checkpoint, p.Checkpoint) {
		t.Fatalf("transparency-dev reads %+v: %v", other, err)
	}
	if !bytes.Equal(other.Marshal(), text) {
		t.Fatal("transparency-dev writes it differently")
	}
	back, err := ParseProof(text)
	if err != nil {
		t.Fatal(err)
	}
	got, sigs, err := VerifyLeaf(w.trust, back, l[42])
	if err != nil || got != c || len(sigs) != 3 {
		t.Fatalf("%v %v: %v", got, sigs, err)
	}
	if _, _, err := VerifyLeaf(w.trust, back, l[41]); err == nil {
		t.Error("another leaf was verified")
	}
	back.Index = 41
	if _, _, err := VerifyLeaf(w.trust, back, l[42]); err == nil {
		t.Error("another index was verified")
	}
	if _, _, err := VerifyLeaf(w.trust, nil, l[42]); err == nil {
		t.Error("no proof was verified")
	}
	p.Checkpoint = w.sign(t, c)
	if _, _, err := VerifyLeaf(w.trust, p, l[42]); !errors.Is(err, ErrNotFinal) {
		t.Errorf("a checkpoint that is not final: %v", err)
	}
	// Every single flipped bit of the file.
	for i := range text {
		for bit := range 8 {
			bad := bytes.Clone(text)
			bad[i] ^= 1 << bit
			p, err := ParseProof(bad)
			if err != nil {
				continue
			}
			_, sigs, err := VerifyLeaf(w.trust, p, l[42])
			if err == nil && len(sigs) == 3 {
				t.Fatalf("bit %d of byte %d can be flipped", bit, i)
			}
		}
	}
}

func TestParseProofRefuses(t *testing.T) {
	w := newWorld(t, 0, 0)
	signed := string(w.sign(t, w.checkpoint(4)))
	h := base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n"
	if _, err := ParseProof([]byte(proofHeader + "\nindex 3\n" + h + "\n" + signed)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty":         "",
		"header only":   proofHeader + "\n",
		"no index":      proofHeader + "\n\n" + signed,
		"extra data":    proofHeader + "\nextra AAAA\nindex 3\n" + h + "\n" + signed,
		"version":       "c2sp.org/tlog-proof@v2\nindex 3\n" + h + "\n" + signed,
		"index twice":   proofHeader + "\nindex 3\nindex 3\n" + h + "\n" + signed,
		"leading zero":  proofHeader + "\nindex 03\n" + h + "\n" + signed,
		"long path":     proofHeader + "\nindex 3\n" + strings.Repeat(h, maxPath+1) + "\n" + signed,
		"no checkpoint": proofHeader + "\nindex 3\n" + h + "\n",
		"no gap":        proofHeader + "\nindex 3\n" + h + signed,
		"no signature":  proofHeader + "\nindex 3\n" + h + "\n" + string(w.checkpoint(4).Marshal()),
		"too long":      proofHeader + "\nindex 3\n" + h + "\n" + signed + strings.Repeat(" ", maxProof),
	} {
		if _, err := ParseProof([]byte(bad)); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
}

func TestConsistency(t *testing.T) {
	l := leaves(64)
	at := func(n int) Checkpoint { return Checkpoint{Origin: "o", Size: uint64(n), Root: Root(l[:n])} }
	if err := CheckConsistency(at(0), at(5), nil); err != nil {
		t.Error(err)
	}
	if err := CheckConsistency(at(5), at(5), nil); err != nil {
		t.Error(err)
	}
	forked, other, lied := at(5), at(9), at(0)
	forked.Root[0] ^= 1
	other.Origin = "p"
	lied.Root[0] ^= 1
	for name, err := range map[string]error{
		"shrunk":              CheckConsistency(at(6), at(5), nil),
		"another root":        CheckConsistency(at(5), forked, nil),
		"another log":         CheckConsistency(at(5), other, nil),
		"no path":             CheckConsistency(at(5), at(9), nil),
		"a path from nothing": CheckConsistency(at(0), at(9), make([][32]byte, 1)),
		"a lie about nothing": CheckConsistency(lied, at(9), nil),
		"beyond MaxSize":      CheckConsistency(at(5), Checkpoint{Origin: "o", Size: MaxSize + 1}, nil),
	} {
		if err == nil {
			t.Errorf("%s: consistent", name)
		}
	}
}

// Two notes of one size are evidence; anyone can check it, and it cannot be
// made without the log's key.
func TestAttackFork(t *testing.T) {
	w := newWorld(t, 2, 1)
	a := w.checkpoint(5)
	b := a
	b.Root[0] ^= 1
	s := a
	s.State[0] ^= 1
	for _, other := range []Checkpoint{b, s} {
		f, err := ProveFork(w.sign(t, a), w.sign(t, other), w.trust)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Verify(w.trust); err != nil {
			t.Fatal(err)
		}
	}
	// A bad cosignature in one of them does not save the log.
	line, err := Cosign(context.Background(), w.sign(t, a), w.trust.Witnesses[0].Name, w.notaries[0], 5)
	if err != nil {
		t.Fatal(err)
	}
	spoiled, err := AddCosignature(w.sign(t, b), line)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ProveFork(w.sign(t, a), spoiled, w.trust); err != nil {
		t.Error(err)
	}
	if _, err := ProveFork(w.sign(t, a), w.sign(t, a), w.trust); !errors.Is(err, ErrNoFork) {
		t.Errorf("one checkpoint twice: %v", err)
	}
	if _, err := ProveFork(w.sign(t, a), w.sign(t, w.checkpoint(6)), w.trust); !errors.Is(err, ErrNoFork) {
		t.Errorf("two sizes: %v", err)
	}
	forger := newWorld(t, 0, 0)
	if _, err := ProveFork(w.sign(t, a), forger.sign(t, b), w.trust); err == nil || errors.Is(err, ErrNoFork) {
		t.Errorf("someone else's checkpoint: %v", err)
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	f.Add(Checkpoint{Origin: "example.com/log", Size: 5}.Marshal())
	f.Add([]byte("a\n0\n\nstate \n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseCheckpoint(text)
		if err == nil && !bytes.Equal(c.Marshal(), text) {
			t.Fatalf("%q parses as %v, which is written %q", text, c, c.Marshal())
		}
	})
}

func FuzzParseProof(f *testing.F) {
	w := newWorld(f, 1, 1)
	signed := w.cosign(f, w.sign(f, w.checkpoint(4)), 0)
	f.Add((&Proof{Index: 3, Path: make([][32]byte, 2), Checkpoint: signed}).Marshal())
	f.Add((&Proof{Checkpoint: signed}).Marshal())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseProof(data)
		if err == nil && !bytes.Equal(p.Marshal(), data) {
			t.Fatalf("%q is written %q", data, p.Marshal())
		}
	})
}

func FuzzOpen(f *testing.F) {
	w := newWorld(f, 2, 1)
	honest := w.cosign(f, w.sign(f, w.checkpoint(4)), 0)
	text := w.checkpoint(4).Marshal()
	f.Add(honest)
	f.Add(w.sign(f, w.checkpoint(4)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, err := OpenFinal(data, w.trust); err == nil && !bytes.HasPrefix(data, text) {
			t.Fatalf("%q is final", data)
		}
	})
}
