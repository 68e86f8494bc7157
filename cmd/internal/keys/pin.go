package keys

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/term"

	"github.com/keyturn/keyturn/hsm"
)

// maxPIN bounds a PIN in bytes; PKCS#11 modules take far less.
const maxPIN = 256

// PromptPIN asks on the terminal, without echo.
func PromptPIN(_ context.Context, prompt string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, errors.New("keys: no terminal to ask for a PIN on; pass it with --pin-fd N")
	}
	defer tty.Close()
	fmt.Fprintf(tty, "%s: ", prompt)
	pin, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(tty)
	if err != nil {
		return nil, fmt.Errorf("keys: read the PIN: %w", err)
	}
	return checkPIN(pin)
}

// DescriptorPIN reads one line from an open file descriptor for each token
// that asks, in the order in which they ask.
func DescriptorPIN(fd int) hsm.PIN {
	var mu sync.Mutex
	var lines *bufio.Reader
	return func(context.Context, string) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if lines == nil {
			f := os.NewFile(uintptr(fd), "pin")
			if f == nil {
				return nil, fmt.Errorf("keys: --pin-fd %d is not an open file descriptor", fd)
			}
			lines = bufio.NewReaderSize(f, maxPIN)
		}
		line, err := lines.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("keys: read the PIN from descriptor %d: %w", fd, err)
		}
		return checkPIN(bytes.TrimRight(line, "\r\n"))
	}
}

// CredentialPIN reads the PIN from a credential that the service manager
// passes (systemd LoadCredentialEncrypted=NAME).
func CredentialPIN(name string) hsm.PIN {
	return func(context.Context, string) ([]byte, error) {
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" || name != filepath.Base(name) {
			return nil, fmt.Errorf("keys: no service credential %q (CREDENTIALS_DIRECTORY is not set); pass the PIN with --pin-fd N", name)
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("keys: read the service credential %q: %w", name, err)
		}
		return checkPIN(bytes.TrimRight(b, "\r\n"))
	}
}

func checkPIN(pin []byte) ([]byte, error) {
	if len(pin) == 0 || len(pin) > maxPIN {
		return nil, fmt.Errorf("keys: a PIN of %d bytes, want 1 to %d", len(pin), maxPIN)
	}
	return pin, nil
}

// once keeps the PIN that a descriptor gave, since a token's helper may have
// to log in again after it was restarted and a descriptor is read only once.
func once(source hsm.PIN) hsm.PIN {
	var mu sync.Mutex
	var kept []byte
	return func(ctx context.Context, prompt string) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if kept == nil {
			pin, err := source(ctx, prompt)
			if err != nil {
				return nil, err
			}
			kept = pin
		}
		return bytes.Clone(kept), nil
	}
}
