package keys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
)

// maxPIN bounds a PIN in bytes; PKCS#11 modules take far less.
const maxPIN = 255

// PromptPIN asks on the terminal, without echo.
func PromptPIN(ctx context.Context, prompt string) (*secret.Buffer, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, errors.New("keys: no terminal to ask for a PIN on; pass it with --pin-fd N, or --pin-credential NAME in a service")
	}
	defer tty.Close()
	show, err := hideInput(tty)
	if err != nil {
		return nil, fmt.Errorf("keys: turn the terminal's echo off: %w", err)
	}
	defer show()
	defer context.AfterFunc(ctx, func() { tty.SetReadDeadline(time.Unix(1, 0)) })() // an interrupt ends the question
	fmt.Fprintf(tty, "%s: ", prompt)
	pin, err := readPIN(tty)
	fmt.Fprintln(tty)
	if err := errors.Join(ctx.Err(), err); err != nil {
		pin.Wipe()
		return nil, fmt.Errorf("keys: read the PIN: %w", err)
	}
	return pin, nil
}

// hideInput turns the echo of a terminal off, and returns what turns it on.
func hideInput(tty *os.File) (show func(), err error) {
	var before *unix.Termios
	err = control(tty, func(fd int) error {
		if before, err = unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
			return err
		}
		hidden := *before
		hidden.Lflag &^= unix.ECHO
		hidden.Lflag |= unix.ICANON | unix.ISIG
		hidden.Iflag |= unix.ICRNL
		return unix.IoctlSetTermios(fd, unix.TCSETS, &hidden)
	})
	return func() { control(tty, func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETS, before) }) }, err
}

// control runs f on the descriptor, which stays one that can be interrupted.
func control(tty *os.File, f func(fd int) error) error {
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

// An FD is the number of a descriptor that PINs are read from, as a flag; 0 if
// it is not given. The program's own streams are refused: what somebody types
// there answers other questions.
type FD int

// String is the number.
func (fd *FD) String() string { return strconv.Itoa(int(*fd)) }

// Type is how a flag's help names the value.
func (*FD) Type() string { return "int" }

// Set reads the number.
func (fd *FD) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 3 {
		return errors.New("want the number of a descriptor that is open and not one of 0 to 2, as in: --pin-fd 3 3<FILE")
	}
	*fd = FD(n)
	return nil
}

// DescriptorPIN reads one line from an open file descriptor for each token
// that asks, in the order in which they ask.
func DescriptorPIN(fd FD) hsm.PIN {
	var mu sync.Mutex
	var lines *os.File
	// What this process opened itself is closed on exec, and what was passed to it
	// was not. To try what some other file says as a PIN would cost a try.
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	passed := err == nil && flags&unix.FD_CLOEXEC == 0
	return func(context.Context, string) (*secret.Buffer, error) {
		mu.Lock()
		defer mu.Unlock()
		if lines == nil {
			if !passed {
				return nil, fmt.Errorf("keys: --pin-fd %d: nothing was passed under that number: append %d<FILE to the command", fd, fd)
			}
			lines = os.NewFile(uintptr(fd), "pin")
		}
		pin, err := readPIN(lines)
		if err != nil {
			return nil, fmt.Errorf("keys: read the PIN from descriptor %d: %w", fd, err)
		}
		return pin, nil
	}
}

// CredentialPIN reads the PIN from a credential that the service manager
// passes (systemd LoadCredentialEncrypted=NAME).
func CredentialPIN(name string) hsm.PIN {
	return func(context.Context, string) (*secret.Buffer, error) {
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" || name != filepath.Base(name) {
			return nil, fmt.Errorf("keys: no service credential %q (CREDENTIALS_DIRECTORY is not set); pass the PIN with --pin-fd N", name)
		}
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("keys: read the service credential %q: %w", name, err)
		}
		defer f.Close()
		pin, err := readPIN(f)
		if err != nil {
			return nil, fmt.Errorf("keys: read the service credential %q: %w", name, err)
		}
		return pin, nil
	}
}

// readPIN reads one line, or what there is before the end, byte by byte: no
// other memory holds it, and the line after it stays where it is.
func readPIN(r io.Reader) (*secret.Buffer, error) {
	pin, err := secret.New(maxPIN + 2) // with the end of the line
	if err != nil {
		return nil, err
	}
	n := 0
	for b := pin.Bytes(); n < len(b); n++ {
		if _, err = io.ReadFull(r, b[n:n+1]); err != nil || b[n] == '\n' {
			break
		}
	}
	if n > 0 && pin.Bytes()[n-1] == '\r' {
		n--
	}
	switch {
	case err != nil && !errors.Is(err, io.EOF):
	case n == 0 && err != nil:
		err = errors.New("the input ended: give one line for each PIN that is asked for")
	case n == 0 || n > maxPIN:
		err = fmt.Errorf("a PIN has 1 to %d bytes, and this one has %d", maxPIN, n)
	default:
		clear(pin.Bytes()[n:])
		pin.Cut(n)
		return pin, nil
	}
	pin.Wipe()
	return nil, err
}

// once keeps the PIN that a descriptor gave, since a token's helper may have
// to log in again after it was restarted and a descriptor is read only once.
func once(source hsm.PIN) hsm.PIN {
	var mu sync.Mutex
	var kept *secret.Buffer
	return func(ctx context.Context, prompt string) (*secret.Buffer, error) {
		mu.Lock()
		defer mu.Unlock()
		if kept == nil {
			pin, err := source(ctx, prompt)
			if err != nil {
				return nil, err
			}
			kept = pin
		}
		return kept.Clone()
	}
}
