package notary

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A store keeps what must survive a restart: the checkpoint cosigned last, in
// the clear, and secrets sealed by the token. Each write is durable on return.
type store struct {
	dir  string
	mu   sync.Mutex
	last position
}

// position is the file position.json.
type position struct {
	Charter Digest       `json:"charter"`
	Seen    signoff.Seen `json:"seen,omitzero"`
}

const positionFile = "position.json"

func initStore(dir string, charter Digest) error {
	path := filepath.Join(dir, positionFile)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("notary: %s exists; a notary's memory is never made twice", path)
	}
	s := &store{dir: dir}
	b, err := dsse.Encode(position{Charter: charter})
	if err != nil {
		return err
	}
	return s.write(positionFile, b)
}

func openStore(dir string, charter Digest) (*store, error) {
	s := &store{dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, positionFile))
	if err != nil {
		return nil, fmt.Errorf("notary: read the last cosigned checkpoint: %w (a new notary is made with keyturn-notary init; one that lost its memory is replaced, never restored)", err)
	}
	if err := dsse.Decode(b, &s.last); err != nil {
		return nil, fmt.Errorf("notary: %s: %w", positionFile, err)
	}
	if s.last.Charter != charter {
		return nil, fmt.Errorf("notary: %s is of charter %s, not %s", dir, s.last.Charter, charter)
	}
	return s, nil
}

func (s *store) position() signoff.Seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.Seen
}

// setPosition never goes back.
func (s *store) setPosition(seen signoff.Seen) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seen.Size < s.last.Seen.Size || (seen.Size == s.last.Seen.Size && seen != s.last.Seen) {
		return fmt.Errorf("notary: checkpoint of size %d, %d were cosigned", seen.Size, s.last.Seen.Size)
	}
	if seen == s.last.Seen {
		return nil
	}
	next := s.last
	next.Seen = seen
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

// write replaces a file: temporary file, fsync, rename, fsync of the directory.
func (s *store) write(name string, data []byte) (err error) {
	tmp, err := os.CreateTemp(s.dir, name+".*.tmp")
	if err != nil {
		return fmt.Errorf("notary: save %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
			err = fmt.Errorf("notary: save %s: %w", name, err)
		}
	}()
	if _, err = tmp.Write(data); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err = errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), filepath.Join(s.dir, name)); err != nil {
		return err
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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
