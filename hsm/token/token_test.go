package token_test

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/elliptic"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/secret"
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
	return func(context.Context, string) (*secret.Buffer, error) { return secret.Take([]byte(p)) }
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
		return func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error) {
			return tok.Key(ctx, label, pinned)
		}
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
		Maker:       maker(tok, hsm.KindP256, hsm.KindEd25519, hsm.KindECDH, hsm.KindSeal),
	})
}

func maker(tok *token.Token, kinds ...hsm.Kind) *hsmtest.Maker {
	return &hsmtest.Maker{
		Kinds:    kinds,
		Generate: tok.Generate,
		Open: func(ctx context.Context, label string, kind hsm.Kind, pinned any) (any, error) {
			switch kind {
			case hsm.KindECDH:
				return tok.Decrypter(ctx, label, pinned.(*ecdh.PublicKey))
			case hsm.KindSeal:
				return tok.Sealer(ctx, label)
			default:
				return tok.Key(ctx, label, pinned)
			}
		},
	}
}

// reinitialise has SoftHSM's own tool wipe a token and give it the label again.
func reinitialise(t *testing.T, serial, label string) {
	t.Helper()
	if _, err := exec.LookPath("softhsm2-util"); err != nil {
		t.Skip("needs softhsm2-util (package softhsm2)")
	}
	out, err := exec.Command("softhsm2-util", "--init-token", "--serial", serial, "--force", "--label", label, "--so-pin", soPIN, "--pin", userPIN).CombinedOutput()
	if err != nil {
		t.Fatalf("softhsm2-util: %v\n%s", err, out)
	}
}

// mirror turns (r, s) into (r, n-s).
func mirror(t *testing.T, sig []byte) []byte {
	t.Helper()
	var v struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(sig, &v); err != nil {
		t.Fatal(err)
	}
	v.S.Sub(elliptic.P256().Params().N, v.S)
	out, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestKeyFlags(t *testing.T) {
	s := newStore(t)
	s.init(t, "alice")
	keyFlags(t, s.open(t, "alice"), hsm.KindP256, hsm.KindEd25519, hsm.KindECDH, hsm.KindSeal)
}

// keyFlags makes a key of each kind on a token that is empty, and looks at what
// the token says of it.
func keyFlags(t *testing.T, tok *token.Token, kinds ...hsm.Kind) {
	t.Helper()
	public := map[string]any{}
	for _, kind := range kinds {
		public[string(kind)] = generate(t, tok, string(kind), kind)
	}
	keys, err := tok.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != len(kinds) {
		t.Errorf("listed %d keys, want %d", len(keys), len(kinds))
	}
	for _, k := range keys {
		if string(k.Kind) != k.Label || k.Extractable || !k.Sensitive || !k.NeverExtractable || !k.AlwaysSensitive || !k.Local || len(k.ID) != 32 {
			t.Errorf("unexpected: %+v", k)
		}
		signs := k.Kind == hsm.KindP256 || k.Kind == hsm.KindEd25519
		if k.Sign != signs || k.Derive != (k.Kind == hsm.KindECDH) {
			t.Errorf("%s: sign %v, derive %v", k.Label, k.Sign, k.Derive)
		}
		if want := public[k.Label]; want != nil {
			if err := hsm.SamePublic(want, k.Public); err != nil {
				t.Errorf("%s: %v", k.Label, err)
			}
		}
	}
	if public["seal"] != nil {
		t.Error("a sealing key has a public key")
	}
}

func TestRefusals(t *testing.T) {
	s, tok := newToken(t, "alice")
	ctx := context.Background()
	generate(t, tok, "ecdh", hsm.KindECDH)
	generate(t, tok, "seal", hsm.KindSeal)
	if _, err := tok.Generate(ctx, "p256", hsm.KindP256); err == nil {
		t.Error("made a second key of one label")
	}
	for _, kind := range []hsm.Kind{"", "p384", "rsa"} {
		if _, err := tok.Generate(ctx, "new", kind); err == nil {
			t.Errorf("made a key of kind %q", kind)
		}
	}
	for _, label := range []string{"", "a\nb", "a\u202eb"} {
		if _, err := tok.Generate(ctx, label, hsm.KindP256); err == nil {
			t.Errorf("made a key of label %q", label)
		}
	}
	for _, label := range []string{"", "nobody", "ecdh", "seal"} {
		if _, err := tok.Key(ctx, label, nil); err == nil {
			t.Errorf("opened %q as a signing key", label)
		}
	}
	for _, label := range []string{"p256", "seal"} {
		if _, err := tok.Decrypter(ctx, label, nil); err == nil {
			t.Errorf("opened %q as an agreement key", label)
		}
	}
	if _, err := tok.Sealer(ctx, "p256"); err == nil {
		t.Error("opened a signing key as a sealing key")
	}
	if _, err := tok.Key(ctx, "nobody", nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("a key that is not there: %v, want ErrGone", err)
	}
	for _, uri := range []string{"pkcs11:token=bob", "pkcs11:token=alice;serial=0", "pkcs11:token=alice;model=other", "file:/k", "pkcs11:object=p256",
		"pkcs11:token=alice?module-path=/other.so"} {
		if _, err := token.Open(ctx, s.cfg, uri, pin(userPIN)); err == nil {
			t.Errorf("opened %s", uri)
		}
	}
	cfg := s.cfg
	cfg.Module = ""
	if _, err := token.Open(ctx, cfg, "pkcs11:token=alice", pin(userPIN)); err == nil {
		t.Error("opened without a module")
	}
	cfg.Module = "libsofthsm2.so"
	if _, err := token.Open(ctx, cfg, "pkcs11:token=alice", pin(userPIN)); err == nil {
		t.Error("opened a module by a path that is not absolute")
	}
	if err := token.Init(ctx, s.cfg, "alice", []byte(soPIN), []byte(userPIN)); err == nil {
		t.Error("initialised a second token of one label")
	}
}

// A missing label is no reason to ask for the PIN again.
func TestMissingKeyKeepsTheHelper(t *testing.T) {
	_, tok := newToken(t, "alice")
	before := theHelper(t)
	if _, err := tok.Key(context.Background(), "nobody", nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("got %v, want ErrGone", err)
	}
	if theHelper(t) != before {
		t.Error("the helper was replaced")
	}
}

func TestWithoutPIN(t *testing.T) {
	s, _ := newToken(t, "alice")
	tok, err := token.Open(context.Background(), s.cfg, "pkcs11:token=alice", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	if info, err := tok.Info(context.Background()); err != nil || info.Label != "alice" || !info.PINSet {
		t.Errorf("info without a PIN: %+v, %v", info, err)
	}
	if _, err := tok.Key(context.Background(), "p256", nil); err == nil {
		t.Error("opened a private key without a PIN")
	}
}

func TestChangePIN(t *testing.T) {
	s, tok := newToken(t, "alice")
	ctx := context.Background()
	if err := tok.ChangePIN(ctx, []byte("wrong-pin"), []byte("new-pin-5521")); !errors.Is(err, hsm.ErrWrongPIN) {
		t.Errorf("wrong old PIN: %v, want ErrWrongPIN", err)
	}
	if err := tok.ChangePIN(ctx, []byte(userPIN), nil); err == nil {
		t.Error("changed to an empty PIN")
	}
	if err := tok.ChangePIN(ctx, []byte(userPIN), []byte("new-pin-5521")); err != nil {
		t.Fatal(err)
	}
	if _, err := token.Open(ctx, s.cfg, "pkcs11:token=alice", pin(userPIN)); !errors.Is(err, hsm.ErrWrongPIN) {
		t.Errorf("the old PIN: %v, want ErrWrongPIN", err)
	}
	again, err := token.Open(ctx, s.cfg, "pkcs11:token=alice", pin("new-pin-5521"))
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestTokens(t *testing.T) {
	s := newStore(t)
	for _, label := range []string{"alice", "bob"} {
		s.init(t, label)
	}
	tokens, err := token.Tokens(context.Background(), s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]int{}
	for _, info := range tokens {
		if info.Initialized {
			labels[info.Label]++
		}
	}
	if labels["alice"] != 1 || labels["bob"] != 1 || len(labels) != 2 {
		t.Errorf("tokens are %v", labels)
	}
}

// Native code stays in the helper: the client and what imports it must build
// without cgo and never see the module's binding.
func TestClientHasNoNativeCode(t *testing.T) {
	list := func(pkg string) string {
		out, err := exec.Command("go", "list", "-deps", pkg).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	const binding = "github.com/miekg/pkcs11"
	if strings.Contains(list("github.com/keyturn/keyturn/hsm/token"), binding) {
		t.Errorf("the client depends on %s", binding)
	}
	if !strings.Contains(list("github.com/keyturn/keyturn/cmd/keyturn-token"), binding) {
		t.Errorf("the helper does not depend on %s: this test checks nothing", binding)
	}
}

// By hand the helper does nothing.
func TestHelperRunByHand(t *testing.T) {
	for _, args := range [][]string{nil, {"--help"}, {"1234"}} {
		out, err := exec.Command(helperPath, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "started by other keyturn programs") {
			t.Errorf("%v: %v, %s", args, err, out)
		}
	}
}

// The URI that a key gives opens that key again.
func TestKeyURI(t *testing.T) {
	s, tok := newToken(t, "alice")
	k := openKey(t, tok, "p256", nil)
	again, err := token.Open(context.Background(), s.cfg, k.Info().URI, pin(userPIN))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := sign(openKey(t, again, "", k.Public())); err != nil {
		t.Error(err)
	}
	if info := k.Info(); info.Token != "alice" || info.Manufacturer != "SoftHSM project" || info.Class != hsm.ClassSoftware {
		t.Errorf("info is %+v", info)
	}
}

func BenchmarkECDH(b *testing.B) {
	_, tok := newToken(b, "alice")
	generate(b, tok, "ecdh", hsm.KindECDH)
	d, err := tok.Decrypter(context.Background(), "ecdh", nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := d.ECDH(d.PublicKey()); err != nil {
			b.Fatal(err)
		}
	}
}
