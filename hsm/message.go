package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"filippo.io/edwards25519"
)

// SignMessage signs message with k, hashing as its type of key asks for, and
// returns the signature only if it verifies under k.Public(): DER for P-256
// (FIPS 186-5 with SHA-256), 64 bytes for Ed25519 (RFC 8032), for a security key
// as [SecurityKey.Verify] has it.
func SignMessage(ctx context.Context, k Key, message []byte) ([]byte, error) {
	if k == nil {
		return nil, errors.New("hsm: sign: no key was given")
	}
	sig, err := signMessage(ctx, k, message)
	if err != nil {
		return nil, err
	}
	if err := VerifyMessage(k.Public(), message, sig); err != nil {
		return nil, fmt.Errorf("hsm: %w: %s returned a signature that its public key refuses", ErrWrongIdentity, k.Info().URI)
	}
	return sig, nil
}

// signMessage has k hash by itself if it is one that must.
func signMessage(ctx context.Context, k Key, message []byte) ([]byte, error) {
	if m, ok := k.(MessageSigner); ok {
		return m.SignMessageContext(ctx, message)
	}
	input, opts, err := signingInput(k.Public(), message)
	if err != nil {
		return nil, err
	}
	return k.SignContext(ctx, input, opts)
}

// VerifyMessage returns nil if sig is a signature over message by pub, which
// must be a P-256 *ecdsa.PublicKey (signature in DER, digest SHA-256), an
// ed25519.PublicKey, or a *SecurityKey, of which [SecurityKey.Verify] tells more.
//
// An ECDSA signature (r, s) can be turned into (r, n-s) by anyone, and both
// verify: who counts signatures must count keys.
func VerifyMessage(pub crypto.PublicKey, message, sig []byte) error {
	if k, ok := pub.(*SecurityKey); ok {
		_, err := k.Verify(message, sig)
		return err
	}
	input, opts, err := signingInput(pub, message)
	if err != nil {
		return err
	}
	return VerifySignature(pub, input, sig, opts)
}

// VerifySignature is VerifyMessage for what Key.SignContext takes: digest and
// opts have the shapes that [Key] asks for.
func VerifySignature(pub crypto.PublicKey, digest, sig []byte, opts crypto.SignerOpts) error {
	if err := CheckPublic(pub); err != nil {
		return err
	}
	return Verifier{pub}.Verify(digest, sig, opts)
}

// CheckInput refuses a public key that [CheckPublic] refuses, and a digest or
// opts of other shapes than [Key] documents for that type of key.
func CheckInput(pub crypto.PublicKey, digest []byte, opts crypto.SignerOpts) error {
	if err := CheckPublic(pub); err != nil {
		return err
	}
	return Verifier{pub}.CheckInput(digest, opts)
}

// A Verifier is a public key that [CheckPublic] has accepted, for a key that
// signs often. It is a copy, which nobody else can change after the check. The
// zero Verifier refuses everything.
type Verifier struct{ public crypto.PublicKey }

// NewVerifier returns the Verifier of a P-256 *ecdsa.PublicKey or an
// ed25519.PublicKey.
func NewVerifier(pub crypto.PublicKey) (Verifier, error) {
	if err := CheckPublic(pub); err != nil {
		return Verifier{}, err
	}
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		point, err := pub.Bytes()
		if err != nil {
			return Verifier{}, fmt.Errorf("hsm: bad P-256 public key: %w", err)
		}
		own, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
		if err != nil {
			return Verifier{}, fmt.Errorf("hsm: bad P-256 public key: %w", err)
		}
		return Verifier{own}, nil
	case ed25519.PublicKey:
		return Verifier{ed25519.PublicKey(bytes.Clone(pub))}, nil
	}
	return Verifier{}, fmt.Errorf("hsm: %T does not sign digests", pub)
}

// CheckInput is the function of that name.
func (v Verifier) CheckInput(digest []byte, opts crypto.SignerOpts) error {
	if opts == nil {
		return errors.New("hsm: sign: no hash was named; use crypto.SHA256 for P-256, crypto.Hash(0) for Ed25519")
	}
	switch v.public.(type) {
	case *ecdsa.PublicKey:
		if opts.HashFunc() != crypto.SHA256 || len(digest) != sha256.Size {
			return fmt.Errorf("hsm: P-256 signs SHA-256 digests of 32 bytes, not %d bytes of hash %d", len(digest), opts.HashFunc())
		}
	case ed25519.PublicKey:
		if o, ok := opts.(*ed25519.Options); opts.HashFunc() != 0 || ok && o.Context != "" {
			return errors.New("hsm: Ed25519 signs the message itself: no hash, no context")
		}
	case *SecurityKey:
		return errors.New("hsm: a security key signs messages, not digests; use SignMessage")
	default:
		return fmt.Errorf("hsm: %T does not sign", v.public)
	}
	return nil
}

// Verify is [VerifySignature].
func (v Verifier) Verify(digest, sig []byte, opts crypto.SignerOpts) error {
	if err := v.CheckInput(digest, opts); err != nil {
		return err
	}
	ok := false
	switch pub := v.public.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(pub, digest, sig)
	case ed25519.PublicKey:
		ok = ed25519.Verify(pub, digest, sig)
	}
	if !ok {
		return errors.New("hsm: the signature does not verify under this key")
	}
	return nil
}

// signingInput returns what Key.SignContext takes for message.
func signingInput(pub crypto.PublicKey, message []byte) ([]byte, crypto.SignerOpts, error) {
	switch pub.(type) {
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(message)
		return digest[:], crypto.SHA256, nil
	case ed25519.PublicKey:
		return message, crypto.Hash(0), nil
	}
	return nil, nil, fmt.Errorf("hsm: %T is neither a P-256 nor an Ed25519 signing key", pub)
}

// CheckPublic refuses a public key that keyturn must never record: another type
// than P-256 or Ed25519, alone or in a [SecurityKey], a point off the curve, and
// the Ed25519 encodings that verify signatures nobody made (points of small
// order) or that give one key two fingerprints (RFC 8032, section 5.1.3).
func CheckPublic(pub any) error {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if pub == nil || pub.Curve != elliptic.P256() {
			return errors.New("hsm: the ECDSA key is not on P-256")
		}
		if _, err := pub.ECDH(); err != nil {
			return fmt.Errorf("hsm: bad P-256 public key: %w", err)
		}
	case *ecdh.PublicKey:
		if pub == nil || pub.Curve() != ecdh.P256() {
			return errors.New("hsm: the key agreement key is not on P-256")
		}
	case ed25519.PublicKey:
		point, err := new(edwards25519.Point).SetBytes(pub)
		if err != nil {
			return fmt.Errorf("hsm: bad Ed25519 public key of %d bytes: %w", len(pub), err)
		}
		if !bytes.Equal(point.Bytes(), pub) {
			return errors.New("hsm: the Ed25519 public key is not canonical")
		}
		if new(edwards25519.Point).MultByCofactor(point).Equal(edwards25519.NewIdentityPoint()) == 1 {
			return errors.New("hsm: the Ed25519 public key has small order: anyone could sign for it")
		}
	case *SecurityKey:
		return pub.check()
	default:
		return fmt.Errorf("hsm: %T is not a public key that keyturn knows: P-256 or Ed25519", pub)
	}
	return nil
}

// MarshalPublic writes a public key as documents carry it: DER
// SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7), of a *SecurityKey SSH's wire
// form, which [ParseSecurityKey] reads. The first byte tells the two apart: 0x30
// and 0x00.
func MarshalPublic(pub any) ([]byte, error) {
	if k, ok := pub.(*SecurityKey); ok {
		return k.marshal()
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("hsm: encode public key: %w", err)
	}
	return der, nil
}

// Fingerprint returns the name of a public key: SHA-256 of what [MarshalPublic]
// writes. It accepts *ecdsa.PublicKey, ed25519.PublicKey, *ecdh.PublicKey and
// *SecurityKey as [CheckPublic] does. The same point has the same fingerprint as
// a signing and as an agreement key, so that a key in two roles is seen. That of
// a *SecurityKey is the one that ssh-add -l prints, in other letters.
func Fingerprint(pub any) ([32]byte, error) {
	if err := CheckPublic(pub); err != nil {
		return [32]byte{}, err
	}
	encoded, err := MarshalPublic(pub)
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(encoded), nil
}

// SamePublic returns nil if found is the key that was pinned, and otherwise an
// error that is [ErrWrongIdentity] and names both fingerprints.
func SamePublic(pinned, found any) error {
	want, err := Fingerprint(pinned)
	if err != nil {
		return err
	}
	got, err := Fingerprint(found)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrWrongIdentity, err)
	}
	if want != got {
		return fmt.Errorf("%w: pinned sha256:%x, found sha256:%x", ErrWrongIdentity, want, got)
	}
	return nil
}
