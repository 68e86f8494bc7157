package vault_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
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
	for name, login := range map[string]vault.Login{
		"wrong secret id":              vault.AppRole{RoleID: role.RoleID, SecretID: vault.File(writeSecret(t, "wrong"))},
		"wrong role id":                vault.AppRole{RoleID: vault.File(writeSecret(t, "wrong")), SecretID: role.SecretID},
		"no secret id":                 vault.AppRole{RoleID: role.RoleID},
		"missing secret id":            vault.AppRole{RoleID: role.RoleID, SecretID: nowhere},
		"a mount that is none":         vault.AppRole{Mount: "elsewhere", RoleID: role.RoleID, SecretID: role.SecretID},
		"a mount that leaves auth/":    vault.AppRole{Mount: "../sys", RoleID: role.RoleID, SecretID: role.SecretID},
		"certificate of no role":       vault.Certificate{CertFile: s.path("client.pem"), KeyFile: s.path("client.key")},
		"missing certificate":          vault.Certificate{CertFile: "/nowhere/cert", KeyFile: s.path("client.key")},
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
// the bare HTTP call, which does not. They take turns and the medians are
// compared, so that other load on the machine meets both and decides neither.
// The second ratio is to a bare call whose signature is verified too.
func BenchmarkSign(b *testing.B) {
	s := startServer(b)
	store := openStore(b, s.config(s.appRole(b, "keyturn", nil)))
	k := openKey(b, store, s.newKey(b, "ed", "ed25519"), nil)
	message := bytes.Repeat([]byte("m"), 64)
	client, token := s.rawClient(b), s.token(b, "1h")
	body := fmt.Sprintf(`{"input":%q,"key_version":1}`, base64.StdEncoding.EncodeToString(message))
	var through, bare, verified []time.Duration
	for b.Loop() {
		start := time.Now()
		sig, err := k.SignContext(context.Background(), message, crypto.Hash(0))
		check(b, err)
		between := time.Now()
		s.rawSign(b, client, token, body)
		after := time.Now()
		check(b, hsm.VerifyMessage(k.Public(), message, sig))
		through, bare, verified = append(through, between.Sub(start)), append(bare, after.Sub(between)), append(verified, time.Since(between))
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return d[len(d)/2].Seconds()
	}
	ours, theirs := median(through), median(bare)
	b.ReportMetric(ours*1e6, "keyturn-us")
	b.ReportMetric(theirs*1e6, "raw-http-us")
	b.ReportMetric(ours/theirs, "ratio")
	b.ReportMetric(ours/median(verified), "ratio-verified")
}

// rawSign asks for a signature without any of the Store.
func (s *server) rawSign(b *testing.B, client *http.Client, token, body string) {
	r, err := http.NewRequest(http.MethodPut, s.url()+"/v1/transit/sign/ed", strings.NewReader(body))
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
