package weights

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

const partialSuffix = ".partial"

// A workspace is the directory NAME.partial in which a result NAME is built.
// The process that works in it holds a lock on it.
type workspace struct {
	parent *os.Root
	name   string   // of the result, in parent
	root   *os.Root // NAME.partial
	lock   *os.File // NAME.partial, locked
	made   map[string]bool
	access access
}

// access is the permissions of what is made, before the umask.
type access struct{ dir, file os.FileMode }

var (
	secret = access{0o700, 0o600} // plaintext
	public = access{0o755, 0o644} // ciphertext and documents
)

// newWorkspace prepares to build a result at path, which must not exist. What a
// killed process left behind is kept if resume is set and removed otherwise.
func newWorkspace(path string, a access, resume bool) (*workspace, error) {
	parent, err := os.OpenRoot(filepath.Dir(filepath.Clean(path)))
	if err != nil {
		return nil, about("create", path, err)
	}
	w := &workspace{parent: parent, name: filepath.Base(filepath.Clean(path)), made: map[string]bool{}, access: a}
	if err := errors.Join(checkName(w.name), w.vacant()); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if err := w.enter(); err != nil {
		return nil, errors.Join(about("create", path, err), w.Close())
	}
	if !resume {
		if err := w.clear(); err != nil {
			return nil, errors.Join(about("clear what is left at", w.partial(), err), w.Close())
		}
	}
	return w, nil
}

func (w *workspace) partial() string { return w.name + partialSuffix }

// vacant refuses a place that is taken, be it by a dangling link.
func (w *workspace) vacant() error {
	_, err := w.parent.Lstat(w.name)
	if err == nil {
		return fmt.Errorf("%w: %q; choose another place or remove it", ErrExists, filepath.Join(w.parent.Name(), w.name))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return about("examine", w.name, err)
	}
	return nil
}

// enter makes or finds NAME.partial and locks it.
func (w *workspace) enter() error {
	if err := w.parent.Mkdir(w.partial(), w.access.dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := w.parent.Lstat(w.partial())
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%q is in the way and no directory; remove it", w.partial())
	}
	if w.root, err = w.parent.OpenRoot(w.partial()); err != nil {
		return err
	}
	if w.lock, err = w.root.Open("."); err != nil {
		return err
	}
	if err := unix.Flock(int(w.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%w: lock %q: %w", ErrBusy, w.partial(), err)
	}
	return errors.Join(w.ours(), w.current(info))
}

// ours refuses a directory that somebody else made or can write to.
func (w *workspace) ours() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(w.lock.Fd()), &st); err != nil {
		return err
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%q belongs to user %d with mode %o; only one's own, writable by nobody else, is taken up: remove it", w.partial(), st.Uid, st.Mode&0o777)
	}
	return nil
}

// current makes sure that the directory that was locked is the one that was
// looked at and still bears its name: another process may just have finished.
func (w *workspace) current(seen fs.FileInfo) error {
	locked, err := w.lock.Stat()
	if err != nil {
		return err
	}
	now, err := w.parent.Lstat(w.partial())
	if err != nil || !os.SameFile(locked, now) || !os.SameFile(locked, seen) {
		return fmt.Errorf("%w: %q was moved away", ErrBusy, w.partial())
	}
	return w.vacant()
}

// clear removes everything in the workspace.
func (w *workspace) clear() error {
	dir, err := w.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.root.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

// keepOnly clears the workspace unless the directory sub in it holds none but
// the named files: it may be left from building something else. sub exists
// afterwards.
func (w *workspace) keepOnly(ctx context.Context, sub string, names []string) error {
	if err := w.root.MkdirAll(sub, w.access.dir); err != nil {
		return err
	}
	dir, err := w.root.Open(sub)
	if err != nil {
		return err
	}
	t, err := newTree(dir)
	if err != nil {
		return err
	}
	defer t.Close()
	known := make(map[string]bool, len(names))
	for _, name := range names {
		known[name] = true
	}
	entries, err := t.list(ctx)
	stranger := slices.ContainsFunc(entries, func(e entry) bool { return !known[e.name] })
	if err == nil && !stranger || ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(w.clear(), w.root.MkdirAll(sub, w.access.dir))
}

// mkdirFor makes the directories above name. Not for concurrent use.
func (w *workspace) mkdirFor(name string) error {
	dir := filepath.Dir(name)
	if w.made[dir] {
		return nil
	}
	w.made[dir] = true
	return w.root.MkdirAll(dir, w.access.dir)
}

// create makes a new file; one that is there is an error.
func (w *workspace) create(name string) (*os.File, error) {
	return w.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, w.access.file)
}

// writeFile makes a new file with the given content.
func (w *workspace) writeFile(name string, content []byte) error {
	f, err := w.create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

// commit puts sub ("." for the whole workspace) in the result's place in one
// step, after everything in it is on disk.
func (w *workspace) commit(sub string) error {
	if err := syncTree(w.lock); err != nil {
		return about("write to disk", w.partial(), err)
	}
	from := filepath.Join(w.partial(), sub)
	if err := w.rename(from); err != nil {
		return err
	}
	if sub != "." {
		if err := w.parent.RemoveAll(w.partial()); err != nil {
			return about("remove", w.partial(), err)
		}
	}
	dir, err := w.parent.Open(".")
	if err != nil {
		return about("write to disk", w.name, err)
	}
	return about("write to disk", w.name, errors.Join(dir.Sync(), dir.Close()))
}

func (w *workspace) rename(from string) error {
	dir, err := w.parent.Open(".")
	if err != nil {
		return about("finish", w.name, err)
	}
	defer dir.Close()
	err = renameNew(int(dir.Fd()), from, w.name)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %q appeared meanwhile; choose another place", ErrExists, w.name)
	}
	return about("finish", w.name, err)
}

// discard removes the workspace, for results that cannot be resumed.
func (w *workspace) discard() error {
	return errors.Join(w.parent.RemoveAll(w.partial()), w.Close())
}

// Close releases the lock and leaves the files.
func (w *workspace) Close() error {
	var errs []error
	if w.lock != nil {
		errs = append(errs, w.lock.Close())
	}
	if w.root != nil {
		errs = append(errs, w.root.Close())
	}
	return errors.Join(append(errs, w.parent.Close())...)
}
