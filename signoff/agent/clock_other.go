//go:build !linux

package agent

import (
	"errors"
	"time"
)

// boottime fails: without a clock that nobody can set there is no lease.
func boottime() (time.Duration, error) {
	return 0, errors.New("agent: an agent runs on Linux only; here is its client alone")
}
