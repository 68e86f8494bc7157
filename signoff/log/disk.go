package log

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// disk writes files so that a power cut leaves each either whole or absent.
type disk struct {
	root string

	mu      sync.Mutex
	ensured map[string]bool // directories whose name is known to be durable

	// fault, in tests, runs before and after each effect and stands for a
	// crash or a refusal of the system there.
	fault func(op, path string) error
}

// Free is how many bytes are left on the archive's disk.
func (a *Archive) Free() (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(a.disk.root, &st); err != nil {
		return 0, fmt.Errorf("log: look at the free space of %s: %w", a.disk.root, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// A file is to be created at path, relative to the root.
type file struct {
	path string
	data []byte
}

// A staged file is durable under tmp, or was found at its place already.
type staged struct {
	path string
	tmp  string // empty if the same bytes are at path
}

const tmpDir = "tmp"

func (d *disk) at(op, path string) error {
	if d.fault == nil {
		return nil
	}
	return d.fault(op, path)
}

// stage makes the bytes of files durable without showing them. On error
// nothing is left behind, unless the process died.
func (d *disk) stage(files []file) (out []staged, err error) {
	defer func() {
		if err != nil {
			for _, s := range out {
				_ = os.Remove(s.tmp)
			}
			out = nil
		}
	}()
	for _, f := range files {
		same, err := d.has(f)
		if err != nil {
			return out, err
		}
		if err := d.mkdir(filepath.Dir(f.path)); err != nil {
			return out, err
		}
		s := staged{path: f.path}
		if !same {
			if s.tmp, err = d.writeTemp(f); err != nil {
				return out, err
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// has reports whether f is there. Other bytes in its place are an error.
func (d *disk) has(f file) (bool, error) {
	have, err := os.ReadFile(filepath.Join(d.root, f.path))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("log: %w", err)
	}
	if !bytes.Equal(have, f.data) {
		return false, fmt.Errorf("log: %s exists with other bytes than are to be written; if the order was rolled back, stop, otherwise verify the archive: %w", f.path, ErrCorrupt)
	}
	return true, nil
}

// writeTemp writes and syncs the bytes of f under tmp.
func (d *disk) writeTemp(f file) (name string, err error) {
	return d.writeTempFrom(f.path, bytes.NewReader(f.data))
}

// writeTempFrom is writeTemp of what r has to its end.
func (d *disk) writeTempFrom(path string, r io.Reader) (name string, err error) {
	if err := d.at("write", path); err != nil {
		return "", err
	}
	w, err := os.CreateTemp(filepath.Join(d.root, tmpDir), "w")
	if err != nil {
		return "", fmt.Errorf("log: write %s: %w", path, err)
	}
	_, err = io.Copy(w, r)
	if err == nil {
		err = w.Chmod(0o644)
	}
	if err == nil {
		err = w.Sync()
	}
	if e := w.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = d.at("written", path)
	}
	if err != nil {
		_ = os.Remove(w.Name())
		return "", fmt.Errorf("log: write %s: %w", path, err)
	}
	return w.Name(), nil
}

// place shows staged files and makes their names durable. After an error the
// disk may hold any of them, now or after the next power cut.
func (d *disk) place(files []staged) error {
	dirs := map[string]bool{}
	for _, s := range files {
		dirs[filepath.Dir(s.path)] = true
		if s.tmp == "" {
			continue
		}
		if err := d.at("rename", s.path); err != nil {
			return err
		}
		if err := os.Rename(s.tmp, filepath.Join(d.root, s.path)); err != nil {
			return fmt.Errorf("log: %w", err)
		}
		if err := d.at("renamed", s.path); err != nil {
			return err
		}
	}
	for dir := range dirs {
		if err := d.sync(dir); err != nil {
			return err
		}
	}
	return nil
}

// sync makes the names in a directory durable.
func (d *disk) sync(dir string) error {
	if err := d.at("sync", dir); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(d.root, dir))
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("log: sync %s: %w", dir, err)
	}
	return nil
}

// mkdir makes a directory and those above it durable. One that is there may
// have been made by a process that died before it synced the parent, so each
// is synced once per process.
func (d *disk) mkdir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mkdirLocked(dir)
}

func (d *disk) mkdirLocked(dir string) error {
	if dir == "." || d.ensured[dir] {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := d.mkdirLocked(parent); err != nil {
		return err
	}
	if err := d.at("mkdir", dir); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(d.root, dir), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("log: %w", err)
	}
	if err := d.sync(parent); err != nil {
		return err
	}
	d.ensured[dir] = true
	return nil
}

// forget drops a directory that was superseded. Failure leaves harmless files,
// which the next Open drops.
func (d *disk) forget(dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at("forget", dir) != nil {
		return
	}
	delete(d.ensured, dir)
	_ = os.RemoveAll(filepath.Join(d.root, dir))
}
