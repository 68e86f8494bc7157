package log

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const checkpointPath = "checkpoint"

// TilePath returns the path of the tile at level with number n, which holds
// width hashes (256 for a full one).
func TilePath(level int, n uint64, width int) string {
	t := tlog.Tile{H: tileHeight, L: level, N: int64(n), W: width}
	return "tile/" + strings.TrimPrefix(t.Path(), "tile/8/")
}

// BundlePath returns the path of the n-th bundle, which holds width entries.
func BundlePath(n uint64, width int) string {
	t := tlog.Tile{H: tileHeight, L: -1, N: int64(n), W: width}
	return "tile/entries/" + strings.TrimPrefix(t.Path(), "tile/8/data/")
}

// BlobPath returns the path of a blob.
func BlobPath(digest [32]byte) string {
	h := hex.EncodeToString(digest[:])
	return "blob/" + h[:2] + "/" + h
}

// ValidPath reports whether path is the canonical path of a checkpoint, tile,
// bundle or blob: what may be served and copied.
func ValidPath(path string) bool {
	if path == checkpointPath {
		return true
	}
	if rest, ok := strings.CutPrefix(path, "blob/"); ok {
		_, name, _ := strings.Cut(rest, "/")
		d, err := hex.DecodeString(name)
		return err == nil && len(d) == 32 && path == BlobPath([32]byte(d))
	}
	_, err := parseTile(path)
	return err == nil
}

// parseTile returns the tile that path names; its L is -1 for a bundle.
func parseTile(path string) (tlog.Tile, error) {
	bad := fmt.Errorf("log: %.80q is not the path of a tile", path)
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok || strings.HasPrefix(rest, "data/") {
		return tlog.Tile{}, bad
	}
	if n, bundle := strings.CutPrefix(rest, "entries/"); bundle {
		rest = "data/" + n
	}
	t, err := tlog.ParseTilePath("tile/8/" + rest)
	if err != nil || t.L > maxLevel {
		return tlog.Tile{}, bad
	}
	return t, nil
}

// AppendBundle appends one entry to an encoded bundle.
func AppendBundle(bundle, leaf []byte) []byte {
	bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(leaf)))
	return append(bundle, leaf...)
}

// ParseBundle splits a bundle into its entries, which share its memory. A full
// bundle has 256; more, an empty entry and trailing bytes are refused.
func ParseBundle(bundle []byte) ([][]byte, error) {
	var leaves [][]byte
	for rest := bundle; len(rest) > 0; {
		if len(leaves) == tileWidth {
			return nil, fmt.Errorf("log: a bundle has bytes after its %d entries: %w", tileWidth, ErrCorrupt)
		}
		if len(rest) < 2 {
			return nil, fmt.Errorf("log: a bundle ends inside the length of entry %d: %w", len(leaves), ErrCorrupt)
		}
		n := int(binary.BigEndian.Uint16(rest))
		if rest = rest[2:]; n == 0 || n > len(rest) {
			return nil, fmt.Errorf("log: entry %d of a bundle has %d bytes where %d are left: %w", len(leaves), n, len(rest), ErrCorrupt)
		}
		leaves = append(leaves, rest[:n:n])
		rest = rest[n:]
	}
	return leaves, nil
}
