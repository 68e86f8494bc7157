package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// A SecurityKey is the public key of a FIDO authenticator, as OpenSSH enrols
// it. It never signs a message alone, but
//
//	SHA-256(application) ‖ flags ‖ counter ‖ SHA-256(message)
//
// (OpenSSH PROTOCOL.u2f, "SSH U2F Signatures"), so a signature says for what
// the key was made and whether somebody was there. The same point enrolled for
// another application is another key, with another [Fingerprint].
type SecurityKey struct {
	Key         crypto.PublicKey // *ecdsa.PublicKey on P-256 or ed25519.PublicKey
	Application string           // ssh: and what its owner added
}

// A Presence is what an authenticator said when it signed.
type Presence struct {
	Verified bool   // it checked a PIN or a fingerprint of the person who touched it
	Counter  uint32 // of its signatures, at least 1
}

// Flags of an authenticator (WebAuthn level 2, section 6.1).
const (
	flagPresent  = 0x01
	flagVerified = 0x04
)

// The SSH types of security keys.
const (
	skECDSA   = "sk-ecdsa-sha2-nistp256@openssh.com"
	skEd25519 = "sk-ssh-ed25519@openssh.com"
)

// presenceSize is that of flags and counter, in bytes.
const presenceSize = 1 + 4

// maxApplication bounds the name that a key is enrolled for, in bytes.
const maxApplication = 64

// Equal reports whether other is the same key for the same application.
func (k *SecurityKey) Equal(other crypto.PublicKey) bool {
	o, ok := other.(*SecurityKey)
	return ok && SamePublic(k, o) == nil
}

// Verify wants sig to be k's signature over message, made while somebody
// touched the authenticator: the signature of k.Key (DER for P-256, 64 bytes
// for Ed25519) ‖ flags, 1 byte ‖ counter, 4 bytes big-endian.
//
// Beside presence no flag but verification may be set. The others say that
// more was signed than this, or that the key can be, or was, copied to another
// device. An authenticator that does not count (counter 0) is refused as well:
// such are the keys that are kept in a cloud.
//
// Errors: ErrPresence, if k did sign and one of these is so.
func (k *SecurityKey) Verify(message, sig []byte) (Presence, error) {
	if err := CheckPublic(k); err != nil {
		return Presence{}, err
	}
	if len(sig) <= presenceSize {
		return Presence{}, fmt.Errorf("hsm: a security key's signature of %d bytes has no flags and counter", len(sig))
	}
	sig, tail := sig[:len(sig)-presenceSize], sig[len(sig)-presenceSize:]
	if err := VerifyMessage(k.Key, k.signed(message, tail), sig); err != nil {
		return Presence{}, err
	}
	flags, counter := tail[0], binary.BigEndian.Uint32(tail[1:])
	switch {
	case flags&flagPresent == 0:
		return Presence{}, fmt.Errorf("hsm: %w: flags %#02x, nobody touched the security key; enrol one without no-touch-required", ErrPresence, flags)
	case flags&^(flagPresent|flagVerified) != 0:
		return Presence{}, fmt.Errorf("hsm: %w: flags %#02x, only presence (0x01) and verification (0x04) may be set; use a key that stays in its authenticator", ErrPresence, flags)
	case counter == 0:
		return Presence{}, fmt.Errorf("hsm: %w: the security key does not count its signatures; use one that does", ErrPresence)
	}
	return Presence{Verified: flags&flagVerified != 0, Counter: counter}, nil
}

// signed is what the authenticator signs for message, with its flags and
// counter.
func (k *SecurityKey) signed(message, tail []byte) []byte {
	application, digest := sha256.Sum256([]byte(k.Application)), sha256.Sum256(message)
	return bytes.Join([][]byte{application[:], tail, digest[:]}, nil)
}

func (k *SecurityKey) check() error {
	if k == nil {
		return errors.New("hsm: no security key")
	}
	switch k.Key.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return fmt.Errorf("hsm: a security key is P-256 or Ed25519, not %T", k.Key)
	}
	// Other names may be those of web sites, and OpenSSH's agent signs nothing
	// with their keys but SSH's own formats.
	if !strings.HasPrefix(k.Application, "ssh:") || len(k.Application) > maxApplication || strings.ContainsFunc(k.Application, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("hsm: a security key for application %.80q: want ssh: and more, printable, at most %d bytes", k.Application, maxApplication)
	}
	return CheckPublic(k.Key)
}

// marshal writes k as SSH does (PROTOCOL.u2f, "SSH U2F Key formats").
func (k *SecurityKey) marshal() ([]byte, error) {
	if err := k.check(); err != nil {
		return nil, err
	}
	switch pub := k.Key.(type) {
	case *ecdsa.PublicKey:
		point, err := pub.Bytes()
		return sshStrings([]byte(skECDSA), []byte("nistp256"), point, []byte(k.Application)), err
	case ed25519.PublicKey:
		return sshStrings([]byte(skEd25519), pub, []byte(k.Application)), nil
	}
	return nil, fmt.Errorf("hsm: a security key of type %T", k.Key)
}

// ParseSecurityKey reads a public key of type sk-ecdsa-sha2-nistp256@openssh.com
// or sk-ssh-ed25519@openssh.com in SSH's wire form, and refuses all that
// [CheckPublic] refuses, other types, and any other spelling.
func ParseSecurityKey(wire []byte) (*SecurityKey, error) {
	fields, ok := cutStrings(wire)
	k := new(SecurityKey)
	switch {
	case ok && len(fields) == 4 && string(fields[0]) == skECDSA:
		pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), fields[2])
		if err != nil {
			return nil, fmt.Errorf("hsm: security key: %w", err)
		}
		k.Key, k.Application = pub, string(fields[3])
	case ok && len(fields) == 3 && string(fields[0]) == skEd25519:
		k.Key, k.Application = ed25519.PublicKey(bytes.Clone(fields[1])), string(fields[2])
	default:
		return nil, fmt.Errorf("hsm: %d bytes are no public key of type %s or %s", len(wire), skECDSA, skEd25519)
	}
	again, err := k.marshal()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, wire) {
		return nil, errors.New("hsm: security key: not as SSH writes it")
	}
	return k, nil
}

// sshStrings writes SSH strings (RFC 4251, section 5).
func sshStrings(fields ...[]byte) []byte {
	var out []byte
	for _, f := range fields {
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(f))), f...)
	}
	return out
}

// cutStrings takes SSH strings apart; ok says that nothing is left.
func cutStrings(b []byte) (fields [][]byte, ok bool) {
	for len(b) >= 4 {
		n := uint64(binary.BigEndian.Uint32(b))
		if b = b[4:]; n > uint64(len(b)) {
			return nil, false
		}
		fields, b = append(fields, b[:n]), b[n:]
	}
	return fields, len(b) == 0
}
