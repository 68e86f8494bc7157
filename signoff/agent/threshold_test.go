package agent_test

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A launch that was approved before people asked for more shares goes on: what was
// granted stands, and its object still opens with as many as it was sealed for.
func TestThresholdRisesUnderAWarrant(t *testing.T) {
	w := newWorld(t, slow, 1)
	m := w.nodes[0]
	m.start()
	m.enrol()
	m.leased()
	warrant := w.launch("inputs", 2, m)
	m.listed(warrant)
	if err := m.run(t.Context(), warrant, w.probe).end(); err != nil {
		t.Fatal(err)
	}
	four := strings.NewReplacer("k: 3,", "k: 4,", "        - atLeast: {k: 1, roles: [", "        - atLeast: {k: 2, roles: [",
		"leases: {epoch: 2, lease: 8, drainGrace: 2}", w.leases).Replace(signofftest.Policy)
	w.grants(signoff.ActionPolicyChange, func(r *signoff.Request) { r.Policy = &signoff.PolicyChange{Policy: four} })
	w.grants(signoff.ActionPeopleChange, func(r *signoff.Request) { r.People = &signoff.PeopleChange{Threshold: 4} })
	w.Wait("the threshold", func(s *authority.State) bool { return s.People.Threshold == 4 })
	if err := m.run(t.Context(), warrant, w.probe).end(); err != nil {
		t.Fatal(err)
	}
}

// grants has all but alice approve what she asks for.
func (w *world) grants(action string, edit func(*signoff.Request)) {
	w.t.Helper()
	w.Tick()
	req := w.Request("alice", action, edit)
	w.must(w.Append(req))
	for _, p := range []string{"bob", "carol", "dave", "erin"} {
		w.must(w.Append(w.Decide(p, req.Digest(), signoff.Approve)))
	}
	w.Wait("the warrant", func(s *authority.State) bool { return !s.Requests[req.Digest()].Warrant.IsZero() })
}
