package linux

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/policy/enforce"
)

// initName is the argv[0] that turns this program into a run's init.
const initName = "keyturn-run-init"

// The descriptors init is born with.
const (
	ctlFD   = 3
	orderFD = 4
	imageFD = 5
)

// What agent and init say to each other, one packet each. After msgStarted
// init still takes msgTerm.
const (
	msgReady   = "ready"      // init: the mounts stand; with the inputs directory and, if asked for, the output's
	msgGo      = "go"         // agent: the inputs are written
	msgStarted = "started"    // init: the executable runs
	msgFailed  = "failed: "   // init: and the reason
	msgTerm    = "term"       // agent: send SIGTERM to all
	msgExit    = "exit %d %d" // init: exit code and signal of the executable

	maxMessage = 4096
)

// covered are the directories that init hides behind empty ones: those where
// the host's programs leave sockets and temporary files. The value says
// whether the run may write there.
var covered = []struct {
	path    string
	scratch bool
}{{"/run", false}, {"/tmp", true}, {"/var/tmp", true}, {"/dev/shm", true}}

// Init must be called first in main of a program that uses the gate. It
// returns at once, save in the copy of the program that the gate starts as a
// run's first process: there it does that process's work and never returns.
func Init() {
	if len(os.Args) != 1 || os.Args[0] != initName {
		return
	}
	// No-new-privileges and seccomp hold for this thread and what it forks.
	runtime.LockOSThread()
	pid, err := prepare()
	if err != nil {
		say(msgFailed + err.Error())
		os.Exit(1)
	}
	say(msgStarted)
	go listen()
	code, signal := reap(pid)
	say(fmt.Sprintf(msgExit, code, signal))
	os.Exit(0)
}

// say tells the agent. If it is gone there is nobody to tell and nothing to
// stay for.
func say(text string) {
	if err := unix.Sendto(ctlFD, []byte(text[:min(len(text), maxMessage)]), unix.MSG_NOSIGNAL, nil); err != nil {
		os.Exit(1)
	}
}

func hear() string {
	buf := make([]byte, maxMessage)
	for {
		n, err := unix.Read(ctlFD, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			os.Exit(1) // the agent is gone; the kernel ends this pid namespace with its init
		}
		return string(buf[:n])
	}
}

// listen passes on what the agent asks for, and ends everything when it goes.
func listen() {
	for {
		if hear() == msgTerm {
			unix.Kill(-1, unix.SIGTERM) // all but init itself; fails only if there is nobody
		}
	}
}

// prepare does everything up to the execution and returns its process.
func prepare() (int, error) {
	// Whoever started the agent may have left it descriptors too: none of any
	// origin but the standard three reaches the executable.
	if err := unix.CloseRange(ctlFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return 0, fmt.Errorf("closing descriptors (Linux 5.11 or later is needed): %w", err)
	}
	var o order
	if err := gob.NewDecoder(os.NewFile(orderFD, "order")).Decode(&o); err != nil {
		return 0, fmt.Errorf("reading the order: %w", err)
	}
	if os.Getpid() != 1 || o.UID == 0 || o.GID == 0 {
		return 0, errors.New("init is only ever started by the gate")
	}
	if err := furnish(o); err != nil {
		return 0, err
	}
	if err := sendDirectories(o); err != nil {
		return 0, err
	}
	if word := hear(); word != msgGo {
		return 0, fmt.Errorf("the agent said %.20q, not %q", word, msgGo)
	}
	if err := closeInputs(o); err != nil {
		return 0, err
	}
	return execute(o)
}

// furnish arranges what the run will see of the file system.
func furnish(o order) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	readOnly := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(-1, "/", unix.AT_RECURSIVE, &readOnly); err != nil {
		return fmt.Errorf("making mounts read-only (Linux 5.12 or later is needed): %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	for _, c := range covered {
		if err := cover(c.path, c.scratch, o); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(enforce.InputsPath, 0o755); err != nil {
		return err
	}
	private := fmt.Sprintf("mode=0700,uid=%d,gid=%d", o.UID, o.GID)
	if err := mountMemory(enforce.InputsPath, o.Inputs, private); err != nil {
		return err
	}
	if o.Output > 0 {
		if err := errors.Join(os.MkdirAll(enforce.OutputPath, 0o755), mountMemory(enforce.OutputPath, o.Output, private)); err != nil {
			return err
		}
	}
	return unix.Sethostname([]byte("keyturn-run"))
}

func cover(path string, scratch bool, o order) error {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("covering %s: %w", path, err)
	}
	if !scratch {
		return mountMemory(real, 1<<20, "mode=0755")
	}
	if err := mountMemory(real, o.Scratch, fmt.Sprintf("mode=0700,uid=%d,gid=%d", o.UID, o.GID)); err != nil {
		return err
	}
	if o.Scratch == 0 {
		return freezeMount(real)
	}
	return nil
}

// mountMemory mounts a tmpfs that never reaches a disk. Where the kernel
// cannot keep it from swap (noswap came with Linux 6.4), there must be no swap.
func mountMemory(path string, bytes uint64, options string) error {
	// A size of 0 would be no limit at all; one page is the least there is.
	options += fmt.Sprintf(",size=%d", max(bytes, 4096))
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err := unix.Mount("tmpfs", path, "tmpfs", flags, options+",noswap")
	if errors.Is(err, unix.EINVAL) {
		swaps, readErr := os.ReadFile("/proc/swaps")
		if readErr != nil || strings.Count(string(swaps), "\n") != 1 {
			return errors.New("this kernel cannot keep a tmpfs out of swap (6.4 or later can) and swap is on: turn swap off")
		}
		err = unix.Mount("tmpfs", path, "tmpfs", flags, options)
	}
	if err != nil {
		return fmt.Errorf("mounting a tmpfs on %s: %w", path, err)
	}
	return nil
}

// freezeMount makes the file system at path read-only for every holder of a
// descriptor, not only for this mount of it.
func freezeMount(path string) error {
	const flags = unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("", path, "", flags, ""); err != nil {
		return fmt.Errorf("making %s read-only: %w", path, err)
	}
	return nil
}

// sendDirectories gives the agent the inputs directory, and the output's if
// there is one. Neither has a path that the agent could reach.
func sendDirectories(o order) error {
	paths := []string{enforce.InputsPath}
	if o.Output > 0 {
		paths = append(paths, enforce.OutputPath)
	}
	var fds []int
	for _, p := range paths {
		fd, err := unix.Open(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		fds = append(fds, fd)
	}
	if err := unix.Sendmsg(ctlFD, []byte(msgReady), unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("sending the directories of the run: %w", err)
	}
	return nil
}

// closeInputs gives the inputs to the run's user and ends all writing to them.
// The kernel refuses while a file there is still open for writing.
func closeInputs(o order) error {
	err := filepath.WalkDir(enforce.InputsPath, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() && !d.Type().IsRegular() {
			return fmt.Errorf("%q is neither a file nor a directory", path)
		}
		return os.Lchown(path, int(o.UID), int(o.GID))
	})
	if err != nil {
		return fmt.Errorf("inputs: %w", err)
	}
	if err := freezeMount(enforce.InputsPath); err != nil {
		return err
	}
	return freezeMount("/run")
}

// execute starts the sealed image with exactly the order's argv and
// environment.
func execute(o order) (int, error) {
	// One byte and not none: a core that is piped to a program ignores 0.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}); err != nil {
		return 0, fmt.Errorf("limiting core dumps: %w", err)
	}
	if err := confine(); err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", imageFD), o.Argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   o.Env,
		Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Credential: &syscall.Credential{Uid: o.UID, Gid: o.GID},
		},
	})
	if err != nil {
		return 0, fmt.Errorf("executing: %w", err)
	}
	return pid, nil
}

// reap waits for every orphan, as init must, until the executable itself ends.
func reap(pid int) (code, signal int) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, int(unix.SIGKILL)
		}
		switch {
		case got != pid:
		case status.Signaled():
			return -1, int(status.Signal())
		default:
			return status.ExitStatus(), 0
		}
	}
}
