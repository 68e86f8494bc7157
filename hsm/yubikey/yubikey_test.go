package yubikey_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/yubikey"
)

var now = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

// authority certifies.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// under makes an authority that a certifies; a root if a is nil.
func (a *authority) under(t testing.TB, name string, ca bool) *authority {
	b := &authority{t: t, key: newKey(t)}
	by := a
	if a == nil {
		by = b
	}
	b.cert = by.certify(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: ca, BasicConstraintsValid: true}, &b.key.PublicKey)
	return b
}

func (a *authority) certify(c *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	a.t.Helper()
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(1), now.AddDate(-1, 0, 0), now.AddDate(1, 0, 0)
	parent := a.cert
	if parent == nil {
		parent = c
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, c, parent, public, a.key))(a.t)))(a.t)
}

// statement is the certificate of a key in slot 9c of a YubiKey.
type statement struct {
	subject    string
	extensions []pkix.Extension
}

func extension(n int, value ...byte) pkix.Extension {
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, n}, Value: value}
}

// genuine has the extensions of the certificate of a YubiKey 5 with firmware 5.4.3.
func genuine() statement {
	return statement{"YubiKey PIV Attestation 9c", []pkix.Extension{extension(3, 5, 4, 3), extension(7, 2, 4, 0, 0xe2, 0x56, 0x22), extension(8, 3, 2), extension(9, 1)}}
}

// with replaces an extension.
func (s statement) with(e pkix.Extension) statement {
	s.extensions = slices.Clone(s.extensions)
	for i := range s.extensions {
		if s.extensions[i].Id.Equal(e.Id) {
			s.extensions[i] = e
		}
	}
	return s
}

// without leaves one out.
func (s statement) without(n int) statement {
	s.extensions = slices.DeleteFunc(slices.Clone(s.extensions), func(e pkix.Extension) bool { return e.Id.Equal(extension(n).Id) })
	return s
}

func (s statement) by(a *authority, public crypto.PublicKey) *x509.Certificate {
	return a.certify(&x509.Certificate{Subject: pkix.Name{CommonName: s.subject}, ExtraExtensions: s.extensions}, public)
}

func pool(certs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func TestVerify(t *testing.T) {
	root := (*authority)(nil).under(t, "Maker Root", true)
	middle := root.under(t, "Maker PIV", true)
	device := middle.under(t, "Maker PIV Attestation", true)
	key := newKey(t)
	want := yubikey.Statement{Maker: "CN=Maker Root", Serial: 14833186, Firmware: "5.4.3", Slot: "9c", PIN: "always", Touch: "always"}
	leaf := genuine().by(device, &key.PublicKey)
	for name, test := range map[string]struct {
		chain         []*x509.Certificate
		intermediates *x509.CertPool
	}{
		"whole chain":        {[]*x509.Certificate{leaf, device.cert, middle.cert}, nil},
		"with the root":      {[]*x509.Certificate{leaf, device.cert, middle.cert, root.cert}, nil},
		"middle of the site": {[]*x509.Certificate{leaf, device.cert}, pool(middle.cert)},
	} {
		got, err := yubikey.Verify(test.chain, pool(root.cert), test.intermediates, &key.PublicKey, now)
		if err != nil || *got != want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, want)
		}
	}
	for policy, want := range map[[2]byte][2]string{{1, 1}: {"never", "never"}, {2, 3}: {"once", "cached"}} {
		got, err := yubikey.Verify([]*x509.Certificate{genuine().with(extension(8, policy[:]...)).by(device, &key.PublicKey), device.cert, middle.cert}, pool(root.cert), nil, &key.PublicKey, now)
		if err != nil || got.PIN != want[0] || got.Touch != want[1] {
			t.Errorf("policies %v: %+v, %v, want %v", policy, got, err, want)
		}
	}
}

func TestAttackForgedStatement(t *testing.T) {
	root := (*authority)(nil).under(t, "Maker Root", true)
	device := root.under(t, "Maker PIV Attestation", true)
	stranger := (*authority)(nil).under(t, "Maker Root", true)
	key, other := newKey(t), newKey(t)
	say := func(s statement) []*x509.Certificate {
		return []*x509.Certificate{s.by(device, &key.PublicKey), device.cert}
	}
	if _, err := yubikey.Verify(say(genuine()), pool(root.cert), nil, &key.PublicKey, now); err != nil {
		t.Fatal(err)
	}
	named := genuine()
	named.subject = "YubiKey OPGP Attestation SIG"
	noCA := root.under(t, "Maker PIV Attestation", false)
	for name, test := range map[string]struct {
		chain []*x509.Certificate
		roots *x509.CertPool
		at    time.Time
		wrong bool
	}{
		"of another key":         {chain: []*x509.Certificate{genuine().by(device, &other.PublicKey), device.cert}, wrong: true},
		"of nobody's maker":      {chain: []*x509.Certificate{genuine().by(stranger, &key.PublicKey), stranger.cert}},
		"root brought along":     {chain: []*x509.Certificate{genuine().by(stranger, &key.PublicKey), stranger.cert}, roots: pool()},
		"device's missing":       {chain: say(genuine())[:1]},
		"the device's own":       {chain: []*x509.Certificate{device.cert, root.cert}, wrong: false},
		"device that is no CA":   {chain: []*x509.Certificate{genuine().by(noCA, &key.PublicKey), noCA.cert}},
		"expired":                {chain: say(genuine()), at: now.AddDate(2, 0, 0)},
		"another application's":  {chain: say(named)},
		"no firmware":            {chain: say(genuine().without(3))},
		"no serial":              {chain: say(genuine().without(7))},
		"no policies":            {chain: say(genuine().without(8))},
		"short firmware":         {chain: say(genuine().with(extension(3, 5, 4)))},
		"serial is no INTEGER":   {chain: say(genuine().with(extension(7, 0, 0xe2, 0x56, 0x22)))},
		"serial zero":            {chain: say(genuine().with(extension(7, 2, 1, 0)))},
		"serial negative":        {chain: say(genuine().with(extension(7, 2, 1, 0xff)))},
		"serial of 33 bits":      {chain: say(genuine().with(extension(7, 2, 5, 1, 0, 0, 0, 0)))},
		"serial and more":        {chain: say(genuine().with(extension(7, 2, 1, 1, 0)))},
		"unknown PIN policy":     {chain: say(genuine().with(extension(8, 4, 1)))},
		"zero PIN policy":        {chain: say(genuine().with(extension(8, 0, 1)))},
		"zero touch policy":      {chain: say(genuine().with(extension(8, 1, 0)))},
		"one policy":             {chain: say(genuine().with(extension(8, 1)))},
		"nothing":                {},
		"too many certificates":  {chain: append(say(genuine()), root.cert, root.cert, root.cert, root.cert)},
		"a critical extra thing": {chain: say(statement{genuine().subject, append(genuine().extensions, pkix.Extension{Id: extension(99).Id, Critical: true, Value: []byte{5, 0}})})},
	} {
		t.Run(name, func(t *testing.T) {
			if test.roots == nil {
				test.roots = pool(root.cert)
			}
			if test.at.IsZero() {
				test.at = now
			}
			got, err := yubikey.Verify(test.chain, test.roots, nil, &key.PublicKey, test.at)
			if err == nil || got != nil {
				t.Fatalf("believed: %+v", got)
			}
			if errors.Is(err, hsm.ErrWrongIdentity) != test.wrong {
				t.Errorf("got %v; ErrWrongIdentity is expected: %v", err, test.wrong)
			}
		})
	}
	if _, err := yubikey.Verify(say(genuine()), nil, nil, &key.PublicKey, now); err == nil {
		t.Error("believed with no roots named")
	}
	if _, err := yubikey.Verify(say(genuine()), pool(root.cert), nil, nil, now); err == nil {
		t.Error("believed about no key")
	}
}
