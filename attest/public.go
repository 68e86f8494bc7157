package attest

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"math/big"
	"strings"
)

// Attributes are the TPMA_OBJECT bits of a TPM object (Part 2, section 8.3).
type Attributes uint32

// The attributes that are judged here.
const (
	FixedTPM            Attributes = 1 << 1  // never leaves this TPM
	STClear             Attributes = 1 << 2  // does not survive a reset
	FixedParent         Attributes = 1 << 4  // never moves to another parent
	SensitiveDataOrigin Attributes = 1 << 5  // the TPM made the secret part
	UserWithAuth        Attributes = 1 << 6  // may be used with its auth value
	AdminWithPolicy     Attributes = 1 << 7  // is administered by policy only
	NoDA                Attributes = 1 << 10 // exempt from lock-out
	Restricted          Attributes = 1 << 16 // signs or decrypts only TPM structures
	Decrypt             Attributes = 1 << 17
	Sign                Attributes = 1 << 18
)

var attributeNames = []struct {
	bit  Attributes
	name string
}{
	{FixedTPM, "fixedTPM"}, {STClear, "stClear"}, {FixedParent, "fixedParent"},
	{SensitiveDataOrigin, "sensitiveDataOrigin"}, {UserWithAuth, "userWithAuth"},
	{AdminWithPolicy, "adminWithPolicy"}, {NoDA, "noDA"}, {Restricted, "restricted"},
	{Decrypt, "decrypt"}, {Sign, "sign"},
}

// String lists the names of the bits that are set.
func (a Attributes) String() string {
	var names []string
	for _, n := range attributeNames {
		if a&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, "|")
}

// require returns an error unless all of set are set and all of clear are not.
func (a Attributes) require(set, clear Attributes) error {
	if missing := set &^ a; missing != 0 {
		return fmt.Errorf("attribute %v is not set", missing)
	}
	if forbidden := a & clear; forbidden != 0 {
		return fmt.Errorf("attribute %v is set", forbidden)
	}
	return nil
}

// genuine are the attributes of a key that its TPM made and will never give away.
const genuine = FixedTPM | FixedParent | SensitiveDataOrigin

// A Public is the public area of an asymmetric TPM key.
type Public struct {
	NameAlg    uint16
	Attributes Attributes
	AuthPolicy []byte
	Scheme     uint16           // TPM_ALG_ID of the signing or key exchange scheme, 0x0010 for none
	SchemeHash uint16           // hash of the scheme, 0 for none
	Key        crypto.PublicKey // *ecdsa.PublicKey on P-256 or P-384, or *rsa.PublicKey of 2048 to 4096 bits

	raw []byte
}

// ParsePublic decodes a TPMT_PUBLIC (Part 2, section 12.2.4) that holds an RSA
// key or one on P-256 or P-384. Anything else, and anything left over, is refused.
func ParsePublic(b []byte) (*Public, error) {
	if len(b) > maxPublic {
		return nil, fmt.Errorf("attest: public area of %d bytes is longer than %d", len(b), maxPublic)
	}
	p := &Public{raw: append([]byte(nil), b...)}
	c := &cursor{data: p.raw}
	kind := c.u16()
	p.NameAlg = c.u16()
	p.Attributes = Attributes(c.u32())
	p.AuthPolicy = c.sized("authPolicy", maxDigest)
	switch kind {
	case algRSA:
		p.readRSA(c)
	case algECC:
		p.readECC(c)
	default:
		c.fail("key type 0x%04x is neither RSA nor ECC", kind)
	}
	if err := c.end(); err != nil {
		return nil, fmt.Errorf("attest: parse public area: %w", err)
	}
	if _, err := hashOf(p.NameAlg); err != nil {
		return nil, fmt.Errorf("attest: parse public area: name: %w", err)
	}
	return p, nil
}

// readSymmetric passes over a TPMT_SYM_DEF_OBJECT: none, or AES.
func readSymmetric(c *cursor) {
	switch alg := c.u16(); alg {
	case algNull:
	case algAES:
		c.next(4) // key bits, mode
	default:
		c.fail("symmetric algorithm 0x%04x is not known", alg)
	}
}

// readKDF passes over a TPMT_KDF_SCHEME.
func readKDF(c *cursor) {
	switch alg := c.u16(); alg {
	case algNull:
	case algMGF1, algKDF1a, algKDF2, algKDF1b:
		c.u16() // hash
	default:
		c.fail("key derivation 0x%04x is not known", alg)
	}
}

// readScheme reads a TPMT_RSA_SCHEME or TPMT_ECC_SCHEME.
func readScheme(c *cursor) (scheme, hash uint16) {
	scheme = c.u16()
	switch scheme {
	case algNull, algRSAES:
		return scheme, 0
	case algRSASSA, algRSAPSS, algOAEP, algECDSA, algECDH, algECMQV:
		return scheme, c.u16()
	case algECDAA:
		hash = c.u16()
		c.u16() // count
		return scheme, hash
	}
	c.fail("scheme 0x%04x is not known", scheme)
	return scheme, 0
}

// readRSA reads TPMS_RSA_PARMS and the modulus.
func (p *Public) readRSA(c *cursor) {
	readSymmetric(c)
	p.Scheme, p.SchemeHash = readScheme(c)
	bits := int(c.u16())
	exponent := c.u32()
	if exponent == 0 {
		exponent = 65537 // the default, Part 2, section 12.2.3.5
	}
	modulus := c.sized("modulus", maxModulus)
	if c.err != nil {
		return
	}
	n := new(big.Int).SetBytes(modulus)
	if len(modulus) < minModulus || n.BitLen() != bits || 8*len(modulus) != bits || n.Bit(0) == 0 {
		c.fail("RSA modulus of %d bits (said to be %d) is not an odd one of 2048 to 4096", n.BitLen(), bits)
		return
	}
	if exponent != 65537 {
		c.fail("RSA exponent %d is not 65537", exponent)
		return
	}
	p.Key = &rsa.PublicKey{N: n, E: int(exponent)}
}

// readECC reads TPMS_ECC_PARMS and the point.
func (p *Public) readECC(c *cursor) {
	readSymmetric(c)
	p.Scheme, p.SchemeHash = readScheme(c)
	curveID := c.u16()
	readKDF(c)
	var curve elliptic.Curve
	switch curveID {
	case curveP256:
		curve = elliptic.P256()
	case curveP384:
		curve = elliptic.P384()
	default:
		c.fail("curve 0x%04x is neither P-256 nor P-384", curveID)
		return
	}
	x, y := c.sized("x coordinate", maxCoordinate), c.sized("y coordinate", maxCoordinate)
	if c.err != nil {
		return
	}
	key, err := pointOn(curve, x, y)
	if err != nil {
		c.fail("%v", err)
		return
	}
	p.Key = key
}

// pointOn builds a public key from coordinates that may lack leading zeros, as
// some TPMs write them, and checks that the point is on the curve.
func pointOn(curve elliptic.Curve, x, y []byte) (*ecdsa.PublicKey, error) {
	n := (curve.Params().BitSize + 7) / 8
	if len(x) > n || len(y) > n {
		return nil, fmt.Errorf("coordinates of %d and %d bytes do not fit %s", len(x), len(y), curve.Params().Name)
	}
	var buf [1 + 2*maxCoordinate]byte
	buf[0] = 4
	copy(buf[1+n-len(x):], x)
	copy(buf[1+2*n-len(y):], y)
	return ecdsa.ParseUncompressedPublicKey(curve, buf[:1+2*n])
}

// Bytes returns the TPMT_PUBLIC that p was parsed from.
func (p *Public) Bytes() []byte { return append([]byte(nil), p.raw...) }

// Name returns the object's name: the name algorithm and the digest of the
// public area by it (Part 1, section 16).
func (p *Public) Name() []byte {
	h, err := hashOf(p.NameAlg)
	if err != nil {
		return nil // ParsePublic admits no such key
	}
	w := h.New()
	w.Write(p.raw)
	return w.Sum(binary.BigEndian.AppendUint16(nil, p.NameAlg))
}

// qualifiedPrimaryName returns the qualified name of p as a primary object of
// the hierarchy: H(handle || name) (Part 1, section 16).
func (p *Public) qualifiedPrimaryName(hierarchy uint32) []byte {
	h, err := hashOf(p.NameAlg)
	if err != nil {
		return nil
	}
	w := h.New()
	var handle [4]byte
	binary.BigEndian.PutUint32(handle[:], hierarchy)
	w.Write(handle[:])
	w.Write(p.Name())
	return w.Sum(binary.BigEndian.AppendUint16(nil, p.NameAlg))
}

// p256 returns the key if it is on P-256.
func (p *Public) p256() (*ecdsa.PublicKey, error) {
	key, ok := p.Key.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("the key is not on P-256")
	}
	return key, nil
}

// p256DH returns the key for key agreement if it is on P-256.
func (p *Public) p256DH() (*ecdh.PublicKey, error) {
	key, err := p.p256()
	if err != nil {
		return nil, err
	}
	return key.ECDH()
}
