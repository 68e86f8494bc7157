package keys

import (
	"errors"
	"log/slog"
	"os"

	"github.com/keyturn/keyturn/hsm"
)

// DaemonPIN is where a service takes its PIN from: an open descriptor, or a
// service credential. Exactly one is named.
func DaemonPIN(fd FD, credential string) (hsm.PIN, error) {
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

// Logger logs to standard error, as text; the service manager keeps it.
func Logger(program string) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("program", program)
}
