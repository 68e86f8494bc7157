package eventlog

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"slices"
	"strings"
)

// An Algorithm is a TPM_ALG_ID of a hash (TPM 2.0 Library, Part 2, 6.3).
type Algorithm uint16

// The algorithms of PCR banks in use.
const (
	SHA1   Algorithm = 0x0004
	SHA256 Algorithm = 0x000b
	SHA384 Algorithm = 0x000c
	SHA512 Algorithm = 0x000d
	SM3    Algorithm = 0x0012
)

// known are the algorithms with a name, and their digests' sizes in bytes.
var known = []struct {
	id   Algorithm
	name string
	size int
}{
	{SHA1, "sha1", sha1.Size},
	{SHA256, "sha256", sha256.Size},
	{SHA384, "sha384", sha512.Size384},
	{SHA512, "sha512", sha512.Size},
	{SM3, "sm3", 32},
}

// String returns the lower-case name such as sha256, or 0x and the number.
func (a Algorithm) String() string {
	for _, k := range known {
		if k.id == a {
			return k.name
		}
	}
	return fmt.Sprintf("0x%04x", uint16(a))
}

// size returns the bytes of a digest, 0 for an algorithm without a name.
func (a Algorithm) size() int {
	for _, k := range known {
		if k.id == a {
			return k.size
		}
	}
	return 0
}

// sum hashes data and returns the digest at the front of an array, so that
// nothing escapes to the heap. The algorithm is one that a bank was opened with.
func (a Algorithm) sum(data []byte) (out [maxDigest]byte) {
	switch a {
	case SHA1:
		d := sha1.Sum(data)
		copy(out[:], d[:])
	case SHA256:
		d := sha256.Sum256(data)
		copy(out[:], d[:])
	case SHA384:
		d := sha512.Sum384(data)
		copy(out[:], d[:])
	case SHA512:
		out = sha512.Sum512(data)
	}
	return out
}

// A bank is one column of a log.
type bank struct {
	alg  Algorithm
	size int // of a digest, in bytes
	slot int // index into Event.at
}

// bank finds a column that can be replayed.
func (l *Log) bank(name string) (bank, error) {
	i := slices.IndexFunc(l.banks, func(b bank) bool { return b.alg.String() == name })
	if i < 0 {
		return bank{}, fmt.Errorf("eventlog: the log has no %q bank: it has %s", name, strings.Join(l.Banks(), ", "))
	}
	b := l.banks[i]
	switch b.alg {
	case SHA1, SHA256, SHA384, SHA512:
		return b, nil
	}
	return bank{}, fmt.Errorf("eventlog: bank %s cannot be replayed: want sha256, sha384 or sha512", b.alg)
}

// Banks returns the names of the digest algorithms that the log carries, in its
// order.
func (l *Log) Banks() []string {
	names := make([]string, len(l.banks))
	for i, b := range l.banks {
		names[i] = b.alg.String()
	}
	return names
}
