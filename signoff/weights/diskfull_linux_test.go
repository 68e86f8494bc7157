package weights

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A disk that fills up at any point leaves the old state.
func TestDiskFull(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func(size int) error {
		return unix.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d", size))
	}
	if err := mount(1 << 20); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v", err)
	}
	unix.Unmount(disk, 0)
	files := map[string][]byte{"a": random(100_000), "b/c": random(30_000), "d": nil}
	src, b := model(t, files), newBox()
	sealed, s := sealTo(t, src, b)
	d := directory(t, sealed, s)
	out := filepath.Join(disk, "out")
	full := 0
	for size := 4096; size < 50*4096; size += 4096 {
		for name, run := range map[string]func() error{
			"seal": func() error {
				_, err := Seal(t.Context(), src, out, Options{Name: "model", Finish: newBox().finish})
				return err
			},
			"open":   func() error { return d.Open(t.Context(), out, b.keyFor, Run{}) },
			"export": func() error { return d.Export(t.Context(), out, nil, Run{}) },
		} {
			if err := mount(size); err != nil {
				t.Fatal(err)
			}
			err := run()
			if errors.Is(err, unix.ENOSPC) {
				full++
				absent(t, out)
			} else if err != nil {
				t.Errorf("%s on %d bytes: %v", name, size, err)
			}
			if err := unix.Unmount(disk, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if full < 60 {
		t.Errorf("the disk was full only %d times", full)
	}
}
