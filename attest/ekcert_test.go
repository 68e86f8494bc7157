package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var now = time.Unix(1_800_000_000, 0)

// maker is a maker of TPMs with a root certificate.
type maker struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newMaker(t testing.TB, subject pkix.Name) *maker {
	t.Helper()
	m := &maker{key: newKey(t)}
	m.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: subject, NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, m.cert, m.cert, m.key.Public(), m.key)
	if err != nil {
		t.Fatal(err)
	}
	if m.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *maker) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(m.cert)
	return p
}

type pair struct {
	oid   asn1.ObjectIdentifier
	value string
}

var tpmAttributes = []pair{{oidTPMManufacturer, "id:4B455954"}, {oidTPMModel, "M1"}, {oidTPMVersion, "id:00010002"}}

// subjectAltName encodes a directoryName, each attribute in a set of its own or
// all in one.
func subjectAltName(critical, oneSet bool, attributes []pair) pkix.Extension {
	var b cryptobyte.Builder
	add := func(b *cryptobyte.Builder, a pair) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(a.oid)
			b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(a.value)) })
		})
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(4).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				if oneSet {
					b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
						for _, a := range attributes {
							add(b, a)
						}
					})
					return
				}
				for _, a := range attributes {
					b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { add(b, a) })
				}
			})
		})
	})
	return pkix.Extension{Id: oidSubjectAltName, Critical: critical, Value: b.BytesOrPanic()}
}

// issue makes an EK certificate that change may spoil.
func (m *maker) issue(t testing.TB, public crypto.PublicKey, change func(*x509.Certificate)) []byte {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: now.AddDate(0, -1, 0), NotAfter: now.AddDate(0, 1, 0),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageKeyAgreement,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEKCertificate},
		ExtraExtensions:    []pkix.Extension{subjectAltName(true, false, tpmAttributes)},
	}
	if _, isRSA := public.(*rsa.PublicKey); isRSA {
		c.KeyUsage = x509.KeyUsageKeyEncipherment
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, m.cert, public, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestEKCertEncodings(t *testing.T) {
	m := newMaker(t, pkix.Name{CommonName: "maker"})
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, public := range []crypto.PublicKey{newKey(t).Public(), rsaKey.Public()} {
		for _, critical := range []bool{true, false} {
			for _, oneSet := range []bool{true, false} {
				der := m.issue(t, public, func(c *x509.Certificate) {
					c.ExtraExtensions = []pkix.Extension{subjectAltName(critical, oneSet, tpmAttributes)}
				})
				ek, err := VerifyEKCert(der, m.pool(), nil, now)
				if err != nil {
					t.Errorf("%T critical %v one set %v: %v", public, critical, oneSet, err)
					continue
				}
				if ek.Manufacturer != "id:4B455954" || ek.Model != "M1" || ek.Version != "id:00010002" || ek.Emulated {
					t.Errorf("ek %+v", ek)
				}
			}
		}
	}
}

// Makers sign with RSA, PSS and ECDSA on P-256 and P-384, with intermediates between.
func TestEKCertChains(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := func(name string, parent *x509.Certificate, key, by crypto.Signer, algorithm x509.SignatureAlgorithm) *x509.Certificate {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SignatureAlgorithm: algorithm,
		}
		if parent == nil {
			parent = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		if c, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		return c
	}
	root := ca("root", nil, p384, p384, x509.ECDSAWithSHA384)
	middle := ca("middle", root, rsaKey, p384, x509.ECDSAWithSHA384)
	last := &maker{key: newKey(t)}
	last.cert = ca("last", middle, last.key, rsaKey, x509.SHA384WithRSAPSS)
	der := last.issue(t, p384.Public(), nil)
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	intermediates.AddCert(last.cert)
	_, err = VerifyEKCert(der, roots, intermediates, now)
	wantError(t, err, "unknown authority")
	intermediates.AddCert(middle)
	ek, err := VerifyEKCert(der, roots, intermediates, now)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Digest{sha256.Sum256(root.Raw)}; !slices.Equal(ek.Anchors, want) {
		t.Errorf("anchors %v, want the root %v", ek.Anchors, want)
	}
	// A second root that stands in the same chain, and is reached before the first.
	roots.AddCert(middle)
	if ek, err = VerifyEKCert(der, roots, intermediates, now); err != nil || !slices.Contains(ek.Anchors, sha256.Sum256(middle.Raw)) {
		t.Errorf("anchors %v, want the second root too (%v)", ek.Anchors, err)
	}
}

func TestAttackEKCertificate(t *testing.T) {
	m, other := newMaker(t, pkix.Name{CommonName: "maker"}), newMaker(t, pkix.Name{CommonName: "other"})
	key := newKey(t)
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	san := func(attributes []pair) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{subjectAltName(true, false, attributes)}
		}
	}
	for name, c := range map[string]struct {
		change func(*x509.Certificate)
		part   string
	}{
		"wrong eku": {func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}} }, "2.23.133.8.1"},
		"no eku":    {func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }, "2.23.133.8.1"},
		"any eku": {func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
		}, "2.23.133.8.1"},
		"signing key":       {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }, "key usage lacks keyAgreement"},
		"usage of rsa":      {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, "key usage lacks keyAgreement"},
		"no key usage":      {func(c *x509.Certificate) { c.KeyUsage = 0 }, "key usage lacks"},
		"ca":                {func(c *x509.Certificate) { c.IsCA = true }, "CA certificate"},
		"signs certs":       {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, "sign certificates"},
		"no san":            {func(c *x509.Certificate) { c.ExtraExtensions = nil }, "subject alternative name is missing"},
		"dns san":           {func(c *x509.Certificate) { c.ExtraExtensions, c.DNSNames = nil, []string{"tpm"} }, "lacks the TPM manufacturer"},
		"san without model": {san(tpmAttributes[:1]), "lacks the TPM model"},
		"two models":        {san(append(tpmAttributes, pair{oidTPMModel, "M2"})), "two TPM models"},
		"control character": {san([]pair{{oidTPMManufacturer, "a\x1b[2J"}}), "printable"},
		"expired":           {func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) }, "expired"},
		"not yet":           {func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }, "expired or is not yet valid"},
		"critical unknown": {func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		}, "unhandled critical extension"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := VerifyEKCert(m.issue(t, key.Public(), c.change), m.pool(), nil, now)
			wantError(t, err, c.part)
		})
	}
	good := m.issue(t, key.Public(), nil)
	_, err = VerifyEKCert(good, other.pool(), nil, now)
	wantError(t, err, "unknown authority")
	_, err = VerifyEKCert(good, nil, nil, now)
	wantError(t, err, "no roots")
	_, err = VerifyEKCert(good, x509.NewCertPool(), nil, now)
	wantError(t, err, "unknown authority")
	_, err = VerifyEKCert(good, m.pool(), nil, time.Time{})
	wantError(t, err, "no time")
	_, err = VerifyEKCert(append(good, 0), m.pool(), nil, now)
	wantError(t, err, "trailing")
	_, err = VerifyEKCert(m.issue(t, small.Public(), nil), m.pool(), nil, now)
	wantError(t, err, "neither P-256 nor P-384")

	// Signed by its own key: nobody vouches.
	self := &maker{key, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "self"}}}
	_, err = VerifyEKCert(self.issue(t, key.Public(), nil), m.pool(), nil, now)
	wantError(t, err, "unknown authority")
}

// A name whose set is out of order is refused, unless its maker is known for it.
func TestEKCertNotCanonical(t *testing.T) {
	name := func(organisation string) pkix.Name {
		return pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
			{Type: oidOrganisation, Value: organisation}, {Type: oidCommonName, Value: "TPM Root"},
		}}
	}
	// Go writes one attribute per set, in order: build the set by hand.
	raw := func(organisation string) []byte {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				for _, a := range name(organisation).ExtraNames {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(a.Type)
						b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(a.Value.(string))) })
					})
				}
			})
		})
		return b.BytesOrPanic()
	}
	for organisation, accepted := range map[string]bool{"Nuvoton Technology Corporation": true, "Some Maker With Longer Name": false} {
		m := &maker{key: newKey(t)}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), RawSubject: raw(organisation), NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, m.key.Public(), m.key)
		if err != nil {
			t.Fatal(err)
		}
		if m.cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		_, err = VerifyEKCert(m.issue(t, newKey(t).Public(), nil), m.pool(), nil, now)
		if accepted && err != nil {
			t.Errorf("%s: %v", organisation, err)
		}
		if !accepted {
			wantError(t, err, "not canonical DER")
		}
	}
}

// rewrite signs a certificate anew after a change of its bytes, as crypto/x509 would
// not write it.
func (m *maker) rewrite(t *testing.T, der, old, changed []byte) []byte {
	t.Helper()
	outer := cryptobyte.String(der)
	var inner, tbs cryptobyte.String
	if !outer.ReadASN1(&inner, cbasn1.SEQUENCE) || !inner.ReadASN1(&tbs, cbasn1.SEQUENCE) || bytes.Count(tbs, old) != 1 {
		t.Fatalf("%x is not once in the certificate", old)
	}
	var signed, b cryptobyte.Builder
	signed.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(bytes.Replace(tbs, old, changed, 1)) })
	digest := sha256.Sum256(signed.BytesOrPanic())
	sig, err := m.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	var algorithm cryptobyte.String
	if !inner.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) {
		t.Fatal("no signature algorithm")
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(signed.BytesOrPanic())
		b.AddBytes(algorithm)
		b.AddASN1BitString(sig)
	})
	return b.BytesOrPanic()
}

// Nuvoton wrote zeros in front of serial numbers. The certificate is judged by the
// bytes that were signed; nobody else may do so.
func TestEKCertPaddedSerial(t *testing.T) {
	for organisation, reason := range map[string]string{"Nuvoton Technology Corporation": "", "Some Maker": "serial number"} {
		m := newMaker(t, pkix.Name{Organization: []string{organisation}})
		der := m.issue(t, newKey(t).Public(), func(c *x509.Certificate) { c.SerialNumber = big.NewInt(0x3f932f9d993c16) })
		serial := []byte{2, 7, 0x3f, 0x93, 0x2f, 0x9d, 0x99, 0x3c, 0x16}
		padded := m.rewrite(t, der, serial, append([]byte{2, 9, 0, 0}, serial[2:]...))
		ek, err := VerifyEKCert(padded, m.pool(), nil, now)
		if reason != "" {
			wantError(t, err, reason)
			continue
		}
		if err != nil || ek.Model != "M1" {
			t.Fatalf("%v", err)
		}
		// The signature is over the zeros too.
		_, err = VerifyEKCert(bytes.Replace(padded, []byte{2, 9, 0, 0}, []byte{2, 9, 0, 1}, 1), m.pool(), nil, now)
		wantError(t, err, "unknown authority")
		forged := bytes.Replace(padded, append([]byte{2, 9, 0, 0}, serial[2:]...), append([]byte{2, 9, 0, 0, 0x3e}, serial[3:]...), 1)
		_, err = VerifyEKCert(forged, m.pool(), nil, now)
		wantError(t, err, "unknown authority")
	}
}

// A key of type id-RSAES-OAEP is an RSA key, and the node's id does not depend on it.
func TestEKCertOAEPKey(t *testing.T) {
	m := newMaker(t, pkix.Name{CommonName: "maker"})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	plain := m.issue(t, key.Public(), nil)
	algorithm := func(oid asn1.ObjectIdentifier, parameters []byte) []byte {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddBytes(parameters)
		})
		return b.BytesOrPanic()
	}
	rsaEncryption := algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, []byte{5, 0})
	// The same length, so that nothing around it changes.
	der := m.rewrite(t, plain, rsaEncryption, algorithm(oidRSAESOAEP, []byte{5, 0}))
	ek, err := VerifyEKCert(der, m.pool(), nil, now)
	if err != nil {
		t.Fatal(err)
	}
	first, err := VerifyEKCert(plain, m.pool(), nil, now)
	if err != nil || !key.PublicKey.Equal(ek.Public) || ek.ID != first.ID {
		t.Errorf("%v: node %x, and %x of the same key", err, ek.ID, first.ID)
	}
	// Another algorithm stays unknown.
	_, err = VerifyEKCert(m.rewrite(t, plain, rsaEncryption, algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 9}, []byte{5, 0})), m.pool(), nil, now)
	wantError(t, err, "neither RSA nor")
}

func TestDecodeEKCert(t *testing.T) {
	der := newMaker(t, pkix.Name{CommonName: "maker"}).issue(t, newKey(t).Public(), nil)
	for name, b := range map[string][]byte{
		"der": der, "zeros": append(append([]byte(nil), der...), 0, 0, 0), "ones": append(append([]byte(nil), der...), 0xff, 0xff),
		"pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	} {
		got, err := DecodeEKCert(b)
		if err != nil || string(got) != string(der) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "cut": der[:40], "text behind": append(append([]byte(nil), der...), 'x'),
		"mixed padding": append(append([]byte(nil), der...), 0, 0xff), "key": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
	} {
		if _, err := DecodeEKCert(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestLocalBootEKCerts(t *testing.T) {
	for _, boot := range []string{"secureboot-shim-grub", "uki-systemd-stub"} {
		der := read(t, "testdata/local-boot/"+boot+".ekcert.der")
		ek, err := ReadEKCert(der)
		if err != nil {
			t.Fatal(err)
		}
		if ek.Manufacturer != "id:00001014" || ek.Model != "swtpm" || !ek.Emulated {
			t.Errorf("ek %+v", ek)
		}
		_, err = VerifyEKCert(der, newMaker(t, pkix.Name{CommonName: "maker"}).pool(), nil, now)
		wantError(t, err, "unknown authority")
	}
}

// Certificates of Google's virtual TPMs are refused as EK certificates: those of
// signing keys have no business here, those of the EKs lack the usage.
func TestPublishedEKCerts(t *testing.T) {
	for _, name := range []string{"rsa_enc", "ecc_enc", "rsa_sign", "ecc_sign"} {
		der, err := DecodeEKCert(shared(t, "ekcert/gce_pca_tpm_"+name+"_cert.pem"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = ReadEKCert(der)
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		t.Logf("%s: %v", name, err)
	}
}

func TestNewRoots(t *testing.T) {
	m := newMaker(t, pkix.Name{CommonName: "nobody known"})
	roots, err := NewRoots([][]byte{m.cert.Raw})
	if err != nil {
		t.Fatal(err)
	}
	if !roots.Vendor.Equal(x509.NewCertPool()) || !roots.Development.Equal(m.pool()) {
		t.Error("an unknown root was taken for a vendor's")
	}
	der := shared(t, "ekroots/keylime_NUVO_1111.pem")
	if der, err = DecodeEKCert(der); err != nil {
		t.Fatal(err)
	}
	if VendorOf(der) != "Nuvoton" || VendorOf(m.cert.Raw) != "" {
		t.Errorf("vendor %q", VendorOf(der))
	}
	if roots, err = NewRoots([][]byte{der}); err != nil || roots.Vendor.Equal(x509.NewCertPool()) {
		t.Errorf("a vendor's root was not taken for one: %v", err)
	}
}
