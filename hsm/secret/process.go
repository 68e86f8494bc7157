package secret

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Harden keeps this process's memory out of core dumps and out of reach of
// other processes of the same user.
func Harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("secret: make the process undumpable: %w", err)
	}
	// One byte, not zero: a zero limit does not stop a kernel that pipes core
	// dumps to a program, and one byte stops both.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}); err != nil {
		return fmt.Errorf("secret: limit core dumps: %w", err)
	}
	return nil
}

// LockProcess keeps all memory of this process, now and later, out of swap. It
// fails with [ErrLimit], and locks nothing, unless locked memory is unlimited:
// under a limit the runtime would one day get no memory, and end.
func LockProcess() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("secret: lock the process in memory: %w: %w", ErrLimit, err)
	}
	if err := unlimited(); err != nil {
		return errors.Join(fmt.Errorf("secret: lock the process in memory: %w: %w", ErrLimit, err), unix.Munlockall())
	}
	locked.Store(true)
	return nil
}

// locked: LockProcess did.
var locked atomic.Bool

// CheckSwap returns nil if nothing of this process can be swapped out: it is
// locked by [LockProcess], or the machine has no swap. Otherwise it returns an
// [ErrLimit] that names the swap.
func CheckSwap() error {
	if locked.Load() {
		return nil
	}
	table, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return fmt.Errorf("secret: does this machine swap? %w", err)
	}
	return swapsOf(string(table))
}

// swapsOf reads proc_swaps(5): a heading, and a line for each.
func swapsOf(table string) error {
	lines := strings.Split(strings.TrimSpace(table), "\n")
	if !strings.HasPrefix(lines[0], "Filename") {
		return fmt.Errorf("secret: /proc/swaps begins with %.40q, which is no table of swaps", lines[0])
	}
	if len(lines) == 1 {
		return nil
	}
	name, _, _ := strings.Cut(lines[1], " ")
	name, _, _ = strings.Cut(name, "\t")
	return fmt.Errorf("secret: this process may be swapped out to %.80q: %w; or swapoff -a", name, ErrLimit)
}

// unlimited tries whether a mapping larger than the limit is granted while
// future ones are locked, as it is to root outside of user namespaces.
func unlimited() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return err
	}
	if limit.Cur == unix.RLIM_INFINITY {
		return nil
	}
	if limit.Cur > 1<<46 {
		return fmt.Errorf("the limit is %d bytes", limit.Cur)
	}
	probe, err := unix.Mmap(-1, 0, int(limit.Cur)+pageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("the limit is %d bytes: %w", limit.Cur, err)
	}
	return unix.Munmap(probe)
}
