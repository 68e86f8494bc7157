package token_test

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/token"
)

const (
	softHSM = "/usr/lib/softhsm/libsofthsm2.so"
	userPIN = "user-pin-73192"
	soPIN   = "officer-pin-40861"
)

// helperPath is keyturn-token, built for this run.
var helperPath string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "keyturn-token")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		helperPath = filepath.Join(dir, "keyturn-token")
		build := exec.Command("go", "build", "-o", helperPath, "github.com/keyturn/keyturn/cmd/keyturn-token")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build keyturn-token: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// store is a directory of SoftHSM tokens.
type store struct {
	dir string // that holds one directory for each token
	cfg token.Config
}

func newStore(t testing.TB) *store {
	t.Helper()
	if _, err := os.Stat(softHSM); err != nil {
		t.Skip("needs SoftHSM2 (package softhsm2)")
	}
	dir := t.TempDir()
	s := &store{filepath.Join(dir, "tokens"), token.Config{Helper: helperPath, Module: softHSM}}
	conf := filepath.Join(dir, "softhsm2.conf")
	text := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", s.dir)
	if err := errors.Join(os.Mkdir(s.dir, 0o700), os.WriteFile(conf, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	return s
}

// newToken makes a token that holds a key of each kind, named after it.
func newToken(t testing.TB, label string) (*store, *token.Token) {
	t.Helper()
	s := newStore(t)
	s.init(t, label)
	tok := s.open(t, label)
	generate(t, tok, "p256", hsm.KindP256)
	return s, tok
}

func (s *store) init(t testing.TB, label string) {
	t.Helper()
	if err := token.Init(context.Background(), s.cfg, label, []byte(soPIN), []byte(userPIN)); err != nil {
		t.Fatal(err)
	}
}

func (s *store) open(t testing.TB, label string) *token.Token {
	t.Helper()
	tok, err := token.Open(context.Background(), s.cfg, "pkcs11:token="+label, pin(userPIN))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	return tok
}

// pin is a source of one PIN.
func pin(p string) hsm.PIN {
	return func(context.Context, string) ([]byte, error) { return []byte(p), nil }
}

func generate(t testing.TB, tok *token.Token, label string, kind hsm.Kind) any {
	t.Helper()
	public, err := tok.Generate(context.Background(), label, kind)
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func openKey(t testing.TB, tok *token.Token, label string, pinned crypto.PublicKey) hsm.Key {
	t.Helper()
	k, err := tok.Key(context.Background(), label, pinned)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(k hsm.Key) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := hsm.SignMessage(ctx, k, []byte("message"))
	return err
}

func TestConformance(t *testing.T) {
	_, tok := newToken(t, "alice")
	generate(t, tok, "ed25519", hsm.KindEd25519)
	generate(t, tok, "ecdh", hsm.KindECDH)
	generate(t, tok, "seal", hsm.KindSeal)
	generate(t, tok, "other", hsm.KindSeal)
	open := func(label string) func(context.Context, crypto.PublicKey) (hsm.Key, error) {
		return func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error) { return tok.Key(ctx, label, pinned) }
	}
	sealer := func(label string) func(context.Context) (hsm.Sealer, error) {
		return func(ctx context.Context) (hsm.Sealer, error) { return tok.Sealer(ctx, label) }
	}
	hsmtest.Run(t, hsmtest.Backend{
		Class:   hsm.ClassSoftware,
		P256:    open("p256"),
		Ed25519: open("ed25519"),
		Decrypter: func(ctx context.Context, pinned *ecdh.PublicKey) (hsm.Decrypter, error) {
			return tok.Decrypter(ctx, "ecdh", pinned)
		},
		Sealer:      sealer("seal"),
		OtherSealer: sealer("other"),
	})
}
