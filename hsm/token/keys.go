package token

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/token/internal/wire"
)

// KeyInfo is what a token says of one of its keys, unproven.
type KeyInfo struct {
	Label            string
	ID               string   // CKA_ID, hexadecimal
	Kind             hsm.Kind // empty if keyturn has no use for such a key
	Public           any      // *ecdsa.PublicKey, ed25519.PublicKey, *ecdh.PublicKey; nil for a sealing or unknown key
	Sign, Derive     bool     // may sign; may agree
	Sensitive        bool     // does not leave in the clear
	Extractable      bool     // may leave wrapped under another key
	AlwaysSensitive  bool     // was sensitive from the start
	NeverExtractable bool     // was never extractable
	Local            bool     // was made on the token
}

// List returns the private and secret keys of the token, at most 1000.
func (t *Token) List(ctx context.Context) ([]KeyInfo, error) {
	found, err := t.list(ctx)
	if err != nil {
		return nil, t.explain("list keys", err)
	}
	keys := make([]KeyInfo, len(found))
	for i, k := range found {
		keys[i] = KeyInfo{clean(k.Label), clean(k.ID), k.Kind, nil, k.Sign, k.Derive, k.Sensitive, k.Extractable,
			k.AlwaysSensitive, k.NeverExtractable, k.Local}
		if len(k.Point) > 0 {
			if keys[i].Public, err = parsePoint(k.Kind, k.Point); err != nil {
				keys[i].Public, keys[i].Kind = nil, "" // shown, but of no use
			}
		}
	}
	return keys, nil
}

func (t *Token) list(ctx context.Context) ([]wire.KeyInfo, error) {
	answer, err := t.call(ctx, wire.OpList)
	if err != nil {
		return nil, err
	}
	var found []wire.KeyInfo
	return found, decode(answer, &found)
}

// Generate makes a key on the token that is sensitive, not extractable, and
// good for what kind says and nothing else. It returns the public key:
// *ecdsa.PublicKey, ed25519.PublicKey, *ecdh.PublicKey, or nil for a sealing
// key. A label that names a key already is refused.
func (t *Token) Generate(ctx context.Context, label string, kind hsm.Kind) (any, error) {
	what := fmt.Sprintf("generate key %q (%s)", label, kind)
	if label == "" || label != clean(label) || len(label) > wire.MaxLabel {
		return nil, t.explain(what, fmt.Errorf("a label is 1 to %d bytes that print", wire.MaxLabel))
	}
	// Sent once only: a second try could make a second key.
	point, err := t.once(ctx, wire.OpGenerate, []byte(kind), []byte(label))
	if err != nil {
		return nil, t.explain(what, err)
	}
	if kind == hsm.KindSeal {
		return nil, nil
	}
	public, err := parsePoint(kind, point)
	return public, t.explain(what, err)
}

// Destroy destroys the one key with this label, for good.
func (t *Token) Destroy(ctx context.Context, label string) error {
	what := fmt.Sprintf("destroy key %q", label)
	all, err := t.list(ctx)
	if err != nil {
		return t.explain(what, err)
	}
	k, _, err := choose(all, label, nil, []hsm.Kind{hsm.KindP256, hsm.KindEd25519, hsm.KindECDH, hsm.KindSeal})
	if err == nil {
		_, err = t.once(ctx, wire.OpDestroy, []byte(k.Kind), []byte(label), k.Point)
	}
	return t.explain(what, err)
}

// Key returns the signing key with this label, or with the object of the URI if
// label is empty. Pinned is its public key as recorded at enrolment, a P-256
// *ecdsa.PublicKey or an ed25519.PublicKey. Only to list or to enrol may it be
// nil: then the one key with the label is taken for what it shows.
//
// Errors: ErrGone (no such key), ErrWrongIdentity (another public key).
func (t *Token) Key(ctx context.Context, label string, pinned crypto.PublicKey) (hsm.Key, error) {
	id, err := t.find(ctx, label, pinned, hsm.KindP256, hsm.KindEd25519)
	if err != nil {
		return nil, err
	}
	return &key{id}, nil
}

// Decrypter returns the agreement key with this label; label and pinned are as
// for Key. Without a pinned key the token must first show, by agreeing with a
// fresh key, that it holds the private half.
func (t *Token) Decrypter(ctx context.Context, label string, pinned *ecdh.PublicKey) (hsm.Decrypter, error) {
	var pin any
	if pinned != nil {
		pin = pinned
	}
	id, err := t.find(ctx, label, pin, hsm.KindECDH)
	if err != nil {
		return nil, err
	}
	d := &decrypter{identity: id, public: id.public.(*ecdh.PublicKey)}
	if pinned == nil {
		err = d.prove(ctx)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Sealer returns the AES-256 key with this label. Such a key has no public half
// to pin, so what it is now stays pinned for the life of the Sealer by a
// witness: a ciphertext that no other key opens. Across restarts, let Unseal of
// something old come before Seal of something new.
func (t *Token) Sealer(ctx context.Context, label string) (hsm.Sealer, error) {
	id, err := t.find(ctx, label, nil, hsm.KindSeal)
	if err != nil {
		return nil, err
	}
	witness, err := t.call(ctx, wire.OpWitness, []byte(id.label))
	if err != nil {
		return nil, t.explain("use sealing key "+label, err)
	}
	return &sealer{id, witness}, nil
}

// identity names one key of the token beyond doubt.
type identity struct {
	t      *Token
	label  string
	kind   hsm.Kind
	public any    // nil for a sealing key
	point  []byte // public as the token has it
	info   hsm.Info
}

func (k *identity) Info() hsm.Info { return k.info }

// find looks a key up by label, kind and pinned public key.
func (t *Token) find(ctx context.Context, label string, pinned any, kinds ...hsm.Kind) (*identity, error) {
	if label == "" {
		label = t.uri.Object
	}
	what := fmt.Sprintf("find %s key %q", kinds[0], label)
	if label == "" || len(label) > wire.MaxLabel {
		return nil, t.explain(what, errors.New("no label named; add object=LABEL to the URI"))
	}
	if pinned != nil {
		if err := hsm.CheckPublic(pinned); err != nil {
			return nil, t.explain(what, err)
		}
	}
	all, err := t.list(ctx)
	if err != nil {
		return nil, t.explain(what, err)
	}
	k, public, err := choose(all, label, pinned, kinds)
	if err != nil {
		return nil, t.explain(what, err)
	}
	if k.Extractable || !k.Sensitive {
		return nil, t.explain(what, errors.New("the token would give this key away (extractable or not sensitive); generate another"))
	}
	return &identity{t, label, k.Kind, public, k.Point, t.keyInfo(label)}, nil
}

// choose picks the key with the label and the pinned public key; without a
// pinned one, the only key with the label.
func choose(all []wire.KeyInfo, label string, pinned any, kinds []hsm.Kind) (wire.KeyInfo, any, error) {
	var candidates []wire.KeyInfo
	var mismatch error
	for _, k := range all {
		if k.Label != label || !slices.Contains(kinds, k.Kind) {
			continue
		}
		candidates = append(candidates, k)
		if pinned == nil {
			continue
		}
		public, err := parsePoint(k.Kind, k.Point)
		if err == nil {
			err = hsm.SamePublic(pinned, public)
		}
		if err == nil {
			return k, public, nil
		}
		mismatch = fmt.Errorf("%w: %w", hsm.ErrWrongIdentity, err)
	}
	switch {
	case len(candidates) == 0:
		return wire.KeyInfo{}, nil, fmt.Errorf("%w: the token has no such key", hsm.ErrGone)
	case pinned != nil:
		return wire.KeyInfo{}, nil, mismatch
	case len(candidates) > 1:
		return wire.KeyInfo{}, nil, fmt.Errorf("%d keys have this label; rename or remove all but one", len(candidates))
	case candidates[0].Kind == hsm.KindSeal:
		return candidates[0], nil, nil
	}
	public, err := parsePoint(candidates[0].Kind, candidates[0].Point)
	return candidates[0], public, err
}

// ClassOf is the class of keys on a token. Software that plays a token says so
// by its manufacturer or model: SoftHSM, opencryptoki's soft token, and a TPM
// that is libtpms. What does not is still only self-declared.
func ClassOf(info TokenInfo) hsm.Class {
	of := strings.ToLower(info.Manufacturer + " " + strings.Join(strings.Fields(info.Model), " "))
	for _, software := range []string{"softhsm", "ibm soft", "ibm sw tpm"} {
		if strings.Contains(of, software) {
			return hsm.ClassSoftware
		}
	}
	return hsm.ClassSelfDeclared
}

// keyInfo describes a key of this token.
func (t *Token) keyInfo(label string) hsm.Info {
	info, class := t.info, ClassOf(t.info)
	uri := hsm.URI{Scheme: hsm.SchemePKCS11, Token: info.Label, Serial: info.Serial, Object: label, ModulePath: t.uri.ModulePath}
	return hsm.Info{URI: uri.String(), Class: class, Token: info.Label, Manufacturer: info.Manufacturer}
}

// parsePoint reads a public key of the token.
func parsePoint(kind hsm.Kind, point []byte) (any, error) {
	var public any
	var err error
	switch kind {
	case hsm.KindP256:
		public, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	case hsm.KindECDH:
		public, err = ecdh.P256().NewPublicKey(point)
	case hsm.KindEd25519:
		public = ed25519.PublicKey(point)
	default:
		return nil, fmt.Errorf("token: kind %q has no public key", kind)
	}
	if err == nil {
		err = hsm.CheckPublic(public)
	}
	if err != nil {
		return nil, fmt.Errorf("token: bad %s public key of %d bytes: %w", kind, len(point), err)
	}
	return public, nil
}

type key struct{ *identity }

func (k *key) Public() crypto.PublicKey { return k.public }

func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

func (k *key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := hsm.CheckInput(k.public, digest, opts); err != nil {
		return nil, err
	}
	if len(digest) > wire.MaxInput {
		return nil, fmt.Errorf("token: a message of %d bytes is over %d", len(digest), wire.MaxInput)
	}
	sig, err := k.t.call(ctx, wire.OpSign, []byte(k.kind), []byte(k.label), k.point, digest)
	if err != nil {
		return nil, k.t.explain(fmt.Sprintf("sign by %q", k.label), err)
	}
	if k.kind == hsm.KindP256 {
		if sig, err = derSignature(sig); err != nil {
			return nil, k.t.explain(fmt.Sprintf("sign by %q", k.label), err)
		}
	}
	if err := hsm.VerifySignature(k.public, digest, sig, opts); err != nil {
		return nil, k.t.explain(fmt.Sprintf("sign by %q", k.label), fmt.Errorf("%w: %w", hsm.ErrWrongIdentity, err))
	}
	return sig, nil
}

// derSignature turns the r and s of a token, 32 bytes each (PKCS #11, section
// 6.3.1), into the DER of an Ecdsa-Sig-Value (RFC 3279, section 2.2.3).
func derSignature(raw []byte) ([]byte, error) {
	if len(raw) != 64 {
		return nil, fmt.Errorf("%w: a P-256 signature has 64 bytes, not %d", hsm.ErrWrongIdentity, len(raw))
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])})
}

type decrypter struct {
	*identity
	public *ecdh.PublicKey
}

func (d *decrypter) PublicKey() *ecdh.PublicKey { return d.public }
func (d *decrypter) Curve() ecdh.Curve          { return ecdh.P256() }

func (d *decrypter) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return d.ECDHContext(context.Background(), peer)
}

func (d *decrypter) ECDHContext(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	if err := hsm.CheckPublic(peer); err != nil {
		return nil, err
	}
	secret, err := d.t.call(ctx, wire.OpECDH, []byte(d.label), d.point, peer.Bytes())
	if err == nil && len(secret) != 32 {
		clear(secret)
		err = fmt.Errorf("%w: a P-256 shared secret has 32 bytes, not %d", hsm.ErrWrongIdentity, len(secret))
	}
	if err != nil {
		return nil, d.t.explain(fmt.Sprintf("agree by %q", d.label), err)
	}
	return secret, nil
}

// prove returns nil if the token holds the private half of d.public.
func (d *decrypter) prove(ctx context.Context) error {
	fresh, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	want, err := fresh.ECDH(d.public)
	if err != nil {
		return err
	}
	got, err := d.ECDHContext(ctx, fresh.PublicKey())
	if err == nil && subtle.ConstantTimeCompare(got, want) != 1 {
		err = d.t.explain(fmt.Sprintf("agree by %q", d.label), fmt.Errorf("%w: it does not hold the private half of its public key", hsm.ErrWrongIdentity))
	}
	return err
}

type sealer struct {
	*identity
	witness []byte
}

func (s *sealer) Seal(ctx context.Context, plaintext, ad []byte) ([]byte, error) {
	if len(plaintext) == 0 || len(plaintext) > wire.MaxSecret || len(ad) > wire.MaxAD {
		return nil, fmt.Errorf("token: a secret has 1 to %d bytes, not %d, and its associated data up to %d, not %d",
			wire.MaxSecret, len(plaintext), wire.MaxAD, len(ad))
	}
	sealed, err := s.t.call(ctx, wire.OpSeal, []byte(s.label), s.witness, plaintext, ad)
	if err != nil {
		return nil, s.t.explain(fmt.Sprintf("seal by %q", s.label), err)
	}
	return sealed, nil
}

func (s *sealer) Unseal(ctx context.Context, sealed, ad []byte) ([]byte, error) {
	if len(sealed) > wire.MaxSecret+wire.SealOverhead || len(ad) > wire.MaxAD {
		return nil, fmt.Errorf("token: sealed secret of %d bytes or associated data of %d is over %d or %d",
			len(sealed), len(ad), wire.MaxSecret+wire.SealOverhead, wire.MaxAD)
	}
	plaintext, err := s.t.call(ctx, wire.OpUnseal, []byte(s.label), s.witness, sealed, ad)
	if err != nil {
		return nil, s.t.explain(fmt.Sprintf("unseal by %q", s.label), err)
	}
	return plaintext, nil
}
