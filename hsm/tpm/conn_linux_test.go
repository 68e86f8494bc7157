package tpm

import (
	"os"
	"syscall"
	"testing"
)

// A TPM device that is not blocking reads as ended until its command was
// carried out. A terminal stands in for one: Go can wait for both.
func TestDeviceBlocks(t *testing.T) {
	c, err := dial("/dev/ptmx")
	if err != nil {
		t.Skip(err)
	}
	defer c.rwc.Close()
	raw, err := c.rwc.(*os.File).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		flags, _, no := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
		if no != 0 || flags&syscall.O_NONBLOCK != 0 {
			t.Errorf("flags %#x, %v: it does not block", flags, no)
		}
	}); err != nil {
		t.Fatal(err)
	}
}
