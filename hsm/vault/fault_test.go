package vault_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/vault"
)

func TestFaultVaultSealed(t *testing.T) {
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	k := openKey(t, store, s.newKey(t, "p256", "ecdsa-p256"), nil)
	check(t, s.root.Sys().Seal())
	if err := sign(k); !errors.Is(err, hsm.ErrSealed) {
		t.Errorf("sealed: %v, want ErrSealed", err)
	}
	if _, err := vault.Open(context.Background(), s.config(vault.AppRole{RoleID: fixed("r"), SecretID: fixed("s")})); !errors.Is(err, hsm.ErrSealed) {
		t.Errorf("log in to a sealed server: %v, want ErrSealed", err)
	}
	s.open(t)
	if err := sign(k); err != nil {
		t.Errorf("unsealed again: %v", err)
	}
}

func TestFaultVaultRestarted(t *testing.T) {
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	k := openKey(t, store, s.newKey(t, "p256", "ecdsa-p256"), nil)
	s.kill(t)
	if err := sign(k); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("killed: %v, want ErrGone", err)
	}
	s.start(t)
	if err := sign(k); !errors.Is(err, hsm.ErrSealed) {
		t.Errorf("restarted and sealed: %v, want ErrSealed", err)
	}
	s.open(t)
	if err := sign(k); err != nil {
		t.Errorf("unsealed after the restart: %v", err)
	}
}

// A token that ended at its maximum is replaced by a new login, under load too.
func TestFaultTokenExpiredAtMaxTTL(t *testing.T) {
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "short", map[string]any{"token_ttl": "1s", "token_max_ttl": "1s"})))
	k := openKey(t, store, s.newKey(t, "p256", "ecdsa-p256"), nil)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
				if err := sign(k); err != nil {
					t.Errorf("while tokens end: %v", err)
					return
				}
			}
		})
	}
	all.Wait()
}

// Whoever keeps a token file fresh may be late, but not for good.
func TestFaultTokenInFileExpired(t *testing.T) {
	s := startServer(t)
	path := writeSecret(t, s.token(t, "1s"))
	store := openStore(t, s.config(vault.TokenFile(path)))
	k := openKey(t, store, s.newKey(t, "p256", "ecdsa-p256"), nil)
	time.Sleep(1200 * time.Millisecond)
	for range 2 {
		if err := sign(k); !errors.Is(err, hsm.ErrAuthExpired) || errors.Is(err, hsm.ErrDenied) {
			t.Errorf("the token ended: %v, want ErrAuthExpired", err)
		}
	}
	replace(t, path, s.token(t, "1h"))
	if err := sign(k); err != nil {
		t.Errorf("with a new token in the file: %v", err)
	}
}

// A client certificate that was replaced is shown at the next login, also where
// connections of the old one are still open.
func TestFaultClientCertificateReplaced(t *testing.T) {
	s, next := startServer(t), newPKI(t)
	trust := func(p *pki) {
		ca, err := os.ReadFile(p.path("ca.pem"))
		check(t, err)
		s.must(t, "auth/cert/certs/notary", map[string]any{"certificate": string(ca), "token_policies": "keyturn"})
	}
	trust(s.pki)
	store := openStore(t, s.config(vault.Certificate{Role: "notary", CertFile: s.path("client.pem"), KeyFile: s.path("client.key")}))
	k := openKey(t, store, s.newKey(t, "p256", "ecdsa-p256"), nil)
	check(t, sign(k))
	for _, name := range []string{"client.pem", "client.key"} {
		text, err := os.ReadFile(next.path(name))
		check(t, err)
		replace(t, s.path(name), string(text))
	}
	s.must(t, "sys/leases/revoke-prefix/auth/cert/login", map[string]any{"sync": true})
	if err := sign(k); !errors.Is(err, hsm.ErrAuthExpired) {
		t.Errorf("a certificate of an authority that has no role: %v, want ErrAuthExpired", err)
	}
	trust(next)
	if err := sign(k); err != nil {
		t.Errorf("with the new certificate: %v", err)
	}
}

func TestFaultSecretIDUsedUp(t *testing.T) {
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "once", map[string]any{"secret_id_num_uses": 1, "token_max_ttl": "1s"})))
	k := openKey(t, store, s.newKey(t, "p256", "ecdsa-p256"), nil)
	time.Sleep(1200 * time.Millisecond)
	if err := sign(k); !errors.Is(err, hsm.ErrAuthExpired) {
		t.Errorf("neither token nor secret id: %v, want ErrAuthExpired", err)
	}
}

func TestFaultPermissionRemoved(t *testing.T) {
	s := startServer(t)
	role := s.appRole(t, "keyturn", nil)
	bare := s.appRole(t, "bare", map[string]any{"token_no_default_policy": true}) // may not look itself up
	uri, seal := s.newKey(t, "p256", "ecdsa-p256"), s.newKey(t, "seal", "aes256-gcm96")
	for name, login := range map[string]vault.Login{"AppRole": role, "AppRole without the default policy": bare,
		"token file": vault.TokenFile(writeSecret(t, s.token(t, "1h")))} {
		store := openStore(t, s.config(login))
		k, sealer := openKey(t, store, uri, nil), openSealer(t, store, seal)
		s.policy(t, "transit/keys/+")
		if err := sign(k); !errors.Is(err, hsm.ErrDenied) || errors.Is(err, hsm.ErrAuthExpired) {
			t.Errorf("%s: sign: %v, want ErrDenied", name, err)
		}
		if _, err := sealer.Seal(context.Background(), []byte("s"), nil); !errors.Is(err, hsm.ErrDenied) {
			t.Errorf("%s: seal: %v, want ErrDenied", name, err)
		}
		s.policy(t, "transit/elsewhere")
		if _, err := store.Key(context.Background(), uri, nil); !errors.Is(err, hsm.ErrDenied) {
			t.Errorf("%s: open: %v, want ErrDenied", name, err)
		}
		s.policy(t, "transit/keys/+", "transit/sign/+", "transit/encrypt/+", "transit/decrypt/+")
		if err := sign(k); err != nil {
			t.Errorf("%s: with the permission back: %v", name, err)
		}
	}
}

func TestFaultNetworkCut(t *testing.T) {
	s := startServer(t)
	c := newCable(t, s.addr)
	config := s.config(s.appRole(t, "keyturn", nil))
	config.Address, config.Timeout = "https://"+c.Addr().String(), 3*time.Second
	store := openStore(t, config)
	k := openKey(t, store, s.newKey(t, "p256", "ecdsa-p256"), nil)
	check(t, sign(k))

	c.set(cut)
	if err := sign(k); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("cut: %v, want ErrGone", err)
	}
	c.set(silent)
	start := time.Now()
	if err := sign(k); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("silent: %v, want ErrTimeout", err)
	}
	if took := time.Since(start); took < 2900*time.Millisecond || took > 30*time.Second {
		t.Errorf("gave up after %v, want 3s", took)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start = time.Now()
	if _, err := hsm.SignMessage(ctx, k, []byte("m")); !errors.Is(err, hsm.ErrTimeout) || time.Since(start) > 2500*time.Millisecond {
		t.Errorf("under a deadline of 50ms: %v after %v, want ErrTimeout", err, time.Since(start))
	}
	c.set(through)
	if err := sign(k); err != nil {
		t.Errorf("plugged in again: %v", err)
	}
}

func TestFaultKeyRotated(t *testing.T) {
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	for name, keyType := range map[string]string{"p256": "ecdsa-p256", "ed": "ed25519"} {
		first := openKey(t, store, s.newKey(t, name, keyType), nil)
		s.must(t, "transit/keys/"+name+"/rotate", nil)
		if err := sign(first); err != nil {
			t.Errorf("%s: the pinned version after a rotation: %v", name, err)
		}
		second := "vault:transit/" + name + "?version=2"
		check(t, sign(openKey(t, store, second, nil)))
		if _, err := store.Key(context.Background(), second, first.Public()); !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: version 2 for the public key of version 1: %v, want ErrWrongIdentity", name, err)
		}
	}
}

func TestFaultOldVersionDisabled(t *testing.T) {
	ctx := context.Background()
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	uris := map[string]string{"p256": s.newKey(t, "p256", "ecdsa-p256"), "seal": s.newKey(t, "seal", "aes256-gcm96")}
	k, old := openKey(t, store, uris["p256"], nil), openSealer(t, store, uris["seal"])
	sealed, err := old.Seal(ctx, []byte("secret"), nil)
	check(t, err)
	for name := range uris {
		s.must(t, "transit/keys/"+name+"/rotate", nil)
		s.must(t, "transit/keys/"+name+"/config", map[string]any{"min_encryption_version": 2})
	}
	if err := sign(k); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("sign by a version disabled for it: %v, want ErrGone", err)
	}
	for _, sealer := range []hsm.Sealer{old, openSealer(t, store, uris["seal"])} {
		if _, err := sealer.Seal(ctx, []byte("secret"), nil); !errors.Is(err, hsm.ErrGone) {
			t.Errorf("seal by a version disabled for it: %v, want ErrGone", err)
		}
		if got, err := sealer.Unseal(ctx, sealed, nil); string(got) != "secret" {
			t.Errorf("unseal by a version that may still decrypt: %q, %v", got, err)
		}
	}
	for name := range uris {
		s.must(t, "transit/keys/"+name+"/config", map[string]any{"min_decryption_version": 2})
	}
	if _, err := old.Unseal(ctx, sealed, nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("unseal by a version below min_decryption_version: %v, want ErrGone", err)
	}
	if err := sign(k); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("sign by a version below min_decryption_version: %v, want ErrGone", err)
	}
	if _, err := store.Key(ctx, uris["p256"], nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("open a version below min_decryption_version: %v, want ErrGone", err)
	}
}

func TestFaultWrongKeyVersion(t *testing.T) {
	ctx := context.Background()
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	first := openSealer(t, store, s.newKey(t, "seal", "aes256-gcm96"))
	sealed, err := first.Seal(ctx, []byte("secret"), nil)
	check(t, err)
	s.must(t, "transit/keys/seal/rotate", nil)
	second := openSealer(t, store, "vault:transit/seal?version=2")
	if _, err := second.Unseal(ctx, sealed, nil); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("version 2 unseals what version 1 sealed: %v, want ErrWrongIdentity", err)
	}
	relabelled := bytes.Replace(sealed, []byte("vault:v1:"), []byte("vault:v2:"), 1)
	if _, err := second.Unseal(ctx, relabelled, nil); err == nil {
		t.Error("unsealed what was relabelled to version 2")
	}
	if got, err := first.Unseal(ctx, sealed, nil); string(got) != "secret" {
		t.Errorf("the pinned version after a rotation: %q, %v", got, err)
	}
	if _, err := store.Sealer(ctx, "vault:transit/seal?version=9"); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("a version that never was: %v, want ErrGone", err)
	}
}

func TestFaultKeyDeleted(t *testing.T) {
	ctx := context.Background()
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	k := openKey(t, store, s.newKey(t, "p256", "ecdsa-p256"), nil)
	sealer := openSealer(t, store, s.newKey(t, "seal", "aes256-gcm96"))
	sealed, err := sealer.Seal(ctx, []byte("secret"), nil)
	check(t, err)
	s.remove(t, "p256")
	s.remove(t, "seal")
	if err := sign(k); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("sign: %v, want ErrGone", err)
	}
	if _, err := sealer.Seal(ctx, []byte("secret"), nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("seal: %v, want ErrGone", err)
	}
	if _, err := sealer.Unseal(ctx, sealed, nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("unseal: %v, want ErrGone", err)
	}
	if left, err := s.root.Logical().Read("transit/keys/seal"); err != nil || left != nil {
		t.Errorf("a key of the old name was made: %v, %v", left, err)
	}
}

// The name lives on, the key is another: no signature and no seal by it leaves.
func TestAttackKeyReplacedUnderItsName(t *testing.T) {
	ctx := context.Background()
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	uris := map[string]string{"ecdsa-p256": s.newKey(t, "p256", "ecdsa-p256"), "ed25519": s.newKey(t, "ed", "ed25519")}
	keys := map[string]hsm.Key{}
	for keyType, uri := range uris {
		keys[keyType] = openKey(t, store, uri, nil)
	}
	sealer := openSealer(t, store, s.newKey(t, "seal", "aes256-gcm96"))
	for name, keyType := range map[string]string{"p256": "ecdsa-p256", "ed": "ed25519", "seal": "aes256-gcm96"} {
		s.remove(t, name)
		s.newKey(t, name, keyType)
	}
	for keyType, k := range keys {
		if sig, err := k.SignContext(ctx, make([]byte, 32), optsOf(k)); sig != nil || !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: %x, %v, want ErrWrongIdentity", keyType, sig, err)
		}
		if _, err := store.Key(ctx, uris[keyType], k.Public()); !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: open: %v, want ErrWrongIdentity", keyType, err)
		}
	}
	if sealed, err := sealer.Seal(ctx, []byte("secret"), nil); sealed != nil || err == nil {
		t.Errorf("sealed %d bytes by another key of the same name", len(sealed))
	}
}

// remove deletes a transit key as root.
func (s *server) remove(t testing.TB, name string) {
	t.Helper()
	s.must(t, "transit/keys/"+name+"/config", map[string]any{"deletion_allowed": true})
	_, err := s.root.Logical().Delete("transit/keys/" + name)
	check(t, err)
}

// A firewall that forgets its connections drops bytes without a word. One call
// may time out, the next has a new connection.
func TestFaultConnectionsForgotten(t *testing.T) {
	s := startServer(t)
	c := newCable(t, s.addr)
	config := s.config(s.appRole(t, "keyturn", nil))
	config.Address, config.Timeout = "https://"+c.Addr().String(), 500*time.Millisecond
	k := openKey(t, openStore(t, config), s.newKey(t, "p256", "ecdsa-p256"), nil)
	var all sync.WaitGroup
	for range 8 { // leaves idle connections behind
		all.Go(func() {
			if err := sign(k); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	c.forget()
	if err := sign(k); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("forgotten: %v, want ErrTimeout", err)
	}
	if err := sign(k); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

// What a cable does with bytes.
const (
	through = iota
	silent  // takes connections and bytes, and passes nothing on
	cut     // ends connections
)

// cable is a TCP connection to the server that can be cut.
type cable struct {
	net.Listener
	mu    sync.Mutex
	state int
	live  []net.Conn
	age   int // rises when connections are forgotten
}

// end is one side of a connection. It swallows what it is to write once the
// connection is forgotten.
type end struct {
	net.Conn
	c   *cable
	age int
}

func (e end) Write(b []byte) (int, error) {
	e.c.mu.Lock()
	forgotten := e.age < e.c.age
	e.c.mu.Unlock()
	if forgotten {
		return len(b), nil
	}
	return e.Conn.Write(b)
}

// forget drops all bytes of present connections, and leaves them open.
func (c *cable) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.age++
}

func newCable(t testing.TB, to string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	c := &cable{Listener: l}
	t.Cleanup(func() { l.Close(); c.set(cut) })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.plug(conn, to)
		}
	}()
	return c
}

// plug connects conn as the state says.
func (c *cable) plug(conn net.Conn, to string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == cut {
		conn.Close()
		return
	}
	c.live = append(c.live, conn)
	if c.state == silent {
		return
	}
	far, err := net.Dial("tcp", to)
	if err != nil {
		conn.Close()
		return
	}
	c.live = append(c.live, far)
	age := c.age
	go func() { io.Copy(end{far, c, age}, conn); far.Close() }()
	go func() { io.Copy(end{conn, c, age}, far); conn.Close() }()
}

// set ends all connections and treats new ones as state says.
func (c *cable) set(state int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = state
	for _, conn := range c.live {
		conn.Close()
	}
	c.live = nil
}
