package tpm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/hsm"
	keys "github.com/keyturn/keyturn/hsm/tpm"
)

// TestConcurrentUse has every kind of operation run at once on one TPM, which
// has room for three objects.
func TestConcurrentUse(t *testing.T) {
	b := machine(t, 0)
	ctx := t.Context()
	fresh, err := b.identity.FreshKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	peer := fresh.PublicKey()
	secret := [32]byte{5}
	blob, enc, err := attest.ChallengeFor(rand.Reader, b.enrol, b.node, secret)
	if err != nil {
		t.Fatal(err)
	}
	operations := map[string]func() error{
		"tls sign": func() error { _, err := hsm.SignMessage(ctx, b.identity.TLSKey, []byte("m")); return err },
		"sign":     func() error { _, err := hsm.SignMessage(ctx, b.identity.SignKey, []byte("m")); return err },
		"agree":    func() error { _, err := fresh.ECDHContext(ctx, peer); return err },
		"quote": func() error {
			quote, sig, values, err := b.identity.Quote(ctx, nonce, []int{0, 4})
			if err != nil {
				return err
			}
			return quoted{b.enrol.AK, quote, sig, values}.verify(nonce)
		},
		"activate": func() error {
			got, err := b.identity.Activate(ctx, blob, enc)
			if err == nil && got != secret {
				err = errors.New("another secret")
			}
			return err
		},
		"storage refuses": func() error {
			if _, err := b.identity.StorageKey.ECDHContext(ctx, peer); !errors.Is(err, keys.ErrBootNotApproved) {
				return errors.Join(errors.New("the storage key opened without approval"), err)
			}
			return nil
		},
	}
	var wg sync.WaitGroup
	for name, f := range operations {
		wg.Go(func() {
			for range 8 {
				if err := f(); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A state goes through JSON and back after a reboot; with another boot-policy
// key, or in another TPM, it is refused.
func TestStateSurvives(t *testing.T) {
	b, other := machine(t, 0), machine(t, 1)
	encoded, err := json.Marshal(b.state)
	if err != nil {
		t.Fatal(err)
	}
	var state State
	if err := json.Unmarshal(encoded, &state); err != nil {
		t.Fatal(err)
	}
	i, err := b.device.Load(t.Context(), &state, &b.boot.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if i.Node() != b.node.ID || string(i.TLSName()) != string(b.node.TLSName) {
		t.Error("another identity came back")
	}
	if !b.node.TLSKey.Equal(i.TLSKey.Public()) || !b.node.StorageKey.Equal(i.StorageKey.PublicKey()) {
		t.Error("other keys came back")
	}
	strange, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.device.Load(t.Context(), &state, &strange.PublicKey); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("another boot-policy key: %v", err)
	}
	if _, err := other.device.Load(t.Context(), &state, &b.boot.PublicKey); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("another TPM: %v", err)
	}
	if err := other.device.PinStorageRoot(other.state.StorageRoot); err != nil {
		t.Fatal(err)
	}
	if _, err := b.device.Load(context.Background(), nil, &b.boot.PublicKey); err == nil {
		t.Error("no state was loaded")
	}
}
