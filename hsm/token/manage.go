package token

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/token/internal/wire"
)

// Tokens returns the tokens that the module of cfg shows, without logging in.
func Tokens(ctx context.Context, cfg Config) ([]TokenInfo, error) {
	answer, err := apart(ctx, cfg, wire.OpTokens)
	if err != nil {
		return nil, fmt.Errorf("token: list tokens of %s: %w", cfg.Module, err)
	}
	var tokens []TokenInfo
	if err := decode(answer, &tokens); err != nil {
		return nil, err
	}
	for i := range tokens {
		tokens[i] = cleanInfo(tokens[i])
	}
	return tokens, nil
}

// Init gives the first token that is not initialised a label, a security
// officer's PIN and a user's PIN. It never touches a token that holds anything,
// and refuses a label that another token of the module has. The caller wipes
// the PINs.
func Init(ctx context.Context, cfg Config, label string, soPIN, userPIN []byte) error {
	if label == "" || label != clean(label) || len(label) > 32 {
		return fmt.Errorf("token: initialise %q: a token label is 1 to 32 bytes that print", label)
	}
	if _, err := apart(ctx, cfg, wire.OpInit, []byte(label), soPIN, userPIN); err != nil {
		return fmt.Errorf("token: initialise %q in %s: %w", label, cfg.Module, err)
	}
	return nil
}

// apart has a helper of its own do one thing that needs no open token. Modules
// see a new token only after a fresh start.
func apart(ctx context.Context, cfg Config, op wire.Op, fields ...[]byte) ([]byte, error) {
	cfg, err := cfg.complete(hsm.URI{})
	if err != nil {
		return nil, err
	}
	h, err := spawn(cfg)
	if err != nil {
		return nil, err
	}
	defer h.close()
	answer, err := h.call(ctx, op, append([][]byte{[]byte(wire.Version), []byte(cfg.Module)}, fields...)...)
	if errors.Is(err, wire.ErrLost) {
		err = fmt.Errorf("%w; is the module there, and whole?", err)
	}
	return answer, err
}
