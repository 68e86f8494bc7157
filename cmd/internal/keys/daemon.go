package keys

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/hsm"
)

// DaemonPIN is where a service takes its PIN from: an open descriptor, or a
// service credential. Exactly one is named.
func DaemonPIN(fd int, credential string) (hsm.PIN, error) {
	switch {
	case fd > 0 && credential != "":
		return nil, errors.New("keys: give --pin-fd or --pin-credential, not both")
	case fd > 0:
		return once(DescriptorPIN(fd)), nil
	case credential != "":
		return CredentialPIN(credential), nil
	}
	return PromptPIN, nil
}

// Harden keeps this process's memory out of core dumps and other processes'
// reach. RLIMIT_CORE is one byte: zero does not stop dumps into a pipe.
func Harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keys: make the process undumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}); err != nil {
		return fmt.Errorf("keys: limit core dumps: %w", err)
	}
	return nil
}

// Logger logs to standard error, as text; the service manager keeps it.
func Logger(program string) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("program", program)
}
