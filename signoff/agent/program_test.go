package agent_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/agent"
	"github.com/keyturn/keyturn/signoff/authority"
)

// installed builds keyturn-agent and enrols the machine with it. It returns how
// to start the program.
func installed(w *world, m *machine) (start func() *exec.Cmd) {
	w.t.Helper()
	cfg := m.config()
	w.must(m.device.Close()) // an emulator's socket serves one
	program := filepath.Join(w.t.TempDir(), "keyturn-agent")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/keyturn-agent").CombinedOutput(); err != nil {
		w.t.Fatalf("building keyturn-agent: %v\n%s", err, out)
	}
	config := m.writeConfig(cfg)
	enrolment := filepath.Join(m.dir, "enrolment.json")
	for range 2 { // the second time it is there already
		if out, err := exec.Command(program, "enrolment", "--config", config, "--out", enrolment).CombinedOutput(); err != nil {
			w.t.Fatalf("enrolment: %v\n%s", err, out)
		}
	}
	var err error
	m.enrolled, err = os.ReadFile(enrolment)
	w.must(err)
	return func() *exec.Cmd {
		cmd := exec.Command(program, "run", "--config", config)
		w.must(cmd.Start())
		w.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		m.dial(cfg.Socket)
		return cmd
	}
}

// killed ends the program by SIGKILL and waits until no process of a run of
// its machine is left.
func killed(w *world, m *machine, program *exec.Cmd) {
	w.t.Helper()
	w.must(program.Process.Kill())
	program.Wait()
	w.until("the end of what the dead agent ran", func() bool { return members(w.t, m) == 0 })
}

// The program itself, from its configuration file: it writes the enrolment, is
// killed with a run under way, and comes back. The run ends with it, its use is
// spent, and the next agent signs that.
func TestProgramKilledInARun(t *testing.T) {
	w := newWorld(t, slow, 1)
	m := w.nodes[0]
	start := installed(w, m)
	first := start()
	m.id = m.status().Node
	m.enrol()
	m.leased()
	warrant := w.launch("tick", 1, m)
	r := ticking(w, m, warrant)
	killed(w, m, first)
	if r.end() == nil {
		t.Error("an answer came to its end though the agent was killed")
	}

	second := start()
	if got := w.ended(warrant, 1); !strings.Contains(got[0], "spent") {
		t.Errorf("the receipt says %q", got[0])
	}
	if ids, err := m.gate.List(); err != nil || len(ids) != 0 {
		t.Errorf("runs left behind: %v, %v", ids, err)
	}
	m.leased()
	wantErr(t, m.run(t.Context(), warrant, w.probe).end(), "all 1 uses")
	w.must(second.Process.Signal(os.Interrupt))
	if err := second.Wait(); err != nil {
		t.Errorf("told to end: %v", err)
	}
	w.State(func(_ *authority.Authority, s *authority.State) {
		if n := s.Warrants[warrant].Used; n != 1 {
			t.Errorf("%d uses taken, want 1", n)
		}
	})
}

// Uses are counted across kill -9 of the agent at every step from the claim to
// the last receipt: each costs exactly the use it had claimed, whatever runs
// dies with its agent, and no start is left over at the end.
func TestKilledAtEveryStep(t *testing.T) {
	w := newWorld(t, slow, 1)
	m := w.nodes[0]
	start := installed(w, m)
	program := start()
	m.id = m.status().Node
	m.enrol()

	var warrant signoff.Digest
	var r *running
	claim := func(ok func(*authority.State, *authority.Claim) bool) func() bool {
		return func() (there bool) {
			w.Sync(w.Follower.Seen().Size)
			w.State(func(_ *authority.Authority, s *authority.State) {
				for _, c := range s.Claims {
					there = there || c.Doc.Warrant == warrant && ok(s, c)
				}
			})
			return there
		}
	}
	event := func(name string) func() bool { return func() bool { return r.has(name) } }
	for i, step := range []struct {
		name    string
		reached func() bool
	}{
		{"the claim is in the log", claim(func(*authority.State, *authority.Claim) bool { return true })},
		{"the claim is final", event(agent.EventClaimed)},
		{"the first notary has released", claim(func(s *authority.State, c *authority.Claim) bool { return len(s.Releases[c.ID]) > 0 })},
		{"the shares are opened", event(agent.EventOpened)},
		{"the start is in the log", claim(func(_ *authority.State, c *authority.Claim) bool { return c.Started })},
		{"the run has started", event(agent.EventStarted)},
		{"the run has written", func() bool { return strings.Contains(r.output(), "tick") }},
	} {
		warrant = w.launch("tick", 1, m)
		m.leased()
		m.listed(warrant)
		r = m.run(t.Context(), warrant, w.probe)
		w.until(step.name, step.reached)
		killed(w, m, program)
		if r.end() == nil {
			t.Errorf("%s: the answer came to its end though the agent was killed", step.name)
		}
		program = start()
		if got := w.ended(warrant, 1); len(got) != 1 || !strings.Contains(got[0], "spent") {
			t.Errorf("%s: claims ended with %q", step.name, got)
		}
		m.leased()
		wantErr(t, m.run(t.Context(), warrant, w.probe).end(), "all 1 uses")
		w.State(func(_ *authority.Authority, s *authority.State) {
			if n := s.Warrants[warrant].Used; n != 1 || len(s.Claims) != i+1 {
				t.Errorf("%s: %d uses taken, %d claims in all, want 1 and %d", step.name, n, len(s.Claims), i+1)
			}
		})
	}
	if ids, err := m.gate.List(); err != nil || len(ids) != 0 {
		t.Errorf("runs left behind: %v, %v", ids, err)
	}
}

// writeConfig writes the configuration file and the charter beside it.
func (m *machine) writeConfig(cfg agent.Config) string {
	payload, err := signoff.Write(m.w.Charter)
	m.w.must(err)
	m.w.must(os.WriteFile(filepath.Join(m.dir, "charter.json"), payload, 0o600))
	text := fmt.Sprintf("charter: %s\ncharterFile: charter.json\ntpm: %s\ndir: state\neventLog: bios\nbootApproval: boots\nobjects: [%s]\nsocket: %s\ncgroup: %s\n",
		cfg.ID, m.emulator.Path, cfg.Objects[0], cfg.Socket, m.group())
	path := filepath.Join(m.dir, "agent.yaml")
	m.w.must(os.WriteFile(path, []byte(text), 0o600))
	return path
}

// members counts the processes in the machine's runs.
func members(t *testing.T, m *machine) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(cgroups(t), m.group(), "*", "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // gone meanwhile
		}
		n += len(strings.Fields(string(b)))
	}
	return n
}
