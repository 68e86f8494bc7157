package signoff

import (
	"fmt"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// ActionPeopleChange asks to change who belongs.
const ActionPeopleChange = "people.change"

// MaxPeopleChanges bounds one change: it is shown to people line by line.
const MaxPeopleChanges = 16

// A PeopleChange changes who belongs, all at once, judged by who belonged
// before. Each new token says by an [Acceptance] that it is there.
type PeopleChange struct {
	Add       []Person      `json:"add,omitempty"`
	Remove    []Digest      `json:"remove,omitempty"` // ids of people
	Tokens    []TokenChange `json:"tokens,omitempty"`
	Roles     []RoleChange  `json:"roles,omitempty"`
	Threshold int           `json:"threshold,omitzero"` // shares that open what is sealed from then on; omitted: as many as before
}

// A RoleChange gives a person other roles in the place of all that they had.
type RoleChange struct {
	Person Digest   `json:"person"`
	Roles  []string `json:"roles"`
}

// A TokenChange gives a person a token, takes one away, or puts one in the
// place of another.
type TokenChange struct {
	Person Digest `json:"person"`
	Retire Digest `json:"retire"`        // id of one of the person's tokens; empty: none
	Add    *Token `json:"add,omitempty"` // omitted: none
}

// NewTokens lists the tokens that the change brings.
func (p *PeopleChange) NewTokens() []Token {
	var out []Token
	for _, x := range p.Add {
		out = append(out, x.Tokens()...)
	}
	for _, t := range p.Tokens {
		if t.Add != nil {
			out = append(out, *t.Add)
		}
	}
	return out
}

func (p *PeopleChange) subjects() []dsse.Subject {
	var out []dsse.Subject
	for _, x := range p.Add {
		out = append(out, dsse.About("joins", x.ID()))
	}
	for _, id := range p.Remove {
		out = append(out, dsse.About("leaves", id))
	}
	for _, t := range p.Tokens {
		out = append(out, dsse.About("person", t.Person))
	}
	for _, x := range p.Roles {
		out = append(out, dsse.About("roles", x.Person))
	}
	return out
}

// check checks the form. Key classes, and whether the change fits those who
// belong, are for the fold.
func (p *PeopleChange) check() error {
	n := len(p.Add) + len(p.Remove) + len(p.Tokens) + len(p.Roles)
	if n > MaxPeopleChanges || n == 0 && p.Threshold == 0 {
		return fmt.Errorf("%d changes of people, want 1 to %d, or another threshold", n, MaxPeopleChanges)
	}
	if p.Threshold != 0 && (p.Threshold < 2 || p.Threshold > MaxPeople) {
		return fmt.Errorf("people's threshold %d, want 2 to %d", p.Threshold, MaxPeople)
	}
	keys, touched := KeySet{}, map[Digest]bool{}
	once := func(id Digest) error {
		if id.IsZero() {
			return missing("a person")
		}
		if touched[id] {
			return fmt.Errorf("person %s is changed twice", id)
		}
		touched[id] = true
		return nil
	}
	for _, x := range p.Add {
		if err := CheckPerson(x, true, keys); err != nil {
			return err
		}
	}
	for _, id := range p.Remove {
		if err := once(id); err != nil {
			return err
		}
	}
	for _, t := range p.Tokens {
		if err := once(t.Person); err != nil {
			return err
		}
		if t.Add == nil && t.Retire.IsZero() {
			return missing("the token to add or to retire")
		}
		if t.Add != nil {
			if err := CheckToken("the person", *t.Add, true, keys); err != nil {
				return err
			}
		}
	}
	for _, x := range p.Roles {
		if err := once(x.Person); err != nil {
			return err
		}
		if err := checkRoles("the person", x.Roles); err != nil {
			return err
		}
	}
	return nil
}
