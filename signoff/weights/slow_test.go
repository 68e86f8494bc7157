package weights

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// slow skips what takes minutes unless make test-slow asks for it.
func slow(t *testing.T) {
	t.Helper()
	if os.Getenv("KEYTURN_SLOW") == "" {
		t.Skip("takes minutes; make test-slow runs it")
	}
}

// A window takes writes at any offset and keeps some of the chunks.
type window struct {
	mu   sync.Mutex
	keep map[int64][]byte // by chunk; guarded by mu
}

const sealedChunk = stream.ChunkSize + stream.Overhead

func (w *window) WriteAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.keep[off/sealedChunk]; ok {
		w.keep[off/sealedChunk] = append([]byte(nil), p...)
	}
	return len(p), nil
}

func (w *window) ReadAt(p []byte, off int64) (int, error) {
	return copy(p, w.keep[off/sealedChunk][off%sealedChunk:]), nil
}

// One sparse file of 64 GiB: chunks beyond every power of two that a counter
// could be cut to open in their places, and the digest is that of zeros.
func TestAttackSparse64GiB(t *testing.T) {
	slow(t)
	const size = 64 << 30
	path := filepath.Join(t.TempDir(), "sparse")
	f := must(os.Create(path))
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	const last = size/stream.ChunkSize - 1
	w := &window{keep: map[int64][]byte{}}
	places := []int64{0, 1, 1<<15 - 1, 1 << 15, 1<<16 - 1, 1 << 16, 1<<19 + 1, last - 1, last}
	for _, p := range places {
		w.keep[p] = nil
	}
	key, nonce, d := stream.NewFileKey(), stream.NewNonce(), newDigester(false)
	if err := stream.NewEngine(0).Encrypt(t.Context(), stream.Body{Dst: w, Src: f, Size: size, Key: key, Nonce: nonce}, d); err != nil {
		t.Fatal(err)
	}
	// head -c 64G /dev/zero | sha256sum
	const zeros = "57b295ba06757c81edca2d1e299133b2f059bea28e6cf9f438d7741611c36541"
	if sum := d.sum(); hex.EncodeToString(sum[:]) != zeros {
		t.Errorf("sha256 %x", sum)
	}
	r, err := stream.NewReaderAt(stream.Sealed{Src: w, Size: stream.BodySize(size), Key: key, Nonce: nonce})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range places {
		buf := make([]byte, stream.ChunkSize)
		if n, err := r.ReadAt(buf, p*stream.ChunkSize); n != len(buf) || err != nil || sha256.Sum256(buf) != sha256.Sum256(make([]byte, stream.ChunkSize)) {
			t.Errorf("chunk %d: %d bytes, %v", p, n, err)
		}
	}
}

// A file that crosses 2^32 bytes goes all the way, on a disk.
func TestSealAcross4GiB(t *testing.T) {
	slow(t)
	const size = 4<<30 + stream.ChunkSize + 1
	src, b := model(t, map[string][]byte{"w": nil}), newBox()
	if err := os.Truncate(filepath.Join(src, "w"), size); err != nil {
		t.Fatal(err)
	}
	dst, s := sealTo(t, src, b)
	out := filepath.Join(t.TempDir(), "out")
	if err := directory(t, dst, s).Open(t.Context(), out, b.keyFor, Run{}); err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), out, s.Manifest, Run{}); err != nil || s.Summary.Bytes != size {
		t.Errorf("%+v: %v", s.Summary, err)
	}
}
