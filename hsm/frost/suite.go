package frost

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"filippo.io/edwards25519"
)

// The ciphersuite FROST(Ed25519, SHA-512), RFC 9591 section 6.1.

const contextString = "FROST-ED25519-SHA512-v1"

func sha512Of(parts ...[]byte) [64]byte {
	h := sha512.New()
	for _, p := range parts {
		h.Write(p)
	}
	return [64]byte(h.Sum(nil))
}

func hashToScalar(parts ...[]byte) *edwards25519.Scalar {
	d := sha512Of(parts...)
	s, err := edwards25519.NewScalar().SetUniformBytes(d[:])
	if err != nil {
		panic(err) // only for a length other than 64
	}
	return s
}

func h1(m []byte) *edwards25519.Scalar { return hashToScalar([]byte(contextString+"rho"), m) }

// h2 carries no domain separation, for it is RFC 8032's challenge.
func h2(parts ...[]byte) *edwards25519.Scalar { return hashToScalar(parts...) }

func h3(random, secret []byte) *edwards25519.Scalar {
	return hashToScalar([]byte(contextString+"nonce"), random, secret)
}

func h4(m []byte) [64]byte { return sha512Of([]byte(contextString+"msg"), m) }

func h5(m []byte) [64]byte { return sha512Of([]byte(contextString+"com"), m) }

// fields joins values, each behind its length as a big-endian uint32, so that
// no two different lists of values give the same bytes.
func fields(values ...[]byte) []byte {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return b
}

func digest(label string, values ...[]byte) [32]byte {
	return sha256.Sum256(append(fields([]byte(label)), fields(values...)...))
}

// u16 is the big-endian encoding of small numbers outside the RFC's hashes.
func u16(values ...uint16) []byte {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

func scalarOf(n uint16) *edwards25519.Scalar {
	var b [32]byte
	binary.LittleEndian.PutUint16(b[:], n)
	s, err := edwards25519.NewScalar().SetCanonicalBytes(b[:])
	if err != nil {
		panic(err) // every uint16 is below the order
	}
	return s
}

// decodeScalar is DeserializeScalar: values at or above the order are refused.
func decodeScalar(b [32]byte) (*edwards25519.Scalar, error) {
	s, err := edwards25519.NewScalar().SetCanonicalBytes(b[:])
	if err != nil {
		return nil, errors.New("not the canonical encoding of a scalar")
	}
	return s, nil
}

func randomScalar(rand io.Reader) (*edwards25519.Scalar, error) {
	var b [64]byte
	defer clear(b[:])
	if err := readRandom(rand, b[:]); err != nil {
		return nil, err
	}
	return edwards25519.NewScalar().SetUniformBytes(b[:])
}

// hedgedScalar is nonce_generate (RFC 9591 section 4.1): mixing the secret in
// keeps a weak random source from giving the nonce away.
func hedgedScalar(rand io.Reader, secret *edwards25519.Scalar) (*edwards25519.Scalar, error) {
	var b [32]byte
	defer clear(b[:])
	if err := readRandom(rand, b[:]); err != nil {
		return nil, err
	}
	enc := secret.Bytes()
	defer clear(enc)
	return h3(b[:], enc), nil
}

func readRandom(rand io.Reader, b []byte) error {
	if rand == nil {
		return errors.New("frost: no source of randomness; pass crypto/rand.Reader")
	}
	if _, err := io.ReadFull(rand, b); err != nil {
		return fmt.Errorf("frost: reading %d random bytes: %w", len(b), err)
	}
	return nil
}

func encodePoint(p *edwards25519.Point) [32]byte { return [32]byte(p.Bytes()) }

func encodeScalar(s *edwards25519.Scalar) [32]byte { return [32]byte(s.Bytes()) }

func isIdentity(p *edwards25519.Point) bool {
	return p.Equal(edwards25519.NewIdentityPoint()) == 1
}

// decodePoint is DeserializeElement: the canonical encoding of a point of the
// prime-order subgroup other than the identity. Canonical needs no check of its
// own: SetBytes takes y from 0 to 18 and the two x = 0 in a second encoding
// each, and none of these has prime order. It is for public points.
func decodePoint(b [32]byte) (*edwards25519.Point, error) {
	p, err := new(edwards25519.Point).SetBytes(b[:])
	switch {
	case err != nil:
		return nil, errors.New("not the encoding of a curve point")
	case isIdentity(p):
		return nil, errors.New("the identity element")
	case !inSubgroup(p):
		return nil, errors.New("a point outside the prime-order subgroup")
	}
	return p, nil
}

// lagrange is derive_interpolating_value (RFC 9591 section 4.2) at x: the
// weight of member id when ids, all different, interpolate the value there.
func lagrange(ids []uint16, id, x uint16) *edwards25519.Scalar {
	num, den := scalarOf(1), scalarOf(1)
	xi, at := scalarOf(id), scalarOf(x)
	for _, j := range ids {
		if j == id {
			continue
		}
		xj := scalarOf(j)
		num.Multiply(num, new(edwards25519.Scalar).Subtract(at, xj))
		den.Multiply(den, new(edwards25519.Scalar).Subtract(xi, xj))
	}
	return num.Multiply(num, den.Invert(den))
}

// polynomial holds secret coefficients, the constant term first.
type polynomial []*edwards25519.Scalar

// at evaluates by Horner's rule. Only x is public.
func (p polynomial) at(x uint16) *edwards25519.Scalar {
	xs, y := scalarOf(x), edwards25519.NewScalar()
	for i := len(p) - 1; i >= 0; i-- {
		y.MultiplyAdd(y, xs, p[i])
	}
	return y
}

func (p polynomial) commit() feldman {
	f := make(feldman, len(p))
	for i, c := range p {
		f[i] = new(edwards25519.Point).ScalarBaseMult(c)
	}
	return f
}

func (p polynomial) wipe() {
	for _, c := range p {
		wipe(c)
	}
}

func wipe(s *edwards25519.Scalar) { s.Set(edwards25519.NewScalar()) }

// feldman holds the public commitments to a polynomial's coefficients.
type feldman []*edwards25519.Point

// at evaluates the polynomial in the exponent.
func (f feldman) at(x uint16) *edwards25519.Point {
	y := edwards25519.NewIdentityPoint()
	for i := len(f) - 1; i >= 0; i-- {
		y = timesSmall(y, x)
		y.Add(y, f[i])
	}
	return y
}

// add adds g, of the same length, coefficient by coefficient.
func (f feldman) add(g feldman) {
	for i := range f {
		f[i].Add(f[i], g[i])
	}
}

func newFeldman(n uint16) feldman {
	f := make(feldman, n)
	for i := range f {
		f[i] = edwards25519.NewIdentityPoint()
	}
	return f
}

// timesSmall multiplies by doubling and adding, for public values; identifiers
// have six bits, where the general multiplication walks through 253.
func timesSmall(p *edwards25519.Point, n uint16) *edwards25519.Point {
	q := edwards25519.NewIdentityPoint()
	for i := bits.Len16(n) - 1; i >= 0; i-- {
		q.Double(q)
		if n>>i&1 == 1 {
			q.Add(q, p)
		}
	}
	return q
}
