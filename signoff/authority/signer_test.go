package authority_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// signsOnly takes the exchange keys of some people out of a charter: their
// signing keys are in SSH agents, say, which open no share.
func signsOnly(names ...string) func(*signoff.Charter) {
	return func(c *signoff.Charter) {
		for i := range c.People {
			if slices.Contains(names, c.People[i].Name) {
				c.People[i].Exchange = signoff.PublicKey{}
			}
		}
	}
}

// fourOfFour wants four approvals wherever weights open, so that three shares
// come even if one of the four only signs.
func fourOfFour(c *signoff.Charter) {
	c.Policy = strings.NewReplacer(
		"        - atLeast: {k: 1, roles: [security, research, leadership, safety]}\n", "        - atLeast: {k: 2, roles: [security, research, leadership, safety]}\n",
		"quorum: {atLeast: {k: 3, roles: [security, research, leadership, safety]}}", "quorum: {atLeast: {k: 4, roles: [security, research, leadership, safety]}}",
	).Replace(signofftest.Policy)
}

// Under the policy of these tests three approve an export. If one of them could
// be somebody without a share, two shares would have to open it: that policy is
// none.
func TestAttackApproversWithTooFewShares(t *testing.T) {
	l := newLog(t, signsOnly("erin"))
	out, err := l.fold.Apply(l.Genesis[0], l.blobs)
	if err == nil {
		err = out.Void
	}
	if err == nil || !strings.Contains(err.Error(), "an approving set may hold only 2 shares") {
		t.Fatalf("the charter was taken: %v", err)
	}
	newLog(t, signsOnly("erin"), fourOfFour).founded()
}

// Who only signs is counted as one vote and no share, and brings none.
func TestApproverWithoutShare(t *testing.T) {
	l := ready(t, signsOnly("erin"), fourOfFour)
	if n := len(l.holders().People.Holders); n != 4 {
		t.Fatalf("shares are dealt to %d people, want 4", n)
	}
	r := l.takes(l.export("alice", l.sealed("model")))
	l.approves(r, "bob", "carol", "dave")
	if l.satisfied(r) {
		t.Fatal("three approvals satisfied a rule that wants four")
	}
	l.voids(l.decides("erin", signoff.Approve, r), "has no exchange key and was dealt none")
	l.takes(l.decides("erin", signoff.Approve, r, func(a *signoff.Approval) { a.Shares = nil }))
	if !l.satisfied(r) {
		t.Fatal("the fourth approval did not count")
	}
	w := l.takes(l.warrant(r))
	if n := len(l.state().Warrants[w].Doc.Approvals); n != 4 {
		t.Errorf("the warrant counts %d approvals", n)
	}
}

// A holder of shares cannot leave them out, and a person's tokens are alike: who
// approves is enough to know how many shares come with it.
func TestAttackShareLeftOut(t *testing.T) {
	l := ready(t, signsOnly("erin"), fourOfFour)
	r := l.takes(l.export("alice", l.sealed("model")))
	l.voids(l.decides("bob", signoff.Approve, r, func(a *signoff.Approval) { a.Shares = nil }), "1 shares are missing")
	spare := l.NewPerson("bob-agent", "lab", "security")
	spare.Doc.Exchange = signoff.PublicKey{}
	if _, err := l.state().People.Changed(ptr(l.gives("bob", spare, Digest{})), true, signoff.KeySet{}, nil); err == nil || !strings.Contains(err.Error(), "some have none") {
		t.Errorf("a token without an exchange key beside one with: %v", err)
	}
	full := l.NewPerson("erin-token", "watch", "security")
	if _, err := l.state().People.Changed(ptr(l.gives("erin", full, Digest{})), true, signoff.KeySet{}, nil); err == nil || !strings.Contains(err.Error(), "some have none") {
		t.Errorf("a token with an exchange key beside one without: %v", err)
	}
	c := *l.Charter
	c.People = slices.Clone(c.People)
	signsOnly("alice", "bob", "carol")(&c)
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "1 of 5 people have an exchange key") {
		t.Errorf("a charter of which nobody could open anything: %v", err)
	}
}

func ptr[T any](v T) *T { return &v }
