package notary

import (
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff/authority"
)

// Nothing is signed under a group that a recovery could still replace, and a
// reshare that is under way does not hold up the shares in use.
func TestGroupIsFinal(t *testing.T) {
	for name, c := range map[string]struct {
		group *frost.Group
		made  authority.Keygen
		want  bool
	}{
		"no group":         {nil, authority.Keygen{Term: 2, Done: true, Index: 3}, false},
		"its making":       {&frost.Group{}, authority.Keygen{Term: 2, Done: true, Index: 10}, false},
		"final":            {&frost.Group{}, authority.Keygen{Term: 2, Done: true, Index: 9}, true},
		"the next is made": {&frost.Group{}, authority.Keygen{Term: 3}, true},
		"the next waits":   {&frost.Group{}, authority.Keygen{Term: 3, Done: true, Index: 10}, true},
	} {
		s := &authority.State{Group: c.group, Keygen: &c.made, Terms: []*authority.Term{{Number: 1}, {Number: 2}}}
		if got := (look{state: s, final: 10}).groupFinal(); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// A fault is shown when it is this notary's turn, again if the log does not take
// it, and forgotten only when the log names its culprit for good.
func TestFaultsAreShown(t *testing.T) {
	now := time.Unix(1000, 0)
	who := culprit{Digest{4}, 2}
	n := &Notary{faults: map[culprit]*fault{who: {nil, now.Add(time.Second)}}}
	named := func(term uint32) []*authority.Conviction {
		return []*authority.Conviction{{Notary: who.notary, Term: term, Index: 9}}
	}
	for _, c := range []struct {
		what     string
		after    time.Duration
		convicts []*authority.Conviction
		final    uint64
		acts     bool
		kept     int
	}{
		{"not its turn", 0, nil, 9, false, 1},
		{"its turn", time.Second, nil, 9, true, 1},
		{"just shown", 2 * time.Second, nil, 9, false, 1},
		{"another showed it, which may be lost", time.Hour, named(2), 9, false, 1},
		{"it was lost", time.Hour, nil, 9, true, 1},
		{"convicted in another term", 2 * time.Hour, named(1), 10, true, 1},
		{"convicted", 3 * time.Hour, named(2), 10, false, 0},
	} {
		act, err := n.planFaults(look{state: &authority.State{Convicts: c.convicts}, final: c.final, now: now.Add(c.after)})
		if err != nil || (act != nil) != c.acts || len(n.faults) != c.kept {
			t.Errorf("%s: acts %t, keeps %d, %v", c.what, act != nil, len(n.faults), err)
		}
	}
}
