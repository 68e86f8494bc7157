package log

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/mod/sumdb/tlog"
)

// A view is the log at one size: the right edge in memory, the rest on disk.
// It is never changed after it was made.
type view struct {
	root   string
	size   uint64
	bundle []byte        // encoded entries of the last bundle, unless full
	levels [][]tlog.Hash // by level, the hashes of the last tile, unless full
}

// extend returns the view with leaves appended, at most as many as fill the
// last bundle, and the files that are to be written, the bundle as the last.
func (v *view) extend(leaves [][]byte) (*view, []file) {
	n := &view{root: v.root, size: v.size + uint64(len(leaves)), bundle: bytes.Clone(v.bundle)}
	for _, l := range v.levels {
		n.levels = append(n.levels, l)
	}
	hashes := make([]tlog.Hash, len(leaves))
	for i, l := range leaves {
		n.bundle = AppendBundle(n.bundle, l)
		hashes[i] = tlog.RecordHash(l)
	}
	var files []file
	for level := 0; len(hashes) > 0; level++ {
		if level == len(n.levels) {
			n.levels = append(n.levels, nil)
		}
		edge := append(bytesOf(n.levels[level]), bytesOf(hashes)...)
		tile := v.size >> (tileHeight * (level + 1))
		width := len(edge) / tlog.HashSize
		files = append(files, file{TilePath(level, tile, width), edge})
		n.levels[level], hashes = hashesOf(edge), nil
		if width == tileWidth {
			hashes = []tlog.Hash{tileRoot(n.levels[level])}
			n.levels[level] = nil
		}
	}
	width := int(n.size-1)%tileWidth + 1
	files = append(files, file{BundlePath(v.size/tileWidth, width), n.bundle})
	if width == tileWidth {
		n.bundle = nil
	}
	return n, files
}

// edge returns number and width of the partial tile that ends level; a width
// of 0 says that the level ends with a full one.
func (v *view) edge(level int) (tile uint64, width int) {
	count := v.size >> (tileHeight * level)
	return count / tileWidth, int(count % tileWidth)
}

// ReadHashes implements tlog.HashReader for hashes of trees up to v.size.
func (v *view) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	tiles := map[tlog.Tile][]byte{}
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		t := tlog.TileForIndex(tileHeight, x)
		t.W = tileWidth
		if n, width := v.edge(t.L); uint64(t.N) == n {
			t.W = width
		}
		data, ok := tiles[t]
		if !ok {
			var err error
			if data, err = v.tile(t.L, uint64(t.N)); err != nil {
				return nil, err
			}
			tiles[t] = data
		}
		h, err := tlog.HashFromTile(t, data, x)
		if err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
		out[i] = h
	}
	return out, nil
}

// tile returns a tile, the last of its level as far as the view goes.
func (v *view) tile(level int, n uint64) ([]byte, error) {
	edge, _ := v.edge(level)
	if n == edge && level < len(v.levels) {
		return bytesOf(v.levels[level]), nil
	}
	if n >= edge {
		return nil, fmt.Errorf("log: no tile %d at level %d of a log of %d entries", n, level, v.size)
	}
	return readTile(v.root, level, n, tileWidth)
}

// leavesOf returns the entries of one bundle, as far as the view goes, checked
// against the tile over them.
func (v *view) leavesOf(n uint64) ([][]byte, error) {
	data := v.bundle
	if n < v.size/tileWidth {
		var err error
		if data, err = read(v.root, BundlePath(n, tileWidth)); err != nil {
			return nil, err
		}
	}
	leaves, err := ParseBundle(data)
	if err != nil {
		return nil, fmt.Errorf("bundle %d: %w", n, err)
	}
	tile, err := v.tile(0, n)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tile, bytesOf(leafHashes(leaves))) {
		return nil, fmt.Errorf("log: bundle %d does not hash to the tile over it: %w", n, ErrCorrupt)
	}
	return leaves, nil
}

// load reads the view from a directory: as many entries as bundles are there
// without a gap, and the right edge of every level, re-derived from what is
// below it and compared with the tiles.
func load(root string) (*view, error) {
	full, width, err := scanBundles(root)
	if err != nil {
		return nil, err
	}
	v := &view{root: root, size: full*tileWidth + uint64(width)}
	var hashes []tlog.Hash
	if width > 0 {
		if v.bundle, err = read(root, BundlePath(full, width)); err != nil {
			return nil, err
		}
		leaves, err := ParseBundle(v.bundle)
		if err != nil || len(leaves) != width {
			return nil, fmt.Errorf("log: %s holds %d entries: %w", BundlePath(full, width), len(leaves), errors.Join(err, ErrCorrupt))
		}
		hashes = leafHashes(leaves)
	}
	for level := 0; v.size>>(tileHeight*level) > 0; level++ {
		if level > 0 {
			if hashes, err = v.edgeHashes(level); err != nil {
				return nil, err
			}
		}
		if err := v.checkEdge(level, hashes); err != nil {
			return nil, err
		}
		v.levels = append(v.levels, hashes)
	}
	return v, nil
}

// edgeHashes derives the last tile of a level from the full tiles below it.
func (v *view) edgeHashes(level int) ([]tlog.Hash, error) {
	tile, width := v.edge(level)
	var hashes []tlog.Hash
	for i := range uint64(width) {
		data, err := readTile(v.root, level-1, tile*tileWidth+i, tileWidth)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, tileRoot(hashesOf(data)))
	}
	return hashes, nil
}

func (v *view) checkEdge(level int, hashes []tlog.Hash) error {
	tile, width := v.edge(level)
	if width == 0 {
		return nil
	}
	data, err := readTile(v.root, level, tile, width)
	if err != nil {
		return err
	}
	if !bytes.Equal(data, bytesOf(hashes)) {
		return fmt.Errorf("log: %s does not follow from what is below it: %w", TilePath(level, tile, width), ErrCorrupt)
	}
	return nil
}

// scanBundles returns how many full bundles there are and the width of the
// partial one after them. A gap is an error: something was deleted.
func scanBundles(root string) (full uint64, width int, err error) {
	widest := map[uint64]int{}
	var top uint64
	err = fs.WalkDir(os.DirFS(root), "tile/entries", func(path string, e fs.DirEntry, err error) error {
		if path == "tile/entries" && errors.Is(err, fs.ErrNotExist) {
			return nil // an empty log
		}
		if err != nil || e.IsDir() {
			return err
		}
		t, err := parseTile(path)
		if err != nil {
			return fmt.Errorf("log: %q does not belong among the entries: %w", path, ErrCorrupt)
		}
		n := uint64(t.N)
		widest[n], top = max(widest[n], t.W), max(top, n)
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("log: list the entries: %w", err)
	}
	for widest[full] == tileWidth {
		full++
	}
	if len(widest) > 0 && top > full {
		return 0, 0, fmt.Errorf("log: bundle %d is there, but %d is not whole: %w", top, full, ErrCorrupt)
	}
	return full, widest[full], nil
}

// readTile reads a tile. A partial one may have been superseded by the full
// one, which begins with it.
func readTile(root string, level int, n uint64, width int) ([]byte, error) {
	data, err := read(root, TilePath(level, n, width))
	if errors.Is(err, fs.ErrNotExist) && width < tileWidth {
		if full, e := read(root, TilePath(level, n, tileWidth)); e == nil && len(full) == tileWidth*tlog.HashSize {
			return full[:width*tlog.HashSize], nil
		}
	}
	if err != nil {
		return nil, err
	}
	if len(data) != width*tlog.HashSize {
		return nil, fmt.Errorf("log: %s has %d bytes, not %d: %w", TilePath(level, n, width), len(data), width*tlog.HashSize, ErrCorrupt)
	}
	return data, nil
}

// openRegular opens a regular file of at most MaxBlob bytes, which is more than any
// other file here has. The directory may be a stick that somebody handed over: a
// device, a pipe or a file without end in it must not hold up whoever reads.
func openRegular(root, path string) (*os.File, int64, error) {
	f, err := os.OpenFile(filepath.Join(root, path), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("log: %w", err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() > MaxBlob) {
		err = fmt.Errorf("%s is not a file of at most %d bytes: %w", path, MaxBlob, ErrCorrupt)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("log: %w", err), f.Close())
	}
	return f, info.Size(), nil
}

func read(root, path string) ([]byte, error) {
	f, size, err := openRegular(root, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, size)
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, fmt.Errorf("log: read %s: %w", path, err)
	}
	return data, nil
}

func leafHashes(leaves [][]byte) []tlog.Hash {
	out := make([]tlog.Hash, len(leaves))
	for i, l := range leaves {
		out[i] = tlog.RecordHash(l)
	}
	return out
}

// tileRoot is the Merkle tree hash over the hashes of a full tile.
func tileRoot(hashes []tlog.Hash) tlog.Hash {
	level := append([]tlog.Hash(nil), hashes...)
	for len(level) > 1 {
		for i := range len(level) / 2 {
			level[i] = tlog.NodeHash(level[2*i], level[2*i+1])
		}
		level = level[:len(level)/2]
	}
	return level[0]
}

func bytesOf(hashes []tlog.Hash) []byte {
	out := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return out
}

func hashesOf(data []byte) []tlog.Hash {
	out := make([]tlog.Hash, len(data)/tlog.HashSize)
	for i := range out {
		out[i] = tlog.Hash(data[i*tlog.HashSize:])
	}
	return out
}
