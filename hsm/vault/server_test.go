package vault_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/keyturn/keyturn/hsm/vault"
)

// pki is a throw-away authority and its files.
type pki struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

// newPKI makes an authority and the certificates server and client.
func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{dir: t.TempDir()}
	p.cert, p.key = p.issue(t, "ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	p.issue(t, "server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	p.issue(t, "client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return p
}

// issue writes NAME.pem and NAME.key.
func (p *pki) issue(t testing.TB, name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(24 * time.Hour)
	}
	parent, signer := p.cert, p.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	check(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	check(t, os.WriteFile(p.path(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	check(t, os.WriteFile(p.path(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	return cert, key
}

func (p *pki) serverTLS(t testing.TB) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.path("server.pem"), p.path("server.key"))
	check(t, err)
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
}

// server is a real Vault that the test started, with a root login.
type server struct {
	*pki
	binary  string
	storage string
	addr    string // HOST:PORT
	process *exec.Cmd
	root    *api.Client
	unseal  string
}

// startServer starts an initialised, unsealed Vault with transit, AppRole and
// certificate login, and the policy that package vault documents for all keys.
func startServer(t testing.TB) *server {
	t.Helper()
	s := &server{binary: os.Getenv("KEYTURN_VAULT_SERVER"), storage: t.TempDir(), addr: "127.0.0.1:0"}
	if s.binary == "" {
		t.Skip("needs a Vault server; run make test-vault")
	}
	s.pki = newPKI(t)
	s.start(t)
	t.Cleanup(func() { s.kill(t) })

	config := api.DefaultConfig()
	check(t, config.ConfigureTLS(&api.TLSConfig{CACert: s.path("ca.pem")}))
	config.Address = s.url()
	root, err := api.NewClient(config)
	check(t, err)
	s.root = root
	initial, err := root.Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	check(t, err)
	s.unseal = initial.Keys[0]
	root.SetToken(initial.RootToken)
	s.open(t)

	s.must(t, "sys/mounts/transit", map[string]any{"type": "transit"})
	s.must(t, "sys/auth/approle", map[string]any{"type": "approle"})
	s.must(t, "sys/auth/cert", map[string]any{"type": "cert"})
	s.policy(t, "transit/keys/+", "transit/sign/+", "transit/encrypt/+", "transit/decrypt/+")
	return s
}

func (s *server) url() string { return "https://" + s.addr }

// start runs the binary and waits until it listens; after a kill, on the same
// address.
func (s *server) start(t testing.TB) {
	t.Helper()
	s.process = exec.Command(s.binary, "-dir", s.storage, "-cert", s.path("server.pem"), "-key", s.path("server.key"), "-listen", s.addr)
	_, err := s.process.StdinPipe() // it ends with us
	check(t, err)
	out, err := s.process.StdoutPipe()
	check(t, err)
	s.process.Stderr = os.Stderr
	check(t, s.process.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	check(t, err)
	s.addr = strings.TrimSpace(line)
}

func (s *server) kill(t testing.TB) {
	t.Helper()
	if err := s.process.Process.Kill(); err != nil && err != os.ErrProcessDone {
		t.Error(err)
	}
	s.process.Wait() // killed, by intent
}

// open unseals the server and waits until it serves.
func (s *server) open(t testing.TB) {
	t.Helper()
	status, err := s.root.Sys().Unseal(s.unseal)
	check(t, err)
	if status.Sealed {
		t.Fatal("still sealed")
	}
	for range 500 {
		if health, err := s.root.Sys().Health(); err == nil && health.Initialized && !health.Sealed && !health.Standby {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("unsealed, but not active after 5 s")
}

// must writes as root.
func (s *server) must(t testing.TB, path string, data map[string]any) *api.Secret {
	t.Helper()
	secret, err := s.root.Logical().WriteWithContext(context.Background(), path, data)
	if err != nil {
		t.Fatalf("write %s: %v", path, err)
	}
	return secret
}

// policy replaces the policy of the tests' logins.
func (s *server) policy(t testing.TB, paths ...string) {
	t.Helper()
	var text strings.Builder
	for _, p := range paths {
		fmt.Fprintf(&text, "path %q { capabilities = [\"read\", \"update\"] }\n", p)
	}
	check(t, s.root.Sys().PutPolicy("keyturn", text.String()))
}

// newKey makes a transit key and returns its URI at version 1.
func (s *server) newKey(t testing.TB, name, keyType string) string {
	t.Helper()
	s.must(t, "transit/keys/"+name, map[string]any{"type": keyType})
	return "vault:transit/" + name + "?version=1"
}

// appRole makes a role and returns a login by it; options are the role's own.
func (s *server) appRole(t testing.TB, name string, options map[string]any) vault.AppRole {
	t.Helper()
	role, secret := s.roleFiles(t, name, options)
	return vault.AppRole{RoleID: vault.File(role), SecretID: vault.File(secret)}
}

// roleFiles makes a role and the files with its two ids.
func (s *server) roleFiles(t testing.TB, name string, options map[string]any) (role, secret string) {
	t.Helper()
	all := map[string]any{"token_policies": "keyturn"}
	for k, v := range options {
		all[k] = v
	}
	s.must(t, "auth/approle/role/"+name, all)
	id, err := s.root.Logical().Read("auth/approle/role/" + name + "/role-id")
	check(t, err)
	secretID := s.must(t, "auth/approle/role/"+name+"/secret-id", nil)
	return writeSecret(t, id.Data["role_id"].(string)), writeSecret(t, secretID.Data["secret_id"].(string))
}

// token makes a token with the tests' policy.
func (s *server) token(t testing.TB, maxTTL string) string {
	t.Helper()
	orphan, err := s.root.Auth().Token().CreateOrphan(&api.TokenCreateRequest{Policies: []string{"keyturn"}, ExplicitMaxTTL: maxTTL})
	check(t, err)
	return orphan.Auth.ClientToken
}

// config is how to reach the server by login.
func (s *server) config(login vault.Login) vault.Config {
	return vault.Config{Address: s.url(), CACert: s.path("ca.pem"), Login: login}
}

func openStore(t testing.TB, c vault.Config) *vault.Store {
	t.Helper()
	store, err := vault.Open(context.Background(), c)
	check(t, err)
	t.Cleanup(func() { store.Close() }) // the server may be gone or sealed by then
	return store
}

// writeSecret writes text to a new file that only its owner can read.
func writeSecret(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	check(t, os.WriteFile(path, []byte(text+"\n"), 0o600))
	return path
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rawClient is a plain HTTP client that trusts the test's authority.
func (p *pki) rawClient(t testing.TB) *http.Client {
	t.Helper()
	text, err := os.ReadFile(p.path("ca.pem"))
	check(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 16}}
}
