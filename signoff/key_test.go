package signoff_test

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// ofWebSite is a key that a browser enrolled.
func ofWebSite() signoff.PublicKey {
	k := fido(ed("x"))
	k.Encoded = append(bytes.TrimSuffix(k.Encoded, []byte("ssh:keyturn")), "example.org"...)
	return k
}

// Who signs with an authenticator signs only, and of either type.
func TestAuthenticatorsSignOnly(t *testing.T) {
	for _, key := range []signoff.PublicKey{fido(p256("dave")), fido(ed("dave"))} {
		c := charter()
		c.People = append(c.People, signoff.Person{Name: "dave", Organisation: "lab", Roles: []string{"security"}, Token: signoff.Token{Signing: key}})
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		if c.People[3].HoldsShare() {
			t.Error("an authenticator holds a share")
		}
		c.Threshold = 4
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "3 of 4 people have an exchange key") {
			t.Errorf("counted as a holder: %v", err)
		}
	}
}

// A key has one spelling: its encoding stands in the member that is its own.
func TestAttackKeySpelledOtherwise(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString
	der, wire := b64(p256("alice").Encoded), b64(fido(ed("alice")).Encoded)
	for _, k := range []signoff.PublicKey{p256("alice"), fido(ed("alice")), fido(p256("alice"))} {
		b, err := dsse.Encode(k)
		if err != nil {
			t.Fatal(err)
		}
		var again signoff.PublicKey
		if err := dsse.Decode(b, &again); err != nil || !bytes.Equal(again.Encoded, k.Encoded) || again.Class != k.Class {
			t.Errorf("%s is read as %x %s, %v", b, again.Encoded, again.Class, err)
		}
	}
	for name, text := range map[string]string{
		"SSH's as DER":   `{"spki":"` + wire + `","class":"software"}`,
		"DER as SSH's":   `{"ssh":"` + der + `","class":"software"}`,
		"both":           `{"spki":"` + der + `","ssh":"` + wire + `","class":"software"}`,
		"twice":          `{"ssh":"` + wire + `","ssh":"` + wire + `","class":"software"}`,
		"another member": `{"ssh":"` + wire + `","class":"software","application":"ssh:"}`,
		"another case":   `{"SSH":"` + wire + `","class":"software"}`,
		"a word":         `"` + wire + `"`,
	} {
		var k signoff.PublicKey
		if err := dsse.Decode([]byte(text), &k); err == nil {
			t.Errorf("%s: read as %x", name, k.Encoded)
		}
	}
	// An empty member beside the right one is read, by a founding file, and makes
	// no second spelling of a document.
	payload := string(write(t, samples()["request-people-fido"]))
	for _, spoiled := range []string{strings.Replace(payload, `{"ssh"`, `{"spki":"","ssh"`, 1), strings.Replace(payload, `"software"}`, `"software"},"exchange":{"ssh":"","class":""}`, 1)} {
		if _, err := signoff.Read([]byte(spoiled)); spoiled == payload || err == nil {
			t.Errorf("read: %s", spoiled)
		}
	}
}

// The same point alone, or for another application, is another key with
// another name.
func TestAuthenticatorsFingerprint(t *testing.T) {
	plain := p256("alice")
	pub, err := plain.Public()
	if err != nil {
		t.Fatal(err)
	}
	one, two := fido(plain), public(&hsm.SecurityKey{Key: pub, Application: "ssh:"})
	if a, b, c := plain.Fingerprint(), one.Fingerprint(), two.Fingerprint(); a == b || b == c || a == c {
		t.Errorf("fingerprints %s, %s, %s", a, b, c)
	}
	for _, k := range []signoff.PublicKey{plain, one, two} {
		pub, err := k.Public()
		if err != nil {
			t.Fatal(err)
		}
		if fp, err := hsm.Fingerprint(pub); err != nil || Digest(fp) != k.Fingerprint() {
			t.Errorf("%s is %x for package hsm, %v", k.Fingerprint(), fp, err)
		}
	}
}
