package authority

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/signoff"
)

func putNode(n *Node) change {
	return change{key: "node/" + n.ID.Hex(), value: n, put: func(s *State) { s.Nodes[n.ID] = n }}
}

// enrolNode puts a node that was not there.
func enrolNode(n *Node) (change, error) {
	keys, err := nodeKeyIDs(n.Keys)
	if err != nil {
		return change{}, err
	}
	c := putNode(n)
	c.put = func(s *State) {
		s.Nodes[n.ID], s.named[n.Name] = n, n.ID
		for _, k := range keys {
			s.nodeKeys[k] = n.ID
		}
	}
	return c, nil
}

func putClaim(c *Claim) change {
	return change{key: "claim/" + c.ID.Hex(), value: c, put: func(s *State) { s.Claims[c.ID], s.fresh[c.FreshFingerprint()] = c, c.ID }}
}

// FreshFingerprint names the key made for this use.
func (c *Claim) FreshFingerprint() Digest { return sha256.Sum256(c.Fresh) }

func (d decision) activation(a *signoff.Activation) ([]change, error) {
	old, ok := d.state.Requests[a.Request]
	if !ok || old.Doc.Enrol == nil || old.Ended != "" {
		return nil, fmt.Errorf("%s is not an open enrolment", a.Request)
	}
	if a.Node != old.Doc.Enrol.Node || a.Enrolment != old.Doc.Enrol.Enrolment {
		return nil, errors.New("activates another node or enrolment than was asked")
	}
	if slices.Contains(old.Activated, a.Notary) {
		return nil, errors.New("this notary has already activated it")
	}
	r := *old
	r.Activated = append(slices.Clone(old.Activated), a.Notary)
	return []change{putRequest(&r)}, nil
}

// claim takes one use. Uses are numbered without gaps over the whole pool, so
// two claims for the same use cannot both take effect.
func (d decision) claim(c *signoff.Claim) ([]change, error) {
	s := d.state
	w, r, err := s.Live(c.Warrant, c.Node)
	if err != nil {
		return nil, err
	}
	if r.Doc.Launch == nil || !contains(r.Doc.Launch.Pool, c.Node) {
		return nil, fmt.Errorf("node %s is not in the pool of warrant %s", c.Node, c.Warrant)
	}
	if w.Used >= w.Doc.Uses {
		return nil, fmt.Errorf("warrant %s has no use left of %d", c.Warrant, w.Doc.Uses)
	}
	if c.Use != w.Used+1 {
		return nil, fmt.Errorf("claims use %d of warrant %s, the next is %d of %d", c.Use, c.Warrant, w.Used+1, w.Doc.Uses)
	}
	if err := s.leased(c.Node); err != nil {
		return nil, err
	}
	fresh, past, err := d.claimEvidence(c, r)
	if err != nil {
		return nil, err
	}
	used, node := *w, *s.Nodes[c.Node]
	used.Used++
	node.Claimed, node.Past = d.index, past
	rec := &Claim{ID: d.id, Doc: c, Index: d.index, Fresh: fresh}
	return []change{putWarrant(&used), putNode(&node), putClaim(rec)}, nil
}

// leased wants a passing verdict in the epoch in force, and that epoch not
// older than a lease: when epochs stop coming, starts stop too.
func (s *State) leased(node Digest) error {
	l, _, ok := s.Epoch.Lease(node)
	if !ok {
		return fmt.Errorf("node %s has no lease in the epoch in force", node)
	}
	if l.Verdict != VerdictPass {
		return fmt.Errorf("node %s has no lease: %s", node, l.Reason)
	}
	if age := s.Time - s.Epoch.Time; age >= l.Duration {
		return fmt.Errorf("node %s's lease of %d s ended: the epoch in force is %d s old", node, l.Duration, age)
	}
	return nil
}

func (d decision) receipt(r *signoff.Receipt) ([]change, error) {
	w, ok := d.state.Warrants[r.Warrant]
	if !ok {
		return nil, fmt.Errorf("warrant %s is not in the log", r.Warrant)
	}
	if r.Event == signoff.EventExported {
		req := d.state.Requests[w.Doc.Request]
		if req.Doc.Export == nil || req.Doc.Requester != r.Signer {
			return nil, errors.New("an export's receipt is the requester's to sign")
		}
		done := *w
		done.Exported = true
		return []change{putWarrant(&done)}, nil
	}
	old, ok := d.state.Claims[r.Claim]
	if !ok || old.Doc.Warrant != r.Warrant || old.Doc.Node != r.Signer {
		return nil, fmt.Errorf("%s is not a claim of this node under this warrant", r.Claim)
	}
	if old.Ended != "" {
		return nil, fmt.Errorf("claim %s has ended", r.Claim)
	}
	c := *old
	if r.Event == signoff.EventStarted {
		if old.Started {
			return nil, fmt.Errorf("claim %s has started", r.Claim)
		}
		c.Started = true
	} else {
		c.Ended = r.Detail
	}
	return []change{putClaim(&c)}, nil
}
