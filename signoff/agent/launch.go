package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/tpm"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/policy/enforce"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/proof"
)

// claimTries bounds how often a use is claimed again because another node took
// the number, or an epoch came in between.
const claimTries = 8

// takeLimit bounds the way from a claim to its opened shares. After it the use
// is given up, and the next start has its turn.
const takeLimit = 10 * time.Minute

// scratch is the memory a run may use for temporary files, in bytes.
const scratch = 256 << 20

// launch takes one use of the warrant and runs the executable, telling each
// step. ctx is the agent's; asked ends when whoever asked goes away, which
// matters until the use is claimed and no longer.
func (a *Agent) launch(ctx, asked context.Context, c Command, tell func(Event)) error {
	executable, digest, err := openExecutable(c.Executable)
	if err != nil {
		return err
	}
	defer executable.Close()
	u, ctx := newUse(ctx)
	defer u.cancel(nil)
	stop := context.AfterFunc(asked, func() { u.cancel(errors.New("agent: whoever asked has gone")) })
	defer stop()
	inputs, p, err := a.take(ctx, u, wish{c.Warrant, digest, c.Resume}, stop, tell)
	if err != nil {
		return err
	}
	defer a.forget(u)
	defer closeAll(inputs)
	exit, written, err := a.execute(ctx, u, p, executable, inputs, tell)
	detail, code := account(exit, written, err), -1
	a.receipt(ctx, u, signoff.EventEnded, detail, written)
	if exit != nil {
		code = exit.Code
	}
	tell(Event{Event: EventEnded, Claim: u.claim, Text: detail, Code: code})
	return err
}

// openExecutable opens a regular file and hashes it. The gate hashes what it
// executes once more.
func openExecutable(path string) (*os.File, Digest, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, Digest{}, fmt.Errorf("agent: executable: %w", err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() > enforce.MaxExecutable) {
		err = fmt.Errorf("agent: executable %q is not a regular file of at most %d bytes", path, int64(enforce.MaxExecutable))
	}
	h := sha256.New()
	if err == nil {
		_, err = io.Copy(h, f)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, Digest{}, errors.Join(err, f.Close())
	}
	return f, Digest(h.Sum(nil)), nil
}

// take judges, claims, and opens the shares. When it fails after the claim,
// it has signed the use's end.
func (a *Agent) take(ctx context.Context, u *use, ask wish, claimed func() bool, tell func(Event)) ([]*input, *plan, error) {
	a.catchUp(ctx)
	if _, err := a.await(ctx, ask, tell); err != nil {
		return nil, nil, err
	}
	a.launching.Lock()
	defer a.launching.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, takeLimit, fmt.Errorf("agent: claim and release took longer than %v; see that a quorum of notaries runs", takeLimit))
	defer cancel()
	p, err := a.await(ctx, ask, tell)
	if err != nil {
		return nil, nil, err
	}
	if err := a.approveBoot(); err != nil {
		return nil, nil, err
	}
	inputs, err := a.find(p)
	if err != nil {
		return nil, nil, err
	}
	fresh, err := a.identity.FreshKey(ctx)
	if err != nil {
		closeAll(inputs)
		return nil, nil, err
	}
	p, err = a.claim(ctx, u, p, ask, fresh)
	if err == nil {
		claimed()
		tell(Event{Event: EventClaimed, Claim: u.claim, Use: p.use})
		err = a.unlock(ctx, u, p, inputs, fresh)
	}
	err = errors.Join(err, fresh.Close())
	if err != nil {
		closeAll(inputs)
		if !u.claim.IsZero() {
			a.receipt(ctx, u, signoff.EventEnded, account(nil, 0, err), 0)
		}
		a.forget(u)
		return nil, nil, err
	}
	tell(Event{Event: EventOpened, Claim: u.claim})
	return inputs, p, nil
}

// catchUp waits a moment until the fold has what is final now: whoever asks may
// have seen the warrant just before the agent does. Nothing depends on it.
func (a *Agent) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	note, err := a.client().Checkpoint(ctx, true, 1, 0)
	if err != nil {
		return
	}
	claimed, err := proof.Unverified(note)
	if err != nil {
		return
	}
	for news := a.news(); a.size() < claimed.Size && ctx.Err() == nil; news = a.news() {
		select {
		case <-ctx.Done():
		case <-news:
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// await judges until the answer is more than "not yet", a few epochs long.
func (a *Agent) await(ctx context.Context, ask wish, tell func(Event)) (*plan, error) {
	var deadline time.Time
	told := ""
	for {
		news := a.news()
		var p *plan
		wait := 30 * time.Second
		err := a.state(func(s *authority.State) (err error) {
			wait += 3 * time.Duration(s.Policy.Compiled.Leases().Epoch) * time.Second
			p, err = a.judge(s, ask)
			return err
		})
		if !errors.Is(err, errNotYet) {
			return p, err
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(wait)
		}
		if text := err.Error(); text != told {
			tell(Event{Event: EventWaiting, Text: text})
			told = text
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-news:
		case <-time.After(time.Until(deadline)):
			return nil, err
		}
	}
}

// claim takes the next use, final in the log, with a quote that names the
// request and the key of this use. It judges anew before each try.
func (a *Agent) claim(ctx context.Context, u *use, p *plan, ask wish, fresh *tpm.FreshKey) (*plan, error) {
	var err error
	for try := 1; ; try++ {
		news := a.news()
		var done bool
		if done, err = a.claimOnce(ctx, u, p, fresh); done {
			return p, err
		}
		if try == claimTries || ctx.Err() != nil {
			return nil, errors.Join(context.Cause(ctx), err)
		}
		select { // what made it void may not be final yet
		case <-news:
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
		if p, err = a.await(ctx, ask, func(Event) {}); err != nil {
			return nil, err
		}
	}
}

// claimOnce reports whether the matter is settled. A claim that was sent and
// not seen to be void may stand: then it is, with an error, and whatever comes
// of it is ended by endLost.
func (a *Agent) claimOnce(ctx context.Context, u *use, p *plan, fresh *tpm.FreshKey) (bool, error) {
	doc, err := a.writeClaim(ctx, p, fresh)
	if err != nil {
		return false, err
	}
	a.begin(u, p, doc.Digest())
	out, err := a.client().Append(ctx, doc.Line())
	var refused *api.Error
	void := errors.As(err, &refused) && refused.Status == 422 || err == nil && out.Void != ""
	if void {
		a.begin(u, p, Digest{})
		return false, fmt.Errorf("agent: the claim was void: %s %w", out.Void, errors.Join(err))
	}
	if err == nil {
		err = a.final(ctx, u.claim, out.Index)
	}
	return true, err
}

// writeClaim quotes and signs. What the node sent for the next epoch before is
// void once the claim stands; prove sends anew.
func (a *Agent) writeClaim(ctx context.Context, p *plan, fresh *tpm.FreshKey) (*signoff.Signed, error) {
	a.quoting.Lock()
	defer a.quoting.Unlock()
	evidence, err := a.evidence(ctx, attest.Binding{Domain: attest.DomainClaim, Request: attest.Digest(p.request.ID)}, fresh)
	if err != nil {
		return nil, err
	}
	claim := &signoff.Claim{Charter: a.cfg.ID, Node: a.id, Warrant: p.warrant.ID, Use: p.use, Evidence: evidence, Created: time.Now().Unix(), Nonce: nonce()}
	if p.resume != nil {
		claim.Resume = p.resume.ID
	}
	return signoff.Sign(ctx, a.identity.SignKey, claim)
}

// final waits until the claim stands in the final log.
func (a *Agent) final(ctx context.Context, claim Digest, index uint64) error {
	for {
		news := a.news()
		there := false
		if err := a.state(func(s *authority.State) error {
			c, ok := s.Claims[claim]
			there = ok && c.Ended == ""
			if a.ledger.seen.Size > index && !there {
				return fmt.Errorf("agent: entry %d of the final log is not the claim that was sent", index)
			}
			return nil
		}); err != nil || there {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-news:
		}
	}
}

// unlock waits for the notaries' shares and combines each object. A hostile
// notary's share may be bad: it goes on until a quorum of good ones came.
func (a *Agent) unlock(ctx context.Context, u *use, p *plan, inputs []*input, fresh *tpm.FreshKey) error {
	fp, err := hsm.Fingerprint(fresh.PublicKey())
	if err != nil {
		return err
	}
	tried := -1
	for {
		news := a.news()
		var machines map[Digest][]sealedShare
		n := 0
		if err := a.state(func(s *authority.State) error {
			machines, n = p.released(s, u.claim, fp), len(s.Releases[u.claim])
			for _, in := range inputs { // shares may have been dealt anew since
				in.object = s.Objects[in.object.ID]
			}
			return nil
		}); err != nil {
			return err
		}
		if n > tried {
			tried = n
			var few *tooFew
			if err = a.combineAll(ctx, inputs, p, machines, fresh); !errors.As(err, &few) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-news:
		}
	}
}

func (a *Agent) combineAll(ctx context.Context, inputs []*input, p *plan, machines map[Digest][]sealedShare, fresh hsm.Decrypter) error {
	for _, in := range inputs {
		if in.unlock != nil {
			continue
		}
		people := p.people[in.object.ID]
		if in.people != nil {
			people = in.people
		}
		if err := a.combine(ctx, in, people, machines[in.object.ID], fresh); err != nil {
			return err
		}
	}
	return nil
}

// execute has the gate run the executable and waits for its end. It returns
// the bytes that the run wrote to its output.
func (a *Agent) execute(ctx context.Context, u *use, p *plan, executable *os.File, inputs []*input, tell func(Event)) (*enforce.Exit, int64, error) {
	if err := a.receipt(ctx, u, signoff.EventStarted, "shares opened; starting", 0); err != nil {
		return nil, 0, err
	}
	out, err := newOutput(u.claim, tell)
	if err != nil {
		return nil, 0, err
	}
	defer out.close()
	var bytes uint64
	for _, in := range inputs {
		bytes += in.bytes
	}
	limit := time.Duration(p.launch.Seconds) * time.Second
	k := newKeeper(a, u.claim, p, tell)
	defer k.close()
	run, err := a.cfg.Gate.Start(ctx, enforce.Spec{
		ID: u.claim.Hex(), Executable: enforce.Executable{Digest: p.launch.Executable, Source: executable},
		Argv: p.launch.Argv, Env: p.launch.Env, TimeLimit: limit, Grace: min(a.grace(), limit/2),
		Inputs:  enforce.Inputs{Bytes: bytes, Fill: func(ctx context.Context, dir *os.Root) error { return fill(ctx, inputs, dir) }},
		Scratch: scratch, Output: k.output(), Stdout: out.w, Stderr: out.w,
	})
	if err != nil {
		return nil, 0, errors.Join(context.Cause(ctx), err)
	}
	out.started()
	a.started(u, run, tell)
	tell(Event{Event: EventStarted, Claim: u.claim})
	kept := k.watch(ctx, run.Done())
	a.steer(ctx, u)
	exit, err := run.Wait()
	<-kept
	return &exit, out.wait(), err
}

// account is a use's end in words.
func account(exit *enforce.Exit, written int64, err error) string {
	var text string
	switch {
	case exit == nil:
		text = fmt.Sprintf("did not start: %v", err)
	case exit.Signal != 0:
		text = fmt.Sprintf("%s: signal %d, %v wall, %v processor, %d bytes written", exit.Reason, exit.Signal, exit.Wall.Round(time.Millisecond), exit.CPU.Round(time.Millisecond), written)
	default:
		text = fmt.Sprintf("%s: status %d, %v wall, %v processor, %d bytes written", exit.Reason, exit.Code, exit.Wall.Round(time.Millisecond), exit.CPU.Round(time.Millisecond), written)
	}
	return clean(text)
}
