package module

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Harden makes the memory of this process hard to reach for others of the same
// user and keeps it off disks. Locking it in memory is best effort, since the
// limit of an ordinary user would not hold the module; the rest must succeed.
func Harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("module: become undumpable: %w", err)
	}
	// A core limit of one byte, not of zero: a zero limit does not stop a kernel
	// that pipes core dumps to a program, and one byte stops both.
	one := unix.Rlimit{Cur: 1, Max: 1}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &one); err != nil {
		return fmt.Errorf("module: forbid core dumps: %w", err)
	}
	lockMemory()
	return nil
}

// lockMemory locks pages as they are first used. Future mappings are locked
// only where no limit can make them fail, which the Go runtime would not
// survive.
func lockMemory() {
	how := unix.MCL_CURRENT | unix.MCL_ONFAULT
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err == nil && limit.Cur == unix.RLIM_INFINITY || os.Geteuid() == 0 {
		how |= unix.MCL_FUTURE
	}
	unix.Mlockall(how)
}
