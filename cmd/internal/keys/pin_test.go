package keys

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/hsm"
)

// answer asks for a PIN and returns it as text, and whether there was one.
func answer(t *testing.T, p hsm.PIN) (string, error) {
	t.Helper()
	b, err := p(context.Background(), "PIN")
	defer b.Wipe()
	return string(b.Bytes()), err
}

// dup returns a descriptor that belongs to whoever takes it.
func dup(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := unix.Dup(int(f.Fd()))
	check(t, err)
	return fd
}

func TestDescriptorPIN(t *testing.T) {
	long := strings.Repeat("1", maxPIN)
	for text, want := range map[string][]string{
		"one\ntwo\n":          {"one", "two", ""},
		"one\r\ntwo":          {"one", "two", ""},
		"":                    {""},
		"\n":                  {""},
		long + "\nx\n":        {long, "x"},
		long + "\r\n":         {long},
		long + "1\n":          {""},
		"with space \nrest\n": {"with space ", "rest"},
	} {
		r, w, err := os.Pipe()
		check(t, err)
		_, err = w.WriteString(text)
		check(t, err)
		check(t, w.Close())
		p := DescriptorPIN(FD(dup(t, r)))
		for i, pin := range want {
			got, err := answer(t, p)
			if got != pin || (err == nil) != (pin != "") {
				t.Errorf("PIN %d of %.20q: got %d bytes and %v, want %d", i+1, text, len(got), err, len(pin))
			}
			if err != nil && strings.Contains(err.Error(), "111") {
				t.Errorf("the error shows the PIN: %v", err)
			}
		}
		r.Close()
	}
}

func TestCredentialPIN(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "pin"), []byte("4711\n"), 0o400))
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	p, err := DaemonPIN(0, "pin")
	check(t, err)
	for range 2 { // a restarted helper asks again
		if got, err := answer(t, p); got != "4711" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	}
	for _, name := range []string{"other", "../pin", ".."} {
		if got, err := answer(t, CredentialPIN(name)); err == nil {
			t.Errorf("credential %s gave %q", name, got)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := answer(t, p); err == nil {
		t.Error("a credential without a directory")
	}
}

// A number under which nothing was passed names no file that this program opened,
// whatever stands in it.
func TestAttackDescriptorOfOurOwn(t *testing.T) {
	f, err := os.Open("pin_test.go")
	check(t, err)
	defer f.Close()
	for _, fd := range []FD{FD(f.Fd()), 1 << 20} {
		if got, err := answer(t, DescriptorPIN(fd)); err == nil || !strings.Contains(err.Error(), "nothing was passed under that number") {
			t.Errorf("descriptor %d gave %q, %v", fd, got, err)
		}
	}
}

// A descriptor is read once, and its PIN kept for a helper that starts anew.
func TestDaemonKeepsDescriptorPIN(t *testing.T) {
	r, w, err := os.Pipe()
	check(t, err)
	defer r.Close()
	_, err = w.WriteString("4711\n")
	check(t, err)
	check(t, w.Close())
	p, err := DaemonPIN(FD(dup(t, r)), "")
	check(t, err)
	for range 3 {
		if got, err := answer(t, p); got != "4711" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if _, err := DaemonPIN(3, "pin"); err == nil {
		t.Error("two sources of one PIN")
	}
}
