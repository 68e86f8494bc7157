package ima

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
)

// An asciiDecoder turns lines of the ASCII list into entries of the binary one, so
// that one decoder judges both.
type asciiDecoder struct {
	digest int // bytes of the template digests, 0 before the first line
}

// encode returns the line as a binary entry. Fields are separated by one space;
// the kernel writes spaces in names as underscores.
func (a *asciiDecoder) encode(line []byte) ([]byte, error) {
	if bytes.IndexByte(line, 0) >= 0 {
		return nil, errors.New("a line with a zero byte in it")
	}
	pcr, rest, _ := bytes.Cut(line, []byte{' '})
	digest, rest, _ := bytes.Cut(rest, []byte{' '})
	name, rest, found := bytes.Cut(rest, []byte{' '})
	if !found {
		return nil, fmt.Errorf("a line of fewer than four fields: %.80q", line)
	}
	index, err := strconv.ParseUint(string(pcr), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("PCR index %.20q: want a number", pcr)
	}
	t, err := findTemplate(name)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(line)+8*len(t.fields)+16)
	out = binary.LittleEndian.AppendUint32(out, uint32(index))
	if out, err = hex.AppendDecode(out, digest); err != nil {
		return nil, fmt.Errorf("template digest %.140q: %w", digest, err)
	}
	if err := a.sameDigest(len(out) - 4); err != nil {
		return nil, err
	}
	out = appendPrefixed(out, name)
	if t.name == legacy {
		return appendLegacy(out, rest)
	}
	data, err := encodeFields(t.fields, rest)
	return appendPrefixed(out, data), err
}

// sameDigest refuses a list whose template digests differ in size.
func (a *asciiDecoder) sameDigest(size int) error {
	for _, h := range hashes {
		if h.size == size && (a.digest == 0 || a.digest == size) {
			a.digest = size
			return nil
		}
	}
	return fmt.Errorf("a template digest of %d bytes, wanted %d", size, max(a.digest, hashes[0].size))
}

func appendPrefixed(out, part []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(out, uint32(len(part))), part...)
}

func appendLegacy(out, rest []byte) ([]byte, error) {
	digest, name, found := bytes.Cut(rest, []byte{' '})
	if !found || len(digest) != 40 {
		return nil, fmt.Errorf("file digest %.50q: want 40 hex digits and a name behind it", digest)
	}
	out, err := hex.AppendDecode(out, digest)
	if err != nil {
		return nil, fmt.Errorf("file digest %.50q: %w", digest, err)
	}
	return appendPrefixed(out, name), nil
}

// encodeFields returns template data. Fields that are empty leave nothing between
// two spaces, and the kernel's last space may have been trimmed.
func encodeFields(fields []field, rest []byte) ([]byte, error) {
	var out []byte
	for i, f := range fields {
		value, tail, more := bytes.Cut(rest, []byte{' '})
		if last := i == len(fields)-1; last && more {
			return nil, fmt.Errorf("%.80q follows the last field", tail)
		} else if !last && !more && !trimmed(fields[i+1:]) {
			return nil, fmt.Errorf("the line ends after field %s", f)
		}
		value, err := f.encode(value)
		if err != nil {
			return nil, err
		}
		out, rest = appendPrefixed(out, value), tail
	}
	return out, nil
}

// trimmed reports whether all the fields can be empty.
func trimmed(fields []field) bool {
	for _, f := range fields {
		switch f {
		case fieldDigest, fieldDigestNG, fieldDigestV2, fieldName, fieldNameNG, fieldUID, fieldGID, fieldMode:
			return false
		}
	}
	return true
}

// encode returns the field's bytes as the binary list has them.
func (f field) encode(text []byte) ([]byte, error) {
	switch f {
	case fieldName, fieldNameNG, fieldXNames:
		if len(text) == 0 && f == fieldXNames {
			return nil, nil
		}
		return append(bytes.Clone(text), 0), nil
	case fieldDigestNG, fieldDigestV2, fieldModDig:
		return encodeDigest(f, text)
	case fieldUID, fieldGID, fieldMode:
		return encodeNumber(f, text)
	}
	value, err := hex.AppendDecode(nil, text)
	if err != nil {
		return nil, fmt.Errorf("field %s, %.80q: %w", f, text, err)
	}
	return value, nil
}

func encodeDigest(f field, text []byte) ([]byte, error) {
	if len(text) == 0 && f == fieldModDig {
		return nil, nil
	}
	i := bytes.LastIndexByte(text, ':')
	if i < 0 {
		return nil, fmt.Errorf("the file digest %.80q has no algorithm before it", text)
	}
	value := append(bytes.Clone(text[:i+1]), 0)
	value, err := hex.AppendDecode(value, text[i+1:])
	if err != nil {
		return nil, fmt.Errorf("field %s, %.80q: %w", f, text, err)
	}
	return value, nil
}

// encodeNumber writes an owner or mode as the kernel keeps it: owners in 32 bits,
// modes in 16.
func encodeNumber(f field, text []byte) ([]byte, error) {
	bits := 32
	if f == fieldMode {
		bits = 16
	}
	n, err := strconv.ParseUint(string(text), 10, bits)
	if err != nil {
		return nil, fmt.Errorf("field %s, %.20q: want a number", f, text)
	}
	if bits == 16 {
		return binary.LittleEndian.AppendUint16(nil, uint16(n)), nil
	}
	return binary.LittleEndian.AppendUint32(nil, uint32(n)), nil
}
