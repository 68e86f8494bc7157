package ceremony

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/display"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// Changes says what a membership ceremony does to the people of a log, beside
// the keys that its steps make for places in it.
type Changes struct {
	Join     []Joiner      `yaml:"join"`
	Leave    []string      `yaml:"leave"` // names
	Retire   []Retirement  `yaml:"retire"`
	Notaries NotaryChanges `yaml:"notaries"`
}

// NotaryChanges says what a membership ceremony does to the notaries. Who joins
// comes with the keys that the ceremony makes for slots "notaries NAME …".
type NotaryChanges struct {
	Join   []NotaryJoiner `yaml:"join"`
	Leave  []string       `yaml:"leave"`  // names
	Faults int            `yaml:"faults"` // f from then on; 0: as it is
}

// A NotaryJoiner is a notary that comes in.
type NotaryJoiner struct {
	Name         string `yaml:"name"`
	Organisation string `yaml:"organisation"`
}

// A Joiner is a person who comes in with the keys that the ceremony makes.
type Joiner struct {
	Name         string   `yaml:"name"`
	Organisation string   `yaml:"organisation"`
	Roles        []string `yaml:"roles"` // as policies know them
}

// A Retirement takes a token from somebody who stays.
type Retirement struct {
	Person string `yaml:"person" json:"person"` // name
	Key    Digest `yaml:"key" json:"key"`       // of the token: fingerprint of its signing key
}

// A Change is a change of people with every key in it, by names where a request
// has ids. It depends on script and records alone.
type Change struct {
	Join   []signoff.Person `json:"join"`
	Tokens []NewToken       `json:"tokens"`
	Leave  []string         `json:"leave"`
	Retire []Retirement     `json:"retire"`

	Notaries *NotaryChange `json:"notaries,omitempty"`
}

// A NotaryChange is a change of notaries with every key in it.
type NotaryChange struct {
	Join   []signoff.Notary `json:"join"`
	Leave  []string         `json:"leave"`
	Faults int              `json:"faults"` // 0: as it is
}

// A NewToken is one that somebody who belongs already gets.
type NewToken struct {
	Person string        `json:"person"` // name
	Spare  bool          `json:"spare"`  // beside the first one, not in its place
	Token  signoff.Token `json:"token"`
}

// Sum is the digest of the change: SHA-256 of its canonical JSON.
func (c *Change) Sum() (Digest, error) {
	b, err := dsse.Encode(c)
	return sha256.Sum256(b), err
}

// A Roster is whose keys a log has now, as a ceremony looks at them.
type Roster struct {
	People    []signoff.Person
	Ever      map[Digest]string // every token there ever was, by signing key: its person's name
	Councils  []signoff.Council // all that were in office, that which is last
	Log, Boot signoff.PublicKey // Boot is empty if the charter has none
	TLS       []Digest          // of the coordinators
}

// charter is how a charter would stand that was written now.
func (r Roster) charter() *signoff.Charter {
	c := &signoff.Charter{People: r.People, Log: r.Log, BootPolicy: &r.Boot}
	if n := len(r.Councils); n > 0 {
		c.Notaries = r.Councils[n-1].Notaries
	}
	for _, d := range r.TLS {
		c.Coordinators = append(c.Coordinators, signoff.Coordinator{TLS: d})
	}
	return c
}

// checkChanges wants one write-change after the last key that has a place and
// before the step that proves what the log says, so that nobody has to compare.
func (s *Script) checkChanges() error {
	last, write, proof, slots, notaries := -1, -1, -1, map[string][]string{}, map[string][]string{}
	for i, t := range s.Steps {
		switch {
		case t.Slot != "" && s.Purpose == Membership:
			slot, _, err := ParseSlot(t.Slot)
			switch {
			case err == nil && slot.Of == "people":
				slots[slot.Name] = append(slots[slot.Name], slot.Use)
			case err == nil && slot.Of == "notaries" && s.Version > 1:
				notaries[slot.Name] = append(notaries[slot.Name], slot.Use)
			default:
				return fmt.Errorf("step %s: slot %q is no place of a person or notary, and a membership ceremony fills no other", t.Name, t.Slot)
			}
			last = i
		case t.Do == WriteChange && write >= 0:
			return fmt.Errorf("step %s writes the change a second time", t.Name)
		case t.Do == WriteChange:
			write = i
		case t.Do == VerifyLog && t.Proves != "":
			proof = i
		}
	}
	if s.Purpose != Membership {
		if write >= 0 || !s.Change.empty() {
			return fmt.Errorf("purpose %s: only a membership ceremony changes people or notaries", s.Purpose)
		}
		return nil
	}
	switch {
	case last < 0 && write < 0 && s.Change.empty():
		return nil
	case write < last || write < 0:
		return errors.New("want a write-change step after the last key that has a slot")
	case proof < write:
		return fmt.Errorf("no verify-log step after %s proves that the log holds the change", s.Steps[write].Name)
	}
	if s.Version == 1 && !s.Change.Notaries.empty() {
		return errors.New("a script of version 1 changes no notaries")
	}
	if err := s.Change.Notaries.check(notaries); err != nil {
		return err
	}
	if !s.Change.Notaries.empty() && len(slots) == 0 && s.Change.noPeople() {
		return nil
	}
	return s.Change.check(slots)
}

func (c *Changes) empty() bool { return c.noPeople() && c.Notaries.empty() }

func (c *Changes) noPeople() bool { return len(c.Join)+len(c.Leave)+len(c.Retire) == 0 }

func (n *NotaryChanges) empty() bool { return len(n.Join)+len(n.Leave)+n.Faults == 0 }

// check wants all three keys of each notary that joins, and no others.
func (n *NotaryChanges) check(slots map[string][]string) error {
	seen := map[string]bool{}
	for _, j := range n.Join {
		if err := errors.Join(signoff.CheckName("notary", j.Name), signoff.CheckName("organisation", j.Organisation)); err != nil {
			return err
		}
		if seen[j.Name] {
			return fmt.Errorf("notary %s joins twice", j.Name)
		}
		seen[j.Name] = true
		for _, use := range []string{"signing", "exchange", "witness"} {
			if !slices.Contains(slots[j.Name], use) {
				return fmt.Errorf("notary %s joins and no step makes a key for slot %q", j.Name, "notaries "+j.Name+" "+use)
			}
		}
	}
	for name := range slots {
		if !seen[name] {
			return fmt.Errorf("a step makes a key for notary %s, which does not join: a notary in office keeps its keys, a new one has a new name", name)
		}
	}
	for _, name := range n.Leave {
		if err := signoff.CheckName("notary", name); err != nil {
			return err
		}
		if seen[name] {
			return fmt.Errorf("notary %s leaves, and joins or leaves besides", name)
		}
		seen[name] = true
	}
	if n.Faults < 0 || len(seen) > signoff.MaxNotaries {
		return fmt.Errorf("%d notaries change, at most %d; faults %d, want 0 or more", len(seen), signoff.MaxNotaries, n.Faults)
	}
	return nil
}

// check wants each person to change once, as a request does, and every key to
// have its other half.
func (c *Changes) check(slots map[string][]string) error {
	role := map[string]string{}
	for _, list := range []struct {
		what  string
		names []string
	}{{"joins", c.joiners()}, {"leaves", c.Leave}, {"gives up a token", c.retirers()}} {
		for _, name := range list.names {
			if err := signoff.CheckName("person", name); err != nil {
				return err
			}
			if was := role[name]; was != "" {
				return fmt.Errorf("%s %s and %s: a change has one thing for each person", name, was, list.what)
			}
			role[name] = list.what
		}
	}
	for _, j := range c.Join {
		if err := signoff.CheckName("organisation", j.Organisation); err != nil {
			return err
		}
		if n := len(j.Roles); n == 0 || n > 16 {
			return fmt.Errorf("%s joins with %d roles, want 1 to 16", j.Name, n)
		}
		for _, r := range j.Roles {
			if err := signoff.CheckName("role", r); err != nil {
				return err
			}
		}
		if !slices.Contains(slots[j.Name], "signing") {
			return fmt.Errorf("%s joins and no step makes a key for slot %q", j.Name, "people "+j.Name+" signing")
		}
	}
	for _, r := range c.Retire {
		if r.Key.IsZero() {
			return fmt.Errorf("%s gives up a token: want the fingerprint of its signing key", r.Person)
		}
	}
	for name, uses := range slots {
		if err := checkUses(name, uses, role[name]); err != nil {
			return err
		}
		if role[name] == "" {
			role[name] = "gets a token"
		}
	}
	if len(role) == 0 || len(role) > signoff.MaxPeopleChanges {
		return fmt.Errorf("%d people change, want 1 to %d", len(role), signoff.MaxPeopleChanges)
	}
	return nil
}

func checkUses(name string, uses []string, role string) error {
	first, spare := slices.Contains(uses, "signing"), slices.Contains(uses, "spare-signing")
	switch {
	case role == "leaves":
		return fmt.Errorf("%s leaves, and a step makes a key for them", name)
	case slices.Contains(uses, "exchange") && !first, slices.Contains(uses, "spare-exchange") && !spare:
		return fmt.Errorf("%s gets an exchange key on a token without a signing key: make both", name)
	case role == "joins":
		return nil
	case first && spare:
		return fmt.Errorf("%s gets two tokens, and one request brings one: make two ceremonies of it, or have them join", name)
	case first && role != "gives up a token":
		return fmt.Errorf("%s gets a first token, and retire does not say in the place of which", name)
	}
	return nil
}

func (c *Changes) joiners() (out []string) {
	for _, j := range c.Join {
		out = append(out, j.Name)
	}
	return out
}

func (c *Changes) retirers() (out []string) {
	for _, r := range c.Retire {
		out = append(out, r.Person)
	}
	return out
}

// show writes what the script says of the change.
func (c *Changes) show(l *display.Lines) {
	for _, j := range c.Join {
		l.Prose("joins", fmt.Sprintf("%s of %s as %s", j.Name, j.Organisation, strings.Join(j.Roles, ", ")))
	}
	for _, name := range c.Leave {
		l.Prose("leaves", name)
	}
	for _, r := range c.Retire {
		l.Prose("retires", r.Person+", token with signing key")
		groups(l, "", r.Key)
	}
	for _, j := range c.Notaries.Join {
		l.Prose("joins", fmt.Sprintf("notary %s of %s", j.Name, j.Organisation))
	}
	for _, name := range c.Notaries.Leave {
		l.Prose("leaves", "notary "+name)
	}
	if c.Notaries.Faults > 0 {
		l.Field("faults", "%d notaries may be hostile", c.Notaries.Faults)
	}
}

// Held reports whether the log that the step reads has to hold the change.
func (s *Script) Held(step *Step) bool { return s.Purpose == Membership && s.Compares(step) }

// Change puts the keys that the ceremony made into their places. Every step that
// makes one must have passed. People watched: what a token says of itself becomes
// the class witnessed.
func (c *Chain) Change() (*Change, error) {
	out := &Change{Join: []signoff.Person{}, Tokens: []NewToken{}, Leave: append([]string{}, c.Script.Change.Leave...),
		Retire: append([]Retirement{}, c.Script.Change.Retire...)}
	people, notaries := map[string]*signoff.Person{}, map[string]*signoff.Notary{}
	var names []string // of people with keys, in the script's order
	for _, t := range c.Script.Steps {
		if t.Slot == "" {
			continue
		}
		slot, _, err := ParseSlot(t.Slot)
		if err != nil {
			return nil, err
		}
		r, ok := c.Done(t.Name)
		if !ok {
			return nil, fmt.Errorf("ceremony: step %s did not pass: there is no key for %s", t.Name, t.Slot)
		}
		key, err := FoundKey(r)
		if err != nil {
			return nil, err
		}
		if key.Class == hsm.ClassSelfDeclared {
			key.Class = hsm.ClassWitnessed
		}
		if slot.Of == "notaries" {
			n := notaries[slot.Name]
			if n == nil {
				n = &signoff.Notary{Name: slot.Name}
				notaries[slot.Name] = n
			}
			*inNotary(n, slot.Use) = key
			continue
		}
		p := people[slot.Name]
		if p == nil {
			p = &signoff.Person{Name: slot.Name}
			people[slot.Name], names = p, append(names, slot.Name)
		}
		if strings.HasPrefix(slot.Use, "spare-") && p.Spares == nil {
			p.Spares = make([]signoff.Token, 1)
		}
		*inPerson(p, slot.Use) = key
	}
	seen := signoff.KeySet{}
	for _, j := range c.Script.Change.Join {
		p := people[j.Name]
		p.Organisation, p.Roles = j.Organisation, j.Roles
		if err := signoff.CheckPerson(*p, true, seen); err != nil {
			return nil, fmt.Errorf("ceremony: %w", err)
		}
		out.Join = append(out.Join, *p)
		delete(people, j.Name)
	}
	for _, name := range names {
		p := people[name]
		if p == nil {
			continue
		}
		n := NewToken{Person: name, Token: p.Token}
		if len(p.Spares) > 0 {
			n.Spare, n.Token = true, p.Spares[0]
		}
		if err := signoff.CheckToken(name, n.Token, true, seen); err != nil {
			return nil, fmt.Errorf("ceremony: %w", err)
		}
		out.Tokens = append(out.Tokens, n)
	}
	out.Notaries = c.Script.Change.Notaries.with(notaries)
	return out, nil
}

// with is the change with the keys that were made, or nil if there is none.
func (n *NotaryChanges) with(made map[string]*signoff.Notary) *NotaryChange {
	if n.empty() {
		return nil
	}
	out := &NotaryChange{Join: []signoff.Notary{}, Leave: append([]string{}, n.Leave...), Faults: n.Faults}
	for _, j := range n.Join {
		y := *made[j.Name]
		y.Organisation = j.Organisation
		out.Join = append(out.Join, y)
	}
	return out
}

// Held wants the roster to hold everything that this ceremony made: each key in
// its place and, of a change, who joined with exactly the keys made here, who
// left never again, what was retired nobody's.
func (c *Chain) Held(r Roster) error {
	if c.Script.Purpose != Membership {
		return c.inPlaces(r.charter(), "log")
	}
	change, err := c.Change()
	if err != nil {
		return err
	}
	if err := c.heldPeople(change, r); err != nil {
		return err
	}
	if change.Notaries == nil {
		return nil
	}
	return c.heldNotaries(change.Notaries, r.Councils)
}

// heldNotaries wants the council in office to be the one before it with exactly
// this change.
func (c *Chain) heldNotaries(change *NotaryChange, councils []signoff.Council) error {
	if len(councils) < 2 {
		return errors.New("ceremony: notaries change by this script, and the log has those of its charter still")
	}
	before, now := councils[len(councils)-2], councils[len(councils)-1]
	for _, y := range change.Join {
		i := slices.IndexFunc(now.Notaries, func(x signoff.Notary) bool { return x.Name == y.Name })
		if i < 0 {
			return fmt.Errorf("ceremony: notary %s joins by this script, and the log has none of that name in office", y.Name)
		}
		has := now.Notaries[i]
		for _, use := range []string{"signing", "exchange", "witness"} {
			if key := *inNotary(&y, use); inNotary(&has, use).Fingerprint() != key.Fingerprint() {
				return c.astray("notaries "+y.Name+" "+use, key)
			}
		}
		if has.Organisation != y.Organisation {
			return fmt.Errorf("ceremony: the log has notary %s of %s, this script says of %s", y.Name, has.Organisation, y.Organisation)
		}
	}
	for _, x := range now.Notaries {
		if joins := slices.ContainsFunc(change.Join, func(y signoff.Notary) bool { return y.Name == x.Name }); !joins && !before.Has(x) {
			return fmt.Errorf("ceremony: the log has notary %s in office, who did not join by this script and was not in office before", x.Name)
		}
	}
	for _, x := range before.Notaries {
		switch leaves := slices.Contains(change.Leave, x.Name); {
		case leaves && now.Has(x):
			return fmt.Errorf("ceremony: notary %s leaves by this script, and the log has it in office", x.Name)
		case !leaves && !now.Has(x):
			return fmt.Errorf("ceremony: the log has notary %s in office no more, and this script does not have it leave", x.Name)
		}
	}
	for _, name := range change.Leave {
		if !slices.ContainsFunc(before.Notaries, func(x signoff.Notary) bool { return x.Name == name }) {
			return fmt.Errorf("ceremony: notary %s leaves by this script, and was not in office", name)
		}
	}
	if want := cmp.Or(change.Faults, before.Faults); now.Faults != want {
		return fmt.Errorf("ceremony: the log lets %d notaries be hostile, this script %d", now.Faults, want)
	}
	return nil
}

func (c *Chain) heldPeople(change *Change, r Roster) error {
	for _, p := range change.Join {
		if err := c.holdsPerson(r, p); err != nil {
			return err
		}
	}
	for _, t := range change.Tokens {
		tokens := r.tokens(t.Person)
		at := slices.IndexFunc(tokens, func(x signoff.Token) bool { return x.ID() == t.Token.ID() })
		if at < 0 || (at > 0) != t.Spare {
			return c.astray("people "+t.Person+" "+prefix(t.Spare)+"signing", t.Token.Signing)
		}
		if tokens[at].Exchange.Fingerprint() != t.Token.Exchange.Fingerprint() {
			return c.astray("people "+t.Person+" "+prefix(t.Spare)+"exchange", t.Token.Exchange)
		}
	}
	for _, name := range change.Leave {
		if r.tokens(name) != nil {
			return fmt.Errorf("ceremony: %s leaves by this script, and the log has %s among its people", name, name)
		}
		if !r.knew(name) {
			return fmt.Errorf("ceremony: %s leaves by this script, and the log never had anybody of that name", name)
		}
	}
	for _, x := range change.Retire {
		if r.Ever[x.Key] != x.Person {
			return fmt.Errorf("ceremony: %s gives up token %s by this script, and the log never had it as theirs", x.Person, x.Key)
		}
		if slices.ContainsFunc(r.tokens(x.Person), func(t signoff.Token) bool { return t.ID() == x.Key }) {
			return fmt.Errorf("ceremony: %s gives up token %s by this script, and the log has it as theirs still", x.Person, x.Key)
		}
	}
	return nil
}

func (c *Chain) holdsPerson(r Roster, p signoff.Person) error {
	i := slices.IndexFunc(r.People, func(x signoff.Person) bool { return x.Name == p.Name })
	if i < 0 {
		return fmt.Errorf("ceremony: %s joins by this script, and the log has nobody of that name", p.Name)
	}
	has := r.People[i]
	for at, t := range p.Tokens() {
		var got signoff.Token
		if tokens := has.Tokens(); at < len(tokens) {
			got = tokens[at]
		}
		if got.Signing.Fingerprint() != t.Signing.Fingerprint() {
			return c.astray("people "+p.Name+" "+prefix(at > 0)+"signing", t.Signing)
		}
		if got.Exchange.Fingerprint() != t.Exchange.Fingerprint() {
			return c.astray("people "+p.Name+" "+prefix(at > 0)+"exchange", t.Exchange)
		}
	}
	if n, want := len(has.Tokens()), len(p.Tokens()); n != want {
		return fmt.Errorf("ceremony: the log has %d tokens of %s, this ceremony made %d: key %s is not of it", n, p.Name, want, has.Tokens()[want].ID())
	}
	if has.Organisation != p.Organisation || !slices.Equal(has.Roles, p.Roles) {
		return fmt.Errorf("ceremony: the log has %s of %s as %s, this script says of %s as %s", p.Name, has.Organisation, strings.Join(has.Roles, ", "),
			p.Organisation, strings.Join(p.Roles, ", "))
	}
	return nil
}

func prefix(spare bool) string {
	if spare {
		return "spare-"
	}
	return ""
}

// astray names the step whose key the log does not have in its place.
func (c *Chain) astray(slot string, k signoff.PublicKey) error {
	step := c.Script.placed(slot)
	if step == nil { // only a place that must stay empty has no step
		return fmt.Errorf("ceremony: the log has a key as %s, and no step made one", slot)
	}
	return fmt.Errorf("ceremony: step %s made key %s, and the log does not have it as %s", step.Name, k.Fingerprint(), slot)
}

func (r Roster) tokens(name string) []signoff.Token {
	for _, p := range r.People {
		if p.Name == name {
			return p.Tokens()
		}
	}
	return nil
}

func (r Roster) knew(name string) bool {
	for _, n := range r.Ever {
		if n == name {
			return true
		}
	}
	return false
}

// checkChange holds what was written, or found in the log, to the records.
func (c *Chain) checkChange(r *Record) error {
	change, err := c.Change()
	if err != nil {
		return err
	}
	want, err := change.Sum()
	if err != nil {
		return err
	}
	if got, err := r.digest("change"); err != nil || got != want {
		return fmt.Errorf("found change %q, the keys made here give %s", r.Find("change"), want)
	}
	return nil
}
