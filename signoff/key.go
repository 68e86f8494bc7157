package signoff

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/mlkem"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// A PublicKey is a key as documents carry it, and the class that says how the
// private half is kept (DESIGN.md, "Keys"). In JSON, DER is the member "spki"
// and the wire form of a security key "ssh". A hybrid exchange key has an
// ML-KEM-768 encapsulation key (FIPS 203, 1184 bytes) beside the P-256 one, of
// which the class speaks. Where a hybrid key may not stand, decoding it is an
// error, so that its P-256 half never serves alone.
type PublicKey struct {
	Encoded  []byte // as hsm.MarshalPublic writes it
	Class    hsm.Class
	MLKEM768 []byte // nil of a key that is not hybrid
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
	SPKI     []byte    `json:"spki,omitempty"`
	SSH      []byte    `json:"ssh,omitempty"`
	Class    hsm.Class `json:"class"`
	MLKEM768 []byte    `json:"mlkem768,omitzero"`
}

// inSSH reports whether encoded is SSH's wire form: it begins with the length
// of a short string, where DER begins with a tag.
func inSSH(encoded []byte) bool { return len(encoded) > 0 && encoded[0] == 0 }

// MarshalJSON writes the member that the encoding belongs to.
func (k PublicKey) MarshalJSON() ([]byte, error) {
	if inSSH(k.Encoded) {
		return dsse.Encode(keyJSON{SSH: k.Encoded, Class: k.Class, MLKEM768: k.MLKEM768})
	}
	return dsse.Encode(keyJSON{SPKI: k.Encoded, Class: k.Class, MLKEM768: k.MLKEM768})
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
	*k = PublicKey{Encoded: append(j.SPKI, j.SSH...), Class: j.Class, MLKEM768: j.MLKEM768}
	return nil
}

// Fingerprint names the key: SHA-256 of its encoding, or for a hybrid key what
// [lockbox.Recipient.ID] is.
func (k PublicKey) Fingerprint() Digest {
	if k.Hybrid() { // a P-256 SPKI ends in the point
		return lockbox.HybridID(k.MLKEM768, k.Encoded[max(0, len(k.Encoded)-65):])
	}
	return sha256.Sum256(k.Encoded)
}

// Hybrid reports whether the key has a half that a quantum computer is not
// known to break.
func (k PublicKey) Hybrid() bool { return k.MLKEM768 != nil }

// P256Half is the key as it would be without ML-KEM: what the token knows of.
func (k PublicKey) P256Half() PublicKey { return PublicKey{Encoded: k.Encoded, Class: k.Class} }

// Names are the fingerprints of the key and of each of its halves.
func (k PublicKey) Names() []Digest {
	if !k.Hybrid() {
		return []Digest{k.Fingerprint()}
	}
	return []Digest{k.Fingerprint(), k.P256Half().Fingerprint(), sha256.Sum256(k.MLKEM768)}
}

// Recipient decodes an exchange key, P-256 or hybrid.
func (k PublicKey) Recipient() (lockbox.Recipient, error) {
	pub, err := k.P256Half().ECDH()
	if err != nil {
		return lockbox.Recipient{}, err
	}
	if !k.Hybrid() {
		return lockbox.P256Recipient(pub)
	}
	pq, err := mlkem.NewEncapsulationKey768(k.MLKEM768)
	if err != nil {
		return lockbox.Recipient{}, fmt.Errorf("signoff: ML-KEM-768 key of %d bytes: %w", len(k.MLKEM768), err)
	}
	return lockbox.HybridRecipient(pq, pub)
}

// Public decodes a signing key: *ecdsa.PublicKey on P-256, ed25519.PublicKey or
// *hsm.SecurityKey.
func (k PublicKey) Public() (crypto.PublicKey, error) {
	if k.Hybrid() {
		return nil, fmt.Errorf("signoff: key %s is hybrid; people's exchange keys may be, others may not", k.Fingerprint().Short())
	}
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
