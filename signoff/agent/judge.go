package agent

import (
	"crypto"
	"errors"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// A plan is what the log says of one use that may be taken now. It holds
// records of the state, which are replaced and never changed.
type plan struct {
	warrant *authority.Warrant
	request *authority.Request
	launch  *signoff.Launch
	objects []*authority.Object
	sealers map[Digest]crypto.PublicKey // by object
	people  map[Digest][]sealedShare    // by object
	use     int
	resume  *authority.Object // snapshot to open as well, one of objects; or nil
}

// A wish is what somebody asks the agent to start.
type wish struct{ warrant, executable, resume Digest }

// A sealedShare is a share on its way here, with the context that the log gives.
type sealedShare struct {
	where  lockbox.ReleaseContext
	sealed []byte
}

// errNotYet means that the next epoch may bring what is missing.
var errNotYet = errors.New("not yet")

// judge says what a use of the warrant would be, or why there can be none. It
// relies on nothing but the agent's own fold of the final log; a lease that is
// only late gives errNotYet. The caller holds mu.
func (a *Agent) judge(s *authority.State, ask wish) (*plan, error) {
	warrant := ask.warrant
	if !a.enrolled {
		return nil, errors.New("agent: this node is not enrolled")
	}
	w, r, err := s.Live(warrant, a.id)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	p := &plan{warrant: w, request: r, launch: r.Doc.Launch, use: w.Used + 1}
	switch {
	case p.launch == nil:
		return nil, fmt.Errorf("agent: warrant %s is for a %s, not for a launch", warrant.Short(), r.Doc.Action)
	case !slices.Contains(p.launch.Pool, a.id):
		return nil, fmt.Errorf("agent: this node is not in the pool of warrant %s", warrant.Short())
	case w.Used >= w.Doc.Uses:
		return nil, fmt.Errorf("agent: all %d uses of warrant %s are taken", w.Doc.Uses, warrant.Short())
	case ask.executable != p.launch.Executable:
		return nil, fmt.Errorf("agent: the executable given has digest %s, people approved %s", ask.executable, p.launch.Executable)
	case p.launch.Output > 0 && a.cfg.Snapshots == "":
		return nil, errors.New("agent: the launch has an output, and this node has no place for snapshots; name a directory under snapshots in the agent's configuration")
	}
	if err := a.halted(s, r.ID); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if err := p.gather(s, a.id); err != nil {
		return nil, fmt.Errorf("agent: warrant %s: %w", warrant.Short(), err)
	}
	if !ask.resume.IsZero() {
		if err := p.resumeFrom(s, ask.resume); err != nil {
			return nil, fmt.Errorf("agent: %w", err)
		}
	}
	if err := a.mayStart(s, warrant); err != nil {
		if a.proving.no {
			return nil, fmt.Errorf("agent: %w", err)
		}
		return nil, fmt.Errorf("agent: %w: %w", errNotYet, err)
	}
	return p, nil
}

// gather collects the shares that the counted approvals carry to this node.
// Each counted approval by a person who holds shares must have one for each
// object: the notaries' word that people approved is not enough.
func (p *plan) gather(s *authority.State, node Digest) error {
	p.people, p.sealers = map[Digest][]sealedShare{}, map[Digest]crypto.PublicKey{}
	to := s.Nodes[node].StorageFingerprint()
	for _, id := range p.launch.Objects {
		o, ok := s.Objects[id]
		if !ok {
			return fmt.Errorf("object %s is not in the log", id)
		}
		if err := p.add(s, o); err != nil {
			return err
		}
	}
	people := map[Digest]bool{}
	for _, id := range p.warrant.Doc.Approvals {
		i := slices.IndexFunc(p.request.Votes, func(v authority.Vote) bool { return v.Approval == id })
		if i < 0 {
			return fmt.Errorf("approval %s, which it counts, does not stand in the log", id)
		}
		vote := p.request.Votes[i]
		doc := vote.Doc
		if doc.Decision != signoff.Approve || people[doc.Person] {
			return fmt.Errorf("document %s, which it counts, is no approval of one more person", id)
		}
		people[doc.Person] = true
		if err := p.take(s, vote, to); err != nil {
			return err
		}
	}
	// What was approved before people asked for more shares opens with as many as
	// its objects' shares take.
	for _, o := range p.objects {
		if t := max(s.Charter.Threshold, o.People.Threshold()); len(people) < t {
			return fmt.Errorf("it counts %d people, object %s takes %d", len(people), o.ID.Short(), t)
		}
	}
	return nil
}

// add puts an object and its sealer's key to what the use opens.
func (p *plan) add(s *authority.State, o *authority.Object) error {
	if !o.Doc.Claim.IsZero() { // the fold saw that the claim's node signed
		p.objects, p.sealers[o.ID] = append(p.objects, o), s.Nodes[o.Doc.Sealer].Keys.SignKey
		return nil
	}
	sealer, ok := s.Tokens[o.Signer]
	if !ok {
		return fmt.Errorf("object %s was sealed with key %s, which is nobody's", o.ID, o.Signer)
	}
	pub, err := sealer.Signing.Public()
	p.objects, p.sealers[o.ID] = append(p.objects, o), pub
	return err
}

// resumeFrom adds a snapshot of the same warrant. Its people's shares were
// sealed to this node when it was made; find reads them.
func (p *plan) resumeFrom(s *authority.State, snapshot Digest) error {
	if err := s.Resumable(snapshot, p.warrant.ID); err != nil {
		return err
	}
	p.resume = s.Objects[snapshot]
	return p.add(s, p.resume)
}

// take finds one approval's shares for this node.
func (p *plan) take(s *authority.State, vote authority.Vote, to Digest) error {
	doc := vote.Doc
	token, ok := s.Tokens[vote.Signer]
	if !ok || token.Person != doc.Person {
		return fmt.Errorf("approval %s is signed with key %s, which is none of %s", vote.Approval, vote.Signer, doc.Person)
	}
	if !token.HoldsShare() {
		return nil // it only signs; the others' shares must be enough
	}
	for _, o := range p.objects {
		i := slices.IndexFunc(doc.Shares, func(sh signoff.Share) bool { return sh.Object == o.ID && sh.Recipient == to })
		if i < 0 {
			return fmt.Errorf("%s's approval carries no share of object %s for this node", token.Name, o.ID.Short())
		}
		sh := doc.Shares[i]
		p.people[o.ID] = append(p.people[o.ID], sealedShare{lockbox.ReleaseContext{
			Context: lockbox.Context{Charter: s.ID, Object: o.ID, Side: lockbox.People, Epoch: sh.Epoch, Index: token.Index, Holder: token.Exchange.Fingerprint()},
			Request: p.request.ID, Recipient: to,
		}, sh.Sealed})
	}
	return nil
}

// released collects the notaries' shares that answer a claim. The fold saw that
// each was of the notary and the epoch then in force.
func (p *plan) released(s *authority.State, claim, fresh Digest) map[Digest][]sealedShare {
	out := map[Digest][]sealedShare{}
	for _, r := range s.Releases[claim] {
		n, ok := s.AnyNotary(r.Notary)
		if !ok || r.Share.Recipient != fresh {
			continue
		}
		out[r.Share.Object] = append(out[r.Share.Object], sealedShare{lockbox.ReleaseContext{
			Context: lockbox.Context{Charter: s.ID, Object: r.Share.Object, Side: lockbox.Machines, Epoch: r.Share.Epoch, Index: r.Share.Index, Holder: n.Exchange.Fingerprint()},
			Request: p.request.ID, Recipient: fresh,
		}, r.Share.Sealed})
	}
	return out
}
