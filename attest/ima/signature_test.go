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
	"encoding/hex"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// signedBelow are rules that allow what the keys signed below a path.
func signedBelow(t testing.TB, below string, keys *Keyring) Rules {
	t.Helper()
	ders, err := keys.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return Rules{Signed: []Signed{{below, ders}}}
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
	judge, err := NewJudge(signedBelow(t, "/", keys))
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

// Each rule has its own path and its own keys; nothing else makes a signature count.
func TestSignedRules(t *testing.T) {
	r, e := newKeys(t)
	rules := signedBelow(t, "/usr/", mustKeyring(t, r.Public()))
	rules.Signed = append(rules.Signed, signedBelow(t, "/opt/vendor/", mustKeyring(t, e.Public())).Signed...)
	rules.Digests = []string{"sha256:" + strings.Repeat("0", 64)}
	judge, err := NewJudge(rules)
	if err != nil {
		t.Fatal(err)
	}
	relabelled := func(sig []byte) []byte { // the key id is under no signature
		sig = bytes.Clone(sig)
		sig[keyID] ^= 1
		return sig
	}
	ours, theirs := sign(t, r, 4, crypto.SHA256, sum32[:]), sign(t, e, 4, crypto.SHA256, sum32[:])
	for _, tt := range []struct {
		name  string
		entry made
		want  string // empty: allowed
	}{
		{"ours", file("/usr/bin/a", sum32, ours), ""},
		{"ours again", file("/usr/bin/a", sum32, ours), ""},
		{"ours at another path", file("/usr/lib/b", sum32, ours), ""},
		{"ours with another key id", file("/usr/bin/a", sum32, relabelled(ours)), ""},
		{"AttackRememberedUnderAnotherType", file("/usr/bin/a", sum32, append([]byte{5}, ours[1:]...)), "type 5"},
		{"theirs", file("/opt/vendor/a", sum32, theirs), ""},
		{"unsigned, digest named", file("/usr/bin/c", [32]byte{}, nil), ""},
		{"AttackOursElsewhere", file("/opt/vendor/a", sum32, ours), "none of 1 keys made it"},
		{"AttackTheirsElsewhere", file("/usr/bin/a", sum32, theirs), "none of 1 keys made it"},
		{"AttackOutsideAnyRule", file("/home/x/a", sum32, ours), "no rule allows it"},
		{"AttackUpAndOut", file("/usr/../home/a", sum32, ours), "no rule allows it"},
		{"AttackNotBelow", file("/usr", sum32, ours), "no rule allows it"},
		{"AttackUnsigned", file("/usr/bin/a", sum32, nil), "has none"},
		{"AttackRememberedForAnotherDigest", file("/usr/bin/a", [32]byte{9}, ours), "none of 1 keys made it"},
	} {
		entry := parseOne(t, tt.entry)
		err := judge.Check([]Entry{entry})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if n := judge.goods.Load(); n != 2 { // of the two rules: a signature is of content, not of a path
		t.Errorf("%d good signatures are remembered, want 2", n)
	}
}

func TestSignedRulesRefused(t *testing.T) {
	r, _ := newKeys(t)
	good := signedBelow(t, "/usr/", mustKeyring(t, r.Public())).Signed[0]
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := x509.MarshalPKIXPublicKey(short.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		rule Signed
		want string
	}{
		"no key":        {Signed{Below: "/usr/"}, "0 keys"},
		"no path":       {Signed{Keys: good.Keys}, "begins and ends in /"},
		"a file":        {Signed{"/usr/bin/a", good.Keys}, "begins and ends in /"},
		"relative":      {Signed{"usr/", good.Keys}, "begins and ends in /"},
		"no key at all": {Signed{"/usr/", [][]byte{{1, 2, 3}}}, "key 0"},
		"a weak key":    {Signed{"/usr/", [][]byte{weak}}, "1024 bits"},
	} {
		if _, err := NewJudge(Rules{Signed: []Signed{tt.rule}}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	if _, err := NewJudge(Rules{Signed: slices.Repeat([]Signed{good}, maxSigned+1)}); err == nil {
		t.Error("any number of rules is taken")
	}
}

// What evmctl of ima-evm-utils signs is what counts on real machines.
func TestSignaturesOfEvmctl(t *testing.T) {
	if _, err := exec.LookPath("evmctl"); err != nil {
		t.Skip("no evmctl here: install ima-evm-utils")
	}
	r, _ := newKeys(t)
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{r, e} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		keyFile := filepath.Join(t.TempDir(), "key.pem")
		if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("evmctl", "sign_hash", "--hashalgo", "sha256", "--key", keyFile)
		cmd.Stdin = strings.NewReader(hex.EncodeToString(sum32[:]) + "  /usr/bin/a\n")
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Fields(string(out))
		signature, err := hex.DecodeString(words[len(words)-1])
		if err != nil {
			t.Fatal(err)
		}
		judge, err := NewJudge(signedBelow(t, "/usr/", mustKeyring(t, key.Public())))
		if err != nil {
			t.Fatal(err)
		}
		if err := judge.Check([]Entry{parseOne(t, file("/usr/bin/a", sum32, signature))}); err != nil {
			t.Error(err)
		}
		if err := judge.Check([]Entry{parseOne(t, file("/usr/bin/a", [32]byte{9}, signature))}); err == nil {
			t.Error("another digest passes under it")
		}
	}
}
