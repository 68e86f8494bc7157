package uki

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
)

// Bounds, far above what real images have.
const (
	maxHeaders  = 1 << 20 // bytes before the first section
	maxSections = 1024
	maxFill     = 256 << 20 // bytes that a section has in memory and not in the file
)

// A section is a part of an image as the section table has it.
type section struct {
	name        string
	offset, raw int64 // in the file
	virtual     int64 // bytes in memory: what the file has, cut or filled up with zeros
}

// An image is a PE file's layout, as far as it is hashed or measured.
type image struct {
	r        io.ReaderAt
	size     int64
	headers  int64 // SizeOfHeaders
	checksum int64 // offset of the field, 4 bytes
	certs    int64 // offset of the certificate table's directory entry, 8 bytes; 0 if there is none
	certSize int64
	sections []section // in the order of the table
}

// Offsets in the headers (Microsoft PE format, "Optional Header").
const (
	offPE          = 0x3c
	sizeCOFF       = 24 // signature and file header
	magicPE32      = 0x10b
	magicPE32Plus  = 0x20b
	offHeadersSize = 60
	offChecksum    = 64
	directories32  = 96
	directories64  = 112
	certDirectory  = 4
	sizeSection    = 40
)

// parse reads the headers and checks that every section lies in the file.
func parse(r io.ReaderAt, size int64) (*image, error) {
	h := make([]byte, min(size, maxHeaders))
	if _, err := r.ReadAt(h, 0); err != nil {
		return nil, fmt.Errorf("headers: %w", err)
	}
	at := func(off int64, n int) ([]byte, error) {
		if off < 0 || off > int64(len(h))-int64(n) {
			return nil, fmt.Errorf("not a PE image: its headers end before offset %d", off+int64(n))
		}
		return h[off:][:n], nil
	}
	dos, err := at(0, offPE+4)
	if err != nil {
		return nil, err
	}
	pe := int64(binary.LittleEndian.Uint32(dos[offPE:]))
	coff, err := at(pe, sizeCOFF)
	if err != nil {
		return nil, err
	}
	if string(dos[:2]) != "MZ" || string(coff[:4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("not a PE image: it does not begin as one")
	}
	optional, err := at(pe+sizeCOFF, int(binary.LittleEndian.Uint16(coff[20:])))
	if err != nil {
		return nil, err
	}
	p := &image{r: r, size: size}
	if err := p.optional(optional, pe+sizeCOFF); err != nil {
		return nil, err
	}
	n := int(binary.LittleEndian.Uint16(coff[6:]))
	if n == 0 || n > maxSections {
		return nil, fmt.Errorf("%d sections, want 1 to %d", n, maxSections)
	}
	table, err := at(pe+sizeCOFF+int64(len(optional)), n*sizeSection)
	if err != nil {
		return nil, err
	}
	for row := range slices.Chunk(table, sizeSection) {
		if err := p.section(row); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// optional reads the optional header, which begins at base.
func (p *image) optional(h []byte, base int64) error {
	if len(h) < directories32 {
		return fmt.Errorf("not a PE image: optional header of %d bytes", len(h))
	}
	directories := directories32
	switch magic := binary.LittleEndian.Uint16(h); magic {
	case magicPE32:
	case magicPE32Plus:
		directories = directories64
	default:
		return fmt.Errorf("not a PE image: optional header of kind %#x", magic)
	}
	p.headers = int64(binary.LittleEndian.Uint32(h[offHeadersSize:]))
	p.checksum = base + offChecksum
	entry := directories + 8*certDirectory
	if len(h) >= entry+8 && binary.LittleEndian.Uint32(h[directories-4:]) > certDirectory {
		p.certs = base + int64(entry)
		begin, n := int64(binary.LittleEndian.Uint32(h[entry:])), int64(binary.LittleEndian.Uint32(h[entry+4:]))
		if n > 0 && begin+n > p.size {
			return fmt.Errorf("signatures of %d bytes at offset %d are not in the file's %d", n, begin, p.size)
		}
		p.certSize = n
	}
	if p.headers < base+int64(len(h)) || p.headers > p.size-p.certSize {
		return fmt.Errorf("headers of %d bytes do not fit an image of %d", p.headers, p.size)
	}
	return nil
}

func (p *image) section(row []byte) error {
	word := func(off int) int64 { return int64(binary.LittleEndian.Uint32(row[off:])) }
	name, _, _ := strings.Cut(string(row[:8]), "\x00")
	s := section{name: name, virtual: word(8), raw: word(16), offset: word(20)}
	if s.raw > 0 && s.offset+s.raw > p.size-p.certSize {
		return fmt.Errorf("section %q of %d bytes at offset %d is not in the file's %d", s.name, s.raw, s.offset, p.size-p.certSize)
	}
	if s.virtual > s.raw+maxFill {
		return fmt.Errorf("section %q has %d bytes in memory and %d in the file", s.name, s.virtual, s.raw)
	}
	p.sections = append(p.sections, s)
	return nil
}

// authenticode hashes the image as firmware does when it measures or verifies
// it: headers without checksum and signatures, sections in the order of the
// file, then what follows them (EDK II, MeasurePeImageAndExtend).
func (p *image) authenticode() ([32]byte, error) {
	h := sha256.New()
	spans := [][2]int64{{0, p.checksum}, {p.checksum + 4, p.headers}}
	if p.certs > 0 {
		spans = [][2]int64{{0, p.checksum}, {p.checksum + 4, p.certs}, {p.certs + 8, p.headers}}
	}
	done := p.headers
	for _, s := range slices.SortedStableFunc(slices.Values(p.sections), func(a, b section) int { return cmp.Compare(a.offset, b.offset) }) {
		if s.raw > 0 {
			spans = append(spans, [2]int64{s.offset, s.offset + s.raw})
			done += s.raw
		}
	}
	end := p.size - p.certSize
	if done > end {
		return [32]byte{}, fmt.Errorf("sections overlap: %d bytes of them in an image of %d", done, end)
	}
	for _, span := range append(spans, [2]int64{done, end}) {
		if err := p.copy(h, span[0], span[1]); err != nil {
			return [32]byte{}, err
		}
	}
	return [32]byte(h.Sum(nil)), nil
}

func (p *image) copy(h hash.Hash, from, to int64) error {
	n, err := io.Copy(h, io.NewSectionReader(p.r, from, to-from))
	if err == nil && n != to-from {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("bytes %d to %d: %w", from, to, err)
	}
	return nil
}

// content is a section as it is in memory.
func (p *image) content(s section) *io.SectionReader {
	return io.NewSectionReader(&filled{io.NewSectionReader(p.r, s.offset, min(s.raw, s.virtual))}, 0, s.virtual)
}

// filled has zeros after its end.
type filled struct{ file *io.SectionReader }

// ReadAt implements io.ReaderAt without an end.
func (f *filled) ReadAt(b []byte, off int64) (int, error) {
	n := 0
	if off < f.file.Size() {
		var err error
		want := int(min(int64(len(b)), f.file.Size()-off))
		if n, err = f.file.ReadAt(b[:want], off); n < want {
			return n, err
		}
	}
	clear(b[n:])
	return len(b), nil
}
