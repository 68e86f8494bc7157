package token_test

import (
	"context"
	"crypto/hpke"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
)

// faultyModule is a store behind a module that does wrong on demand.
type faultyModule struct {
	*store
	fault, logins string // files: what to do wrong; one byte for each login
}

func newFaultyModule(t *testing.T) *faultyModule {
	t.Helper()
	s := newStore(t)
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("needs gcc to build a faulty module")
	}
	headers, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := &faultyModule{s, filepath.Join(dir, "fault"), filepath.Join(dir, "logins")}
	f.cfg.Module = filepath.Join(dir, "faulty.so")
	build := exec.Command("gcc", "-shared", "-fPIC", "-Wall", "-I", strings.TrimSpace(string(headers)), "-o", f.cfg.Module, "testdata/faulty.c", "-ldl")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build faulty module: %v\n%s", err, out)
	}
	f.cfg.Env = []string{"PKCS11_FAULT=" + f.fault, "PKCS11_LOGINS=" + f.logins}
	f.cfg.Timeout = 2 * time.Second
	f.do(t, "")
	f.init(t, "alice")
	return f
}

// do sets what the module does wrong from now on.
func (f *faultyModule) do(t *testing.T, fault string) {
	t.Helper()
	if err := os.WriteFile(f.fault, []byte(fault), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tries counts the PINs that reached the token since the last call.
func (f *faultyModule) tries(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(f.logins)
	if err == nil {
		err = os.Remove(f.logins)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return len(text)
}

// signsWrong asks for a signature while the module does wrong, and for one after.
func (f *faultyModule) signsWrong(t *testing.T, k hsm.Key, fault string, want error) {
	t.Helper()
	f.do(t, fault)
	sig, err := hsm.SignMessage(context.Background(), k, []byte("m"))
	if sig != nil || !errors.Is(err, want) {
		t.Errorf("%s: got %d bytes and %v, want %v", fault, len(sig), err, want)
	}
	f.do(t, "")
	if err := sign(k); err != nil {
		t.Errorf("after %s: %v", fault, err)
	}
}

func TestFaultModuleReturnsGarbage(t *testing.T) {
	f := newFaultyModule(t)
	tok := f.open(t, "alice")
	generate(t, tok, "p256", hsm.KindP256)
	k := openKey(t, tok, "p256", nil)
	for _, fault := range []string{"garbage", "short", "empty"} {
		f.signsWrong(t, k, fault, hsm.ErrWrongIdentity)
	}
	// A wrong shared secret cannot be told from a right one, and opens nothing.
	generate(t, tok, "ecdh", hsm.KindECDH)
	d, err := tok.Decrypter(t.Context(), "ecdh", nil)
	if err != nil {
		t.Fatal(err)
	}
	public, err := hpke.NewDHKEMPublicKey(d.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := hpke.Seal(public, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), nil, []byte("share"))
	if err != nil {
		t.Fatal(err)
	}
	private, err := hsm.HPKEPrivate(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	for fault, opens := range map[string]bool{"garbage-secret": false, "short-secret": false, "": true} {
		f.do(t, fault)
		if b, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), nil, sealed); (err == nil) != opens {
			t.Errorf("%q: opened %q, %v", fault, b, err)
		}
	}
	f.do(t, "garbage-secret")
	if _, err := tok.Decrypter(t.Context(), "ecdh", nil); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("enrolling it meanwhile: %v, want ErrWrongIdentity", err)
	}
}

// A token may give a handle to another key once its first owner is gone (PKCS #11
// promises nothing beyond that). Nothing is sealed by that one, for nobody would
// see it: it opens what it sealed.
func TestFaultHandleOfAnotherKey(t *testing.T) {
	f := newFaultyModule(t)
	tok := f.open(t, "alice")
	generate(t, tok, "seal", hsm.KindSeal)
	generate(t, tok, "other", hsm.KindSeal)
	s, err := tok.Sealer(t.Context(), "seal")
	if err != nil {
		t.Fatal(err)
	}
	seal := func() ([]byte, error) { return s.Seal(t.Context(), []byte("share"), nil) }
	before, err := seal()
	if err != nil {
		t.Fatal(err)
	}
	f.do(t, "moved")
	if _, err := seal(); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("sealed by another key: %v, want ErrWrongIdentity", err)
	}
	f.do(t, "")
	after, err := seal()
	if err != nil {
		t.Fatal(err)
	}
	for _, sealed := range [][]byte{before, after} {
		if got, err := s.Unseal(t.Context(), sealed, nil); err != nil || string(got) != "share" {
			t.Errorf("%q, %v", got, err)
		}
	}
}

func TestFaultModuleSegfault(t *testing.T) {
	f := newFaultyModule(t)
	tok := f.open(t, "alice")
	generate(t, tok, "p256", hsm.KindP256)
	k := openKey(t, tok, "p256", nil)
	for _, fault := range []string{"crash", "exit", "removed"} {
		f.signsWrong(t, k, fault, hsm.ErrGone)
	}
	for fault, do := range map[string]func() error{
		"crash-login": func() error {
			other, err := token.Open(t.Context(), f.cfg, "pkcs11:token=alice", pin(userPIN))
			if err == nil {
				other.Close()
			}
			return err
		},
		"crash-find": func() error { _, err := tok.List(t.Context()); return err },
	} {
		f.do(t, fault)
		if err := do(); !errors.Is(err, hsm.ErrGone) {
			t.Errorf("%s: %v, want ErrGone", fault, err)
		}
		f.do(t, "")
		if err := do(); err != nil {
			t.Errorf("after %s: %v", fault, err)
		}
	}
	if err := sign(k); err != nil {
		t.Error(err)
	}
}

func TestFaultModuleHangs(t *testing.T) {
	f := newFaultyModule(t)
	tok := f.open(t, "alice")
	generate(t, tok, "p256", hsm.KindP256)
	f.signsWrong(t, openKey(t, tok, "p256", nil), "hang", hsm.ErrTimeout)
	f.do(t, "hang-login")
	if _, err := token.Open(t.Context(), f.cfg, "pkcs11:token=alice", pin(userPIN)); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("a login that hangs: %v, want ErrTimeout", err)
	}
	f.do(t, "")
	f.open(t, "alice")
}

// A slow module is waited for, by many at a time; who cannot wait is told so, and
// nobody gets an answer to another's question.
func TestFaultModuleSlow(t *testing.T) {
	f := newFaultyModule(t)
	f.cfg.Timeout = time.Minute
	tok := f.open(t, "alice")
	generate(t, tok, "p256", hsm.KindP256)
	k := openKey(t, tok, "p256", nil)
	f.do(t, "slow")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := hsm.SignMessage(t.Context(), k, []byte("m")); err != nil {
				t.Errorf("a slow signature: %v", err)
			}
		})
	}
	all.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := hsm.SignMessage(ctx, k, []byte("m")); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("with no time to wait: %v, want ErrTimeout", err)
	}
	if _, err := hsm.SignMessage(t.Context(), k, []byte("n")); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// A pulled token can answer with blanks for a moment. Only a key that shows
// itself to be another one twice is called an impostor.
func TestFaultTokenAnswersWithBlanks(t *testing.T) {
	f := newFaultyModule(t)
	tok := f.open(t, "alice")
	generate(t, tok, "p256", hsm.KindP256)
	k := openKey(t, tok, "p256", nil)
	for _, test := range []struct {
		fault string
		want  error
	}{
		{"blank-once", nil},
		{"blank", hsm.ErrWrongIdentity},
		{"unreadable", hsm.ErrGone},
	} {
		kill(t, theHelper(t), syscall.SIGKILL) // the next one looks for the key anew
		f.do(t, test.fault)
		if err := sign(k); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.fault, err, test.want)
		}
		if left, err := os.ReadFile(f.fault); err != nil || (test.fault == "blank-once") != (len(left) == 0) {
			t.Errorf("%s: the fault file holds %q, %v: the fault did not come to pass", test.fault, left, err)
		}
		f.do(t, "")
		if err := sign(k); err != nil {
			t.Errorf("after %s: %v", test.fault, err)
		}
	}
}

func TestPINTriesLeft(t *testing.T) {
	f := newFaultyModule(t)
	ctx := context.Background()
	var asked []string
	source := func(_ context.Context, prompt string) (*secret.Buffer, error) {
		asked = append(asked, prompt)
		return secret.Take([]byte(userPIN))
	}
	tests := []struct {
		fault       string
		interactive bool
		want        error
		prompt      string // that is shown, empty if none may be
		tries       int    // PINs that may reach the token
	}{
		{"", false, nil, "PIN of token alice", 1},
		{"count-low", false, nil, "a wrong PIN was tried before", 1},
		{"final-try", false, hsm.ErrLocked, "", 0},
		{"final-try", true, nil, "LAST TRY", 1},
		{"locked", false, hsm.ErrLocked, "", 0},
		{"locked", true, hsm.ErrLocked, "", 0},
		{"locks", true, hsm.ErrLocked, "PIN of token alice", 1},
	}
	f.tries(t)
	for _, test := range tests {
		f.do(t, test.fault)
		asked = nil
		cfg := f.cfg
		cfg.Interactive = test.interactive
		tok, err := token.Open(ctx, cfg, "pkcs11:token=alice", source)
		if tok != nil {
			tok.Close()
		}
		if !errors.Is(err, test.want) {
			t.Errorf("%+v: %v", test, err)
		}
		if prompts := strings.Join(asked, "\n"); (prompts == "") != (test.prompt == "") || !strings.Contains(prompts, test.prompt) {
			t.Errorf("%+v: asked %q", test, prompts)
		}
		if got := f.tries(t); got != test.tries {
			t.Errorf("%+v: %d PINs reached the token", test, got)
		}
	}
}

// A token that turns out to be on its last try while the program runs is not
// tried by a restarted helper.
// A token that refuses a login and does not say that the PIN is wrong may count a
// try all the same. A service tries again once, and then no more.
func TestFaultLoginRefusedWithoutReason(t *testing.T) {
	f := newFaultyModule(t)
	f.cfg.Timeout = 0 // a busy machine is none of the faults meant
	tok := f.open(t, "alice")
	generate(t, tok, "p256", hsm.KindP256)
	k := openKey(t, tok, "p256", nil)
	again := func(fault string) error {
		t.Helper()
		f.do(t, fault)
		waitFor(t, "the end of all helpers but one", func() bool { return len(helpers(t)) == 1 })
		kill(t, theHelper(t), syscall.SIGKILL)
		waitFor(t, "the helper's end", func() bool { return len(helpers(t)) == 0 })
		f.tries(t)
		return sign(k)
	}
	// Once is no reason to give up: it may have been the reader.
	for range 2 {
		if err := again("vague-login"); err == nil || errors.Is(err, hsm.ErrGone) || f.tries(t) != 1 {
			t.Errorf("refused without a reason: %v", err)
		}
		f.do(t, "")
		if err := sign(k); err != nil {
			t.Fatalf("after it: %v", err)
		}
	}
	err := again("vague-login")
	for range 5 {
		if err = sign(k); err == nil {
			t.Fatal("signed")
		}
	}
	if n := f.tries(t); n != 2 {
		t.Errorf("%d logins were tried, want two: %v", n, err)
	}
	f.do(t, "")
	if err := sign(k); err == nil || f.tries(t) != 0 {
		t.Errorf("tried once more: %v", err)
	}
}

func TestFinalTryRespectedOnRestart(t *testing.T) {
	f := newFaultyModule(t)
	tok := f.open(t, "alice")
	generate(t, tok, "p256", hsm.KindP256)
	k := openKey(t, tok, "p256", nil)
	f.tries(t)
	f.do(t, "crash")
	if err := sign(k); err == nil {
		t.Fatal("signed by a crashing module")
	}
	f.tries(t)
	f.do(t, "final-try")
	for range 3 {
		if err := sign(k); !errors.Is(err, hsm.ErrLocked) {
			t.Errorf("got %v, want ErrLocked", err)
		}
	}
	if n := f.tries(t); n != 0 {
		t.Errorf("%d PINs reached the token", n)
	}
	f.do(t, "")
	if err := sign(k); err != nil {
		t.Errorf("after it was unlocked elsewhere: %v", err)
	}
}

func TestAttackEscapesInTokenInfo(t *testing.T) {
	f := newFaultyModule(t)
	f.do(t, "escape")
	tok := f.open(t, "alice")
	info, err := tok.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(info.Manufacturer, "?[31mEvil?") {
		t.Errorf("manufacturer is %q", info.Manufacturer)
	}
	generate(t, tok, "p256", hsm.KindP256)
	if got := openKey(t, tok, "p256", nil).Info(); got.Class != hsm.ClassSoftware || strings.ContainsAny(got.Manufacturer, "\x1b\n") {
		t.Errorf("info is %+v", got)
	}
}
