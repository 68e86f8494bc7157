package log

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keyturn/keyturn/signoff/proof"
)

// PutBlob stores 1 to MaxBlob bytes under their SHA-256, durably, before an
// entry may name them. Storing the same again is no error.
func (a *Archive) PutBlob(data []byte) ([32]byte, error) {
	if len(data) == 0 || len(data) > MaxBlob {
		return [32]byte{}, fmt.Errorf("log: a blob of %d bytes; it has 1 to %d", len(data), MaxBlob)
	}
	if err := a.writable(); err != nil {
		return [32]byte{}, err
	}
	digest := sha256.Sum256(data)
	ready, err := a.disk.stage([]file{{BlobPath(digest), data}})
	if err != nil {
		return [32]byte{}, err
	}
	if err := a.disk.place(ready); err != nil {
		return [32]byte{}, a.fail(err)
	}
	return digest, nil
}

// Blob returns the bytes with this SHA-256.
func (a *Archive) Blob(ctx context.Context, digest [32]byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("log: read blob %x: %w", digest, err)
	}
	return readBlob(a.disk.root, BlobPath(digest), digest)
}

func readBlob(root, path string, digest [32]byte) ([]byte, error) {
	data, err := read(root, path)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(data) != digest {
		return nil, fmt.Errorf("log: %s does not have the digest that it is named by: %w", path, ErrCorrupt)
	}
	return data, nil
}

// HasBlob reports whether a blob is there, without reading it.
func (a *Archive) HasBlob(digest [32]byte) bool {
	info, err := os.Stat(filepath.Join(a.disk.root, BlobPath(digest)))
	return err == nil && info.Mode().IsRegular()
}

// PutCheckpoint publishes a signed note, durably. Its signatures are the
// caller's to judge, but it must be a checkpoint whose root these entries have,
// and no smaller than the one before. At the same size only the signatures may
// differ.
func (a *Archive) PutCheckpoint(signed []byte) error {
	c, err := proof.Unverified(signed)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.writable(); err != nil {
		return err
	}
	old, err := a.published()
	if err != nil {
		return err
	}
	if c.Size < old.Size || old.Origin != "" && c.Size == old.Size && c != old {
		return fmt.Errorf("log: publish checkpoint %d after %d: the log goes only forward, and one size has one checkpoint", c.Size, old.Size)
	}
	root, err := a.Root(c.Size)
	if err != nil {
		return err
	}
	if root != c.Root {
		return fmt.Errorf("log: publish checkpoint %d: its root is not that of the entries here", c.Size)
	}
	tmp, err := a.disk.writeTemp(file{checkpointPath, signed})
	if err != nil {
		return err
	}
	if err := a.disk.place([]staged{{checkpointPath, tmp}}); err != nil {
		return a.fail(err)
	}
	signed = bytes.Clone(signed)
	a.note.Store(&signed)
	return nil
}

// Checkpoint returns the note that was published last, in a read-only archive
// as of its opening; fs.ErrNotExist if there is none yet.
func (a *Archive) Checkpoint(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("log: read checkpoint: %w", err)
	}
	signed := a.note.Load()
	if signed == nil {
		return nil, fmt.Errorf("log: no checkpoint is published yet: %w", fs.ErrNotExist)
	}
	return bytes.Clone(*signed), nil
}

// published is what the published note says, zero if there is none.
func (a *Archive) published() (proof.Checkpoint, error) {
	signed := a.note.Load()
	if signed == nil {
		return proof.Checkpoint{}, nil
	}
	c, err := proof.Unverified(*signed)
	if err != nil {
		return proof.Checkpoint{}, fmt.Errorf("log: the published checkpoint: %w", errors.Join(err, ErrCorrupt))
	}
	return c, nil
}
