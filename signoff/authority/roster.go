package authority

import (
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/policy"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// A Roster is who the people are: those of the charter, until a warrant
// changes it. Records of it are replaced, never changed.
type Roster struct {
	Index     uint64    `json:"index"`     // of the entry that made it
	Members   []*Member `json:"members"`   // ascending by share index
	Last      uint16    `json:"last"`      // highest share index ever given; none is given twice
	Threshold int       `json:"threshold"` // t: people's shares that open what is sealed for it
}

// A Member is a person of the roster.
type Member struct {
	ID    Digest `json:"id"`    // the first signing key the person had; stays when tokens are replaced
	Index uint16 `json:"index"` // among share holders
	signoff.Person
}

// An Owned token is one that a person has or had.
type Owned struct {
	signoff.Token
	Person Digest // Member.ID
	Name   string // of the person
	Index  uint16 // Member.Index
}

// Founders is the roster that a log begins with: the charter's people in its
// order.
func Founders(c *signoff.Charter) *Roster {
	r := &Roster{Threshold: c.Threshold}
	for _, p := range c.People {
		r.Last++
		r.Members = append(r.Members, &Member{ID: p.ID(), Index: r.Last, Person: p})
	}
	return r
}

// Person returns the member with that id.
func (r *Roster) Person(id Digest) (*Member, bool) {
	i := slices.IndexFunc(r.Members, func(m *Member) bool { return m.ID == id })
	if i < 0 {
		return nil, false
	}
	return r.Members[i], true
}

// Named returns the member with that name.
func (r *Roster) Named(name string) (*Member, bool) {
	i := slices.IndexFunc(r.Members, func(m *Member) bool { return m.Name == name })
	if i < 0 {
		return nil, false
	}
	return r.Members[i], true
}

// Holders is the people's side of what is sealed for this roster. A spare
// token gets the share of its person's first; who only signs gets none.
func (r *Roster) Holders() (lockbox.Group, error) {
	g := lockbox.Group{Threshold: uint16(r.Threshold)}
	for _, m := range r.Members {
		for i, t := range m.Tokens() {
			if !t.HoldsShare() {
				continue
			}
			key, err := t.Exchange.Recipient()
			if err != nil {
				return g, fmt.Errorf("%s: %w", m.Name, err)
			}
			g.Holders = append(g.Holders, lockbox.Holder{Index: m.Index, Key: key, Spare: i > 0})
		}
	}
	return g, g.Check()
}

// policyRoster is the roster as policies see it: one human, one entry.
func (r *Roster) policyRoster() policy.Roster {
	var out policy.Roster
	for _, m := range r.Members {
		out.People = append(out.People, policy.Person{ID: m.ID, Name: m.Name, Organisation: m.Organisation, Roles: m.Roles, HoldsShare: m.HoldsShare()})
	}
	return out
}

// signers are the roster's tokens by the fingerprint of their signing keys.
func (r *Roster) signers() (map[Digest]signer, error) {
	out := map[Digest]signer{}
	for _, m := range r.Members {
		for _, t := range m.Tokens() {
			pub, err := t.Signing.Public()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", m.Name, err)
			}
			out[t.ID()] = signer{member: m, public: pub}
		}
	}
	return out, nil
}

// Tokens are the roster's tokens by signing key.
func (r *Roster) Tokens() map[Digest]Owned {
	out := map[Digest]Owned{}
	for _, m := range r.Members {
		for _, t := range m.Tokens() {
			out[t.ID()] = Owned{Token: t, Person: m.ID, Name: m.Name, Index: m.Index}
		}
	}
	return out
}

// Person returns the person of the roster with that id.
func (s *State) Person(id Digest) (*Member, bool) {
	if s.People == nil {
		return nil, false
	}
	return s.People.Person(id)
}

// Counts reports whether what that signing key signs is the person's word now.
func (s *State) Counts(signing, person Digest) bool {
	g, ok := s.signers[signing]
	return ok && g.member != nil && g.member.ID == person
}

// PersonName names whoever is or was the person with that id; empty if nobody.
func (s *State) PersonName(id Digest) string {
	if t := s.Tokens[id]; t.Person == id {
		return t.Name
	}
	return ""
}

// HolderName names whoever has or had that share index.
func (s *State) HolderName(index uint16) string {
	for _, t := range s.Tokens {
		if t.Index == index {
			return t.Name
		}
	}
	return ""
}

// Keys says what each key that ever stood in this cluster is for. A key that
// stood in one place is refused in every other.
func (s *State) Keys() (signoff.KeySet, error) {
	keys, err := s.oldKeys()
	if err != nil {
		return nil, err
	}
	s.Keygen.Members.AddTo(keys) // who are in office, or come next
	return keys, nil
}

// oldKeys are Keys without those of notaries that never were in office.
func (s *State) oldKeys() (signoff.KeySet, error) {
	keys, err := s.Charter.Keys()
	if err != nil {
		return nil, err
	}
	for _, t := range s.Terms {
		t.Council.AddTo(keys)
	}
	for k := range s.logKeys {
		keys[k] = "a log key"
	}
	if s.Group != nil {
		keys[s.groupID] = "the notaries' group key"
	}
	for _, t := range s.Tokens {
		keys.Put(t.Name+"'s signing key", t.Signing)
		if t.HoldsShare() {
			keys.Put(t.Name+"'s exchange key", t.Exchange)
		}
	}
	for _, n := range s.Nodes {
		keys[n.ID] = "the endorsement key of node " + n.Name
		for _, k := range []any{n.Keys.TLSKey, n.Keys.SignKey, n.Keys.StorageKey} {
			p, err := signoff.NewPublicKey(k, "")
			if err != nil {
				return nil, err
			}
			keys[p.Fingerprint()] = "a key of node " + n.Name
		}
	}
	return keys, nil
}
