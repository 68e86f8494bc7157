package weights

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// readSize is how much is read at once for hashing; it stays in a core's cache.
const readSize = 128 << 10

var readBuffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// Verify compares the plaintext directory dir with the manifest: the same files,
// no others, no links, and every digest. It fails with ErrMismatch at the first
// difference.
func Verify(ctx context.Context, dir string, m *Manifest, r Run) error {
	if m == nil || len(m.Files) == 0 {
		return errors.New("weights: verify: no manifest")
	}
	t, err := openTree(dir)
	if err != nil {
		return err
	}
	defer t.Close()
	entries, err := t.list(ctx)
	if err != nil {
		return err
	}
	if err := sameNames(entries, m.Files); err != nil {
		return err
	}
	var total int64
	for _, e := range entries {
		total += e.id.size
	}
	meter := newMeter(r.Progress, total)
	if err := forEach(ctx, r.Workers, len(entries), func(ctx context.Context, i int) error {
		f, err := t.open(entries[i])
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := hashFile(ctx, f, m.Files[i], m.Sharded, meter); err != nil {
			return about("verify", entries[i].name, err)
		}
		return entries[i].unchanged(f)
	}); err != nil {
		return err
	}
	return t.unchanged(ctx, entries)
}

// sameNames compares what is there with what is signed; both are in order.
func sameNames(have []entry, want []File) error {
	for i := range max(len(have), len(want)) {
		switch {
		case i == len(want) || i < len(have) && compareNames(have[i].name, want[i].Name) < 0:
			return fmt.Errorf("%w: %q is not in the manifest", ErrMismatch, have[i].name)
		case i == len(have) || have[i].name != want[i].Name:
			return fmt.Errorf("%w: %q is missing", ErrMismatch, want[i].Name)
		}
	}
	return nil
}

// hashFile reads all of f and compares it with want. It returns the size.
func hashFile(ctx context.Context, f *os.File, want File, sharded bool, m *meter) (int64, error) {
	d := newDigester(sharded)
	buf := readBuffers.Get().(*[readSize]byte)
	defer readBuffers.Put(buf)
	for {
		if err := ctx.Err(); err != nil {
			return d.size, err
		}
		n, err := f.Read(buf[:])
		d.Write(buf[:n])
		if m != nil {
			m.add(want.Name, int64(n))
		}
		if errors.Is(err, io.EOF) {
			return d.size, d.check(want)
		}
		if err != nil {
			return d.size, err
		}
	}
}
