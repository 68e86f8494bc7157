package durable

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func holds(t *testing.T, path string, want []byte, mode fs.FileMode) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(b, want) {
		t.Fatalf("%s holds %d bytes, want %d: %v", path, len(b), len(want), err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != mode {
		t.Fatalf("%s: mode %v, want %v: %v", path, info.Mode(), mode, err)
	}
}

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"one", "", "a longer two"} {
		if err := Replace(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		holds(t, path, []byte(content), 0o640)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
	if err := Replace(filepath.Join(dir, "none", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into no directory: %v", err)
	}
	if err := Replace(dir, []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
}

func TestCreateNeverOverwrites(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := Create(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(path, []byte("second"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want ErrExist", err)
	}
	holds(t, path, []byte("first"), 0o600)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	if err := Create(link, []byte("through"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("through a dangling link: %v, want ErrExist", err)
	}
	if err := Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := Remove(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed twice: %v", err)
	}
}

// Several programs of one user replace the same file: each reader finds one whole.
func TestReplaceTogether(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	const size = 1 << 16
	if err := Replace(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for range 20 {
				if err := Replace(path, bytes.Repeat([]byte{byte(w)}, size), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for {
		b, err := os.ReadFile(path)
		if err != nil || len(b) != size || !bytes.Equal(b, bytes.Repeat(b[:1], size)) {
			t.Fatalf("a reader found %d bytes of several: %v", len(b), err)
		}
		select {
		case <-done:
			if got := names(t, dir); len(got) != 1 {
				t.Errorf("left behind: %v", got)
			}
			return
		default:
		}
	}
}

func TestFaultDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("mounting a small tmpfs needs root: " + err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	kept := filepath.Join(dir, "kept")
	if err := Create(kept, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 1<<17)
	if err := Replace(kept, big, 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("replace on a full disk: %v", err)
	}
	holds(t, kept, []byte("old"), 0o600)
	if err := Create(filepath.Join(dir, "new"), big, 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("create on a full disk: %v", err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
	if err := Create(filepath.Join(dir, "new"), []byte("new"), 0o600); err != nil {
		t.Errorf("after there was room again: %v", err)
	}
}
