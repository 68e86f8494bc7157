package linux

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestMountedAt(t *testing.T) {
	const v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
	for name, c := range map[string]struct{ text, want string }{
		"unified":          {"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"},
		"hybrid":           {v1 + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified"},
		"with a blank":     {"41 31 0:38 / /mnt/a\\040b rw - cgroup2 none rw\n", "/mnt/a b"},
		"v1 only":          {v1, ""},
		"only by its name": {"41 31 0:38 / /mnt/cgroup2 rw - tmpfs cgroup2 rw\n", ""},
		"cut off":          {"41 31 0:38 - cgroup2 cgroup2 rw\n", ""},
		"nothing":          {"", ""},
	} {
		got, err := mountedAt([]byte(c.text))
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}

// A group that does not reach the state asked for is an error and no success.
func TestNotConfirmed(t *testing.T) {
	c := cgroup(t.TempDir())
	if err := os.WriteFile(filepath.Join(string(c), "cgroup.events"), []byte("populated 1\nfrozen 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.await("frozen", 0, time.Second); err != nil {
		t.Error(err)
	}
	if err := c.await("frozen", 1, 20*time.Millisecond); err == nil {
		t.Error("a group that is not frozen was reported as frozen")
	}
	if err := c.await("gone", 1, 20*time.Millisecond); err == nil {
		t.Error("a key that is not there was reported as set")
	}
	if err := c.freeze(true); err == nil {
		t.Error("a directory without cgroup.freeze was frozen")
	}
	if err := c.kill(); err == nil {
		t.Error("a directory without cgroup.kill was killed")
	}
}
