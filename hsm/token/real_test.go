package token_test

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

// SoftHSM counts no tries. The tokens here do: tpm2-pkcs11 by the TPM itself,
// without saying so beforehand, and opencryptoki in the flags of the standard.
const (
	tpm2PKCS11   = "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so"
	openCryptoki = "/usr/lib/x86_64-linux-gnu/pkcs11/libopencryptoki.so"
)

// newTPMToken makes a token of tpm2-pkcs11 in a software TPM, and a P-256 key
// on it.
func newTPMToken(t testing.TB, label string) (*store, *swtpm.Emulator) {
	t.Helper()
	if _, err := os.Stat(tpm2PKCS11); err != nil {
		t.Skip("needs tpm2-pkcs11 (package libtpm2-pkcs11-1)")
	}
	e := swtpm.New(t)
	s := &store{t.TempDir(), token.Config{Helper: helperPath, Module: tpm2PKCS11}}
	t.Setenv("TPM2_PKCS11_STORE", s.dir)
	t.Setenv("TPM2_PKCS11_TCTI", "swtpm:path="+strings.TrimPrefix(e.Path, "unix:"))
	s.init(t, label)
	tok := s.open(t, label)
	generate(t, tok, "p256", hsm.KindP256)
	tok.Close()
	return s, e
}

// forgive resets the TPM's count of wrong PINs, as its owner can.
func forgive(t *testing.T, e *swtpm.Emulator) {
	t.Helper()
	reset := exec.Command("tpm2_dictionarylockout", "--clear-lockout", "--tcti", "swtpm:path="+strings.TrimPrefix(e.Path, "unix:"))
	if out, err := reset.CombinedOutput(); err != nil {
		t.Fatalf("tpm2_dictionarylockout (package tpm2-tools): %v\n%s", err, out)
	}
}

const (
	cryptokiSO  = "40861000" // opencryptoki takes 4 to 8 digits
	cryptokiPIN = "73192000"
)

// newOpenCryptoki runs opencryptoki with one soft token, "alice", in namespaces
// of its own.
func newOpenCryptoki(t *testing.T) *store {
	t.Helper()
	if _, err := os.Stat(openCryptoki); err != nil {
		t.Skip("needs opencryptoki (package opencryptoki)")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to run opencryptoki's slot daemon in namespaces of its own")
	}
	daemon := exec.Command("unshare", "--mount", "--ipc", "sh", "testdata/opencryptoki.sh")
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	daemon.Stderr = &said
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	var ended atomic.Bool
	done := make(chan struct{})
	go func() { daemon.Wait(); ended.Store(true); close(done) }()
	t.Cleanup(func() { daemon.Process.Kill(); <-done })
	proc := fmt.Sprintf("/proc/%d/", daemon.Process.Pid)
	inside := fmt.Sprintf("nsenter --mount=%sns/mnt --ipc=%sns/ipc", proc, proc)
	waitFor(t, "the slot daemon", func() bool {
		if _, err := os.Stat(proc + "root/run/pkcsslotd.socket"); err != nil {
			return ended.Load()
		}
		return exec.Command("sh", "-c", inside+" pkcsconf -t").Run() == nil || ended.Load()
	})
	if ended.Load() {
		<-done
		t.Skipf("needs the right to make mount and IPC namespaces: %s", said.String())
	}
	for _, step := range []string{ // from the factory's PINs to ours
		"echo alice | %s pkcsconf -c 0 -I -S 87654321",
		"%s pkcsconf -c 0 -P -S 87654321 -n " + cryptokiSO,
		"%s pkcsconf -c 0 -u -S " + cryptokiSO + " -n 11111111",
		"%s pkcsconf -c 0 -p -U 11111111 -n " + cryptokiPIN,
	} {
		step = fmt.Sprintf(step, inside)
		if out, err := exec.Command("sh", "-c", step).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", step, err, out)
		}
	}
	s := &store{t.TempDir(), token.Config{Module: openCryptoki}}
	s.cfg.Helper = filepath.Join(s.dir, "keyturn-token")
	if err := os.WriteFile(s.cfg.Helper, []byte("#!/bin/sh\nexec "+inside+" "+helperPath+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

// try opens the token with a PIN and closes it.
func (s *store) try(p hsm.PIN) error {
	tok, err := token.Open(context.Background(), s.cfg, "pkcs11:token=alice", p)
	if err == nil {
		err = tok.Close()
	}
	return err
}

func (s *store) info(t *testing.T) token.TokenInfo {
	t.Helper()
	tokens, err := token.Tokens(context.Background(), s.cfg)
	if err != nil || len(tokens) == 0 {
		t.Fatalf("%d tokens: %v", len(tokens), err)
	}
	return tokens[0]
}

func TestConformanceTPM2PKCS11(t *testing.T) {
	s, _ := newTPMToken(t, "alice")
	tok := s.open(t, "alice")
	hsmtest.Run(t, hsmtest.Backend{
		Class: hsm.ClassSoftware, // an emulated TPM says so
		P256: func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error) {
			return tok.Key(ctx, "p256", pinned)
		},
	})
	keys, err := tok.List(t.Context())
	if err != nil || len(keys) != 1 {
		t.Fatalf("%d keys: %v", len(keys), err)
	}
	if k := keys[0]; k.Extractable || !k.Sensitive || !k.NeverExtractable || !k.Local || k.Kind != hsm.KindP256 {
		t.Errorf("unexpected: %+v", k)
	}
}

// What a token cannot do is said before a key is made that is of no use.
func TestKindsThatATokenLacks(t *testing.T) {
	lacks := func(t *testing.T, tok *token.Token, kind hsm.Kind, mechanism string) {
		t.Helper()
		if _, err := tok.Generate(t.Context(), "new", kind); err == nil || !strings.Contains(err.Error(), mechanism) {
			t.Errorf("%s: %v, want a refusal that names %s", kind, err, mechanism)
		}
	}
	count := func(t *testing.T, tok *token.Token) int {
		t.Helper()
		keys, err := tok.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(keys)
	}
	t.Run("tpm2-pkcs11", func(t *testing.T) {
		s, _ := newTPMToken(t, "alice")
		tok := s.open(t, "alice")
		lacks(t, tok, hsm.KindEd25519, "CKM_EC_EDWARDS_KEY_PAIR_GEN")
		lacks(t, tok, hsm.KindECDH, "CKM_ECDH1_DERIVE")
		lacks(t, tok, hsm.KindSeal, "CKM_AES_GCM")
		if n := count(t, tok); n != 1 {
			t.Errorf("%d keys, want the first one only", n)
		}
	})
	t.Run("opencryptoki", func(t *testing.T) { // 3.8.1 as Debian builds it
		s := newOpenCryptoki(t)
		tok, err := token.Open(t.Context(), s.cfg, "pkcs11:token=alice", pin(cryptokiPIN))
		if err != nil {
			t.Fatal(err)
		}
		defer tok.Close()
		lacks(t, tok, hsm.KindP256, "CKM_EC_KEY_PAIR_GEN")
		lacks(t, tok, hsm.KindEd25519, "CKM_EC_EDWARDS_KEY_PAIR_GEN")
		lacks(t, tok, hsm.KindECDH, "CKM_EC_KEY_PAIR_GEN")
		lacks(t, tok, hsm.KindSeal, "CKM_AES_GCM")
		if n := count(t, tok); n != 0 {
			t.Errorf("%d keys were left behind", n)
		}
	})
}

// The TPM takes three wrong PINs and no more, from whoever asks, and says
// nothing of it beforehand.
func TestFaultLockOutTPM2PKCS11(t *testing.T) {
	s, e := newTPMToken(t, "alice")
	for i := range 3 {
		if err := s.try(pin("wrong-pin")); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Errorf("wrong PIN %d: %v, want ErrWrongPIN", i+1, err)
		}
	}
	for _, p := range []string{"wrong-pin", userPIN} {
		if err := s.try(pin(p)); !errors.Is(err, hsm.ErrLocked) {
			t.Errorf("after three: %v, want ErrLocked", err)
		}
	}
	forgive(t, e)
	if err := s.try(pin(userPIN)); err != nil {
		t.Errorf("the right PIN, unlocked: %v", err)
	}
}

// A PIN that stopped being right costs one try, however often the helper dies
// and however often a signature is asked for.
func TestFaultRefusedPINCostsOneTry(t *testing.T) {
	s, _ := newTPMToken(t, "alice")
	var asked atomic.Int64
	tok, err := token.Open(t.Context(), s.cfg, "pkcs11:token=alice", func(context.Context, string) (*secret.Buffer, error) {
		if asked.Add(1) > 1 {
			return secret.Take([]byte("wrong-pin"))
		}
		return secret.Take([]byte(userPIN))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	k := openKey(t, tok, "p256", nil)
	kill(t, theHelper(t), syscall.SIGKILL)
	for range 10 {
		if err := sign(k); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Errorf("after a refused PIN: %v, want ErrWrongPIN", err)
		}
		for _, pid := range helpers(t) {
			kill(t, pid, syscall.SIGKILL)
		}
	}
	for range 2 { // with the one above, these are the three that the TPM takes
		if err := s.try(pin("wrong-pin")); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Errorf("%v, want ErrWrongPIN: more than one try was spent", err)
		}
	}
	if err := s.try(pin(userPIN)); !errors.Is(err, hsm.ErrLocked) {
		t.Errorf("%v, want ErrLocked: no try was spent", err)
	}
}

// Opencryptoki shows in its flags what the next wrong PIN costs: nobody is
// there, so the last try stays unused; somebody is, so it is theirs to spend.
func TestFaultLockOutOpenCryptoki(t *testing.T) {
	s := newOpenCryptoki(t)
	wrong := pin("00000000")
	for i, want := range []func(token.TokenInfo) bool{
		func(info token.TokenInfo) bool { return info.PINCountLow && !info.PINFinalTry },
		func(info token.TokenInfo) bool { return info.PINFinalTry && !info.PINLocked },
	} {
		if err := s.try(wrong); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Fatalf("wrong PIN %d: %v, want ErrWrongPIN", i+1, err)
		}
		if info := s.info(t); !want(info) {
			t.Fatalf("after wrong PIN %d the token says %+v", i+1, info)
		}
	}
	for range 5 {
		for _, p := range []hsm.PIN{wrong, pin(cryptokiPIN)} {
			if err := s.try(p); !errors.Is(err, hsm.ErrLocked) {
				t.Errorf("the last try, unattended: %v, want ErrLocked", err)
			}
		}
	}
	if info := s.info(t); info.PINLocked {
		t.Fatal("the last try was spent unattended")
	}
	s.cfg.Interactive = true
	var prompt string
	err := s.try(func(_ context.Context, p string) (*secret.Buffer, error) {
		prompt = p
		return secret.Take([]byte("00000000"))
	})
	if !errors.Is(err, hsm.ErrLocked) || !strings.Contains(prompt, "LAST TRY") {
		t.Errorf("the last try, wrong: %v after the prompt %q, want ErrLocked", err, prompt)
	}
	if info := s.info(t); !info.PINLocked {
		t.Errorf("after three wrong PINs the token says %+v", info)
	}
	if err := s.try(func(context.Context, string) (*secret.Buffer, error) {
		t.Error("a locked token asked for its PIN")
		return nil, nil
	}); !errors.Is(err, hsm.ErrLocked) {
		t.Errorf("locked: %v, want ErrLocked", err)
	}
}

// The right PIN on the last try clears the count.
func TestLastTryRight(t *testing.T) {
	s := newOpenCryptoki(t)
	for range 2 {
		if err := s.try(pin("00000000")); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Fatal(err)
		}
	}
	s.cfg.Interactive = true
	if err := s.try(pin(cryptokiPIN)); err != nil {
		t.Fatal(err)
	}
	if info := s.info(t); info.PINCountLow || info.PINFinalTry || info.PINLocked {
		t.Errorf("after the right PIN the token says %+v", info)
	}
}

// A PIN is changed by its old one, without a login before.
func TestChangePINOfRealTokens(t *testing.T) {
	change := func(t *testing.T, s *store, old, new string) {
		t.Helper()
		tok, err := token.Open(t.Context(), s.cfg, "pkcs11:token=alice", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := tok.ChangePIN(t.Context(), []byte("00000000"), []byte(new)); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Errorf("by a wrong PIN: %v, want ErrWrongPIN", err)
		}
		if err := errors.Join(tok.ChangePIN(t.Context(), []byte(old), []byte(new)), tok.Close()); err != nil {
			t.Fatal(err)
		}
		if err := s.try(pin(new)); err != nil {
			t.Errorf("the new PIN: %v", err)
		}
		if err := s.try(pin(old)); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Errorf("the old PIN: %v, want ErrWrongPIN", err)
		}
	}
	t.Run("tpm2-pkcs11", func(t *testing.T) {
		s, _ := newTPMToken(t, "alice")
		change(t, s, userPIN, "another-pin")
	})
	t.Run("opencryptoki", func(t *testing.T) { change(t, newOpenCryptoki(t), cryptokiPIN, "73192001") })
}
