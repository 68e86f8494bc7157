package frost

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"testing"

	"filippo.io/edwards25519"
)

// A victim is what an attacker sees of a signer: what a session would be, and,
// for a nonce, its share in it.
type victim struct {
	session func(msg []byte, list []Commitment) *session
	sign    func(n *Nonce, msg []byte, list []Commitment) *edwards25519.Scalar
}

// forgeROS runs the attack of Benhamouda et al., "On the (in)security of ROS"
// (2020), section 5, on member 1 of a group of which the attacker is member 2. It
// keeps 253 sessions open, each of which it may close in two ways, and closes each
// in the one that has the challenges add up to that of a message nobody signed.
// It works where the victim's nonce in a session does not depend on the way.
func forgeROS(t *testing.T, c club, v victim, way func(own Commitment, b int) ([]byte, []Commitment)) bool {
	t.Helper()
	const open = 253
	weights, nonces := make([]*edwards25519.Scalar, open), make([]*Nonce, open)
	var owns []Commitment
	R, offset, power := edwards25519.NewIdentityPoint(), scalarOf(0), scalarOf(1)
	for i := range open {
		ns, list := c.commit(t, 1)
		nonces[i], owns = ns[1], append(owns, list[0])
		s0, s1 := v.session(way(list[0], 0)), v.session(way(list[0], 1))
		w := new(edwards25519.Scalar).Subtract(s1.challenge, s0.challenge)
		w.Multiply(power, w.Invert(w))
		nonce := new(edwards25519.Point).ScalarMult(s0.factors[0], s0.binding[0])
		R.Add(R, nonce.ScalarMult(w, nonce.Add(nonce, s0.hiding[0])))
		offset.Subtract(offset, new(edwards25519.Scalar).Multiply(w, s0.challenge))
		weights[i] = w
		power.Add(power, power)
	}
	forged := []byte("let everything leave")
	challenge := h2(R.Bytes(), c.PublicKey[:], forged)
	bits := new(edwards25519.Scalar).Add(challenge, offset).Bytes()
	z, lambda := scalarOf(0), lagrange([]uint16{1, 2}, 2, 0)
	for i := range open {
		msg, list := way(owns[i], int(bits[i/8]>>(i%8)&1))
		z.MultiplyAdd(weights[i], v.sign(nonces[i], msg, list), z)
	}
	z.MultiplyAdd(lambda.Multiply(lambda, challenge), c.shares[1].secret, z)
	return ed25519.Verify(c.PublicKey[:], forged, slices.Concat(R.Bytes(), z.Bytes()))
}

// Neither message nor list can be exchanged under an open session, so challenges
// cannot be made to add up. Of a signer whose nonce binds to neither, the same
// attack gets a signature that nobody made.
func TestAttackROSForgery(t *testing.T) {
	c := keygen(t, 2, 3)
	real := victim{
		session: func(msg []byte, list []Commitment) *session {
			s, err := newSession(c.Group, msg, list)
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		sign: func(n *Nonce, msg []byte, list []Commitment) *edwards25519.Scalar {
			share, err := c.shares[0].Sign(n, c.Group, msg, list)
			if err != nil {
				t.Fatal(err)
			}
			z, err := decodeScalar(share)
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
	}
	unbound := victim{session: func(msg []byte, list []Commitment) *session {
		s := real.session(msg, list)
		sum := edwards25519.NewIdentityPoint()
		for i := range s.factors {
			s.factors[i] = scalarOf(1)
			sum.Add(sum, s.hiding[i]).Add(sum, s.binding[i])
		}
		s.challenge = h2(sum.Bytes(), c.PublicKey[:], msg)
		return s
	}}
	unbound.sign = func(n *Nonce, msg []byte, list []Commitment) *edwards25519.Scalar {
		hiding, binding, err := n.spend()
		if err != nil {
			t.Fatal(err)
		}
		s := unbound.session(msg, list)
		z := s.weight(0)
		return z.MultiplyAdd(z.Multiply(z, s.challenge), c.shares[0].secret, hiding.Add(hiding, binding))
	}
	_, mine := c.commit(t, 2)
	_, others := c.commit(t, 2)
	for name, way := range map[string]func(own Commitment, b int) ([]byte, []Commitment){
		"message": func(own Commitment, b int) ([]byte, []Commitment) {
			return fmt.Appendf(nil, "message %d", b), []Commitment{own, mine[0]}
		},
		"commitment": func(own Commitment, b int) ([]byte, []Commitment) {
			return message, []Commitment{own, [][]Commitment{mine, others}[b][0]}
		},
	} {
		if !forgeROS(t, c, unbound, way) {
			t.Errorf("exchanging the %s: the attack is not one", name)
		}
		if forgeROS(t, c, real, way) {
			t.Errorf("exchanging the %s: forged", name)
		}
	}
}
