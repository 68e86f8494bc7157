// Package log keeps the log's entries and blobs in a directory that anyone can
// verify, copy and serve: the archive. It is the backup; the order itself is
// decided in signoff/log/etcd before an entry comes here.
//
// The layout is c2sp.org/tlog-tiles, with blobs beside it:
//
//	checkpoint                  the newest signed checkpoint
//	tile/<L>/<N>[.p/<W>]        Merkle tree hashes, 256 to a full tile
//	tile/entries/<N>[.p/<W>]    entries, each behind a big-endian uint16 length
//	blob/<hh>/<64 hex>          bytes that entries name by their SHA-256
//	tmp/, lock                  of the writer only; never served or copied
//
// The directory is not trusted. Who reads it checks everything against a
// checkpoint that the notaries signed ([Archive.Verify] recomputes every byte
// from the entries); who can change it can at most make the log unusable.
//
// # Durability
//
// Files are written under tmp, synced, renamed into place, and their directory
// is synced. Once there, only checkpoint changes: a tile, bundle or blob is
// never replaced by other bytes. Partial tiles are deleted when the full tile
// is there, as the specification allows.
//
// A bundle of entries is renamed only after all tiles over it are durable, so
// that the entries on disk are the size of the log and nothing needs repair
// after a crash: what had not been acknowledged may be there as a whole or not
// at all, bundle by bundle, and tiles above the last entry are ignored. They
// still may not be replaced by other bytes, because the order was fixed before
// the archive heard of it: the same append tried again passes, and another one
// in its place means that the order was rolled back.
package log

import (
	"context"
	"errors"
)

const (
	// MaxLeaf bounds one entry, as the uint16 in front of it does.
	MaxLeaf = 65535
	// MaxBlob bounds one blob: 10,000 re-sealed shares take 2.5 MB.
	MaxBlob = 32 << 20

	tileHeight = 8
	tileWidth  = 1 << tileHeight
	maxLevel   = 63
)

// ErrCorrupt means that bytes on disk or from a remote source are not what
// their name or the tree says. Restore them from another copy.
var ErrCorrupt = errors.New("corrupt")

// A Source is where entries, blobs and the newest checkpoint come from: an
// [Archive] or a remote copy of one. It is not trusted; whoever uses it checks
// entries against a checkpoint. What is not there is fs.ErrNotExist.
type Source interface {
	// Checkpoint returns the newest signed note.
	Checkpoint(ctx context.Context) ([]byte, error)
	// Leaves returns the entries from ≤ index < to, all of them.
	Leaves(ctx context.Context, from, to uint64) ([][]byte, error)
	// Blob returns the bytes with this SHA-256, which was checked.
	Blob(ctx context.Context, digest [32]byte) ([]byte, error)
}
