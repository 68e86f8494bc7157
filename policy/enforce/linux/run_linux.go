package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/policy/enforce"
)

// namespaces are those a run gets of its own.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// run implements enforce.Run.
type run struct {
	id    string
	group cgroup
	init  *exec.Cmd
	ctl   *net.UnixConn
	since time.Time

	// steering holds freezing and killing apart from the group's removal.
	steering sync.Mutex
	reason   enforce.Reason // under steering; why the run is being ended

	done chan struct{} // closed after exit and err are set
	exit enforce.Exit
	err  error
}

// launch starts init in group and leads it through its steps. On error the
// caller kills the group.
func (g *Gate) launch(ctx context.Context, spec enforce.Spec, group cgroup, image *os.File) (*run, error) {
	o := order{Argv: spec.Argv, Env: spec.Env, UID: g.uid, GID: g.gid, Inputs: spec.Inputs.Bytes, Scratch: spec.Scratch, Output: spec.Output.Bytes}
	r := &run{id: spec.ID, group: group, reason: enforce.Exited, done: make(chan struct{})}
	if err := r.spawn(o, image, spec.Stdout, spec.Stderr); err != nil {
		return nil, err
	}
	if err := r.lead(ctx, spec); err != nil {
		err = errors.Join(err, group.kill())
		r.ctl.Close()
		r.init.Wait() // its error says only that it was killed
		return nil, err
	}
	r.since = time.Now()
	go r.supervise(spec.TimeLimit, spec.Grace)
	return r, nil
}

// spawn starts this program again as init, born in its cgroup and namespaces.
func (r *run) spawn(o order, image, stdout, stderr *os.File) error {
	orders, err := o.write()
	if err != nil {
		return err
	}
	defer orders.Close()
	ours, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	group, err := os.Open(string(r.group))
	if err != nil {
		return errors.Join(err, ours.Close())
	}
	defer group.Close()
	r.init = &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{initName},
		Env:        []string{},
		Dir:        "/",
		ExtraFiles: []*os.File{theirs, orders, image},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:  namespaces,
			UseCgroupFD: true,
			CgroupFD:    int(group.Fd()),
			Setsid:      true,
		},
	}
	// Assigned only when set: a nil *os.File in an io.Writer is not nil.
	if stdout != nil {
		r.init.Stdout = stdout
	}
	if stderr != nil {
		r.init.Stderr = stderr
	}
	if err := r.init.Start(); err != nil {
		return errors.Join(fmt.Errorf("starting init in namespaces of its own: %w", err), ours.Close())
	}
	r.ctl = ours
	return nil
}

func socketpair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "agent"), os.NewFile(uintptr(fds[1]), "init")
	defer ours.Close() // FileConn takes a copy
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return conn.(*net.UnixConn), theirs, nil
}

// lead waits until the mounts stand, has the inputs written, and lets init
// execute. It ends early when ctx does.
func (r *run) lead(ctx context.Context, spec enforce.Spec) error {
	stop := context.AfterFunc(ctx, func() { r.ctl.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := r.steps(ctx, spec)
	if cause := context.Cause(ctx); cause != nil {
		return errors.Join(cause, err)
	}
	return err
}

func (r *run) steps(ctx context.Context, spec enforce.Spec) error {
	dirs, err := r.receive(msgReady)
	if err != nil {
		return err
	}
	want := 1
	if spec.Output.Bytes > 0 {
		want = 2
	}
	if len(dirs) != want {
		closeAll(dirs)
		return fmt.Errorf("%d directories from init, want %d", len(dirs), want)
	}
	if want == 2 {
		spec.Output.Opened(os.NewFile(uintptr(dirs[1]), enforce.OutputPath))
	}
	if err := fillInputs(ctx, spec.Inputs, dirs[0]); err != nil {
		return fmt.Errorf("writing the inputs: %w", err)
	}
	if _, err := r.ctl.Write([]byte(msgGo)); err != nil {
		return fmt.Errorf("telling init to go on: %w", err)
	}
	dirs, err = r.receive(msgStarted)
	closeAll(dirs)
	return err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// fillInputs has the inputs written below dir, and closes it.
func fillInputs(ctx context.Context, in enforce.Inputs, dir int) error {
	defer unix.Close(dir)
	if in.Fill == nil {
		return nil
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir))
	if err != nil {
		return err
	}
	return errors.Join(in.Fill(ctx, root), root.Close())
}

// receive reads init's next message, which must be want, and the descriptors
// that came with it.
func (r *run) receive(want string) ([]int, error) {
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*2))
	n, m, _, _, err := r.ctl.ReadMsgUnix(buf, oob)
	if err != nil || n == 0 {
		return nil, errors.Join(errors.New("init went away without a word"), err)
	}
	var fds []int
	if m > 0 {
		if fds, err = descriptors(oob[:m]); err != nil {
			return nil, err
		}
	}
	if text := string(buf[:n]); text != want {
		closeAll(fds)
		return nil, errors.New(strings.TrimPrefix(text, msgFailed))
	}
	return fds, nil
}

// descriptors takes those of the one control message.
func descriptors(oob []byte) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	if len(msgs) != 1 {
		return nil, fmt.Errorf("%d control messages from init, want 1", len(msgs))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds, err
}

// supervise warns and kills on time, and settles the account at the end.
func (r *run) supervise(limit, grace time.Duration) {
	warning := time.AfterFunc(limit-grace, func() {
		if grace > 0 {
			r.terminate(enforce.TimedOut)
		}
	})
	defer warning.Stop()
	deadline := time.AfterFunc(limit, func() { r.destroy(enforce.TimedOut) })
	defer deadline.Stop()

	code, signal := r.report()
	r.init.Wait() // the report says how the run ended; this only reaps init
	wall := time.Since(r.since)

	r.steering.Lock()
	defer r.steering.Unlock()
	cpu, err := end(r.group)
	r.exit = enforce.Exit{Code: code, Signal: signal, Reason: r.reason, CPU: cpu, Wall: wall}
	if err != nil {
		r.err = fmt.Errorf("enforce/linux: run %s: %w", r.id, err)
	}
	r.ctl.Close()
	close(r.done)
}

// report reads how the executable ended. Where init was killed with it there
// is no report, and the signal was SIGKILL.
func (r *run) report() (code, signal int) {
	buf := make([]byte, maxMessage)
	n, err := r.ctl.Read(buf)
	if err != nil || n == 0 {
		return -1, int(unix.SIGKILL)
	}
	if _, err := fmt.Sscanf(string(buf[:n]), msgExit, &code, &signal); err != nil {
		return -1, int(unix.SIGKILL)
	}
	return code, signal
}

// steer does something to the group while it is sure to be the run's own: once
// the run has ended, its group is gone and the name may be another's.
func (r *run) steer(what string, act func() error) error {
	r.steering.Lock()
	defer r.steering.Unlock()
	select {
	case <-r.done:
		return fmt.Errorf("enforce/linux: %s run %s: it has ended", what, r.id)
	default:
	}
	if err := act(); err != nil {
		return fmt.Errorf("enforce/linux: %s run %s: %w", what, r.id, err)
	}
	return nil
}

func (r *run) ID() string { return r.id }

func (r *run) Done() <-chan struct{} { return r.done }

func (r *run) Freeze() error {
	return r.steer("freeze", func() error { return r.group.freeze(true) })
}

func (r *run) Thaw() error {
	return r.steer("thaw", func() error { return r.group.freeze(false) })
}

func (r *run) Kill() error {
	if r.ended() {
		return nil
	}
	if err := r.destroy(enforce.Killed); err != nil {
		return err
	}
	<-r.done
	return r.err
}

func (r *run) Drain(grace time.Duration) error {
	if r.ended() {
		return nil
	}
	r.terminate(enforce.Drained) // if init no longer hears, the kill below does it
	select {
	case <-r.done:
		return r.err
	case <-time.After(grace):
	}
	if err := r.destroy(enforce.Drained); err != nil {
		return err
	}
	<-r.done
	return r.err
}

func (r *run) Wait() (enforce.Exit, error) {
	<-r.done
	return r.exit, r.err
}

func (r *run) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// terminate has init send SIGTERM to every other process: from within the pid
// namespace no signal can hit a stranger that got a recycled number.
func (r *run) terminate(why enforce.Reason) error {
	return r.steer("drain", func() error {
		r.because(why)
		_, err := r.ctl.Write([]byte(msgTerm))
		return err
	})
}

// destroy kills every process; the supervisor then settles the account. It is
// no error if the run had ended.
func (r *run) destroy(why enforce.Reason) error {
	err := r.steer("kill", func() error {
		r.because(why)
		return r.group.kill()
	})
	if r.ended() {
		return nil
	}
	return err
}

// because keeps the first reason: what comes later only finishes it.
func (r *run) because(why enforce.Reason) {
	if r.reason == enforce.Exited {
		r.reason = why
	}
}
