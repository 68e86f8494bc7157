package frost

import (
	"filippo.io/edwards25519"
	"filippo.io/edwards25519/field"
)

// Decoding a point means proving that it has prime order, and every signer
// decodes two points per signer. Multiplying by the order would be most of the
// work of signing; asking whether the point is eight times another costs three
// powers in the field (RFC 9591 section 6.1 points to Pornin, "Point-Halving
// and Subgroup Membership in Twisted Edwards Curves", eprint 2022/1164; the
// last step is Koshelev's pairing test, eprint 2022/037).
//
// The group is Z/8 x Z/L. On Curve25519, v^2 = u(u^2 + Au + 1), a point P = (u, v)
// other than the identity and the point of order two
//
//   - is twice a point exactly if u is a square, w^2;
//   - has then a half, or its negative has, at Q = (t, tz), where z^2 = A + 2u + 2ev/w
//     for the one sign e that makes this a square (the product for both signs
//     is the non-square A^2 - 4), and t = u + ev/w + wz;
//   - and Q is four times a point exactly if its Tate pairing with a point of
//     order four is one. That point is (1, s) and its tangent v = su, so the
//     pairing is (v - su)^2/u at Q, which is t(z - s)^2, to the power (p-1)/4.
//
// Q is known up to sign and the point of order two. Both leave the last answer
// as it is, for the point of order two is four times a point.
var (
	curveA = fieldOf(486662)
	rootS  = rootOf(fieldOf(486664))                                    // s^2 = A + 2
	rootC  = rootOf(new(field.Element).Negate(fieldOf(486664)))         // v = cu/x
	rootK  = rootOf(new(field.Element).Mult32(fieldOf(486664), 486660)) // K^2 = sqrt(-1)(A^2 - 4)
)

func fieldOf(n uint32) *field.Element {
	one := new(field.Element).One()
	return one.Mult32(one, n)
}

// rootOf is a square root of n, or of sqrt(-1)n when n has none.
func rootOf(n *field.Element) *field.Element {
	r, _ := new(field.Element).SqrtRatio(n, fieldOf(1))
	return r
}

func product(first *field.Element, more ...*field.Element) *field.Element {
	p := new(field.Element).Set(first)
	for _, f := range more {
		p.Multiply(p, f)
	}
	return p
}

func sum(a, b *field.Element) *field.Element { return new(field.Element).Add(a, b) }

func difference(a, b *field.Element) *field.Element { return new(field.Element).Subtract(a, b) }

// inSubgroup reports that p has prime order. It runs in variable time.
func inSubgroup(p *edwards25519.Point) bool {
	X, Y, Z, _ := p.ExtendedCoordinates()
	if X.Equal(new(field.Element)) == 1 {
		return false // the identity or the point of order two
	}
	w, square := new(field.Element).SqrtRatio(sum(Z, Y), difference(Z, Y)) // u = (1+y)/(1-y)
	if square == 0 {
		return false
	}
	// v/w = cw/x, so that all fractions are over X, and wX, cZ the summands of t.
	wX, cZ := product(w, X), product(rootC, Z)
	a := sum(product(curveA, X), product(w, sum(wX, sum(wX, sum(cZ, cZ))))) // z^2 = a/X for e = 1
	r, square := new(field.Element).SqrtRatio(a, X)
	if square == 1 {
		// z = r, t = w(wX + cZ + rX)/X
		t := product(w, sum(sum(wX, cZ), product(r, X)))
		d := difference(r, rootS)
		return isFourthPower(product(t, d, d), X)
	}
	// For e = -1, z^2 = (A^2-4)X/a. Both roots carry the same sqrt(-1): z = K/r,
	// t = w((wX - cZ)r + KX)/rX
	t := product(w, sum(product(difference(wX, cZ), r), product(rootK, X)))
	d := difference(rootK, product(rootS, r))
	return isFourthPower(product(t, d, d), product(X, r, r, r))
}

// isFourthPower raises n/m to the power (p-1)/4 = 2(2^252-3) + 1.
func isFourthPower(n, m *field.Element) bool {
	f := product(n, m, m, m) // times the fourth power of m
	h := new(field.Element).Pow22523(f)
	return product(h, h, f).Equal(fieldOf(1)) == 1
}
