// Package signoff holds the documents that keyturn's people, notaries and
// nodes sign: charter, request, approval, warrant and the rest. It is pure:
// it reads, writes and checks the form of documents and knows no clock, no
// file and no network. What a document means at its place in the log is
// decided in signoff/authority.
//
// Every document is one in-toto statement (see signoff/dsse). Its subjects
// are derived from its predicate, so a subject can never disagree with what
// is acted on. Its identity is the SHA-256 of its payload. Every document
// but the charter names the charter it belongs to; a document of one cluster
// means nothing in another.
//
// Times are Unix seconds. Public keys are SPKI DER, or SSH blobs of FIDO keys;
// people and keys are named by the SHA-256 of it.
package signoff

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// Digest is a SHA-256 value, written sha256:<hex>.
type Digest = dsse.Digest

// FormatLevel is the highest charter format level this code understands.
const FormatLevel = 1

// A Kind is the last part of a document's predicate type.
type Kind string

// The kinds of format level 1.
const (
	KindCharter    Kind = "charter"
	KindAcceptance Kind = "acceptance"
	KindCommitment Kind = "dkg-commitment"
	KindDealing    Kind = "dkg-dealing"
	KindTranscript Kind = "dkg-transcript"
	KindAnswer     Kind = "dkg-answer"
	KindObject     Kind = "object"
	KindDeals      Kind = "deals"
	KindRequest    Kind = "request"
	KindApproval   Kind = "approval"
	KindWarrant    Kind = "warrant"
	KindActivation Kind = "activation"
	KindTick       Kind = "tick"
	KindEpoch      Kind = "epoch"
	KindClaim      Kind = "claim"
	KindRelease    Kind = "release"
	KindReceipt    Kind = "receipt"
	KindHalt       Kind = "halt"
	KindRecovery   Kind = "recovery"
	KindJoining    Kind = "joining"
	KindTakeover   Kind = "takeover"
	KindPosition   Kind = "position"
	KindRedealing  Kind = "redealing"
	KindCustody    Kind = "custody"
	KindSigning    Kind = "signing"
	KindFault      Kind = "signing-fault"
	KindChallenge  Kind = "challenge"
	KindCeremony   Kind = "ceremony"
)

const (
	predicatePrefix = "https://keyturn.dev/"
	predicateSuffix = "/v1"
)

// PredicateType is the in-toto predicate type of the kind.
func (k Kind) PredicateType() string { return predicatePrefix + string(k) + predicateSuffix }

// A Document is one predicate. Validate checks form alone: bounds, required
// members, text that is safe to show. It needs no state.
type Document interface {
	Kind() Kind
	Validate() error
	// Cluster is the digest of the charter the document belongs to; zero
	// for the charter itself.
	Cluster() Digest
	subjects() []dsse.Subject
}

// empty returns a zero document to decode into, or nil for an unknown kind.
func empty(k Kind) Document {
	switch k {
	case KindCharter:
		return new(Charter)
	case KindAcceptance:
		return new(Acceptance)
	case KindCommitment:
		return new(Commitment)
	case KindDealing:
		return new(Dealing)
	case KindTranscript:
		return new(Transcript)
	case KindAnswer:
		return new(DealerAnswer)
	case KindObject:
		return new(Object)
	case KindDeals:
		return new(Deals)
	case KindRequest:
		return new(Request)
	case KindApproval:
		return new(Approval)
	case KindWarrant:
		return new(Warrant)
	case KindActivation:
		return new(Activation)
	case KindTick:
		return new(Tick)
	case KindEpoch:
		return new(Epoch)
	case KindClaim:
		return new(Claim)
	case KindRelease:
		return new(Release)
	case KindReceipt:
		return new(Receipt)
	case KindHalt:
		return new(Halt)
	case KindSigning:
		return new(Signing)
	case KindFault:
		return new(SigningFault)
	case KindChallenge:
		return new(Challenge)
	case KindRedealing:
		return new(Redealing)
	case KindCustody:
		return new(Custody)
	case KindPosition:
		return new(Position)
	case KindRecovery:
		return new(Recovery)
	case KindCeremony:
		return new(Ceremony)
	case KindJoining:
		return new(Joining)
	case KindTakeover:
		return new(Takeover)
	}
	return nil
}

// Write validates d and returns the payload to sign.
func Write(d Document) ([]byte, error) {
	if err := check(d); err != nil {
		return nil, err
	}
	return dsse.Statement(d.Kind().PredicateType(), d.subjects(), d)
}

// Read parses a payload strictly and validates its form.
func Read(payload []byte) (Document, error) {
	pt, predicate, err := dsse.OpenStatement(payload)
	if err != nil {
		return nil, err
	}
	d := empty(kindOf(pt))
	if d == nil {
		return nil, fmt.Errorf("signoff: read document: kind %.100q is unknown at format level %d; a newer keyturn may know it", pt, FormatLevel)
	}
	if err := dsse.Decode(predicate, d); err != nil {
		return nil, fmt.Errorf("signoff: read %s: %w", d.Kind(), err)
	}
	if err := check(d); err != nil {
		return nil, err
	}
	// Nothing above looked at the subjects, nor at how the payload is spelt.
	want, err := dsse.Statement(pt, d.subjects(), d)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(want, payload) {
		return nil, fmt.Errorf("signoff: read %s: not in canonical form, or its subjects are not those its predicate names", d.Kind())
	}
	return d, nil
}

func kindOf(predicateType string) Kind {
	n := len(predicateType) - len(predicateSuffix)
	if n <= len(predicatePrefix) || predicateType[:len(predicatePrefix)] != predicatePrefix || predicateType[n:] != predicateSuffix {
		return ""
	}
	return Kind(predicateType[len(predicatePrefix):n])
}

func check(d Document) error {
	if d.Kind() != KindCharter && d.Cluster().IsZero() {
		return fmt.Errorf("signoff: %s names no charter", d.Kind())
	}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("signoff: %s: %w", d.Kind(), err)
	}
	return nil
}

// Signed is a document with its envelope. The signature has not been
// verified: who may sign which kind is for the authority to say.
type Signed struct {
	*dsse.Envelope
	Doc Document
}

// ReadLine parses one log leaf.
func ReadLine(line []byte) (*Signed, error) {
	env, err := dsse.Parse(line)
	if err != nil {
		return nil, err
	}
	doc, err := Read(env.Payload)
	if err != nil {
		return nil, err
	}
	return &Signed{env, doc}, nil
}

// Sign writes and signs d with k.
func Sign(ctx context.Context, k hsm.Key, d Document) (*Signed, error) {
	payload, err := Write(d)
	if err != nil {
		return nil, err
	}
	env, err := dsse.Sign(ctx, k, payload)
	if err != nil {
		return nil, err
	}
	return &Signed{env, d}, nil
}

var errMissing = errors.New("is missing")

func missing(field string) error { return fmt.Errorf("%s %w", field, errMissing) }
