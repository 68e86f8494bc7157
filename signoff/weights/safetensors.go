package weights

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Bounds on a safetensors header: the first is the format's own.
const (
	maxTensorHeader = 100_000_000 // bytes
	maxDims         = 64
)

// dtypeBits gives the size of one element of each safetensors dtype, in bits.
var dtypeBits = map[string]uint64{
	"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
	"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
	"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
	"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}

// Tensors summarises the header of one safetensors file.
type Tensors struct {
	Tensors    int
	Parameters int64          // elements of all tensors
	Bytes      int64          // of tensor data
	DTypes     map[string]int // tensors by dtype
}

type tensor struct {
	DType   string   `json:"dtype"`
	Shape   []uint64 `json:"shape"`
	Offsets []int64  `json:"data_offsets"`
}

// ReadTensors reads the header of a safetensors file of size bytes: 8 bytes of
// little-endian length, then JSON. It refuses headers whose tensors overlap,
// leave gaps, reach outside the file or do not fill it, or have sizes that
// dtype and shape do not give; unknown dtypes; and duplicate names.
//
// Source: huggingface/safetensors, README "Format".
func ReadTensors(r io.ReaderAt, size int64) (Tensors, error) {
	var prefix [8]byte
	if size < int64(len(prefix)) {
		return Tensors{}, fmt.Errorf("weights: safetensors: %d bytes are no file of this format", size)
	}
	if _, err := r.ReadAt(prefix[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return Tensors{}, fmt.Errorf("weights: safetensors: %w", err)
	}
	n := binary.LittleEndian.Uint64(prefix[:])
	if n > maxTensorHeader || int64(n) > size-int64(len(prefix)) {
		return Tensors{}, fmt.Errorf("weights: safetensors: header of %d bytes in a file of %d, at most %d are allowed", n, size, maxTensorHeader)
	}
	header := make([]byte, n)
	if _, err := r.ReadAt(header, int64(len(prefix))); err != nil && !errors.Is(err, io.EOF) {
		return Tensors{}, fmt.Errorf("weights: safetensors: %w", err)
	}
	tensors, err := parseTensors(header)
	if err != nil {
		return Tensors{}, fmt.Errorf("weights: safetensors: %w", err)
	}
	return summarise(tensors, size-int64(len(prefix))-int64(n))
}

// parseTensors decodes the JSON. The format allows padding by spaces after it.
func parseTensors(header []byte) ([]tensor, error) {
	if len(header) == 0 || header[0] != '{' {
		return nil, errors.New("header does not begin with {")
	}
	dec := jsontext.NewDecoder(bytes.NewReader(bytes.TrimRight(header, " ")))
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	var out []tensor
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken() // refuses duplicates and bad UTF-8
		if err != nil {
			return nil, err
		}
		if name.String() == "__metadata__" {
			var metadata map[string]string
			if err := json.UnmarshalDecode(dec, &metadata); err != nil {
				return nil, fmt.Errorf("__metadata__: %w", err)
			}
			continue
		}
		label := fmt.Sprintf("%.100q", name.String())
		var t tensor
		if err := json.UnmarshalDecode(dec, &t, json.RejectUnknownMembers(true)); err != nil {
			return nil, fmt.Errorf("tensor %s: %w", label, err)
		}
		if err := t.check(); err != nil {
			return nil, fmt.Errorf("tensor %s: %w", label, err)
		}
		out = append(out, t)
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("header goes on after its closing brace")
	}
	return out, nil
}

// check makes sure that offsets, dtype and shape agree.
func (t *tensor) check() error {
	width, ok := dtypeBits[t.DType]
	if !ok {
		return fmt.Errorf("dtype %.40q is unknown", t.DType)
	}
	if len(t.Offsets) != 2 || t.Offsets[0] < 0 || t.Offsets[1] < t.Offsets[0] {
		return fmt.Errorf("data_offsets %d are not a range", t.Offsets)
	}
	n, err := t.elements()
	if err != nil {
		return err
	}
	hi, total := bits.Mul64(n, width)
	if hi != 0 || total%8 != 0 || total/8 != uint64(t.Offsets[1]-t.Offsets[0]) {
		return fmt.Errorf("shape %d of %s does not take the %d bytes of data_offsets", t.Shape, t.DType, t.Offsets[1]-t.Offsets[0])
	}
	return nil
}

// elements is the product of the shape, 1 for a scalar.
func (t *tensor) elements() (uint64, error) {
	if len(t.Shape) > maxDims {
		return 0, fmt.Errorf("%d dimensions exceed %d", len(t.Shape), maxDims)
	}
	n := uint64(1)
	for _, d := range t.Shape {
		var hi uint64
		if hi, n = bits.Mul64(n, d); hi != 0 {
			return 0, fmt.Errorf("shape %d overflows", t.Shape)
		}
	}
	return n, nil
}

// summarise makes sure that the tensors fill the data exactly, and counts.
func summarise(tensors []tensor, data int64) (Tensors, error) {
	slices.SortFunc(tensors, func(a, b tensor) int { return slices.Compare(a.Offsets, b.Offsets) })
	s := Tensors{Tensors: len(tensors), DTypes: map[string]int{}}
	for _, t := range tensors {
		if t.Offsets[0] != s.Bytes {
			return Tensors{}, fmt.Errorf("weights: safetensors: a tensor begins at byte %d of the data where %d was expected: tensors overlap or leave a gap", t.Offsets[0], s.Bytes)
		}
		n, err := t.elements()
		if err != nil {
			return Tensors{}, err
		}
		s.Bytes = t.Offsets[1]
		s.Parameters += int64(n)
		s.DTypes[t.DType]++
	}
	if s.Bytes != data {
		return Tensors{}, fmt.Errorf("weights: safetensors: tensors take %d bytes, the file has %d for them", s.Bytes, data)
	}
	return s, nil
}

// add counts a file without tensors (nil) or with them.
func (s *Summary) add(size int64, t *Tensors) {
	s.Files++
	s.Bytes += size
	if t == nil {
		return
	}
	s.Tensors += t.Tensors
	s.Parameters += t.Parameters
	for d := range t.DTypes {
		if i, found := slices.BinarySearch(s.DTypes, d); !found {
			s.DTypes = slices.Insert(s.DTypes, i, d)
		}
	}
}
