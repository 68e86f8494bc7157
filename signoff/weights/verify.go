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
	each, total := sizes(entries)
	meter := newMeter(r.Progress, total)
	pairs := pairUp(each)
	if err := forEach(ctx, r.Workers, len(pairs), func(ctx context.Context, p int) error {
		return verifyFiles(ctx, t, entries, m, pairs[p], meter)
	}); err != nil {
		return err
	}
	return t.unchanged(ctx, entries)
}

// verifyFiles compares one or two files with the manifest.
func verifyFiles(ctx context.Context, t *tree, entries []entry, m *Manifest, files []int, meter *meter) error {
	var open []*hashing
	defer func() {
		for _, h := range open {
			h.close()
		}
	}()
	for _, i := range files {
		f, err := t.open(entries[i])
		if err != nil {
			return err
		}
		open = append(open, newHashing(f, m.Sharded, meter.writer(entries[i].name)))
	}
	if err := hashFiles(ctx, open); err != nil {
		return about("verify", entries[files[0]].name, err)
	}
	for n, i := range files {
		if err := open[n].digest.check(m.Files[i]); err != nil {
			return about("verify", entries[i].name, err)
		}
		if err := entries[i].unchanged(open[n].file); err != nil {
			return err
		}
	}
	return nil
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

// A hashing is one open file that is being hashed.
type hashing struct {
	file   *os.File
	digest *digester
	meter  meterWriter
	buf    *[readSize]byte
}

func newHashing(f *os.File, sharded bool, m meterWriter) *hashing {
	return &hashing{f, newDigester(sharded), m, readBuffers.Get().(*[readSize]byte)}
}

func (h *hashing) close() {
	h.file.Close()
	readBuffers.Put(h.buf)
}

// next reads on; nothing at the end of the file.
func (h *hashing) next() ([]byte, error) {
	n, err := io.ReadFull(h.file, h.buf[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	h.meter.Write(h.buf[:n])
	return h.buf[:n], nil
}

// hashFiles hashes one or two files to their ends.
func hashFiles(ctx context.Context, files []*hashing) error {
	for {
		var read [2][]byte
		for i, h := range files {
			var err error
			if read[i], err = h.next(); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil || len(read[0]) == 0 && len(read[1]) == 0 {
			return err
		}
		if len(files) == 1 {
			files[0].digest.Write(read[0])
			continue
		}
		write2(files[0].digest, files[1].digest, read[0], read[1])
	}
}
