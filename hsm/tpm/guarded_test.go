package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

const testPIN = "pin of alice 73192"

// pin answers with p, attended or not.
func pin(p string, attended bool) Access {
	return Access{PIN: func(context.Context, string) (*secret.Buffer, error) { return secret.Take([]byte(p)) }, Interactive: attended}
}

// newKey makes a key file and returns its URI and public key.
func newKey(t *testing.T, d *TPM, kind hsm.Kind, g Guard) (string, any) {
	t.Helper()
	uri := "tpm:" + filepath.Join(t.TempDir(), string(kind)+".pem")
	public, err := d.Generate(t.Context(), uri, kind, g)
	if err != nil {
		t.Fatal(err)
	}
	return uri, public
}

func sign(ctx context.Context, k hsm.Key) error {
	_, err := hsm.SignMessage(ctx, k, []byte("message"))
	return err
}

func openKey(t *testing.T, d *TPM, uri string, a Access) hsm.Key {
	t.Helper()
	k, err := d.Key(t.Context(), uri, nil, a)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func maker(d *TPM, dir string, g Guard, a Access) *hsmtest.Maker {
	uri := func(name string) string {
		return hsm.URI{Scheme: hsm.SchemeTPM, Path: filepath.Join(dir, name)}.String()
	}
	return &hsmtest.Maker{
		Kinds: []hsm.Kind{hsm.KindP256, hsm.KindECDH, hsm.KindSeal},
		Generate: func(ctx context.Context, name string, kind hsm.Kind) (any, error) {
			return d.Generate(ctx, uri(name), kind, g)
		},
		Open: func(ctx context.Context, name string, kind hsm.Kind, pinned any) (any, error) {
			switch kind {
			case hsm.KindECDH:
				return d.Decrypter(ctx, uri(name), pinned.(*ecdh.PublicKey), a)
			case hsm.KindSeal:
				return d.Sealer(ctx, uri(name), a)
			default:
				return d.Key(ctx, uri(name), pinned, a)
			}
		},
	}
}

// Every guard passes the suite of all backends.
func TestConformanceOfKeyFiles(t *testing.T) {
	d := open(t, swtpm.New(t))
	extendPCR(t, d, 4, "loader")
	extendPCR(t, d, 7, "keys")
	for name, g := range map[string]Guard{
		"free": {}, "PIN": {PIN: []byte(testPIN)}, "PCRs": {PCRs: []int{4, 7}}, "PIN and PCRs": {PIN: []byte(testPIN), PCRs: []int{4, 7}},
	} {
		t.Run(name, func(t *testing.T) {
			a := pin(testPIN, false)
			signing, _ := newKey(t, d, hsm.KindP256, g)
			exchange, _ := newKey(t, d, hsm.KindECDH, g)
			one, _ := newKey(t, d, hsm.KindSeal, g)
			two, _ := newKey(t, d, hsm.KindSeal, g)
			sealer := func(uri string) func(context.Context) (hsm.Sealer, error) {
				return func(ctx context.Context) (hsm.Sealer, error) { return d.Sealer(ctx, uri, a) }
			}
			hsmtest.Run(t, hsmtest.Backend{
				Class: hsm.ClassSoftware, // an emulator says so itself
				P256: func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error) {
					return d.Key(ctx, signing, pinned, a)
				},
				Decrypter: func(ctx context.Context, pinned *ecdh.PublicKey) (hsm.Decrypter, error) {
					return d.Decrypter(ctx, exchange, pinned, a)
				},
				Sealer:      sealer(one),
				OtherSealer: sealer(two),
				Maker:       maker(d, t.TempDir(), g, a),
			})
			if n := loaded(t, d); n != 0 {
				t.Errorf("%d objects and sessions were left in the TPM", n)
			}
			if left, of, err := d.Tries(t.Context()); left != of || err != nil {
				t.Errorf("%d of %d tries are left: %v", left, of, err)
			}
		})
	}
}

// Openssl, by a peer of this package, reads our files: it finds the same public
// key and signs with the same PIN.
func TestOpenSSLUsesKeyFiles(t *testing.T) {
	if _, err := os.Stat("/usr/lib/x86_64-linux-gnu/ossl-modules/tpm2.so"); err != nil {
		t.Skip("needs openssl's provider for TPMs (package tpm2-openssl)")
	}
	e := swtpm.New(t)
	d := open(t, e)
	for name, g := range map[string]Guard{"free": {}, "PIN": {PIN: []byte("pin-of-alice")}} {
		uri, public := newKey(t, d, hsm.KindP256, g)
		path := strings.TrimPrefix(uri, "tpm:")
		if err := d.Close(); err != nil { // the emulator speaks to one at a time
			t.Fatal(err)
		}
		message, signature := filepath.Join(t.TempDir(), "m"), filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(message, []byte("message"), 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{"dgst", "-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2", "-sha256", "-sign", path, "-out", signature}
		if len(g.PIN) > 0 {
			args = append(args, "-passin", "pass:"+string(g.PIN))
		}
		cmd := exec.Command("openssl", append(args, message)...)
		cmd.Env = append(os.Environ(), "TPM2OPENSSL_TCTI=swtpm:path="+strings.TrimPrefix(e.Path, "unix:"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: openssl: %v\n%s", name, err, out)
		} else if sig, err := os.ReadFile(signature); err != nil {
			t.Error(err)
		} else if err := hsm.VerifyMessage(public.(*ecdsa.PublicKey), []byte("message"), sig); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		d = open(t, e)
	}
}

func TestKeyFileRefusals(t *testing.T) {
	d := open(t, swtpm.New(t))
	ctx := t.Context()
	dir := t.TempDir()
	uri := "tpm:" + filepath.Join(dir, "new.pem")
	for name, c := range map[string]struct {
		uri  string
		kind hsm.Kind
		g    Guard
	}{
		"Ed25519":             {uri, hsm.KindEd25519, Guard{}},
		"no kind":             {uri, "", Guard{}},
		"a long PIN":          {uri, hsm.KindP256, Guard{PIN: bytes.Repeat([]byte("1"), 33)}},
		"a PIN ending in 0":   {uri, hsm.KindP256, Guard{PIN: []byte{'1', 0}}},
		"a PIN with a 0":      {uri, hsm.KindP256, Guard{PIN: []byte{'1', 0, '2'}}},
		"PCR 24":              {uri, hsm.KindP256, Guard{PCRs: []int{24}}},
		"PCRs twice":          {uri, hsm.KindP256, Guard{PCRs: []int{7, 7}}},
		"PCRs never measured": {uri, hsm.KindP256, Guard{PCRs: []int{0}}},
		"a file: URI":         {"file:" + filepath.Join(dir, "new.pem"), hsm.KindP256, Guard{}},
		"no directory":        {"tpm:/nowhere/key.pem", hsm.KindP256, Guard{}},
	} {
		if _, err := d.Generate(ctx, c.uri, c.kind, c.g); err == nil {
			t.Errorf("%s: made a key", name)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%d files were left behind: %v", len(entries), err)
	}
	if _, err := d.Generate(ctx, uri, hsm.KindP256, Guard{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Generate(ctx, uri, hsm.KindP256, Guard{}); err == nil {
		t.Error("a key was overwritten")
	}
	if info, err := os.Stat(filepath.Join(dir, "new.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v: %v", info.Mode(), err)
	}
	if _, err := d.Decrypter(ctx, uri, nil, Access{}); err == nil {
		t.Error("a signing key agrees")
	}
	if _, err := d.Sealer(ctx, uri, Access{}); err == nil {
		t.Error("a signing key seals")
	}
	if _, err := d.Key(ctx, "tpm:"+filepath.Join(dir, "none.pem"), nil, Access{}); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("no file: %v, want ErrGone", err)
	}
	other := open(t, swtpm.New(t))
	if _, err := other.Key(ctx, uri, nil, Access{}); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("another TPM: %v, want ErrWrongIdentity", err)
	}
	if err := d.ChangePIN(ctx, uri, []byte("1"), []byte("2")); err == nil {
		t.Error("a key without a PIN got one")
	}
}

func TestPINOfKeyFile(t *testing.T) {
	d := open(t, swtpm.New(t))
	ctx := t.Context()
	extendPCR(t, d, 7, "keys")
	for name, g := range map[string]Guard{"PIN": {PIN: []byte(testPIN)}, "PIN and PCRs": {PIN: []byte(testPIN), PCRs: []int{7}}} {
		uri, _ := newKey(t, d, hsm.KindP256, g)
		if err := sign(ctx, openKey(t, d, uri, Access{})); err == nil {
			t.Errorf("%s: signed without a PIN", name)
		}
		if err := d.ChangePIN(ctx, uri, []byte(testPIN), []byte("another")); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := sign(ctx, openKey(t, d, uri, pin("another", true))); err != nil {
			t.Errorf("%s: the new PIN: %v", name, err)
		}
		if err := sign(ctx, openKey(t, d, uri, pin(testPIN, true))); !errors.Is(err, hsm.ErrWrongPIN) {
			t.Errorf("%s: the old PIN: %v, want ErrWrongPIN", name, err)
		}
	}
	if n := loaded(t, d); n != 0 {
		t.Errorf("%d objects and sessions were left in the TPM", n)
	}
}

// A session would know a PIN with a zero byte in it only up to that byte. It is
// refused, old or new, before the TPM counts it as a wrong one.
func TestFaultZeroInPIN(t *testing.T) {
	d := open(t, swtpm.New(t))
	uri, _ := newKey(t, d, hsm.KindP256, Guard{PIN: []byte(testPIN)})
	if err := d.ChangePIN(t.Context(), uri, []byte(testPIN), []byte("a\x00bc")); err == nil {
		t.Error("a key got a pin that no session knows")
	}
	if err := sign(t.Context(), openKey(t, d, uri, pin(testPIN[:4]+"\x00", true))); err == nil || errors.Is(err, hsm.ErrWrongPIN) {
		t.Errorf("%v, want a refusal before it is sent", err)
	}
	if left, of, err := d.Tries(t.Context()); err != nil || left != of {
		t.Errorf("%d of %d tries left: %v", left, of, err)
	}
	if err := sign(t.Context(), openKey(t, d, uri, pin(testPIN, true))); err != nil {
		t.Error(err)
	}
}

// A refused PIN costs one try, however often it is asked for after that; the
// last try before the TPM locks is left alone where nobody is there; and then
// it locks for every key.
func TestFaultLockOut(t *testing.T) {
	d := open(t, swtpm.New(t))
	ctx := t.Context()
	uri, _ := newKey(t, d, hsm.KindP256, Guard{PIN: []byte(testPIN)})
	other, _ := newKey(t, d, hsm.KindP256, Guard{PIN: []byte("of bob")})
	free, _ := newKey(t, d, hsm.KindP256, Guard{})
	_, most, err := d.Tries(ctx)
	if err != nil || most < 2 {
		t.Fatalf("%d tries: %v", most, err)
	}
	for n := most - 1; n > 0; n-- {
		k := openKey(t, d, uri, pin("wrong", false))
		for range 3 {
			if err := sign(ctx, k); !errors.Is(err, hsm.ErrWrongPIN) {
				t.Fatalf("a wrong PIN: %v, want ErrWrongPIN", err)
			}
		}
		if left, _, err := d.Tries(ctx); left != n || err != nil {
			t.Fatalf("%d tries are left, want %d: %v", left, n, err)
		}
	}
	var asked atomic.Int64
	count := func(attended bool, p string) Access {
		a := pin(p, attended)
		source := a.PIN
		a.PIN = func(ctx context.Context, prompt string) (*secret.Buffer, error) {
			asked.Add(1)
			if !strings.Contains(prompt, "LAST TRY") {
				t.Errorf("prompt is %q", prompt)
			}
			return source(ctx, prompt)
		}
		return a
	}
	for range 3 {
		if err := sign(ctx, openKey(t, d, uri, count(false, testPIN))); !errors.Is(err, hsm.ErrLocked) {
			t.Errorf("the last try, unattended: %v, want ErrLocked", err)
		}
	}
	if left, _, err := d.Tries(ctx); left != 1 || err != nil || asked.Load() != 0 {
		t.Fatalf("%d tries are left, %d PINs were asked for: %v", left, asked.Load(), err)
	}
	if err := sign(ctx, openKey(t, d, uri, count(true, "wrong"))); !errors.Is(err, hsm.ErrWrongPIN) || asked.Load() != 1 {
		t.Errorf("the last try, wrong: %v after %d questions", err, asked.Load())
	}
	for name, locked := range map[string]string{"its key": uri, "another key": other} {
		if err := sign(ctx, openKey(t, d, locked, count(true, testPIN))); !errors.Is(err, hsm.ErrLocked) {
			t.Errorf("locked, %s: %v, want ErrLocked", name, err)
		}
	}
	if asked.Load() != 1 {
		t.Error("a locked TPM's key asked for its PIN")
	}
	if err := sign(ctx, openKey(t, d, free, Access{})); err != nil {
		t.Errorf("a key without a PIN: %v", err)
	}
	if err := d.Run(ctx, "reset the lock-out", resetLockOut); err != nil {
		t.Fatal(err)
	}
	if err := sign(ctx, openKey(t, d, uri, pin(testPIN, false))); err != nil {
		t.Errorf("after a reset: %v", err)
	}
}

// Many use a key at once for the first time, and its PIN is wrong: that is one
// try. When it is right, all go on.
func TestFaultWrongPINOfMany(t *testing.T) {
	d := open(t, swtpm.New(t))
	ctx := t.Context()
	uri, _ := newKey(t, d, hsm.KindP256, Guard{PIN: []byte(testPIN)})
	for p, want := range map[string]error{"wrong": hsm.ErrWrongPIN, testPIN: nil} {
		k := openKey(t, d, uri, pin(p, true))
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				if err := sign(ctx, k); !errors.Is(err, want) {
					t.Errorf("%v, want %v", err, want)
				}
			})
		}
		all.Wait()
	}
	if left, of, err := d.Tries(ctx); left != of-1 || err != nil {
		t.Errorf("%d of %d tries are left, want one spent: %v", left, of, err)
	}
}

// resetLockOut is TPM2_DictionaryAttackLockReset (Part 3, section 25.2) with the
// empty lock-out authorisation, which go-tpm does not have.
func resetLockOut(tr transport.TPM) error {
	command := []byte{0x80, 2, 0, 0, 0, 27, 0, 0, 1, 0x39, 0x40, 0, 0, 0x0a, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0}
	rsp, err := tr.Send(command)
	if err == nil && (len(rsp) < 10 || !bytes.Equal(rsp[6:10], make([]byte, 4))) {
		err = errors.New("the TPM refused")
	}
	return err
}

// The PCRs change under a key that is bound to them: it refuses, no PIN is spent
// on it, and it works again in the boot it was made in.
func TestFaultPCRDrift(t *testing.T) {
	e := swtpm.New(t)
	d := open(t, e)
	ctx := t.Context()
	extendPCR(t, d, 7, "keys")
	g := Guard{PIN: []byte(testPIN), PCRs: []int{7}}
	signing, _ := newKey(t, d, hsm.KindP256, g)
	sealing, _ := newKey(t, d, hsm.KindSeal, g)
	s, err := d.Sealer(ctx, sealing, pin(testPIN, false))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Seal(ctx, []byte("share"), nil)
	if err != nil {
		t.Fatal(err)
	}
	k := openKey(t, d, signing, pin(testPIN, false))
	extendPCR(t, d, 7, "something else")
	for range 5 { // sessions of refusals must not pile up
		if err := sign(ctx, k); !errors.Is(err, hsm.ErrDenied) {
			t.Errorf("sign: %v, want ErrDenied", err)
		}
		if b, err := s.Unseal(ctx, sealed, nil); !errors.Is(err, hsm.ErrDenied) || b != nil {
			t.Errorf("unseal: %v, want ErrDenied", err)
		}
	}
	if n := loaded(t, d); n != 0 {
		t.Errorf("%d objects and sessions were left in the TPM", n)
	}
	if left, of, err := d.Tries(ctx); left != of || err != nil {
		t.Errorf("%d of %d tries are left: %v", left, of, err)
	}
	d.Close()
	e.Reset(t)
	d = open(t, e)
	extendPCR(t, d, 7, "keys")
	if s, err = d.Sealer(ctx, sealing, pin(testPIN, false)); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Unseal(ctx, sealed, nil); err != nil || string(b) != "share" {
		t.Errorf("in the right boot: %q, %v", b, err)
	}
}

// The emulator dies in the middle of commands by keys with PINs. Each says that
// it is gone, no PIN is lost, and a new connection signs.
func TestFaultKilledUnderPIN(t *testing.T) {
	e := swtpm.New(t)
	d := open(t, e)
	uri, public := newKey(t, d, hsm.KindP256, Guard{PIN: []byte(testPIN)})
	k := openKey(t, d, uri, pin(testPIN, false))
	var all sync.WaitGroup
	var signed atomic.Int64
	errs := make([]error, 8)
	for i := range errs {
		all.Go(func() {
			for errs[i] == nil {
				if errs[i] = sign(context.Background(), k); errs[i] == nil {
					signed.Add(1)
				}
			}
		})
	}
	for signed.Load() < 20 && t.Context().Err() == nil {
		if err := sign(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	for _, err := range errs {
		if !errors.Is(err, hsm.ErrGone) {
			t.Errorf("killed: %v, want ErrGone", err)
		}
	}
	e.Reset(t)
	d = open(t, e)
	again, err := d.Key(t.Context(), uri, public, pin(testPIN, false))
	if err != nil {
		t.Fatal(err)
	}
	if err := sign(t.Context(), again); err != nil {
		t.Error(err)
	}
}

// Whoever copies a key file and sits at its TPM still wants the PIN; whoever
// edits the file to drop the PIN or the PCRs gets a key that does not load or
// does not work.
func TestAttackEditedKeyFile(t *testing.T) {
	d := open(t, swtpm.New(t))
	ctx := t.Context()
	extendPCR(t, d, 7, "keys")
	uri, _ := newKey(t, d, hsm.KindP256, Guard{PIN: []byte(testPIN), PCRs: []int{7}})
	honest, err := readKeyFile(strings.TrimPrefix(uri, "tpm:"))
	if err != nil {
		t.Fatal(err)
	}
	edit := func(change func(*keyFile)) string {
		f := *honest
		change(&f)
		path := filepath.Join(t.TempDir(), "edited.pem")
		if err := f.write(path, true); err != nil {
			t.Fatal(err)
		}
		return "tpm:" + path
	}
	for name, change := range map[string]func(*keyFile){
		"no PIN":            func(f *keyFile) { f.emptyAuth = true },
		"no PCRs":           func(f *keyFile) { f.pcrs = nil },
		"other PCRs":        func(f *keyFile) { f.pcrs = []int{8} },
		"neither":           func(f *keyFile) { f.pcrs, f.emptyAuth = nil, true },
		"a PIN is enough":   func(f *keyFile) { f.pcrs, f.public.ObjectAttributes.UserWithAuth = nil, true },
		"tries not counted": func(f *keyFile) { f.public.ObjectAttributes.NoDA = true },
		"another policy":    func(f *keyFile) { f.public.AuthPolicy.Buffer = make([]byte, 32) },
		"may leave":         func(f *keyFile) { f.public.ObjectAttributes.FixedTPM = false },
	} {
		k, err := d.Key(ctx, edit(change), nil, pin("wrong", true))
		if err == nil {
			err = sign(ctx, k)
		}
		if err == nil || errors.Is(err, hsm.ErrLocked) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
		if err := d.Run(ctx, "reset the lock-out", resetLockOut); err != nil {
			t.Fatal(err)
		}
	}
	// One who goes past this package learns from the TPM that the policy fails.
	o, err := d.loadUnder(ctx, "load", Blob{Public: tpm2.Marshal(honest.public), Private: honest.private}, d.fileRoot)
	if err != nil {
		t.Fatal(err)
	}
	err = d.Run(ctx, "sign without the policy", func(tr transport.TPM) error {
		return d.session(tr, encryptIn, []byte(testPIN), func(s tpm2.Session) error {
			return o.Use(tr, func(h tpm2.NamedHandle) error {
				_, err := signDigest(tr, tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s}, make([]byte, 32))
				return err
			})
		})
	})
	if err == nil {
		t.Error("the PIN alone signed with a key that is bound to PCRs")
	}
}

func FuzzKeyFile(f *testing.F) {
	public, err := newObject(p256Template(tpm2.TPMAObject{FixedTPM: true}))
	if err != nil {
		f.Fatal(err)
	}
	for _, k := range []keyFile{
		{emptyAuth: true, public: public.public, private: []byte{1, 2, 3}},
		{root: make([]byte, nameSize), pcrs: []int{4, 7}, public: public.public, private: []byte{1}},
		{sealed: true, emptyAuth: true, pcrs: []int{0, 23}, public: public.public},
	} {
		text, err := k.marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := parseKeyFile(text)
		if err != nil {
			return
		}
		again, err := k.marshal()
		if err != nil {
			t.Fatal(err)
		}
		same, err := parseKeyFile(again)
		if err != nil {
			t.Fatalf("read %+v, and not what was written of it: %v", k, err)
		}
		third, err := same.marshal()
		if err != nil || !bytes.Equal(again, third) {
			t.Fatalf("%q and %q: %v", again, third, err)
		}
	})
}
