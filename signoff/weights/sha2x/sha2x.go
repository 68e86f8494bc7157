// Package sha2x hashes two streams with SHA-256 at once.
//
// The SHA instructions of a core wait for their own results most of the time:
// each pair of rounds needs the one before. Feeding them two independent
// streams in turn fills the gaps and nearly doubles what a core hashes.
//
// The streams themselves are states of crypto/sha256. Only long runs of whole
// blocks that two of them have at the same time go through the code here;
// everything else, and every machine without the instructions, goes through
// crypto/sha256. The two are compared once at start-up, and the fast path stays
// off unless they agree.
//
// SHA-256 is FIPS 180-4; the instructions are SHA256RNDS2, SHA256MSG1 and
// SHA256MSG2 of the Intel SHA extensions.
package sha2x

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
)

// BlockSize is the block size of SHA-256 in bytes.
const BlockSize = sha256.BlockSize

// A Stream is one SHA-256 computation. Make it with [New].
type Stream struct {
	h hash.Hash
	n uint64 // bytes written
}

// New returns an empty stream.
func New() *Stream { return &Stream{h: sha256.New()} }

// Write adds p. It never fails.
func (s *Stream) Write(p []byte) (int, error) {
	s.n += uint64(len(p))
	return s.h.Write(p)
}

// Sum returns the digest of everything written.
func (s *Stream) Sum() (d [sha256.Size]byte) {
	s.h.Sum(d[:0])
	return d
}

// Reset makes the stream empty.
func (s *Stream) Reset() {
	s.h.Reset()
	s.n = 0
}

// Write2 adds p to a and q to b, as a.Write(p) and b.Write(q) would, and faster
// where both are long. The streams must be different; p and q may be the same.
func Write2(a, b *Stream, p, q []byte) {
	if n := min(len(p), len(q)) / BlockSize; fast && n > 0 && a.n%BlockSize == 0 && b.n%BlockSize == 0 && a != b {
		if together(a, b, p, q, n) {
			p, q = p[n*BlockSize:], q[n*BlockSize:]
		}
	}
	a.Write(p)
	b.Write(q)
}

// fast says that this machine has the instructions and that they agree with
// crypto/sha256.
var fast = available() && agrees()

// together runs n blocks of both streams, or reports that it did nothing.
func together(a, b *Stream, p, q []byte, n int) bool {
	var sa, sb saved
	if !sa.from(a.h) || !sb.from(b.h) {
		return false
	}
	ra, rb := sa.registers(), sb.registers()
	blocks2(&ra, &rb, &p[0], &q[0], n)
	sa.set(ra, a.n+uint64(n*BlockSize))
	sb.set(rb, b.n+uint64(n*BlockSize))
	if !sa.to(a.h) || !sb.to(b.h) {
		panic("sha2x: crypto/sha256 refused a state in its own format") // agrees() has seen it accept one
	}
	a.n += uint64(n * BlockSize)
	b.n += uint64(n * BlockSize)
	return true
}

// saved is a state as crypto/sha256 marshals it: four bytes of magic, eight
// words, one block of buffered input, the length; all big-endian.
type saved [savedSize]byte

const (
	magic     = "sha\x03"
	savedSize = len(magic) + sha256.Size + BlockSize + 8
)

func (s *saved) from(h hash.Hash) bool {
	m, ok := h.(encoding.BinaryAppender)
	if !ok {
		return false
	}
	out, err := m.AppendBinary(s[:0])
	return err == nil && len(out) == savedSize && string(out[:len(magic)]) == magic && &out[0] == &s[0]
}

func (s *saved) to(h hash.Hash) bool {
	m, ok := h.(encoding.BinaryUnmarshaler)
	return ok && m.UnmarshalBinary(s[:]) == nil
}

// order is where the instructions want the words a to h: f e b a, h g d c.
var order = [8]int{5, 4, 1, 0, 7, 6, 3, 2}

func (s *saved) registers() (r [8]uint32) {
	for i, w := range order {
		r[i] = binary.BigEndian.Uint32(s[len(magic)+4*w:])
	}
	return r
}

func (s *saved) set(r [8]uint32, length uint64) {
	for i, w := range order {
		binary.BigEndian.PutUint32(s[len(magic)+4*w:], r[i])
	}
	binary.BigEndian.PutUint64(s[savedSize-8:], length)
}

// agrees hashes three blocks both ways.
func agrees() bool {
	var p, q [3 * BlockSize]byte
	for i := range p {
		p[i], q[i] = byte(i), byte(7*i+1)
	}
	a, b := New(), New()
	return together(a, b, p[:], q[:], 3) && a.Sum() == sha256.Sum256(p[:]) && b.Sum() == sha256.Sum256(q[:])
}
