package signoff

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// Bounds of a SigningFault. A warrant's payload with all 64 approvals is half
// of that, a Signing's line less than half.
const (
	maxFaultMessage = 4096
	maxFaultPayload = 16384
	commitmentSize  = 2 + 32 + 32 // frost.Commitment
)

// FrostList names a session of signers by its commitments, encoded, in order.
// Signers sign it beside their shares.
func FrostList(commitments [][]byte) Digest {
	return dsse.Sum("keyturn/frost-list/v1", commitments...)
}

// A SigningFault shows that a notary cheated while a warrant was signed. The
// proof is the accused's own signed message. If its share is wrong, Payload and
// List say of what it had to be a share; the message names both, so no others
// fit. If its offer is malformed, the message is all there is to it.
type SigningFault struct {
	Charter Digest   `json:"charter"`
	Notary  Digest   `json:"notary"` // that shows it
	Accused Digest   `json:"accused"`
	Message string   `json:"message"`           // bundle line of the accused's Signing
	Payload []byte   `json:"payload,omitempty"` // that was to be signed
	List    [][]byte `json:"list,omitempty"`    // the session's commitments, 66 bytes each
}

// Kind is KindFault.
func (f *SigningFault) Kind() Kind { return KindFault }

// Cluster is the charter the fault belongs to.
func (f *SigningFault) Cluster() Digest { return f.Charter }

func (f *SigningFault) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("accused", f.Accused)}
}

// OfShare reports whether the share in the message is what is shown, rather
// than the offer.
func (f *SigningFault) OfShare() bool { return len(f.List) > 0 }

// Said is the accused's message, whose signature has not been verified.
func (f *SigningFault) Said() (*Signed, *Signing, error) {
	said, err := ReadLine([]byte(f.Message))
	if err != nil {
		return nil, nil, fmt.Errorf("message: %w", err)
	}
	m, ok := said.Doc.(*Signing)
	if !ok {
		return nil, nil, fmt.Errorf("message: a %s, want a %s", said.Doc.Kind(), KindSigning)
	}
	return said, m, nil
}

// Validate wants a message of the accused, and with it exactly the payload and
// the list that it names, or neither.
func (f *SigningFault) Validate() error {
	if f.Notary.IsZero() || f.Accused.IsZero() {
		return missing("notary or accused")
	}
	if n := len(f.Message); n > maxFaultMessage {
		return fmt.Errorf("a message of %d bytes, at most %d", n, maxFaultMessage)
	}
	if n := len(f.Payload); n > maxFaultPayload {
		return fmt.Errorf("a payload of %d bytes, at most %d", n, maxFaultPayload)
	}
	_, m, err := f.Said()
	if err != nil {
		return err
	}
	if m.Charter != f.Charter || m.Notary != f.Accused {
		return fmt.Errorf("the message is notary %s's of charter %s, accused is %s of %s", m.Notary, m.Charter, f.Accused, f.Charter)
	}
	if !f.OfShare() && len(f.Payload) == 0 {
		if len(m.Offer) == 0 {
			return errors.New("neither payload and list for the message's share, nor an offer in it")
		}
		return nil
	}
	return f.checkShare(m)
}

func (f *SigningFault) checkShare(m *Signing) error {
	if n := len(f.List); n < 2 || n > MaxNotaries {
		return fmt.Errorf("a list of %d commitments, want 2 to %d", n, MaxNotaries)
	}
	for _, c := range f.List {
		if len(c) != commitmentSize {
			return fmt.Errorf("a commitment of %d bytes, want %d", len(c), commitmentSize)
		}
	}
	if len(m.Share) == 0 {
		return missing("a share in the message")
	}
	if got := Digest(sha256.Sum256(f.Payload)); got != m.Payload {
		return fmt.Errorf("payload %s, the message's share is of %s", got, m.Payload)
	}
	if got := FrostList(f.List); got != m.List {
		return fmt.Errorf("list %s, the message's share is for %s", got, m.List)
	}
	return nil
}
