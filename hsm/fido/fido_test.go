package fido_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/fido"
	"github.com/keyturn/keyturn/hsm/hsmtest"
)

var (
	now       = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	challenge = []byte("a challenge of the ceremony")
)

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

// maker is a maker of authenticators.
type maker struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newMaker(t testing.TB) *maker {
	m := &maker{t: t, key: newKey(t)}
	m.cert = m.certify(&x509.Certificate{Subject: pkix.Name{CommonName: "Maker Root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, &m.key.PublicKey)
	return m
}

func (m *maker) certify(c *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	m.t.Helper()
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(1), now.AddDate(-1, 0, 0), now.AddDate(1, 0, 0)
	parent := m.cert
	if parent == nil {
		parent = c
	}
	der := must(x509.CreateCertificate(rand.Reader, c, parent, public, m.key))(m.t)
	return must(x509.ParseCertificate(der))(m.t)
}

func (m *maker) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(m.cert)
	return p
}

// leaf is the certificate of an authenticator of a model; nil is none said.
func (m *maker) leaf(public crypto.PublicKey, model []byte) *x509.Certificate {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "Authenticator", OrganizationalUnit: []string{"Authenticator Attestation"}}, BasicConstraintsValid: true}
	if model != nil {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 45724, 1, 1, 4}, Value: must(asn1.Marshal(model))(m.t)}}
	}
	return m.certify(c, public)
}

// OpenSSH writes what an authenticator attests, and it is read again.
func TestSSHKeygen(t *testing.T) {
	p, m, device := hsmtest.NewProvider(t), newMaker(t), newKey(t)
	p.Attests(device, m.leaf(&device.PublicKey, bytes.Repeat([]byte{'k'}, 16)).Raw)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("challenge"), challenge, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		keyType  string
		options  []string
		verified bool
	}{{"ecdsa-sk", nil, false}, {"ed25519-sk", nil, false}, {"ecdsa-sk", []string{"-O", "verify-required"}, true}} {
		name := test.keyType + strings.Join(test.options, "")
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("ssh-keygen", append(test.options, "-q", "-t", test.keyType, "-w", p.Path, "-O", "application=ssh:keyturn", "-O", "challenge="+at("challenge"),
				"-O", "write-attestation="+at(name+".attestation"), "-N", "", "-f", at(name))...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", cmd, err, out)
			}
			line := must(os.ReadFile(at(name + ".pub")))(t)
			parsed, _, _, _, err := ssh.ParseAuthorizedKey(line)
			if err != nil {
				t.Fatal(err)
			}
			public := must(hsm.ParseSecurityKey(parsed.Marshal()))(t)
			file := must(os.ReadFile(at(name + ".attestation")))(t)
			got, err := fido.Verify(file, challenge, m.roots(), nil, public, now)
			if want := (fido.Statement{Maker: "CN=Maker Root", Model: "6b6b6b6b-6b6b-6b6b-6b6b-6b6b6b6b6b6b", Verified: test.verified}); err != nil || *got != want {
				t.Errorf("got %+v, %v, want %+v", got, err, want)
			}
			if _, err := fido.Verify(file, append(challenge, 0), m.roots(), nil, public, now); err == nil {
				t.Error("attested for another challenge")
			}
		})
	}
}

// sample is all that an attestation is made of.
type sample struct {
	magic       string
	model       []byte
	application string
	flags       byte
	cose        map[int]any
	extensions  any
	tail        []byte
	reserved    string
}

func (s sample) data(t testing.TB) []byte {
	application := sha256.Sum256([]byte(s.application))
	handle := []byte("the handle of the key")
	b := append(application[:], s.flags, 0, 0, 0, 1)
	b = append(append(b, s.model...), 0, byte(len(handle)))
	b = append(append(b, handle...), must(cbor.Marshal(s.cose))(t)...)
	if s.extensions != nil {
		b = append(b, must(cbor.Marshal(s.extensions))(t)...)
	}
	return append(b, s.tail...)
}

func (s sample) file(t testing.TB, device *ecdsa.PrivateKey, cert []byte) []byte {
	data := s.data(t)
	hash := sha256.Sum256(challenge)
	digest := sha256.Sum256(append(bytes.Clone(data), hash[:]...))
	return ssh.Marshal(struct {
		Magic                        string
		Certificate, Signature, Data []byte
		Flags                        uint32
		Reserved                     string
	}{s.magic, cert, must(device.Sign(rand.Reader, digest[:], crypto.SHA256))(t), must(cbor.Marshal(data))(t), 0, s.reserved})
}

func genuine(t testing.TB) (sample, *hsm.SecurityKey) {
	k := must(newKey(t).PublicKey.Bytes())(t)
	public := &hsm.SecurityKey{Key: must(ecdsa.ParseUncompressedPublicKey(elliptic.P256(), k))(t), Application: "ssh:keyturn"}
	return sample{magic: "ssh-sk-attest-v01", model: bytes.Repeat([]byte{'k'}, 16), application: "ssh:keyturn", flags: 0x41,
		cose: map[int]any{1: 2, 3: -7, -1: 1, -2: k[1:33], -3: k[33:]}}, public
}

func TestVerify(t *testing.T) {
	m, device := newMaker(t), newKey(t)
	s, public := genuine(t)
	none := m.leaf(&device.PublicKey, nil)
	if _, err := fido.Verify(s.file(t, device, none.Raw), challenge, m.roots(), nil, public, now); err != nil {
		t.Errorf("a certificate without a model: %v", err)
	}
	s.flags, s.extensions = 0x41|0x80, map[string]any{"credProtect": 2}
	if _, err := fido.Verify(s.file(t, device, none.Raw), challenge, m.roots(), nil, public, now); err != nil {
		t.Errorf("with extensions: %v", err)
	}
}

// Nobody but an authenticator of a maker that is trusted attests to a key.
func TestAttackForgedAttestation(t *testing.T) {
	m, device := newMaker(t), newKey(t)
	cert := m.leaf(&device.PublicKey, bytes.Repeat([]byte{'k'}, 16)).Raw
	s, public := genuine(t)
	good := s.file(t, device, cert)
	if _, err := fido.Verify(good, challenge, m.roots(), nil, public, now); err != nil {
		t.Fatal(err)
	}
	other, otherKey := genuine(t)
	edit := func(f func(*sample)) []byte {
		e := s
		f(&e)
		return e.file(t, device, cert)
	}
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	stranger := newMaker(t)
	for name, test := range map[string]struct {
		file   []byte
		public *hsm.SecurityKey
		roots  *x509.CertPool
		at     time.Time
		wrong  bool // it is said to be another key
	}{
		"of another key":                {file: other.file(t, device, cert), wrong: true},
		"another key is asked about":    {file: good, public: otherKey, wrong: true},
		"for another application":       {file: edit(func(s *sample) { s.application = "ssh:other" }), wrong: true},
		"another application asked":     {file: good, public: &hsm.SecurityKey{Key: public.Key, Application: "ssh:other"}, wrong: true},
		"signed by another":             {file: s.file(t, newKey(t), cert)},
		"certificate of nobody's maker": {file: s.file(t, device, stranger.leaf(&device.PublicKey, nil).Raw)},
		"certificate of a PIV key":      {file: s.file(t, device, m.certify(&x509.Certificate{Subject: pkix.Name{CommonName: "YubiKey PIV Attestation 9a"}}, &device.PublicKey).Raw)},
		"no roots":                      {file: good, roots: x509.NewCertPool()},
		"the root attests itself":       {file: s.file(t, m.key, m.cert.Raw)},
		"the key attests itself":        {file: s.file(t, device, (&maker{t: t, key: device}).certify(&x509.Certificate{Subject: pkix.Name{CommonName: "self"}}, &device.PublicKey).Raw)},
		"certificate over P-384":        {file: s.file(t, device, m.leaf(&p384.PublicKey, nil).Raw)},
		"expired":                       {file: good, at: now.AddDate(2, 0, 0)},
		"nobody touched it":             {file: edit(func(s *sample) { s.flags = 0x40 })},
		"no key in it":                  {file: edit(func(s *sample) { s.flags = 0x01 })},
		"can be copied":                 {file: edit(func(s *sample) { s.flags |= 0x08 })},
		"another model":                 {file: edit(func(s *sample) { s.model = make([]byte, 16) })},
		"older format":                  {file: edit(func(s *sample) { s.magic = "ssh-sk-attest-v00" })},
		"something reserved":            {file: edit(func(s *sample) { s.reserved = "x" })},
		"bytes behind the key":          {file: edit(func(s *sample) { s.tail = []byte{0} })},
		"extensions promised":           {file: edit(func(s *sample) { s.flags |= 0x80 })},
		"extensions unpromised":         {file: edit(func(s *sample) { s.extensions = map[string]any{} })},
		"RSA":                           {file: edit(func(s *sample) { s.cose = map[int]any{1: 3, 3: -257} })},
		"another curve":                 {file: edit(func(s *sample) { s.cose = map[int]any{1: 2, 3: -7, -1: 2, -2: s.cose[-2], -3: s.cose[-3]} })},
		"not on the curve":              {file: edit(func(s *sample) { s.cose = map[int]any{1: 2, 3: -7, -1: 1, -2: s.cose[-2], -3: s.cose[-2]} })},
		"short coordinate":              {file: edit(func(s *sample) { s.cose = map[int]any{1: 2, 3: -7, -1: 1, -2: s.cose[-2], -3: []byte{1}} })},
		"short Ed25519":                 {file: edit(func(s *sample) { s.cose = map[int]any{1: 1, 3: -8, -1: 6, -2: []byte{1}} })},
		"no certificate":                {file: s.file(t, device, nil)},
		"nothing":                       {file: nil},
		"a byte too many":               {file: append(bytes.Clone(good), 0)},
		"too long":                      {file: make([]byte, 1<<16+1)},
	} {
		t.Run(name, func(t *testing.T) {
			if test.public == nil {
				test.public = public
			}
			if test.roots == nil {
				test.roots = m.roots()
			}
			if test.at.IsZero() {
				test.at = now
			}
			got, err := fido.Verify(test.file, challenge, test.roots, nil, test.public, test.at)
			if err == nil || got != nil {
				t.Fatalf("attested: %+v", got)
			}
			if errors.Is(err, hsm.ErrWrongIdentity) != test.wrong {
				t.Errorf("got %v; ErrWrongIdentity is expected: %v", err, test.wrong)
			}
		})
	}
	if _, err := fido.Verify(good, challenge, nil, nil, public, now); err == nil {
		t.Error("attested with no roots named")
	}
	if _, err := fido.Verify(good, challenge, m.roots(), nil, nil, now); err == nil {
		t.Error("attested to no key")
	}
}

func FuzzVerify(f *testing.F) {
	m, device := newMaker(f), newKey(f)
	s, public := genuine(f)
	good := s.file(f, device, m.leaf(&device.PublicKey, nil).Raw)
	f.Add(good)
	roots := m.roots()
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := fido.Verify(b, challenge, roots, nil, public, now); err == nil && !bytes.Equal(b, good) {
			t.Error("an edited attestation was taken")
		}
	})
}
