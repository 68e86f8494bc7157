package authority

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/policy"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/display"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// clockSkew is how far a person's clock may run ahead of the fold's time.
const clockSkew = 300

func (d decision) request(r *signoff.Request) ([]change, error) {
	rule, err := d.state.Policy.Compiled.Rule(policy.Action(r.Action))
	if err != nil {
		return nil, err
	}
	now := d.state.Time
	if r.Expiry <= now {
		return nil, fmt.Errorf("expired at %d, it is %d", r.Expiry, now)
	}
	if limit := now + rule.Expiry + clockSkew; r.Expiry > limit {
		return nil, fmt.Errorf("expires at %d; the rule lets a request live %d s, until %d", r.Expiry, rule.Expiry, limit)
	}
	if r.Launch != nil && int64(r.Launch.Uses) > rule.Uses {
		return nil, fmt.Errorf("asks for %d uses, the rule allows %d", r.Launch.Uses, rule.Uses)
	}
	if err := d.saw(r.Seen); err != nil {
		return nil, err
	}
	if err := d.checkPart(r); err != nil {
		return nil, err
	}
	rec := &Request{ID: d.id, Doc: r, Index: d.index, Time: now}
	if r.Adopt != nil {
		if err := d.state.fewAdoptions(r.Requester); err != nil {
			return nil, err
		}
		if rec.Set, err = d.referenceSet(r.Adopt); err != nil {
			return nil, err
		}
	}
	rec.shown = shown{rule, d.state.displayDigest(rec, rule)}
	return []change{putRequest(rec)}, nil
}

func putRequest(r *Request) change {
	if r.Ended != "" {
		r.Set = nil // it is large, and in force or of no more use
	}
	return change{key: "request/" + r.ID.Hex(), value: r, touches: r.ID, put: func(s *State) { s.Requests[r.ID] = r }}
}

// checkPart checks what a request names against the state and the blobs.
func (d decision) checkPart(r *signoff.Request) error {
	if err := d.state.possible(r); err != nil {
		return err
	}
	switch {
	case r.Enrol != nil:
		keys, err := d.enrolment(r.Enrol)
		if err != nil {
			return err
		}
		return d.state.nodeKeysUnused(keys)
	case r.Policy != nil:
		_, err := compilePolicy(d.state.People, r.Policy.Policy)
		return err
	}
	return nil
}

// possible reports whether what the request names is there and in the
// condition it has to be in. It holds when the request is made and again when
// its warrant is: of two requests to the same end, one comes too late.
func (s *State) possible(r *signoff.Request) error {
	for _, o := range r.Objects() {
		if _, ok := s.lockboxReady(o); !ok {
			return fmt.Errorf("object %s is not in the log, or its shares are not dealt", o)
		}
	}
	switch {
	case r.Launch != nil:
		for _, n := range r.Launch.Pool {
			if !s.enrolled(n) {
				return fmt.Errorf("%s in the pool is not an enrolled node", n)
			}
			if err := s.VouchedFor(s.Nodes[n]); err != nil {
				return err
			}
		}
	case r.Enrol != nil:
		return s.enrollable(r.Enrol)
	case r.Retire != nil:
		if !s.enrolled(r.Retire.Node) {
			return fmt.Errorf("%s is not an enrolled node", r.Retire.Node)
		}
	case r.People != nil:
		_, err := s.changePeople(r.People)
		return err
	case r.Resume != nil:
		for _, h := range r.Resume.Halts {
			if halt, ok := s.Halts[h]; !ok || !halt.Lifted.IsZero() {
				return fmt.Errorf("%s is not a standing halt", h)
			}
		}
	case r.Adopt != nil:
		return s.adoptable(r.Adopt)
	case r.Withdraw != nil:
		return s.withdrawable(r.Withdraw.Sets)
	case r.EKRoots != nil:
		return s.changeableEKRoots(r.EKRoots)
	case r.Notaries != nil:
		return s.follows(r.Notaries)
	}
	return nil
}

// enrollable wants a new machine under a new name, or one that is enrolled, under
// its own name, in the place of the enrolment that it has now.
func (s *State) enrollable(e *signoff.Enrol) error {
	n, known := s.Nodes[e.Node]
	_, taken := s.NodeNamed(e.Name)
	switch {
	case known && n.Retired:
		return fmt.Errorf("node %s was enrolled before, as %q, and retired; a retired machine is out for good", e.Node, n.Name)
	case known && n.Name != e.Name:
		return fmt.Errorf("node %s was enrolled before, as %q, and keeps that name", e.Node, n.Name)
	case known && (e.Replaces != n.Enrolment || e.Enrolment == n.Enrolment):
		return fmt.Errorf("node %s was enrolled before, at entry %d; a new enrolment has new keys and says that it replaces %s", e.Node, n.Index, n.Enrolment)
	case !known && !e.Replaces.IsZero():
		return fmt.Errorf("replaces enrolment %s of a node that is not enrolled", e.Replaces)
	case !known && taken:
		return fmt.Errorf("a node was enrolled as %q before; give this one another name", e.Name)
	}
	return nil
}

// enrolled reports whether the node is enrolled and not retired.
func (s *State) enrolled(node Digest) bool {
	n, ok := s.Nodes[node]
	return ok && !n.Retired
}

func (d decision) approval(a *signoff.Approval) ([]change, error) {
	old, ok := d.state.Requests[a.Request]
	if !ok {
		return nil, fmt.Errorf("request %s is not in the log", a.Request)
	}
	if old.Ended != "" {
		return nil, fmt.Errorf("request %s has ended: %s", a.Request.Short(), old.Ended)
	}
	if a.Expiry <= d.state.Time {
		return nil, fmt.Errorf("expired at %d, it is %d", a.Expiry, d.state.Time)
	}
	if err := d.saw(a.Seen); err != nil {
		return nil, err
	}
	if a.Decision == signoff.Approve {
		if err := d.checkApprove(old, a); err != nil {
			return nil, err
		}
	}
	rec := *old
	vote := Vote{Approval: d.id, Signer: d.doc.Hint, Index: d.index, Time: d.state.Time, Doc: a}
	rec.Votes = append(slices.DeleteFunc(slices.Clone(old.Votes), func(v Vote) bool { return v.Doc.Person == a.Person }), vote)
	if a.Decision == signoff.Withdraw && a.Person == old.Doc.Requester {
		rec.Ended = "withdrawn by the requester"
	}
	return []change{putRequest(&rec)}, nil
}

// checkApprove checks what only a yes needs: stopping is always easier than
// starting, so a no counts under whichever rule and text it was signed.
func (d decision) checkApprove(r *Request, a *signoff.Approval) error {
	rule, err := d.state.Policy.Compiled.Rule(policy.Action(r.Doc.Action))
	if err != nil {
		return err
	}
	if want := d.state.RuleDigest(rule); a.Rule != want {
		return fmt.Errorf("made under rule %s, the rule in force is %s: look at the request again", a.Rule, want)
	}
	if text := d.state.displayDigest(r, rule); a.Display != text {
		return fmt.Errorf("signed the text %s, the request reads %s", a.Display, text)
	}
	// Whoever carries documents may hold an approval back and bring it after
	// its own withdrawal. A person who changes their mind again has seen the
	// log with their no in it.
	for _, v := range r.Votes {
		if v.Doc.Person == a.Person && v.Doc.Decision != signoff.Approve && a.Seen.Size <= v.Index {
			return fmt.Errorf("signed before the same person's %s at entry %d was seen: look at the request again", v.Doc.Decision, v.Index)
		}
	}
	return d.checkShares(r, a)
}

// RuleDigest is what an approval is bound to: the rule with its people, and
// the reference sets in force, by which nodes are judged.
func (s *State) RuleDigest(r *policy.Bound) Digest {
	rule := r.Digest()
	fields := [][]byte{rule[:]}
	for _, ref := range s.inForce {
		fields = append(fields, ref.ID[:])
	}
	return dsse.Sum("keyturn/rule/v1", fields...)
}

// Display is the text that approvers of the request are shown and sign.
func (s *State) Display(request Digest) (string, error) {
	r, ok := s.Requests[request]
	if !ok {
		return "", fmt.Errorf("request %s is not in the log", request)
	}
	rule, err := s.Policy.Compiled.Rule(policy.Action(r.Doc.Action))
	if err != nil {
		return "", err
	}
	return s.display(r, rule), nil
}

func (s *State) display(r *Request, rule *policy.Bound) string {
	in := display.Input{Charter: s.Charter, ID: s.ID, Request: r.Doc, Digest: r.ID, Rule: rule, People: map[Digest]*signoff.Person{}, Left: map[Digest]string{}, Shares: s.People.Threshold,
		Council: s.Council(), Term: s.Term().Number, Objects: map[Digest]*signoff.Object{}, Nodes: map[Digest]display.Node{}, Halts: map[Digest]*signoff.Halt{}}
	for _, id := range r.Doc.Objects() {
		if o, ok := s.Objects[id]; ok {
			in.Objects[id] = o.Doc
		}
	}
	person := func(id Digest) {
		if m, ok := s.Person(id); ok {
			in.People[id] = &m.Person
		} else if name := s.PersonName(id); name != "" {
			in.Left[id] = name
		}
	}
	person(r.Doc.Requester)
	named := func(id Digest) {
		if n, ok := s.Nodes[id]; ok {
			in.Nodes[id] = display.Node{Name: n.Name, Emulated: n.Keys.Emulated}
		}
	}
	for _, o := range in.Objects {
		if o.Claim.IsZero() {
			person(o.Sealer)
		} else {
			named(o.Sealer)
		}
	}
	switch {
	case r.Doc.Launch != nil:
		for _, id := range r.Doc.Launch.Pool {
			named(id)
		}
	case r.Doc.Retire != nil:
		named(r.Doc.Retire.Node)
	case r.Doc.People != nil:
		for _, id := range r.Doc.People.Remove {
			person(id)
		}
		for _, x := range r.Doc.People.Roles {
			person(x.Person)
		}
		for _, t := range r.Doc.People.Tokens {
			person(t.Person)
		}
	case r.Doc.Resume != nil:
		for _, id := range r.Doc.Resume.Halts {
			if h, ok := s.Halts[id]; ok {
				in.Halts[id] = h.Doc
				person(h.Doc.Person)
				named(h.Doc.Node)
			}
		}
	case r.Doc.EKRoots != nil:
		in.EKRoots = map[Digest]*x509.Certificate{}
		for _, id := range r.Doc.EKRoots.Remove {
			if root, ok := s.EKRoots[id]; ok {
				in.EKRoots[id] = root.Cert
			}
		}
	case r.Doc.Adopt != nil, r.Doc.Withdraw != nil:
		in.Set = s.setOf(r)
		for _, ref := range s.inForce {
			in.InForce = append(in.InForce, display.Reference{ID: ref.ID, Set: ref.Set})
		}
	}
	return display.Request(in)
}

// shown is the digest of a request's text under one rule. What else the text
// is written from stays as it is while the request is open, so the approvals of
// a request share the work; but for a request about reference sets, which shows
// those in force.
type shown struct {
	rule *policy.Bound
	text Digest
}

// displayDigest is what an approval of the request has to sign.
func (s *State) displayDigest(r *Request, rule *policy.Bound) Digest {
	if r.shown.rule == rule && r.Doc.Adopt == nil && r.Doc.Withdraw == nil {
		return r.shown.text
	}
	return sha256.Sum256([]byte(s.display(r, rule)))
}

// Recipients lists whom a person's shares must be sealed to: the export's
// recipient, or the storage key of every node of the pool.
func (s *State) Recipients(r *signoff.Request) []Digest {
	switch {
	case r.Export != nil:
		return []Digest{r.Export.RecipientKey.Fingerprint()}
	case r.Launch != nil:
		var out []Digest
		for _, n := range r.Launch.Pool {
			if node, ok := s.Nodes[n]; ok {
				out = append(out, node.StorageFingerprint())
			}
		}
		return out
	}
	return nil
}

// checkShares wants exactly one share of each object for each recipient, and
// none from a token that opens none. How many shares come together so is for the
// policy's compiler, which knows who holds none.
func (d decision) checkShares(r *Request, a *signoff.Approval) error {
	token := d.state.Tokens[d.doc.Hint]
	if !token.HoldsShare() {
		if n := len(a.Shares); n > 0 {
			return fmt.Errorf("%d shares by %s, whose token has no exchange key and was dealt none", n, token.Name)
		}
		return nil
	}
	type place struct{ object, recipient Digest }
	want := map[place]bool{}
	for _, o := range r.Doc.Objects() {
		for _, to := range d.state.Recipients(r.Doc) {
			want[place{o, to}] = true
		}
	}
	for _, sh := range a.Shares {
		p := place{sh.Object, sh.Recipient}
		if !want[p] {
			return fmt.Errorf("a share of object %s for %s, which the request does not name, or names once", sh.Object.Short(), sh.Recipient.Short())
		}
		held := d.state.Objects[sh.Object].People
		if sh.Index != token.Index || sh.Epoch != held.Epoch {
			return fmt.Errorf("a share with index %d of epoch %d, this person holds index %d of epoch %d", sh.Index, sh.Epoch, token.Index, held.Epoch)
		}
		if held.Holders[token.Exchange.Fingerprint()] != token.Index {
			return fmt.Errorf("no share of object %s was dealt to this token of %s; see keyturn weights redeal", sh.Object.Short(), token.Name)
		}
		delete(want, p)
	}
	if len(want) > 0 {
		return fmt.Errorf("%d shares are missing; an approval carries one for each object and recipient", len(want))
	}
	return nil
}

// Evaluate judges a request by the policy in force at the fold's time.
func (s *State) Evaluate(r *Request) (*policy.Bound, policy.Result, error) {
	rule, err := s.Policy.Compiled.Rule(policy.Action(r.Doc.Action))
	if err != nil {
		return rule, policy.Result{}, err
	}
	digest := s.RuleDigest(rule)
	var votes []policy.Vote
	for _, v := range r.Votes {
		if v.Doc.Decision == signoff.Approve && s.Stale(r, v, digest) != nil {
			continue
		}
		votes = append(votes, policy.Vote{Person: v.Doc.Person, Decision: policy.Decision(v.Doc.Decision), Time: v.Time, Expiry: v.Doc.Expiry})
	}
	req := policy.Request{Requester: r.Doc.Requester, Created: r.Time, Expiry: r.Doc.Expiry}
	return rule, rule.Evaluate(req, votes, s.Time), nil
}

// Stale says why an approval that stands in the log no longer counts. A no
// counts for good; a yes only under its own rule, from a token that its person
// still has, and with shares that fit those of the others.
func (s *State) Stale(r *Request, v Vote, rule Digest) error {
	if v.Doc.Rule != rule {
		return fmt.Errorf("made under rule %s, the rule in force is %s", v.Doc.Rule.Short(), rule.Short())
	}
	if !s.Counts(v.Signer, v.Doc.Person) {
		return fmt.Errorf("signed with key %s, which counts no longer", v.Signer.Short())
	}
	for _, sh := range v.Doc.Shares {
		if now := s.Objects[sh.Object].People.Epoch; sh.Epoch != now {
			return fmt.Errorf("carries a share of epoch %d, the shares of object %s were dealt anew in epoch %d", sh.Epoch, sh.Object.Short(), now)
		}
	}
	if l := r.Doc.Launch; l != nil {
		for _, id := range l.Pool {
			if n := s.Nodes[id]; n.Index > v.Index {
				return fmt.Errorf("signed before node %s was enrolled with other keys, at entry %d", n.Name, n.Index)
			}
		}
	}
	return nil
}

// settle looks again at the requests that the entry may have changed: those it
// touched, and all open ones when time, policy, people, notaries or reference
// sets moved.
func (s *State) settle(index uint64, changes []change) []change {
	look := map[Digest]bool{}
	for _, c := range changes {
		if !c.touches.IsZero() {
			look[c.touches] = true
		}
		if n, ok := c.value.(*Node); ok && n.Index == index { // enrolled just now, maybe again
			for id, r := range s.Requests {
				if r.Ended == "" && r.Doc.Launch != nil && contains(r.Doc.Launch.Pool, n.ID) {
					look[id] = true
				}
			}
		}
		if c.key == "tick" || c.key == "policy" || c.key == "people" || c.key == "term" || strings.HasPrefix(c.key, "reference/") {
			for id, r := range s.Requests {
				if r.Ended == "" {
					look[id] = true
				}
			}
		}
		if !c.shares.IsZero() {
			for id, r := range s.Requests {
				if r.Ended == "" && contains(r.Doc.Objects(), c.shares) {
					look[id] = true
				}
			}
		}
	}
	var out []change
	for _, id := range slices.SortedFunc(maps.Keys(look), compareDigests) {
		if r, changed := s.settled(s.Requests[id], index); changed {
			out = append(out, putRequest(r))
		}
	}
	return out
}

// settled returns the request as it stands now. A satisfaction stays as it is
// while policy, rule and the approvals it counted still count, so that all notaries derive the
// same warrant even while more approvals come in.
func (s *State) settled(r *Request, index uint64) (*Request, bool) {
	if r.Ended != "" {
		return r, false
	}
	rec := *r
	rule, res, err := s.Evaluate(r)
	_, here := s.Person(r.Doc.Requester)
	switch {
	case !here:
		rec.Ended, rec.Satisfied = "the requester has left", nil
	case err != nil:
		rec.Ended, rec.Satisfied = "no rule of the policy covers it any more", nil
	case res.Vetoed:
		rec.Ended, rec.Satisfied = "vetoed", nil
	case res.Expired:
		rec.Ended, rec.Satisfied = "expired", nil
	case r.Doc.Notaries != nil && r.Doc.Notaries.Term != s.Term().Number:
		rec.Ended, rec.Satisfied = "the term it was to end is over", nil
	case !res.Satisfied || !s.activated(r) || len(s.Unjoined(r)) > 0:
		rec.Satisfied = nil
	default:
		counted := approvalsOf(r, res.Counted)
		if r.Satisfied == nil || !subset(r.Satisfied.Approvals, counted) || r.Satisfied.Rule != s.RuleDigest(rule) || r.Satisfied.Policy != s.Policy.Digest {
			rec.Satisfied = &Satisfied{Index: index, Time: s.Time, Rule: s.RuleDigest(rule), Policy: s.Policy.Digest, Approvals: counted}
		}
	}
	return &rec, rec.Ended != r.Ended || rec.Satisfied != r.Satisfied
}

// activated reports whether an enrolment was activated by a quorum of
// notaries, and a change of people accepted by every new token. Other requests
// need neither.
func (s *State) activated(r *Request) bool {
	switch {
	case r.Doc.Enrol != nil:
		in := slices.DeleteFunc(slices.Clone(r.Activated), func(id Digest) bool { _, _, ok := s.Notary(id); return !ok })
		return len(in) >= s.Council().Quorum()
	case r.Doc.People != nil:
		return len(r.Activated) == len(r.Doc.People.NewTokens())
	}
	return true
}

func approvalsOf(r *Request, people [][32]byte) []Digest {
	var out []Digest
	for _, v := range r.Votes {
		if slices.Contains(people, [32]byte(v.Doc.Person)) {
			out = append(out, v.Approval)
		}
	}
	return out
}

func subset(a, b []Digest) bool {
	for _, d := range a {
		if !slices.Contains(b, d) {
			return false
		}
	}
	return true
}
