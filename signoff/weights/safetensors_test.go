package weights

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readTensors(file []byte) (Tensors, error) {
	return ReadTensors(bytes.NewReader(file), int64(len(file)))
}

func TestReadTensors(t *testing.T) {
	for _, c := range []struct {
		header string
		data   int
		want   Tensors
	}{
		{`{}`, 0, Tensors{DTypes: map[string]int{}}},
		{`{"__metadata__":{"format":"pt"}}`, 0, Tensors{DTypes: map[string]int{}}},
		{`{"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}   `, 8, Tensors{1, 1, 8, map[string]int{"F64": 1}}},
		{`{"e":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}`, 12,
			Tensors{2, 6, 12, map[string]int{"F32": 1, "BF16": 1}}},
		{`{"late":{"dtype":"U8","shape":[3],"data_offsets":[4,7]},"early":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}`, 7,
			Tensors{2, 11, 7, map[string]int{"U8": 1, "F4": 1}}},
		{`{"f6":{"data_offsets":[0,3],"shape":[4],"dtype":"F6_E2M3"}}`, 3, Tensors{1, 4, 3, map[string]int{"F6_E2M3": 1}}},
	} {
		got, err := readTensors(withHeader([]byte(c.header), c.data))
		if err != nil {
			t.Errorf("%s: %v", c.header, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", c.header, d)
		}
	}
}

func TestAttackBrokenSafetensors(t *testing.T) {
	one := func(rest string) string { return `{"a":{` + rest + `}}` }
	for name, c := range map[string]struct {
		header string
		data   int
	}{
		"overlap":            {`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}`, 6},
		"same place twice":   {`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 4},
		"gap":                {`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}}`, 9},
		"gap in front":       {one(`"dtype":"U8","shape":[4],"data_offsets":[1,5]`), 5},
		"data left over":     {one(`"dtype":"U8","shape":[4],"data_offsets":[0,4]`), 5},
		"data without":       {`{}`, 1},
		"outside the file":   {one(`"dtype":"U8","shape":[4],"data_offsets":[0,4]`), 3},
		"backwards":          {one(`"dtype":"U8","shape":[4],"data_offsets":[4,0]`), 4},
		"negative":           {one(`"dtype":"U8","shape":[4],"data_offsets":[-4,0]`), 0},
		"one offset":         {one(`"dtype":"U8","shape":[4],"data_offsets":[4]`), 4},
		"three offsets":      {one(`"dtype":"U8","shape":[4],"data_offsets":[0,4,4]`), 4},
		"no offsets":         {one(`"dtype":"U8","shape":[4]`), 4},
		"no dtype":           {one(`"shape":[4],"data_offsets":[0,4]`), 4},
		"unknown dtype":      {one(`"dtype":"Q3","shape":[4],"data_offsets":[0,4]`), 4},
		"wrong shape":        {one(`"dtype":"U8","shape":[5],"data_offsets":[0,4]`), 4},
		"negative shape":     {one(`"dtype":"U8","shape":[-4],"data_offsets":[0,4]`), 4},
		"fractional shape":   {one(`"dtype":"U8","shape":[4.5],"data_offsets":[0,4]`), 4},
		"shape overflows":    {one(`"dtype":"U8","shape":[4294967296,4294967296,4],"data_offsets":[0,0]`), 0},
		"bits overflow":      {one(`"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0]`), 0},
		"half a byte":        {one(`"dtype":"F4","shape":[3],"data_offsets":[0,1]`), 1},
		"dimensions":         {one(`"dtype":"U8","shape":[` + strings.Repeat("1,", maxDims) + `4],"data_offsets":[0,4]`), 4},
		"unknown member":     {one(`"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1`), 4},
		"member of case":     {one(`"Dtype":"U8","shape":[4],"data_offsets":[0,4]`), 4},
		"member twice":       {one(`"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]`), 4},
		"name twice":         {`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}`, 8},
		"name twice escaped": {`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"\u0061":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}`, 8},
		"metadata twice":     {`{"__metadata__":{},"__metadata__":{}}`, 0},
		"metadata nested":    {`{"__metadata__":{"a":{}}}`, 0},
		"bad UTF-8":          {"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4},
		"leading space":      {` {}`, 0},
		"trailing object":    {`{}{}`, 0},
		"trailing newline":   {"{}\n}", 0},
		"cut":                {`{"a":{"dtype":"U8"`, 4},
		"array":              {`[]`, 0},
		"null tensor":        {`{"a":null}`, 0},
		"empty":              {``, 0},
	} {
		if got, err := readTensors(withHeader([]byte(c.header), c.data)); err == nil {
			t.Errorf("%s was read as %+v", name, got)
		}
	}
}

func TestAttackSafetensorsHeaderLength(t *testing.T) {
	for _, n := range []uint64{3, maxTensorHeader, maxTensorHeader + 1, 1 << 62, math.MaxInt64, math.MaxInt64 - 7, math.MaxUint64} {
		file := append(binary.LittleEndian.AppendUint64(nil, n), "{}"...)
		if got, err := readTensors(file); err == nil {
			t.Errorf("a header length of %d in a file of %d was read as %+v", n, len(file), got)
		}
	}
	for n := range 8 {
		if _, err := readTensors(make([]byte, n)); err == nil {
			t.Errorf("a file of %d bytes was read", n)
		}
	}
}

func TestAttackBrokenSafetensorsAreNotSealed(t *testing.T) {
	broken := withHeader([]byte(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}}`), 5)
	refuses(t, model(t, map[string][]byte{"good": {1}, "sub/model.safetensors": broken}), "sub/model.safetensors")
	refuses(t, model(t, map[string][]byte{"empty.safetensors": nil}), "empty.safetensors")
}

func FuzzReadTensors(f *testing.F) {
	f.Add([]byte(`{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"__metadata__":{"x":"y"}} `), 24)
	f.Add([]byte(`{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]},"b":{"dtype":"I8","shape":[],"data_offsets":[1,2]}}`), 2)
	f.Fuzz(func(t *testing.T, header []byte, data int) {
		if data < 0 || data > 1<<16 || len(header) > 1<<16 {
			return
		}
		s, err := readTensors(withHeader(header, data))
		if err != nil {
			return
		}
		if s.Bytes != int64(data) || s.Parameters < 0 || s.Parameters > 2*s.Bytes {
			t.Fatal(fmt.Sprintf("%+v from %q with %d bytes", s, header, data))
		}
	})
}
