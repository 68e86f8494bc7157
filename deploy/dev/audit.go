package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// audit runs keyturn audit verify with nothing but the charter's digest.
func (s *stage) audit(ctx context.Context, dir string, more ...string) result {
	args := append([]string{"audit", "verify", dir, "--charter", s.charter}, more...)
	return s.program(ctx, "auditor", "keyturn", args...)
}

// keepLog copies the log as it is now.
func (s *stage) keepLog(name string) (string, error) {
	dir := s.path("forged", name)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	out, err := exec.Command("cp", "-a", s.path("coordinator", "log"), dir).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("copy the log: %s", out)
	}
	return dir, nil
}

func (s *stage) auditStory(ctx context.Context) error {
	r := s.audit(ctx, s.path("log"))
	line := ""
	for l := range strings.Lines(r.out) {
		if strings.HasPrefix(l, "log ") {
			line = strings.Join(strings.Fields(l)[1:], " ")
		}
	}
	if err := s.allowed("an auditor replays the log from the charter's digest alone", line, r); err != nil {
		return err
	}
	// The coordinator ends before the log is copied: a copy of files that
	// change tells nothing about the audit.
	if co := s.find("coordinator"); co != nil {
		if err := co.cmd.Process.Signal(os.Interrupt); err != nil {
			return err
		}
		<-co.done
	}
	for _, attack := range []struct {
		name, why string
		forge     func(dir string) error
	}{
		{"a log with one byte changed", "corrupt", func(dir string) error { return flip(dir, "tile/entries") }},
		{"a log without its blobs", "blob is missing", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "blob")) }},
		{"a log with a tile missing", "corrupt", func(dir string) error { return removeOne(dir, "tile/entries") }},
	} {
		dir, err := s.keepLog(strings.ReplaceAll(attack.name, " ", "-"))
		if err != nil {
			return err
		}
		if err := attack.forge(dir); err != nil {
			return err
		}
		s.refused(attack.name, s.audit(ctx, dir), attack.why)
	}
	s.refused("last hour's log in the place of today's", s.audit(ctx, s.path("forged", "old"), "--since", s.path("log", "checkpoint")), "does not contain")
	return nil
}

// newest returns the file below a part of the log that was written last. What
// was written before it may be a partial tile that nobody needs any more.
func newest(dir, part string) (string, error) {
	found, at := "", time.Time{}
	err := filepath.WalkDir(filepath.Join(dir, part), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.ModTime().After(at) {
			found, at = path, info.ModTime()
		}
		return err
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no file below %s", part)
	}
	return found, err
}

func flip(dir, part string) error {
	path, err := newest(dir, part)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	return os.WriteFile(path, b, 0o644)
}

// removeOne removes the last tile in all the lengths that it was written in:
// without the longest, the one before may still reach as far as what is final.
func removeOne(dir, part string) error {
	path, err := newest(dir, part)
	if err != nil {
		return err
	}
	return os.RemoveAll(filepath.Dir(path))
}
