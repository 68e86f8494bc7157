package notary

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
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

// maxEvidenceKept bounds what is remembered of the evidence topic.
const maxEvidenceKept = 4 * signoff.MaxEvidence

// proposeEpoch gathers the newest evidence of each node and appends the
// leases that the fold derives from it.
func (n *Notary) proposeEpoch(ctx context.Context) error {
	if n.evidence == nil {
		n.evidence = api.NewReader(api.TopicEvidence)
	}
	msgs, err := n.evidence.Receive(ctx, n.cfg.Client, 0)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		if d, err := dsse.ParseDigest(string(m)); err == nil {
			n.offered = append(n.offered, d)
		}
	}
	if len(n.offered) > maxEvidenceKept {
		n.offered = n.offered[len(n.offered)-maxEvidenceKept:]
	}
	blobs := map[Digest][]byte{}
	for _, d := range n.offered {
		if b, err := n.cfg.Client.Blob(ctx, d); err == nil {
			blobs[d] = b
		}
	}
	doc, err := n.deriveEpoch(ctx, blobs)
	if err != nil || doc == nil {
		return err
	}
	return n.append(ctx, doc)
}

// deriveEpoch chooses evidence and computes the root on the state as it is.
func (n *Notary) deriveEpoch(ctx context.Context, blobs map[Digest][]byte) (*signoff.Epoch, error) {
	var doc *signoff.Epoch
	err := n.view(func(l look) error {
		s := l.state
		doc = &signoff.Epoch{Charter: s.ID, Notary: n.id, Number: 1, Policy: s.Policy.Digest}
		if s.Epoch != nil {
			doc.Number, doc.Previous = s.Epoch.Number+1, s.Epoch.Root
		}
		doc.Evidence = n.choose(l, blobs)
		leases, err := l.auth.Leases(doc.Evidence, known(blobs))
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

// choose takes, for each node, the newest evidence that passes, or else the
// newest that does not. Anybody can put evidence forward in a node's name; it
// must not be able to put the node out.
func (n *Notary) choose(l look, blobs map[Digest][]byte) []Digest {
	best := map[Digest]Digest{}
	passes := map[Digest]bool{}
	for _, d := range n.offered {
		b, ok := blobs[d]
		if !ok {
			continue
		}
		p, err := authority.ParsePresented(b)
		if err != nil {
			continue
		}
		node := Digest(p.Evidence.Node)
		if _, enrolled := l.state.Nodes[node]; !enrolled {
			continue
		}
		pass := l.auth.WouldPass(p)
		if pass || !passes[node] {
			best[node], passes[node] = d, pass
		}
	}
	var out []Digest
	for _, d := range best {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b Digest) int { return slices.Compare(a[:], b[:]) })
	if len(out) > signoff.MaxEvidence {
		out = out[:signoff.MaxEvidence]
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
