package authority

import (
	"crypto"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/policy"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// Digest is a SHA-256 value, written sha256:<hex>.
type Digest = dsse.Digest

// State is everything the log says so far. It is read by all and written only
// by commit. Records are replaced, never changed in place, so a record that
// was read stays what it was.
type State struct {
	ID      Digest           // of the charter
	Charter *signoff.Charter // nil until entry 0 was folded
	Time    int64            // Unix seconds, moved by ticks only
	InForce bool             // every founding person has accepted
	LogKey  signoff.PublicKey

	Recoveries uint64 // how often the log key was replaced
	Recovered  uint64 // size of the log with the last Recovery in it, 0 if none

	Accepted   map[Digest]bool
	People     *Roster
	Tokens     map[Digest]Owned // every token of people there ever was, by signing key
	Policy     *PolicyRecord
	Terms      []*Term       // all councils that were in office, that which is last
	Watches    []Watch       // whose signatures made checkpoints, from which size on
	Keygen     *Keygen       // the making of shares that is under way, or the last one
	Aborts     []*Abort      // every attempt at shares that accusations ended, in order
	Convicts   []*Conviction // of notaries that cheated while a warrant was signed, in order
	Group      *frost.Group  // of the council in office; nil until the key generation is complete
	Ticks      *TickRound
	Requests   map[Digest]*Request
	Warrants   map[Digest]*Warrant
	Objects    map[Digest]*Object
	Nodes      map[Digest]*Node
	Claims     map[Digest]*Claim
	Halts      map[Digest]*Halt
	Releases   map[Digest][]*signoff.Release // by claim, or by warrant for an export
	References map[Digest]*Reference         // every set ever in force, by digest
	EKRoots    map[Digest]*EKRoot            // every one ever in force, by digest
	Ceremonies map[Digest]*Ceremony          // by last record
	Epoch      *Epoch
	Documents  map[Digest]uint64 // documents that took effect, with their index

	signers    map[Digest]signer      // whose word counts now: people, notaries and the group, by signing key
	groupID    Digest                 // fingerprint of the group key
	logKeys    map[Digest]bool        // every key that ever signed checkpoints, by fingerprint
	inForce    []*Reference           // see ReferencesInForce
	referenced uint64                 // index of the last entry that changed reference sets, 0 for the charter's
	consulted  []*attest.ReferenceSet // see ReferenceSets

	// What the records above say, by other keys: with 100,000 nodes nothing
	// may look through all of them for one.
	named    map[string]Digest // nodes by name
	nodeKeys map[Digest]Digest // nodes by the keys they brought
	fresh    map[Digest]Digest // claims by fingerprint of their key
}

// A PolicyRecord is the policy in force.
type PolicyRecord struct {
	Digest   Digest           `json:"digest"`
	Index    uint64           `json:"index"`
	Compiled *policy.Compiled `json:"-"`
	Text     string           `json:"-"`
}

// A Request is a request and what became of it.
type Request struct {
	ID        Digest           `json:"id"`
	Doc       *signoff.Request `json:"-"`
	Index     uint64           `json:"index"`
	Time      int64            `json:"time"` // the fold's, at Index
	Votes     []Vote           `json:"votes"`
	Satisfied *Satisfied       `json:"satisfied"`
	Ended     string           `json:"ended"` // why it can no longer be approved; empty while open
	Warrant   Digest           `json:"warrant"`
	Activated []Digest         `json:"activated"` // notaries, for an enrolment; new tokens, for a change of people
	Joined    []Digest         `json:"joined"`    // notaries, for a change of them

	Set *attest.ReferenceSet `json:"-"` // that it would adopt, nil for other actions

	shown shown // when it was made
}

// A Vote is one person's latest decision on one request.
type Vote struct {
	Approval Digest            `json:"approval"`
	Signer   Digest            `json:"signer"` // the signing key
	Index    uint64            `json:"index"`
	Time     int64             `json:"time"` // the fold's, at Index
	Doc      *signoff.Approval `json:"-"`
}

// Satisfied says at which entry a request's rule was met and by what.
type Satisfied struct {
	Index     uint64   `json:"index"`
	Time      int64    `json:"time"`
	Rule      Digest   `json:"rule"`
	Policy    Digest   `json:"policy"`
	Approvals []Digest `json:"approvals"`
}

// A Warrant is a warrant that took effect.
type Warrant struct {
	ID       Digest           `json:"id"`
	Doc      *signoff.Warrant `json:"-"`
	Index    uint64           `json:"index"`
	Used     int              `json:"used"`
	Exported bool             `json:"exported"`
}

// An Object is sealed weights and who holds its shares.
type Object struct {
	ID       Digest          `json:"id"`
	Doc      *signoff.Object `json:"-"`
	Signer   Digest          `json:"signer"` // the sealer's signing key
	Index    uint64          `json:"index"`
	People   Holding         `json:"people"`
	Machines Holding         `json:"machines"`
	Redeal   *Redeal         `json:"redeal"`            // the people's side on its way to another epoch, or null
	Handover *Redeal         `json:"handover,omitzero"` // likewise the machines' side
}

// A Holding is one side's shares by the latest dealing that is complete.
type Holding struct {
	Epoch    uint32            `json:"epoch"` // 0: not dealt yet
	Deals    Digest            `json:"deals"` // blob of the sealer's deals; empty after the first epoch
	Own      map[uint16]Digest `json:"own"`   // blobs of deals that holders made for themselves, by share index
	Holders  map[Digest]uint16 `json:"-"`     // share indices by the keys they are dealt to
	Sharings []lockbox.Sharing `json:"-"`     // commitments by epoch, from 1
}

// Sharing returns the commitments of an epoch, for shares of that time: those
// that were sealed to a recipient then go on to open the object.
func (h Holding) Sharing(epoch uint32) (lockbox.Sharing, error) {
	if epoch == 0 || int(epoch) > len(h.Sharings) {
		return nil, fmt.Errorf("shares of epoch %d, the object is in epoch %d", epoch, h.Epoch)
	}
	return h.Sharings[epoch-1], nil
}

// Threshold is how many shares open the object in the epoch in force; 0 while
// none are dealt.
func (h Holding) Threshold() int {
	if len(h.Sharings) == 0 {
		return 0
	}
	return h.Sharings[len(h.Sharings)-1].Threshold()
}

// A Node is an enrolled machine.
type Node struct {
	ID        Digest       `json:"id"`
	Name      string       `json:"name"`
	Enrolment Digest       `json:"enrolment"`
	Index     uint64       `json:"index"`
	Retired   bool         `json:"retired"`
	Claimed   uint64       `json:"claimed"` // index of its last claim, 0 for none
	Past      attest.Past  `json:"-"`       // as of that claim; what epochs proved stands in the leases. Zero in a witnessed fold
	Keys      *attest.Node `json:"-"`
}

// A Claim is one use of a launch warrant.
type Claim struct {
	ID      Digest         `json:"id"`
	Doc     *signoff.Claim `json:"-"`
	Index   uint64         `json:"index"`
	Fresh   []byte         `json:"fresh"` // SPKI of the key made for this use
	Started bool           `json:"started"`
	Ended   string         `json:"ended"`
	Kept    int            `json:"kept"` // snapshots
}

// A Halt is a halt and, once lifted, by which request.
type Halt struct {
	ID     Digest        `json:"id"`
	Doc    *signoff.Halt `json:"-"`
	Index  uint64        `json:"index"`
	Lifted Digest        `json:"lifted"`
}

// A Keygen is the current attempt at making the shares of a term: by the
// distributed key generation in the first, by a reshare in each further one.
type Keygen struct {
	Term        uint32                         `json:"term"`
	Attempt     uint32                         `json:"attempt"`
	Warrant     Digest                         `json:"warrant"` // that ordered the reshare
	Began       int64                          `json:"began"`   // fold time at which the attempt began
	Members     signoff.Council                `json:"-"`       // who gets the shares
	Dealers     []uint16                       `json:"dealers"` // indices in office, ascending; all of them in a key generation
	Late        []Digest                       `json:"late"`    // notaries that spoiled an attempt, not to deal if others can
	Commitments map[Digest]*signoff.Commitment `json:"-"`
	Dealings    map[Digest]*signoff.Dealing    `json:"-"`
	Transcripts map[Digest]*signoff.Transcript `json:"-"`
	Seen        []Digest                       `json:"seen"` // commitments and dealings of this attempt, in order
	Disputes    []Dispute                      `json:"disputes,omitempty"`
	Failed      string                         `json:"failed"`
	Done        bool                           `json:"done"`  // every member has its share
	Index       uint64                         `json:"index"` // of the entry that made it so

	group *frost.Group // that the commitments make, once a transcript asked
}

// A TickRound is the round of ticks being collected.
type TickRound struct {
	Round uint64           `json:"round"`
	Times map[Digest]int64 `json:"times"`
}

// An Epoch is the lease epoch in force.
type Epoch struct {
	Number    uint64   `json:"number"`
	Index     uint64   `json:"index"`
	Time      int64    `json:"time"`
	Root      Digest   `json:"root"`
	Proposers []Digest `json:"proposers"` // of the last f epochs, newest first
	Leases    []Lease  `json:"-"`         // ascending by node; none in a witnessed fold

	tree leaseTree
}

// Lease returns the node's lease in this epoch and its place among the leaves.
func (e *Epoch) Lease(node Digest) (Lease, int, bool) {
	if e == nil {
		return Lease{}, 0, false
	}
	i, ok := slices.BinarySearchFunc(e.Leases, node, func(l Lease, id Digest) int { return compareDigests(l.Node, id) })
	if !ok {
		return Lease{}, 0, false
	}
	return e.Leases[i], i, true
}

// A signer is a person of the roster, a notary that is or was in office, or,
// with neither, the notaries' group.
type signer struct {
	member *Member
	notary *signoff.Notary
	index  uint16 // the notary's place in its council's list, from 1; 0 for one that left office
	public crypto.PublicKey
}

func newState(id Digest) *State {
	return &State{
		ID: id, Accepted: map[Digest]bool{}, Requests: map[Digest]*Request{}, Warrants: map[Digest]*Warrant{},
		Objects: map[Digest]*Object{}, Nodes: map[Digest]*Node{}, Claims: map[Digest]*Claim{}, Halts: map[Digest]*Halt{}, Ceremonies: map[Digest]*Ceremony{},
		Releases: map[Digest][]*signoff.Release{}, References: map[Digest]*Reference{}, EKRoots: map[Digest]*EKRoot{}, Documents: map[Digest]uint64{}, signers: map[Digest]signer{}, Tokens: map[Digest]Owned{}, logKeys: map[Digest]bool{},
		named: map[string]Digest{}, nodeKeys: map[Digest]Digest{}, fresh: map[Digest]Digest{},
	}
}

// Notary returns the notary in office with the given signing fingerprint and
// its index in the group, from 1.
func (s *State) Notary(id Digest) (*signoff.Notary, uint16, bool) {
	g, ok := s.signers[id]
	return g.notary, g.index, ok && g.notary != nil && g.index > 0
}

// AnyNotary returns the notary with the given signing fingerprint if it is or
// was in office, gets shares now, or is to come by an open request.
func (s *State) AnyNotary(id Digest) (*signoff.Notary, bool) {
	if g, ok := s.signers[id]; ok && g.notary != nil {
		return g.notary, true
	}
	if y, _, ok := s.Keygen.Members.Find(id); ok {
		return y, true
	}
	for request := range s.Requests {
		if y, err := s.joiner(request, id); err == nil {
			return y, true
		}
	}
	return nil, false
}

// Holder returns the notary and the index of its share of the object's
// machines' half, if it holds one.
func (s *State) Holder(object, notary Digest) (*signoff.Notary, uint16, bool) {
	o, ready := s.lockboxReady(object)
	g, known := s.signers[notary]
	if !ready || !known || g.notary == nil {
		return nil, 0, false
	}
	index, ok := o.Machines.Holders[g.notary.Exchange.Fingerprint()]
	return g.notary, index, ok
}

// NodeNamed finds an enrolled node by name.
func (s *State) NodeNamed(name string) (*Node, bool) {
	id, ok := s.named[name]
	return s.Nodes[id], ok
}

// Halted returns a standing halt that covers the request on the node, if any: of
// several the one with the lowest digest. A zero node asks about halts of the
// request or of everything.
func (s *State) Halted(request, node Digest) (*Halt, bool) {
	var first *Halt
	for _, h := range s.Halts {
		if h.Lifted.IsZero() && h.Doc.Covers(request, node) && (first == nil || compareDigests(h.ID, first.ID) < 0) {
			first = h
		}
	}
	return first, first != nil
}

// lockboxReady returns the object if its shares are dealt.
func (s *State) lockboxReady(object Digest) (*Object, bool) {
	o, ok := s.Objects[object]
	return o, ok && o.People.Epoch > 0 && o.Machines.Epoch > 0
}

func compareDigests(a, b Digest) int { return slices.Compare(a[:], b[:]) }
