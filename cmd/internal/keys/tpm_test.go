package keys

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/tpm"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

// A ring finds the TPM of its environment, and opens there all that a notary
// needs but its witness key.
func TestKeysInTPM(t *testing.T) {
	e := swtpm.New(t)
	t.Setenv(envTPM, e.Path)
	dir, ctx := t.TempDir(), t.Context()
	uri := func(name string) string { return "tpm:" + filepath.Join(dir, name+".pem") }
	r := New(func(context.Context, string) (*secret.Buffer, error) { return secret.Take([]byte("4711")) })
	defer r.Close()
	d, err := r.TPM()
	check(t, err)
	made := map[string]any{}
	for name, kind := range map[string]hsm.Kind{"sign": hsm.KindP256, "exchange": hsm.KindECDH, "seal": hsm.KindSeal} {
		made[name], err = d.Generate(ctx, uri(name), kind, tpm.Guard{PIN: []byte("4711")})
		check(t, err)
	}
	k, err := r.Key(ctx, uri("sign"), made["sign"].(*ecdsa.PublicKey))
	check(t, err)
	_, err = hsm.SignMessage(ctx, k, []byte("message"))
	check(t, err)
	x, err := r.Decrypter(ctx, uri("exchange"), made["exchange"].(*ecdh.PublicKey))
	check(t, err)
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	check(t, err)
	_, err = x.ECDHContext(ctx, peer.PublicKey())
	check(t, err)
	s, err := r.Sealer(ctx, uri("seal"))
	check(t, err)
	sealed, err := s.Seal(ctx, []byte("share"), []byte("of"))
	check(t, err)
	if b, err := s.Unseal(ctx, sealed, []byte("of")); err != nil || string(b) != "share" {
		t.Errorf("unsealed %q, %v", b, err)
	}
	if _, err := r.Decrypter(ctx, uri("exchange"), peer.PublicKey()); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("pinned to another key: %v, want ErrWrongIdentity", err)
	}
	t.Setenv(envTPM, "/dev/nowhere")
	if _, err := New(nil).Key(ctx, uri("sign"), nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("no TPM: %v, want ErrGone", err)
	}
}
