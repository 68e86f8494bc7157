// Package secret keeps secrets that are in memory away from swap, core dumps,
// child processes and other processes of the same user.
//
// A [Buffer] is locked memory of its own for a PIN or a message that carries a
// secret. Go's heap and stacks cannot be had that way, and arithmetic on a
// secret uses both: a process that computes with secrets locks all of itself
// with [LockProcess]. Every program calls [Harden].
//
// Wiping is for what is kept; the runtime may leave copies of what it moved,
// such as a stack that grew. They are locked and not dumpable either.
package secret

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	pageSize   = 4096
	chunkPages = 8          // mapped at a time: half of the smallest limit on locked memory in use, 64 KiB
	maxSize    = 1 << 20    // of a buffer
	shown      = "(secret)" // what formatting prints
)

// ErrLimit: the limit on locked memory is too small. Secrets are not kept in
// memory that may be swapped out.
var ErrLimit = errors.New("locked memory is limited too tightly; give it LimitMEMLOCK=infinity in its unit, or ulimit -l unlimited in the shell that starts it")

// A Buffer is memory that is never swapped out, is in no core dump, does not
// pass to child processes, and, where the kernel has memfd_secret(2), is mapped
// nowhere else: not even root reads it through /proc. Wipe it after use: the
// garbage collector does not.
type Buffer struct{ b, pages []byte }

// New returns a buffer of n zero bytes, 1 to 2^20. It fails with [ErrLimit] if
// the memory cannot be locked.
func New(n int) (*Buffer, error) {
	if n < 1 || n > maxSize {
		return nil, fmt.Errorf("secret: a buffer of %d bytes, want 1 to %d", n, maxSize)
	}
	pages, err := arena.take((n + pageSize - 1) / pageSize)
	if err != nil {
		return nil, fmt.Errorf("secret: %d bytes for a secret: %w", n, err)
	}
	return &Buffer{pages[:n:n], pages}, nil
}

// Take moves a secret into a buffer: b is wiped, also if that fails.
func Take(b []byte) (*Buffer, error) {
	defer clear(b)
	return copied(b)
}

func copied(b []byte) (*Buffer, error) {
	s, err := New(len(b))
	if err == nil {
		copy(s.b, b)
		Scrub()
	}
	return s, err
}

// Scrub overwrites the vector registers, which hold the last that was copied
// on this thread: the next signal would save them on a stack. Call it after a
// secret was copied by other means than this package.
func Scrub() {
	var to, zero [256]byte // what it takes to have all of them used
	copy(to[:scrubSize], zero[:scrubSize])
	runtime.KeepAlive(&to)
}

// scrubSize is no constant, so that the copy is made by the runtime.
var scrubSize = 256

// Bytes returns the secret, for as long as it is not wiped. It is nil of a nil
// or wiped buffer.
func (s *Buffer) Bytes() []byte {
	if s == nil {
		return nil
	}
	return s.b
}

// Cut shortens the buffer to its first n bytes.
func (s *Buffer) Cut(n int) { s.b = s.b[:n:n] }

// Clone returns a copy, to be wiped by itself.
func (s *Buffer) Clone() (*Buffer, error) { return copied(s.Bytes()) }

// Wipe overwrites the secret and gives the memory back. Nobody may use what
// Bytes returned any more. Wiping twice, or nil, does nothing.
func (s *Buffer) Wipe() {
	if s == nil || s.pages == nil {
		return
	}
	clear(s.pages)
	arena.give(s.pages)
	s.b, s.pages = nil, nil
}

// Format prints a placeholder for every verb.
func (s *Buffer) Format(f fmt.State, _ rune) { fmt.Fprint(f, shown) }

// arena has the pages of all buffers.
var arena pages

type pages struct {
	mu   sync.Mutex
	free [][]byte // single pages, zero
}

func (p *pages) take(n int) ([]byte, error) {
	if n > 1 {
		return mapLocked(n * pageSize)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		chunk, err := mapLocked(chunkPages * pageSize)
		if err != nil {
			return nil, err
		}
		for i := 0; i < len(chunk); i += pageSize {
			p.free = append(p.free, chunk[i:i+pageSize:i+pageSize])
		}
	}
	last := len(p.free) - 1
	page := p.free[last]
	p.free = p.free[:last]
	return page, nil
}

// give takes zeroed pages back.
func (p *pages) give(b []byte) {
	if len(b) > pageSize {
		unix.Munmap(b) // fails for no mapping of ours
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, b)
}

// mapLocked maps size bytes of memory fit for secrets.
func mapLocked(size int) ([]byte, error) {
	b, err := mapSecret(size)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EPERM) { // an older kernel, or one told not to
		b, err = mapPrivate(size)
	}
	if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("%w: %w", ErrLimit, err)
	}
	return b, err
}

// mapSecret has the kernel take the pages out of its own map of the memory
// (memfd_secret(2)). They count as locked.
func mapSecret(size int) ([]byte, error) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return guarded(b, unix.MADV_DONTFORK)
}

// mapPrivate locks ordinary memory.
func mapPrivate(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	if err := unix.Mlock(b); err != nil {
		return nil, errors.Join(err, unix.Munmap(b))
	}
	return guarded(b, unix.MADV_DONTFORK, unix.MADV_DONTDUMP)
}

func guarded(b []byte, advice ...int) ([]byte, error) {
	for _, a := range advice {
		if err := unix.Madvise(b, a); err != nil {
			return nil, errors.Join(fmt.Errorf("madvise %d: %w", a, err), unix.Munmap(b))
		}
	}
	return b, nil
}
