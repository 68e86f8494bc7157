package notary

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/hsm/tpm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A store keeps what must survive a restart: the checkpoint cosigned last, in
// the clear, and secrets sealed by the token. Each write is durable on return.
//
// One process at a time opens the directory: two that write in turn would each
// forget what the other one cosigned.
type store struct {
	dir  string
	lock *os.File
	mu   sync.Mutex
	last position

	armed   bool         // see Notary.arm
	counter *tpm.Counter // nil without a fuse
	key     []byte       // of the fuse's MAC, nil without one
	burned  time.Time    // when the counter was moved last

	step func(done, name string, data []byte) // nil, or a test's: told of each step on disk
}

func (s *store) did(done, name string, data []byte) {
	if s.step != nil {
		s.step(done, name, data)
	}
}

// position is the file position.json.
type position struct {
	Charter    Digest       `json:"charter"`
	Seen       signoff.Seen `json:"seen,omitzero"`
	Recoveries uint64       `json:"recoveries,omitzero"` // in the log up to Seen
	// Stated: the position was signed for a recovery, so nothing more is
	// cosigned until the log has a recovery that Seen does not include.
	Stated bool `json:"stated,omitzero"`
	// Of a notary with a fuse: the counter's value at which this was written,
	// or, while it is moved on, may have been; and HMAC-SHA256 over the rest.
	Fuse    uint64 `json:"fuse,omitzero"`
	Burning bool   `json:"burning,omitzero"`
	MAC     Digest `json:"mac,omitzero"`
}

// next is the position after a checkpoint, or why it must not be cosigned.
func (p position) next(seen signoff.Seen, recoveries uint64) (position, error) {
	q := p
	q.Seen, q.Recoveries, q.Stated = seen, recoveries, false
	switch {
	case recoveries > p.Recoveries:
		return q, nil
	case recoveries < p.Recoveries:
		return p, fmt.Errorf("notary: a log with %d recoveries, one with %d was cosigned", recoveries, p.Recoveries)
	case p.Stated:
		return p, errors.New("notary: the position was stated for a recovery; nothing is cosigned until the log is recovered (keyturnd recover)")
	case seen.Size < p.Seen.Size, seen.Size == p.Seen.Size && seen != p.Seen:
		return p, fmt.Errorf("notary: checkpoint of size %d, %d were cosigned", seen.Size, p.Seen.Size)
	}
	return q, nil
}

const positionFile = "position.json"

// appraisedFile is what the fold concluded from evidence (follow.Memory). Losing
// it costs time; whoever writes it makes this notary's verdicts on nodes.
const appraisedFile = "appraised.json"

// A memory is that file, and says in the journal when it fails.
type memory struct {
	store *store
	log   *slog.Logger
}

// Load returns what Save was given last, nil for nothing.
func (m memory) Load() ([]byte, error) {
	b, err := m.store.read(appraisedFile)
	if err != nil {
		m.log.Warn("the verdicts kept cannot be read: appraising all evidence again", "err", err)
	}
	return b, err
}

// Save replaces it.
func (m memory) Save(b []byte) error {
	err := m.store.write(appraisedFile, b)
	if err != nil {
		m.log.Warn("verdicts are not kept: the next start takes longer", "err", err)
	}
	return err
}

func checkNew(dir string) error {
	path := filepath.Join(dir, positionFile)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("notary: %s exists; a notary's memory is never made twice", path)
	}
	return nil
}

func openStore(dir string, charter Digest) (*store, error) {
	s := &store{dir: dir}
	if err := s.open(charter); err != nil {
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, err
	}
	return s, nil
}

func (s *store) open(charter Digest) (err error) {
	dir := s.dir
	if _, err := os.Lstat(filepath.Join(dir, positionFile)); err != nil {
		return fmt.Errorf("notary: read the last cosigned checkpoint: %w (a new notary is made with keyturn-notary init; one that lost its memory is replaced, never restored)", err)
	}
	if s.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return fmt.Errorf("notary: lock %s: %w", dir, err)
	}
	if err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("notary: lock %s: another process runs on it; stop that first: %w", dir, err)
	}
	// A process that was killed leaves files that it had not renamed, and what it had
	// would be gone if power failed.
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("notary: %w", err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), temporary) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
			return fmt.Errorf("notary: %w", err)
		}
	}
	if err := s.sync(); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, positionFile))
	if err != nil {
		return fmt.Errorf("notary: %w", err)
	}
	if err := dsse.Decode(b, &s.last); err != nil {
		return fmt.Errorf("notary: %s: %w", positionFile, err)
	}
	if s.last.Charter != charter {
		return fmt.Errorf("notary: %s is of charter %s, not %s", dir, s.last.Charter, charter)
	}
	return nil
}

func (s *store) position() position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// advance moves to a checkpoint that is about to be cosigned. It never goes
// back.
func (s *store) advance(ctx context.Context, now time.Time, seen signoff.Seen, recoveries uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := s.last.next(seen, recoveries)
	if err != nil {
		return err
	}
	if err := s.holdLocked(ctx); err != nil {
		return err
	}
	if err := s.setLocked(next); err != nil {
		return err
	}
	if s.counter == nil || now.Sub(s.burned) < burnEvery {
		return nil
	}
	return s.burnLocked(ctx, now)
}

// state keeps for good that the position was stated for a recovery.
func (s *store) state(ctx context.Context) (signoff.Seen, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.holdLocked(ctx); err != nil {
		return signoff.Seen{}, err
	}
	next := s.last
	next.Stated = true
	return next.Seen, s.setLocked(next)
}

func (s *store) setLocked(next position) error {
	if next == s.last {
		return nil
	}
	return s.save(next)
}

func (s *store) save(next position) (err error) {
	if s.key != nil {
		if next.MAC, err = next.mac(s.key); err != nil {
			return err
		}
	}
	b, err := dsse.Encode(next)
	if err != nil {
		return err
	}
	if err := s.write(positionFile, b); err != nil {
		return err
	}
	s.last = next
	return nil
}

func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = false
	err := s.lock.Close()
	if s.counter != nil {
		err = errors.Join(err, s.counter.Close())
		s.counter = nil
	}
	return err
}

const temporary = ".tmp"

// write replaces a file: temporary file, fsync, rename, fsync of the directory.
func (s *store) write(name string, data []byte) (err error) {
	tmp, err := os.CreateTemp(s.dir, name+".*"+temporary)
	if err != nil {
		return fmt.Errorf("notary: save %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
			err = fmt.Errorf("notary: save %s: %w", name, err)
		}
	}()
	s.did("created", name, data)
	if _, err = tmp.Write(data); err != nil {
		return errors.Join(err, tmp.Close())
	}
	s.did("written", name, data)
	if err = errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	s.did("synced", name, data)
	if err = os.Rename(tmp.Name(), filepath.Join(s.dir, name)); err != nil {
		return err
	}
	s.did("renamed", name, data)
	return s.sync()
}

// read returns a file's bytes, nil if there is none.
func (s *store) read(name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("notary: %w", err)
	}
	return b, nil
}

// erase removes files of the directory that keep says are not to stay.
func (s *store) erase(keep func(name string) bool) error {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("notary: %w", err)
	}
	for _, f := range files {
		if keep(f.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, f.Name())); err != nil {
			return fmt.Errorf("notary: erase: %w", err)
		}
		s.did("erased", f.Name(), nil)
	}
	return s.sync()
}

// sync makes durable what was renamed and removed.
func (s *store) sync() error {
	d, err := os.Open(s.dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return fmt.Errorf("notary: %w", err)
	}
	return nil
}
