package hsm

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseURI(t *testing.T) {
	agent := "SHA256:" + strings.Repeat("A", 43)
	tests := []struct {
		in   string
		want URI
	}{
		{"pkcs11:token=alice", URI{Scheme: "pkcs11", Token: "alice"}},
		{"pkcs11:serial=0123;object=sign", URI{Scheme: "pkcs11", Serial: "0123", Object: "sign"}},
		{"pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial=a1;token=My%20token;object=%C3%A9?module-path=/usr/lib/softhsm/libsofthsm2.so",
			URI{Scheme: "pkcs11", Token: "My token", Serial: "a1", Manufacturer: "SoftHSM project", Model: "SoftHSM v2", Object: "é", ModulePath: "/usr/lib/softhsm/libsofthsm2.so"}},
		{"pkcs11:token=a%3Bb%3Dc%2Fd%3F", URI{Scheme: "pkcs11", Token: "a;b=c/d?"}},
		{"pkcs11:token=a+b", URI{Scheme: "pkcs11", Token: "a+b"}},
		{"tpm:/etc/keyturn/ak.tss", URI{Scheme: "tpm", Path: "/etc/keyturn/ak.tss"}},
		{"file:keys/alice.pem", URI{Scheme: "file", Path: "keys/alice.pem"}},
		{"file:///etc/k%20y.pem", URI{Scheme: "file", Path: "/etc/k y.pem"}},
		{"vault:transit/notary-1?version=3", URI{Scheme: "vault", Name: "notary-1", Version: 3}},
		{"ssh-agent:" + agent, URI{Scheme: "ssh-agent", Fingerprint: agent}},
	}
	for _, test := range tests {
		got, err := ParseURI(test.in)
		if err != nil {
			t.Errorf("%s: %v", test.in, err)
			continue
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.in, diff)
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	for _, in := range []string{
		"", ":", "pkcs11", "pkcs11:", "/etc/key.pem", "http://example.org/key", "PKCS11:token=a", "env:KEY",
		"pkcs11:object=sign",             // no token
		"pkcs11:token=",                  // empty
		"pkcs11:token=a;token=b",         // twice
		"pkcs11:token=a;slot-id=0",       // slots move
		"pkcs11:token=a;id=%01",          // not understood, so another key could be meant
		"pkcs11:token=a;x-vendor=1",      // likewise
		"pkcs11:token=a;type=private",    // likewise
		"pkcs11:token=my token",          // raw space
		"pkcs11:token=a%0Ab",             // control character
		"pkcs11:token=a%E2%80%AEb",       // bidirectional override
		"pkcs11:token=%FF",               // not UTF-8
		"pkcs11:token=%zz",               // bad escape
		"pkcs11:token=a?pin-value=1234",  // a PIN in a URI
		"pkcs11:token=a?pin-source=/pin", // likewise
		"pkcs11:token=a?module-name=softhsm2",
		"pkcs11:token=a?module-path=lib.so",
		"pkcs11:token=a?module-path=/usr/lib/../lib/m.so",
		"pkcs11:token=a?module-path=/m.so&module-path=/n.so",
		"pkcs11:token=a?", "pkcs11:token", "pkcs11:token=a;",
		"tpm:", "tpm:?", "file:/a/../b", "file:a//b", "file:/", "file://host/k", "file:////k", "file:k?mode=1", "file:%00", "file:..", "file:a%0a", "file:.",
		"vault:transit/k", "vault:transit/k?version=0", "vault:transit/k?version=-1", "vault:transit/k?version=01", "vault:transit/k?version=1&version=2",
		"vault:transit/../k?version=1", "vault:kv/k?version=1", "vault:transit/?version=1", "vault:transit/a/b?version=1", "vault:transit/k?version=9999999999",
		"ssh-agent:", "ssh-agent:MD5:00", "ssh-agent:SHA256:AAAA", "ssh-agent:SHA256:" + strings.Repeat("A", 42) + "B", "ssh-agent:SHA256:" + strings.Repeat("A", 44),
		"pkcs11:token=" + strings.Repeat("a", 3000),
	} {
		if u, err := ParseURI(in); err == nil {
			t.Errorf("%q was read as %+v", in, u)
		} else if !strings.HasPrefix(err.Error(), "hsm: ") {
			t.Errorf("%q: error without prefix: %v", in, err)
		}
	}
}

func TestAttackPINInURIIsNotRepeated(t *testing.T) {
	for _, in := range []string{
		"pkcs11:token=a?pin-value=73192", "pkcs11:token=a?PIN-VALUE=73192", "pkcs11:token=a;pin-value=73192", "pkcs11:token=a?pin-value=7319 73192",
		"pkcs11:token=a?pin-value=73192%zz", "other:token=a?pin-value=73192", "token=a?pin-value=73192",
	} {
		if _, err := ParseURI(in); err == nil || strings.Contains(err.Error(), "73192") {
			t.Errorf("%q: the error repeats the PIN, or there is none: %v", in, err)
		}
	}
}

// What String writes, ParseURI reads back, whatever a token calls itself.
func TestURIRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		label := rapid.StringMatching(`[ -~éß漢]{1,20}`)
		u := URI{Scheme: SchemePKCS11, Token: label.Draw(t, "token"), Object: label.Draw(t, "object")}
		if rapid.Bool().Draw(t, "full") {
			u.Serial, u.Manufacturer, u.Model = label.Draw(t, "serial"), label.Draw(t, "manufacturer"), label.Draw(t, "model")
			u.ModulePath = "/" + rapid.StringMatching(`[ -.0-~é]{3,20}`).Draw(t, "module") // no slash
		}
		got, err := ParseURI(u.String())
		if err != nil {
			t.Fatalf("%s: %v", u, err)
		}
		if diff := cmp.Diff(u, got); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", u, diff)
		}
	})
}

func FuzzParseURI(f *testing.F) {
	for _, s := range []string{"pkcs11:token=a%20b;object=c?module-path=/m.so", "tpm:/k", "file:a/b", "vault:transit/k?version=1", "ssh-agent:SHA256:" + strings.Repeat("A", 43)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s)
		if err != nil {
			return
		}
		again, err := ParseURI(u.String())
		if err != nil {
			t.Fatalf("%q was read, its canonical form %q not: %v", s, u, err)
		}
		if u != again {
			t.Fatalf("%q became %+v, then %+v", s, u, again)
		}
	})
}
