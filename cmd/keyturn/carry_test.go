package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Somebody hands over a stick. What is on it in the place of a log, a pipe, a device
// or a file of a terabyte, neither holds anybody up nor fills memory.
func TestAttackCarriedFileWithoutEnd(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"pipe":      func(path string) error { return syscall.Mkfifo(path, 0o644) },
		"device":    func(path string) error { return os.Symlink("/dev/zero", path) },
		"directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"huge": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, 1<<40))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log.json")
			if err := put(path); err != nil {
				t.Fatal(err)
			}
			if _, err := readCarried(path); err == nil || !strings.Contains(err.Error(), "is not a file of at most") {
				t.Errorf("read: %v", err)
			}
		})
	}
}
