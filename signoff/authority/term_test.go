package authority_test

import (
	"crypto/rand"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A change is a change of notaries on its way through a log. The old council
// is n1 to n4; the new one is told by each test.
type change struct {
	*log
	old, next []*signofftest.Notary
	request   Digest
	ceremony  *frost.Ceremony
	dealings  map[Digest]*frost.Dealing
	round1s   []frost.Round1
	shares    []*frost.KeyShare
	group     *frost.Group
}

func (l *log) asksNotaries(faults int, next ...*signofftest.Notary) *signoff.Signed {
	l.t.Helper()
	return l.asks("alice", signoff.ActionNotaries, func(r *signoff.Request) {
		r.Notaries = &signoff.NotaryChange{Term: l.state().Term().Number, Faults: faults}
		for _, y := range next {
			r.Notaries.Notaries = append(r.Notaries.Notaries, y.Doc)
		}
	})
}

func (l *log) joins(request Digest, y *signofftest.Notary) *signoff.Signed {
	l.t.Helper()
	j := &signoff.Joining{Charter: l.ID, Notary: y.Doc.ID(), Request: request}
	var err error
	j.Witness, err = hsm.SignMessage(l.t.Context(), y.Witness, j.Message())
	l.must(err)
	return l.signed(y.Signing, j)
}

// changes goes from a request to its warrant.
func (l *log) reseats(next ...*signofftest.Notary) *change {
	l.t.Helper()
	return l.reseatsFor(1, next...)
}

// reseatsFor is reseats to a council of which so many may be hostile.
func (l *log) reseatsFor(faults int, next ...*signofftest.Notary) *change {
	l.t.Helper()
	c := &change{log: l, old: slices.Clone(l.Notaries), next: next}
	c.request = l.takes(l.asksNotaries(faults, next...))
	for _, y := range next {
		if !l.state().Council().Has(y.Doc) {
			l.takes(l.joins(c.request, y))
		}
	}
	l.approves(c.request, "bob", "carol", "dave")
	l.takes(l.warrant(c.request))
	return c
}

// replaced is a change of n4 for n5 with its warrant.
func replaced(t *testing.T) *change {
	l := ready(t)
	return l.reseats(l.Notaries[0], l.Notaries[1], l.Notaries[2], l.NewNotary("n5"))
}

func (c *change) ticks(y *signofftest.Notary, at int64) {
	c.t.Helper()
	c.takes(c.signed(y.Signing, &signoff.Tick{Charter: c.ID, Notary: y.Doc.ID(), Round: c.state().Ticks.Round, Time: at}))
}

// chosen lets notaries tick and so become the dealers.
func (c *change) chosen(who ...*signofftest.Notary) *change {
	c.t.Helper()
	for _, y := range who {
		c.ticks(y, c.state().Time)
	}
	if len(c.state().Dealers()) > 0 {
		var err error
		c.ceremony, err = c.state().Ceremony()
		c.must(err)
	}
	c.dealings, c.round1s = map[Digest]*frost.Dealing{}, nil
	return c
}

func (c *change) commitment(y *signofftest.Notary) *signoff.Signed {
	c.t.Helper()
	i := slices.Index(c.old, y)
	d, err := c.ceremony.Redeal(rand.Reader, c.log.shares[i])
	c.must(err)
	c.dealings[y.Doc.ID()] = d
	return c.signed(y.Signing, c.round1(y, d.Round1()))
}

func (c *change) round1(y *signofftest.Notary, r frost.Round1) *signoff.Commitment {
	k := c.state().Keygen
	doc := &signoff.Commitment{Charter: c.ID, Notary: y.Doc.ID(), Term: k.Term, Attempt: k.Attempt, Proof: r.Proof[:]}
	for _, p := range r.Commitments {
		doc.Commitments = append(doc.Commitments, bytesOf(p))
	}
	return doc
}

func (c *change) dealing(y *signofftest.Notary) *signoff.Signed {
	c.t.Helper()
	k := c.state().Keygen
	d := &signoff.Dealing{Charter: c.ID, Notary: y.Doc.ID(), Term: k.Term, Attempt: k.Attempt}
	for range k.Members.Notaries {
		d.Shares = append(d.Shares, []byte("sealed to its notary, which the fold cannot open"))
	}
	return c.signed(y.Signing, d)
}

func (c *change) transcript(y *signofftest.Notary, accused ...Digest) *signoff.Signed {
	c.t.Helper()
	k := c.state().Keygen
	return c.signed(y.Signing, &signoff.Transcript{Charter: c.ID, Notary: y.Doc.ID(), Term: k.Term, Attempt: k.Attempt,
		Digest: k.Digest(c.ID), Group: c.log.group.PublicKey[:], Accused: accused})
}

// dealt has the dealers commit and deal.
func (c *change) dealt() *change {
	c.t.Helper()
	dealers := c.state().Dealers()
	of := func(y signoff.Notary) *signofftest.Notary {
		return c.old[slices.IndexFunc(c.old, func(o *signofftest.Notary) bool { return o.Doc.Equal(y) })]
	}
	for _, y := range dealers {
		c.takes(c.commitment(of(y)))
	}
	for _, y := range dealers {
		c.round1s = append(c.round1s, c.dealings[y.ID()].Round1())
		c.takes(c.dealing(of(y)))
	}
	return c
}

// accepted has all new notaries take their shares.
func (c *change) accepted() *change {
	c.t.Helper()
	for i, y := range c.next {
		var received [][32]byte
		for _, d := range c.state().Dealers() {
			s, err := c.dealings[d.ID()].Share(uint16(i + 1))
			c.must(err)
			received = append(received, s)
		}
		share, group, err := c.ceremony.Finish(uint16(i+1), c.round1s, received)
		c.must(err)
		c.shares, c.group = append(c.shares, share), group
		c.takes(c.transcript(y))
	}
	return c
}

// note is a checkpoint of the log as it stands, cosigned by some.
func (c *change) note(by ...*signofftest.Notary) string {
	c.t.Helper()
	ctx := c.t.Context()
	cp := proof.Checkpoint{Origin: c.Charter.Name, Size: c.fold.Size(), Root: c.fold.Root(), State: c.fold.StateDigest()}
	note, err := proof.SignCheckpoint(ctx, cp, c.Charter.Name, c.LogKey)
	c.must(err)
	for _, y := range by {
		line, err := proof.Cosign(ctx, note, y.Name, y.Witness, 1)
		c.must(err)
		note, err = proof.AddCosignature(note, line)
		c.must(err)
	}
	return string(note)
}

func (c *change) takeover(y *signofftest.Notary, note string) *signoff.Signed {
	c.t.Helper()
	return c.signed(y.Signing, &signoff.Takeover{Charter: c.ID, Notary: y.Doc.ID(), Term: c.state().Keygen.Term, Checkpoint: note})
}

// inOffice finishes the change; the log goes on with the new notaries.
func (c *change) inOffice() *change {
	c.t.Helper()
	c.chosen(c.old[0], c.old[1], c.old[2]).dealt().accepted()
	c.takes(c.takeover(c.next[0], c.note(c.old[0], c.old[1], c.old[2], c.next[3])))
	c.log.Notaries, c.log.shares, c.log.group = c.next, c.shares, c.group
	return c
}

// The whole way: the public key stays, the new notaries act, and a refresh of
// the same notaries goes the same way.
func TestNotariesChange(t *testing.T) {
	c := replaced(t)
	key, before := c.state().Group.PublicKey, c.state().Group.Digest()
	c.inOffice()
	s := c.state()
	if s.Term().Number != 2 || s.Group.PublicKey != key || s.Group.Digest() == before {
		t.Fatalf("term %d, key %x", s.Term().Number, s.Group.PublicKey)
	}
	c.tick(s.Time + 10)
	id := c.takes(c.policy("alice", signofftest.Policy+"# later\n"))
	c.approves(id, "bob", "carol", "dave", "erin")
	c.takes(c.warrant(id))
	c.reseats(c.next...).inOffice()
	if s := c.state(); s.Term().Number != 3 || s.Group.PublicKey != key {
		t.Fatalf("term %d, key %x", s.Term().Number, s.Group.PublicKey)
	}
	if got, want := c.again().StateDigest(), c.fold.StateDigest(); got != want {
		t.Errorf("folded again the state is %s, not %s", got, want)
	}
}

// Who may come and who may go.
func TestAttackNotariesAsked(t *testing.T) {
	l := ready(t)
	n := l.Notaries
	n5 := l.NewNotary("n5")
	spoiled := func(edit func(*signoff.Notary)) *signofftest.Notary {
		y := *n5
		edit(&y.Doc)
		return &y
	}
	for name, x := range map[string]struct {
		ask    *signoff.Signed
		reason string
	}{
		"rotated keys under an old name": {l.asksNotaries(1, n[0], n[1], n[2], spoiled(func(y *signoff.Notary) { y.Name = "n4" })), "give it another name"},
		"another's witness key":          {l.asksNotaries(1, n[0], n[1], n[2], spoiled(func(y *signoff.Notary) { y.Witness = n[3].Doc.Witness })), "is the same key as notary n4's witness key"},
		"a person's key":                 {l.asksNotaries(1, n[0], n[1], n[2], spoiled(func(y *signoff.Notary) { y.Exchange = l.People["bob"].Doc.Exchange })), "is the same key as bob's exchange key"},
		"the log's key":                  {l.asksNotaries(1, n[0], n[1], n[2], spoiled(func(y *signoff.Notary) { y.Witness = l.Charter.Log })), "is the same key as a log key"},
		"a staying notary's new key":     {l.asksNotaries(1, n[0], n[1], n[2], spoiled(func(y *signoff.Notary) { *y = n[3].Doc; y.Exchange = n5.Doc.Exchange })), "give it another name"},
		"another term": {l.asks("alice", signoff.ActionNotaries, func(r *signoff.Request) {
			r.Notaries = &signoff.NotaryChange{Term: 2, Notaries: l.Charter.Notaries, Faults: 1}
		}), "ends term 2, the term under way is 1"},
	} {
		t.Log(name)
		l.voids(x.ask, x.reason)
	}
	for _, c := range []signoff.Council{{Notaries: l.Charter.Notaries[:3], Faults: 1}, {Notaries: l.Charter.Notaries, Faults: 2}, {Notaries: l.Charter.Notaries}} {
		_, err := signoff.Write(&signoff.Request{Charter: l.ID, Action: signoff.ActionNotaries, Requester: l.People["alice"].Doc.ID(), Purpose: "x", Created: 1, Expiry: 2,
			Nonce: signofftest.Nonce(), Seen: l.seen(), Notaries: &signoff.NotaryChange{Term: 1, Notaries: c.Notaries, Faults: c.Faults}})
		if err == nil || !strings.Contains(err.Error(), "n ≥ 3f+1") {
			t.Errorf("%d notaries of which %d are hostile: %v", len(c.Notaries), c.Faults, err)
		}
	}
}

// One that was replaced never returns, nor do its keys and its name.
func TestAttackReplacedReturns(t *testing.T) {
	c := replaced(t).inOffice()
	c.voids(c.asksNotaries(1, append(slices.Clone(c.next[:3]), c.old[3])...), "has the name of one that is or was in office")
	y := *c.old[3]
	y.Doc.Name = "n6"
	c.voids(c.asksNotaries(1, append(slices.Clone(c.next[:3]), &y)...), "is the same key as notary n4's signing key")
}

// Growing is allowed, shrinking the quorum is not: objects were dealt for it.
func TestAttackQuorumFalls(t *testing.T) {
	l := ready(t)
	next := slices.Clone(l.Notaries)
	for _, name := range []string{"n5", "n6", "n7"} {
		next = append(next, l.NewNotary(name))
	}
	l.takes(l.asksNotaries(2, next...))
	few := signoff.Council{Notaries: l.Charter.Notaries, Faults: 1}
	if err := few.Follows([]signoff.Council{{Notaries: docs(next), Faults: 2}}, false, signoff.KeySet{}); err == nil || !strings.Contains(err.Error(), "must not fall") {
		t.Errorf("five of seven to three of four: %v", err)
	}
}

func docs(ys []*signofftest.Notary) (out []signoff.Notary) {
	for _, y := range ys {
		out = append(out, y.Doc)
	}
	return out
}

// A joining says the keys are there; nobody else's word and no other request's
// will do, and without it there is no warrant.
func TestAttackJoining(t *testing.T) {
	l := ready(t)
	n := l.Notaries
	n5, n6 := l.NewNotary("n5"), l.NewNotary("n6")
	id := l.takes(l.asksNotaries(1, n[0], n[1], n[2], n5))
	other := l.takes(l.asksNotaries(1, n[0], n[1], n[2], n6))
	l.approves(id, "bob", "carol", "dave")
	if l.satisfied(id) {
		t.Fatal("satisfied before n5 showed its keys")
	}
	good := l.joins(id, n5)
	j := *good.Doc.(*signoff.Joining)
	copied := j
	copied.Request = other
	l.voids(l.signed(n5.Signing, &copied), "no notary that request")
	l.voids(l.joins(id, n6), "no notary that request")
	foreign := j
	w, err := hsm.SignMessage(t.Context(), n6.Witness, j.Message())
	l.must(err)
	foreign.Witness = w
	l.voids(l.signed(n5.Signing, &foreign), "witness key did not sign this joining")
	l.voids(l.signed(n6.Signing, &j), "the document names key")
	l.takes(good)
	l.voids(l.joins(id, n5), "already")
	if !l.satisfied(id) {
		t.Error("not satisfied although n5 showed its keys")
	}
	l.takes(l.warrant(id))
}

// A dealer's commitments bind it to its own share of the key, to this ceremony
// and to itself. What it signs stays in the log, void and with its name.
func TestAttackReshareCommitments(t *testing.T) {
	c := replaced(t)
	n1, n2 := c.old[0], c.old[1]
	c.voids(c.signed(n1.Signing, c.round1(n1, frost.Round1{Commitments: make([][32]byte, 3)})), "does not deal in this attempt")
	c.chosen(c.old[0], c.old[1], c.old[2])
	fresh, err := frost.NewKeyGen(frost.Params{Threshold: 3, Members: 4}, []byte("another ceremony"))
	c.must(err)
	d, err := fresh.Deal(rand.Reader, 1)
	c.must(err)
	c.voids(c.signed(n1.Signing, c.round1(n1, d.Round1())), "the secret dealt is not the dealer's share of the old key")
	mine := c.commitment(n1)
	c.voids(c.signed(n2.Signing, c.round1(n2, c.dealings[n1.Doc.ID()].Round1())), "the secret dealt is not the dealer's share")
	r := c.dealings[n1.Doc.ID()].Round1()
	r.Commitments = append(r.Commitments, r.Commitments[1])
	c.voids(c.signed(n1.Signing, c.round1(n1, r)), "need exactly 3")
	r = c.dealings[n1.Doc.ID()].Round1()
	r.Commitments[1], r.Commitments[2] = r.Commitments[2], r.Commitments[1]
	c.voids(c.signed(n1.Signing, c.round1(n1, r)), "not this dealer's for these commitments in this ceremony")
	c.voids(c.signed(c.old[3].Signing, c.round1(c.old[3], c.dealings[n1.Doc.ID()].Round1())), "does not deal in this attempt")
	c.takes(mine)
	again := c.commitment(n1)
	c.voids(again, "already committed")
	c.voids(c.dealing(n1), "not every dealer has committed")
}

// Members sign what the log says was dealt, and nothing else; one that gets no
// share has no say.
func TestAttackReshareTranscript(t *testing.T) {
	c := replaced(t)
	c.chosen(c.old[0], c.old[1], c.old[2]).dealt()
	k := c.state().Keygen
	wrong := &signoff.Transcript{Charter: c.ID, Notary: c.next[3].Doc.ID(), Term: 2, Attempt: 1, Digest: k.Digest(Digest{1}), Group: c.log.group.PublicKey[:]}
	c.voids(c.signed(c.next[3].Signing, wrong), "the notary saw other messages")
	wrong.Digest, wrong.Term = k.Digest(c.ID), 1
	c.voids(c.signed(c.next[3].Signing, wrong), "shares of term 1, those of term 2 are being made")
	wrong.Term, wrong.Group = 2, make([]byte, 32)
	c.voids(c.signed(c.next[3].Signing, wrong), "group key")
	c.voids(c.transcript(c.old[3]), "gets no share")
	c.voids(c.transcript(c.next[3], c.old[3].Doc.ID()), "who dealt nothing")
	c.accepted()
	c.voids(c.transcript(c.next[0], c.old[0].Doc.ID()), "the notaries have their shares")
}

// A silent dealer costs a minute, one that answers wrong an attempt, and neither
// deals again while others can.
func TestReshareStartsOver(t *testing.T) {
	l := ready(t)
	c := l.reseats(l.Notaries[0], l.Notaries[1], l.Notaries[2], l.NewNotary("n5"))
	c.chosen(c.old[0], c.old[1], c.old[2])
	c.takes(c.commitment(c.old[0]))
	c.takes(c.commitment(c.old[1]))
	now := c.state().Time
	c.tick(now + 61)
	k := c.state().Keygen
	if k.Attempt != 2 || !strings.Contains(k.Failed, "1 dealers were silent") || !slices.Equal(k.Late, []Digest{c.old[2].Doc.ID()}) {
		t.Fatalf("attempt %d: %s; late %v", k.Attempt, k.Failed, k.Late)
	}
	c.chosen(c.old[2], c.old[0], c.old[1])
	if len(c.state().Dealers()) > 0 {
		t.Fatal("the silent one deals again at once")
	}
	c.chosen(c.old[3])
	if got := docsNames(c.state().Dealers()); got != "n1 n2 n4" {
		t.Fatalf("dealers are %s", got)
	}
	c.dealt()
	c.takes(c.transcript(c.next[3], c.old[0].Doc.ID()))
	c.takes(c.answer(c.old[0], c.next[3], [32]byte{1}))
	k = c.state().Keygen
	if k.Attempt != 3 || !slices.Equal(k.Late, []Digest{c.old[0].Doc.ID()}) {
		t.Fatalf("attempt %d: %s; late %v", k.Attempt, k.Failed, k.Late)
	}
	c.chosen(c.old[1], c.old[2], c.old[3]).dealt().accepted()
	if _, ok := c.state().Incoming(); !ok {
		t.Error("nobody comes in")
	}
}

func docsNames(ys []signoff.Notary) string {
	var names []string
	for _, y := range ys {
		names = append(names, y.Name)
	}
	return strings.Join(names, " ")
}

// A second change takes the place of one whose shares are being made; once they
// are made it has to wait for the takeover.
func TestChangeOfMind(t *testing.T) {
	l := ready(t)
	n := l.Notaries
	c := l.reseats(n[0], n[1], n[2], l.NewNotary("n5"))
	c.chosen(n[0], n[1], n[2])
	c = l.reseats(n[0], n[1], n[2], l.NewNotary("n6"))
	if k := l.state().Keygen; k.Attempt != 2 || len(k.Dealers) != 0 {
		t.Fatalf("attempt %d with %d dealers", k.Attempt, len(k.Dealers))
	}
	c.chosen(n[0], n[1], n[2]).dealt().accepted()
	c.voids(c.asksNotaries(1, n[0], n[1], n[2], l.NewNotary("n7")), "being made or handed over")
}

// Only a checkpoint under which both councils stand begins a term.
func TestAttackTakeover(t *testing.T) {
	c := replaced(t)
	n, n5 := c.old, c.next[3]
	early := c.note(n[0], n[1], n[2], n[3], n5)
	c.voids(c.signed(n[0].Signing, &signoff.Takeover{Charter: c.ID, Notary: n[0].Doc.ID(), Term: 2, Checkpoint: early}), "no council waits to begin term 2")
	c.chosen(n[0], n[1], n[2]).dealt().accepted()
	c.voids(c.takeover(n[0], early), "from before all new notaries had their shares")
	c.voids(c.takeover(n[0], c.note(n[0], n[1], n[3])), "2 of the 3 cosignatures")
	c.voids(c.takeover(n[0], c.note(n[0], n[1], n5)), "2 of the 3 cosignatures")
	good := c.note(n[0], n[1], n[2], n5)
	c.voids(c.takeover(n[0], strings.Replace(good, "test-cluster", "text-cluster", 1)), "invalid signature")
	other := &signoff.Takeover{Charter: c.ID, Notary: n[0].Doc.ID(), Term: 3, Checkpoint: good}
	c.voids(c.signed(n[0].Signing, other), "no council waits to begin term 3")
	c.takes(c.takeover(n5, good))
}

// From the takeover on the one that left is nobody: its ticks, epochs and
// activations are void. Its word before that counts.
func TestAttackLeftNotaryActs(t *testing.T) {
	c := replaced(t)
	left := c.old[3]
	c.ticks(left, c.state().Time)
	c.log.Notaries = c.old
	c.inOffice()
	s := c.state()
	c.voids(c.signed(left.Signing, &signoff.Tick{Charter: c.ID, Notary: left.Doc.ID(), Round: s.Ticks.Round, Time: s.Time + 1}), "left office")
	c.voids(c.signed(left.Signing, &signoff.Epoch{Charter: c.ID, Notary: left.Doc.ID(), Number: 1, Policy: s.Policy.Digest, Root: Digest{1}, Evidence: Digest{1}}), "left office")
	trust, err := s.Watches[len(s.Watches)-1].Trust(c.Charter.Name)
	c.must(err)
	if _, _, err := proof.OpenFinal([]byte(c.note(c.old[0], c.old[1], left)), trust); err == nil || !strings.Contains(err.Error(), "2 of the 3") {
		t.Errorf("the cosignature of one that left: %v", err)
	}
}
