package tpm

import (
	"bytes"
	"crypto/rand"
	"testing"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

const ccActivateCredential = 0x147

// What sits on the bus while a challenge is answered neither reads the secret nor
// changes it unseen.
func TestAttackInterposerOnActivateCredential(t *testing.T) {
	b := newBench(t)
	bus := swtpm.NewBus(t, b.emulator)
	if err := b.device.Close(); err != nil {
		t.Fatal(err)
	}
	device, err := Open(bus.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	b.device = device
	b.load(t)
	secret := [32]byte{}
	rand.Read(secret[:])
	blob, enc, err := attest.ChallengeFor(rand.Reader, b.enrol, b.node, secret)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.identity.Activate(t.Context(), blob, enc)
	if err != nil || got != secret {
		t.Fatalf("through an interposer that only reads: %v", err)
	}
	if passed := bus.Passed(); len(passed) == 0 || bytes.Contains(passed, secret[:]) {
		t.Error("the secret passed the bus as it is, or nothing did")
	}
	changed := 0
	bus.Change(func(code uint32, answer []byte) {
		if code == ccActivateCredential && len(answer) > 40 {
			answer[20] ^= 1 // in the encrypted secret, behind tag, size, code, size of parameters and its own size
			changed++
		}
	})
	if got, err := b.identity.Activate(t.Context(), blob, enc); err == nil {
		t.Errorf("a changed answer was taken: secret is as it was: %t", got == secret)
	}
	bus.Change(nil)
	if changed == 0 {
		t.Error("the interposer saw no answer to change")
	}
}
