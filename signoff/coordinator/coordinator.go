// Package coordinator runs the mailbox of the cluster: it puts entries in one
// order, writes them into tiles, signs checkpoints, collects the notaries'
// cosignatures and passes mail and blobs on. It is trusted with nothing but
// being there. Root on a coordinator can stall the log or hide news from it
// for at most a lease; it cannot forge, open or fork unnoticed.
//
// One goroutine owns the way from the order to the checkpoint. Its steps, and
// what is true if the process dies between them:
//
//  1. an entry commits in the order: it is durable and has its place;
//  2. it is written into tiles: a restart finds it in the order and goes on;
//  3. it is folded: a restart folds the tiles again;
//  4. a checkpoint over it is signed: signing again gives the same bytes,
//     because the entries, the root and the state are the same;
//  5. a quorum cosigns: the final note is saved; notaries cosign again what
//     they cosigned before.
package coordinator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/log"
	"github.com/keyturn/keyturn/signoff/proof"
)

// Digest is a SHA-256 value.
type Digest = dsse.Digest

// An Order puts entries in one sequence, durably. See signoff/log/etcd.
type Order interface {
	// Append commits leaf; the same id again returns the same index.
	Append(ctx context.Context, id [16]byte, leaf []byte) (index uint64, existed bool, err error)
	// Head is the number of committed entries.
	Head(ctx context.Context) (uint64, error)
	// Entries returns at most limit committed entries beginning at from.
	Entries(ctx context.Context, from uint64, limit int) ([][]byte, error)
	// Restore fills an order that lost its entries, from index on.
	Restore(ctx context.Context, from uint64, leaves [][]byte) error
}

// Config is what a coordinator runs with.
type Config struct {
	Charter Digest
	Genesis [][]byte // first entries, appended if the log is empty
	Order   Order
	Archive *log.Archive
	LogKey  hsm.Key // Ed25519
	Log     *slog.Logger
	Memory  follow.Memory // of earlier runs; nil: appraises every epoch again
}

// A Coordinator is a running coordinator.
type Coordinator struct {
	cfg  Config
	mail *mail
	wake chan struct{}
	free func() (uint64, error) // bytes that the archive's disk has left

	rations rations

	mu       sync.Mutex
	auth     *authority.Authority // folded up to the archive's size
	outcomes map[uint64]error     // of recent entries
	kept     uint64               // number of the last epoch that the memory holds
	epochs   []*authority.Epoch   // the last final one, as far as it was seen here, and those after it
	pending  []byte               // signed note not yet final, or nil
	final    []byte               // newest note with a quorum, or nil
	changed  chan struct{}        // closed and replaced whenever pending, final or the size changes
}

// New brings archive and order together and refuses to start if one of them
// went back or was rewritten.
func New(ctx context.Context, cfg Config) (*Coordinator, error) {
	c := &Coordinator{cfg: cfg, mail: newMail(), wake: make(chan struct{}, 1), free: cfg.Archive.Free,
		outcomes: map[uint64]error{}, changed: make(chan struct{})}
	if err := c.reconcile(ctx); err != nil {
		return nil, err
	}
	if err := c.refold(ctx, cfg.Memory); err != nil {
		return nil, err
	}
	c.noteEpoch()
	return c, c.loadFinal(ctx)
}

// reconcile compares the order with the tiles. An empty order is filled from
// the tiles, which are the backup; one that disagrees is not started on.
func (c *Coordinator) reconcile(ctx context.Context) error {
	size := c.cfg.Archive.Size()
	head, err := c.cfg.Order.Head(ctx)
	if err != nil {
		return err
	}
	switch {
	case head == 0 && size > 0:
		err = c.refill(ctx, size)
	case head < size:
		err = fmt.Errorf("coordinator: the order has %d entries, the tiles %d: the order was rolled back; move its directory away and it is rebuilt from the tiles", head, size)
	default:
		err = c.compare(ctx, size)
	}
	if err != nil {
		return err
	}
	return c.genesis(ctx, max(head, size))
}

// genesis appends what a log that has only head entries lacks of its first
// ones: all of them, or those that an earlier start did not come to.
func (c *Coordinator) genesis(ctx context.Context, head uint64) error {
	lines := c.cfg.Genesis
	if head >= uint64(len(lines)) {
		return nil
	}
	have, err := c.cfg.Order.Entries(ctx, 0, len(lines))
	if err != nil {
		return err
	}
	if !slices.EqualFunc(have, lines[:head], bytes.Equal) {
		return fmt.Errorf("coordinator: the log's %d entries are not how this charter's log begins; refusing to start", head)
	}
	for _, line := range lines[head:] {
		if _, _, err := c.cfg.Order.Append(ctx, entryID(line), line); err != nil {
			return fmt.Errorf("coordinator: append genesis entry: %w", err)
		}
	}
	return nil
}

func (c *Coordinator) refill(ctx context.Context, size uint64) error {
	c.cfg.Log.Warn("the order is empty; rebuilding it from the tiles", "entries", size)
	return c.each(ctx, size, func(from uint64, lines [][]byte) error {
		return c.cfg.Order.Restore(ctx, from, lines)
	})
}

// compare checks the newest entries that both have.
func (c *Coordinator) compare(ctx context.Context, size uint64) error {
	if size == 0 {
		return nil // the process died before the first entry was in tiles
	}
	from := size - min(size, batch)
	have, err := c.cfg.Archive.Leaves(ctx, from, size)
	if err != nil {
		return err
	}
	ordered, err := c.cfg.Order.Entries(ctx, from, int(size-from))
	if err != nil {
		return err
	}
	for i := range have {
		if i >= len(ordered) || string(have[i]) != string(ordered[i]) {
			return fmt.Errorf("coordinator: entry %d differs between order and tiles: one of them was rewritten; refusing to start", from+uint64(i))
		}
	}
	return nil
}

// batch is how many entries move at a time.
const batch = 256

// each hands the archive's entries below size to do, a batch at a time.
func (c *Coordinator) each(ctx context.Context, size uint64, do func(from uint64, lines [][]byte) error) error {
	for from := uint64(0); from < size; from += batch {
		lines, err := c.cfg.Archive.Leaves(ctx, from, min(size, from+batch))
		if err != nil {
			return err
		}
		if err := do(from, lines); err != nil {
			return err
		}
	}
	return nil
}

// refold folds the tiles. A missing blob stops it where it is, as it did
// before the restart: the coordinator must run for the blob to come. What m holds
// and this log does not bear out is passed over.
func (c *Coordinator) refold(ctx context.Context, m follow.Memory) (err error) {
	if c.auth, err = follow.Begin(c.cfg.Charter, m); err != nil {
		return err
	}
	err = c.each(ctx, c.cfg.Archive.Size(), func(_ uint64, lines [][]byte) error {
		for _, line := range lines {
			if _, err := c.auth.Apply(line, c.blobs(ctx)); err != nil {
				return err
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, authority.ErrRecall), c.auth.Recalling() && ctx.Err() == nil:
		c.cfg.Log.Warn("the verdicts kept are not of this log: appraising all evidence again", "err", err)
		return c.refold(ctx, nil)
	case errors.Is(err, authority.ErrMissingBlob):
		return nil
	}
	return err
}

// loadFinal takes up the last final note and refuses tiles that do not
// contain it.
func (c *Coordinator) loadFinal(ctx context.Context) error {
	note, err := c.cfg.Archive.Checkpoint(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	cp, err := proof.Unverified(note)
	if err != nil {
		return err
	}
	size := c.cfg.Archive.Size()
	if root, err := c.cfg.Archive.Root(min(cp.Size, size)); err != nil || cp.Size > size || root != cp.Root {
		return fmt.Errorf("coordinator: the tiles hold %d entries and do not contain the final checkpoint at size %d: they were rolled back or rewritten; refusing to start", size, cp.Size)
	}
	c.final = note
	return nil
}

// archiveBlobs lets the fold look blobs up on disk.
type archiveBlobs struct {
	ctx     context.Context
	archive *log.Archive
}

func (b archiveBlobs) Blob(d Digest) ([]byte, error) {
	data, err := b.archive.Blob(b.ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", d, authority.ErrMissingBlob)
	}
	return data, err
}

func (c *Coordinator) blobs(ctx context.Context) authority.Blobs {
	return archiveBlobs{ctx, c.cfg.Archive}
}

// entryID makes an idempotency id from what it is for.
func entryID(b []byte) [16]byte {
	d := dsse.Sum("keyturn/entry-id/v1", b)
	return [16]byte(d[:16])
}

// Run moves entries from the order into tiles and signs checkpoints until ctx
// ends.
func (c *Coordinator) Run(ctx context.Context) error {
	for {
		n, err := c.sequence(ctx)
		err = errors.Join(err, c.propose(ctx)) // what could be folded can be signed
		if ctx.Err() != nil {
			return nil
		}
		again := 250 * time.Millisecond // another coordinator may have appended
		if err != nil {
			c.cfg.Log.Error("the log stands still", "err", err)
			again = time.Second
		} else if n > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case <-time.After(again):
		}
	}
}

// poke makes Run look now.
func (c *Coordinator) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// sequence writes what the order has beyond the tiles, and folds it.
func (c *Coordinator) sequence(ctx context.Context) (int, error) {
	size := c.cfg.Archive.Size()
	lines, err := c.cfg.Order.Entries(ctx, size, batch)
	if err != nil {
		return 0, err
	}
	if len(lines) > 0 {
		if err := c.cfg.Archive.Append(lines); err != nil {
			return 0, err
		}
	}
	return len(lines), c.foldNew(ctx)
}

// foldNew folds what the tiles have beyond the fold.
func (c *Coordinator) foldNew(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines, err := c.cfg.Archive.Leaves(ctx, c.auth.Size(), c.cfg.Archive.Size())
	if err != nil || len(lines) == 0 {
		return err
	}
	defer c.announce()
	for _, line := range lines {
		out, err := c.auth.Apply(line, c.blobs(ctx))
		if err != nil {
			return err
		}
		if out.Void != nil {
			c.cfg.Log.Warn("void entry", "index", out.Index, "kind", out.Kind, "why", out.Void)
		}
		c.noteEpoch()
		c.outcomes[out.Index] = out.Void
		delete(c.outcomes, out.Index-min(out.Index, 65536))
	}
	if c.kept, err = follow.Keep(c.cfg.Memory, c.auth, c.kept); err != nil {
		c.cfg.Log.Warn("verdicts are not kept: the next start takes longer", "err", err)
	}
	return nil
}

// noteEpoch keeps the epoch in force beside those that nodes still go by: to them it
// is not there before it is final, which may take long. The caller holds mu.
func (c *Coordinator) noteEpoch() {
	e := c.auth.State().Epoch
	if e == nil || len(c.epochs) > 0 && c.epochs[len(c.epochs)-1] == e {
		return
	}
	final := noteSize(c.final)
	for len(c.epochs) > 1 && c.epochs[1].Index < final {
		c.epochs = c.epochs[1:]
	}
	if len(c.epochs) == maxEpochs {
		c.epochs = c.epochs[1:]
	}
	c.epochs = append(c.epochs, e)
}

// maxEpochs bounds the epochs kept. Honest notaries propose none before the last one
// is final.
const maxEpochs = 4

// announce wakes everyone who waits for news. The caller holds mu.
func (c *Coordinator) announce() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// propose signs a checkpoint over everything folded, unless one is still
// waiting for a quorum that it can have. Signing comes after commit, and only over a root
// that tiles and fold agree on and that extends the last final one.
func (c *Coordinator) propose(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := c.auth.Size()
	if c.pending != nil && !c.outgrown() || size == 0 || size == noteSize(c.final) {
		return nil
	}
	root, err := c.cfg.Archive.Root(size)
	if err != nil {
		return err
	}
	if Digest(root) != c.auth.Root() {
		return fmt.Errorf("coordinator: tiles and fold disagree at size %d; refusing to sign", size)
	}
	s := c.auth.State()
	if s.Charter == nil {
		return errors.New("coordinator: the log does not begin with the charter that was given; refusing to sign")
	}
	cp := proof.Checkpoint{Origin: s.Charter.Name, Size: size, Root: root, State: c.auth.StateDigest()}
	note, err := proof.SignCheckpoint(ctx, cp, s.Charter.Name, c.cfg.LogKey)
	if err != nil {
		return err
	}
	trust, err := follow.Trust(s)
	if err != nil {
		return err
	}
	if _, _, err := proof.Open(note, trust); err != nil {
		return fmt.Errorf("coordinator: the log key here is not the one in force: %w", err)
	}
	c.pending = note
	c.announce()
	return nil
}

// outgrown reports whether a takeover stands in the log beyond the pending
// checkpoint. That one waits for the council that left, too, which may be gone;
// the next needs the new one alone, and has the pending one's entries in it. The
// caller holds mu.
func (c *Coordinator) outgrown() bool {
	t := c.auth.State().Term()
	return t.Number > 1 && t.Index >= noteSize(c.pending)
}

func noteSize(note []byte) uint64 {
	if note == nil {
		return 0
	}
	cp, err := proof.Unverified(note)
	if err != nil {
		return 0
	}
	return cp.Size
}

// addCosignature takes a note with a cosignature. With the quorum's last one
// the checkpoint is final, saved, and the next can be proposed.
func (c *Coordinator) addCosignature(signed []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil || noteSize(signed) != noteSize(c.pending) {
		return nil // late: this checkpoint is final already, or another is pending
	}
	trust, err := follow.TrustAt(c.auth.State(), noteSize(c.pending))
	if err != nil {
		return err
	}
	merged, err := mergeCosignatures(c.pending, signed, trust)
	if err != nil {
		return err
	}
	if _, _, err := proof.OpenFinal(merged, trust); errors.Is(err, proof.ErrNotFinal) {
		c.pending = merged
		return nil
	} else if err != nil {
		return err
	}
	if err := c.cfg.Archive.PutCheckpoint(merged); err != nil {
		return err
	}
	c.final, c.pending = merged, nil
	c.announce()
	c.poke()
	return nil
}
