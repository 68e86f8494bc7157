package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keyturn/keyturn/hsm/durable"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/log"
)

// Recover makes the log that goes on after a fork or under a lost log key: the
// entries of the log in directory from up to the recovery's base, the recovery
// (one bundle line), and all blobs, in the new directory to. The old directory
// is not touched; it is evidence. A coordinator with the new log key and an
// empty order then starts on the new one.
//
// The fold judges the recovery, as it will wherever the log is read. If it is
// refused, there is no new directory.
func Recover(ctx context.Context, charter Digest, from, to string, recovery []byte) (err error) {
	doc, err := signoff.ReadLine(recovery)
	if err != nil {
		return fmt.Errorf("coordinator: recovery: %w", err)
	}
	r, ok := doc.Doc.(*signoff.Recovery)
	if !ok {
		return fmt.Errorf("coordinator: recovery: a %s is no recovery", doc.Doc.Kind())
	}
	old, err := log.OpenReadOnly(from)
	if err != nil {
		return err
	}
	lines, err := old.Leaves(ctx, 0, r.Base.Size)
	if err != nil {
		return fmt.Errorf("coordinator: recovery goes on from size %d: %w; recover from a coordinator's copy that has it", r.Base.Size, err)
	}
	lines = append(lines, recovery)
	if err := judgeRecovery(ctx, charter, old, lines); err != nil {
		return err
	}
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("coordinator: recover into %s: it is there already; name a new directory", to)
	}
	return writeRecovered(ctx, old, from, to, lines)
}

// judgeRecovery folds the recovered log. Its last entry is the recovery and
// must take effect.
func judgeRecovery(ctx context.Context, charter Digest, old *log.Archive, lines [][]byte) error {
	auth, err := authority.New(charter)
	if err != nil {
		return err
	}
	for i, line := range lines {
		out, err := auth.Apply(line, archiveBlobs{ctx, old})
		if err != nil {
			return err
		}
		if i == len(lines)-1 && out.Void != nil {
			return fmt.Errorf("coordinator: the recovery is refused: %w", out.Void)
		}
	}
	return nil
}

// writeRecovered fills a directory beside to and gives it its name when all
// of it is durable.
func writeRecovered(ctx context.Context, old *log.Archive, from, to string, lines [][]byte) error {
	parent := filepath.Dir(filepath.Clean(to))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("coordinator: %w", err)
	}
	draft, err := os.MkdirTemp(parent, filepath.Base(to)+".*.tmp")
	if err != nil {
		return fmt.Errorf("coordinator: %w", err)
	}
	defer os.RemoveAll(draft)
	fresh, err := log.Open(draft)
	if err != nil {
		return err
	}
	err = errors.Join(copyBlobs(ctx, old, from, fresh), fresh.Append(lines), fresh.Close())
	if err != nil {
		return err
	}
	if err := os.Chmod(draft, 0o755); err != nil {
		return fmt.Errorf("coordinator: %w", err)
	}
	if err := os.Rename(draft, to); err != nil {
		return fmt.Errorf("coordinator: %w", err)
	}
	return durable.SyncDir(parent)
}

// copyBlobs copies all blobs, also those of entries that are dropped: their
// documents may be appended again.
func copyBlobs(ctx context.Context, old *log.Archive, from string, to *log.Archive) error {
	files := os.DirFS(from)
	return fs.WalkDir(files, "blob", func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == "blob" {
			return nil
		}
		if err != nil || e.IsDir() || !log.ValidPath(path) {
			return err
		}
		digest, err := dsse.ParseDigest("sha256:" + e.Name())
		if err != nil {
			return err
		}
		data, err := old.Blob(ctx, digest)
		if err != nil {
			return err
		}
		_, err = to.PutBlob(data)
		return err
	})
}
