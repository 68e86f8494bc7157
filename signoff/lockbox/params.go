package lockbox

import "fmt"

// A Side is one of the two secrets: the people's or the machines'.
type Side string

// The two sides.
const (
	People   Side = "people"
	Machines Side = "machines"
)

func (s Side) check() error {
	if s != People && s != Machines {
		return fmt.Errorf("lockbox: side %.20q, want %q or %q", string(s), People, Machines)
	}
	return nil
}

// A Holder has one key to which the share with that index is sealed. Index is
// the holder's place in the sharing, from 1. A second key of the same holder is
// another entry with the same index and Spare set: it gets the same share, so
// two tokens never count twice.
type Holder struct {
	Index uint16    `json:"index"`
	Key   Recipient `json:"key"`
	Spare bool      `json:"spare,omitempty"`
}

// ID is the fingerprint of the holder's key, see [Recipient.ID].
func (h Holder) ID() [32]byte { return h.Key.ID() }

// A Group is the holders of one side and how many of them it takes.
type Group struct {
	Threshold uint16   `json:"threshold"`
	Holders   []Holder `json:"holders"`
}

// Check refuses a threshold below [MinThreshold] or above the number of
// distinct indices, index 0, an index or a key that occurs twice, a missing key
// and a spare without its first key.
func (g Group) Check() error {
	if g.Threshold < MinThreshold {
		return fmt.Errorf("lockbox: threshold %d, want at least %d", g.Threshold, MinThreshold)
	}
	if len(g.Holders) > MaxHolders {
		return fmt.Errorf("lockbox: %d holders, at most %d", len(g.Holders), MaxHolders)
	}
	keys, primary := map[[32]byte]bool{}, map[uint16]bool{}
	for _, h := range g.Holders {
		if err := h.check(); err != nil {
			return err
		}
		if keys[h.ID()] {
			return fmt.Errorf("lockbox: key sha256:%x stands twice among the holders", h.ID())
		}
		keys[h.ID()] = true
		if !h.Spare && primary[h.Index] {
			return fmt.Errorf("lockbox: index %d stands twice among the holders; mark the second key of one holder as spare", h.Index)
		}
		primary[h.Index] = primary[h.Index] || !h.Spare
	}
	for index, ok := range primary {
		if !ok {
			return fmt.Errorf("lockbox: index %d has only a spare key", index)
		}
	}
	if int(g.Threshold) > len(primary) {
		return fmt.Errorf("lockbox: threshold %d with %d holders", g.Threshold, len(primary))
	}
	return nil
}

func (h Holder) check() error {
	if h.Index == 0 {
		return fmt.Errorf("lockbox: holder sha256:%x has index 0, which would be the secret itself; indices start at 1", h.ID())
	}
	if h.Key.IsZero() {
		return fmt.Errorf("lockbox: holder %d has no key", h.Index)
	}
	return nil
}

// find returns the holder with that index and key.
func (g Group) find(index uint16, id [32]byte) (Holder, error) {
	for _, h := range g.Holders {
		if h.Index == index && h.ID() == id {
			return h, nil
		}
	}
	return Holder{}, fmt.Errorf("lockbox: no holder %d with key sha256:%x in this group", index, id)
}

// Params is who holds a lockbox.
type Params struct {
	Charter  [32]byte
	People   Group
	Machines Group
}

// Check refuses a missing charter, what [Group.Check] refuses, and a key that
// stands on both sides.
func (p Params) Check() error {
	if p.Charter == [32]byte{} {
		return fmt.Errorf("lockbox: no charter")
	}
	if err := p.People.Check(); err != nil {
		return fmt.Errorf("%w (side %s)", err, People)
	}
	if err := p.Machines.Check(); err != nil {
		return fmt.Errorf("%w (side %s)", err, Machines)
	}
	people := map[[32]byte]bool{}
	for _, h := range p.People.Holders {
		people[h.ID()] = true
	}
	for _, h := range p.Machines.Holders {
		if people[h.ID()] {
			return fmt.Errorf("lockbox: key sha256:%x holds a share on both sides", h.ID())
		}
	}
	return nil
}
