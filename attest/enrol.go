package attest

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// The roles of a node's certified keys. Each is part of what the AK signed about
// the key, so that one cannot be passed off as another.
const (
	RoleTLS     = "tls"     // P-256, unrestricted signing: mutual TLS
	RoleSign    = "sign"    // P-256, unrestricted signing: claims and receipts
	RoleStorage = "storage" // P-256, unrestricted decryption under the boot policy: shares of the people's factor
	RoleFresh   = "fresh"   // P-256, unrestricted decryption in the NULL hierarchy: shares of the machines' factor, for one use
)

// BootPolicyRef is the policyRef under which boot policies are approved with
// TPM2_PolicyAuthorize (Part 3, section 23.16).
const BootPolicyRef = "keyturn/boot-policy/v1"

// A CertifiedKey is a TPM key and the AK's word for it.
type CertifiedKey struct {
	Public      []byte `json:"public"`      // TPMT_PUBLIC
	CertifyInfo []byte `json:"certifyInfo"` // TPMS_ATTEST of type certify
	Signature   []byte `json:"signature"`   // TPMT_SIGNATURE by the AK
}

// An Enrolment is a node's proof of what it is, as it goes into the log once
// the challenge of [NewChallenge] was answered.
type Enrolment struct {
	EKCert  []byte       `json:"ekCert"`            // DER
	EKChain [][]byte     `json:"ekChain,omitempty"` // DER, intermediates, trusted for nothing by themselves
	EK      []byte       `json:"ek"`                // TPMT_PUBLIC
	AK      []byte       `json:"ak"`                // TPMT_PUBLIC
	TLS     CertifiedKey `json:"tls"`
	Sign    CertifiedKey `json:"sign"`
	Storage CertifiedKey `json:"storage"`
}

// Roots are the certificate authorities that an EK certificate may come from.
type Roots struct {
	Vendor        *x509.CertPool // makers of TPMs
	Development   *x509.CertPool // makers of emulators; whatever chains to these only is marked as emulated
	Intermediates *x509.CertPool // beyond those that an enrolment brings
}

// A Node is an enrolled machine: what the log remembers of it.
type Node struct {
	ID         Digest // SHA-256 of the EK's DER SubjectPublicKeyInfo: the same for RSA and ECC, whatever the template
	EK         *EK
	AK         *Public
	TLSKey     *ecdsa.PublicKey
	SignKey    *ecdsa.PublicKey
	StorageKey *ecdh.PublicKey
	Emulated   bool // a software TPM, or not vouched for by a vendor

	AKName      []byte // TPM names: algorithm and digest of the public area
	TLSName     []byte
	SignName    []byte
	StorageName []byte
}

// VerifyEnrolment checks everything that an enrolment can prove by itself: the
// EK certificate at the time given, the EK's public area against it, the AK's
// attributes and hierarchy, and the three keys, each certified by the AK for its
// role, the storage key under the boot policy that bootPolicyKey (P-256) approves.
//
// It does not prove that the AK is in the same TPM as the EK. That takes an
// answer to [NewChallenge], whose maker says so beside the enrolment.
func VerifyEnrolment(e *Enrolment, roots Roots, bootPolicyKey *ecdsa.PublicKey, now time.Time) (*Node, error) {
	if e == nil {
		return nil, errors.New("attest: enrolment: nothing was given")
	}
	ek, emulated, err := verifyEnrolmentCert(e, roots, now)
	if err != nil {
		return nil, err
	}
	if err := checkEKPublic(e.EK, ek); err != nil {
		return nil, fmt.Errorf("attest: enrolment: endorsement key: %w", err)
	}
	ak, err := attestationKey(e.AK)
	if err != nil {
		return nil, fmt.Errorf("attest: enrolment: %w", err)
	}
	if _, err := ak.p256(); err != nil {
		return nil, fmt.Errorf("attest: enrolment: attestation key: %w", err)
	}
	node := &Node{ID: ek.ID, EK: ek, AK: ak, AKName: ak.Name(), Emulated: emulated}
	if err := node.takeKeys(e, bootPolicyKey); err != nil {
		return nil, fmt.Errorf("attest: enrolment of node %v: %w", node.ID, err)
	}
	return node, node.checkDistinct()
}

// verifyEnrolmentCert tries the vendors' roots first. What chains to a
// development root only, or shows itself as an emulator, is marked.
func verifyEnrolmentCert(e *Enrolment, roots Roots, now time.Time) (*EK, bool, error) {
	if len(e.EKChain) > maxChain {
		return nil, false, fmt.Errorf("attest: enrolment: %d intermediate certificates are more than %d", len(e.EKChain), maxChain)
	}
	intermediates := x509.NewCertPool()
	if roots.Intermediates != nil {
		intermediates = roots.Intermediates.Clone()
	}
	for i, der := range e.EKChain {
		if len(der) > maxCert {
			return nil, false, fmt.Errorf("attest: enrolment: intermediate certificate %d of %d bytes is longer than %d", i, len(der), maxCert)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, false, fmt.Errorf("attest: enrolment: intermediate certificate %d: %w", i, err)
		}
		intermediates.AddCert(cert)
	}
	ek, err := VerifyEKCert(e.EKCert, roots.Vendor, intermediates, now)
	if err == nil {
		return ek, ek.Emulated, nil
	}
	if roots.Development == nil {
		return nil, false, err
	}
	ek, err = VerifyEKCert(e.EKCert, roots.Development, intermediates, now)
	return ek, true, err
}

// checkEKPublic checks that a TPMT_PUBLIC is an endorsement key, and the one in
// the certificate: a restricted decryption key that its TPM made.
func checkEKPublic(public []byte, ek *EK) error {
	p, err := ParsePublic(public)
	if err != nil {
		return err
	}
	if err := p.Attributes.require(genuine|Restricted|Decrypt, Sign); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(p.Key)
	if err != nil {
		return err
	}
	if sha256.Sum256(der) != ek.ID {
		return errors.New("the public area is not that of the key in the certificate")
	}
	return nil
}

// takeKeys verifies the three certified keys and puts them into the node.
func (n *Node) takeKeys(e *Enrolment, bootPolicyKey *ecdsa.PublicKey) error {
	tls, err := n.certified(e.TLS, RoleTLS, handleNone)
	if err != nil {
		return err
	}
	sign, err := n.certified(e.Sign, RoleSign, handleNone)
	if err != nil {
		return err
	}
	storage, err := n.certified(e.Storage, RoleStorage, handleNone)
	if err != nil {
		return err
	}
	policy, err := BootPolicy(bootPolicyKey)
	if err != nil {
		return err
	}
	if err := checkStoragePolicy(storage.Public, policy); err != nil {
		return err
	}
	n.TLSName, n.SignName, n.StorageName = tls.Public.Name(), sign.Public.Name(), storage.Public.Name()
	if n.TLSKey, err = tls.Public.p256(); err != nil {
		return err
	}
	if n.SignKey, err = sign.Public.p256(); err != nil {
		return err
	}
	n.StorageKey, err = storage.Public.p256DH()
	return err
}

// checkStoragePolicy asks that the storage key be of use under the boot policy
// and in no other way.
func checkStoragePolicy(storage *Public, policy [32]byte) error {
	if subtle.ConstantTimeCompare(storage.AuthPolicy, policy[:]) != 1 {
		return fmt.Errorf("storage key: its policy %x is not the charter's boot policy %x", storage.AuthPolicy, policy)
	}
	if err := storage.Attributes.require(0, UserWithAuth); err != nil {
		return fmt.Errorf("storage key: %w: it could be used without the boot policy", err)
	}
	return nil
}

// handleNone asks for no particular hierarchy.
const handleNone uint32 = 0

// certified verifies one certified key of this node for a role. A hierarchy
// other than handleNone must be the key's parent.
func (n *Node) certified(k CertifiedKey, role string, hierarchy uint32) (*Certified, error) {
	q := Qualifying(role, n.ID, n.AKName)
	c, err := verifyCertify(n.AK, k.CertifyInfo, k.Signature, k.Public, q[:])
	if err != nil {
		return nil, fmt.Errorf("%s key: %w", role, err)
	}
	set, clear := genuine|Sign, Restricted|Decrypt|STClear
	switch role {
	case RoleStorage:
		set, clear = genuine|Decrypt, Restricted|Sign|STClear
	case RoleFresh:
		set, clear = genuine|Decrypt, Restricted|Sign
	}
	if err := c.Public.Attributes.require(set, clear); err != nil {
		return nil, fmt.Errorf("%s key: %w", role, err)
	}
	if c.Public.NameAlg != algSHA256 {
		return nil, fmt.Errorf("%s key: name algorithm 0x%04x is not sha256", role, c.Public.NameAlg)
	}
	if _, err := c.Public.p256(); err != nil {
		return nil, fmt.Errorf("%s key: %w", role, err)
	}
	// An AK of the owner hierarchy would show obfuscated reset counts.
	if !bytes.Equal(c.Signer, n.AK.qualifiedPrimaryName(handleEndorsement)) {
		return nil, fmt.Errorf("%s key: the attestation key is not a primary key of the endorsement hierarchy", role)
	}
	if hierarchy != handleNone && !bytes.Equal(c.QualifiedName, c.Public.qualifiedPrimaryName(hierarchy)) {
		return nil, fmt.Errorf("%s key: not a primary key of hierarchy 0x%08x", role, hierarchy)
	}
	return c, nil
}

// checkDistinct refuses one key in two roles.
func (n *Node) checkDistinct() error {
	agreement, err := n.SignKey.ECDH()
	if err != nil {
		return fmt.Errorf("attest: enrolment: sign key: %w", err)
	}
	if n.TLSKey.Equal(n.SignKey) || agreement.Equal(n.StorageKey) || bytes.Equal(n.TLSName, n.StorageName) {
		return errors.New("attest: enrolment: one key stands in two roles; make one key for each")
	}
	return nil
}

// Qualifying returns the qualifying data under which a node's AK certifies a key
// for a role: SHA-256 over the length-prefixed label, role, node id and AK name.
func Qualifying(role string, node Digest, akName []byte) [32]byte {
	return sum("keyturn/certify/v1", []byte(role), node[:], akName)
}

// BootPolicyPublic returns the TPMT_PUBLIC as which a TPM loads the charter's
// P-256 boot-policy key: SHA-256 name, no attribute but sign and userWithAuth,
// no scheme.
func BootPolicyPublic(key *ecdsa.PublicKey) ([]byte, error) {
	if key == nil {
		return nil, errors.New("attest: boot policy: no key was given")
	}
	point, err := key.Bytes()
	if err != nil || len(point) != 65 {
		return nil, errors.New("attest: boot policy: the key is not on P-256")
	}
	b := binary.BigEndian.AppendUint16(nil, algECC)
	b = binary.BigEndian.AppendUint16(b, algSHA256)
	b = binary.BigEndian.AppendUint32(b, uint32(Sign|UserWithAuth))
	b = appendSized(b, nil) // authPolicy
	for _, v := range []uint16{algNull, algNull, curveP256, algNull} {
		b = binary.BigEndian.AppendUint16(b, v) // symmetric, scheme, curve, kdf
	}
	return appendSized(appendSized(b, point[1:33]), point[33:]), nil
}

// BootPolicy returns the authPolicy of a storage key: TPM2_PolicyAuthorize by
// the boot-policy key under [BootPolicyRef] (Part 3, section 23.16), and nothing
// else.
func BootPolicy(key *ecdsa.PublicKey) ([32]byte, error) {
	public, err := BootPolicyPublic(key)
	if err != nil {
		return [32]byte{}, err
	}
	p, err := ParsePublic(public)
	if err != nil {
		return [32]byte{}, err
	}
	// The command resets the digest to zeros before it extends it.
	b := make([]byte, sha256.Size)
	b = binary.BigEndian.AppendUint32(b, ccPolicyAuthorize)
	first := sha256.Sum256(append(b, p.Name()...))
	return sha256.Sum256(append(first[:], BootPolicyRef...)), nil
}

// NewChallenge encrypts a secret so that only a TPM that holds both the EK
// (TPMT_PUBLIC, RSA-2048 to 4096, P-256 or P-384) and an object of the AK's name can
// recover it: TPM2_MakeCredential in software (Part 1, section 24). Use the EK of
// a verified enrolment, a name computed by [Public.Name], and a secret used once.
// credentialBlob is a TPMS_ID_OBJECT, encSecret the content of a
// TPM2B_ENCRYPTED_SECRET.
func NewChallenge(rand io.Reader, ekPublic, akName []byte, secret [32]byte) (credentialBlob, encSecret []byte, err error) {
	p, err := ParsePublic(ekPublic)
	if err != nil {
		return nil, nil, err
	}
	if err := p.Attributes.require(genuine|Restricted|Decrypt, Sign); err != nil {
		return nil, nil, fmt.Errorf("attest: challenge: endorsement key: %w", err)
	}
	if len(akName) != 2+sha256.Size || binary.BigEndian.Uint16(akName) != algSHA256 {
		return nil, nil, fmt.Errorf("attest: challenge: %x is not a SHA-256 name", akName)
	}
	if secret == ([32]byte{}) {
		return nil, nil, errors.New("attest: challenge: the secret is all zeros")
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ekPublic)
	if err != nil {
		return nil, nil, fmt.Errorf("attest: challenge: %w", err)
	}
	key, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return nil, nil, fmt.Errorf("attest: challenge: %w", err)
	}
	blob, enc, err := tpm2.CreateCredential(rand, key, akName, secret[:])
	if err != nil {
		return nil, nil, fmt.Errorf("attest: challenge: %w", err)
	}
	return blob, enc, nil
}

// ChallengeFor is [NewChallenge] for an enrolment whose certificate was checked.
func ChallengeFor(rand io.Reader, e *Enrolment, n *Node, secret [32]byte) (credentialBlob, encSecret []byte, err error) {
	if err := checkEKPublic(e.EK, n.EK); err != nil {
		return nil, nil, fmt.Errorf("attest: challenge: %w", err)
	}
	return NewChallenge(rand, e.EK, n.AKName, secret)
}
