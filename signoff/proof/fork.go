package proof

import (
	"errors"
	"fmt"
)

// A Fork is evidence against the log key: two checkpoints of one size that
// cannot both be true, each signed by it. Anyone with the log's public key can
// check it with [Fork.Verify].
type Fork struct {
	A, B []byte // signed notes
}

// ErrNoFork means that two checkpoints, both signed by the log, do not by
// themselves contradict each other.
var ErrNoFork = errors.New("no fork")

// ProveFork returns the evidence if a and b are notes that the log in t signed
// for the same size with a different root, or with a different state, which
// the same entries cannot have led to. Otherwise the error is [ErrNoFork], or
// says which note was not the log's. Cosignatures play no part. Checkpoints of
// different sizes that no consistency proof joins are a fork too, but prove it
// only with the entries.
func ProveFork(a, b []byte, t Trust) (*Fork, error) {
	f := &Fork{A: a, B: b}
	if err := f.Verify(t); err != nil {
		return nil, err
	}
	return f, nil
}

// Verify returns nil if f proves that t's log key signed two branches.
func (f *Fork) Verify(t Trust) error {
	t.Witnesses = nil // a bad line of a witness must not hide the log's doing
	a, _, err := Open(f.A, t)
	if err != nil {
		return fmt.Errorf("first checkpoint: %w", err)
	}
	b, _, err := Open(f.B, t)
	if err != nil {
		return fmt.Errorf("second checkpoint: %w", err)
	}
	if a.Size != b.Size || a == b {
		return fmt.Errorf("proof: checkpoints of size %d and %d: %w", a.Size, b.Size, ErrNoFork)
	}
	return nil
}
