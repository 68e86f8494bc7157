package policy

import (
	"fmt"
	"math/bits"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

var drawnRoles = []string{"a", "b", "c", "d"}

func drawPeople(t *rapid.T) []Person {
	n := rapid.IntRange(1, 6).Draw(t, "people")
	people := make([]Person, n)
	for i := range people {
		people[i] = Person{
			ID:           [32]byte{byte(i + 1)},
			Name:         fmt.Sprintf("p%d", i),
			Organisation: rapid.SampledFrom([]string{"X", "Y", "Z"}).Draw(t, "organisation"),
			Roles:        slices.Sorted(slices.Values(rapid.SliceOfNDistinct(rapid.SampledFrom(drawnRoles), 0, 3, rapid.ID).Draw(t, "roles"))),
			HoldsShare:   rapid.Bool().Draw(t, "share"),
		}
	}
	return people
}

func drawTree(t *rapid.T, depth int) Tree {
	kind := rapid.IntRange(0, 2).Draw(t, "kind")
	if depth == 0 || kind == 0 {
		return Tree{AtLeast: &Leaf{
			K:     rapid.IntRange(1, 2).Draw(t, "k"),
			Roles: rapid.SliceOfNDistinct(rapid.SampledFrom(drawnRoles), 1, 2, rapid.ID).Draw(t, "roles"),
		}}
	}
	branches := make([]Tree, rapid.IntRange(1, 3).Draw(t, "branches"))
	for i := range branches {
		branches[i] = drawTree(t, depth-1)
	}
	if kind == 1 {
		return Tree{All: branches}
	}
	return Tree{Any: branches}
}

func drawQuorum(t *rapid.T) Quorum {
	return Quorum{Organisations: rapid.IntRange(0, 3).Draw(t, "organisations"), Tree: drawTree(t, 2)}
}

// bindAll binds a quorum to people with roles that nobody need hold.
func bindAll(t interface{ Fatal(...any) }, q Quorum, people []Person) *Bound {
	nobody := Person{ID: [32]byte{255}, Name: "nobody", Organisation: "none", Roles: drawnRoles}
	b, err := bind(Rule{Quorum: q}, append(slices.Clone(people), nobody))
	if err != nil {
		t.Fatal(err)
	}
	b.people = slices.DeleteFunc(b.people, func(s seat) bool { return s.ID == nobody.ID })
	return b
}

// fillings enumerates, by the definition of the tree alone, every set of people (as a mask)
// that fills its places exactly.
func fillings(t Tree, people []Person) map[uint]bool {
	sets := map[uint]bool{}
	switch {
	case t.AtLeast != nil:
		for mask := range uint(1) << len(people) {
			fits := bits.OnesCount(mask) == t.AtLeast.K
			for i, p := range people {
				if mask&(1<<i) != 0 && !slices.ContainsFunc(p.Roles, func(r string) bool { return slices.Contains(t.AtLeast.Roles, r) }) {
					fits = false
				}
			}
			if fits {
				sets[mask] = true
			}
		}
	case len(t.All) > 0:
		sets[0] = true
		for _, b := range t.All {
			next := map[uint]bool{}
			for x := range sets {
				for y := range fillings(b, people) {
					if x&y == 0 {
						next[x|y] = true
					}
				}
			}
			sets = next
		}
	default:
		for _, b := range t.Any {
			for x := range fillings(b, people) {
				sets[x] = true
			}
		}
	}
	return sets
}

func organisations(mask uint, people []Person) int {
	orgs := map[string]bool{}
	for i, p := range people {
		if mask&(1<<i) != 0 {
			orgs[p.Organisation] = true
		}
	}
	return len(orgs)
}

// bruteMet says by enumeration whether the people in have satisfy q.
func bruteMet(q Quorum, people []Person, sets map[uint]bool, have uint) bool {
	for mask := range sets {
		if mask&^have == 0 && organisations(mask, people) >= q.Organisations {
			return true
		}
	}
	return false
}

func chosen(b *Bound, people []Person, have uint) []seat {
	var s []seat
	for i, p := range people {
		if seat := b.seat(p.ID); have&(1<<i) != 0 && seat != nil {
			s = append(s, *seat)
		}
	}
	return s
}

func TestQuorumAgainstEnumeration(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		people, q := drawPeople(t), drawQuorum(t)
		b := bindAll(t, q, people)
		sets := fillings(q.Tree, people)
		least, shares := MaxSlots+1, MaxSlots+1
		for have := range uint(1) << len(people) {
			want := bruteMet(q, people, sets, have)
			if got := b.met(chosen(b, people, have)); got != want {
				t.Fatalf("%b of %v: met %v, want %v", have, people, got, want)
			}
			if !want {
				continue
			}
			least = min(least, bits.OnesCount(have))
			n := 0
			for i, p := range people {
				if have&(1<<i) != 0 && p.HoldsShare {
					n++
				}
			}
			shares = min(shares, n)
		}
		if got := b.smallest(); got != least {
			t.Fatalf("smallest approving set %d, want %d", got, least)
		}
		if got := b.leastShares(); got > shares || q.Organisations == 0 && got != shares {
			t.Fatalf("least shares %d, truly %d", got, shares)
		}
	})
}

// What Evaluate counts is itself enough, and nobody is counted twice.
func TestCountedSuffice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		people, q := drawPeople(t), drawQuorum(t)
		b := bindAll(t, q, people)
		b.Expiry, b.Action = 100, WeightsExport
		have := rapid.UintRange(0, 1<<len(people)-1).Draw(t, "have")
		var votes []Vote
		for i, p := range people {
			if have&(1<<i) != 0 {
				votes = append(votes, Vote{p.ID, Approve, 2, 50})
			}
		}
		res := b.Evaluate(Request{Requester: [32]byte{99}, Created: 1, Expiry: 90}, votes, 10)
		if res.Satisfied != (len(res.Missing) == 0) || res.Satisfied != bruteMet(q, people, fillings(q.Tree, people), have) {
			t.Fatalf("result %+v", res)
		}
		if len(slices.Compact(slices.Clone(res.Counted))) != len(res.Counted) {
			t.Fatalf("somebody is counted twice: %x", res.Counted)
		}
		var mask uint
		for i, p := range people {
			if slices.Contains(res.Counted, p.ID) {
				mask |= 1 << i
			}
		}
		if res.Satisfied && !fillings(q.Tree, people)[mask] {
			t.Fatalf("the counted people %b do not fill the tree", mask)
		}
	})
}

// Loosens may err, but only toward listing: where it lists nothing, every set
// that satisfies the new quorum satisfies the old one.
func TestLoosensIsConservative(t *testing.T) {
	strict := 0
	rapid.Check(t, func(t *rapid.T) {
		people, q := drawPeople(t), drawQuorum(t)
		then, now := people, slices.Clone(people)
		newQ := q
		if rapid.Bool().Draw(t, "other quorum") {
			newQ = drawQuorum(t)
		}
		if rapid.Bool().Draw(t, "other people") {
			i := rapid.IntRange(0, len(now)-1).Draw(t, "who")
			now[i].Organisation = rapid.SampledFrom([]string{"X", "Y"}).Draw(t, "organisation")
			now[i].Roles = drawnRoles[:rapid.IntRange(0, 3).Draw(t, "roles")]
		}
		if !implies(bindAll(t, newQ, now), bindAll(t, q, then)) {
			return
		}
		strict++
		oldSets, newSets := fillings(q.Tree, then), fillings(newQ.Tree, now)
		for have := range uint(1) << len(people) {
			if bruteMet(newQ, now, newSets, have) && !bruteMet(q, then, oldSets, have) {
				t.Fatalf("%b satisfies only the new quorum", have)
			}
		}
	})
	if strict == 0 {
		t.Fatal("no drawn change was judged strict: the test tested nothing")
	}
}

func TestCostIsBounded(t *testing.T) {
	leaf := Tree{AtLeast: &Leaf{K: 1, Roles: []string{"a"}}}
	other := Tree{AtLeast: &Leaf{K: 1, Roles: []string{"b"}}}
	wide := Tree{All: slices.Repeat([]Tree{{Any: []Tree{leaf, other}}}, 40)}
	if _, err := expand(wide, map[string]int{"a": 0, "b": 1}); err == nil {
		t.Error("2^40 alternatives were expanded")
	}
	many := Tree{All: slices.Repeat([]Tree{leaf}, MaxSlots+1)}
	if _, err := expand(many, map[string]int{"a": 0}); err == nil {
		t.Error("a tree with too many places was expanded")
	}
}
