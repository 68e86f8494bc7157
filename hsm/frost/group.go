package frost

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"

	"filippo.io/edwards25519"
)

// Group is the public half of a finished [Ceremony]: all that is needed to
// verify contributions and signatures, and nothing secret.
type Group struct {
	Params
	PublicKey    [32]byte   `json:"publicKey"`    // Ed25519, RFC 8032
	PublicShares [][32]byte `json:"publicShares"` // of members 1, 2, ... Members
}

// Ed25519 returns the public key as the standard library wants it.
func (g *Group) Ed25519() ed25519.PublicKey { return slices.Clone(g.PublicKey[:]) }

// Digest tells groups apart: SHA-256 over numbers, public key and all shares.
// A reshare keeps the public key and changes the digest.
func (g *Group) Digest() [32]byte {
	return digest("keyturn/frost/group/v1", u16(g.Threshold, g.Members), g.PublicKey[:], join(g.PublicShares))
}

// Validate refuses a group that no ceremony can have made: shares missing, bad
// points, or shares that do not interpolate the public key. The functions of
// this package that take a Group trust it; call Validate on one that comes
// from elsewhere than [Ceremony.Group] or [Ceremony.Finish].
func (g *Group) Validate() error {
	shares, err := g.points()
	if err != nil {
		return err
	}
	ids := firstIDs(g.Threshold)
	if encodePoint(interpolate(ids, shares[:g.Threshold], 0)) != g.PublicKey {
		return errors.New("frost: the public shares do not interpolate the public key; derive the group from its ceremony")
	}
	for id := g.Threshold + 1; id <= g.Members; id++ {
		if interpolate(ids, shares[:g.Threshold], id).Equal(shares[id-1]) != 1 {
			return fmt.Errorf("frost: the public share of member %d is not on the polynomial of the others", id)
		}
	}
	return nil
}

func (g *Group) points() ([]*edwards25519.Point, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	if _, err := decodePoint(g.PublicKey); err != nil {
		return nil, fmt.Errorf("frost: public key of the group: %w", err)
	}
	shares := make([]*edwards25519.Point, g.Members)
	for i := range shares {
		p, err := g.share(uint16(i + 1))
		if err != nil {
			return nil, err
		}
		shares[i] = p
	}
	return shares, nil
}

// check is what every use of a group can afford.
func (g *Group) check() error {
	if g == nil {
		return errors.New("frost: no group")
	}
	if err := g.Params.Validate(); err != nil {
		return err
	}
	if len(g.PublicShares) != int(g.Members) {
		return fmt.Errorf("frost: a group of %d members with %d public shares", g.Members, len(g.PublicShares))
	}
	return nil
}

// share is the verification share of a member whose identifier was checked.
func (g *Group) share(id uint16) (*edwards25519.Point, error) {
	p, err := decodePoint(g.PublicShares[id-1])
	if err != nil {
		return nil, fmt.Errorf("frost: public share of member %d: %w", id, err)
	}
	return p, nil
}

func firstIDs(n uint16) []uint16 {
	ids := make([]uint16, n)
	for i := range ids {
		ids[i] = uint16(i + 1)
	}
	return ids
}

func interpolate(ids []uint16, points []*edwards25519.Point, x uint16) *edwards25519.Point {
	weights := make([]*edwards25519.Scalar, len(ids))
	for i, id := range ids {
		weights[i] = lagrange(ids, id, x)
	}
	return new(edwards25519.Point).VarTimeMultiScalarMult(weights, points)
}

func join(values [][32]byte) []byte {
	var b bytes.Buffer
	for _, v := range values {
		b.Write(v[:])
	}
	return b.Bytes()
}
