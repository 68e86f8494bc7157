package authority

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// VerdictPass is the only verdict that gives a lease.
const VerdictPass = attest.StatusPass

// ReasonSilent is the reason of a lease leaf for which no evidence was put
// forward. It says nothing of the node: a lease it still holds runs on to its
// own end.
const ReasonSilent = "the node sent no evidence"

// A Presented is a node's evidence with the checkpoint whose root is its
// nonce: nobody can know a root before the entries under it were made.
type Presented struct {
	Seen     signoff.Seen    `json:"seen"`
	Evidence attest.Evidence `json:"evidence"`
}

// ParsePresented reads an evidence blob strictly.
func ParsePresented(blob []byte) (*Presented, error) {
	var p Presented
	if err := dsse.Decode(blob, &p); err != nil {
		return nil, fmt.Errorf("authority: read evidence: %w", err)
	}
	return &p, nil
}

// EvidenceNonce is the nonce that evidence on the given root answers.
func EvidenceNonce(charter, root Digest) []byte {
	d := dsse.Sum("keyturn/evidence-nonce/v1", charter[:], root[:])
	return d[:]
}

// A Lease is one leaf of an epoch: what one node may do until the next. Nonce
// is the agent's own; a lease that does not carry the nonce it sent last is
// not current for it.
type Lease struct {
	Charter  Digest   `json:"charter"`
	Epoch    uint64   `json:"epoch"`
	Node     Digest   `json:"node"`
	AK       []byte   `json:"ak"` // TPM name
	Nonce    []byte   `json:"nonce"`
	Reset    uint32   `json:"reset"`
	Restart  uint32   `json:"restart"`
	Verdict  string   `json:"verdict"`
	Reason   string   `json:"reason"`
	Remedy   string   `json:"remedy"`
	Emulated bool     `json:"emulated"`
	Warrants []Live   `json:"warrants"` // launches this node may go on with or start
	Halts    []Digest `json:"halts"`    // standing, that cover this node
	Policy   Digest   `json:"policy"`
	Duration int64    `json:"duration"` // seconds, from the sending of the nonce

	clock attest.Clock
}

// A Live is a launch warrant with the uses taken so far.
type Live struct {
	Warrant Digest `json:"warrant"`
	Used    int    `json:"used"`
	Uses    int    `json:"uses"`
}

// Leaf encodes the lease as a Merkle leaf.
func (l Lease) Leaf() ([]byte, error) { return dsse.Encode(l) }

// LeaseRoot is the RFC 6962 root over the leases' leaves.
func LeaseRoot(leases []Lease) (Digest, error) {
	if len(leases) == 0 {
		return Digest{}, errors.New("authority: an epoch without nodes has no root")
	}
	var tree compactTree
	for _, l := range leases {
		leaf, err := l.Leaf()
		if err != nil {
			return Digest{}, fmt.Errorf("authority: encode lease of %s: %w", l.Node, err)
		}
		tree.add(tlog.RecordHash(leaf))
	}
	return Digest(tree.root()), nil
}

// Leases computes the leases of the next epoch from the evidence named: one
// for every node that is not retired, in the order of their ids. It is a pure
// function of the state and the blobs.
func (a *Authority) Leases(evidence []Digest, blobs Blobs) ([]Lease, error) {
	s := a.state
	number := uint64(1)
	if s.Epoch != nil {
		number = s.Epoch.Number + 1
	}
	given := map[Digest][]*Presented{}
	for _, e := range evidence {
		blob, err := fetch(blobs, e)
		if err != nil {
			return nil, err
		}
		// Evidence that cannot be read is nobody's; it puts no one out
		// and must not hold the epoch up.
		if p, err := ParsePresented(blob); err == nil {
			id := Digest(p.Evidence.Node)
			given[id] = append(given[id], p)
		}
	}
	var out []Lease
	for _, id := range slices.SortedFunc(maps.Keys(s.Nodes), compareDigests) {
		if n := s.Nodes[id]; !n.Retired {
			out = append(out, a.lease(n, number, given[id]))
		}
	}
	return out, nil
}

func (a *Authority) lease(n *Node, number uint64, given []*Presented) Lease {
	s := a.state
	l := Lease{
		Charter: s.ID, Epoch: number, Node: n.ID, AK: n.Keys.AKName, Verdict: attest.StatusFail, Emulated: n.Keys.Emulated,
		Policy: s.Policy.Digest, Duration: s.Policy.Compiled.Leases().Lease,
	}
	if len(given) == 0 {
		l.Reason, l.Remedy = ReasonSilent, "see that keyturn-agent runs on the node and reaches a coordinator"
		return l
	}
	p, v, quotes := a.judgeGiven(n, given)
	if quotes > 1 {
		l.Reason, l.Remedy = "two different pieces of evidence in one epoch", "treat the node as copied: retire it and look for the other one"
		return l
	}
	l.Nonce = p.Evidence.AgentNonce
	l.Verdict, l.Reason, l.Remedy = v.Status, printable(v.Reason), printable(v.Remedy)
	l.Reset, l.Restart, l.clock = v.Clock.ResetCount, v.Clock.RestartCount, v.Clock
	if v.Passed() {
		l.Warrants, l.Halts = s.liveOn(n.ID)
	}
	return l
}

// judgeGiven appraises what was put forward in a node's name, takes the best
// of it, and counts the quotes that the node's TPM made for this epoch. Anyone
// can name a node in a blob, or wrap its quote anew: neither disputes anything.
func (a *Authority) judgeGiven(n *Node, given []*Presented) (best *Presented, verdict attest.Verdict, quotes int) {
	proved, rank := map[string]bool{}, -1
	for _, p := range given {
		v := a.appraise(n, p, attest.DomainEpoch, Digest{}, a.state.epochFloor(n))
		worth := 0
		if v.Clock != (attest.Clock{}) { // the quote verified
			proved[string(p.Evidence.Quote)] = true
			worth = 1
		}
		if v.Passed() {
			worth = 2
		}
		if worth > rank {
			best, verdict, rank = p, v, worth
		}
	}
	return best, verdict, len(proved)
}

// printable keeps a reason fit for a leaf: JSON holds nothing but UTF-8, and a
// leaf that cannot be written would hold the epoch up.
func printable(s string) string { return strings.ToValidUTF8(s, "?") }

// WouldPass reports whether the evidence would pass in the next epoch, for a
// notary that chooses what to put forward.
func (a *Authority) WouldPass(p *Presented) bool {
	n, ok := a.state.Nodes[Digest(p.Evidence.Node)]
	return ok && a.appraise(n, p, attest.DomainEpoch, Digest{}, a.state.epochFloor(n)).Passed()
}

// epochFloor is the size of the log that evidence for the next epoch must at
// least have seen: past the last epoch, and past the node's own enrolment.
func (s *State) epochFloor(n *Node) uint64 {
	floor := n.Index + 1
	if s.Epoch != nil {
		floor = max(floor, s.Epoch.Index+1)
	}
	return floor
}

// appraise judges one piece of evidence whose nonce is the log's root at a
// size of at least floor.
func (a *Authority) appraise(n *Node, p *Presented, domain string, request Digest, floor uint64) attest.Verdict {
	fail := func(format string, args ...any) attest.Verdict {
		return attest.Verdict{Node: attest.Digest(n.ID), Status: attest.StatusFail, Reason: fmt.Sprintf(format, args...), Remedy: "let the agent answer the newest checkpoint"}
	}
	root, ok := a.RootAt(p.Seen.Size)
	if !ok || root != p.Seen.Root {
		return fail("the evidence answers a checkpoint that is not of this log (size %d)", p.Seen.Size)
	}
	if p.Seen.Size < floor {
		return fail("the evidence answers an old checkpoint of size %d, wanted %d or newer", p.Seen.Size, floor)
	}
	exp := attest.Expectation{
		Domain: domain, Nonce: EvidenceNonce(a.state.ID, root), Request: attest.Digest(request),
		NeedsFresh: domain == attest.DomainClaim, Now: a.state.Time,
	}
	if n.Clock != (attest.Clock{}) {
		exp.Previous = &n.Clock
	}
	return attest.Appraise(&p.Evidence, n.Keys, a.state.references, exp)
}

// liveOn lists the launches that the node may start or go on with, and the
// halts that cover it.
func (s *State) liveOn(node Digest) ([]Live, []Digest) {
	var live []Live
	for _, id := range slices.SortedFunc(maps.Keys(s.Warrants), compareDigests) {
		w, r, err := s.Live(id, node)
		if err == nil && r.Doc.Launch != nil && contains(r.Doc.Launch.Pool, node) {
			live = append(live, Live{Warrant: id, Used: w.Used, Uses: w.Doc.Uses})
		}
	}
	var halts []Digest
	for _, id := range slices.SortedFunc(maps.Keys(s.Halts), compareDigests) {
		if h := s.Halts[id]; h.Lifted.IsZero() {
			halts = append(halts, id)
		}
	}
	return live, halts
}

// epoch accepts a notary's epoch only if its root is what this fold computes
// at this very index.
func (d decision) epoch(e *signoff.Epoch) ([]change, error) {
	s := d.state
	number, previous := uint64(1), Digest{}
	if s.Epoch != nil {
		number, previous = s.Epoch.Number+1, s.Epoch.Root
	}
	if e.Number != number || e.Previous != previous {
		return nil, fmt.Errorf("epoch %d after root %s, want %d after %s", e.Number, e.Previous.Short(), number, previous.Short())
	}
	if e.Policy != s.Policy.Digest {
		return nil, fmt.Errorf("made under policy %s, in force is %s", e.Policy, s.Policy.Digest)
	}
	leases, err := d.authority.Leases(e.Evidence, d.blobs)
	if err != nil {
		return nil, err
	}
	root, err := LeaseRoot(leases)
	if err != nil {
		return nil, err
	}
	if root != e.Root {
		return nil, fmt.Errorf("lease root %s, this log gives %s", e.Root, root)
	}
	rec := &Epoch{Number: number, Index: d.index, Time: s.Time, Root: root, Leases: leases}
	changes := []change{{key: "epoch", value: rec, put: func(s *State) { s.Epoch = rec }}}
	for _, l := range leases {
		if l.Verdict == VerdictPass {
			n := *s.Nodes[l.Node]
			n.Clock = l.clock
			changes = append(changes, putNode(&n))
		}
	}
	return changes, nil
}

// claimEvidence appraises the quote of a claim and returns the key made for
// this use and the TPM's clock.
func (d decision) claimEvidence(c *signoff.Claim, r *Request) ([]byte, attest.Clock, error) {
	blob, err := d.blob(c.Evidence)
	if err != nil {
		return nil, attest.Clock{}, err
	}
	p, err := ParsePresented(blob)
	if err != nil {
		return nil, attest.Clock{}, err
	}
	n := d.state.Nodes[c.Node]
	v := d.authority.appraise(n, p, attest.DomainClaim, r.ID, d.state.Epoch.Index+1)
	if !v.Passed() || v.Fresh == nil {
		return nil, attest.Clock{}, fmt.Errorf("evidence of node %s: %s (%s)", n.Name, v.Reason, v.Remedy)
	}
	spki, err := x509.MarshalPKIXPublicKey(v.Fresh)
	if err != nil {
		return nil, attest.Clock{}, err
	}
	for _, other := range d.state.Claims {
		if bytes.Equal(other.Fresh, spki) {
			return nil, attest.Clock{}, fmt.Errorf("the fresh key was used by claim %s", other.ID)
		}
	}
	return spki, v.Clock, nil
}

// enrolment fetches and verifies what a node brings to its enrolment.
func (d decision) enrolment(e *signoff.Enrol) (*attest.Node, error) {
	blob, err := d.blob(e.Enrolment)
	if err != nil {
		return nil, err
	}
	return d.state.VerifyEnrolment(e, blob)
}

// VerifyEnrolment checks an enrolment blob at the fold's time against the
// charter's roots. A development charter takes emulated TPMs and marks them.
func (s *State) VerifyEnrolment(e *signoff.Enrol, blob []byte) (*attest.Node, error) {
	parsed, err := attest.ParseEnrolment(blob)
	if err != nil {
		return nil, err
	}
	if s.Charter.BootPolicy == nil || len(s.Charter.EKRoots) == 0 {
		return nil, errors.New("the charter names no boot policy key or no EK roots, so no node can enrol")
	}
	boot, err := s.Charter.BootPolicy.P256()
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, der := range s.Charter.EKRoots {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("EK root of the charter: %w", err)
		}
		pool.AddCert(cert)
	}
	roots := attest.Roots{Vendor: pool}
	if s.Charter.Development {
		roots = attest.Roots{Vendor: x509.NewCertPool(), Development: pool}
	}
	node, err := attest.VerifyEnrolment(parsed, roots, boot, time.Unix(s.Time, 0))
	if err != nil {
		return nil, err
	}
	if Digest(node.ID) != e.Node {
		return nil, fmt.Errorf("the enrolment is of node %s, the request names %s", Digest(node.ID), e.Node)
	}
	if node.Emulated && !s.Charter.Development {
		return nil, fmt.Errorf("node %s has an emulated TPM, which a production charter refuses", e.Node)
	}
	return node, nil
}

// nodeKeysUnused refuses keys that another node brought.
func (s *State) nodeKeysUnused(keys *attest.Node) error {
	for _, n := range s.Nodes {
		if bytes.Equal(n.Keys.AKName, keys.AKName) || n.Keys.TLSKey.Equal(keys.TLSKey) || n.Keys.SignKey.Equal(keys.SignKey) || n.Keys.StorageKey.Equal(keys.StorageKey) {
			return fmt.Errorf("a key of this enrolment belongs to node %s", n.Name)
		}
	}
	return nil
}

// StorageFingerprint names the key that people seal this node's shares to.
func (n *Node) StorageFingerprint() Digest {
	k, err := signoff.NewPublicKey(n.Keys.StorageKey, "")
	if err != nil {
		return Digest{}
	}
	return k.Fingerprint()
}

func parseReferences(sets []string) ([]*attest.ReferenceSet, error) {
	var out []*attest.ReferenceSet
	for _, text := range sets {
		r, err := attest.ParseReferenceSet([]byte(text))
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}
