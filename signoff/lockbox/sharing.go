package lockbox

import (
	"fmt"

	"github.com/cloudflare/circl/group"
)

// Bounds of a group of holders.
const (
	// MinThreshold: below two, a single holder would stand for a whole side.
	MinThreshold = 2
	// MaxHolders bounds the keys of one side and so the work that a document
	// can ask for.
	MaxHolders = 1024
)

// A Sharing holds the Pedersen commitments to one sharing polynomial, constant
// term first, each a canonical ristretto255 encoding of 32 bytes. Its length is
// the threshold.
type Sharing [][32]byte

// ParseSharing reads the threshold and the commitments as a signed document
// states them.
func ParseSharing(threshold int, commitments [][]byte) (Sharing, error) {
	if len(commitments) != threshold {
		return nil, fmt.Errorf("lockbox: %d commitments with threshold %d, want as many", len(commitments), threshold)
	}
	s := make(Sharing, len(commitments))
	for k, c := range commitments {
		if len(c) != len(s[k]) {
			return nil, fmt.Errorf("lockbox: commitment %d has %d bytes, want %d", k, len(c), len(s[k]))
		}
		copy(s[k][:], c)
	}
	return s, s.Check()
}

// Threshold is the number of shares that restore the secret.
func (s Sharing) Threshold() int { return len(s) }

// Bytes returns the commitments as documents carry them.
func (s Sharing) Bytes() [][]byte {
	out := make([][]byte, len(s))
	for k := range s {
		out[k] = append([]byte(nil), s[k][:]...)
	}
	return out
}

// Check refuses a threshold out of bounds and any commitment that is not a
// canonical point or is the identity.
func (s Sharing) Check() error {
	_, err := s.points()
	return err
}

func (s Sharing) points() ([]group.Element, error) {
	if len(s) < MinThreshold || len(s) > MaxHolders {
		return nil, fmt.Errorf("lockbox: a sharing with threshold %d, want %d to %d", len(s), MinThreshold, MaxHolders)
	}
	points := make([]group.Element, len(s))
	for k, b := range s {
		p, err := parsePoint(b)
		if err != nil {
			return nil, fmt.Errorf("lockbox: commitment %d is %x: %w; take the object's statement from the log again", k, b, err)
		}
		points[k] = p
	}
	return points, nil
}

// at returns the commitment to the share with index x.
func (s Sharing) at(x uint16) (group.Element, error) {
	points, err := s.points()
	if err != nil {
		return nil, err
	}
	sum := curve.Identity()
	for k := len(points) - 1; k >= 0; k-- {
		sum = scale(sum, x)
		sum.Add(sum, points[k])
	}
	return sum, nil
}

// Continues returns nil if s commits to the secret of sealed and asks for at
// least as many shares: a re-deal may raise a threshold that people approved
// and never lowers it.
func (s Sharing) Continues(sealed Sharing) error {
	if err := s.Check(); err != nil {
		return err
	}
	if err := sealed.Check(); err != nil {
		return err
	}
	if s[0] != sealed[0] {
		return fmt.Errorf("lockbox: re-dealt commitment %x is not to the sealed secret %x", s[0], sealed[0])
	}
	if len(s) < len(sealed) {
		return fmt.Errorf("lockbox: re-dealt threshold %d is below the sealed threshold %d; seal the object anew to lower it", len(s), len(sealed))
	}
	return nil
}

// Commitments are the public part of a lockbox: in the object's statement as
// sealed, and with one side replaced after a re-deal.
type Commitments struct {
	Salt     [32]byte `json:"salt"`
	People   Sharing  `json:"people"`
	Machines Sharing  `json:"machines"`
}

// Check refuses a missing salt and what [Sharing.Check] refuses.
func (c Commitments) Check() error {
	if c.Salt == [32]byte{} {
		return fmt.Errorf("lockbox: the lockbox has no salt")
	}
	if err := c.People.Check(); err != nil {
		return fmt.Errorf("%w (side %s)", err, People)
	}
	if err := c.Machines.Check(); err != nil {
		return fmt.Errorf("%w (side %s)", err, Machines)
	}
	return nil
}

// Side returns one side's sharing.
func (c Commitments) Side(side Side) (Sharing, error) {
	switch side {
	case People:
		return c.People, nil
	case Machines:
		return c.Machines, nil
	}
	return nil, side.check()
}

// Redealt returns c with the sharing of one side replaced by one that
// continues it (see [Sharing.Continues]).
func (c Commitments) Redealt(side Side, s Sharing) (Commitments, error) {
	sealed, err := c.Side(side)
	if err != nil {
		return Commitments{}, err
	}
	if err := s.Continues(sealed); err != nil {
		return Commitments{}, err
	}
	if side == People {
		c.People = s
	} else {
		c.Machines = s
	}
	return c, nil
}
