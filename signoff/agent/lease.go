package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/tpm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// proving is what the agent knows of its lease. Guarded by Agent.mu.
type proving struct {
	sent  map[string]sending // by the agent's nonce
	order []string           // of the nonces, oldest first
	last  time.Duration      // when evidence was sent last
	again bool               // the mailbox may have lost it since
	epoch uint64             // looked at last
	leaf  authority.Lease    // of that epoch
	lease authority.Lease    // the last one that passed; zero before
	until time.Duration      // on CLOCK_BOOTTIME; 0: no lease
	lost  string             // why there is none
	no    bool               // an epoch refused it; waiting alone changes nothing
}

// A sending is one nonce that this agent made: when, and for which epoch.
type sending struct {
	at    time.Duration // CLOCK_BOOTTIME, before the nonce left
	epoch uint64
}

// maxSent bounds the nonces remembered; a lease on an older one has ended.
const maxSent = 64

// current returns why there is no lease now, or nil.
func (p *proving) current() error {
	now, err := boottime()
	switch {
	case err != nil:
		return err
	case p.until == 0:
		return fmt.Errorf("no lease: %s", p.lost)
	case now >= p.until:
		return fmt.Errorf("the lease of epoch %d ended %v ago; nothing newer came", p.lease.Epoch, (now - p.until).Round(time.Second))
	}
	return nil
}

func (p *proving) lose(why string) { p.until, p.lost, p.no = 0, why, true }

// takeLease looks at the node's leaf of a new epoch, whose root the fold has. Here
// is what it means to this process:
//
//   - it passed on a nonce sent from here: the lease runs from that sending;
//   - it did not pass on evidence made for this very epoch, or the node is
//     disputed: no lease;
//   - anything else (silence; evidence of an earlier process, or put forward
//     late by somebody) is no word on now: the lease held runs to its own end.
//
// A leaf that is not to be had is silence too. The caller holds mu.
func (a *Agent) takeLease(l authority.Lease) {
	p := &a.proving
	if !a.enrolled || l.Epoch <= p.epoch {
		return
	}
	p.epoch, p.leaf = l.Epoch, l
	sent, ours := p.sent[string(l.Nonce)]
	switch {
	case ours && l.Verdict == authority.VerdictPass:
		p.lease, p.until, p.lost, p.no = l, sent.at+time.Duration(l.Duration)*time.Second, "", false
	case ours && sent.epoch == l.Epoch, len(l.Nonce) == 0 && l.Reason != authority.ReasonSilent:
		p.lose(fmt.Sprintf("%s (%s)", l.Reason, l.Remedy))
		a.cfg.Log.Warn("lease refused", "epoch", l.Epoch, "why", l.Reason, "remedy", l.Remedy)
	case p.until == 0:
		p.lost = "no epoch has answered this agent yet: " + l.Reason
	}
}

// renew fetches the node's leaf of each new epoch, with its proof, and nobody
// else's. Nothing waits for it: halts and all else come with the log.
func (a *Agent) renew(ctx context.Context) {
	for ctx.Err() == nil {
		news := a.news()
		var epoch *authority.Epoch
		err := a.state(func(s *authority.State) error {
			if a.enrolled && s.Epoch != nil && s.Epoch.Number > a.proving.epoch && s.Epoch.Index > s.Nodes[a.id].Index {
				epoch = s.Epoch
			}
			return nil
		})
		if err == nil && epoch != nil {
			if err = a.fetchLease(ctx, epoch); err == nil {
				continue
			}
			a.cfg.Log.Debug("no leaf of the epoch yet", "epoch", epoch.Number, "err", err)
			pause(ctx, time.Second)
			continue
		}
		select {
		case <-ctx.Done():
		case <-news:
		}
	}
}

// fetchLease asks for the leaf and takes it if it is this node's, of this epoch.
func (a *Agent) fetchLease(ctx context.Context, epoch *authority.Epoch) error {
	p, err := a.client().Lease(ctx, a.id, epoch.Number)
	if err != nil {
		return err
	}
	l, err := epoch.Open(p)
	if err != nil {
		return err
	}
	if l.Node != a.id || l.Epoch != epoch.Number {
		return fmt.Errorf("agent: asked for the lease of this node in epoch %d, was shown that of node %s in epoch %d", epoch.Number, l.Node, l.Epoch)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.takeLease(l)
	a.announce()
	return nil
}

// remember notes a nonce before it is sent. The caller holds mu.
func (p *proving) remember(nonce []byte, s sending) {
	p.sent[string(nonce)] = s
	p.order = append(p.order, string(nonce))
	if len(p.order) > maxSent {
		delete(p.sent, p.order[0])
		p.order = p.order[1:]
	}
}

// A question is what one piece of evidence answers. The agent makes one for each
// and no more: two of a node for one epoch put it out, and whoever proposes the
// epoch could show both.
type question struct {
	floor uint64 // size of the log that must have been seen
	pcrs  string // those asked for
}

// leafPatience is how long evidence for the next epoch waits for the leaf of this
// one, which says how much of the kernel's list need not be sent again.
const leafPatience = 2 * time.Second

// prove sends evidence for each epoch, and the same again where nothing came of
// it, and when a coordinator that was gone is back: its mailbox may be empty.
func (a *Agent) prove(ctx context.Context) {
	var given answer
	var epoch uint64
	var since time.Duration
	for ctx.Err() == nil {
		news := a.news()
		var q question
		every, due := time.Minute, false
		err := a.state(func(s *authority.State) error {
			every = time.Duration(s.Policy.Compiled.Leases().Epoch) * time.Second
			now, err := boottime()
			if next := nextEpoch(s); next != epoch {
				epoch, since = next, now
			}
			switch {
			case s.Epoch != nil && a.proving.epoch != s.Epoch.Number && now-since < leafPatience:
				every = leafPatience // to wait for the leaf
			case a.enrolled:
				floor, _ := s.EvidenceFloor(a.id)
				q = question{floor, fmt.Sprint(attest.Selection(s.ReferenceSets(), nil, s.Time))}
				due = q != given.to || a.proving.again || now-a.proving.last > every
			}
			return err
		})
		if err == nil && due {
			if err = a.send(ctx, q, &given); err != nil {
				a.cfg.Log.Warn("cannot prove this node", "err", err)
				pause(ctx, time.Second)
				continue
			}
		}
		select {
		case <-ctx.Done():
		case <-news:
		case <-time.After(every / 2):
		}
	}
}

func nextEpoch(s *authority.State) uint64 {
	if s.Epoch == nil {
		return 1
	}
	return s.Epoch.Number + 1
}

// sendAgain has the evidence for the next epoch sent once more.
func (a *Agent) sendAgain() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.proving.again = true
	a.announce()
}

// An answer is the evidence made for a question.
type answer struct {
	to     question
	digest Digest
}

// send sends word of the evidence for the question, which it makes if there is
// none yet.
func (a *Agent) send(ctx context.Context, q question, given *answer) error {
	a.quoting.Lock()
	defer a.quoting.Unlock()
	if q != given.to {
		digest, err := a.evidence(ctx, attest.Binding{Domain: attest.DomainEpoch}, nil)
		if err != nil {
			return err
		}
		*given = answer{q, digest}
	}
	now, err := boottime()
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.proving.last, a.proving.again = now, false
	a.mu.Unlock()
	return a.client().Send(ctx, api.TopicEvidence, []byte(given.digest.String()))
}

// evidence quotes on the newest final checkpoint and stores the result as a
// blob. An epoch's nonce is remembered from before anything leaves.
func (a *Agent) evidence(ctx context.Context, b attest.Binding, fresh *tpm.FreshKey) (Digest, error) {
	b.AgentNonce = make([]byte, 32)
	rand.Read(b.AgentNonce)
	var seen signoff.Seen
	var pcrs []int
	var list imaList
	err := a.state(func(s *authority.State) error {
		now, err := boottime()
		if err == nil && b.Domain == attest.DomainEpoch {
			a.proving.remember(b.AgentNonce, sending{now, nextEpoch(s)})
		}
		refs := attest.NewReferences(s.ReferenceSets(), s.Time)
		seen, pcrs = a.ledger.seen, refs.Selection(nil)
		list = a.proving.list(refs, s.Epoch)
		return err
	})
	if err != nil {
		return Digest{}, err
	}
	b.Nonce = authority.EvidenceNonce(a.cfg.ID, seen.Root)
	log, err := os.ReadFile(a.cfg.EventLog)
	if err != nil {
		return Digest{}, fmt.Errorf("agent: event log: %w", err)
	}
	if err := a.putLog(ctx, log, &b); err != nil {
		return Digest{}, err
	}
	ev, err := a.quote(ctx, b, pcrs, fresh, list)
	if err != nil {
		return Digest{}, err
	}
	blob, err := dsse.Encode(authority.Presented{Seen: seen, Evidence: *ev})
	if err != nil {
		return Digest{}, err
	}
	return a.client().PutBlob(ctx, blob)
}

// putLog names the event log in the binding, and stores it once: it changes only
// by a boot. The caller holds quoting.
func (a *Agent) putLog(ctx context.Context, log []byte, b *attest.Binding) error {
	b.EventLog = sha256.Sum256(log)
	if b.EventLog == a.bootLog {
		return nil
	}
	if _, err := a.client().PutBlob(ctx, log); err != nil {
		return err
	}
	a.bootLog = b.EventLog
	return nil
}

// quote quotes, with the part of the kernel's list that leads to the quoted PCR.
// The digest of what was read goes into the quote, so a list that grows in between
// is read again.
func (a *Agent) quote(ctx context.Context, b attest.Binding, pcrs []int, fresh *tpm.FreshKey, list imaList) (*attest.Evidence, error) {
	if !list.wanted || a.cfg.IMA == "" {
		return a.identity.Evidence(ctx, b, pcrs, fresh)
	}
	for range imaTries {
		part, err := list.read(a.cfg.IMA)
		if err != nil {
			return nil, err
		}
		b.IMA, b.IMAFrom = attest.Digest{}, list.from
		if len(part) > 0 {
			b.IMA = sha256.Sum256(part)
		}
		ev, err := a.identity.Evidence(ctx, b, pcrs, fresh)
		if err != nil {
			return nil, err
		}
		if !list.leads(part, ev) {
			continue
		}
		if len(part) > 0 {
			_, err = a.client().PutBlob(ctx, part)
		}
		return ev, err
	}
	return nil, fmt.Errorf("agent: %s did not lead to PCR 10 in %d tries: the kernel measures faster than the TPM quotes, or the list was changed", a.cfg.IMA, imaTries)
}

// mayStart returns why the lease does not let the warrant start, or nil. It
// asks for more than going on does: the epoch in force itself must have passed
// and list the warrant, under the policy in force. The caller holds mu.
func (a *Agent) mayStart(s *authority.State, warrant Digest) error {
	p := &a.proving
	if err := p.current(); err != nil {
		return err
	}
	if s.Epoch == nil || p.lease.Epoch != s.Epoch.Number {
		return errors.New("the epoch in force has no lease for this node")
	}
	if p.lease.Policy != s.Policy.Digest {
		return fmt.Errorf("the lease is of policy %s, in force is %s", p.lease.Policy, s.Policy.Digest)
	}
	for _, l := range p.lease.Warrants {
		if l.Warrant == warrant {
			return nil
		}
	}
	return fmt.Errorf("the lease of epoch %d does not list warrant %s", p.lease.Epoch, warrant.Short())
}
