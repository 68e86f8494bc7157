// Package notary is the independent host that checks everything again. A
// notary folds the whole log itself, cosigns what its own fold agrees with,
// and does its duties by what it sees there: it keeps time, takes part in key
// generation, activates nodes, signs warrants with its share of the group key
// and releases its share of the machines' factor.
//
// It takes orders from nobody. The coordinator it speaks to can withhold or
// reorder, which stalls; it cannot make a notary sign what the log does not
// give. Everything a notary must not forget is on disk before it is said.
package notary

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/proof"
)

// Digest is a SHA-256 value.
type Digest = dsse.Digest

// maxLag is how far fold time may be from the own clock for anything that
// lets something happen: warrants, releases, epochs.
const maxLag = 60

// Config is what a notary runs with.
type Config struct {
	Charter  Digest        // the trust anchor
	Dir      string        // what must survive a restart; made by Init
	Client   *api.Client   // the coordinators
	Signing  hsm.Key       // P-256, documents
	Exchange hsm.Decrypter // P-256, shares
	Witness  hsm.Key       // Ed25519, cosignatures
	Sealer   hsm.Sealer    // keeps the group key share
	Fuse     *Fuse         // nil: none, and the directory was made with none
	Log      *slog.Logger

	// Forget destroys the exchange key for good, once this notary has left
	// office and holds no share of anything; nil leaves it to the operator.
	Forget func(context.Context) error
}

// A Notary is a running notary. One goroutine does duties, one witnesses.
type Notary struct {
	cfg      Config
	id       Digest
	follower *follow.Follower
	store    *store

	mu        sync.Mutex
	name      string // as the log has it
	finalSize uint64 // entries below it are final, and agree with the own fold
	finalNote []byte // the checkpoint that says so
	woken     time.Time
	// By notary's name, the newest of these checkpoints with its cosignature.
	cosignedBy map[string][]byte

	// The duties' own memory; only their goroutine touches it.
	signing    map[Digest]*signSession
	faults     map[culprit]*fault
	burned     map[Digest]bool // payloads, of warrants in which this process has given a share
	evidence   *api.Reader
	offers     map[Digest]*offer // by node
	epochSeen  uint64
	epochSince int64
	wakes      wakes
	tickRound  uint64
	tickSince  time.Time // when a tick of this round was seen first
	waiting    longWait
	enrols     map[Digest]*enrolSession
	handover   uint32    // term whose takeover this notary waits to append
	handSince  time.Time // since when
	erased     Digest    // group beside whose share nothing is left on disk
	moving     moving
	forgot     bool // the exchange key is destroyed, or cannot be

	passed signoff.Seen // looked at and not this notary's to cosign; only witness touches it

	halts map[Digest]*signoff.Signed // seen in the mailbox, perhaps not yet in the log
}

// New opens a notary whose directory Init made.
func New(cfg Config) (*Notary, error) {
	st, err := openStore(cfg.Dir, cfg.Charter)
	if err != nil {
		return nil, err
	}
	fp, err := hsm.Fingerprint(cfg.Signing.Public())
	if err != nil {
		return nil, err
	}
	f, err := follow.Remember(cfg.Charter, cfg.Client, nil, memory{st, cfg.Log})
	if err != nil {
		return nil, err
	}
	return &Notary{cfg: cfg, id: fp, follower: f, store: st, signing: map[Digest]*signSession{}, faults: map[culprit]*fault{}, burned: map[Digest]bool{}, enrols: map[Digest]*enrolSession{}, offers: map[Digest]*offer{}, cosignedBy: map[string][]byte{},
		moving: moving{unfit: map[Digest]uint32{}}, halts: map[Digest]*signoff.Signed{}}, nil
}

// Close lets go of the notary's directory. Run does so at its end.
func (n *Notary) Close() error { return n.store.close() }

// Run works until ctx ends. Errors of single duties are logged and tried
// again; an error that means misbehaviour ends Run.
func (n *Notary) Run(ctx context.Context) error {
	defer n.Close()
	if err := n.arm(ctx); err != nil {
		return err
	}
	if err := n.recall(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context) error{n.witness, n.finality, n.duties, n.listen, n.answerPositions} {
		wg.Go(func() {
			if err := loop(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// pause waits a moment, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// lookEvery is how long a coordinator that lost cosignatures waits for them.
const lookEvery = 3 * time.Second

// witness cosigns each new checkpoint that extends the last one and whose
// state is what the own fold gives. After a failure, and now and then, it
// looks at the checkpoint that is there even if it is not new: a coordinator
// that restarted asks again for cosignatures that it lost.
func (n *Notary) witness(ctx context.Context) error {
	again := true
	for ctx.Err() == nil {
		size := max(n.store.position().Seen.Size, n.passed.Size) + 1
		if again {
			size = 1
		}
		note, err := n.cfg.Client.Checkpoint(ctx, false, size, lookEvery)
		if err == nil && !n.settled(note) {
			err = n.cosign(ctx, note)
		}
		again = err != nil
		var refused *api.Error
		switch {
		case err == nil, ctx.Err() != nil:
		case errors.Is(err, ErrFuse):
			return err
		case errors.Is(err, follow.ErrRollback):
			n.cfg.Log.Error("the coordinator shows another log; cosigning nothing", "err", err)
			pause(ctx, 2*time.Second)
		case errors.As(err, &refused) && refused.Status == http.StatusNotFound: // nothing new
		default:
			n.cfg.Log.Warn("cannot cosign yet", "err", err)
			pause(ctx, 500*time.Millisecond)
		}
	}
	return nil
}

// settled reports whether the note is one that was cosigned and needs nothing
// more from this notary: its cosignature is there or a quorum's are.
func (n *Notary) settled(note []byte) bool {
	c, err := proof.Unverified(note)
	if err != nil {
		return false
	}
	seen := signoff.Seen{Size: c.Size, Root: Digest(c.Root)}
	if seen == n.passed {
		return true
	}
	if seen != n.store.position().Seen {
		return false
	}
	if c.Size <= n.final() {
		return true
	}
	return n.cosigned(note)
}

// cosigned reports whether the note has this notary's cosignature.
func (n *Notary) cosigned(note []byte) bool {
	key, ok := n.cfg.Witness.Public().(ed25519.PublicKey)
	if !ok {
		return false
	}
	for line := range bytes.Lines(note) {
		if _, err := proof.VerifyCosignature(note, line, proof.Witness{Name: n.myName(), Key: key}); err == nil {
			return true
		}
	}
	return false
}

// cosign persists the checkpoint before it signs it: after a crash in between
// the same checkpoint can be signed again, and no other one of its size.
func (n *Notary) cosign(ctx context.Context, note []byte) error {
	c, err := n.follower.Committed(ctx, note)
	if err != nil {
		return err
	}
	recoveries, err := n.extends(n.store.position())
	if err != nil {
		return err
	}
	seen := signoff.Seen{Size: c.Size, Root: Digest(c.Root)}
	if mine, err := n.cosigns(); err != nil || !mine {
		n.passed = seen
		return err
	}
	if err := n.store.advance(ctx, time.Now(), seen, recoveries); err != nil {
		return err
	}
	line, err := proof.Cosign(ctx, note, n.myName(), n.cfg.Witness, uint64(time.Now().Unix()))
	if err != nil {
		return err
	}
	signed, err := proof.AddCosignature(note, line)
	if err != nil {
		return err
	}
	return n.cfg.Client.Cosign(ctx, signed)
}

// extends refuses a fold that does not contain the checkpoint cosigned last,
// unless the log was recovered since: a recovery has a quorum's word that
// nothing final is dropped, and what else was cosigned may be. It returns how
// often the log was recovered.
func (n *Notary) extends(p position) (recoveries uint64, err error) {
	err = n.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		recoveries = a.State().Recoveries
		if p.Seen.Size == 0 || recoveries > p.Recoveries {
			return nil
		}
		root, ok := a.RootAt(p.Seen.Size)
		if !ok {
			return fmt.Errorf("notary: the log shown has %d entries, %d were cosigned: %w", a.Size(), p.Seen.Size, follow.ErrRollback)
		}
		if root != p.Seen.Root {
			return fmt.Errorf("notary: at size %d root %s was cosigned, this log has %s: %w", p.Seen.Size, p.Seen.Root, root, follow.ErrRollback)
		}
		return nil
	})
	return recoveries, err
}

// cosigns reports whether this notary's cosignature counts for the checkpoint
// that was followed last. Another council's checkpoints are not its to cosign.
func (n *Notary) cosigns() (mine bool, err error) {
	err = n.follower.View(func(a *authority.Authority, c proof.Checkpoint, _ []byte) error {
		w, _ := a.State().WatchAt(c.Size)
		mine = slices.ContainsFunc(w.Councils, func(c signoff.Council) bool { _, _, ok := c.Find(n.id); return ok })
		return nil
	})
	return mine, err
}

// whoAmI finds this notary in the log, once.
func (n *Notary) whoAmI() error {
	if n.myName() != "" {
		return nil
	}
	return n.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		me, ok := a.State().AnyNotary(n.id)
		if !ok {
			return fmt.Errorf("notary: key %s is no notary's of charter %s, and no open request brings it in", n.id, n.cfg.Charter)
		}
		if err := n.checkKeys(me); err != nil {
			return err
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.name = me.Name
		return nil
	})
}

func (n *Notary) myName() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.name
}

// checkKeys refuses to start with keys that the log does not name.
func (n *Notary) checkKeys(me *signoff.Notary) error {
	for _, k := range []struct {
		use  string
		have any
		want Digest
	}{{"witness", n.cfg.Witness.Public(), me.Witness.Fingerprint()}, {"exchange", n.cfg.Exchange.PublicKey(), me.Exchange.Fingerprint()}} {
		fp, err := hsm.Fingerprint(k.have)
		if err != nil {
			return err
		}
		if Digest(fp) != k.want {
			return fmt.Errorf("notary: %s key %s is not the one in the log, %s", k.use, Digest(fp), k.want)
		}
	}
	return nil
}

// finality learns how much of the log is final. It never folds: a final
// checkpoint counts once the own fold has reached it and agrees.
func (n *Notary) finality(ctx context.Context) error {
	for ctx.Err() == nil {
		note, err := n.cfg.Client.Checkpoint(ctx, true, n.final()+1, 10*time.Second)
		if err == nil {
			err = n.markFinal(note)
		}
		if err != nil {
			pause(ctx, 100*time.Millisecond)
		}
	}
	return nil
}

func (n *Notary) markFinal(note []byte) error {
	return n.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		claimed, err := proof.Unverified(note)
		if err != nil {
			return err
		}
		trust, err := follow.TrustAt(a.State(), claimed.Size)
		if err != nil {
			return err
		}
		c, cosignatures, err := proof.OpenFinal(note, trust)
		if err != nil {
			return err
		}
		if root, ok := a.RootAt(c.Size); !ok || root != Digest(c.Root) {
			return fmt.Errorf("notary: final checkpoint at size %d is not on the own fold yet", c.Size)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if c.Size > n.finalSize {
			n.finalSize, n.finalNote = c.Size, note
			for _, x := range cosignatures {
				n.cosignedBy[x.Name] = note
			}
		}
		return nil
	})
}

func (n *Notary) final() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.finalSize
}

// sign signs a document, if this process may still speak for the notary.
func (n *Notary) sign(ctx context.Context, d signoff.Document) (*signoff.Signed, error) {
	if err := n.store.hold(ctx); err != nil {
		return nil, err
	}
	return signoff.Sign(ctx, n.cfg.Signing, d)
}

// append signs a document and appends it. A document that others' entries
// made void is no error: the state already says what it would have said.
func (n *Notary) append(ctx context.Context, d signoff.Document) error {
	_, err := n.appendAt(ctx, d)
	return err
}

// appendAt also says at which index; 0 of a document that is void.
func (n *Notary) appendAt(ctx context.Context, d signoff.Document) (uint64, error) {
	s, err := n.sign(ctx, d)
	if err != nil {
		return 0, err
	}
	out, err := n.cfg.Client.Append(ctx, s.Line())
	var refused *api.Error
	if errors.As(err, &refused) && refused.Status == 422 {
		n.cfg.Log.Debug("entry refused", "kind", d.Kind(), "why", refused.Text)
		return 0, nil
	}
	return out.Index, err
}

// Init makes the directory of a new notary. It is done once, at the genesis
// or when a lost notary is replaced; a notary without it does not start.
func Init(dir string, charter Digest) error {
	if err := checkNew(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("notary: %w", err)
	}
	return (&store{dir: dir}).save(position{Charter: charter})
}
