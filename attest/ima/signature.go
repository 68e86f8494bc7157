package ima

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
)

// A Keyring holds the public keys that may sign files. The nil Keyring is empty.
type Keyring struct{ keys []crypto.PublicKey }

// NewKeyring takes RSA keys of 2048 to 4096 bits and ECDSA keys on P-256, P-384 or
// P-521.
func NewKeyring(keys ...crypto.PublicKey) (*Keyring, error) {
	if len(keys) == 0 || len(keys) > maxKeys {
		return nil, fmt.Errorf("ima: a keyring of %d keys, wanted 1 to %d", len(keys), maxKeys)
	}
	for i, key := range keys {
		switch key := key.(type) {
		case *rsa.PublicKey:
			if bits := key.N.BitLen(); bits < minRSA || bits > maxRSA {
				return nil, fmt.Errorf("ima: key %d: RSA of %d bits is not between %d and %d", i, bits, minRSA, maxRSA)
			}
		case *ecdsa.PublicKey:
			if c := key.Curve; c != elliptic.P256() && c != elliptic.P384() && c != elliptic.P521() {
				return nil, fmt.Errorf("ima: key %d: curve %s is not one of P-256, P-384, P-521", i, c.Params().Name)
			}
		default:
			return nil, fmt.Errorf("ima: key %d: %T is neither RSA nor ECDSA", i, key)
		}
	}
	return &Keyring{keys}, nil
}

// ParseKeyring reads public keys and certificates in PEM, one after the other. Of a
// certificate it takes the key and believes nothing else.
func ParseKeyring(data []byte) (*Keyring, error) {
	var keys []crypto.PublicKey
	for len(keys) <= maxKeys {
		block, rest := pem.Decode(data)
		if block == nil {
			if bytes.Contains(data, []byte("-----BEGIN")) {
				return nil, fmt.Errorf("ima: key %d: a malformed PEM block", len(keys))
			}
			break
		}
		data = rest
		key, err := parseKey(block)
		if err != nil {
			return nil, fmt.Errorf("ima: key %d: %w", len(keys), err)
		}
		keys = append(keys, key)
	}
	return NewKeyring(keys...)
}

// Marshal gives the keys as [Signed] names them.
func (k *Keyring) Marshal() (out [][]byte, err error) {
	for _, key := range k.keys {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return nil, fmt.Errorf("ima: %w", err)
		}
		out = append(out, der)
	}
	return out, nil
}

func parseKey(block *pem.Block) (crypto.PublicKey, error) {
	switch block.Type {
	case "PUBLIC KEY":
		return x509.ParsePKIXPublicKey(block.Bytes)
	case "CERTIFICATE":
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		return cert.PublicKey, nil
	}
	return nil, fmt.Errorf("a PEM block %q, wanted PUBLIC KEY or CERTIFICATE", block.Type)
}

// The header of a file signature, struct signature_v2_hdr of the kernel's
// security/integrity/integrity.h: type, version, hash algorithm, key id, size.
const (
	keyID            = 1 + 1 + 1
	signatureHeader  = keyID + 4 + 2
	signatureType    = 3 // EVM_IMA_XATTR_DIGSIG
	signatureVersion = 2
)

// signatureHashes are the kernel's numbers (include/uapi/linux/hash_info.h) of the
// algorithms that are strong enough.
var signatureHashes = map[byte]struct {
	name string
	hash crypto.Hash
}{
	4: {"sha256", crypto.SHA256},
	5: {"sha384", crypto.SHA384},
	6: {"sha512", crypto.SHA512},
}

// Verify checks the file signature of an entry: RSA PKCS #1 v1.5 or ECDSA over the
// file digest, by a key of the keyring. The key id in it is no more than a hint and
// is not looked at. An entry without a signature is an error, as are signatures
// of other types (EVM, fs-verity), with SHA-1 or another digest than the entry's.
func (k *Keyring) Verify(e *Entry) error {
	if err := k.verify(e); err != nil {
		return fmt.Errorf("ima: signature of %.200q: %w", e.name, err)
	}
	return nil
}

func (k *Keyring) verify(e *Entry) error {
	s := e.Signature
	switch {
	case k == nil || len(k.keys) == 0:
		return errors.New("there is no keyring to verify it with")
	case e.Violation:
		return errors.New("the entry is a violation")
	case len(s) == 0:
		return errors.New("the file has none")
	case e.Verity:
		return errors.New("it is of an fs-verity digest")
	case len(s) < signatureHeader:
		return fmt.Errorf("it has %d bytes, its header alone has %d", len(s), signatureHeader)
	case s[0] != signatureType || s[1] != signatureVersion:
		return fmt.Errorf("type %d version %d, wanted %d and %d", s[0], s[1], signatureType, signatureVersion)
	}
	alg, ok := signatureHashes[s[2]]
	if !ok || alg.name != e.Algorithm || len(e.FileDigest) != alg.hash.Size() {
		return fmt.Errorf("hash algorithm %d over a %s digest: want both to be sha256, sha384 or sha512", s[2], e.Algorithm)
	}
	if size := int(binary.BigEndian.Uint16(s[7:])); size != len(s)-signatureHeader {
		return fmt.Errorf("a size of %d, %d bytes left", size, len(s)-signatureHeader)
	}
	for _, key := range k.keys {
		if verifyWith(key, alg.hash, e.FileDigest, s[signatureHeader:]) {
			return nil
		}
	}
	return fmt.Errorf("none of %d keys made it, its key id is %x", len(k.keys), s[keyID:keyID+4])
}

func verifyWith(key crypto.PublicKey, h crypto.Hash, digest, sig []byte) bool {
	switch key := key.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, h, digest, sig) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, sig)
	}
	return false
}
