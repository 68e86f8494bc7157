package signoff

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// An Activation is one notary's word that the node of an enrolment request
// proved, by credential activation, that the certified endorsement key and
// the attestation key live in one TPM.
type Activation struct {
	Charter   Digest `json:"charter"`
	Notary    Digest `json:"notary"`
	Request   Digest `json:"request"`
	Node      Digest `json:"node"`
	Enrolment Digest `json:"enrolment"`
}

// Kind is KindActivation.
func (a *Activation) Kind() Kind { return KindActivation }

// Cluster is the charter the activation belongs to.
func (a *Activation) Cluster() Digest { return a.Charter }

func (a *Activation) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("request", a.Request), dsse.About("enrolment", a.Enrolment)}
}

// Validate refuses missing members.
func (a *Activation) Validate() error {
	if a.Notary.IsZero() || a.Request.IsZero() || a.Node.IsZero() || a.Enrolment.IsZero() {
		return missing("notary, request, node or enrolment")
	}
	return nil
}

// An Epoch fixes one set of node evidence. Verdicts and leases follow from
// the set and the state alone; Root commits to them. An entry whose Root is
// not what the fold computes at its index is void.
type Epoch struct {
	Charter  Digest `json:"charter"`
	Notary   Digest `json:"notary"`
	Number   uint64 `json:"number"`   // from 1
	Previous Digest `json:"previous"` // root of the epoch before; empty at the first
	Policy   Digest `json:"policy"`   // policy in force
	Evidence Digest `json:"evidence"` // blob of an evidence set; zero for none
	Root     Digest `json:"root"`     // Merkle root of the lease leaves
}

// MaxEvidence bounds the pieces of evidence of one epoch, and with them the
// nodes: a set of so many is a blob of 4 MiB.
const MaxEvidence = 1 << 17

// EncodeEvidenceSet writes an evidence set: the digests of the pieces, 32 bytes
// each, ascending and distinct, one behind the other. It sorts them. No evidence
// has no set.
func EncodeEvidenceSet(evidence []Digest) []byte {
	slices.SortFunc(evidence, func(x, y Digest) int { return bytes.Compare(x[:], y[:]) })
	out := make([]byte, 0, len(evidence)*len(Digest{}))
	for _, d := range slices.Compact(evidence) {
		out = append(out, d[:]...)
	}
	return out
}

// ParseEvidenceSet reads what EncodeEvidenceSet writes and nothing else.
func ParseEvidenceSet(blob []byte) ([]Digest, error) {
	const size = len(Digest{})
	if len(blob) == 0 || len(blob)%size != 0 || len(blob) > MaxEvidence*size {
		return nil, fmt.Errorf("evidence set of %d bytes, want 1 to %d digests of %d bytes", len(blob), MaxEvidence, size)
	}
	out := make([]Digest, len(blob)/size)
	for i := range out {
		out[i] = Digest(blob[i*size:])
		if i > 0 && bytes.Compare(out[i-1][:], out[i][:]) >= 0 {
			return nil, fmt.Errorf("evidence %d is not greater than the one before", i)
		}
	}
	return out, nil
}

// Kind is KindEpoch.
func (e *Epoch) Kind() Kind { return KindEpoch }

// Cluster is the charter the epoch belongs to.
func (e *Epoch) Cluster() Digest { return e.Charter }

func (e *Epoch) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("leases", e.Root)}
}

// Validate refuses missing members.
func (e *Epoch) Validate() error {
	if e.Notary.IsZero() || e.Number == 0 || e.Policy.IsZero() || e.Root.IsZero() {
		return missing("notary, number, policy or root")
	}
	return nil
}

// A Claim takes one numbered use of a launch warrant before anything starts.
// Evidence is a fresh quote that names the request and the key, made for this
// use alone, to which the notaries release their shares.
type Claim struct {
	Charter  Digest `json:"charter"`
	Node     Digest `json:"node"`
	Warrant  Digest `json:"warrant"`
	Use      int    `json:"use"` // from 1
	Evidence Digest `json:"evidence"`
	Created  int64  `json:"created"`
	Nonce    []byte `json:"nonce"`           // 16 random bytes
	Resume   Digest `json:"resume,omitzero"` // snapshot of this warrant's earlier uses to open as well
}

// Kind is KindClaim.
func (c *Claim) Kind() Kind { return KindClaim }

// Cluster is the charter the claim belongs to.
func (c *Claim) Cluster() Digest { return c.Charter }

func (c *Claim) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("warrant", c.Warrant)}
}

// Validate checks the form of a claim.
func (c *Claim) Validate() error {
	if c.Node.IsZero() || c.Warrant.IsZero() || c.Evidence.IsZero() {
		return missing("node, warrant or evidence")
	}
	if c.Use < 1 || c.Use > MaxUses {
		return fmt.Errorf("use %d, want 1 to %d", c.Use, MaxUses)
	}
	if c.Created <= 0 || len(c.Nonce) != 16 {
		return missing("created or a 16-byte nonce")
	}
	return nil
}

// The events a receipt can tell.
const (
	EventStarted  = "started"
	EventEnded    = "ended"
	EventExported = "exported"
)

// A Receipt is the signed account of a use: by the node for a claim, by the
// requester for an export.
type Receipt struct {
	Charter Digest `json:"charter"`
	Signer  Digest `json:"signer"` // node id, or the person's
	Warrant Digest `json:"warrant"`
	Claim   Digest `json:"claim"` // empty for an export
	Event   string `json:"event"`
	Detail  string `json:"detail"` // in words: exit status, reason, digest of what was written
	Bytes   int64  `json:"bytes"`
	Created int64  `json:"created"`
}

// Kind is KindReceipt.
func (r *Receipt) Kind() Kind { return KindReceipt }

// Cluster is the charter the receipt belongs to.
func (r *Receipt) Cluster() Digest { return r.Charter }

func (r *Receipt) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("warrant", r.Warrant)}
}

// Validate checks the form of a receipt.
func (r *Receipt) Validate() error {
	if r.Signer.IsZero() || r.Warrant.IsZero() || r.Created <= 0 || r.Bytes < 0 {
		return missing("signer, warrant, created or a count of bytes")
	}
	switch r.Event {
	case EventStarted, EventEnded:
		if r.Claim.IsZero() {
			return missing("claim")
		}
	case EventExported:
	default:
		return fmt.Errorf("event %.40q, want started, ended or exported", r.Event)
	}
	return CheckText("detail", r.Detail)
}

// A Halt stops at once. Any one approver can sign it, it needs no checkpoint
// and no time, and only a final resume that names it lifts it. Exactly one of
// Everything, Request and Node is set.
type Halt struct {
	Charter    Digest `json:"charter"`
	Person     Digest `json:"person"`
	Everything bool   `json:"everything"`
	Request    Digest `json:"request"`
	Node       Digest `json:"node"`
	Reason     string `json:"reason"`
	Created    int64  `json:"created"`
	Nonce      []byte `json:"nonce"` // 16 random bytes
}

// Kind is KindHalt.
func (h *Halt) Kind() Kind { return KindHalt }

// Cluster is the charter the halt belongs to.
func (h *Halt) Cluster() Digest { return h.Charter }

func (h *Halt) subjects() []dsse.Subject {
	switch {
	case !h.Request.IsZero():
		return []dsse.Subject{dsse.About("request", h.Request)}
	case !h.Node.IsZero():
		return []dsse.Subject{dsse.About("node", h.Node)}
	}
	return []dsse.Subject{dsse.About("charter", h.Charter)}
}

// Covers reports whether the halt stops the given request on the given node.
func (h *Halt) Covers(request, node Digest) bool {
	return h.Everything || (!h.Request.IsZero() && h.Request == request) || (!h.Node.IsZero() && h.Node == node)
}

// Like reports whether o has a scope of the same kind: everything, one request or
// one node.
func (h *Halt) Like(o *Halt) bool {
	return h.Everything == o.Everything && h.Request.IsZero() == o.Request.IsZero() && h.Node.IsZero() == o.Node.IsZero()
}

// Validate checks the form of a halt.
func (h *Halt) Validate() error {
	if h.Person.IsZero() || h.Created <= 0 || len(h.Nonce) != 16 {
		return missing("person, created or a 16-byte nonce")
	}
	n := 0
	for _, set := range []bool{h.Everything, !h.Request.IsZero(), !h.Node.IsZero()} {
		if set {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("%d scopes, want exactly one of everything, request, node", n)
	}
	return CheckText("reason", h.Reason)
}
