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
		pub, err := n.Exchange.ECDH()
		if err != nil {
			return g, fmt.Errorf("%s: %w", n.Name, err)
		}
		key, err := lockbox.P256Recipient(pub)
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
	known := map[Digest]uint16{}
	for _, t := range s.Tokens {
		if t.HoldsShare() {
			known[t.Exchange.Fingerprint()] = t.Index
		}
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
	known := map[Digest]uint16{}
	for i, n := range s.Council().Notaries {
		known[n.Exchange.Fingerprint()] = uint16(i + 1)
	}
	h, err := dealt(o, blob, lockbox.Machines, o.Doc.Lockbox.Machines, deals, known)
	if err == nil && len(h.Holders) != len(known) {
		err = fmt.Errorf("dealt to %d notaries, in office are %d", len(h.Holders), len(known))
	}
	return h, err
}

// dealt checks deals by what they say of themselves: of this object and side,
// in epoch 1, each to a known key under its index. What is sealed in them only
// their holders can tell.
func dealt(o *Object, blob Digest, side lockbox.Side, sealed signoff.Sharing, deals []lockbox.Deal, known map[Digest]uint16) (Holding, error) {
	sharing, err := lockbox.ParseSharing(sealed.Threshold, sealed.Commitments)
	if err != nil {
		return Holding{}, err
	}
	out := Holding{Epoch: 1, Deals: blob, Holders: map[Digest]uint16{}, Sharings: []lockbox.Sharing{sharing}}
	for _, d := range deals {
		switch {
		case d.Index == 0 || known[d.Holder] != d.Index:
			return out, fmt.Errorf("a share %d of side %s dealt to key %s, which holds no such share", d.Index, side, d.Holder)
		case d.Object != o.ID || d.Side != side || d.Epoch != out.Epoch:
			return out, fmt.Errorf("a share of side %s of object %s in epoch %d among those of side %s of %s in epoch %d", d.Side, d.Object.Short(), d.Epoch, side, o.ID.Short(), out.Epoch)
		}
		out.Holders[d.Holder] = d.Index
	}
	return out, nil
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
