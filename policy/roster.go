package policy

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Roster is everybody a policy can speak of. A human has one entry however
// many keys or tokens they hold: whoever maps keys to people hands in the
// person's ID, and so one human has one vote.
type Roster struct {
	People []Person
}

// Person is one human. ID names them in votes (a fingerprint, never zero);
// Name and Roles are [a-z0-9][a-z0-9-]*; Organisation is printable ASCII and
// compared without regard to case. HoldsShare says whether the person's token
// can open a share of the people's factor; one that only signs cannot.
type Person struct {
	ID           [32]byte
	Name         string
	Organisation string
	Roles        []string
	HoldsShare   bool
}

func (r Roster) validate() error {
	if len(r.People) == 0 {
		return errors.New("policy: the roster is empty")
	}
	if len(r.People) > MaxPeople {
		return fmt.Errorf("policy: the roster has %d people: at most %d", len(r.People), MaxPeople)
	}
	ids, names, orgs := map[[32]byte]string{}, map[string]bool{}, map[string]string{}
	for _, p := range r.People {
		if err := p.validate(); err != nil {
			return fmt.Errorf("policy: roster: person %q: %w", clip(p.Name), err)
		}
		if other, taken := ids[p.ID]; taken {
			return fmt.Errorf("policy: roster: %q and %q have one id: one human, one entry", other, p.Name)
		}
		if names[p.Name] {
			return fmt.Errorf("policy: roster: two people are named %q: one human, one entry", p.Name)
		}
		folded := strings.ToLower(p.Organisation)
		if other, ok := orgs[folded]; ok && other != p.Organisation {
			return fmt.Errorf("policy: roster: organisations %q and %q differ only in case", other, p.Organisation)
		}
		ids[p.ID], names[p.Name], orgs[folded] = p.Name, true, p.Organisation
	}
	return nil
}

func (p Person) validate() error {
	if p.ID == ([32]byte{}) {
		return errors.New("the id is zero")
	}
	if err := checkName("name", p.Name); err != nil {
		return err
	}
	if err := checkOrganisation(p.Organisation); err != nil {
		return err
	}
	if len(p.Roles) > MaxRolesEach {
		return fmt.Errorf("%d roles: at most %d", len(p.Roles), MaxRolesEach)
	}
	return checkRoles("roles", p.Roles)
}

// checkOrganisation admits printable ASCII without doubled or outer spaces, so
// that one organisation cannot be written in two ways that look the same.
func checkOrganisation(s string) error {
	if s == "" || len(s) > MaxOrganisation {
		return fmt.Errorf("organisation %q must have 1 to %d bytes", clip(s), MaxOrganisation)
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return fmt.Errorf("organisation %q: only printable ASCII is allowed", clip(s))
		}
	}
	if s != strings.Join(strings.Fields(s), " ") {
		return fmt.Errorf("organisation %q has spaces at an end or in a row", clip(s))
	}
	return nil
}

// sorted returns a deep copy of the people in the order of their IDs.
func (r Roster) sorted() []Person {
	people := slices.Clone(r.People)
	for i := range people {
		people[i].Roles = slices.Sorted(slices.Values(people[i].Roles))
	}
	slices.SortFunc(people, func(a, b Person) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return people
}
