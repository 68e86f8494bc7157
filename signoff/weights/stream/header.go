package stream

import (
	"bufio"
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds on a header that is read. Stock age reads 2 MiB; keyturn's own headers
// are 4 KiB, and foreign files stay well below these.
const (
	maxHeader  = 1 << 20 // bytes
	maxStanzas = 1024
	maxArgs    = 128
)

const (
	intro      = "age-encryption.org/v1\n"
	column     = 64 // base64 characters on a full body line
	columnData = column / 4 * 3
	padType    = "keyturn-grease"
)

var b64 = base64.RawStdEncoding.Strict()

// A Stanza wraps the file key for one recipient (C2SP age.md, "Recipient
// stanza"). Type and Args are non-empty strings of printable ASCII without
// spaces; Body is any bytes.
type Stanza struct {
	Type string
	Args []string
	Body []byte
}

// A Header is a parsed age header.
type Header struct {
	// Stanzas are in file order, grease included.
	Stanzas []Stanza
	// Size is the length of the header in bytes: where the nonce begins.
	Size int64

	mac    []byte
	signed []byte // the exact bytes the MAC covers
}

// MarshalHeader returns the header that wraps key in stanzas. If size is not
// zero, a grease stanza fills the header up to exactly size bytes; it holds only
// zero bytes, so that nothing can hide in it. It fails if the stanzas are
// malformed, absent, or leave no room for the padding.
func MarshalHeader(key FileKey, stanzas []Stanza, size int) ([]byte, error) {
	if len(stanzas) == 0 {
		return nil, errors.New("stream: a header needs at least one stanza")
	}
	var b bytes.Buffer
	b.WriteString(intro)
	for _, s := range stanzas {
		if err := s.marshal(&b); err != nil {
			return nil, err
		}
	}
	const end = len("--- \n") + (sha256.Size*8+5)/6
	if size != 0 {
		pad, err := padding(size - b.Len() - end)
		if err != nil {
			return nil, err
		}
		if err := pad.marshal(&b); err != nil {
			return nil, err
		}
	}
	b.WriteString("---")
	mac, err := headerMAC(key, b.Bytes())
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(&b, " %s\n", b64.EncodeToString(mac))
	return b.Bytes(), nil
}

// padding returns a stanza that marshals to exactly n bytes: full body lines of
// zero bytes, an empty last line, and an argument that takes up the rest.
func padding(n int) (Stanza, error) {
	const least = len("-> "+padType+" 0\n") + len("\n")
	if n < least {
		return Stanza{}, fmt.Errorf("stream: stanzas leave %d bytes for padding, at least %d are needed; wrap for fewer recipients", n, least)
	}
	lines, rest := (n-least)/(column+1), (n-least)%(column+1)
	return Stanza{
		Type: padType,
		Args: []string{strings.Repeat("0", 1+rest)},
		Body: make([]byte, lines*columnData),
	}, nil
}

// Fills reports whether the stanza is one that [MarshalHeader] fills a header up
// with: it wraps nothing for anybody.
func (s Stanza) Fills() bool {
	return s.Type == padType && len(s.Args) == 1 && strings.Trim(s.Args[0], "0") == "" && len(bytes.Trim(s.Body, "\x00")) == 0
}

func (s Stanza) marshal(b *bytes.Buffer) error {
	for _, a := range append([]string{s.Type}, s.Args...) {
		if !printable(a) {
			return fmt.Errorf("stream: stanza type or argument %q is not printable ASCII without spaces", a)
		}
	}
	if len(s.Args)+1 > maxArgs {
		return fmt.Errorf("stream: stanza %s has %d arguments, at most %d are allowed", s.Type, len(s.Args), maxArgs-1)
	}
	fmt.Fprintf(b, "-> %s\n", strings.Join(append([]string{s.Type}, s.Args...), " "))
	enc := b64.EncodeToString(s.Body)
	for len(enc) >= column {
		b.WriteString(enc[:column])
		b.WriteByte('\n')
		enc = enc[column:]
	}
	b.WriteString(enc)
	b.WriteByte('\n')
	return nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 33 || s[i] > 126 {
			return false
		}
	}
	return s != ""
}

func headerMAC(key FileKey, signed []byte) ([]byte, error) {
	k, err := hkdf.Key(sha256.New, key[:], nil, "header", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("stream: derive header key: %w", err)
	}
	defer clear(k)
	m := hmac.New(sha256.New, k)
	m.Write(signed)
	return m.Sum(nil), nil
}

// Verify reports whether key authenticates the header, as a nil error or one
// that is [ErrForged]. The stanzas mean nothing before this.
func (h *Header) Verify(key FileKey) error {
	mac, err := headerMAC(key, h.signed)
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, h.mac) {
		return fmt.Errorf("header MAC: %w", ErrForged)
	}
	return nil
}

// ParseHeader reads a header from r. Only the canonical encoding is accepted
// (C2SP age.md, "Header"), so that marshalling the result gives the bytes read.
// It reads ahead unless r is a *bufio.Reader; Header.Size says where the header
// ended.
func ParseHeader(r io.Reader) (*Header, error) {
	p := &headerReader{r: bufio.NewReader(r), raw: make([]byte, 0, HeaderSize)}
	line, err := p.line()
	if err != nil {
		return nil, err
	}
	if line+"\n" != intro {
		return nil, fmt.Errorf("stream: header begins with %.40q, not %q: not an age v1 file", line, intro)
	}
	h := &Header{}
	for line, err = p.line(); err == nil && strings.HasPrefix(line, "-> "); line, err = p.line() {
		if len(h.Stanzas) == maxStanzas {
			return nil, fmt.Errorf("stream: header has more than %d stanzas", maxStanzas)
		}
		s, err := p.stanza(line)
		if err != nil {
			return nil, err
		}
		h.Stanzas = append(h.Stanzas, s)
	}
	if err != nil {
		return nil, err
	}
	return h, p.finish(h, line)
}

// headerReader reads lines and keeps every byte of them.
type headerReader struct {
	r   *bufio.Reader
	raw []byte
}

// line returns the next line without its newline.
func (p *headerReader) line() (string, error) {
	start := len(p.raw)
	for {
		part, err := p.r.ReadSlice('\n')
		if len(p.raw)+len(part) > maxHeader {
			return "", fmt.Errorf("stream: header exceeds %d bytes", maxHeader)
		}
		p.raw = append(p.raw, part...)
		switch {
		case err == nil:
			return string(p.raw[start : len(p.raw)-1]), nil
		case errors.Is(err, io.EOF):
			return "", fmt.Errorf("stream: header ends after %d bytes, inside a line: %w", len(p.raw), io.ErrUnexpectedEOF)
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", fmt.Errorf("stream: read header: %w", err)
		}
	}
}

// stanza parses the stanza whose first line is given.
func (p *headerReader) stanza(first string) (Stanza, error) {
	words := strings.Split(first, " ")[1:]
	if len(words) > maxArgs {
		return Stanza{}, fmt.Errorf("stream: stanza has more than %d arguments", maxArgs)
	}
	for _, w := range words {
		if !printable(w) {
			return Stanza{}, fmt.Errorf("stream: stanza line %.80q has an empty or unprintable argument", first)
		}
	}
	s := Stanza{Type: words[0], Args: words[1:]}
	for {
		line, err := p.line()
		if err != nil {
			return Stanza{}, err
		}
		// The decoder skips carriage returns; the format has none.
		s.Body, err = b64.AppendDecode(s.Body, []byte(line))
		if err != nil || len(line) > column || strings.Contains(line, "\r") {
			return Stanza{}, fmt.Errorf("stream: stanza %.40s: body line %.80q is not canonical base64 of at most %d columns", s.Type, line, column)
		}
		if len(line) < column {
			return s, nil
		}
	}
}

// finish parses the closing line, the MAC.
func (p *headerReader) finish(h *Header, line string) error {
	text, ok := strings.CutPrefix(line, "--- ")
	if !ok {
		return fmt.Errorf("stream: header line %.80q is neither a stanza nor the MAC", line)
	}
	mac, err := b64.DecodeString(text)
	if err != nil || len(mac) != sha256.Size || strings.Contains(text, "\r") {
		return fmt.Errorf("stream: header MAC %.80q is not the canonical base64 of %d bytes", text, sha256.Size)
	}
	if len(h.Stanzas) == 0 {
		return errors.New("stream: header has no stanza, so nobody could open the file")
	}
	h.mac = mac
	h.Size = int64(len(p.raw))
	h.signed = p.raw[:len(p.raw)-len(line)-1+len("---")]
	return nil
}
