package follow

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/keyturn/keyturn/hsm/durable"
	"github.com/keyturn/keyturn/signoff/authority"
)

// A Memory holds, from one run of a program to the next, what its own fold
// concluded from evidence of nodes. Nothing but speed depends on it being there, and
// the verdicts on nodes depend on nobody else writing it.
type Memory interface {
	Load() ([]byte, error) // nil for nothing
	Save(b []byte) error   // tells whoever runs the program if it fails: a follower goes on
}

// keepEvery is how many epochs pass between two savings: a start appraises so many
// again, and each saving writes a kilobyte or two for every node.
const keepEvery = 16

// Begin makes an empty fold that recalls what m holds; nil is nothing. What cannot
// be read is passed over.
func Begin(charter Digest, m Memory) (*authority.Authority, error) {
	a, err := authority.New(charter)
	if err != nil || m == nil {
		return a, err
	}
	if b, err := m.Load(); err != nil || b == nil || a.Recall(b) != nil {
		return authority.New(charter)
	}
	return a, nil
}

// Keep has m hold what the fold concluded, if it is worth it since the epoch of the
// number given, and returns the number of the one from which to count next. To fail
// costs time at the next start, no more: it is tried again as many epochs later.
func Keep(m Memory, a *authority.Authority, since uint64) (uint64, error) {
	since = max(since, a.Recalled())
	e := a.State().Epoch
	if m == nil || e == nil || e.Number < since+keepEvery {
		return since, nil
	}
	b, err := a.Keep()
	if err == nil {
		err = m.Save(b)
	}
	return e.Number, err
}

// InFile is a Memory in the file of that name.
type InFile string

// Load returns nil for a file that is not there.
func (f InFile) Load() ([]byte, error) {
	b, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// Save replaces the file or leaves it as it is.
func (f InFile) Save(b []byte) error {
	if err := durable.Replace(string(f), b, 0o600); err != nil {
		return fmt.Errorf("follow: keep verdicts: %w", err)
	}
	return nil
}
