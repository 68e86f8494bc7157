package notary_test

import (
	"testing"
	"time"

	"github.com/keyturn/keyturn/signoff/notary"
)

// A stranger wakes the notaries all day. The log grows no faster than it does on a
// busy day, and a round that was granted is not counted again until it is there.
func TestAttackWokenWithoutPause(t *testing.T) {
	var w notary.Wakes
	now, round := time.Unix(1_790_000_000, 0), uint64(0)
	for end := now.Add(24 * time.Hour); now.Before(end); now = now.Add(2 * time.Second) {
		if !w.Take(round+1, now) {
			continue
		}
		if round++; !w.Take(round, now) {
			t.Fatalf("round %d is refused after it was granted", round)
		}
	}
	if most := uint64(notary.WakeBurst + 24*3600/20 + 1); round > most || round < most-2 {
		t.Fatalf("%d rounds in a day, want %d", round, most)
	}
}
