package keys

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/durable"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/hsm/tpm"
)

// A Custody is what the holder of a key says of it. It is the holder's word to
// whoever asks: neither PKCS#11 nor a TPM's key file proves it to others.
type Custody struct {
	URI       string
	Kind      hsm.Kind
	Public    any // *ecdsa.PublicKey, ed25519.PublicKey, *ecdh.PublicKey, *hsm.SecurityKey; nil of a sealing key
	Class     hsm.Class
	Made      bool  // by the holder itself (CKA_LOCAL; sensitiveDataOrigin)
	Stays     bool  // cannot be taken out (CKA_SENSITIVE, not CKA_EXTRACTABLE; fixedTPM, fixedParent)
	Stayed    bool  // nor ever could (CKA_ALWAYS_SENSITIVE, CKA_NEVER_EXTRACTABLE)
	PIN       bool  // it, or its token, has one
	PCRs      []int // it works only while these are as they were
	holder    string
	TriesLeft string // what is known of the tries before the PIN locks
}

// Holder names what holds the key.
func (c *Custody) Holder() string { return c.holder }

// manageable refuses schemes whose keys are managed by their own tools.
func manageable(uri string) (hsm.URI, error) {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return u, err
	}
	if u.Scheme != hsm.SchemePKCS11 && u.Scheme != hsm.SchemeTPM {
		return u, unsupported(uri, "pkcs11: and tpm: keys are managed here, others by the tools of their holder")
	}
	if u.Scheme == hsm.SchemePKCS11 && u.Object == "" {
		return u, fmt.Errorf("keys: %s names a token; add object=LABEL to name a key", uri)
	}
	return u, nil
}

// Generate makes a key that stays where it is made. Pin asks for the new PIN of
// a TPM key, nil for none; a token's keys have the token's.
func (r *Ring) Generate(ctx context.Context, uri string, kind hsm.Kind, pcrs []int, pin hsm.PIN) (*Custody, error) {
	u, err := manageable(uri)
	if err != nil {
		return nil, err
	}
	if u.Scheme == hsm.SchemePKCS11 {
		if len(pcrs) > 0 {
			return nil, errors.New("keys: only tpm: keys are bound to PCRs")
		}
		t, u, err := r.Token(ctx, uri)
		if err != nil {
			return nil, err
		}
		if _, err := t.Generate(ctx, u.Object, kind); err != nil {
			return nil, err
		}
		return r.Describe(ctx, uri)
	}
	t, err := r.TPM()
	if err != nil {
		return nil, err
	}
	g := tpm.Guard{PCRs: pcrs}
	if pin != nil {
		p, err := pin(ctx, "new PIN for "+uri)
		if err != nil {
			return nil, err
		}
		defer p.Wipe()
		g.PIN = p.Bytes()
	}
	if _, err := t.Generate(ctx, uri, kind, g); err != nil {
		return nil, err
	}
	return r.Describe(ctx, uri)
}

// Describe asks the holder of a key what it is.
func (r *Ring) Describe(ctx context.Context, uri string) (*Custody, error) {
	u, err := manageable(uri)
	if err != nil {
		return nil, err
	}
	if u.Scheme == hsm.SchemeTPM {
		return r.describeTPM(ctx, uri)
	}
	t, u, err := r.Token(ctx, uri)
	if err != nil {
		return nil, err
	}
	info, err := t.Info(ctx)
	if err != nil {
		return nil, err
	}
	list, err := t.List(ctx)
	if err != nil {
		return nil, err
	}
	var found []*Custody
	for _, k := range list {
		if k.Label == u.Object && k.Kind != "" {
			found = append(found, &Custody{URI: u.String(), Kind: k.Kind, Public: k.Public, Class: token.ClassOf(info), Made: k.Local,
				Stays: k.Sensitive && !k.Extractable, Stayed: k.AlwaysSensitive && k.NeverExtractable, PIN: true, holder: "token " + info.Label, TriesLeft: tries(info)})
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("keys: %w: token %s has %d keys with label %q, not one; keyturn key list lists them", hsm.ErrGone, info.Label, len(found), u.Object)
	}
	return found[0], nil
}

// tries says what a token tells of its PIN.
func tries(info token.TokenInfo) string {
	switch {
	case info.PINLocked:
		return "none: the PIN is locked"
	case info.PINFinalTry:
		return "one"
	case info.PINCountLow:
		return "fewer than all: a wrong PIN was tried"
	}
	return "not told: no wrong PIN was tried, or the token does not say"
}

func (r *Ring) describeTPM(ctx context.Context, uri string) (*Custody, error) {
	t, err := r.TPM()
	if err != nil {
		return nil, err
	}
	d, err := t.Describe(ctx, uri)
	if err != nil {
		return nil, err
	}
	left, of, err := t.Tries(ctx)
	if err != nil {
		return nil, err
	}
	class := hsm.ClassSelfDeclared
	if t.Emulated() {
		class = hsm.ClassSoftware
	}
	// The data of a sealing key come from this program; the rest the TPM makes.
	return &Custody{URI: uri, Kind: d.Kind, Public: d.Public, Class: class, Made: d.Kind != hsm.KindSeal, Stays: true, Stayed: d.Kind != hsm.KindSeal,
		PIN: d.PIN, PCRs: d.PCRs, holder: "TPM by " + t.Manufacturer(), TriesLeft: fmt.Sprintf("%d of %d, for all keys of the TPM together", left, of)}, nil
}

// Destroy destroys a key for good. Of a tpm: key it removes the file: a copy of
// it would still work in this TPM, for who has the PIN.
func (r *Ring) Destroy(ctx context.Context, uri string) error {
	u, err := manageable(uri)
	if err != nil {
		return err
	}
	if u.Scheme == hsm.SchemePKCS11 {
		t, u, err := r.Token(ctx, uri)
		if err != nil {
			return err
		}
		return t.Destroy(ctx, u.Object)
	}
	if err := durable.Remove(u.Path); err != nil {
		return fmt.Errorf("keys: destroy %s: %w", uri, err)
	}
	return nil
}

// ChangePIN replaces the PIN of a token, or of a TPM key. Old and new are asked
// for by the ring's source and by fresh.
func (r *Ring) ChangePIN(ctx context.Context, uri string, fresh hsm.PIN) error {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return err
	}
	var ask string
	var change func(old, new []byte) error
	switch u.Scheme {
	case hsm.SchemePKCS11:
		// Not through the ring: the old PIN is sent with the new one, once.
		t, err := token.Open(ctx, token.Config{Interactive: r.Attended}, uri, nil)
		if err != nil {
			return err
		}
		defer t.Close()
		info, err := t.Info(ctx)
		if err != nil {
			return err
		}
		ask = token.Prompt(info)
		change = func(old, new []byte) error { return t.ChangePIN(ctx, old, new) }
	case hsm.SchemeTPM:
		t, err := r.TPM()
		if err != nil {
			return err
		}
		left, of, err := t.Tries(ctx)
		if err != nil {
			return err
		}
		ask = fmt.Sprintf("PIN of %s, %d of %d tries left", uri, left, of)
		change = func(old, new []byte) error { return t.ChangePIN(ctx, uri, old, new) }
	default:
		return unsupported(uri, "pkcs11: tokens and tpm: keys have a PIN that is changed here")
	}
	old, err := r.pin(ctx, ask)
	if err != nil {
		return err
	}
	defer old.Wipe()
	new, err := fresh(ctx, "new PIN")
	if err != nil {
		return err
	}
	defer new.Wipe()
	return change(old.Bytes(), new.Bytes())
}

// Twice asks for a new PIN two times, since nobody sees what they type.
func Twice(source hsm.PIN) hsm.PIN {
	return func(ctx context.Context, prompt string) (*secret.Buffer, error) {
		one, err := source(ctx, prompt)
		if err != nil {
			return nil, err
		}
		two, err := source(ctx, prompt+", once more")
		defer two.Wipe()
		if err == nil && subtle.ConstantTimeCompare(one.Bytes(), two.Bytes()) != 1 {
			err = errors.New("keys: the two PINs differ; nothing was changed")
		}
		if err != nil {
			one.Wipe()
			return nil, err
		}
		return one, nil
	}
}
