package authority

import (
	"fmt"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// A LeaseProof is one leaf of an epoch with its place in the tree (RFC 6962,
// section 2.1.1). It shows a node its lease without those of the others.
type LeaseProof struct {
	Leaf  []byte   `json:"leaf"`
	Index uint64   `json:"index"`
	Size  uint64   `json:"size"` // leaves of the tree
	Path  []Digest `json:"path"`
}

// maxLeases bounds the leaves of a tree that a proof may be of. It bounds the path
// to 32 hashes and nothing else.
const maxLeases = 1 << 32

// Prove returns the proof of a node's lease. It may be called from many goroutines.
func (e *Epoch) Prove(node Digest) (*LeaseProof, error) {
	l, i, ok := e.Lease(node)
	if !ok {
		return nil, fmt.Errorf("authority: node %s has no leaf in the epoch in force", node)
	}
	if e.tree.once.Do(e.plant); e.tree.err != nil {
		return nil, e.tree.err
	}
	leaf, err := l.Leaf()
	if err != nil {
		return nil, err
	}
	path, err := tlog.ProveRecord(int64(len(e.Leases)), int64(i), e.tree.stored)
	if err != nil {
		return nil, err
	}
	p := &LeaseProof{Leaf: leaf, Index: uint64(i), Size: uint64(len(e.Leases)), Path: []Digest{}}
	for _, h := range path {
		p.Path = append(p.Path, Digest(h))
	}
	return p, nil
}

// Open returns the lease if the proof leads from its leaf to the epoch's root.
// Whose it is stands in the lease.
func (e *Epoch) Open(p *LeaseProof) (Lease, error) {
	var l Lease
	if p.Size > maxLeases || p.Index >= p.Size {
		return l, fmt.Errorf("authority: a proof of leaf %d of %d", p.Index, p.Size)
	}
	path := make(tlog.RecordProof, len(p.Path))
	for i, h := range p.Path {
		path[i] = tlog.Hash(h)
	}
	if err := tlog.CheckRecord(path, int64(p.Size), tlog.Hash(e.Root), int64(p.Index), tlog.RecordHash(p.Leaf)); err != nil {
		return l, fmt.Errorf("authority: the leaf is not of epoch %d, whose root is %s: %w", e.Number, e.Root, err)
	}
	if err := dsse.Decode(p.Leaf, &l); err != nil {
		return l, fmt.Errorf("authority: read lease: %w", err)
	}
	return l, nil
}

// A leaseTree is the tree over an epoch's leaves, made when a proof is asked for.
type leaseTree struct {
	once   sync.Once
	stored storedHashes
	err    error
}

func (e *Epoch) plant() {
	hashes, err := leafHashes(e.Leases)
	for i := 0; i < len(hashes) && err == nil; i++ {
		var more []tlog.Hash
		more, err = tlog.StoredHashesForRecordHash(int64(i), hashes[i], e.tree.stored)
		e.tree.stored = append(e.tree.stored, more...)
	}
	e.tree.err = err
}

// storedHashes are hashes in the order of tlog.StoredHashIndex.
type storedHashes []tlog.Hash

// ReadHashes implements tlog.HashReader.
func (t storedHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		if at < 0 || at >= int64(len(t)) {
			return nil, fmt.Errorf("authority: no hash %d in the tree of leases", at)
		}
		out[i] = t[at]
	}
	return out, nil
}
