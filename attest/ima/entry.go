package ima

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// An Entry is one measurement. Its slices alias the list.
type Entry struct {
	Offset, Size int    // where it stands in the list, in bytes
	PCR          int    // 10, unless a policy rule names another
	Digest       []byte // template digest as listed, zeros for a violation
	Violation    bool   // nothing else in the entry is proved
	Template     string
	Data         []byte // template data, as hashed, or as listed for the template "ima"

	Algorithm  string // of FileDigest, such as sha256
	FileDigest []byte // of the file's content, or of the buffer
	Verity     bool   // FileDigest is that of fs-verity, not of the content
	Signature  []byte // field sig, empty if the file has none
	Buffer     []byte // field buf

	name []byte
}

// Path returns the file's path, or what else the kernel calls the measured thing, such
// as boot_aggregate or kexec-cmdline. It may hold any byte but zero, newlines and
// terminal controls included.
func (e *Entry) Path() string { return string(e.name) }

// String returns the file digest and path, quoted for a terminal.
func (e *Entry) String() string {
	if e.Violation {
		return fmt.Sprintf("violation, said to be of %.200q", e.name)
	}
	return fmt.Sprintf("%s:%x %.200q", e.Algorithm, e.FileDigest, e.name)
}

// errCut is wrapped by errors about data that ends too early.
var errCut = errors.New("cut off")

// A decoder reads entries in the binary format.
type decoder struct {
	digest   int       // bytes of a template digest
	template *template // of the entry before
}

// next decodes the entry at the front of data and returns its size in bytes.
func (d *decoder) next(data []byte, e *Entry) (int, error) {
	rest := data
	if len(rest) < 4+d.digest+4 {
		return 0, fmt.Errorf("%w in its first fields: %d bytes left", errCut, len(rest))
	}
	pcr := binary.LittleEndian.Uint32(rest)
	switch {
	case bits.ReverseBytes32(pcr) < pcrCount && pcr >= pcrCount:
		return 0, fmt.Errorf("PCR %d: the list is big-endian; the kernel parameter ima_canonical_fmt makes it little-endian", pcr)
	case pcr >= pcrCount:
		return 0, fmt.Errorf("PCR %d: there are PCR 0 to %d", pcr, pcrCount-1)
	}
	*e = Entry{PCR: int(pcr), Digest: rest[4 : 4+d.digest]}
	e.Violation = allZero(e.Digest)
	rest = rest[4+d.digest:]
	name, rest, err := prefixed(rest, maxTemplate, "the template's name")
	if err != nil {
		return 0, err
	}
	if d.template == nil || d.template.name != string(name) {
		if d.template, err = findTemplate(name); err != nil {
			return 0, err
		}
	}
	e.Template = d.template.name
	if e.Template == legacy {
		rest, err = e.decodeLegacy(rest)
	} else {
		e.Data, rest, err = prefixed(rest, maxData, "the template data")
		if err == nil {
			err = e.decodeFields(d.template.fields)
		}
	}
	if err != nil {
		return 0, err
	}
	return len(data) - len(rest), nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// prefixed cuts a part with its 32-bit length in front off data.
func prefixed(data []byte, limit int, what string) (part, rest []byte, err error) {
	if len(data) < 4 {
		return nil, nil, fmt.Errorf("%w in the length of %s: %d bytes left", errCut, what, len(data))
	}
	n := binary.LittleEndian.Uint32(data)
	if int64(n) > int64(limit) {
		return nil, nil, fmt.Errorf("%s of %d bytes, more than %d", what, n, limit)
	}
	data = data[4:]
	if int(n) > len(data) {
		return nil, nil, fmt.Errorf("%w in %s: %d of %d bytes left", errCut, what, len(data), n)
	}
	return data[:n:n], data[n:], nil
}

// decodeLegacy reads the data of the template "ima".
func (e *Entry) decodeLegacy(data []byte) ([]byte, error) {
	const size = 20
	if len(data) < size {
		return nil, fmt.Errorf("%w in the file digest: %d bytes left", errCut, len(data))
	}
	name, rest, err := prefixed(data[size:], imaName, "the file's name")
	if err != nil {
		return nil, err
	}
	if len(name) == 0 || bytes.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("the file's name %.80q is empty or holds a zero byte", name)
	}
	e.Algorithm, e.FileDigest, e.name = "sha1", data[:size:size], name
	e.Data = data[:len(data)-len(rest)]
	return rest, nil
}

// decodeFields reads template data, which its fields fill.
func (e *Entry) decodeFields(fields []field) error {
	rest := e.Data
	for _, f := range fields {
		if len(rest) < 4 {
			return fmt.Errorf("template data ends before field %s", f)
		}
		n := int64(binary.LittleEndian.Uint32(rest))
		if n > int64(len(rest)-4) {
			return fmt.Errorf("field %s of %d bytes, %d left in the template data", f, n, len(rest)-4)
		}
		if err := e.take(f, rest[4:4+n:4+n]); err != nil {
			return err
		}
		rest = rest[4+n:]
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes follow the fields of the template data", len(rest))
	}
	return nil
}

// take keeps what one field says. Fields that are not named here are covered by
// the template digest and not looked into.
func (e *Entry) take(f field, value []byte) error {
	switch f {
	case fieldDigestNG:
		return e.takeDigest(value)
	case fieldDigestV2:
		return e.takeTypedDigest(value)
	case fieldDigest:
		return e.takeBareDigest(value)
	case fieldName, fieldNameNG:
		return e.takeName(value)
	case fieldSig:
		e.Signature = value
	case fieldBuf:
		e.Buffer = value
	}
	return nil
}

func (e *Entry) takeDigest(value []byte) error {
	i := bytes.IndexByte(value, ':')
	if i < 0 || i+1 >= len(value) || value[i+1] != 0 {
		return fmt.Errorf("the file digest %.40q has no algorithm before it", value)
	}
	name, size, ok := algorithm(value[:i])
	if !ok {
		return fmt.Errorf("file digest algorithm %.20q is not one that is known", value[:i])
	}
	e.Algorithm, e.FileDigest = name, value[i+2:]
	// Kernels of 2022 wrote the 20 zeros of SHA-1 into a violation, whatever the
	// algorithm: nothing is proved by them either way.
	if len(e.FileDigest) != size && !(e.Violation && allZero(e.FileDigest)) {
		return fmt.Errorf("a %s file digest of %d bytes, wanted %d", name, len(e.FileDigest), size)
	}
	return nil
}

func (e *Entry) takeTypedDigest(value []byte) error {
	if rest, found := bytes.CutPrefix(value, []byte("ima:")); found {
		return e.takeDigest(rest)
	}
	rest, found := bytes.CutPrefix(value, []byte("verity:"))
	if !found {
		return fmt.Errorf("the file digest %.40q is neither ima nor verity", value)
	}
	e.Verity = true
	return e.takeDigest(rest)
}

func (e *Entry) takeBareDigest(value []byte) error {
	switch len(value) {
	case 20:
		e.Algorithm = "sha1"
	case 16:
		e.Algorithm = "md5"
	default:
		return fmt.Errorf("a file digest of %d bytes, wanted 20", len(value))
	}
	e.FileDigest = value
	return nil
}

func (e *Entry) takeName(value []byte) error {
	n := len(value) - 1
	if n < 0 || bytes.IndexByte(value, 0) != n {
		return fmt.Errorf("the file's name %.80q does not end with its only zero byte", value)
	}
	e.name = value[:n]
	return nil
}

// input returns what is hashed for the template digest. The buffer is used for the
// template "ima" only.
func (e *Entry) input(buf *[20 + imaName + 1]byte) []byte {
	if e.Template != legacy {
		return e.Data
	}
	*buf = [len(buf)]byte{}
	copy(buf[:], e.FileDigest)
	copy(buf[20:], e.name)
	return buf[:]
}
