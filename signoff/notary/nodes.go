package notary

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// An enrolSession is this notary's challenge to one node. The secret lives in
// memory; after a restart there is a new challenge.
type enrolSession struct {
	secret [32]byte
	sent   time.Time
	box    *api.Reader
}

// challengeAgain is how long an unanswered challenge stands.
const challengeAgain = 10 * time.Second

// planActivation challenges the node of each open enrolment, and vouches for
// it once the secret came back.
func (n *Notary) planActivation(l look) (func(context.Context) error, error) {
	for id, r := range l.state.Requests {
		if r.Doc.Enrol == nil || r.Ended != "" || !l.isFinal(r.Index) || slices.Contains(r.Activated, n.id) {
			delete(n.enrols, id)
			continue
		}
		s := n.enrols[id]
		if s == nil {
			s = &enrolSession{box: api.NewReader(api.TopicEnrol(id))}
			n.enrols[id] = s
		}
		// A copy: what follows runs without the lock on the state, and
		// needs of it only the charter and the time.
		enrol, state := r.Doc.Enrol, *l.state
		return func(ctx context.Context) error { return n.activate(ctx, s, id, enrol, &state) }, nil
	}
	return nil, nil
}

func (n *Notary) activate(ctx context.Context, s *enrolSession, request Digest, e *signoff.Enrol, state *authority.State) error {
	if time.Since(s.sent) > challengeAgain {
		return n.challenge(ctx, s, request, e, state)
	}
	msgs, err := s.box.Receive(ctx, n.cfg.Client, 0)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		var a signoff.Answer
		if dsse.Decode(m, &a) != nil || a.Request != request || a.Notary != n.id {
			continue
		}
		if subtle.ConstantTimeCompare(a.Secret, s.secret[:]) != 1 {
			n.cfg.Log.Warn("a node answered a challenge wrongly", "request", request, "node", e.Node)
			continue
		}
		return n.append(ctx, &signoff.Activation{Charter: n.cfg.Charter, Notary: n.id, Request: request, Node: e.Node, Enrolment: e.Enrolment})
	}
	return nil
}

func (n *Notary) challenge(ctx context.Context, s *enrolSession, request Digest, e *signoff.Enrol, state *authority.State) error {
	blob, err := n.cfg.Client.Blob(ctx, e.Enrolment)
	if err != nil {
		return err
	}
	node, err := state.VerifyEnrolment(e, blob)
	if err != nil {
		return err
	}
	enrolment, err := attest.ParseEnrolment(blob)
	if err != nil {
		return err
	}
	if _, err := rand.Read(s.secret[:]); err != nil {
		return err
	}
	credential, secret, err := attest.ChallengeFor(rand.Reader, enrolment, node, s.secret)
	if err != nil {
		return err
	}
	doc, err := signoff.Sign(ctx, n.cfg.Signing, &signoff.Challenge{Charter: n.cfg.Charter, Notary: n.id, Request: request, Credential: credential, Secret: secret})
	if err != nil {
		return err
	}
	s.sent = time.Now()
	return n.cfg.Client.Send(ctx, s.box.Topic(), doc.Line())
}

// planEpoch proposes the next epoch. The notaries take turns; each waits a
// little longer than the one before it, so that a silent one is passed over.
func (n *Notary) planEpoch(l look) (func(context.Context) error, error) {
	s := l.state
	if !l.onTime() || !hasNodes(s) {
		return nil, nil
	}
	number, since := uint64(1), l.now.Unix()
	if s.Epoch != nil {
		number = s.Epoch.Number + 1
		if !l.isFinal(s.Epoch.Index) {
			return nil, nil
		}
	}
	members := uint64(len(s.Charter.Notaries))
	rank := (uint64(n.index) - 1 + members - number%members) % members
	if n.epochSeen != number {
		n.epochSeen, n.epochSince = number, since
		if number == 1 {
			n.epochSince = 0
		}
	}
	if since-n.epochSince < s.Policy.Compiled.Leases().Epoch+int64(2*rank) {
		return nil, nil
	}
	return func(ctx context.Context) error { return n.proposeEpoch(ctx) }, nil
}

func hasNodes(s *authority.State) bool {
	for _, n := range s.Nodes {
		if !n.Retired {
			return true
		}
	}
	return false
}

// Bounds of what a notary looks at for one epoch: pieces of evidence, and reads
// of the mailbox, which someone may be filling meanwhile.
const (
	maxOffers     = 4 * signoff.MaxEvidence
	maxOfferReads = 100
)

// An offer is one node's evidence that this notary may put forward.
type offer struct {
	digest    Digest
	blob      []byte
	presented *authority.Presented
	passes    bool
}

// proposeEpoch gathers the newest evidence of each node and appends the
// leases that the fold derives from it.
func (n *Notary) proposeEpoch(ctx context.Context) error {
	offered, err := n.newOffers(ctx)
	if err != nil {
		return err
	}
	for _, d := range offered {
		if err := n.weigh(ctx, d); err != nil {
			return err
		}
	}
	doc, err := n.deriveEpoch()
	if err != nil {
		return err
	}
	return n.append(ctx, doc)
}

// newOffers empties the evidence topic: the newest digests, each once.
func (n *Notary) newOffers(ctx context.Context) ([]Digest, error) {
	if n.evidence == nil {
		n.evidence = api.NewReader(api.TopicEvidence)
	}
	var out []Digest
	for range maxOfferReads {
		msgs, err := n.evidence.Receive(ctx, n.cfg.Client, 0)
		if err != nil {
			return nil, err
		}
		if len(msgs) == 0 {
			break
		}
		for _, m := range msgs {
			if d, err := dsse.ParseDigest(string(m)); err == nil && !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
		out = out[max(0, len(out)-maxOffers):]
	}
	return out, nil
}

// weigh looks at one piece of evidence and keeps it if it is the best that its
// node has: the newest that passes, or else the newest. Anybody can put
// evidence forward in a node's name. It must not be able to put the node out,
// and costs a look and no memory.
func (n *Notary) weigh(ctx context.Context, d Digest) error {
	blob, err := n.cfg.Client.Blob(ctx, d)
	if err != nil {
		return nil // the agent that meant it sends again
	}
	p, err := authority.ParsePresented(blob)
	if err != nil {
		return nil
	}
	return n.view(func(l look) error {
		node := Digest(p.Evidence.Node)
		if have, ok := l.state.Nodes[node]; !ok || have.Retired {
			return nil
		}
		passes := l.auth.WouldPass(p)
		if passes || n.offers[node] == nil || !n.offers[node].passes {
			n.offers[node] = &offer{d, blob, p, passes}
		}
		return nil
	})
}

// deriveEpoch puts forward what it kept and computes the root on the state as
// it is.
func (n *Notary) deriveEpoch() (*signoff.Epoch, error) {
	var doc *signoff.Epoch
	err := n.view(func(l look) error {
		s := l.state
		doc = &signoff.Epoch{Charter: s.ID, Notary: n.id, Number: 1, Policy: s.Policy.Digest}
		if s.Epoch != nil {
			doc.Number, doc.Previous = s.Epoch.Number+1, s.Epoch.Root
		}
		blobs := n.settleOffers(l)
		doc.Evidence = slices.SortedFunc(maps.Keys(blobs), func(a, b Digest) int { return slices.Compare(a[:], b[:]) })
		leases, err := l.auth.Leases(doc.Evidence, blobs)
		if err != nil {
			return err
		}
		if len(leases) == 0 {
			return errors.New("notary: no node to give a lease")
		}
		doc.Root, err = authority.LeaseRoot(leases)
		return err
	})
	return doc, err
}

// settleOffers returns what to put forward now. Evidence that passed in an
// epoch before is no evidence for this one, and what does not pass is put
// forward once, for its reason.
func (n *Notary) settleOffers(l look) known {
	out := known{}
	for node, o := range n.offers {
		passes := l.auth.WouldPass(o.presented)
		if (passes || !o.passes) && len(out) < signoff.MaxEvidence {
			out[o.digest] = o.blob
		}
		if !passes {
			delete(n.offers, node)
		}
	}
	return out
}

// known serves blobs that were fetched before the state was locked.
type known map[Digest][]byte

func (k known) Blob(d Digest) ([]byte, error) {
	b, ok := k[d]
	if !ok || Digest(sha256.Sum256(b)) != d {
		return nil, authority.ErrMissingBlob
	}
	return b, nil
}
