// Package release is the bundle that goes with exported weights: everything
// that a recipient needs, besides the recipient's own key and the digest of the
// charter, to know that the export was decided and to open it, with no server
// to ask.
//
// A bundle holds documents of the log, each as the bundle line that stands
// there. Nothing in it is trusted; all of it follows from the charter's digest:
//
//	charter      has that digest; it names people, notaries and the log key
//	transcripts  one of every notary: together they name the group key
//	people       only if people changed: each request that did it, signed, with
//	             its warrant, signed by the group key
//	recovery     only if the log key was replaced: a quorum of notaries says so
//	terms        only if the notaries changed: for each later term the request
//	             that lists its council, the warrant that grants it, and a
//	             checkpoint that quorums of the old and the new one cosigned
//	sharing      only if the people's shares were dealt anew: the epoch's
//	             commitments, which must continue those of the object
//	machines     only if the notaries' shares were: likewise
//	object       signed by its sealer; its digest is the object id
//	request      signed by its requester; names object and recipient's key
//	warrant      signed by the group key for that request
//	proof        the warrant's entry lies under a checkpoint that a quorum of
//	             notaries cosigned
//	approvals    all that the warrant counts, each signed, with that person's
//	             share sealed to the recipient
//	releases     of a quorum of notaries, each signed, with that notary's share
//
// [Bundle.Verify] checks this. [Release.Unlock] then opens shares with the
// recipient's key until both sides have enough good ones.
//
// The package is pure: no files, no network, no clock.
package release

import (
	"fmt"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// Digest is a SHA-256 value, written sha256:<hex>.
type Digest = dsse.Digest

// Version heads every bundle.
const Version = "keyturn release 1"

// MaxSize bounds a bundle in bytes: every member is a log entry, and there are
// at most as many as a charter has people and notaries, with a few beside.
const MaxSize = 16 << 20

// A Bundle is a release bundle as the file release.json holds it. Documents are
// bundle lines without their newline, as package dsse writes them.
type Bundle struct {
	Version     string   `json:"version"`
	Charter     string   `json:"charter"`
	Transcripts []string `json:"transcripts"`
	People      []Change `json:"people,omitempty"` // before the warrant, in the log's order
	Recovery    string   `json:"recovery,omitempty"`
	Terms       []Term   `json:"terms,omitempty"`
	Sharing     [][]byte `json:"sharing,omitempty"`  // of the people's side, in the epoch of the approvals' shares
	Machines    [][]byte `json:"machines,omitempty"` // likewise of the notaries' side
	Object      string   `json:"object"`
	Request     string   `json:"request"`
	Warrant     string   `json:"warrant"`
	Proof       string   `json:"proof"` // c2sp.org/tlog-proof of the warrant's entry
	Approvals   []string `json:"approvals"`
	Releases    []string `json:"releases"`
}

// A Change is a change of people that took effect.
type Change struct {
	Request string `json:"request"`
	Warrant string `json:"warrant"`
}

// A Term is what puts the council of one further term into office.
type Term struct {
	Request  string `json:"request"`
	Warrant  string `json:"warrant"`
	Takeover string `json:"takeover"`
	Recovery string `json:"recovery,omitempty"` // of the log key, in this term
}

// Parse reads a bundle strictly. It verifies nothing.
func Parse(data []byte) (*Bundle, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("release: a bundle of %d bytes, at most %d", len(data), MaxSize)
	}
	var b Bundle
	if err := dsse.Decode(data, &b); err != nil {
		return nil, fmt.Errorf("release: read bundle: %w", err)
	}
	if b.Version != Version {
		return nil, fmt.Errorf("release: version %.40q, this program reads %q", b.Version, Version)
	}
	return &b, nil
}

// Marshal writes the bundle with a newline.
func (b *Bundle) Marshal() ([]byte, error) {
	out, err := dsse.Encode(b)
	if err != nil {
		return nil, fmt.Errorf("release: write bundle: %w", err)
	}
	return append(out, '\n'), nil
}
