package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/keyturn/keyturn/policy/enforce"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
)

// A use is one use of a warrant that this process takes, from its claim to its
// end. Agent.mu guards all but cancel.
type use struct {
	cancel  context.CancelCauseFunc // ends a start in progress
	warrant Digest
	request Digest
	expiry  int64         // of the warrant, fold time
	number  int           // of the use
	claim   Digest        // zero before it was sent
	run     enforce.Run   // nil before it executes
	tell    func(Event)   // never nil once run is set
	stop    error         // why it must end; stays once set
	still   error         // why it must stand still now
	wake    chan struct{} // of size 1: stop or still changed
}

func newUse(ctx context.Context) (*use, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	return &use{cancel: cancel, wake: make(chan struct{}, 1)}, ctx
}

// begin says which claim the use stands for from now on; zero takes it back.
func (a *Agent) begin(u *use, p *plan, claim Digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	u.warrant, u.request, u.expiry, u.number, u.claim = p.warrant.ID, p.request.ID, p.warrant.Doc.Expiry, p.use, claim
	if claim.IsZero() {
		delete(a.runs, u)
		return
	}
	a.runs[u] = true
}

// started hands the executed run over to what it must obey.
func (a *Agent) started(u *use, run enforce.Run, tell func(Event)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	u.run, u.tell = run, tell
	a.obey(u)
}

// forget ends the account of a use.
func (a *Agent) forget(u *use) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.runs, u)
	a.announce()
}

// watch looks at everything that must be obeyed whenever something changed, and
// ten times a second: leases end by themselves.
func (a *Agent) watch(ctx context.Context) {
	for ctx.Err() == nil {
		news := a.news()
		a.mu.Lock()
		for u := range a.runs {
			a.obey(u)
		}
		a.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-news:
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// obey decides what a use must do. A use that does not execute yet has nothing
// to stand still: it ends, and its claim is spent. The caller holds mu.
func (a *Agent) obey(u *use) {
	stop, still := a.orders(u)
	if u.run == nil {
		if err := errors.Join(stop, still); err != nil {
			u.cancel(err)
		}
		return
	}
	if u.stop == nil && stop != nil {
		u.stop = stop
		u.poke()
	}
	if (still == nil) != (u.still == nil) {
		u.still = still
		u.poke()
	}
}

// orders returns why the use must end and why it must stand still; nil for
// neither. Without a lease and a live warrant it ends; a halt freezes.
func (a *Agent) orders(u *use) (stop, still error) {
	s, err := a.ledger.state()
	if err != nil {
		return err, nil
	}
	if err := a.proving.current(); err != nil {
		stop = err
	} else if u.expiry <= s.Time {
		stop = fmt.Errorf("warrant %s expired at %d, it is %d", u.warrant.Short(), u.expiry, s.Time)
	}
	return stop, a.halted(s, u.request)
}

func (u *use) poke() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// steer does to the run what obey decided, until it ends. One that is slow to
// stop holds up no other.
func (a *Agent) steer(ctx context.Context, u *use) {
	frozen := false
	for {
		a.mu.Lock()
		stop, still := u.stop, u.still
		a.mu.Unlock()
		if stop == nil && ctx.Err() != nil {
			stop = errors.New("the agent is asked to end")
		}
		var err error
		switch {
		case stop != nil:
			u.tell(Event{Event: EventDraining, Claim: u.claim, Text: stop.Error()})
			a.cfg.Log.Warn("run must end", "claim", u.claim, "why", stop)
			err = u.run.Drain(a.grace())
		case still != nil && !frozen:
			if err = u.run.Freeze(); err == nil {
				frozen = true
				u.tell(Event{Event: EventFrozen, Claim: u.claim, Text: still.Error()})
			}
		case still == nil && frozen:
			if err = u.run.Thaw(); err == nil {
				frozen = false
				u.tell(Event{Event: EventThawed, Claim: u.claim})
			}
		}
		select {
		case <-u.run.Done():
			return
		default:
		}
		if err != nil { // what does not stand still is killed
			a.cfg.Log.Error("run does not obey; killing it", "claim", u.claim, "err", err)
			if err := u.run.Kill(); err != nil {
				a.cfg.Log.Error("cannot kill a run", "claim", u.claim, "err", err)
				pause(context.Background(), 100*time.Millisecond)
				continue
			}
		}
		select {
		case <-u.run.Done():
			return
		case <-u.wake:
		case <-ctx.Done():
		}
	}
}

// grace is what the policy gives a run to end by itself.
func (a *Agent) grace() time.Duration {
	var grace time.Duration
	if a.state(func(s *authority.State) error {
		grace = time.Duration(s.Policy.Compiled.Leases().DrainGrace) * time.Second
		return nil
	}) != nil {
		return 0
	}
	return grace
}

// receipt signs and appends one receipt, even while the agent is asked to end.
func (a *Agent) receipt(ctx context.Context, u *use, event, detail string, bytes int64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := a.appendReceipt(ctx, u.warrant, u.claim, event, detail, bytes)
	if err != nil {
		a.cfg.Log.Warn("cannot append a receipt", "event", event, "claim", u.claim, "err", err)
	}
	return err
}

func (a *Agent) appendReceipt(ctx context.Context, warrant, claim Digest, event, detail string, bytes int64) error {
	doc, err := signoff.Sign(ctx, a.identity.SignKey, &signoff.Receipt{Charter: a.cfg.ID, Signer: a.id, Warrant: warrant, Claim: claim,
		Event: event, Detail: detail, Bytes: bytes, Created: time.Now().Unix()})
	if err != nil {
		return err
	}
	out, err := a.client().Append(ctx, doc.Line())
	if err == nil && out.Void != "" {
		err = fmt.Errorf("agent: receipt void: %s", out.Void)
	}
	return err
}

// endLost signs the end of claims of this node that no use of this process
// stands for: an earlier agent died, or a claim came through after it was given
// up. Such a use is spent.
func (a *Agent) endLost(ctx context.Context) {
	for ctx.Err() == nil {
		news := a.news()
		wait := time.Hour
		for _, c := range a.lost() {
			err := a.appendReceipt(ctx, c.Doc.Warrant, c.ID, signoff.EventEnded, "the agent restarted or gave up; the use is spent", 0)
			var refused *api.Error
			if errors.As(err, &refused) && refused.Status == http.StatusUnprocessableEntity {
				continue // its end is in the log, not yet final
			}
			if err != nil && ctx.Err() == nil {
				a.cfg.Log.Warn("cannot end a lost claim", "claim", c.ID, "err", err)
				wait = 2 * time.Second
			}
		}
		select {
		case <-ctx.Done():
		case <-news:
		case <-time.After(wait):
		}
	}
}

func (a *Agent) lost() []*authority.Claim {
	var out []*authority.Claim
	a.state(func(s *authority.State) error { // without a state nothing is known to be lost
		ours := map[Digest]bool{}
		for u := range a.runs {
			ours[u.claim] = true
		}
		for id, c := range s.Claims {
			if a.enrolled && c.Doc.Node == a.id && c.Ended == "" && !ours[id] {
				out = append(out, c)
			}
		}
		return nil
	})
	return out
}

// adopt ends what an earlier agent left running. The kernel ended most of it
// with that agent; what was frozen then waits for this.
func (a *Agent) adopt() error {
	ids, err := a.cfg.Gate.List()
	if err != nil {
		return err
	}
	for _, id := range ids {
		exit, err := a.cfg.Gate.Adopt(id)
		if err != nil {
			return err
		}
		a.cfg.Log.Warn("ended a run that an earlier agent left", "claim", id, "processor", exit.CPU)
	}
	return nil
}

func nonce() []byte {
	b := make([]byte, 16)
	rand.Read(b)
	return b
}

// clean makes text fit for a receipt.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "..."
	}
	return strings.TrimSpace(text)
}
