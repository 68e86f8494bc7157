package proof

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"
)

// Trust says whose signatures make a checkpoint. It comes from the charter and
// the state, never from the log that is being checked.
type Trust struct {
	Origin    string            // the first line of every checkpoint
	LogName   string            // key name of the log
	LogKey    ed25519.PublicKey // key of the log
	Witnesses []Witness         // notaries, and others whose cosignatures count
	Quorum    int               // how many witnesses make a checkpoint final; 0 or less refuses
	Also      []Cosigners       // whose quorums are needed besides, while one council hands over to another
}

// Cosigners are witnesses that count among themselves.
type Cosigners struct {
	Witnesses []Witness
	Quorum    int
}

// cosigners are all groups of which each has to reach its quorum.
func (t Trust) cosigners() []Cosigners {
	return append([]Cosigners{{t.Witnesses, t.Quorum}}, t.Also...)
}

// All returns every witness of t, one that is in two groups once.
func (t Trust) All() []Witness {
	var out []Witness
	for _, g := range t.cosigners() {
		for _, w := range g.Witnesses {
			if !slices.ContainsFunc(out, func(o Witness) bool { return o.Name == w.Name && o.Key.Equal(w.Key) }) {
				out = append(out, w)
			}
		}
	}
	return out
}

// A Witness is one key whose cosignatures count.
type Witness struct {
	Name string
	Key  ed25519.PublicKey
}

// A Cosignature says which witness cosigned and when, as that witness says.
type Cosignature struct {
	Name string
	Time uint64 // Unix seconds
}

// Open returns the checkpoint of a note that the log in t signed, with the
// valid cosignatures of t's witnesses in t's order. No quorum is asked for: the
// checkpoint is the log's claim, final or not. A bad signature of a known key
// refuses the note, unknown keys are ignored (c2sp.org/signed-note). Of
// witnesses that share a name or a key only the first that signed is returned,
// and none that shares the log's key.
func Open(signed []byte, t Trust) (Checkpoint, []Cosignature, error) {
	c, valid, err := open(signed, t)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	sigs, err := t.count(t.All(), valid)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	return c, sigs, nil
}

// open returns the checkpoint and every signature of a known key over it.
func open(signed []byte, t Trust) (Checkpoint, map[keyID]note.Signature, error) {
	known, err := t.verifiers()
	if err != nil {
		return Checkpoint{}, nil, err
	}
	n, err := openNote(signed, known)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	c, err := ParseCheckpoint([]byte(n.Text))
	if err != nil {
		return Checkpoint{}, nil, err
	}
	if c.Origin != t.Origin {
		return Checkpoint{}, nil, fmt.Errorf("proof: the checkpoint is of log %q, not of %q", c.Origin, t.Origin)
	}
	valid := make(map[keyID]note.Signature, len(n.Sigs))
	for _, s := range n.Sigs {
		valid[keyID{s.Name, s.Hash}] = s
	}
	if _, ok := valid[keyID{t.LogName, keyHash(t.LogName, algEd25519, t.LogKey)}]; !ok {
		return Checkpoint{}, nil, fmt.Errorf("proof: the checkpoint is not signed by the log key of %q", t.LogName)
	}
	return c, valid, nil
}

// ErrNotFinal means that the log signed the checkpoint and that too few
// witnesses cosigned it so far.
var ErrNotFinal = errors.New("not final")

// OpenFinal is Open for a checkpoint on which something may be decided: at
// least t.Quorum distinct witnesses cosigned it, and of each group in t.Also
// its quorum did; otherwise the error is [ErrNotFinal].
func OpenFinal(signed []byte, t Trust) (Checkpoint, []Cosignature, error) {
	for _, g := range t.cosigners() {
		if g.Quorum <= 0 || g.Quorum > len(g.Witnesses) {
			return Checkpoint{}, nil, fmt.Errorf("proof: a quorum of %d among %d witnesses makes nothing final", g.Quorum, len(g.Witnesses))
		}
	}
	c, valid, err := open(signed, t)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	for _, g := range t.cosigners() {
		of, err := t.count(g.Witnesses, valid)
		if err != nil {
			return Checkpoint{}, nil, err
		}
		if n := len(of); n < g.Quorum {
			return Checkpoint{}, nil, fmt.Errorf("proof: checkpoint %d has %d of the %d cosignatures it needs: %w", c.Size, n, g.Quorum, ErrNotFinal)
		}
	}
	sigs, err := t.count(t.All(), valid)
	return c, sigs, err
}

// count returns the cosignatures among the valid signatures, each witness once,
// whatever the list repeats.
func (t Trust) count(witnesses []Witness, valid map[keyID]note.Signature) ([]Cosignature, error) {
	names, keys := map[string]bool{}, map[string]bool{string(t.LogKey): true}
	var sigs []Cosignature
	for _, w := range witnesses {
		s, ok := valid[keyID{w.Name, keyHash(w.Name, algCosignature, w.Key)}]
		if !ok || names[w.Name] || keys[string(w.Key)] {
			continue
		}
		names[w.Name], keys[string(w.Key)] = true, true
		raw, err := base64.StdEncoding.DecodeString(s.Base64)
		if err != nil || len(raw) < 4+stampSize {
			return nil, fmt.Errorf("proof: the verified cosignature of %q carries no time", w.Name)
		}
		sigs = append(sigs, Cosignature{Name: w.Name, Time: binary.BigEndian.Uint64(raw[4:])})
	}
	return sigs, nil
}

// keyID is how a signature line names a key.
type keyID struct {
	name string
	hash uint32
}

// known implements note.Verifiers.
type known map[keyID]*verifier

func (k known) Verifier(name string, hash uint32) (note.Verifier, error) {
	if v, ok := k[keyID{name, hash}]; ok {
		return v, nil
	}
	return nil, &note.UnknownVerifierError{Name: name, KeyHash: hash}
}

// verifiers refuses a trust with an empty or unusable part. Two keys that one
// signature line cannot tell apart are refused as well.
func (t Trust) verifiers() (known, error) {
	if err := checkName("origin", t.Origin); err != nil {
		return nil, err
	}
	v, err := newVerifier(t.LogName, algEd25519, t.LogKey)
	if err != nil {
		return nil, err
	}
	k := known{{v.name, v.hash}: v}
	for _, w := range t.All() {
		v, err := newVerifier(w.Name, algCosignature, w.Key)
		if err != nil {
			return nil, err
		}
		id := keyID{v.name, v.hash}
		if have, ok := k[id]; ok && !(have.alg == v.alg && have.key.Equal(v.key)) {
			return nil, fmt.Errorf("proof: two keys named %q have the same key hash %08x; rename one", v.name, v.hash)
		}
		k[id] = v
	}
	return k, nil
}
