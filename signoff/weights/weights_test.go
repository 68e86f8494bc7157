package weights

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// A box stands for the lockbox: it "wraps" file keys by remembering them.
type box struct {
	object Digest
	keys   map[string]stream.FileKey
}

func newBox() *box {
	b := &box{keys: map[string]stream.FileKey{}}
	rand.Read(b.object[:])
	return b
}

func (b *box) finish(_ context.Context, d *Draft) (*Final, error) {
	return &Final{
		Object: b.object,
		Wrap: func(_ int, key stream.FileKey) ([]byte, error) {
			handle := make([]byte, 32)
			rand.Read(handle)
			b.keys[string(handle)] = key
			return handle, nil
		},
		Documents: map[string][]byte{"manifest.json": d.Manifest.Payload()},
	}, nil
}

func (b *box) keyFor(_ int, s stream.Stanza) (stream.FileKey, error) {
	key, ok := b.keys[string(s.Body)]
	if !ok {
		return key, errors.New("box: unknown wrapped key")
	}
	return key, nil
}

// model writes files into a fresh directory.
func model(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// safetensors makes a file of one F32 tensor per given length.
func safetensors(lengths ...int) []byte {
	header := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	off := 0
	for i, n := range lengths {
		header[string(rune('a'+i))] = map[string]any{"dtype": "F32", "shape": []int{n}, "data_offsets": []int{off, off + 4*n}}
		off += 4 * n
	}
	return withHeader(must(json.Marshal(header)), off)
}

func withHeader(header []byte, data int) []byte {
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(out, header...), random(data)...)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// sample is a small model with every kind of size.
func sample() map[string][]byte {
	return map[string][]byte{
		"config.json":                      []byte(`{"layers": 2}`),
		"empty":                            {},
		"one-chunk.bin":                    random(stream.ChunkSize),
		"two-chunks.bin":                   random(stream.ChunkSize + 1),
		"model-00001-of-00002.safetensors": safetensors(1000, 70000),
		"deep/er/model-2.safetensors":      safetensors(3),
	}
}

func sealTo(t testing.TB, src string, b *box, change ...func(*Options)) (string, *Sealed) {
	t.Helper()
	o := Options{Name: "model", Finish: b.finish}
	for _, c := range change {
		c(&o)
	}
	dst := filepath.Join(t.TempDir(), "model.sealed")
	s, err := Seal(context.Background(), src, dst, o)
	if err != nil {
		t.Fatal(err)
	}
	return dst, s
}

func directory(t testing.TB, path string, s *Sealed) *Directory {
	t.Helper()
	d, err := OpenDirectory(path, s.Manifest, s.Object)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func contents(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		out[must(filepath.Rel(dir, p))], err = os.ReadFile(p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func absent(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); err == nil {
		t.Fatalf("%s exists", filepath.Base(path))
	}
}

func TestSealOpenVerifyExport(t *testing.T) {
	for _, sharded := range []bool{false, true} {
		files := sample()
		src, b := model(t, files), newBox()
		dst, s := sealTo(t, src, b, func(o *Options) { o.Sharded = sharded })

		want := Summary{Files: 6, Tensors: 3, Parameters: 71003, DTypes: []string{"F32"}}
		for _, c := range files {
			want.Bytes += int64(len(c))
		}
		if d := cmp.Diff(want, s.Summary); d != "" {
			t.Error("summary:", d)
		}
		if s.Manifest.Sharded != sharded {
			t.Errorf("manifest sharded %t, want %t", s.Manifest.Sharded, sharded)
		}
		d := directory(t, dst, s)
		if err := d.Check(t.Context()); err != nil {
			t.Error(err)
		}
		exported := filepath.Join(t.TempDir(), "exported")
		if err := d.Export(t.Context(), exported, map[string][]byte{"release.json": []byte("{}")}, Run{}); err != nil {
			t.Fatal(err)
		}
		wantExport := contents(t, dst)
		wantExport["release.json"] = []byte("{}")
		if d := cmp.Diff(wantExport, contents(t, exported)); d != "" {
			t.Error("export:", d)
		}
		out := filepath.Join(t.TempDir(), "out")
		if err := directory(t, exported, s).Open(t.Context(), out, b.keyFor, Run{}); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(files, contents(t, out)); d != "" {
			t.Error("open:", d)
		}
		absent(t, out+partialSuffix)
		if err := Verify(t.Context(), out, s.Manifest, Run{}); err != nil {
			t.Error(err)
		}
		checkSums(t, dst, out)
	}
}

// checkSums lets coreutils judge SHA256SUMS.
func checkSums(t *testing.T, sealed, plain string) {
	t.Helper()
	sums, err := filepath.Abs(filepath.Join(sealed, sumsName))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sha256sum", "--strict", "--quiet", "-c", sums)
	cmd.Dir = plain
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("sha256sum -c: %v\n%s", err, out)
	}
}

func TestSumsAreWhatSha256sumWrites(t *testing.T) {
	src := model(t, map[string][]byte{"plain": {1}, "new\nline": {2}, "back\\slash": {3}, "carriage\rreturn": {4}, "ü": {5}})
	dst, s := sealTo(t, src, newBox())
	cmd := exec.Command("sha256sum", append([]string{"--"}, s.Manifest.Names()...)...)
	cmd.Dir = src
	want, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got := must(os.ReadFile(filepath.Join(dst, sumsName)))
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Error(d)
	}
	checkSums(t, dst, src)
}

func TestProgressReachesTotal(t *testing.T) {
	src, b := model(t, sample()), newBox()
	var seal, open Progress
	dst, s := sealTo(t, src, b, func(o *Options) { o.Progress = func(p Progress) { seal = p } })
	if seal.Bytes != seal.Total || seal.Total != s.Summary.Bytes {
		t.Errorf("seal ended at %+v of %d bytes", seal, s.Summary.Bytes)
	}
	err := directory(t, dst, s).Open(t.Context(), filepath.Join(t.TempDir(), "out"), b.keyFor, Run{Progress: func(p Progress) { open = p }})
	if err != nil || open.Bytes != open.Total || open.Total != s.Summary.Bytes {
		t.Errorf("open ended at %+v of %d bytes: %v", open, s.Summary.Bytes, err)
	}
}

func TestLazyReader(t *testing.T) {
	files := sample()
	b := newBox()
	dst, s := sealTo(t, model(t, files), b)
	d := directory(t, dst, s)
	for i, f := range s.Manifest.Files {
		r, err := d.Reader(i, b.keyFor)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, r.Size())
		if _, err := r.ReadAt(got, 0); err != nil || sha256.Sum256(got) != f.Digests[0] {
			t.Errorf("%s: wrong content, %v", f.Name, err)
		}
		if strings.HasSuffix(f.Name, ".safetensors") {
			if _, err := ReadTensors(r, r.Size()); err != nil {
				t.Error(err)
			}
		}
		r.Close()
	}
	if _, err := d.Reader(len(files), b.keyFor); err == nil {
		t.Error("a file beyond the last was opened")
	}
}

func TestManifestOrderIsOMS(t *testing.T) {
	// As python3 sorts pathlib.PurePosixPath.
	want := []string{"a/b", "a/b!", "a!", "a-b", "a.b/c", "ab", "é", "～", "😀"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, compareNames)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
