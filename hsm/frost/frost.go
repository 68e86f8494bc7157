// Package frost makes one Ed25519 signature out of the work of many signers.
//
// It is RFC 9591, FROST(Ed25519, SHA-512): any Threshold of the Members of a
// group sign in two rounds, fewer learn nothing and can do nothing, and what
// comes out is an ordinary signature under an ordinary 32-byte public key.
//
// Around the RFC's signing protocol stand the three things it leaves open:
//
//   - a [Ceremony] makes the key without a dealer (Pedersen's key generation
//     with the proofs of possession of Komlo and Goldberg, "FROST", 2020,
//     figure 1), or deals an existing key anew to another group, the public
//     key staying as it is;
//   - a [Group] follows from the published half of a ceremony alone, so that
//     whoever replays the log knows every member's verification share;
//   - a [Roast] chooses signers so that silent or lying ones only delay (after
//     Ruffing et al., "ROAST", 2022).
//
// The package computes and decides; it never waits, sends, stores or looks at
// a clock. Values that travel in the open are fixed-size byte arrays. Values
// that are secret live behind pointers, print as "redacted", are multiplied in
// constant time, and leave only by methods that say so: the output of
// MarshalSecret is to be sealed, a subshare is to be encrypted to its receiver.
// Variable-time arithmetic touches public values only.
//
// Whoever is shown to have broken the protocol is named in a [CheatError].
package frost

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// MaxMembers bounds a group, and with it every list in this package.
const MaxMembers = 64

var (
	// ErrSpent is returned for the second use of a [Nonce].
	ErrSpent = errors.New("frost: this nonce was already used to sign; commit to a fresh one")

	// ErrWiped is returned for the use of a secret that is not there (any more).
	ErrWiped = errors.New("frost: no secret here, or it was wiped; load it from where it is sealed")
)

// Params says how many of how many sign. Members are numbered 1 to Members.
type Params struct {
	Threshold uint16 `json:"threshold"` // signers needed, 2 to Members
	Members   uint16 `json:"members"`   // signers there are, at most MaxMembers
}

// Validate refuses a group of nobody, a threshold that one member meets alone
// and one that all together miss.
func (p Params) Validate() error {
	switch {
	case p.Members == 0 || p.Members > MaxMembers:
		return fmt.Errorf("frost: a group of %d members: need 2 to %d", p.Members, MaxMembers)
	case p.Threshold < 2 || p.Threshold > p.Members:
		return fmt.Errorf("frost: a threshold of %d among %d members: need 2 to %d", p.Threshold, p.Members, p.Members)
	}
	return nil
}

func (p Params) checkID(id uint16) error {
	if id == 0 || id > p.Members {
		return fmt.Errorf("frost: member %d of a group numbered 1 to %d", id, p.Members)
	}
	return nil
}

// checkIDs wants identifiers of the group in strictly ascending order, which
// leaves no room for a duplicate.
func (p Params) checkIDs(ids []uint16) error {
	for i, id := range ids {
		if err := p.checkID(id); err != nil {
			return err
		}
		if i > 0 && id <= ids[i-1] {
			return fmt.Errorf("frost: member %d follows member %d: list each once, ascending", id, ids[i-1])
		}
	}
	return nil
}

// CheatError names the members whose contributions do not verify.
type CheatError struct {
	Step string   // what was verified: "commitments", "subshare", "nonce commitment" or "signature share"
	IDs  []uint16 // ascending, never empty
	Err  error    // why the first of them was refused
}

func (e *CheatError) Error() string {
	return fmt.Sprintf("frost: %s of member %v refused: %v", e.Step, e.IDs, e.Err)
}

func (e *CheatError) Unwrap() error { return e.Err }

// blame collects cheats; the first reason stands for all.
type blame struct{ CheatError }

func (b *blame) add(id uint16, err error) {
	if b.Err == nil {
		b.Err = err
	}
	b.IDs = append(b.IDs, id)
}

func (b *blame) verdict() error {
	if len(b.IDs) == 0 {
		return nil
	}
	slices.Sort(b.IDs)
	return &b.CheatError
}

// redact answers every verb of package fmt for a type that holds a secret.
func redact(f fmt.State, what string) { _, _ = io.WriteString(f, "frost."+what+"(redacted)") }
