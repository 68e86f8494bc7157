package signoff

import (
	"fmt"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// A Decision is what a person says of a request.
type Decision string

// Approve counts toward the rule's quorum. Reject takes the person's approval
// back and, where the rule gives the person a veto, ends the request.
// Withdraw takes back an approval; by the requester it ends the request.
const (
	Approve  Decision = "approve"
	Reject   Decision = "reject"
	Withdraw Decision = "withdraw"
)

// An Approval is one person's signed decision, of whichever kind.
type Approval struct {
	Charter  Digest   `json:"charter"`
	Request  Digest   `json:"request"`
	Person   Digest   `json:"person"`
	Decision Decision `json:"decision"`
	Rule     Digest   `json:"rule"` // digest of the rule as displayed
	Reason   string   `json:"reason"`
	Created  int64    `json:"created"`
	Expiry   int64    `json:"expiry"`
	Nonce    []byte   `json:"nonce"`
	Display  Digest   `json:"display"` // SHA-256 of the text that was shown
	Seen     Seen     `json:"seen"`

	// Shares carries the person's share of each of the request's objects,
	// re-sealed to each recipient. Present on an approve of a request that
	// names objects and on nothing else.
	Shares []Share `json:"shares,omitempty"`
}

// A Share is one holder's share of one object, sealed to one recipient.
type Share struct {
	Object    Digest `json:"object"`
	Epoch     uint32 `json:"epoch"` // of the deal it came from
	Index     uint16 `json:"index"` // the holder's, from 1
	Recipient Digest `json:"recipient"`
	Sealed    []byte `json:"sealed"` // HPKE, as package lockbox writes it
}

// Bounds of shares in one document: objects × recipients, and one ciphertext.
const (
	MaxShares      = 160
	MaxSealedShare = 2048
)

func (s Share) check() error {
	if s.Object.IsZero() || s.Recipient.IsZero() || s.Index == 0 {
		return missing("a share's object, recipient or index")
	}
	if n := len(s.Sealed); n == 0 || n > MaxSealedShare {
		return fmt.Errorf("a sealed share of %d bytes, want 1 to %d", n, MaxSealedShare)
	}
	return nil
}

// Kind is KindApproval.
func (a *Approval) Kind() Kind { return KindApproval }

// Cluster is the charter the approval belongs to.
func (a *Approval) Cluster() Digest { return a.Charter }

func (a *Approval) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("request", a.Request)}
}

// Validate checks the form of a decision.
func (a *Approval) Validate() error {
	if a.Request.IsZero() || a.Person.IsZero() || a.Rule.IsZero() || a.Display.IsZero() {
		return missing("request, person, rule or display")
	}
	switch a.Decision {
	case Approve, Reject, Withdraw:
	default:
		return fmt.Errorf("decision %.40q, want approve, reject or withdraw", a.Decision)
	}
	if err := CheckText("reason", a.Reason); err != nil {
		return err
	}
	if err := checkLife(a.Created, a.Expiry, a.Nonce); err != nil {
		return err
	}
	if len(a.Shares) > MaxShares || (a.Decision != Approve && len(a.Shares) > 0) {
		return fmt.Errorf("%d shares on %s, want at most %d and only on approve", len(a.Shares), a.Decision, MaxShares)
	}
	for _, s := range a.Shares {
		if err := s.check(); err != nil {
			return err
		}
	}
	return a.Seen.check()
}

// A Warrant is the notaries' joint act on one satisfied request: signed with
// the group key, one plain Ed25519 signature. Every field follows from the
// log, so all notaries derive the same bytes.
type Warrant struct {
	Charter   Digest   `json:"charter"`
	Request   Digest   `json:"request"`
	Action    string   `json:"action"`
	Policy    Digest   `json:"policy"`    // policy in force
	Rule      Digest   `json:"rule"`      // rule satisfied
	Index     uint64   `json:"index"`     // of the entry that satisfied it
	Approvals []Digest `json:"approvals"` // those counted, in log order
	Issued    int64    `json:"issued"`    // fold time at Index
	Expiry    int64    `json:"expiry"`
	Uses      int      `json:"uses"`
}

// Kind is KindWarrant.
func (w *Warrant) Kind() Kind { return KindWarrant }

// Cluster is the charter the warrant belongs to.
func (w *Warrant) Cluster() Digest { return w.Charter }

func (w *Warrant) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("request", w.Request)}
}

// Validate checks the form of a warrant.
func (w *Warrant) Validate() error {
	if w.Request.IsZero() || w.Policy.IsZero() || w.Rule.IsZero() || w.Action == "" {
		return missing("request, policy, rule or action")
	}
	if err := checkDigests("approvals", w.Approvals, MaxPeople); err != nil {
		return err
	}
	if w.Issued <= 0 || w.Expiry <= w.Issued {
		return fmt.Errorf("issued %d and expiry %d: want a positive time and a later one", w.Issued, w.Expiry)
	}
	if w.Uses < 1 || w.Uses > MaxUses {
		return fmt.Errorf("uses %d, want 1 to %d", w.Uses, MaxUses)
	}
	return nil
}
