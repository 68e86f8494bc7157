package secret

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/hsm/secret/secrettest"
)

// role has the test binary play a program under limits of its own.
const role = "KEYTURN_SECRET_TEST"

func TestMain(m *testing.M) {
	if play := roles[os.Getenv(role)]; play != nil {
		fmt.Print(play())
		return
	}
	os.Exit(m.Run())
}

var roles = map[string]func() error{
	"buffer":  func() error { _, err := New(1); return err },
	"process": LockProcess,
	"harden":  Harden,
	"swap":    CheckSwap,
	"locked":  func() error { return errors.Join(LockProcess(), CheckSwap()) },
	"work": func() error {
		err := LockProcess()
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 50 {
					if b := make([]byte, 1<<20); len(b) == 0 {
						panic("unreachable")
					}
				}
			})
		}
		all.Wait()
		return err
	},
}

// play runs a role under a limit in bytes on locked memory. Unless it may lock
// at will, it has not the right to pass over the limit that root has.
func play(t *testing.T, name, limit string, atWill bool, under ...string) string {
	t.Helper()
	run := append(under, "prlimit", "--memlock="+limit)
	if os.Geteuid() == 0 && !atWill {
		run = append(run, "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock")
	}
	run = append(run, os.Args[0])
	cmd := exec.Command(run[0], run[1:]...)
	cmd.Env = append(os.Environ(), role+"="+name)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", run, err, out)
	}
	return string(out)
}

func TestLimits(t *testing.T) {
	for _, c := range []struct{ role, limit, want string }{
		{"buffer", "0:0", ErrLimit.Error()},
		{"buffer", "65536:65536", "<nil>"},
		{"process", "0:0", ErrLimit.Error()},
		{"process", "65536:65536", ErrLimit.Error()},
	} {
		if got := play(t, c.role, c.limit, false); !strings.Contains(got, c.want) {
			t.Errorf("%s under a limit of %s: %q, want %q", c.role, c.limit, got, c.want)
		}
	}
}

// A process that is not locked is kept from no swap device; one that is, from
// all. The table of swaps is a file of ours, in a mount namespace.
func TestCheckSwap(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to show the process another table of swaps")
	}
	const heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	table := filepath.Join(t.TempDir(), "swaps")
	for _, c := range []struct {
		table, role, want string
		atWill            bool
	}{
		{heading, "swap", "<nil>", false},
		{heading + "/dev/sda2                               partition\t8388604\t\t0\t\t-2\n", "swap", `"/dev/sda2": ` + ErrLimit.Error(), false},
		{heading + "/dev/zram0\tpartition\t8388604\t0\t100\n", "locked", ErrLimit.Error(), false},
		{heading + "/dev/zram0\tpartition\t8388604\t0\t100\n", "swap", `"/dev/zram0"`, true},
		{heading + "/dev/zram0\tpartition\t8388604\t0\t100\n", "locked", "<nil>", true},
		{"", "swap", "no table of swaps", false},
	} {
		if err := os.WriteFile(table, []byte(c.table), 0o600); err != nil {
			t.Fatal(err)
		}
		under := []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /proc/swaps && exec "$@"`, table}
		if got := play(t, c.role, "65536:65536", c.atWill, under...); !strings.Contains(got, c.want) {
			t.Errorf("%s beside %q: %q, want %q", c.role, c.table, got, c.want)
		}
	}
}

// The runtime lives on with all of its memory locked.
func TestLockProcess(t *testing.T) {
	var caps [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0]); err != nil {
		t.Fatal(err)
	}
	if caps[0].Effective&(1<<unix.CAP_IPC_LOCK) == 0 {
		t.Skip("needs CAP_IPC_LOCK, to lock memory at will")
	}
	if got := play(t, "work", "65536:65536", true); got != "<nil>" {
		t.Error(got)
	}
}

func TestBuffer(t *testing.T) {
	for _, n := range []int{-1, 0, maxSize + 1} {
		if _, err := New(n); err == nil {
			t.Errorf("made a buffer of %d bytes", n)
		}
	}
	for _, n := range []int{1, 32, pageSize, pageSize + 1, maxSize} {
		b, err := New(n)
		if err != nil {
			t.Fatal(err)
		}
		if len(b.Bytes()) != n || cap(b.Bytes()) != n || !bytes.Equal(b.Bytes(), make([]byte, n)) {
			t.Errorf("%d bytes: got %d of %d, or they are not zero", n, len(b.Bytes()), cap(b.Bytes()))
		}
		rand.Read(b.Bytes())
		c, err := b.Clone()
		if err != nil || !bytes.Equal(c.Bytes(), b.Bytes()) {
			t.Errorf("%d bytes: a clone differs: %v", n, err)
		}
		b.Wipe()
		b.Wipe()
		if b.Bytes() != nil || len(c.Bytes()) != n {
			t.Errorf("%d bytes: wiped %v, the clone has %d", n, b.Bytes() == nil, len(c.Bytes()))
		}
		if text := fmt.Sprintf("%v %x %#v %s", c, c, c, c); text != strings.Join([]string{shown, shown, shown, shown}, " ") {
			t.Errorf("printed as %.40q", text)
		}
		c.Wipe()
	}
	var none *Buffer
	none.Wipe()
	if none.Bytes() != nil {
		t.Error("nil has bytes")
	}
}

func TestTake(t *testing.T) {
	given := []byte("pin-of-alice")
	b, err := Take(given)
	if err != nil || string(b.Bytes()) != "pin-of-alice" || !bytes.Equal(given, make([]byte, 12)) {
		t.Errorf("took %q, left %q: %v", b.Bytes(), given, err)
	}
	b.Wipe()
	if _, err := Take(nil); err == nil {
		t.Error("took nothing")
	}
}

// Buffers never share memory, and a used page comes back empty.
func TestPagesAreApart(t *testing.T) {
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			for range 200 {
				b, err := New(100)
				if err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(b.Bytes(), make([]byte, 100)) {
					t.Error("a new buffer is not empty")
				}
				for j := range b.Bytes() {
					b.Bytes()[j] = byte(i + 1)
				}
				if n := bytes.Count(b.Bytes(), []byte{byte(i + 1)}); n != 100 {
					t.Errorf("%d of 100 bytes are what was written", n)
				}
				b.Wipe()
			}
		})
	}
	all.Wait()
}

// Both kinds of memory are locked and kept from children; in the one that the
// kernel hides, not even the owner of the process finds the secret.
func TestAttackSecretInMemory(t *testing.T) {
	for name, mapping := range map[string]func(int) ([]byte, error){"memfd_secret": mapSecret, "mmap": mapPrivate} {
		t.Run(name, func(t *testing.T) {
			b, err := mapping(pageSize)
			if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EPERM) {
				t.Skipf("this kernel has no %s", name)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Munmap(b)
			rand.Read(b[:32])
			needle := secrettest.Hide(b[:32])
			want := 0
			if name == "mmap" {
				want = 1
			}
			check(t, "in the buffer", needle, want)
			control := bytes.Clone(b[:32])
			check(t, "with a copy on the heap", needle, want+1)
			clear(control)
			clear(b)
			check(t, "after wiping", needle, 0)
			checkFlags(t, b, name)
		})
	}
}

func check(t *testing.T, when string, needle secrettest.Needle, want int) {
	t.Helper()
	n, err := secrettest.Count(0, needle)
	if err != nil || n != want {
		t.Errorf("%s: found %d times, want %d: %v", when, n, want, err)
	}
}

// checkFlags reads what the kernel says of the mapping: lo is locked, dc not
// copied on fork, dd not dumped.
func checkFlags(t *testing.T, b []byte, name string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), fmt.Sprintf("\n%x-", secrettest.Address(b)))
	if !found {
		t.Fatal("the mapping is not listed")
	}
	_, flags, _ := strings.Cut(rest, "VmFlags:")
	flags, _, _ = strings.Cut(flags, "\n")
	for _, want := range []string{"lo", "dc", "dd"} {
		if !strings.Contains(flags+" ", " "+want+" ") {
			t.Errorf("%s: flags are %s, without %s", name, flags, want)
		}
	}
}

func TestHarden(t *testing.T) {
	if got := play(t, "harden", "65536:65536", false); got != "<nil>" {
		t.Error(got)
	}
}
