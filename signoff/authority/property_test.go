package authority_test

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// fork is another fold over the same entries, keys and blobs.
func (l *log) fork() *log {
	c := *l
	c.fold, c.lines = l.again(), slices.Clone(l.lines)
	return &c
}

// A ballot is a second, simple account of one request, kept beside the fold:
// who stands by it, and whether it can still be had.
type ballot struct {
	yes  map[string]bool
	over bool
}

// met says in plain words what the export rule of the test policy says.
func (b *ballot) met() bool {
	n, security := 0, b.yes["bob"] || b.yes["erin"]
	for person, yes := range b.yes {
		if yes && person != "alice" {
			n++
		}
	}
	return !b.over && security && b.yes["carol"] && n >= 3
}

var people = []string{"alice", "bob", "carol", "dave", "erin"}

// Whatever people do in whatever order, a warrant is there exactly when the
// plain account says so; time never goes back; and whoever folds the same
// entries again has the same state.
func TestPropertyWarrantsFollowThePeople(t *testing.T) {
	base := ready(t)
	object := base.sealed("model")
	rapid.Check(t, func(rt *rapid.T) {
		l := base.fork()
		ballots, requests := map[Digest]*ballot{}, []Digest{}
		halted := false
		check := func() {
			for id, b := range ballots {
				r := l.state().Requests[id]
				if got := r.Satisfied != nil && r.Ended == ""; got != b.met() {
					rt.Fatalf("request %s: satisfied %v, the account says %v: %v", id.Short(), got, b.met(), b.yes)
				}
			}
		}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			before := l.state().Time
			person := rapid.SampledFrom(people).Draw(rt, "person")
			action := rapid.SampledFrom([]string{"ask", "yes", "yes", "yes", "no", "back", "warrant", "tick", "replay", "halt", "void"}).Draw(rt, "action")
			if len(requests) == 0 {
				action = "ask"
			}
			switch id := pick(rt, requests); action {
			case "ask":
				r := l.takes(l.export("alice", object))
				requests, ballots[r] = append(requests, r), &ballot{yes: map[string]bool{}}
			case "yes", "no", "back":
				decision := map[string]signoff.Decision{"yes": signoff.Approve, "no": signoff.Reject, "back": signoff.Withdraw}[action]
				doc := l.decides(person, decision, id)
				b := ballots[id]
				if b.over {
					l.voids(doc, "has ended")
					break
				}
				l.takes(doc)
				b.yes[person] = action == "yes"
				b.over = (action == "no" && person == "dave") || (action == "back" && person == "alice")
			case "warrant":
				_, payload, err := l.state().DeriveWarrant(id)
				if may := ballots[id].met() && !halted; (err == nil) != may {
					rt.Fatalf("a warrant can be had: %v, the account says %v", err, may)
				}
				if err == nil {
					l.takes(l.byNotaries(payload))
					ballots[id].over = true
				}
			case "tick":
				l.tick(began + rapid.Int64Range(-100, 1000).Draw(rt, "time"))
			case "replay":
				if out := l.line(rapid.SampledFrom(l.lines).Draw(rt, "line")); out.Void == nil {
					rt.Fatalf("entry %d took effect twice", out.Index)
				}
			case "halt":
				l.takes(l.halts(person, everything))
				halted = true
			case "void":
				l.voidLine(rapid.SliceOf(rapid.Byte()).Draw(rt, "junk"), "")
			}
			if l.state().Time < before {
				rt.Fatalf("time went back from %d to %d", before, l.state().Time)
			}
			check()
		}
		again := l.again()
		if again.StateDigest() != l.fold.StateDigest() || again.Root() != l.fold.Root() {
			rt.Fatal("the same entries folded to another state")
		}
	})
}

func pick(t *rapid.T, requests []Digest) Digest {
	if len(requests) == 0 {
		return Digest{}
	}
	return rapid.SampledFrom(requests).Draw(t, "request")
}

// The state digest commits to the order and to every byte of every entry.
func TestPropertyStateDigestCommits(t *testing.T) {
	l := ready(t)
	seen := map[Digest]int{}
	fold, err := authority.New(l.ID)
	l.must(err)
	for i, line := range l.lines {
		for _, other := range [][]byte{append(bytes.Clone(line), ' '), line[1:]} {
			branch, err := authority.New(l.ID)
			l.must(err)
			for _, good := range l.lines[:i] {
				branch.Apply(good, l.blobs)
			}
			branch.Apply(other, l.blobs)
			seen[branch.StateDigest()]++
		}
		_, err := fold.Apply(line, l.blobs)
		l.must(err)
		seen[fold.StateDigest()]++
	}
	for d, n := range seen {
		if n != 1 {
			t.Errorf("%d histories have the state digest %s", n, d)
		}
	}
	if _, err := authority.New(Digest{}); err == nil {
		t.Error("a fold without an anchor")
	}
}

// FuzzApply: the fold is total. No leaf, and no document that its signer made
// up, stops or changes it beyond what it says.
func FuzzApply(f *testing.F) {
	l := ready(f)
	object := l.sealed("model")
	r := l.takes(l.export("dave", object))
	approval := l.decides("bob", signoff.Approve, r)
	for _, line := range append(slices.Clone(l.lines), approval.Line(), l.halts("bob", everything).Line(), l.export("bob", object).Line(), []byte("{}"), nil) {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		before := l.fold.StateDigest()
		first, changes, err1 := l.fold.Judge(line, l.blobs)
		second, again, err2 := l.fold.Judge(line, l.blobs)
		if (err1 == nil) != (err2 == nil) || (first.Void == nil) != (second.Void == nil) || len(changes) != len(again) {
			t.Fatalf("judged twice: %v and %v", first.Void, second.Void)
		}
		if l.fold.StateDigest() != before {
			t.Fatal("judging changed the state")
		}
		if (first.Void != nil || err1 != nil) && len(changes) > 0 {
			t.Fatal("a void entry with changes")
		}
	})
}

// FuzzPayload signs what it makes up with a real key, so that it reaches the
// decisions behind the signature.
func FuzzPayload(f *testing.F) {
	l := ready(f)
	object := l.sealed("model")
	r := l.takes(l.export("dave", object))
	bob, n1 := l.People["bob"].Signing, l.Notaries[0].Signing
	for _, d := range []*signoff.Signed{l.decides("bob", signoff.Approve, r), l.decides("bob", signoff.Withdraw, r), l.halts("bob", everything), l.export("bob", object),
		l.policy("bob", l.Charter.Policy), l.resume("bob", Digest{1}), l.signed(n1, &signoff.Tick{Charter: l.ID, Notary: l.Notaries[0].Doc.ID(), Round: 1, Time: 1})} {
		f.Add(d.Payload)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		doc, err := signoff.Read(payload)
		if err != nil {
			return
		}
		before := l.fold.StateDigest()
		for _, k := range []hsm.Key{bob, n1} {
			env, err := dsse.Sign(t.Context(), k, payload)
			if err != nil {
				t.Fatal(err)
			}
			l.fold.Judge((&signoff.Signed{Envelope: env, Doc: doc}).Line(), l.blobs)
		}
		if l.fold.StateDigest() != before {
			t.Fatal("judging changed the state")
		}
	})
}
