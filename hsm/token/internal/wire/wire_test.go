package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/hsm"
)

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		var sent []Frame
		for range rapid.IntRange(1, 4).Draw(t, "frames") {
			f := Frame{ID: rapid.Uint64().Draw(t, "id"), Code: rapid.Byte().Draw(t, "code"),
				Fields: rapid.SliceOfN(rapid.SliceOf(rapid.Byte()), 0, MaxFields).Draw(t, "fields")}
			b, err := f.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			stream, sent = append(stream, b.Bytes...), append(sent, f)
			b.Wipe()
		}
		r := bytes.NewReader(stream)
		for _, want := range sent {
			got, err := Read(r)
			if err != nil {
				t.Fatal(err)
			}
			if got.ID != want.ID || got.Code != want.Code || len(got.Fields) != len(want.Fields) {
				t.Fatalf("sent %+v, got %+v", want, got)
			}
			for i := range want.Fields {
				if !bytes.Equal(got.Fields[i], want.Fields[i]) {
					t.Fatalf("field %d: sent %x, got %x", i, want.Fields[i], got.Fields[i])
				}
			}
			got.Wipe()
		}
		if _, err := Read(r); err != io.EOF {
			t.Fatalf("at the end: %v, want io.EOF", err)
		}
	})
}

func TestReadRefuses(t *testing.T) {
	good, err := Frame{ID: 1, Code: 2, Fields: [][]byte{{3}, {4, 5}}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(good.Bytes); i++ {
		if _, err := Read(bytes.NewReader(good.Bytes[:i])); err == nil || err == io.EOF {
			t.Errorf("a frame cut to %d bytes: %v", i, err)
		}
	}
	for name, b := range map[string][]byte{
		"too long":           {0xff, 0xff, 0xff, 0xff},
		"one byte too long":  {0, 0x10, 0, 1},
		"shorter than head":  {0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0},
		"field past the end": {0, 0, 0, 13, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1},
		"field of 4 GiB":     {0, 0, 0, 13, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0xff, 0xff, 0xff, 0xff},
		"half a length":      {0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0},
		"nine fields":        append([]byte{0, 0, 0, 45, 0, 0, 0, 0, 0, 0, 0, 1, 1}, make([]byte, 36)...),
	} {
		if f, err := Read(bytes.NewReader(b)); err == nil {
			t.Errorf("%s: read %+v", name, f)
		}
	}
	if _, err := (Frame{Fields: [][]byte{make([]byte, MaxFrame)}}).Marshal(); err == nil {
		t.Error("made a frame that is too long")
	}
	if _, err := (Frame{Fields: make([][]byte, MaxFields+1)}).Marshal(); err == nil {
		t.Error("made a frame of too many fields")
	}
}

func TestWipe(t *testing.T) {
	b, err := Frame{Fields: [][]byte{[]byte("secret")}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Read(bytes.NewReader(b.Bytes))
	if err != nil || string(f.Fields[0]) != "secret" {
		t.Fatalf("%+v, %v", f, err)
	}
	f.Wipe()
	if !bytes.Equal(f.Fields[0], make([]byte, 6)) {
		t.Error("not wiped")
	}
}

// Only CodeOK is no error, whatever a helper sends.
func TestEveryOtherCodeIsAnError(t *testing.T) {
	for c := range 256 {
		if err := Code(c).Err("text"); (err == nil) != (Code(c) == CodeOK) {
			t.Errorf("code %d: %v", c, err)
		}
	}
	if !errors.Is(CodeLost.Err(""), hsm.ErrGone) || !errors.Is(CodeLost.Err(""), ErrLost) || errors.Is(CodeAbsent.Err(""), ErrLost) {
		t.Error("lost and absent are both gone, and only lost is worth a new start")
	}
}

func FuzzRead(f *testing.F) {
	b, err := Frame{ID: 1, Code: 2, Fields: [][]byte{{3}, {}}}.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes)
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer frame.Wipe()
		again, err := frame.Marshal()
		defer again.Wipe()
		if err != nil || !bytes.HasPrefix(b, again.Bytes) {
			t.Fatalf("%x was read as %+v, written as %x, %v", b, frame, again.Bytes, err)
		}
	})
}
