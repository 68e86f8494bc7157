package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// The control protocol is one JSON line with a Command, answered by JSON lines
// with Events, of which the last is EventDone or EventRefused. Who may open the
// socket may ask; what happens is up to the log.

// A Command asks the agent for something.
type Command struct {
	Op         string `json:"op"`                   // one of the Op constants
	Warrant    Digest `json:"warrant,omitzero"`     // of run
	Executable string `json:"executable,omitempty"` // of run: an absolute path on the node
	Resume     Digest `json:"resume,omitzero"`      // of run: a snapshot to open as well
	Line       string `json:"line,omitempty"`       // of halt: its bundle line
}

// The commands.
const (
	OpRun    = "run"
	OpHalt   = "halt"
	OpStatus = "status"
)

// An Event is one line of an answer.
type Event struct {
	Event  string  `json:"event"` // one of the Event constants
	Text   string  `json:"text,omitempty"`
	Claim  Digest  `json:"claim,omitzero"`
	Use    int     `json:"use,omitzero"`
	Code   int     `json:"code,omitzero"`    // of ended: the exit status, -1 for a signal or no start
	Output []byte  `json:"output,omitempty"` // of the run, both streams
	Object Digest  `json:"object,omitzero"`  // of kept: the snapshot
	Status *Status `json:"status,omitempty"`
}

// The events. A run tells waiting (perhaps), claimed, opened, started, output
// (perhaps), and ended; in between it may be frozen, thawed and draining, and
// snapshots kept or lost.
const (
	EventWaiting  = "waiting"
	EventClaimed  = "claimed"
	EventOpened   = "opened"
	EventStarted  = "started"
	EventOutput   = "output"
	EventKept     = "kept" // a snapshot is sealed and in the log; Text names it
	EventLost     = "lost" // a snapshot is not; Text says why
	EventFrozen   = "frozen"
	EventThawed   = "thawed"
	EventDraining = "draining"
	EventEnded    = "ended"
	EventStatus   = "status"
	EventDone     = "done"    // it was done
	EventRefused  = "refused" // it was not, or not to its end; Text says why
)

// A Status is what an agent says of itself.
type Status struct {
	Node     Digest       `json:"node"`
	Name     string       `json:"name"` // in the log, empty before it is enrolled
	Enrolled bool         `json:"enrolled"`
	Emulated bool         `json:"emulated"` // the TPM is a program
	Size     uint64       `json:"size"`     // of the final log seen; 0 for none since the start
	Time     int64        `json:"time"`     // of the log
	Epoch    uint64       `json:"epoch"`    // in force
	Lease    int64        `json:"lease"`    // seconds left, 0 for none
	NoLease  string       `json:"noLease"`  // why there is none
	Live     []Digest     `json:"live"`     // warrants that the lease lists
	Halts    []HaltStatus `json:"halts"`
	Runs     []RunStatus  `json:"runs"`
}

// A HaltStatus is a standing halt.
type HaltStatus struct {
	Halt   Digest `json:"halt"`
	Logged bool   `json:"logged"` // in the final log; otherwise told to this agent only
}

// A RunStatus is a use being taken.
type RunStatus struct {
	Claim   Digest `json:"claim"`
	Warrant Digest `json:"warrant"`
	Use     int    `json:"use"`
	State   string `json:"state"` // starting, running, frozen or ending
}

// maxCommand bounds one command's line.
const maxCommand = 2 * dsse.MaxLine

// listen makes the control socket, for its owner alone. It is made in a
// directory that nobody else can enter and moved once its mode is set.
func (a *Agent) listen() (net.Listener, error) {
	path := a.cfg.Socket
	if path == "" {
		return nil, errors.New("agent: configuration names no control socket")
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("agent: %s is in the way of the control socket", path)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("agent: another agent answers on %s", path)
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".agent")
	if err != nil {
		return nil, fmt.Errorf("agent: control socket: %w", err)
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("agent: control socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // it would look for the name it was made under
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("agent: control socket: %w", err), l.Close())
	}
	return l, nil
}

// serve answers until ctx ends and all answers are given.
func (a *Agent) serve(ctx context.Context, l net.Listener) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer os.Remove(a.cfg.Socket)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			a.cfg.Log.Warn("control socket", "err", err)
			pause(ctx, 100*time.Millisecond)
			continue
		}
		wg.Go(func() {
			defer conn.Close()
			a.answer(ctx, conn)
		})
	}
}

// answer reads one command and answers it.
func (a *Agent) answer(ctx context.Context, conn net.Conn) {
	asked, gone := context.WithCancel(ctx)
	defer gone()
	w := &teller{conn: conn}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxCommand)
	if !lines.Scan() {
		return
	}
	var c Command
	if err := dsse.Decode(lines.Bytes(), &c); err != nil {
		w.tell(Event{Event: EventRefused, Text: fmt.Sprintf("agent: read command: %v", err)})
		return
	}
	conn.SetReadDeadline(time.Time{})
	go func() { // the other side says no more; what comes is its end
		lines.Scan()
		gone()
	}()
	if err := a.perform(ctx, asked, c, w.tell); err != nil {
		a.cfg.Log.Warn("refused", "op", c.Op, "err", err)
		w.tell(Event{Event: EventRefused, Text: err.Error()})
		return
	}
	w.tell(Event{Event: EventDone})
}

func (a *Agent) perform(ctx, asked context.Context, c Command, tell func(Event)) error {
	switch c.Op {
	case OpRun:
		return a.launch(ctx, asked, c, tell)
	case OpHalt:
		_, err := a.Halt([]byte(c.Line))
		return err
	case OpStatus:
		tell(Event{Event: EventStatus, Status: a.Status()})
		return nil
	}
	return fmt.Errorf("agent: command %.40q; there are run, halt and status", c.Op)
}

// A teller writes events. Once that fails, or the other side reads too slowly,
// nobody listens any more.
type teller struct {
	mu   sync.Mutex
	conn net.Conn
	gone bool
}

func (w *teller) tell(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone {
		return
	}
	b, err := dsse.Encode(e)
	if err == nil {
		w.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, err = w.conn.Write(append(b, '\n'))
	}
	w.gone = err != nil
}

// Status says how the agent stands.
func (a *Agent) Status() *Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := &Status{Node: a.id, Enrolled: a.enrolled, Emulated: a.cfg.TPM.Emulated(), Size: a.ledger.seen.Size}
	if s, err := a.ledger.state(); err == nil {
		a.describe(out, s)
	} else {
		out.NoLease = err.Error()
	}
	for id := range a.halts {
		out.Halts = append(out.Halts, HaltStatus{Halt: id})
	}
	for u := range a.runs {
		out.Runs = append(out.Runs, RunStatus{Claim: u.claim, Warrant: u.warrant, Use: u.number, State: u.state()})
	}
	slices.SortFunc(out.Halts, func(x, y HaltStatus) int { return slices.Compare(x.Halt[:], y.Halt[:]) })
	slices.SortFunc(out.Runs, func(x, y RunStatus) int { return slices.Compare(x.Claim[:], y.Claim[:]) })
	return out
}

// describe fills in what the log says. The caller holds mu.
func (a *Agent) describe(out *Status, s *authority.State) {
	out.Time = s.Time
	if n, ok := s.Nodes[a.id]; ok {
		out.Name = n.Name
	}
	if s.Epoch != nil {
		out.Epoch = s.Epoch.Number
	}
	if err := a.proving.current(); err != nil {
		out.NoLease = err.Error()
	} else if now, err := boottime(); err == nil {
		out.Lease = int64((a.proving.until - now) / time.Second)
		for _, l := range a.proving.lease.Warrants {
			out.Live = append(out.Live, l.Warrant)
		}
	}
	for id, h := range s.Halts {
		if h.Lifted.IsZero() {
			out.Halts = append(out.Halts, HaltStatus{Halt: id, Logged: true})
		}
	}
}

// state is a word for what a use is at. The caller holds Agent.mu.
func (u *use) state() string {
	switch {
	case u.run == nil:
		return "starting"
	case u.stop != nil:
		return "ending"
	case u.still != nil:
		return "frozen"
	}
	return "running"
}
