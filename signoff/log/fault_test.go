package log

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/signoff/proof"
)

// signed returns a note for the archive's entries at size.
func signed(t testing.TB, root [32]byte, size uint64, state byte) []byte {
	t.Helper()
	c := proof.Checkpoint{Origin: "example.com/log", Size: size, Root: root, State: [32]byte{state}}
	skey := fixedKey(c.Origin)
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Sign(&note.Note{Text: string(c.Marshal())}, s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// fixedKey is a note signing key in the form that package note reads.
func fixedKey(name string) string {
	k := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	vkey, err := note.NewEd25519VerifierKey(name, k.Public().(ed25519.PublicKey))
	if err != nil {
		panic(err)
	}
	hash := strings.Split(vkey, "+")[1]
	return fmt.Sprintf("PRIVATE+KEY+%s+%s+%s", name, hash, base64.StdEncoding.EncodeToString(append([]byte{1}, k.Seed()...)))
}

// work is what dies at some step: from 250 entries to 275, over the end of a
// bundle, with a blob before and a checkpoint after.
func work(a *Archive, blob []byte, more [][]byte, next []byte) error {
	if _, err := a.PutBlob(blob); err != nil {
		return err
	}
	if err := a.Append(more); err != nil {
		return err
	}
	return a.PutCheckpoint(next)
}

var errCrash = errors.New("crash")

// The process dies before and after every single effect on the disk. Whatever
// the step, the archive opens, holds all that was acknowledged and nothing that
// was not appended, verifies, and takes the rest.
func TestCrashAtEveryStep(t *testing.T) {
	ctx := context.Background()
	all := leaves(0, 275)
	blob := []byte("an event log")
	next := signed(t, proof.Root(all), 275, 0)
	for step := 0; ; step++ {
		dir := t.TempDir()
		a := open1(t, dir)
		add(t, a, all[:250])
		if err := a.PutCheckpoint(signed(t, proof.Root(all[:250]), 250, 0)); err != nil {
			t.Fatal(err)
		}
		seen, where := 0, ""
		a.disk.fault = func(op, path string) error {
			if seen++; seen <= step {
				return nil
			}
			if where == "" {
				where = op + " " + path
			}
			return errCrash // a dead process does nothing more
		}
		err := work(a, blob, all[250:], next)
		if seen <= step {
			if err != nil {
				t.Fatal(err)
			}
			if step < 30 {
				t.Fatalf("only %d steps were met", step)
			}
			return
		}
		acknowledged := a.Size()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}

		b := open1(t, dir)
		size := b.Size()
		if size < acknowledged || size < 250 || size > 275 {
			t.Fatalf("%s: %d entries after %d were acknowledged", where, size, acknowledged)
		}
		got, err := b.Leaves(ctx, 0, size)
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		for i := range got {
			if !bytes.Equal(got[i], all[i]) {
				t.Fatalf("%s: entry %d is %q", where, i, got[i])
			}
		}
		if err := b.Verify(ctx, nil); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		if err := work(b, blob, all[size:], next); err != nil {
			t.Fatalf("%s: going on: %v", where, err)
		}
		if root, err := b.Root(275); err != nil || root != proof.Root(all) {
			t.Fatalf("%s: root %x: %v", where, root, err)
		}
		if err := b.Verify(ctx, nil); err != nil {
			t.Fatalf("%s: after going on: %v", where, err)
		}
		if left, err := filepath.Glob(filepath.Join(dir, tmpDir, "*")); err != nil || len(left) > 0 {
			t.Fatalf("%s: left under tmp: %q", where, left)
		}
		b.Close()
	}
}

// One effect fails and the process lives on: before anything was shown it may
// try again, afterwards it must open the archive anew.
func TestFailureAtEveryStep(t *testing.T) {
	all := leaves(0, 275)
	for step := 0; ; step++ {
		dir := t.TempDir()
		a := open1(t, dir)
		add(t, a, all[:250])
		seen, failed, shown := 0, "", false
		a.disk.fault = func(op, path string) error {
			if seen++; seen == step+1 {
				failed = op
				return errCrash
			}
			shown = shown || failed == "" && op == "renamed"
			return nil
		}
		err := a.Append(all[250:])
		if failed == "" {
			return
		}
		if err == nil {
			if failed != "forget" {
				t.Fatalf("a failing %s was not noticed", failed)
			}
			continue
		}
		if !errors.Is(err, errCrash) {
			t.Fatalf("%s: %v", failed, err)
		}
		err = a.Append(all[a.Size():])
		switch failed {
		case "write", "written", "mkdir":
			if err != nil {
				t.Fatalf("%s: nothing was shown, trying again: %v", failed, err)
			}
		case "rename", "renamed":
			if err == nil {
				t.Fatalf("%s failed, and the archive wrote on", failed)
			}
		}
		a.Close()
		b := open1(t, dir)
		add(t, b, all[b.Size():])
		if err := b.Verify(context.Background(), nil); err != nil {
			t.Fatalf("%s: %v", failed, err)
		}
		b.Close()
	}
}

// The order was rolled back and other entries come in place of those that were
// shown: refused, even where only tiles had been written.
func TestAttackOtherEntries(t *testing.T) {
	dir := t.TempDir()
	a := open1(t, dir)
	add(t, a, leaves(0, 10))
	a.disk.fault = func(op, path string) error {
		if op == "rename" && strings.HasPrefix(path, "tile/entries/") {
			return errCrash
		}
		return nil
	}
	if err := a.Append(leaves(10, 12)); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	a.Close()
	b := open1(t, dir)
	if b.Size() != 10 {
		t.Fatalf("%d entries", b.Size())
	}
	if err := b.Append([][]byte{[]byte("other"), []byte("entries")}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("other entries over the same tiles: %v", err)
	}
	if err := b.Append(leaves(10, 12)); err != nil {
		t.Fatalf("the same entries again: %v", err)
	}
}

// build makes an archive with two levels, a blob and a checkpoint.
func build(t testing.TB, n int) string {
	t.Helper()
	dir := t.TempDir()
	a := open1(t, dir)
	add(t, a, leaves(0, n-5))
	add(t, a, leaves(n-5, n))
	if _, err := a.PutBlob([]byte("blob")); err != nil {
		t.Fatal(err)
	}
	root, err := a.Root(uint64(n))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.PutCheckpoint(signed(t, root, uint64(n), 0)); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// verifies opens dir as an auditor would.
func verifies(dir string) error {
	a, err := OpenReadOnly(dir)
	if err != nil {
		return err
	}
	return a.Verify(context.Background(), nil)
}

// Any byte of any file flipped, any file cut short, lengthened or missing is
// noticed. The checkpoint's signatures are for package proof, and which blobs
// must be there for those who read the entries.
func TestAttackDamage(t *testing.T) {
	dir := build(t, 530)
	if err := verifies(dir); err != nil {
		t.Fatal(err)
	}
	// Narrower tiles of the right edge may be deleted: others begin with them.
	superseded := map[string]bool{TilePath(0, 2, 13): true, BundlePath(2, 13): true, TilePath(1, 0, 1): true}
	files := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == "lock" || e.Name() == "checkpoint" {
			return err
		}
		files++
		good, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, at := range []int{0, len(good) / 2, len(good) - 1} {
			bad := bytes.Clone(good)
			bad[at] ^= 1
			damage(t, dir, path, good, bad)
		}
		damage(t, dir, path, good, good[:len(good)-1])
		damage(t, dir, path, good, append(bytes.Clone(good), 0))
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		if verifies(dir) == nil && !superseded[name] && !strings.HasPrefix(name, "blob/") {
			t.Errorf("%s is missing unnoticed", path)
		}
		return os.WriteFile(path, good, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 8 {
		t.Fatalf("only %d files", files)
	}
	if err := verifies(dir); err != nil {
		t.Fatal(err)
	}
}

func damage(t *testing.T, dir, path string, good, bad []byte) {
	t.Helper()
	if err := os.WriteFile(path, bad, 0o644); err != nil {
		t.Fatal(err)
	}
	if verifies(dir) == nil {
		t.Errorf("%s: a change was not noticed", path)
	}
	if err := os.WriteFile(path, good, 0o644); err != nil {
		t.Fatal(err)
	}
}

// The newest entries are deleted together with the tiles over them, but the
// checkpoint remembers.
func TestAttackTruncated(t *testing.T) {
	dir := build(t, 300)
	for _, p := range []string{"tile/entries/001.p", "tile/0/001.p"} {
		if err := os.RemoveAll(filepath.Join(dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(dir); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("opened below its checkpoint: %v", err)
	}
}

// Somebody hands over a stick. What is in the place of its files, a pipe, a device or
// a file of a terabyte, holds nobody up and fills no memory.
func TestAttackCarriedDirectory(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o644) },
		"device": func(path string) error { return os.Symlink("/dev/zero", path) },
		"huge": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, 1<<40))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := build(t, 300)
			blobs, err := filepath.Glob(filepath.Join(dir, "blob", "*", "*"))
			if err != nil || len(blobs) == 0 {
				t.Fatal(len(blobs), err)
			}
			for _, path := range []string{blobs[0], filepath.Join(dir, checkpointPath), filepath.Join(dir, TilePath(0, 0, tileWidth)), filepath.Join(dir, BundlePath(1, 44))} {
				good, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(os.Remove(path), put(path)); err != nil {
					t.Fatal(err)
				}
				if err := verifies(dir); !errors.Is(err, ErrCorrupt) {
					t.Errorf("%s: %v", path, err)
				}
				if err := errors.Join(os.Remove(path), os.WriteFile(path, good, 0o644)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestAttackMissingBundle(t *testing.T) {
	dir := build(t, 600)
	if err := os.Remove(filepath.Join(dir, BundlePath(0, tileWidth))); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("opened with a gap: %v", err)
	}
}

func TestPutCheckpointRefuses(t *testing.T) {
	a := open1(t, t.TempDir())
	all := leaves(0, 20)
	add(t, a, all)
	at := func(n uint64, state byte) []byte { return signed(t, proof.Root(all[:n]), n, state) }
	if err := a.PutCheckpoint(at(10, 0)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"no note":           []byte("x"),
		"a smaller one":     at(9, 0),
		"the same, changed": at(10, 1),
		"another root":      signed(t, [32]byte{1}, 15, 0),
		"beyond the log":    signed(t, proof.Root(leaves(0, 21)), 21, 0),
	} {
		if a.PutCheckpoint(bad) == nil {
			t.Errorf("%s was published", name)
		}
	}
	more := append(at(10, 0), "— w.example.com AAAAAAAA\n"...)
	for _, good := range [][]byte{more, at(20, 3)} {
		if err := a.PutCheckpoint(good); err != nil {
			t.Fatal(err)
		}
		got, err := a.Checkpoint(context.Background())
		if err != nil || !bytes.Equal(got, good) {
			t.Fatalf("%q: %v", got, err)
		}
	}
	if _, err := open1(t, t.TempDir()).Checkpoint(context.Background()); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a checkpoint of nothing: %v", err)
	}
}

// A real full disk: writes fail with the system's error, and what was
// acknowledged stays.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Skip("mounting a small tmpfs needs root: " + err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	leaf := bytes.Repeat([]byte("x"), 3000)
	var full error
	for n := 0; full == nil && n < 1000; n++ {
		full = a.Append([][]byte{leaf})
	}
	if !errors.Is(full, syscall.ENOSPC) {
		t.Fatalf("the disk never filled: %v", full)
	}
	if _, err := a.PutBlob(bytes.Repeat([]byte("y"), 1<<20)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a blob on a full disk: %v", err)
	}
	n := a.Size()
	if n == 0 {
		t.Fatal("nothing fitted")
	}
	a.Close()
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Size() != n {
		t.Fatalf("%d entries, %d were acknowledged", b.Size(), n)
	}
	if err := b.Verify(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
}

func FuzzParseBundle(f *testing.F) {
	var b []byte
	for _, l := range leaves(0, 3) {
		b = AppendBundle(b, l)
	}
	f.Add(b)
	f.Add([]byte{0, 0})
	f.Add([]byte{0, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		leaves, err := ParseBundle(data)
		if err != nil {
			return
		}
		var back []byte
		for _, l := range leaves {
			back = AppendBundle(back, l)
		}
		if !bytes.Equal(back, data) || len(leaves) > tileWidth {
			t.Fatalf("%x is written %x", data, back)
		}
	})
}

func FuzzValidPath(f *testing.F) {
	f.Add("tile/entries/x001/234.p/7")
	f.Add(BlobPath([32]byte{1}))
	f.Fuzz(func(t *testing.T, path string) {
		if ValidPath(path) && (!fs.ValidPath(path) || strings.Contains(path, "..")) {
			t.Fatalf("%q may be served", path)
		}
	})
}

// BenchmarkAppend compares a durable append with one durable file of the same
// bytes, which is the least that a disk asks for.
func BenchmarkAppend(b *testing.B) {
	for _, batch := range []int{1, 64, 256} {
		b.Run(fmt.Sprint("batch", batch), func(b *testing.B) {
			a := open1(b, b.TempDir())
			bare := open1(b, b.TempDir()).disk
			add := leaves(0, batch)
			one := bytes.Join(add, nil)
			var least time.Duration
			for i := range b.N {
				if err := a.Append(add); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				start := time.Now()
				tmp, err := bare.writeTemp(file{"bare", one})
				if err == nil {
					err = bare.place([]staged{{fmt.Sprint("bare", i), tmp}})
				}
				if err != nil {
					b.Fatal(err)
				}
				least += time.Since(start)
				b.StartTimer()
			}
			b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "entries/s")
			b.ReportMetric(float64(b.Elapsed())/float64(least), "x-one-durable-file")
		})
	}
}
