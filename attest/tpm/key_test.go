package tpm

import (
	"context"
	"crypto/x509"
	"errors"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
	keys "github.com/keyturn/keyturn/hsm/tpm"
)

// A key file's key is proved to be in the TPM whose certificate the maker
// signed; with another maker's roots, or another PIN, nothing is.
func TestProveKey(t *testing.T) {
	b, other := machine(t, 0), machine(t, 1)
	pin := func(p string) keys.Access {
		return keys.Access{PIN: func(context.Context, string) (*secret.Buffer, error) { return secret.Take([]byte(p)) }}
	}
	roots := b.roots.Development
	for name, c := range map[string]struct {
		kind  hsm.Kind
		guard keys.Guard
	}{
		"signing": {hsm.KindP256, keys.Guard{PIN: []byte("4711")}}, "agreement": {hsm.KindECDH, keys.Guard{}},
		"sealing, PCRs": {hsm.KindSeal, keys.Guard{PIN: []byte("4711"), PCRs: []int{4}}},
	} {
		uri := "tpm:" + filepath.Join(t.TempDir(), "key.pem")
		if _, err := b.device.Generate(t.Context(), uri, c.kind, c.guard); err != nil {
			t.Fatal(err)
		}
		ek, err := b.device.ProveKey(t.Context(), uri, pin("4711"), roots, b.roots.Intermediates, now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if ek.ID != b.node.EK.ID {
			t.Errorf("%s: proved in TPM %x, want %x", name, ek.ID, b.node.EK.ID)
		}
		if _, err := b.device.ProveKey(t.Context(), uri, pin("4711"), x509.NewCertPool(), nil, now); err == nil {
			t.Errorf("%s: proved without a maker", name)
		}
		if _, err := other.device.ProveKey(t.Context(), uri, pin("4711"), other.roots.Development, other.roots.Intermediates, now); !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: in another TPM: %v, want ErrWrongIdentity", name, err)
		}
		if len(c.guard.PIN) > 0 && c.kind == hsm.KindP256 {
			if _, err := b.device.ProveKey(t.Context(), uri, pin("wrong"), roots, b.roots.Intermediates, now); !errors.Is(err, hsm.ErrWrongPIN) {
				t.Errorf("%s: by a wrong PIN: %v, want ErrWrongPIN", name, err)
			}
		}
	}
}
