package authority

import (
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/signoff"
)

// verify checks that the document belongs to this cluster and is signed by
// the key its kind demands. It looks at nothing else.
func (s *State) verify(p prepared, index uint64) error {
	doc := p.doc
	if charter, ok := doc.Doc.(*signoff.Charter); ok {
		return s.verifyCharter(p, charter, index)
	}
	if s.Charter == nil {
		return errors.New("the log does not begin with a charter")
	}
	if doc.Doc.Cluster() != s.ID {
		return fmt.Errorf("belongs to charter %s, this log is of %s", doc.Doc.Cluster(), s.ID)
	}
	if at, ok := s.Documents[p.id]; ok {
		return fmt.Errorf("the same document already took effect at entry %d", at)
	}
	return s.verifySigner(p)
}

func (s *State) verifyCharter(p prepared, c *signoff.Charter, index uint64) error {
	doc := p.doc
	if index != 0 {
		return fmt.Errorf("a charter at entry %d; it can only be entry 0", index)
	}
	if p.id != s.ID {
		return fmt.Errorf("charter %s is not the one given as anchor, %s", p.id, s.ID)
	}
	for _, p := range c.People {
		if p.ID() == doc.Hint {
			pub, err := p.Signing.Public()
			if err != nil {
				return err
			}
			return doc.Verify(pub)
		}
	}
	return fmt.Errorf("charter signed by %s, who is not in it", doc.Hint)
}

func (s *State) verifySigner(p prepared) error {
	doc := p.doc
	switch d := doc.Doc.(type) {
	case *signoff.Acceptance:
		if !d.Request.IsZero() {
			return s.byNewToken(p, d)
		}
		return s.byPerson(p, d.Person)
	case *signoff.Object:
		if !d.Claim.IsZero() {
			return s.byNode(doc, d.Sealer)
		}
		return s.byPerson(p, d.Sealer)
	case *signoff.Deals:
		if o, ok := s.Objects[d.Object]; ok && !o.Doc.Claim.IsZero() {
			return s.byNode(doc, d.Sealer)
		}
		return s.byPerson(p, d.Sealer)
	case *signoff.Redealing:
		if !d.Notary.IsZero() {
			return s.byHolder(p, d.Notary)
		}
		return s.byPerson(p, d.Person)
	case *signoff.Custody:
		if !d.Notary.IsZero() {
			return s.byNotary(p, d.Notary)
		}
		return s.byPerson(p, d.Person)
	case *signoff.Request:
		return s.byPerson(p, d.Requester)
	case *signoff.Approval:
		return s.byPerson(p, d.Person)
	case *signoff.Halt:
		return s.byPerson(p, d.Person)
	case *signoff.Ceremony:
		return s.byPerson(p, d.Person)
	case *signoff.Commitment:
		return s.byNotary(p, d.Notary)
	case *signoff.Dealing:
		return s.byNotary(p, d.Notary)
	case *signoff.Transcript:
		return s.byMember(p, d.Notary)
	case *signoff.DealerAnswer:
		return s.byNotary(p, d.Notary)
	case *signoff.Joining:
		return s.byJoiner(p, d)
	case *signoff.Takeover:
		return s.byMember(p, d.Notary)
	case *signoff.SigningFault:
		return s.byNotary(p, d.Notary)
	case *signoff.Tick:
		return s.byNotary(p, d.Notary)
	case *signoff.Epoch:
		return s.byNotary(p, d.Notary)
	case *signoff.Activation:
		return s.byNotary(p, d.Notary)
	case *signoff.Release:
		return s.byHolder(p, d.Notary)
	case *signoff.Recovery:
		return s.byNotary(p, doc.Hint)
	case *signoff.Warrant:
		return s.byGroup(p)
	case *signoff.Claim:
		return s.byNode(doc, d.Node)
	case *signoff.Receipt:
		if d.Event == signoff.EventExported {
			return s.byPerson(p, d.Signer)
		}
		return s.byNode(doc, d.Signer)
	}
	return fmt.Errorf("a %s is no log entry", doc.Doc.Kind())
}

func (s *State) byPerson(p prepared, id Digest) error {
	m, ok := s.Person(id)
	if !ok {
		return s.nobody(id)
	}
	if g, ok := s.signers[p.doc.Hint]; ok && g.member == m {
		return p.bySigner(p.doc.Hint, g)
	}
	return fmt.Errorf("signed with key %s, which is none of %s's", p.doc.Hint, m.Name)
}

// byNewToken wants the signature of a token that an open request brings.
func (s *State) byNewToken(p prepared, a *signoff.Acceptance) error {
	r, ok := s.Requests[a.Request]
	if !ok || r.Doc.People == nil || r.Ended != "" {
		return fmt.Errorf("%s is not an open request to change people", a.Request)
	}
	for _, t := range r.Doc.People.NewTokens() {
		if t.ID() == a.Person {
			pub, err := t.Signing.Public()
			if err != nil {
				return err
			}
			return p.doc.VerifyKnown(a.Person, pub)
		}
	}
	return fmt.Errorf("request %s brings no token with key %s", a.Request.Short(), a.Person)
}

func (s *State) nobody(id Digest) error {
	if name := s.PersonName(id); name != "" {
		return fmt.Errorf("%s (%s) is no longer a person of this cluster, since entry %d or before", name, id, s.People.Index)
	}
	return fmt.Errorf("%s is not a person of this cluster", id)
}

func (s *State) byNotary(p prepared, id Digest) error {
	g, ok := s.signers[id]
	switch {
	case !ok || g.notary == nil:
		return fmt.Errorf("%s is not a notary of this charter", id)
	case g.index == 0:
		return fmt.Errorf("notary %s left office", g.notary.Name)
	}
	return p.bySigner(id, g)
}

// byHolder wants a notary that is or was in office: who left holds its shares
// of an object until they are dealt to those in office.
func (s *State) byHolder(p prepared, id Digest) error {
	g, ok := s.signers[id]
	if !ok || g.notary == nil {
		return fmt.Errorf("%s is not a notary of this charter", id)
	}
	return p.bySigner(id, g)
}

func (s *State) byNode(doc *signoff.Signed, id Digest) error {
	if !s.enrolled(id) {
		return fmt.Errorf("%s is not an enrolled node", id)
	}
	return doc.Verify(s.Nodes[id].Keys.SignKey)
}

func (s *State) byGroup(p prepared) error {
	if s.Group == nil {
		return errors.New("a warrant before the notaries have a group key")
	}
	return p.bySigner(s.groupID, s.signers[s.groupID])
}
