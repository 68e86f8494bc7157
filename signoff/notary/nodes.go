package notary

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
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
			// An older challenge's, if the agent started late, or a stranger's: the mailbox is open.
			n.cfg.Log.Info("passed over an answer that is not to this notary's last challenge", "request", request, "node", e.Node)
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
	doc, err := n.sign(ctx, &signoff.Challenge{Charter: n.cfg.Charter, Notary: n.id, Request: request, Credential: credential, Secret: secret})
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
	if !l.onTime() || !hasNodes(s) || !s.MayPropose(n.id) {
		return nil, nil
	}
	number, since := uint64(1), l.now.Unix()
	if s.Epoch != nil {
		number = s.Epoch.Number + 1
		if !l.isFinal(s.Epoch.Index) {
			return nil, nil
		}
	}
	members := uint64(len(s.Council().Notaries))
	rank := (uint64(l.index) - 1 + members - number%members) % members
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

// Bounds of what a notary looks at for one epoch: pieces of evidence, reads of
// the mailbox, which someone may be filling meanwhile, and blobs fetched at a time.
const (
	maxOffers     = 4 * signoff.MaxEvidence
	maxOfferReads = 1000
	fetchers      = 16
)

// An offer is one node's evidence that this notary may put forward.
type offer struct {
	digest Digest
	blob   []byte
	passes bool
}

// proposeEpoch gathers the newest evidence of each node and appends the
// leases that the fold derives from it.
func (n *Notary) proposeEpoch(ctx context.Context) error {
	offered, err := n.newOffers(ctx)
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(offered, 1024) {
		if err := n.weigh(ctx, batch); err != nil {
			return err
		}
	}
	doc, set, err := n.deriveEpoch(ctx)
	if err != nil {
		return err
	}
	if len(set) > 0 {
		if _, err := n.cfg.Client.PutBlob(ctx, set); err != nil {
			return err
		}
	}
	return n.append(ctx, doc)
}

// newOffers empties the evidence topic: the newest digests, each once.
func (n *Notary) newOffers(ctx context.Context) ([]Digest, error) {
	if n.evidence == nil {
		n.evidence = api.NewReader(api.TopicEvidence)
	}
	var out []Digest
	there := map[Digest]bool{}
	for range maxOfferReads {
		msgs, err := n.evidence.Receive(ctx, n.cfg.Client, 0)
		if err != nil {
			return nil, err
		}
		if len(msgs) == 0 {
			break
		}
		for _, m := range msgs {
			if d, err := dsse.ParseDigest(string(m)); err == nil && !there[d] {
				there[d] = true
				out = append(out, d)
			}
		}
		for len(out) > maxOffers {
			delete(there, out[0])
			out = out[1:]
		}
	}
	return out, nil
}

// weigh looks at pieces of evidence and keeps of each node the best: the newest
// that passes, or else the newest that its TPM signed. Anybody can put evidence
// forward in a node's name. It must not be able to put the node out, and costs a
// look and no memory.
func (n *Notary) weigh(ctx context.Context, digests []Digest) error {
	blobs := n.fetch(ctx, digests)
	return n.view(func(l look) error {
		for i, w := range l.auth.Weigh(blobs, n.logs(ctx)) {
			if have := n.offers[w.Node]; w.Proved && (w.Passed || have == nil || !have.passes) {
				n.offers[w.Node] = &offer{digests[i], blobs[i], w.Passed}
			}
		}
		return nil
	})
}

// fetch looks evidence up; what is not to be had, or is longer than evidence is, is
// nil: the agent that meant it sends again. Anybody names these blobs, and a batch of
// them is in memory at once.
func (n *Notary) fetch(ctx context.Context, digests []Digest) [][]byte {
	blobs := make([][]byte, len(digests))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(fetchers, len(digests)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(digests)); i = next.Add(1) - 1 {
				if blob, err := n.cfg.Client.BlobWithin(ctx, digests[i], authority.MaxPresented); err == nil {
					blobs[i] = blob
				}
			}
		})
	}
	wg.Wait()
	return blobs
}

// deriveEpoch puts forward what it kept and computes the root on the state as
// it is. It returns the evidence set as well, empty for none.
func (n *Notary) deriveEpoch(ctx context.Context) (doc *signoff.Epoch, set []byte, err error) {
	err = n.view(func(l look) error {
		s := l.state
		doc = &signoff.Epoch{Charter: s.ID, Notary: n.id, Number: 1, Policy: s.Policy.Digest}
		if s.Epoch != nil {
			doc.Number, doc.Previous = s.Epoch.Number+1, s.Epoch.Root
		}
		n.dropStale(l)
		leases, err := n.leases(ctx, l, doc, &set)
		if err == nil && n.dropLapsed(leases) {
			leases, err = n.leases(ctx, l, doc, &set)
		}
		if err != nil {
			return err
		}
		if len(leases) == 0 {
			return errors.New("notary: no node to give a lease")
		}
		doc.Root, err = authority.LeaseRoot(leases)
		return err
	})
	return doc, set, err
}

// leases names the evidence kept in the epoch and computes what follows from it.
func (n *Notary) leases(ctx context.Context, l look, doc *signoff.Epoch, set *[]byte) ([]authority.Lease, error) {
	blobs := kept{known: map[Digest][]byte{}, rest: n.logs(ctx)}
	var evidence []Digest
	for _, o := range n.offers {
		if len(evidence) < signoff.MaxEvidence {
			evidence = append(evidence, o.digest)
			blobs.known[o.digest] = o.blob
		}
	}
	*set, doc.Evidence = signoff.EncodeEvidenceSet(evidence), Digest{}
	if len(*set) > 0 {
		doc.Evidence = sha256.Sum256(*set)
		blobs.known[doc.Evidence] = *set
	}
	return l.auth.Leases(doc.Evidence, blobs)
}

// dropStale forgets evidence that answers no checkpoint of this epoch.
func (n *Notary) dropStale(l look) {
	for node, o := range n.offers {
		if p, err := authority.ParsePresented(o.blob); err != nil || !l.auth.Answers(p) {
			delete(n.offers, node)
		}
	}
}

// dropLapsed forgets evidence that passed when it came and does not now, and
// reports whether there was any: it was good, and to leave it out costs the node
// less than to show it. What never passed is put forward, for its reason.
func (n *Notary) dropLapsed(leases []authority.Lease) bool {
	dropped := false
	for _, l := range leases {
		if o := n.offers[l.Node]; o != nil && o.passes && l.Verdict != authority.VerdictPass {
			delete(n.offers, l.Node)
			dropped = true
		}
	}
	return dropped
}

// logs looks up the logs that evidence names.
func (n *Notary) logs(ctx context.Context) authority.Blobs { return n.follower.Blobs(ctx) }

// kept serves blobs that were fetched before, and looks the rest up.
type kept struct {
	known map[Digest][]byte
	rest  authority.Blobs
}

func (k kept) Blob(d Digest) ([]byte, error) {
	if b, ok := k.known[d]; ok {
		return b, nil
	}
	return k.rest.Blob(d)
}
