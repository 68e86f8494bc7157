package signoff

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"fmt"

	"github.com/keyturn/keyturn/hsm"
)

// A PublicKey is a key as documents carry it: SPKI DER and the class that
// says how the private half is kept (DESIGN.md, "Keys").
type PublicKey struct {
	SPKI  []byte    `json:"spki"`
	Class hsm.Class `json:"class"`
}

// NewPublicKey encodes pub, an *ecdsa.PublicKey or *ecdh.PublicKey on P-256 or
// an ed25519.PublicKey.
func NewPublicKey(pub any, class hsm.Class) (PublicKey, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return PublicKey{}, fmt.Errorf("signoff: encode public key: %w", err)
	}
	return PublicKey{SPKI: der, Class: class}, nil
}

// Fingerprint names the key: SHA-256 of its SPKI.
func (k PublicKey) Fingerprint() Digest { return sha256.Sum256(k.SPKI) }

// Public decodes a signing key: *ecdsa.PublicKey on P-256 or ed25519.PublicKey.
func (k PublicKey) Public() (crypto.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(k.SPKI)
	if err != nil {
		return nil, fmt.Errorf("signoff: public key: %w", err)
	}
	switch p := pub.(type) {
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() {
			return nil, fmt.Errorf("signoff: public key on %s, want P-256", p.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("signoff: public key of type %T, want P-256 or Ed25519", pub)
	}
	again, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil || !bytes.Equal(again, k.SPKI) {
		return nil, fmt.Errorf("signoff: public key %s: not canonical DER", k.Fingerprint().Short())
	}
	return pub, nil
}

// ECDH decodes a P-256 key used for key exchange.
func (k PublicKey) ECDH() (*ecdh.PublicKey, error) {
	pub, err := k.Public()
	if err != nil {
		return nil, err
	}
	p, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("signoff: key %s: want P-256 for key exchange", k.Fingerprint().Short())
	}
	return p.ECDH()
}

// Ed25519 decodes a log, witness or group key.
func (k PublicKey) Ed25519() (ed25519.PublicKey, error) {
	pub, err := k.Public()
	if err != nil {
		return nil, err
	}
	p, ok := pub.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("signoff: key %s: want Ed25519", k.Fingerprint().Short())
	}
	return p, nil
}

func (k PublicKey) check(field string, production bool, allowed ...hsm.Class) error {
	if len(k.SPKI) == 0 {
		return missing(field)
	}
	if _, err := k.Public(); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	if !k.Class.Valid() {
		return fmt.Errorf("%s: key class %q is unknown", field, k.Class)
	}
	if !production {
		return nil
	}
	for _, c := range allowed {
		if k.Class == c {
			return nil
		}
	}
	return fmt.Errorf("%s: a production charter refuses key class %q; want one of %v", field, k.Class, allowed)
}

// P256 decodes a P-256 signing key.
func (k PublicKey) P256() (*ecdsa.PublicKey, error) {
	pub, err := k.Public()
	if err != nil {
		return nil, err
	}
	p, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("signoff: key %s: want P-256", k.Fingerprint().Short())
	}
	return p, nil
}
