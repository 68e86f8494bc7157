package authority_test

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// Whoever carries documents decides in which order they arrive. An approval
// held back until after its own withdrawal does not count.
func TestAttackApprovalHeldBackBehindItsWithdrawal(t *testing.T) {
	for _, no := range []signoff.Decision{signoff.Withdraw, signoff.Reject} {
		t.Run(string(no), func(t *testing.T) {
			l := ready(t)
			r := l.takes(l.export("dave", l.sealed("model")))
			l.approves(r, "carol", "alice")
			held := l.decides("bob", signoff.Approve, r)
			l.takes(l.decides("bob", no, r))
			l.voids(held, "signed before the same person's "+string(no))
			if l.satisfied(r) {
				t.Fatal("a withdrawn approval counts")
			}
			l.approves(r, "bob") // who has seen the no may say yes again
			if !l.satisfied(r) {
				t.Fatal("a person cannot change their mind twice")
			}
		})
	}
}

// A no signed under the rule of yesterday, or of a text that reads differently
// now, stops all the same: stopping is easier than starting.
func TestANoCountsUnderAnyRule(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("erin", l.sealed("model")))
	l.approves(r, "bob", "carol", "alice")
	veto := l.decides("dave", signoff.Reject, r)
	p := l.takes(l.policy("dave", strings.Replace(signofftest.Policy, "k: 1, role: leadership", "k: 1, role: security", 1)))
	l.approves(p, "alice", "bob", "carol", "erin")
	l.takes(l.warrant(p))
	l.takes(veto)
	if why := l.state().Requests[r].Ended; why != "vetoed" {
		t.Fatalf("the request ended %q", why)
	}
	// But never one that was shown another log.
	r = l.takes(l.export("erin", l.sealed("model two")))
	l.voids(l.decides("dave", signoff.Reject, r, func(a *signoff.Approval) { a.Seen.Root[0] ^= 1 }), "fork")
}

// A policy that leaves the rule as it is does not void approvals, and the
// warrant names the policy in force at its own index.
func TestWarrantNamesThePolicyInForce(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	l.approves(r, "bob", "carol", "alice")
	early := l.warrant(r)
	p := l.takes(l.policy("dave", strings.Replace(signofftest.Policy, "uses: 4", "uses: 3", 1)))
	l.approves(p, "alice", "bob", "carol", "erin")
	l.takes(l.warrant(p))
	l.voids(early, "not the one the log gives")
	w := l.warrant(r)
	if got := w.Doc.(*signoff.Warrant).Policy; got != l.state().Policy.Digest {
		t.Fatalf("the warrant names policy %s, in force is %s", got, l.state().Policy.Digest)
	}
	l.takes(w)
}

func TestAttackPolicyThatNobodyOrAnybodySatisfies(t *testing.T) {
	l := ready(t)
	for name, c := range map[string]struct{ old, to string }{
		"no approvals":       {"{k: 4, roles:", "{k: 0, roles:"},
		"fewer than shares":  {"- atLeast: {k: 1, roles: [security, research, leadership, safety]}", "- atLeast: {k: 1, role: leadership}"},
		"more than there":    {"k: 1, role: leadership", "k: 2, role: leadership"},
		"a role of nobody":   {"k: 1, role: leadership", "k: 1, role: leadershlp"},
		"no halt":            {"action: halt", "action: weights.open"},
		"halt by two":        {"action: halt\n    quorum: {atLeast: {k: 1,", "action: halt\n    quorum: {atLeast: {k: 2,"},
		"unknown member":     {"veto: [safety]\n    expiry: 86400\n  - name: launch", "vetoes: [safety]\n    expiry: 86400\n  - name: launch"},
		"easier to resume":   {"action: resume\n    quorum: {atLeast: {k: 3,", "action: resume\n    quorum: {atLeast: {k: 1,"},
		"control characters": {"version: 1", "version: 1 # \x1b[2J"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(signofftest.Policy, c.old, c.to, 1)
			if text == signofftest.Policy {
				t.Fatal("the policy was not changed, so this shows nothing")
			}
			l.voids(l.policy("dave", text), "")
		})
	}
}

func TestAttackWhoMayHalt(t *testing.T) {
	l := ready(t, func(c *signoff.Charter) {
		c.Policy = strings.Replace(c.Policy, "action: halt\n    quorum: {atLeast: {k: 1, roles: [security, research, leadership, safety]}}",
			"action: halt\n    quorum: {atLeast: {k: 1, roles: [safety, security]}}", 1)
	})
	l.voids(l.halts("carol", everything), "may not halt")
	l.takes(l.halts("dave", everything))
	// Halts stand in the way of exports alone: never of policy or resume.
	r := l.takes(l.export("dave", l.sealed("model")))
	l.approves(r, "bob", "carol", "alice")
	if _, _, err := l.state().DeriveWarrant(r); err == nil || !strings.Contains(err.Error(), "stands") {
		t.Fatalf("an export under a halt: %v", err)
	}
	p := l.takes(l.policy("dave", strings.Replace(signofftest.Policy, "uses: 4", "uses: 3", 1)))
	l.approves(p, "alice", "bob", "carol", "erin")
	l.takes(l.warrant(p))
}

// recovers is a Recovery signed by n1, with positions of the notaries given.
func (l *log) recovers(base signoff.Seen, key signoff.PublicKey, positions map[int]signoff.Seen, edit func(*signoff.Position)) *signoff.Signed {
	l.t.Helper()
	r := &signoff.Recovery{Charter: l.ID, Log: key, Base: base}
	fp := key.Fingerprint()
	for i, y := range l.Notaries {
		seen, ok := positions[i]
		if !ok {
			continue
		}
		p := &signoff.Position{Charter: l.ID, Notary: y.Doc.ID(), Seen: seen, Answer: fp[:]}
		if edit != nil {
			edit(p)
		}
		r.Positions = append(r.Positions, string(l.signed(y.Signing, p).Line()))
	}
	return l.signed(l.Notaries[0].Signing, r)
}

func TestRecovery(t *testing.T) {
	l := ready(t)
	older, key := l.seen(), edKey(t)
	l.sealed("model")
	at := l.seen
	for _, c := range []struct {
		name   string
		make   func() *signoff.Signed
		reason string
	}{
		{"too few", func() *signoff.Signed {
			return l.recovers(at(), key, map[int]signoff.Seen{0: at(), 1: at()}, nil)
		}, "2 notaries stated their position, want 3"},
		{"one notary thrice", func() *signoff.Signed {
			r := l.recovers(at(), key, map[int]signoff.Seen{0: at()}, nil).Doc.(*signoff.Recovery)
			r.Positions = []string{r.Positions[0], r.Positions[0], r.Positions[0]}
			return l.signed(l.Notaries[0].Signing, r)
		}, "two positions by"},
		{"nobody stands there", func() *signoff.Signed {
			return l.recovers(at(), key, map[int]signoff.Seen{0: older, 1: older, 2: older}, nil)
		}, "no notary's position is the base"},
		{"somebody stands further", func() *signoff.Signed {
			further := signoff.Seen{Size: at().Size + 1, Root: Digest{1}}
			return l.recovers(at(), key, map[int]signoff.Seen{0: at(), 1: at(), 2: further}, nil)
		}, "may prove a fork"},
		{"somebody stands on a branch", func() *signoff.Signed {
			branch := signoff.Seen{Size: older.Size, Root: Digest{1}}
			return l.recovers(at(), key, map[int]signoff.Seen{0: at(), 1: at(), 2: branch}, nil)
		}, "proves a fork"},
		{"another base", func() *signoff.Signed {
			return l.recovers(older, key, map[int]signoff.Seen{0: older, 1: older, 2: older}, nil)
		}, "stands at entry"},
		{"the old key", func() *signoff.Signed {
			return l.recovers(at(), l.Charter.Log, map[int]signoff.Seen{0: at(), 1: at(), 2: at()}, nil)
		}, "is the old one"},
		{"positions for another key", func() *signoff.Signed {
			other := edKey(t).Fingerprint()
			return l.recovers(at(), key, map[int]signoff.Seen{0: at(), 1: at(), 2: at()}, func(p *signoff.Position) { p.Answer = other[:] })
		}, "another log key"},
		{"answers to a restart", func() *signoff.Signed {
			return l.recovers(at(), key, map[int]signoff.Seen{0: at(), 1: at(), 2: at()}, func(p *signoff.Position) { p.Answer = p.Answer[:16] })
		}, "another log key"},
		{"a witness key as log key", func() *signoff.Signed {
			return l.recovers(at(), l.Notaries[1].Doc.Witness, map[int]signoff.Seen{0: at(), 1: at(), 2: at()}, nil)
		}, "same key"},
	} {
		t.Run(c.name, func(t *testing.T) { l.voids(c.make(), c.reason) })
	}
	byPerson := l.recovers(l.seen(), key, map[int]signoff.Seen{0: l.seen(), 1: l.seen(), 2: l.seen()}, nil).Doc
	l.voids(l.signed(l.People["bob"].Signing, byPerson), "is not a notary")
	// One that never cosigned anything stands on every log.
	l.takes(l.recovers(l.seen(), key, map[int]signoff.Seen{0: l.seen(), 1: older, 2: {}}, nil))
	if l.state().LogKey.Fingerprint() != key.Fingerprint() {
		t.Fatal("the log key is the old one")
	}
	old := l.recovers(l.seen(), l.Charter.Log, map[int]signoff.Seen{0: l.seen(), 1: l.seen(), 2: l.seen()}, nil)
	l.voids(old, "was the log's before")
}

func TestAttackPositionIsNeitherOrBoth(t *testing.T) {
	l := newLog(t)
	for _, p := range []signoff.Position{
		{Answer: make([]byte, 15)}, {Answer: make([]byte, 64)}, {},
		{Answer: make([]byte, 16), Seen: signoff.Seen{Size: 3}}, {Answer: make([]byte, 16), Seen: signoff.Seen{Root: Digest{1}}},
	} {
		p.Charter, p.Notary = l.ID, l.Notaries[0].Doc.ID()
		if _, err := signoff.Write(&p); err == nil {
			t.Errorf("position %+v was written", p)
		}
	}
}

func TestAttackKeygen(t *testing.T) {
	l := newLog(t).founded()
	y := l.Notaries[0]
	ceremony, err := l.state().Ceremony()
	l.must(err)
	if _, err := ceremony.Group(nil); err == nil {
		t.Fatal("a group of nobody")
	}
	dealt := &signoff.Dealing{Charter: l.ID, Notary: y.Doc.ID(), Term: 1, Attempt: 1, Shares: [][]byte{{1}, {1}, {1}, {1}}}
	l.voids(l.signed(y.Signing, dealt), "not every dealer has committed")
	copied := ready(t) // another cluster's proofs of possession
	for _, line := range copied.lines[len(copied.Genesis):][:4] {
		d, err := signoff.ReadLine(line)
		l.must(err)
		c := *d.Doc.(*signoff.Commitment)
		c.Charter, c.Notary = l.ID, y.Doc.ID()
		l.voids(l.signed(y.Signing, &c), "frost")
		c.Attempt = 2
		l.voids(l.signed(y.Signing, &c), "attempt 1 is under way")
	}
	l.keygen()
	l.voids(l.signed(y.Signing, dealt), "have their shares of term 1")
	accuse := &signoff.Transcript{Charter: l.ID, Notary: y.Doc.ID(), Term: 1, Attempt: 1, Digest: Digest{1}, Group: make([]byte, 32), Accused: []Digest{l.Notaries[1].Doc.ID()}}
	l.voids(l.signed(y.Signing, accuse), "have their shares of term 1")
}

// Production charters refuse what shows itself as software, everywhere.
func TestAttackSoftwareKeyAnywhereInProduction(t *testing.T) {
	c := *signofftest.Keys(t, nil).Charter
	c.Development = false
	keys := []*signoff.PublicKey{&c.Log}
	for i := range c.People {
		keys = append(keys, &c.People[i].Signing, &c.People[i].Exchange)
	}
	for i := range c.Notaries {
		keys = append(keys, &c.Notaries[i].Signing, &c.Notaries[i].Exchange, &c.Notaries[i].Witness)
	}
	for _, k := range keys {
		k.Class = hsm.ClassWitnessed
	}
	if err := c.Validate(); err != nil {
		t.Fatalf("a production charter of witnessed keys: %v", err)
	}
	for i, k := range keys {
		for _, class := range []hsm.Class{hsm.ClassSoftware, hsm.ClassSelfDeclared, "", "Attested"} {
			k.Class = class
			if err := c.Validate(); err == nil {
				t.Errorf("key %d of class %q was accepted", i, class)
			}
		}
		k.Class = hsm.ClassWitnessed
	}
}
