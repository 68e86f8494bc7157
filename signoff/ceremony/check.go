package ceremony

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
)

// kinds says which members a step of a kind has beside name, do, text, by and
// proves, and what keyturn must have found when it has passed. A member that
// ends in ? may be missing.
var kinds = map[Kind]struct{ members, finds string }{
	Manual:        {},
	MakeKey:       {"token object key slot?", "serial class"},
	ProveSpare:    {"person token object log?", "serial class public fingerprint signature"},
	WriteChange:   {"", "change"},
	WriteCharter:  {"file policy", "charter"},
	VerifyCharter: {"file", "charter"},
	Accept:        {"person", "charter acceptance"},
	VerifyKeygen:  {"log", "charter entries root group transcript"},
	VerifyLog:     {"log", "charter entries root state"},
	DrillShare:    {"person token? object? weights log", "object epoch index key"},
	Position:      {"file", "notary size root answer"},
	ReadAloud:     {"of", "digest"},
	FileDigest:    {"file digest?", "digest bytes"},
}

// things are the words for equipment.
var things = []string{"token", "media", "laptop", "safe", "bag", "other"}

func (s *Script) check() error {
	if s.Version < 1 || s.Version > ScriptVersion {
		return fmt.Errorf("version %d, this program knows 1 to %d", s.Version, ScriptVersion)
	}
	if err := errors.Join(signoff.CheckName("name", s.Name), signoff.CheckText("title", s.Title)); err != nil {
		return err
	}
	if (s.Purpose == Genesis) != s.Charter.IsZero() {
		return fmt.Errorf("purpose %.40q: every ceremony but a genesis names the charter it belongs to, and a genesis makes one", s.Purpose)
	}
	if err := s.checkEquipment(); err != nil {
		return err
	}
	if err := s.checkPeople(); err != nil {
		return err
	}
	if err := s.checkSteps(); err != nil {
		return err
	}
	if err := s.checkChanges(); err != nil {
		return err
	}
	if err := s.checkObligations(); err != nil || s.Version == 1 {
		return err
	}
	return s.checkBonds()
}

func (s *Script) checkEquipment() error {
	if len(s.Equipment) > MaxEquipment {
		return fmt.Errorf("%d pieces of equipment, at most %d", len(s.Equipment), MaxEquipment)
	}
	names, serials := map[string]bool{}, map[string]bool{}
	for _, e := range s.Equipment {
		if err := signoff.CheckName("equipment", e.Name); err != nil {
			return err
		}
		if names[e.Name] {
			return fmt.Errorf("two pieces of equipment are named %s", e.Name)
		}
		if !slices.Contains(things, e.What) {
			return fmt.Errorf("%s is %.40q, want one of %s", e.Name, e.What, strings.Join(things, ", "))
		}
		if err := signoff.CheckText("serial number of "+e.Name, e.Serial); err != nil {
			return err
		}
		if len(e.Serial) > maxSerial || serials[e.What+" "+e.Serial] {
			return fmt.Errorf("%s: serial number %.80q is given twice or longer than %d bytes", e.Name, e.Serial, maxSerial)
		}
		if (e.What == "token") != (e.Label != "") {
			return fmt.Errorf("%s: tokens have a label, and nothing else has", e.Name)
		}
		if e.Label != "" && (signoff.CheckText("label", e.Label) != nil || len(e.Label) > 32) {
			return fmt.Errorf("%s: a token's label is 1 to 32 bytes that print", e.Name)
		}
		names[e.Name], serials[e.What+" "+e.Serial] = true, true
	}
	return nil
}

func (s *Script) checkPeople() error {
	if n := len(s.People); n < 2 || n > MaxPeople {
		return fmt.Errorf("%d people, want 2 to %d", n, MaxPeople)
	}
	names, keys := map[string]bool{}, map[string]string{}
	for _, p := range s.People {
		if err := errors.Join(signoff.CheckName("person", p.Name), signoff.CheckName("organisation", p.Organisation)); err != nil {
			return err
		}
		if names[p.Name] {
			return fmt.Errorf("two people are named %s", p.Name)
		}
		names[p.Name] = true
		if n := len(p.Roles); n == 0 || n > 16 {
			return fmt.Errorf("%s has %d roles, want 1 to 16", p.Name, n)
		}
		for _, r := range p.Roles {
			if err := signoff.CheckName("role", r); err != nil {
				return err
			}
		}
		if (p.Token == "") != (p.Object == "") {
			return fmt.Errorf("%s: token and object go together", p.Name)
		}
		if p.Token == "" {
			continue
		}
		if err := s.checkToken(p.Token, p.Object); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		if other := keys[p.Token]; other != "" {
			return fmt.Errorf("%s and %s sign with one token, %s", other, p.Name, p.Token)
		}
		keys[p.Token] = p.Name
	}
	if len(s.With(Master)) != 1 || len(s.With(Witness)) == 0 || len(s.With(Holder)) == 0 {
		return errors.New("want exactly one person of role master, and of roles witness and holder at least one each")
	}
	if m, _ := s.Person(s.With(Master)[0]); m.Is(Witness) {
		return fmt.Errorf("%s is master and cannot be a witness too", m.Name)
	}
	if n := 1 + len(s.With(Witness)); n > MaxSigners {
		return fmt.Errorf("%d people would sign an exception, at most %d do: have fewer witnesses", n, MaxSigners)
	}
	return nil
}

func (s *Script) checkToken(token, object string) error {
	e, ok := s.Thing(token)
	if !ok || e.What != "token" {
		return fmt.Errorf("%.80q is no token of the equipment", token)
	}
	if signoff.CheckName("object", object) != nil {
		return fmt.Errorf("object %.80q: want a name of a-z 0-9 - .", object)
	}
	return nil
}

func (s *Script) checkSteps() error {
	if n := len(s.Steps); n == 0 || n > MaxSteps {
		return fmt.Errorf("%d steps, want 1 to %d", n, MaxSteps)
	}
	earlier, signatures := map[string]*Step{}, 0
	for i := range s.Steps {
		t := &s.Steps[i]
		if signatures += len(t.By); signatures > MaxSignatures {
			return fmt.Errorf("more than %d signatures are asked for: make two ceremonies of it", MaxSignatures)
		}
		if err := signoff.CheckName("step", t.Name); err != nil {
			return err
		}
		if earlier[t.Name] != nil {
			return fmt.Errorf("two steps are named %s", t.Name)
		}
		if err := s.checkStep(t, earlier); err != nil {
			return fmt.Errorf("step %s: %w", t.Name, err)
		}
		earlier[t.Name] = t
	}
	return nil
}

func (s *Script) checkStep(t *Step, earlier map[string]*Step) error {
	if err := signoff.CheckText("text", t.Text); err != nil {
		return err
	}
	if t.Proves != "" {
		if err := signoff.CheckText("proves", t.Proves); err != nil {
			return err
		}
	}
	if err := s.checkBy(t.By); err != nil {
		return err
	}
	if err := t.checkMembers(); err != nil {
		return err
	}
	if t.Person != "" {
		if _, ok := s.Person(t.Person); !ok {
			return fmt.Errorf("%.80q is nobody of the script", t.Person)
		}
		if !slices.Contains(t.By, t.Person) {
			return fmt.Errorf("%s acts and does not sign", t.Person)
		}
	}
	if t.Token+t.Object != "" {
		if err := s.checkToken(t.Token, t.Object); err != nil {
			return err
		}
	}
	switch t.Do {
	case MakeKey:
		if !slices.Contains([]hsm.Kind{hsm.KindP256, hsm.KindEd25519, hsm.KindECDH, hsm.KindSeal}, t.Key) {
			return fmt.Errorf("key %.40q, want p256, ed25519, ecdh or seal", t.Key)
		}
		return s.checkMakeKey(t, earlier)
	case ProveSpare:
		if s.Version == 1 && t.Log != "" {
			return errors.New("a prove-spare of version 1 has no log")
		}
		if p, _ := s.Person(t.Person); p.Token == t.Token {
			return fmt.Errorf("%s signs with %s: a spare is another token", p.Name, t.Token)
		}
	case ReadAloud:
		of := earlier[t.Of]
		if of == nil || digestOf[of.Do] == "" || of.Key == hsm.KindSeal {
			return fmt.Errorf("%.80q is no earlier step with a digest to compare", t.Of)
		}
	case Accept, Position:
		if !madeCharter(earlier) {
			return errors.New("no step before it makes or reads the charter")
		}
	}
	return nil
}

func (s *Script) checkMakeKey(t *Step, earlier map[string]*Step) error {
	for _, e := range earlier {
		if e.Do == MakeKey && e.Token == t.Token && e.Object == t.Object {
			return fmt.Errorf("step %s makes %s on %s already", e.Name, t.Object, t.Token)
		}
	}
	for _, p := range s.People {
		if p.Token == t.Token && p.Object == t.Object && t.Key != hsm.KindP256 && t.Key != hsm.KindEd25519 {
			return fmt.Errorf("%s signs with %s on %s, and a %s key signs nothing", p.Name, t.Object, t.Token, t.Key)
		}
	}
	return t.checkSlot(earlier)
}

// digestOf names the finding that is read aloud for a kind of step.
var digestOf = map[Kind]string{MakeKey: "fingerprint", ProveSpare: "fingerprint", WriteCharter: "charter", VerifyCharter: "charter",
	VerifyKeygen: "transcript", VerifyLog: "root", Position: "root", FileDigest: "digest"}

func madeCharter(earlier map[string]*Step) bool {
	for _, t := range earlier {
		if t.Do == WriteCharter || t.Do == VerifyCharter {
			return true
		}
	}
	return false
}

// checkBy wants two people, one of them a witness: nobody is alone.
func (s *Script) checkBy(by []string) error {
	if n := len(by); n < 2 || n > MaxSigners {
		return fmt.Errorf("signed by %d people, want 2 to %d", n, MaxSigners)
	}
	seen, witnessed := map[string]bool{}, false
	for _, name := range by {
		p, ok := s.Person(name)
		if !ok {
			return fmt.Errorf("%.80q is nobody of the script", name)
		}
		if seen[name] {
			return fmt.Errorf("%s signs twice", name)
		}
		seen[name] = true
		witnessed = witnessed || p.Is(Witness)
	}
	if !witnessed {
		return errors.New("no witness signs")
	}
	return nil
}

func (t *Step) checkMembers() error {
	kind, ok := kinds[t.Do]
	if !ok {
		return fmt.Errorf("do %.40q is unknown", t.Do)
	}
	wants := strings.Fields(kind.members)
	for name, has := range t.members() {
		switch {
		case has && !slices.Contains(wants, name) && !slices.Contains(wants, name+"?"):
			return fmt.Errorf("a %s has no %s", t.Do, name)
		case !has && slices.Contains(wants, name):
			return fmt.Errorf("a %s needs %s", t.Do, name)
		}
	}
	for _, f := range []string{t.File, t.Policy, t.Log} {
		if f != "" && !fileName(f) {
			return fmt.Errorf("%.80q: want the name of a file beside the others, without a path: letters, digits, - . and _", f)
		}
	}
	return nil
}

func (t *Step) members() map[string]bool {
	return map[string]bool{"person": t.Person != "", "token": t.Token != "", "object": t.Object != "", "key": t.Key != "", "slot": t.Slot != "",
		"file": t.File != "", "policy": t.Policy != "", "log": t.Log != "", "of": t.Of != "", "digest": !t.Digest.IsZero(), "weights": !t.Weights.IsZero()}
}

// fileName reports whether s names a file in a directory and no other place.
func fileName(s string) bool {
	if len(s) > 64 || s[0] == '.' || s[0] == '-' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._", r)
	})
}

// A Slot is a place for a key in a charter, or with a membership ceremony in the
// roster that it makes: "people NAME signing", "people NAME exchange", both also as "spare-…" for the person's first spare token, "notaries NAME signing", "notaries NAME exchange", "notaries NAME
// witness", "log", "boot", or "tls" for the coordinators' TLS key.
type Slot struct{ Of, Name, Use string }

// slots says which kind of key each place takes.
var slots = map[[2]string]hsm.Kind{
	{"people", "signing"}: hsm.KindP256, {"people", "exchange"}: hsm.KindECDH,
	{"people", "spare-signing"}: hsm.KindP256, {"people", "spare-exchange"}: hsm.KindECDH,
	{"notaries", "signing"}: hsm.KindP256, {"notaries", "exchange"}: hsm.KindECDH, {"notaries", "witness"}: hsm.KindEd25519,
	{"log", ""}: hsm.KindEd25519, {"boot", ""}: hsm.KindP256, {"tls", ""}: hsm.KindP256,
}

// ParseSlot reads a place and says which kind of key it takes.
func ParseSlot(text string) (Slot, hsm.Kind, error) {
	words := strings.Split(text, " ")
	s := Slot{Of: words[0]}
	if len(words) == 3 {
		s.Name, s.Use = words[1], words[2]
	}
	kind, ok := slots[[2]string{s.Of, s.Use}]
	if !ok || (len(words) != 3 && len(words) != 1) || s.Name != "" && signoff.CheckName("name", s.Name) != nil || (s.Use != "") != (s.Name != "") {
		return s, "", fmt.Errorf("slot %.80q: want people NAME signing|exchange|spare-signing|spare-exchange, notaries NAME signing|exchange|witness, log, boot or tls", text)
	}
	return s, kind, nil
}

// In returns the place in a charter, or nil if the charter has no such place.
// The TLS key stands there by its fingerprint only, see [Slot.Check].
func (s Slot) In(c *signoff.Charter) *signoff.PublicKey {
	switch s.Of {
	case "people":
		for i := range c.People {
			if p := &c.People[i]; p.Name == s.Name {
				return inPerson(p, s.Use)
			}
		}
	case "notaries":
		for i := range c.Notaries {
			if n := &c.Notaries[i]; n.Name == s.Name {
				return inNotary(n, s.Use)
			}
		}
	case "log":
		return &c.Log
	case "boot":
		return c.BootPolicy
	}
	return nil
}

// Fill puts a key into the place. The charter must have the place, and no other
// key in it.
func (s Slot) Fill(c *signoff.Charter, k signoff.PublicKey) error {
	if s.Of == "tls" {
		for i := range c.Coordinators {
			if co := &c.Coordinators[i]; co.TLS.IsZero() {
				co.TLS = k.Fingerprint()
			}
		}
		return s.Check(c, k)
	}
	if s.Of == "boot" && c.BootPolicy == nil {
		c.BootPolicy = new(signoff.PublicKey)
	}
	if place := s.In(c); place != nil && len(place.Encoded) == 0 {
		*place = k
	}
	return s.Check(c, k)
}

func inNotary(n *signoff.Notary, use string) *signoff.PublicKey {
	return map[string]*signoff.PublicKey{"signing": &n.Signing, "exchange": &n.Exchange, "witness": &n.Witness}[use]
}

func inPerson(p *signoff.Person, use string) *signoff.PublicKey {
	token := &p.Token
	if spare, ok := strings.CutPrefix(use, "spare-"); ok {
		if len(p.Spares) == 0 {
			return nil
		}
		token, use = &p.Spares[0], spare
	}
	return map[string]*signoff.PublicKey{"signing": &token.Signing, "exchange": &token.Exchange}[use]
}

// Check wants the charter to have the key in this place.
func (s Slot) Check(c *signoff.Charter, k signoff.PublicKey) error {
	if !s.has(c, k) {
		return fmt.Errorf("ceremony: the charter does not have key %s as %s", k.Fingerprint(), strings.TrimSpace(s.Of+" "+s.Name+" "+s.Use))
	}
	return nil
}

func (s Slot) has(c *signoff.Charter, k signoff.PublicKey) bool {
	place := s.In(c)
	if s.Of == "tls" {
		for _, co := range c.Coordinators {
			if co.TLS == k.Fingerprint() {
				return true
			}
		}
		return false
	}
	return place != nil && place.Fingerprint() == k.Fingerprint()
}

func (t *Step) checkSlot(earlier map[string]*Step) error {
	if t.Slot == "" {
		return nil
	}
	_, kind, err := ParseSlot(t.Slot)
	if err != nil {
		return err
	}
	if kind != t.Key {
		return fmt.Errorf("slot %q takes a %s key, not %s", t.Slot, kind, t.Key)
	}
	for _, e := range earlier {
		if e.Slot == t.Slot {
			return fmt.Errorf("slot %q is filled by step %s", t.Slot, e.Name)
		}
	}
	return nil
}
