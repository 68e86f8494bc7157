package coordinator_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/coordinator"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// One hostile person appends without end. Others go on, and a halt is taken from
// anybody.
func TestAttackPersonFillsTheLog(t *testing.T) {
	c := signofftest.Keys(t, nil)
	order, archive := ground(t, t.TempDir())
	co, err := coordinator.New(t.Context(), coordinator.Config{Charter: c.ID, Genesis: c.Genesis, Order: order, Archive: archive, LogKey: c.LogKey, Log: c.Log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- co.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	begun := httptest.NewRecorder()
	co.Handler().ServeHTTP(begun, httptest.NewRequest(http.MethodGet, fmt.Sprintf("/v1/checkpoint?size=%d&wait=30", len(c.Genesis)), nil))
	if begun.Code != http.StatusOK {
		t.Fatal(begun.Body)
	}
	post := func(doc *signoff.Signed) *httptest.ResponseRecorder {
		var id [16]byte
		rand.Read(id[:])
		r := httptest.NewRequest(http.MethodPost, "/v1/entries", bytes.NewReader(doc.Line()))
		r.Header.Set(api.HeaderID, hex.EncodeToString(id[:]))
		w := httptest.NewRecorder()
		co.Handler().ServeHTTP(w, r)
		return w
	}
	object := func(person string, created int64) *signoff.Signed {
		sharing := func(n int) signoff.Sharing {
			s := signoff.Sharing{Threshold: n}
			for range n {
				s.Commitments = append(s.Commitments, make([]byte, 32))
			}
			return s
		}
		return c.Sign(person, &signoff.Object{Charter: c.ID, Sealer: c.People[person].Doc.ID(), Name: "junk", Manifest: signoff.Digest{1}, Created: created,
			Lockbox: signoff.Lockbox{Salt: make([]byte, 32), People: sharing(c.Charter.Threshold), Machines: sharing(c.Charter.Quorum())},
			Summary: signoff.Summary{Files: 1}})
	}
	first := object("alice", 1)
	co.Ration(int64(len(first.Line()) * 3 / 2))
	if w := post(first); w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	if w := post(object("alice", 2)); w.Code != http.StatusTooManyRequests {
		t.Fatalf("more than her ration: %d: %s", w.Code, w.Body)
	}
	if w := post(object("bob", 1)); w.Code != http.StatusOK {
		t.Fatalf("bob: %d: %s", w.Code, w.Body)
	}
	for _, person := range []string{"alice", "bob"} {
		h := c.Sign(person, &signoff.Halt{Charter: c.ID, Person: c.People[person].Doc.ID(), Everything: true, Reason: "a test", Created: 1, Nonce: signofftest.Nonce()})
		if w := post(h); w.Code != http.StatusOK {
			t.Fatalf("a halt: %d: %s", w.Code, w.Body)
		}
	}
}
