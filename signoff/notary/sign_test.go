package notary

import (
	"testing"

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
