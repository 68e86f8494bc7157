package sshagent_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/hsm/sshagent"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// fidoAgent is OpenSSH's agent with an authenticator in software behind it.
type fidoAgent struct {
	*opensshAgent
	*hsmtest.Provider
}

func startFIDO(t testing.TB) *fidoAgent {
	t.Helper()
	p := hsmtest.NewProvider(t)
	return &fidoAgent{startAgent(t, "-P", p.Dir+"/*"), p}
}

// enrol makes a key in the authenticator, gives it to the agent and returns its
// URI.
func (f *fidoAgent) enrol(t testing.TB, keyType, application string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	f.run(t, nil, "ssh-keygen", "-q", "-t", keyType, "-w", f.Path, "-O", "application="+application, "-N", "", "-C", "test", "-f", file)
	f.run(t, nil, "ssh-add", "-q", "-S", f.Path, file)
	return "ssh-agent:" + strings.Fields(f.run(t, nil, "ssh-keygen", "-l", "-f", file))[1]
}

var fidoTypes = []string{"ecdsa-sk", "ed25519-sk"}

func TestFIDOConformance(t *testing.T) {
	f := startFIDO(t)
	for _, keyType := range fidoTypes {
		uri := f.enrol(t, keyType, "ssh:keyturn")
		t.Run(keyType, func(t *testing.T) {
			hsmtest.Run(t, hsmtest.Backend{Class: hsm.ClassSelfDeclared, Security: func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error) {
				return sshagent.Open(ctx, f.config(), uri, pinned)
			}})
		})
	}
}

// A document is signed by a key in an authenticator, and says who was there.
func TestFIDOSignsDocument(t *testing.T) {
	f := startFIDO(t)
	for _, keyType := range fidoTypes {
		k := f.open(t, f.enrol(t, keyType, "ssh:keyturn"))
		public := k.Public().(*hsm.SecurityKey)
		if public.Application != "ssh:keyturn" {
			t.Errorf("%s: enrolled for %q", keyType, public.Application)
		}
		for says, want := range map[string]hsm.Presence{"01 7": {Counter: 7}, "05 ffffffff": {Verified: true, Counter: 1<<32 - 1}} {
			f.Says(says)
			env, err := dsse.Sign(context.Background(), k, []byte(`{"a":"document"}`))
			check(t, err)
			read, err := dsse.Parse(env.Line())
			check(t, err)
			check(t, read.Verify(public))
			if p, err := public.Verify(dsse.PAE(read.Payload), read.Sig); err != nil || p != want {
				t.Errorf("%s said %s: %+v, %v", keyType, says, p, err)
			}
		}
	}
}

func TestAttackFIDOPresence(t *testing.T) {
	f := startFIDO(t)
	for _, keyType := range fidoTypes {
		k := f.open(t, f.enrol(t, keyType, "ssh:"))
		for what, says := range map[string]string{"untouched": "00 7", "verified and not touched": "04 7", "copied to a cloud": "19 7", "with extensions": "81 7", "without a counter": "01 0"} {
			f.Says(says)
			if err := sign(k); !errors.Is(err, hsm.ErrPresence) || errors.Is(err, hsm.ErrWrongIdentity) {
				t.Errorf("%s: %s: %v, want ErrPresence", keyType, what, err)
			}
		}
		f.Says("01 8")
		check(t, sign(k))
	}
}

// A key is pinned with its application: the same point for another one, or
// alone, is another key.
func TestAttackFIDOApplication(t *testing.T) {
	f := startFIDO(t)
	for _, keyType := range fidoTypes {
		uri := f.enrol(t, keyType, "ssh:keyturn")
		public := f.open(t, uri).Public().(*hsm.SecurityKey)
		for what, pinned := range map[string]crypto.PublicKey{"another application": &hsm.SecurityKey{Key: public.Key, Application: "ssh:"}, "the plain key": public.Key} {
			if _, err := sshagent.Open(context.Background(), f.config(), uri, pinned); !errors.Is(err, hsm.ErrWrongIdentity) {
				t.Errorf("%s: pinned to %s: %v, want ErrWrongIdentity", keyType, what, err)
			}
		}
	}
}

// The authenticator, or what is between, is taken away.
func TestFaultAuthenticatorGone(t *testing.T) {
	f := startFIDO(t)
	k := f.open(t, f.enrol(t, "ecdsa-sk", "ssh:"))
	check(t, sign(k))
	check(t, os.Rename(f.Path, f.Path+".away"))
	if err := sign(k); !errors.Is(err, hsm.ErrLocked) {
		t.Errorf("without its authenticator: %v, want ErrLocked", err)
	}
	check(t, os.Rename(f.Path+".away", f.Path))
	check(t, sign(k))
}

func TestFIDOKeyOfWebSiteRefused(t *testing.T) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	fido, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Type        string
		Public      []byte
		Application string
	}{ssh.KeyAlgoSKED25519, public, "example.com"}))
	check(t, err)
	config := (&hostile{keys: []*agent.Key{blobOf(fido)}}).serve(t)
	if _, err = sshagent.Open(context.Background(), config, "ssh-agent:"+ssh.FingerprintSHA256(fido), nil); err == nil || !strings.Contains(err.Error(), `"example.com"`) {
		t.Errorf("a web site's key: %v, want a refusal that says so", err)
	}
}

// An agent that does not have the authenticator.
func TestAttackForgedFIDOSignatures(t *testing.T) {
	a := hsmtest.NewEd25519Authenticator("ssh:")
	holder, err := ssh.ParsePublicKey(must(hsm.MarshalPublic(a.Public())))
	check(t, err)
	by := func(a *hsmtest.Authenticator) func([]byte) *ssh.Signature {
		return func(data []byte) *ssh.Signature {
			sig := must(a.SignMessageContext(context.Background(), data))
			return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: sig[:64], Rest: sig[64:]}
		}
	}
	right := by(a)
	h := &hostile{keys: []*agent.Key{blobOf(holder)}, answer: right}
	k, err := sshagent.Open(context.Background(), h.serve(t), "ssh-agent:"+ssh.FingerprintSHA256(holder), a.Public())
	check(t, err)
	check(t, sign(k))
	elsewhere := *a
	elsewhere.Application = "ssh:elsewhere"
	other := hsmtest.NewEd25519Authenticator("ssh:")
	plain := func(data []byte) []byte { return must(a.Private.Sign(nil, data, crypto.Hash(0))) }
	for name, answer := range map[string]func([]byte) *ssh.Signature{
		"over another message":     func(data []byte) *ssh.Signature { return right(append(data, 0)) },
		"for another application":  by(&elsewhere),
		"by another authenticator": by(other),
		"a plain signature":        func(data []byte) *ssh.Signature { return &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: plain(data)} },
		"a plain signature by the type's name": func(data []byte) *ssh.Signature {
			return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: plain(data)}
		},
		"a plain signature with flags": func(data []byte) *ssh.Signature {
			return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: plain(data), Rest: []byte{1, 0, 0, 0, 1}}
		},
		"without a counter":   func(data []byte) *ssh.Signature { s := right(data); s.Rest = s.Rest[:1]; return s },
		"with trailing bytes": func(data []byte) *ssh.Signature { s := right(data); s.Rest = append(s.Rest, 0); return s },
		"flags in the blob": func(data []byte) *ssh.Signature {
			s := right(data)
			s.Blob, s.Rest = append(s.Blob, s.Rest...), nil
			return s
		},
		"of the other type": func(data []byte) *ssh.Signature { s := right(data); s.Format = ssh.KeyAlgoSKECDSA256; return s },
		"empty":             func([]byte) *ssh.Signature { return &ssh.Signature{Format: ssh.KeyAlgoSKED25519} },
	} {
		h.answer = answer
		if sig, err := k.SignMessageContext(context.Background(), []byte("message")); sig != nil || !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: %x, %v, want ErrWrongIdentity", name, sig, err)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
