package authority

import (
	"fmt"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// Holders is who gets shares of what is sealed now.
func (s *State) Holders() (lockbox.Params, error) {
	return Holders(s.ID, s.People, s.Council())
}

// Holders is who gets shares of what is sealed for these people and notaries.
func Holders(id Digest, people *Roster, c signoff.Council) (lockbox.Params, error) {
	p := lockbox.Params{Charter: id}
	var err error
	if p.People, err = people.Holders(); err != nil {
		return p, err
	}
	if p.Machines, err = councilHolders(c); err != nil {
		return p, err
	}
	return p, p.Check()
}

// councilHolders is the machines' side of what is dealt to a council.
func councilHolders(c signoff.Council) (lockbox.Group, error) {
	g := lockbox.Group{Threshold: uint16(c.Quorum())}
	for i, n := range c.Notaries {
		key, err := n.Exchange.Recipient()
		if err != nil {
			return g, fmt.Errorf("%s: %w", n.Name, err)
		}
		g.Holders = append(g.Holders, lockbox.Holder{Index: uint16(i + 1), Key: key})
	}
	return g, g.Check()
}

// dealtToPeople is the people's side as the sealer dealt it. A sealer without a
// network may have dealt before the last change of people; enough of those who
// are here must hold a share to deal on.
func (s *State) dealtToPeople(o *Object, blob Digest, deals []lockbox.Deal) (Holding, error) {
	var known []lockbox.Holder
	for _, t := range s.Tokens {
		if !t.HoldsShare() {
			continue
		}
		key, err := t.Exchange.Recipient()
		if err != nil {
			return Holding{}, fmt.Errorf("%s: %w", t.Name, err)
		}
		known = append(known, lockbox.Holder{Index: t.Index, Key: key})
	}
	h, err := dealt(o, blob, lockbox.People, o.Doc.Lockbox.People, deals, known)
	if err != nil {
		return h, err
	}
	if n, t := len(s.People.holding(h)), o.Doc.Lockbox.People.Threshold; n < t {
		return h, fmt.Errorf("%d people of this cluster hold a share, it takes %d; seal anew", n, t)
	}
	return h, nil
}

// dealtToNotaries is the machines' side as the sealer dealt it: to every notary
// in office.
func (s *State) dealtToNotaries(o *Object, blob Digest, deals []lockbox.Deal) (Holding, error) {
	known, err := councilHolders(s.Council())
	if err != nil {
		return Holding{}, err
	}
	h, err := dealt(o, blob, lockbox.Machines, o.Doc.Lockbox.Machines, deals, known.Holders)
	if err == nil && len(h.Holders) != len(known.Holders) {
		err = fmt.Errorf("dealt to %d notaries, in office are %d", len(h.Holders), len(known.Holders))
	}
	return h, err
}

// dealt checks deals by what they say of themselves: of this object and side,
// in epoch 1, each to a known key under its index and as long as that key's KEM
// makes it. What is sealed in them only their holders can tell.
func dealt(o *Object, blob Digest, side lockbox.Side, sealed signoff.Sharing, deals []lockbox.Deal, holders []lockbox.Holder) (Holding, error) {
	sharing, err := lockbox.ParseSharing(sealed.Threshold, sealed.Commitments)
	if err != nil {
		return Holding{}, err
	}
	known := map[Digest]lockbox.Holder{}
	for _, h := range holders {
		known[h.ID()] = h
	}
	out := Holding{Epoch: 1, Deals: blob, Holders: map[Digest]uint16{}, Sharings: []lockbox.Sharing{sharing}}
	for _, d := range deals {
		h := known[d.Holder]
		switch {
		case d.Index == 0 || h.Index != d.Index:
			return out, fmt.Errorf("a share %d of side %s dealt to key %s, which holds no such share", d.Index, side, d.Holder)
		case d.Object != o.ID || d.Side != side || d.Epoch != out.Epoch:
			return out, fmt.Errorf("a share of side %s of object %s in epoch %d among those of side %s of %s in epoch %d", d.Side, d.Object.Short(), d.Epoch, side, o.ID.Short(), out.Epoch)
		}
		if err := fits(d, h.Key); err != nil {
			return out, err
		}
		out.Holders[d.Holder] = d.Index
	}
	return out, nil
}

// fits refuses a deal that was not sealed with the KEM of the key that it names:
// to a hybrid key with P-256 alone, which its holder could not open and a quantum
// computer could.
func fits(d lockbox.Deal, key lockbox.Recipient) error {
	if n, want := len(d.Sealed), key.SealedSize(); n != want {
		return fmt.Errorf("the share %d sealed to key %s has %d bytes, to that key it has %d", d.Index, d.Holder, n, want)
	}
	return nil
}

// holding are the share indices of those of the roster who hold a share on a
// token that they have.
func (r *Roster) holding(h Holding) map[uint16]bool {
	out := map[uint16]bool{}
	for _, m := range r.Members {
		for _, t := range m.Tokens() {
			if t.HoldsShare() && h.Holders[t.Exchange.Fingerprint()] == m.Index {
				out[m.Index] = true
			}
		}
	}
	return out
}
