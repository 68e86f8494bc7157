// Train is the demo's training program: it reads the weights it was given,
// says what it saw, and then works until its time is over. It must be a static
// executable; a run gets nothing that nobody approved.
package main

import (
	"crypto/sha256"
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
	for i := range n {
		fmt.Println("step", i+1)
		time.Sleep(time.Second)
	}
	return nil
}
