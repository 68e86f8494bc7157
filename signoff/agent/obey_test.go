package agent_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/attest/tpm"
	"github.com/keyturn/keyturn/policy/enforce"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/agent"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// single is a world with one machine, enrolled and with a lease, whose agent
// reaches the coordinator over a cable.
func single(t *testing.T, leases string) (*world, *machine, *cable) {
	t.Helper()
	w := newWorld(t, leases, 1)
	m, c := w.nodes[0], w.cable()
	cfg := m.config()
	cfg.Endpoints = c.endpoints()
	m.startWith(cfg)
	m.enrol()
	m.leased()
	return w, m, c
}

// ticking starts the probe that writes until it is asked to end.
func ticking(w *world, m *machine, warrant signoff.Digest) *running {
	w.t.Helper()
	r := m.run(w.t.Context(), warrant, w.probe)
	r.await(agent.EventStarted)
	w.until("output", func() bool { return strings.Count(r.output(), "tick") > 3 })
	return r
}

// quiet reports whether the run writes nothing for a while.
func quiet(r *running) bool {
	before := r.output()
	time.Sleep(200 * time.Millisecond)
	return r.output() == before
}

func (w *world) halt(person string) *signoff.Signed {
	return w.Sign(person, &signoff.Halt{Charter: w.ID, Person: w.People[person].Doc.ID(), Everything: true, Reason: "a test", Created: time.Now().Unix(), Nonce: signofftest.Nonce()})
}

// resume has people lift the halts, and returns the request and the approvals.
func (w *world) resume(halts ...signoff.Digest) []*signoff.Signed {
	w.t.Helper()
	w.Tick()
	out := []*signoff.Signed{w.Request("alice", signoff.ActionResume, func(r *signoff.Request) { r.Resume = &signoff.Resume{Halts: halts} })}
	w.must(w.Append(out[0]))
	for _, p := range []string{"bob", "carol", "erin"} {
		out = append(out, w.Decide(p, out[0].Digest(), signoff.Approve))
		w.must(w.Append(out[len(out)-1]))
	}
	w.Wait("the resume", func(s *authority.State) bool { return !s.Halts[halts[0]].Lifted.IsZero() })
	return out
}

// A halt that comes by hand, with no network, freezes at once, stands
// over a restart, and goes into the log when that is back. Only a final resume
// lifts it, and neither the halt nor the resume works twice.
func TestHaltByHandAndReplays(t *testing.T) {
	w, m, c := single(t, slow)
	warrant := w.launch("tick", 2, m)
	r := ticking(w, m, warrant)

	c.cut()
	halt := w.halt("dave")
	at := time.Now()
	if err := m.client.Halt(t.Context(), append(halt.Line(), '\n')); err != nil {
		t.Fatal(err)
	}
	r.await(agent.EventFrozen)
	t.Logf("frozen after %v", time.Since(at)) // a second at most, where the machine is not busy
	if !quiet(r) {
		t.Error("the run writes while it is halted")
	}
	if h := m.status().Halts; len(h) != 1 || h[0] != (agent.HaltStatus{Halt: halt.Digest()}) {
		t.Errorf("halts %+v, want the one that was told, not in the log", h)
	}

	c.join()
	w.Wait("the halt in the log", func(s *authority.State) bool { return s.Halts[halt.Digest()] != nil })
	if r.has(agent.EventThawed) || !quiet(r) {
		t.Error("the halt was lifted by getting into the log")
	}
	lifting := w.resume(halt.Digest())
	r.await(agent.EventThawed)
	w.until("output after the resume", func() bool { return !quiet(r) })

	// The same halt again, by hand and by mail.
	wantErr(t, m.client.Halt(t.Context(), halt.Line()), "already took effect")
	w.send(api.TopicHalts, halt.Line())
	if time.Sleep(300 * time.Millisecond); quiet(r) {
		t.Error("a halt that was lifted froze the run again")
	}

	// Another halt, by mail; the old resume, again.
	second := w.halt("carol")
	w.send(api.TopicHalts, second.Line())
	w.until("the second halt", func() bool { return len(m.status().Halts) == 1 })
	w.Wait("the second halt in the log", func(s *authority.State) bool { return s.Halts[second.Digest()] != nil })
	for _, doc := range lifting {
		w.Client.Append(t.Context(), doc.Line()) // whatever the answer, nothing may come of it
	}
	w.Tick()
	if !quiet(r) || len(m.status().Halts) != 1 {
		t.Error("a resume that was used lifted another halt")
	}
	wantErr(t, m.run(t.Context(), warrant, w.probe).end(), "halt "+second.Digest().String())
}

// A hostile approver tells an agent halts of nothing, while a hostile coordinator lets
// none into the log. The halt that another person carries to the node is obeyed.
func TestAttackHaltsCrowdOutAnother(t *testing.T) {
	w, m, c := single(t, slow)
	c.cut()
	var refused error
	for i := range 1100 {
		h := w.Sign("alice", &signoff.Halt{Charter: w.ID, Person: w.People["alice"].Doc.ID(), Request: signoff.Digest{1, byte(i), byte(i >> 8)}, Reason: "a test", Created: time.Now().Unix(), Nonce: signofftest.Nonce()})
		if err := m.client.Halt(t.Context(), h.Line()); err != nil {
			refused = err
		}
	}
	wantErr(t, refused, "no more halts of this person are taken")
	genuine := w.halt("dave")
	w.must(m.client.Halt(t.Context(), genuine.Line()))
	if !slices.ContainsFunc(m.status().Halts, func(h agent.HaltStatus) bool { return h.Halt == genuine.Digest() }) {
		t.Fatal("dave's halt does not stand")
	}
}

// A halt that is not in the log yet is there again after a restart without a
// network.
func TestHaltSurvivesRestart(t *testing.T) {
	w, m, c := single(t, slow)
	c.cut()
	halt := w.halt("dave")
	if err := m.client.Halt(t.Context(), halt.Line()); err != nil {
		t.Fatal(err)
	}
	m.stop()
	cfg := m.config()
	cfg.Endpoints = c.endpoints()
	m.startWith(cfg)
	if h := m.status().Halts; len(h) != 1 || h[0].Halt != halt.Digest() {
		t.Fatalf("halts %+v after a restart", h)
	}
	c.join()
	w.Wait("the halt in the log", func(s *authority.State) bool { return s.Halts[halt.Digest()] != nil })
}

// What is no halt of a person of this charter stops nothing.
func TestHaltRefused(t *testing.T) {
	w, m, _ := single(t, slow)
	foreign := w.halt("dave")
	foreign.Sig[len(foreign.Sig)-1] ^= 1
	wantErr(t, m.client.Halt(t.Context(), foreign.Line()), "verif")
	wantErr(t, m.client.Halt(t.Context(), []byte("stop")), "parse bundle")
	accepted := w.Sign("dave", &signoff.Acceptance{Charter: w.ID, Person: w.People["dave"].Doc.ID()})
	wantErr(t, m.client.Halt(t.Context(), accepted.Line()), "no halt")
	if h := m.status().Halts; len(h) != 0 {
		t.Errorf("halts %+v", h)
	}
}

// Silence means stop: a run whose lease runs out is asked to end, and its
// receipt follows when the network is back.
func TestLeaseLostDrains(t *testing.T) {
	w, m, c := single(t, "leases: {epoch: 1, lease: 6, drainGrace: 2}")
	warrant := w.launch("tick", 1, m)
	r := ticking(w, m, warrant)
	c.cut()
	at := time.Now()
	r.await(agent.EventDraining)
	if took := time.Since(at); took > 12*time.Second {
		t.Errorf("a lease of 6 s was over after %v", took)
	}
	c.join()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if !strings.HasSuffix(strings.TrimSpace(r.output()), "asked to end") {
		t.Error("the run was not asked to end before it was killed")
	}
	if got := w.ended(warrant, 1); len(got) != 1 {
		t.Errorf("receipts %q", got)
	}
}

// A machine that measured something else has no lease, whatever it had.
func TestDriftLosesTheLease(t *testing.T) {
	w, m, _ := single(t, slow)
	warrant := w.launch("tick", 2, m)
	r := ticking(w, m, warrant)
	if err := tpm.Extend(t.Context(), m.device, 4, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	r.await(agent.EventDraining)
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if s := m.status(); s.Lease != 0 || !strings.Contains(s.NoLease, "PCR 4") {
		t.Errorf("lease %d, %q; want none because of PCR 4", s.Lease, s.NoLease)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := m.run(ctx, warrant, w.probe).end(); err == nil {
		t.Error("a node without a lease took a use")
	}
	w.ended(warrant, 1)
	w.State(func(_ *authority.Authority, s *authority.State) {
		if got := s.Warrants[warrant].Used; got != 1 {
			t.Errorf("%d uses taken, want 1", got)
		}
	})
}

// A dyingGate never comes to start anything.
type dyingGate struct {
	enforce.Gate
	entered chan struct{}
}

func (g dyingGate) Start(ctx context.Context, _ enforce.Spec) (enforce.Run, error) {
	close(g.entered)
	<-ctx.Done()
	return nil, errors.New("the agent is dead")
}

// An agent that dies between claim and start has spent the use; nobody takes it
// again, and there are never more than the warrant says.
func TestUseIsSpentWhenTheAgentDies(t *testing.T) {
	w, m, c := single(t, slow)
	m.stop()
	gate := dyingGate{m.gate, make(chan struct{})}
	cfg := m.config()
	cfg.Endpoints, cfg.Gate = c.endpoints(), gate
	m.startWith(cfg)
	m.leased()
	warrant := w.launch("inputs", 2, m)
	m.run(t.Context(), warrant, w.probe)
	select {
	case <-gate.entered:
	case <-time.After(2 * time.Minute):
		t.Fatal("the gate was not reached")
	}
	c.cut() // what a dead agent would still say is not heard
	m.stop()
	c.join()

	cfg.Gate = m.gate
	m.startWith(cfg)
	if got := w.ended(warrant, 1); len(got) != 1 || !strings.Contains(got[0], "spent") {
		t.Fatalf("receipts %q, want the one of the use that was lost", got)
	}
	if err := m.run(t.Context(), warrant, w.probe).end(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, m.run(t.Context(), warrant, w.probe).end(), "all 2 uses")
	w.ended(warrant, 2)
	w.State(func(_ *authority.Authority, s *authority.State) {
		if n := len(s.Claims); n != 2 || s.Warrants[warrant].Used != 2 {
			t.Errorf("%d claims, %d uses, want 2", n, s.Warrants[warrant].Used)
		}
	})
}

// Two nodes that start at once take different uses.
func TestTwoNodesShareAWarrant(t *testing.T) {
	w := newWorld(t, slow, 2)
	for _, m := range w.nodes {
		m.start()
		m.enrol()
	}
	for _, m := range w.nodes {
		m.leased()
	}
	warrant := w.launch("inputs", 2, w.nodes...)
	var runs []*running
	for _, m := range w.nodes {
		runs = append(runs, m.run(t.Context(), warrant, w.probe))
	}
	for i, r := range runs {
		if err := r.end(); err != nil || !strings.Contains(r.output(), secret) {
			t.Errorf("node %d: %v, %q", i+1, err, r.output())
		}
	}
	w.ended(warrant, 2)
	w.State(func(_ *authority.Authority, s *authority.State) {
		var uses []int
		for _, c := range s.Claims {
			uses = append(uses, c.Doc.Use)
		}
		if slices.Sort(uses); !slices.Equal(uses, []int{1, 2}) {
			t.Errorf("uses %v, want 1 and 2", uses)
		}
	})
}

// The directory holds no secret, and the control socket is the owner's.
func TestStateIsPrivate(t *testing.T) {
	_, m, _ := single(t, slow)
	cfg := m.config()
	info, err := os.Stat(cfg.Socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("control socket %v, %v; want mode 0600", info.Mode(), err)
	}
	err = filepath.Walk(cfg.Dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
