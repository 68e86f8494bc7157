package authority_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// people is a person's request to change who belongs.
func (l *log) people(person string, c signoff.PeopleChange) *signoff.Signed {
	l.t.Helper()
	return l.asks(person, signoff.ActionPeopleChange, func(r *signoff.Request) { r.People = &c })
}

// accepts is a newcomer's word that the token is there.
func (l *log) accepts(p *signofftest.Person, request Digest) *signoff.Signed {
	l.t.Helper()
	return l.signed(p.Signing, &signoff.Acceptance{Charter: l.ID, Person: p.Doc.ID(), Request: request})
}

// spare makes a second token for somebody, in the test's books a person of its
// own who signs in the other's name.
func (l *log) spare(of string) *signofftest.Person {
	l.t.Helper()
	return l.NewPerson(of+"-spare", "lab", "research")
}

// changes carries a change of people through: asked by alice, accepted by the
// tokens that come, approved by three and warranted.
func (l *log) changes(c signoff.PeopleChange, newcomers ...*signofftest.Person) Digest {
	l.t.Helper()
	r := l.takes(l.people("alice", c))
	for _, p := range newcomers {
		l.takes(l.accepts(p, r))
	}
	l.approves(r, "bob", "carol", "dave")
	return l.takes(l.warrant(r))
}

func (l *log) id(person string) Digest { return l.People[person].Doc.ID() }

func adds(people ...*signofftest.Person) (c signoff.PeopleChange) {
	for _, p := range people {
		c.Add = append(c.Add, p.Doc)
	}
	return c
}

func (l *log) removes(people ...string) (c signoff.PeopleChange) {
	for _, p := range people {
		c.Remove = append(c.Remove, l.id(p))
	}
	return c
}

// gives is a change that gives somebody a token, in the place of old if that is
// somebody.
func (l *log) gives(person string, token *signofftest.Person, old Digest) signoff.PeopleChange {
	return signoff.PeopleChange{Tokens: []signoff.TokenChange{{Person: l.id(person), Retire: old, Add: &token.Doc.Token}}}
}

func TestPeopleComeAndGo(t *testing.T) {
	l := ready(t)
	frank := l.NewPerson("frank", "third", "leadership")
	change := adds(frank)
	change.Remove = []Digest{l.id("erin")}
	r := l.takes(l.people("alice", change))
	l.approves(r, "bob", "carol", "dave")
	if l.satisfied(r) {
		t.Fatal("a change is satisfied before the new token has shown that it is there")
	}
	l.takes(l.accepts(frank, r))
	before := l.state().Policy.Digest
	l.takes(l.warrant(r))
	s := l.state()
	m, ok := s.Person(frank.Doc.ID())
	if !ok || m.Index != 6 || m.Name != "frank" {
		t.Fatalf("frank is %+v", m)
	}
	if _, ok := s.Person(l.id("erin")); ok || s.PersonName(l.id("erin")) != "erin" {
		t.Fatal("erin is still here, or forgotten")
	}
	if s.Policy.Digest != before {
		t.Fatal("the policy's text changed with the people")
	}
	// He counts: with him a rule is met that would not be without.
	p := l.takes(l.policy("alice", signofftest.Policy))
	l.approves(p, "bob", "carol", "dave", "frank")
	if !l.satisfied(p) {
		t.Fatal("frank's approval does not count")
	}
	if again := l.again(); again.StateDigest() != l.fold.StateDigest() {
		t.Fatal("the same entries folded to another state")
	}
}

// A share index that was somebody's is never another's, even that of the last.
func TestAttackShareIndexReused(t *testing.T) {
	l := readyWith(t, []string{"gina"})
	l.changes(l.removes("gina"))
	frank := l.NewPerson("frank", "watch", "security", "research")
	l.changes(adds(frank), frank)
	if m, _ := l.state().Person(frank.Doc.ID()); m.Index != 7 {
		t.Fatalf("frank has share index %d, which gina may still hold a share of", m.Index)
	}
}

func TestAttackRemovedPersonsApproval(t *testing.T) {
	l := readyWith(t, []string{"gina"})
	r := l.takes(l.policy("alice", signofftest.Policy))
	l.approves(r, "bob", "carol", "dave", "erin")
	if !l.satisfied(r) {
		t.Fatal("four approvals do not satisfy a rule for four")
	}
	warrant := l.warrant(r)
	late := l.decides("erin", signoff.Withdraw, r)
	l.changes(l.removes("erin"))
	if l.satisfied(r) {
		t.Fatal("the approval of somebody who left still counts")
	}
	l.voids(warrant, "is not satisfied")
	l.voids(late, "no longer a person")
	l.voids(l.halts("erin", everything), "no longer a person")
	l.voids(l.people("erin", l.removes("bob")), "no longer a person")
	// Those who stay look at it again: the rule has other people now.
	l.voids(l.decides("bob", signoff.Approve, r, func(a *signoff.Approval) { a.Rule = l.state().Requests[r].Votes[0].Doc.Rule }), "look at the request again")
	l.approves(r, "bob", "carol", "dave")
	if l.satisfied(r) {
		t.Fatal("three approvals satisfied a rule for four")
	}
}

// Whoever asked cannot leave, come back under another key and approve.
func TestAttackRequesterLeavesAndReturns(t *testing.T) {
	l := readyWith(t, []string{"gina"})
	r := l.takes(l.policy("erin", signofftest.Policy))
	l.approves(r, "bob", "carol", "dave")
	l.changes(l.removes("erin"))
	if why := l.state().Requests[r].Ended; why != "the requester has left" {
		t.Fatalf("the request of somebody who left ended %q", why)
	}
	back := l.NewPerson("erin-again", "watch", "security")
	l.changes(adds(back), back)
	l.voids(l.signed(back.Signing, &signoff.Approval{Charter: l.ID, Request: r, Person: back.Doc.ID(), Decision: signoff.Approve, Rule: Digest{1}, Reason: "x",
		Created: began, Expiry: began + 7200, Nonce: signofftest.Nonce(), Display: Digest{1}, Seen: l.seen()}), "has ended")
}

func TestAttackForgedAcceptance(t *testing.T) {
	l := ready(t)
	frank, other := l.NewPerson("frank", "lab", "research"), l.NewPerson("gina", "lab", "research")
	r := l.takes(l.people("alice", adds(frank)))
	second := l.takes(l.people("alice", adds(frank)))
	l.approves(r, "bob", "carol", "dave")
	inHisName := &signoff.Acceptance{Charter: l.ID, Person: frank.Doc.ID(), Request: r}
	l.voids(l.signed(l.People["bob"].Signing, inHisName), "names key")
	forged := l.accepts(frank, r)
	forged.Sig = l.accepts(frank, second).Sig
	l.voids(forged, "does not verify")
	l.voids(l.accepts(other, r), "brings no token")
	l.voids(l.signed(frank.Signing, &signoff.Acceptance{Charter: l.ID, Person: frank.Doc.ID(), Request: Digest{1}}), "not an open request")
	l.voids(l.signed(frank.Signing, &signoff.Acceptance{Charter: l.ID, Person: frank.Doc.ID()}), "not a person")
	l.takes(l.accepts(frank, second)) // and this says nothing of the first
	if _, _, err := l.state().DeriveWarrant(r); err == nil || !strings.Contains(err.Error(), "not satisfied") {
		t.Fatalf("a warrant for somebody whose token nobody saw: %v", err)
	}
	// A founder's acceptance is none, and a newcomer has no charter to accept.
	l.takes(l.accepts(frank, r))
	l.takes(l.warrant(r))
	l.voids(l.signed(frank.Signing, &signoff.Acceptance{Charter: l.ID, Person: frank.Doc.ID()}), "in force")
	if !l.state().InForce {
		t.Fatal("the charter is not in force any more")
	}
}

func TestAttackKeyOfAnotherRole(t *testing.T) {
	l, machines := withNodes(t, 1)
	was := l.People["erin"].Doc.Token
	fresh := l.spare("erin")
	l.changes(l.gives("erin", fresh, l.id("erin")), fresh)
	node := l.state().Nodes[machines[0].id]
	public := func(k any) signoff.PublicKey {
		p, err := signoff.NewPublicKey(k, "software")
		l.must(err)
		return p
	}
	i := 0
	for name, k := range map[string]signoff.PublicKey{
		"a notary's signing key":  l.Notaries[0].Doc.Signing,
		"a notary's exchange key": l.Notaries[1].Doc.Exchange,
		"a person's signing key":  l.People["bob"].Doc.Signing,
		"a person's exchange key": l.People["bob"].Doc.Exchange,
		"a retired signing key":   was.Signing,
		"a retired exchange key":  was.Exchange,
		"a node's TLS key":        public(node.Keys.TLSKey),
		"a node's signing key":    public(node.Keys.SignKey),
		"a node's storage key":    public(node.Keys.StorageKey),
	} {
		i++
		t.Run(name, func(t *testing.T) {
			signs, opens := l.NewPerson(fmt.Sprintf("x%d", i), "lab", "research").Doc, l.NewPerson(fmt.Sprintf("y%d", i), "lab", "research").Doc
			signs.Signing, opens.Exchange = k, k
			for _, p := range []signoff.Person{signs, opens} {
				l.voids(l.people("alice", signoff.PeopleChange{Add: []signoff.Person{p}}), "is the same key as")
				l.voids(l.people("alice", signoff.PeopleChange{Tokens: []signoff.TokenChange{{Person: l.id("bob"), Add: &p.Token}}}), "is the same key as")
			}
		})
	}
	var self signoff.PeopleChange
	x := l.NewPerson("z", "lab", "research").Doc
	x.Exchange = x.Signing
	self.Add = []signoff.Person{x}
	if _, err := signoff.Write(&signoff.Request{Charter: l.ID, Action: signoff.ActionPeopleChange, Requester: l.id("alice"), Purpose: "x", Created: began, Expiry: began + 60,
		Nonce: signofftest.Nonce(), Seen: l.seen(), People: &self}); err == nil || !strings.Contains(err.Error(), "same key") {
		t.Fatalf("one key to sign and to open with: %v", err)
	}
}

func TestAttackReplayedPeopleChange(t *testing.T) {
	l := ready(t)
	frank := l.NewPerson("frank", "lab", "research")
	asked := l.people("alice", adds(frank))
	r := l.takes(asked)
	l.takes(l.accepts(frank, r))
	l.approves(r, "bob", "carol", "dave")
	warrant := l.warrant(r)
	l.takes(warrant)
	l.changes(l.removes("frank"))
	l.voids(asked, "already took effect")
	l.voids(warrant, "already took effect")
	// Asked anew, the same person with the same token is refused: his key is
	// known, and so is his name.
	l.voids(l.people("alice", adds(frank)), "named")
	other := *frank
	other.Doc.Name = "felix"
	l.voids(l.people("alice", adds(&other)), "same key")
	// Two requests to the same end: the second comes too late.
	gina := l.NewPerson("gina", "lab", "research")
	one, two := l.takes(l.people("alice", adds(gina))), l.takes(l.people("alice", adds(gina)))
	for _, r := range []Digest{one, two} {
		l.takes(l.accepts(gina, r))
	}
	l.approves(one, "bob", "carol", "dave")
	l.approves(two, "bob", "carol", "dave")
	late := l.warrant(two)
	l.takes(l.warrant(one))
	l.voids(late, "")
}

// A veto that is in the log before the warrant ends the change; one that comes
// after it, by somebody who left with it, is nobody's.
func TestAttackVetoRacingTheChange(t *testing.T) {
	l := ready(t)
	gina := l.NewPerson("gina", "watch", "safety")
	change := adds(gina)
	change.Remove = []Digest{l.id("dave")}
	r := l.takes(l.people("alice", change))
	l.takes(l.accepts(gina, r))
	l.approves(r, "bob", "carol", "erin")
	warrant, veto := l.warrant(r), l.decides("dave", signoff.Reject, r)

	l.takes(veto)
	l.voids(warrant, "has ended: vetoed")

	r = l.takes(l.people("alice", change))
	l.takes(l.accepts(gina, r))
	l.approves(r, "bob", "carol", "erin")
	veto = l.decides("dave", signoff.Reject, r)
	other := l.takes(l.export("alice", l.sealed("model")))
	l.takes(l.decides("dave", signoff.Reject, other))
	l.takes(l.warrant(r))
	l.voids(veto, "no longer a person")
	if why := l.state().Requests[other].Ended; why != "vetoed" {
		t.Fatalf("a veto was lost with who cast it: %q", why)
	}
}

func TestAttackOnePersonTwiceByTwoKeys(t *testing.T) {
	l := ready(t)
	spare := l.spare("bob")
	l.changes(l.gives("bob", spare, Digest{}), spare)
	r := l.takes(l.policy("alice", signofftest.Policy))
	l.approves(r, "bob", "carol", "dave")
	// The spare speaks for bob, and bob has spoken.
	second := l.decides("bob", signoff.Approve, r).Doc.(*signoff.Approval)
	l.takes(l.signed(spare.Signing, second))
	if n := len(l.state().Requests[r].Votes); n != 3 || l.satisfied(r) {
		t.Fatalf("%d votes of three people, satisfied %v", n, l.satisfied(r))
	}
	// Nor is it a person of its own.
	own := *second
	own.Person = spare.Doc.ID()
	l.voids(l.signed(spare.Signing, &own), "not a person")
	own.Person = l.id("carol")
	l.voids(l.signed(spare.Signing, &own), "none of carol's")
	// What the spare says replaces what the first said: it is one voice.
	no := *second
	no.Decision, no.Nonce, no.Shares = signoff.Reject, signofftest.Nonce(), nil
	l.takes(l.signed(spare.Signing, &no))
	l.approves(r, "erin")
	if l.satisfied(r) {
		t.Fatal("bob's no did not take back bob's yes")
	}
}

// A token that was replaced counts no longer, and neither does what it signed
// before; its person goes on as the same one.
func TestTokenReplaced(t *testing.T) {
	l := ready(t)
	r := l.takes(l.policy("alice", signofftest.Policy))
	mine := l.takes(l.policy("bob", signofftest.Policy))
	l.approves(r, "bob", "carol", "dave", "erin")
	late := l.decides("bob", signoff.Approve, r)
	fresh := l.spare("bob")
	l.changes(l.gives("bob", fresh, l.id("bob")), fresh)
	if l.satisfied(r) {
		t.Fatal("an approval by a token that was taken away counts")
	}
	l.voids(late, "none of bob's")
	id := l.id("bob")
	l.People["bob"].Signing, l.People["bob"].Exchange = fresh.Signing, fresh.Exchange
	if m, ok := l.state().Person(id); !ok || m.Signing.Fingerprint() != fresh.Doc.ID() || len(m.Spares) != 0 {
		t.Fatalf("bob is %+v", m)
	}
	l.approves(r, "bob")
	if !l.satisfied(r) {
		t.Fatal("bob's new token does not count")
	}
	// It is still his request, which he cannot approve.
	l.approves(mine, "bob", "carol", "dave", "erin")
	if l.satisfied(mine) {
		t.Fatal("a requester with a new token approved the own request")
	}
}

func TestAttackPeopleChangeBreaksThePolicy(t *testing.T) {
	l := ready(t)
	// Without carol nobody is of leadership, and exports could never be approved.
	l.voids(l.people("alice", l.removes("carol")), "the policy in force")
	l.voids(l.people("alice", l.removes("alice", "bob", "carol", "dave", "erin")), "0 people after it")
	l.voids(l.people("alice", signoff.PeopleChange{Remove: []Digest{{7}}}), "not a person")
	l.voids(l.people("alice", signoff.PeopleChange{Tokens: []signoff.TokenChange{{Person: l.id("bob"), Retire: l.id("bob")}}}), "0 tokens")
	l.voids(l.people("alice", signoff.PeopleChange{Tokens: []signoff.TokenChange{{Person: l.id("bob"), Retire: l.id("carol")}}}), "has no token")
	if _, err := signoff.Write(&signoff.Request{Charter: l.ID, Action: signoff.ActionPeopleChange, Requester: l.id("alice"), Purpose: "x", Created: began, Expiry: began + 60,
		Nonce: signofftest.Nonce(), Seen: l.seen(), People: &signoff.PeopleChange{}}); err == nil {
		t.Fatal("a change that changes nothing was written")
	}
}

// Too few who hold a share of an object: it could neither be opened nor dealt
// anew.
func TestAttackPeopleChangeOrphansAnObject(t *testing.T) {
	l := ready(t)
	object := l.sealed("model")
	new1, new2, new3 := l.NewPerson("n-one", "lab", "leadership"), l.NewPerson("n-two", "lab", "security"), l.NewPerson("n-three", "lab", "safety")
	change := adds(new1, new2, new3)
	change.Remove = []Digest{l.id("carol"), l.id("dave"), l.id("erin")}
	l.voids(l.people("bob", change), "2 of the people after it hold a share")
	change.Remove = change.Remove[:2]
	r := l.takes(l.people("bob", change))
	// And whoever is dealt no share does not count toward opening it.
	for _, p := range []*signofftest.Person{new1, new2, new3} {
		l.takes(l.accepts(p, r))
	}
	l.approves(r, "alice", "carol", "dave")
	l.takes(l.warrant(r))
	x := l.takes(l.export("bob", object))
	l.voids(l.decides("n-one", signoff.Approve, x), "no share of object")
}

// Whoever is to be put out, or stole a token, seals something for just as many
// people as it takes. It must not keep them, or the token, in.
func TestAttackSealerDealsToStay(t *testing.T) {
	few := func(l *log, name string) {
		id, secrets := l.object(name)
		defer secrets.Wipe()
		deals, err := secrets.Deal(id, 1)
		l.must(err)
		holders := map[Digest]bool{}
		for _, p := range []string{"alice", "bob", "carol"} {
			holders[l.People[p].Doc.Exchange.Fingerprint()] = true
		}
		deals.People = slices.DeleteFunc(deals.People, func(d lockbox.Deal) bool { return !holders[d.Holder] })
		l.takes(l.dealt(id, deals))
	}
	t.Run("person", func(t *testing.T) {
		l := readyWith(t, []string{"gina", "hugo"})
		few(l, "junk")
		l.voids(l.people("dave", l.removes("bob")), "2 of the people after it hold a share")
		r := l.takes(l.people("dave", l.removes("alice")))
		few(l, "more junk, when alice sees the request")
		l.approves(r, "bob", "carol", "erin")
		l.takes(l.warrant(r))
		next := l.removes("bob")
		l.takes(l.people("dave", next))
		if shut, err := l.state().Shuts(&next); err != nil || len(shut) != 2 {
			t.Fatalf("bob's leaving shuts %d objects, %v", len(shut), err)
		}
	})
	t.Run("stolen token", func(t *testing.T) {
		l := ready(t)
		few(l, "junk")
		fresh := l.spare("alice")
		l.changes(l.gives("alice", fresh, l.id("alice")), fresh)
	})
	t.Run("dealt on", func(t *testing.T) {
		l := ready(t)
		object := l.sealed("model")
		more := l.NewPerson("frank", "lab", "research")
		l.changes(adds(more), more)
		for _, who := range []string{"alice", "bob", "carol"} {
			l.takes(l.deals(who, object))
		}
		for _, who := range []string{"alice", "bob", "carol", "dave", "erin", "frank"} {
			l.takes(l.custody(who, object))
		}
		a, b, c := l.NewPerson("n-one", "lab", "leadership"), l.NewPerson("n-two", "lab", "security"), l.NewPerson("n-three", "lab", "safety")
		change := adds(a, b, c)
		change.Remove = []Digest{l.id("alice"), l.id("carol"), l.id("erin"), l.id("dave")}
		l.voids(l.people("bob", change), "2 of the people after it hold a share")
	})
}

// More people's shares open what is sealed from then on; what was sealed before
// follows when shares are dealt on, and works as it did until then.
func TestThresholdRises(t *testing.T) {
	l := ready(t)
	object := l.sealed("before")
	more := signoff.PeopleChange{Threshold: 4}
	l.voids(l.people("alice", more), "an approving set may hold only 3 shares: opening takes 4")
	stricter := strings.NewReplacer("k: 3,", "k: 4,", "{k: 1, roles: [security, research, leadership, safety]}}\n    veto", "{k: 2, roles: [security, research, leadership, safety]}}\n    veto",
		"        - atLeast: {k: 1, roles: [", "        - atLeast: {k: 2, roles: [").Replace(signofftest.Policy)
	p := l.takes(l.policy("alice", stricter))
	l.approves(p, "bob", "carol", "dave", "erin")
	l.takes(l.warrant(p))
	r := l.takes(l.people("alice", more))
	l.approves(r, "bob", "carol", "dave", "erin")
	l.takes(l.warrant(r))
	o := l.state().Objects[object]
	if params, err := l.state().Holders(); err != nil || params.People.Threshold != 4 || o.People.Threshold() != 3 || !l.state().Displaced(o, lockbox.People) {
		t.Fatalf("sealed now for %d people, %v; from before for %d, to be dealt on: %v", params.People.Threshold, err, o.People.Threshold(), l.state().Displaced(o, lockbox.People))
	}
	l.voids(l.people("alice", signoff.PeopleChange{Threshold: 3}), "can only rise")
	l.voids(l.people("alice", signoff.PeopleChange{Threshold: 6}), "5 people after it")
	l.voids(l.people("alice", l.removes("erin")), "no set of distinct people satisfies the quorum")
	for _, who := range []string{"alice", "bob", "carol"} {
		l.takes(l.deals(who, object))
	}
	for _, who := range []string{"alice", "bob", "carol", "dave", "erin"} {
		l.takes(l.custody(who, object))
	}
	o = l.state().Objects[object]
	if o.People.Epoch != 2 || o.People.Threshold() != 4 || l.state().Displaced(o, lockbox.People) {
		t.Fatalf("dealt on: epoch %d, %d shares open it", o.People.Epoch, o.People.Threshold())
	}
	l.share("erin", object).Wipe()
	if again := l.again(); again.StateDigest() != l.fold.StateDigest() {
		t.Fatal("the same entries folded to another state")
	}
}

// Roles are the person's from the change on, for open requests as well.
func TestRolesChange(t *testing.T) {
	l := ready(t)
	open := l.takes(l.export("alice", l.sealed("model")))
	l.approves(open, "bob", "carol", "dave")
	if !l.satisfied(open) {
		t.Fatal("not satisfied as things stand")
	}
	become := func(person string, roles ...string) signoff.PeopleChange {
		return signoff.PeopleChange{Roles: []signoff.RoleChange{{Person: l.id(person), Roles: roles}}}
	}
	l.voids(l.people("alice", become("carol", "research")), "the policy in force") // nobody would lead
	l.voids(l.people("alice", signoff.PeopleChange{Roles: []signoff.RoleChange{{Person: Digest{7}, Roles: []string{"safety"}}}}), "not a person")
	l.changes(become("alice", "research", "leadership"))
	l.changes(become("carol", "research"))
	if l.satisfied(open) {
		t.Fatal("carol still counts as of leadership")
	}
	m, _ := l.state().Person(l.id("carol"))
	if !slices.Equal(m.Roles, []string{"research"}) || m.Index != 3 {
		t.Fatalf("carol is %+v", m)
	}
	if again := l.again(); again.StateDigest() != l.fold.StateDigest() {
		t.Fatal("the same entries folded to another state")
	}
}
