// Package enforce is the gate between a granted run and the machine.
//
// A Gate starts exactly what was approved, an executable by digest with its
// argv and environment, and from then on can stop all of it: the run is one
// group of processes that nothing started by it can leave. Inputs are plain
// files in memory that only the run sees. The gate knows nothing of requests or
// warrants; who may start what is decided before it is asked, and it refuses
// whatever a Spec leaves out.
//
// Package linux in the directory below is the gate for Linux.
package enforce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// InputsPath is where a run finds its inputs, read-only; OutputPath is where it
// writes what it wants kept.
const (
	InputsPath = "/run/keyturn/inputs"
	OutputPath = "/run/keyturn/output"
)

// Bounds on a Spec.
const (
	MaxExecutable = 1 << 30              // bytes
	MaxArguments  = 1 << 20              // bytes of argv and environment together
	MaxTime       = 366 * 24 * time.Hour // of one use
)

// Gate starts runs and finds the ones that an earlier process left behind.
type Gate interface {
	// Start runs spec and returns once the executable was executed. If ctx
	// ends before that, nothing runs; after that ctx has no effect.
	Start(ctx context.Context, spec Spec) (Run, error)
	// List names the runs that exist on this machine, left over ones included.
	List() ([]string, error)
	// Adopt ends a run that this process did not start: what it left is
	// killed, and its account is returned as far as it is known.
	Adopt(id string) (Exit, error)
}

// Run is one started run. All methods may be called at once from several
// goroutines, and again; on a run that has ended, Freeze and Thaw fail and the
// others do nothing.
type Run interface {
	ID() string
	// Freeze stops every process of the run where it is, and returns once the
	// kernel confirms that. Thaw lets it go on.
	Freeze() error
	Thaw() error
	// Drain asks every process to end (SIGTERM), waits for grace, and kills
	// what is left. A frozen run hears nothing and is killed after grace.
	Drain(grace time.Duration) error
	// Kill ends every process at once and returns when none is left.
	Kill() error
	// Wait returns the run's account once no process of it is left.
	Wait() (Exit, error)
	// Done is closed then.
	Done() <-chan struct{}
}

// Spec is what to run.
type Spec struct {
	ID         string        // names the run on this machine: 1 to 64 of a-z, 0-9 and -
	Executable Executable    // what is executed, by content
	Argv       []string      // exactly; Argv[0] included
	Env        []string      // exactly; NAME=value, each name once
	TimeLimit  time.Duration // of wall time; the run is killed then, frozen or not
	Grace      time.Duration // SIGTERM comes so long before the time limit; 0: no warning
	Inputs     Inputs        // the zero value gives an empty directory
	Output     Output        // the zero value gives none
	Scratch    uint64        // bytes of memory the run may use for temporary files; 0: none
	Stdout     *os.File      // nil: discarded
	Stderr     *os.File      // nil: discarded
}

// Executable is a program by the SHA-256 of its bytes. Source is read once, to
// the end; what is executed are the bytes read, and only if they have Digest.
type Executable struct {
	Digest [32]byte
	Source io.Reader
}

// Inputs are the files that a run is served at InputsPath. Fill writes them,
// below the directory it is given and nowhere else, before anything is
// executed; it must close what it opens and return when ctx ends, for Start
// waits for it. Bytes bounds their size.
type Inputs struct {
	Bytes uint64
	Fill  func(ctx context.Context, dir *os.Root) error
}

// Output is memory that only the run sees and may write to, at OutputPath, of
// Bytes at most. Opened is given that directory before anything is executed,
// must close it, and must trust nothing in it: links, names and changing files
// are the run's. What is in it stays until then, past the run's end.
type Output struct {
	Bytes  uint64
	Opened func(dir *os.File)
}

// Reason is why a run ended.
type Reason string

// The reasons.
const (
	Exited    Reason = "exited"     // by itself, by whatever code or signal
	TimedOut  Reason = "time-limit" // its time limit passed
	Drained   Reason = "drained"    // it was asked to end, and ended or was killed
	Killed    Reason = "killed"     // Kill
	Abandoned Reason = "abandoned"  // its agent had gone, and a later one ended it
)

// Exit is the account of a run.
type Exit struct {
	Code   int           // exit code of the executable, or -1 if a signal ended it
	Signal int           // the signal, or 0
	Reason Reason        // why
	CPU    time.Duration // processor time of all its processes, to the microsecond
	Wall   time.Duration // from execution to the end; 0 if that is not known
}

// Validate refuses a spec that leaves something out or open.
func (s *Spec) Validate() error {
	if err := CheckID(s.ID); err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("enforce: run %s: "+format, append([]any{s.ID}, args...)...)
	}
	switch {
	case s.Executable.Digest == [32]byte{} || s.Executable.Source == nil:
		return refuse("executable without digest or source")
	case len(s.Argv) == 0:
		return refuse("argv is empty")
	case s.TimeLimit <= 0 || s.TimeLimit > MaxTime:
		return refuse("time limit %v must be above 0 and at most %v", s.TimeLimit, MaxTime)
	case s.Grace < 0 || s.Grace >= s.TimeLimit:
		return refuse("grace %v must be shorter than the time limit %v", s.Grace, s.TimeLimit)
	case s.Inputs.Fill != nil && s.Inputs.Bytes == 0:
		return refuse("inputs of 0 bytes: say how large they may be")
	case (s.Output.Bytes == 0) != (s.Output.Opened == nil):
		return refuse("an output of %d bytes wants both its size and who takes it", s.Output.Bytes)
	}
	if err := checkStrings(s.Argv, s.Env); err != nil {
		return refuse("%w", err)
	}
	return nil
}

// checkStrings refuses what the kernel or a program would read differently
// from how it was approved: text cut at a NUL, a variable set twice.
func checkStrings(argv, env []string) error {
	size := 0
	for _, s := range slices.Concat(argv, env) {
		if strings.ContainsRune(s, 0) {
			return errors.New("a NUL byte in argv or environment")
		}
		size += len(s) + 1
	}
	if size > MaxArguments {
		return fmt.Errorf("argv and environment of %d bytes: at most %d", size, MaxArguments)
	}
	seen := map[string]bool{}
	for _, s := range env {
		name, _, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return fmt.Errorf("environment entry %d is not NAME=value", len(seen)+1)
		}
		if seen[name] {
			return fmt.Errorf("environment variable %q is set twice", name)
		}
		seen[name] = true
	}
	return nil
}

// CheckID refuses a name of a run that could mean a path.
func CheckID(id string) error {
	ok := id != "" && len(id) <= 64 && id[0] != '-'
	for i := range len(id) {
		c := id[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		return fmt.Errorf("enforce: run id %.80q: want 1 to 64 of a-z, 0-9 and - (not first)", id)
	}
	return nil
}
