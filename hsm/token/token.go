// Package token speaks to a PKCS#11 token through the program keyturn-token.
//
// A vendor's module is native code that nobody here has read: it can crash, and
// a call into it cannot be cancelled. So no module is ever loaded into the
// process that imports this package. A helper process holds it, one token each,
// at the other end of a socketpair; it is started when needed, killed when a
// call passes its deadline, and replaced when it dies, and the next call works.
//
// The PIN is asked for at each start of the helper, travels over the socketpair
// only, in locked memory at both ends, and is wiped. A PIN that was refused is never tried again: the Token
// answers ErrWrongPIN from then on, without a word to the device. So does it, with
// what the token said, once that refused twice in a row and gave no reason.
//
// Every use of a key names the public key that was pinned. The helper looks the
// key up by label and public key, and each signature is verified here before it
// leaves, so a token that somebody initialised again answers ErrWrongIdentity.
package token

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/token/internal/wire"
)

// TokenInfo is what a token says of itself.
type TokenInfo = wire.TokenInfo

// restartPause is how long a failed start of the helper answers for the calls
// that follow, so that a missing token is not hammered with new processes.
const restartPause = 100 * time.Millisecond

// maxUnclear is how many logins in a row a token may refuse without saying that the
// PIN is at fault. It may count them as wrong all the same, and cards lock at three.
const maxUnclear = 2

// Token is one PKCS#11 token. It is safe for use by many goroutines.
type Token struct {
	cfg  Config
	uri  hsm.URI
	pin  hsm.PIN
	info TokenInfo // as it was at the first start; does not change after Open

	// turn holds one value while somebody reads or changes what follows.
	turn     chan struct{}
	current  *helper // nil before the first start and after a loss
	opened   bool    // info is set
	closed   bool    // for good
	refused  error   // a PIN was refused: for good
	unclear  int     // logins in a row that the token refused without a reason
	failure  error   // of the last start, within restartPause
	failedAt time.Time
}

// Open starts a helper for the token that uri names (pkcs11:, RFC 7512) and
// logs in with the PIN that pin returns; with a nil pin it does not log in, and
// private keys are out of reach. The Token must be closed.
//
// Errors: ErrGone (no helper, module or token), ErrWrongPIN, ErrLocked (also
// for a token on its last try, unless cfg.Interactive), ErrTimeout.
func Open(ctx context.Context, cfg Config, uri string, pin hsm.PIN) (*Token, error) {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	if u.Scheme != hsm.SchemePKCS11 {
		return nil, fmt.Errorf("token: %s is not a pkcs11: URI", uri)
	}
	if cfg, err = cfg.complete(u); err != nil {
		return nil, err
	}
	t := &Token{cfg: cfg, uri: u, pin: pin, turn: make(chan struct{}, 1)}
	if _, err := t.helper(ctx); err != nil {
		return nil, t.explain("open", err)
	}
	return t, nil
}

// Close logs out and ends the helper. Every later call answers ErrGone.
func (t *Token) Close() error {
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	t.closed = true
	if t.current != nil {
		t.current.close()
		t.current = nil
	}
	return nil
}

// Info returns what the token says of itself now: the state of its PIN above
// all. Strings are cleaned of what does not print.
func (t *Token) Info(ctx context.Context) (TokenInfo, error) {
	answer, err := t.call(ctx, wire.OpInfo)
	if err != nil {
		return TokenInfo{}, t.explain("read token info", err)
	}
	return parseInfo(answer)
}

// ChangePIN replaces the user PIN. A wrong old PIN costs a try. The caller
// wipes both.
func (t *Token) ChangePIN(ctx context.Context, old, new []byte) error {
	_, err := t.once(ctx, wire.OpChangePIN, old, new, flag(t.cfg.Interactive))
	return t.explain("change the pin", err)
}

// call sends one request that may safely be sent twice. If the helper or the
// session was lost, it is sent once more to a new helper.
func (t *Token) call(ctx context.Context, op wire.Op, fields ...[]byte) ([]byte, error) {
	answer, err := t.once(ctx, op, fields...)
	if errors.Is(err, wire.ErrLost) {
		if late := hsm.ContextError(ctx); late != nil {
			return nil, late
		}
		answer, err = t.once(ctx, op, fields...)
	}
	return answer, err
}

// once sends one request, and drops the helper that lost its token.
func (t *Token) once(ctx context.Context, op wire.Op, fields ...[]byte) ([]byte, error) {
	h, err := t.helper(ctx)
	if err != nil {
		return nil, err
	}
	answer, err := h.call(ctx, op, fields...)
	if errors.Is(err, wire.ErrLost) {
		h.die(errors.New("helper dropped: it lost its token"))
	}
	return answer, err
}

// helper returns the helper that is logged in, and starts one if there is none.
func (t *Token) helper(ctx context.Context) (*helper, error) {
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return nil, hsm.ContextError(ctx)
	}
	switch {
	case t.closed:
		return nil, fmt.Errorf("%w: it was closed", hsm.ErrGone)
	case t.refused != nil:
		return nil, t.refused
	case t.current != nil && t.current.alive():
		return t.current, nil
	case t.failure != nil && time.Since(t.failedAt) < restartPause:
		return nil, t.failure
	}
	h, err := t.start(ctx)
	t.current, t.failure, t.failedAt = h, nil, time.Now()
	if errors.Is(err, hsm.ErrGone) {
		t.failure = err
	}
	return h, err
}

// start makes a helper, has it open the token, checks that this is the token of
// the first start, and logs in.
func (t *Token) start(ctx context.Context) (*helper, error) {
	h, err := spawn(t.cfg)
	if err != nil {
		return nil, err
	}
	info, err := t.open(ctx, h)
	if err == nil {
		err = t.login(ctx, h, info)
	}
	if err != nil {
		h.die(errors.New("helper dropped: it could not start"))
		return nil, err
	}
	if !t.opened {
		t.info, t.opened = info, true
	}
	return h, nil
}

func (t *Token) open(ctx context.Context, h *helper) (TokenInfo, error) {
	selector, err := json.Marshal(wire.Selector{
		Token: t.uri.Token, Serial: t.uri.Serial, Manufacturer: t.uri.Manufacturer, Model: t.uri.Model,
	})
	if err != nil {
		return TokenInfo{}, err
	}
	answer, err := h.call(ctx, wire.OpOpen, []byte(wire.Version), []byte(t.cfg.Module), selector)
	if err != nil {
		return TokenInfo{}, err
	}
	info, err := parseInfo(answer)
	if err == nil && t.opened && (info.Serial != t.info.Serial || info.Label != t.info.Label) {
		err = fmt.Errorf("%w: token %q with serial %q took the place of %q with serial %q",
			hsm.ErrWrongIdentity, info.Label, info.Serial, t.info.Label, t.info.Serial)
	}
	return info, err
}

// login asks for the PIN and gives it to the token once.
func (t *Token) login(ctx context.Context, h *helper, info TokenInfo) error {
	if t.pin == nil {
		return nil
	}
	if info.PINLocked {
		return fmt.Errorf("%w: no pin was sent; unlock it with its administration tool", hsm.ErrLocked)
	}
	if info.PINFinalTry && !t.cfg.Interactive {
		return fmt.Errorf("%w: one more wrong pin locks it, so no pin is sent unattended", hsm.ErrLocked)
	}
	pin, err := t.pin(ctx, Prompt(info))
	defer pin.Wipe()
	if err != nil {
		return fmt.Errorf("ask for the pin: %w", err)
	}
	if n := len(pin.Bytes()); n == 0 || n > wire.MaxPIN {
		return fmt.Errorf("the pin has %d bytes, not 1 to %d", n, wire.MaxPIN)
	}
	_, err = h.call(ctx, wire.OpLogin, pin.Bytes(), flag(t.cfg.Interactive))
	switch {
	case err == nil:
		t.unclear = 0
	case errors.Is(err, wire.ErrRefused):
		t.unclear++
	}
	if errors.Is(err, hsm.ErrWrongPIN) || errors.Is(err, hsm.ErrLocked) || t.unclear == maxUnclear {
		t.refused = fmt.Errorf("%w (not tried again; open the token anew with the right pin)", err)
	}
	return err
}

// Prompt asks for the PIN of a token, and warns of what a wrong one may cost.
func Prompt(info TokenInfo) string {
	s := fmt.Sprintf("PIN of token %s (serial %s)", info.Label, info.Serial)
	switch {
	case info.PINFinalTry:
		s += ", LAST TRY before it locks"
	case info.PINCountLow:
		s += ", a wrong PIN was tried before"
	}
	return s
}

func flag(b bool) []byte {
	if b {
		return []byte{1}
	}
	return []byte{0}
}

// explain says what was attempted with which token.
func (t *Token) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("token: %s with %s: %w", what, t.uri, err)
}

func parseInfo(answer []byte) (TokenInfo, error) {
	var info TokenInfo
	if err := decode(answer, &info); err != nil {
		return TokenInfo{}, err
	}
	return cleanInfo(info), nil
}

func cleanInfo(info TokenInfo) TokenInfo {
	for _, s := range []*string{&info.Label, &info.Serial, &info.Manufacturer, &info.Model} {
		*s = clean(*s)
	}
	return info
}

// decode reads what the helper answered; the module behind it is not trusted.
func decode(answer []byte, v any) error {
	if err := json.Unmarshal(answer, v, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("token: helper answered with %d bytes that do not parse: %w", len(answer), err)
	}
	return nil
}

// clean replaces what could deceive on a screen.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, s)
}
