// Package fido reads the attestation of a FIDO authenticator on a key that it made
// for OpenSSH: the file that ssh-keygen writes with -O write-attestation
// (OpenSSH PROTOCOL.u2f, "SSH U2F Key Enrollment attestation").
package fido

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/hsm"
)

// A Statement is what an authenticator says of a key that it made and keeps.
type Statement struct {
	Maker    string // subject of the root that vouches for the authenticator
	Model    string // AAGUID, like 2fc0579f-8113-47ea-b116-bb5a8db9202a; all zero of one that hides it
	Verified bool   // it checked a PIN or a fingerprint when it made the key
}

const magic = "ssh-sk-attest-v01"

// maxFile bounds an attestation, in bytes.
const maxFile = 1 << 16

// attests stands in the subject of every certificate that an authenticator attests
// with, and of no other (WebAuthn level 2, section 8.2.1).
const attests = "Authenticator Attestation"

// oidModel is the extension of an attestation certificate that repeats the AAGUID, in
// an OCTET STRING (WebAuthn level 2, section 8.2.1).
var oidModel = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 45724, 1, 1, 4}

// Flags of authenticator data (WebAuthn level 3, section 6.1).
const (
	flagPresent    = 0x01
	flagVerified   = 0x04
	flagBackup     = 0x08 // the key can be copied to other devices
	flagKey        = 0x40
	flagExtensions = 0x80
)

// Verify reads the attestation of a key that was made with the challenge, and wants
// it to be of public's point and application. Only roots are trusted; intermediates
// may complete the chain of the authenticator's certificate, which has to hold at now.
//
// Attestation of format packed is read; authenticators that know U2F only give
// another one, and are refused.
//
// Errors: hsm.ErrWrongIdentity if it is of another key.
func Verify(file, challenge []byte, roots, intermediates *x509.CertPool, public *hsm.SecurityKey, now time.Time) (*Statement, error) {
	if roots == nil {
		return nil, errors.New("fido: no roots to hold the certificate to") // x509 would take the system's
	}
	if err := hsm.CheckPublic(public); err != nil {
		return nil, err
	}
	a, err := parse(file)
	if err != nil {
		return nil, fmt.Errorf("fido: attestation: %w", err)
	}
	chains, err := a.cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("fido: the authenticator's certificate: %w", err)
	}
	if a.cert.IsCA {
		return nil, errors.New("fido: the certificate is a maker's own, not an authenticator's")
	}
	// Makers certify other keys below the same root, some of which sign what their
	// holder likes, such as those of PIV applications.
	if !slices.Contains(a.cert.Subject.OrganizationalUnit, attests) {
		return nil, fmt.Errorf("fido: the certificate is of %.80q, and not for %s", a.cert.Subject, attests)
	}
	if k, ok := a.cert.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, fmt.Errorf("fido: the authenticator attests with a %T: want P-256", a.cert.PublicKey)
	}
	hash := sha256.Sum256(challenge)
	if err := a.cert.CheckSignature(x509.ECDSAWithSHA256, append(bytes.Clone(a.data), hash[:]...), a.signature); err != nil {
		return nil, fmt.Errorf("fido: the authenticator did not sign this with this challenge, or its format is not packed: %w", err)
	}
	d, err := parseData(a.data)
	if err != nil {
		return nil, fmt.Errorf("fido: authenticator data: %w", err)
	}
	if err := d.check(a.cert); err != nil {
		return nil, fmt.Errorf("fido: authenticator data: %w", err)
	}
	if application := sha256.Sum256([]byte(public.Application)); application != d.application {
		return nil, fmt.Errorf("fido: %w: the key was made for another application than %s", hsm.ErrWrongIdentity, public.Application)
	}
	if err := hsm.SamePublic(public.Key, d.key); err != nil {
		return nil, fmt.Errorf("fido: the attestation is of another key: %w", err)
	}
	return &Statement{Maker: chains[0][len(chains[0])-1].Subject.String(), Model: d.modelName(), Verified: d.flags&flagVerified != 0}, nil
}

type attestation struct {
	cert            *x509.Certificate
	signature, data []byte
}

// strict takes one encoding of what is read, and nothing behind it.
var strict = func() cbor.DecMode {
	m, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden, MaxNestedLevels: 4}.DecMode()
	if err != nil {
		panic(err)
	}
	return m
}()

func parse(file []byte) (*attestation, error) {
	if len(file) > maxFile {
		return nil, fmt.Errorf("%d bytes, at most %d", len(file), maxFile)
	}
	var f struct {
		Magic                        string
		Certificate, Signature, Data []byte
		Flags                        uint32
		Reserved                     string
	}
	if err := ssh.Unmarshal(file, &f); err != nil {
		return nil, err
	}
	if f.Magic != magic || f.Flags != 0 || f.Reserved != "" {
		return nil, fmt.Errorf("format %.40q, flags %#x, %d bytes more: want %s and nothing more", f.Magic, f.Flags, len(f.Reserved), magic)
	}
	if len(f.Certificate) == 0 {
		return nil, errors.New("it has no certificate: the authenticator does not attest")
	}
	a := &attestation{signature: f.Signature}
	var err error
	if a.cert, err = x509.ParseCertificate(f.Certificate); err != nil {
		return nil, err
	}
	if err := strict.Unmarshal(f.Data, &a.data); err != nil {
		return nil, err
	}
	return a, nil
}

// data is authenticator data with a key in it (WebAuthn level 2, section 6.1).
type data struct {
	application [sha256.Size]byte
	flags       byte
	model       [16]byte
	key         crypto.PublicKey
}

func parseData(b []byte) (*data, error) {
	const head = sha256.Size + 1 + 4
	if len(b) < head+16+2 {
		return nil, fmt.Errorf("%d bytes hold no key", len(b))
	}
	d := &data{flags: b[sha256.Size]}
	copy(d.application[:], b)
	copy(d.model[:], b[head:])
	handle := int(binary.BigEndian.Uint16(b[head+16:]))
	b = b[head+16+2:]
	if len(b) < handle {
		return nil, fmt.Errorf("a key handle of %d bytes in %d", handle, len(b))
	}
	var k struct {
		Type      int    `cbor:"1,keyasint"`
		Algorithm int    `cbor:"3,keyasint"`
		Curve     int    `cbor:"-1,keyasint"`
		X         []byte `cbor:"-2,keyasint"`
		Y         []byte `cbor:"-3,keyasint"`
	}
	rest, err := strict.UnmarshalFirst(b[handle:], &k)
	if err != nil {
		return nil, err
	}
	if d.flags&flagExtensions != 0 {
		var extensions map[string]cbor.RawMessage
		if rest, err = strict.UnmarshalFirst(rest, &extensions); err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes too many", len(rest))
	}
	// RFC 9053, section 7: key type, algorithm, curve.
	switch [3]int{k.Type, k.Algorithm, k.Curve} {
	case [3]int{2, -7, 1}: // EC2, ES256, P-256
		if len(k.X) != 32 || len(k.Y) != 32 {
			return nil, fmt.Errorf("coordinates of %d and %d bytes", len(k.X), len(k.Y))
		}
		d.key, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), bytes.Join([][]byte{{4}, k.X, k.Y}, nil))
	case [3]int{1, -8, 6}: // OKP, EdDSA, Ed25519
		if len(k.X) != ed25519.PublicKeySize || len(k.Y) != 0 {
			return nil, fmt.Errorf("a point of %d and %d bytes", len(k.X), len(k.Y))
		}
		d.key = ed25519.PublicKey(k.X)
	default:
		err = fmt.Errorf("a key of type %d, algorithm %d, curve %d: want P-256 or Ed25519", k.Type, k.Algorithm, k.Curve)
	}
	return d, err
}

func (d *data) modelName() string {
	m := d.model
	return fmt.Sprintf("%x-%x-%x-%x-%x", m[:4], m[4:6], m[6:8], m[8:10], m[10:])
}

func (d *data) check(cert *x509.Certificate) error {
	if d.flags&flagKey == 0 || d.flags&flagPresent == 0 {
		return fmt.Errorf("flags %#02x: want a key that was made while somebody touched the authenticator", d.flags)
	}
	if d.flags&flagBackup != 0 {
		return fmt.Errorf("flags %#02x: the key can be copied to other devices", d.flags)
	}
	for _, e := range cert.Extensions {
		if !e.Id.Equal(oidModel) {
			continue
		}
		var model []byte
		if rest, err := asn1.Unmarshal(e.Value, &model); err != nil || len(rest) > 0 || !bytes.Equal(model, d.model[:]) {
			return fmt.Errorf("model %s, but the certificate is one of model %x", d.modelName(), model)
		}
	}
	return nil
}
