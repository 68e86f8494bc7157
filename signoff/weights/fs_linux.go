package weights

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncTree brings everything on dir's file system to disk. One syncfs(2) costs
// less than an fsync for each of a hundred thousand files and their directories.
func syncTree(dir *os.File) error { return unix.Syncfs(int(dir.Fd())) }

// renameNew renames from to to in the directory, and fails if to exists.
func renameNew(dirfd int, from, to string) error {
	err := unix.Renameat2(dirfd, from, dirfd, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return renameChecked(dirfd, from, to)
	}
	return err
}

// clone makes dst share src's blocks, where the file system can (FICLONE).
func clone(dst, src *os.File) error {
	return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
}
