package api_test

import (
	"crypto/sha256"
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/keyturn/keyturn/signoff/api"
)

// serve is a coordinator with the key that clients pin.
func serve(t *testing.T, h http.HandlerFunc) []api.Endpoint {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return []api.Endpoint{{URL: srv.URL, TLS: sha256.Sum256(srv.Certificate().RawSubjectPublicKeyInfo)}}
}

// Root on a coordinator sends its clients on, to a service that only they reach and
// that asks for no key.
func TestAttackRedirect(t *testing.T) {
	var reached atomic.Int64
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	t.Cleanup(inside.Close)
	for _, status := range []int{http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		c, err := api.NewClient(serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, inside.URL+"/erase", status) }), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, get := c.Checkpoint(t.Context(), true, 1, 0)
		for what, err := range map[string]error{"get": get, "post": c.Send(t.Context(), api.TopicWake, []byte("now"))} {
			if err == nil || !strings.Contains(err.Error(), http.StatusText(status)) {
				t.Errorf("%s after %d: %v", what, status, err)
			}
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d requests reached the other service", n)
	}
}

// A charter that names a coordinator without TLS names one that shows no key.
func TestAttackCoordinatorInClear(t *testing.T) {
	for _, address := range []string{"http://localhost:1", "localhost:1", "", "HTTP://localhost", "https://", "ftp://localhost"} {
		if _, err := api.NewClient([]api.Endpoint{{URL: address, TLS: api.Digest{1}}}, nil); err == nil {
			t.Errorf("a client of %q", address)
		}
	}
}

// A hostile coordinator answers with entries that fill its client's memory. As many
// as fit are taken; whoever wants more asks again.
func TestAttackAnswerThatFillsMemory(t *testing.T) {
	line := strings.Repeat("x", 60_000) + "\n"
	c, err := api.NewClient(serve(t, func(w http.ResponseWriter, r *http.Request) {
		for range 4 * api.MaxAnswer / len(line) {
			if _, err := io.WriteString(w, line); err != nil {
				return
			}
		}
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Entries(t.Context(), 0, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for _, l := range got {
		size += len(l)
	}
	if size < api.MaxAnswer || size > api.MaxAnswer+len(line) {
		t.Fatalf("%d bytes of entries", size)
	}
}
