package notary

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/tpm"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// ErrFuse: the notary's TPM does not say that this is the one and newest state of
// the notary. It must not be used; [Notary.Run] ends.
var ErrFuse = errors.New("the fuse")

// burnEvery is how long a directory is used at one value of the counter: a copy of
// it that is older is refused. Each change wears the TPM's memory; this makes nine
// thousand a year.
const burnEvery = time.Hour

// A Fuse is where a notary's counter is. The directory says which value it was
// written at, and is used only while the counter has that value. The counter moves
// on at each start, before the first share in each warrant, and each hour.
type Fuse struct {
	TPM   *tpm.TPM
	Index uint32 // NV index, 0x01800000 to 0x01bfffff
}

// fuseFile keeps a fuseSecret, sealed.
const fuseFile = "fuse.sealed"

// A fuseSecret is made once with the directory, and never changed.
type fuseSecret struct {
	Counter tpm.CounterKey `json:"counter"`
	Key     []byte         `json:"key"` // 32 bytes, of the MAC in position.json
}

// mac binds a position to the fuse's value, so that nobody mends a file that was
// refused by writing another number into it.
func (p position) mac(key []byte) (Digest, error) {
	p.MAC = Digest{}
	b, err := dsse.Encode(p)
	if err != nil {
		return Digest{}, err
	}
	h := hmac.New(sha256.New, key)
	h.Write(b)
	return Digest(h.Sum(nil)), nil
}

// InitFused is [Init] for a notary with a fuse. It needs cfg's Charter, Dir,
// Signing, Sealer and Fuse. The counter is new, at a free index.
func InitFused(ctx context.Context, cfg Config) error {
	if cfg.Fuse == nil {
		return errors.New("notary: make a directory with a fuse: no TPM is named")
	}
	if err := checkNew(cfg.Dir); err != nil {
		return err
	}
	id, err := hsm.Fingerprint(cfg.Signing.Public())
	if err != nil {
		return err
	}
	secret := fuseSecret{Key: make([]byte, 32)}
	rand.Read(secret.Key)
	if secret.Counter, err = cfg.Fuse.TPM.NewCounter(ctx, cfg.Fuse.Index); err != nil {
		return fmt.Errorf("notary: %w", err)
	}
	counter, err := cfg.Fuse.TPM.Counter(ctx, secret.Counter)
	if err != nil {
		return fmt.Errorf("notary: %w", err)
	}
	defer counter.Close()
	value, err := counter.Read(ctx)
	if err != nil {
		return fmt.Errorf("notary: %w", err)
	}
	plain, err := dsse.Encode(secret)
	if err != nil {
		return err
	}
	defer clear(plain)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("notary: %w", err)
	}
	n := &Notary{cfg: cfg, id: id, store: &store{dir: cfg.Dir, key: secret.Key}}
	if err := n.saveSealed(ctx, fuseFile, plain); err != nil {
		return err
	}
	return n.store.save(position{Charter: cfg.Charter, Fuse: value})
}

// arm makes the directory usable, once: without a fuse at once, with one if the
// counter is where the directory says, after both were moved on. Any copy made
// before is refused from then on, and a running process that has it stops.
func (n *Notary) arm(ctx context.Context) error {
	s := n.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.armed {
		return nil
	}
	sealed, err := s.read(fuseFile)
	if err != nil {
		return err
	}
	switch has := sealed != nil || s.last.Fuse > 0 || !s.last.MAC.IsZero(); {
	case has && n.cfg.Fuse == nil:
		return fmt.Errorf("notary: use %s: it was made with %w, and the configuration names none; set fuse in it to the counter's NV index again", s.dir, ErrFuse)
	case !has && n.cfg.Fuse != nil:
		return fmt.Errorf("notary: use %s: it was made without %w that the configuration names; have this notary replaced by one with a fuse, or take the key out", s.dir, ErrFuse)
	case !has:
		s.armed = true
		return nil
	}
	if err := n.openFuse(ctx); err != nil {
		return fmt.Errorf("notary: use %s: %w: %w", s.dir, ErrFuse, err)
	}
	value, err := s.counter.Read(ctx)
	if err != nil {
		return fmt.Errorf("notary: use %s: %w: %w", s.dir, ErrFuse, err)
	}
	// A process that ended between the counter's move and the file's had said
	// on disk that it was about to.
	if s.last.Burning && value == s.last.Fuse+1 {
		if err := s.setLocked(s.last.counted()); err != nil {
			return err
		}
	}
	if value != s.last.Fuse {
		return fmt.Errorf("notary: use %s: %w: it was written when counter 0x%08x was at %d, which is now at %d: this is a copy of an older state, or a copy of it ran since; %s", s.dir, ErrFuse, n.cfg.Fuse.Index, s.last.Fuse, value, replace)
	}
	if err := s.burnLocked(ctx, time.Now()); err != nil {
		return err
	}
	s.armed = true
	return nil
}

const replace = "what it cosigned meanwhile is not known here, so restore nothing and have this notary replaced (keyturn request notaries)"

// openFuse reads the sealed secret, checks by it what the directory says, and
// opens the counter. The caller has the store's lock.
func (n *Notary) openFuse(ctx context.Context) error {
	s := n.store
	plain, err := n.loadSealed(ctx, fuseFile)
	if err != nil {
		return err
	}
	defer clear(plain)
	var secret fuseSecret
	if plain == nil {
		return fmt.Errorf("%s is not there; %s", fuseFile, replace)
	}
	if dsse.Decode(plain, &secret) != nil || len(secret.Key) != 32 { // not the error, which may quote it
		return fmt.Errorf("%s holds something else; %s", fuseFile, replace)
	}
	if secret.Counter.Index != n.cfg.Fuse.Index {
		return fmt.Errorf("the directory was made with counter 0x%08x, the configuration names 0x%08x", secret.Counter.Index, n.cfg.Fuse.Index)
	}
	want, err := s.last.mac(secret.Key)
	if err != nil {
		return err
	}
	if !hmac.Equal(want[:], s.last.MAC[:]) {
		return fmt.Errorf("%s was changed or is of another directory; %s", positionFile, replace)
	}
	if s.counter != nil { // of a try that failed
		s.counter.Close()
	}
	s.key = secret.Key
	s.counter, err = n.cfg.Fuse.TPM.Counter(ctx, secret.Counter)
	return err
}

// hold returns nil if this process still has the one state of the notary. It is
// called after what is to be signed is settled and before anything is signed: of
// two copies of this process's memory, the TPM answers one (see [tpm.Counter]).
func (s *store) hold(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holdLocked(ctx)
}

func (s *store) holdLocked(ctx context.Context) error {
	if !s.armed {
		return errors.New("notary: the directory is not in use; this is a fault of the program")
	}
	if s.counter == nil {
		return nil
	}
	value, err := s.counter.Read(ctx)
	if err != nil {
		return fmt.Errorf("notary: sign: %w: %w", ErrFuse, err)
	}
	return mine(value, s.last.Fuse)
}

// mine refuses a value that another process made.
func mine(value, want uint64) error {
	if value != want {
		return fmt.Errorf("notary: sign: %w: the counter is at %d, this process left it at %d: a copy of this notary runs or ran; %s", ErrFuse, value, want, replace)
	}
	return nil
}

// burn has every copy of the directory that was made until now refused.
func (s *store) burn(ctx context.Context, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.holdLocked(ctx); err != nil || s.counter == nil {
		return err
	}
	return s.burnLocked(ctx, now)
}

// burnLocked says on disk that the counter is about to move, moves it, and says
// that it did. A process that ends at any moment of this finds, at its next start,
// the counter at the value on disk, or one above it and the intent.
func (s *store) burnLocked(ctx context.Context, now time.Time) error {
	intent := s.last
	intent.Burning = true
	if err := s.setLocked(intent); err != nil {
		return err
	}
	value, err := s.counter.Increment(ctx)
	if err != nil {
		return fmt.Errorf("notary: %w: %w", ErrFuse, err)
	}
	s.did("counted", fuseFile, nil)
	done := s.last.counted()
	if err := mine(value, done.Fuse); err != nil {
		return err
	}
	if err := s.setLocked(done); err != nil {
		return fmt.Errorf("%w was moved on and the directory does not say so yet; start again once it can be written: %w", ErrFuse, err)
	}
	s.burned = now
	return nil
}

func (s *store) fused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counter != nil
}

// blow has this directory refused for good, and every copy of it: the counter
// moves on and no file says so.
func (s *store) blow(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.counter.Increment(ctx)
	return err
}

// counted is the position after the counter moved.
func (p position) counted() position {
	p.Fuse, p.Burning = p.Fuse+1, false
	return p
}
