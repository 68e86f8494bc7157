package api_test

import (
	"encoding/json"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/keyturn/keyturn/signoff/api"
)

// A coordinator restarts: its box is another, and numbers begin anew. Whoever
// takes no message to mean that there is none misses nothing by it.
func TestReaderOfAnotherBox(t *testing.T) {
	boxes := []api.Mail{
		{Box: "before", Messages: []api.Message{{Number: 1, Body: []byte("a")}, {Number: 2, Body: []byte("b")}}},
		{Box: "after", Messages: []api.Message{{Number: 1, Body: []byte("c")}}},
	}
	var now atomic.Int64
	c, err := api.NewClient(serve(t, func(w http.ResponseWriter, r *http.Request) {
		after, err := strconv.ParseUint(r.FormValue("after"), 10, 64)
		if err != nil {
			t.Error(err)
		}
		box := boxes[now.Load()]
		shown := api.Mail{Box: box.Box, Messages: []api.Message{}}
		for _, m := range box.Messages {
			if m.Number > after {
				shown.Messages = append(shown.Messages, m)
			}
		}
		if err := json.NewEncoder(w).Encode(shown); err != nil {
			t.Error(err)
		}
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	r := api.NewReader("evidence")
	for _, step := range []struct {
		box  int64
		want string
	}{{0, "ab"}, {0, ""}, {1, "c"}, {1, ""}} {
		now.Store(step.box)
		msgs, err := r.Receive(t.Context(), c, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, m := range msgs {
			got += string(m)
		}
		if got != step.want {
			t.Errorf("from box %d: %q, want %q", step.box, got, step.want)
		}
	}
}
