// Package stream is keyturn's engine for the age v1 file format, built for
// files of many terabytes.
//
// An age file (https://age-encryption.org/v1, specified as C2SP age.md) is a
// short textual header followed by a payload. The header carries stanzas, each
// of which wraps the same 16-byte file key for somebody, and a MAC over the
// header under that key. The payload is a 16-byte nonce followed by a body: the
// plaintext in chunks of 64 KiB, each sealed with ChaCha20-Poly1305 under a key
// derived from file key and nonce. A chunk's nonce is its index and a flag that
// only the last chunk sets, so chunks cannot be moved, repeated, dropped or
// added.
//
// keyturn fixes the layout so that a header can be written after the body: the
// header is exactly [HeaderSize] bytes, filled up by a grease stanza that every
// age implementation ignores, then the payload nonce, then the body. Sealing
// writes the body first, learns the digest of the plaintext on the way, and
// only then knows the object that the header's stanza names.
//
// Chunks are independent, so an [Engine] works on many of them at once, each in
// place in one buffer that stays in a core's cache. Whatever must happen in
// order (hashing the plaintext, releasing plaintext) takes turns. Memory does
// not depend on the size of the file.
//
// The package opens no files and reads no clock. It draws randomness only for
// file keys and nonces.
package stream

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	// ChunkSize is the plaintext size of every chunk but the last, in bytes
	// (C2SP age.md, "Payload").
	ChunkSize = 64 << 10
	// Overhead is the size of the tag on each chunk, in bytes.
	Overhead = chacha20poly1305.Overhead
	// HeaderSize is the size of the headers keyturn writes, in bytes.
	HeaderSize = 4096
	// BodyOffset is where the body begins in a file keyturn wrote, in bytes.
	BodyOffset = HeaderSize + NonceSize
	// NonceSize is the size of the payload nonce, in bytes.
	NonceSize = 16
	// FileKeySize is the size of a file key, in bytes.
	FileKeySize = 16

	sealedChunk = ChunkSize + Overhead

	// maxSize bounds plaintexts and bodies, in bytes, so that no sum of sizes
	// overflows. Linux lets anybody make a sparse file of twice this size.
	maxSize = 1 << 62
)

// ErrForged reports a chunk or header that the file key does not authenticate:
// altered, moved, cut short, or sealed under another key.
var ErrForged = errors.New("stream: not authentic under this file key")

// A FileKey is the random secret of one file. It formats as a placeholder so
// that it cannot slip into a log.
type FileKey [FileKeySize]byte

// NewFileKey returns a fresh random file key. One key seals one body, once.
func NewFileKey() FileKey {
	var k FileKey
	rand.Read(k[:]) // never fails, see crypto/rand
	return k
}

// Format writes a placeholder for every verb.
func (FileKey) Format(s fmt.State, _ rune) { fmt.Fprint(s, "[file key]") }

// MarshalText refuses: a file key is never written down bare.
func (FileKey) MarshalText() ([]byte, error) {
	return nil, errors.New("stream: a file key is not written out unwrapped")
}

// Wipe overwrites the key.
func (k *FileKey) Wipe() { clear(k[:]) }

// A Nonce is the 16-byte salt at the start of a payload.
type Nonce [NonceSize]byte

// NewNonce returns a fresh random payload nonce.
func NewNonce() Nonce {
	var n Nonce
	rand.Read(n[:])
	return n
}

// SealedSize returns the size in bytes of the file that holds plain bytes.
func SealedSize(plain int64) int64 { return BodyOffset + BodySize(plain) }

// BodySize returns the size in bytes of the body that holds plain bytes. An
// empty plaintext is one empty chunk.
func BodySize(plain int64) int64 {
	chunks := max(1, (plain+ChunkSize-1)/ChunkSize)
	return plain + chunks*Overhead
}

// PlainSize returns the plaintext size in bytes of a body of the given size. It
// fails for sizes that no body has: too short for a tag, or ending in an empty
// chunk that is not the only one.
func PlainSize(body int64) (int64, error) {
	chunks, last := layout(body)
	if err := checkLast(chunks, last); err != nil {
		return 0, err
	}
	return body - chunks*Overhead, nil
}

// layout splits a body into chunks; last is the sealed size of the final one, 0 if
// no body has this size.
func layout(body int64) (chunks, last int64) {
	if body <= 0 || body > maxSize {
		return 1, 0
	}
	chunks = (body + sealedChunk - 1) / sealedChunk
	return chunks, body - (chunks-1)*sealedChunk
}

func checkLast(chunks, last int64) error {
	if last < Overhead {
		return fmt.Errorf("stream: chunk %d has %d bytes, shorter than its %d-byte tag: the body was cut, or is longer than any", chunks-1, last, Overhead)
	}
	if last == Overhead && chunks > 1 {
		return fmt.Errorf("stream: chunk %d is empty, which only the sole chunk of an empty file may be", chunks-1)
	}
	return nil
}

// payloadAEAD derives the cipher of a payload (C2SP age.md, "Payload").
func payloadAEAD(key FileKey, nonce Nonce) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, key[:], nonce[:], "payload", chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("stream: derive payload key: %w", err)
	}
	defer clear(k)
	return chacha20poly1305.New(k)
}

// chunkNonce is an 11-byte big-endian counter and the last-chunk flag.
func chunkNonce(index int64, last bool) (n [chacha20poly1305.NonceSize]byte) {
	binary.BigEndian.PutUint64(n[3:11], uint64(index))
	if last {
		n[11] = 1
	}
	return n
}
