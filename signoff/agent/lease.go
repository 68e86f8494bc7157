package agent

import (
	"context"
	"crypto/rand"
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
	last  time.Duration      // of the newest sending
	epoch uint64             // looked at last
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

// takeEpoch looks at the node's leaf in a new epoch. The fold has checked the
// leaf; here is what it means to this process:
//
//   - it passed on a nonce sent from here: the lease runs from that sending;
//   - it did not pass on evidence made for this very epoch, or the node is
//     disputed or gone: no lease;
//   - anything else (silence; evidence of an earlier process, or put forward
//     late by somebody) is no word on now: the lease held runs to its own end.
func (a *Agent) takeEpoch(s *authority.State) {
	p := &a.proving
	if !a.enrolled {
		p.lose("the node is not enrolled")
		return
	}
	if s.Epoch == nil || s.Epoch.Number == p.epoch {
		return
	}
	p.epoch = s.Epoch.Number
	l, _, ok := s.Epoch.Lease(a.id)
	sent, ours := p.sent[string(l.Nonce)]
	switch {
	case !ok:
		p.lose("the epoch has no leaf for this node")
	case ours && l.Verdict == authority.VerdictPass:
		p.lease, p.until, p.lost, p.no = l, sent.at+time.Duration(l.Duration)*time.Second, "", false
	case ours && sent.epoch == l.Epoch, len(l.Nonce) == 0 && l.Reason != authority.ReasonSilent:
		p.lose(fmt.Sprintf("%s (%s)", l.Reason, l.Remedy))
		a.cfg.Log.Warn("lease refused", "epoch", l.Epoch, "why", l.Reason, "remedy", l.Remedy)
	case p.until == 0:
		p.lost = "no epoch has answered this agent yet: " + l.Reason
	}
}

// remember notes a nonce before it is sent. The caller holds mu.
func (p *proving) remember(nonce []byte, s sending) {
	p.sent[string(nonce)] = s
	p.order = append(p.order, string(nonce))
	p.last = s.at
	if len(p.order) > maxSent {
		delete(p.sent, p.order[0])
		p.order = p.order[1:]
	}
}

// prove sends evidence for each epoch, and again where none came of it: the
// mailbox forgets when a coordinator restarts.
func (a *Agent) prove(ctx context.Context) {
	sent := uint64(0) // the epoch that evidence was last made for
	for ctx.Err() == nil {
		news := a.news()
		next, every, due := uint64(0), time.Minute, false
		err := a.state(func(s *authority.State) error {
			next, every = nextEpoch(s), time.Duration(s.Policy.Compiled.Leases().Epoch)*time.Second
			now, err := boottime()
			due = a.enrolled && (next != sent || now-a.proving.last > every)
			return err
		})
		if err == nil && due {
			a.quoting.Lock()
			err = a.sendEvidence(ctx)
			a.quoting.Unlock()
			if err != nil {
				a.cfg.Log.Warn("cannot prove this node", "err", err)
				pause(ctx, time.Second)
				continue
			}
			sent = next
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

// sendEvidence quotes for the next epoch. The caller holds quoting.
func (a *Agent) sendEvidence(ctx context.Context) error {
	digest, err := a.evidence(ctx, attest.Binding{Domain: attest.DomainEpoch}, nil)
	if err != nil {
		return err
	}
	return a.client().Send(ctx, api.TopicEvidence, []byte(digest.String()))
}

// evidence quotes on the newest final checkpoint and stores the result as a
// blob. An epoch's nonce is remembered from before anything leaves.
func (a *Agent) evidence(ctx context.Context, b attest.Binding, fresh *tpm.FreshKey) (Digest, error) {
	b.AgentNonce = make([]byte, 32)
	rand.Read(b.AgentNonce)
	var seen signoff.Seen
	var pcrs []int
	err := a.state(func(s *authority.State) error {
		now, err := boottime()
		if err == nil && b.Domain == attest.DomainEpoch {
			a.proving.remember(b.AgentNonce, sending{now, nextEpoch(s)})
		}
		seen, pcrs = a.ledger.seen, attest.Selection(a.refs, nil, s.Time)
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
	ev, err := a.identity.Evidence(ctx, b, pcrs, fresh, log, nil)
	if err != nil {
		return Digest{}, err
	}
	blob, err := dsse.Encode(authority.Presented{Seen: seen, Evidence: *ev})
	if err != nil {
		return Digest{}, err
	}
	return a.client().PutBlob(ctx, blob)
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
