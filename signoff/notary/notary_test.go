package notary_test

import (
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// The whole way of a decision: a request, approvals by enough people, a
// warrant by enough notaries, its effect.
func TestPolicyChangeByFourPeople(t *testing.T) {
	c := signofftest.Start(t, nil)
	c.Tick()
	req := c.Request("alice", signoff.ActionPolicyChange, func(r *signoff.Request) {
		r.Policy = &signoff.PolicyChange{Policy: signofftest.Policy + "# changed\n"}
	})
	if err := c.Append(req); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"bob", "carol", "dave", "erin"} {
		c.State(func(_ *authority.Authority, s *authority.State) {
			if s.Requests[req.Digest()].Satisfied != nil {
				t.Fatalf("satisfied before %s approved", p)
			}
		})
		if err := c.Append(c.Decide(p, req.Digest(), signoff.Approve)); err != nil {
			t.Fatal(err)
		}
	}
	c.Wait("the warrant", func(s *authority.State) bool { return !s.Requests[req.Digest()].Warrant.IsZero() })
	c.State(func(_ *authority.Authority, s *authority.State) {
		if s.Policy.Text != signofftest.Policy+"# changed\n" {
			t.Fatal("the policy did not change")
		}
	})
}
