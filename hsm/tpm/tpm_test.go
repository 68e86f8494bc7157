package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

// softKey is the boot-policy key of a test.
type softKey struct{ *ecdsa.PrivateKey }

func (k softKey) SignContext(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.Sign(rand.Reader, digest, opts)
}
func (k softKey) Info() hsm.Info { return hsm.Info{URI: "test", Class: hsm.ClassSoftware} }

func newSoftKey(t *testing.T) softKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return softKey{key}
}

func open(t *testing.T, e *swtpm.Emulator) *TPM {
	t.Helper()
	d, err := Open(e.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func extendPCR(t *testing.T, d *TPM, pcr int, what string) {
	t.Helper()
	digest := sha256.Sum256([]byte(what))
	err := d.Run(t.Context(), "extend", func(tr transport.TPM) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
		}.Execute(tr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// extended is the value of a PCR into which each of what was measured.
func extended(what ...string) [32]byte {
	var v [32]byte
	for _, w := range what {
		digest := sha256.Sum256([]byte(w))
		v = sha256.Sum256(append(v[:], digest[:]...))
	}
	return v
}

// loaded counts the objects and sessions that are in the TPM.
func loaded(t *testing.T, d *TPM) int {
	t.Helper()
	n := 0
	err := d.Run(t.Context(), "count", func(tr transport.TPM) error {
		for _, class := range []uint32{0x80000000, 0x02000000, 0x03000000} {
			rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: class, PropertyCount: 64}.Execute(tr)
			if err != nil {
				return err
			}
			handles, err := rsp.CapabilityData.Data.Handles()
			if err != nil {
				return err
			}
			n += len(handles.Handle)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestConformance runs the suite of all backends.
func TestConformance(t *testing.T) {
	d := open(t, swtpm.New(t))
	ctx := t.Context()
	boot := newSoftKey(t)
	extendPCR(t, d, 4, "loader")
	signing, err := d.NewSigningKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	storage, err := d.NewStorageKey(ctx, &boot.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	approval, err := ApproveBoot(ctx, boot, map[int][32]byte{4: extended("loader")})
	if err != nil {
		t.Fatal(err)
	}
	hsmtest.Run(t, hsmtest.Backend{
		Class: hsm.ClassSoftware, // an emulator says so itself
		P256: func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error) {
			k, err := d.SigningKey(ctx, signing, "tpm:/keys/sign")
			if err != nil {
				return nil, err
			}
			if pinned != nil {
				return k, hsm.SamePublic(pinned, k.Public())
			}
			return k, nil
		},
		Decrypter: func(ctx context.Context, pinned *ecdh.PublicKey) (hsm.Decrypter, error) {
			k, err := d.StorageKey(ctx, storage, &boot.PublicKey, "tpm:/keys/storage")
			if err != nil {
				return nil, err
			}
			if pinned != nil {
				if err := hsm.SamePublic(pinned, k.PublicKey()); err != nil {
					return nil, err
				}
			}
			return k, k.SetApprovals([]BootApproval{*approval})
		},
	})
	if n := loaded(t, d); n != 0 {
		t.Errorf("%d objects and sessions were left in the TPM", n)
	}
}

// TestStorageKeyFollowsTheBoot: an approval for the next boot opens what was
// sealed before it, without another key; an unapproved boot opens nothing.
func TestStorageKeyFollowsTheBoot(t *testing.T) {
	e := swtpm.New(t)
	d := open(t, e)
	ctx := t.Context()
	boot, peer := newSoftKey(t), newSoftKey(t)
	private, err := peer.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := d.NewStorageKey(ctx, &boot.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	var approvals []BootApproval
	for _, kernel := range []string{"kernel 1", "kernel 2"} {
		a, err := ApproveBoot(ctx, boot, map[int][32]byte{4: extended("loader", kernel), 7: extended("keys")})
		if err != nil {
			t.Fatal(err)
		}
		approvals = append(approvals, *a)
	}
	for _, c := range []struct {
		kernel    string
		approvals []BootApproval
		opens     bool
	}{
		{"kernel 1", approvals[:1], true},
		{"kernel 2", approvals[:1], false},
		{"kernel 2", approvals, true},
		{"kernel 3", approvals, false},
		{"kernel 1", nil, false},
	} {
		d.Close()
		e.Reset(t)
		d = open(t, e)
		extendPCR(t, d, 4, "loader")
		extendPCR(t, d, 4, c.kernel)
		extendPCR(t, d, 7, "keys")
		k, err := d.StorageKey(ctx, blob, &boot.PublicKey, "tpm:storage")
		if err != nil {
			t.Fatal(err)
		}
		if err := k.SetApprovals(c.approvals); err != nil {
			t.Fatal(err)
		}
		want, err := private.ECDH(k.PublicKey())
		if err != nil {
			t.Fatal(err)
		}
		for range 5 { // sessions of refusals must not pile up
			got, err := k.ECDHContext(ctx, private.PublicKey())
			switch {
			case c.opens && (err != nil || !bytes.Equal(got, want)):
				t.Errorf("%s with %d approvals: %v", c.kernel, len(c.approvals), err)
			case !c.opens && (!errors.Is(err, ErrBootNotApproved) || got != nil):
				t.Errorf("%s with %d approvals: %v, want ErrBootNotApproved", c.kernel, len(c.approvals), err)
			}
		}
		if n := loaded(t, d); n != 0 {
			t.Errorf("%d objects and sessions were left in the TPM", n)
		}
	}
}

// An approval by another key, for another policy, or for no measured boot.
func TestAttackBootApproval(t *testing.T) {
	boot, other := newSoftKey(t), newSoftKey(t)
	ctx := t.Context()
	pcrs := map[int][32]byte{4: extended("loader")}
	a, err := ApproveBoot(ctx, other, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Verify(&boot.PublicKey); err == nil {
		t.Error("another key's approval was accepted")
	}
	if a, err = ApproveBoot(ctx, boot, pcrs); err != nil {
		t.Fatal(err)
	}
	if err := a.Verify(&boot.PublicKey); err != nil {
		t.Error(err)
	}
	changed := *a
	changed.Policy = bytes.Repeat([]byte{1}, 32)
	if err := changed.Verify(&boot.PublicKey); err == nil {
		t.Error("a changed policy was accepted")
	}
	changed = *a
	changed.PCRs = nil
	if err := changed.Verify(&boot.PublicKey); err == nil {
		t.Error("an approval of no PCR was accepted")
	}
	for name, pcrs := range map[string]map[int][32]byte{"none": nil, "zeros": {0: {}}, "out of range": {24: extended("x")}} {
		if _, err := ApproveBoot(ctx, boot, pcrs); err == nil {
			t.Errorf("%s was approved", name)
		}
	}
}

// A forged approval is stopped by the TPM as well, not only by SetApprovals.
func TestAttackBootApprovalPastTheCheck(t *testing.T) {
	d := open(t, swtpm.New(t))
	ctx := t.Context()
	boot, other := newSoftKey(t), newSoftKey(t)
	extendPCR(t, d, 4, "evil loader")
	blob, err := d.NewStorageKey(ctx, &boot.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	k, err := d.StorageKey(ctx, blob, &boot.PublicKey, "tpm:storage")
	if err != nil {
		t.Fatal(err)
	}
	forged, err := ApproveBoot(ctx, other, map[int][32]byte{4: extended("evil loader")})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.SetApprovals([]BootApproval{*forged}); err == nil {
		t.Fatal("a forged approval was taken")
	}
	for _, authority := range []*ecdsa.PublicKey{&boot.PublicKey, &other.PublicKey} {
		k.authority, k.approvals = authority, []BootApproval{*forged}
		peer := newSoftKey(t)
		public, err := peer.PublicKey.ECDH()
		if err != nil {
			t.Fatal(err)
		}
		if z, err := k.ECDHContext(ctx, public); err == nil || z != nil {
			t.Fatal("the TPM took a forged approval")
		}
	}
	if n := loaded(t, d); n != 0 {
		t.Errorf("%d objects and sessions were left in the TPM", n)
	}
}

// Keys of one TPM, and damaged ones, are refused by another.
func TestBlobOfAnotherTPM(t *testing.T) {
	one, two := open(t, swtpm.New(t)), open(t, swtpm.New(t))
	blob, err := one.NewSigningKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := two.SigningKey(t.Context(), blob, "tpm:x"); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("another TPM: %v, want ErrGone", err)
	}
	blob.Private[len(blob.Private)-1] ^= 1
	if _, err := one.SigningKey(t.Context(), blob, "tpm:x"); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("damaged: %v, want ErrGone", err)
	}
	if _, err := one.SigningKey(t.Context(), Blob{}, "tpm:x"); err == nil {
		t.Error("nothing was loaded as a key")
	}
	name, err := two.StorageRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := one.PinStorageRoot(name); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("pin another storage root: %v, want ErrWrongIdentity", err)
	}
}

// The emulator is stopped in the middle of commands, then killed: each is a typed
// error, at once, and the connection never gives a late answer to a later question.
func TestFaultKilledMidCommand(t *testing.T) {
	e := swtpm.New(t)
	d := open(t, e)
	blob, err := d.NewSigningKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k, err := d.SigningKey(t.Context(), blob, "tpm:x")
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("m"))
	hsmtest.Stop(t, e.Pid())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := k.SignContext(ctx, digest[:], crypto.SHA256); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("stopped: %v, want ErrTimeout", err)
	}
	if err := syscall.Kill(e.Pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := k.SignContext(t.Context(), digest[:], crypto.SHA256); err == nil {
		t.Error("a connection that lost an answer was used again")
	}

	e.Reset(t)
	d = open(t, e)
	if k, err = d.SigningKey(t.Context(), blob, "tpm:x"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			for errs[i] == nil {
				_, errs[i] = k.SignContext(context.Background(), digest[:], crypto.SHA256)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for _, err := range errs {
		if !errors.Is(err, hsm.ErrGone) {
			t.Errorf("killed: %v, want ErrGone", err)
		}
	}
}

// After a reset, keys that were loaded before say that they are gone.
func TestFaultReset(t *testing.T) {
	e := swtpm.New(t)
	d := open(t, e)
	k, err := d.NewFreshKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e.Reset(t)
	if _, err := k.ECDH(k.PublicKey()); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("%v, want ErrGone", err)
	}
}

func TestOpenRefusals(t *testing.T) {
	for _, path := range []string{"", "tpmrm0", "unix:sock", "unix:/nonexistent/sock", "/nonexistent/tpm"} {
		if d, err := Open(path); err == nil {
			d.Close()
			t.Errorf("%q was opened", path)
		}
	}
	if _, err := Open("/nonexistent/tpm"); !errors.Is(err, hsm.ErrGone) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want ErrGone and ErrNotExist", err)
	}
}
