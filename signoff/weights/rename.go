package weights

import (
	"errors"

	"golang.org/x/sys/unix"
)

// renameChecked looks before it renames, where the kernel cannot do both at
// once. Someone who slips in between loses at most an empty directory: renaming
// a directory over anything else fails.
func renameChecked(dirfd int, from, to string) error {
	var st unix.Stat_t
	err := unix.Fstatat(dirfd, to, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		return unix.EEXIST
	}
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	return unix.Renameat(dirfd, from, dirfd, to)
}
