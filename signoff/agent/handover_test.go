package agent_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/agent"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// hears is a coordinator that takes no releases but the first notary's, until it
// is told to.
func hears(all *atomic.Bool, first *signofftest.Notary) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodPost && !all.Load() {
				body, err := io.ReadAll(req.Body)
				if err != nil {
					panic(http.ErrAbortHandler)
				}
				if doc, err := signoff.ReadLine(body); err == nil && doc.Doc.Kind() == signoff.KindRelease && doc.Hint != first.Doc.ID() {
					panic(http.ErrAbortHandler)
				}
				req.Body = io.NopCloser(bytes.NewReader(body))
			}
			next.ServeHTTP(rw, req)
		})
	}
}

// A use that was claimed before the notaries changed, and for which one of them
// had released, opens with the shares that they dealt anew meanwhile; so does the
// next use of the same warrant, with one that left gone.
func TestLaunchWhileTheNotariesChange(t *testing.T) {
	w := newWorld(t, slow, 1)
	m := w.nodes[0]
	m.start()
	m.enrol()
	m.leased()
	warrant := w.launch("inputs", 2, m)
	var all atomic.Bool
	w.StopCoordinator()
	w.Host.Meddle = hears(&all, w.Notaries[0])
	w.StartCoordinator()
	m.listed(warrant)
	r := m.run(t.Context(), warrant, w.probe)
	r.await(agent.EventClaimed)
	released := func(epoch uint32) (n int) {
		w.State(func(_ *authority.Authority, s *authority.State) {
			for _, rs := range s.Releases {
				for _, x := range rs {
					if x.Share.Epoch == epoch {
						n++
					}
				}
			}
		})
		return n
	}
	w.Wait("the first release", func(s *authority.State) bool { return len(s.Releases) > 0 })

	n5 := w.Newcomer("n5")
	w.StartNotary(n5)
	w.grants(signoff.ActionNotaries, func(r *signoff.Request) {
		r.Notaries = &signoff.NotaryChange{Term: 1, Faults: 1}
		for _, y := range append(w.Notaries[:3:3], n5) {
			r.Notaries.Notaries = append(r.Notaries.Notaries, y.Doc)
		}
	})
	w.Wait("shares to follow", func(s *authority.State) bool { return s.Objects[w.object].Machines.Epoch == 2 })
	if n := released(1); n != 1 || r.has(agent.EventOpened) {
		t.Fatalf("%d releases of the first epoch; opened %v", n, r.has(agent.EventOpened))
	}
	all.Store(true)
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	if want := w.object.Hex() + "/model.bin: " + secret; !strings.Contains(r.output(), want) {
		t.Fatalf("the run wrote %q, want %q in it", r.output(), want)
	}
	w.Notaries[3].Stop()
	w.Notaries[2].Stop() // so that the newcomer is needed
	if err := m.run(t.Context(), warrant, w.probe).end(); err != nil {
		t.Fatal(err)
	}
}
