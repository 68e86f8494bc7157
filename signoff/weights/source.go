package weights

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// A source is what a sealing reads: a directory of plaintext, or sealed weights
// that somebody may open.
type source interface {
	// list returns the files in manifest order.
	list(context.Context) ([]entry, error)
	openPlain(i int, e entry) (sourceFile, error)
	// unchanged fails if the files are not what list returned any more.
	unchanged(context.Context, []entry) error
}

type sourceFile interface {
	io.ReaderAt
	io.Closer
	unchanged() error
}

// plainTree is a directory of plaintext.
type plainTree struct{ *tree }

func (t plainTree) openPlain(_ int, e entry) (sourceFile, error) {
	f, err := t.open(e)
	return plainTreeFile{f, e}, err
}

type plainTreeFile struct {
	*os.File
	entry
}

func (f plainTreeFile) unchanged() error { return f.entry.unchanged(f.File) }

// sealedTree is sealed weights. That they are what was signed is for the
// manifest of the new sealing to show: it has to be the old one.
type sealedTree struct {
	*Directory
	keyFor KeyFunc
}

func (t sealedTree) list(context.Context) ([]entry, error) {
	each, _, err := t.bodies()
	if err != nil {
		return nil, err
	}
	var out []entry
	for i, f := range t.manifest.Files {
		out = append(out, entry{f.Name, fileID{size: each[i]}})
	}
	return out, nil
}

func (t sealedTree) openPlain(i int, e entry) (sourceFile, error) {
	r, err := t.Reader(i, t.keyFor)
	if err != nil {
		return nil, err
	}
	if r.Size() != e.id.size {
		return nil, fmt.Errorf("%w: %q had %d bytes and has %d", ErrChanged, e.name, e.id.size, r.Size())
	}
	return sealedTreeFile{r}, nil
}

func (t sealedTree) unchanged(context.Context, []entry) error { return nil }

type sealedTreeFile struct{ *Reader }

func (sealedTreeFile) unchanged() error { return nil }

// Reseal seals the same weights anew into dst: another object, with fresh keys
// and a lockbox of its own, whose manifest is the old one to the byte. No
// plaintext is written anywhere. Name and Sharded of o are the manifest's. It
// fails with ErrMismatch, and leaves nothing, if the old bodies are not what
// their manifest says.
func (d *Directory) Reseal(ctx context.Context, dst string, keyFor KeyFunc, o Options) (*Sealed, error) {
	if keyFor == nil || o.Finish == nil {
		return nil, errors.New("weights: reseal: no way to unwrap keys, or options lack a Finish function")
	}
	finish := o.Finish
	o.Name, o.Sharded = d.manifest.Name, d.manifest.Sharded
	o.Finish = func(ctx context.Context, draft *Draft) (*Final, error) {
		if err := d.same(draft.Manifest); err != nil {
			return nil, err
		}
		return finish(ctx, draft)
	}
	return seal(ctx, sealedTree{d, keyFor}, dst, o)
}

// same compares what was read with what was signed.
func (d *Directory) same(m *Manifest) error {
	for i, f := range m.Files {
		want := d.manifest.Files[i]
		for n := range f.Digests {
			if len(f.Digests) != len(want.Digests) || f.Digests[n] != want.Digests[n] {
				return about("reseal", f.Name, ErrMismatch)
			}
		}
	}
	if m.Digest() != d.manifest.Digest() {
		return fmt.Errorf("weights: reseal: the manifest comes out with digest %x, signed is %x: it was written by another version", m.Digest(), d.manifest.Digest())
	}
	return nil
}
