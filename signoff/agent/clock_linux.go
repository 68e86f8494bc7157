package agent

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// boottime is CLOCK_BOOTTIME: it goes on while the machine sleeps, and nobody
// can set it.
func boottime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, fmt.Errorf("agent: read CLOCK_BOOTTIME: %w", err)
	}
	return time.Duration(t.Nano()), nil
}
