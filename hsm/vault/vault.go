// Package vault signs and seals with the transit engine of a HashiCorp Vault or
// OpenBao server: keys that a site already keeps there stay there.
//
// A [Store] is one server and one way to log in. Tokens are not renewed: when
// the server refuses one and it turns out to be dead, the Store logs in again,
// once, and repeats the request, so the end of a token's life needs no timer
// and no goroutine. The environment (VAULT_TOKEN, VAULT_SKIP_VERIFY, proxies) is
// not consulted, redirects are not followed, nothing below TLS 1.3 is spoken,
// and no request is sent twice for any other reason.
//
// A key is pinned by its URI to one version, across rotations, and by its
// public key; every signature is verified before it leaves. Ed25519 keys are
// sent the message, never a digest: Vault would make another signature of it.
// A sealing key has no public half to pin, so what it seals must be opened
// again by the server before it leaves, together with a witness from the time
// when the key was opened.
//
// Transit agrees on no secrets, so it holds no key that opens a share. What
// Vault says of its keys nobody has checked, so their class is "self-declared".
//
// The policy that keyturn needs of Vault, for a key NAME:
//
//	path "transit/keys/NAME"    { capabilities = ["read"] }
//	path "transit/sign/NAME"    { capabilities = ["update"] }   # a signing key
//	path "transit/encrypt/NAME" { capabilities = ["update"] }   # a sealing key
//	path "transit/decrypt/NAME" { capabilities = ["update"] }
//	path "pki/sign/ROLE"        { capabilities = ["update"] }   # for Store.Certificate
//
// Do not give "create": with it, transit makes a new key of a name that is gone.
package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/hashicorp/vault/api"

	"github.com/keyturn/keyturn/hsm"
)

// DefaultTimeout bounds one operation, a new login included.
const DefaultTimeout = 10 * time.Second

const (
	maxMessage = 1 << 17 // bytes that an Ed25519 key signs; a log leaf has less than 2^16
	maxSecret  = 4 << 10 // bytes that Seal takes, as on a token
	maxAD      = 1 << 16 // bytes of associated data
	maxSealed  = 8 << 10 // bytes; base64 of maxSecret and 28 bytes, with a prefix
	maxAnswer  = 1 << 20 // bytes of one answer of the server
)

// Config names a server and a way to log in to it.
type Config struct {
	Address   string        // https://HOST:PORT
	CACert    string        // PEM file of the authorities behind the server's certificate; empty: the system's
	Namespace string        // of Vault Enterprise or OpenBao; empty: none
	Login     Login         // TokenFile, AppRole or Certificate
	Timeout   time.Duration // of one operation whose context allows more; 0: DefaultTimeout
}

// Store is a server to which this process can log in. It is safe for use by
// many goroutines.
type Store struct {
	cfg   Config
	http  *http.Client
	fresh *http.Client // makes a connection for each request

	// turn holds one value while somebody reads or changes what follows.
	turn    chan struct{}
	current *api.Client // with the token of the last login; nil before the first
	closed  bool
}

// Open logs in to a server. The Store must be closed.
//
// Errors of this and of all that follows: ErrGone (no server, or it has no such
// key or version), ErrSealed, ErrAuthExpired (no login: it is refused, its
// file is missing, or the token has ended and there is no new one), ErrDenied (the token lives and its policy
// says no), ErrWrongIdentity (another server, or another key), ErrTimeout.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	transport, err := cfg.transport()
	if err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	once := transport.Clone()
	once.DisableKeepAlives = true
	s := &Store{cfg: cfg, turn: make(chan struct{}, 1), http: httpClient(transport), fresh: httpClient(once)}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	if _, err := s.session(ctx, nil); err != nil {
		return nil, s.explain("log in", err)
	}
	return s, nil
}

// transport checks c and returns what speaks TLS as it says.
func (c Config) transport() (*http.Transport, error) {
	u, err := url.Parse(c.Address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		return nil, fmt.Errorf("vault: address %q is not of the form https://HOST:PORT", c.Address)
	}
	if c.Login == nil {
		return nil, errors.New("vault: no login is configured; use a token file, an AppRole or a certificate")
	}
	if c.Timeout < 0 {
		return nil, fmt.Errorf("vault: timeout %v is negative", c.Timeout)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if c.CACert != "" {
		pem, err := os.ReadFile(c.CACert)
		if err != nil {
			return nil, fmt.Errorf("vault: read the authorities of the server: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("vault: %s holds no certificate in PEM", c.CACert)
		}
	}
	if cert, ok := c.Login.(Certificate); ok {
		config.GetClientCertificate = cert.show
	}
	// HTTP/1.1: a request that times out takes its own connection with it, where
	// HTTP/2 would try the same dead one again.
	return &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute}, nil
}

// httpClient follows no redirect and bounds what it is answered.
func httpClient(t *http.Transport) *http.Client {
	return &http.Client{
		Transport:     bounded{t},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// bounded ends every answer after maxAnswer bytes. The client reads those that
// refuse to their end by itself.
type bounded struct{ *http.Transport }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.Transport.RoundTrip(r)
	if err == nil {
		response.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(response.Body, maxAnswer), response.Body}
	}
	return response, err
}

// Close gives up the token, if the Store got it by its own login, and ends all
// connections. Every later call answers ErrGone.
func (s *Store) Close() error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.closed {
		return nil
	}
	s.closed = true
	defer s.http.CloseIdleConnections()
	if _, foreign := s.cfg.Login.(TokenFile); foreign || s.current == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Timeout)
	defer cancel()
	err := send(ctx, s.current, "auth/token/revoke-self", struct{}{}, nil)
	s.current = nil
	if err != nil {
		return s.explain("give up the token", s.classify(ctx, err))
	}
	return nil
}

// anonymous returns a client without a token. Each of its requests has a
// connection of its own: a login shows the certificate that is in the file then,
// not the one that an open connection began with.
func (s *Store) anonymous() (*api.Client, error) { return s.client(s.fresh, "") }

// client returns a client of the server with a token, which may be empty.
func (s *Store) client(h *http.Client, token string) (*api.Client, error) {
	// Timeout stays zero: with one, the client ends the context of a raw answer
	// before its body was read. Deadlines come with each call.
	c, err := api.NewClient(&api.Config{Address: s.cfg.Address, HttpClient: h, MaxRetries: 0, DisableRedirects: true})
	if err != nil {
		return nil, fmt.Errorf("set up the client: %w", err)
	}
	// NewClient takes tokens, headers and namespace from the environment, and
	// each request whether its answer is to be wrapped: kept by the server for
	// whoever has a token that is shown in its place.
	c.SetToken(token)
	c.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	c.SetWrappingLookupFunc(func(string, string) string { return "" })
	if s.cfg.Namespace != "" {
		c.SetNamespace(s.cfg.Namespace)
	}
	return c, nil
}

// session returns a client that is logged in. It logs in if there is none, and
// if the one there is was refused.
func (s *Store) session(ctx context.Context, refused *api.Client) (*api.Client, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, hsm.ContextError(ctx)
	}
	if err := hsm.ContextError(ctx); err != nil {
		return nil, err
	}
	if s.closed {
		return nil, fmt.Errorf("%w: it was closed", hsm.ErrGone)
	}
	if s.current != nil && s.current != refused {
		return s.current, nil
	}
	anonymous, err := s.anonymous()
	if err != nil {
		return nil, err
	}
	token, err := s.cfg.Login.token(ctx, anonymous)
	if err != nil {
		return nil, s.loginError(ctx, err)
	}
	if refused != nil && token == refused.Token() {
		return nil, fmt.Errorf("%w: the token was refused and there is no other", hsm.ErrAuthExpired)
	}
	c, err := s.client(s.http, token)
	if err == nil {
		s.current = c
	}
	return c, err
}

// call sends in to path, or reads path if in is nil, and decodes the data of
// the answer into out. Should the token be dead, it logs in again and sends
// the request once more.
func (s *Store) call(ctx context.Context, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	c, err := s.session(ctx, nil)
	if err != nil {
		return err
	}
	err = send(ctx, c, path, in, out)
	if !isStatus(err, http.StatusForbidden) {
		return s.classify(ctx, err)
	}
	// A token may always look itself up, unless it was made without the policy
	// "default"; then the new login tells.
	look := send(ctx, c, "auth/token/lookup-self", nil, nil)
	if look == nil {
		return denied(err)
	}
	if !isStatus(look, http.StatusForbidden) {
		return s.classify(ctx, look)
	}
	if c, err = s.session(ctx, c); err != nil {
		return err
	}
	err = send(ctx, c, path, in, out)
	if isStatus(err, http.StatusForbidden) {
		return denied(err) // a token as young as this did not end
	}
	return s.classify(ctx, err)
}

// answer is the part of Vault's answers that is used here. Its other members
// change from version to version and are passed over.
type answer[T any] struct {
	Data T `json:"data"`
	Auth struct {
		Token string `json:"client_token"`
	} `json:"auth"`
}

// send makes one request and decodes the whole answer into out, unless it is
// nil. What was sent and received is wiped as far as it is in reach.
func send(ctx context.Context, c *api.Client, path string, in, out any) error {
	if err := hsm.ContextError(ctx); err != nil {
		return err
	}
	var response *api.Response
	var err error
	if in == nil {
		response, err = c.Logical().ReadRawWithContext(ctx, path)
	} else {
		var body []byte
		if body, err = json.Marshal(in); err != nil {
			return err
		}
		defer clear(body)
		response, err = c.Logical().WriteRawWithContext(ctx, path, body)
	}
	if response != nil {
		defer response.Body.Close()
	}
	if err != nil {
		return err
	}
	return decode(response, out)
}

func decode(response *api.Response, out any) error {
	body, err := io.ReadAll(response.Body)
	defer clear(body)
	if err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		response.Body = io.NopCloser(bytes.NewReader(body))
		if err := response.Error(); err != nil {
			return err
		}
		return fmt.Errorf("%w: a server that answers with status %d is not an active Vault", hsm.ErrGone, response.StatusCode)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("%w: the answer of %d bytes does not parse: %w", hsm.ErrWrongIdentity, len(body), err)
	}
	return nil
}
