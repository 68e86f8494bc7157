package authority_test

import (
	"crypto/sha256"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
)

// kernel is a set of one PCR 4 value, told by a word.
func kernel(name string, version uint64, words ...string) *attest.ReferenceSet {
	r := &attest.ReferenceSet{Name: name, Version: version, NotBefore: began, NotAfter: began + 1<<30, PCRs: map[int][]attest.Digest{}}
	for _, w := range words {
		r.PCRs[4] = append(r.PCRs[4], sha256.Sum256([]byte(w)))
	}
	return r
}

// adopt is a request to put a set into force.
func (l *log) adopt(person string, set *attest.ReferenceSet, edits ...func(*signoff.ReferenceAdopt)) *signoff.Signed {
	l.t.Helper()
	blob, err := set.Marshal()
	l.must(err)
	a := &signoff.ReferenceAdopt{Name: set.Name, Version: set.Version, Set: l.blobs.put(blob)}
	for _, edit := range edits {
		edit(a)
	}
	return l.asks(person, signoff.ActionReferenceAdopt, func(r *signoff.Request) { r.Adopt = a })
}

// adopted puts a set into force, with everybody's consent that it takes.
func (l *log) adopted(set *attest.ReferenceSet) Digest {
	l.t.Helper()
	doc := l.adopt("alice", set)
	r := l.takes(doc)
	l.approves(r, "bob", "erin")
	l.takes(l.warrant(r))
	return doc.Doc.(*signoff.Request).Adopt.Set
}

func (l *log) withdraws(person string, sets ...Digest) *signoff.Signed {
	l.t.Helper()
	return l.asks(person, signoff.ActionReferenceWithdraw, func(r *signoff.Request) { r.Withdraw = &signoff.ReferenceWithdraw{Sets: sets} })
}

func (l *log) withdrawn(sets ...Digest) {
	l.t.Helper()
	r := l.takes(l.withdraws("alice", sets...))
	l.approves(r, "bob")
	l.takes(l.warrant(r))
}

// counting are the versions of a name that count now.
func (l *log) counting(name string) []uint64 {
	var out []uint64
	for _, r := range attest.Current(l.state().ReferenceSets(), l.state().Time) {
		if r.Name == name {
			out = append(out, r.Version)
		}
	}
	return out
}

func (l *log) counts(name string, want ...uint64) {
	l.t.Helper()
	if got := l.counting(name); !slices.Equal(got, want) {
		l.t.Fatalf("versions %v of %s count, want %v", got, name, want)
	}
}

// A set is in force once its warrant is there, two versions overlap, and no end
// brings back what was replaced.
func TestReferencesAreAdoptedBySignOff(t *testing.T) {
	l := ready(t)
	first := l.takes(l.adopt("alice", kernel("rack-a", 1, "kernel 1")))
	l.counts("rack-a")
	l.approves(first, "bob")
	if l.satisfied(first) {
		t.Fatal("one approval was enough")
	}
	l.approves(first, "erin")
	l.counts("rack-a")
	l.takes(l.warrant(first))
	l.counts("rack-a", 1)
	two := l.adopted(kernel("rack-a", 2, "kernel 2"))
	l.counts("rack-a", 2, 1)
	three := l.adopted(kernel("rack-a", 3, "kernel 3"))
	l.counts("rack-a", 3, 2)
	l.withdrawn(three)
	l.counts("rack-a", 2)
	l.withdrawn(two)
	l.counts("rack-a")
	// What the field calls a rollback is a sign-off like any other.
	l.adopted(kernel("rack-a", 4, "kernel 1"))
	l.counts("rack-a", 4)
	if again := l.again(); again.StateDigest() != l.fold.StateDigest() || !slices.EqualFunc(again.State().ReferenceSets(), l.state().ReferenceSets(),
		func(a, b *attest.ReferenceSet) bool {
			return a.Name == b.Name && a.Version == b.Version && a.NotAfter == b.NotAfter
		}) {
		t.Error("folding the log again gives another state")
	}
}

// A set that has not begun stands ready, and one ends by itself.
func TestReferencesHaveTheirTime(t *testing.T) {
	l := ready(t)
	soon := kernel("rack-a", 2, "kernel 2")
	soon.NotBefore, soon.NotAfter = began+1000, began+2000
	l.adopted(kernel("rack-a", 1, "kernel 1"))
	l.adopted(soon)
	l.counts("rack-a", 1)
	l.tick(began + 1000)
	l.counts("rack-a", 2, 1)
	l.tick(began + 2001)
	l.counts("rack-a", 1)
	// One that is withdrawn before it begins never replaces anything.
	later := kernel("rack-a", 3, "kernel 3")
	later.NotBefore = began + 5000
	three := l.adopted(later)
	l.withdrawn(three)
	l.tick(began + 5001)
	l.counts("rack-a", 1)
}

// Sets of the charter are like others: they can be withdrawn.
func TestCharterReferencesCanBeWithdrawn(t *testing.T) {
	set := kernel("rack-a", 1, "kernel 1")
	text, err := set.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	l := ready(t, func(c *signoff.Charter) { c.References = []string{string(text)} })
	l.counts("rack-a", 1)
	l.voids(l.adopt("alice", kernel("rack-a", 1, "kernel 2")), "version 1 of reference set rack-a was adopted at entry 0")
	l.withdrawn(Digest(sha256.Sum256(text)))
	l.counts("rack-a")
}

func TestReferenceRequestsRefused(t *testing.T) {
	l := ready(t)
	one := l.adopted(kernel("rack-a", 2, "kernel 1"))
	ended := kernel("rack-b", 1, "kernel 1")
	ended.NotAfter = began + 1
	l.tick(began + 2)
	l.voids(l.adopt("alice", ended), "ended at")
	l.voids(l.adopt("alice", kernel("rack-b", 1, "k"), func(a *signoff.ReferenceAdopt) { a.Name = "rack-c" }), "the set is rack-b version 1")
	l.voids(l.adopt("alice", kernel("rack-b", 1, "k"), func(a *signoff.ReferenceAdopt) { a.Version = 2 }), "the set is rack-b version 1")
	l.voids(l.adopt("alice", kernel("rack-b", 1, "k"), func(a *signoff.ReferenceAdopt) { a.Set = l.blobs.put([]byte("{}")) }), "reference set")
	l.voids(l.adopt("alice", kernel("rack-b", 1, "k"), func(a *signoff.ReferenceAdopt) { a.Set = l.blobs.put(make([]byte, 5<<20)) }), "at most")
	l.voids(l.withdraws("alice", Digest{1}), "not a reference set in force")
	l.withdrawn(one)
	l.voids(l.withdraws("alice", one), "not a reference set in force")
	for i := range signoff.MaxReferences {
		l.adopted(kernel("many-"+string(rune('a'+i)), 1, "k"))
	}
	l.voids(l.adopt("alice", kernel("rack-z", 1, "k")), "at most 16")
}

// Nobody makes everybody keep sets without end.
func TestAttackManyAdoptions(t *testing.T) {
	l := ready(t)
	var open []Digest
	for i := range 4 {
		open = append(open, l.takes(l.adopt("alice", kernel("rack", uint64(i+1), "k"))))
	}
	l.voids(l.adopt("alice", kernel("rack", 9, "k")), "at most 4 may be")
	l.takes(l.adopt("bob", kernel("rack", 9, "k")))
	l.takes(l.decides("alice", signoff.Withdraw, open[0]))
	if l.state().Requests[open[0]].Set != nil {
		t.Error("the set of a request that ended is kept")
	}
	l.takes(l.adopt("alice", kernel("rack", 9, "k2")))
	// One that was adopted can still be read as it was asked for.
	l.approves(open[1], "bob", "erin")
	l.takes(l.warrant(open[1]))
	if text, err := l.state().Display(open[1]); err != nil || strings.Contains(text, "UNKNOWN to this log") {
		t.Errorf("%v:\n%s", err, text)
	}
}

// A set that is not to be had stops the fold; it makes nothing void.
func TestReferenceBlobMissing(t *testing.T) {
	l := ready(t)
	gone := l.adopt("alice", kernel("rack-y", 1, "kernel y"), func(a *signoff.ReferenceAdopt) { a.Set = Digest{7} })
	if _, err := l.fold.Apply(gone.Line(), l.blobs); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a set that nobody has: %v", err)
	}
}

// Old values under an old number do not come back, by whatever document.
func TestAttackReferenceRollback(t *testing.T) {
	l := ready(t)
	old := l.adopt("alice", kernel("rack-a", 1, "kernel with a hole"))
	r := l.takes(old)
	l.approves(r, "bob", "erin")
	w := l.warrant(r)
	l.takes(w)
	l.adopted(kernel("rack-a", 2, "kernel 2"))
	l.adopted(kernel("rack-a", 3, "kernel 3"))
	l.counts("rack-a", 3, 2)
	l.voids(old, "already took effect")
	l.voids(w, "already took effect")
	l.voids(l.adopt("alice", kernel("rack-a", 1, "kernel with a hole")), "version 3 of reference set rack-a was adopted")
	l.voids(l.adopt("alice", kernel("rack-a", 3, "kernel with a hole")), "version 3 of reference set rack-a was adopted")
	// One person may end the newest set, and gains nothing by it.
	for id, ref := range maps.Clone(l.state().References) {
		if ref.Version > 1 {
			l.withdrawn(id)
		}
	}
	l.counts("rack-a")
	l.voids(l.adopt("alice", kernel("rack-a", 2, "kernel 2")), "version 3 of reference set rack-a was adopted")
}

// Of two requests for one version the second comes too late, warranted or not.
func TestAttackReferenceRace(t *testing.T) {
	l := ready(t)
	a, b := l.takes(l.adopt("alice", kernel("rack-a", 1, "kernel a"))), l.takes(l.adopt("alice", kernel("rack-a", 1, "kernel b")))
	l.approves(a, "bob", "erin")
	l.approves(b, "bob", "erin")
	wa, wb := l.warrant(a), l.warrant(b)
	l.takes(wa)
	l.voids(wb, "is not satisfied")
	// Its approvals were given while another set was in force.
	l.voids(l.decides("bob", signoff.Approve, b, func(x *signoff.Approval) { x.Rule = Digest{1} }), "the rule in force is")
	l.approves(b, "bob", "erin")
	if _, _, err := l.state().DeriveWarrant(b); err == nil || !strings.Contains(err.Error(), "was adopted at entry") {
		t.Errorf("the second set has a warrant: %v", err)
	}
}

// An approval of anything is bound to the sets by which nodes are judged.
func TestAttackApprovalUnderOtherReferences(t *testing.T) {
	l := ready(t)
	l.adopted(kernel("rack-a", 1, "kernel 1"))
	object := l.sealed("model")
	r := l.takes(l.export("dave", object))
	held := l.decides("alice", signoff.Approve, r)
	l.approves(r, "bob", "carol")
	l.adopted(kernel("rack-a", 2, "kernel 2"))
	l.voids(held, "the rule in force is")
	l.approves(r, "alice")
	if l.satisfied(r) {
		t.Fatal("approvals under other reference sets count")
	}
	l.approves(r, "bob", "carol")
	if !l.satisfied(r) {
		t.Fatal("approvals under the sets in force do not count")
	}
	w := l.warrant(r)
	l.withdrawn(l.state().ReferencesInForce()[0].ID)
	l.voids(w, "is not satisfied")
}

// What is displayed is what is signed: a text that leaves the new value out is not.
func TestAttackReferenceDisplay(t *testing.T) {
	l := ready(t)
	r := l.takes(l.adopt("alice", kernel("rack-a", 1, "kernel 1")))
	text, err := l.state().Display(r)
	l.must(err)
	value := attest.Digest(sha256.Sum256([]byte("kernel 1"))).String()
	if !strings.Contains(text, value) || !strings.Contains(text, "NEW: no set in force allows it") {
		t.Fatalf("the text does not show the value:\n%s", text)
	}
	other := strings.Replace(text, value, attest.Digest(sha256.Sum256([]byte("kernel 2"))).String(), 1)
	l.voids(l.decides("bob", signoff.Approve, r, func(a *signoff.Approval) { a.Display = sha256.Sum256([]byte(other)) }), "the request reads")
}

// A node follows the sets: it is in by the new one, and out when the set that
// describes its boot ends, with a reason and a remedy that say so.
func TestNodesFollowReferences(t *testing.T) {
	l, machines := withNodes(t, 2)
	m := machines[0]
	l.leased(m)
	inForce := l.state().ReferencesInForce()
	l.withdrawn(inForce[0].ID)
	judge := func() authority.Lease {
		t.Helper()
		l.takes(l.epoch(l.present(m.proves(attest.DomainEpoch, Digest{}, nil))))
		lease, _, _ := l.state().Epoch.Lease(m.id)
		return lease
	}
	lease := judge()
	if lease.Verdict == authority.VerdictPass || !strings.Contains(lease.Reason, "no current reference set was consulted") ||
		!strings.Contains(lease.Reason, "the boot is that of reference set test version 1, which no longer counts") || !strings.Contains(lease.Remedy, "adopt a newer version") {
		t.Errorf("%s: %q, %q", lease.Verdict, lease.Reason, lease.Remedy)
	}
	other := kernel("test", 2, "another kernel")
	other.NotAfter = l.state().Time + 1<<30
	l.adopted(other)
	lease = judge()
	if lease.Verdict == authority.VerdictPass || !strings.Contains(lease.Reason, "test version 2 does not allow") || !strings.Contains(lease.Reason, "test version 1, which no longer counts") {
		t.Errorf("%s: %q", lease.Verdict, lease.Reason)
	}
	good := *inForce[0].Set
	good.Version, good.NotAfter = 3, l.state().Time+1<<30
	l.adopted(&good)
	if lease = judge(); lease.Verdict != authority.VerdictPass || lease.Reason != "matches reference set test version 3" {
		t.Errorf("%s: %q", lease.Verdict, lease.Reason)
	}
}
