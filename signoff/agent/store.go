package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keyturn/keyturn/hsm/durable"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A store is the agent's directory:
//
//	identity.json    key blobs that only this TPM loads (attest/tpm.State)
//	enrolment.json   what people enrol
//	seen.json        the newest final checkpoint seen
//	halts/HEX        halts that are not in the final log yet, one bundle line each
type store struct{ dir string }

const (
	identityFile  = "identity.json"
	enrolmentFile = "enrolment.json"
	seenFile      = "seen.json"
	haltsDir      = "halts"
)

// read returns a file's content, or nil if there is none.
func (s store) read(name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// write replaces a file; it is on disk when write returns.
func (s store) write(name string, data []byte) error {
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if err := durable.Replace(path, data, 0o600); err != nil {
		return fmt.Errorf("agent: write %s: %w", path, err)
	}
	return nil
}

func (s store) remove(name string) error {
	path := filepath.Join(s.dir, name)
	if err := durable.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("agent: %w", err)
	}
	return nil
}

// seen is the newest final checkpoint of an earlier run; zero for none.
func (s store) seen() (signoff.Seen, error) {
	var seen signoff.Seen
	b, err := s.read(seenFile)
	if err != nil || b == nil {
		return seen, err
	}
	if err := dsse.Decode(b, &seen); err != nil {
		return seen, fmt.Errorf("agent: %s in %s: %w: it guards against rollback; have the node looked at before you remove it", seenFile, s.dir, err)
	}
	return seen, nil
}

func (s store) setSeen(seen signoff.Seen) error {
	b, err := dsse.Encode(seen)
	if err != nil {
		return err
	}
	return s.write(seenFile, b)
}

// haltNames lists the files of halts.
func (s store) haltNames() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, haltsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".tmp" {
			out = append(out, filepath.Join(haltsDir, e.Name()))
		}
	}
	return out, err
}
