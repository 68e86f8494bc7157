package hsm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
)

func TestClassOrder(t *testing.T) {
	order := []hsm.Class{hsm.ClassAttested, hsm.ClassWitnessed, hsm.ClassSealed, hsm.ClassSelfDeclared, hsm.ClassSoftware}
	for i, a := range order {
		for j, b := range order {
			if got := a.AtLeast(b); got != (i <= j) {
				t.Errorf("%s at least %s: %v", a, b, got)
			}
			if worst := hsm.Worst(a, b); worst != order[max(i, j)] {
				t.Errorf("worst of %s and %s is %s", a, b, worst)
			}
		}
		for _, unknown := range []hsm.Class{"", "Attested", "other"} {
			if a.AtLeast(unknown) || unknown.AtLeast(a) || unknown.AtLeast(unknown) || unknown.Valid() {
				t.Errorf("unknown class %q counts for something beside %s", unknown, a)
			}
			if hsm.Worst(a, unknown) != "" || hsm.Worst(unknown, a) != "" {
				t.Errorf("unknown class %q was overlooked beside %s", unknown, a)
			}
		}
	}
	if hsm.Worst() != "" {
		t.Error("nothing has a class")
	}
}

func TestErrorsAreDistinct(t *testing.T) {
	all := []error{hsm.ErrWrongPIN, hsm.ErrLocked, hsm.ErrGone, hsm.ErrSealed, hsm.ErrAuthExpired, hsm.ErrDenied, hsm.ErrWrongIdentity, hsm.ErrTimeout}
	for i, a := range all {
		for j, b := range all {
			if errors.Is(fmt.Errorf("backend: %w", a), b) != (i == j) {
				t.Errorf("%v is %v: %v", a, b, i != j)
			}
		}
	}
}

func TestContextError(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	if err := hsm.ContextError(ctx); err != nil {
		t.Errorf("a living context: %v", err)
	}
	cancel()
	if err := hsm.ContextError(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("a cancelled context: %v", err)
	}
	ctx, cancel = context.WithDeadline(context.Background(), time.Unix(1, 0))
	defer cancel()
	if err := hsm.ContextError(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("a late context: %v", err)
	}
}

// liar is a key that signs with another key than it shows.
type liar struct {
	crypto.Signer
	shows crypto.PublicKey
}

func (l liar) Public() crypto.PublicKey { return l.shows }
func (l liar) Info() hsm.Info           { return hsm.Info{URI: "file:liar", Class: hsm.ClassSoftware} }
func (l liar) SignContext(_ context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return l.Sign(rand.Reader, digest, opts)
}

func newP256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAttackSignatureByAnotherKey(t *testing.T) {
	honest, other := newP256(t), newP256(t)
	if _, err := hsm.SignMessage(context.Background(), liar{honest, &honest.PublicKey}, []byte("m")); err != nil {
		t.Errorf("an honest key: %v", err)
	}
	if sig, err := hsm.SignMessage(context.Background(), liar{honest, &other.PublicKey}, []byte("m")); sig != nil || !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("a key that signs for another: %x, %v, want ErrWrongIdentity", sig, err)
	}
	if _, err := hsm.SignMessage(context.Background(), nil, []byte("m")); err == nil {
		t.Error("signed without a key")
	}
}

// hasher is a key that takes whole messages and refuses digests.
type hasher struct{ liar }

func (h hasher) SignContext(context.Context, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("it was given a digest")
}

func (h hasher) SignMessageContext(ctx context.Context, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	return h.liar.SignContext(ctx, digest[:], crypto.SHA256)
}

func TestMessageSigner(t *testing.T) {
	honest, other := newP256(t), newP256(t)
	var k hsm.MessageSigner = hasher{liar{honest, &honest.PublicKey}}
	sig, err := hsm.SignMessage(context.Background(), k, []byte("m"))
	if err != nil {
		t.Fatalf("a key that hashes itself: %v", err)
	}
	if err := hsm.VerifyMessage(&honest.PublicKey, []byte("m"), sig); err != nil {
		t.Error(err)
	}
	k = hasher{liar{honest, &other.PublicKey}}
	if sig, err := hsm.SignMessage(context.Background(), k, []byte("m")); sig != nil || !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("one that signs for another key: %x, %v, want ErrWrongIdentity", sig, err)
	}
}

func TestVerifyMessageRefuses(t *testing.T) {
	k := newP256(t)
	message := []byte("m")
	sig, err := hsm.SignMessage(context.Background(), liar{k, &k.PublicKey}, message)
	if err != nil {
		t.Fatal(err)
	}
	if err := hsm.VerifyMessage(&k.PublicKey, message, sig); err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, pub := range map[string]crypto.PublicKey{
		"nil": nil, "typed nil": (*ecdsa.PublicKey)(nil), "empty": &ecdsa.PublicKey{}, "P-384": &p384.PublicKey,
		"by value": k.PublicKey, "private": k, "short Ed25519": ed25519.PublicKey{1}, "nil Ed25519": ed25519.PublicKey(nil),
		"zero Ed25519": ed25519.PublicKey(make([]byte, 32)), "text": "key",
	} {
		if err := hsm.VerifyMessage(pub, message, sig); err == nil {
			t.Errorf("verified under a key that is %s", name)
		}
	}
	integer := func(b ...byte) []byte { return append([]byte{2, byte(len(b))}, b...) }
	sequence := func(parts ...[]byte) []byte {
		body := bytes.Join(parts, nil)
		return append([]byte{0x30, byte(len(body))}, body...)
	}
	order := append([]byte{0}, elliptic.P256().Params().N.Bytes()...)
	for name, bad := range map[string][]byte{
		"nil": nil, "trailing byte": append(bytes.Clone(sig), 0), "cut": sig[:len(sig)-1],
		"r = s = 0": sequence(integer(0), integer(0)), "r = 0": sequence(integer(0), integer(1)), "s = 0": sequence(integer(1), integer(0)),
		"r negative": sequence(integer(0xff), integer(1)), "s = n": sequence(integer(1), integer(order...)), "r = n": sequence(integer(order...), integer(1)),
		"long length": append([]byte{0x30, 0x81, byte(len(sig) - 2)}, sig[2:]...),
		"raw r and s": make([]byte, 64),
	} {
		if err := hsm.VerifyMessage(&k.PublicKey, message, bad); err == nil {
			t.Errorf("verified a signature that is %s", name)
		}
	}
}

// Under a public key of small order, (R, s) = (s·B, s) fits every message whose
// challenge the order divides; for the identity that is every message. crypto/ed25519 accepts it.
func TestAttackSmallOrderEd25519(t *testing.T) {
	identity := append([]byte{1}, make([]byte, 31)...)
	forged := append(bytes.Clone(identity), make([]byte, 32)...) // R = identity, s = 0
	if !ed25519.Verify(identity, []byte("any message"), forged) {
		t.Fatal("this is not the attack that is meant: the standard library refuses it")
	}
	if err := hsm.VerifyMessage(ed25519.PublicKey(identity), []byte("any message"), forged); err == nil {
		t.Error("a signature that nobody made was verified")
	}
	for _, text := range []string{ // the other encodings of points of order 1, 2, 4 and 8, and one that is not canonical
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		pub, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := hsm.Fingerprint(ed25519.PublicKey(pub)); err == nil {
			t.Errorf("%s has a fingerprint", text)
		}
	}
}

// openssl computes the same fingerprint from the same key.
func TestFingerprintAsOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("needs openssl")
	}
	private, err := exec.Command("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256").Output()
	if err != nil {
		t.Fatal(err)
	}
	public := func(args ...string) []byte {
		cmd := exec.Command("openssl", args...)
		cmd.Stdin = bytes.NewReader(private)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	der := public("pkey", "-pubout", "-outform", "DER")
	digest := exec.Command("openssl", "dgst", "-sha256", "-r")
	digest.Stdin = bytes.NewReader(der)
	out, err := digest.Output()
	if err != nil {
		t.Fatal(err)
	}
	want, _, _ := strings.Cut(string(out), " ")
	signing, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), der[len(der)-65:])
	if err != nil {
		t.Fatal(err)
	}
	agreeing, err := ecdh.P256().NewPublicKey(der[len(der)-65:])
	if err != nil {
		t.Fatal(err)
	}
	for _, pub := range []any{signing, agreeing} {
		if got, err := hsm.Fingerprint(pub); err != nil || hex.EncodeToString(got[:]) != want {
			t.Errorf("fingerprint of a %T is %x (%v), openssl says %s", pub, got, err, want)
		}
	}
}

func TestHPKEPrivateRefuses(t *testing.T) {
	if _, err := hsm.HPKEPrivate(context.Background(), nil); err == nil {
		t.Error("took no key for an HPKE key")
	}
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hsm.HPKEPrivate(context.Background(), x25519{k}); err == nil {
		t.Error("took an X25519 key")
	}
}

type x25519 struct{ *ecdh.PrivateKey }

func (x x25519) Info() hsm.Info { return hsm.Info{} }
func (x x25519) ECDHContext(_ context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	return x.ECDH(peer)
}

// What a Verifier was made of may be changed afterwards; what it verifies under
// was checked.
func TestAttackVerifierKeyChanged(t *testing.T) {
	p256 := newP256(t)
	digest, message := sha256.Sum256([]byte("m")), []byte("m")
	ecdsaSig, err := ecdsa.SignASN1(rand.Reader, p256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	ed, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := p256.PublicKey
	for _, k := range []struct {
		public     crypto.PublicKey
		input, sig []byte
		opts       crypto.SignerOpts
		change     func()
	}{
		{&public, digest[:], ecdsaSig, crypto.SHA256, func() { public = newP256(t).PublicKey }},
		{ed, message, ed25519.Sign(private, message), crypto.Hash(0), func() { clear(ed); ed[0] = 1 }},
	} {
		v, err := hsm.NewVerifier(k.public)
		if err != nil {
			t.Fatal(err)
		}
		k.change()
		if err := v.Verify(k.input, k.sig, k.opts); err != nil {
			t.Errorf("%T, changed: %v", k.public, err)
		}
		if v.Verify(k.input, k.sig[1:], k.opts) == nil || v.Verify([]byte("other"), k.sig, k.opts) == nil || v.Verify(k.input, k.sig, nil) == nil {
			t.Errorf("%T: verified something else", k.public)
		}
		if (hsm.Verifier{}).Verify(k.input, k.sig, k.opts) == nil {
			t.Errorf("%T: verified under no key", k.public)
		}
	}
	if _, err := hsm.NewVerifier(ed); err == nil {
		t.Error("a key of small order was taken")
	}
	for name, public := range map[string]crypto.PublicKey{"nil": nil, "a security key": &hsm.SecurityKey{}, "private": p256} {
		if _, err := hsm.NewVerifier(public); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
