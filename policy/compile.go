package policy

import (
	"errors"
	"fmt"
	"slices"
)

// Limits is what the rest of the system asks of a policy. MinShares is, for
// each action that opens weights, how many people's shares the lockbox needs
// (t): a rule for such an action whose smallest approving set may hold fewer
// does not compile. An action that is absent asks for none.
type Limits struct {
	MinShares map[Action]uint
}

// Compiled is a policy bound to its people. It never changes.
type Compiled struct {
	leases Leases
	people []Person
	rules  map[Action]*Bound
}

// Bound is a rule bound to the people it speaks of. Its fields are to be read
// only.
type Bound struct {
	Rule
	roles        []string // all roles that the rule names, sorted; index = bit
	people       []seat   // holders of those roles, sorted by id
	alternatives []alternative
	digest       [32]byte
}

// Compile binds p to the people of roster and proves that every rule can be
// satisfied, but not by too few.
func (p *Policy) Compile(roster Roster, limits Limits) (*Compiled, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	if err := roster.validate(); err != nil {
		return nil, err
	}
	if err := limits.validate(); err != nil {
		return nil, err
	}
	c := &Compiled{leases: p.Leases, people: roster.sorted(), rules: map[Action]*Bound{}}
	for _, r := range p.Rules {
		b, err := bind(r, c.people)
		if err == nil {
			err = b.check(len(c.people), limits)
		}
		if err != nil {
			return nil, fmt.Errorf("policy: rule %q (%s): %w", r.Name, r.Action, err)
		}
		c.rules[r.Action] = b
	}
	if err := c.compare(); err != nil {
		return nil, err
	}
	return c, nil
}

func (l Limits) validate() error {
	for a, n := range l.MinShares {
		if !a.opensWeights() {
			return fmt.Errorf("policy: limits: %q opens no weights and needs no shares", clip(string(a)))
		}
		if n > MaxPeople {
			return fmt.Errorf("policy: limits: %d shares for %s: at most %d", n, a, MaxPeople)
		}
	}
	return nil
}

// Rule returns the one rule for a, or an error: no rule means no.
func (c *Compiled) Rule(a Action) (*Bound, error) {
	if b := c.rules[a]; b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("policy: no rule allows %q: it needs one, added by %s", clip(string(a)), PolicyChange)
}

// Actions lists the actions that have a rule, sorted.
func (c *Compiled) Actions() []Action {
	var as []Action
	for a := range c.rules {
		as = append(as, a)
	}
	slices.Sort(as)
	return as
}

// Leases returns the policy's durations.
func (c *Compiled) Leases() Leases { return c.leases }

// bind copies r and finds its people.
func bind(r Rule, people []Person) (*Bound, error) {
	b := &Bound{Rule: r.clone(), roles: r.roles()}
	if len(b.roles) > MaxRoles {
		return nil, fmt.Errorf("names %d roles: at most %d", len(b.roles), MaxRoles)
	}
	bit := map[string]int{}
	for i, role := range b.roles {
		bit[role] = i
	}
	held := uint64(0)
	for _, p := range people {
		s := seat{Person: p}
		for _, role := range p.Roles {
			if i, named := bit[role]; named {
				s.roles |= 1 << i
			}
			s.veto = s.veto || slices.Contains(b.Veto, role)
		}
		if held |= s.roles; s.roles != 0 {
			b.people = append(b.people, s)
		}
	}
	for i, role := range b.roles {
		if held&(1<<i) == 0 {
			return nil, fmt.Errorf("nobody holds role %q: it is unknown to the roster", role)
		}
	}
	b.digest = b.sum()
	var err error
	b.alternatives, err = expand(b.Quorum.Tree, bit)
	return b, err
}

// roles lists every role that r names, sorted.
func (r *Rule) roles() []string {
	roles := slices.Clone(r.Veto)
	r.Quorum.Tree.leaves(func(l *Leaf) { roles = append(roles, l.Roles...) })
	slices.Sort(roles)
	return slices.Compact(roles)
}

func (t Tree) leaves(visit func(*Leaf)) {
	if t.AtLeast != nil {
		visit(t.AtLeast)
	}
	for _, b := range t.All {
		b.leaves(visit)
	}
	for _, b := range t.Any {
		b.leaves(visit)
	}
}

func (r Rule) clone() Rule {
	r.Veto = slices.Clone(r.Veto)
	r.Quorum.Tree = r.Quorum.Tree.clone()
	return r
}

func (t Tree) clone() Tree {
	c := Tree{All: slices.Clone(t.All), Any: slices.Clone(t.Any)}
	for i := range c.All {
		c.All[i] = c.All[i].clone()
	}
	for i := range c.Any {
		c.Any[i] = c.Any[i].clone()
	}
	if t.AtLeast != nil {
		c.AtLeast = &Leaf{K: t.AtLeast.K, Roles: slices.Clone(t.AtLeast.Roles)}
	}
	return c
}

// check refuses a rule that nobody, anybody, or too few people satisfy.
func (b *Bound) check(everybody int, limits Limits) error {
	if err := b.leavesHold(); err != nil {
		return err
	}
	if !b.satisfiable(everybody) {
		return errors.New("no set of distinct people satisfies the quorum, whoever of the roster asks")
	}
	if least, floor := b.smallest(), floors[b.Action]; least < floor {
		return fmt.Errorf("%d approval satisfies the quorum: %s takes at least %d", least, b.Action, floor)
	}
	if b.Action == Halt {
		if b.smallest() > 1 {
			return fmt.Errorf("halt takes %d approvals: one person must be able to halt", b.smallest())
		}
	} else if b.anybody(everybody) {
		return errors.New("everybody in the roster satisfies the quorum alone")
	}
	if need := limits.MinShares[b.Action]; uint(b.leastShares()) < need {
		return fmt.Errorf("an approving set may hold only %d shares: opening takes %d", b.leastShares(), need)
	}
	return nil
}

// leavesHold names a leaf that asks for more people than there are, which
// would be a dead branch even where another branch can be satisfied.
func (b *Bound) leavesHold() (err error) {
	b.Quorum.Tree.leaves(func(l *Leaf) {
		holders := 0
		for _, s := range b.people {
			if slices.ContainsFunc(s.Roles, func(r string) bool { return slices.Contains(l.Roles, r) }) {
				holders++
			}
		}
		if holders < l.K && err == nil {
			err = fmt.Errorf("quorum: atLeast %d of %q, but only %d hold it", l.K, l.Roles, holders)
		}
	})
	return err
}

// satisfiable reports whether all others together satisfy the quorum for at
// least one person of the roster who might ask. everybody is the roster's size;
// people whom the rule does not speak of may ask too.
func (b *Bound) satisfiable(everybody int) bool {
	if b.Action == Halt || len(b.people) < everybody {
		return b.met(b.people)
	}
	for i := range b.people {
		if b.met(slices.Delete(slices.Clone(b.people), i, i+1)) {
			return true
		}
	}
	return false
}

// met reports whether people satisfy the quorum.
func (b *Bound) met(people []seat) bool {
	return slices.ContainsFunc(b.alternatives, func(a alternative) bool {
		f := fill(a, people, b.Quorum.Organisations)
		return f.empty() == 0 && f.organisations >= b.Quorum.Organisations
	})
}

// smallest is the size of the smallest approving set.
func (b *Bound) smallest() int {
	least := MaxSlots + 1
	for _, a := range b.alternatives {
		f := fill(a, b.people, b.Quorum.Organisations)
		if f.empty() == 0 && f.organisations >= b.Quorum.Organisations {
			least = min(least, len(a))
		}
	}
	return least
}

func (b *Bound) anybody(everybody int) bool {
	if len(b.people) < everybody {
		return false
	}
	for i := range b.people {
		if !b.met(b.people[i : i+1]) {
			return false
		}
	}
	return true
}

// leastShares is a lower bound on the shares that an approving set holds. The
// people without a share are seated first: the sets that fill an alternative
// are the bases of a matroid, so this greedy choice leaves the fewest places
// to people with one. It may be too low where organisations rule such a set
// out, never too high.
func (b *Bound) leastShares() int {
	without := slices.DeleteFunc(slices.Clone(b.people), func(s seat) bool { return s.HoldsShare })
	least := MaxSlots + 1
	for _, a := range b.alternatives {
		if fill(a, b.people, 0).empty() == 0 {
			least = min(least, fill(a, without, 0).empty())
		}
	}
	return least
}

// compare refuses policies in which one rule makes another one hollow.
func (c *Compiled) compare() error {
	if c.rules[Halt] == nil {
		return errors.New("policy: no rule for halt: somebody must be able to stop")
	}
	resume, launch := c.rules[Resume], c.rules[TrainingLaunch]
	if resume != nil && launch != nil && resume.smallest() < launch.smallest() {
		return fmt.Errorf("policy: resume takes %d approvals and training.launch %d: lifting a halt must not be easier than a launch",
			resume.smallest(), launch.smallest())
	}
	return nil
}
