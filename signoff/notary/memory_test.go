package notary_test

import (
	"testing"

	"github.com/keyturn/keyturn/hsm/secret/secrettest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// After four notaries made a group key and signed with it, no share stands in
// the memory of the process that they all live in.
func TestAttackShareInMemory(t *testing.T) {
	c := signofftest.Start(t, nil)
	c.Tick()
	req := c.Request("alice", signoff.ActionPolicyChange, func(r *signoff.Request) {
		r.Policy = &signoff.PolicyChange{Policy: signofftest.Policy + "# changed\n"}
	})
	if err := c.Append(req); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"bob", "carol", "dave", "erin"} {
		if err := c.Append(c.Decide(p, req.Digest(), signoff.Approve)); err != nil {
			t.Fatal(err)
		}
	}
	c.Wait("the warrant", func(s *authority.State) bool { return !s.Requests[req.Digest()].Warrant.IsZero() })
	for _, n := range c.Notaries {
		n.Stop()
		y := c.OpenNotary(n)
		forms, err := y.ShareForms(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for form, needle := range forms {
			look(t, n.Name+"'s share, "+form, needle)
		}
		if err := y.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// look finds nothing, and a control copy when there is one: the search works.
func look(t *testing.T, what string, needle secrettest.Needle) {
	t.Helper()
	n, err := secrettest.Count(0, needle)
	if err != nil || n != 0 {
		t.Errorf("%s: found %d times, want none: %v", what, n, err)
	}
	control := secrettest.Show(needle)
	n, err = secrettest.Count(0, needle)
	if err != nil || n == 0 {
		t.Errorf("%s: a control copy was not found: %v", what, err)
	}
	clear(control)
}
