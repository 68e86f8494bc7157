package agent_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/agent"
	"github.com/keyturn/keyturn/signoff/authority"
)

// The program itself, from its configuration file: it writes the enrolment, is
// killed with a run under way, and comes back. The run ends with it, its use is
// spent, and the next agent signs that.
func TestProgramKilledInARun(t *testing.T) {
	w := newWorld(t, slow, 1)
	m := w.nodes[0]
	cfg := m.config()
	w.must(m.device.Close()) // an emulator's socket serves one
	program := filepath.Join(t.TempDir(), "keyturn-agent")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/keyturn-agent").CombinedOutput(); err != nil {
		t.Fatalf("building keyturn-agent: %v\n%s", err, out)
	}
	config := m.writeConfig(cfg)
	enrolment := filepath.Join(m.dir, "enrolment.json")
	for range 2 { // the second time it is there already
		if out, err := exec.Command(program, "enrolment", "--config", config, "--out", enrolment).CombinedOutput(); err != nil {
			t.Fatalf("enrolment: %v\n%s", err, out)
		}
	}
	var err error
	m.enrolled, err = os.ReadFile(enrolment)
	w.must(err)

	start := func() *exec.Cmd {
		cmd := exec.Command(program, "run", "--config", config)
		w.must(cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		m.dial(cfg.Socket)
		return cmd
	}
	first := start()
	m.id = m.status().Node
	m.enrol()
	m.leased()
	warrant := w.launch("tick", 1, m)
	r := ticking(w, m, warrant)
	w.must(first.Process.Kill())
	first.Wait()
	if r.end() == nil {
		t.Error("an answer came to its end though the agent was killed")
	}
	time.Sleep(100 * time.Millisecond)
	if n := members(t, m); n != 0 {
		t.Errorf("%d processes outlive their agent", n)
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
