package log

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keyturn/keyturn/signoff/proof"
)

// PutBlob stores 1 to MaxBlob bytes under their SHA-256, durably, before an
// entry may name them. Storing the same again is no error.
func (a *Archive) PutBlob(data []byte) ([32]byte, error) { return a.PutBlobFrom(bytes.NewReader(data)) }

// PutBlobFrom is PutBlob of what r has to its end, which is never in memory as a
// whole: whoever sends it may be slow, and one of many.
func (a *Archive) PutBlobFrom(r io.Reader) (digest [32]byte, err error) {
	if err := a.writable(); err != nil {
		return digest, err
	}
	h, n := sha256.New(), counter(0)
	tmp, err := a.disk.writeTempFrom("blob", io.TeeReader(io.LimitReader(r, MaxBlob+1), io.MultiWriter(h, &n)))
	if err != nil {
		return digest, err
	}
	if n == 0 || n > MaxBlob {
		return digest, errors.Join(fmt.Errorf("log: a blob of %d bytes; it has 1 to %d", n, MaxBlob), os.Remove(tmp))
	}
	blob := staged{BlobPath([32]byte(h.Sum(nil))), tmp}
	if err := a.disk.mkdir(filepath.Dir(blob.path)); err != nil {
		return digest, errors.Join(err, os.Remove(tmp))
	}
	if err := a.disk.place([]staged{blob}); err != nil {
		return digest, a.fail(err)
	}
	return [32]byte(h.Sum(nil)), nil
}

// A counter counts bytes.
type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// OpenBlob opens a blob to send it on, with its size. Whoever gets it compares the
// digest.
func (a *Archive) OpenBlob(digest [32]byte) (io.ReadCloser, int64, error) {
	return openRegular(a.disk.root, BlobPath(digest))
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
