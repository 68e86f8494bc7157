package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Decision is what a vote says.
type Decision string

// The decisions. Anything else is refused.
const (
	Approve  Decision = "approve"
	Reject   Decision = "reject"
	Withdraw Decision = "withdraw"
)

// Request is what evaluation needs to know of a request. Created is the log's
// time of its entry, not the requester's clock.
type Request struct {
	Requester [32]byte
	Created   int64
	Expiry    int64
}

// Vote is one person's verified, signed decision on this very request and
// rule. Time is the log's time of its entry; votes are given in the order of
// the log. Expiry is when an approval ceases to count; zero is not forever
// but never.
type Vote struct {
	Person   [32]byte
	Decision Decision
	Time     int64
	Expiry   int64
}

// Result is a rule's judgement at one moment.
type Result struct {
	// Satisfied: the quorum is met, the cooling-off is over, and the request
	// is neither vetoed nor expired.
	Satisfied bool
	// Vetoed is final: no later vote of anybody revives the request.
	Vetoed   bool
	VetoedBy [][32]byte
	// Expired: the request lived longer than it or the rule says.
	Expired bool
	// ReadyAt is when the cooling-off ends, or zero while the quorum is not met.
	ReadyAt int64
	// Counted are the people who fill places, Standing all whose approval
	// stands; both sorted by id.
	Counted, Standing [][32]byte
	// Missing says in words what is still wanted, and is empty exactly when
	// Satisfied.
	Missing []string
	// Ignored are approvals that do not count and why.
	Ignored []Ignored
}

// Ignored is an approval that does not count.
type Ignored struct {
	Person [32]byte
	Why    string
}

// Evaluate judges a request under b with the votes cast up to now. A person's
// latest vote replaces earlier ones (by Time; in the same second, the later
// in votes), but a veto stands whatever its author does after.
func (b *Bound) Evaluate(req Request, votes []Vote, now int64) Result {
	var res Result
	if len(votes) > MaxVotes {
		res.Missing = []string{fmt.Sprintf("a request with at most %d votes, not %d", MaxVotes, len(votes))}
		return res
	}
	res.VetoedBy = b.vetoes(votes)
	res.Vetoed = len(res.VetoedBy) > 0
	res.Expired = b.expired(req, now)
	standing := b.standing(req, votes, now, &res)
	for _, s := range standing {
		res.Standing = append(res.Standing, s.ID)
	}
	best, missing := b.best(seats(standing), req.Requester)
	for _, i := range best.people {
		if i >= 0 {
			res.Counted = append(res.Counted, standing[i].ID)
		}
	}
	slices.SortFunc(res.Counted, compareID)
	res.Missing = append(b.obstacles(req, &res, now), missing...)
	if len(missing) == 0 {
		met := b.metAt(standing)
		res.ReadyAt = met + b.CoolingOff
		if wait := b.CoolingOff - (now - met); wait > 0 {
			res.Missing = append(res.Missing, fmt.Sprintf("%d more seconds of cooling-off", wait))
		}
	}
	res.Satisfied = len(res.Missing) == 0
	return res
}

// obstacles are the reasons why no number of approvals helps.
func (b *Bound) obstacles(req Request, res *Result, now int64) []string {
	var why []string
	if req.Requester == ([32]byte{}) {
		why = append(why, "a request that names its requester")
	}
	if req.Created <= 0 || req.Created > now {
		why = append(why, fmt.Sprintf("a request dated from 1 to %d, not %d", now, req.Created))
	}
	if res.Vetoed {
		why = append(why, "a new request: this one was vetoed")
	}
	if res.Expired {
		why = append(why, "a new request: this one has expired")
	}
	return why
}

// expired subtracts times instead of adding durations, so nothing overflows:
// when the last line is reached, 0 < Created <= now.
func (b *Bound) expired(req Request, now int64) bool {
	if req.Expiry <= now {
		return true
	}
	return req.Created > 0 && req.Created <= now && now-req.Created >= b.Expiry
}

// vetoes lists who rejected with a role that may veto, whenever that was and
// whatever they said later, the requester included.
func (b *Bound) vetoes(votes []Vote) [][32]byte {
	var by [][32]byte
	for _, v := range votes {
		if s := b.seat(v.Person); s != nil && s.veto && v.Decision == Reject {
			by = append(by, v.Person)
		}
	}
	slices.SortFunc(by, compareID)
	return slices.Compact(by)
}

// standingSeat is a person whose approval stands since a time.
type standingSeat struct {
	seat
	since int64
}

func seats(standing []standingSeat) []seat {
	var s []seat
	for i := range standing {
		s = append(s, standing[i].seat)
	}
	return s
}

// standing returns those whose latest vote is an approval that counts now,
// sorted by id, and records in res the approvals that do not.
func (b *Bound) standing(req Request, votes []Vote, now int64, res *Result) []standingSeat {
	var ids [][32]byte
	latest := map[[32]byte]Vote{}
	for _, v := range votes {
		old, voted := latest[v.Person]
		if !voted {
			ids = append(ids, v.Person)
		}
		if !voted || v.Time >= old.Time {
			latest[v.Person] = v
		}
	}
	slices.SortFunc(ids, compareID)
	var standing []standingSeat
	for _, id := range ids {
		v := latest[id]
		if v.Decision == Reject || v.Decision == Withdraw {
			continue
		}
		if why := b.refuse(req, v, now); why != "" {
			res.Ignored = append(res.Ignored, Ignored{id, why})
			continue
		}
		standing = append(standing, standingSeat{*b.seat(id), v.Time})
	}
	return standing
}

// refuse says why an approval does not count, or nothing.
func (b *Bound) refuse(req Request, v Vote, now int64) string {
	switch {
	case v.Decision != Approve:
		return fmt.Sprintf("unknown decision %q", clip(string(v.Decision)))
	case v.Person == req.Requester && b.Action != Halt:
		return "the requester's own"
	case b.seat(v.Person) == nil:
		return "holds no role that this rule names"
	case v.Time < req.Created || v.Time > now:
		return "dated before the request or after now"
	case v.Expiry <= now:
		return "expired"
	case b.ApprovalExpiry > 0 && now-v.Time >= b.ApprovalExpiry:
		return "older than the rule lets an approval grow"
	}
	return ""
}

func (b *Bound) seat(id [32]byte) *seat {
	i, found := slices.BinarySearchFunc(b.people, id, func(s seat, id [32]byte) int { return compareID(s.ID, id) })
	if !found {
		return nil
	}
	return &b.people[i]
}

// best fills the alternative that lacks the least, and says what it lacks.
func (b *Bound) best(people []seat, requester [32]byte) (filling, []string) {
	var best filling
	var places alternative
	least := -1
	for _, a := range b.alternatives {
		f := fill(a, people, b.Quorum.Organisations)
		lack := f.empty() + max(0, b.Quorum.Organisations-f.organisations)
		if least < 0 || lack < least {
			best, places, least = f, a, lack
		}
	}
	return best, b.lacks(best, places, requester)
}

// lacks puts the empty places of f into words.
func (b *Bound) lacks(f filling, places alternative, requester [32]byte) []string {
	var words []string
	for i := 0; i < len(places); {
		mask, empty := places[i], 0
		for ; i < len(places) && places[i] == mask; i++ {
			if f.people[i] < 0 {
				empty++
			}
		}
		if empty == 0 {
			continue
		}
		text := fmt.Sprintf("%d more of %s", empty, b.describe(mask))
		if s := b.seat(requester); s != nil && s.roles&mask != 0 && b.Action != Halt {
			text += ", not the requester"
		}
		words = append(words, text)
	}
	if short := b.Quorum.Organisations - f.organisations; short > 0 {
		words = append(words, fmt.Sprintf("approvals that span %d more organisations (%d in all)", short, b.Quorum.Organisations))
	}
	return words
}

func (b *Bound) describe(mask uint64) string {
	var names []string
	for i, r := range b.roles {
		if mask&(1<<i) != 0 {
			names = append(names, r)
		}
	}
	if len(names) == 1 {
		return "role " + names[0]
	}
	return "roles " + strings.Join(names, " or ")
}

// metAt returns when the approvals that stand now first met the quorum; they
// have met it ever since, for none of them lapsed. They must meet it.
func (b *Bound) metAt(standing []standingSeat) int64 {
	byTime := slices.Clone(standing)
	slices.SortStableFunc(byTime, func(a, c standingSeat) int {
		switch {
		case a.since < c.since:
			return -1
		case a.since > c.since:
			return 1
		}
		return 0
	})
	lo, hi := 1, len(byTime)
	for lo < hi {
		mid := (lo + hi) / 2
		if b.met(seats(byTime[:mid])) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return byTime[lo-1].since
}
