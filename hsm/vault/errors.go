package vault

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"

	"github.com/hashicorp/vault/api"

	"github.com/keyturn/keyturn/hsm"
)

// explain says what was attempted with which server.
func (s *Store) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("vault: %s at %s: %w", what, s.cfg.Address, err)
}

// classify turns what a request came to into one of the errors of package hsm.
func (s *Store) classify(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if late := hsm.ContextError(ctx); late != nil {
		s.http.CloseIdleConnections() // they may be as dead as this one was
		return late
	}
	var refusal *api.ResponseError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &refusal) && refusal.StatusCode == http.StatusServiceUnavailable && s.sealed(ctx):
		return fmt.Errorf("%w: %s; its operators must unseal it", hsm.ErrSealed, said(refusal))
	case errors.As(err, &refusal) && (refusal.StatusCode == http.StatusNotFound || refusal.StatusCode >= 500):
		return fmt.Errorf("%w: %s", hsm.ErrGone, said(refusal))
	case errors.As(err, &refusal):
		return errors.New(said(refusal))
	case errors.As(err, &certificate):
		return fmt.Errorf("%w: the server's certificate: %w", hsm.ErrWrongIdentity, err)
	case typed(err):
		return err
	}
	return fmt.Errorf("%w: the server cannot be reached: %w", hsm.ErrGone, err)
}

// typed reports whether err already says what it is.
func typed(err error) bool {
	for _, known := range []error{hsm.ErrGone, hsm.ErrAuthExpired, hsm.ErrWrongIdentity} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// sealed asks the server, which answers this without a token and while sealed.
// A 503 can also come from a standby, or a proxy, without an active server.
func (s *Store) sealed(ctx context.Context) bool {
	var status struct {
		Sealed bool `json:"sealed"`
	}
	c, err := s.anonymous()
	return err == nil && send(ctx, c, "sys/seal-status", nil, &status) == nil && status.Sealed
}

// loginError classifies the failure of a login: what the server refuses there
// is neither a missing key nor a policy. Vault 1.13 answers a wrong secret id
// with status 500, others with 400.
func (s *Store) loginError(ctx context.Context, err error) error {
	var refusal *api.ResponseError
	if errors.As(err, &refusal) && refusal.StatusCode <= http.StatusInternalServerError {
		return fmt.Errorf("%w: the login was refused: %s", hsm.ErrAuthExpired, said(refusal))
	}
	return s.classify(ctx, err)
}

// denied is the answer to a token that lives but may not do this.
func denied(err error) error {
	var refusal *api.ResponseError
	errors.As(err, &refusal)
	return fmt.Errorf("%w: the token is valid and its policies do not allow this: %s", hsm.ErrDenied, said(refusal))
}

func isStatus(err error, code int) bool {
	var refusal *api.ResponseError
	return errors.As(err, &refusal) && refusal.StatusCode == code
}

// said quotes the server, cleaned of what could deceive on a screen.
func said(refusal *api.ResponseError) string {
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, strings.Join(refusal.Errors, "; "))
	return fmt.Sprintf("it answers %d: %.200s", refusal.StatusCode, strings.Join(strings.Fields(text), " "))
}
