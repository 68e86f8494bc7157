package stream

import (
	"bytes"
	"compress/zlib"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	agetest "c2sp.org/CCTV/age"
	"filippo.io/age"
	"filippo.io/age/armor"
)

// A vector is one file of the C2SP CCTV age test suite.
type vector struct {
	expect     string
	payload    string // hex SHA-256 of all that may be released
	fileKey    string // hex
	identities []age.Identity
	armored    bool
	file       []byte
}

func readVector(t *testing.T, name string) *vector {
	t.Helper()
	raw, err := fs.ReadFile(agetest.Vectors, name)
	if err != nil {
		t.Fatal(err)
	}
	head, file, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok {
		t.Fatal("no empty line in vector")
	}
	v := &vector{file: file}
	for line := range strings.SplitSeq(string(head), "\n") {
		key, value, _ := strings.Cut(line, ": ")
		v.set(t, key, value)
	}
	return v
}

func (v *vector) set(t *testing.T, key, value string) {
	t.Helper()
	var err error
	switch key {
	case "expect":
		v.expect = value
	case "payload":
		v.payload = value
	case "file key":
		v.fileKey = value
	case "identity":
		var id age.Identity
		if id, err = age.ParseX25519Identity(value); err != nil {
			id, err = age.ParseHybridIdentity(value)
		}
		v.identities = append(v.identities, id)
	case "passphrase":
		var id age.Identity
		id, err = age.NewScryptIdentity(value)
		v.identities = append(v.identities, id)
	case "armored":
		v.armored = value == "yes"
	case "compressed":
		var z io.ReadCloser
		if z, err = zlib.NewReader(bytes.NewReader(v.file)); err == nil {
			v.file, err = io.ReadAll(z)
		}
	case "comment":
	default:
		t.Fatalf("vector has unknown key %q", key)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// open runs the vector through the engine and returns what was released and, in
// the suite's words, how it went.
func (v *vector) open(t *testing.T) (released []byte, outcome string) {
	t.Helper()
	file := v.file
	if v.armored {
		var err error
		if file, err = io.ReadAll(armor.NewReader(bytes.NewReader(file))); err != nil {
			return nil, "armor failure"
		}
	}
	h, err := ParseHeader(bytes.NewReader(file))
	if err != nil {
		return nil, "header failure"
	}
	key, outcome := v.unwrap(h)
	if outcome != "" {
		return nil, outcome
	}
	if v.fileKey != "" && v.fileKey != hex.EncodeToString(key[:]) {
		t.Errorf("unwrapped another file key than %s", v.fileKey)
	}
	if err := h.Verify(key); err != nil {
		return nil, "HMAC failure"
	}
	payload := file[h.Size:]
	if len(payload) < NonceSize {
		return nil, "header failure" // the suite counts the nonce as header
	}
	var sink, out memory
	err = NewEngine(4).Decrypt(t.Context(), Sealed{&out, bytes.NewReader(payload), NonceSize, int64(len(payload) - NonceSize), key, Nonce(payload)}, &sink)
	if !bytes.Equal(sink.data, out.data) {
		t.Errorf("%d bytes reached the sink, %d the output", len(sink.data), len(out.data))
	}
	if err != nil {
		if !errors.Is(err, ErrForged) {
			t.Errorf("%v does not say that the body is forged", err)
		}
		return sink.data, "payload failure"
	}
	return sink.data, "success"
}

// unwrap finds the file key with stock age's identities.
func (v *vector) unwrap(h *Header) (FileKey, string) {
	var stanzas []*age.Stanza
	for _, s := range h.Stanzas {
		stanzas = append(stanzas, &age.Stanza{Type: s.Type, Args: s.Args, Body: s.Body})
	}
	for _, id := range v.identities {
		key, err := id.Unwrap(stanzas)
		if errors.Is(err, age.ErrIncorrectIdentity) {
			continue
		}
		if err != nil || len(key) != FileKeySize {
			return FileKey{}, "header failure"
		}
		return FileKey(key), ""
	}
	return FileKey{}, "no match"
}

func TestAttackCCTVVectors(t *testing.T) {
	names, err := fs.ReadDir(agetest.Vectors, ".")
	if err != nil || len(names) < 100 {
		t.Fatalf("%d vectors, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(name.Name(), func(t *testing.T) {
			v := readVector(t, name.Name())
			released, outcome := v.open(t)
			if outcome != v.expect {
				t.Fatalf("outcome %q, want %q", outcome, v.expect)
			}
			if v.payload == "" {
				if len(released) != 0 {
					t.Errorf("released %d bytes", len(released))
				}
				return
			}
			if sum := sha256.Sum256(released); hex.EncodeToString(sum[:]) != v.payload {
				t.Errorf("released %d bytes that are not the ones to release", len(released))
			}
		})
	}
}

// The suite says that what parses must marshal to the same bytes.
func TestCCTVHeadersRoundTrip(t *testing.T) {
	names, err := fs.ReadDir(agetest.Vectors, ".")
	if err != nil {
		t.Fatal(err)
	}
	trips := 0
	for _, name := range names {
		v := readVector(t, name.Name())
		h, err := ParseHeader(bytes.NewReader(v.file))
		if err != nil || v.fileKey == "" || v.expect == "HMAC failure" {
			continue
		}
		got, err := MarshalHeader(FileKey(must(hex.DecodeString(v.fileKey))), h.Stanzas, 0)
		if err != nil || !bytes.Equal(got[:len(h.signed)], v.file[:len(h.signed)]) {
			t.Errorf("%s: marshals to other bytes, %v", name.Name(), err)
		}
		trips++
	}
	if trips < 30 {
		t.Errorf("only %d headers made the round trip", trips)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
