// Package dsse is the ground floor of every signed document: an in-toto
// Statement v1 inside a DSSE envelope with exactly one signature, written as
// a one-line sigstore bundle v0.3.
//
// A document's identity is the SHA-256 of its payload, not of its signature:
// ECDSA signatures can be altered without the key, payloads cannot. The
// payload is kept and verified verbatim; nothing is ever signed over bytes
// that were parsed and written again.
//
// Parsing is strict. A line must be byte for byte what Line would write, and
// unknown, duplicate or case-folded members are refused, so two readers can
// never see two documents in one line.
//
// Sources: DSSE v1 (secure-systems-lab/dsse, protocol.md), in-toto
// attestation Statement v1, sigstore protobuf-specs bundle v0.3.
package dsse

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json"

	"github.com/keyturn/keyturn/hsm"
)

// PayloadType is the DSSE payload type of every keyturn document.
const PayloadType = "application/vnd.in-toto+json"

// MediaType names the bundle format: sigstore bundle v0.3.
const MediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// StatementType is the in-toto statement type of every payload.
const StatementType = "https://in-toto.io/Statement/v1"

// An Envelope is one signed document. Hint is the fingerprint of the
// signer's key; it says which key to try and is not itself signed.
type Envelope struct {
	Payload []byte
	Sig     []byte
	Hint    Digest
}

// PAE is DSSE's pre-authentication encoding of a payload: the exact bytes a
// document's signature covers (DSSE protocol.md, "Signature Definition").
func PAE(payload []byte) []byte {
	out := []byte("DSSEv1 " + strconv.Itoa(len(PayloadType)) + " " + PayloadType + " " + strconv.Itoa(len(payload)) + " ")
	return append(out, payload...)
}

// bundle mirrors the members of a sigstore bundle that keyturn uses. A
// "keyid" is left out on purpose: cosign refuses bundles that carry one.
type bundle struct {
	MediaType    string       `json:"mediaType"`
	Verification verification `json:"verificationMaterial"`
	Envelope     envelope     `json:"dsseEnvelope"`
}

type verification struct {
	PublicKey publicKey `json:"publicKey"`
}

type publicKey struct {
	Hint []byte `json:"hint"`
}

type envelope struct {
	Payload     []byte      `json:"payload"`
	PayloadType string      `json:"payloadType"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	Sig []byte `json:"sig"`
}

// Parse reads one bundle line without its newline. It checks form only;
// Verify checks the signature.
func Parse(line []byte) (*Envelope, error) { return parse(line, MaxLine) }

// ParseFile is Parse for a document that never enters the log, of up to
// MaxFile bytes.
func ParseFile(line []byte) (*Envelope, error) { return parse(line, MaxFile) }

func parse(line []byte, most int) (*Envelope, error) {
	if len(line) == 0 {
		return nil, errors.New("dsse: parse bundle: empty line")
	}
	if len(line) > most {
		return nil, fmt.Errorf("dsse: parse bundle: %d bytes, at most %d are allowed", len(line), most)
	}
	if e := cut(line); e != nil && bytes.Equal(e.Line(), line) {
		return e, nil
	}
	return nil, explain(line)
}

// The frame of a bundle line: there is one way to write it, so it can be cut
// instead of parsed.
const (
	frameHint    = `{"mediaType":"` + MediaType + `","verificationMaterial":{"publicKey":{"hint":"`
	framePayload = `"}},"dsseEnvelope":{"payload":"`
	frameSig     = `","payloadType":"` + PayloadType + `","signatures":[{"sig":"`
	frameEnd     = `"}]}}`
)

// cut takes a line apart along its frame, and returns nil for any other line.
func cut(line []byte) *Envelope {
	rest, ok1 := bytes.CutPrefix(line, []byte(frameHint))
	hint, rest, ok2 := bytes.Cut(rest, []byte(framePayload))
	payload, rest, ok3 := bytes.Cut(rest, []byte(frameSig))
	sig, ok4 := bytes.CutSuffix(rest, []byte(frameEnd))
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return nil
	}
	var parts [3][]byte
	for i, text := range [][]byte{hint, payload, sig} {
		b, err := base64.StdEncoding.AppendDecode(nil, text)
		if err != nil {
			return nil
		}
		parts[i] = b
	}
	e := &Envelope{Payload: parts[1], Sig: parts[2]}
	if len(parts[0]) != len(e.Hint) || len(e.Sig) == 0 || len(e.Sig) > MaxSignature {
		return nil
	}
	copy(e.Hint[:], parts[0])
	return e
}

// explain says what is wrong with a line that has no canonical form. It never
// returns nil.
func explain(line []byte) error {
	var b bundle
	if err := Decode(line, &b); err != nil {
		return fmt.Errorf("dsse: parse bundle: %w", err)
	}
	switch n := len(b.Envelope.Signatures); {
	case b.MediaType != MediaType:
		return fmt.Errorf("dsse: parse bundle: media type %q, want %q", b.MediaType, MediaType)
	case b.Envelope.PayloadType != PayloadType:
		return fmt.Errorf("dsse: parse bundle: payload type %q, want %q", b.Envelope.PayloadType, PayloadType)
	case n != 1:
		return fmt.Errorf("dsse: parse bundle: %d signatures, want exactly 1", n)
	case len(b.Verification.PublicKey.Hint) != len(Digest{}):
		return fmt.Errorf("dsse: parse bundle: key hint of %d bytes, want %d", len(b.Verification.PublicKey.Hint), len(Digest{}))
	case len(b.Envelope.Signatures[0].Sig) == 0 || len(b.Envelope.Signatures[0].Sig) > MaxSignature:
		return fmt.Errorf("dsse: parse bundle: signature of %d bytes, want 1 to %d", len(b.Envelope.Signatures[0].Sig), MaxSignature)
	}
	return errors.New("dsse: parse bundle: not in canonical form (member order, spacing or base64 differ from what keyturn writes)")
}

// Line writes the document as one bundle line, without a newline.
func (e *Envelope) Line() []byte {
	out := make([]byte, 0, len(frameHint)+len(framePayload)+len(frameSig)+len(frameEnd)+4*(len(e.Hint)+len(e.Payload)+len(e.Sig))/3+12)
	out = base64.StdEncoding.AppendEncode(append(out, frameHint...), e.Hint[:])
	out = base64.StdEncoding.AppendEncode(append(out, framePayload...), e.Payload)
	out = base64.StdEncoding.AppendEncode(append(out, frameSig...), e.Sig)
	return append(out, frameEnd...)
}

// Digest is the document's identity: SHA-256 of the payload.
func (e *Envelope) Digest() Digest { return sha256.Sum256(e.Payload) }

// Sign makes a document of payload with k. The signature is verified before
// it is returned.
func Sign(ctx context.Context, k hsm.Key, payload []byte) (*Envelope, error) {
	return sign(ctx, k, payload, MaxPayload)
}

// SignFile is Sign for a document that never enters the log.
func SignFile(ctx context.Context, k hsm.Key, payload []byte) (*Envelope, error) {
	return sign(ctx, k, payload, MaxFile/4*3)
}

func sign(ctx context.Context, k hsm.Key, payload []byte, most int) (*Envelope, error) {
	if len(payload) == 0 || len(payload) > most {
		return nil, fmt.Errorf("dsse: sign: payload of %d bytes, want 1 to %d", len(payload), most)
	}
	hint, err := hsm.Fingerprint(k.Public())
	if err != nil {
		return nil, fmt.Errorf("dsse: sign: %w", err)
	}
	sig, err := hsm.SignMessage(ctx, k, PAE(payload))
	if err != nil {
		return nil, fmt.Errorf("dsse: sign: %w", err)
	}
	return &Envelope{Payload: payload, Sig: sig, Hint: hint}, nil
}

// Verify checks the signature with pub and that the hint names pub.
func (e *Envelope) Verify(pub crypto.PublicKey) error {
	fp, err := hsm.Fingerprint(pub)
	if err != nil {
		return fmt.Errorf("dsse: verify: %w", err)
	}
	return e.VerifyKnown(fp, pub)
}

// VerifyKnown is Verify with a key whose fingerprint the caller worked out
// before and keeps beside it.
func (e *Envelope) VerifyKnown(fingerprint Digest, pub crypto.PublicKey) error {
	if e.Hint != fingerprint {
		return fmt.Errorf("dsse: verify: the document names key %s, not %s", e.Hint, fingerprint)
	}
	if err := hsm.VerifyMessage(pub, PAE(e.Payload), e.Sig); err != nil {
		return fmt.Errorf("dsse: verify: %w", err)
	}
	return nil
}

// Decode reads JSON strictly: unknown, duplicate and case-folded members,
// invalid UTF-8 and trailing data are errors.
func Decode(data []byte, v any) error {
	return json.Unmarshal(data, v, json.RejectUnknownMembers(true))
}

// Encode writes JSON with map members in sorted order, so that equal values
// give equal bytes.
func Encode(v any) ([]byte, error) {
	return json.Marshal(v, json.Deterministic(true))
}
