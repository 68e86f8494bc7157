package signofftest_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/coordinator"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// boundary is a cluster in which notaries 5 and 6 are about to take the places
// of 3 and of 4, which is stopped and which a test may let lie: all new
// notaries have accepted, that is final, and nobody could hand in the takeover
// yet. Where it goes on, a hears takeovers and b does not.
func boundary(t *testing.T) (w *world, a, b *signofftest.Host) {
	t.Helper()
	t.Parallel()
	w = &world{signofftest.Keys(t, nil), t}
	w.Host.Meddle = without(signoff.KindTakeover)
	w.Found()
	w.start(1, 2, 3, 4)
	w.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	w.stop(4)
	w.Notaries = append(w.Notaries, w.Newcomer("n5"), w.Newcomer("n6"))
	w.start(5, 6)
	w.changeNotaries(1, w.Notaries[0], w.Notaries[1], w.Notaries[4], w.Notaries[5])
	w.Wait("all acceptances", func(s *authority.State) bool { _, ok := s.Incoming(); return ok })
	w.StopCoordinator()
	a, b = w.Host.Copy("branch-a"), w.Host.Copy("branch-b")
	b.Meddle = without(signoff.KindTakeover)
	a.Start()
	b.Start()
	return w, a, b
}

// without is a coordinator that hears no document of a kind, from anybody or by
// one notary.
func without(kind signoff.Kind, by ...*signofftest.Notary) func(http.Handler) http.Handler {
	unheard := func(doc *signoff.Signed) bool {
		return doc.Doc.Kind() == kind && (len(by) == 0 || doc.Hint == by[0].Doc.ID())
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodPost {
				body, err := io.ReadAll(req.Body)
				if err != nil {
					panic(http.ErrAbortHandler)
				}
				if doc, err := signoff.ReadLine(body); err == nil && unheard(doc) {
					panic(http.ErrAbortHandler)
				}
				req.Body = io.NopCloser(bytes.NewReader(body))
			}
			next.ServeHTTP(rw, req)
		})
	}
}

// A coordinator shows some the takeover and others a log that goes on without
// it. The branch with a quorum of the new council is final; the other one has a
// quorum of the old, the notary that leaves and lies among it, and never is,
// whoever is shown it afterwards.
func TestAttackTwoBranchesAtTheHandover(t *testing.T) {
	w, a, b := boundary(t)
	size := w.size()
	w.lay(a, 1, 5, 6)
	w.lay(b, 2, 3)
	b.Put(w.halt("bob", "the old council goes on").Line())
	w.cosign(b, 4, w.pending(b, size+1, 2))
	w.Use(a)
	w.inOffice(2)
	w.never(b, size+1)
	w.lay(b, 1, 5, 6)
	w.never(b, size+1)
	w.eventually("a notary says that the coordinator shows another log", func() bool { return w.Logged("shows another log") })
	note, err := b.Client.Checkpoint(t.Context(), false, size+1, 10*time.Second)
	w.must(err)
	if _, err := w.NewFollower(b.Client).Final(t.Context(), note); !errors.Is(err, proof.ErrNotFinal) {
		t.Fatalf("a newcomer on the branch without the takeover: %v", err)
	}
}

// The council that leaves is gone once it agreed, with a checkpoint pending that
// waits for it: the new one takes over all the same.
func TestFaultOldCouncilGoneAtTheHandover(t *testing.T) {
	w, a, _ := boundary(t)
	size := w.size()
	a.Put(w.halt("bob", "before the takeover").Line())
	w.pending(a, size+1, 0)
	w.stop(2)
	w.stop(3)
	w.lay(a, 1, 5, 6)
	w.Use(a)
	w.inOffice(2)
}

// The log stalls with the takeover on one branch and not on the other. The
// positions of a quorum of the council that takes over let the log go on under
// a new key, with the takeover; the old council's do not let it go on without,
// as the new one's quorum has to say so too.
func TestRecoverAcrossTheHandover(t *testing.T) {
	w, a, b := boundary(t)
	size := w.size()
	w.stop(6)
	w.lay(a, 1, 5)
	w.lay(b, 2, 3)
	w.pending(a, size+1, 2)
	b.Put(w.halt("bob", "the old council goes on").Line())
	w.cosign(b, 4, w.pending(b, size+1, 2))
	w.never(a, size+1)
	w.never(b, size+1)

	key := w.NewKey("log-2", hsm.KindEd25519)
	old, oldBase := w.positions(key, 2, 3, 4)
	lines, base := w.positions(key, 1, 5, 6)
	a.Stop()
	b.Stop()
	to := filepath.Join(t.TempDir(), "log")
	if err := coordinator.Recover(t.Context(), w.ID, b.LogDir(), to, w.recovery(key, old, oldBase)); err == nil {
		t.Fatal("recovered by the old council alone while another takes over")
	}
	c := w.recover(a, key, w.recovery(key, lines, base))
	c.Start()
	w.lay(c, 1, 2, 3, 5, 6)
	w.start(1, 2, 5, 6)
	w.Use(c)
	w.inOffice(2)
	w.State(func(_ *authority.Authority, s *authority.State) {
		if s.Recoveries != 1 || s.Term().Index >= base.Size {
			t.Errorf("%d recoveries, the term began at entry %d, recovered from %d", s.Recoveries, s.Term().Index, base.Size)
		}
	})
	note, err := c.Client.Checkpoint(t.Context(), true, base.Size+1, 0)
	w.must(err)
	if _, err := w.NewFollower(c.Client).Final(t.Context(), note); err != nil {
		t.Fatal("a newcomer:", err)
	}
	// The notary that cosigned the other branch is needed for this one.
	w.stop(1)
	w.changePolicy("after the recovery")
}
