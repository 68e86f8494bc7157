package weights

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// refuses seals src and wants an error that says why, and nothing left behind.
func refuses(t *testing.T, src, why string) {
	t.Helper()
	dst := filepath.Join(t.TempDir(), "sealed")
	_, err := Seal(t.Context(), src, dst, Options{Name: "model", Finish: newBox().finish})
	if err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("want a refusal that says %q, got %v", why, err)
	}
	absent(t, dst)
	absent(t, dst+partialSuffix)
}

func TestAttackLinksAndDevices(t *testing.T) {
	secretFile := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secretFile, []byte("elsewhere"), 0o600); err != nil {
		t.Fatal(err)
	}
	for why, plant := range map[string]func(path string) error{
		"a symbolic link": func(p string) error { return os.Symlink(secretFile, p) },
		"symbolic link":   func(p string) error { return os.Symlink(filepath.Dir(secretFile), p) }, // to a directory
		"hard links":      func(p string) error { return os.Link(secretFile, p) },
		"a pipe":          func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"a socket":        func(p string) error { return syscall.Mknod(p, syscall.S_IFSOCK|0o600, 0) },
	} {
		for _, name := range []string{"planted", "deep/planted"} {
			src := model(t, sample())
			if err := plant(filepath.Join(src, name[strings.Index(name, "/")+1:])); err != nil {
				t.Skipf("cannot plant %s here: %v", why, err)
			}
			refuses(t, src, why)
		}
	}
}

func TestAttackNames(t *testing.T) {
	long := strings.Repeat("n", 255)
	files := map[string][]byte{
		"new\nline":              {1},
		"-rf":                    {2},
		"\x1b[31mred":            {3},
		"\u202egnp.exe":          {4},
		long:                     {5},
		strings.Repeat("é", 127): {6},
		"a":                      {7},
		"a.age/inner":            {8}, // a directory where a's age file would be
		"a.age.age":              {9},
		" ":                      {10},
		"...":                    {11},
		"sha256-x.age":           {12},
		"c:\\windows":            {13},
	}
	b := newBox()
	dst, s := sealTo(t, model(t, files), b)
	out := filepath.Join(t.TempDir(), "out")
	if err := directory(t, dst, s).Open(t.Context(), out, b.keyFor, Run{}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(files, contents(t, out)); d != "" {
		t.Error(d)
	}
	checkSums(t, dst, out)
	refuses(t, model(t, map[string][]byte{"caf\xe9": {1}}), "UTF-8")
	refuses(t, model(t, nil), "0 files")
}

func TestAttackNamesInManifest(t *testing.T) {
	for _, names := range [][]string{
		{"../escape"}, {"/etc/passwd"}, {"a/../b"}, {"./a"}, {"a//b"}, {"a/"}, {""}, {"."}, {".."},
		{"nul\x00"}, {"\xff"}, {strings.Repeat("n", 256)}, {strings.Repeat("n/", 2048) + "n"},
		{"a", "a"}, {"b", "a"}, {"a", "a/b"}, {"a", "a/b/c"},
	} {
		var files []File
		for _, n := range names {
			files = append(files, File{Name: n, Digests: []Digest{{1}}})
		}
		if m, err := newManifest("model", false, files); err == nil {
			t.Errorf("names %.60q were accepted as %.60q", names, m.Names())
		}
	}
	collide := []string{"x/" + strings.Repeat("n", 255)}
	sum := sha256.Sum256([]byte(strings.Repeat("n", 255)))
	collide = append(collide, fmt.Sprintf("x/sha256-%x", sum))
	slices.SortFunc(collide, compareNames)
	if got, err := sealedNames(collide); err == nil {
		t.Errorf("two files share the place %q", got)
	}
}

func TestAttackSymlinkRaceWhileSealing(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("not yours"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, swap := range []string{"b-later", "dir/file"} {
		src := model(t, map[string][]byte{"a-first": random(1000), "b-later": random(1000), "dir/file": random(1000)})
		swapped := false
		_, err := Seal(t.Context(), src, filepath.Join(t.TempDir(), "sealed"), Options{
			Name: "model", Finish: newBox().finish, Workers: 1,
			Progress: func(p Progress) {
				if swapped {
					return
				}
				swapped = true
				target := filepath.Join(src, strings.SplitN(swap, "/", 2)[0])
				if err := errors.Join(os.RemoveAll(target), os.Symlink(victim, target)); err != nil {
					t.Error(err)
				}
			},
		})
		if !swapped || err == nil {
			t.Errorf("%s became a link to a foreign file while sealing: %v", swap, err)
		}
	}
}

func TestAttackDirectoryChangesWhileSealing(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"added":     func(d string) error { return os.WriteFile(filepath.Join(d, "new"), nil, 0o600) },
		"removed":   func(d string) error { return os.Remove(filepath.Join(d, "a")) },
		"renamed":   func(d string) error { return os.Rename(filepath.Join(d, "a"), filepath.Join(d, "z")) },
		"truncated": func(d string) error { return os.Truncate(filepath.Join(d, "b"), 10) },
		"grown":     func(d string) error { return os.Truncate(filepath.Join(d, "b"), 1<<20) },
		"rewritten": func(d string) error { return os.WriteFile(filepath.Join(d, "a"), random(1000), 0o600) },
		"replaced": func(d string) error {
			return errors.Join(os.WriteFile(filepath.Join(d, "..", "x"), random(1000), 0o600), os.Rename(filepath.Join(d, "..", "x"), filepath.Join(d, "a")))
		},
		"linked": func(d string) error { return os.Link(filepath.Join(d, "a"), filepath.Join(d, "..", "second")) },
	} {
		src := model(t, map[string][]byte{"a": random(1000), "b": random(1000)})
		dst := filepath.Join(t.TempDir(), "sealed")
		done := false
		_, err := Seal(t.Context(), src, dst, Options{
			Name: "model", Finish: newBox().finish, Workers: 1,
			Progress: func(p Progress) {
				if !done {
					done = true
					if err := change(src); err != nil {
						t.Error(err)
					}
				}
			},
		})
		if err == nil {
			t.Errorf("a file was %s while sealing and nobody noticed", name)
		}
		absent(t, dst)
		absent(t, dst+partialSuffix)
	}
}

func TestAttackForgedBodyAgainstManifest(t *testing.T) {
	for _, sharded := range []bool{false, true} {
		files := sample()
		b := newBox()
		dst, s := sealTo(t, model(t, files), b, func(o *Options) { o.Sharded = sharded })
		i := slices.Index(s.Manifest.Names(), "config.json")
		forge(t, dst, s, b, i, []byte(`{"layers": 3}`))
		out := filepath.Join(t.TempDir(), "out")
		err := directory(t, dst, s).Open(t.Context(), out, b.keyFor, Run{})
		if !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), "config.json") {
			t.Errorf("a key holder's other plaintext of the same size: %v", err)
		}
		absent(t, out)
		left := contents(t, out+partialSuffix)
		for _, leftover := range left {
			if bytes.Contains(leftover, []byte(`"layers": 3`)) {
				t.Error("the forged plaintext was kept")
			}
		}
	}
}

// forge writes a valid body of another plaintext, as whoever holds the file key
// can, and leaves the header alone.
func forge(t *testing.T, sealed string, s *Sealed, b *box, i int, plain []byte) {
	t.Helper()
	d := directory(t, sealed, s)
	src, err := d.open(i)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	key := must(b.keyFor(i, src.stanza))
	f, err := os.OpenFile(filepath.Join(sealed, filesName, d.paths[i]), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(stream.SealedSize(int64(len(plain)))); err != nil {
		t.Fatal(err)
	}
	if err := stream.NewEngine(1).Encrypt(t.Context(), stream.Body{Dst: f, Off: stream.BodyOffset, Src: bytes.NewReader(plain), Size: int64(len(plain)), Key: key, Nonce: src.nonce}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestAttackHeaderSwap(t *testing.T) {
	files := map[string][]byte{"a": random(5000), "b": random(5000)}
	b1, b2 := newBox(), newBox()
	src := model(t, files)
	one, s1 := sealTo(t, src, b1)
	two, _ := sealTo(t, src, b2)
	all := func(i int, s stream.Stanza) (stream.FileKey, error) { // even to one who holds every key
		if key, err := b1.keyFor(i, s); err == nil {
			return key, nil
		}
		return b2.keyFor(i, s)
	}
	a := filepath.Join(one, filesName, "a.age")
	good := must(os.ReadFile(a))
	for name, other := range map[string]string{
		"of another object": filepath.Join(two, filesName, "a.age"),
		"of another file":   filepath.Join(one, filesName, "b.age"),
	} {
		stranger := must(os.ReadFile(other))
		for what, bad := range map[string][]byte{
			"file " + name:   stranger,
			"header " + name: append(bytes.Clone(stranger[:stream.HeaderSize]), good[stream.HeaderSize:]...),
		} {
			openRefused(t, one, s1, a, bad, all, what)
		}
		body := append(bytes.Clone(good[:stream.HeaderSize]), stranger[stream.HeaderSize:]...)
		openRefused(t, one, s1, a, body, all, "body "+name)
	}
	if err := os.WriteFile(a, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := directory(t, one, s1).Open(t.Context(), filepath.Join(t.TempDir(), "out"), all, Run{}); err != nil {
		t.Errorf("the file put back: %v", err)
	}
}

// TestAttackSecondRecipient: whoever had a file's key, its sealer or the recipient of
// an export, writes it into the header for a key of their own, and has a way in that
// no log knows. Nobody needs a key to see it.
func TestAttackSecondRecipient(t *testing.T) {
	b := newBox()
	sealed, s := sealTo(t, model(t, map[string][]byte{"a": random(5000)}), b)
	f, err := directory(t, sealed, s).open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	key := must(b.keyFor(0, f.stanza))
	a := filepath.Join(sealed, filesName, "a.age")
	good := must(os.ReadFile(a))
	for name, stanza := range map[string]stream.Stanza{
		"another type":     {Type: "X25519", Args: []string{"c2hhcmU"}, Body: random(32)},
		"as grease":        {Type: "keyturn-grease", Args: []string{"0"}, Body: random(32)},
		"grease's details": {Type: "keyturn-grease", Args: []string{"0", "c2hhcmU"}},
	} {
		header := must(stream.MarshalHeader(key, []stream.Stanza{f.stanza, stanza}, stream.HeaderSize))
		openRefused(t, sealed, s, a, append(header, good[stream.HeaderSize:]...), b.keyFor, name)
		if err := directory(t, sealed, s).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "somebody else could open") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func openRefused(t *testing.T, sealed string, s *Sealed, path string, bad []byte, keyFor KeyFunc, what string) {
	t.Helper()
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := directory(t, sealed, s).Open(t.Context(), out, keyFor, Run{}); err == nil {
		t.Errorf("%s was opened", what)
	}
	absent(t, out)
}

func TestAttackManifestSwap(t *testing.T) {
	files := map[string][]byte{"a": random(5000), "b": random(5000)}
	b := newBox()
	dst, s := sealTo(t, model(t, files), b)
	_, other := sealTo(t, model(t, map[string][]byte{"a": random(5000), "b": random(5000)}), newBox())
	d, err := OpenDirectory(dst, other.Manifest, s.Object)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out := filepath.Join(t.TempDir(), "out")
	if err := d.Open(t.Context(), out, b.keyFor, Run{}); !errors.Is(err, ErrMismatch) {
		t.Errorf("opened under the manifest of other weights: %v", err)
	}
	absent(t, out)
}

func TestAttackTruncatedSealedFiles(t *testing.T) {
	b := newBox()
	dst, s := sealTo(t, model(t, map[string][]byte{"w": random(stream.ChunkSize + 100)}), b)
	path := filepath.Join(dst, filesName, "w.age")
	good := must(os.ReadFile(path))
	for _, n := range []int{0, 1, stream.HeaderSize - 1, stream.HeaderSize, stream.HeaderSize + 15, stream.BodyOffset, stream.BodyOffset + 16,
		stream.BodyOffset + stream.ChunkSize, stream.BodyOffset + stream.ChunkSize + 16, stream.BodyOffset + stream.ChunkSize + 32, len(good) - 1} {
		openRefused(t, dst, s, path, good[:n], b.keyFor, fmt.Sprintf("a file cut to %d bytes", n))
	}
	openRefused(t, dst, s, path, append(bytes.Clone(good), 0), b.keyFor, "a file with a byte appended")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := directory(t, dst, s).Check(t.Context()); err == nil {
		t.Error("a missing file passed the check")
	}
}

func TestAttackSealedDirectoryWithLinks(t *testing.T) {
	b := newBox()
	dst, s := sealTo(t, model(t, map[string][]byte{"w": random(100)}), b)
	elsewhere := filepath.Join(t.TempDir(), "w.age")
	path := filepath.Join(dst, filesName, "w.age")
	if err := errors.Join(os.Rename(path, elsewhere), os.Symlink(elsewhere, path)); err != nil {
		t.Fatal(err)
	}
	d := directory(t, dst, s)
	out := filepath.Join(t.TempDir(), "out")
	if d.Check(t.Context()) == nil || d.Open(t.Context(), out, b.keyFor, Run{}) == nil || d.Export(t.Context(), out, nil, Run{}) == nil {
		t.Error("a symbolic link was followed")
	}
	absent(t, out)
}

func TestAttackWrongOrAbsentKeys(t *testing.T) {
	b := newBox()
	dst, s := sealTo(t, model(t, sample()), b)
	for name, keyFor := range map[string]KeyFunc{
		"none":    nil,
		"zero":    func(int, stream.Stanza) (stream.FileKey, error) { return stream.FileKey{}, nil },
		"random":  func(int, stream.Stanza) (stream.FileKey, error) { return stream.NewFileKey(), nil },
		"refused": newBox().keyFor,
	} {
		out := filepath.Join(t.TempDir(), "out")
		if err := directory(t, dst, s).Open(t.Context(), out, keyFor, Run{}); err == nil {
			t.Errorf("opened with key: %s", name)
		}
		absent(t, out)
	}
	if _, err := OpenDirectory(dst, s.Manifest, Digest{}); err == nil {
		t.Error("opened under no object")
	}
	if _, err := OpenDirectory(dst, nil, s.Object); err == nil {
		t.Error("opened under no manifest")
	}
}

func TestVerifyFindsEveryDifference(t *testing.T) {
	files := sample()
	_, s := sealTo(t, model(t, files), newBox())
	for name, change := range map[string]func(map[string][]byte){
		"missing first": func(f map[string][]byte) { delete(f, s.Manifest.Files[0].Name) },
		"missing last":  func(f map[string][]byte) { delete(f, s.Manifest.Files[5].Name) },
		"extra first":   func(f map[string][]byte) { f["!"] = nil },
		"extra last":    func(f map[string][]byte) { f["~"] = nil },
		"renamed":       func(f map[string][]byte) { f["void"] = f["empty"]; delete(f, "empty") },
		"flipped":       func(f map[string][]byte) { f["config.json"] = []byte(`{"layers": 3}`) },
		"emptied":       func(f map[string][]byte) { f["config.json"] = nil },
		"filled":        func(f map[string][]byte) { f["empty"] = []byte{0} },
	} {
		changed := maps.Clone(files)
		change(changed)
		if err := Verify(t.Context(), model(t, changed), s.Manifest, Run{}); !errors.Is(err, ErrMismatch) {
			t.Errorf("%s: %v", name, err)
		}
	}
	linked := model(t, files)
	target := filepath.Join(t.TempDir(), "x")
	p := filepath.Join(linked, "config.json")
	if err := errors.Join(os.Rename(p, target), os.Symlink(target, p)); err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), linked, s.Manifest, Run{}); err == nil {
		t.Error("a symbolic link passed for the file")
	}
	if err := Verify(t.Context(), linked, nil, Run{}); err == nil {
		t.Error("verified against no manifest")
	}
}

func TestAttackSparseAndZeroLengthFiles(t *testing.T) {
	src := model(t, map[string][]byte{"empty": nil})
	f := must(os.Create(filepath.Join(src, "sparse")))
	const size = 64<<20 + 12345
	if err := errors.Join(f.Truncate(size), second(f.WriteAt([]byte("island"), 33<<20)), f.Close()); err != nil {
		t.Fatal(err)
	}
	b := newBox()
	dst, s := sealTo(t, src, b)
	out := filepath.Join(t.TempDir(), "out")
	if err := directory(t, dst, s).Open(t.Context(), out, b.keyFor, Run{}); err != nil {
		t.Fatal(err)
	}
	if s.Summary.Bytes != size {
		t.Errorf("summary of %d bytes, want %d", s.Summary.Bytes, size)
	}
	if err := Verify(t.Context(), src, s.Manifest, Run{}); err != nil {
		t.Error(err)
	}
}

func second(_ int, err error) error { return err }

func TestAttackManyTinyFiles(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 2_000
	}
	if os.MkdirAll("/dev/shm/keyturn-test", 0o777) == nil {
		t.Setenv("TMPDIR", "/dev/shm/keyturn-test") // the subject is the code, not the disk
		defer os.Remove("/dev/shm/keyturn-test")
	}
	src := filepath.Join(t.TempDir(), "model")
	for i := range n {
		dir := filepath.Join(src, fmt.Sprintf("%03d", i%1000))
		if i < 1000 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte{byte(i)}, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b := newBox()
	dst, s := sealTo(t, src, b)
	if len(s.Manifest.Files) != n {
		t.Fatalf("%d files sealed, want %d", len(s.Manifest.Files), n)
	}
	last, err := directory(t, dst, s).Reader(n-1, b.keyFor)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if err := Verify(t.Context(), src, s.Manifest, Run{}); err != nil {
		t.Error(err)
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	b := newBox()
	src := model(t, sample())
	dst, s := sealTo(t, src, b)
	d := directory(t, dst, s)
	for name, place := range map[string]func(string) error{
		"file":          func(p string) error { return os.WriteFile(p, []byte("mine"), 0o600) },
		"empty":         func(p string) error { return os.Mkdir(p, 0o700) },
		"dangling link": func(p string) error { return os.Symlink("nowhere", p) },
	} {
		taken := filepath.Join(t.TempDir(), "taken")
		if err := place(taken); err != nil {
			t.Fatal(err)
		}
		_, sealErr := Seal(t.Context(), src, taken, Options{Name: "model", Finish: newBox().finish})
		openErr := d.Open(t.Context(), taken, b.keyFor, Run{})
		exportErr := d.Export(t.Context(), taken, nil, Run{})
		for _, err := range []error{sealErr, openErr, exportErr} {
			if !errors.Is(err, ErrExists) {
				t.Errorf("over a %s: %v", name, err)
			}
		}
	}
}

// What appears while the work is under way is not overwritten either.
func TestAttackOutputAppearsMeanwhile(t *testing.T) {
	src := model(t, sample())
	dst := filepath.Join(t.TempDir(), "sealed")
	_, err := Seal(t.Context(), src, dst, Options{Name: "model", Finish: func(ctx context.Context, d *Draft) (*Final, error) {
		if err := os.Mkdir(dst, 0o700); err != nil {
			t.Error(err)
		}
		return newBox().finish(ctx, d)
	}})
	if !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if got := contents(t, dst); len(got) != 0 {
		t.Errorf("%d files appeared in a directory that was there", len(got))
	}
}

func TestAttackForeignWorkspace(t *testing.T) {
	src := model(t, sample())
	for name, plant := range map[string]func(partial string) error{
		"a link":          func(p string) error { return os.Symlink(t.TempDir(), p) },
		"a file":          func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"world-writable":  func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o777)) },
		"somebody else's": func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chown(p, 4711, 4711)) },
	} {
		dst := filepath.Join(t.TempDir(), "sealed")
		if err := plant(dst + partialSuffix); err != nil {
			t.Skipf("cannot plant a workspace that is %s: %v", name, err)
		}
		if _, err := Seal(t.Context(), src, dst, Options{Name: "model", Finish: newBox().finish}); err == nil {
			t.Errorf("took up a workspace that is %s", name)
		}
		absent(t, dst)
	}
}

func TestTwoAtOnceAreRefused(t *testing.T) {
	src := model(t, sample())
	dst := filepath.Join(t.TempDir(), "sealed")
	_, err := Seal(t.Context(), src, dst, Options{Name: "model", Finish: func(ctx context.Context, d *Draft) (*Final, error) {
		if _, err := Seal(ctx, src, dst, Options{Name: "model", Finish: newBox().finish}); !errors.Is(err, ErrBusy) {
			t.Errorf("the second of two: %v", err)
		}
		return newBox().finish(ctx, d)
	}})
	if err != nil {
		t.Errorf("the first of two: %v", err)
	}
}

func TestFinishThatFailsLeavesNothing(t *testing.T) {
	src := model(t, sample())
	good := newBox()
	for name, finish := range map[string]func(context.Context, *Draft) (*Final, error){
		"error":   func(context.Context, *Draft) (*Final, error) { return nil, errors.New("token gone") },
		"nothing": func(context.Context, *Draft) (*Final, error) { return nil, nil },
		"no object": func(c context.Context, d *Draft) (*Final, error) {
			f, _ := good.finish(c, d)
			f.Object = Digest{}
			return f, nil
		},
		"no wrap": func(c context.Context, d *Draft) (*Final, error) {
			f, _ := good.finish(c, d)
			f.Wrap = nil
			return f, nil
		},
		"wrap fails": func(c context.Context, d *Draft) (*Final, error) {
			f, _ := good.finish(c, d)
			f.Wrap = func(int, stream.FileKey) ([]byte, error) { return nil, errors.New("no") }
			return f, nil
		},
		"document escapes": func(c context.Context, d *Draft) (*Final, error) {
			f, _ := good.finish(c, d)
			f.Documents = map[string][]byte{"../x": nil}
			return f, nil
		},
		"document in the way": func(c context.Context, d *Draft) (*Final, error) {
			f, _ := good.finish(c, d)
			f.Documents = map[string][]byte{sumsName: nil}
			return f, nil
		},
	} {
		dst := filepath.Join(t.TempDir(), "sealed")
		if _, err := Seal(t.Context(), src, dst, Options{Name: "model", Finish: finish}); err == nil {
			t.Errorf("%s: sealed", name)
		}
		absent(t, dst)
		absent(t, dst+partialSuffix)
	}
}

// An Open that was stopped anywhere goes on, keeps what is right, and replaces
// what a crash spoiled.
func TestOpenResumes(t *testing.T) {
	files := sample()
	b := newBox()
	dst, s := sealTo(t, model(t, files), b)
	out := filepath.Join(t.TempDir(), "out")
	d := directory(t, dst, s)
	stopped := 0
	for i := range 2 { // each run finishes a pair of files and is stopped in the next
		ctx, cancel := context.WithCancel(t.Context())
		asked := 0
		err := d.Open(ctx, out, func(f int, st stream.Stanza) (stream.FileKey, error) {
			if asked++; asked > 2 {
				cancel()
			}
			return b.keyFor(f, st)
		}, Run{Workers: 1})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("run %d was stopped: %v", i, err)
		}
		absent(t, out)
		stopped = len(contents(t, filepath.Join(out+partialSuffix, treeName)))
		if want := 2 * (i + 1); stopped != want {
			t.Errorf("after run %d %d files are done, want %d", i, stopped, want)
		}
	}
	done := slices.Sorted(maps.Keys(contents(t, filepath.Join(out+partialSuffix, treeName))))
	spoiled := filepath.Join(out+partialSuffix, treeName, done[0])
	if err := os.WriteFile(spoiled, []byte("torn by a crash"), 0o600); err != nil {
		t.Fatal(err)
	}
	asked := 0
	if err := d.Open(t.Context(), out, func(f int, st stream.Stanza) (stream.FileKey, error) {
		asked++
		return b.keyFor(f, st)
	}, Run{Workers: 1}); err != nil {
		t.Fatal(err)
	}
	if want := len(files) - stopped + 1; asked != want {
		t.Errorf("the last run opened %d files, want %d", asked, want)
	}
	if d := cmp.Diff(files, contents(t, out)); d != "" {
		t.Error(d)
	}
}

func TestLeftoversOfAnotherOpenAreCleared(t *testing.T) {
	b := newBox()
	files := sample()
	dst, s := sealTo(t, model(t, files), b)
	out := filepath.Join(t.TempDir(), "out")
	for _, p := range []string{"tree/stranger", "tree/config.json/inside", "99.tmp", "0.tmp"} {
		p = filepath.Join(out+partialSuffix, p)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, []byte("old"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := directory(t, dst, s).Open(t.Context(), out, b.keyFor, Run{}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(files, contents(t, out)); d != "" {
		t.Error(d)
	}
}

func TestExportResumesAndClears(t *testing.T) {
	b := newBox()
	dst, s := sealTo(t, model(t, sample()), b)
	out := filepath.Join(t.TempDir(), "out")
	want := contents(t, dst)
	for p, content := range map[string][]byte{
		"files/config.json.age": want["files/config.json.age"],
		"files/empty.age":       []byte("torn by a crash, and longer than the file that belongs here" + strings.Repeat("!", 5000)),
		"old-release.json":      []byte("old"),
	} {
		p = filepath.Join(out+partialSuffix, p)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, content, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	d := directory(t, dst, s)
	if err := d.Export(t.Context(), out, map[string][]byte{sumsName: nil}, Run{}); err == nil {
		t.Fatal("an extra document replaced one of the object's")
	}
	if err := d.Export(t.Context(), out, nil, Run{}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, contents(t, out)); d != "" {
		t.Error(d)
	}
}

// A half-sealed directory restarts under fresh keys.
func TestKilledSealRestartsUnderFreshKeys(t *testing.T) {
	src := model(t, map[string][]byte{"w": random(5000)})
	dst := filepath.Join(t.TempDir(), "sealed")
	var first []byte
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Seal(ctx, src, dst, Options{Name: "model", Finish: func(ctx context.Context, d *Draft) (*Final, error) {
		first = must(os.ReadFile(filepath.Join(dst+partialSuffix, filesName, "w.age")))
		cancel()
		return newBox().finish(ctx, d)
	}})
	if err == nil {
		t.Fatal("a stopped sealing succeeded")
	}
	// Put back what a kill would have left.
	left := filepath.Join(dst+partialSuffix, filesName, "w.age")
	if err := errors.Join(os.MkdirAll(filepath.Dir(left), 0o700), os.WriteFile(left, first, 0o600)); err != nil {
		t.Fatal(err)
	}
	b := newBox()
	s, err := Seal(t.Context(), src, dst, Options{Name: "model", Finish: b.finish})
	if err != nil {
		t.Fatal(err)
	}
	second := must(os.ReadFile(filepath.Join(dst, filesName, "w.age")))
	if bytes.Equal(first[stream.HeaderSize:], second[stream.HeaderSize:]) {
		t.Error("the same body again: the key was reused")
	}
	if err := directory(t, dst, s).Open(t.Context(), filepath.Join(t.TempDir(), "out"), b.keyFor, Run{}); err != nil {
		t.Error(err)
	}
}

// TestAttackEndlessSparseFile: a file of the largest size that there is costs nothing
// to make. Sealing the first part of it as the whole would be a lie under a signature.
func TestAttackEndlessSparseFile(t *testing.T) {
	src := must(os.MkdirTemp("/dev/shm", "keyturn-test-")) // tmpfs has no smaller bound
	t.Cleanup(func() { os.RemoveAll(src) })
	f := must(os.Create(filepath.Join(src, "model.bin")))
	if err := errors.Join(f.Truncate(math.MaxInt64), f.Close()); err != nil {
		t.Skipf("no file of this size can be made: %v", err)
	}
	refuses(t, src, "bytes are more than")
}
