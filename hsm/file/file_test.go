package file

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
)

// newKey generates a key and returns its URI and path.
func newKey(t *testing.T, name string, kind hsm.Kind) (uri, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	uri = hsm.URI{Scheme: hsm.SchemeFile, Path: path}.String()
	if _, err := Generate(uri, kind); err != nil {
		t.Fatal(err)
	}
	return uri, path
}

func TestConformance(t *testing.T) {
	p256, _ := newKey(t, "p256", hsm.KindP256)
	ed, _ := newKey(t, "ed", hsm.KindEd25519)
	agree, _ := newKey(t, "ecdh", hsm.KindECDH)
	seal, _ := newKey(t, "seal", hsm.KindSeal)
	other, _ := newKey(t, "other", hsm.KindSeal)
	open := func(uri string) func(context.Context, crypto.PublicKey) (hsm.Key, error) {
		return func(_ context.Context, pinned crypto.PublicKey) (hsm.Key, error) { return Open(uri, pinned) }
	}
	openSealer := func(uri string) func(context.Context) (hsm.Sealer, error) {
		return func(context.Context) (hsm.Sealer, error) { return OpenSealer(uri) }
	}
	hsmtest.Run(t, hsmtest.Backend{
		Class:   hsm.ClassSoftware,
		P256:    open(p256),
		Ed25519: open(ed),
		Decrypter: func(_ context.Context, pinned *ecdh.PublicKey) (hsm.Decrypter, error) {
			return OpenDecrypter(agree, pinned)
		},
		Sealer:      openSealer(seal),
		OtherSealer: openSealer(other),
		Maker:       maker(t.TempDir()),
	})
}

func maker(dir string) *hsmtest.Maker {
	uri := func(name string) string {
		return hsm.URI{Scheme: hsm.SchemeFile, Path: filepath.Join(dir, name)}.String()
	}
	return &hsmtest.Maker{
		Kinds: []hsm.Kind{hsm.KindP256, hsm.KindEd25519, hsm.KindECDH, hsm.KindSeal},
		Generate: func(_ context.Context, name string, kind hsm.Kind) (any, error) {
			return Generate(uri(name), kind)
		},
		Open: func(_ context.Context, name string, kind hsm.Kind, pinned any) (any, error) {
			switch kind {
			case hsm.KindECDH:
				return OpenDecrypter(uri(name), pinned.(*ecdh.PublicKey))
			case hsm.KindSeal:
				return OpenSealer(uri(name))
			default:
				return Open(uri(name), pinned)
			}
		},
	}
}

func TestGenerateNeverOverwrites(t *testing.T) {
	uri, path := newKey(t, "k", hsm.KindP256)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Generate(uri, hsm.KindP256); !errors.Is(err, os.ErrExist) {
		t.Errorf("second key in one file: %v", err)
	}
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Error("the first key was changed")
	}
	if stat, _ := os.Stat(path); stat.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v", stat.Mode())
	}
}

func TestRefusedFiles(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(p384)
	if err != nil {
		t.Fatal(err)
	}
	_, good := newKey(t, "good", hsm.KindP256)
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		text []byte
		mode os.FileMode
	}{
		"readable by the group": {text, 0o640},
		"readable by all":       {text, 0o604},
		"empty":                 {nil, 0o600},
		"two keys":              {append(text, text...), 0o600},
		"another curve":         {pem.EncodeToMemory(&pem.Block{Type: privatePEM, Bytes: der}), 0o600},
		"not PKCS#8":            {pem.EncodeToMemory(&pem.Block{Type: privatePEM, Bytes: []byte("x")}), 0o600},
		"a short sealing key":   {pem.EncodeToMemory(&pem.Block{Type: sealPEM, Bytes: make([]byte, 31)}), 0o600},
		"too long":              {append(text, make([]byte, maxFile)...), 0o600},
	}
	for name, test := range tests {
		path := filepath.Join(t.TempDir(), "k")
		if err := os.WriteFile(path, test.text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, test.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open("file:"+path, nil); err == nil {
			t.Errorf("%s: opened", name)
		}
		if _, err := OpenDecrypter("file:"+path, nil); err == nil {
			t.Errorf("%s: opened for agreement", name)
		}
		if _, err := OpenSealer("file:" + path); err == nil {
			t.Errorf("%s: opened for sealing", name)
		}
	}
	for _, uri := range []string{"file:" + t.TempDir(), "tpm:" + good, good, ""} {
		if _, err := Open(uri, nil); err == nil {
			t.Errorf("opened %q", uri)
		}
	}
	if _, err := Open("file:/nowhere/key", nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("a missing file: %v, want ErrGone", err)
	}
}

func TestWrongUse(t *testing.T) {
	ed, _ := newKey(t, "ed", hsm.KindEd25519)
	if _, err := OpenDecrypter(ed, nil); err == nil {
		t.Error("an Ed25519 key was opened for agreement")
	}
	seal, _ := newKey(t, "seal", hsm.KindSeal)
	if _, err := Open(seal, nil); err == nil {
		t.Error("a sealing key was opened for signing")
	}
}

func TestOpenSSLKey(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("needs openssl")
	}
	for name, args := range map[string][]string{
		"P-256":   {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
		"Ed25519": {"genpkey", "-algorithm", "ED25519"},
	} {
		path := filepath.Join(t.TempDir(), "k.pem")
		if out, err := exec.Command("openssl", append(args, "-out", path)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		k, err := Open("file:"+path, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := hsm.SignMessage(context.Background(), k, []byte("m")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
