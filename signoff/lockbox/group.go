package lockbox

import (
	"errors"
	"fmt"
	"io"

	"filippo.io/edwards25519"
	"github.com/cloudflare/circl/group"
)

const (
	scalarSize = 32             // little-endian, reduced (RFC 9496, section 4.4)
	pairSize   = 2 * scalarSize // a share: value, then blinding

	// The second Pedersen generator is hash-to-group of generatorMessage under
	// generatorDST (RFC 9380, appendix B). Nobody knows its discrete logarithm.
	generatorDST     = "keyturn/lockbox/v1/ristretto255_XMD:SHA-512_R255MAP_RO_"
	generatorMessage = "pedersen second generator"
)

var (
	curve           = group.Ristretto255
	secondGenerator = curve.HashToElement([]byte(generatorMessage), []byte(generatorDST))
)

// randomScalar draws 64 bytes and reduces them, so the result is within 2^-250
// of uniform. circl's own RandomScalar ignores the reader that it is given.
func randomScalar(rand io.Reader) (group.Scalar, error) {
	var wide [64]byte
	defer clear(wide[:])
	if _, err := io.ReadFull(rand, wide[:]); err != nil {
		return nil, fmt.Errorf("lockbox: draw a scalar: %w", err)
	}
	reduced, err := edwards25519.NewScalar().SetUniformBytes(wide[:])
	if err != nil {
		return nil, fmt.Errorf("lockbox: draw a scalar: %w", err)
	}
	b := reduced.Bytes()
	defer clear(b)
	return parseScalar(b)
}

// parseScalar reads 32 bytes, little-endian, and refuses values that are not
// reduced.
func parseScalar(b []byte) (group.Scalar, error) {
	s := curve.NewScalar()
	if err := s.UnmarshalBinary(b); err != nil {
		return nil, fmt.Errorf("%d bytes are not a reduced scalar of ristretto255", len(b))
	}
	return s, nil
}

// appendScalar appends the 32 bytes of s to dst.
func appendScalar(dst []byte, s group.Scalar) []byte {
	b, err := s.MarshalBinary()
	if err != nil {
		panic("lockbox: a scalar of ristretto255 always has an encoding: " + err.Error())
	}
	defer clear(b)
	return append(dst, b...)
}

// parsePoint reads a canonical encoding (RFC 9496, section 4.3.1) of a point
// other than the identity. The group has prime order: no point has small order.
func parsePoint(b [32]byte) (group.Element, error) {
	p := curve.NewElement()
	if err := p.UnmarshalBinary(b[:]); err != nil || encodePoint(p) != b {
		return nil, errors.New("not a canonical point of ristretto255")
	}
	if p.IsIdentity() {
		return nil, errors.New("the identity")
	}
	return p, nil
}

func encodePoint(p group.Element) (b [32]byte) {
	enc, err := p.MarshalBinary()
	if err != nil {
		panic("lockbox: a point of ristretto255 always has an encoding: " + err.Error())
	}
	copy(b[:], enc)
	return b
}

// scale returns x·p in time that depends on x, which is an index and public.
func scale(p group.Element, x uint16) group.Element {
	sum := curve.Identity()
	for bit := 15; bit >= 0; bit-- {
		sum.Dbl(sum)
		if x>>bit&1 == 1 {
			sum.Add(sum, p)
		}
	}
	return sum
}

func scalarOf(x uint16) group.Scalar { return curve.NewScalar().SetUint64(uint64(x)) }

// A pair is a value and the blinding that hides it in a commitment.
type pair struct{ value, blind group.Scalar }

func randomPair(rand io.Reader) (pair, error) {
	value, err := randomScalar(rand)
	if err != nil {
		return pair{}, err
	}
	blind, err := randomScalar(rand)
	if err != nil {
		return pair{}, err
	}
	return pair{value, blind}, nil
}

// parsePair reads value ‖ blinding, 64 bytes.
func parsePair(b []byte) (pair, error) {
	if len(b) != pairSize {
		return pair{}, fmt.Errorf("%d bytes, want %d", len(b), pairSize)
	}
	value, err := parseScalar(b[:scalarSize])
	if err != nil {
		return pair{}, fmt.Errorf("value: %w", err)
	}
	blind, err := parseScalar(b[scalarSize:])
	if err != nil {
		return pair{}, fmt.Errorf("blinding: %w", err)
	}
	return pair{value, blind}, nil
}

// bytes returns value ‖ blinding. The caller wipes it.
func (p pair) bytes() []byte {
	return appendScalar(appendScalar(make([]byte, 0, pairSize), p.value), p.blind)
}

// commit returns value·G + blind·H.
func (p pair) commit() group.Element {
	c := curve.NewElement().MulGen(p.value)
	return c.Add(c, curve.NewElement().Mul(secondGenerator, p.blind))
}

// mulAdd sets p to p·x + q.
func (p pair) mulAdd(x group.Scalar, q pair) {
	p.value.Add(p.value.Mul(p.value, x), q.value)
	p.blind.Add(p.blind.Mul(p.blind, x), q.blind)
}

func zeroPair() pair { return pair{curve.NewScalar(), curve.NewScalar()} }

func (p pair) copy() pair { return pair{p.value.Copy(), p.blind.Copy()} }

func (p pair) wipe() {
	p.value.SetUint64(0)
	p.blind.SetUint64(0)
}

// A polynomial has a pair in each coefficient; the constant term is the secret
// and the length is the threshold: t shares restore it, t-1 say nothing.
type polynomial []pair

// newPolynomial draws the coefficients above a constant term, of which it
// takes a copy.
func newPolynomial(rand io.Reader, constant pair, threshold int) (polynomial, error) {
	f := polynomial{constant.copy()}
	for len(f) < threshold {
		c, err := randomPair(rand)
		if err != nil {
			f.wipe()
			return nil, err
		}
		f = append(f, c)
	}
	return f, nil
}

// at evaluates at x by Horner's rule.
func (f polynomial) at(x uint16) pair {
	sum := zeroPair()
	for k := len(f) - 1; k >= 0; k-- {
		sum.mulAdd(scalarOf(x), f[k])
	}
	return sum
}

func (f polynomial) commit() Sharing {
	s := make(Sharing, len(f))
	for k, c := range f {
		s[k] = encodePoint(c.commit())
	}
	return s
}

func (f polynomial) wipe() {
	for _, c := range f {
		c.wipe()
	}
}

// weights returns the Lagrange coefficients at zero for distinct, non-zero xs:
// f(0) = Σ weights[i]·f(xs[i]) for every f of degree below len(xs).
func weights(xs []uint16) []group.Scalar {
	out := make([]group.Scalar, len(xs))
	for i, xi := range xs {
		num, den := scalarOf(1), scalarOf(1)
		for j, xj := range xs {
			if j != i {
				num.Mul(num, scalarOf(xj))
				den.Mul(den, curve.NewScalar().Sub(scalarOf(xj), scalarOf(xi)))
			}
		}
		out[i] = num.Mul(num, den.Inv(den))
	}
	return out
}

// interpolate returns the pair at zero of the polynomial through (xs, ys).
func interpolate(xs []uint16, ys []pair) pair {
	sum := zeroPair()
	term := curve.NewScalar()
	for i, w := range weights(xs) {
		sum.value.Add(sum.value, term.Mul(ys[i].value, w))
		sum.blind.Add(sum.blind, term.Mul(ys[i].blind, w))
	}
	term.SetUint64(0)
	return sum
}
