// Package follow keeps a verified copy of the cluster's state: it fetches a
// signed checkpoint and the entries under it from a source that is trusted
// with nothing, folds them, and accepts the result only if the log key and a
// quorum of notaries signed exactly this root and exactly this state.
//
// The command line, the agents and the auditors follow final checkpoints. A
// notary follows one step ahead, to the newest checkpoint of the log key,
// because its own cosignature is what makes it final.
package follow

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/proof"
)

// Digest is a SHA-256 value.
type Digest = dsse.Digest

// A Source hands out entries and blobs: a coordinator or a directory.
type Source interface {
	Entries(ctx context.Context, from, to uint64) ([][]byte, error)
	Blob(ctx context.Context, digest Digest) ([]byte, error)
}

// A Witness is a source that says which epochs and claims had no effect. It is
// trusted with that no more than with the rest.
type Witness interface {
	Source
	Void(ctx context.Context, from, to uint64) ([]uint64, error)
}

// errState means that a fold came to another state than the checkpoint says.
var errState = errors.New("programs of different versions, or a dishonest log")

// ErrRollback means that the source shows less than was already seen, or
// something else: proof of misbehaviour, not a reason to retry.
var ErrRollback = errors.New("the log went back or was rewritten")

// A Follower is a fold with its source. Its methods may be called from many
// goroutines; View gives a consistent look at the state.
type Follower struct {
	charter Digest
	source  Source
	witness Witness // nil: appraises all evidence itself
	observe func(authority.Outcome, []byte)
	memory  Memory // nil: appraises everything again at each start

	mu         sync.Mutex
	auth       *authority.Authority
	last       proof.Checkpoint // the last checkpoint accepted
	note       []byte
	trust      proof.Trust // what it was held to
	recoveries uint64      // in the log up to it
	kept       uint64      // number of the last epoch that memory holds
}

// New starts at the charter digest, the caller's trust anchor. observe, if not
// nil, sees every entry as it is folded.
func New(charter Digest, source Source, observe func(authority.Outcome, []byte)) (*Follower, error) {
	return Remember(charter, source, observe, nil)
}

// Remember is New for a program that runs again and again: what m holds spares it
// the evidence of the epochs before. What cannot be read, or turns out to be of
// another log, is passed over, and the fold appraises everything itself.
func Remember(charter Digest, source Source, observe func(authority.Outcome, []byte), m Memory) (*Follower, error) {
	if observe == nil {
		observe = func(authority.Outcome, []byte) {}
	}
	f := &Follower{charter: charter, source: source, observe: observe, memory: m}
	var err error
	f.auth, err = f.begin(m)
	return f, err
}

// NewWitnessed is New for those who take the verdicts on nodes from the notaries,
// and fetch no evidence: see authority.NewWitnessed. It follows final checkpoints only.
func NewWitnessed(charter Digest, source Witness, observe func(authority.Outcome, []byte)) (*Follower, error) {
	f, err := New(charter, source, observe)
	if err != nil {
		return nil, err
	}
	f.witness = source
	f.auth, err = f.begin(nil)
	return f, err
}

// begin makes an empty fold.
func (f *Follower) begin(m Memory) (*authority.Authority, error) {
	if f.witness != nil {
		return authority.NewWitnessed(f.charter)
	}
	return Begin(f.charter, m)
}

// View calls fn with the fold and the last checkpoint accepted, while nothing
// else changes it. It refuses while the fold is not exactly at that checkpoint.
func (f *Follower) View(fn func(a *authority.Authority, c proof.Checkpoint, note []byte) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last.Size == 0 || f.auth.Size() != f.last.Size {
		return errors.New("follow: the state is not at a verified checkpoint; sync again")
	}
	return fn(f.auth, f.last, f.note)
}

// Trust is what checkpoints are held to in the given state.
func Trust(s *authority.State) (proof.Trust, error) {
	if s.Charter == nil {
		return proof.Trust{}, errors.New("follow: no charter yet")
	}
	return TrustAt(s, math.MaxUint64)
}

// TrustAt is what a checkpoint of the given size, not above that of the state,
// is held to.
func TrustAt(s *authority.State, size uint64) (proof.Trust, error) {
	w, ok := s.WatchAt(size)
	if !ok {
		return proof.Trust{}, errors.New("follow: no charter yet")
	}
	return w.Trust(s.Charter.Name)
}

// Final folds up to the checkpoint in note and accepts it if it is final.
func (f *Follower) Final(ctx context.Context, note []byte) (proof.Checkpoint, error) {
	return f.advance(ctx, note, rule{open: proof.OpenFinal})
}

// Committed is Final without the quorum: for those whose cosignature makes it.
// What was seen that way need not stay: a recovery drops entries that are not
// final. So a log with a further recovery may lack them, and no other log may.
func (f *Follower) Committed(ctx context.Context, note []byte) (proof.Checkpoint, error) {
	if f.witness != nil {
		return proof.Checkpoint{}, errors.New("follow: a checkpoint that is not final says nothing about nodes")
	}
	return f.advance(ctx, note, rule{open: proof.Open, droppable: true})
}

// A rule says what a checkpoint is held to.
type rule struct {
	open      func(note []byte, t proof.Trust) (proof.Checkpoint, []proof.Cosignature, error)
	droppable bool // a recovery may drop what was accepted before
}

// advance takes the checkpoint in note if the rule lets it. Entries folded for
// a checkpoint that did not verify are nobody's word: what a call that failed
// left in the fold is built on only as long as it proves right.
func (f *Follower) advance(ctx context.Context, note []byte, r rule) (proof.Checkpoint, error) {
	claimed, err := proof.Unverified(note)
	if err != nil {
		return proof.Checkpoint{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	renewed := r.droppable && f.last.Size > 0 && !f.signed(note)
	if claimed.Size < f.last.Size && !renewed {
		return claimed, fmt.Errorf("follow: checkpoint of %d entries, %d were seen: %w", claimed.Size, f.last.Size, ErrRollback)
	}
	if !renewed && claimed.Size >= f.auth.Size() {
		left := f.auth.Size() > f.last.Size || f.auth.Recalling()
		c, err := f.reach(ctx, f.auth, claimed, note, r)
		if !left || !errors.Is(err, authority.ErrRecall) && !errors.Is(err, ErrRollback) && (f.witness == nil || !errors.Is(err, errState)) {
			return c, err
		}
	}
	fresh, err := f.begin(nil)
	if err != nil {
		return claimed, err
	}
	return f.reach(ctx, fresh, claimed, note, r)
}

// signed reports whether the log key last seen in force signed the note.
func (f *Follower) signed(note []byte) bool {
	_, _, err := proof.Open(note, f.trust)
	return err == nil
}

// reach folds a up to the checkpoint's size and, if that is the checkpoint,
// accepts it.
func (f *Follower) reach(ctx context.Context, a *authority.Authority, claimed proof.Checkpoint, note []byte, r rule) (proof.Checkpoint, error) {
	if err := f.fold(ctx, a, claimed.Size); err != nil {
		return claimed, err
	}
	if a.Recalling() {
		return claimed, fmt.Errorf("follow: the checkpoint of %d entries is older than what was kept: %w", claimed.Size, authority.ErrRecall)
	}
	trust, err := f.check(a, claimed, note, r)
	if err != nil {
		return claimed, err
	}
	f.kept, _ = Keep(f.memory, a, f.kept) // a memory says itself that it failed
	f.auth, f.last, f.note, f.trust, f.recoveries = a, claimed, note, trust, a.State().Recoveries
	return claimed, nil
}

// check holds a fold and the checkpoint of its size against each other, with
// the keys of the very state that the checkpoint is about.
func (f *Follower) check(a *authority.Authority, claimed proof.Checkpoint, note []byte, r rule) (proof.Trust, error) {
	if root, ok := a.RootAt(claimed.Size); !ok || root != Digest(claimed.Root) {
		return proof.Trust{}, fmt.Errorf("follow: checkpoint at size %d has root %s, the entries give %s: %w", claimed.Size, Digest(claimed.Root), root, ErrRollback)
	}
	if a.State().Charter == nil {
		return proof.Trust{}, fmt.Errorf("follow: the log does not begin with charter %s, the one given as anchor", f.charter)
	}
	trust, err := Trust(a.State())
	if err != nil {
		return trust, err
	}
	if _, _, err := r.open(note, trust); err != nil {
		return trust, err
	}
	if !f.extended(a) && !(r.droppable && a.State().Recoveries > f.recoveries) {
		return trust, fmt.Errorf("follow: entries below %d are not those seen before: %w", f.last.Size, ErrRollback)
	}
	if a.StateDigest() != Digest(claimed.State) {
		return trust, fmt.Errorf("follow: checkpoint at size %d has state %s, this fold gives %s: %w", claimed.Size, Digest(claimed.State), a.StateDigest(), errState)
	}
	return trust, nil
}

// extended reports whether a contains the checkpoint last accepted.
func (f *Follower) extended(a *authority.Authority) bool {
	root, ok := a.RootAt(f.last.Size)
	return f.last.Size == 0 || ok && root == Digest(f.last.Root)
}

// fold applies entries up to size. A missing blob stops it where it is; the
// next call goes on.
func (f *Follower) fold(ctx context.Context, a *authority.Authority, size uint64) error {
	blobs := fetcher{ctx, f.source}
	if err := f.doubt(ctx, a, size); err != nil {
		return err
	}
	for a.Size() < size {
		from := a.Size()
		lines, err := f.source.Entries(ctx, from, size)
		if err != nil {
			return fmt.Errorf("follow: entries from %d: %w", from, err)
		}
		if len(lines) == 0 {
			return fmt.Errorf("follow: the source has no entry %d of %d", from, size)
		}
		if from == 0 {
			lines = lines[:1] // the charter, which says by whom the rest is signed
		}
		lines = lines[:min(uint64(len(lines)), size-from)]
		if err := a.ApplyAll(lines, blobs, f.observe); err != nil {
			return err
		}
	}
	return nil
}

// doubt asks which of the entries to fold had no effect.
func (f *Follower) doubt(ctx context.Context, a *authority.Authority, size uint64) error {
	if f.witness == nil || a.Size() >= size {
		return nil
	}
	indexes, err := f.witness.Void(ctx, a.Size(), size)
	if err != nil {
		return fmt.Errorf("follow: entries without effect from %d: %w", a.Size(), err)
	}
	void := make(map[uint64]bool, len(indexes))
	for _, i := range indexes {
		void[i] = true
	}
	a.Doubt(void)
	return nil
}

// fetcher lets the fold, which knows no context, look blobs up.
type fetcher struct {
	ctx    context.Context
	source Source
}

func (b fetcher) Blob(d Digest) ([]byte, error) { return b.source.Blob(b.ctx, d) }

// Blobs returns the source's blobs for use with the fold.
func (f *Follower) Blobs(ctx context.Context) authority.Blobs { return fetcher{ctx, f.source} }

// Source returns where entries come from.
func (f *Follower) Source() Source { return f.source }

// Seen is the last accepted checkpoint, as a document carries it.
func (f *Follower) Seen() signoff.Seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	return signoff.Seen{Size: f.last.Size, Root: Digest(f.last.Root)}
}
