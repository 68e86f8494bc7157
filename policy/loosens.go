package policy

import (
	"fmt"
	"slices"
)

// Loosens lists, in words, what is easier under new than under old; it is
// empty only if new is provably at least as strict. It errs toward listing: a
// change that it cannot prove strict is named. More people in a role loosen
// every rule that counts on the role. Halt is judged the other way round, for
// there a rule that asks for more is the weaker protection.
func Loosens(old, new *Compiled) []string {
	var why []string
	for _, d := range []struct {
		name     string
		old, new int64
	}{
		{"epoch", old.leases.Epoch, new.leases.Epoch},
		{"lease", old.leases.Lease, new.leases.Lease},
		{"drainGrace", old.leases.DrainGrace, new.leases.DrainGrace},
	} {
		if d.new > d.old {
			why = append(why, fmt.Sprintf("leases.%s grows from %d to %d seconds", d.name, d.old, d.new))
		}
	}
	for _, a := range union(old.Actions(), new.Actions()) {
		for _, w := range loosensRule(old.rules[a], new.rules[a]) {
			why = append(why, fmt.Sprintf("%s: %s", a, w))
		}
	}
	return why
}

func union(a, b []Action) []Action {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

func loosensRule(old, new *Bound) []string {
	switch {
	case old == nil:
		return []string{"was refused and is now possible"}
	case new == nil: // never halt: every compiled policy has its rule
		return nil
	case new.Action == Halt:
		return loosensHalt(old, new)
	}
	var why []string
	if !implies(new, old) {
		why = append(why, "people who did not satisfy the old quorum may satisfy the new one")
	}
	for _, s := range old.people {
		if now := new.seat(s.ID); s.veto && (now == nil || !now.veto) {
			why = append(why, fmt.Sprintf("%s loses a veto", s.Name))
		}
	}
	if new.Expiry > old.Expiry {
		why = append(why, fmt.Sprintf("expiry grows from %d to %d seconds", old.Expiry, new.Expiry))
	}
	if unlimited(new.ApprovalExpiry) > unlimited(old.ApprovalExpiry) {
		why = append(why, "approvals count for longer")
	}
	if new.CoolingOff < old.CoolingOff {
		why = append(why, fmt.Sprintf("coolingOff shrinks from %d to %d seconds", old.CoolingOff, new.CoolingOff))
	}
	if new.Uses > old.Uses {
		why = append(why, fmt.Sprintf("uses grow from %d to %d", old.Uses, new.Uses))
	}
	return why
}

func loosensHalt(old, new *Bound) []string {
	var why []string
	if !implies(old, new) {
		why = append(why, "people who could halt may no longer be able to")
	}
	if new.Expiry < old.Expiry || unlimited(new.ApprovalExpiry) < unlimited(old.ApprovalExpiry) {
		why = append(why, "a halt counts for less time")
	}
	return why
}

// unlimited turns the zero that means no limit into the largest one.
func unlimited(seconds int64) int64 {
	if seconds == 0 {
		return MaxSeconds + 1
	}
	return seconds
}

// implies reports whether every set of people that satisfies a provably
// satisfies b: for each alternative of a there is one of b whose every place
// is matched by its own place of a, open to nobody that b's is not open to.
func implies(a, b *Bound) bool {
	if a.Quorum.Organisations < b.Quorum.Organisations {
		return false
	}
	if b.Quorum.Organisations > 0 && !sameOrganisations(a, b) {
		return false
	}
	for _, from := range a.alternatives {
		found := slices.ContainsFunc(b.alternatives, func(to alternative) bool {
			// With organisations to span, all of a's people must fill b's places.
			if b.Quorum.Organisations > 0 && len(from) != len(to) {
				return false
			}
			places := match(unmatched(len(to)), len(from), func(i, j int) bool {
				return within(a, from[j], b, to[i])
			})
			return !slices.Contains(places, -1)
		})
		if !found {
			return false
		}
	}
	return true
}

// within reports whether whoever fits the place x of a fits the place y of b.
func within(a *Bound, x uint64, b *Bound, y uint64) bool {
	return !slices.ContainsFunc(a.people, func(s seat) bool {
		if s.roles&x == 0 {
			return false
		}
		other := b.seat(s.ID)
		return other == nil || other.roles&y == 0
	})
}

func sameOrganisations(a, b *Bound) bool {
	return !slices.ContainsFunc(a.people, func(s seat) bool {
		other := b.seat(s.ID)
		return other == nil || other.Organisation != s.Organisation
	})
}
