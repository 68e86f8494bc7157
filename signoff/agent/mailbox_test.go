package agent_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A coordinator that restarts forgets its mail. The evidence for the epoch that
// is going on is sent to it again, long before the epoch ends.
func TestFaultMailboxForgotten(t *testing.T) {
	w := newWorld(t, "leases: {epoch: 600, lease: 7200, drainGrace: 2}", 1)
	m := w.nodes[0]
	var down atomic.Bool
	var refused, sent atomic.Int64
	var last atomic.Value // the digest sent last
	cfg := m.config()
	cfg.Endpoints = w.hostile(func(rw http.ResponseWriter, r *http.Request) bool {
		if down.Load() {
			refused.Add(1)
			http.Error(rw, "{}", http.StatusBadGateway)
			return true
		}
		if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/"+api.TopicEvidence) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return false
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			last.Store(string(body))
			sent.Add(1)
		}
		return false
	})
	m.startWith(cfg)
	m.enrol()
	w.Wait("the first epoch", func(s *authority.State) bool { return s.Epoch != nil })
	// The evidence that the epoch after it is to judge.
	w.until("evidence for the next epoch", func() bool {
		text, _ := last.Load().(string)
		digest, err := dsse.ParseDigest(text)
		if err != nil {
			return false
		}
		blob, err := w.Client.Blob(context.Background(), signoff.Digest(digest))
		if err != nil {
			return false
		}
		p, err := authority.ParsePresented(blob)
		if err != nil {
			return false
		}
		var floor uint64
		w.State(func(_ *authority.Authority, s *authority.State) { floor, _ = s.EvidenceFloor(m.id) })
		return p.Seen.Size >= floor
	})
	digest, before := last.Load(), sent.Load()
	down.Store(true)
	w.until("the agent to find the coordinator gone", func() bool { return refused.Load() > 1 })
	down.Store(false)
	w.until("the evidence to be sent again", func() bool { return sent.Load() > before })
	if again := last.Load(); again != digest {
		t.Errorf("other evidence was sent for the same epoch: %v, before %v", again, digest)
	}
}
