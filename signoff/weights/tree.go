package weights

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A tree is an open directory whose files are reached without following a
// symbolic link, whatever happens to the paths meanwhile.
type tree struct {
	dir *os.File
	dev uint64
}

// An entry is a regular file as it was when the tree was listed.
type entry struct {
	name string
	id   fileID
}

// A fileID changes when a file is replaced, written to, or linked.
type fileID struct {
	dev, ino, links uint64
	size            int64
	mtime, ctime    [2]int64
}

func openTree(path string) (*tree, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, about("open directory", path, err)
	}
	return newTree(os.NewFile(uintptr(fd), path))
}

// newTree takes over an open directory.
func newTree(dir *os.File) (*tree, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, about("examine", dir.Name(), errors.Join(err, dir.Close()))
	}
	return &tree{dir, uint64(st.Dev)}, nil
}

func (t *tree) Close() error { return t.dir.Close() }

func (t *tree) fd() int { return int(t.dir.Fd()) }

// list returns all files below the directory in manifest order. It refuses
// everything that is neither a directory nor a regular file with one link on
// the same file system.
func (t *tree) list(ctx context.Context) ([]entry, error) {
	var out []entry
	if err := t.walk(ctx, t.fd(), "", &out); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b entry) int { return compareNames(a.name, b.name) })
	return out, nil
}

func (t *tree) walk(ctx context.Context, dirfd int, prefix string, out *[]entry) error {
	names, err := readNames(dirfd)
	if err != nil {
		return about("list", prefix, err)
	}
	for _, base := range names {
		name := prefix + base
		if err := errors.Join(ctx.Err(), checkName(name)); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstatat(dirfd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return about("examine", name, err)
		}
		if err := t.acceptable(name, &st); err != nil {
			return err
		}
		if len(*out) == maxResources {
			return fmt.Errorf("weights: more than %d files; put them into archives", maxResources)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			*out = append(*out, entry{name, identify(&st)})
			continue
		}
		if err := t.descend(ctx, dirfd, base, name, out); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) descend(ctx context.Context, dirfd int, base, name string, out *[]entry) error {
	fd, err := openat(dirfd, base, unix.O_DIRECTORY)
	if err != nil {
		return about("open directory", name, err)
	}
	defer unix.Close(fd)
	return t.walk(ctx, fd, name+"/", out)
}

// acceptable says why a directory entry cannot be part of a model.
func (t *tree) acceptable(name string, st *unix.Stat_t) error {
	kind := map[uint32]string{
		unix.S_IFLNK: "a symbolic link", unix.S_IFIFO: "a pipe", unix.S_IFSOCK: "a socket",
		unix.S_IFBLK: "a block device", unix.S_IFCHR: "a character device",
	}[uint32(st.Mode)&unix.S_IFMT]
	switch regular := st.Mode&unix.S_IFMT == unix.S_IFREG; {
	case kind != "":
		return fmt.Errorf("weights: %q is %s; only regular files are sealed: copy what it stands for, or remove it", name, kind)
	case uint64(st.Dev) != t.dev:
		return fmt.Errorf("weights: %q is on another file system than the directory; copy it there", name)
	case regular && st.Nlink != 1:
		return fmt.Errorf("weights: %q has %d hard links, so it can change from elsewhere; copy it", name, st.Nlink)
	}
	return nil
}

// open opens the file and makes sure that it is still the one that was listed.
func (t *tree) open(e entry) (*os.File, error) {
	f, err := t.openName(e.name)
	if err != nil {
		return nil, err
	}
	if err := e.unchanged(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openName opens a regular file with one link, part by part.
func (t *tree) openName(name string) (*os.File, error) {
	parts := strings.Split(name, "/")
	dirfd := t.fd()
	for i, part := range parts {
		flags := unix.O_DIRECTORY
		if i == len(parts)-1 {
			flags = unix.O_NONBLOCK // so that a pipe cannot make us wait
		}
		fd, err := openat(dirfd, part, flags)
		if i > 0 {
			unix.Close(dirfd)
		}
		if err != nil {
			return nil, about("open", name, err)
		}
		dirfd = fd
	}
	f := os.NewFile(uintptr(dirfd), name)
	var st unix.Stat_t
	err := unix.Fstat(dirfd, &st)
	if err == nil {
		err = t.acceptable(name, &st)
	}
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("it is a directory")
	}
	if err != nil {
		f.Close()
		return nil, about("open", name, err)
	}
	return f, nil
}

// unchanged compares an open file with the entry.
func (e entry) unchanged(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return about("examine", e.name, err)
	}
	if identify(&st) != e.id {
		return fmt.Errorf("%w: %q; nothing may write to the directory meanwhile", ErrChanged, e.name)
	}
	return nil
}

// unchanged lists the tree again and compares.
func (t *tree) unchanged(ctx context.Context, before []entry) error {
	now, err := t.list(ctx)
	if err != nil {
		return err
	}
	if slices.Equal(before, now) {
		return nil
	}
	for i := range min(len(before), len(now)) {
		if before[i] != now[i] {
			return fmt.Errorf("%w: at %q; nothing may write to the directory meanwhile", ErrChanged, now[i].name)
		}
	}
	return fmt.Errorf("%w: %d files became %d", ErrChanged, len(before), len(now))
}

// sizes returns the sizes of the files in bytes, and their sum.
func sizes(entries []entry) (each []int64, total int64) {
	for _, e := range entries {
		each = append(each, e.id.size)
		total += e.id.size
	}
	return each, total
}

func identify(st *unix.Stat_t) fileID {
	return fileID{
		dev: uint64(st.Dev), ino: st.Ino, links: uint64(st.Nlink), size: st.Size,
		mtime: [2]int64{int64(st.Mtim.Sec), int64(st.Mtim.Nsec)},
		ctime: [2]int64{int64(st.Ctim.Sec), int64(st.Ctim.Nsec)},
	}
}

// openat opens one part of a path for reading, never a symbolic link.
func openat(dirfd int, part string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, part, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// readNames lists a directory through a descriptor of its own.
func readNames(dirfd int) ([]string, error) {
	fd, err := openat(dirfd, ".", unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	return f.Readdirnames(-1)
}
