package vault_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/vault"
)

// impostor is a server that answers as it likes: what a hostile or broken Vault
// could do. It needs no Vault to run.
type impostor struct {
	*pki
	*httptest.Server
	mu      sync.Mutex
	answers map[string]func(w http.ResponseWriter, body []byte) // by path; a missing one answers 404
	bodies  map[string][][]byte
	tokens  []string // that were shown, in order
	headers []http.Header
}

func newImpostor(t testing.TB, config func(*tls.Config)) *impostor {
	t.Helper()
	f := &impostor{pki: newPKI(t), answers: map[string]func(http.ResponseWriter, []byte){}, bodies: map[string][][]byte{}}
	f.Server = httptest.NewUnstartedServer(f)
	f.TLS = f.serverTLS(t)
	if config != nil {
		config(f.TLS)
	}
	f.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are refused on purpose
	f.StartTLS()
	t.Cleanup(f.Close)
	return f
}

func (f *impostor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	f.bodies[path] = append(f.bodies[path], body)
	f.tokens = append(f.tokens, r.Header.Get("X-Vault-Token"))
	f.headers = append(f.headers, r.Header)
	if answer := f.answers[path]; answer != nil {
		answer(w, body)
		return
	}
	http.NotFound(w, r)
}

// says makes path answer with a status and text.
func (f *impostor) says(path string, status int, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[path] = func(w http.ResponseWriter, _ []byte) {
		w.WriteHeader(status)
		fmt.Fprintf(w, format, args...)
	}
}

// shows makes it hold a key of the given public half.
func (f *impostor) shows(t testing.TB, name string, public crypto.PublicKey) {
	t.Helper()
	keyType, text := "ed25519", ""
	switch public := public.(type) {
	case ed25519.PublicKey:
		text = base64.StdEncoding.EncodeToString(public)
	case *ecdsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(public)
		check(t, err)
		keyType, text = "ecdsa-p256", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	quoted, err := json.Marshal(text)
	check(t, err)
	f.says("transit/keys/"+name, 200, `{"data":{"type":%q,"latest_version":1,"keys":{"1":{"public_key":%s}}}}`, keyType, quoted)
}

func (f *impostor) config(t testing.TB) vault.Config {
	t.Helper()
	return vault.Config{Address: f.URL, CACert: f.path("ca.pem"), Login: vault.TokenFile(writeSecret(t, "hvs.ours"))}
}

func TestAttackEd25519NeverPrehashed(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	f := newImpostor(t, nil)
	f.shows(t, "ed", public)
	f.answers["transit/sign/ed"] = func(w http.ResponseWriter, body []byte) {
		var in struct{ Input []byte }
		if err := json.Unmarshal(body, &in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, `{"data":{"signature":"vault:v1:%s"}}`, base64.StdEncoding.EncodeToString(ed25519.Sign(private, in.Input)))
	}
	k := openKey(t, openStore(t, f.config(t)), "vault:transit/ed?version=1", public)
	if _, err := hsm.SignMessage(context.Background(), k, []byte("the message itself")); err != nil {
		t.Fatal(err)
	}
	var members map[string]any
	check(t, json.Unmarshal(f.bodies["transit/sign/ed"][0], &members))
	want := map[string]any{"input": base64.StdEncoding.EncodeToString([]byte("the message itself")), "key_version": 1.0}
	if !maps.Equal(members, want) {
		t.Errorf("the server was sent %v, want %v", members, want)
	}
}

// No answer of a hostile server passes for a signature.
func TestAttackForgedSignatures(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	f := newImpostor(t, nil)
	f.shows(t, "ed", public)
	k := openKey(t, openStore(t, f.config(t)), "vault:transit/ed?version=1", public)
	right := base64.StdEncoding.EncodeToString(ed25519.Sign(private, []byte("message")))
	other := base64.StdEncoding.EncodeToString(ed25519.Sign(private, []byte("another message")))
	f.says("transit/sign/ed", 200, `{"data":{"signature":"vault:v1:%s"}}`, right)
	check(t, sign(k))
	f.says("transit/sign/ed", 200, `{"data":{"signature":"vault:v1:%s","key_version":7},"warnings":["\u001b[2J"],"auth":{"client_token":"hvs.theirs"}}`, right)
	check(t, sign(k)) // what else an answer has is nobody's
	for name, answer := range map[string]string{
		"over another message": `{"data":{"signature":"vault:v1:` + other + `"}}`,
		"of another version":   `{"data":{"signature":"vault:v2:` + right + `"}}`,
		"of no version":        `{"data":{"signature":"` + right + `"}}`,
		"empty":                `{"data":{"signature":""}}`,
		"missing":              `{"data":{}}`,
		"null":                 `{"data":null}`,
		"of another case":      `{"data":{"Signature":"vault:v1:` + right + `"}}`,
		"given twice":          `{"data":{"signature":"vault:v1:` + other + `","signature":"vault:v1:` + right + `"}}`,
		"of a batch":           `{"data":{"batch_results":[{"signature":"vault:v1:` + right + `"}]}}`,
		"wrapped":              `{"data":null,"wrap_info":{"token":"hvs.wrapped","ttl":60,"creation_path":"transit/sign/ed"}}`,
		"with a line end":      `{"data":{"signature":"vault:v1:` + right + `\n"}}`,
		"cut short":            `{"data":{"signature":"vault:v1:` + right,
		"not JSON":             `<html>`,
		"nothing":              ``,
		"endless":              `{"data":{"padding":"` + strings.Repeat("x", 2<<20) + `","signature":"vault:v1:` + right + `"}}`,
	} {
		f.says("transit/sign/ed", 200, "%s", answer)
		sig, err := k.SignContext(context.Background(), []byte("message"), crypto.Hash(0))
		if sig != nil || !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: %x, %v, want ErrWrongIdentity", name, sig, err)
		}
	}
}

// A server that seals badly is found out before anybody relies on it.
func TestAttackSealThatDoesNotOpen(t *testing.T) {
	f := newImpostor(t, nil)
	f.says("transit/keys/seal", 200, `{"data":{"type":"aes256-gcm96","latest_version":1,"keys":{"1":1700000000}}}`)
	f.says("transit/encrypt/seal", 200, `{"data":{"ciphertext":"vault:v1:c2VhbGVk"}}`)
	k := openSealer(t, openStore(t, f.config(t)), "vault:transit/seal?version=1")
	for name, answer := range map[string]string{
		"opens as something else": `{"data":{"plaintext":"b3RoZXI="}}`,
		"opens as nothing":        `{"data":{"plaintext":""}}`,
		"opens as no base64":      `{"data":{"plaintext":"-"}}`,
	} {
		f.says("transit/decrypt/seal", 200, "%s", answer)
		if sealed, err := k.Seal(context.Background(), []byte("secret"), nil); sealed != nil || !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: %q, %v, want ErrWrongIdentity", name, sealed, err)
		}
	}
}

func TestAttackBadPublicKeys(t *testing.T) {
	f := newImpostor(t, nil)
	store := openStore(t, f.config(t))
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	check(t, err)
	for name, public := range map[string]crypto.PublicKey{
		"small order": ed25519.PublicKey(append([]byte{1}, make([]byte, 31)...)),
		"short":       ed25519.PublicKey(make([]byte, 31)),
		"empty":       ed25519.PublicKey{},
		"P-384":       &p384.PublicKey,
	} {
		f.shows(t, "k", public)
		if _, err := store.Key(context.Background(), "vault:transit/k?version=1", nil); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func TestAttackServerOfAnotherAuthority(t *testing.T) {
	f, other := newImpostor(t, nil), newPKI(t)
	t.Setenv("VAULT_SKIP_VERIFY", "true") // must not count
	t.Setenv("VAULT_CACERT", f.path("ca.pem"))
	c := f.config(t)
	c.CACert = other.path("ca.pem")
	store := openStore(t, c) // a token file asks nobody
	if _, err := store.Key(context.Background(), "vault:transit/k?version=1", nil); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("another authority: %v, want ErrWrongIdentity", err)
	}
	if len(f.tokens) != 0 {
		t.Error("the impostor was shown a token")
	}
}

func TestAttackOldTLS(t *testing.T) {
	f := newImpostor(t, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })
	if _, err := openStore(t, f.config(t)).Key(context.Background(), "vault:transit/k?version=1", nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("TLS 1.2: %v, want ErrGone", err)
	}
	if len(f.tokens) != 0 {
		t.Error("a token went over TLS 1.2")
	}
}

// A redirect would carry the token to a place of the server's choice.
func TestAttackRedirect(t *testing.T) {
	f, elsewhere := newImpostor(t, nil), newImpostor(t, nil)
	f.says("transit/keys/seal", 200, `{"data":{"type":"aes256-gcm96","latest_version":1,"keys":{"1":1700000000}}}`)
	for _, status := range []int{301, 302, 303, 307, 308} {
		f.answers["transit/keys/k"] = func(w http.ResponseWriter, _ []byte) {
			w.Header().Set("Location", elsewhere.URL+"/v1/transit/keys/k")
			w.WriteHeader(status)
		}
		store := openStore(t, f.config(t))
		if _, err := store.Key(context.Background(), "vault:transit/k?version=1", nil); !errors.Is(err, hsm.ErrGone) {
			t.Errorf("status %d: %v, want ErrGone", status, err)
		}
		f.answers["transit/encrypt/seal"] = f.answers["transit/keys/k"]
		if _, err := store.Sealer(context.Background(), "vault:transit/seal?version=1"); !errors.Is(err, hsm.ErrGone) {
			t.Errorf("status %d on a write: %v, want ErrGone", status, err)
		}
	}
	if len(elsewhere.tokens) != 0 {
		t.Error("a redirect was followed")
	}
}

// The environment is somebody else's. What package api reads there of another
// server, login or namespace, of headers, wrapped answers, retries and proxies
// changes nothing that is sent.
func TestAttackVaultEnvironment(t *testing.T) {
	elsewhere := newImpostor(t, nil)
	for name, value := range map[string]string{
		"VAULT_TOKEN": "hvs.theirs", "VAULT_NAMESPACE": "theirs", "VAULT_MFA": "theirs",
		"VAULT_HEADERS":  `{"Authorization":"Bearer hvs.theirs","X-Forwarded-For":"192.0.2.1"}`,
		"VAULT_WRAP_TTL": "1h",
		"VAULT_ADDR":     elsewhere.URL, "VAULT_AGENT_ADDR": elsewhere.URL, "VAULT_SRV_LOOKUP": "true",
		"VAULT_PROXY_ADDR": elsewhere.URL, "VAULT_HTTP_PROXY": elsewhere.URL,
		"VAULT_MAX_RETRIES": "5", "VAULT_RATE_LIMIT": "0.001:1", "VAULT_CLIENT_TIMEOUT": "1ms", "VAULT_DISABLE_REDIRECTS": "false",
		"VAULT_SKIP_VERIFY": "true", "VAULT_TLS_SERVER_NAME": "theirs", "VAULT_CACERT": elsewhere.path("ca.pem"),
		"VAULT_CLIENT_CERT": elsewhere.path("client.pem"), "VAULT_CLIENT_KEY": elsewhere.path("client.key"),
	} {
		t.Setenv(name, value)
	}
	shown := 0
	f := newImpostor(t, func(c *tls.Config) {
		c.ClientAuth = tls.RequestClientCert
		c.VerifyConnection = func(state tls.ConnectionState) error { shown += len(state.PeerCertificates); return nil }
	})
	f.says("auth/approle/login", 200, `{"auth":{"client_token":"hvs.fresh"}}`)
	c := f.config(t)
	c.Login = vault.AppRole{RoleID: fixed("r"), SecretID: fixed("s")}
	f.says("transit/keys/k", 502, "bad gateway")
	if _, err := openStore(t, c).Key(context.Background(), "vault:transit/k?version=1", nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("%v, want ErrGone", err)
	}
	if got := strings.Join(f.tokens, ","); got != ",hvs.fresh" {
		t.Errorf("the server was shown the tokens %q, want none for the login and ours once", got)
	}
	for _, h := range f.headers {
		for name := range h {
			if !slices.Contains([]string{"Accept-Encoding", "Connection", "Content-Length", "User-Agent", "X-Vault-Request", "X-Vault-Token"}, name) {
				t.Errorf("the server was sent %s: %q", name, h[name])
			}
		}
	}
	if len(elsewhere.tokens) != 0 || shown != 0 {
		t.Errorf("%d requests went elsewhere, %d certificates were shown", len(elsewhere.tokens), shown)
	}
}

// Nor do the variables that name a proxy for every program. They are read once
// in a process and never hold for the loopback, hence the process of its own.
func TestAttackProxyEnvironment(t *testing.T) {
	const name = "KEYTURN_TEST_TOKEN_FILE"
	if token := os.Getenv(name); token != "" {
		store := openStore(t, vault.Config{Address: "https://vault.invalid:8200", Login: vault.TokenFile(token)})
		if _, err := store.Key(context.Background(), "vault:transit/k?version=1", nil); !errors.Is(err, hsm.ErrGone) {
			t.Errorf("a server that is nowhere: %v, want ErrGone", err)
		}
		return
	}
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^TestAttackProxyEnvironment$")
	url := "http://" + proxy.Addr().String()
	cmd.Env = append(os.Environ(), name+"="+writeSecret(t, "hvs.ours"), "HTTPS_PROXY="+url, "https_proxy="+url, "ALL_PROXY="+url)
	asked := make(chan string, 1)
	go func() {
		defer close(asked)
		if conn, err := proxy.Accept(); err == nil {
			line, _ := bufio.NewReader(conn).ReadString('\n')
			conn.Close()
			asked <- line
		}
	}()
	out, err := cmd.CombinedOutput()
	check(t, proxy.Close())
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if line := <-asked; line != "" {
		t.Errorf("the proxy of the environment was asked: %q", line)
	}
}

// No token, no login: not with one that is wrapped, half given or for a screen.
func TestAttackLoginAnswers(t *testing.T) {
	f := newImpostor(t, nil)
	c := f.config(t)
	c.Login = vault.AppRole{RoleID: fixed("r"), SecretID: fixed("s")}
	for name, answer := range map[string]string{
		"wrapped":           `{"auth":null,"wrap_info":{"token":"hvs.wrapped","ttl":60}}`,
		"a second factor":   `{"auth":{"client_token":"","mfa_requirement":{"mfa_request_id":"1"}}}`,
		"a header in it":    `{"auth":{"client_token":"hvs.x\r\nX-Vault-Namespace: theirs"}}`,
		"a token elsewhere": `{"data":{"client_token":"hvs.x"}}`,
		"nothing":           `{}`,
	} {
		f.says("auth/approle/login", 200, "%s", answer)
		if _, err := vault.Open(context.Background(), c); !errors.Is(err, hsm.ErrAuthExpired) {
			t.Errorf("%s: %v, want ErrAuthExpired", name, err)
		}
	}
}

// An answer that refuses is read to its end by package api: the end is ours.
func TestAttackEndlessRefusal(t *testing.T) {
	f := newImpostor(t, nil)
	written, chunk := 0, make([]byte, 1<<20)
	f.answers["transit/keys/k"] = func(w http.ResponseWriter, _ []byte) {
		w.WriteHeader(http.StatusBadRequest)
		for written < 256<<20 {
			n, err := w.Write(chunk)
			if written += n; err != nil {
				return
			}
		}
	}
	_, err := openStore(t, f.config(t)).Key(context.Background(), "vault:transit/k?version=1", nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil || written > 64<<20 {
		t.Errorf("%d MiB were taken: %v", written>>20, err)
	}
}

// What servers say is shown to people.
func TestAttackTextOfErrors(t *testing.T) {
	f := newImpostor(t, nil)
	f.says("transit/keys/k", 400, `{"errors":["\u001b[2Jok\u202e\nroot: all is well %s"]}`, strings.Repeat("x", 10_000))
	_, err := openStore(t, f.config(t)).Key(context.Background(), "vault:transit/k?version=1", nil)
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\u202e\n") || len(err.Error()) > 500 {
		t.Errorf("passed on: %.600q", err)
	}
}

// A 503 of a server that is not sealed is a server without a leader.
func TestUnavailableIsNotSealed(t *testing.T) {
	f := newImpostor(t, nil)
	f.says("transit/keys/k", 503, `{"errors":["no active node"]}`)
	store := openStore(t, f.config(t))
	for sealed, want := range map[bool]error{false: hsm.ErrGone, true: hsm.ErrSealed} {
		f.says("sys/seal-status", 200, `{"sealed":%v}`, sealed)
		if _, err := store.Key(context.Background(), "vault:transit/k?version=1", nil); !errors.Is(err, want) {
			t.Errorf("sealed %v: %v, want %v", sealed, err, want)
		}
	}
}

func TestTokenNeverInErrors(t *testing.T) {
	f := newImpostor(t, nil)
	store := openStore(t, f.config(t))
	for _, status := range []int{400, 403, 404, 500, 503} {
		f.says("transit/keys/k", status, "no")
		if _, err := store.Key(context.Background(), "vault:transit/k?version=1", nil); err == nil || strings.Contains(err.Error(), "hvs.ours") {
			t.Errorf("status %d: %v", status, err)
		}
	}
	path := writeSecret(t, "hvs.broken token")
	c := f.config(t)
	c.Login = vault.TokenFile(path)
	if _, err := vault.Open(context.Background(), c); err == nil || strings.Contains(err.Error(), "hvs.broken") {
		t.Errorf("a broken token file: %v", err)
	}
}

// fixed is a source that is not a file.
func fixed(text string) vault.Source { return func() (string, error) { return text, nil } }

// replace writes a new secret over an old one.
func replace(t testing.TB, path, text string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte(text), 0o600))
}

func optsOf(k hsm.Key) crypto.SignerOpts {
	if _, ok := k.Public().(ed25519.PublicKey); ok {
		return crypto.Hash(0)
	}
	return crypto.SHA256
}
