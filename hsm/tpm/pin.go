package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
)

// maxPIN is what every TPM takes as the auth value of an object named by
// SHA-256, in bytes (Part 1, section 19.6.3).
const maxPIN = 32

// Access says where the PIN of a key comes from.
type Access struct {
	PIN         hsm.PIN // nil: keys without a PIN only
	Interactive bool    // a person is there to answer for the last try before the TPM locks
}

// pins is the PIN of one key. It is asked for once and kept in locked memory.
// Once it was refused it is not sent again: the TPM counts tries, of all keys
// together. Until it was taken once, one use at a time may send it.
type pins struct {
	Access
	name string // of the key, for the prompt

	turn    chan struct{} // holds one value while somebody reads or changes what follows
	kept    *secret.Buffer
	proven  bool // the TPM took it
	refused error
}

func newPINs(a Access, name string) *pins {
	return &pins{Access: a, name: name, turn: make(chan struct{}, 1)}
}

// with calls f with the PIN, and remembers whether it was taken.
func (p *pins) with(ctx context.Context, t *TPM, what string, f func(auth []byte) error) error {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("tpm: %s: waiting for the pin: %w", what, hsm.ContextError(ctx))
	}
	held := true
	release := func() {
		if held {
			held = false
			<-p.turn
		}
	}
	defer release()
	err := p.fetch(ctx, t)
	if err != nil {
		return fmt.Errorf("tpm: %s: %w", what, err)
	}
	pin, err := p.kept.Clone() // which nobody wipes meanwhile
	if err != nil {
		return fmt.Errorf("tpm: %s: %w", what, err)
	}
	defer pin.Wipe()
	if p.proven {
		release()
		return f(pin.Bytes())
	}
	return p.judge(ctx, t, f(pin.Bytes()))
}

// fetch asks for the PIN if there is none. Before it is sent for the first time
// the TPM is asked how many tries are left. The caller has the turn.
func (p *pins) fetch(ctx context.Context, t *TPM) error {
	if p.refused != nil || p.kept != nil {
		return p.refused
	}
	left, of, err := t.Tries(ctx)
	switch {
	case err != nil:
		return err
	case left == 0:
		return fmt.Errorf("%w: no pin was sent; wait, or have the TPM's owner reset its lock-out", hsm.ErrLocked)
	case left == 1 && !p.Interactive:
		return fmt.Errorf("%w: one more wrong pin locks the TPM for all its keys, so no pin is sent unattended", hsm.ErrLocked)
	case p.PIN == nil:
		return errors.New("the key wants a pin and nobody gave one")
	}
	pin, err := p.PIN(ctx, prompt(p.name, left, of))
	if err == nil {
		err = checkPIN(pin.Bytes())
	}
	if err != nil {
		pin.Wipe()
		return fmt.Errorf("ask for the pin: %w", err)
	}
	p.kept = pin
	return nil
}

// prompt names the key and says what a wrong PIN may cost.
func prompt(name string, left, of int) string {
	s := "PIN of " + name
	switch {
	case left == 1:
		s += ", LAST TRY before the TPM locks"
	case left < of:
		s += fmt.Sprintf(", %d of %d tries left", left, of)
	}
	return s
}

func checkPIN(pin []byte) error {
	// A TPM drops zeros at the end, and package tpm2 all behind the first one.
	if len(pin) == 0 || len(pin) > maxPIN || bytes.IndexByte(pin, 0) >= 0 {
		return fmt.Errorf("a pin of a TPM key has 1 to %d bytes, not %d, none of them zero", maxPIN, len(pin))
	}
	return nil
}

// judge remembers how the first use of a PIN ended. The caller has the turn.
func (p *pins) judge(ctx context.Context, t *TPM, err error) error {
	p.proven = err == nil
	if !errors.Is(err, hsm.ErrWrongPIN) {
		return err
	}
	p.close(fmt.Errorf("%w (not tried again; open the key anew with the right pin)", t.triesLeft(ctx, err)))
	return p.refused
}

// close forgets the PIN for good. The caller has the turn.
func (p *pins) close(why error) {
	p.kept.Wipe()
	p.kept, p.proven, p.refused = nil, false, why
}

// triesLeft adds to a refused PIN how many tries are left.
func (t *TPM) triesLeft(ctx context.Context, err error) error {
	if !errors.Is(err, hsm.ErrWrongPIN) {
		return err
	}
	if left, of, e := t.Tries(ctx); e == nil {
		err = fmt.Errorf("%w; %d of %d tries left before the TPM locks", err, left, of)
	}
	return err
}

// Tries returns how many wrong PINs the TPM takes, of all keys together, before
// it locks, and how many it takes at most (Part 1, section 19.8).
func (t *TPM) Tries(ctx context.Context) (left, of int, err error) {
	err = t.Run(ctx, "read the lock-out counter", func(tr transport.TPM) error {
		failed, err := property(tr, tpm2.TPMPTLockoutCounter)
		if err != nil {
			return err
		}
		most, err := property(tr, tpm2.TPMPTMaxAuthFail)
		if err != nil {
			return err
		}
		left, of = int(most)-int(min(failed, most)), int(most)
		return nil
	})
	return left, of, err
}

// property reads one of the TPM's own.
func property(tr transport.TPM, p tpm2.TPMPT) (uint32, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(tr)
	if err != nil {
		return 0, err
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, err
	}
	if len(list.TPMProperty) != 1 || list.TPMProperty[0].Property != p {
		return 0, fmt.Errorf("the TPM does not tell property 0x%x", uint32(p))
	}
	return list.TPMProperty[0].Value, nil
}
