// Package policy decides whether enough people turned their keys.
//
// A policy is a short YAML document with one rule for each action. A rule says
// whose approvals an action needs, who may veto it, how long a request lives
// and how often a warrant may be used. The package is pure: it sees plain
// values, takes the time as an argument, computes with integers only, and
// gives the same answer on every machine.
//
//	version: 1
//	leases: {epoch: 600, lease: 21600, drainGrace: 300}
//	rules:
//	  - name: export-weights
//	    action: weights.export
//	    quorum:
//	      organisations: 2
//	      all:
//	        - atLeast: {k: 1, role: security}
//	        - atLeast: {k: 1, role: leadership}
//	        - atLeast: {k: 1, roles: [security, research, leadership, safety]}
//	    veto: [safety]
//	    expiry: 86400
//	    approvalExpiry: 43200
//	    coolingOff: 3600
//	    uses: 1
//	  - name: anyone-may-halt
//	    action: halt
//	    quorum: {atLeast: {k: 1, roles: [security, research, leadership, safety]}}
//	    expiry: 3600
//
// # The quorum tree
//
// A node is a mapping with exactly one of all (a list: every branch), any (a
// list: one branch is enough) and atLeast (k people of a role, or of any of
// several roles). The places that the atLeast leaves open are filled by
// distinct people across the whole tree: somebody with two roles fills one
// place, not two, so the example above always takes three people. At the top,
// organisations asks that those who fill the places come from at least so many
// organisations.
//
// The requester never fills a place. Halt is the one exception: stopping is
// easier than starting, so whoever asks for a halt may be the one who grants it.
//
// # What does not load
//
// There is exactly one rule for an action: two rules would leave open which of
// them an approver agreed to. An action without a rule is refused, and a
// policy without a halt rule that one person can satisfy does not compile.
// Neither does a rule that nobody satisfies whoever asks, one that everybody
// satisfies alone, one that takes fewer than two people for an act that opens
// or admits something, or one that opens weights with fewer people's shares
// than the lockbox needs. A zero, an empty list and a missing field are errors,
// save for the three optional fields: approvalExpiry and coolingOff (absent:
// none) and uses (absent: one).
//
// All durations and times are whole seconds, times since the Unix epoch.
package policy

import (
	"errors"
	"fmt"
)

// Version is the only policy version this package reads.
const Version = 1

// Action is an act that needs sign-off.
type Action string

// The actions, all there are.
const (
	WeightsExport  Action = "weights.export"
	WeightsOpen    Action = "weights.open"
	TrainingLaunch Action = "training.launch"
	NodeEnrol      Action = "node.enrol"
	NodeRetire     Action = "node.retire"
	PolicyChange   Action = "policy.change"
	ReferenceAdopt Action = "reference.adopt"
	PeopleChange   Action = "people.change"
	Halt           Action = "halt"
	Resume         Action = "resume"
	ObjectRegister Action = "object.register"
	NotariesChange Action = "notaries.change"
	EKRootsChange  Action = "ekroots.change"

	ReferenceWithdraw Action = "reference.withdraw"
)

// floors holds every action with the smallest approving set it may ever have.
// Acts that only stop or record something need one person, all others two.
var floors = map[Action]int{
	WeightsExport:  2,
	WeightsOpen:    2,
	TrainingLaunch: 2,
	NodeEnrol:      2,
	NodeRetire:     1,
	PolicyChange:   2,
	ReferenceAdopt: 2,
	PeopleChange:   2,
	Halt:           1,
	Resume:         2,
	ObjectRegister: 1,
	NotariesChange: 2,
	EKRootsChange:  2,

	ReferenceWithdraw: 1,
}

// Known reports whether a is one of the actions above.
func (a Action) Known() bool { return floors[a] > 0 }

// opensWeights reports whether granting a hands somebody the people's factor.
func (a Action) opensWeights() bool {
	return a == WeightsExport || a == WeightsOpen || a == TrainingLaunch
}

// Policy is a policy as written. It decides nothing until it is compiled
// against the people it speaks of.
type Policy struct {
	Version int
	Leases  Leases
	Rules   []Rule
}

// Leases are the durations, in seconds, that bound how long a node goes on
// without news: an epoch, a lease (at least an epoch), and the grace between
// the end of a lease and the end of the run.
type Leases struct {
	Epoch, Lease, DrainGrace int64
}

// Rule is one action's rule as written.
type Rule struct {
	Name           string
	Action         Action
	Quorum         Quorum
	Veto           []string // roles whose single reject kills a request
	Expiry         int64    // seconds a request lives at most
	ApprovalExpiry int64    // seconds an approval counts at most; 0: as long as it says itself
	CoolingOff     int64    // seconds between the last approval needed and the act; 0: none
	Uses           int64    // uses one warrant may have at most
}

// Quorum is a tree and what its approving set as a whole must be.
type Quorum struct {
	Organisations int // least number of organisations; 0: not asked for
	Tree          Tree
}

// Tree is a node of a quorum tree: exactly one field is set.
type Tree struct {
	All     []Tree
	Any     []Tree
	AtLeast *Leaf
}

// Leaf opens K places for distinct people who hold any of Roles.
type Leaf struct {
	K     int
	Roles []string
}

// validate checks everything that can be said without a roster. Parse and
// Compile both call it, so a policy built in Go is held to the same rules.
func (p *Policy) validate() error {
	if p == nil {
		return errors.New("policy: no policy given")
	}
	if p.Version != Version {
		return fmt.Errorf("policy: version %d is unknown: this program reads version %d", p.Version, Version)
	}
	if err := p.Leases.validate(); err != nil {
		return err
	}
	if len(p.Rules) == 0 {
		return errors.New("policy: rules is empty: without a rule every action is refused")
	}
	names, actions := map[string]bool{}, map[Action]bool{}
	for i := range p.Rules {
		r := &p.Rules[i]
		if err := r.validate(); err != nil {
			return fmt.Errorf("policy: rule %d (%q): %w", i+1, clip(r.Name), err)
		}
		if names[r.Name] {
			return fmt.Errorf("policy: rule %d: the name %q is taken: give every rule its own", i+1, r.Name)
		}
		if actions[r.Action] {
			return fmt.Errorf("policy: rule %d (%q): action %s already has a rule: join the two with any or all", i+1, r.Name, r.Action)
		}
		names[r.Name], actions[r.Action] = true, true
	}
	return nil
}

func (l Leases) validate() error {
	for _, d := range []struct {
		name  string
		value int64
	}{{"epoch", l.Epoch}, {"lease", l.Lease}, {"drainGrace", l.DrainGrace}} {
		if err := duration("leases."+d.name, d.value); err != nil {
			return fmt.Errorf("policy: %w", err)
		}
	}
	if l.Lease < l.Epoch {
		return fmt.Errorf("policy: leases.lease %d is shorter than leases.epoch %d: no lease would live to be renewed", l.Lease, l.Epoch)
	}
	return nil
}

func (r *Rule) validate() error {
	if err := checkName("rule name", r.Name); err != nil {
		return err
	}
	if !r.Action.Known() {
		return fmt.Errorf("unknown action %q", clip(string(r.Action)))
	}
	if err := duration("expiry", r.Expiry); err != nil {
		return err
	}
	if r.ApprovalExpiry < 0 || r.ApprovalExpiry > MaxSeconds || r.CoolingOff < 0 || r.CoolingOff > MaxSeconds {
		return fmt.Errorf("approvalExpiry %d and coolingOff %d must be seconds from 0 to %d", r.ApprovalExpiry, r.CoolingOff, MaxSeconds)
	}
	if r.CoolingOff >= r.Expiry || (r.ApprovalExpiry > 0 && r.CoolingOff >= r.ApprovalExpiry) {
		return fmt.Errorf("coolingOff %d leaves no time before expiry %d and approvalExpiry %d", r.CoolingOff, r.Expiry, r.ApprovalExpiry)
	}
	if r.Uses < 1 || r.Uses > MaxUses {
		return fmt.Errorf("uses %d must be from 1 to %d", r.Uses, MaxUses)
	}
	if r.Action == Halt && (len(r.Veto) > 0 || r.CoolingOff > 0 || r.Quorum.Organisations > 0) {
		return errors.New("halt takes no veto, coolingOff or organisations: stopping must not be made hard")
	}
	if err := checkRoles("veto", r.Veto); err != nil {
		return err
	}
	return r.Quorum.validate()
}

func (q Quorum) validate() error {
	if q.Organisations < 0 || q.Organisations > MaxSlots {
		return fmt.Errorf("organisations %d must be from 1 to %d", q.Organisations, MaxSlots)
	}
	return q.Tree.validate(1)
}

func (t Tree) validate(depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("quorum: nested deeper than %d", MaxDepth)
	}
	branches := append(append([]Tree(nil), t.All...), t.Any...)
	switch {
	case len(t.All) > 0 && len(t.Any) > 0, t.AtLeast != nil && len(branches) > 0:
		return errors.New("quorum: a node has exactly one of all, any and atLeast")
	case t.AtLeast != nil:
		return t.AtLeast.validate()
	case len(branches) == 0:
		return errors.New("quorum: an empty node would be satisfied by nobody's approval: give it all, any or atLeast")
	}
	for _, b := range branches {
		if err := b.validate(depth + 1); err != nil {
			return err
		}
	}
	return nil
}

func (l *Leaf) validate() error {
	if l.K < 1 || l.K > MaxK {
		return fmt.Errorf("quorum: atLeast k %d must be from 1 to %d", l.K, MaxK)
	}
	if len(l.Roles) == 0 {
		return errors.New("quorum: atLeast names no role")
	}
	return checkRoles("quorum", l.Roles)
}

func duration(name string, v int64) error {
	if v < 1 || v > MaxSeconds {
		return fmt.Errorf("%s %d must be seconds from 1 to %d", name, v, MaxSeconds)
	}
	return nil
}

func checkRoles(where string, roles []string) error {
	if len(roles) > MaxRoles {
		return fmt.Errorf("%s: %d roles: at most %d", where, len(roles), MaxRoles)
	}
	seen := map[string]bool{}
	for _, r := range roles {
		if err := checkName(where+": role", r); err != nil {
			return err
		}
		if seen[r] {
			return fmt.Errorf("%s: role %q is named twice", where, r)
		}
		seen[r] = true
	}
	return nil
}

// checkName admits [a-z0-9][a-z0-9-]* only, so that no two names that differ
// look alike: no upper case, no other script, no invisible character.
func checkName(what, s string) error {
	if s == "" || len(s) > MaxNameLen {
		return fmt.Errorf("%s %q must have 1 to %d bytes", what, clip(s), MaxNameLen)
	}
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' && i > 0 {
			continue
		}
		return fmt.Errorf("%s %q: only a-z, 0-9 and - (not first) are allowed", what, clip(s))
	}
	return nil
}

// clip keeps hostile text in an error short; %q makes it harmless.
func clip(s string) string {
	if len(s) > MaxNameLen {
		return s[:MaxNameLen] + "..."
	}
	return s
}
