package frost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"filippo.io/edwards25519"
)

// Ceremony is the agreed setting in which shares are dealt: who deals, to a
// group of which size, in which context. It is public and immutable; everyone
// builds it alike from the same facts.
//
// Each dealer publishes a [Round1] and gives every member of the new group one
// subshare in confidence. From all Round1s anyone derives the [Group]; with its
// subshares a member finishes with a [KeyShare]. Nobody ever has the key.
//
// The last dealer to publish can bias the public key, though not know its
// secret. Schnorr signatures, FROST among them, are unharmed by that; other
// uses of the key may not be.
type Ceremony struct {
	params    Params
	digest    [32]byte
	dealers   []uint16
	old       *Group                // reshare only
	constants []*edwards25519.Point // reshare only: what each dealer must deal
}

// NewKeyGen sets up the making of a new key by all its members. The context,
// not empty, tells this ceremony from every other, so that no proof serves
// twice; a charter's digest and the attempt's number will do.
func NewKeyGen(p Params, context []byte) (*Ceremony, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if len(context) == 0 {
		return nil, errors.New("frost: key generation without a context; name the charter and the attempt")
	}
	return &Ceremony{
		params:  p,
		digest:  digest("keyturn/frost/keygen/v1", context, u16(p.Threshold, p.Members)),
		dealers: firstIDs(p.Members),
	}, nil
}

// NewReshare sets up the dealing of an existing key to a new group, whose
// members and threshold may all differ. The dealers are exactly old.Threshold
// members of the old group, ascending. The public key stays.
//
// Old shares work until they are wiped: that is up to their holders.
func NewReshare(old *Group, dealers []uint16, p Params, context []byte) (*Ceremony, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if err := old.Validate(); err != nil {
		return nil, err
	}
	if len(context) == 0 {
		return nil, errors.New("frost: a reshare without a context; name the charter and the epoch")
	}
	if len(dealers) != int(old.Threshold) {
		return nil, fmt.Errorf("frost: a reshare dealt by %d members: need exactly %d", len(dealers), old.Threshold)
	}
	if err := old.checkIDs(dealers); err != nil {
		return nil, err
	}
	kept := *old
	kept.PublicShares = slices.Clone(old.PublicShares)
	of := kept.Digest()
	c := &Ceremony{
		params:  p,
		digest:  digest("keyturn/frost/reshare/v1", context, of[:], u16(dealers...), u16(p.Threshold, p.Members)),
		dealers: slices.Clone(dealers),
		old:     &kept,
	}
	return c, c.weighConstants()
}

// weighConstants computes each dealer's weighted public share, the only
// constant term it may deal.
func (c *Ceremony) weighConstants() error {
	for _, id := range c.dealers {
		y, err := c.old.share(id)
		if err != nil {
			return err
		}
		w := lagrange(c.dealers, id, 0)
		c.constants = append(c.constants, y.VarTimeDoubleScalarBaseMult(w, y, edwards25519.NewScalar()))
	}
	return nil
}

// Params returns the numbers of the group being made.
func (c *Ceremony) Params() Params { return c.params }

// Dealers returns who deals, ascending: in a reshare by old identifiers.
func (c *Ceremony) Dealers() []uint16 { return slices.Clone(c.dealers) }

// Digest tells ceremonies apart: kind, context, numbers, dealers, old group.
func (c *Ceremony) Digest() [32]byte { return c.digest }

// Transcript is what all must find equal before the key is first used: the
// ceremony and every dealer's Round1, in the order of [Ceremony.Dealers].
func (c *Ceremony) Transcript(round1s []Round1) [32]byte {
	values := [][]byte{c.digest[:]}
	for i := range round1s {
		values = append(values, round1s[i].encode())
	}
	return digest("keyturn/frost/transcript/v1", values...)
}

func (c *Ceremony) dealerIndex(from uint16) (int, error) {
	i, ok := slices.BinarySearch(c.dealers, from)
	if !ok {
		return 0, fmt.Errorf("frost: member %d deals nothing in this ceremony; dealers are %v", from, c.dealers)
	}
	return i, nil
}

// Round1 is what a dealer publishes: commitments to its polynomial, constant
// term first, and a Schnorr proof that it knows that term.
type Round1 struct {
	Commitments [][32]byte `json:"commitments"` // exactly Threshold points
	Proof       [64]byte   `json:"proof"`       // R, then the response
}

func (r *Round1) encode() []byte {
	b := u16(uint16(len(r.Commitments)))
	b = append(b, join(r.Commitments)...)
	return append(b, r.Proof[:]...)
}

// MarshalBinary encodes the number of commitments (16 bits, big-endian), the
// commitments and the proof.
func (r *Round1) MarshalBinary() ([]byte, error) {
	if n := len(r.Commitments); n < 2 || n > MaxMembers {
		return nil, fmt.Errorf("frost: encoding %d commitments: need 2 to %d", n, MaxMembers)
	}
	return r.encode(), nil
}

// UnmarshalBinary decodes what MarshalBinary wrote and nothing else. It does
// not verify: see [Ceremony.VerifyRound1].
func (r *Round1) UnmarshalBinary(b []byte) error {
	if len(b) < 2 {
		return fmt.Errorf("frost: decoding commitments: %d bytes are too few", len(b))
	}
	n := int(binary.BigEndian.Uint16(b))
	if want := 2 + 32*n + 64; n < 2 || n > MaxMembers || len(b) != want {
		return fmt.Errorf("frost: decoding %d commitments from %d bytes: need 2 to %d of 32 bytes, 66 bytes besides", n, len(b), MaxMembers)
	}
	r.Commitments = make([][32]byte, n)
	for i := range r.Commitments {
		r.Commitments[i] = [32]byte(b[2+32*i:])
	}
	r.Proof = [64]byte(b[2+32*n:])
	return nil
}

// VerifyRound1 checks what a dealer published: exactly the agreed degree,
// good points, a proof made by this dealer for this ceremony and for these
// commitments, and in a reshare the constant term that is the dealer's to deal.
// It returns a *[CheatError] naming the dealer.
func (c *Ceremony) VerifyRound1(from uint16, r Round1) error {
	_, err := c.open(from, r)
	return err
}

func (c *Ceremony) open(from uint16, r Round1) (feldman, error) {
	i, err := c.dealerIndex(from)
	if err != nil {
		return nil, err
	}
	f, err := c.verify(i, r)
	if err != nil {
		return nil, &CheatError{Step: "commitments", IDs: []uint16{from}, Err: err}
	}
	return f, nil
}

func (c *Ceremony) verify(i int, r Round1) (feldman, error) {
	if len(r.Commitments) != int(c.params.Threshold) {
		return nil, fmt.Errorf("%d commitments: need exactly %d, one per signer needed", len(r.Commitments), c.params.Threshold)
	}
	f := make(feldman, len(r.Commitments))
	for k := range f {
		p, err := decodePoint(r.Commitments[k])
		if err != nil {
			return nil, fmt.Errorf("commitment %d: %w", k, err)
		}
		f[k] = p
	}
	if c.old != nil && f[0].Equal(c.constants[i]) != 1 {
		return nil, errors.New("the secret dealt is not the dealer's share of the old key")
	}
	return f, c.verifyProof(c.dealers[i], f[0], r)
}

func (c *Ceremony) challenge(from uint16, r *Round1, nonce []byte) *edwards25519.Scalar {
	return hashToScalar(fields([]byte("keyturn/frost/proof/v1"), c.digest[:], u16(from), join(r.Commitments), nonce))
}

func (c *Ceremony) verifyProof(from uint16, constant *edwards25519.Point, r Round1) error {
	z, err := decodeScalar([32]byte(r.Proof[32:]))
	if err != nil {
		return fmt.Errorf("proof of possession: %w", err)
	}
	e := c.challenge(from, &r, r.Proof[:32])
	e.Negate(e)
	// R = zB - eC, compared as bytes, so that R is canonical or refused.
	R := new(edwards25519.Point).VarTimeDoubleScalarBaseMult(e, constant, z)
	if encodePoint(R) != [32]byte(r.Proof[:32]) {
		return errors.New("the proof of possession is not this dealer's for these commitments in this ceremony")
	}
	return nil
}

// VerifySubshare checks a subshare dealt by from to member to of the new group
// against from's Round1. It returns a *[CheatError] naming the dealer.
func (c *Ceremony) VerifySubshare(from, to uint16, r Round1, subshare [32]byte) error {
	if err := c.params.checkID(to); err != nil {
		return err
	}
	f, err := c.open(from, r)
	if err != nil {
		return err
	}
	s, err := f.verify(to, subshare)
	if err != nil {
		return &CheatError{Step: "subshare", IDs: []uint16{from}, Err: err}
	}
	wipe(s)
	return nil
}

func (f feldman) verify(to uint16, subshare [32]byte) (*edwards25519.Scalar, error) {
	s, err := decodeScalar(subshare)
	if err != nil {
		return nil, err
	}
	if new(edwards25519.Point).ScalarBaseMult(s).Equal(f.at(to)) != 1 {
		wipe(s)
		return nil, fmt.Errorf("the subshare for member %d does not match the commitments", to)
	}
	return s, nil
}

// Group derives the group from every dealer's Round1, in the order of
// [Ceremony.Dealers], after verifying each. No secret is needed, so whoever
// replays the log can do it. It returns a *[CheatError] naming every dealer
// that is refused.
func (c *Ceremony) Group(round1s []Round1) (*Group, error) {
	fs, err := c.openAll(round1s)
	if err != nil {
		return nil, err
	}
	return c.group(fs)
}

func (c *Ceremony) openAll(round1s []Round1) ([]feldman, error) {
	if len(round1s) != len(c.dealers) {
		return nil, fmt.Errorf("frost: commitments of %d dealers: need those of all %d", len(round1s), len(c.dealers))
	}
	fs := make([]feldman, len(round1s))
	cheats := blame{CheatError{Step: "commitments"}}
	for i, r := range round1s {
		f, err := c.verify(i, r)
		if err != nil {
			cheats.add(c.dealers[i], err)
		}
		fs[i] = f
	}
	return fs, cheats.verdict()
}

func (c *Ceremony) group(fs []feldman) (*Group, error) {
	sum := newFeldman(c.params.Threshold)
	for _, f := range fs {
		sum.add(f)
	}
	g := &Group{Params: c.params, PublicKey: encodePoint(sum[0]), PublicShares: make([][32]byte, c.params.Members)}
	if isIdentity(sum[0]) {
		return nil, errors.New("frost: the dealers' constant terms cancel; start a new ceremony")
	}
	if c.old != nil && g.PublicKey != c.old.PublicKey {
		return nil, errors.New("frost: the reshare would change the public key")
	}
	for i := range g.PublicShares {
		y := sum.at(uint16(i + 1))
		if isIdentity(y) {
			return nil, fmt.Errorf("frost: the share of member %d would be zero; start a new ceremony", i+1)
		}
		g.PublicShares[i] = encodePoint(y)
	}
	return g, nil
}

// Finish verifies all Round1s and all subshares dealt to member self, both in
// the order of [Ceremony.Dealers], and returns the share and the group. It
// returns a *[CheatError] naming every dealer that is refused.
func (c *Ceremony) Finish(self uint16, round1s []Round1, subshares [][32]byte) (*KeyShare, *Group, error) {
	if err := c.params.checkID(self); err != nil {
		return nil, nil, err
	}
	if len(subshares) != len(c.dealers) {
		return nil, nil, fmt.Errorf("frost: subshares of %d dealers: need those of all %d", len(subshares), len(c.dealers))
	}
	fs, err := c.openAll(round1s)
	if err != nil {
		return nil, nil, err
	}
	secret, cheats := edwards25519.NewScalar(), blame{CheatError{Step: "subshare"}}
	for i, f := range fs {
		s, err := f.verify(self, subshares[i])
		if err != nil {
			cheats.add(c.dealers[i], err)
			continue
		}
		secret.Add(secret, s)
		wipe(s)
	}
	if err := cheats.verdict(); err != nil {
		wipe(secret)
		return nil, nil, err
	}
	g, err := c.group(fs)
	if err != nil {
		wipe(secret)
		return nil, nil, err
	}
	k, err := newKeyShare(g, self, secret)
	return k, g, err
}

// Deal makes member self's contribution to a key generation.
func (c *Ceremony) Deal(rand io.Reader, self uint16) (*Dealing, error) {
	if c.old != nil {
		return nil, errors.New("frost: a reshare deals an old share; use Redeal")
	}
	if _, err := c.dealerIndex(self); err != nil {
		return nil, err
	}
	constant, err := randomScalar(rand)
	if err != nil {
		return nil, err
	}
	return c.deal(rand, self, constant)
}

// Redeal makes an old member's contribution to a reshare: its share of the old
// key, weighted for this set of dealers.
func (c *Ceremony) Redeal(rand io.Reader, share *KeyShare) (*Dealing, error) {
	if c.old == nil {
		return nil, errors.New("frost: a key generation deals fresh secrets; use Deal")
	}
	if err := share.belongs(c.old); err != nil {
		return nil, err
	}
	if _, err := c.dealerIndex(share.id); err != nil {
		return nil, err
	}
	w := lagrange(c.dealers, share.id, 0)
	return c.deal(rand, share.id, w.Multiply(w, share.secret))
}

// deal takes the constant term over. What it made is verified before it is
// returned, so that a broken random source shows here and not in the log.
func (c *Ceremony) deal(rand io.Reader, self uint16, constant *edwards25519.Scalar) (*Dealing, error) {
	p := polynomial{constant}
	for len(p) < int(c.params.Threshold) {
		a, err := randomScalar(rand)
		if err != nil {
			p.wipe()
			return nil, err
		}
		p = append(p, a)
	}
	d, err := c.prove(rand, self, p)
	if err != nil {
		p.wipe()
		return nil, err
	}
	return d, nil
}

func (c *Ceremony) prove(rand io.Reader, self uint16, p polynomial) (*Dealing, error) {
	d := &Dealing{&dealingState{ceremony: c, self: self, secret: p}}
	for _, q := range p.commit() {
		d.round1.Commitments = append(d.round1.Commitments, encodePoint(q))
	}
	k, err := hedgedScalar(rand, p[0])
	if err != nil {
		return nil, err
	}
	defer wipe(k)
	R := encodePoint(new(edwards25519.Point).ScalarBaseMult(k))
	e := c.challenge(self, &d.round1, R[:])
	z := encodeScalar(e.MultiplyAdd(e, p[0], k))
	copy(d.round1.Proof[:32], R[:])
	copy(d.round1.Proof[32:], z[:])
	return d, c.VerifyRound1(self, d.round1)
}
