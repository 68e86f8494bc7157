package notary

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"unsafe"

	"filippo.io/edwards25519"

	"github.com/keyturn/keyturn/hsm/secret/secrettest"
)

// NewOffers lets tests read the evidence topic as an epoch's proposer does.
func (n *Notary) NewOffers(ctx context.Context) ([]Digest, error) { return n.newOffers(ctx) }

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
