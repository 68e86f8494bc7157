package log

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/mod/sumdb/tlog"
)

// Verify recomputes everything from the entries: each hash of each tile, full
// and partial, the published checkpoint's root, and each blob's digest. The
// first missing or changed file is the error. Who signed the checkpoint, and
// which blobs the entries name, is not looked at here. progress, if not nil,
// hears how many entries are done of how many.
func (a *Archive) Verify(ctx context.Context, progress func(done, total uint64)) error {
	v := a.view.Load()
	r := &recomputed{root: a.disk.root}
	for n := uint64(0); n*tileWidth < v.size; n++ {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("log: verify: %w", err)
		}
		if err := r.bundle(n, int(min(v.size-n*tileWidth, tileWidth))); err != nil {
			return err
		}
		if progress != nil {
			progress(min(v.size, (n+1)*tileWidth), v.size)
		}
	}
	if err := r.finish(); err != nil {
		return err
	}
	if err := a.verifyCheckpoint(); err != nil {
		return err
	}
	return verifyBlobs(ctx, a.disk.root)
}

// recomputed builds the tree anew and compares each tile once it is known.
type recomputed struct {
	root   string
	levels [][]tlog.Hash // of the tile being filled, by level
	counts []uint64      // full tiles done, by level
}

// bundle takes the n-th bundle of width entries.
func (r *recomputed) bundle(n uint64, width int) error {
	data, err := read(r.root, BundlePath(n, width))
	if errors.Is(err, fs.ErrNotExist) && width < tileWidth {
		data, err = prefixOfFull(r.root, n, width) // superseded meanwhile
	}
	if err != nil {
		return err
	}
	leaves, err := ParseBundle(data)
	if err != nil {
		return fmt.Errorf("%s: %w", BundlePath(n, width), err)
	}
	if len(leaves) != width {
		return fmt.Errorf("log: %s has %d entries: %w", BundlePath(n, width), len(leaves), ErrCorrupt)
	}
	prefix := func(w int) []byte {
		end := 0
		for _, l := range leaves[:w] {
			end += 2 + len(l)
		}
		return data[:end]
	}
	if err := checkPartials(r.root, partials(BundlePath(n, tileWidth)), width, prefix); err != nil {
		return err
	}
	for _, h := range leafHashes(leaves) {
		if err := r.add(0, h); err != nil {
			return err
		}
	}
	return nil
}

// add takes the next hash of a level.
func (r *recomputed) add(level int, h tlog.Hash) error {
	if level == len(r.levels) {
		r.levels = append(r.levels, nil)
		r.counts = append(r.counts, 0)
	}
	r.levels[level] = append(r.levels[level], h)
	if len(r.levels[level]) < tileWidth {
		return nil
	}
	if err := r.check(level); err != nil {
		return err
	}
	up := tileRoot(r.levels[level])
	r.levels[level] = nil
	r.counts[level]++
	return r.add(level+1, up)
}

// finish compares the partial tiles of the right edge.
func (r *recomputed) finish() error {
	for level := range r.levels {
		if len(r.levels[level]) == 0 {
			continue
		}
		if err := r.check(level); err != nil {
			return err
		}
	}
	return nil
}

// check compares the tile being filled with the files of it.
func (r *recomputed) check(level int) error {
	want, n := bytesOf(r.levels[level]), r.counts[level]
	width := len(r.levels[level])
	have, err := readTile(r.root, level, n, width)
	if err != nil {
		return err
	}
	if !bytes.Equal(have, want) {
		return fmt.Errorf("log: %s is not what the entries give: %w", TilePath(level, n, width), ErrCorrupt)
	}
	prefix := func(w int) []byte { return want[:w*tlog.HashSize] }
	return checkPartials(r.root, partials(TilePath(level, n, tileWidth)), width, prefix)
}

// checkPartials compares the partial files kept in dir, up to width. Wider ones
// are left from an append that did not happen.
func checkPartials(root, dir string, width int, prefix func(w int) []byte) error {
	list, err := fs.ReadDir(os.DirFS(root), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	for _, e := range list {
		name := path.Join(dir, e.Name())
		t, err := parseTile(name)
		if err != nil {
			return fmt.Errorf("log: %s does not belong here: %w", name, ErrCorrupt)
		}
		if t.W > width {
			continue
		}
		have, err := read(root, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // superseded meanwhile
		}
		if err != nil {
			return err
		}
		if !bytes.Equal(have, prefix(t.W)) {
			return fmt.Errorf("log: %s is not what the entries give: %w", name, ErrCorrupt)
		}
	}
	return nil
}

// prefixOfFull returns the first width entries of a full bundle.
func prefixOfFull(root string, n uint64, width int) ([]byte, error) {
	data, err := read(root, BundlePath(n, tileWidth))
	if err != nil {
		return nil, err
	}
	leaves, err := ParseBundle(data)
	if err != nil || len(leaves) < width {
		return nil, fmt.Errorf("log: %s: %w", BundlePath(n, tileWidth), errors.Join(err, ErrCorrupt))
	}
	var out []byte
	for _, l := range leaves[:width] {
		out = AppendBundle(out, l)
	}
	return out, nil
}

// verifyCheckpoint compares the published root with tiles known to be right.
func (a *Archive) verifyCheckpoint() error {
	c, err := a.published()
	if err != nil || c.Origin == "" {
		return err
	}
	root, err := a.Root(c.Size)
	if err != nil {
		return err
	}
	if root != c.Root {
		return fmt.Errorf("log: the checkpoint's root at %d is not what the entries give: %w", c.Size, ErrCorrupt)
	}
	return nil
}

func verifyBlobs(ctx context.Context, root string) error {
	err := fs.WalkDir(os.DirFS(root), "blob", func(name string, e fs.DirEntry, err error) error {
		if name == "blob" && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || e.IsDir() {
			return err
		}
		if !ValidPath(name) {
			return fmt.Errorf("log: %s does not belong among the blobs: %w", name, ErrCorrupt)
		}
		digest, err := hex.DecodeString(path.Base(name))
		if err != nil {
			return err
		}
		_, err = readBlob(root, name, [32]byte(digest))
		return err
	})
	if err != nil {
		return fmt.Errorf("log: verify blobs: %w", err)
	}
	return nil
}
