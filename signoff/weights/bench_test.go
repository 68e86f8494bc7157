package weights

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// memoryDir returns a directory on tmpfs, so that the disk does not count.
func memoryDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "keyturn-bench-")
	if err != nil {
		b.Skipf("no tmpfs at /dev/shm: %v", err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

const benchFile = 64 << 20

func benchModel(b *testing.B, dir string) string {
	b.Helper()
	src := filepath.Join(dir, "model")
	if err := os.Mkdir(src, 0o755); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		if err := os.WriteFile(filepath.Join(src, name), random(benchFile), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return src
}

// BenchmarkModel seals, opens and verifies four files of 64 MiB on tmpfs. User
// time is what the code costs; system time is copying to and from tmpfs.
func BenchmarkModel(b *testing.B) {
	dir := memoryDir(b)
	src := benchModel(b, dir)
	dst, out := filepath.Join(dir, "sealed"), filepath.Join(dir, "out")
	box := newBox()
	var sealed *Sealed
	seal := func() {
		var err error
		if sealed, err = Seal(b.Context(), src, dst, Options{Name: "model", Finish: box.finish}); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("seal", func(b *testing.B) {
		measure(b, seal, func() { os.RemoveAll(dst) })
	})
	seal()
	d := directory(b, dst, sealed)
	b.Run("open", func(b *testing.B) {
		measure(b, func() {
			if err := d.Open(b.Context(), out, box.keyFor, Run{}); err != nil {
				b.Fatal(err)
			}
		}, func() { os.RemoveAll(out) })
	})
	b.Run("verify", func(b *testing.B) {
		measure(b, func() {
			if err := Verify(b.Context(), src, sealed.Manifest, Run{}); err != nil {
				b.Fatal(err)
			}
		}, func() {})
	})
}

// measure reports GB for each second of wall time, of user CPU time, and of
// user and system time together.
func measure(b *testing.B, f, cleanup func()) {
	var wall, user, system time.Duration
	for b.Loop() {
		before, start := usage(), time.Now()
		f()
		after := usage()
		wall += time.Since(start)
		user += time.Duration(after.Utime.Nano() - before.Utime.Nano())
		system += time.Duration(after.Stime.Nano() - before.Stime.Nano())
		cleanup()
	}
	gb := float64(b.N) * 4 * benchFile / 1e9
	b.ReportMetric(gb/wall.Seconds(), "GB/s")
	b.ReportMetric(gb/user.Seconds(), "GB/user-s")
	b.ReportMetric(gb/(user+system).Seconds(), "GB/cpu-s")
}

func usage() (u syscall.Rusage) {
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u
}
