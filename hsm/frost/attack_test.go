package frost

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"filippo.io/edwards25519"
)

// Everyone here but the attacker follows the protocol.

var message = []byte("let nothing leave")

// wantCheat wants exactly these members named for exactly this step.
func wantCheat(t testing.TB, err error, step string, ids ...uint16) {
	t.Helper()
	var cheat *CheatError
	if !errors.As(err, &cheat) {
		t.Fatalf("no cheat is named: %v", err)
	}
	if cheat.Step != step || !slices.Equal(cheat.IDs, ids) {
		t.Fatalf("named: %q of %v; want %q of %v (%v)", cheat.Step, cheat.IDs, step, ids, err)
	}
}

func wantRefused(t testing.TB, what string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("accepted: %s", what)
	}
}

// forge publishes commitments of the attacker's choosing with a proof that is
// right for them as far as knowing p[0] can make it.
func forge(t testing.TB, c *Ceremony, from uint16, p polynomial, mutate func([][32]byte)) Round1 {
	t.Helper()
	var r Round1
	for _, q := range p.commit() {
		r.Commitments = append(r.Commitments, encodePoint(q))
	}
	mutate(r.Commitments)
	k := random(t)
	R := encodePoint(new(edwards25519.Point).ScalarBaseMult(k))
	e := c.challenge(from, &r, R[:])
	z := encodeScalar(e.MultiplyAdd(e, p[0], k))
	copy(r.Proof[:], append(R[:], z[:]...))
	return r
}

func asIs([][32]byte) {}

func random(t testing.TB) *edwards25519.Scalar {
	t.Helper()
	s, err := randomScalar(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func randomPolynomial(t testing.TB, n int) polynomial {
	t.Helper()
	p := make(polynomial, n)
	for i := range p {
		p[i] = random(t)
	}
	return p
}

// dealAll is the honest half of a key generation.
func dealAll(t testing.TB, c *Ceremony) []*Dealing {
	t.Helper()
	return dealFrom(t, rand.Reader, c)
}

func dealFrom(t testing.TB, r io.Reader, c *Ceremony) []*Dealing {
	t.Helper()
	var ds []*Dealing
	for _, id := range c.Dealers() {
		d, err := c.Deal(r, id)
		if err != nil {
			t.Fatal(err)
		}
		ds = append(ds, d)
	}
	return ds
}

// The last dealer publishes its key minus everyone else's.
func TestAttackRogueKey(t *testing.T) {
	c := ceremony(t, 3, 4)
	rs := published(dealAll(t, c))
	p := randomPolynomial(t, 3)
	rs[3] = forge(t, c, 4, p, func(commitments [][32]byte) {
		rogue := new(edwards25519.Point).ScalarBaseMult(p[0])
		for _, r := range rs[:3] {
			q, err := decodePoint(r.Commitments[0])
			if err != nil {
				t.Fatal(err)
			}
			rogue.Subtract(rogue, q)
		}
		commitments[0] = encodePoint(rogue)
	})

	sum := edwards25519.NewIdentityPoint()
	for _, r := range rs {
		q, err := decodePoint(r.Commitments[0])
		if err != nil {
			t.Fatal(err)
		}
		sum.Add(sum, q)
	}
	if sum.Equal(new(edwards25519.Point).ScalarBaseMult(p[0])) != 1 {
		t.Fatal("the attack is not one: the attacker would not own the key")
	}
	_, err := c.Group(rs)
	wantCheat(t, err, "commitments", 4)
}

func TestAttackCopiedProof(t *testing.T) {
	c := ceremony(t, 2, 3)
	rs := published(dealAll(t, c))
	rs[1] = rs[0]
	_, err := c.Group(rs)
	wantCheat(t, err, "commitments", 2)

	other := published(dealAll(t, c))
	rs[1] = Round1{other[1].Commitments, published(dealAll(t, c))[1].Proof}
	_, err = c.Group(rs)
	wantCheat(t, err, "commitments", 2)

	// The constant term and its proof kept, another coefficient exchanged.
	rs[1] = Round1{[][32]byte{other[1].Commitments[0], other[0].Commitments[1]}, other[1].Proof}
	_, err = c.Group(rs)
	wantCheat(t, err, "commitments", 2)
}

// A Round1 of one ceremony is shown in another that differs in one fact.
func TestAttackTranscriptConfusion(t *testing.T) {
	p := Params{2, 3}
	make := func(p Params, context string) *Ceremony {
		c, err := NewKeyGen(p, []byte(context))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := make(p, "charter, attempt 1")
	r := published(dealAll(t, c))[0]
	if err := c.VerifyRound1(1, r); err != nil {
		t.Fatal(err)
	}
	for _, other := range []*Ceremony{make(p, "charter, attempt 2"), make(p, "charter, attempt 1\x00"), make(Params{2, 4}, "charter, attempt 1")} {
		wantCheat(t, other.VerifyRound1(1, r), "commitments", 1)
	}

	old := keygen(t, 2, 3)
	first, err := NewReshare(old.Group, []uint16{1, 2}, p, []byte("epoch 1"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := first.Redeal(rand.Reader, old.shares[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, dealers := range [][]uint16{{1, 2}, {1, 3}} {
		second, err := NewReshare(old.Group, dealers, p, []byte("epoch 2"))
		if err != nil {
			t.Fatal(err)
		}
		wantCheat(t, second.VerifyRound1(1, d.Round1()), "commitments", 1)
	}
	// Other dealers deal other secrets too. That they are other ceremonies shows
	// in the name alone, to which the confidence of subshares is bound.
	names := map[[32]byte]bool{}
	for _, f := range []struct {
		dealers []uint16
		p       Params
	}{{[]uint16{1, 2}, p}, {[]uint16{1, 3}, p}, {[]uint16{2, 3}, p}, {[]uint16{1, 2}, Params{3, 3}}, {[]uint16{1, 2}, Params{2, 4}}} {
		for _, from := range []club{old, old.reshare(t, 2, 3, 1, 2)} {
			c, err := NewReshare(from.Group, f.dealers, f.p, []byte("epoch 1"))
			if err != nil {
				t.Fatal(err)
			}
			names[c.Digest()] = true
		}
	}
	if len(names) != 10 {
		t.Errorf("ten reshares have %d names", len(names))
	}
}

// One coefficient more would let the attacker's polynomial need one signer
// more than agreed; one fewer, one less.
func TestAttackExtraCoefficient(t *testing.T) {
	c := ceremony(t, 3, 4)
	for n := range 6 {
		r := forge(t, c, 1, randomPolynomial(t, max(n, 1)), asIs)
		r.Commitments = r.Commitments[:n]
		if err := c.VerifyRound1(1, r); n == 3 {
			if err != nil {
				t.Fatalf("the agreed degree: %v", err)
			}
		} else {
			wantCheat(t, err, "commitments", 1)
		}
	}
}

func TestAttackIdentifiers(t *testing.T) {
	c := ceremony(t, 2, 3)
	ds := dealAll(t, c)
	rs := published(ds)
	for _, id := range []uint16{0, 4, 257, 65535} {
		_, err := c.Deal(rand.Reader, id)
		wantRefused(t, "dealing", err)
		_, err = ds[0].Share(id)
		wantRefused(t, "a subshare", err)
		wantRefused(t, "commitments", c.VerifyRound1(id, rs[0]))
		wantRefused(t, "a subshare from", c.VerifySubshare(id, 1, rs[0], [32]byte{1}))
		wantRefused(t, "a subshare to", c.VerifySubshare(1, id, rs[0], [32]byte{1}))
		_, _, err = c.Finish(id, rs, dealtTo(t, ds, 1))
		wantRefused(t, "finishing", err)
	}
	old := keygen(t, 2, 3)
	for _, dealers := range [][]uint16{nil, {1}, {0, 1}, {1, 1}, {2, 1}, {1, 4}, {1, 2, 3}} {
		_, err := NewReshare(old.Group, dealers, Params{2, 3}, []byte("epoch"))
		wantRefused(t, fmt.Sprintf("dealers %v", dealers), err)
	}
}

// minusOne is the order of the subgroup less one.
var minusOne = new(edwards25519.Scalar).Negate(scalarOf(1))

// timesOrder multiplies by the order, which no scalar reduced by it can name.
func timesOrder(p *edwards25519.Point) *edwards25519.Point {
	q := new(edwards25519.Point).ScalarMult(minusOne, p)
	return q.Add(q, p)
}

// torsion returns the eight points of small order, the identity first.
func torsion(t testing.TB) []*edwards25519.Point {
	t.Helper()
	for y := byte(2); y < 255; y++ {
		p, err := new(edwards25519.Point).SetBytes(append([]byte{y}, make([]byte, 31)...))
		if err != nil {
			continue
		}
		g := timesOrder(p)
		all := []*edwards25519.Point{edwards25519.NewIdentityPoint()}
		for q := new(edwards25519.Point).Set(g); !isIdentity(q); q.Add(q, g) {
			all = append(all, new(edwards25519.Point).Set(q))
		}
		if len(all) == 8 {
			return all
		}
	}
	t.Fatal("no point of order eight")
	return nil
}

// badPoints are encodings that stand for no commitment, the last seven being
// an honest point shifted by torsion.
func badPoints(t testing.TB) map[string][32]byte {
	t.Helper()
	bad := map[string][32]byte{}
	honest := new(edwards25519.Point).ScalarBaseMult(random(t))
	for i, q := range torsion(t) {
		bad[fmt.Sprintf("torsion point %d", i)] = encodePoint(q)
		if i > 0 {
			bad[fmt.Sprintf("honest point plus torsion point %d", i)] = encodePoint(new(edwards25519.Point).Add(honest, q))
		}
	}
	for _, sign := range []byte{0, 0x80} {
		for low := 0xed; low <= 0xff; low++ { // p to 2^255-1
			b := [32]byte(bytes.Repeat([]byte{0xff}, 32))
			b[0], b[31] = byte(low), 0x7f|sign
			bad[fmt.Sprintf("unreduced y %#x, sign %#x", low, sign)] = b
		}
	}
	bad["identity with the sign set"] = [32]byte{0: 1, 31: 0x80}
	bad["off the curve"] = [32]byte{0: 2}
	bad["zero bytes"] = [32]byte{}
	return bad
}

// The reason given is the right one, for whoever has to act on it.
func TestDecodePointReasons(t *testing.T) {
	bad := badPoints(t)
	for name, want := range map[string]string{
		"torsion point 0":                   "identity",
		"identity with the sign set":        "identity",
		"torsion point 4":                   "subgroup",
		"honest point plus torsion point 1": "subgroup",
		"off the curve":                     "curve point",
	} {
		if _, err := decodePoint(bad[name]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want the %s named", name, err, want)
		}
	}
}

func TestAttackBadPoints(t *testing.T) {
	c := ceremony(t, 2, 3)
	club := keygen(t, 2, 3)
	nonces, list := club.commit(t, 1, 2)
	shares := club.sign(t, nonces, message, list)
	for name, b := range badPoints(t) {
		t.Run(name, func(t *testing.T) {
			for k := range 2 {
				r := forge(t, c, 1, randomPolynomial(t, 2), func(cs [][32]byte) { cs[k] = b })
				wantCheat(t, c.VerifyRound1(1, r), "commitments", 1)
			}
			for _, slot := range []func(*Commitment) *[32]byte{
				func(c *Commitment) *[32]byte { return &c.Hiding },
				func(c *Commitment) *[32]byte { return &c.Binding },
			} {
				poisoned := slices.Clone(list)
				*slot(&poisoned[1]) = b
				n, own, err := club.shares[0].Commit(rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				poisoned[0] = own
				_, err = club.shares[0].Sign(n, club.Group, message, poisoned)
				wantCheat(t, err, "nonce commitment", 2)
				_, err = Aggregate(club.Group, message, poisoned, shares)
				wantCheat(t, err, "nonce commitment", 2)
			}
			wantRefused(t, "a public key", (&Group{club.Params, b, club.PublicShares}).Validate())
			g := &Group{club.Params, club.PublicKey, slices.Clone(club.PublicShares)}
			g.PublicShares[2] = b
			wantRefused(t, "a public share", g.Validate())
		})
	}
}

// plusOrder is the same scalar, encoded a second way.
func plusOrder(b [32]byte) [32]byte {
	order := minusOne.Bytes()
	order[0]++
	carry := 0
	for i := range b {
		carry += int(b[i]) + int(order[i])
		b[i], carry = byte(carry), carry>>8
	}
	return b
}

func TestAttackNonCanonicalScalars(t *testing.T) {
	c := ceremony(t, 2, 2)
	ds := dealAll(t, c)
	rs := published(ds)
	sub := dealtTo(t, ds, 2)
	wantCheat(t, c.VerifySubshare(1, 2, rs[0], plusOrder(sub[0])), "subshare", 1)
	_, _, err := c.Finish(2, rs, [][32]byte{plusOrder(sub[0]), plusOrder(sub[1])})
	wantCheat(t, err, "subshare", 1, 2)

	r := ds[0].Round1()
	z := plusOrder([32]byte(r.Proof[32:]))
	copy(r.Proof[32:], z[:])
	wantCheat(t, c.VerifyRound1(1, r), "commitments", 1)

	club := finish(t, c, ds)
	nonces, list := club.commit(t, 1, 2)
	shares := club.sign(t, nonces, message, list)
	shares[2] = plusOrder(shares[2])
	wantCheat(t, VerifyShare(club.Group, 2, shares[2], message, list), "signature share", 2)
	_, err = Aggregate(club.Group, message, list, shares)
	wantCheat(t, err, "signature share", 2)

	for name, sealed := range map[string][]byte{"share": seal(t, club.shares[0]), "dealing": seal(t, ds[0])} {
		at := len(sealed) - 32
		z := plusOrder([32]byte(sealed[at:]))
		copy(sealed[at:], z[:])
		if name == "share" {
			_, err = UnmarshalKeyShare(club.Group, sealed)
		} else {
			_, err = c.UnmarshalDealing(sealed)
		}
		wantRefused(t, name, err)
	}
}

// A dealer gives a member a wrong subshare; it is named, with others like it.
func TestAttackWrongSubshare(t *testing.T) {
	c := ceremony(t, 3, 5)
	ds := dealAll(t, c)
	rs, sub := published(ds), dealtTo(t, ds, 1)
	sub[1], sub[4] = sub[4], sub[1]
	k, g, err := c.Finish(1, rs, sub)
	wantCheat(t, err, "subshare", 2, 5)
	if k != nil || g != nil {
		t.Error("a share came out nevertheless")
	}
	_, _, err = c.Finish(1, rs, dealtTo(t, ds, 2)) // those of another member
	wantCheat(t, err, "subshare", 1, 2, 3, 4, 5)
	_, _, err = c.Finish(1, rs, dealtTo(t, ds, 1)[:4])
	wantRefused(t, "a missing subshare", err)
	_, _, err = c.Finish(1, rs[:4], dealtTo(t, ds, 1))
	wantRefused(t, "a missing dealer", err)
	rs[0], rs[1] = rs[1], rs[0]
	_, _, err = c.Finish(1, rs, dealtTo(t, ds, 1))
	wantCheat(t, err, "commitments", 1, 2)
}

// A dealer shows two members different commitments.
func TestAttackSplitView(t *testing.T) {
	c := ceremony(t, 2, 3)
	ds := dealAll(t, c)
	again, err := c.Deal(rand.Reader, 3)
	if err != nil {
		t.Fatal(err)
	}
	forked := append(slices.Clone(ds[:2]), again)
	if c.Transcript(published(ds)) == c.Transcript(published(forked)) {
		t.Error("two views, one transcript")
	}
	left, right := finish(t, c, ds), finish(t, c, forked)
	if left.Digest() == right.Digest() || left.PublicKey == right.PublicKey {
		t.Error("two views, one group")
	}
	nonces, list := left.commit(t, 1, 2)
	_, err = left.shares[0].Sign(nonces[1], right.Group, message, list)
	wantRefused(t, "signing for the other view's group", err)
	_, err = UnmarshalKeyShare(right.Group, seal(t, left.shares[0]))
	wantRefused(t, "loading the other view's share", err)

	// Only a higher coefficient differs: same key, other shares, other group.
	p := slices.Clone(ds[2].secret)
	p[1] = random(t)
	rs := published(ds)
	rs[2] = forge(t, c, 3, p, asIs)
	g, err := c.Group(rs)
	if err != nil {
		t.Fatal(err)
	}
	if g.PublicKey != left.PublicKey {
		t.Fatal("the attack is not one: the key differs")
	}
	if g.Digest() == left.Digest() {
		t.Error("two polynomials, one group")
	}
}

func TestAttackOtherSecretAtReshare(t *testing.T) {
	old := keygen(t, 3, 4)
	c, err := NewReshare(old.Group, []uint16{1, 2, 4}, Params{2, 3}, []byte("epoch 1"))
	if err != nil {
		t.Fatal(err)
	}
	var rs []Round1
	for _, id := range c.Dealers() {
		d, err := c.Redeal(rand.Reader, old.shares[id-1])
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, d.Round1())
	}
	if _, err := c.Group(rs); err != nil {
		t.Fatal(err)
	}
	unweighted := old.shares[1].secret
	otherSet := new(edwards25519.Scalar).Multiply(lagrange([]uint16{1, 2, 3}, 2, 0), unweighted)
	for name, constant := range map[string]*edwards25519.Scalar{"random": random(t), "unweighted": unweighted, "weighted for other dealers": otherSet} {
		t.Run(name, func(t *testing.T) {
			bad := slices.Clone(rs)
			bad[1] = forge(t, c, 2, polynomial{constant, random(t)}, asIs)
			_, err := c.Group(bad)
			wantCheat(t, err, "commitments", 2)
		})
	}
	_, err = c.Redeal(rand.Reader, old.shares[2])
	wantRefused(t, "a dealer that was not chosen", err)
	_, err = c.Redeal(rand.Reader, keygen(t, 3, 4).shares[1])
	wantRefused(t, "a share of another group", err)
	_, err = c.Deal(rand.Reader, 2)
	wantRefused(t, "a fresh secret", err)
	_, err = ceremony(t, 3, 4).Redeal(rand.Reader, old.shares[1])
	wantRefused(t, "an old share dealt at a key generation", err)
}

// Colluding dealers can make their secrets cancel, and so a key or a share that
// everyone knows: zero.
func TestAttackCancellingDealers(t *testing.T) {
	c := ceremony(t, 2, 2)
	a, b := random(t), random(t)
	minus := func(s *edwards25519.Scalar) *edwards25519.Scalar { return new(edwards25519.Scalar).Negate(s) }
	for name, second := range map[string]polynomial{
		"the key":           {minus(a), random(t)},
		"member 1's share":  {a, minus(scalarOf(0).Add(b, scalarOf(0).Add(a, a)))}, // 2a + b + x = 0
		"member 2's share":  {b, minus(scalarOf(0).Add(b, half(scalarOf(0).Add(a, b))))},
		"all but the proof": {minus(a), minus(b)},
	} {
		rs := []Round1{forge(t, c, 1, polynomial{a, b}, asIs), forge(t, c, 2, second, asIs)}
		for i, r := range rs {
			if err := c.VerifyRound1(uint16(i+1), r); err != nil {
				t.Fatalf("%s: the attack is not one: %v", name, err)
			}
		}
		_, err := c.Group(rs)
		wantRefused(t, name+" is zero", err)
	}
}

func half(s *edwards25519.Scalar) *edwards25519.Scalar {
	two := scalarOf(2)
	return two.Multiply(two.Invert(two), s)
}

// A new group whose public shares were tampered with deals nothing.
func TestAttackReshareFromInconsistentGroup(t *testing.T) {
	old := keygen(t, 2, 4)
	_, err := NewReshare(&Group{old.Params, keygen(t, 2, 4).PublicKey, old.PublicShares}, []uint16{1, 2}, Params{2, 4}, []byte("epoch 1"))
	wantRefused(t, "public key exchanged", err)
	for i := range old.PublicShares {
		g := &Group{old.Params, old.PublicKey, slices.Clone(old.PublicShares)}
		g.PublicShares[i] = encodePoint(new(edwards25519.Point).ScalarBaseMult(random(t)))
		_, err := NewReshare(g, []uint16{1, 2}, Params{2, 4}, []byte("epoch 1"))
		wantRefused(t, fmt.Sprintf("public share %d exchanged", i+1), err)
	}
}

func TestAttackOldEpochShare(t *testing.T) {
	old := keygen(t, 2, 3)
	now := old.reshare(t, 2, 3, 1, 3)
	if now.PublicKey != old.PublicKey {
		t.Fatal("the public key changed")
	}
	stale, list := old.commit(t, 1)
	fresh, more := now.commit(t, 2)
	list = append(list, more...)

	_, err := old.shares[0].Sign(stale[1], now.Group, message, list)
	wantRefused(t, "an old share signing for the new group", err)
	_, err = now.shares[0].Sign(stale[1], now.Group, message, list)
	wantRefused(t, "a nonce of the old share", err)
	restored := seal(t, old.shares[0])
	if _, err = UnmarshalKeyShare(now.Group, restored); err == nil || !strings.Contains(err.Error(), "a sealed share of group") {
		t.Errorf("a restored share file: %v", err)
	}
	of := now.Digest()
	copy(restored, of[:])
	if _, err = UnmarshalKeyShare(now.Group, restored); err == nil || !strings.Contains(err.Error(), "not the share of member 1") {
		t.Errorf("a restored share file that names the new group: %v", err)
	}

	// The attacker's own code signs with the old share all the same.
	shares := map[uint16][32]byte{}
	if shares[1], err = old.shares[0].Sign(stale[1], old.Group, message, list); err != nil {
		t.Fatal(err)
	}
	if shares[2], err = now.shares[1].Sign(fresh[2], now.Group, message, list); err != nil {
		t.Fatal(err)
	}
	_, err = Aggregate(now.Group, message, list, shares)
	wantCheat(t, err, "signature share", 1)
}

// The coordinator shows signers lists that differ in someone's commitment.
func TestAttackChangedCommitments(t *testing.T) {
	c := keygen(t, 3, 4)
	nonces, list := c.commit(t, 1, 2, 3)
	_, other := c.commit(t, 1, 2, 3)
	changed := []Commitment{other[0], list[1], list[2]}

	_, err := c.shares[0].Sign(nonces[1], c.Group, message, changed)
	wantRefused(t, "another commitment in the signer's own name", err)
	mixed := list[0]
	mixed.Binding = list[0].Hiding
	_, err = c.shares[0].Sign(nonces[1], c.Group, message, []Commitment{mixed, list[1], list[2]})
	wantRefused(t, "half of another commitment in the signer's own name", err)

	shares := map[uint16][32]byte{}
	for id, seen := range map[uint16][]Commitment{1: list, 2: changed, 3: list} {
		if shares[id], err = c.shares[id-1].Sign(nonces[id], c.Group, message, seen); err != nil {
			t.Fatal(err)
		}
	}
	_, err = Aggregate(c.Group, message, list, shares)
	wantCheat(t, err, "signature share", 2) // by the list it did not sign ...
	// ... which is why it signs the list beside its share.
	if err := VerifyShare(c.Group, 2, shares[2], message, changed); err != nil {
		t.Errorf("against the list it signed it is honest: %v", err)
	}
}

// A key share or nonce that memory does not hold as it was makes a share that
// convicts an honest member, or tells its secret. It is not handed out.
func TestFaultBitsFlip(t *testing.T) {
	one, err := decodeScalar([32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	for name, flip := range map[string]func(*KeyShare, *Nonce){
		"key share":     func(k *KeyShare, _ *Nonce) { k.secret.Add(k.secret, one) },
		"hiding nonce":  func(_ *KeyShare, n *Nonce) { n.hiding.Add(n.hiding, one) },
		"binding nonce": func(_ *KeyShare, n *Nonce) { n.binding.Add(n.binding, one) },
	} {
		c := keygen(t, 3, 4)
		nonces, list := c.commit(t, 1, 2, 3)
		flip(c.shares[0], nonces[1])
		share, err := c.shares[0].Sign(nonces[1], c.Group, message, list)
		if err == nil || !strings.Contains(err.Error(), "computed a wrong share") || share != [32]byte{} {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAttackSignerSet(t *testing.T) {
	c := keygen(t, 3, 5)
	nonces, list := c.commit(t, 1, 2, 3, 4)
	renamed := func(id uint16) Commitment {
		com := list[3]
		com.ID = id
		return com
	}
	for name, set := range map[string][]Commitment{
		"nobody":          nil,
		"oneself":         {list[0]},
		"one short":       {list[0], list[1]},
		"one twice":       {list[0], list[1], list[1]},
		"oneself twice":   {list[0], list[0], list[1]},
		"unsorted":        {list[1], list[0], list[2]},
		"without oneself": {list[1], list[2], list[3]},
		"member 0":        {renamed(0), list[0], list[1]},
		"member 6 of 5":   {list[0], list[1], renamed(6)},
		"everybody twice": {list[0], list[1], list[2], list[3], list[0], list[1], list[2], list[3]},
	} {
		_, err := c.shares[0].Sign(nonces[1], c.Group, message, set)
		wantRefused(t, name, err)
	}
	// None of the refusals cost the nonce.
	shares := c.sign(t, nonces, message, list)
	delete(shares, 4)
	_, err := Aggregate(c.Group, message, list, shares)
	wantRefused(t, "a share missing", err)
	_, err = Aggregate(c.Group, message, list[:3], shares)
	wantCheat(t, err, "signature share", 1, 2, 3) // made for four signers
	shares[5] = shares[1]
	_, err = Aggregate(c.Group, message, list, shares)
	wantRefused(t, "a share of someone else", err)
	wantRefused(t, "a share of no signer", VerifyShare(c.Group, 5, shares[1], message, list))
}

func TestAttackOtherMessage(t *testing.T) {
	c := keygen(t, 2, 3)
	nonces, list := c.commit(t, 1, 3)
	shares := c.sign(t, nonces, message, list)
	_, err := Aggregate(c.Group, []byte("let everything leave"), list, shares)
	wantCheat(t, err, "signature share", 1, 3)
	wantCheat(t, VerifyShare(c.Group, 1, shares[3], message, list), "signature share", 1)
}

func TestAttackNonceReuse(t *testing.T) {
	c := keygen(t, 2, 3)
	nonces, list := c.commit(t, 1, 2)
	n := nonces[1]
	kept := *n // a copy is the same nonce
	if _, err := c.shares[0].Sign(n, c.Group, message, list); err != nil {
		t.Fatal(err)
	}
	for name, again := range map[string]*Nonce{"the nonce": n, "its copy": &kept} {
		z, err := c.shares[0].Sign(again, c.Group, []byte("another message"), list)
		if !errors.Is(err, ErrSpent) || z != [32]byte{} {
			t.Errorf("%s signed again: %v", name, err)
		}
	}
	nonces[2].Discard()
	if _, err := c.shares[1].Sign(nonces[2], c.Group, message, list); !errors.Is(err, ErrSpent) {
		t.Errorf("a discarded nonce signed: %v", err)
	}
	for name, none := range map[string]*Nonce{"nil": nil, "zero": {}} {
		none.Discard()
		_, err := c.shares[0].Sign(none, c.Group, message, list)
		wantRefused(t, name+" nonce", err)
	}
	foreign, list := c.commit(t, 1, 2)
	_, err := c.shares[0].Sign(foreign[2], c.Group, message, list)
	wantRefused(t, "another member's nonce", err)
}

// Many sign with one nonce at once: exactly one share leaves.
func TestAttackNonceReuseConcurrent(t *testing.T) {
	c := keygen(t, 2, 3)
	for range 20 {
		nonces, list := c.commit(t, 1, 2)
		var mu sync.Mutex
		var wg sync.WaitGroup
		out := map[[32]byte]int{}
		start := make(chan struct{})
		for i := range 8 {
			n := *nonces[1]
			wg.Go(func() {
				<-start
				z, err := c.shares[0].Sign(&n, c.Group, fmt.Appendf(nil, "message %d", i), list)
				if err != nil && !errors.Is(err, ErrSpent) {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					out[z]++
				}
			})
		}
		close(start)
		wg.Wait()
		if len(out) != 1 {
			t.Fatalf("%d shares left with one nonce", len(out))
		}
	}
}

// The ROS attack on concurrent sessions (Benhamouda et al., 2020) needs shares
// that add up across sessions. It fails because a signer's effective nonce
// depends on the whole list and the message.
func TestAttackConcurrentSessionsROS(t *testing.T) {
	c := keygen(t, 2, 3)
	_, list := c.commit(t, 1, 2)
	_, third := c.commit(t, 3)
	base := factors(t, c.Group, message, list)

	variants := map[string]map[uint16][32]byte{
		"another message": factors(t, c.Group, append(slices.Clone(message), 0), list),
		"another signer":  factors(t, c.Group, message, append(slices.Clone(list), third...)),
		"another group":   factors(t, keygen(t, 2, 3).Group, message, list),
	}
	_, other := c.commit(t, 1, 2)
	for i := range list {
		l := slices.Clone(list)
		l[i].Hiding = other[i].Hiding
		variants[fmt.Sprintf("hiding commitment of %d", list[i].ID)] = factors(t, c.Group, message, l)
		l = slices.Clone(list)
		l[i].Binding = other[i].Binding
		variants[fmt.Sprintf("binding commitment of %d", list[i].ID)] = factors(t, c.Group, message, l)
	}
	if base[1] == base[2] {
		t.Error("two signers of one session share a binding factor")
	}
	for name, f := range variants {
		for id, rho := range base {
			if f[id] == rho {
				t.Errorf("%s leaves the binding factor of member %d as it was", name, id)
			}
		}
	}
}

func factors(t testing.TB, g *Group, msg []byte, list []Commitment) map[uint16][32]byte {
	t.Helper()
	s, err := newSession(g, msg, list)
	if err != nil {
		t.Fatal(err)
	}
	f := map[uint16][32]byte{}
	for i, id := range s.ids {
		f[id] = encodeScalar(s.factors[i])
	}
	return f
}

// Shares of concurrent sessions, added up under any list, are no signature.
func TestAttackSharesAcrossSessions(t *testing.T) {
	c := keygen(t, 2, 3)
	n1, l1 := c.commit(t, 1, 2)
	n2, l2 := c.commit(t, 1, 2)
	s1 := c.sign(t, n1, message, l1)
	s2 := c.sign(t, n2, message, l2)
	for name, mix := range map[string][]Commitment{"first": l1, "second": l2, "mixed": {l1[0], l2[1]}} {
		shares := map[uint16][32]byte{1: s1[1], 2: s2[2]}
		_, err := Aggregate(c.Group, message, mix, shares)
		wantRefused(t, name, err)
	}
}

// All cheats in one session are named, and nobody else.
func TestAttackWrongSharesAllNamed(t *testing.T) {
	c := keygen(t, 3, 5)
	for mask := 1; mask < 1<<5; mask++ {
		nonces, list := c.commit(t, 1, 2, 3, 4, 5)
		shares := maps.Clone(c.sign(t, nonces, message, list))
		for _, id := range members(mask) {
			shares[id] = encodeScalar(random(t))
		}
		_, err := Aggregate(c.Group, message, list, shares)
		wantCheat(t, err, "signature share", members(mask)...)
	}
}
