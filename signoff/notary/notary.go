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
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
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
	Log      *slog.Logger
}

// A Notary is a running notary. One goroutine does duties, one witnesses.
type Notary struct {
	cfg      Config
	id       Digest
	index    uint16
	name     string
	follower *follow.Follower
	store    *store

	mu        sync.Mutex
	finalSize uint64 // entries below it are final, and agree with the own fold
	woken     time.Time

	// The duties' own memory; only their goroutine touches it.
	signing    map[Digest]*signSession
	evidence   *api.Reader
	offered    []Digest
	epochSeen  uint64
	epochSince int64
	tickRound  uint64
	tickSince  time.Time // when a tick of this round was seen first
	enrols     map[Digest]*enrolSession

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
	f, err := follow.New(cfg.Charter, cfg.Client, nil)
	if err != nil {
		return nil, err
	}
	return &Notary{cfg: cfg, id: fp, follower: f, store: st, signing: map[Digest]*signSession{}, enrols: map[Digest]*enrolSession{},
		halts: map[Digest]*signoff.Signed{}}, nil
}

// Run works until ctx ends. Errors of single duties are logged and tried
// again; an error that means misbehaviour ends Run.
func (n *Notary) Run(ctx context.Context) error {
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

// witness cosigns each new checkpoint that extends the last one and whose
// state is what the own fold gives.
func (n *Notary) witness(ctx context.Context) error {
	for ctx.Err() == nil {
		last := n.store.position()
		note, err := n.cfg.Client.Checkpoint(ctx, false, last.Size+1, 10*time.Second)
		if err == nil {
			err = n.cosign(ctx, note)
		}
		switch {
		case err == nil:
		case errors.Is(err, follow.ErrRollback):
			n.cfg.Log.Error("the coordinator shows another log; cosigning nothing", "err", err)
			pause(ctx, 2*time.Second)
		default:
			n.cfg.Log.Warn("cannot cosign yet", "err", err)
			pause(ctx, 500*time.Millisecond)
		}
	}
	return nil
}

// cosign persists the checkpoint before it signs it: after a crash in between
// the same checkpoint can be signed again, and no other one of its size.
func (n *Notary) cosign(ctx context.Context, note []byte) error {
	claimed, err := proof.Unverified(note)
	if err != nil {
		return err
	}
	last := n.store.position()
	if claimed.Size < last.Size {
		return fmt.Errorf("notary: the coordinator shows %d entries, %d were cosigned", claimed.Size, last.Size)
	}
	c, err := n.follower.Committed(ctx, note)
	if err != nil {
		return err
	}
	if err := n.whoAmI(); err != nil {
		return err
	}
	if err := n.extends(last); err != nil {
		return err
	}
	if err := n.store.setPosition(signoff.Seen{Size: c.Size, Root: Digest(c.Root)}); err != nil {
		return err
	}
	line, err := proof.Cosign(ctx, note, n.name, n.cfg.Witness, uint64(time.Now().Unix()))
	if err != nil {
		return err
	}
	signed, err := proof.AddCosignature(note, line)
	if err != nil {
		return err
	}
	return n.cfg.Client.Cosign(ctx, signed)
}

// extends refuses a fold that does not contain the checkpoint seen.
func (n *Notary) extends(seen signoff.Seen) error {
	if seen.Size == 0 {
		return nil
	}
	return n.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		root, ok := a.RootAt(seen.Size)
		if !ok {
			return fmt.Errorf("notary: the log shown has %d entries, %d were cosigned", a.Size(), seen.Size)
		}
		if root != seen.Root {
			return fmt.Errorf("notary: at size %d root %s was cosigned, this log has %s: %w", seen.Size, seen.Root, root, follow.ErrRollback)
		}
		return nil
	})
}

// whoAmI finds this notary in the charter, once.
func (n *Notary) whoAmI() error {
	if n.index != 0 {
		return nil
	}
	return n.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		me, index, ok := a.State().Notary(n.id)
		if !ok {
			return fmt.Errorf("notary: key %s is no notary's of charter %s", n.id, n.cfg.Charter)
		}
		if err := n.checkKeys(me); err != nil {
			return err
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.name, n.index = me.Name, index
		return nil
	})
}

// checkKeys refuses to start with keys that the charter does not name.
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
			return fmt.Errorf("notary: %s key %s is not the charter's %s", k.use, Digest(fp), k.want)
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
		trust, err := follow.Trust(a.State())
		if err != nil {
			return err
		}
		c, _, err := proof.OpenFinal(note, trust)
		if err != nil {
			return err
		}
		if root, ok := a.RootAt(c.Size); !ok || root != Digest(c.Root) {
			return fmt.Errorf("notary: final checkpoint at size %d is not on the own fold yet", c.Size)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.finalSize = max(n.finalSize, c.Size)
		return nil
	})
}

func (n *Notary) final() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.finalSize
}

// append signs a document and appends it. A document that others' entries
// made void is no error: the state already says what it would have said.
func (n *Notary) append(ctx context.Context, d signoff.Document) error {
	s, err := signoff.Sign(ctx, n.cfg.Signing, d)
	if err != nil {
		return err
	}
	_, err = n.cfg.Client.Append(ctx, s.Line())
	var refused *api.Error
	if errors.As(err, &refused) && refused.Status == 422 {
		n.cfg.Log.Debug("entry refused", "kind", d.Kind(), "why", refused.Text)
		return nil
	}
	return err
}

// Init makes the directory of a new notary. It is done once, at the genesis
// or when a lost notary is replaced; a notary without it does not start.
func Init(dir string, charter Digest) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("notary: %w", err)
	}
	return initStore(dir, charter)
}
