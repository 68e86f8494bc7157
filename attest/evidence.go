package attest

import (
	"crypto/ecdh"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
)

// DomainEpoch and DomainClaim name the two purposes of a quote: to renew a
// lease, and to take one use of a warrant.
const (
	DomainEpoch = "keyturn/epoch/v1"
	DomainClaim = "keyturn/claim/v1"
)

// A Binding is what a quote's extra data stands for.
type Binding struct {
	Domain     string // one of the Domain constants
	Nonce      []byte // the verifier's, 16 to 64 bytes
	AgentNonce []byte // the agent's own, by which it knows a current answer; 16 to 64 bytes
	TLSName    []byte // TPM name of the node's TLS key
	FreshName  []byte // TPM name of the key made for this use, empty for none
	Request    Digest // what the use is for, zero for none
	EventLog   Digest // SHA-256 of the firmware's log
	IMA        Digest // SHA-256 of the part of the kernel's list that comes with it, zero for none
	IMAFrom    uint64 // where in the list that part begins, bytes
}

// Digest returns SHA-256 over the length-prefixed fields, in the order of the
// struct: the extra data to sign.
func (b Binding) Digest() [32]byte {
	return sum("keyturn/quote/v1", []byte(b.Domain), b.Nonce, b.AgentNonce, b.TLSName, b.FreshName, b.Request[:],
		b.EventLog[:], b.IMA[:], binary.BigEndian.AppendUint64(nil, b.IMAFrom))
}

// Evidence is what a node hands in to be appraised. The quote's extra data or
// its PCR digest cover all of it but the signature, so nobody can present a
// node's quote with other logs or other values: see [Verdict.Proved].
type Evidence struct {
	Node       Digest         `json:"node"`
	AKName     []byte         `json:"akName"`
	Quote      []byte         `json:"quote"`            // TPMS_ATTEST
	Signature  []byte         `json:"signature"`        // TPMT_SIGNATURE
	PCRs       map[int]Digest `json:"pcrs"`             // sha256 bank
	EventLog   Digest         `json:"eventLog"`         // SHA-256 of binary_bios_measurements
	IMA        Digest         `json:"ima,omitzero"`     // SHA-256 of binary_runtime_measurements from IMAFrom on; zero for none
	IMAFrom    uint64         `json:"imaFrom,omitzero"` // bytes of the list that were proved before in this boot
	TLSName    []byte         `json:"tlsName"`
	Fresh      *CertifiedKey  `json:"fresh,omitempty"`
	AgentNonce []byte         `json:"agentNonce"`
}

// ParseEvidence decodes evidence strictly: unknown, duplicate and case-folded
// members are refused, and so is what is larger than any real machine's.
func ParseEvidence(data []byte) (*Evidence, error) {
	if len(data) > maxEvidence {
		return nil, fmt.Errorf("attest: evidence of %d bytes is too long", len(data))
	}
	var ev Evidence
	if err := json.Unmarshal(data, &ev, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("attest: parse evidence: %w", err)
	}
	return &ev, nil
}

// Marshal encodes evidence so that equal evidence gives equal bytes.
func (ev *Evidence) Marshal() ([]byte, error) {
	b, err := json.Marshal(ev, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("attest: encode evidence: %w", err)
	}
	return b, nil
}

// ParseEnrolment decodes an enrolment strictly. It proves nothing: see
// [VerifyEnrolment].
func ParseEnrolment(data []byte) (*Enrolment, error) {
	if len(data) > 2*(maxChain+1)*maxCert+16*maxPublic {
		return nil, fmt.Errorf("attest: enrolment of %d bytes is too long", len(data))
	}
	var e Enrolment
	if err := json.Unmarshal(data, &e, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("attest: parse enrolment: %w", err)
	}
	return &e, nil
}

// Marshal encodes an enrolment.
func (e *Enrolment) Marshal() ([]byte, error) {
	b, err := json.Marshal(e, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("attest: encode enrolment: %w", err)
	}
	return b, nil
}

// FreshKey returns the key made for one use as the evidence names it. It proves
// nothing: see [Verify].
func (ev *Evidence) FreshKey() (*ecdh.PublicKey, error) {
	if ev.Fresh == nil {
		return nil, errors.New("attest: the evidence names no key made for this use")
	}
	p, err := ParsePublic(ev.Fresh.Public)
	if err != nil {
		return nil, err
	}
	return p.p256DH()
}

// verifyFresh checks the key made for one use: certified by the node's AK, a
// P-256 decryption key of the NULL hierarchy, made in the boot that was quoted.
// It returns nothing where the evidence names none.
func (ev *Evidence) verifyFresh(n *Node) (*ecdh.PublicKey, []byte, Clock, error) {
	if ev.Fresh == nil {
		return nil, nil, Clock{}, nil
	}
	c, err := n.certified(*ev.Fresh, RoleFresh, handleNull)
	if err != nil {
		return nil, nil, Clock{}, err
	}
	key, err := c.Public.p256DH()
	if err != nil {
		return nil, nil, Clock{}, err
	}
	if key.Equal(n.StorageKey) {
		return nil, nil, Clock{}, errors.New("fresh key: it is the storage key")
	}
	return key, c.Public.Name(), c.Clock, nil
}
