//go:build unix && !linux

package weights

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncTree asks for everything to be brought to disk; there is no narrower call.
func syncTree(*os.File) error {
	unix.Sync()
	return nil
}

func renameNew(dirfd int, from, to string) error { return renameChecked(dirfd, from, to) }

// clone is not attempted here; the caller copies.
func clone(_, _ *os.File) error { return errors.ErrUnsupported }
