package ima

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"strings"
	"testing"
)

// sign returns a file signature in the kernel's format.
func sign(t testing.TB, key crypto.Signer, number byte, h crypto.Hash, digest []byte) []byte {
	t.Helper()
	sig, err := key.Sign(rand.Reader, digest, h)
	if err != nil {
		t.Fatal(err)
	}
	b := []byte{signatureType, signatureVersion, number, 1, 2, 3, 4}
	b = binary.BigEndian.AppendUint16(b, uint16(len(sig)))
	return append(b, sig...)
}

func newKeys(t testing.TB) (*rsa.PrivateKey, *ecdsa.PrivateKey) {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return r, e
}

func mustKeyring(t testing.TB, keys ...crypto.PublicKey) *Keyring {
	t.Helper()
	k, err := NewKeyring(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSignatures(t *testing.T) {
	r, e := newKeys(t)
	keys := mustKeyring(t, r.Public(), e.Public())
	digest384 := make([]byte, 48)
	for _, key := range []crypto.Signer{r, e} {
		good := sign(t, key, 4, crypto.SHA256, sum32[:])
		entry := parseOne(t, file("/bin/a", sum32, good))
		if err := keys.Verify(&entry); err != nil {
			t.Error(err)
		}
		long := parseOne(t, made{pcr: PCR, template: "ima-sig", fields: [][]byte{digestNG("sha384", digest384), []byte("/bin/a\x00"), sign(t, key, 5, crypto.SHA384, digest384)}})
		if err := keys.Verify(&long); err != nil {
			t.Error(err)
		}
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 1
			entry := parseOne(t, file("/bin/a", sum32, bad))
			if err := keys.Verify(&entry); (err == nil) != (i >= 3 && i < 7) { // the key id is a hint
				t.Errorf("byte %d changed: %v", i, err)
			}
		}
	}
}

func TestAttackSignatures(t *testing.T) {
	r, e := newKeys(t)
	other, _ := newKeys(t)
	keys := mustKeyring(t, r.Public(), e.Public())
	good := sign(t, e, 4, crypto.SHA256, sum32[:])
	sha1Digest := sha1Of([]byte("x"))
	edit := func(i int, v byte) []byte { b := bytes.Clone(good); b[i] = v; return b }
	violation := file("/bin/a", sum32, good)
	violation.violation = true
	tests := []struct {
		name   string
		entry  made
		reason string
	}{
		{"none", file("/bin/a", sum32, nil), "has none"},
		{"header cut off", file("/bin/a", sum32, good[:8]), "8 bytes"},
		{"cut off", file("/bin/a", sum32, good[:len(good)-1]), "left"},
		{"trailing byte", file("/bin/a", sum32, append(bytes.Clone(good), 0)), "left"},
		{"EVM signature", file("/bin/a", sum32, edit(0, 5)), "type 5"},
		{"version 1", file("/bin/a", sum32, edit(1, 1)), "version 1"},
		{"version 3", file("/bin/a", sum32, edit(1, 3)), "version 3"},
		{"named SHA-1", file("/bin/a", sum32, edit(2, 2)), "hash algorithm 2"},
		{"named sha512", file("/bin/a", sum32, edit(2, 6)), "hash algorithm 6"},
		{"another file's", file("/bin/a", [32]byte{7}, good), "none of 2 keys"},
		{"another's key", file("/bin/a", sum32, sign(t, other, 4, crypto.SHA256, sum32[:])), "none of 2 keys"},
		{"violation", violation, "violation"},
		{"SHA-1", made{pcr: PCR, template: "ima-sig", fields: [][]byte{digestNG("sha1", sha1Digest), []byte("/bin/a\x00"), sign(t, r, 2, crypto.SHA1, sha1Digest)}}, "hash algorithm 2"},
		{"fs-verity", made{pcr: PCR, template: "ima-sigv2", fields: [][]byte{append([]byte("verity:"), digestNG("sha256", sum32[:])...), []byte("/bin/a\x00"), good}}, "fs-verity"},
	}
	judge, err := NewJudge(Rules{Signed: true}, keys)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		entry := parseOne(t, tt.entry)
		if err := keys.Verify(&entry); err == nil || !strings.Contains(err.Error(), tt.reason) {
			t.Errorf("%s: got %v, wanted %q", tt.name, err, tt.reason)
		}
		if err := judge.Check([]Entry{entry}); err == nil {
			t.Errorf("%s: allowed", tt.name)
		}
	}
	entry := parseOne(t, file("/bin/a", sum32, good))
	if err := judge.Check([]Entry{entry}); err != nil {
		t.Error(err)
	}
	if err := (*Keyring)(nil).Verify(&entry); err == nil {
		t.Error("verified without a keyring")
	}
}

func TestKeyring(t *testing.T) {
	r, e := newKeys(t)
	var text []byte
	for _, key := range []crypto.PublicKey{r.Public(), e.Public()} {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})...)
	}
	keys, err := ParseKeyring(text)
	if err != nil || len(keys.keys) != 2 {
		t.Fatalf("%v, %v", keys, err)
	}
	entry := parseOne(t, file("/bin/a", sum32, sign(t, e, 4, crypto.SHA256, sum32[:])))
	if err := keys.Verify(&entry); err != nil {
		t.Error(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short := *r
	short.N = r.N.Rsh(r.N, 1)
	for what, keys := range map[string][]crypto.PublicKey{
		"none": nil, "P-224": {p224.Public()}, "Ed25519": {ed.Public()}, "RSA of 2047 bits": {&rsa.PublicKey{N: short.N, E: 65537}},
	} {
		if _, err := NewKeyring(keys...); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if _, err := ParseKeyring(append(text, "-----BEGIN PUBLIC KEY-----\nAAAA\n"...)); err == nil {
		t.Error("a key that is cut off was passed over")
	}
	for _, text := range []string{"", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if _, err := ParseKeyring([]byte(text)); err == nil {
			t.Errorf("%q: accepted", text)
		}
	}
}
