package linux_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/policy/enforce"
	"github.com/keyturn/keyturn/policy/enforce/linux"
)

func TestMain(m *testing.M) {
	linux.Init()
	if os.Getenv("KEYTURN_TEST_AGENT") != "" {
		agent()
	}
	os.Exit(m.Run())
}

// probe builds testdata/probe once, statically, and returns its bytes.
var probe = func() func(t *testing.T) []byte {
	var image []byte
	return func(t *testing.T) []byte {
		t.Helper()
		if image != nil {
			return image
		}
		path := filepath.Join(t.TempDir(), "probe")
		build := exec.Command("go", "build", "-o", path, "./testdata/probe")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building the probe: %v\n%s", err, out)
		}
		var err error
		if image, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		return image
	}
}()

// gate returns a gate whose runs live in a group of the test's own.
func gate(t *testing.T) *linux.Gate {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the gate needs root: run the tests of policy/enforce/linux as root")
	}
	g, err := linux.New(linux.Config{Parent: parent(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ids, err := g.List()
		if err != nil || len(ids) > 0 {
			t.Errorf("runs left behind: %v %v", ids, err)
		}
		os.Remove(filepath.Join(cgroups(t), parent(t)))
	})
	return g
}

func parent(t *testing.T) string { return fmt.Sprintf("keyturn-test-%d-%s", os.Getpid(), t.Name()) }

// cgroups is where cgroup v2 is mounted, found by another way than the gate's.
func cgroups(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("findmnt", "-n", "-o", "TARGET", "-t", "cgroup2").Output()
	if err != nil {
		t.Fatal("findmnt: ", err)
	}
	return strings.TrimSpace(strings.SplitN(string(out), "\n", 2)[0])
}

// members lists the processes of a run by their numbers on the host.
func members(t *testing.T, id string) []int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(cgroups(t), parent(t), id, "cgroup.procs"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range strings.Fields(string(text)) {
		pid, _ := strconv.Atoi(f)
		pids = append(pids, pid)
	}
	return pids
}

func spec(t *testing.T, act ...string) enforce.Spec {
	image := probe(t)
	return enforce.Spec{
		ID:         "run-1",
		Executable: enforce.Executable{Digest: sha256.Sum256(image), Source: bytes.NewReader(image)},
		Argv:       append([]string{"probe"}, act...),
		TimeLimit:  time.Minute,
	}
}

// started runs s with its output on a pipe.
func started(t *testing.T, g *linux.Gate, s enforce.Spec) (enforce.Run, *bufio.Reader) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	s.Stdout, s.Stderr = w, w
	run, err := g.Start(t.Context(), s)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run.Kill() })
	return run, bufio.NewReader(r)
}

// output runs s to its end.
func output(t *testing.T, g *linux.Gate, s enforce.Spec) (string, enforce.Exit) {
	t.Helper()
	run, out := started(t, g, s)
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	exit, err := run.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return string(text), exit
}

func ready(t *testing.T, out *bufio.Reader) {
	t.Helper()
	line, err := out.ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("the probe said %q, %v", line, err)
	}
}

func TestExactlyWhatWasApproved(t *testing.T) {
	g := gate(t)
	leak, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0) // not close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(leak)
	s := spec(t, "show", "", "two words", "\xff\xfe not UTF-8")
	s.Env = []string{"A=1", "EMPTY=", "ODD=\xff", "PATH=/nowhere"}
	text, exit := output(t, g, s)
	want := fmt.Sprintf("argv %q\nenv %q\nexe %x <nil>\ninherited: []\n", s.Argv, s.Env, s.Executable.Digest)
	if text != want {
		t.Errorf("the run saw\n%swant\n%s", text, want)
	}
	if exit.Code != 0 || exit.Signal != 0 || exit.Reason != enforce.Exited || exit.CPU <= 0 || exit.Wall <= 0 {
		t.Errorf("exit %+v", exit)
	}
}

func TestEnvironmentIsNotInherited(t *testing.T) {
	g := gate(t)
	t.Setenv("SECRET_OF_THE_AGENT", "x")
	text, _ := output(t, g, spec(t, "show"))
	if !strings.Contains(text, "env []\n") {
		t.Errorf("an empty environment arrived as\n%s", text)
	}
}

func TestExitCode(t *testing.T) {
	g := gate(t)
	if _, exit := output(t, g, spec(t, "exit", "42")); exit.Code != 42 || exit.Signal != 0 || exit.Reason != enforce.Exited {
		t.Errorf("exit %+v", exit)
	}
}

func TestUnprivileged(t *testing.T) {
	g := gate(t)
	text, _ := output(t, g, spec(t, "privileges"))
	for _, want := range []string{
		"Uid: 2000000000 2000000000 2000000000 2000000000", "Gid: 2000000000 2000000000 2000000000 2000000000", "Groups:\n",
		"CapInh: 0000000000000000", "CapPrm: 0000000000000000", "CapEff: 0000000000000000",
		"CapBnd: 0000000000000000", "CapAmb: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2", "core 1 1\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestNoNetwork(t *testing.T) {
	g := gate(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	text, _ := output(t, g, spec(t, "network", port))
	want := "interface lo false\ninterfaces: <nil>\ndial: dial tcp 127.0.0.1:" + port +
		": connect: network is unreachable\nvsock: operation not permitted\nio_uring: operation not permitted\nunix: <nil>\n"
	if text != want {
		t.Errorf("the run saw\n%swant\n%s", text, want)
	}
}

func fillWith(files map[string]string) func(context.Context, *os.Root) error {
	return func(_ context.Context, dir *os.Root) error {
		for name, text := range files {
			if err := dir.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				return err
			}
			if err := dir.WriteFile(name, []byte(text), 0o400); err != nil {
				return err
			}
		}
		return nil
	}
}

func TestInputsAreReadOnlyInside(t *testing.T) {
	g := gate(t)
	s := spec(t, "inputs", enforce.InputsPath)
	s.Inputs = enforce.Inputs{Bytes: 1 << 20, Fill: fillWith(map[string]string{"model/w": "weights"})}
	text, _ := output(t, g, s)
	want := `file /run/keyturn/inputs/model/w "weights" <nil>
open for writing: open /run/keyturn/inputs/model/w: read-only file system
create: open /run/keyturn/inputs/new: read-only file system
remount: operation not permitted
`
	if text != want {
		t.Errorf("the run saw\n%swant\n%s", text, want)
	}
}

// The host sees the inputs at no path while the run does, and no mount of them.
func TestInputsAreInvisibleOutside(t *testing.T) {
	g := gate(t)
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	s := spec(t, "sleep")
	s.Inputs = enforce.Inputs{Bytes: 1 << 20, Fill: func(ctx context.Context, dir *os.Root) error {
		if err := fillWith(map[string]string{"w": "weights"})(ctx, dir); err != nil {
			return err
		}
		if _, err := os.Stat(enforce.InputsPath); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("while written, the host sees %s: %v", enforce.InputsPath, err)
		}
		return nil
	}}
	run, out := started(t, g, s)
	ready(t, out)
	if _, err := os.Stat(enforce.InputsPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("while the run goes on, the host sees %s: %v", enforce.InputsPath, err)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the host's mounts changed: %v\n%s", err, after)
	}
	inside := fmt.Sprintf("/proc/%d/mountinfo", members(t, run.ID())[0])
	mounts, err := os.ReadFile(inside)
	if err != nil || !strings.Contains(string(mounts), " "+enforce.InputsPath+" ro,nosuid,nodev,noexec") {
		t.Errorf("inside, the inputs are not mounted read-only: %v\n%s", err, mounts)
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, enforce.InputsPath) && !strings.Contains(line, "noswap") && strings.Count(string(swaps), "\n") > 1 {
			t.Errorf("the inputs may be swapped out: %s", line)
		}
	}
	if strings.Contains(string(mounts), "shared:") || strings.Contains(string(mounts), "master:") {
		t.Errorf("a mount of the run propagates:\n%s", mounts)
	}
	if err := run.Kill(); err != nil {
		t.Fatal(err)
	}
}

func TestInputsBounded(t *testing.T) {
	g := gate(t)
	s := spec(t, "exit", "0")
	s.Inputs = enforce.Inputs{Bytes: 64 << 10, Fill: fillWith(map[string]string{"w": strings.Repeat("x", 128<<10)})}
	if _, err := g.Start(t.Context(), s); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("inputs over their bound: %v", err)
	}
}

// An input that somebody can still write to is no input.
func TestInputsOpenForWritingRefused(t *testing.T) {
	g := gate(t)
	s := spec(t, "exit", "0")
	var kept *os.File
	s.Inputs = enforce.Inputs{Bytes: 1 << 20, Fill: func(_ context.Context, dir *os.Root) (err error) {
		kept, err = dir.Create("w")
		return err
	}}
	_, err := g.Start(t.Context(), s)
	if err == nil || !strings.Contains(err.Error(), "read-only: device or resource busy") {
		t.Errorf("an input still open for writing: %v", err)
	}
	kept.Close()
}

func TestInputsLinkRefused(t *testing.T) {
	g := gate(t)
	s := spec(t, "exit", "0")
	s.Inputs = enforce.Inputs{Bytes: 1 << 20, Fill: func(_ context.Context, dir *os.Root) error {
		return dir.Symlink("/etc/passwd", "link")
	}}
	if _, err := g.Start(t.Context(), s); err == nil || !strings.Contains(err.Error(), "neither a file nor a directory") {
		t.Errorf("a symbolic link among the inputs: %v", err)
	}
}

// What a run keeps is the agent's to read, by descriptor alone, past its end.
func TestOutput(t *testing.T) {
	g := gate(t)
	s := spec(t, "keep", enforce.OutputPath)
	var dir *os.File
	s.Output = enforce.Output{Bytes: 256 << 10, Opened: func(f *os.File) { dir = f }}
	text, exit := output(t, g, s)
	if dir == nil {
		t.Fatal("no output directory came")
	}
	defer dir.Close()
	if exit.Code != 0 || !strings.Contains(text, "write: <nil> <nil> <nil>") || !strings.Contains(text, "no space left") || !strings.Contains(text, "permission denied") {
		t.Errorf("exit %+v:\n%s", exit, text)
	}
	kept, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/done/w", dir.Fd()))
	if err != nil || string(kept) != "kept" {
		t.Errorf("the output holds %q, %v", kept, err)
	}
	if _, err := os.Stat(enforce.OutputPath); !os.IsNotExist(err) {
		t.Errorf("the host sees the output: %v", err)
	}
}

func TestOutputOnlyIfAsked(t *testing.T) {
	g := gate(t)
	if text, _ := output(t, g, spec(t, "keep", enforce.OutputPath)); !strings.Contains(text, "no such file") {
		t.Errorf("without an output a run wrote one:\n%s", text)
	}
	s := spec(t, "exit", "0")
	s.Output.Bytes = 1 << 20
	if _, err := g.Start(t.Context(), s); err == nil || !strings.Contains(err.Error(), "who takes it") {
		t.Errorf("an output that nobody takes: %v", err)
	}
}

func TestHostIsReadOnly(t *testing.T) {
	g := gate(t)
	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	elsewhere, err := os.MkdirTemp("/var/lib", "keyturn-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(elsewhere)
	os.Chmod(elsewhere, 0o777)
	s := spec(t, "write", elsewhere+"/x", "/tmp/x", "/var/tmp/x", "/dev/shm/x", open+"/x", "/run/x")
	text, _ := output(t, g, s)
	for _, want := range []string{elsewhere + "/x open " + elsewhere + "/x: read-only file system", "/tmp/x open /tmp/x: read-only",
		"/dev/shm/x open /dev/shm/x: read-only", open + "/x open " + open + "/x: no such file", "/run/x open /run/x: ", "run 1 <nil>"} {
		if !strings.Contains(text, want) {
			t.Errorf("without scratch: no %q in\n%s", want, text)
		}
	}
	s = spec(t, "write", "/tmp/x", "/var/tmp/x", "/dev/shm/x")
	s.Scratch = 1 << 20
	text, _ = output(t, g, s)
	if !strings.HasPrefix(text, "/tmp/x <nil>\n/var/tmp/x <nil>\n/dev/shm/x <nil>\n") {
		t.Errorf("with scratch:\n%s", text)
	}
	if _, err := os.Stat("/dev/shm/x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("scratch reached the host: %v", err)
	}
}

func TestNoCoreDump(t *testing.T) {
	g := gate(t)
	_, exit := output(t, g, spec(t, "core"))
	if exit.Code == 0 && exit.Signal == 0 {
		t.Errorf("exit %+v", exit)
	}
}

func TestAttackWrongDigest(t *testing.T) {
	g := gate(t)
	s := spec(t, "exit", "0")
	s.Executable.Digest[0] ^= 1
	_, err := g.Start(t.Context(), s)
	if err == nil || !strings.Contains(err.Error(), "approved is sha256:"+hex.EncodeToString(s.Executable.Digest[:])) {
		t.Errorf("another executable than the approved: %v", err)
	}
}

// swapped is a source that replaces the file it was opened from as soon as it
// was read to the end, which is before anything is executed.
type swapped struct {
	*os.File
	swap func()
}

func (s *swapped) Read(p []byte) (int, error) {
	n, err := s.File.Read(p)
	if errors.Is(err, io.EOF) {
		s.swap()
	}
	return n, err
}

func TestAttackSwapAfterCheck(t *testing.T) {
	g := gate(t)
	path := filepath.Join(t.TempDir(), "approved")
	if err := os.WriteFile(path, probe(t), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	swaps := 0
	evil := func() {
		swaps++
		if _, err := f.WriteAt(bytes.Repeat([]byte{0xcc}, 1<<20), 0); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(path+".new", []byte("#!/bin/sh\nexit 99\n"), 0o755); err != nil {
			t.Error(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Error(err)
		}
	}
	s := spec(t, "exit", "7")
	s.Executable.Source = &swapped{f, evil}
	if _, exit := output(t, g, s); exit.Code != 7 || swaps == 0 {
		t.Errorf("after %d swaps the run ended with %+v", swaps, exit)
	}
}

func TestAttackUnapprovedCode(t *testing.T) {
	g := gate(t)
	dynamic, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string][]byte{
		"script": []byte("#!/bin/sh\nexit 0\n"), "dynamic executable": dynamic, "empty": {},
	} {
		s := spec(t, "exit", "0")
		s.Executable = enforce.Executable{Digest: sha256.Sum256(image), Source: bytes.NewReader(image)}
		if _, err := g.Start(t.Context(), s); err == nil {
			t.Errorf("%s: started", name)
		}
	}
}

func TestFreezeAtOnce(t *testing.T) {
	g := gate(t)
	run, out := started(t, g, spec(t, "count"))
	if _, err := out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := run.Freeze(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 10*time.Second { // a second, where the machine is not busy
		t.Errorf("freezing took %v", took)
	} else {
		t.Logf("freezing took %v", took)
	}
	lines := make(chan struct{}, 1<<16)
	go func() {
		for {
			if _, err := out.ReadString('\n'); err != nil {
				return
			}
			lines <- struct{}{}
		}
	}()
	time.Sleep(100 * time.Millisecond) // what was in the pipe
	for len(lines) > 0 {
		<-lines
	}
	time.Sleep(200 * time.Millisecond)
	if n := len(lines); n > 0 {
		t.Errorf("a frozen run wrote %d lines", n)
	}
	if err := run.Thaw(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-lines:
	case <-time.After(time.Minute):
		t.Error("a thawed run does not go on")
	}
	if err := run.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := run.Kill(); err != nil {
		t.Errorf("killing a frozen run: %v", err)
	}
	if exit, err := run.Wait(); err != nil || exit.Reason != enforce.Killed || exit.Signal != 9 {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if run.Freeze() == nil || run.Thaw() == nil {
		t.Error("a run that ended was frozen or thawed")
	}
}

func TestAttackForkBomb(t *testing.T) {
	g := gate(t)
	run, out := started(t, g, spec(t, "bomb"))
	ready(t, out)
	var pids []int
	for deadline := time.Now().Add(20 * time.Second); len(pids) < 100 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		pids = members(t, run.ID())
	}
	if len(pids) < 100 {
		t.Fatalf("only %d processes", len(pids))
	}
	if err := run.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.Contains(exe, "memfd:executable") {
			t.Errorf("process %d lives", pid)
		}
	}
	if left := members(t, run.ID()); len(left) > 0 {
		t.Errorf("left in the group: %v", left)
	}
	if exit, err := run.Wait(); err != nil || exit.Reason != enforce.Killed || exit.CPU <= 0 {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if err := errors.Join(run.Kill(), run.Drain(time.Second)); err != nil {
		t.Errorf("ending it again: %v", err)
	}
}

func TestDrain(t *testing.T) {
	g := gate(t)
	run, out := started(t, g, spec(t, "tidy"))
	ready(t, out)
	if err := run.Drain(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(out); string(text) != "snapshot written\n" {
		t.Errorf("asked to end, it said %q", text)
	}
	if exit, err := run.Wait(); err != nil || exit.Code != 3 || exit.Reason != enforce.Drained {
		t.Errorf("exit %+v, %v", exit, err)
	}
}

func TestDrainKillsTheDeaf(t *testing.T) {
	g := gate(t)
	run, out := started(t, g, spec(t, "deaf"))
	ready(t, out)
	begin := time.Now()
	if err := run.Drain(200 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 200*time.Millisecond || took > 30*time.Second {
		t.Errorf("draining took %v", took)
	}
	if exit, err := run.Wait(); err != nil || exit.Signal != 9 || exit.Reason != enforce.Drained {
		t.Errorf("exit %+v, %v", exit, err)
	}
}

func TestTimeLimit(t *testing.T) {
	g := gate(t)
	s := spec(t, "deaf")
	s.TimeLimit = 500 * time.Millisecond
	run, out := started(t, g, s)
	ready(t, out)
	if err := run.Freeze(); err != nil { // time goes on for a frozen run
		t.Fatal(err)
	}
	exit, err := run.Wait()
	if err != nil || exit.Reason != enforce.TimedOut || exit.Signal != 9 || exit.Wall < s.TimeLimit || exit.Wall > 5*time.Second {
		t.Errorf("exit %+v, %v", exit, err)
	}
}

func TestTimeLimitWarns(t *testing.T) {
	g := gate(t)
	s := spec(t, "tidy")
	s.TimeLimit, s.Grace = 20*time.Second, 20*time.Second-300*time.Millisecond
	if text, exit := output(t, g, s); !strings.HasSuffix(text, "snapshot written\n") || exit.Reason != enforce.TimedOut || exit.Code != 3 {
		t.Errorf("%q, exit %+v", text, exit)
	}
}

func TestCancelWhileFilling(t *testing.T) {
	g := gate(t)
	ctx, cancel := context.WithCancel(t.Context())
	s := spec(t, "exit", "0")
	s.Inputs = enforce.Inputs{Bytes: 1, Fill: func(ctx context.Context, _ *os.Root) error {
		cancel()
		<-ctx.Done()
		return nil
	}}
	if _, err := g.Start(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while its inputs were written: %v", err)
	}
}

func TestFillFails(t *testing.T) {
	g := gate(t)
	s := spec(t, "exit", "0")
	broken := errors.New("share is missing")
	s.Inputs = enforce.Inputs{Bytes: 1, Fill: func(context.Context, *os.Root) error { return broken }}
	begin := time.Now()
	if _, err := g.Start(t.Context(), s); !errors.Is(err, broken) {
		t.Errorf("inputs that could not be written: %v", err)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("giving up took %v", took)
	}
}

func TestSameIDRefused(t *testing.T) {
	g := gate(t)
	run, _ := started(t, g, spec(t, "sleep"))
	if _, err := g.Start(t.Context(), spec(t, "sleep")); err == nil || !strings.Contains(err.Error(), "adopt") {
		t.Errorf("a second run with the id of a live one: %v", err)
	}
	if ids, err := g.List(); err != nil || !slices.Equal(ids, []string{"run-1"}) {
		t.Errorf("list: %v, %v", ids, err)
	}
	if err := run.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, exit := output(t, g, spec(t, "exit", "0")); exit.Code != 0 {
		t.Errorf("the id is not free again: %+v", exit)
	}
}

// agent is what this test binary does as an agent to be killed: it starts one
// run, freezes it if told so, says ready and waits.
func agent() {
	image, err := io.ReadAll(os.Stdin)
	fail(err)
	g, err := linux.New(linux.Config{Parent: os.Getenv("KEYTURN_TEST_AGENT")})
	fail(err)
	run, err := g.Start(context.Background(), enforce.Spec{
		ID: "run-1", Argv: []string{"probe", "deaf"}, TimeLimit: time.Minute,
		Executable: enforce.Executable{Digest: sha256.Sum256(image), Source: bytes.NewReader(image)},
	})
	fail(err)
	if os.Getenv("KEYTURN_TEST_FREEZE") != "" {
		fail(run.Freeze())
	}
	fmt.Println("ready")
	select {}
}

func fail(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// killedAgent starts a run in another process and kills that process.
func killedAgent(t *testing.T, env ...string) {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(append(os.Environ(), "KEYTURN_TEST_AGENT="+parent(t)), env...)
	c.Stdin = bytes.NewReader(probe(t))
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ready(t, bufio.NewReader(out))
	if len(members(t, "run-1")) < 2 {
		t.Fatal("the other agent runs nothing")
	}
	c.Process.Kill()
	c.Wait()
}

func TestAgentKilledEndsRun(t *testing.T) {
	g := gate(t)
	killedAgent(t)
	for deadline := time.Now().Add(time.Minute); len(members(t, "run-1")) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a run outlives its agent")
		}
	}
	if exit, err := g.Adopt("run-1"); err != nil || exit.Reason != enforce.Abandoned || exit.CPU <= 0 {
		t.Errorf("adopted %+v, %v", exit, err)
	}
}

func TestAdoptKillsFrozen(t *testing.T) {
	g := gate(t)
	killedAgent(t, "KEYTURN_TEST_FREEZE=1")
	pids := members(t, "run-1")
	if len(pids) < 2 {
		t.Fatal("a frozen run did not stay when its agent was killed")
	}
	if ids, err := g.List(); err != nil || !slices.Equal(ids, []string{"run-1"}) {
		t.Fatalf("list: %v, %v", ids, err)
	}
	if _, err := g.Adopt("run-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Adopt("run-1"); err == nil {
		t.Error("adopted what was gone")
	}
	for _, id := range []string{"", "..", "../x", "a/b", "-a", "A"} {
		if _, err := g.Adopt(id); err == nil {
			t.Errorf("adopted %q", id)
		}
	}
}
