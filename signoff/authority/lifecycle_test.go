package authority_test

import (
	"context"
	"crypto/ecdsa"
	"testing"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
)

// reinstalled is the machine after its disk was replaced: the TPM is the same and
// the keys are new.
func (m *machine) reinstalled() *machine {
	m.l.t.Helper()
	boot := hardware.boot.Public().(*ecdsa.PublicKey)
	state, err := m.device.Provision(context.Background(), boot)
	m.l.must(err)
	again := *m
	again.identity, err = m.device.Load(context.Background(), state, boot)
	m.l.must(err)
	e, err := again.identity.Enrol(context.Background())
	m.l.must(err)
	again.enrolment, err = e.Marshal()
	m.l.must(err)
	return &again
}

// asksAgain is a request to enrol the machine in the place of what it has.
func (m *machine) asksAgain(edits ...func(*signoff.Enrol)) *signoff.Signed {
	m.l.t.Helper()
	e := &signoff.Enrol{Name: m.name, Node: m.id, Enrolment: m.l.blobs.put(m.enrolment)}
	if n, ok := m.l.state().Nodes[m.id]; ok {
		e.Replaces = n.Enrolment
	}
	for _, edit := range edits {
		edit(e)
	}
	return m.l.asks("alice", signoff.ActionEnrol, func(r *signoff.Request) { r.Enrol = e })
}

func (m *machine) enrolAgain() {
	m.l.t.Helper()
	r := m.l.takes(m.asksAgain())
	m.l.approves(r, "bob", "erin")
	m.activate(r, 3)
	m.l.takes(m.l.warrant(r))
}

func (m *machine) retire() {
	m.l.t.Helper()
	r := m.l.takes(m.l.asks("alice", signoff.ActionRetire, func(r *signoff.Request) { r.Retire = &signoff.Retire{Node: m.id} }))
	m.l.approves(r, "bob")
	m.l.takes(m.l.warrant(r))
}

// A node that lost its disk gets new keys under its own name, by sign-off and by
// its TPM's word. What people approved for its old keys is lost to it.
func TestReenrolment(t *testing.T) {
	l, ms := withNodes(t, 1)
	m := ms[0]
	l.leased(m)
	request, warrant := l.launch(3, m)
	l.leased(m)
	l.takes(m.claims(request, warrant, 1))
	object := l.sealed("another model")
	open := l.takes(l.asks("dave", signoff.ActionLaunch, func(r *signoff.Request) {
		r.Launch = &signoff.Launch{Name: "later", Executable: Digest{1}, Argv: []string{"run"}, Objects: []Digest{object}, Uses: 1, Seconds: 60, Pool: []Digest{m.id}}
	}))
	l.approves(open, "alice", "bob", "carol")
	if !l.satisfied(open) {
		t.Fatal("the launch is not approved")
	}

	again := m.reinstalled()
	l.voids(again.asks(), "says that it replaces")
	l.voids(again.asksAgain(func(e *signoff.Enrol) { e.Name = "node-9" }), "keeps that name")
	l.voids(again.asksAgain(func(e *signoff.Enrol) { e.Replaces = Digest{1} }), "says that it replaces")
	l.voids(again.asksAgain(func(e *signoff.Enrol) { e.Enrolment = l.blobs.put(m.enrolment) }), "new enrolment has new keys")
	before := l.state().Nodes[m.id]
	again.enrolAgain()
	now := l.state().Nodes[m.id]
	if now.Name != before.Name || now.Claimed != before.Claimed || now.Past.Clock != before.Past.Clock || now.Keys.SignKey.Equal(before.Keys.SignKey) {
		t.Errorf("%+v, before %+v", now, before)
	}
	if l.satisfied(open) {
		t.Error("approvals with shares for the old keys count")
	}
	l.voids(again.claims(request, warrant, 2), "enrolled with other keys")
	l.leased(again)
	if lease, _, _ := l.state().Epoch.Lease(m.id); len(lease.Warrants) != 0 {
		t.Errorf("the node is told to go on with %v", lease.Warrants)
	}
	l.voids(again.claims(request, warrant, 2), "ask for a new launch")
	later, fresh := l.launch(1, again)
	l.leased(again)
	l.takes(again.claims(later, fresh, 1))
	// The old keys, wherever they are now, say nothing any more.
	l.voids(m.claims(later, fresh, 1), "the document names key")
	if l.again().StateDigest() != l.fold.StateDigest() {
		t.Error("folding the log again gives another state")
	}
}

// Whoever has a node's name and TPM does not get in without people and notaries.
func TestAttackReenrolTakeover(t *testing.T) {
	l, ms := withNodes(t, 2)
	m, other := ms[0], ms[1]
	again := m.reinstalled()
	r := l.takes(again.asksAgain())
	l.approves(r, "bob", "erin")
	if l.satisfied(r) {
		t.Fatal("no notary has the TPM's word")
	}
	// Keys that another node brought stay its own.
	stolen := *again
	stolen.id, stolen.name = other.id, other.name
	l.voids(stolen.asksAgain(), "the enrolment is of node")
	// Of two requests to replace the same keys the second comes too late.
	third := m.reinstalled()
	late := l.takes(third.asksAgain())
	l.approves(late, "bob", "erin")
	third.activate(late, 3)
	again.activate(r, 3)
	w := l.warrant(late)
	l.takes(l.warrant(r))
	l.voids(w, "says that it replaces")
}

// A retired machine is out for good: no lease, no claim, no pool, no second life.
func TestRetirement(t *testing.T) {
	l, ms := withNodes(t, 2)
	m, other := ms[0], ms[1]
	l.leased(m, other)
	request, warrant := l.launch(2, m, other)
	l.leased(m, other)
	m.retire()
	l.voids(m.claims(request, warrant, 1), "is not an enrolled node")
	l.takes(l.epoch(l.present(m.proves(attest.DomainEpoch, Digest{}, nil)), l.present(other.proves(attest.DomainEpoch, Digest{}, nil))))
	if _, _, ok := l.state().Epoch.Lease(m.id); ok {
		t.Error("a retired node has a leaf among the leases")
	}
	if lease, _, _ := l.state().Epoch.Lease(other.id); lease.Verdict != authority.VerdictPass {
		t.Errorf("the other node is out too: %s", lease.Reason)
	}
	object := l.sealed("model x")
	l.voids(l.asks("dave", signoff.ActionLaunch, func(r *signoff.Request) {
		r.Launch = &signoff.Launch{Name: "run", Executable: Digest{1}, Argv: []string{"run"}, Objects: []Digest{object}, Uses: 1, Seconds: 60, Pool: []Digest{m.id}}
	}), "is not an enrolled node")
	l.voids(m.asks(), "out for good")
	l.voids(m.reinstalled().asksAgain(), "out for good")
}

// Another main board has another TPM, and is another node: the old one is retired,
// the new one enrolled under another name, and neither speaks for the other.
func TestMainBoardSwap(t *testing.T) {
	l, ms := withNodes(t, 1)
	old, board := ms[0], ms[1]
	l.leased(old)
	replacement := *board
	replacement.name = old.name
	l.voids(replacement.asks(), "another name")
	l.voids(replacement.asksAgain(func(e *signoff.Enrol) { e.Replaces = l.state().Nodes[old.id].Enrolment }), "not enrolled")
	old.retire()
	replacement.name = old.name + "-b"
	replacement.enrol()
	l.leased(&replacement)
	// The old board's quote under the new node's name is nobody's.
	p := old.proves(attest.DomainEpoch, Digest{}, nil)
	p.Evidence.Node = attest.Digest(replacement.id)
	l.takes(l.epoch(l.present(p)))
	if lease, _, _ := l.state().Epoch.Lease(replacement.id); lease.Verdict == authority.VerdictPass {
		t.Error("the old board's quote passes for the new node")
	}
}
