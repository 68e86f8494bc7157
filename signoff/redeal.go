package signoff

import (
	"fmt"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// MaxRedealt bounds the objects of one document, so that its blob, with as many
// sub-shares as there are tokens of people, is one that can be put.
const MaxRedealt = 64

// A Redealing is one holder's share of each of some objects, dealt on: a
// person's to the people of a roster, a notary's to the council of a term.
// Dealing is under the sign-off that made the roster or the council.
type Redealing struct {
	Charter Digest   `json:"charter"`
	Person  Digest   `json:"person,omitzero"`
	Notary  Digest   `json:"notary,omitzero"`  // instead of a person
	Roster  uint64   `json:"roster"`           // entry that made the roster dealt to, 0: the charter's; of a notary, that began the term
	Warrant Digest   `json:"warrant,omitzero"` // of a notary: that granted the change to the council dealt to
	Objects []Digest `json:"objects"`
	Blob    Digest   `json:"blob"` // lockbox.SubDeals of each object, in this order
}

// Kind is KindRedealing.
func (r *Redealing) Kind() Kind { return KindRedealing }

// Cluster is the charter it belongs to.
func (r *Redealing) Cluster() Digest { return r.Charter }

func (r *Redealing) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("sub-deals", r.Blob)}
}

// Validate checks the form.
func (r *Redealing) Validate() error {
	if r.Blob.IsZero() {
		return missing("blob")
	}
	if err := oneHolder(r.Person, r.Notary); err != nil {
		return err
	}
	if notary := !r.Notary.IsZero(); notary == r.Warrant.IsZero() || notary && r.Roster == 0 {
		return fmt.Errorf("roster %d under warrant %q: a notary deals to a council that a warrant put into office, a person under none", r.Roster, r.Warrant)
	}
	return checkDigests("objects", r.Objects, MaxRedealt)
}

// oneHolder wants either a person or a notary.
func oneHolder(person, notary Digest) error {
	if person.IsZero() == notary.IsZero() {
		return fmt.Errorf("person %q and notary %q, want one of the two", person, notary)
	}
	return nil
}

// A Custody is a holder's word on own shares, each opened and compared with the
// commitments: that they are right, with them sealed to the holder's tokens, or
// which dealer's part is wrong.
type Custody struct {
	Charter Digest `json:"charter"`
	Person  Digest `json:"person,omitzero"`
	Notary  Digest `json:"notary,omitzero"` // instead of a person
	Shares  []Held `json:"shares"`
	Blob    Digest `json:"blob"` // lockbox deals of those that are right, one for each token, in this order; empty if none is
}

// Held is one share: of which object, in which epoch, under which commitments.
type Held struct {
	Object  Digest `json:"object"`
	Epoch   uint32 `json:"epoch"`
	Sharing Digest `json:"sharing"`        // see [Sharing] of package authority
	Wrong   uint16 `json:"wrong,omitzero"` // share index of the dealer whose part is wrong
}

// Kind is KindCustody.
func (c *Custody) Kind() Kind { return KindCustody }

// Cluster is the charter it belongs to.
func (c *Custody) Cluster() Digest { return c.Charter }

func (c *Custody) subjects() []dsse.Subject {
	var out []dsse.Subject
	for _, s := range c.Shares {
		out = append(out, dsse.About("object", s.Object))
	}
	return out
}

// Validate checks the form.
func (c *Custody) Validate() error {
	if err := oneHolder(c.Person, c.Notary); err != nil {
		return err
	}
	var objects []Digest
	right := false
	for _, s := range c.Shares {
		if s.Epoch == 0 || s.Sharing.IsZero() {
			return missing("a share's epoch or sharing")
		}
		objects, right = append(objects, s.Object), right || s.Wrong == 0
	}
	if right == c.Blob.IsZero() {
		return fmt.Errorf("blob %q with some share right %v: want the deals of those that are right, and none without any", c.Blob, right)
	}
	return checkDigests("shares", objects, MaxRedealt)
}
