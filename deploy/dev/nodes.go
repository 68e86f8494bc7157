package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// socket is a node's control socket; unix sockets want short paths.
func (s *stage) socket(node string) string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("keyturn-%d-%s-agent.sock", os.Getpid(), node))
}

// cgroup is the control group that a node's runs are in.
func (s *stage) cgroup(node string) string {
	return fmt.Sprintf("keyturn-demo-%d-%s", os.Getpid(), node)
}

// agentProgram starts a node's agent, or starts it again.
func (s *stage) agentProgram(node string) error {
	return s.daemon(node, "keyturn-agent", "run", "--config", s.path("nodes", node, "agent.yaml"))
}

// kill ends a daemon at once, as a power cut would.
func (s *stage) kill(name string) {
	if d := s.find(name); d != nil {
		d.cmd.Process.Kill()
		<-d.done
	}
}

func (s *stage) nodeStory(ctx context.Context) error {
	if err := os.Mkdir(s.path("snapshots"), 0o700); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if err := s.writeConfig(filepath.Join("nodes", n, "agent.yaml"), map[string]string{
			"tpm": s.tpms[n].Path, "dir": "memory", "eventLog": "eventlog", "bootApproval": s.path("boot-approval.json"),
			"objects": "[" + s.path("model.sealed") + "]", "snapshots": s.path("snapshots"), "socket": s.socket(n), "cgroup": s.cgroup(n)}); err != nil {
			return err
		}
		if err := s.enrolNode(ctx, n); err != nil {
			return err
		}
	}
	err := s.await(ctx, "both nodes' leases", func(v statusView) bool { return v.verdict("node-a") == "pass" && v.verdict("node-b") == "pass" })
	if err != nil {
		return err
	}
	s.note("both nodes prove their boot and hold leases", "allowed", "verdict pass (EMULATED TPMs, marked so)", true)
	return nil
}

func (s *stage) enrolNode(ctx context.Context, n string) error {
	file := s.path("nodes", n, "enrolment.json")
	r := s.program(ctx, n, "keyturn-agent", "enrolment", "--config", s.path("nodes", n, "agent.yaml"), "--out", file)
	if r.code != 0 {
		return fmt.Errorf("enrolment of %s: %s", n, r.err)
	}
	if err := s.agentProgram(n); err != nil {
		return err
	}
	return s.admit(ctx, n, file)
}

// admit has people enrol a node, whose agent runs.
func (s *stage) admit(ctx context.Context, n, file string) error {
	id, err := s.ask(ctx, "alice", "a node for the demo", "enrol", "--name", n, "--enrolment", file)
	if err != nil {
		return err
	}
	if err := s.approvals(ctx, id, "bob", "erin"); err != nil {
		return err
	}
	return s.allowed("enrol "+n, "its TPM answered the notaries' challenges, two people agreed", s.as(ctx, "alice", "", "warrant", "get", id, "--out", s.path("nodes", n, "warrant.json")))
}

// launch asks for a run of the training program and has three people approve.
func (s *stage) launch(ctx context.Context, name string, uses, seconds int) (request, warrant string, err error) {
	args := []string{"launch", "--name", name, "--executable", s.train, "--object", s.object}
	for _, n := range s.nodes {
		args = append(args, "--node", n)
	}
	request, err = s.ask(ctx, "alice", "training "+name, append(args, "--uses", fmt.Sprint(uses), "--limit", "5m", "--output", "1MB", "--", "train", "/run/keyturn/inputs", fmt.Sprint(seconds))...)
	if err != nil {
		return "", "", err
	}
	if err := s.approvals(ctx, request, "bob", "carol", "erin"); err != nil {
		return "", "", err
	}
	out := s.path("warrant-" + name + ".json")
	r := s.as(ctx, "alice", "", "warrant", "get", request, "--out", out)
	if r.code != 0 {
		return "", "", fmt.Errorf("warrant of %s: %s", name, r.err)
	}
	return request, strings.TrimSpace(r.out), nil
}

// runOn has a node's agent take a use of a warrant.
func (s *stage) runOn(ctx context.Context, node, warrant, executable string, more ...string) result {
	return s.as(ctx, "alice", "", append([]string{"run", warrant, "--executable", executable, "--socket", s.socket(node)}, more...)...)
}

func (s *stage) launchStory(ctx context.Context) error {
	_, warrant, err := s.launch(ctx, "launch", 2, 1)
	if err != nil {
		return err
	}
	if err := s.awaitWarrantLive(ctx, "node-a", warrant); err != nil {
		return err
	}
	s.refused("another executable under the warrant", s.runOn(ctx, "node-a", warrant, filepath.Join(s.bin, "keyturn-agent")), "executable")
	r := s.runOn(ctx, "node-a", warrant, s.train)
	if err := s.readWeights("the run on node-a reads the weights that nobody else can", r); err != nil {
		return err
	}
	if err := s.snapshotStory(ctx, warrant, r.err); err != nil {
		return err
	}
	s.refused("the same warrant once more: its two uses are spent", s.runOn(ctx, "node-b", warrant, s.train), "use")
	return s.otherBoot(ctx)
}

// readWeights records a run, which must have seen every file of the weights.
func (s *stage) readWeights(name string, r result) error {
	want, err := os.ReadFile(s.path("model.sealed", "SHA256SUMS"))
	if err != nil {
		return err
	}
	seen := 0
	for line := range strings.Lines(string(want)) {
		if strings.Contains(r.out, strings.Fields(line)[0]) {
			seen++
		}
	}
	if err := s.allowed(name, fmt.Sprintf("%d files with the sealed digests", seen), r); err != nil {
		return err
	}
	if seen == 0 || seen != strings.Count(string(want), "\n") {
		s.note("the run saw every file", "allowed", r.out, false)
	}
	return nil
}

// snapshotStory has the second use of a warrant go on, on the other node, from
// what the first one kept. told is what keyturn run said of the first.
func (s *stage) snapshotStory(ctx context.Context, warrant, told string) error {
	_, id, ok := strings.Cut(told, "snapshot step-1 sealed: ")
	s.note("its snapshot is sealed and in the log", "allowed", strings.SplitN(id, "\n", 2)[0], ok)
	if err := s.awaitWarrantLive(ctx, "node-b", warrant); err != nil {
		return err
	}
	r := s.runOn(ctx, "node-b", warrant, s.train, "--resume", strings.SplitN(id, "\n", 2)[0])
	if err := s.allowed("the same run goes on from it on node-b, and nobody is asked again", "the state after step 1", r); err != nil {
		return err
	}
	if !strings.Contains(r.out, "goes on after step 1") {
		s.note("the second use saw the snapshot", "allowed", r.out, false)
	}
	return nil
}

// awaitWarrantLive waits until the node's lease lists the warrant.
func (s *stage) awaitWarrantLive(ctx context.Context, node, warrant string) error {
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		r := s.as(ctx, "alice", "", "node", "status", "--socket", s.socket(node), "--json")
		if strings.Contains(r.out, warrant) {
			return nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	r := s.as(ctx, "alice", "", "node", "status", "--socket", s.socket(node), "--json")
	return fmt.Errorf("waited 20 s for the lease of %s to list the warrant: %s%s", node, r.out, r.err)
}

// otherBoot boots node-b with another kernel. It loses its lease, and a
// warrant that names it starts nothing there.
func (s *stage) otherBoot(ctx context.Context) error {
	_, warrant, err := s.launch(ctx, "launch-b", 1, 1)
	if err != nil {
		return err
	}
	s.kill("node-b")
	if err := s.boot(ctx, "node-b", "kernel 6.1 with a back door"); err != nil {
		return err
	}
	if err := s.agentProgram("node-b"); err != nil {
		return err
	}
	reason := ""
	if err := s.await(ctx, "node-b's failing verdict", func(v statusView) bool {
		for _, n := range v.Nodes {
			if n.Name == "node-b" && n.Verdict == "fail" && strings.Contains(n.Reason, "PCR") {
				reason = n.Reason
				return true
			}
		}
		return false
	}); err != nil {
		return err
	}
	s.note("node-b boots another kernel", "refused: a lease", reason, true)
	s.refused("a run on node-b", s.runOn(ctx, "node-b", warrant, s.train), "lease")
	return nil
}

// agentStatus is what node status --socket --json answers, as far as used.
type agentStatus struct {
	Runs []struct {
		State string `json:"state"`
	} `json:"runs"`
}

// awaitRun waits until the node's only run is in the given state, or until it
// has none for the empty state, and returns how long that took.
func (s *stage) awaitRun(ctx context.Context, node, state string) (time.Duration, error) {
	start := time.Now()
	last := ""
	for time.Since(start) < 20*time.Second && ctx.Err() == nil {
		r := s.as(ctx, "alice", "", "node", "status", "--socket", s.socket(node), "--json")
		var v agentStatus
		if json.Unmarshal([]byte(r.out), &v) == nil && (len(v.Runs) == 0 && state == "" || len(v.Runs) == 1 && v.Runs[0].State == state) {
			return time.Since(start), nil
		}
		last = r.out + r.err
	}
	return 0, fmt.Errorf("waited 20 s for the run on %s to be %q; the last answer was: %s", node, state, last)
}

// haltStory freezes a run twice: once through the log, once by a file that the
// coordinator never sees.
func (s *stage) haltStory(ctx context.Context) error {
	_, warrant, err := s.launch(ctx, "launch-long", 1, 120)
	if err != nil {
		return err
	}
	if err := s.awaitWarrantLive(ctx, "node-a", warrant); err != nil {
		return err
	}
	ended := make(chan result, 1)
	go func() { ended <- s.runOn(ctx, "node-a", warrant, s.train) }()
	if _, err := s.awaitRun(ctx, "node-a", "running"); err != nil {
		return err
	}
	halt := s.as(ctx, "dave", "", "halt", "--everything", "--reason", "the demo's story")
	if err := s.allowed("dave alone halts everything", strings.TrimSpace(halt.out), halt); err != nil {
		return err
	}
	took, err := s.awaitRun(ctx, "node-a", "frozen")
	if err != nil {
		return err
	}
	s.note("the run on node-a is frozen", "allowed", fmt.Sprintf("%.2f s after the halt was final", took.Seconds()), took < time.Second)
	if err := s.resume(ctx, strings.TrimSpace(halt.out)); err != nil {
		return err
	}
	if err := s.hiddenHalt(ctx); err != nil {
		return err
	}
	before, err := s.processes("node-a")
	if err != nil {
		return err
	}
	s.kill("node-a")
	r := <-ended
	s.note("the agent is killed under the frozen run", "refused: the run goes nowhere without its agent", r.reason(), r.code != 0)
	if err := s.agentProgram("node-a"); err != nil {
		return err
	}
	if _, err := s.awaitRun(ctx, "node-a", ""); err != nil {
		return err
	}
	left, err := s.processes("node-a")
	if err != nil {
		return err
	}
	s.note("the next agent ends what was left", "allowed", fmt.Sprintf("%d processes of the run, %d after", before, left), before > 0 && left == 0)
	return nil
}

// processes counts what is alive in the control groups of a node's runs.
func (s *stage) processes(node string) (int, error) {
	var groups []string
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		found, err := filepath.Glob(filepath.Join(root, s.cgroup(node), "*", "cgroup.procs"))
		if err != nil {
			return 0, err
		}
		groups = append(groups, found...)
	}
	n := 0
	for _, g := range groups {
		b, err := os.ReadFile(g)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENODEV) { // removed meanwhile
			return 0, err
		}
		n += len(strings.Fields(string(b)))
	}
	return n, nil
}

func (s *stage) resume(ctx context.Context, halt string) error {
	id, err := s.ask(ctx, "alice", "the demo goes on", "resume", "--halt", halt)
	if err != nil {
		return err
	}
	if err := s.approvals(ctx, id, "bob", "dave"); err != nil {
		return err
	}
	if _, err := s.awaitRun(ctx, "node-a", "frozen"); err != nil {
		return err
	}
	s.note("two people ask to resume", "refused: three are needed", "the run stays frozen", true)
	if err := s.approvals(ctx, id, "erin"); err != nil {
		return err
	}
	if _, err := s.awaitRun(ctx, "node-a", "running"); err != nil {
		return err
	}
	s.note("a third agrees: the run goes on", "allowed", "running", true)
	return nil
}

// hiddenHalt stops the coordinator, which so cannot tell anybody of the halt,
// and carries it to the node as a file.
func (s *stage) hiddenHalt(ctx context.Context) error {
	file := s.path("halt.json")
	if r := s.as(ctx, "dave", "", "halt", "--everything", "--reason", "the coordinator hides halts", "--out", file); r.code != 0 {
		return fmt.Errorf("halt to a file: %s", r.err)
	}
	co := s.find("coordinator")
	if err := co.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	defer co.cmd.Process.Signal(syscall.SIGCONT)
	r := s.as(ctx, "alice", "", "node", "halt", file, "--socket", s.socket("node-a"))
	if r.code != 0 {
		return fmt.Errorf("node halt: %s", r.err)
	}
	took, err := s.awaitRun(ctx, "node-a", "frozen")
	if err != nil {
		return err
	}
	s.note("a halt that the coordinator hides, carried to node-a as a file", "allowed", fmt.Sprintf("frozen after %.2f s", took.Seconds()), took < time.Second)
	return errors.Join(co.cmd.Process.Signal(syscall.SIGCONT))
}
