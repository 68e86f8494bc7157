package signoff

import (
	"fmt"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// The documents in this file travel through the mailbox and never enter the
// log: they matter only while something is being made.

// A Signing is one notary's message while a warrant is being signed (RFC 9591
// with ROAST): an offer of a fresh nonce commitment, a share, or both. A share
// is signed together with its session and the list of commitments it answers,
// so that a wrong one names its maker.
type Signing struct {
	Charter Digest `json:"charter"`
	Notary  Digest `json:"notary"`
	Payload Digest `json:"payload"` // SHA-256 of the warrant's payload
	Term    uint32 `json:"term"`    // whose shares sign, from 1
	Attempt uint32 `json:"attempt"` // from 1
	Offer   []byte `json:"offer"`   // frost.Commitment, or empty
	Session int    `json:"session"` // that Share belongs to, from 0
	List    Digest `json:"list"`    // of the session's commitments; empty without a share
	Share   []byte `json:"share"`   // 32 bytes, or empty
}

// Kind is KindSigning.
func (s *Signing) Kind() Kind { return KindSigning }

// Cluster is the charter the message belongs to.
func (s *Signing) Cluster() Digest { return s.Charter }

func (s *Signing) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("payload", s.Payload)}
}

// Validate wants an offer or a share.
func (s *Signing) Validate() error {
	if s.Notary.IsZero() || s.Payload.IsZero() || s.Term == 0 || s.Attempt == 0 {
		return missing("notary, payload, term or attempt")
	}
	if len(s.Offer) == 0 && len(s.Share) == 0 {
		return missing("an offer or a share")
	}
	if len(s.Offer) > 128 || (len(s.Share) != 0 && len(s.Share) != 32) {
		return fmt.Errorf("an offer of %d and a share of %d bytes", len(s.Offer), len(s.Share))
	}
	if len(s.Share) == 32 && s.List.IsZero() {
		return missing("the list that the share answers")
	}
	if s.Session < 0 || s.Session > 1<<16 {
		return fmt.Errorf("session %d is out of range", s.Session)
	}
	return nil
}

// A Challenge is one notary's TPM2_MakeCredential for the keys of an
// enrolment request. The node answers with the secret in it.
type Challenge struct {
	Charter    Digest `json:"charter"`
	Notary     Digest `json:"notary"`
	Request    Digest `json:"request"`
	Credential []byte `json:"credential"` // TPM2B_ID_OBJECT contents
	Secret     []byte `json:"secret"`     // TPM2B_ENCRYPTED_SECRET contents
}

// Kind is KindChallenge.
func (c *Challenge) Kind() Kind { return KindChallenge }

// Cluster is the charter the challenge belongs to.
func (c *Challenge) Cluster() Digest { return c.Charter }

func (c *Challenge) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("request", c.Request)}
}

// Validate refuses missing members.
func (c *Challenge) Validate() error {
	if c.Notary.IsZero() || c.Request.IsZero() || len(c.Credential) == 0 || len(c.Secret) == 0 {
		return missing("notary, request, credential or secret")
	}
	if len(c.Credential) > 1024 || len(c.Secret) > 1024 {
		return fmt.Errorf("a credential of %d and a secret of %d bytes, at most 1024", len(c.Credential), len(c.Secret))
	}
	return nil
}

// An Answer is a node's reply to a Challenge. The decrypted secret proves
// itself, so nothing signs it.
type Answer struct {
	Request Digest `json:"request"`
	Notary  Digest `json:"notary"`
	Secret  []byte `json:"secret"`
}
