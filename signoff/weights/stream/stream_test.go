package stream

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"
	"pgregory.net/rapid"
)

// memory is a file in memory.
type memory struct {
	mu   sync.Mutex
	data []byte
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if grow := int(off) + len(p) - len(m.data); grow > 0 {
		m.data = append(m.data, make([]byte, grow)...)
	}
	return copy(m.data[off:], p), nil
}

func (m *memory) Write(p []byte) (int, error) {
	m.data = append(m.data, p...)
	return len(p), nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// seal makes a whole file in memory.
func seal(t testing.TB, plain []byte, key FileKey, stanzas ...Stanza) []byte {
	t.Helper()
	var out memory
	nonce := NewNonce()
	out.WriteAt(nonce[:], HeaderSize)
	h := sha256.New()
	if err := NewEngine(3).Encrypt(t.Context(), Body{&out, BodyOffset, bytes.NewReader(plain), int64(len(plain)), key, nonce}, h); err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(plain) != [32]byte(h.Sum(nil)) {
		t.Error("the sink saw another plaintext")
	}
	header, err := MarshalHeader(key, stanzas, HeaderSize)
	if err != nil {
		t.Fatal(err)
	}
	out.WriteAt(header, 0)
	if int64(len(out.data)) != SealedSize(int64(len(plain))) {
		t.Errorf("%d plaintext bytes made a file of %d, not %d", len(plain), len(out.data), SealedSize(int64(len(plain))))
	}
	return out.data
}

// open opens the body of a file that seal made.
func open(t testing.TB, file []byte, key FileKey) ([]byte, error) {
	t.Helper()
	var out memory
	err := NewEngine(3).Decrypt(t.Context(), Sealed{&out, bytes.NewReader(file), BodyOffset, int64(len(file) - BodyOffset), key, Nonce(file[HeaderSize:])}, nil)
	return out.data, err
}

var plainStanza = Stanza{Type: "keyturn", Args: []string{"00ff", "7"}, Body: make([]byte, 32)}

// sizes around every boundary, in bytes.
var sizes = []int{0, 1, 15, 16, 17, ChunkSize - 1, ChunkSize, ChunkSize + 1, 2*ChunkSize - 1, 2 * ChunkSize, 2*ChunkSize + 1, 9*ChunkSize + 77}

func TestRoundTrip(t *testing.T) {
	for _, n := range sizes {
		plain, key := random(n), NewFileKey()
		got, err := open(t, seal(t, plain, key, plainStanza), key)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestStockAgeOpensWhatWeSeal(t *testing.T) {
	id := must(age.GenerateX25519Identity())
	for _, n := range sizes {
		plain, key := random(n), NewFileKey()
		file := seal(t, plain, key, forAge(t, id.Recipient(), key))
		r, err := age.Decrypt(bytes.NewReader(file), id)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func forAge(t testing.TB, r age.Recipient, key FileKey) Stanza {
	t.Helper()
	s, err := r.Wrap(key[:])
	if err != nil {
		t.Fatal(err)
	}
	return Stanza{Type: s[0].Type, Args: s[0].Args, Body: s[0].Body}
}

func TestWeOpenWhatStockAgeSeals(t *testing.T) {
	id := must(age.GenerateX25519Identity())
	for _, n := range sizes {
		plain := random(n)
		var file bytes.Buffer
		w := must(age.Encrypt(&file, id.Recipient()))
		w.Write(plain)
		w.Close()
		v := vector{identities: []age.Identity{id}, file: file.Bytes()}
		if got, outcome := v.open(t); outcome != "success" || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %s", n, outcome)
		}
	}
}

// The command line of Debian's age 1.1.1, both ways.
func TestAgeCommand(t *testing.T) {
	if _, err := exec.LookPath("age"); err != nil {
		t.Skip("age is not installed")
	}
	dir := t.TempDir()
	id := must(age.GenerateX25519Identity())
	identity := filepath.Join(dir, "identity")
	if err := os.WriteFile(identity, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	plain, key := random(3*ChunkSize+5), NewFileKey()
	ours := exec.Command("age", "-d", "-i", identity)
	ours.Stdin = bytes.NewReader(seal(t, plain, key, forAge(t, id.Recipient(), key)))
	if got, err := ours.Output(); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("age -d: %v", err)
	}
	theirs := exec.Command("age", "-r", id.Recipient().String())
	theirs.Stdin = bytes.NewReader(plain)
	file, err := theirs.Output()
	if err != nil {
		t.Fatal(err)
	}
	v := vector{identities: []age.Identity{id}, file: file}
	if got, outcome := v.open(t); outcome != "success" || !bytes.Equal(got, plain) {
		t.Errorf("opening what age wrote: %s", outcome)
	}
}

func TestHeaderIsExactlyPadded(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var stanzas []Stanza
		word := rapid.StringMatching(`[!-~]{1,20}`)
		for range rapid.IntRange(1, 5).Draw(rt, "stanzas") {
			stanzas = append(stanzas, Stanza{
				Type: word.Draw(rt, "type"),
				Args: rapid.SliceOfN(word, 0, 4).Draw(rt, "args"),
				Body: rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(rt, "body"),
			})
		}
		key := NewFileKey()
		b, err := MarshalHeader(key, stanzas, HeaderSize)
		if err != nil || len(b) != HeaderSize {
			rt.Fatalf("%d bytes, %v", len(b), err)
		}
		h, err := ParseHeader(bytes.NewReader(append(b, "payload"...)))
		if err != nil {
			rt.Fatal(err)
		}
		if err := h.Verify(key); err != nil || h.Size != HeaderSize || len(h.Stanzas) != len(stanzas)+1 {
			rt.Fatalf("%d stanzas in %d bytes, %v", len(h.Stanzas), h.Size, err)
		}
		for i, s := range stanzas {
			got := h.Stanzas[i]
			if got.Type != s.Type || strings.Join(got.Args, " ") != strings.Join(s.Args, " ") || !bytes.Equal(got.Body, s.Body) {
				rt.Fatalf("stanza %v became %v", s, got)
			}
		}
		if pad := h.Stanzas[len(stanzas)]; len(bytes.Trim(pad.Body, "\x00")) != 0 || strings.Trim(pad.Args[0], "0") != "" {
			rt.Fatal("the padding holds something")
		}
	})
}

func TestEveryPaddingLength(t *testing.T) {
	key := NewFileKey()
	bare := len(must(MarshalHeader(key, []Stanza{plainStanza}, 0)))
	least := bare + len("-> "+padType+" 0\n\n")
	for n := bare + 1; n < least+300; n++ {
		b, err := MarshalHeader(key, []Stanza{plainStanza}, n)
		if (err == nil) != (n >= least) || err == nil && len(b) != n {
			t.Errorf("size %d: %d bytes, %v", n, len(b), err)
		}
	}
}

func TestMarshalRefusesMalformedStanzas(t *testing.T) {
	for _, stanzas := range [][]Stanza{
		nil,
		{{Type: ""}},
		{{Type: "two words"}},
		{{Type: "x", Args: []string{""}}},
		{{Type: "x", Args: []string{"new\nline"}}},
		{{Type: "x", Args: []string{"é"}}},
		{{Type: "x", Args: strings.Split(strings.Repeat("a ", maxArgs)+"a", " ")}},
		{{Type: "x", Body: make([]byte, HeaderSize)}},
	} {
		if b, err := MarshalHeader(NewFileKey(), stanzas, HeaderSize); err == nil {
			t.Errorf("%v became %q", stanzas, b)
		}
	}
}

func TestParseRefusesHugeHeaders(t *testing.T) {
	for name, text := range map[string]string{
		"long line":    intro + "-> x " + strings.Repeat("a", maxHeader) + "\n\n",
		"long body":    intro + "-> x\n" + strings.Repeat(strings.Repeat("A", column)+"\n", maxHeader/column),
		"many stanzas": intro + strings.Repeat("-> x\n\n", maxStanzas+1) + "--- \n",
		"many args":    intro + "-> x" + strings.Repeat(" a", maxArgs) + "\n\n--- \n",
		"no stanza":    intro + "--- " + strings.Repeat("A", 43) + "\n",
	} {
		if _, err := ParseHeader(strings.NewReader(text)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestAttackHeaderOfAnotherKey(t *testing.T) {
	key := NewFileKey()
	h := must(ParseHeader(bytes.NewReader(must(MarshalHeader(key, []Stanza{plainStanza}, HeaderSize)))))
	if err := h.Verify(NewFileKey()); !errors.Is(err, ErrForged) {
		t.Errorf("verified under another key: %v", err)
	}
	if err := h.Verify(FileKey{}); !errors.Is(err, ErrForged) {
		t.Errorf("verified under the zero key: %v", err)
	}
}

func TestAttackEveryBitOfTheHeader(t *testing.T) {
	key := NewFileKey()
	good := must(MarshalHeader(key, []Stanza{plainStanza}, 300))
	for i := range 8 * len(good) {
		bad := bytes.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		h, err := ParseHeader(bytes.NewReader(append(bad, "\n\n"...)))
		if err == nil {
			err = h.Verify(key)
		}
		if err == nil {
			t.Errorf("flipped bit %d of byte %d went unnoticed", i%8, i/8)
		}
	}
}

// mangle is what an attacker without the key does to the chunks of a body.
var mangles = map[string]func(chunks [][]byte) [][]byte{
	"swapped":           func(c [][]byte) [][]byte { c[1], c[2] = c[2], c[1]; return c },
	"repeated":          func(c [][]byte) [][]byte { return append(c[:3], append([][]byte{c[2]}, c[3:]...)...) },
	"dropped":           func(c [][]byte) [][]byte { return append(c[:1], c[2:]...) },
	"first dropped":     func(c [][]byte) [][]byte { return c[1:] },
	"last dropped":      func(c [][]byte) [][]byte { return c[:len(c)-1] },
	"last repeated":     func(c [][]byte) [][]byte { return append(c, c[len(c)-1]) },
	"trailing zeros":    func(c [][]byte) [][]byte { return append(c, make([]byte, sealedChunk)) },
	"trailing byte":     func(c [][]byte) [][]byte { return append(c, []byte{0}) },
	"flipped":           func(c [][]byte) [][]byte { c[2][100] ^= 4; return c },
	"flipped tag":       func(c [][]byte) [][]byte { c[2][sealedChunk-1] ^= 128; return c },
	"cut inside":        func(c [][]byte) [][]byte { c[4] = c[4][:1000]; return c[:5] },
	"cut to a tag":      func(c [][]byte) [][]byte { c[4] = c[4][:Overhead]; return c[:5] },
	"cut inside a tag":  func(c [][]byte) [][]byte { c[4] = c[4][:Overhead-1]; return c[:5] },
	"everything":        func(c [][]byte) [][]byte { return nil },
	"last put first":    func(c [][]byte) [][]byte { c[0], c[5] = c[5], c[0]; return c },
	"zeroed":            func(c [][]byte) [][]byte { clear(c[3]); return c },
	"one byte appended": func(c [][]byte) [][]byte { c[5] = append(c[5], 0); return c },
}

func TestAttackMangledChunks(t *testing.T) {
	for name, mangle := range mangles {
		for _, last := range []int{ChunkSize, 500} {
			plain, key := random(5*ChunkSize+last), NewFileKey()
			file := seal(t, plain, key, plainStanza)
			var chunks [][]byte
			for rest := bytes.Clone(file[BodyOffset:]); len(rest) > 0; {
				n := min(sealedChunk, len(rest))
				chunks, rest = append(chunks, bytes.Clone(rest[:n])), rest[n:]
			}
			bad := append(bytes.Clone(file[:BodyOffset]), bytes.Join(mangle(chunks), nil)...)
			released, err := open(t, bad, key)
			if !errors.Is(err, ErrForged) {
				t.Errorf("%s, last chunk of %d: %v", name, last, err)
			}
			if !bytes.HasPrefix(plain, released) {
				t.Errorf("%s: released %d bytes, not all of them authentic", name, len(released))
			}
			attackReader(t, name, bad, key, plain)
		}
	}
}

// attackReader reads a mangled body lazily: every byte that comes out must be
// right, and reading all of it must fail.
func attackReader(t *testing.T, name string, bad []byte, key FileKey, plain []byte) {
	t.Helper()
	r, err := NewReaderAt(Sealed{nil, bytes.NewReader(bad), BodyOffset, int64(len(bad) - BodyOffset), key, Nonce(bad[HeaderSize:])})
	failed := err != nil
	for off := 0; !failed && off < int(r.Size()); off += ChunkSize {
		p := make([]byte, min(ChunkSize, int(r.Size())-off))
		n, err := r.ReadAt(p, int64(off))
		failed = err != nil
		if !bytes.Equal(p[:n], plain[off:off+n]) {
			t.Errorf("%s: the reader gave out bytes that are not authentic", name)
		}
	}
	if !failed {
		t.Errorf("%s: the reader noticed nothing", name)
	}
}

func TestAttackTruncationAtEachBoundary(t *testing.T) {
	plain, key := random(2*ChunkSize+100), NewFileKey()
	file := seal(t, plain, key, plainStanza)
	var cuts []int
	for _, edge := range []int{BodyOffset, BodyOffset + Overhead, BodyOffset + ChunkSize, BodyOffset + sealedChunk, BodyOffset + sealedChunk + Overhead, BodyOffset + 2*sealedChunk, BodyOffset + 2*sealedChunk + Overhead, len(file)} {
		cuts = append(cuts, edge-1, edge, edge+1)
	}
	for _, n := range cuts {
		if n < BodyOffset || n >= len(file) {
			continue
		}
		released, err := open(t, file[:n], key)
		if !errors.Is(err, ErrForged) || !bytes.HasPrefix(plain, released) {
			t.Errorf("cut to %d of %d bytes: released %d, %v", n, len(file), len(released), err)
		}
	}
	for n := range HeaderSize {
		if _, err := ParseHeader(bytes.NewReader(file[:n])); err == nil {
			t.Fatalf("a header cut to %d bytes was accepted", n)
		}
	}
}

func TestAttackBodyOfAnotherKeyOrNonce(t *testing.T) {
	plain, key := random(ChunkSize+1), NewFileKey()
	file := seal(t, plain, key, plainStanza)
	if got, err := open(t, file, NewFileKey()); !errors.Is(err, ErrForged) || len(got) != 0 {
		t.Errorf("another key released %d bytes: %v", len(got), err)
	}
	file[HeaderSize] ^= 1
	if got, err := open(t, file, key); !errors.Is(err, ErrForged) || len(got) != 0 {
		t.Errorf("another nonce released %d bytes: %v", len(got), err)
	}
}

func TestEncryptRefusesAShrunkSource(t *testing.T) {
	err := NewEngine(2).Encrypt(t.Context(), Body{&memory{}, 0, bytes.NewReader(random(ChunkSize + 5)), ChunkSize + 6, NewFileKey(), NewNonce()}, nil)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if err := NewEngine(2).Encrypt(t.Context(), Body{&memory{}, 0, bytes.NewReader(nil), -1, NewFileKey(), NewNonce()}, nil); err == nil {
		t.Error("a negative size was accepted")
	}
}

// failing fails writes from the given offset on, like a full disk.
type failing struct {
	memory
	at int64
}

var errFull = errors.New("no space left")

func (f *failing) WriteAt(p []byte, off int64) (int, error) {
	if off >= f.at {
		return 0, errFull
	}
	return f.memory.WriteAt(p, off)
}

func TestFailingOutputStopsTheEngine(t *testing.T) {
	plain, key := random(20*ChunkSize), NewFileKey()
	file := seal(t, plain, key, plainStanza)
	for i := range int64(20) {
		out := &failing{at: i * ChunkSize}
		if err := NewEngine(4).Decrypt(t.Context(), Sealed{out, bytes.NewReader(file), BodyOffset, int64(len(file) - BodyOffset), key, Nonce(file[HeaderSize:])}, nil); !errors.Is(err, errFull) {
			t.Errorf("decrypt, write %d: %v", i, err)
		}
		out = &failing{at: i * sealedChunk}
		if err := NewEngine(4).Encrypt(t.Context(), Body{out, 0, bytes.NewReader(plain), int64(len(plain)), NewFileKey(), NewNonce()}, nil); !errors.Is(err, errFull) {
			t.Errorf("encrypt, write %d: %v", i, err)
		}
	}
}

// stopper cancels a context in the middle of the stream.
type stopper struct {
	left   int
	cancel func()
}

func (s *stopper) Write(p []byte) (int, error) {
	if s.left--; s.left == 0 {
		s.cancel()
	}
	return len(p), nil
}

func TestCancelledContextStopsTheEngine(t *testing.T) {
	plain := random(50 * ChunkSize)
	for i := 1; i < 40; i += 6 {
		ctx, cancel := context.WithCancel(t.Context())
		err := NewEngine(4).Encrypt(ctx, Body{&memory{}, 0, bytes.NewReader(plain), int64(len(plain)), NewFileKey(), NewNonce()}, &stopper{i, cancel})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after %d chunks: %v", i, err)
		}
	}
}

// Many bodies at once share one engine's few buffers; none may starve.
func TestEngineIsShared(t *testing.T) {
	e := NewEngine(1)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			plain := random(11 * ChunkSize)
			var out memory
			h := sha256.New()
			if err := e.Encrypt(t.Context(), Body{&out, 0, bytes.NewReader(plain), int64(len(plain)), NewFileKey(), NewNonce()}, h); err != nil || [32]byte(h.Sum(nil)) != sha256.Sum256(plain) {
				t.Error("wrong digest or", err)
			}
		})
	}
	wg.Wait()
}

func TestReaderAtAnywhere(t *testing.T) {
	plain, key := random(3*ChunkSize+99), NewFileKey()
	file := seal(t, plain, key, plainStanza)
	r, err := NewReaderAt(Sealed{nil, bytes.NewReader(file), BodyOffset, int64(len(file) - BodyOffset), key, Nonce(file[HeaderSize:])})
	if err != nil || r.Size() != int64(len(plain)) {
		t.Fatal(r.Size(), err)
	}
	want := bytes.NewReader(plain)
	rapid.Check(t, func(rt *rapid.T) {
		off := rapid.Int64Range(0, int64(len(plain))+10).Draw(rt, "offset")
		n := rapid.IntRange(0, 2*ChunkSize).Draw(rt, "length")
		p, q := make([]byte, n), make([]byte, n)
		gotN, gotErr := r.ReadAt(p, off)
		wantN, wantErr := want.ReadAt(q, off)
		if n > 0 && (gotN != wantN || gotErr != wantErr) || !bytes.Equal(p, q) {
			rt.Fatalf("%d %v, want %d %v", gotN, gotErr, wantN, wantErr)
		}
	})
	if _, err := r.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset was accepted")
	}
}

func TestPlainSizeInvertsBodySize(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.Int64Range(0, 1<<45).Draw(rt, "size")
		if got, err := PlainSize(BodySize(n)); err != nil || got != n {
			rt.Fatalf("%d became %d, %v", n, got, err)
		}
	})
	for _, body := range []int64{-1, 0, 15, sealedChunk + 1, sealedChunk + Overhead} {
		if n, err := PlainSize(body); err == nil {
			t.Errorf("a body of %d bytes was said to hold %d", body, n)
		}
	}
}

func TestFileKeyNeverPrints(t *testing.T) {
	key := FileKey([]byte("YELLOW SUBMARINE"))
	for _, verb := range []string{"%v", "%s", "%x", "%q", "%d", "%+v", "%#v"} {
		if got := fmt.Sprintf(verb, key); got != "[file key]" {
			t.Errorf("%s printed %q", verb, got)
		}
		if got := fmt.Sprintf(verb, struct{ K FileKey }{key}); strings.Contains(got, "89") || strings.Contains(got, "YELLOW") {
			t.Errorf("%s of a struct printed %q", verb, got)
		}
	}
	if b, err := key.MarshalText(); err == nil {
		t.Errorf("marshalled to %q", b)
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add(must(MarshalHeader(FileKey{}, []Stanza{plainStanza}, HeaderSize)))
	f.Add([]byte(intro + "-> x\n\n--- " + strings.Repeat("A", 43) + "\nrest"))
	f.Add([]byte(intro + "-> X25519 a b\nAAAA\n-> y\n\n---"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := ParseHeader(bytes.NewReader(data))
		if err != nil {
			return
		}
		key := FileKey{1}
		again, err := MarshalHeader(key, h.Stanzas, 0)
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(again)) != h.Size || !bytes.Equal(again[:len(h.signed)], data[:len(h.signed)]) {
			t.Fatalf("%q is not canonical, but was accepted", data)
		}
		if err := must(ParseHeader(bytes.NewReader(again))).Verify(key); err != nil {
			t.Fatal(err)
		}
	})
}

func TestEncryptPair(t *testing.T) {
	for _, sizes := range [][2]int{{0, 0}, {0, 1}, {5 * ChunkSize, 0}, {ChunkSize, ChunkSize}, {3, 7*ChunkSize + 1}, {9 * ChunkSize, 2*ChunkSize + 5}} {
		var plain [2][]byte
		var out [2]memory
		var body [2]Body
		for i, n := range sizes {
			plain[i] = random(n)
			body[i] = Body{&out[i], 0, bytes.NewReader(plain[i]), int64(n), NewFileKey(), NewNonce()}
		}
		var seen [2][]byte
		err := NewEngine(3).EncryptPair(t.Context(), body[0], body[1], func(p, q []byte) error {
			seen[0], seen[1] = append(seen[0], p...), append(seen[1], q...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range sizes {
			var got memory
			err := NewEngine(2).Decrypt(t.Context(), Sealed{&got, bytes.NewReader(out[i].data), 0, int64(len(out[i].data)), body[i].Key, body[i].Nonce}, nil)
			if err != nil || !bytes.Equal(got.data, plain[i]) || !bytes.Equal(seen[i], plain[i]) {
				t.Errorf("sizes %d, body %d: %v", sizes, i, err)
			}
		}
	}
	good := Body{&memory{}, 0, bytes.NewReader(random(9)), 9, NewFileKey(), NewNonce()}
	for _, bad := range []Body{
		{&memory{}, 0, bytes.NewReader(nil), 1, NewFileKey(), NewNonce()},
		{&memory{}, 0, bytes.NewReader(nil), -1, NewFileKey(), NewNonce()},
		{&failing{}, 0, bytes.NewReader(random(9)), 9, NewFileKey(), NewNonce()},
	} {
		sink := func(_, _ []byte) error { return nil }
		if NewEngine(2).EncryptPair(t.Context(), good, bad, sink) == nil || NewEngine(2).EncryptPair(t.Context(), bad, good, sink) == nil {
			t.Errorf("a pair with a body of %d bytes that cannot be sealed was sealed", bad.Size)
		}
	}
}

func TestDecryptPair(t *testing.T) {
	for _, sizes := range [][2]int{{0, 0}, {0, 1}, {5 * ChunkSize, 0}, {ChunkSize, ChunkSize}, {3, 7*ChunkSize + 1}, {9 * ChunkSize, 2*ChunkSize + 5}} {
		var plain, files, seen [2][]byte
		var out [2]memory
		var body [2]Sealed
		for i, n := range sizes {
			key := NewFileKey()
			plain[i] = random(n)
			files[i] = seal(t, plain[i], key, plainStanza)
			body[i] = Sealed{&out[i], bytes.NewReader(files[i]), BodyOffset, int64(len(files[i]) - BodyOffset), key, Nonce(files[i][HeaderSize:])}
		}
		sink := func(p, q []byte) error {
			seen[0], seen[1] = append(seen[0], p...), append(seen[1], q...)
			return nil
		}
		if err := NewEngine(3).DecryptPair(t.Context(), body[0], body[1], sink); err != nil {
			t.Fatal(err)
		}
		for i := range sizes {
			if !bytes.Equal(out[i].data, plain[i]) || !bytes.Equal(seen[i], plain[i]) {
				t.Errorf("sizes %d: body %d came out wrong", sizes, i)
			}
		}
		for i := range sizes {
			out[0].data, out[1].data = nil, nil
			files[i][len(files[i])-1] ^= 1
			if err := NewEngine(3).DecryptPair(t.Context(), body[0], body[1], sink); !errors.Is(err, ErrForged) {
				t.Errorf("sizes %d, body %d forged: %v", sizes, i, err)
			}
			if last := (sizes[i] - 1) / ChunkSize * ChunkSize; len(out[i].data) > max(0, last) || !bytes.HasPrefix(plain[i], out[i].data) {
				t.Errorf("sizes %d: a forged last chunk reached the output", sizes)
			}
			files[i][len(files[i])-1] ^= 1
		}
	}
}

// C2SP age.md, "Payload": eleven bytes of counter, one of flag.
func TestChunkNonce(t *testing.T) {
	if got := fmt.Sprintf("%x", chunkNonce(0x0102030405060708, true)); got != "000000010203040506070801" {
		t.Error(got)
	}
	if got := fmt.Sprintf("%x", chunkNonce(255, false)); got != "00000000000000000000ff00" {
		t.Error(got)
	}
}

// endless reads zero bytes without end.
type endless struct{}

func (endless) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

// nowhere takes writes at any offset.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func TestMemoryDoesNotDependOnSize(t *testing.T) {
	if held := cap(NewEngine(10_000).buffers) * 2 * sealedChunk; held > 64<<20 {
		t.Errorf("an engine for 10,000 workers holds %d bytes", held)
	}
	e := NewEngine(2)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const size = 512 << 20
	if err := e.Encrypt(t.Context(), Body{nowhere{}, 0, endless{}, size, NewFileKey(), NewNonce()}, nil); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
		t.Errorf("encrypting %d bytes allocated %d", int64(size), got)
	}
}

// TestFaultSizesThatOverflow: a size near the largest number is refused, and not
// taken for a few chunks or for none: the rest of the file would be left out.
func TestFaultSizesThatOverflow(t *testing.T) {
	e := NewEngine(1)
	for _, size := range []int64{math.MaxInt64, math.MaxInt64 - ChunkSize, maxSize + 1} {
		if err := e.Encrypt(t.Context(), Body{Dst: nowhere{}, Src: endless{}, Size: size}, nil); err == nil {
			t.Errorf("a plaintext of %d bytes was sealed", size)
		}
		if n, err := PlainSize(size); err == nil {
			t.Errorf("a body of %d bytes was said to hold %d", size, n)
		}
		if err := e.Decrypt(t.Context(), Sealed{Src: endless{}, Size: size}, nil); !errors.Is(err, ErrForged) {
			t.Errorf("a body of %d bytes: %v", size, err)
		}
		if _, err := NewReaderAt(Sealed{Src: endless{}, Size: size}); !errors.Is(err, ErrForged) {
			t.Errorf("a body of %d bytes, to read at an offset: %v", size, err)
		}
	}
}
