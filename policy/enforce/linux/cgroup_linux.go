package linux

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How long the kernel may take to confirm what it was told. A group that does
// not freeze is to be killed instead, so that is found out early.
const (
	patience       = 10 * time.Second
	freezePatience = 2 * time.Second
)

// errNotConfirmed means that a cgroup did not reach the state asked for.
var errNotConfirmed = errors.New("the kernel did not confirm it in time")

// cgroup is one cgroup v2 directory.
type cgroup string

// mountedAt finds where cgroup v2 is mounted. On hybrid machines that is
// beside v1, so no path can be taken for granted.
func mountedAt(mountinfo []byte) (string, error) {
	lines := bufio.NewScanner(bytes.NewReader(mountinfo))
	for lines.Scan() {
		// proc(5): ID parent major:minor root mountpoint options [tags] - type source super
		before, after, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if ok && len(left) >= 6 && len(right) >= 1 && right[0] == "cgroup2" {
			return unescape(left[4]), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("enforce/linux: reading mountinfo: %w", err)
	}
	return "", errors.New("enforce/linux: no cgroup2 in mountinfo: mount cgroup v2, for nothing can be stopped without it")
}

// unescape undoes mountinfo's \ooo for blank, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func (c cgroup) path(file string) string { return filepath.Join(string(c), file) }

func (c cgroup) set(file, value string) error {
	f, err := os.OpenFile(c.path(file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// field reads one value of a flat keyed file such as cgroup.events.
func (c cgroup) field(file, key string) (int64, error) {
	text, err := os.ReadFile(c.path(file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == key {
			return strconv.ParseInt(value, 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", c.path(file), key)
}

// await waits until cgroup.events shows key as value. The kernel raises POLLPRI
// on the file at a change; the short timeout only guards against one missed
// between read and poll.
func (c cgroup) await(key string, value int64, limit time.Duration) error {
	f, err := os.Open(c.path("cgroup.events"))
	if err != nil {
		return err
	}
	defer f.Close()
	for deadline := time.Now().Add(limit); ; {
		now, err := c.field("cgroup.events", key)
		if err != nil {
			return err
		}
		if now == value {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup.events %s is %d, want %d: %w", key, now, value, errNotConfirmed)
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 5); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (c cgroup) freeze(on bool) error {
	value := int64(0)
	if on {
		value = 1
	}
	if err := c.set("cgroup.freeze", strconv.FormatInt(value, 10)); err != nil {
		return err
	}
	return c.await("frozen", value, freezePatience)
}

// kill ends every process in the group, those that are being forked included,
// and waits until none is left.
func (c cgroup) kill() error {
	if err := c.set("cgroup.kill", "1"); err != nil {
		return err
	}
	return c.await("populated", 0, patience)
}

// remove deletes the empty group. Between the last exit and the moment the
// kernel lets go of the group a removal may say that it is busy.
func (c cgroup) remove() error {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := unix.Rmdir(string(c))
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

func (c cgroup) cpu() (time.Duration, error) {
	usec, err := c.field("cpu.stat", "usage_usec")
	return time.Duration(usec) * time.Microsecond, err
}
