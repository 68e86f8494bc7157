package tpm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

const ccUnseal = 0x15e

// opens reports whether any 32 bytes in a row of what passed are the key that
// sealed.
func opens(t *testing.T, passed, sealed []byte) bool {
	t.Helper()
	for i := 0; i+32 <= len(passed); i++ {
		block, err := aes.NewCipher(passed[i : i+32])
		if err != nil {
			t.Fatal(err)
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := aead.Open(nil, nil, sealed, nil); err == nil {
			return true
		}
	}
	return false
}

// What sits on the bus while a secret is unsealed reads neither the key that
// comes out of the TPM nor the PIN that goes in, and cannot change the key
// unseen.
func TestAttackInterposerOnUnseal(t *testing.T) {
	e := swtpm.New(t)
	bus := swtpm.NewBus(t, e)
	d, err := Open(bus.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	uri, _ := newKey(t, d, hsm.KindSeal, Guard{PIN: []byte(testPIN)})
	s, err := d.Sealer(t.Context(), uri, pin(testPIN, false))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Seal(t.Context(), []byte("share"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Unseal(t.Context(), sealed, nil); err != nil || string(got) != "share" {
		t.Fatalf("through an interposer that only reads: %q, %v", got, err)
	}
	passed := bus.Passed()
	if len(passed) < 1000 || bytes.Contains(passed, []byte(testPIN)) || opens(t, passed, sealed) {
		t.Errorf("key or PIN passed the bus as they are, or nothing did: %d bytes", len(passed))
	}
	// The search finds a key where there is one.
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	if !opens(t, append(passed[:100:100], key...), aead.Seal(nil, nil, []byte("share"), nil)) {
		t.Error("the search does not find a key that passed")
	}

	changed := 0
	bus.Change(func(code uint32, answer []byte) {
		if code == ccUnseal && len(answer) > 40 {
			answer[20] ^= 1 // in the encrypted key, behind tag, size, code, size of parameters and its own size
			changed++
		}
	})
	if got, err := s.Unseal(t.Context(), sealed, nil); err == nil {
		t.Errorf("a changed answer was taken: %q", got)
	}
	bus.Change(nil)
	if changed == 0 {
		t.Error("the interposer saw no answer to change")
	}
	if got, err := s.Unseal(t.Context(), sealed, nil); err != nil || string(got) != "share" {
		t.Errorf("after it: %q, %v", got, err)
	}
}
