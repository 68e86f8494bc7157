package notary

import (
	"context"
	"errors"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/proof"
)

// A look is a consistent view of what a duty decides by. State is the fold at
// the newest checkpoint; entries below Final are final.
type look struct {
	auth  *authority.Authority
	state *authority.State
	index uint16 // of this notary in the council in office; 0 if it is not in it
	final uint64
	now   time.Time
	woken bool
}

// isFinal reports whether the entry at index is final.
func (l look) isFinal(index uint64) bool { return index < l.final }

// onTime reports whether fold time is near enough to the own clock to let
// something happen.
func (l look) onTime() bool {
	lag := l.now.Unix() - l.state.Time
	return lag <= maxLag && lag >= -maxLag
}

// A duty looks and returns what to do about it, or nil. The doing runs
// without the lock on the state.
type duty struct {
	name string
	plan func(look) (func(context.Context) error, error)
	any  bool // also of a notary that is not in office, yet or any more
}

// duties goes round until ctx ends. A duty that fails is tried next time.
func (n *Notary) duties(ctx context.Context) error {
	list := []duty{
		{"joining", n.planJoining, true}, {"shares", n.planKeygen, true}, {"takeover", n.planTakeover, true}, {"erasing", n.planErase, true},
		{"tick", n.planTick, false}, {"activation", n.planActivation, false}, {"warrant", n.planSign, false}, {"fault", n.planFaults, false},
		{"release", n.planRelease, true}, {"epoch", n.planEpoch, false}, {"halt", n.planHalts, false},
		{"moving", n.planMove, true}, {"forgetting", n.planForget, true},
	}
	for ctx.Err() == nil {
		for _, d := range list {
			err := n.perform(ctx, d)
			if errors.Is(err, ErrFuse) {
				return err
			}
			if err != nil && ctx.Err() == nil {
				n.cfg.Log.Warn("duty failed, will try again", "duty", d.name, "err", err)
			}
		}
		pause(ctx, 50*time.Millisecond)
	}
	return nil
}

func (n *Notary) perform(ctx context.Context, d duty) error {
	var act func(context.Context) error
	err := n.view(func(l look) (err error) {
		// In office, nothing is done about a log that was never cosigned.
		mine := d.any && l.index == 0 || l.index > 0 && n.store.position().Seen.Size > 0
		if l.state.InForce && mine {
			act, err = d.plan(l)
		}
		return err
	})
	if err != nil || act == nil {
		return err
	}
	return act(ctx)
}

func (n *Notary) view(fn func(look) error) error {
	return n.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		n.mu.Lock()
		_, index, _ := a.State().Notary(n.id)
		l := look{auth: a, state: a.State(), index: index, final: n.finalSize, now: time.Now(), woken: time.Since(n.woken) < 10*time.Second}
		n.mu.Unlock()
		return fn(l)
	})
}

// Ticks: a notary ticks when another has, when it was woken and time is a few
// seconds old, and otherwise every tickEvery seconds while anything is open.
const (
	tickEvery = 20
	tickWoken = 2
)

// wakeBurst is how many rounds of ticks anybody can have by waking notaries that have
// nothing to do; after that it is one in tickEvery seconds, as when they have. Each is
// q entries, for ever.
const wakeBurst = 500

// wakes counts rounds that began because somebody asked. Its zero value is full.
type wakes struct {
	round uint64 // granted last
	left  int
	since time.Time // up to when it was filled; zero before the first
}

// take reports whether the round may begin because somebody asked.
func (w *wakes) take(round uint64, now time.Time) bool {
	if w.since.IsZero() {
		w.left, w.since = wakeBurst, now
	}
	const every = tickEvery * time.Second
	if n := now.Sub(w.since) / every; n > 0 {
		w.left, w.since = int(min(wakeBurst, time.Duration(w.left)+n)), w.since.Add(n*every)
	}
	switch {
	case round == w.round:
		return true // it was said, and is not in the log yet
	case w.left == 0:
		return false
	}
	w.round, w.left = round, w.left-1
	return true
}

func (n *Notary) planTick(l look) (func(context.Context) error, error) {
	s := l.state
	if _, done := s.Ticks.Times[n.id]; done {
		return nil, nil
	}
	if !n.tickDue(l) {
		return nil, nil
	}
	t := &signoff.Tick{Charter: s.ID, Notary: n.id, Round: s.Ticks.Round, Time: l.now.Unix()}
	return func(ctx context.Context) error { return n.append(ctx, t) }, nil
}

// tickDue says whether to tick now. A quorum is enough, so a round has those
// whose turn it is; the others join one that does not get on without them.
func (n *Notary) tickDue(l look) bool {
	s := l.state
	if n.tickRound != s.Ticks.Round {
		n.tickRound, n.tickSince = s.Ticks.Round, time.Time{}
	}
	begun := len(s.Ticks.Times) > 0 || s.WantsDealers() || s.Keygen.WantsTime()
	if begun && n.tickSince.IsZero() {
		n.tickSince = l.now
	}
	turn := (uint64(l.index)+s.Ticks.Round)%uint64(len(s.Council().Notaries)) < uint64(s.Council().Quorum())
	age := l.now.Unix() - s.Time
	switch {
	case age < 0:
		return false
	case begun:
		return turn || l.now.Sub(n.tickSince) > time.Second
	}
	return turn && (busy(s) && age >= tickEvery || l.woken && age >= tickWoken && n.wakes.take(s.Ticks.Round, l.now))
}

// busy reports whether something waits for time: nodes, open requests, a
// reshare or a dealer's answer.
func busy(s *authority.State) bool {
	if !s.Keygen.Done && s.Keygen.Term > 1 || s.Keygen.Disputed() {
		return true
	}
	for _, node := range s.Nodes {
		if !node.Retired {
			return true
		}
	}
	for _, r := range s.Requests {
		if r.Ended == "" {
			return true
		}
	}
	return false
}

// listen watches for people who ask to be looked at and for halts.
func (n *Notary) listen(ctx context.Context) error {
	wake, halts := api.NewReader(api.TopicWake), api.NewReader(api.TopicHalts)
	for ctx.Err() == nil {
		msgs, err := wake.Receive(ctx, n.cfg.Client, time.Second)
		if err != nil {
			pause(ctx, 500*time.Millisecond)
			continue
		}
		if len(msgs) > 0 {
			n.mu.Lock()
			n.woken = time.Now()
			n.mu.Unlock()
		}
		if msgs, err = halts.Receive(ctx, n.cfg.Client, 0); err == nil {
			n.noteHalts(msgs)
		}
	}
	return nil
}

// maxHalts bounds the halts remembered that the log does not have. Nobody who
// may not halt puts one there; those who may need few.
const maxHalts = 1024

// noteHalts remembers halts that count, for planHalts to append.
func (n *Notary) noteHalts(msgs [][]byte) {
	for _, m := range msgs {
		doc, err := signoff.ReadLine(m)
		if err != nil {
			continue
		}
		if _, ok := doc.Doc.(*signoff.Halt); !ok || n.isVoid(doc) {
			continue
		}
		n.mu.Lock()
		if len(n.halts) < maxHalts {
			n.halts[doc.Digest()] = doc
		}
		n.mu.Unlock()
	}
}

// isVoid reports whether the fold is in force and would not take the halt.
func (n *Notary) isVoid(halt *signoff.Signed) (void bool) {
	_ = n.view(func(l look) error {
		void = l.state.InForce && !l.counts(halt)
		return nil
	})
	return void
}

// counts reports whether the fold would take the halt.
func (l look) counts(halt *signoff.Signed) bool {
	out, _, err := l.auth.Judge(halt.Line(), noBlobs{})
	return err == nil && out.Void == nil
}

// planHalts appends halts that came by mail and are not in the log.
func (n *Notary) planHalts(l look) (func(context.Context) error, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, h := range n.halts {
		if _, there := l.state.Halts[id]; there || !l.counts(h) {
			delete(n.halts, id)
			continue
		}
		return func(ctx context.Context) error {
			_, err := n.cfg.Client.Append(ctx, h.Line())
			return err
		}, nil
	}
	return nil, nil
}

// unloggedHalt reports a halt that came by mail, counts, and covers the
// request: the log may be slow or the coordinator hostile, the notary stops
// all the same.
func (n *Notary) unloggedHalt(l look, request Digest) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, h := range n.halts {
		if _, there := l.state.Halts[id]; there {
			continue
		}
		if h.Doc.(*signoff.Halt).Covers(request, Digest{}) && l.counts(h) {
			return true
		}
	}
	return false
}

type noBlobs struct{}

func (noBlobs) Blob(Digest) ([]byte, error) { return nil, authority.ErrMissingBlob }
