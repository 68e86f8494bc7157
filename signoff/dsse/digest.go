package dsse

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// A Digest is a SHA-256 value. In text and JSON it reads sha256:<64 hex>.
// The zero Digest means "none" and is never accepted where one is required.
type Digest [sha256.Size]byte

const digestPrefix = "sha256:"

// ParseDigest reads sha256:<64 lower-case hex digits>.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	hexed, ok := strings.CutPrefix(s, digestPrefix)
	if !ok || len(hexed) != 2*len(d) || strings.ToLower(hexed) != hexed {
		return d, fmt.Errorf("dsse: digest %.80q: want sha256: and 64 lower-case hex digits", s)
	}
	if _, err := hex.Decode(d[:], []byte(hexed)); err != nil {
		return Digest{}, fmt.Errorf("dsse: digest %.80q: %w", s, err)
	}
	return d, nil
}

// String returns sha256:<64 hex>.
func (d Digest) String() string { return digestPrefix + d.Hex() }

// Hex returns the 64 hex digits alone.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// Short returns twelve hex digits, enough to recognise and never to verify.
func (d Digest) Short() string { return hex.EncodeToString(d[:6]) }

// IsZero reports whether d is the missing digest.
func (d Digest) IsZero() bool { return d == Digest{} }

// AppendText writes sha256:<64 hex>, and nothing for the missing digest.
func (d Digest) AppendText(b []byte) ([]byte, error) {
	if d.IsZero() {
		return b, nil
	}
	return hex.AppendEncode(append(b, digestPrefix...), d[:]), nil
}

// MarshalText writes what AppendText appends.
func (d Digest) MarshalText() ([]byte, error) { return d.AppendText([]byte{}) }

// UnmarshalText reads what MarshalText writes.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = Digest{}
		return nil
	}
	parsed, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

// Sum hashes length-prefixed fields under a label, so that no two lists of
// fields give the same input (each field: 32-bit big-endian length, bytes).
func Sum(label string, fields ...[]byte) Digest {
	h := sha256.New()
	write := func(b []byte) {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	write([]byte(label))
	for _, f := range fields {
		write(f)
	}
	return Digest(h.Sum(nil))
}
