package weights

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// An openBox wraps file keys by not wrapping them, so that another process can
// go on with what one left.
type openBox struct{}

var openObject = Digest{1}

func (openBox) finish(_ context.Context, d *Draft) (*Final, error) {
	return &Final{Object: openObject, Documents: map[string][]byte{"manifest.json": d.Manifest.Payload()},
		Wrap: func(_ int, key stream.FileKey) ([]byte, error) { return append(key[:], make([]byte, 16)...), nil }}, nil
}

func (openBox) keyFor(_ int, s stream.Stanza) (stream.FileKey, error) {
	return stream.FileKey(s.Body[:stream.FileKeySize]), nil
}

func reopen(dir string) (*Directory, error) {
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return nil, err
	}
	m, err := ParseManifest(b)
	if err != nil {
		return nil, err
	}
	return OpenDirectory(dir, m, openObject)
}

// The operations that leave something behind, from one directory to another.
var operations = map[string]func(ctx context.Context, from, to string) error{
	"seal": func(ctx context.Context, from, to string) error {
		_, err := Seal(ctx, from, to, Options{Name: "model", Workers: 1, Finish: openBox{}.finish})
		return err
	},
	"open": func(ctx context.Context, from, to string) error {
		d, err := reopen(from)
		if err != nil {
			return err
		}
		defer d.Close()
		return d.Open(ctx, to, openBox{}.keyFor, Run{Workers: 1})
	},
	"export": func(ctx context.Context, from, to string) error {
		d, err := reopen(from)
		if err != nil {
			return err
		}
		defer d.Close()
		return d.Export(ctx, to, map[string][]byte{"release.json": []byte("{}")}, Run{Workers: 1})
	},
}

// mutations are the system calls by which the operations change anything.
var mutations = []string{"mkdirat", "openat", "pwrite64", "write", "ftruncate", "renameat", "renameat2", "unlinkat", "syncfs", "fsync"}

const faultVariable = "KEYTURN_TEST_FAULT" // operation, from, to

func TestOperationInProcess(t *testing.T) {
	args := strings.Split(os.Getenv(faultVariable), "\n")
	if len(args) != 3 {
		t.Skip("is run by TestAttackKilledAtEveryStep and TestAttackDiskFullAtEveryWrite")
	}
	if err := operations[args[0]](t.Context(), args[1], args[2]); err != nil {
		t.Fatal(err)
	}
}

// Killed at whatever step, each operation leaves the old state or the new one,
// and the next attempt comes to the right end.
func TestAttackKilledAtEveryStep(t *testing.T) { faultAtEveryStep(t, "signal=SIGKILL") }

// So does a disk that is full at that step, whatever the step is.
func TestAttackDiskFullAtEveryWrite(t *testing.T) { faultAtEveryStep(t, "error=ENOSPC") }

// faultAtEveryStep runs each operation in a process of its own again and again,
// with strace injecting the fault into the first, second, third … call of each
// kind, until the process comes to its end without it.
func faultAtEveryStep(t *testing.T, fault string) {
	if err := exec.Command("strace", "-qq", "-o", os.DevNull, "true").Run(); err != nil {
		t.Skipf("cannot trace processes here: %v (Debian package strace)", err)
	}
	plain := model(t, map[string][]byte{"a": random(stream.ChunkSize + 1), "b/c": random(100), "d": nil})
	sealed := filepath.Join(memoryDir(t), "sealed")
	if err := operations["seal"](t.Context(), plain, sealed); err != nil {
		t.Fatal(err)
	}
	exported := contents(t, sealed)
	exported["release.json"] = []byte("{}")
	for name := range operations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &faults{operation: name, fault: fault, from: sealed, want: exported, to: filepath.Join(memoryDir(t), "out")}
			switch name {
			case "seal":
				f.from = plain
			case "open":
				f.want = contents(t, plain)
			}
			n := 0
			for _, call := range mutations {
				n += f.each(t, call)
			}
			if n < 20 {
				t.Errorf("only %d faults were injected", n)
			}
		})
	}
}

// faults is one operation under one kind of fault.
type faults struct {
	operation, fault string
	from, to         string
	want             map[string][]byte // what it makes; of seal, nothing that can be foretold
}

// each lets the first, second … call fail and returns how often that was so.
func (f *faults) each(t *testing.T, call string) int {
	t.Helper()
	for n := 1; ; n++ {
		log := filepath.Join(t.TempDir(), "log")
		cmd := exec.Command("strace", "-f", "-qq", "-o", log, "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:%s:when=%d", call, f.fault, n),
			must(os.Executable()), "-test.run=^TestOperationInProcess$")
		cmd.Env = append(os.Environ(), faultVariable+"="+strings.Join([]string{f.operation, f.from, f.to}, "\n"), "GOMAXPROCS=1")
		out, err := cmd.CombinedOutput()
		trace := must(os.ReadFile(log))
		if !bytes.Contains(trace, []byte("(INJECTED)")) && !bytes.Contains(trace, []byte("killed by SIGKILL")) {
			if err != nil {
				t.Fatalf("%s without a fault: %v: %s", f.operation, err, out)
			}
			f.check(t, call, n)
			os.RemoveAll(f.to)
			return n - 1
		}
		if _, err := os.Lstat(f.to); err != nil { // the old state
			if err := operations[f.operation](t.Context(), f.from, f.to); err != nil {
				t.Fatalf("%s after %s at %s %d: %v", f.operation, f.fault, call, n, err)
			}
		}
		f.check(t, call, n)
		for _, left := range []string{f.to, f.to + partialSuffix} {
			if err := os.RemoveAll(left); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// check wants the new state, whole.
func (f *faults) check(t *testing.T, call string, n int) {
	t.Helper()
	got := f.to
	want := f.want
	if f.operation == "seal" {
		got, want = filepath.Join(memoryDir(t), "opened"), contents(t, f.from)
		if err := operations["open"](t.Context(), f.to, got); err != nil {
			t.Fatalf("what was sealed after %s at %s %d: %v", f.fault, call, n, err)
		}
	}
	if d := cmp.Diff(want, contents(t, got)); d != "" {
		t.Fatalf("%s after %s at %s %d: %s", f.operation, f.fault, call, n, d)
	}
}
