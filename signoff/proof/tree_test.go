package proof

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

func leaves(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = fmt.Appendf(nil, "leaf %d", i)
	}
	return out
}

// storedByTlog builds the same tree with package tlog's own rule.
func storedByTlog(t testing.TB, leaves [][]byte) stored {
	var s stored
	for i, l := range leaves {
		more, err := tlog.StoredHashes(int64(i), l, s)
		if err != nil {
			t.Fatal(err)
		}
		s = append(s, more...)
	}
	return s
}

func TestTreeAgainstTlog(t *testing.T) {
	for n := range 130 {
		l := leaves(n)
		ref := storedByTlog(t, l)
		want, err := tlog.TreeHash(int64(n), ref)
		if err != nil {
			t.Fatal(err)
		}
		tree := NewTree(l)
		if tree.Root() != want || Root(l) != want {
			t.Fatalf("%d leaves: root %x, tlog says %x", n, tree.Root(), want)
		}
		for i := range l {
			path, err := tree.Prove(uint64(i))
			if err != nil {
				t.Fatal(err)
			}
			if err := Check(want, uint64(n), uint64(i), l[i], path); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tree.Prove(uint64(n)); err == nil {
			t.Fatalf("a leaf beyond %d was proved", n)
		}
	}
}

func TestEmptyTree(t *testing.T) {
	if Root(nil) != sha256.Sum256(nil) {
		t.Fatal("the root of no leaves is not SHA-256 of nothing (RFC 6962, 2.1)")
	}
	if Check(Root(nil), 0, 0, nil, nil) == nil {
		t.Fatal("the empty tree contains a leaf")
	}
}

// Nothing but the very leaf, place, size and path passes.
func TestCheckProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(t, "n")
		i := rapid.Uint64Range(0, uint64(n)-1).Draw(t, "i")
		l := leaves(n)
		root := Root(l)
		path, err := Prove(l, i)
		if err != nil {
			t.Fatal(err)
		}
		if err := Check(root, uint64(n), i, l[i], path); err != nil {
			t.Fatal(err)
		}
		if Check(root, uint64(n), i, []byte("other"), path) == nil {
			t.Fatal("another leaf passed")
		}
		if j := rapid.Uint64Range(0, uint64(n)-1).Draw(t, "j"); j != i && Check(root, uint64(n), j, l[i], path) == nil {
			t.Fatal("another place passed")
		}
		if Check(root, uint64(n), i, l[i], append(path, [32]byte{})) == nil {
			t.Fatal("a longer path passed")
		}
		if len(path) > 0 {
			k := rapid.IntRange(0, len(path)-1).Draw(t, "k")
			path[k][rapid.IntRange(0, 31).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			if Check(root, uint64(n), i, l[i], path) == nil {
				t.Fatal("a flipped bit passed")
			}
		}
	})
}

// Sizes at which package tlog would loop for ever are refused before it runs.
func TestAttackHugeSize(t *testing.T) {
	for _, size := range []uint64{MaxSize + 1, 1<<62 + 1, 1 << 63, 1<<64 - 1} {
		if Check([32]byte{}, size, 0, nil, make([][32]byte, 48)) == nil {
			t.Fatalf("size %d passed", size)
		}
	}
}
