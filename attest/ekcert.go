package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Object identifiers of the TCG EK Credential Profile 2.5 and of RFC 5280.
var (
	oidEKCertificate   = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidTPMManufacturer = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidTPMModel        = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidTPMVersion      = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
	oidSubjectAltName  = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidOrganisation    = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidCommonName      = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidRSAESOAEP       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
)

// notCanonical names the vendors, by a word of the issuer's organisation or
// common name, whose certificates may break DER in two places: the order of the
// attributes in a multi-valued name (X.690, section 11.6), and zeros in front of
// the serial number (section 8.3.2). Nothing else is excepted: the signature covers
// the bytes as they are.
var notCanonical = []string{"Nuvoton"}

// An EK is an endorsement key whose maker vouches for it.
type EK struct {
	Public       crypto.PublicKey // *rsa.PublicKey, or *ecdsa.PublicKey on P-256 or P-384
	ID           [32]byte         // SHA-256 of the key's canonical SubjectPublicKeyInfo (DER)
	Manufacturer string           // as the certificate says, such as id:494E5443
	Model        string
	Version      string
	Anchors      []Digest // SHA-256 of the roots (DER) that its chains end at, ascending; none if nobody asked
	Emulated     bool     // a software TPM (swtpm, the IBM simulator), by what the certificate says
}

// VerifyEKCert checks an EK certificate (TCG EK Credential Profile) at the given
// time: a chain to roots through intermediates, the EK certificate extended key
// usage, keyEncipherment for an RSA key or keyAgreement for an ECC key, not a CA,
// and a subject alternative name with the TPM's manufacturer, model and version.
// intermediates may be nil.
func VerifyEKCert(der []byte, roots, intermediates *x509.CertPool, now time.Time) (*EK, error) {
	cert, err := parseEKCert(der)
	if err != nil {
		return nil, fmt.Errorf("attest: ek certificate: %w", err)
	}
	ek, err := readEK(cert)
	if err != nil {
		return nil, fmt.Errorf("attest: ek certificate: %w", err)
	}
	if ek.Anchors, err = verifyChain(cert, roots, intermediates, now); err != nil {
		return nil, fmt.Errorf("attest: ek certificate from %q: %w", cert.Issuer, err)
	}
	return ek, nil
}

// DecodeEKCert returns the DER of an EK certificate that is given as PEM, as
// DER, or as DER with the zero or 0xff bytes behind it that fill a TPM's NV index.
func DecodeEKCert(b []byte) ([]byte, error) {
	if block, _ := pem.Decode(b); block != nil {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("attest: ek certificate: PEM block is %q, wanted CERTIFICATE", block.Type)
		}
		return block.Bytes, nil
	}
	rest := cryptobyte.String(b)
	var der cryptobyte.String
	if !rest.ReadASN1Element(&der, cbasn1.SEQUENCE) {
		return nil, errors.New("attest: ek certificate: neither PEM nor DER")
	}
	if len(bytes.Trim(rest, "\x00")) != 0 && len(bytes.Trim(rest, "\xff")) != 0 {
		return nil, fmt.Errorf("attest: ek certificate: %d bytes behind it are not padding", len(rest))
	}
	return der, nil
}

func parseEKCert(der []byte) (*x509.Certificate, error) {
	if len(der) == 0 || len(der) > maxCert {
		return nil, fmt.Errorf("%d bytes are not between 1 and %d", len(der), maxCert)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		if cert = parsePaddedSerial(der); cert == nil {
			return nil, err
		}
	}
	for _, name := range [][]byte{cert.RawIssuer, cert.RawSubject} {
		if err := checkNameOrder(name, cert); err != nil {
			return nil, err
		}
	}
	if cert.PublicKey == nil {
		cert.PublicKey = oaepKey(cert.RawSubjectPublicKeyInfo)
	}
	return cert, nil
}

// parsePaddedSerial parses a certificate of an excepted vendor whose serial number
// has zeros in front, which crypto/x509 refuses. It parses a copy without them and
// gives the result the bytes that were signed. It is nil for all others.
func parsePaddedSerial(der []byte) *x509.Certificate {
	outer := cryptobyte.String(der)
	var inner, signed, tbs, version, serial cryptobyte.String
	if !outer.ReadASN1(&inner, cbasn1.SEQUENCE) || !outer.Empty() || !inner.ReadASN1Element(&signed, cbasn1.SEQUENCE) {
		return nil
	}
	rest := signed
	if !rest.ReadASN1(&tbs, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&version, cbasn1.Tag(0).Constructed().ContextSpecific()) ||
		!tbs.ReadASN1(&serial, cbasn1.INTEGER) || len(serial) < 2 || serial[0] != 0 || serial[1] >= 0x80 {
		return nil
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(version)
			b.AddASN1BigInt(new(big.Int).SetBytes(serial))
			b.AddBytes(tbs)
		})
		b.AddBytes(inner)
	})
	copied, err := b.Bytes()
	if err != nil {
		return nil
	}
	cert, err := x509.ParseCertificate(copied)
	if err != nil || !issuedByException(cert) {
		return nil
	}
	cert.Raw, cert.RawTBSCertificate = der, signed
	return cert
}

// oaepKey returns the RSA key of a SubjectPublicKeyInfo of type id-RSAES-OAEP (RFC
// 4055, section 4.1), as Infineon writes it and crypto/x509 leaves it alone. Its
// parameters say how to encrypt outside of a TPM; TPM2_MakeCredential does not use
// them. It is nil for everything else.
func oaepKey(spki []byte) crypto.PublicKey {
	outer := cryptobyte.String(spki)
	var inner, algorithm cryptobyte.String
	var oid asn1.ObjectIdentifier
	var key []byte
	if !outer.ReadASN1(&inner, cbasn1.SEQUENCE) || !inner.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!algorithm.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidRSAESOAEP) || !inner.ReadASN1BitStringAsBytes(&key) || !inner.Empty() {
		return nil
	}
	public, err := x509.ParsePKCS1PublicKey(key)
	if err != nil {
		return nil
	}
	return public
}

// checkNameOrder refuses a name whose sets are not in DER's order, unless its
// issuer is one of those known to do this.
func checkNameOrder(raw []byte, cert *x509.Certificate) error {
	name := cryptobyte.String(raw)
	var sets cryptobyte.String
	if !name.ReadASN1(&sets, cbasn1.SEQUENCE) {
		return errors.New("a name is not a sequence")
	}
	for !sets.Empty() {
		var set cryptobyte.String
		if !sets.ReadASN1(&set, cbasn1.SET) {
			return errors.New("a name holds something other than sets")
		}
		var last, element cryptobyte.String
		for ; !set.Empty(); last = element {
			if !set.ReadAnyASN1Element(&element, nil) {
				return errors.New("a name's set is cut off")
			}
			if bytes.Compare(last, element) > 0 && !issuedByException(cert) {
				return fmt.Errorf("name is not canonical DER, which is excepted for %v only", notCanonical)
			}
		}
	}
	return nil
}

func issuedByException(cert *x509.Certificate) bool {
	for _, atv := range cert.Issuer.Names {
		s, ok := atv.Value.(string)
		if !ok || !atv.Type.Equal(oidOrganisation) && !atv.Type.Equal(oidCommonName) {
			continue
		}
		if slices.ContainsFunc(notCanonical, func(v string) bool { return strings.Contains(s, v) }) {
			return true
		}
	}
	return false
}

// readEK checks what the certificate says about the key.
func readEK(cert *x509.Certificate) (*EK, error) {
	if cert.IsCA {
		return nil, errors.New("it is a CA certificate")
	}
	if !slices.ContainsFunc(cert.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return nil, errors.New("extended key usage 2.23.133.8.1 (EK certificate) is missing")
	}
	if err := checkKeyUsage(cert); err != nil {
		return nil, err
	}
	// The certificate's own encoding may be another, and one key is one node.
	spki, err := x509.MarshalPKIXPublicKey(cert.PublicKey)
	if err != nil {
		return nil, err
	}
	ek := &EK{Public: cert.PublicKey, ID: sha256.Sum256(spki)}
	if err := ek.readSubject(cert); err != nil {
		return nil, err
	}
	// 00001014 is IBM's identifier; its TPMs were simulators and libtpms.
	manufacturer := strings.ToLower(ek.Manufacturer)
	ek.Emulated = manufacturer == "id:00001014" || manufacturer == "id:49424d00" || strings.Contains(strings.ToLower(ek.Model), "swtpm")
	return ek, nil
}

// checkKeyUsage asks that the key may decrypt. A certificate for a signing key
// of the same TPM can carry the EK usage as well, and must not pass.
func checkKeyUsage(cert *x509.Certificate) error {
	need, word := x509.KeyUsageKeyEncipherment, "keyEncipherment"
	switch key := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() < 8*minModulus || key.N.BitLen() > 8*maxModulus {
			return fmt.Errorf("RSA key of %d bits is not between 2048 and 4096", key.N.BitLen())
		}
	case *ecdsa.PublicKey:
		need, word = x509.KeyUsageKeyAgreement, "keyAgreement"
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return fmt.Errorf("curve %s is neither P-256 nor P-384", key.Curve.Params().Name)
		}
	default:
		return errors.New("its key is neither RSA nor on P-256 or P-384")
	}
	if cert.KeyUsage&need == 0 {
		return fmt.Errorf("key usage lacks %s, so it is not the certificate of an endorsement key", word)
	}
	if cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return errors.New("key usage lets the endorsement key sign certificates")
	}
	return nil
}

// readSubject reads the TPM's manufacturer, model and version from the
// directoryName of the subject alternative name. The profile shows them as one
// set per attribute; some makers put all three into one set. Both are read.
func (ek *EK) readSubject(cert *x509.Certificate) error {
	i := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSubjectAltName) })
	if i < 0 {
		return errors.New("subject alternative name is missing: nothing says which TPM this is")
	}
	names, err := directoryName(cert.Extensions[i].Value)
	if err != nil {
		return fmt.Errorf("subject alternative name: %w", err)
	}
	fields := []struct {
		oid asn1.ObjectIdentifier
		dst *string
		say string
	}{{oidTPMManufacturer, &ek.Manufacturer, "manufacturer"}, {oidTPMModel, &ek.Model, "model"}, {oidTPMVersion, &ek.Version, "version"}}
	for _, f := range fields {
		for _, n := range names {
			if !n.oid.Equal(f.oid) {
				continue
			}
			if *f.dst != "" {
				return fmt.Errorf("subject alternative name has two TPM %ss", f.say)
			}
			*f.dst = n.value
		}
		if *f.dst == "" {
			return fmt.Errorf("subject alternative name lacks the TPM %s", f.say)
		}
	}
	return nil
}

type attributeValue struct {
	oid   asn1.ObjectIdentifier
	value string
}

// directoryName returns the attributes of the one directoryName in a GeneralNames
// value (RFC 5280, section 4.2.1.6).
func directoryName(value []byte) ([]attributeValue, error) {
	outer := cryptobyte.String(value)
	var names cryptobyte.String
	if !outer.ReadASN1(&names, cbasn1.SEQUENCE) || !outer.Empty() {
		return nil, errors.New("is not a sequence")
	}
	var found []attributeValue
	for seen := false; !names.Empty(); {
		var general cryptobyte.String
		var tag cbasn1.Tag
		if !names.ReadAnyASN1(&general, &tag) {
			return nil, errors.New("is cut off")
		}
		if tag != cbasn1.Tag(4).Constructed().ContextSpecific() {
			continue // other kinds of names say nothing here
		}
		if seen {
			return nil, errors.New("has two directory names")
		}
		seen = true
		attrs, err := attributesOf(general)
		if err != nil {
			return nil, err
		}
		found = attrs
	}
	return found, nil
}

func attributesOf(name cryptobyte.String) ([]attributeValue, error) {
	var sets cryptobyte.String
	if !name.ReadASN1(&sets, cbasn1.SEQUENCE) || !name.Empty() {
		return nil, errors.New("has a directory name that is not a sequence")
	}
	var found []attributeValue
	for !sets.Empty() {
		var set cryptobyte.String
		if !sets.ReadASN1(&set, cbasn1.SET) {
			return nil, errors.New("has a directory name with something other than sets")
		}
		for !set.Empty() {
			var pair, value cryptobyte.String
			var a attributeValue
			var tag cbasn1.Tag
			if !set.ReadASN1(&pair, cbasn1.SEQUENCE) || !pair.ReadASN1ObjectIdentifier(&a.oid) ||
				!pair.ReadAnyASN1(&value, &tag) || !pair.Empty() {
				return nil, errors.New("has a malformed attribute")
			}
			if a.value = string(value); !printableASCII(a.value) {
				return nil, fmt.Errorf("attribute %v is not printable ASCII of 1 to 128 characters", a.oid)
			}
			found = append(found, a)
		}
	}
	return found, nil
}

func printableASCII(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// verifyChain builds chains at the given time, and returns the roots that they end
// at. The subject alternative name may
// be critical, and crypto/x509 does not know directory names: readSubject did
// that check, so it is taken off the list of what nobody looked at.
func verifyChain(cert *x509.Certificate, roots, intermediates *x509.CertPool, now time.Time) ([]Digest, error) {
	if roots == nil {
		return nil, errors.New("no roots were given; add the TPM vendor's")
	}
	if now.IsZero() {
		return nil, errors.New("no time was given to check it at")
	}
	leaf := *cert
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(cert.UnhandledCriticalExtensions), oidSubjectAltName.Equal)
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // the EK usage was checked by its OID
	})
	if err != nil {
		return nil, err
	}
	var anchors []Digest
	for _, chain := range chains {
		anchors = append(anchors, sha256.Sum256(chain[len(chain)-1].Raw))
	}
	slices.SortFunc(anchors, func(a, b Digest) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(anchors), nil
}

// ReadEKCert reads what an EK certificate says, and that it is one, without
// asking who signed it. To rely on it use [VerifyEKCert].
func ReadEKCert(der []byte) (*EK, error) {
	cert, err := parseEKCert(der)
	if err != nil {
		return nil, fmt.Errorf("attest: ek certificate: %w", err)
	}
	ek, err := readEK(cert)
	if err != nil {
		return nil, fmt.Errorf("attest: ek certificate: %w", err)
	}
	return ek, nil
}

// MatchEK returns nil if a TPMT_PUBLIC is an endorsement key, and that of the
// certificate (DER).
func MatchEK(public, der []byte) error {
	ek, err := ReadEKCert(der)
	if err != nil {
		return err
	}
	if err := checkEKPublic(public, ek); err != nil {
		return fmt.Errorf("attest: endorsement key: %w", err)
	}
	return nil
}
