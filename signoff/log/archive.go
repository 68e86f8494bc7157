package log

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/signoff/proof"
)

// An Archive is the log in a directory. One process at a time may write it;
// any number may read. Methods may be called from any goroutine.
type Archive struct {
	disk *disk
	lock *os.File             // nil if read-only
	view atomic.Pointer[view] // what is durable

	note atomic.Pointer[[]byte] // the published checkpoint, nil if none

	mu     sync.Mutex            // held while writing tiles or the checkpoint
	broken atomic.Pointer[error] // why nothing may be written any more
}

var _ Source = (*Archive)(nil)

// Open opens an archive to write it, making an empty one where there is none.
// Whether the log is as long as it was is for the caller to know: compare
// [Archive.Size] with the order and with what the notaries cosigned.
func Open(dir string) (*Archive, error) {
	if dir == "" {
		return nil, errors.New("log: open an archive: no directory was given")
	}
	if err := os.MkdirAll(filepath.Join(dir, tmpDir), 0o755); err != nil {
		return nil, fmt.Errorf("log: open an archive: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	a, err := open(dir)
	if err == nil {
		a.lock = lock
		err = a.recover()
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return a, nil
}

// OpenReadOnly opens an archive as it is at this moment, also while another
// process writes it. What is appended later is not seen.
func OpenReadOnly(dir string) (*Archive, error) {
	if _, err := os.ReadDir(dir); err != nil {
		return nil, fmt.Errorf("log: open an archive: %w", err)
	}
	a, err := open(dir)
	// The writer may have replaced a partial bundle between our listing
	// and our reading it.
	for range 3 {
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		a, err = open(dir)
	}
	return a, err
}

// open reads the checkpoint before the entries, which a writer adds in the
// other order.
func open(dir string) (*Archive, error) {
	a := &Archive{disk: &disk{root: dir, ensured: map[string]bool{}}}
	signed, err := read(dir, checkpointPath)
	switch {
	case err == nil:
		a.note.Store(&signed)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	c, err := a.published()
	if err != nil {
		return nil, err
	}
	v, err := load(dir)
	if err != nil {
		return nil, err
	}
	if c.Size > v.size {
		return nil, fmt.Errorf("log: the checkpoint says %d entries and %d are here; restore the rest from another copy: %w", c.Size, v.size, ErrCorrupt)
	}
	a.view.Store(v)
	return a, nil
}

// lockDir takes the writer's lock; it ends with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log: lock the archive: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("log: lock the archive %s: another process writes it: %w", dir, err)
	}
	return f, nil
}

// recover finishes what a writer that died may have left: names not yet
// durable, temporary files, partial tiles beside their full one.
func (a *Archive) recover() error {
	old, err := filepath.Glob(filepath.Join(a.disk.root, tmpDir, "*"))
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	for _, f := range old {
		_ = os.Remove(f)
	}
	v := a.view.Load()
	if v.size == 0 {
		return a.disk.sync(".")
	}
	last := v.size - 1
	dirs := []string{".", filepath.Dir(BundlePath(last/tileWidth, int(last%tileWidth)+1))}
	for level := range v.levels {
		n, width := v.edge(level)
		if width > 0 {
			dirs = append(dirs, filepath.Dir(TilePath(level, n, width)))
		}
		if n > 0 {
			dirs = append(dirs, filepath.Dir(TilePath(level, n-1, tileWidth)))
			a.disk.forget(partials(TilePath(level, n-1, tileWidth)))
		}
	}
	if n := v.size / tileWidth; n > 0 {
		a.disk.forget(partials(BundlePath(n-1, tileWidth)))
	}
	for _, dir := range dirs {
		if err := a.disk.mkdir(dir); err != nil {
			return err
		}
		if err := a.disk.sync(dir); err != nil {
			return err
		}
	}
	return nil
}

// partials is the directory of the partial tiles that a full tile supersedes.
func partials(fullPath string) string { return fullPath + ".p" }

// Close gives up the writer's lock; nothing can be written any more.
func (a *Archive) Close() error {
	if a.lock == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.fail(errClosed)
	return a.lock.Close()
}

// Size is the number of durable entries.
func (a *Archive) Size() uint64 { return a.view.Load().size }

// Append adds leaves of 1 to MaxLeaf bytes. They are durable when it returns
// nil. After an error some of them may be there, from the first on without a
// gap; [Archive.Size] says how many. If the disk failed in a way that leaves
// open what it holds, every further write is refused until the archive is
// opened again.
func (a *Archive) Append(leaves [][]byte) error {
	for i, l := range leaves {
		if len(l) == 0 || len(l) > MaxLeaf {
			return fmt.Errorf("log: append: leaf %d of %d has %d bytes; an entry has 1 to %d", i, len(leaves), len(l), MaxLeaf)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(leaves) > 0 {
		v := a.view.Load()
		n := min(len(leaves), tileWidth-int(v.size%tileWidth))
		if err := a.appendChunk(v, leaves[:n]); err != nil {
			return err
		}
		leaves = leaves[n:]
	}
	return nil
}

// appendChunk adds leaves within one bundle: stage all files, show the tiles,
// show the bundle. If the process dies before the last step, the tiles over
// the missing entries are ignored; after it, the append happened.
func (a *Archive) appendChunk(v *view, leaves [][]byte) error {
	if err := a.writable(); err != nil {
		return err
	}
	if v.size+uint64(len(leaves)) > proof.MaxSize {
		return fmt.Errorf("log: append: the log is full at %d entries", v.size)
	}
	next, files := v.extend(leaves)
	ready, err := a.disk.stage(files)
	if err != nil {
		return err
	}
	bundle := len(ready) - 1
	for _, step := range [][]staged{ready[:bundle], ready[bundle:]} {
		if err := a.disk.place(step); err != nil {
			return a.fail(err)
		}
	}
	a.view.Store(next)
	for _, f := range files {
		if filepath.Ext(filepath.Dir(f.path)) != ".p" {
			a.disk.forget(partials(f.path))
		}
	}
	return nil
}

var errClosed = errors.New("closed")

func (a *Archive) writable() error {
	if a.lock == nil {
		return fmt.Errorf("log: %s was opened to read only", a.disk.root)
	}
	if e := a.broken.Load(); e != nil {
		return fmt.Errorf("log: the archive was closed, or a write left open what is on disk; open it again: %w", *e)
	}
	return nil
}

func (a *Archive) fail(err error) error {
	a.broken.CompareAndSwap(nil, &err)
	return err
}

// Leaves returns the entries from ≤ index < to. They were checked against the
// tile over them, not against a checkpoint.
func (a *Archive) Leaves(ctx context.Context, from, to uint64) ([][]byte, error) {
	v := a.view.Load()
	if from > to || to > v.size {
		return nil, fmt.Errorf("log: entries %d to %d of a log of %d", from, to, v.size)
	}
	var out [][]byte
	for n := from / tileWidth; n*tileWidth < to; n++ {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("log: read entries %d to %d: %w", from, to, err)
		}
		leaves, err := v.leavesOf(n)
		if err != nil {
			return nil, err
		}
		first := n * tileWidth
		lo, hi := max(from, first)-first, min(to-first, uint64(len(leaves)))
		out = append(out, leaves[lo:hi]...)
	}
	return out, nil
}

// Root returns the root of the first size entries.
func (a *Archive) Root(size uint64) ([32]byte, error) {
	v := a.view.Load()
	if size > v.size {
		return [32]byte{}, fmt.Errorf("log: root of %d entries of a log of %d", size, v.size)
	}
	h, err := tlog.TreeHash(int64(size), v)
	if err != nil {
		return [32]byte{}, fmt.Errorf("log: root of %d entries: %w", size, err)
	}
	return h, nil
}

// Inclusion returns the path that proves the entry at index in the tree of the
// first size entries (see proof.CheckInclusion).
func (a *Archive) Inclusion(size, index uint64) ([][32]byte, error) {
	v := a.view.Load()
	if size > v.size || index >= size {
		return nil, fmt.Errorf("log: prove entry %d of %d of a log of %d", index, size, v.size)
	}
	p, err := tlog.ProveRecord(int64(size), int64(index), v)
	if err != nil {
		return nil, fmt.Errorf("log: prove entry %d of %d: %w", index, size, err)
	}
	return plain(p), nil
}

// Consistency returns the path that proves that the tree of next entries
// extends that of old (see proof.CheckConsistency); it is empty for old 0.
func (a *Archive) Consistency(old, next uint64) ([][32]byte, error) {
	v := a.view.Load()
	if old > next || next > v.size {
		return nil, fmt.Errorf("log: prove that %d entries extend %d of a log of %d", next, old, v.size)
	}
	if old == 0 || old == next {
		return nil, nil
	}
	p, err := tlog.ProveTree(int64(next), int64(old), v)
	if err != nil {
		return nil, fmt.Errorf("log: prove that %d entries extend %d: %w", next, old, err)
	}
	return plain(p), nil
}

// plain is a path of package tlog in the terms of package proof.
func plain[P ~[]tlog.Hash](p P) [][32]byte {
	out := make([][32]byte, len(p))
	for i, h := range p {
		out[i] = h
	}
	return out
}
