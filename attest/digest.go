package attest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// A Digest is a SHA-256 value. In text and JSON it reads sha256:<64 lower-case
// hex digits>.
type Digest [sha256.Size]byte

const digestPrefix = "sha256:"

// String returns sha256:<64 hex>.
func (d Digest) String() string { return digestPrefix + hex.EncodeToString(d[:]) }

// IsZero reports whether d is all zeros, which stands for none.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText writes what String returns.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes and nothing else.
func (d *Digest) UnmarshalText(text []byte) error {
	hexed, found := strings.CutPrefix(string(text), digestPrefix)
	if !found || len(hexed) != 2*len(d) || strings.ToLower(hexed) != hexed {
		return fmt.Errorf("attest: digest %.80q: want sha256: and 64 lower-case hex digits", text)
	}
	if _, err := hex.Decode(d[:], []byte(hexed)); err != nil {
		return fmt.Errorf("attest: digest %.80q: %w", text, err)
	}
	return nil
}

// sum hashes fields, each behind its 32-bit big-endian length, so that no two
// lists of fields give the same input. The first field is a label.
func sum(label string, fields ...[]byte) [32]byte {
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
	return [32]byte(h.Sum(nil))
}
