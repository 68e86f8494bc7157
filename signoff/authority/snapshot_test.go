package authority_test

import (
	"testing"

	"github.com/keyturn/keyturn/signoff"
)

// snapshots are object and deals of a snapshot, signed by the machine.
func (m *machine) snapshots(claim Digest, name string, edits ...func(*signoff.Object)) (object, deals *signoff.Signed) {
	l := m.l
	l.t.Helper()
	doc, secrets := l.statement(name)
	defer secrets.Wipe()
	doc.Sealer, doc.Claim = m.id, claim
	for _, edit := range edits {
		edit(doc)
	}
	object = l.signed(m.identity.SignKey, doc)
	dealt, err := secrets.Deal(object.Digest(), 1)
	l.must(err)
	return object, l.dealtBy(m.identity.SignKey, m.id, object.Digest(), dealt)
}

// A run's snapshots enter the log by its claim, and open to later uses of the
// same warrant alone.
func TestAttackSnapshots(t *testing.T) {
	l, ms := withNodes(t, 2)
	in, other := ms[0], ms[1]
	request, warrant := l.launchWithOutput(4, 1<<30, in, other)
	plainRequest, plain := l.launch(2, in)
	l.leased(in, other)
	claim := l.takes(in.claims(request, warrant, 1))
	foreign := l.takes(other.claims(request, warrant, 2))
	without := l.takes(in.claims(plainRequest, plain, 1))

	void := func(reason string, m *machine, claim Digest, edits ...func(*signoff.Object)) {
		t.Helper()
		object, _ := m.snapshots(claim, "snapshot", edits...)
		l.voids(object, reason)
	}
	void("is not in the log", in, Digest{7})
	void("claim "+foreign.String()+" is of node", in, foreign)
	void("has no output", in, without)
	void("thresholds", in, claim, func(o *signoff.Object) {
		o.Lockbox.People.Threshold, o.Lockbox.People.Commitments = 2, o.Lockbox.People.Commitments[:2]
	})
	void("is not a person", in, Digest{}) // what no claim made is a person's to seal
	alice := l.People["alice"]
	doc, secrets := l.statement("forged")
	secrets.Wipe()
	doc.Claim = claim
	l.voids(l.signed(alice.Signing, doc), "is not an enrolled node")

	object, deals := in.snapshots(claim, "snapshot")
	snapshot := l.takes(object)
	l.voids(in.claims(request, warrant, 3, resuming(snapshot)), "not dealt")
	forged := *deals.Doc.(*signoff.Deals)
	forged.Sealer = alice.Doc.ID()
	l.voids(l.signed(alice.Signing, &forged), "is not an enrolled node")
	l.takes(deals)

	l.voids(in.claims(plainRequest, plain, 2, resuming(snapshot)), "no snapshot of a run under warrant")
	l.voids(in.claims(request, warrant, 3, resuming(l.state().Requests[request].Doc.Launch.Objects[0])), "no snapshot of a run under warrant")
	third := l.takes(other.claims(request, warrant, 3, resuming(snapshot)))
	of := func(claim Digest) *signoff.Signed {
		return l.release(0, warrant, func(r *signoff.Release) {
			r.Claim, r.Share.Object, r.Share.Recipient = claim, snapshot, l.state().Claims[claim].FreshFingerprint()
		})
	}
	l.voids(of(claim), "is not what the warrant opens") // its own run did not ask for it
	l.takes(of(third))

	if kept := l.state().Claims[claim].Kept; kept != 1 {
		t.Fatalf("%d snapshots counted, want 1", kept)
	}
	l.takes(in.ends(warrant, claim))
	void("has ended", in, claim)
	if again := l.again(); again.StateDigest() != l.fold.StateDigest() {
		t.Fatal("the same entries folded to another state")
	}
}

func resuming(snapshot Digest) func(*signoff.Claim) {
	return func(c *signoff.Claim) { c.Resume = snapshot }
}

// ends signs the end of a use.
func (m *machine) ends(warrant, claim Digest) *signoff.Signed {
	return m.l.signed(m.identity.SignKey, &signoff.Receipt{Charter: m.l.ID, Signer: m.id, Warrant: warrant, Claim: claim,
		Event: signoff.EventEnded, Detail: "exited", Created: m.l.state().Time})
}
