package token_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/secret/secrettest"
	"github.com/keyturn/keyturn/hsm/token"
)

// After a login and a signature the PIN stands in the memory of neither
// process. What the module keeps of it is the module's: SoftHSM keeps nothing.
func TestAttackPINInMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to read the memory of a helper that is undumpable")
	}
	s := newStore(t)
	pin, err := secret.New(32)
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 16)
	rand.Read(random)
	hex.Encode(pin.Bytes(), random)
	clear(random)
	needle := secrettest.Hide(pin.Bytes())
	if err := token.Init(t.Context(), s.cfg, "alice", []byte(soPIN), pin.Bytes()); err != nil {
		t.Fatal(err)
	}
	tok, err := token.Open(t.Context(), s.cfg, "pkcs11:token=alice", func(context.Context, string) (*secret.Buffer, error) { return pin, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	generate(t, tok, "p256", hsm.KindP256)
	if err := sign(openKey(t, tok, "p256", nil)); err != nil {
		t.Fatal(err)
	}
	helper := theHelper(t)
	for who, pid := range map[string]int{"the client": 0, "the helper": helper} {
		if n, err := secrettest.Count(pid, needle); err != nil || n != 0 {
			t.Errorf("%s: the PIN was found %d times, want none: %v", who, n, err)
		}
	}
	control := secrettest.Show(needle)
	if n, err := secrettest.Count(0, needle); err != nil || n == 0 {
		t.Errorf("a control copy was not found: %v", err)
	}
	clear(control)
	// The helper's memory is read: it knows the label of its key.
	if n, err := secrettest.Count(helper, secrettest.Hide([]byte("libsofthsm2.so"))); err != nil || n == 0 {
		t.Errorf("the name of the module was found %d times in the helper: %v", n, err)
	}
}
