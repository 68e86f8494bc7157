package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/proof"
)

// A ledger is the agent's copy of the final log. It folds twice. The follower
// works with the network and may stall there, or hold entries that turn out to
// be nobody's; settled holds what a quorum signed and nothing else, and is
// there to be asked at any time.
type ledger struct {
	charter  Digest
	client   func() *api.Client
	store    store
	follower *follow.Follower
	lines    map[uint64][]byte // folded by the follower, not settled
	blobs    blobs             // that it looked up meanwhile
	void     map[uint64]bool   // epochs and claims without effect, as the source says
	floor    signoff.Seen      // never to go below

	settled *authority.Authority // guarded by Agent.mu, like seen
	seen    signoff.Seen
}

func newLedger(charter Digest, client func() *api.Client, st store) (*ledger, error) {
	l := &ledger{charter: charter, client: client, store: st, lines: map[uint64][]byte{}, void: map[uint64]bool{}, blobs: blobs{known: map[Digest][]byte{}}}
	var err error
	if l.floor, err = st.seen(); err != nil {
		return nil, err
	}
	if l.settled, err = authority.NewWitnessed(charter); err != nil {
		return nil, err
	}
	return l, l.begin()
}

// begin makes a new follower.
func (l *ledger) begin() (err error) {
	l.follower, err = follow.NewWitnessed(l.charter, l, func(out authority.Outcome, line []byte) { l.lines[out.Index] = line })
	return err
}

// Entries implements follow.Source.
func (l *ledger) Entries(ctx context.Context, from, to uint64) ([][]byte, error) {
	return l.client().Entries(ctx, from, to)
}

// Void implements follow.Witness. What is asked again is told anew: an answer that
// led nowhere, whether it was a lie or the way was cut, leaves nothing behind.
func (l *ledger) Void(ctx context.Context, from, to uint64) ([]uint64, error) {
	indexes, err := l.client().Void(ctx, from, to)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(l.void, func(i uint64, _ bool) bool { return i >= from })
	for _, i := range indexes {
		l.void[i] = true
	}
	return indexes, nil
}

// Blob implements follow.Source, and keeps what it fetched for settling.
func (l *ledger) Blob(ctx context.Context, d Digest) ([]byte, error) {
	b, err := l.client().Blob(ctx, d)
	if err == nil {
		l.blobs.put(d, b)
	}
	return b, err
}

// verify brings the follower to the checkpoint in note. It is refused if it is
// below, or beside, a final checkpoint that was seen before.
func (l *ledger) verify(ctx context.Context, note []byte) (proof.Checkpoint, error) {
	c, err := l.follower.Final(ctx, note)
	if err != nil {
		return c, err
	}
	err = l.follower.View(func(f *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		root, ok := f.RootAt(l.floor.Size)
		if l.floor.Size > 0 && (!ok || root != l.floor.Root) {
			return fmt.Errorf("agent: the log shown has %d entries and does not hold the final checkpoint of %d seen before: %w", c.Size, l.floor.Size, follow.ErrRollback)
		}
		return nil
	})
	if err != nil {
		return c, errors.Join(err, l.begin())
	}
	seen := signoff.Seen{Size: c.Size, Root: Digest(c.Root)}
	if seen == l.floor {
		return c, nil
	}
	if err := l.store.setSeen(seen); err != nil {
		return c, err
	}
	l.floor = seen
	return c, nil
}

// settle folds what was verified up to c. The caller holds Agent.mu.
func (l *ledger) settle(c proof.Checkpoint) error {
	l.settled.Doubt(l.void)
	for i := l.settled.Size(); i < c.Size; i++ {
		line, ok := l.lines[i]
		if !ok {
			return fmt.Errorf("agent: entry %d was verified and is not at hand", i)
		}
		if _, err := l.settled.Apply(line, &l.blobs); err != nil {
			return err
		}
	}
	if got := l.settled.Root(); got != Digest(c.Root) || l.settled.StateDigest() != Digest(c.State) {
		return fmt.Errorf("agent: settled root %s at size %d is not the verified %s", got, l.settled.Size(), Digest(c.Root))
	}
	l.seen = signoff.Seen{Size: c.Size, Root: Digest(c.Root)}
	clear(l.lines)
	clear(l.void)
	l.blobs.clear()
	return nil
}

// state is what the newest final checkpoint says.
func (l *ledger) state() (*authority.State, error) {
	if l.seen.Size == 0 || l.settled.Size() != l.seen.Size {
		return nil, errors.New("agent: no final checkpoint was seen since the start; is a coordinator to be reached, and do a quorum of notaries run?")
	}
	return l.settled.State(), nil
}

// blobs are those at hand. The fold asks from many goroutines.
type blobs struct {
	mu    sync.Mutex
	known map[Digest][]byte
}

func (b *blobs) put(d Digest, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known[d] = data
}

func (b *blobs) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.known)
}

// Blob implements authority.Blobs.
func (b *blobs) Blob(d Digest) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.known[d]
	if !ok {
		return nil, authority.ErrMissingBlob
	}
	return data, nil
}

// follow goes from one final checkpoint to the next.
func (a *Agent) follow(ctx context.Context) {
	cut := false
	for ctx.Err() == nil {
		note, err := a.client().Checkpoint(ctx, true, a.size()+1, 20*time.Second)
		var refused *api.Error
		quiet := errors.As(err, &refused) && refused.Status == http.StatusNotFound
		if cut && (err == nil || quiet) {
			cut = false
			a.sendAgain()
		}
		if err == nil {
			err = a.advance(ctx, note)
		}
		switch {
		case err == nil || quiet || ctx.Err() != nil:
		case errors.Is(err, follow.ErrRollback):
			a.cfg.Log.Error("the coordinator shows another log; nothing of it counts", "err", err)
			pause(ctx, 2*time.Second)
		default:
			cut = true
			a.cfg.Log.Warn("cannot follow the log", "err", err)
			pause(ctx, 500*time.Millisecond)
		}
	}
}

func (a *Agent) size() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ledger.seen.Size
}

// advance takes one step: verify with the network, then settle and look at what
// it means under the lock.
func (a *Agent) advance(ctx context.Context, note []byte) error {
	c, err := a.ledger.verify(ctx, note)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ledger.settle(c); err != nil {
		return err
	}
	s := a.ledger.settled.State()
	a.takeMembership(s)
	a.dropLogged(s)
	a.announce()
	return nil
}

// takeMembership learns whether the log has this node, with these keys.
func (a *Agent) takeMembership(s *authority.State) {
	n, ok := s.Nodes[a.id]
	was := a.enrolled
	a.enrolled = ok && !n.Retired && n.Keys.SignKey.Equal(a.identity.SignKey.Public())
	if !a.enrolled {
		a.proving.lose("the node is not enrolled")
	}
	switch {
	case a.enrolled && !was:
		a.proving.lost, a.proving.no = "no epoch has answered this agent yet", false
		a.cfg.Log.Info("enrolled", "node", n.Name, "id", a.id)
	case ok && !a.enrolled && was:
		a.cfg.Log.Warn("this node was retired, or enrolled with other keys", "id", a.id)
	case ok && !n.Retired && !a.enrolled:
		a.cfg.Log.Error("the log has this node with other keys: have it enrolled again", "id", a.id)
	}
}
