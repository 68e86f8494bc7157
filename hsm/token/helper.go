package token

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token/internal/wire"
)

// helper is one running keyturn-token. It is started, serves calls of any
// number of goroutines, dies once, and is never revived: a new one takes over.
type helper struct {
	timeout time.Duration
	process *exec.Cmd
	conn    net.Conn
	out     chan wire.Memory // frames; the writer wipes them

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan wire.Frame // nil once the helper is dead

	dead chan struct{} // closed when no answer can come any more
	why  error         // set before dead is closed
	gone chan struct{} // closed when the process was reaped
}

// spawn starts the helper at the end of a socketpair. Nothing secret is in its
// arguments or its environment.
func spawn(c Config) (*helper, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("token: make socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "token"), os.NewFile(uintptr(pair[1]), "helper")
	defer theirs.Close()
	conn, err := net.FileConn(ours) // a copy, with which a blocked write can be ended
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("token: make socketpair: %w", err)
	}
	process := &exec.Cmd{
		Path:       c.Helper,
		Args:       []string{c.Helper},
		Env:        c.environ(),
		ExtraFiles: []*os.File{theirs},
		// An interrupt at the terminal is the client's to handle.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if err := process.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("token: start helper: %w: %w", hsm.ErrGone, err)
	}
	h := &helper{
		timeout: c.Timeout,
		process: process,
		conn:    conn,
		out:     make(chan wire.Memory),
		waiting: make(map[uint64]chan wire.Frame),
		dead:    make(chan struct{}),
		gone:    make(chan struct{}),
	}
	go h.write()
	go h.read()
	go func() {
		defer close(h.gone)
		process.Wait() // says nothing that the state does not
		h.die(fmt.Errorf("helper ended: %s", process.ProcessState))
	}()
	return h, nil
}

// call sends one request and waits for its answer, which the caller wipes. The
// helper is killed when the deadline passes: a C call cannot be cancelled, and
// what hangs once would hang again.
func (h *helper) call(ctx context.Context, op wire.Op, fields ...[]byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	if err := hsm.ContextError(ctx); err != nil {
		return nil, err
	}
	id, answer, err := h.register()
	if err != nil {
		return nil, err
	}
	defer h.unregister(id, answer)
	frame, err := wire.Frame{ID: id, Code: byte(op), Fields: fields}.Marshal()
	if err != nil {
		return nil, err
	}
	select {
	case h.out <- frame:
	case <-h.dead:
		frame.Wipe()
		return nil, h.lost()
	case <-ctx.Done():
		frame.Wipe()
		return nil, h.overdue(ctx)
	}
	select {
	case f := <-answer:
		return unpack(f)
	case <-h.dead:
		return nil, h.lost()
	case <-ctx.Done():
		return nil, h.overdue(ctx)
	}
}

// unpack copies the result out of an answer and wipes the answer.
func unpack(f wire.Frame) ([]byte, error) {
	defer f.Wipe()
	if len(f.Fields) != 1 {
		return nil, fmt.Errorf("helper answered with %d fields, not one", len(f.Fields))
	}
	if code := wire.Code(f.Code); code != wire.CodeOK {
		return nil, code.Err(clean(string(f.Fields[0])))
	}
	// Not append: it may work on the stack first and leave a copy there.
	result := make([]byte, len(f.Fields[0]))
	copy(result, f.Fields[0])
	secret.Scrub()
	return result, nil
}

// overdue answers a call whose context is over, and kills the helper if it was
// the deadline that passed. A call that was only cancelled leaves it running.
func (h *helper) overdue(ctx context.Context) error {
	if ctx.Err() == context.DeadlineExceeded {
		h.die(fmt.Errorf("helper killed: a call passed its deadline"))
	}
	return hsm.ContextError(ctx)
}

func (h *helper) lost() error { return fmt.Errorf("%w: %w", wire.ErrLost, h.why) }

func (h *helper) register() (uint64, chan wire.Frame, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting == nil {
		return 0, nil, h.lost()
	}
	h.last++
	answer := make(chan wire.Frame, 1)
	h.waiting[h.last] = answer
	return h.last, answer, nil
}

// unregister wipes an answer that came too late to be wanted.
func (h *helper) unregister(id uint64, answer chan wire.Frame) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.waiting, id)
	select {
	case f := <-answer:
		f.Wipe()
	default:
	}
}

func (h *helper) write() {
	for {
		select {
		case frame := <-h.out:
			_, err := h.conn.Write(frame.Bytes)
			frame.Wipe()
			if err != nil {
				h.process.Process.Kill() // and its end is reported
				return
			}
		case <-h.dead:
			return
		}
	}
}

func (h *helper) read() {
	for {
		f, err := wire.Read(h.conn)
		if err != nil {
			h.process.Process.Kill() // and its end is reported
			return
		}
		h.deliver(f)
	}
}

// deliver hands an answer to its question, of which each has one.
func (h *helper) deliver(f wire.Frame) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if answer, asked := h.waiting[f.ID]; asked {
		delete(h.waiting, f.ID)
		answer <- f
	} else {
		f.Wipe()
	}
}

// die ends the helper for all who wait for it. The first reason stays.
func (h *helper) die(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting == nil {
		return
	}
	h.waiting, h.why = nil, why
	close(h.dead)
	h.conn.Close()
	h.process.Process.Kill() // fails only if it already ended
}

// alive reports whether the helper can still answer.
func (h *helper) alive() bool {
	select {
	case <-h.dead:
		return false
	default:
		return true
	}
}

// close lets the helper log out and end, and kills it if that takes long.
func (h *helper) close() {
	if conn, ok := h.conn.(*net.UnixConn); ok && h.alive() {
		conn.CloseWrite()
		h.reaped(2 * time.Second)
	}
	h.die(fmt.Errorf("helper closed"))
	h.reaped(time.Second)
}

// reaped waits for the end of the process, which a dying disk or card reader
// can hold up for good.
func (h *helper) reaped(patience time.Duration) {
	select {
	case <-h.gone:
	case <-time.After(patience):
	}
}
