package authority

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// VerdictPass is the only verdict that gives a lease.
const VerdictPass = attest.StatusPass

// ReasonSilent is the reason of a lease leaf for which nothing was put forward
// that the node's TPM signed for this epoch. It says nothing of the node: a lease
// it still holds runs on to its own end.
const ReasonSilent = "the node sent no evidence"

// A Presented is a node's evidence with the checkpoint whose root is its
// nonce: nobody can know a root before the entries under it were made.
type Presented struct {
	Seen     signoff.Seen    `json:"seen"`
	Evidence attest.Evidence `json:"evidence"`
}

// MaxPresented bounds the bytes of a Presented: about 2 kB, 4 kB with a fresh
// key. Its logs are blobs of their own.
const MaxPresented = 1 << 15

// ParsePresented reads an evidence blob strictly.
func ParsePresented(blob []byte) (*Presented, error) {
	if len(blob) > MaxPresented {
		return nil, fmt.Errorf("authority: evidence of %d bytes, at most %d", len(blob), MaxPresented)
	}
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
	Charter  Digest      `json:"charter"`
	Epoch    uint64      `json:"epoch"`
	Node     Digest      `json:"node"`
	AK       []byte      `json:"ak"` // TPM name
	Nonce    []byte      `json:"nonce"`
	Evidence Digest      `json:"evidence"` // that the verdict is of; zero for none
	Before   Digest      `json:"before"`   // that passed last in an earlier epoch
	Past     attest.Past `json:"past"`     // what the last evidence that passed proved, now or before
	Verdict  string      `json:"verdict"`
	Reason   string      `json:"reason"`
	Remedy   string      `json:"remedy"`
	Emulated bool        `json:"emulated"`
	Warrants []Live      `json:"warrants"` // launches this node may go on with or start
	Halts    Digest      `json:"halts"`    // of all standing halts; zero for none
	Policy   Digest      `json:"policy"`
	Duration int64       `json:"duration"` // seconds, from the sending of the nonce
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
	hashes, err := leafHashes(leases)
	if err != nil {
		return Digest{}, err
	}
	var tree compactTree
	for _, h := range hashes {
		tree.add(h)
	}
	return Digest(tree.root()), nil
}

func leafHashes(leases []Lease) ([]tlog.Hash, error) {
	if len(leases) == 0 {
		return nil, errors.New("authority: an epoch without nodes has no root")
	}
	hashes := make([]tlog.Hash, len(leases))
	return hashes, parallel(len(leases), func(i int) error {
		leaf, err := leases[i].Leaf()
		if err != nil {
			return fmt.Errorf("authority: encode lease of %s: %w", leases[i].Node, err)
		}
		hashes[i] = tlog.RecordHash(leaf)
		return nil
	})
}

// parallel calls f for 0 to n-1 on all cores and returns the error of the lowest
// index that failed, so that it depends on nothing but f.
func parallel(n int, f func(i int) error) error {
	var next atomic.Int64
	var mu sync.Mutex
	var failed error
	at := n
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), n) {
		wg.Go(func() {
			for i := int(next.Add(1) - 1); i < n; i = int(next.Add(1) - 1) {
				if err := f(i); err != nil {
					mu.Lock()
					if i < at {
						at, failed = i, err
					}
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return failed
}

// Leases computes the leases of the next epoch from the evidence set named: one
// for every node that is not retired, in the order of their ids. It is a pure
// function of the state and the blobs, and works on all cores.
func (a *Authority) Leases(set Digest, blobs Blobs) ([]Lease, error) {
	if m := a.leases; m.set == set && m.state == a.digest && m.leases != nil {
		return m.leases, nil
	}
	digests, err := evidenceSet(set, blobs)
	if err != nil {
		return nil, err
	}
	e := a.appraiser(blobs)
	pieces := make([]piece, len(digests))
	if err := parallel(len(digests), func(i int) (err error) {
		pieces[i], err = e.piece(digests[i])
		return err
	}); err != nil {
		return nil, err
	}
	leases := a.state.leases(pieces)
	a.leases = leaseMemo{set, a.digest, leases}
	return leases, nil
}

// A leaseMemo is the last answer of Leases. The same evidence is asked for up to
// three times: by who proposes it, before it is appended and when it is folded.
type leaseMemo struct {
	set, state Digest
	leases     []Lease
}

// evidenceSet reads the list of evidence that an epoch names; zero names none.
func evidenceSet(set Digest, blobs Blobs) ([]Digest, error) {
	if set.IsZero() {
		return nil, nil
	}
	blob, err := fetch(blobs, set)
	if err != nil {
		return nil, err
	}
	return signoff.ParseEvidenceSet(blob)
}

// A piece is what one piece of evidence comes to. The zero piece is nobody's:
// evidence that cannot be read, or that no node's TPM signed for this epoch. It
// puts no one out and must not hold the epoch up: anyone can write it.
type piece struct {
	node     Digest
	digest   Digest
	quote    Digest // SHA-256 of the quote
	nonce    []byte
	passed   bool
	past     attest.Past
	reason   string
	remedy   string
	disputed bool // another quote of the node is in the same set
}

// piece appraises evidence for the next epoch.
func (e *appraiser) piece(d Digest) (piece, error) {
	blob, err := fetch(e.blobs, d)
	if err != nil {
		return piece{}, err
	}
	p, err := ParsePresented(blob)
	if err != nil {
		return piece{}, nil
	}
	n, v, err := e.forEpoch(p)
	if err != nil || !v.Proved() {
		return piece{}, err
	}
	return piece{
		node: n.ID, digest: d, quote: sha256.Sum256(p.Evidence.Quote), nonce: p.Evidence.AgentNonce,
		passed: v.Passed(), past: v.Past(), reason: printable(v.Reason), remedy: printable(v.Remedy),
	}, nil
}

// printable keeps a reason fit for a leaf: JSON holds nothing but UTF-8, and a
// leaf that cannot be written would hold the epoch up.
func printable(s string) string { return strings.ToValidUTF8(s, "?") }

// leases merges what the pieces come to with the state. The order in which they
// were appraised leaves no trace. A node's quote may be there twice, with its
// signature written in two ways; two quotes put the node out.
func (s *State) leases(pieces []piece) []Lease {
	given := make(map[Digest]*piece, len(pieces))
	for i := range pieces {
		p := &pieces[i]
		first, again := given[p.node]
		switch {
		case p.node.IsZero():
		case !again:
			given[p.node] = p
		case first.quote != p.quote:
			first.disputed = true
		}
	}
	number := uint64(1)
	if s.Epoch != nil {
		number = s.Epoch.Number + 1
	}
	live, halts := s.liveByNode(), s.standing()
	out := make([]Lease, 0, len(s.Nodes))
	for _, id := range slices.SortedFunc(maps.Keys(s.Nodes), compareDigests) {
		n := s.Nodes[id]
		if n.Retired {
			continue
		}
		l := s.lease(n, number, given[id])
		if l.Verdict == VerdictPass {
			l.Warrants, l.Halts = live[id], halts
		}
		out = append(out, l)
	}
	return out
}

// lease is the leaf of a node without warrants and halts. p is nil for a node
// that is silent.
func (s *State) lease(n *Node, number uint64, p *piece) Lease {
	l := Lease{
		Charter: s.ID, Epoch: number, Node: n.ID, AK: n.Keys.AKName, Verdict: attest.StatusFail, Emulated: n.Keys.Emulated,
		Policy: s.Policy.Digest, Duration: s.Policy.Compiled.Leases().Lease,
	}
	if past := s.past(n); past != nil {
		l.Past = *past
	}
	if old, _, ok := s.Epoch.Lease(n.ID); ok {
		l.Before = old.Before
		if old.Verdict == VerdictPass {
			l.Before = old.Evidence
		}
	}
	no := s.VouchedFor(n)
	switch {
	case no != nil:
		l.Reason, l.Remedy = no.Error(), "have the EK root added again, or enrol the node anew under another; retire it if its TPM is no longer to be believed"
	case p == nil:
		l.Reason, l.Remedy = ReasonSilent, "see that keyturn-agent runs on the node and reaches a coordinator"
	case p.disputed:
		l.Reason, l.Remedy = "two different pieces of evidence in one epoch", "treat the node as copied: retire it and look for the other one"
	default:
		l.Nonce, l.Evidence, l.Reason, l.Remedy = p.nonce, p.digest, p.reason, p.remedy
		if p.passed {
			l.Verdict, l.Past = VerdictPass, p.past
		}
	}
	return l
}

// past is what the node's last passing evidence proved, in an epoch or for a
// claim since; nil if none ever passed. Both are of one TPM, whose counters only
// grow.
func (s *State) past(n *Node) *attest.Past {
	past := n.Past
	if l, _, ok := s.Epoch.Lease(n.ID); ok && earlier(past.Clock, l.Past.Clock) {
		past = l.Past
	}
	if past.Clock == (attest.Clock{}) {
		return nil
	}
	return &past
}

func earlier(x, y attest.Clock) bool {
	return cmp.Or(cmp.Compare(x.ResetCount, y.ResetCount), cmp.Compare(x.RestartCount, y.RestartCount), cmp.Compare(x.Milliseconds, y.Milliseconds)) < 0
}

// liveByNode lists for each node the launches that it may start or go on with,
// in the order of their ids.
func (s *State) liveByNode() map[Digest][]Live {
	live := map[Digest][]Live{}
	for _, id := range slices.SortedFunc(maps.Keys(s.Warrants), compareDigests) {
		w, r, err := s.Live(id, Digest{})
		if err != nil || r.Doc.Launch == nil {
			continue
		}
		for _, node := range r.Doc.Launch.Pool {
			if _, halted := s.Halted(r.ID, node); !halted && s.holdsShares(s.Nodes[node], w) == nil {
				live[node] = append(live[node], Live{Warrant: id, Used: w.Used, Uses: w.Doc.Uses})
			}
		}
	}
	return live
}

// standing is a digest of all standing halts, zero if there are none: a leaf has
// one size, however many halts there are.
func (s *State) standing() Digest {
	var ids [][]byte
	for _, id := range slices.SortedFunc(maps.Keys(s.Halts), compareDigests) {
		if s.Halts[id].Lifted.IsZero() {
			ids = append(ids, id[:])
		}
	}
	if len(ids) == 0 {
		return Digest{}
	}
	return dsse.Sum("keyturn/halts/v1", ids...)
}
