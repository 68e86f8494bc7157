package notary

import (
	"testing"
	"time"
)

// A journal says after a minute for whom it waits, and then ever more rarely;
// whoever came is not waited for any more.
func TestWaitingIsTold(t *testing.T) {
	var w longWait
	start := time.Unix(1_790_000_000, 0)
	for _, test := range []struct {
		what string
		at   time.Duration
		due  bool
	}{
		{"n3 n4", 0, false}, {"n3 n4", 59 * time.Second, false}, {"n3 n4", time.Minute, true}, {"n3 n4", 61 * time.Second, false},
		{"n3 n4", 2 * time.Minute, true}, {"n3 n4", 3 * time.Minute, false}, {"n3 n4", 4 * time.Minute, true},
		{"n4", 5 * time.Minute, false}, {"n4", 5*time.Minute + 59*time.Second, false}, {"n4", 6 * time.Minute, true},
		{"", 7 * time.Minute, false}, {"", 70 * time.Minute, false}, {"n4", 80 * time.Minute, false}, {"n4", 81 * time.Minute, true},
	} {
		if got := w.due(test.what, start.Add(test.at)); got != test.due {
			t.Errorf("waiting for %q at %s: due %v, want %v", test.what, test.at, got, test.due)
		}
	}
}
