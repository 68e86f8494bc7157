// Package authority is the fold: it turns the log, entry by entry, into the
// state of the cluster. Coordinators, notaries, agents and auditors run this
// same code, and a notary cosigns a checkpoint only if its own fold gives the
// same state digest.
//
// The fold is total. An entry that is malformed, signed by the wrong key or
// not allowed where it stands is void: recorded with the reason, without
// effect, and the log goes on. The same document may be appended again later.
// Only one thing stops the fold, a missing blob, because then nobody can say
// what the entry means; the caller fetches the blob and asks again.
//
// Each entry takes three steps. verify checks form and signature, decide says
// what would change, commit changes it; only the last has effects. Nothing
// here reads a clock, a file or the network: time is what the notaries' ticks
// say, and all numbers are integers.
package authority

import (
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// Blobs looks up large parts by SHA-256. A blob that is not to be had is
// ErrMissingBlob; any other error, and other bytes, stop the fold just so. It is
// asked from many goroutines at a time.
type Blobs interface {
	Blob(digest Digest) ([]byte, error)
}

// ErrMissingBlob means the fold cannot go on until the blob is there.
var ErrMissingBlob = errors.New("blob is missing")

// An Outcome says what one entry did.
type Outcome struct {
	Index    uint64
	Kind     signoff.Kind // empty if the entry could not be read
	Document Digest
	Signer   Digest
	Void     error // why the entry has no effect; nil if it took effect
	Changes  []string
}

// An Authority is a state with the log it came from.
type Authority struct {
	state  *State
	digest Digest
	tree   compactTree
	roots  []Digest // roots[i] is the log's root at size i+1

	witnessed bool            // see NewWitnessed
	void      map[uint64]bool // see Doubt
	recalled  *kept           // see Recall; nil once it is taken up
	took      uint64          // number of the epoch whose leases were recalled, 0 for none
	unheeded  []uint64        // see Void

	bootLogs bootLogs // neither changes an outcome
	leases   leaseMemo
}

// New begins a fold. The charter digest is the caller's one trust anchor:
// entry 0 must be that charter.
func New(charter Digest) (*Authority, error) {
	if charter.IsZero() {
		return nil, errors.New("authority: no charter digest given; pass the one your organisation published")
	}
	return &Authority{state: newState(charter), digest: dsse.Sum(stateLabel, charter[:])}, nil
}

// NewWitnessed begins a fold that appraises no evidence of nodes: epochs and claims
// take effect as a quorum of notaries, who appraised it, took them. So it is for
// final checkpoints only. It decides all else itself, keeps no leases, and needs no
// evidence but the claims'. See [Epoch.Open] for a lease.
//
// Which epochs and claims had no effect is told by Doubt. A lie gives another state
// digest than the checkpoint's.
func NewWitnessed(charter Digest) (*Authority, error) {
	a, err := New(charter)
	if err == nil {
		a.witnessed = true
	}
	return a, err
}

// Doubt says which entries are epochs or claims without effect, by index, for a
// witnessed fold. The map is kept.
func (a *Authority) Doubt(void map[uint64]bool) { a.void = void }

// doubted reports whether the entry is said to have no effect.
func (d decision) doubted() error {
	if d.authority.takesWord() && d.authority.void[d.index] {
		return errors.New("the notaries gave it no effect")
	}
	return nil
}

const stateLabel = "keyturn/state/v1"

// Size is the number of entries folded.
func (a *Authority) Size() uint64 { return uint64(len(a.roots)) }

// Root is the RFC 6962 root of the entries folded; zero for none.
func (a *Authority) Root() Digest {
	if len(a.roots) == 0 {
		return Digest{}
	}
	return a.roots[len(a.roots)-1]
}

// RootAt is the root at a smaller size, for checking what a signer saw.
func (a *Authority) RootAt(size uint64) (Digest, bool) {
	if size == 0 || size > a.Size() {
		return Digest{}, false
	}
	return a.roots[size-1], true
}

// StateDigest commits to every entry folded and to each change it made.
func (a *Authority) StateDigest() Digest { return a.digest }

// State is what the log says. The caller must not change it, and must not use
// it while Apply runs.
func (a *Authority) State() *State { return a.state }

// Apply folds the next entry. An error means the fold stands where it was,
// with a blob still missing; a void entry is no error. After [ErrRecall] the fold is
// of no use.
func (a *Authority) Apply(line []byte, blobs Blobs) (Outcome, error) {
	return a.apply(prepare(line), blobs)
}

func (a *Authority) apply(p prepared, blobs Blobs) (Outcome, error) {
	out, changes, err := a.judgePrepared(p, blobs)
	if err != nil {
		return out, err
	}
	a.commitEntry(p.line, out, changes)
	if err := a.takeUp(); err != nil {
		return out, err
	}
	for _, c := range changes {
		out.Changes = append(out.Changes, c.key)
	}
	return out, nil
}

// Judge says what the entry would do next, and does nothing.
func (a *Authority) Judge(line []byte, blobs Blobs) (Outcome, []change, error) {
	return a.judgePrepared(prepare(line), blobs)
}

func (a *Authority) judgePrepared(p prepared, blobs Blobs) (Outcome, []change, error) {
	out := Outcome{Index: a.Size()}
	if p.err != nil {
		out.Void = p.err
		return out, nil, nil
	}
	out.Kind, out.Document, out.Signer = p.doc.Doc.Kind(), p.id, p.doc.Hint
	changes, err := a.judge(p, blobs)
	if errors.Is(err, ErrMissingBlob) {
		return out, nil, fmt.Errorf("authority: entry %d, %s %s: %w", out.Index, out.Kind, out.Document.Short(), err)
	}
	out.Void = err
	return out, changes, nil
}

func (a *Authority) judge(p prepared, blobs Blobs) ([]change, error) {
	if err := a.state.verify(p, a.Size()); err != nil {
		return nil, err
	}
	d := decision{state: a.state, authority: a, doc: p.doc, id: p.id, index: a.Size(), blobs: blobs}
	changes, err := d.decide()
	if err != nil {
		return nil, err
	}
	return append(changes, d.took()), nil
}

// commitEntry is the only function with effects.
func (a *Authority) commitEntry(line []byte, out Outcome, changes []change) {
	a.heed(out)
	leaf := Digest(tlog.RecordHash(line))
	a.tree.add(tlog.Hash(leaf))
	a.roots = append(a.roots, Digest(a.tree.root()))
	fields := [][]byte{a.digest[:], leaf[:]}
	commit := func(cs []change) {
		for _, c := range cs {
			c.put(a.state)
			fields = append(fields, []byte(c.key), c.bytes())
		}
	}
	if out.Void == nil {
		commit(changes)
		commit(a.state.settle(out.Index, changes))
	}
	a.digest = dsse.Sum(stateLabel, fields...)
}

// A change is one record to put into the state, named by key. Its value goes
// into the state digest.
type change struct {
	key     string
	value   any
	put     func(*State)
	touches Digest // a request to look at again
	shares  Digest // an object whose shares are others now: look at every request that opens it
}

func (c change) bytes() []byte {
	b, err := dsse.Encode(c.value)
	if err != nil {
		// Records are plain values; one that cannot be written is a bug
		// that no input can reach, and going on would fork the state.
		panic(fmt.Sprintf("authority: encode %s: %v", c.key, err))
	}
	return b
}

// A compactTree is the right edge of the Merkle tree: the roots of its
// complete subtrees, largest first (RFC 6962, section 2.1).
type compactTree struct {
	heights []int
	hashes  []tlog.Hash
}

func (t *compactTree) add(leaf tlog.Hash) {
	height := 0
	for n := len(t.heights); n > 0 && t.heights[n-1] == height; n = len(t.heights) {
		leaf = tlog.NodeHash(t.hashes[n-1], leaf)
		t.heights, t.hashes = t.heights[:n-1], t.hashes[:n-1]
		height++
	}
	t.heights, t.hashes = append(t.heights, height), append(t.hashes, leaf)
}

func (t *compactTree) root() tlog.Hash {
	n := len(t.hashes)
	h := t.hashes[n-1]
	for i := n - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.hashes[i], h)
	}
	return h
}
