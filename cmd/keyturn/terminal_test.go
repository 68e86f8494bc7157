package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudoterminal; what is written to the first end is typed.
func terminal(t *testing.T) (typed, tty *os.File) {
	t.Helper()
	typed, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs pseudoterminals: %v", err)
	}
	t.Cleanup(func() { typed.Close() })
	raw, err := typed.SyscallConn()
	var n int
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
				n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
			}
		})
	}
	if err == nil {
		tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return typed, tty
}

// The interrupt key ends a question at once: no later line is taken for its
// answer. A ceremony goes on from there.
func TestFaultInterruptedAtAQuestion(t *testing.T) {
	h := newHall(t)
	program, err := exec.LookPath("keyturn")
	h.must(err)
	for _, words := range []string{"", "done\n", "maria\n"} {
		typed, tty := terminal(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, append([]string{"ceremony", "run", h.script, "--dir", h.path("ceremony")}, h.args...)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		h.must(cmd.Start())
		tty.Close()
		questions := 1 + strings.Count(words, "\n")
		var shown bytes.Buffer
		for b := make([]byte, 4096); ; {
			n, err := typed.Read(b)
			if err != nil {
				break // the process ended
			}
			shown.Write(b[:n])
			if asked := strings.Count(shown.String(), "stop] ") + strings.Count(shown.String(), "or no "); asked >= questions {
				questions = 1 << 20
				typed.WriteString("\x03")
			} else if line, rest, ok := strings.Cut(words, "\n"); ok && asked == questions-strings.Count(words, "\n") {
				words = rest
				typed.WriteString(line + "\n")
			}
		}
		err := cmd.Wait()
		if ctx.Err() != nil || err == nil || !strings.Contains(shown.String(), "keyturn: interrupted\r\nhint: nothing that was signed is lost") {
			t.Fatalf("%v, %v: %s", err, ctx.Err(), shown.String())
		}
	}
	if n := h.records(); n != 1 {
		t.Errorf("%d signatures, want maria's", n)
	}
	h.before = ""
	h.does()
}
