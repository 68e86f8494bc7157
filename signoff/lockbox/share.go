package lockbox

import (
	"context"
	"crypto/mlkem"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// Sizes of a sealed share in bytes, by kind of key.
const (
	sealedSize       = pointSize + pairSize + tagSize
	hybridSealedSize = mlkem.CiphertextSize768 + sealedSize
)

// A Share is one holder's share in the clear, checked against its commitments.
// Wipe it after use.
type Share struct {
	context Context
	secret  pair
}

// Context says what the share is a share of.
func (s *Share) Context() Context { return s.context }

// Verify returns nil if the share matches the commitments of its side, and a
// [ShareError] with [Wrong] if not.
func (s *Share) Verify(sharing Sharing) error {
	want, err := sharing.at(s.context.Index)
	if err != nil {
		return err
	}
	if !s.secret.commit().IsEqual(want) {
		return s.context.fault(Wrong, errors.New("it does not match the commitments"))
	}
	return nil
}

// DealTo seals the share to another token of the same holder: an index has one
// share, however many keys.
func (s *Share) DealTo(key Recipient) (Deal, error) {
	c := s.context
	c.Holder = key.ID()
	if err := c.Check(); err != nil {
		return Deal{}, err
	}
	if s.wiped() {
		return Deal{}, fmt.Errorf("lockbox: deal %s: the share was wiped; open it again", c)
	}
	return sealDeal(c, key, s.secret)
}

func (s *Share) wiped() bool { return s.secret.value.IsZero() && s.secret.blind.IsZero() }

// Wipe zeroes the share. A wiped share matches no commitment.
func (s *Share) Wipe() { s.secret.wipe() }

// Format prints what the share is of, and no secret, whatever the verb.
func (s Share) Format(f fmt.State, _ rune) { redact(f, s.context.String()) }

// verified is the only way to a Share.
func verified(c Context, p pair, sharing Sharing) (*Share, error) {
	s := &Share{c, p}
	if err := s.Verify(sharing); err != nil {
		s.Wipe()
		return nil, err
	}
	return s, nil
}

// OpenShare opens a deal with one operation of the holder's token and checks
// the share against sharing, the commitments of that side in that epoch. want is
// rebuilt by the caller from verified documents. What is wrong with the deal is
// a [ShareError]; errors of the token are passed on.
func OpenShare(ctx context.Context, id *Identity, want Context, sharing Sharing, deal Deal) (*Share, error) {
	if err := want.Check(); err != nil {
		return nil, err
	}
	if err := sharing.Check(); err != nil {
		return nil, err
	}
	if err := want.addressed(id, deal); err != nil {
		return nil, err
	}
	p, err := id.open(ctx, want, want.dealInfo(), deal.Sealed)
	if err != nil {
		return nil, err
	}
	return verified(want, p, sharing)
}

// addressed names a deal that by its own words is another one, before a token
// operation is spent on it.
func (c Context) addressed(id *Identity, d Deal) error {
	switch {
	case id == nil:
		return fmt.Errorf("lockbox: open %s: no identity", c)
	case d.Object != c.Object:
		return c.fault(Foreign, fmt.Errorf("it belongs to object %s", d.Object))
	case d.Side != c.Side:
		return c.fault(Foreign, fmt.Errorf("it belongs to side %.20q", string(d.Side)))
	case d.Index != c.Index || d.Holder != c.Holder:
		return c.fault(Foreign, fmt.Errorf("it belongs to holder %d (key %s)", d.Index, d.Holder))
	case d.Epoch != c.Epoch:
		return c.fault(Replayed, fmt.Errorf("it was dealt in epoch %d", d.Epoch))
	case id.Recipient().ID() != c.Holder:
		return c.fault(Foreign, fmt.Errorf("the key at hand is %s", dsse.Digest(id.Recipient().ID())))
	}
	return nil
}

// Reseal seals a share to a recipient for one request. c is what the holder was
// shown; it must be about this share and this key. Toward that recipient this
// cannot be taken back.
func Reseal(s *Share, to Recipient, c ReleaseContext) ([]byte, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if s == nil || c.Context != s.context {
		return nil, c.fault(Foreign, errors.New("the share at hand is another one"))
	}
	if to.ID() != c.Recipient {
		return nil, fmt.Errorf("lockbox: release %s: recipient key is %s, but %s was asked for", c.Context, dsse.Digest(to.ID()), dsse.Digest(c.Recipient))
	}
	if s.wiped() {
		return nil, fmt.Errorf("lockbox: release %s: the share was wiped; open it again", c.Context)
	}
	return to.seal(c.info(), s.secret)
}

// OpenRelease opens a re-sealed share at its recipient and checks it against
// sharing, the commitments of that side in that epoch. c is rebuilt from the
// request and the signed documents around the ciphertext.
func OpenRelease(ctx context.Context, id *Identity, c ReleaseContext, sharing Sharing, sealed []byte) (*Share, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if err := sharing.Check(); err != nil {
		return nil, err
	}
	if id == nil {
		return nil, fmt.Errorf("lockbox: open release %s: no identity", c.Context)
	}
	if id.Recipient().ID() != c.Recipient {
		return nil, c.fault(Foreign, fmt.Errorf("it was released to %s and the key at hand is %s", dsse.Digest(c.Recipient), dsse.Digest(id.Recipient().ID())))
	}
	p, err := id.open(ctx, c.Context, c.info(), sealed)
	if err != nil {
		return nil, err
	}
	return verified(c.Context, p, sharing)
}

// combine interpolates the secret from any shares of that object and side that
// verify, an index counting once. The result must open the commitment to the
// secret.
func combine(object [32]byte, side Side, sharing Sharing, shares []*Share) (pair, error) {
	points, err := sharing.points()
	if err != nil {
		return pair{}, err
	}
	xs, ys, bad := choose(object, side, sharing, shares)
	if len(xs) < len(sharing) {
		return pair{}, errors.Join(append([]error{fmt.Errorf("lockbox: %d good shares of side %s, want %d", len(xs), side, len(sharing))}, bad...)...)
	}
	secret := interpolate(xs, ys)
	if !secret.commit().IsEqual(points[0]) {
		secret.wipe()
		return pair{}, fmt.Errorf("lockbox: the shares of side %s do not combine to the committed secret", side)
	}
	return secret, nil
}

// choose returns the indices and values of as many good shares as the
// threshold, and says what was wrong with the others that it met.
func choose(object [32]byte, side Side, sharing Sharing, shares []*Share) (xs []uint16, ys []pair, bad []error) {
	seen := map[uint16]bool{}
	for _, s := range shares {
		if len(xs) == len(sharing) {
			break
		}
		if s == nil || seen[s.context.Index] {
			continue
		}
		if s.context.Object != object || s.context.Side != side {
			bad = append(bad, s.context.fault(Foreign, fmt.Errorf("side %s of object %s was asked for", side, dsse.Digest(object))))
			continue
		}
		if err := s.Verify(sharing); err != nil {
			bad = append(bad, err)
			continue
		}
		seen[s.context.Index] = true
		xs, ys = append(xs, s.context.Index), append(ys, s.secret)
	}
	return xs, ys, bad
}
