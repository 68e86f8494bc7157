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
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A PublicKey is a key as documents carry it, and the class that says how the
// private half is kept (DESIGN.md, "Keys"). In JSON, DER is the member "spki"
// and the wire form of a security key "ssh".
type PublicKey struct {
	Encoded []byte // as hsm.MarshalPublic writes it
	Class   hsm.Class
}

// NewPublicKey encodes pub, an *ecdsa.PublicKey or *ecdh.PublicKey on P-256, an
// ed25519.PublicKey or a *hsm.SecurityKey.
func NewPublicKey(pub any, class hsm.Class) (PublicKey, error) {
	b, err := hsm.MarshalPublic(pub)
	if err != nil {
		return PublicKey{}, fmt.Errorf("signoff: %w", err)
	}
	return PublicKey{Encoded: b, Class: class}, nil
}

// keyJSON has exactly one of the two encodings.
type keyJSON struct {
	SPKI  []byte    `json:"spki,omitempty"`
	SSH   []byte    `json:"ssh,omitempty"`
	Class hsm.Class `json:"class"`
}

// inSSH reports whether encoded is SSH's wire form: it begins with the length
// of a short string, where DER begins with a tag.
func inSSH(encoded []byte) bool { return len(encoded) > 0 && encoded[0] == 0 }

// MarshalJSON writes the member that the encoding belongs to.
func (k PublicKey) MarshalJSON() ([]byte, error) {
	if inSSH(k.Encoded) {
		return dsse.Encode(keyJSON{SSH: k.Encoded, Class: k.Class})
	}
	return dsse.Encode(keyJSON{SPKI: k.Encoded, Class: k.Class})
}

// UnmarshalJSON refuses an encoding in the other's member, and both at once.
func (k *PublicKey) UnmarshalJSON(b []byte) error {
	var j keyJSON
	if err := dsse.Decode(b, &j); err != nil {
		return err
	}
	if inSSH(j.SPKI) || len(j.SSH) > 0 && (len(j.SPKI) > 0 || !inSSH(j.SSH)) {
		return errors.New("signoff: a public key has spki (DER) or ssh (the wire form of a security key), and not both")
	}
	*k = PublicKey{Encoded: append(j.SPKI, j.SSH...), Class: j.Class}
	return nil
}

// Fingerprint names the key: SHA-256 of its encoding.
func (k PublicKey) Fingerprint() Digest { return sha256.Sum256(k.Encoded) }

// Public decodes a signing key: *ecdsa.PublicKey on P-256, ed25519.PublicKey or
// *hsm.SecurityKey.
func (k PublicKey) Public() (crypto.PublicKey, error) {
	if inSSH(k.Encoded) {
		pub, err := hsm.ParseSecurityKey(k.Encoded)
		if err != nil {
			return nil, fmt.Errorf("signoff: public key: %w", err)
		}
		return pub, nil
	}
	pub, err := x509.ParsePKIXPublicKey(k.Encoded)
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
	if err != nil || !bytes.Equal(again, k.Encoded) {
		return nil, fmt.Errorf("signoff: public key %s: not canonical DER", k.Fingerprint().Short())
	}
	return pub, nil
}

// Application is what a security key was enrolled for; empty of other keys.
func (k PublicKey) Application() string {
	if !inSSH(k.Encoded) {
		return ""
	}
	pub, err := hsm.ParseSecurityKey(k.Encoded)
	if err != nil {
		return ""
	}
	return pub.Application
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
	if len(k.Encoded) == 0 {
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

// decides refuses a key that people cannot sign decisions with.
func (k PublicKey) decides() error {
	pub, err := k.Public()
	if err != nil {
		return err
	}
	switch pub.(type) {
	case *ecdsa.PublicKey, *hsm.SecurityKey:
		return hsm.CheckPublic(pub)
	}
	return fmt.Errorf("signoff: key %s of type %T: people sign with P-256 or a FIDO security key", k.Fingerprint().Short(), pub)
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
