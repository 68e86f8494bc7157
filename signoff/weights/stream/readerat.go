package stream

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// A ReaderAt reads the plaintext of a body at any offset, one authenticated
// chunk at a time, for loading a few tensors of a large file. It is safe for
// concurrent use and keeps the chunk read last.
//
// It proves that each chunk belongs where it is, not that the plaintext is the
// one that was signed: see [Engine.Decrypt].
type ReaderAt struct {
	body *opener
	size int64 // of the plaintext

	mu     sync.Mutex
	buf    []byte // guarded by mu
	plain  []byte // guarded by mu; the chunk in buf
	cached int64  // guarded by mu; index of plain, -1 for none
}

// NewReaderAt opens a body, whose Dst does not matter. It authenticates the
// last chunk at once, so that Size can be believed and a body cut short is
// refused here.
func NewReaderAt(b Sealed) (*ReaderAt, error) {
	size, err := PlainSize(b.Size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrForged)
	}
	body, err := newOpener(b)
	if err != nil {
		return nil, err
	}
	r := &ReaderAt{body: body, size: size, buf: make([]byte, sealedChunk), cached: -1}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r, r.load(body.chunks - 1)
}

// Size returns the size of the plaintext in bytes.
func (r *ReaderAt) Size() int64 { return r.size }

// ReadAt fills p with the plaintext at off, as [io.ReaderAt] says. No byte of a
// chunk that is not authentic is returned.
func (r *ReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("stream: read at a negative offset")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(p) && off < r.size {
		if err := r.load(off / ChunkSize); err != nil {
			return n, err
		}
		m := copy(p[n:], r.plain[off%ChunkSize:])
		n, off = n+m, off+int64(m)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// load makes chunk index the cached one. The caller holds mu.
func (r *ReaderAt) load(index int64) error {
	if r.cached == index {
		return nil
	}
	r.cached = -1
	plain, err := r.body.open(index, r.buf)
	if err != nil {
		return err
	}
	r.plain, r.cached = plain, index
	return nil
}
