// Train is the demo's training program: it reads the weights it was given,
// says what it saw, works until its time is over, and leaves a snapshot. It must
// be a static executable; a run gets nothing that nobody approved.
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: train DIRECTORY SECONDS")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "train:", err)
		os.Exit(1)
	}
}

func run(dir, seconds string) error {
	n, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		size, err := io.Copy(h, f)
		rel, _ := filepath.Rel(dir, path)
		fmt.Printf("%x  %s  %d bytes\n", h.Sum(nil), rel, size)
		return err
	})
	if err != nil {
		return err
	}
	if state, err := os.ReadFile(filepath.Join(dir, "resume", "state")); err == nil {
		fmt.Printf("goes on after %s\n", state)
	}
	for i := range n {
		fmt.Println("step", i+1)
		time.Sleep(time.Second)
	}
	return snapshot(fmt.Sprint("step-", n), fmt.Sprint("step ", n))
}

// output is where a run that may keep something finds room for it.
const output = "/run/keyturn/output"

// snapshot writes a directory and gives it its name when it is finished.
func snapshot(name, state string) error {
	part := filepath.Join(output, ".part")
	if err := os.Mkdir(part, 0o700); errors.Is(err, fs.ErrNotExist) {
		return nil // nothing may be kept
	} else if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(part, "state"), []byte(state), 0o600); err != nil {
		return err
	}
	return os.Rename(part, filepath.Join(output, name))
}
