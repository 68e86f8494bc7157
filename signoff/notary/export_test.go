package notary

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
	"unsafe"

	"filippo.io/edwards25519"

	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/hsm/secret/secrettest"
	"github.com/keyturn/keyturn/signoff"
)

// NewOffers lets tests read the evidence topic as an epoch's proposer does.
func (n *Notary) NewOffers(ctx context.Context) ([]Digest, error) { return n.newOffers(ctx) }

// A Wakes is what bounds ticks that anybody asks for.
type Wakes struct{ wakes }

// Take asks for a round.
func (w *Wakes) Take(round uint64, now time.Time) bool { return w.take(round, now) }

// WakeBurst is how many there are at once.
const WakeBurst = wakeBurst

// Fetch lets tests look evidence up as an epoch's proposer does.
func (n *Notary) Fetch(ctx context.Context, digests []Digest) [][]byte { return n.fetch(ctx, digests) }

// ShareForms returns what the notary's share looks like in memory: as it is
// sealed, and as it is computed with.
func (n *Notary) ShareForms(ctx context.Context) (map[string]secrettest.Needle, error) {
	files, err := filepath.Glob(filepath.Join(n.store.dir, sharePrefix+"*"))
	if err != nil || len(files) != 1 {
		return nil, fmt.Errorf("share files %v: %w", files, err)
	}
	sealed, err := n.loadSealed(ctx, filepath.Base(files[0]))
	if err != nil {
		return nil, err
	}
	defer clear(sealed)
	if len(sealed) < 32 {
		return nil, errors.New("no share")
	}
	encoded := sealed[len(sealed)-32:]
	s, err := new(edwards25519.Scalar).SetCanonicalBytes(encoded)
	if err != nil {
		return nil, err
	}
	computed := unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s))
	defer clear(computed)
	return map[string]secrettest.Needle{"encoded": secrettest.Hide(encoded), "computed with": secrettest.Hide(computed)}, nil
}

// OnStep has step told of each step that the notary takes on its disk: what it
// did, to which file, and the bytes that were written.
func (n *Notary) OnStep(step func(done, name string, data []byte)) { n.store.step = step }

// HasShare wants on disk the notary's share of the group, and that it fits the
// group's public shares.
func (n *Notary) HasShare(ctx context.Context, group *frost.Group) error {
	if err := n.arm(ctx); err != nil {
		return err
	}
	return n.withShare(ctx, group, func(*frost.KeyShare) error { return nil })
}

// Arm is what Run does first.
func (n *Notary) Arm(ctx context.Context) error { return n.arm(ctx) }

// Hold is what is asked before anything is signed.
func (n *Notary) Hold(ctx context.Context) error { return n.store.hold(ctx) }

// Cosigned moves the notary's position as a cosignature does.
func (n *Notary) Cosigned(ctx context.Context, now time.Time, size uint64) error {
	return n.store.advance(ctx, now, signoff.Seen{Size: size}, 0)
}

// FuseValue is the counter's, as the directory has it.
func (n *Notary) FuseValue() uint64 { return n.store.position().Fuse }
