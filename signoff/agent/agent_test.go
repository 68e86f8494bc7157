package agent_test

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff/agent"
)

// The whole way of a run: a node is enrolled, proves itself, holds a lease;
// people approve, notaries sign, and the run sees the plaintext. Once.
func TestRunFromEnrolmentToReceipt(t *testing.T) {
	w := newWorld(t, slow, 1)
	m := w.nodes[0]
	m.start()
	m.enrol()
	m.leased()
	warrant := w.launch("inputs", 1, m)

	other := m.run(t.Context(), warrant, "/bin/true")
	wantErr(t, other.end(), "people approved")

	r := m.run(t.Context(), warrant, w.probe)
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	if want := w.object.Hex() + "/model.bin: " + secret; !strings.Contains(r.output(), want) {
		t.Fatalf("the run wrote %q, want %q in it", r.output(), want)
	}
	for _, e := range []string{agent.EventClaimed, agent.EventOpened, agent.EventStarted, agent.EventEnded} {
		if !r.has(e) {
			t.Errorf("no event %s", e)
		}
	}
	if got := w.ended(warrant, 1); !strings.Contains(got[0], "exited: status 0") {
		t.Errorf("the receipt says %q", got[0])
	}

	again := m.run(t.Context(), warrant, w.probe)
	wantErr(t, again.end(), "all 1 uses")
}
