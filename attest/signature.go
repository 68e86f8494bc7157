package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
)

// A Signature is a decoded TPMT_SIGNATURE (Part 2, section 11.3.4).
type Signature struct {
	Scheme uint16 // ECDSA 0x0018, RSASSA 0x0014 or RSAPSS 0x0016
	Hash   crypto.Hash

	hashAlg uint16
	r, s    []byte // ECDSA
	rsa     []byte // RSASSA, RSAPSS
}

// ParseSignature decodes a TPMT_SIGNATURE of scheme ECDSA, RSASSA or RSAPSS with
// SHA-256, SHA-384 or SHA-512. Anything else, and anything left over, is refused.
func ParseSignature(b []byte) (*Signature, error) {
	if len(b) > maxSignature {
		return nil, fmt.Errorf("attest: signature of %d bytes is longer than %d", len(b), maxSignature)
	}
	c := &cursor{data: b}
	s := &Signature{Scheme: c.u16()}
	s.hashAlg = c.u16()
	switch s.Scheme {
	case algECDSA:
		s.r, s.s = c.sized("r", maxCoordinate), c.sized("s", maxCoordinate)
	case algRSASSA, algRSAPSS:
		s.rsa = c.sized("RSA signature", maxModulus)
	default:
		c.fail("scheme 0x%04x is none of ECDSA, RSASSA, RSAPSS", s.Scheme)
	}
	if err := c.end(); err != nil {
		return nil, fmt.Errorf("attest: parse signature: %w", err)
	}
	hash, err := hashOf(s.hashAlg)
	if err != nil {
		return nil, fmt.Errorf("attest: parse signature: %w", err)
	}
	s.Hash = hash
	return s, nil
}

// verify returns nil if s is a signature over message by key.
func (s *Signature) verify(key crypto.PublicKey, message []byte) error {
	w := s.Hash.New()
	w.Write(message)
	digest := w.Sum(nil)
	good := false
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if s.Scheme != algECDSA {
			return errors.New("the signature scheme does not fit an ECC key")
		}
		good = ecdsa.Verify(key, digest, new(big.Int).SetBytes(s.r), new(big.Int).SetBytes(s.s))
	case *rsa.PublicKey:
		switch s.Scheme {
		case algRSASSA:
			good = rsa.VerifyPKCS1v15(key, s.Hash, digest, s.rsa) == nil
		case algRSAPSS:
			good = rsa.VerifyPSS(key, s.Hash, digest, s.rsa, nil) == nil
		default:
			return errors.New("the signature scheme does not fit an RSA key")
		}
	default:
		return fmt.Errorf("%T does not verify", key)
	}
	if !good {
		return errors.New("the signature does not verify under this key")
	}
	return nil
}

// fits refuses a signature of another scheme or hash than the key is bound to.
func (s *Signature) fits(p *Public) error {
	if p.Scheme != algNull && (s.Scheme != p.Scheme || s.hashAlg != p.SchemeHash) {
		return fmt.Errorf("the signature's scheme 0x%04x with hash 0x%04x is not the key's, 0x%04x with 0x%04x",
			s.Scheme, s.hashAlg, p.Scheme, p.SchemeHash)
	}
	return nil
}
