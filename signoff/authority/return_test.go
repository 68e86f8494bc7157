package authority_test

import (
	"testing"

	"github.com/keyturn/keyturn/signoff"
)

// A log key that a recovery brought in and another replaced never comes back.
func TestAttackReturnToEarlierRecoveredKey(t *testing.T) {
	l := ready(t)
	k1, k2 := edKey(t), edKey(t)
	all := func() map[int]signoff.Seen { s := l.seen(); return map[int]signoff.Seen{0: s, 1: s, 2: s} }
	l.takes(l.recovers(l.seen(), k1, all(), nil))
	l.takes(l.recovers(l.seen(), k2, all(), nil))
	l.voids(l.recovers(l.seen(), k1, all(), nil), "was the log's before")
}
