package stream

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// maxBuffers bounds an engine's memory: 256 buffers of two chunks are 32 MiB.
const maxBuffers = 256

// An Engine encrypts and decrypts bodies over several cores. It holds a fixed
// set of chunk buffers that all its calls share, and is safe for concurrent
// use. Make one with [NewEngine].
type Engine struct {
	workers int
	buffers chan []byte
}

// NewEngine returns an engine that uses up to workers cores for one body; 0
// means all of them. It holds two 128 KiB buffers per worker, 32 MiB at most.
func NewEngine(workers int) *Engine {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	workers = min(workers, maxBuffers/2)
	e := &Engine{workers: workers, buffers: make(chan []byte, 2*workers)}
	for range cap(e.buffers) {
		e.buffers <- make([]byte, 2*sealedChunk)
	}
	return e
}

// A Body is a plaintext and the place its ciphertext goes to.
type Body struct {
	Dst   io.WriterAt
	Off   int64 // of the first chunk in Dst, in bytes
	Src   io.ReaderAt
	Size  int64 // of the plaintext in Src, in bytes
	Key   FileKey
	Nonce Nonce
}

// Encrypt seals a body, and gives the plaintext to sink in order (nil for none)
// exactly as it was encrypted. It fails if Src ends before Size bytes; what Dst
// then holds is useless and must be sealed again under a fresh key, since the
// same key and nonce must never see a second plaintext.
func (e *Engine) Encrypt(ctx context.Context, b Body, sink io.Writer) error {
	s, err := newSealer(b)
	if err != nil {
		return err
	}
	return e.each(ctx, s.chunks, func(c *chunk) error {
		plain, err := s.read(c.index, c.buf)
		if err != nil {
			return err
		}
		if err := c.inTurn(func() error { return emit(sink, plain) }); err != nil {
			return err
		}
		return s.seal(c.index, plain)
	})
}

// EncryptPair seals two bodies side by side, so that sink can hash a piece of
// one and a piece of the other at the same time. Pieces come in order; when the
// shorter body is done its pieces are empty.
func (e *Engine) EncryptPair(ctx context.Context, a, b Body, sink func(p, q []byte) error) error {
	x, err := newSealer(a)
	if err != nil {
		return err
	}
	y, err := newSealer(b)
	if err != nil {
		return err
	}
	return e.each(ctx, max(x.chunks, y.chunks), func(c *chunk) error {
		p, err := x.read(c.index, c.buf[:sealedChunk])
		if err != nil {
			return err
		}
		q, err := y.read(c.index, c.buf[sealedChunk:])
		if err != nil {
			return err
		}
		if err := c.inTurn(func() error { return sink(p, q) }); err != nil {
			return err
		}
		return errors.Join(x.seal(c.index, p), y.seal(c.index, q))
	})
}

// A sealer seals the chunks of one body, in any order.
type sealer struct {
	Body
	aead   cipher.AEAD
	chunks int64
}

func newSealer(b Body) (*sealer, error) {
	if b.Size < 0 {
		return nil, fmt.Errorf("stream: encrypt: size %d is negative", b.Size)
	}
	if b.Size > maxSize/2 { // its body is longer
		return nil, fmt.Errorf("stream: encrypt: %d bytes are more than %d", b.Size, int64(maxSize/2))
	}
	aead, err := payloadAEAD(b.Key, b.Nonce)
	if err != nil {
		return nil, err
	}
	chunks, _ := layout(BodySize(b.Size))
	return &sealer{b, aead, chunks}, nil
}

// read reads the plaintext of a chunk into buf; nothing beyond the last.
func (s *sealer) read(index int64, buf []byte) ([]byte, error) {
	plain := buf[:max(0, min(ChunkSize, s.Size-index*ChunkSize))]
	if err := readFull(s.Src, plain, index*ChunkSize); err != nil {
		return nil, fmt.Errorf("stream: read plaintext of chunk %d: %w", index, err)
	}
	return plain, nil
}

// seal encrypts what read returned, in place, and writes it.
func (s *sealer) seal(index int64, plain []byte) error {
	if index >= s.chunks {
		return nil
	}
	nonce := chunkNonce(index, index == s.chunks-1)
	sealed := s.aead.Seal(plain[:0], nonce[:], plain, nil)
	if _, err := s.Dst.WriteAt(sealed, s.Off+index*sealedChunk); err != nil {
		return fmt.Errorf("stream: write chunk %d: %w", index, err)
	}
	return nil
}

// A Sealed is the body of an age file and the place its plaintext goes to.
type Sealed struct {
	Dst   io.WriterAt // from offset 0; nil for none
	Src   io.ReaderAt
	Off   int64 // of the first chunk in Src, in bytes
	Size  int64 // of the body in Src, in bytes
	Key   FileKey
	Nonce Nonce
}

// Decrypt opens a body, and gives the plaintext to sink in order (nil for none).
// A chunk is released to either only after it and every chunk before it proved
// authentic; errors for which it did not are [ErrForged].
//
// Whoever holds the file key can make a body that passes: compare a digest of
// the plaintext with a signed one before using it.
func (e *Engine) Decrypt(ctx context.Context, b Sealed, sink io.Writer) error {
	o, err := newOpener(b)
	if err != nil {
		return err
	}
	return e.each(ctx, o.chunks, func(c *chunk) error {
		plain, err := o.open(c.index, c.buf)
		if errors.Is(err, ErrForged) {
			if plain, ok := o.openMisplacedEnd(c.index, c.buf); ok {
				return c.inTurn(func() error { return o.releaseMisplacedEnd(sink, plain, c.index) })
			}
		}
		if err := c.inTurn(func() error {
			if err != nil {
				return err
			}
			return emit(sink, plain)
		}); err != nil {
			return err
		}
		return o.put(plain, c.index)
	})
}

// DecryptPair opens two bodies side by side, so that sink can hash a piece of
// one and a piece of the other at the same time. Pieces come in order; when the
// shorter body is done its pieces are empty. Of either body, a chunk is released
// only after every chunk of both up to there proved authentic.
func (e *Engine) DecryptPair(ctx context.Context, a, b Sealed, sink func(p, q []byte) error) error {
	x, err := newOpener(a)
	if err != nil {
		return err
	}
	y, err := newOpener(b)
	if err != nil {
		return err
	}
	return e.each(ctx, max(x.chunks, y.chunks), func(c *chunk) error {
		p, errP := x.open(c.index, c.buf[:sealedChunk])
		q, errQ := y.open(c.index, c.buf[sealedChunk:])
		if err := c.inTurn(func() error {
			if err := errors.Join(errP, errQ); err != nil {
				return err
			}
			return sink(p, q)
		}); err != nil {
			return err
		}
		return errors.Join(x.put(p, c.index), y.put(q, c.index))
	})
}

// An opener opens the chunks of one body, in any order.
type opener struct {
	Sealed
	aead   cipher.AEAD
	chunks int64
	last   int64 // sealed size of the last chunk
}

func newOpener(b Sealed) (*opener, error) {
	aead, err := payloadAEAD(b.Key, b.Nonce)
	if err != nil {
		return nil, err
	}
	chunks, last := layout(b.Size)
	return &opener{b, aead, chunks, last}, nil
}

// read fills buf with a sealed chunk; nothing beyond the last.
func (o *opener) read(index int64, buf []byte) ([]byte, error) {
	n := int64(sealedChunk)
	if index == o.chunks-1 {
		n = o.last
	}
	if index >= o.chunks {
		n = 0
	}
	if err := readFull(o.Src, buf[:n], o.Off+index*sealedChunk); err != nil {
		return nil, fmt.Errorf("stream: read chunk %d: %w", index, err)
	}
	return buf[:n], nil
}

// open reads and opens a chunk in place in buf; nothing beyond the last.
func (o *opener) open(index int64, buf []byte) ([]byte, error) {
	sealed, err := o.read(index, buf)
	if err != nil || index >= o.chunks {
		return nil, err
	}
	final := index == o.chunks-1
	if final {
		if err := checkLast(o.chunks, o.last); err != nil {
			return nil, fmt.Errorf("%w: %w", err, ErrForged)
		}
	}
	nonce := chunkNonce(index, final)
	plain, err := o.aead.Open(sealed[:0], nonce[:], sealed, nil)
	if err != nil {
		return nil, fmt.Errorf("chunk %d of %d: %w", index, o.chunks, ErrForged)
	}
	return plain, nil
}

// openMisplacedEnd tries a full chunk that failed with the other last-chunk
// flag. If that opens it, the chunk is authentic and in its place, but the body
// was cut right after it or something was appended.
func (o *opener) openMisplacedEnd(index int64, buf []byte) ([]byte, bool) {
	sealed, err := o.read(index, buf)
	if err != nil || len(sealed) != sealedChunk {
		return nil, false
	}
	nonce := chunkNonce(index, index != o.chunks-1)
	plain, err := o.aead.Open(sealed[:0], nonce[:], sealed, nil)
	return plain, err == nil
}

// releaseMisplacedEnd releases such a chunk, as stock age does, and fails.
func (o *opener) releaseMisplacedEnd(sink io.Writer, plain []byte, index int64) error {
	if err := errors.Join(emit(sink, plain), o.put(plain, index)); err != nil {
		return err
	}
	if index == o.chunks-1 {
		return fmt.Errorf("the body was cut after chunk %d, which is not the last: %w", index, ErrForged)
	}
	return fmt.Errorf("chunk %d is the last but %d follow: %w", index, o.chunks-1-index, ErrForged)
}

// put writes the plaintext of a chunk to its place.
func (o *opener) put(plain []byte, index int64) error {
	if o.Dst == nil || len(plain) == 0 {
		return nil
	}
	if _, err := o.Dst.WriteAt(plain, index*ChunkSize); err != nil {
		return fmt.Errorf("stream: write plaintext of chunk %d: %w", index, err)
	}
	return nil
}

// readFull reads len(p) bytes at off; a shorter source is an error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func emit(w io.Writer, p []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(p)
	return err
}

// A chunk is one unit of work: an index, a buffer, and its place in the queue
// of those that take turns.
type chunk struct {
	index int64
	buf   []byte
	turns *turns
}

// inTurn runs f once every earlier chunk's inTurn has returned nil.
func (c *chunk) inTurn(f func() error) error { return c.turns.take(c.index, f) }

// each calls work for chunk 0 to n-1 from several goroutines, in no certain
// order, and returns the first error. A goroutine takes its buffer before its
// index, so the lowest outstanding chunk always has one and turns never stall,
// however many calls share the buffers.
func (e *Engine) each(ctx context.Context, n int64, work func(*chunk) error) error {
	var next atomic.Int64
	t := newTurns(ctx)
	defer t.release()
	var wg sync.WaitGroup
	for range min(int64(e.workers), n) {
		wg.Go(func() {
			for t.err() == nil {
				var buf []byte
				select {
				case buf = <-e.buffers:
				case <-ctx.Done():
					return
				}
				i := next.Add(1) - 1
				if i < n {
					t.fail(work(&chunk{index: i, buf: buf, turns: t}))
				}
				e.buffers <- buf
				if i >= n {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := t.err(); err != nil {
		return err
	}
	return ctx.Err()
}

// turns lets chunks pass one at a time in order of index, until one fails.
type turns struct {
	mu      sync.Mutex
	cond    *sync.Cond
	next    int64 // guarded by mu
	failure error // guarded by mu
	release func() bool
}

func newTurns(ctx context.Context) *turns {
	t := &turns{}
	t.cond = sync.NewCond(&t.mu)
	t.release = context.AfterFunc(ctx, func() { t.fail(ctx.Err()) })
	return t
}

func (t *turns) take(index int64, f func() error) error {
	t.mu.Lock()
	for t.failure == nil && t.next != index {
		t.cond.Wait()
	}
	err := t.failure
	t.mu.Unlock()
	if err != nil {
		return err
	}
	// Only the goroutine whose turn it is gets here, so f needs no lock.
	err = f()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && t.failure == nil {
		t.failure = err
	}
	t.next++
	t.cond.Broadcast()
	return err
}

func (t *turns) fail(err error) {
	if err == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failure == nil {
		t.failure = err
	}
	t.cond.Broadcast()
}

func (t *turns) err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failure
}
