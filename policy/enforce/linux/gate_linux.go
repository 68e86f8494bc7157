// Package linux runs what was approved, and nothing else, on Linux.
//
// A run is started in a cgroup v2 of its own, entered by clone itself, and in
// mount, pid, network, ipc and uts namespaces of its own. The first process in
// them is this program again as a small init (see Init). It makes every mount
// private and read-only, covers the directories in which a host leaves sockets
// and temporary files, mounts a tmpfs for the inputs that swap never sees, and
// hands a descriptor of it to the agent, which writes the inputs through it.
// No path on the host leads to them. Told to go on, init makes the inputs read-only
// and executes the approved bytes as an unprivileged user without capabilities, with no
// way to gain any, no core dumps, no network interface that is up, and no kind
// of socket that goes around network namespaces.
//
// A run with an output finds one more tmpfs, which it may write to and of which
// the agent has a descriptor too.
//
// The bytes executed are a sealed memfd: they are copied into memory, sealed
// against any change, hashed there, and executed by descriptor, so nothing can
// come between check and execution. Only executables that load no interpreter
// or dynamic linker are accepted, for what those load nobody approved.
//
// Stopping is the kernel's cgroup.freeze and cgroup.kill, which no process
// escapes by forking. Init ends, and with it by the kernel's hand every process of its pid
// namespace, when the agent's end of their socket closes: a run does not
// outlive the agent that answers for it. A run that was frozen at that moment
// stays frozen until the next agent adopts it.
//
// Not protected here: root on the host can read the memory of any run. GPU and
// RDMA device nodes are left to their file modes.
package linux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/keyturn/keyturn/policy/enforce"
)

// Config says where and as whom runs live. Zero values take the defaults.
type Config struct {
	// Parent is the group that holds the runs' groups, relative to the cgroup
	// v2 mount. Default "keyturn"; under systemd, name a delegated group.
	Parent string
	// UID and GID are what the executable runs as, never 0. No other process of
	// the host may have the same: it could read the run's memory and inputs.
	// Default 2000000000, from a range that no distribution assigns (and not
	// nobody, whom many daemons share).
	UID, GID uint32
}

const defaultUser = 2_000_000_000

// Gate implements enforce.Gate.
type Gate struct {
	parent   cgroup
	uid, gid uint32
}

var _ enforce.Gate = (*Gate)(nil)

// New finds cgroup v2 and proves that it can freeze and kill. It needs root.
func New(c Config) (*Gate, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("enforce/linux: the gate makes namespaces and cgroups and must run as root")
	}
	if c.Parent == "" {
		c.Parent = "keyturn"
	}
	if !filepath.IsLocal(c.Parent) {
		return nil, fmt.Errorf("enforce/linux: parent group %q must be a path below the cgroup v2 mount", c.Parent)
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("enforce/linux: %w", err)
	}
	mount, err := mountedAt(mountinfo)
	if err != nil {
		return nil, err
	}
	g := &Gate{parent: cgroup(filepath.Join(mount, c.Parent)), uid: orDefault(c.UID), gid: orDefault(c.GID)}
	if err := os.MkdirAll(string(g.parent), 0o755); err != nil {
		return nil, fmt.Errorf("enforce/linux: making the parent group: %w", err)
	}
	for _, file := range []string{"cgroup.freeze", "cgroup.kill", "cgroup.events"} {
		if _, err := os.Stat(g.parent.path(file)); err != nil {
			return nil, fmt.Errorf("enforce/linux: this kernel (5.14 or later is needed) cannot stop a group: %w", err)
		}
	}
	return g, nil
}

func orDefault(id uint32) uint32 {
	if id == 0 {
		return defaultUser
	}
	return id
}

// List implements enforce.Gate.
func (g *Gate) List() ([]string, error) {
	entries, err := os.ReadDir(string(g.parent))
	if err != nil {
		return nil, fmt.Errorf("enforce/linux: listing runs: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && enforce.CheckID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Adopt implements enforce.Gate.
func (g *Gate) Adopt(id string) (enforce.Exit, error) {
	if err := enforce.CheckID(id); err != nil {
		return enforce.Exit{}, err
	}
	group := g.group(id)
	if _, err := os.Stat(string(group)); errors.Is(err, fs.ErrNotExist) {
		return enforce.Exit{}, fmt.Errorf("enforce/linux: adopt %s: there is no such run on this machine", id)
	}
	exit := enforce.Exit{Code: -1, Signal: 9, Reason: enforce.Abandoned}
	cpu, err := end(group)
	exit.CPU = cpu
	if err != nil {
		return exit, fmt.Errorf("enforce/linux: adopt %s: %w", id, err)
	}
	return exit, nil
}

func (g *Gate) group(id string) cgroup { return cgroup(g.parent.path(id)) }

// end kills what is left in a group, reads its account and removes it.
func end(group cgroup) (time.Duration, error) {
	if err := group.kill(); err != nil {
		return 0, fmt.Errorf("killing: %w", err)
	}
	cpu, err := group.cpu()
	return cpu, errors.Join(err, group.remove())
}

// Start implements enforce.Gate.
func (g *Gate) Start(ctx context.Context, spec enforce.Spec) (enforce.Run, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	image, err := seal(spec.Executable)
	if err != nil {
		return nil, fmt.Errorf("enforce/linux: run %s: %w", spec.ID, err)
	}
	defer image.Close()
	group := g.group(spec.ID)
	if err := os.Mkdir(string(group), 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("enforce/linux: run %s exists already: adopt it first", spec.ID)
		}
		return nil, fmt.Errorf("enforce/linux: run %s: %w", spec.ID, err)
	}
	r, err := g.launch(ctx, spec, group, image)
	if err != nil {
		_, clean := end(group)
		return nil, fmt.Errorf("enforce/linux: run %s: %w", spec.ID, errors.Join(err, clean))
	}
	return r, nil
}
