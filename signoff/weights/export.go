package weights

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"slices"
)

// maxDocument bounds the documents that Export carries along, in bytes.
const maxDocument = 2 * MaxManifest

// Export makes out, a new sealed directory with the same, unchanged
// ciphertext and the same documents, and extra ones such as a release. Where
// the file system can share blocks nothing is copied. Like Open it appears at
// once, or is taken up again by the next Export to the same place.
func (d *Directory) Export(ctx context.Context, out string, extra map[string][]byte, r Run) (err error) {
	docs, err := d.documents()
	if err != nil {
		return err
	}
	for name := range extra {
		if _, taken := docs[name]; taken {
			return about("export", name, errors.New("the sealed directory has a document of this name"))
		}
	}
	maps.Copy(docs, extra)
	total, err := d.Size()
	if err != nil {
		return err
	}
	w, err := newWorkspace(out, public, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	x := &exporting{d, w, newMeter(r.Progress, total)}
	if err := x.prepare(ctx, docs); err != nil {
		return err
	}
	if err := forEach(ctx, r.Workers, len(d.paths), x.file); err != nil {
		return err
	}
	return w.commit(".")
}

// Size returns the bytes of ciphertext that Export carries, after checking the
// form of every file.
func (d *Directory) Size() (total int64, err error) {
	for i, f := range d.manifest.Files {
		s, err := d.open(i)
		if err != nil {
			return 0, about("export", f.Name, err)
		}
		s.Close()
		total += s.body + s.header.Size + int64(len(s.nonce))
	}
	return total, nil
}

// documents reads the files at the top of the directory.
func (d *Directory) documents() (map[string][]byte, error) {
	names, err := readNames(d.tree.fd())
	if err != nil {
		return nil, about("export", d.tree.dir.Name(), err)
	}
	docs := map[string][]byte{}
	for _, name := range names {
		if name == filesName {
			continue
		}
		if docs[name], err = d.document(name); err != nil {
			return nil, about("export", name, err)
		}
	}
	return docs, nil
}

func (d *Directory) document(name string) ([]byte, error) {
	f, err := d.tree.openName(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err == nil && len(b) > maxDocument {
		err = errors.New("document is too large")
	}
	return b, err
}

// An exporting is one run of Export.
type exporting struct {
	*Directory
	out   *workspace
	meter *meter
}

// prepare clears everything but the files that an earlier run may have copied,
// writes the documents and makes directories.
func (x *exporting) prepare(ctx context.Context, docs map[string][]byte) error {
	if err := x.out.keepOnly(ctx, filesName, x.paths); err != nil {
		return about("go on at", x.out.partial(), err)
	}
	names, err := readNames(int(x.out.lock.Fd()))
	if err != nil {
		return about("export", x.out.partial(), err)
	}
	for _, name := range names {
		if name == filesName {
			continue
		}
		if err := x.out.root.RemoveAll(name); err != nil {
			return about("clear", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		if err := x.out.writeFile(name, docs[name]); err != nil {
			return about("export", name, err)
		}
	}
	for _, p := range x.paths {
		if err := x.out.mkdirFor(path.Join(filesName, p)); err != nil {
			return about("create the directory of", p, err)
		}
	}
	return nil
}

// file brings one file to the export: nothing to do if it is there already, by
// shared blocks if possible, else by a copy inside the kernel where there is one.
func (x *exporting) file(ctx context.Context, i int) (err error) {
	name := x.manifest.Files[i].Name
	src, err := x.open(i)
	if err != nil {
		return about("export", name, err)
	}
	defer src.Close()
	p := path.Join(filesName, x.paths[i])
	dst, err := x.out.root.OpenFile(p, os.O_RDWR|os.O_CREATE, x.out.access.file)
	if err != nil {
		return about("export", name, err)
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := x.copy(ctx, dst, src.File); err != nil {
		return about("export", name, err)
	}
	x.meter.add(name, src.body+src.header.Size+int64(len(src.nonce)))
	return nil
}

// copyStep is how much is copied between two looks at the context, in bytes.
const copyStep = 64 << 20

func (x *exporting) copy(ctx context.Context, dst, src *os.File) error {
	if clone(dst, src) == nil {
		info, err := src.Stat()
		if err != nil {
			return err
		}
		return dst.Truncate(info.Size()) // a longer file left from a crash keeps its tail
	}
	same, err := sameContent(ctx, dst, src)
	if err != nil || same {
		return err
	}
	if err := errors.Join(dst.Truncate(0), rewind(dst), rewind(src)); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := io.CopyN(dst, src, copyStep) // copy_file_range(2) on Linux
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func rewind(f *os.File) error {
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// sameContent compares two files byte by byte, if their sizes agree.
func sameContent(ctx context.Context, a, b *os.File) (bool, error) {
	ai, err := a.Stat()
	if err != nil {
		return false, err
	}
	bi, err := b.Stat()
	if err != nil || ai.Size() != bi.Size() {
		return false, err
	}
	ab, bb := readBuffers.Get().(*[readSize]byte), readBuffers.Get().(*[readSize]byte)
	defer readBuffers.Put(ab)
	defer readBuffers.Put(bb)
	for off := int64(0); off < ai.Size(); off += readSize {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := a.ReadAt(ab[:], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		m, err := b.ReadAt(bb[:], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if !bytes.Equal(ab[:n], bb[:m]) {
			return false, nil
		}
	}
	return true, nil
}
