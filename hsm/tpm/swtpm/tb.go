package swtpm

import (
	"os"
	"path/filepath"
	"syscall"
)

// TB is the part of testing.TB that New needs.
type TB interface {
	Helper()
	Cleanup(func())
	Skip(args ...any)
	Fatal(args ...any)
}

// An Emulator is a software TPM that lives as long as a test.
type Emulator struct {
	*Process
	CA [][]byte // certificates (DER) of the authority behind its EK certificate

	dir    string // state
	socket string
}

// New sets up and starts a software TPM for a test, with an authority of its
// own, and skips the test where swtpm is not installed.
func New(tb TB) *Emulator {
	tb.Helper()
	if err := Available(); err != nil {
		tb.Skip(err)
	}
	base, err := os.MkdirTemp("", "keyturn-swtpm") // a test's own directory can be too long for a socket
	if err != nil {
		tb.Fatal(err)
	}
	e := &Emulator{dir: filepath.Join(base, "state"), socket: filepath.Join(base, "sock")}
	tb.Cleanup(func() {
		if e.Process != nil {
			_ = e.Kill() // it may be dead already
		}
		_ = os.RemoveAll(base)
	})
	ca := filepath.Join(base, "ca")
	if err := Setup(e.dir, ca); err != nil {
		tb.Fatal(err)
	}
	if e.CA, err = Roots(ca); err != nil {
		tb.Fatal(err)
	}
	e.Reset(tb)
	return e
}

// Reset kills the emulator, if it runs, and starts it on the same state: what a
// power cut and a boot are to a TPM.
func (e *Emulator) Reset(tb TB) {
	tb.Helper()
	if e.Process != nil {
		_ = e.Kill() // it may be dead already
	}
	// The kernel kills it should the test be killed.
	p, err := start(e.dir, e.socket, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL})
	if err != nil {
		tb.Fatal(err)
	}
	e.Process = p
}

// Snapshot stops the emulator and copies its state, as a virtual machine's
// manager can. Reset or Restore starts it again.
func (e *Emulator) Snapshot(tb TB) string {
	tb.Helper()
	_ = e.Kill() // it may be dead already
	copied := filepath.Join(filepath.Dir(e.dir), "snapshot")
	if err := os.CopyFS(copied, os.DirFS(e.dir)); err != nil {
		tb.Fatal(err)
	}
	return copied
}

// Restore puts a snapshot in the place of the state, and starts the emulator.
func (e *Emulator) Restore(tb TB, snapshot string) {
	tb.Helper()
	_ = e.Kill() // it may be dead already
	if err := os.RemoveAll(e.dir); err != nil {
		tb.Fatal(err)
	}
	if err := os.CopyFS(e.dir, os.DirFS(snapshot)); err != nil {
		tb.Fatal(err)
	}
	e.Reset(tb)
}
