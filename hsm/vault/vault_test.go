package vault_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/vault"
)

func TestConformance(t *testing.T) {
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	key := func(uri string) func(context.Context, crypto.PublicKey) (hsm.Key, error) {
		return func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error) {
			return store.Key(ctx, uri, pinned)
		}
	}
	sealer := func(uri string) func(context.Context) (hsm.Sealer, error) {
		return func(ctx context.Context) (hsm.Sealer, error) { return store.Sealer(ctx, uri) }
	}
	hsmtest.Run(t, hsmtest.Backend{
		Class:       hsm.ClassSelfDeclared,
		P256:        key(s.newKey(t, "p256", "ecdsa-p256")),
		Ed25519:     key(s.newKey(t, "ed", "ed25519")),
		Sealer:      sealer(s.newKey(t, "seal", "aes256-gcm96")),
		OtherSealer: sealer(s.newKey(t, "other", "aes256-gcm96")),
	})
}

// The three ways to log in end in the same signature.
func TestLogins(t *testing.T) {
	s := startServer(t)
	uri := s.newKey(t, "p256", "ecdsa-p256")
	ca, err := os.ReadFile(s.path("ca.pem"))
	check(t, err)
	s.must(t, "auth/cert/certs/notary", map[string]any{"certificate": string(ca), "token_policies": "keyturn"})
	r, w, err := os.Pipe()
	check(t, err)
	defer r.Close()
	role := s.appRole(t, "keyturn", nil)
	secret, err := role.SecretID()
	check(t, err)
	fmt.Fprintln(w, secret)
	check(t, w.Close())
	for name, login := range map[string]vault.Login{
		"token file":            vault.TokenFile(writeSecret(t, s.token(t, "1h"))),
		"AppRole":               role,
		"AppRole by descriptor": vault.AppRole{Mount: "approle", RoleID: role.RoleID, SecretID: vault.Descriptor(dup(t, r))},
		"certificate":           vault.Certificate{Role: "notary", CertFile: s.path("client.pem"), KeyFile: s.path("client.key")},
	} {
		t.Run(name, func(t *testing.T) {
			store := openStore(t, s.config(login))
			k := openKey(t, store, uri, nil)
			check(t, sign(k))
			check(t, store.Close())
			if err := sign(k); !errors.Is(err, hsm.ErrGone) {
				t.Errorf("after Close: %v, want ErrGone", err)
			}
		})
	}
}

func TestRefusedLogins(t *testing.T) {
	s := startServer(t)
	role := s.appRole(t, "keyturn", nil)
	nowhere := vault.File("/nowhere/secret")
	open := writeSecret(t, s.token(t, "1h"))
	check(t, os.Chmod(open, 0o640))
	clientKey, err := os.ReadFile(s.path("client.key"))
	check(t, err)
	loose := writeSecret(t, string(clientKey))
	check(t, os.Chmod(loose, 0o640))
	ca, err := os.ReadFile(s.path("ca.pem"))
	check(t, err)
	s.must(t, "auth/cert/certs/notary", map[string]any{"certificate": string(ca), "token_policies": "keyturn"})
	for name, login := range map[string]vault.Login{
		"wrong secret id":              vault.AppRole{RoleID: role.RoleID, SecretID: vault.File(writeSecret(t, "wrong"))},
		"wrong role id":                vault.AppRole{RoleID: vault.File(writeSecret(t, "wrong")), SecretID: role.SecretID},
		"no secret id":                 vault.AppRole{RoleID: role.RoleID},
		"missing secret id":            vault.AppRole{RoleID: role.RoleID, SecretID: nowhere},
		"a mount that is none":         vault.AppRole{Mount: "elsewhere", RoleID: role.RoleID, SecretID: role.SecretID},
		"a mount that leaves auth/":    vault.AppRole{Mount: "../sys", RoleID: role.RoleID, SecretID: role.SecretID},
		"certificate of no role":       vault.Certificate{Role: "none", CertFile: s.path("client.pem"), KeyFile: s.path("client.key")},
		"missing certificate":          vault.Certificate{CertFile: "/nowhere/cert", KeyFile: s.path("client.key")},
		"client key open to the group": vault.Certificate{CertFile: s.path("client.pem"), KeyFile: loose},
		"missing token file":           vault.TokenFile("/nowhere/token"),
		"empty token file":             vault.TokenFile(writeSecret(t, "")),
		"token with a space":           vault.TokenFile(writeSecret(t, "hvs.x y")),
		"token file open to the group": vault.TokenFile(open),
	} {
		store, err := vault.Open(context.Background(), s.config(login))
		if err == nil || store != nil || !errors.Is(err, hsm.ErrAuthExpired) {
			t.Errorf("%s: %v, want ErrAuthExpired", name, err)
		}
	}
}

// Close gives the token back: the server does not know it any more.
func TestCloseRevokes(t *testing.T) {
	s := startServer(t)
	accessors := func() int {
		list, err := s.root.Logical().List("auth/token/accessors")
		check(t, err)
		return len(list.Data["keys"].([]any))
	}
	before := accessors()
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	if n := accessors(); n != before+1 {
		t.Fatalf("%d tokens after the login, want one more than %d", n, before)
	}
	check(t, store.Close())
	check(t, store.Close())
	if n := accessors(); n != before {
		t.Errorf("%d tokens after Close, want %d", n, before)
	}
}

// Keys that would leave the server, or that are not what keyturn uses.
func TestRefusedKeys(t *testing.T) {
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	for name, options := range map[string]map[string]any{
		"exportable": {"type": "ecdsa-p256", "exportable": true},
		"backup":     {"type": "ed25519", "allow_plaintext_backup": true},
		"derived":    {"type": "ed25519", "derived": true},
		"p384":       {"type": "ecdsa-p384"},
		"rsa":        {"type": "rsa-2048"},
	} {
		s.must(t, "transit/keys/"+name, options)
		if _, err := store.Key(context.Background(), "vault:transit/"+name+"?version=1", nil); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	for name, options := range map[string]map[string]any{
		"exportable-seal": {"type": "aes256-gcm96", "exportable": true},
		"derived-seal":    {"type": "aes256-gcm96", "derived": true},
		"convergent":      {"type": "aes256-gcm96", "derived": true, "convergent_encryption": true},
		"chacha":          {"type": "chacha20-poly1305"},
	} {
		s.must(t, "transit/keys/"+name, options)
		if _, err := store.Sealer(context.Background(), "vault:transit/"+name+"?version=1"); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	signing, sealing := s.newKey(t, "p256", "ecdsa-p256"), s.newKey(t, "seal", "aes256-gcm96")
	if _, err := store.Key(context.Background(), sealing, nil); err == nil {
		t.Error("a sealing key was opened for signing")
	}
	if _, err := store.Sealer(context.Background(), signing); err == nil {
		t.Error("a signing key was opened for sealing")
	}
	for _, uri := range []string{"vault:transit/none?version=1", "vault:transit/p256?version=2"} {
		if _, err := store.Key(context.Background(), uri, nil); !errors.Is(err, hsm.ErrGone) {
			t.Errorf("%s: %v, want ErrGone", uri, err)
		}
	}
	for _, uri := range []string{"file:/key", "vault:transit/p256", ""} {
		if _, err := store.Key(context.Background(), uri, nil); err == nil {
			t.Errorf("opened %q", uri)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	login, p := vault.TokenFile(writeSecret(t, "hvs.token")), newPKI(t)
	for name, c := range map[string]vault.Config{
		"empty":            {},
		"plain http":       {Address: "http://127.0.0.1:8200", Login: login},
		"no host":          {Address: "https://", Login: login},
		"a unix socket":    {Address: "unix:///run/vault.sock", Login: login},
		"a password":       {Address: "https://a:b@127.0.0.1:8200", Login: login},
		"a path":           {Address: "https://127.0.0.1:8200/v1", Login: login},
		"no login":         {Address: "https://127.0.0.1:8200"},
		"negative timeout": {Address: "https://127.0.0.1:8200", Login: login, Timeout: -1},
		"no such CA":       {Address: "https://127.0.0.1:8200", Login: login, CACert: "/nowhere/ca.pem"},
		"a CA of no PEM":   {Address: "https://127.0.0.1:8200", Login: login, CACert: string(login)},
		"a key for a CA":   {Address: "https://127.0.0.1:8200", Login: login, CACert: p.path("ca.key")},
	} {
		if store, err := vault.Open(context.Background(), c); err == nil || store != nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// sign has k sign something.
func sign(k hsm.Key) error {
	_, err := hsm.SignMessage(context.Background(), k, []byte("message"))
	return err
}

func openKey(t testing.TB, store *vault.Store, uri string, pinned crypto.PublicKey) hsm.Key {
	t.Helper()
	k, err := store.Key(context.Background(), uri, pinned)
	check(t, err)
	return k
}

func openSealer(t testing.TB, store *vault.Store, uri string) hsm.Sealer {
	t.Helper()
	k, err := store.Sealer(context.Background(), uri)
	check(t, err)
	return k
}

// dup gives Descriptor one of its own to close.
func dup(t testing.TB, f *os.File) int {
	t.Helper()
	fd, err := unix.Dup(int(f.Fd()))
	check(t, err)
	return fd
}

// BenchmarkSign compares a signature through the Store, which verifies it, with
// the bare HTTP call of the same role over the same TLS, which does not. They
// are called by lot and the medians are compared, so that other load on the
// machine meets both and decides neither. "floor" is what no client that verifies can be below: the bare call
// and one verification, over the bare call.
func BenchmarkSign(b *testing.B) {
	s := startServer(b)
	role := s.appRole(b, "keyturn", nil)
	store := openStore(b, s.config(role))
	client, token := s.rawClient(b), s.logIn(b, role)
	for _, name := range []string{"ed25519", "ecdsa-p256"} {
		k := openKey(b, store, s.newKey(b, name, name), nil)
		input, opts, more := bytes.Repeat([]byte("m"), 64), optsOf(k), ""
		if opts == crypto.SHA256 {
			input, more = input[:32], `,"prehashed":true,"hash_algorithm":"sha2-256","marshaling_algorithm":"asn1"`
		}
		body := fmt.Sprintf(`{"input":%q,"key_version":1%s}`, base64.StdEncoding.EncodeToString(input), more)
		sig, err := k.SignContext(context.Background(), input, opts)
		check(b, err)
		verifier, err := hsm.NewVerifier(k.Public())
		check(b, err)
		contenders := []func(){
			func() { _, err := k.SignContext(context.Background(), input, opts); check(b, err) },
			func() { s.rawSign(b, client, token, name, body) },
			func() { s.rawSign(b, client, token, name, body); check(b, verifier.Verify(input, sig, opts)) },
		}
		for _, clients := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/clients=%d", name, clients), func(b *testing.B) {
				took := make([][]time.Duration, len(contenders))
				for n := 0; b.Loop(); n++ {
					i := rand.IntN(len(contenders)) // whatever comes before a call, server and scheduler remember it
					if n < len(contenders) {
						i = n
					}
					took[i] = append(took[i], round(clients, contenders[i]))
				}
				if b.N < len(contenders) {
					return
				}
				ours, bare, verified := median(took[0]), median(took[1]), median(took[2])
				b.ReportMetric(ours*1e6, "keyturn-us")
				b.ReportMetric(bare*1e6, "raw-http-us")
				b.ReportMetric(ours/bare, "ratio")
				b.ReportMetric(verified/bare, "floor")
			})
		}
	}
}

// round has clients make one call each, or some more each if there are several,
// and returns how long all took.
func round(clients int, call func()) time.Duration {
	start := time.Now()
	if clients == 1 {
		call()
		return time.Since(start)
	}
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for range 4 {
				call()
			}
		})
	}
	all.Wait()
	return time.Since(start)
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return d[len(d)/2].Seconds()
}

// logIn returns a token of a role, as the Store has one.
func (s *server) logIn(t testing.TB, role vault.AppRole) string {
	t.Helper()
	id, err := role.RoleID()
	check(t, err)
	secret, err := role.SecretID()
	check(t, err)
	return s.must(t, "auth/approle/login", map[string]any{"role_id": id, "secret_id": secret}).Auth.ClientToken
}

// rawSign asks for a signature without any of the Store.
func (s *server) rawSign(b *testing.B, client *http.Client, token, key, body string) {
	r, err := http.NewRequest(http.MethodPut, s.url()+"/v1/transit/sign/"+key, strings.NewReader(body))
	check(b, err)
	r.Header.Set("X-Vault-Token", token)
	answer, err := client.Do(r)
	check(b, err)
	_, err = io.Copy(io.Discard, answer.Body)
	check(b, errors.Join(err, answer.Body.Close()))
	if answer.StatusCode != http.StatusOK {
		b.Fatal(answer.Status)
	}
}
