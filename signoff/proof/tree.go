package proof

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// A Tree is the RFC 6962 Merkle tree over a list in memory. It keeps hashes
// only, about 64 bytes a leaf.
type Tree struct {
	size   int64
	stored stored
}

// stored holds the hashes of all complete subtrees in the order of package
// tlog.
type stored []tlog.Hash

// ReadHashes implements tlog.HashReader.
func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x < 0 || x >= int64(len(s)) {
			return nil, fmt.Errorf("proof: hash %d is not in the tree", x)
		}
		out[i] = s[x]
	}
	return out, nil
}

// NewTree hashes the leaves, which may be any bytes, in their order.
func NewTree(leaves [][]byte) *Tree {
	t := &Tree{stored: make(stored, 0, 2*len(leaves))}
	for i, leaf := range leaves {
		h := tlog.RecordHash(leaf)
		t.stored = append(t.stored, h)
		// A leaf at an odd place completes the subtree to its left, which
		// may complete a larger one.
		for n, level := int64(i), 0; n&1 == 1; n, level = n>>1, level+1 {
			h = tlog.NodeHash(t.stored[tlog.StoredHashIndex(level, n-1)], h)
			t.stored = append(t.stored, h)
		}
	}
	t.size = int64(len(leaves))
	return t
}

// Size is the number of leaves.
func (t *Tree) Size() uint64 { return uint64(t.size) }

// Root returns the Merkle tree hash; of no leaves it is SHA-256 of nothing.
func (t *Tree) Root() [32]byte {
	h, err := tlog.TreeHash(t.size, t.stored)
	if err != nil {
		panic("proof: a tree lost a hash: " + err.Error())
	}
	return h
}

// Prove returns the inclusion path of leaf i, from its sibling up.
func (t *Tree) Prove(i uint64) ([][32]byte, error) {
	if i >= t.Size() {
		return nil, fmt.Errorf("proof: no leaf %d in a tree of %d", i, t.size)
	}
	p, err := tlog.ProveRecord(t.size, int64(i), t.stored)
	if err != nil {
		return nil, fmt.Errorf("proof: prove leaf %d of %d: %w", i, t.size, err)
	}
	path := make([][32]byte, len(p))
	for i, h := range p {
		path[i] = h
	}
	return path, nil
}

// Root is the root of the tree over leaves.
func Root(leaves [][]byte) [32]byte { return NewTree(leaves).Root() }

// Prove is the inclusion path of leaf i; for many proofs keep a [Tree].
func Prove(leaves [][]byte, i uint64) ([][32]byte, error) { return NewTree(leaves).Prove(i) }

// Check returns nil if path proves that leaf is at place i of the size leaves
// under root. The size must come from where the root comes from: a path alone
// does not say where the tree ends.
func Check(root [32]byte, size, i uint64, leaf []byte, path [][32]byte) error {
	return checkPath(root, size, i, LeafHash(leaf), path)
}
