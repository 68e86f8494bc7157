package frost

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"slices"

	"filippo.io/edwards25519"
)

// Dealing is one dealer's secret polynomial together with what it publishes.
// A dealer seals it (MarshalSecret) before it publishes anything, so that it
// can go on after a crash: a second dealing in one ceremony would be a fork.
// Copies of a Dealing are the same dealing.
type Dealing struct{ *dealingState }

// The states of secrets stand behind one pointer more than seems necessary:
// asked to print another package's unexported field with a verb unfit for
// pointers, package fmt calls no method but follows one pointer.
type dealingState struct {
	ceremony *Ceremony
	self     uint16
	secret   polynomial
	round1   Round1
}

// Dealer returns the number of the dealer.
func (d *Dealing) Dealer() uint16 { return d.self }

// Round1 returns what the dealer publishes; the same each time.
func (d *Dealing) Round1() Round1 {
	return Round1{slices.Clone(d.round1.Commitments), d.round1.Proof}
}

// Share returns the SECRET subshare for member to of the new group, oneself
// included. It must reach that member encrypted.
func (d *Dealing) Share(to uint16) ([32]byte, error) {
	if err := d.usable(); err != nil {
		return [32]byte{}, err
	}
	if err := d.ceremony.params.checkID(to); err != nil {
		return [32]byte{}, err
	}
	s := d.secret.at(to)
	defer wipe(s)
	return encodeScalar(s), nil
}

// MarshalSecret encodes the SECRET polynomial, to be sealed: ceremony digest,
// dealer (16 bits, big-endian), proof, coefficients.
func (d *Dealing) MarshalSecret() ([]byte, error) {
	if err := d.usable(); err != nil {
		return nil, err
	}
	b := make([]byte, 0, dealingSize(len(d.secret)))
	b = append(b, d.ceremony.digest[:]...)
	b = append(b, u16(d.self)...)
	b = append(b, d.round1.Proof[:]...)
	for _, a := range d.secret {
		b = append(b, a.Bytes()...)
	}
	return b, nil
}

func dealingSize(threshold int) int { return 32 + 2 + 64 + 32*threshold }

// UnmarshalDealing decodes what [Dealing.MarshalSecret] wrote in the same
// ceremony, and verifies that it still makes a valid Round1.
func (c *Ceremony) UnmarshalDealing(b []byte) (*Dealing, error) {
	if want := dealingSize(int(c.params.Threshold)); len(b) != want {
		return nil, fmt.Errorf("frost: a sealed dealing of %d bytes: need %d in this ceremony", len(b), want)
	}
	if [32]byte(b) != c.digest {
		return nil, fmt.Errorf("frost: a sealed dealing of ceremony %x, not of %x", b[:32], c.digest)
	}
	d := &Dealing{&dealingState{ceremony: c, self: binary.BigEndian.Uint16(b[32:])}}
	copy(d.round1.Proof[:], b[34:])
	for rest := b[98:]; len(rest) > 0; rest = rest[32:] {
		a, err := decodeScalar([32]byte(rest))
		if err != nil {
			d.Wipe()
			return nil, fmt.Errorf("frost: a sealed dealing with a bad coefficient: %w", err)
		}
		d.secret = append(d.secret, a)
	}
	for _, q := range d.secret.commit() {
		d.round1.Commitments = append(d.round1.Commitments, encodePoint(q))
	}
	if err := c.VerifyRound1(d.self, d.round1); err != nil {
		d.Wipe()
		return nil, fmt.Errorf("frost: a sealed dealing that does not verify: %w", err)
	}
	return d, nil
}

// Wipe overwrites the polynomial. What Share and MarshalSecret returned, and
// copies the runtime made, are beyond its reach. Not to be called while another
// goroutine uses d.
func (d *Dealing) Wipe() {
	if d.usable() == nil {
		d.secret.wipe()
		d.secret = nil
	}
}

func (d *Dealing) usable() error {
	if d == nil || d.dealingState == nil || len(d.secret) == 0 {
		return ErrWiped
	}
	return nil
}

// Format prints a placeholder for every verb.
func (d Dealing) Format(f fmt.State, _ rune) { redact(f, "Dealing") }

// KeyShare is one member's share of the key. It belongs to exactly one [Group]
// and signs for no other: after a reshare, old shares and new do not mix.
// Copies of a KeyShare are the same share.
type KeyShare struct{ *shareState }

type shareState struct {
	id     uint16
	group  [32]byte
	secret *edwards25519.Scalar
}

// newKeyShare takes the secret over, and refuses one that is not the member's.
func newKeyShare(g *Group, id uint16, secret *edwards25519.Scalar) (*KeyShare, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	if err := g.checkID(id); err != nil {
		return nil, err
	}
	if encodePoint(new(edwards25519.Point).ScalarBaseMult(secret)) != g.PublicShares[id-1] {
		wipe(secret)
		return nil, fmt.Errorf("frost: not the share of member %d in this group; was the key reshared since?", id)
	}
	return &KeyShare{&shareState{id: id, group: g.Digest(), secret: secret}}, nil
}

// ID returns the member's number in its group.
func (k *KeyShare) ID() uint16 { return k.id }

// GroupDigest returns the [Group.Digest] of the group this share belongs to.
func (k *KeyShare) GroupDigest() [32]byte { return k.group }

const keyShareSize = 32 + 2 + 32

// Marshal encodes the SECRET share, to be sealed: group digest, member (16
// bits, big-endian), secret.
func (k *KeyShare) Marshal() ([]byte, error) {
	if err := k.usable(); err != nil {
		return nil, err
	}
	b := make([]byte, 0, keyShareSize)
	b = append(b, k.group[:]...)
	b = append(b, u16(k.id)...)
	return append(b, k.secret.Bytes()...), nil
}

// UnmarshalKeyShare decodes what [KeyShare.Marshal] wrote for a member of this
// very group. A share of an earlier epoch is refused.
func UnmarshalKeyShare(g *Group, b []byte) (*KeyShare, error) {
	if len(b) != keyShareSize {
		return nil, fmt.Errorf("frost: a sealed share of %d bytes: need %d", len(b), keyShareSize)
	}
	if err := g.check(); err != nil {
		return nil, err
	}
	if of := g.Digest(); [32]byte(b) != of {
		return nil, fmt.Errorf("frost: a sealed share of group %x, not of %x; was the key reshared since?", b[:32], of)
	}
	s, err := decodeScalar([32]byte(b[34:]))
	if err != nil {
		return nil, fmt.Errorf("frost: a sealed share: %w", err)
	}
	return newKeyShare(g, binary.BigEndian.Uint16(b[32:]), s)
}

// Wipe overwrites the share. What Marshal returned, and copies the runtime
// made, are beyond its reach. Not to be called while another goroutine uses k.
func (k *KeyShare) Wipe() {
	if k.usable() == nil {
		wipe(k.secret)
		k.secret = nil
	}
}

func (k *KeyShare) usable() error {
	if k == nil || k.shareState == nil || k.secret == nil {
		return ErrWiped
	}
	return nil
}

// Format prints a placeholder for every verb.
func (k KeyShare) Format(f fmt.State, _ rune) { redact(f, "KeyShare") }

// Equal compares two shares in constant time.
func (k *KeyShare) Equal(o *KeyShare) bool {
	if k.usable() != nil || o.usable() != nil {
		return false
	}
	same := subtle.ConstantTimeEq(int32(k.id), int32(o.id)) & subtle.ConstantTimeCompare(k.group[:], o.group[:])
	return same&k.secret.Equal(o.secret) == 1
}

func (k *KeyShare) belongs(g *Group) error {
	if err := g.check(); err != nil {
		return err
	}
	if err := k.usable(); err != nil {
		return err
	}
	if of := g.Digest(); k.group != of {
		return fmt.Errorf("frost: the share of member %d is of group %x, not of %x; was the key reshared since?", k.id, k.group, of)
	}
	return nil
}
