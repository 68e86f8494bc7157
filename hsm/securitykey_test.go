package hsm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
)

// authenticators has one of each type.
func authenticators() map[string]*hsmtest.Authenticator {
	return map[string]*hsmtest.Authenticator{
		ssh.KeyAlgoSKECDSA256: hsmtest.NewECDSAAuthenticator("ssh:keyturn"), ssh.KeyAlgoSKED25519: hsmtest.NewEd25519Authenticator("ssh:"),
	}
}

func signed(t testing.TB, a *hsmtest.Authenticator) []byte {
	t.Helper()
	sig, err := a.SignMessageContext(context.Background(), []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// Another implementation reads the public keys, names them alike, and takes the
// signatures once they are written as SSH does.
func TestSecurityKeyIsSSHs(t *testing.T) {
	for keyType, a := range authenticators() {
		wire, err := hsm.MarshalPublic(a.Public())
		if err != nil {
			t.Fatal(err)
		}
		other, err := ssh.ParsePublicKey(wire)
		if err != nil || other.Type() != keyType {
			t.Fatalf("%s: read as %v, %v", keyType, other, err)
		}
		fingerprint, err := hsm.Fingerprint(a.Public())
		if err != nil || ssh.FingerprintSHA256(other) != "SHA256:"+base64.RawStdEncoding.EncodeToString(fingerprint[:]) {
			t.Errorf("%s: fingerprint %x, %v; SSH has %s", keyType, fingerprint, err, ssh.FingerprintSHA256(other))
		}
		sig := signed(t, a)
		inner, rest := sig[:len(sig)-5], sig[len(sig)-5:]
		if keyType == ssh.KeyAlgoSKECDSA256 {
			var rs struct{ R, S *big.Int }
			if _, err := asn1.Unmarshal(inner, &rs); err != nil {
				t.Fatal(err)
			}
			inner = ssh.Marshal(rs)
		}
		if err := other.Verify([]byte("message"), &ssh.Signature{Format: keyType, Blob: inner, Rest: rest}); err != nil {
			t.Errorf("%s: SSH refuses the signature: %v", keyType, err)
		}
	}
}

func TestSecurityKeyVerify(t *testing.T) {
	for name, a := range authenticators() {
		k := a.Public().(*hsm.SecurityKey)
		for flags, verified := range map[byte]bool{1: false, 5: true} {
			a.Flags, a.Counter = flags, 1<<31+7
			p, err := k.Verify([]byte("message"), signed(t, a))
			if err != nil || p != (hsm.Presence{Verified: verified, Counter: 1<<31 + 7}) {
				t.Errorf("%s, flags %#x: %+v, %v", name, flags, p, err)
			}
		}
		again, err := hsm.ParseSecurityKey(must(hsm.MarshalPublic(k)))
		if err != nil || !again.Equal(k) || k.Equal(k.Key) || again.Equal((*hsm.SecurityKey)(nil)) {
			t.Errorf("%s: read again: %v", name, err)
		}
		if err := hsm.CheckInput(k, make([]byte, 32), crypto.SHA256); err == nil {
			t.Errorf("%s: takes a digest", name)
		}
	}
}

// Signatures that the key did make, over the message, and that count for
// nothing.
func TestAttackSecurityKeyPresence(t *testing.T) {
	for name, a := range authenticators() {
		for what, say := range map[string][2]uint32{
			"untouched":                    {0x00, 7},
			"verified and not touched":     {0x04, 7},
			"of a key that can be copied":  {0x09, 7},
			"of a key that was copied":     {0x19, 7},
			"with extensions":              {0x81, 7},
			"with a credential":            {0x41, 7},
			"with a flag nobody knows":     {0x03, 7},
			"with a flag that none knows":  {0x21, 7},
			"of one that does not count":   {0x01, 0},
			"verified, and does not count": {0x05, 0},
		} {
			a.Flags, a.Counter = byte(say[0]), say[1]
			if err := hsm.VerifyMessage(a.Public(), []byte("message"), signed(t, a)); !errors.Is(err, hsm.ErrPresence) {
				t.Errorf("%s: %s: %v, want ErrPresence", name, what, err)
			}
		}
	}
}

func TestAttackSecurityKeySignature(t *testing.T) {
	for name, a := range authenticators() {
		pub := a.Public().(*hsm.SecurityKey)
		good := signed(t, a)
		inner, tail := good[:len(good)-5], good[len(good)-5:]
		edit := func(change func(sig []byte)) []byte {
			sig := slices.Clone(good)
			change(sig)
			return sig
		}
		elsewhere := *a
		elsewhere.Application = "ssh:elsewhere"
		other := hsmtest.NewECDSAAuthenticator(pub.Application)
		if name == ssh.KeyAlgoSKED25519 {
			other = hsmtest.NewEd25519Authenticator(pub.Application)
		}
		plain, hash := []byte("message"), crypto.Hash(0)
		if name == ssh.KeyAlgoSKECDSA256 {
			sum := sha256.Sum256(plain)
			plain, hash = sum[:], crypto.SHA256
		}
		ordinary := must(a.Private.Sign(nil, plain, hash))
		for what, sig := range map[string][]byte{
			"none":                         nil,
			"flags and counter alone":      tail,
			"without flags and counter":    inner,
			"without the counter":          good[:len(good)-4],
			"half a counter":               good[:len(good)-2],
			"trailing bytes":               append(slices.Clone(good), 0),
			"flags before the signature":   slices.Concat(tail, inner),
			"another application":          signed(t, &elsewhere),
			"another key":                  signed(t, other),
			"a plain signature":            ordinary,
			"a plain signature and a tail": slices.Concat(ordinary, tail),
			"presence added":               edit(func(sig []byte) { sig[len(sig)-5] ^= 4 }),
			"another counter":              edit(func(sig []byte) { sig[len(sig)-1]++ }),
		} {
			if err := hsm.VerifyMessage(pub, []byte("message"), sig); err == nil || errors.Is(err, hsm.ErrPresence) {
				t.Errorf("%s: %s: %v, want a signature that does not verify", name, what, err)
			}
		}
		// Nor does the key without its application, or with another one.
		for _, sig := range [][]byte{good, inner} {
			if err := hsm.VerifyMessage(pub.Key, []byte("message"), sig); err == nil {
				t.Errorf("%s: verifies under the plain key", name)
			}
		}
		if err := hsm.VerifyMessage(&hsm.SecurityKey{Key: pub.Key, Application: "ssh:elsewhere"}, []byte("message"), good); err == nil {
			t.Errorf("%s: verifies under another application", name)
		}
		if err := hsm.VerifyMessage(pub, []byte("messagf"), good); err == nil {
			t.Errorf("%s: verifies over another message", name)
		}
	}
}

func TestSecurityKeyIsAnotherKey(t *testing.T) {
	a := hsmtest.NewECDSAAuthenticator("ssh:keyturn")
	k := a.Public().(*hsm.SecurityKey)
	for what, other := range map[string]crypto.PublicKey{"the plain key": k.Key, "another application": &hsm.SecurityKey{Key: k.Key, Application: "ssh:"}} {
		if err := hsm.SamePublic(k, other); !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s is the same key: %v", what, err)
		}
		if err := hsm.SamePublic(other, k); !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s is the same key: %v", what, err)
		}
	}
}

func TestSecurityKeyRefused(t *testing.T) {
	a := hsmtest.NewECDSAAuthenticator("ssh:")
	point := a.Private.Public()
	for name, k := range map[string]any{
		"nil":                    (*hsm.SecurityKey)(nil),
		"no key":                 &hsm.SecurityKey{Application: "ssh:"},
		"no point":               &hsm.SecurityKey{Key: (*ecdsa.PublicKey)(nil), Application: "ssh:"},
		"no application":         &hsm.SecurityKey{Key: point},
		"a web site's":           &hsm.SecurityKey{Key: point, Application: "example.com"},
		"a long application":     &hsm.SecurityKey{Key: point, Application: "ssh:" + strings.Repeat("a", 61)},
		"an unseen application":  &hsm.SecurityKey{Key: point, Application: "ssh:a\x00"},
		"an unequal application": &hsm.SecurityKey{Key: point, Application: "ssh:ä"},
		"one in another":         &hsm.SecurityKey{Key: a.Public(), Application: "ssh:"},
		"small order":            &hsm.SecurityKey{Key: ed25519.PublicKey(append([]byte{1}, make([]byte, 31)...)), Application: "ssh:"},
		"short":                  &hsm.SecurityKey{Key: ed25519.PublicKey(make([]byte, 31)), Application: "ssh:"},
	} {
		if err := hsm.CheckPublic(k); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if b, err := hsm.MarshalPublic(k); err == nil {
			t.Errorf("%s: written as %x", name, b)
		}
	}
	if err := hsm.CheckPublic(&hsm.SecurityKey{Key: point, Application: "ssh:" + strings.Repeat("a", 60)}); err != nil {
		t.Errorf("the longest application: %v", err)
	}
}

func TestParseSecurityKeyRefuses(t *testing.T) {
	str := func(fields ...string) (out []byte) {
		for _, f := range fields {
			out = append(binary.BigEndian.AppendUint32(out, uint32(len(f))), f...)
		}
		return out
	}
	p256 := hsmtest.NewECDSAAuthenticator("ssh:")
	point := string(must(p256.Private.Public().(*ecdsa.PublicKey).Bytes()))
	ed := string(hsmtest.NewEd25519Authenticator("ssh:").Private.Public().(ed25519.PublicKey))
	if _, err := hsm.ParseSecurityKey(str(ssh.KeyAlgoSKECDSA256, "nistp256", point, "ssh:")); err != nil {
		t.Fatal(err)
	}
	good := str(ssh.KeyAlgoSKED25519, ed, "ssh:")
	if _, err := hsm.ParseSecurityKey(good); err != nil {
		t.Fatal(err)
	}
	compressed := string([]byte{2 + point[64]&1}) + point[1:33]
	for name, wire := range map[string][]byte{
		"nothing":             nil,
		"a plain key":         str(ssh.KeyAlgoED25519, ed),
		"a plain key's name":  str(ssh.KeyAlgoED25519, ed, "ssh:"),
		"no application":      str(ssh.KeyAlgoSKED25519, ed),
		"empty application":   str(ssh.KeyAlgoSKED25519, ed, ""),
		"a field more":        str(ssh.KeyAlgoSKED25519, ed, "ssh:", ""),
		"bytes behind":        append(slices.Clone(good), 0),
		"cut":                 good[:len(good)-1],
		"another curve":       str(ssh.KeyAlgoSKECDSA256, "nistp384", point, "ssh:"),
		"compressed":          str(ssh.KeyAlgoSKECDSA256, "nistp256", compressed, "ssh:"),
		"off the curve":       str(ssh.KeyAlgoSKECDSA256, "nistp256", point[:64]+string([]byte{point[64] ^ 1}), "ssh:"),
		"a long length":       append([]byte{0xff, 0xff, 0xff, 0xff}, good[4:]...),
		"of small order":      str(ssh.KeyAlgoSKED25519, "\x01"+strings.Repeat("\x00", 31), "ssh:"),
		"a certificate":       str("sk-ssh-ed25519-cert-v01@openssh.com", ed, "ssh:"),
		"a web site's":        str(ssh.KeyAlgoSKED25519, ed, "example.com"),
		"a WebAuthn key type": str("webauthn-sk-ecdsa-sha2-nistp256@openssh.com", "nistp256", point, "ssh:"),
	} {
		if k, err := hsm.ParseSecurityKey(wire); err == nil {
			t.Errorf("%s: read as %+v", name, k)
		}
	}
}

// What is read is written as it was.
func FuzzParseSecurityKey(f *testing.F) {
	for _, a := range authenticators() {
		f.Add(must(hsm.MarshalPublic(a.Public())))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		k, err := hsm.ParseSecurityKey(wire)
		if err != nil {
			return
		}
		if again, err := hsm.MarshalPublic(k); err != nil || !bytes.Equal(again, wire) {
			t.Errorf("%x is written as %x, %v", wire, again, err)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Bytes that OpenSSH 9.2's agent and its ssh-sk-helper gave for two keys of
// ssh-keygen -O application=ssh:keyturn, as documents carry them. Recorded
// 2026-11-26; they verify for ever.
func TestGoldenSecurityKeys(t *testing.T) {
	const message = "DSSEv1 28 application/vnd.in-toto+json 2 {}"
	for _, golden := range []struct{ public, fingerprint, sig string }{{
		"AAAAInNrLWVjZHNhLXNoYTItbmlzdHAyNTZAb3BlbnNzaC5jb20AAAAIbmlzdHAyNTYAAABBBLfGdFpzUjcMsaMf2aiLywAkSP17zBulVOB3GhAzAK41avIHHSWjtNhyQBVo4H4ZwWC2/cxHHmVGndc9uRmS9aEAAAALc3NoOmtleXR1cm4=",
		"096930f3389670489633f6a96a2eb139deb869d25d2bcd40652e25d02bee0bba",
		"MEYCIQC9acsleaSE0sQaFbylLzllDdy/M/wVQTKQm78kUkctSwIhAKMKZSL1qvObWetXCZIVyJ2byg7Ex8i1LvoDxo9AhOt1BQAAAB0=",
	}, {
		"AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIIEv2Bb6YGjzl6Sd4XFQo1DxZWFYqsWKQKf8aH5eAqhbAAAAC3NzaDprZXl0dXJu",
		"addac656366f08b169dfffcb080375327118f4bdbc299003101a62880d333b2d",
		"Mgb8z6wPMFNvKqTNVx1PVZ0UYZ1n+FtJ27aI2n6Z2hPGiO0ZbHqJOPpzF6KRAi85UEI6spo54klyNxdLRpytBAUAAAAd",
	}} {
		k, err := hsm.ParseSecurityKey(must(base64.StdEncoding.DecodeString(golden.public)))
		if err != nil {
			t.Fatal(err)
		}
		if fingerprint := must(hsm.Fingerprint(k)); fmt.Sprintf("%x", fingerprint) != golden.fingerprint {
			t.Errorf("fingerprint %x, want %s", fingerprint, golden.fingerprint)
		}
		p, err := k.Verify([]byte(message), must(base64.StdEncoding.DecodeString(golden.sig)))
		if err != nil || k.Application != "ssh:keyturn" || p != (hsm.Presence{Verified: true, Counter: 29}) {
			t.Errorf("for %q: %+v, %v", k.Application, p, err)
		}
	}
}
