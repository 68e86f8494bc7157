package authority

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/signoff"
)

// GroupKey is the notaries' joint public key, or nil before key generation.
func (s *State) GroupKey() crypto.PublicKey {
	if s.Group == nil {
		return nil
	}
	return ed25519.PublicKey(s.Group.PublicKey[:])
}

// DeriveWarrant writes the only warrant that the request can have in this
// state. Notaries sign these bytes and nothing else; the fold accepts these
// bytes and nothing else. An error says why there is none.
func (s *State) DeriveWarrant(id Digest) (*signoff.Warrant, []byte, error) {
	r, ok := s.Requests[id]
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("request %s is not in the log", id)
	case r.Ended != "":
		return nil, nil, fmt.Errorf("request %s has ended: %s", id.Short(), r.Ended)
	case r.Satisfied == nil:
		return nil, nil, fmt.Errorf("request %s is not satisfied", id.Short())
	case r.Doc.Expiry <= s.Time:
		return nil, nil, fmt.Errorf("request %s expired at %d, it is %d", id.Short(), r.Doc.Expiry, s.Time)
	}
	if err := s.stopped(r); err != nil {
		return nil, nil, err
	}
	if err := s.possible(r.Doc); err != nil {
		return nil, nil, err
	}
	uses := 1
	if r.Doc.Launch != nil {
		uses = r.Doc.Launch.Uses
	}
	w := &signoff.Warrant{
		Charter: s.ID, Request: id, Action: r.Doc.Action, Policy: r.Satisfied.Policy, Rule: r.Satisfied.Rule,
		Index: r.Satisfied.Index, Approvals: r.Satisfied.Approvals, Issued: r.Satisfied.Time, Expiry: r.Doc.Expiry, Uses: uses,
	}
	payload, err := signoff.Write(w)
	return w, payload, err
}

// stopped refuses what a halt covers. Halts stop exports and launches; they
// never stand in the way of resume, membership, reference sets or policy.
func (s *State) stopped(r *Request) error {
	if r.Doc.Export == nil && r.Doc.Launch == nil {
		return nil
	}
	if h, ok := s.Halted(r.ID, Digest{}); ok {
		return fmt.Errorf("halt %s stands; a resume must name it first", h.ID)
	}
	return nil
}

// warrant accepts the notaries' joint act, judged again here: policy, people
// and halts count as they are at this index, not as they were when it was
// signed.
func (d decision) warrant(w *signoff.Warrant) ([]change, error) {
	_, want, err := d.state.DeriveWarrant(w.Request)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(want, d.doc.Payload) {
		return nil, fmt.Errorf("warrant for %s is not the one the log gives at this index", w.Request)
	}
	r := *d.state.Requests[w.Request]
	r.Warrant, r.Ended = d.id, "warrant issued"
	effect, err := d.effect(&r)
	if err != nil {
		return nil, err
	}
	rec := &Warrant{ID: r.Warrant, Doc: w, Index: d.index}
	return append([]change{putRequest(&r), putWarrant(rec)}, effect...), nil
}

func putWarrant(w *Warrant) change {
	return change{key: "warrant/" + w.ID.Hex(), value: w, put: func(s *State) { s.Warrants[w.ID] = w }}
}

// effect is what a warrant changes by itself. Exports and launches change
// nothing yet: releases and claims follow.
func (d decision) effect(r *Request) ([]change, error) {
	s, doc := d.state, r.Doc
	switch {
	case doc.Enrol != nil:
		keys, err := d.enrolment(doc.Enrol)
		if err != nil {
			return nil, err
		}
		if err := s.nodeKeysUnused(keys); err != nil {
			return nil, err
		}
		n := &Node{ID: doc.Enrol.Node, Name: doc.Enrol.Name, Enrolment: doc.Enrol.Enrolment, Index: d.index, Keys: keys}
		if old, again := s.Nodes[n.ID]; again {
			n.Past, n.Claimed = old.Past, old.Claimed // the TPM is the same, and so is its clock
		}
		c, err := enrolNode(n)
		return []change{c}, err
	case doc.Retire != nil:
		n := *s.Nodes[doc.Retire.Node]
		n.Retired = true
		return []change{putNode(&n)}, nil
	case doc.Policy != nil:
		p, err := compilePolicy(s.People, doc.Policy.Policy)
		if err != nil {
			return nil, err
		}
		p.Index = d.index
		return []change{{key: "policy", value: p, put: func(s *State) { s.Policy = p }}}, nil
	case doc.People != nil:
		next, err := s.changePeople(doc.People)
		if err != nil {
			return nil, err
		}
		next.roster.Index = d.index
		return []change{{key: "people", value: next.roster, put: next.put}}, nil
	case doc.Resume != nil:
		return d.lift(r.ID, doc.Resume.Halts), nil
	case doc.Adopt != nil:
		ref := &Reference{ID: doc.Adopt.Set, Name: doc.Adopt.Name, Version: doc.Adopt.Version, Index: d.index, Adopted: r.ID, Set: r.Set}
		return []change{putReference(ref, d.index)}, nil
	case doc.Withdraw != nil:
		return d.withdrawals(r.ID, doc.Withdraw.Sets), nil
	case doc.EKRoots != nil:
		return d.changeEKRoots(r.ID, doc.EKRoots)
	case doc.Notaries != nil:
		return []change{putKeygen(s.reshare(doc.Notaries, d.doc.Digest()))}, nil
	}
	return nil, nil
}

// lift takes back halts that possible has found standing.
func (d decision) lift(request Digest, halts []Digest) []change {
	var out []change
	for _, id := range halts {
		h := *d.state.Halts[id]
		h.Lifted = request
		out = append(out, putHalt(&h))
	}
	return out
}

// Live reports whether the warrant may be used now on the node (zero: no node
// in particular), or why not. Uses are counted by claims.
func (s *State) Live(id, node Digest) (*Warrant, *Request, error) {
	w, ok := s.Warrants[id]
	if !ok {
		return nil, nil, fmt.Errorf("warrant %s is not in the log", id)
	}
	r := s.Requests[w.Doc.Request]
	if w.Doc.Expiry <= s.Time {
		return nil, nil, fmt.Errorf("warrant %s expired at %d, it is %d", id.Short(), w.Doc.Expiry, s.Time)
	}
	if h, ok := s.Halted(r.ID, node); ok {
		return nil, nil, fmt.Errorf("halt %s stands: %s", h.ID, h.Doc.Reason)
	}
	return w, r, nil
}

func (d decision) release(r *signoff.Release) ([]change, error) {
	w, req, err := d.state.Live(r.Warrant, Digest{})
	if err != nil {
		return nil, err
	}
	key, recipient, objects := r.Warrant, Digest{}, req.Doc.Objects()
	switch {
	case req.Doc.Export != nil:
		if !r.Claim.IsZero() {
			return nil, errors.New("a release of an export names a claim")
		}
		recipient = req.Doc.Export.RecipientKey.Fingerprint()
	case req.Doc.Launch != nil:
		c, err := d.state.claimed(r.Claim, w.ID)
		if err != nil {
			return nil, err
		}
		key, recipient, objects = r.Claim, c.FreshFingerprint(), d.state.Opens(c)
	default:
		return nil, fmt.Errorf("a %s releases nothing", req.Doc.Action)
	}
	if err := d.checkRelease(r, objects, key, recipient); err != nil {
		return nil, err
	}
	return []change{{key: "release/" + key.Hex(), value: r, put: func(s *State) {
		s.Releases[key] = append(append([]*signoff.Release{}, s.Releases[key]...), r)
	}}}, nil
}

// claimed returns a claim of the warrant under which shares may go to its
// node: the use has not ended, and the node is not retired, halted or of
// a maker who is not believed.
func (s *State) claimed(id, warrant Digest) (*Claim, error) {
	c, ok := s.Claims[id]
	if !ok || c.Doc.Warrant != warrant {
		return nil, fmt.Errorf("claim %s is not of warrant %s", id, warrant)
	}
	if c.Ended != "" {
		return nil, fmt.Errorf("claim %s has ended: %s", id, c.Ended)
	}
	if !s.enrolled(c.Doc.Node) {
		return nil, fmt.Errorf("node %s of claim %s is retired", c.Doc.Node, id)
	}
	if err := s.VouchedFor(s.Nodes[c.Doc.Node]); err != nil {
		return nil, err
	}
	_, _, err := s.Live(warrant, c.Doc.Node)
	return c, err
}

func (d decision) checkRelease(r *signoff.Release, objects []Digest, key, recipient Digest) error {
	if r.Share.Recipient != recipient {
		return fmt.Errorf("released to %s, the recipient is %s", r.Share.Recipient, recipient)
	}
	o := d.state.Objects[r.Share.Object]
	if !contains(objects, r.Share.Object) || r.Share.Epoch != o.Machines.Epoch {
		return fmt.Errorf("object %s of epoch %d is not what the warrant opens", r.Share.Object, r.Share.Epoch)
	}
	y, index, ok := d.state.Holder(r.Share.Object, r.Notary)
	if !ok {
		return fmt.Errorf("this notary holds no share of object %s in epoch %d", r.Share.Object.Short(), o.Machines.Epoch)
	}
	if r.Share.Index != index {
		return fmt.Errorf("share index %d, this notary holds %d", r.Share.Index, index)
	}
	for _, have := range d.state.Releases[key] {
		if have.Notary == r.Notary && have.Share.Object == r.Share.Object && have.Share.Epoch == r.Share.Epoch {
			return fmt.Errorf("notary %s has already released its share of epoch %d", y.Name, r.Share.Epoch)
		}
	}
	return nil
}

func contains(ds []Digest, d Digest) bool {
	for _, x := range ds {
		if x == d {
			return true
		}
	}
	return false
}
