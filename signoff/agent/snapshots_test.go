package agent_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/agent"
	"github.com/keyturn/keyturn/signoff/authority"
)

const outputBytes = 1 << 20

// snapshots are the events of a run that tell of kept or lost ones, by name.
func (r *running) snapshots(event string) map[string]agent.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]agent.Event{}
	for _, e := range r.seen {
		if e.Event == event {
			out[e.Text] = e
		}
	}
	return out
}

// A run's snapshots are sealed, logged with their claim, and open to a later use
// of the same warrant, on another node of its pool, without the people.
func TestSnapshots(t *testing.T) {
	w := newWorld(t, slow, 2)
	w.output = outputBytes
	one, two := w.nodes[0], w.nodes[1]
	for _, m := range w.nodes {
		m.start()
		m.enrol()
	}
	one.leased()
	two.leased()
	warrant := w.launch("snapshot", 2, one, two)
	first := one.run(t.Context(), warrant, w.probe)
	w.must(first.end())
	kept := first.snapshots(agent.EventKept)
	if len(kept) != 2 || !strings.Contains(first.output(), "step-1 is kept") {
		t.Fatalf("kept %v; the run wrote %q", kept, first.output())
	}
	snapshot := kept["step-2"].Object
	w.Wait("the snapshots' deals", func(s *authority.State) bool {
		return !slices.ContainsFunc(slices.Collect(maps.Values(kept)), func(e agent.Event) bool {
			o := s.Objects[e.Object]
			return o == nil || o.People.Epoch != 1
		})
	})
	w.State(func(_ *authority.Authority, s *authority.State) {
		for name, e := range kept {
			if doc := s.Objects[e.Object].Doc; doc.Claim != e.Claim || doc.Sealer != one.id {
				t.Errorf("%s is in the log as %+v", name, doc)
			}
		}
		text, err := s.Display(s.Warrants[warrant].Doc.Request)
		if err != nil || !strings.Contains(text, "up to 1048576 bytes of snapshots") {
			t.Errorf("people saw %s, %v", text, err)
		}
	})
	dirs, err := os.ReadDir(w.snapshots)
	w.must(err)
	if len(dirs) != 2 {
		t.Errorf("%d sealed directories, want 2", len(dirs))
	}
	w.leak(w.snapshots, "trained")

	second := two.resume(t.Context(), warrant, w.probe, snapshot)
	w.must(second.end())
	if !strings.Contains(second.output(), "resume/state: trained more") || !strings.Contains(second.output(), secret) {
		t.Errorf("the second use saw %q", second.output())
	}
}

// leak fails if a file below dir holds text.
func (w *world) leak(dir, text string) {
	w.t.Helper()
	w.must(filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), text) {
			w.t.Errorf("%s holds plaintext", path)
		}
		return err
	}))
}

// What a run leaves that is no plain directory of plain files is not sealed, and
// nothing of the host comes along.
func TestAttackSnapshotsOfTheHost(t *testing.T) {
	w := newWorld(t, slow, 1)
	w.output = outputBytes
	m := w.nodes[0]
	m.start()
	m.enrol()
	m.leased()
	r := m.run(t.Context(), w.launch("tricks", 1, m), w.probe)
	w.must(r.end())
	if kept := r.snapshots(agent.EventKept); len(kept) != 1 || kept["Good_1"].Object.IsZero() {
		t.Errorf("kept %v, want Good_1 alone", kept)
	}
	lost := r.snapshots(agent.EventLost)
	for _, part := range []string{"snapshot link", "symbolic link", "snapshot file", `"Bad name"`, "snapshot empty"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(lost)), func(text string) bool { return strings.Contains(text, part) }) {
			t.Errorf("none of %d refusals tells of %q: %v", len(lost), part, lost)
		}
	}
}

// A run that leaves thousands of things that are no snapshots is told of some.
func TestAttackFloodOfSnapshots(t *testing.T) {
	w := newWorld(t, slow, 1)
	w.output = outputBytes
	m := w.nodes[0]
	m.start()
	m.enrol()
	m.leased()
	r := m.run(t.Context(), w.launch("flood", 1, m), w.probe)
	w.must(r.end())
	if lost := r.snapshots(agent.EventLost); len(lost) == 0 || len(lost) > 64 {
		t.Errorf("told of %d lost snapshots, want some, at most 64", len(lost))
	}
}

// A snapshot belongs to the run that made it: another warrant's use does not
// open it, and nobody but its node registers one, in its time.
func TestAttackSnapshotsOfAnother(t *testing.T) {
	w := newWorld(t, slow, 1)
	w.output = outputBytes
	m := w.nodes[0]
	m.start()
	m.enrol()
	m.leased()
	r := m.run(t.Context(), w.launch("snapshot", 2, m), w.probe)
	w.must(r.end())
	kept := r.snapshots(agent.EventKept)["step-1"]
	other := w.launch("snapshot", 1, m)
	wantErr(t, m.resume(t.Context(), other, w.probe, kept.Object).end(), "no snapshot of a run under warrant")
	wantErr(t, m.resume(t.Context(), other, w.probe, w.object).end(), "no snapshot of a run under warrant")
	wantErr(t, m.resume(t.Context(), other, w.probe, signoff.Digest{9}).end(), "is not in the log")

	// The claim has ended; and a person's key is none of the node's.
	var doc signoff.Object
	w.Wait("the snapshot", func(s *authority.State) bool { return s.Objects[kept.Object] != nil })
	w.State(func(_ *authority.Authority, s *authority.State) { doc = *s.Objects[kept.Object].Doc })
	doc.Name = "forged"
	wantErr(t, w.refused(w.Sign("alice", &doc)), "the document names key")
	doc.Sealer = w.People["alice"].Doc.ID()
	wantErr(t, w.refused(w.Sign("alice", &doc)), "not an enrolled node")
}

// refused is why the log does not take a document.
func (w *world) refused(doc *signoff.Signed) error {
	w.t.Helper()
	_, err := w.Client.Append(w.t.Context(), doc.Line())
	if err == nil {
		w.t.Fatal("the log took the document")
	}
	return err
}
