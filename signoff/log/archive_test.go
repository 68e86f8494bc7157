package log

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyturn/keyturn/signoff/proof"
)

// leaves returns entries from ≤ i < to, of different lengths.
func leaves(from, to int) [][]byte {
	var out [][]byte
	for i := from; i < to; i++ {
		out = append(out, fmt.Appendf(nil, "entry %d %s", i, make([]byte, i%37)))
	}
	return out
}

func open1(t testing.TB, dir string) *Archive {
	t.Helper()
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func add(t testing.TB, a *Archive, leaves [][]byte) {
	t.Helper()
	if err := a.Append(leaves); err != nil {
		t.Fatal(err)
	}
}

// tileReader reads the layout as package tlog's own client would: an
// independent reader that checks every tile against the root.
type tileReader struct{ dir string }

func (r tileReader) Height() int                         { return tileHeight }
func (r tileReader) SaveTiles(_ []tlog.Tile, _ [][]byte) {}
func (r tileReader) ReadTiles(tiles []tlog.Tile) (out [][]byte, err error) {
	for _, t := range tiles {
		p := fmt.Sprintf("%s/tile/%s", r.dir, t.Path()[len("tile/8/"):])
		data, err := os.ReadFile(p)
		if os.IsNotExist(err) && t.W < tileWidth { // superseded by the full tile
			full := t
			full.W = tileWidth
			data, err = os.ReadFile(fmt.Sprintf("%s/tile/%s", r.dir, full.Path()[len("tile/8/"):]))
			data = data[:min(len(data), t.W*tlog.HashSize)]
		}
		if err != nil {
			return nil, err
		}
		out = append(out, data)
	}
	return out, nil
}

func TestAppendAgainstTlog(t *testing.T) {
	const total = 2*tileWidth + 300
	dir := t.TempDir()
	a := open1(t, dir)
	all := leaves(0, total)
	tree := proof.NewTree(nil)
	for n, step := 0, 1; n < total; step = step*2 + 1 {
		next := min(total, n+step)
		add(t, a, all[n:next])
		n = next
		tree = proof.NewTree(all[:n])
		root, err := a.Root(uint64(n))
		if err != nil || root != tree.Root() || a.Size() != uint64(n) {
			t.Fatalf("size %d: root %x, want %x: %v", n, root, tree.Root(), err)
		}
		reader := tlog.TileHashReader(tlog.Tree{N: int64(n), Hash: tree.Root()}, tileReader{dir})
		for i := range int64(n) {
			h, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, i)})
			if err != nil || h[0] != tlog.RecordHash(all[i]) {
				t.Fatalf("size %d: tlog's reader at entry %d: %v", n, i, err)
			}
		}
	}
	if err := a.Verify(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
}

func TestProofs(t *testing.T) {
	const total = 700
	a := open1(t, t.TempDir())
	all := leaves(0, total)
	add(t, a, all)
	roots := make([]proof.Checkpoint, total+1)
	for n := range roots {
		root, err := a.Root(uint64(n))
		if err != nil {
			t.Fatal(err)
		}
		if n%97 == 0 && root != proof.Root(all[:n]) {
			t.Fatalf("root of %d is wrong", n)
		}
		roots[n] = proof.Checkpoint{Origin: "log", Size: uint64(n), Root: root}
	}
	for n := 1; n <= total; n += 53 {
		for i := 0; i < n; i += 29 {
			p, err := a.Inclusion(uint64(n), uint64(i))
			if err != nil {
				t.Fatal(err)
			}
			if err := proof.CheckInclusion(roots[n], uint64(i), proof.LeafHash(all[i]), p); err != nil {
				t.Fatal(err)
			}
			p, err = a.Consistency(uint64(i), uint64(n))
			if err != nil {
				t.Fatal(err)
			}
			if err := proof.CheckConsistency(roots[i], roots[n], p); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, bad := range []func() error{
		func() error { _, err := a.Root(total + 1); return err },
		func() error { _, err := a.Inclusion(total, total); return err },
		func() error { _, err := a.Inclusion(total+1, 0); return err },
		func() error { _, err := a.Consistency(3, total+1); return err },
		func() error { _, err := a.Consistency(4, 3); return err },
		func() error { _, err := a.Leaves(context.Background(), 0, total+1); return err },
		func() error { _, err := a.Leaves(context.Background(), 2, 1); return err },
	} {
		if bad() == nil {
			t.Error("something beyond the log was answered")
		}
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	const total = 600
	all := leaves(0, total)
	for n := 0; n < total; n += 75 {
		a := open1(t, dir)
		if a.Size() != uint64(n) {
			t.Fatalf("size %d after %d entries", a.Size(), n)
		}
		add(t, a, all[n:n+75])
		got, err := a.Leaves(context.Background(), 0, a.Size())
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range got {
			if string(l) != string(all[i]) {
				t.Fatalf("entry %d is %q", i, l)
			}
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if a.Append(all[:1]) == nil {
			t.Fatal("a closed archive took an entry")
		}
	}
}

func TestSecondWriterIsRefused(t *testing.T) {
	dir := t.TempDir()
	a := open1(t, dir)
	if _, err := Open(dir); err == nil {
		t.Fatal("two writers")
	}
	add(t, a, leaves(0, 3))
	r, err := OpenReadOnly(dir)
	if err != nil || r.Size() != 3 {
		t.Fatalf("a reader beside the writer: %v", err)
	}
	if r.Append(leaves(3, 4)) == nil {
		t.Fatal("a reader wrote")
	}
	if _, err := r.PutBlob([]byte("x")); err == nil {
		t.Fatal("a reader wrote a blob")
	}
}

func TestBlob(t *testing.T) {
	ctx := context.Background()
	a := open1(t, t.TempDir())
	data := []byte("a quote")
	d, err := a.PutBlob(data)
	if err != nil || d != sha256.Sum256(data) {
		t.Fatal(err)
	}
	if _, err := a.PutBlob(data); err != nil {
		t.Fatal("storing the same again: ", err)
	}
	got, err := a.Blob(ctx, d)
	if err != nil || string(got) != string(data) || !a.HasBlob(d) {
		t.Fatal(err)
	}
	if _, err := a.Blob(ctx, [32]byte{1}); !os.IsNotExist(unwrap(err)) {
		t.Fatalf("a missing blob: %v", err)
	}
	if _, err := a.PutBlob(nil); err == nil {
		t.Fatal("an empty blob was stored")
	}
	if err := os.WriteFile(filepath.Join(a.disk.root, BlobPath(d)), []byte("a quotf"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Blob(ctx, d); err == nil {
		t.Fatal("a changed blob was returned")
	}
	if a.Verify(ctx, nil) == nil {
		t.Fatal("a changed blob was verified")
	}
}

func unwrap(err error) error {
	if e, ok := err.(interface{ Unwrap() error }); ok {
		return unwrap(e.Unwrap())
	}
	return err
}

func TestValidPath(t *testing.T) {
	good := []string{"checkpoint", TilePath(0, 0, 256), TilePath(3, 1234067, 7), BundlePath(0, 256), BundlePath(1000, 1), BlobPath([32]byte{1})}
	for _, p := range good {
		if !ValidPath(p) || !fs.ValidPath(p) {
			t.Errorf("%q is refused", p)
		}
	}
	if good[2] != "tile/3/x001/x234/067.p/7" || good[4] != "tile/entries/x001/000.p/1" {
		t.Errorf("not the layout of c2sp.org/tlog-tiles: %q", good)
	}
	bad := []string{"", "lock", "tmp/w1", "tile", "tile/8/0/000/", "tile/data/000", "tile/0/0", "tile/0/000.p/256", "tile/0/000.p/0",
		"tile/-1/000", "tile/entries/../000", "../checkpoint", "blob/", "blob/01", "blob/00/" + BlobPath([32]byte{1})[8:],
		BlobPath([32]byte{0xab})[:70], "blob/AB" + BlobPath([32]byte{0xab})[7:], "tile/64/000"}
	for _, p := range bad {
		if ValidPath(p) {
			t.Errorf("%q is accepted", p)
		}
	}
}
