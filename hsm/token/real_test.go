package token_test

import (
	"context"
	"crypto"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

// SoftHSM counts no tries. The tokens here do: tpm2-pkcs11 by the TPM itself,
// without saying so beforehand, and opencryptoki in the flags of the standard.
const tpm2PKCS11 = "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so"

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

// try opens the token with a PIN and closes it.
func (s *store) try(p hsm.PIN) error {
	tok, err := token.Open(context.Background(), s.cfg, "pkcs11:token=alice", p)
	if err == nil {
		err = tok.Close()
	}
	return err
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
	t.Run("opencryptoki", func(t *testing.T) {
		tok := newOpenCryptoki(t).open(t)
		lacks(t, tok, hsm.KindEd25519, "CKM_EC_EDWARDS_KEY_PAIR_GEN")
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

// The module of a TPM knows its keys without the TPM. It must be noticed all the
// same that the TPM is gone, and that it is back.
func TestFaultTPMPulledUnderLoad(t *testing.T) {
	s, e := newTPMToken(t, "alice")
	k := openKey(t, s.open(t, "alice"), "p256", nil)
	l := startLoad(k)
	for range 2 {
		l.await(t, "signatures before the pull", &l.signed)
		e.Kill()
		l.await(t, "refusals while it is gone", &l.gone)
		if err := sign(k); !errors.Is(err, hsm.ErrGone) {
			t.Errorf("signing without a TPM: %v, want ErrGone", err)
		}
		e.Reset(t)
	}
	l.await(t, "signatures after the TPM came back", &l.signed)
	l.end(t)
}

// A TPM that hangs costs a call its deadline. What the helper that was killed
// over it left in the TPM, a resource manager would clear away, and here a reset.
func TestFaultTPMStopped(t *testing.T) {
	s, e := newTPMToken(t, "alice")
	k := openKey(t, s.open(t, "alice"), "p256", nil)
	hsmtest.Stop(t, e.Pid())
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := hsm.SignMessage(ctx, k, []byte("m")); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("a stopped TPM: %v, want ErrTimeout", err)
	}
	e.Reset(t)
	if err := sign(k); err != nil {
		t.Errorf("after a reset: %v", err)
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
	t.Run("opencryptoki", func(t *testing.T) { change(t, newOpenCryptoki(t).store, cryptokiPIN, "73192001") })
}
