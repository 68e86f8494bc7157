package policy

import (
	"fmt"
	"slices"
)

// An alternative is one way through the any branches of a tree: the places to
// fill, each a set of roles as a bit mask, sorted. A person fits a place when
// they hold one of its roles.
type alternative []uint64

// expand lists a tree's alternatives, sorted, each once.
func expand(t Tree, bit map[string]int) ([]alternative, error) {
	alts, err := alternatives(t, bit)
	if err != nil {
		return nil, err
	}
	for _, a := range alts {
		slices.Sort(a)
	}
	slices.SortFunc(alts, func(a, b alternative) int { return slices.Compare(a, b) })
	return slices.CompactFunc(alts, func(a, b alternative) bool { return slices.Equal(a, b) }), nil
}

func alternatives(t Tree, bit map[string]int) ([]alternative, error) {
	if t.AtLeast != nil {
		var mask uint64
		for _, r := range t.AtLeast.Roles {
			mask |= 1 << bit[r]
		}
		return []alternative{slices.Repeat(alternative{mask}, t.AtLeast.K)}, nil
	}
	var sum []alternative
	for _, b := range t.Any {
		more, err := alternatives(b, bit)
		if err != nil {
			return nil, err
		}
		if sum = append(sum, more...); len(sum) > MaxAlternatives {
			return nil, fmt.Errorf("quorum: more than %d ways through any: simplify the tree", MaxAlternatives)
		}
	}
	for i, b := range t.All {
		more, err := alternatives(b, bit)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			sum = more
		} else if sum, err = product(sum, more); err != nil {
			return nil, err
		}
	}
	return sum, nil
}

func product(left, right []alternative) ([]alternative, error) {
	if len(left)*len(right) > MaxAlternatives {
		return nil, fmt.Errorf("quorum: more than %d ways through any: simplify the tree", MaxAlternatives)
	}
	var all []alternative
	for _, l := range left {
		for _, r := range right {
			if len(l)+len(r) > MaxSlots {
				return nil, fmt.Errorf("quorum: one way asks for %d people: at most %d", len(l)+len(r), MaxSlots)
			}
			all = append(all, slices.Concat(l, r))
		}
	}
	return all, nil
}

// seat is a person as one rule sees them.
type seat struct {
	Person
	roles uint64 // the rule's roles that they hold, as a mask
	veto  bool
}

// A filling is the best one can do for an alternative with some people.
type filling struct {
	people        []int // seat for each place, -1 where it stays empty
	organisations int   // how many organisations those people can span
}

func (f filling) empty() int {
	n := 0
	for _, p := range f.people {
		if p < 0 {
			n++
		}
	}
	return n
}

// fill seats distinct people in the places of a, spanning as many
// organisations as wanted where that is possible, and as many places as
// possible in any case.
//
// First the places are matched to organisations, at most one place each: as
// the people of distinct organisations are distinct, this is also a matching of
// places to people, and a largest one spans the most organisations that any
// filling can. Then augmenting paths fill the other places. A path may move
// people between places but never sends one away, so no organisation is lost.
func fill(a alternative, people []seat, wanted int) filling {
	fits := func(place, person int) bool { return a[place]&people[person].roles != 0 }
	start := unmatched(len(a))
	orgs := 0
	if wanted > 0 {
		start, orgs = spread(a, people, fits)
	}
	return filling{match(start, len(people), fits), orgs}
}

// spread matches as many places as possible to people of distinct
// organisations.
func spread(a alternative, people []seat, fits func(place, person int) bool) ([]int, int) {
	var orgs []string
	for _, p := range people {
		orgs = append(orgs, p.Organisation)
	}
	slices.Sort(orgs)
	orgs = slices.Compact(orgs)
	member := func(place, org int) int {
		return slices.IndexFunc(people, func(s seat) bool {
			return s.Organisation == orgs[org] && s.roles&a[place] != 0
		})
	}
	byOrg := match(unmatched(len(a)), len(orgs), func(place, org int) bool { return member(place, org) >= 0 })
	start, n := unmatched(len(a)), 0
	for place, org := range byOrg {
		if org >= 0 {
			start[place] = member(place, org)
			n++
		}
	}
	return start, n
}

func unmatched(n int) []int { return slices.Repeat([]int{-1}, n) }

// match extends the matching start, from len(start) left nodes to the right
// nodes 0..right-1, to a largest one by augmenting paths. A right node that is
// matched stays matched.
func match(start []int, right int, edge func(left, right int) bool) []int {
	left := slices.Clone(start)
	owner := unmatched(right)
	for l, r := range left {
		if r >= 0 {
			owner[r] = l
		}
	}
	seen := make([]bool, right)
	var augment func(l int) bool
	augment = func(l int) bool {
		for r := range right {
			if seen[r] || !edge(l, r) {
				continue
			}
			seen[r] = true
			if owner[r] < 0 || augment(owner[r]) {
				owner[r], left[l] = l, r
				return true
			}
		}
		return false
	}
	for l := range left {
		if left[l] < 0 {
			clear(seen)
			augment(l)
		}
	}
	return left
}
