package authority

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/keyturn/keyturn/signoff"
)

// newToken records that a token which a request brings is there.
func (d decision) newToken(a *signoff.Acceptance) ([]change, error) {
	old := d.state.Requests[a.Request]
	if slices.Contains(old.Activated, a.Person) {
		return nil, errors.New("this token has already accepted")
	}
	r := *old
	r.Activated = append(slices.Clone(old.Activated), a.Person)
	return []change{putRequest(&r)}, nil
}

// A succession is a roster that may follow the one in force, with what changes
// along with it.
type succession struct {
	roster  *Roster
	policy  *PolicyRecord
	signers map[Digest]signer
}

// put makes the succession the state. Everything that was signed under the old
// roster is judged anew when requests are settled.
func (n *succession) put(s *State) {
	s.People, s.Policy, s.signers = n.roster, n.policy, n.signers
	maps.Copy(s.Tokens, n.roster.Tokens())
}

// changePeople works out the roster after a change, and refuses one under which
// the policy in force would not compile, or that leaves too few people with
// shares of an object to open it or to deal them anew.
func (s *State) changePeople(p *signoff.PeopleChange) (*succession, error) {
	keys, err := s.Keys()
	if err != nil {
		return nil, err
	}
	r, err := s.People.Changed(p, s.Charter.Development, keys, s.Tokens)
	if err != nil {
		return nil, err
	}
	if n := len(r.Members); n > signoff.MaxPeople || n < r.Threshold {
		return nil, fmt.Errorf("%d people after it, want %d to %d", n, r.Threshold, signoff.MaxPeople)
	}
	if n := r.canHold(); n < r.Threshold {
		return nil, fmt.Errorf("%d of the people after it have an exchange key and can hold a share, opening takes %d", n, r.Threshold)
	}
	policy, err := compilePolicy(r, s.Policy.Text)
	if err != nil {
		return nil, fmt.Errorf("the policy in force, with the people after it: %w", err)
	}
	policy.Index = s.Policy.Index
	signers, err := s.signersWith(r)
	if err != nil {
		return nil, err
	}
	for _, o := range s.shut(r) {
		if s.vouched(o, signers) {
			return nil, fmt.Errorf("%d of the people after it hold a share of object %s, it takes %d; add first, deal anew (keyturn weights redeal), and remove then, or first put out who sealed it",
				len(r.holding(o.People)), o.ID.Short(), o.People.Threshold())
		}
	}
	return &succession{r, policy, signers}, nil
}

// shut lists the objects of which fewer people of a roster hold a share than open it.
func (s *State) shut(r *Roster) (out []*Object) {
	for _, id := range slices.SortedFunc(maps.Keys(s.Objects), compareDigests) {
		if o := s.Objects[id]; o.People.Epoch > 0 && len(r.holding(o.People)) < o.People.Threshold() {
			out = append(out, o)
		}
	}
	return out
}

// Shuts lists the objects that a change of people leaves shut, for want of people
// who hold a share. They are none but those that nobody who counts after it vouches
// for; see vouched.
func (s *State) Shuts(p *signoff.PeopleChange) ([]*Object, error) {
	next, err := s.changePeople(p)
	if err != nil {
		return nil, err
	}
	return s.shut(next.roster), nil
}

// vouched reports whether the shares of an object are more than the word of somebody
// who counts no longer: its sealer still counts, with the signers given, or everybody
// opened and accepted them when they were dealt on. Only such an object holds a
// change of people up. Otherwise whoever is to be put out, or has stolen a token,
// would seal something for t people and be there for good.
func (s *State) vouched(o *Object, signers map[Digest]signer) bool {
	switch {
	case o.People.Epoch > 1:
		return true
	case !o.Doc.Claim.IsZero():
		return s.enrolled(o.Doc.Sealer)
	}
	return signers[o.Signer].member != nil
}

// signersWith are the signers with the people replaced.
func (s *State) signersWith(r *Roster) (map[Digest]signer, error) {
	out, err := r.signers()
	if err != nil {
		return nil, err
	}
	for id, g := range s.signers {
		if g.member == nil {
			out[id] = g
		}
	}
	return out, nil
}

// Changed is the roster after a change. keys are all that ever stood in the
// cluster, known all tokens that people ever had.
func (r *Roster) Changed(p *signoff.PeopleChange, development bool, keys signoff.KeySet, known map[Digest]Owned) (*Roster, error) {
	next := &Roster{Last: r.Last, Threshold: r.Threshold}
	if p.Threshold != 0 {
		// Lowered, it would leave objects whose shares those who may now
		// decide are too few to open.
		if p.Threshold <= r.Threshold {
			return nil, fmt.Errorf("the people's threshold is %d and can only rise; %d is asked for", r.Threshold, p.Threshold)
		}
		next.Threshold = p.Threshold
	}
	for _, m := range r.Members {
		if slices.Contains(p.Remove, m.ID) {
			continue
		}
		i := slices.IndexFunc(p.Tokens, func(t signoff.TokenChange) bool { return t.Person == m.ID })
		if i >= 0 {
			var err error
			if m, err = m.changed(p.Tokens[i], development, keys); err != nil {
				return nil, err
			}
		}
		if i := slices.IndexFunc(p.Roles, func(x signoff.RoleChange) bool { return x.Person == m.ID }); i >= 0 {
			with := *m
			with.Roles = p.Roles[i].Roles
			m = &with
		}
		next.Members = append(next.Members, m)
	}
	for _, id := range p.Remove {
		if _, ok := r.Person(id); !ok {
			return nil, fmt.Errorf("%s, who is to leave, is not a person of this cluster", id)
		}
	}
	for _, t := range p.Tokens {
		if _, ok := r.Person(t.Person); !ok {
			return nil, fmt.Errorf("%s, whose tokens are to change, is not a person of this cluster", t.Person)
		}
	}
	for _, x := range p.Roles {
		if _, ok := r.Person(x.Person); !ok {
			return nil, fmt.Errorf("%s, whose roles are to change, is not a person of this cluster", x.Person)
		}
	}
	return next, next.join(p.Add, development, keys, known)
}

// join adds people under share indices and names that nobody had before.
func (r *Roster) join(people []signoff.Person, development bool, keys signoff.KeySet, known map[Digest]Owned) error {
	names := map[string]bool{}
	for _, t := range known {
		names[t.Name] = true
	}
	for _, p := range people {
		if names[p.Name] {
			return fmt.Errorf("somebody is or was named %q here; give another name", p.Name)
		}
		names[p.Name] = true
		if err := signoff.CheckPerson(p, development, keys); err != nil {
			return err
		}
		if r.Last == math.MaxUint16 {
			return errors.New("no share index is left")
		}
		r.Last++
		r.Members = append(r.Members, &Member{ID: p.ID(), Index: r.Last, Person: p})
	}
	return nil
}

// changed is the person with one token more, less, or another. A new token
// stands where the one that it replaces stood.
func (m *Member) changed(t signoff.TokenChange, development bool, keys signoff.KeySet) (*Member, error) {
	tokens, at := m.Tokens(), len(m.Tokens())
	if !t.Retire.IsZero() {
		if at = slices.IndexFunc(tokens, func(x signoff.Token) bool { return x.ID() == t.Retire }); at < 0 {
			return nil, fmt.Errorf("%s has no token %s", m.Name, t.Retire)
		}
		tokens = slices.Delete(tokens, at, at+1)
	}
	if t.Add != nil {
		if err := signoff.CheckToken(m.Name, *t.Add, development, keys); err != nil {
			return nil, err
		}
		tokens = slices.Insert(tokens, at, *t.Add)
	}
	if n := len(tokens); n == 0 || n > signoff.MaxTokens {
		return nil, fmt.Errorf("%s would have %d tokens, want 1 to %d", m.Name, n, signoff.MaxTokens)
	}
	next := *m
	next.Token, next.Spares = tokens[0], nil
	if len(tokens) > 1 {
		next.Spares = tokens[1:]
	}
	// Back to P-256 alone nobody need go: any token does for the P-256 half.
	if m.Hybrid() && !next.Hybrid() {
		return nil, fmt.Errorf("%s's exchange keys are hybrid and the new token's is not; make one with keyturn key new --hybrid", m.Name)
	}
	return &next, next.CheckAlike()
}

// TakesThreshold reports whether an object may be sealed for that many people:
// as many as the roster says, or fewer down to the charter's, as a sealer without a
// network may still have it.
func (r *Roster) TakesThreshold(c *signoff.Charter, threshold int) bool {
	return threshold >= c.Threshold && threshold <= r.Threshold
}

// canHold counts the people to whom shares can be dealt.
func (r *Roster) canHold() int {
	n := 0
	for _, m := range r.Members {
		if m.HoldsShare() {
			n++
		}
	}
	return n
}
