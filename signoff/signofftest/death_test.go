package signofftest_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A reaper kills a notary at each step that others can see: the first time it
// does something, before the coordinator hears of it; the second time, after
// the coordinator has taken it and before the notary knows.
type reaper struct {
	victim *signofftest.Notary
	dead   chan string // steps at which the victim was killed

	mu   sync.Mutex
	seen map[string]int
}

// step names what a request of the victim does; empty for everything else.
func (r *reaper) step(path string, body []byte) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if path == "/v1/cosignatures" {
		if bytes.Contains(body, []byte("\n— "+r.victim.Name+" ")) {
			return "cosignature"
		}
		return ""
	}
	doc, err := signoff.ReadLine(body)
	if err != nil || doc.Hint != r.victim.Doc.ID() {
		if strings.HasPrefix(path, "/v1/mail/positions") && bytes.Contains(body, []byte(r.victim.Doc.ID().Hex())) && err != nil {
			return "question after a restart"
		}
		return ""
	}
	if s, ok := doc.Doc.(*signoff.Signing); ok && len(s.Share) > 0 {
		return "signature share"
	}
	return string(doc.Doc.Kind())
}

// meddle stands before the coordinator.
func (r *reaper) meddle(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodPost {
			next.ServeHTTP(w, req)
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		switch step := r.step(req.URL.Path, body); r.count(step) {
		case 1:
			r.dead <- step + ", unheard"
			<-req.Context().Done() // the victim's process is gone
		case 2:
			next.ServeHTTP(discard{}, req)
			r.dead <- step + ", unanswered"
			<-req.Context().Done()
		default:
			next.ServeHTTP(w, req)
		}
	})
}

// discard is an answer that nobody reads.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

// count is how often the step was seen, 0 for no step.
func (r *reaper) count(step string) int {
	if step == "" {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[step]++
	return r.seen[step]
}

// A notary that is killed and started again at each step of key generation
// and of signing a warrant, before and after each is heard, takes every step
// in the end. Notary 4 is dead while the warrant is signed, so the victim is
// needed for it.
func TestDeadNotaryAtEachStep(t *testing.T) {
	t.Parallel()
	w := &world{signofftest.Keys(t, nil), t}
	victim := w.Notaries[1]
	r := &reaper{victim: victim, dead: make(chan string), seen: map[string]int{}}
	w.Host.Meddle = r.meddle
	w.Found()
	w.start(1, 2, 3, 4)
	stop := w.deaths(victim, r)
	w.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	w.Notaries[3].Stop()
	w.changePolicy("signed by those who are left")
	w.diedAt(stop(), "dkg-commitment", "dkg-dealing", "dkg-transcript", "cosignature", "signing", "signature share", "question after a restart", "position")
}
