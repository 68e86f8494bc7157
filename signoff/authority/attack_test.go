package authority_test

import (
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

func TestExportFromRequestToWarrant(t *testing.T) {
	l := ready(t).tick(began + 60)
	r := l.takes(l.export("dave", l.sealed("model")))
	l.approves(r, "bob", "carol")
	if l.satisfied(r) {
		t.Fatal("two approvals satisfied a rule for three")
	}
	l.approves(r, "alice")
	w := l.takes(l.warrant(r))
	if l.state().Requests[r].Warrant != w || l.state().Warrants[w] == nil {
		t.Fatal("the warrant is not in the state")
	}
	if again := l.again(); again.StateDigest() != l.fold.StateDigest() || again.Root() != l.fold.Root() {
		t.Fatal("the same entries folded to another state")
	}
}

func TestAttackNoApprovals(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	if _, _, err := l.state().DeriveWarrant(r); err == nil || !strings.Contains(err.Error(), "not satisfied") {
		t.Fatalf("a warrant for a request nobody approved: %v", err)
	}
	s := l.state()
	rule, _, err := s.Evaluate(s.Requests[r])
	l.must(err)
	w := &signoff.Warrant{Charter: l.ID, Request: r, Action: signoff.ActionExport, Policy: s.Policy.Digest, Rule: s.RuleDigest(rule),
		Index: l.fold.Size() - 1, Issued: s.Time, Expiry: s.Time + 3600, Uses: 1}
	for _, approvals := range [][]Digest{nil, {}} {
		w.Approvals = approvals
		if _, err := signoff.Write(w); err == nil || !strings.Contains(err.Error(), "0 approvals") {
			t.Errorf("a warrant naming no approvals was written: %v", err)
		}
	}
}

// A hostile quorum of notaries has the real group key and still needs people.
func TestAttackGroupSignatureWithTooFewApprovals(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	bob, carol := l.takes(l.decides("bob", signoff.Approve, r)), l.takes(l.decides("carol", signoff.Approve, r))
	s := l.state()
	rule, _, err := s.Evaluate(s.Requests[r])
	l.must(err)
	w := &signoff.Warrant{Charter: l.ID, Request: r, Action: signoff.ActionExport, Policy: s.Policy.Digest, Rule: s.RuleDigest(rule),
		Index: l.fold.Size() - 1, Issued: s.Time, Expiry: s.Requests[r].Doc.Expiry, Uses: 1}
	for _, approvals := range [][]Digest{{bob, carol}, {bob, carol, Digest{1}}, {bob}} {
		w.Approvals = approvals
		l.voids(l.forged(w), "is not satisfied")
	}
	if len(s.Warrants) != 0 {
		t.Fatal("a warrant without its approvals is in the state")
	}
}

// Beyond what the log gives nothing counts: not more uses, not more time, not
// another rule.
func TestAttackWarrantOtherThanDerived(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	l.approves(r, "bob", "carol", "alice")
	w, _, err := l.state().DeriveWarrant(r)
	l.must(err)
	for name, edit := range map[string]func(*signoff.Warrant){
		"uses":      func(w *signoff.Warrant) { w.Uses = 2 },
		"expiry":    func(w *signoff.Warrant) { w.Expiry++ },
		"issued":    func(w *signoff.Warrant) { w.Issued-- },
		"index":     func(w *signoff.Warrant) { w.Index-- },
		"rule":      func(w *signoff.Warrant) { w.Rule[0] ^= 1 },
		"policy":    func(w *signoff.Warrant) { w.Policy[0] ^= 1 },
		"action":    func(w *signoff.Warrant) { w.Action = signoff.ActionLaunch },
		"approvals": func(w *signoff.Warrant) { w.Approvals = w.Approvals[:2] },
	} {
		t.Run(name, func(t *testing.T) {
			forged := *w
			edit(&forged)
			l.voids(l.forged(&forged), "not the one the log gives")
		})
	}
	l.takes(l.warrant(r))
}

func TestAttackWarrantNotByTheGroup(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	l.approves(r, "bob", "carol", "alice")
	w, _, err := l.state().DeriveWarrant(r)
	l.must(err)
	for _, y := range l.Notaries {
		l.voids(l.signed(y.Signing, w), "names key")
		l.voids(l.signed(y.Witness, w), "names key")
	}
	good := l.warrant(r)
	bad := *good.Envelope
	bad.Sig = append([]byte{}, good.Sig...)
	bad.Sig[3] ^= 1
	l.voidLine(bad.Line(), "verify")
	l.takes(good)
	l.voids(good, "already took effect")
}

func TestAttackOnePersonTwoRoles(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	l.approves(r, "erin", "erin", "carol", "erin")
	if l.satisfied(r) {
		t.Fatal("erin filled two places, as security and as research")
	}
	if n := len(l.state().Requests[r].Votes); n != 2 {
		t.Fatalf("%d votes of two people", n)
	}
}

func TestAttackOnePersonTwoKeys(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	l.approves(r, "bob", "carol")
	// Bob's other key of the token, and a notary's, sign as somebody.
	spare := l.Notaries[0].Signing
	a := l.decides("alice", signoff.Approve, r).Doc
	l.voids(l.signed(spare, a), "none of alice's")
	stranger := *a.(*signoff.Approval)
	stranger.Person = l.Notaries[0].Doc.ID()
	l.voids(l.signed(spare, &stranger), "is not a person")
	stranger.Person = l.People["bob"].Doc.Exchange.Fingerprint()
	l.voids(l.signed(l.People["bob"].Signing, &stranger), "is not a person")
	if l.satisfied(r) {
		t.Fatal("two people made three")
	}
}

// An ECDSA signature (r, s) has a twin (r, n-s) that anyone can make.
func TestAttackMalleatedSignatureIsNoSecondApproval(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	l.approves(r, "carol")
	first := l.decides("bob", signoff.Approve, r)
	twin := *first.Envelope
	twin.Sig = malleate(t, first.Sig)
	if err := twin.Verify(l.People["bob"].Signing.Public()); err != nil {
		t.Fatalf("the twin does not verify, so this attack shows nothing: %v", err)
	}
	l.takes(first)
	l.voidLine(twin.Line(), "already took effect")
	if l.satisfied(r) || len(l.state().Requests[r].Votes) != 2 {
		t.Fatal("one approval counted twice")
	}
}

func malleate(t *testing.T, sig []byte) []byte {
	t.Helper()
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(sig, &rs); err != nil {
		t.Fatal(err)
	}
	rs.S.Sub(elliptic.P256().Params().N, rs.S)
	out, err := asn1.Marshal(rs)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAttackApprovalForAnotherRequest(t *testing.T) {
	l := ready(t)
	object := l.sealed("model")
	a, b := l.takes(l.export("dave", object)), l.takes(l.export("dave", object))
	forA := l.decides("bob", signoff.Approve, a)
	moved := *forA.Doc.(*signoff.Approval)
	moved.Request = b
	env := *forA.Envelope
	payload, err := signoff.Write(&moved)
	l.must(err)
	env.Payload = payload
	l.voidLine(env.Line(), "verify") // the signature is over A
	l.voids(l.decides("bob", signoff.Approve, b, func(x *signoff.Approval) { x.Display = moved.Display }), "signed the text")
	l.takes(forA)
	if len(l.state().Requests[b].Votes) != 0 {
		t.Fatal("an approval of A counts for B")
	}
}

func TestAttackApprovalOfAnotherCluster(t *testing.T) {
	l, other := ready(t), ready(t)
	r := other.takes(other.export("dave", other.sealed("model")))
	l.voids(other.decides("bob", signoff.Approve, r), "belongs to charter")
	for _, line := range other.Genesis {
		if out := l.line(line); out.Void == nil {
			t.Fatal("another cluster's founding took effect")
		}
	}
}

func TestAttackPolicyChangedBetweenApprovalAndWarrant(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	p := l.takes(l.policy("dave", strings.Replace(signofftest.Policy, "k: 1, role: security", "k: 2, role: security", 1)))
	l.approves(r, "bob", "carol", "alice")
	signedEarly := l.warrant(r) // the notaries signed before the change was in the log
	l.approves(p, "alice", "bob", "carol", "erin")
	l.takes(l.warrant(p))
	l.voids(signedEarly, "is not satisfied")
	if l.satisfied(r) {
		t.Fatal("approvals of the old rule satisfy the new one")
	}
	old := l.decides("erin", signoff.Approve, r, func(a *signoff.Approval) { a.Rule[0] ^= 1 })
	l.voids(old, "the rule in force is")
	l.approves(r, "bob", "carol", "alice")
	if l.satisfied(r) {
		t.Fatal("one of security where the new rule wants two")
	}
	l.approves(r, "erin")
	l.takes(l.warrant(r))
}

// A rule loosened by a change does not carry the old approvals along either.
func TestAttackPolicyLoosenedUnderApprovals(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	l.approves(r, "bob", "alice")
	p := l.takes(l.policy("dave", strings.Replace(signofftest.Policy, "role: leadership}", "role: security}", 1)))
	l.approves(p, "alice", "bob", "carol", "erin")
	l.takes(l.warrant(p))
	l.approves(r, "erin")
	if l.satisfied(r) {
		t.Fatal("approvals given under another rule were counted")
	}
}

func TestAttackVetoRacingTheWarrant(t *testing.T) {
	for _, c := range []struct {
		who      string
		decision signoff.Decision
		reason   string
	}{
		{"dave", signoff.Reject, "has ended: vetoed"},
		{"bob", signoff.Reject, "is not satisfied"},
		{"carol", signoff.Withdraw, "is not satisfied"},
		{"erin", signoff.Withdraw, "withdrawn by the requester"},
	} {
		t.Run(c.who+" "+string(c.decision), func(t *testing.T) {
			l := ready(t)
			r := l.takes(l.export("erin", l.sealed("model")))
			l.approves(r, "bob", "carol", "alice")
			signed := l.warrant(r)
			l.takes(l.decides(c.who, c.decision, r))
			l.voids(signed, c.reason)
			if len(l.state().Warrants) != 0 {
				t.Fatal("the warrant overtook the no")
			}
		})
	}
}

func TestAttackVetoIsFinal(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("erin", l.sealed("model")))
	l.approves(r, "bob", "carol")
	l.takes(l.decides("dave", signoff.Reject, r))
	for _, p := range []string{"dave", "alice"} {
		l.voids(l.decides(p, signoff.Approve, r), "vetoed")
	}
}

func TestAttackHaltRacingTheWarrant(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	l.approves(r, "bob", "carol", "alice")
	w := l.warrant(r)
	l.takes(l.halts("alice", func(h *signoff.Halt) { h.Request = r }))
	l.voids(w, "stands")
}

// halts is a person's signed halt.
func (l *log) halts(person string, edit func(*signoff.Halt)) *signoff.Signed {
	l.t.Helper()
	h := &signoff.Halt{Charter: l.ID, Person: l.People[person].Doc.ID(), Reason: "a test", Created: began, Nonce: signofftest.Nonce()}
	edit(h)
	return l.signed(l.People[person].Signing, h)
}

func everything(h *signoff.Halt) { h.Everything = true }

func (l *log) resume(person string, halts ...Digest) *signoff.Signed {
	l.t.Helper()
	return l.asks(person, signoff.ActionResume, func(r *signoff.Request) { r.Resume = &signoff.Resume{Halts: halts} })
}

func TestAttackReplayedHaltAndResume(t *testing.T) {
	l := ready(t)
	first := l.halts("alice", everything)
	h := l.takes(first)
	asked := l.resume("dave", h)
	r := l.takes(asked)
	l.approves(r, "alice", "bob", "carol")
	w := l.warrant(r)
	l.takes(w)
	if _, halted := l.state().Halted(Digest{}, Digest{}); halted {
		t.Fatal("the halt was not lifted")
	}
	l.voids(first, "already took effect") // no replay stops everything again
	second := l.takes(l.halts("alice", everything))
	l.voids(asked, "already took effect")
	l.voids(w, "already took effect")
	if got, halted := l.state().Halted(Digest{}, Digest{}); !halted || got.ID != second {
		t.Fatal("an old resume lifted a new halt")
	}
	l.voids(l.resume("dave", h), "not a standing halt")
}

// One hostile approver halts without end. One resume lifts all that count, and
// neither another person's halt nor a wider one of the same is kept out.
func TestAttackHaltsWithoutEnd(t *testing.T) {
	l := ready(t)
	var stand []Digest
	for i := range signoff.MaxResumeHalts {
		stand = append(stand, l.takes(l.halts("alice", func(h *signoff.Halt) { h.Request = Digest{byte(i + 1)} })))
	}
	l.voids(l.halts("alice", func(h *signoff.Halt) { h.Request = Digest{100} }), "no more halts of this person are taken")
	l.takes(l.halts("bob", func(h *signoff.Halt) { h.Request = Digest{100} }))
	l.takes(l.halts("alice", func(h *signoff.Halt) { h.Node = Digest{100} }))
	l.takes(l.halts("alice", everything))
	r := l.takes(l.resume("dave", stand...))
	l.approves(r, "bob", "carol", "erin")
	l.takes(l.warrant(r))
	l.takes(l.halts("alice", func(h *signoff.Halt) { h.Request = Digest{100} }))
}

// Two resumes of one halt: the second finds nothing to lift, and the notaries
// are not asked to sign what the fold would refuse.
func TestAttackResumeTwice(t *testing.T) {
	l := ready(t)
	h := l.takes(l.halts("alice", everything))
	a, b := l.takes(l.resume("dave", h)), l.takes(l.resume("dave", h))
	l.approves(a, "alice", "bob", "carol").approves(b, "alice", "bob", "carol")
	late := l.warrant(b)
	l.takes(l.warrant(a))
	l.voids(late, "not a standing halt")
	if _, _, err := l.state().DeriveWarrant(b); err == nil {
		t.Fatal("notaries would sign a warrant that the fold refuses for ever")
	}
}

func TestAttackClockSetBack(t *testing.T) {
	l := ready(t).tick(began + 1000)
	l.tick(began + 10)
	if l.state().Time != began+1000 {
		t.Fatalf("time went back to %d", l.state().Time)
	}
	// One hostile clock cannot move the median, either way.
	for _, lie := range []int64{1, 1 << 62} {
		before := l.state().Time
		round := l.state().Ticks.Round
		for i, at := range []int64{lie, before + 5, before + 6} {
			y := l.Notaries[i]
			l.takes(l.signed(y.Signing, &signoff.Tick{Charter: l.ID, Notary: y.Doc.ID(), Round: round, Time: at}))
		}
		if now := l.state().Time; now < before+5 || now > before+6 {
			t.Fatalf("one clock at %d moved time from %d to %d", lie, before, now)
		}
	}
}

func TestAttackTicksReplayedAndRepeated(t *testing.T) {
	l := ready(t)
	y := l.Notaries[0]
	tick := func(round uint64, at int64) *signoff.Signed {
		return l.signed(y.Signing, &signoff.Tick{Charter: l.ID, Notary: y.Doc.ID(), Round: round, Time: at})
	}
	first := tick(1, began+5)
	l.takes(first)
	l.voids(first, "already took effect")
	for range 4 {
		l.voids(tick(1, began+1<<20), "already ticked in round 1")
	}
	l.voids(tick(2, began+1<<20), "round 1 is being collected")
	if l.state().Time != began {
		t.Fatal("one notary moved time")
	}
}

// The time a request lives ends by ticks alone, whatever anyone's clock says.
func TestAttackExpiredApprovalsAndRequests(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	l.takes(l.decides("bob", signoff.Approve, r, func(a *signoff.Approval) { a.Expiry = began + 100 }))
	l.approves(r, "carol", "alice")
	w := l.warrant(r)
	l.tick(began + 100)
	l.voids(w, "is not satisfied")
	l.voids(l.decides("bob", signoff.Approve, r, func(a *signoff.Approval) { a.Created, a.Expiry = began, began+100 }), "expired")
	l.approves(r, "bob")
	w = l.warrant(r)
	l.tick(began + 3600)
	l.voids(w, "has ended: expired")
	l.voids(l.asks("dave", signoff.ActionRetire, func(r *signoff.Request) {
		r.Retire, r.Created, r.Expiry = &signoff.Retire{Node: Digest{1}}, began, began+3600
	}), "expired")
	l.voids(l.asks("dave", signoff.ActionRetire, func(r *signoff.Request) {
		r.Retire, r.Expiry = &signoff.Retire{Node: Digest{1}}, 1<<62
	}), "the rule lets a request live")
}

func TestAttackSharesOfAnApproval(t *testing.T) {
	l := ready(t)
	object, other := l.sealed("model"), l.sealed("another")
	r := l.takes(l.export("dave", object))
	for _, c := range []struct {
		name   string
		edit   func(*signoff.Approval)
		reason string
	}{
		{"none", func(a *signoff.Approval) { a.Shares = nil }, "1 shares are missing"},
		{"another object's", func(a *signoff.Approval) { a.Shares[0].Object = other }, "does not name"},
		{"another recipient's", func(a *signoff.Approval) { a.Shares[0].Recipient = l.People["bob"].Doc.Exchange.Fingerprint() }, "does not name"},
		{"another holder's", func(a *signoff.Approval) { a.Shares[0].Index = 1 }, "this person holds index 2"},
		{"another epoch's", func(a *signoff.Approval) { a.Shares[0].Epoch = 2 }, "of epoch 1"},
		{"twice", func(a *signoff.Approval) { a.Shares = append(a.Shares, a.Shares[0]) }, "names once"},
		{"one too many", func(a *signoff.Approval) {
			x := a.Shares[0]
			x.Object = other
			a.Shares = append(a.Shares, x)
		}, "does not name"},
	} {
		t.Run(c.name, func(t *testing.T) { l.voids(l.decides("bob", signoff.Approve, r, c.edit), c.reason) })
	}
	h := l.takes(l.halts("alice", everything))
	resume := l.takes(l.resume("dave", h))
	l.voids(l.decides("bob", signoff.Approve, resume, func(a *signoff.Approval) {
		a.Shares = []signoff.Share{{Object: object, Epoch: 1, Index: 2, Recipient: Digest{1}, Sealed: []byte{1}}}
	}), "does not name")
}

func (l *log) release(i int, warrant Digest, edit func(*signoff.Release)) *signoff.Signed {
	l.t.Helper()
	y := l.Notaries[i]
	r := &signoff.Release{Charter: l.ID, Notary: y.Doc.ID(), Warrant: warrant, Share: signoff.Share{
		Epoch: 1, Index: uint16(i + 1), Recipient: l.People["alice"].Doc.Exchange.Fingerprint(), Sealed: []byte("sealed")}}
	edit(r)
	return l.signed(y.Signing, r)
}

func TestAttackReleases(t *testing.T) {
	l := ready(t)
	object, other := l.sealed("model"), l.sealed("another")
	r := l.takes(l.export("dave", object))
	of := func(o Digest) func(*signoff.Release) { return func(x *signoff.Release) { x.Share.Object = o } }
	l.voids(l.release(0, r, of(object)), "is not in the log") // before any warrant
	l.approves(r, "bob", "carol", "alice")
	pending := l.warrant(r)
	l.voids(l.release(0, pending.Digest(), of(object)), "is not in the log") // signed, not yet in the log
	w := l.takes(pending)
	for name, c := range map[string]struct {
		edit   func(*signoff.Release)
		reason string
	}{
		"another object":    {of(other), "not what the warrant opens"},
		"another recipient": {func(x *signoff.Release) { of(object)(x); x.Share.Recipient = Digest{9} }, "the recipient is"},
		"another index":     {func(x *signoff.Release) { of(object)(x); x.Share.Index = 2 }, "this notary holds 1"},
		"another epoch":     {func(x *signoff.Release) { of(object)(x); x.Share.Epoch = 2 }, "not what the warrant opens"},
		"with a claim":      {func(x *signoff.Release) { of(object)(x); x.Claim = Digest{1} }, "names a claim"},
		"another warrant":   {func(x *signoff.Release) { of(object)(x); x.Warrant = Digest{1} }, "is not in the log"},
	} {
		t.Run(name, func(t *testing.T) { l.voids(l.release(0, w, c.edit), c.reason) })
	}
	l.takes(l.release(0, w, of(object)))
	l.voids(l.release(0, w, func(x *signoff.Release) { of(object)(x); x.Share.Sealed = []byte("other") }), "already released")
	h := l.takes(l.halts("bob", func(h *signoff.Halt) { h.Request = r }))
	l.voids(l.release(1, w, of(object)), h.String())
	l.tick(began + 3600)
	l.voids(l.release(1, w, of(object)), "expired")
}

// An entry that is nothing, or nothing good, is recorded and the log goes on.
func TestAttackPoisonEntryIsANoOp(t *testing.T) {
	l := ready(t)
	r := l.takes(l.export("dave", l.sealed("model")))
	good := l.decides("bob", signoff.Approve, r)
	line := string(good.Line())
	unknown, err := dsse.Statement("https://keyturn.dev/master-key/v1", []dsse.Subject{dsse.About("x", Digest{1})}, struct{}{})
	l.must(err)
	unknownDoc, err := dsse.Sign(t.Context(), l.People["bob"].Signing, unknown)
	l.must(err)
	before := *l.state().Requests[r]
	for name, poison := range map[string]string{
		"empty":             "",
		"not JSON":          "\x00\xff\xfe",
		"null":              "null",
		"a list":            "[" + line + "]",
		"truncated":         line[:len(line)/2],
		"trailing":          line + " ",
		"two documents":     line + line,
		"duplicate member":  strings.Replace(line, `{"mediaType"`, `{"mediaType":"x","mediaType"`, 1),
		"case-folded":       strings.Replace(line, `"dsseEnvelope"`, `"DSSEEnvelope"`, 1),
		"unknown member":    strings.Replace(line, `{"mediaType"`, `{"keyid":"","mediaType"`, 1),
		"unknown kind":      string(unknownDoc.Line()),
		"oversized":         strings.Repeat("a", 1<<20),
		"deeply nested":     strings.Repeat("[", 60000),
		"signature flipped": strings.Replace(line, `"sig":"M`, `"sig":"N`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			size, digest := l.fold.Size(), l.fold.StateDigest()
			l.voidLine([]byte(poison), "")
			if l.fold.Size() != size+1 || l.fold.StateDigest() == digest {
				t.Error("the entry is not recorded")
			}
		})
	}
	if after := l.state().Requests[r]; len(after.Votes) != len(before.Votes) || after.Satisfied != nil {
		t.Fatal("a poison entry changed a request")
	}
	l.takes(good) // what stood next to poison may be appended again
}

func TestAttackPoisonBeforeTheCharter(t *testing.T) {
	l := newLog(t)
	l.voidLine([]byte("{}"), "")
	l.voidLine(l.Genesis[0], "can only be entry 0")
	l.voidLine(l.Genesis[1], "does not begin with a charter")
}

func TestAttackMissingBlobStopsTheFold(t *testing.T) {
	l := ready(t)
	deals := l.sealedWithoutBlob("model")
	digest, size := l.fold.StateDigest(), l.fold.Size()
	for _, b := range []blobs{{}, {deals.blob: []byte("not what its name says")}} {
		if _, err := l.fold.Apply(deals.doc.Line(), b); err == nil || !strings.Contains(err.Error(), "blob") {
			t.Fatalf("the fold went on without the blob: %v", err)
		}
	}
	if l.fold.StateDigest() != digest || l.fold.Size() != size {
		t.Fatal("a fold that stopped had moved")
	}
	l.blobs[deals.blob] = deals.data
	l.takes(deals.doc)
	l.takes(l.export("dave", deals.object))
}

type dealt struct {
	object, blob Digest
	data         []byte
	doc          *signoff.Signed
}

// sealedWithoutBlob puts an object into the log and makes its deals, keeping
// both deals and blob back.
func (l *log) sealedWithoutBlob(name string) dealt {
	l.t.Helper()
	id, secrets := l.object(name)
	defer secrets.Wipe()
	deals, err := secrets.Deal(id, 1)
	l.must(err)
	d := dealt{object: id, doc: l.dealt(id, deals)}
	d.blob = d.doc.Doc.(*signoff.Deals).Blob
	d.data = l.blobs[d.blob]
	delete(l.blobs, d.blob)
	return d
}

func dsseSum(b []byte) Digest { return blobs{}.put(b) }

func TestAttackForkedView(t *testing.T) {
	l := ready(t)
	object := l.sealed("model")
	forked := func(s *signoff.Seen) { s.Root[0] ^= 1 }
	l.voids(l.asks("dave", signoff.ActionExport, func(r *signoff.Request) {
		r.Export = l.export("dave", object).Doc.(*signoff.Request).Export
		forked(&r.Seen)
	}), "proves a fork")
	r := l.takes(l.export("dave", object))
	l.voids(l.decides("bob", signoff.Approve, r, func(a *signoff.Approval) { forked(&a.Seen) }), "proves a fork")
	l.voids(l.decides("bob", signoff.Approve, r, func(a *signoff.Approval) { a.Seen.Size += 10 }), "may prove a fork")
}

func TestAttackWrongSignerForKind(t *testing.T) {
	l := ready(t)
	person, y := l.People["bob"], l.Notaries[0]
	tick := &signoff.Tick{Charter: l.ID, Notary: person.Doc.ID(), Round: 1, Time: began + 1}
	l.voids(l.signed(person.Signing, tick), "is not a notary")
	halt := &signoff.Halt{Charter: l.ID, Person: y.Doc.ID(), Everything: true, Reason: "x", Created: began, Nonce: signofftest.Nonce()}
	l.voids(l.signed(y.Signing, halt), "is not a person")
	claim := &signoff.Claim{Charter: l.ID, Node: y.Doc.ID(), Warrant: Digest{1}, Use: 1, Evidence: Digest{1}, Created: began, Nonce: signofftest.Nonce()}
	l.voids(l.signed(y.Signing, claim), "is not an enrolled node")
	position := &signoff.Position{Charter: l.ID, Notary: y.Doc.ID(), Answer: signofftest.Nonce()}
	l.voids(l.signed(y.Signing, position), "is no log entry")
}

// A role named twice, or like another up to case, is not two roles.
func TestAttackRoleNamesCollide(t *testing.T) {
	for _, roles := range [][]string{{"security", "security"}, {"security", "Security"}, {"secur\u0456ty"}, {"security "}, {""}, {}} {
		c := *signofftest.Keys(t, nil).Charter
		c.People[0].Roles = roles
		if err := c.Validate(); err == nil {
			t.Errorf("roles %q were accepted", roles)
		}
	}
}

func TestAttackSharedKeysInTheCharter(t *testing.T) {
	for name, edit := range map[string]func(*signoff.Charter){
		"one signing key for two people":   func(c *signoff.Charter) { c.People[0].Signing = c.People[1].Signing },
		"signing and exchange the same":    func(c *signoff.Charter) { c.People[0].Exchange = c.People[0].Signing },
		"a person's key for a notary":      func(c *signoff.Charter) { c.Notaries[0].Signing = c.People[0].Signing },
		"one witness key for two notaries": func(c *signoff.Charter) { c.Notaries[0].Witness = c.Notaries[1].Witness },
		"the log key as a witness":         func(c *signoff.Charter) { c.Log = c.Notaries[0].Witness },
		"the same name twice":              func(c *signoff.Charter) { c.People[0].Name = c.People[1].Name },
		"the TLS key of a coordinator":     func(c *signoff.Charter) { c.Coordinators[0].TLS = c.People[0].Signing.Fingerprint() },
		"an Ed25519 key for a notary":      func(c *signoff.Charter) { c.Notaries[0].Signing = edKey(t) },
	} {
		c := *signofftest.Keys(t, nil).Charter
		edit(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAttackSoftwareKeysInProduction(t *testing.T) {
	c := *signofftest.Keys(t, nil).Charter
	c.Development = false
	for _, class := range []hsm.Class{hsm.ClassSoftware, hsm.ClassSelfDeclared, "", "attested-really"} {
		for i := range c.People {
			c.People[i].Signing.Class, c.People[i].Exchange.Class = class, class
		}
		if err := c.Validate(); err == nil {
			t.Errorf("a production charter took people's keys of class %q", class)
		}
	}
}

func edKey(t *testing.T) signoff.PublicKey {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := signoff.NewPublicKey(pub, hsm.ClassSoftware)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
