package weights

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// xfs mounts a fresh xfs image that can share blocks.
func xfs(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("mkfs.xfs"); err != nil {
		t.Skip("mkfs.xfs is not installed (Debian package xfsprogs)")
	}
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	f := must(os.Create(image))
	if err := errors.Join(f.Truncate(400<<20), f.Close(), os.Mkdir(mnt, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1", image}, {"mount", "-o", "loop", image, mnt}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Skipf("cannot mount an xfs image here: %s: %s", c[0], strings.TrimSpace(string(out)))
		}
	}
	t.Cleanup(func() { unix.Unmount(mnt, 0) })
	return mnt
}

func TestExportSharesBlocks(t *testing.T) {
	mnt := xfs(t)
	src := filepath.Join(mnt, "model")
	const size = 100 << 20
	if err := errors.Join(os.Mkdir(src, 0o755), os.WriteFile(filepath.Join(src, "w"), random(size), 0o600)); err != nil {
		t.Fatal(err)
	}
	b := newBox()
	dst := filepath.Join(mnt, "sealed")
	s, err := Seal(t.Context(), src, dst, Options{Name: "model", Finish: b.finish})
	if err != nil {
		t.Fatal(err)
	}
	d := directory(t, dst, s)
	torn := filepath.Join(mnt, "three"+partialSuffix, filesName, "w.age")
	if err := errors.Join(os.MkdirAll(filepath.Dir(torn), 0o755), os.WriteFile(torn, nil, 0o600), os.Truncate(torn, 2*size)); err != nil {
		t.Fatal(err)
	}
	before := free(t, mnt)
	for _, name := range []string{"one", "two", "three"} {
		if err := d.Export(t.Context(), filepath.Join(mnt, name), nil, Run{}); err != nil {
			t.Fatal(err)
		}
	}
	if used := before - free(t, mnt); used > size/10 {
		t.Errorf("three exports of %d bytes took %d bytes of disk", size, used)
	}
	if err := Verify(t.Context(), src, s.Manifest, Run{}); err != nil {
		t.Error(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := directory(t, filepath.Join(mnt, "three"), s).Open(t.Context(), out, b.keyFor, Run{}); err != nil {
		t.Error(err)
	}
}

func free(t testing.TB, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * int64(st.Bsize)
}

// BenchmarkExport measures what exporting one file of 64 MiB costs where blocks
// are shared, without the flush to disk that ends an export.
func BenchmarkExport(b *testing.B) {
	mnt := xfs(b)
	src := filepath.Join(mnt, "model")
	if err := errors.Join(os.Mkdir(src, 0o755), os.WriteFile(filepath.Join(src, "w"), random(64<<20), 0o600)); err != nil {
		b.Fatal(err)
	}
	dst := filepath.Join(mnt, "sealed")
	s, err := Seal(b.Context(), src, dst, Options{Name: "model", Finish: newBox().finish})
	if err != nil {
		b.Fatal(err)
	}
	d := directory(b, dst, s)
	var cloning time.Duration
	for b.Loop() {
		out := filepath.Join(mnt, "out")
		w, err := newWorkspace(out, public, false)
		if err != nil {
			b.Fatal(err)
		}
		x := &exporting{d, w, newMeter(nil, 0)}
		if err := x.prepare(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := x.file(b.Context(), 0); err != nil {
			b.Fatal(err)
		}
		cloning += time.Since(start)
		if err := w.discard(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cloning.Microseconds())/1000/float64(b.N), "ms/file")
}
