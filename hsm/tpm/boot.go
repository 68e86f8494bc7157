package tpm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/keyturn/keyturn/hsm"
)

// ErrBootNotApproved: the PCRs are not those of an approved boot.
var ErrBootNotApproved = errors.New("boot not approved")

// bootPolicyRef is what is signed beside a policy, so that the key's other
// signatures approve no boot. Package attest has the same.
const bootPolicyRef = "keyturn/boot-policy/v1"

const (
	ccPolicyAuthorize uint32 = 0x0000016a
	ccPolicyPCR       uint32 = 0x0000017f
	maxPCR                   = 23
)

// A BootApproval says that a storage key may be used while PCRs of the sha256
// bank have certain values.
type BootApproval struct {
	PCRs      []int  `json:"pcrs"`      // ascending
	Policy    []byte `json:"policy"`    // TPM2_PolicyPCR digest over them and their values, 32 bytes
	Signature []byte `json:"signature"` // by the boot-policy key over Policy and the policyRef, ASN.1 DER
}

// ApproveBoot signs the policy that the sha256 PCRs have the values given.
// signer is the charter's P-256 boot-policy key.
func ApproveBoot(ctx context.Context, signer hsm.Key, pcrs map[int][32]byte) (*BootApproval, error) {
	if signer == nil {
		return nil, errors.New("tpm: approve boot: no key was given")
	}
	authority, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("tpm: approve boot: the boot-policy key is not on P-256")
	}
	indices := slices.Sorted(maps.Keys(pcrs))
	policy, err := pcrPolicy(indices, pcrs)
	if err != nil {
		return nil, fmt.Errorf("tpm: approve boot: %w", err)
	}
	sig, err := hsm.SignMessage(ctx, signer, append(bytes.Clone(policy), bootPolicyRef...))
	if err != nil {
		return nil, fmt.Errorf("tpm: approve boot: %w", err)
	}
	a := &BootApproval{PCRs: indices, Policy: policy, Signature: sig}
	return a, a.Verify(authority)
}

// Verify returns nil if authority signed the approval.
func (a *BootApproval) Verify(authority *ecdsa.PublicKey) error {
	if len(a.Policy) != sha256.Size {
		return fmt.Errorf("policy of %d bytes, want %d", len(a.Policy), sha256.Size)
	}
	if err := checkPCRs(a.PCRs); err != nil {
		return err
	}
	return hsm.VerifyMessage(authority, append(bytes.Clone(a.Policy), bootPolicyRef...), a.Signature)
}

func checkPCRs(pcrs []int) error {
	if len(pcrs) == 0 {
		return errors.New("no PCR is named")
	}
	for i, pcr := range pcrs {
		if pcr < 0 || pcr > maxPCR || i > 0 && pcrs[i-1] >= pcr {
			return fmt.Errorf("PCRs %v are not ascending between 0 and %d", pcrs, maxPCR)
		}
	}
	return nil
}

// Selection returns the sha256 selection of PCRs as commands take it. What is not
// between 0 and 23 cannot be selected and is left out: callers check first.
func Selection(pcrs []int) tpm2.TPMLPCRSelection {
	bitmap := make([]byte, 3)
	for _, pcr := range pcrs {
		if pcr < 0 || pcr > maxPCR {
			continue
		}
		bitmap[pcr/8] |= 1 << (pcr % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bitmap}}}
}

// pcrPolicy computes the digest of TPM2_PolicyPCR on a new session (Part 3,
// section 23.7).
func pcrPolicy(indices []int, pcrs map[int][32]byte) ([]byte, error) {
	if err := checkPCRs(indices); err != nil {
		return nil, err
	}
	values := sha256.New()
	for _, pcr := range indices {
		v := pcrs[pcr]
		if pcr <= 7 && v == ([32]byte{}) {
			return nil, fmt.Errorf("PCR %d is all zeros: nothing was measured", pcr)
		}
		values.Write(v[:])
	}
	b := make([]byte, sha256.Size)
	b = binary.BigEndian.AppendUint32(b, ccPolicyPCR)
	b = append(b, tpm2.Marshal(Selection(indices))...)
	digest := sha256.Sum256(values.Sum(b))
	return digest[:], nil
}

// authorityPublic is the public area as which a TPM loads the boot-policy key.
func authorityPublic(key *ecdsa.PublicKey) (*Object, error) {
	if err := hsm.CheckPublic(key); err != nil {
		return nil, fmt.Errorf("tpm: boot-policy key: %w", err)
	}
	point, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("tpm: boot-policy key: %w", err)
	}
	public := p256Template(tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true})
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	return newObject(public)
}

// bootPolicy computes the digest of TPM2_PolicyAuthorize by key. go-tpm's own
// calculation leaves out that the command resets the digest first.
func bootPolicy(key *ecdsa.PublicKey) ([]byte, error) {
	o, err := authorityPublic(key)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32(make([]byte, sha256.Size), ccPolicyAuthorize)
	first := sha256.Sum256(append(b, o.name.Buffer...))
	second := sha256.Sum256(append(first[:], bootPolicyRef...))
	return second[:], nil
}

// satisfy leads a policy session to the boot policy: first what the PCRs are,
// then that the authority approved it.
func (a *BootApproval) satisfy(tr transport.TPM, s tpm2.Session, authority *ecdsa.PublicKey) error {
	if _, err := (tpm2.PolicyPCR{PolicySession: s.Handle(), Pcrs: Selection(a.PCRs)}).Execute(tr); err != nil {
		return err
	}
	rsp, err := tpm2.PolicyGetDigest{PolicySession: s.Handle()}.Execute(tr)
	if err != nil {
		return err
	}
	if !bytes.Equal(rsp.PolicyDigest.Buffer, a.Policy) {
		return ErrBootNotApproved
	}
	ticket, name, err := a.ticket(tr, authority)
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession:  s.Handle(),
		ApprovedPolicy: tpm2.TPM2BDigest{Buffer: a.Policy},
		PolicyRef:      tpm2.TPM2BDigest{Buffer: []byte(bootPolicyRef)},
		KeySign:        name,
		CheckTicket:    *ticket,
	}.Execute(tr)
	return err
}

// ticket lets the TPM verify the authority's signature.
func (a *BootApproval) ticket(tr transport.TPM, authority *ecdsa.PublicKey) (*tpm2.TPMTTKVerified, tpm2.TPM2BName, error) {
	o, err := authorityPublic(authority)
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	sig, err := signatureTPM(a.Signature)
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	// A ticket of the NULL hierarchy would carry no proof.
	loaded, err := tpm2.LoadExternal{InPublic: tpm2.New2B(o.public), Hierarchy: tpm2.TPMRHOwner}.Execute(tr)
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	digest := sha256.Sum256(append(bytes.Clone(a.Policy), bootPolicyRef...))
	rsp, err := tpm2.VerifySignature{
		KeyHandle: tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: o.name},
		Digest:    tpm2.TPM2BDigest{Buffer: digest[:]},
		Signature: *sig,
	}.Execute(tr)
	if err := errors.Join(err, flush(tr, loaded.ObjectHandle)); err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	return &rsp.Validation, o.name, nil
}

// signatureTPM turns ASN.1 DER into a TPMT_SIGNATURE.
func signatureTPM(der []byte) (*tpm2.TPMTSignature, error) {
	input := cryptobyte.String(der)
	var inner cryptobyte.String
	r, s := new(big.Int), new(big.Int)
	if !input.ReadASN1(&inner, cbasn1.SEQUENCE) || !input.Empty() ||
		!inner.ReadASN1Integer(r) || !inner.ReadASN1Integer(s) || !inner.Empty() ||
		r.Sign() <= 0 || s.Sign() <= 0 || r.BitLen() > 256 || s.BitLen() > 256 {
		return nil, errors.New("the signature is not ASN.1 DER of a P-256 signature")
	}
	return &tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
		}),
	}, nil
}
