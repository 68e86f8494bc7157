package weights

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"

	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// A Directory is an open sealed directory, read as the files of one manifest
// sealed in one object. Nothing in it is trusted: names come from the manifest,
// and headers must name the object and the file's index.
type Directory struct {
	tree     *tree
	manifest *Manifest
	object   Digest
	paths    []string
}

// OpenDirectory opens the sealed directory at path. Manifest and object id come
// from signed documents that the caller verified.
func OpenDirectory(path string, m *Manifest, object Digest) (*Directory, error) {
	if m == nil || object == (Digest{}) {
		return nil, errors.New("weights: open sealed directory: manifest or object id is missing")
	}
	paths, err := sealedNames(m.Names())
	if err != nil {
		return nil, err
	}
	t, err := openTree(path)
	if err != nil {
		return nil, err
	}
	return &Directory{t, m, object, paths}, nil
}

// Close releases the directory; files opened from it stay open.
func (d *Directory) Close() error { return d.tree.Close() }

// A sealedFile is one open age file whose header has the right form.
type sealedFile struct {
	*os.File
	header *stream.Header
	stanza stream.Stanza
	nonce  stream.Nonce
	body   int64 // size of the body in bytes
}

// open opens file i and checks everything that needs no key.
func (d *Directory) open(i int) (_ *sealedFile, err error) {
	f, err := d.tree.openName(path.Join(filesName, d.paths[i]))
	if err != nil {
		return nil, err
	}
	s := &sealedFile{File: f}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s.body = info.Size() - stream.BodyOffset
	if err := s.checkSize(d.manifest.Files[i]); err != nil {
		return nil, err
	}
	if err := s.readHeader(); err != nil {
		return nil, err
	}
	s.stanza, err = d.stanza(i, s.header)
	return s, err
}

// checkSize compares the sizes of ciphertext and, if signed, plaintext.
func (s *sealedFile) checkSize(want File) error {
	plain, err := stream.PlainSize(s.body)
	if err != nil {
		return err
	}
	if want.Size >= 0 && plain != want.Size {
		return fmt.Errorf("it holds %d bytes where %d are signed: %w", plain, want.Size, ErrMismatch)
	}
	return nil
}

func (s *sealedFile) readHeader() error {
	var head [stream.BodyOffset]byte
	if _, err := s.ReadAt(head[:], 0); err != nil {
		return err
	}
	var err error
	if s.header, err = stream.ParseHeader(bytes.NewReader(head[:stream.HeaderSize])); err != nil {
		return err
	}
	if s.header.Size != stream.HeaderSize {
		return fmt.Errorf("header of %d bytes where keyturn writes %d", s.header.Size, stream.HeaderSize)
	}
	s.nonce = stream.Nonce(head[stream.HeaderSize:])
	return nil
}

// stanza finds the one stanza that names the lockbox and checks that it is for
// file i of this object. Beside it only what fills the header may stand.
func (d *Directory) stanza(i int, h *stream.Header) (stream.Stanza, error) {
	var found []stream.Stanza
	for _, s := range h.Stanzas {
		switch {
		case s.Type == StanzaType:
			found = append(found, s)
		case !s.Fills():
			return stream.Stanza{}, fmt.Errorf("header has a stanza of type %.40q: somebody else could open the file without a sign-off", s.Type)
		}
	}
	if len(found) != 1 {
		return stream.Stanza{}, fmt.Errorf("header has %d stanzas of type %s, want 1", len(found), StanzaType)
	}
	object, index := hex.EncodeToString(d.object[:]), strconv.Itoa(i)
	if a := found[0].Args; len(a) != 2 || a[0] != object || a[1] != index {
		return stream.Stanza{}, fmt.Errorf("header is for object and file %.80q, want %s and %s: it was put under another file", a, object, index)
	}
	return found[0], nil
}

// key unwraps the file key and authenticates the header with it.
func (s *sealedFile) key(i int, keyFor KeyFunc) (stream.FileKey, error) {
	key, err := keyFor(i, s.stanza)
	if err != nil {
		return key, err
	}
	return key, s.header.Verify(key)
}

// sealed describes the body for the engine.
func (s *sealedFile) sealed(dst io.WriterAt, key stream.FileKey) stream.Sealed {
	return stream.Sealed{Dst: dst, Src: s.File, Off: stream.BodyOffset, Size: s.body, Key: key, Nonce: s.nonce}
}

// Check examines the form of every file without any key: present, of a
// possible size, with a header for its place in this object. It says nothing of
// the content.
func (d *Directory) Check(ctx context.Context) error {
	return forEach(ctx, 0, len(d.paths), func(_ context.Context, i int) error {
		f, err := d.open(i)
		if err != nil {
			return about("check", d.manifest.Files[i].Name, err)
		}
		return f.Close()
	})
}

// A Reader reads the plaintext of one sealed file at any offset. Close it.
type Reader struct {
	*stream.ReaderAt
	file *os.File
}

// Close closes the sealed file.
func (r *Reader) Close() error { return r.file.Close() }

// Reader opens file i for lazy loading. Each chunk that is read is
// authenticated by the file key, but the file as a whole is not compared with
// the manifest: whoever ever held the key could have forged it. Use Open where
// that matters.
func (d *Directory) Reader(i int, keyFor KeyFunc) (*Reader, error) {
	if i < 0 || i >= len(d.paths) {
		return nil, fmt.Errorf("weights: read file %d of %d", i, len(d.paths))
	}
	name := d.manifest.Files[i].Name
	f, err := d.open(i)
	if err != nil {
		return nil, about("read", name, err)
	}
	key, err := f.key(i, keyFor)
	if err != nil {
		f.Close()
		return nil, about("read", name, err)
	}
	defer key.Wipe()
	r, err := stream.NewReaderAt(f.sealed(nil, key))
	if err != nil {
		f.Close()
		return nil, about("read", name, err)
	}
	return &Reader{r, f.File}, nil
}
