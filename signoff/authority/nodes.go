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

// holdsShares refuses a node that was enrolled anew after people approved: what they
// sealed is for a key that it no longer has.
func (s *State) holdsShares(n *Node, w *Warrant) error {
	if n.Index > w.Doc.Index {
		return fmt.Errorf("node %s was enrolled with other keys at entry %d, after warrant %s was approved; ask for a new launch", n.Name, n.Index, w.ID.Short())
	}
	return nil
}

// enrolNode puts a node that was not there, or that is there with other keys.
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
	if err := s.holdsShares(s.Nodes[c.Node], w); err != nil {
		return nil, err
	}
	if err := s.VouchedFor(s.Nodes[c.Node]); err != nil {
		return nil, err
	}
	if w.Used >= w.Doc.Uses {
		return nil, fmt.Errorf("warrant %s has no use left of %d", c.Warrant, w.Doc.Uses)
	}
	if c.Use != w.Used+1 {
		return nil, fmt.Errorf("claims use %d of warrant %s, the next is %d of %d", c.Use, c.Warrant, w.Used+1, w.Doc.Uses)
	}
	if err := d.doubted(); err != nil {
		return nil, err
	}
	if err := s.leased(c.Node); err != nil && !d.authority.takesWord() {
		return nil, err
	}
	if !c.Resume.IsZero() {
		if err := s.Resumable(c.Resume, w.ID); err != nil {
			return nil, err
		}
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

// makes reports whether a snapshot may be what its claim's run made: sealed by
// that claim's node, before the use ended, in a launch that has an output.
func (s *State) makes(o *signoff.Object) error {
	c, ok := s.Claims[o.Claim]
	switch {
	case !ok:
		return fmt.Errorf("claim %s is not in the log", o.Claim)
	case c.Doc.Node != o.Sealer:
		return fmt.Errorf("sealed by %s, claim %s is of node %s", o.Sealer, o.Claim, c.Doc.Node)
	case c.Ended != "":
		return fmt.Errorf("claim %s has ended: %s", o.Claim, c.Ended)
	case s.Requests[s.Warrants[c.Doc.Warrant].Doc.Request].Doc.Launch.Output == 0:
		return fmt.Errorf("the launch of claim %s has no output", o.Claim)
	case c.Kept >= signoff.MaxSnapshots:
		return fmt.Errorf("claim %s has %d snapshots, no more are kept of one use", o.Claim, c.Kept)
	}
	return nil
}

// Resumable wants a snapshot that an earlier use of the same warrant made:
// people agreed to that run, and to no other with these weights.
func (s *State) Resumable(object, warrant Digest) error {
	o, ok := s.lockboxReady(object)
	if !ok {
		return fmt.Errorf("snapshot %s is not in the log, or its shares are not dealt", object)
	}
	if c, ok := s.Claims[o.Doc.Claim]; !ok || c.Doc.Warrant != warrant {
		return fmt.Errorf("object %s is no snapshot of a run under warrant %s; ask for a launch that names it", object, warrant)
	}
	return nil
}

// Opens lists what a use opens: the request's objects, and the snapshot that it
// resumes from.
func (s *State) Opens(c *Claim) []Digest {
	out := s.Requests[s.Warrants[c.Doc.Warrant].Doc.Request].Doc.Objects()
	if c.Doc.Resume.IsZero() {
		return out
	}
	return append(slices.Clone(out), c.Doc.Resume)
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
	if n := s.Nodes[node]; n.Index > s.Epoch.Index {
		return fmt.Errorf("node %s has no lease: it was enrolled with other keys after the epoch in force", n.Name)
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
