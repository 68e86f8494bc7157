package signoff

import (
	"errors"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A Charter is the genesis of a cluster. The digest of its payload is the one
// trust anchor: whoever holds it can check everything else.
type Charter struct {
	Name        string `json:"name"`        // of the cluster; the log's origin line
	Format      int    `json:"format"`      // highest document format level in use
	Development bool   `json:"development"` // software keys and emulated TPMs are accepted, and marked
	Created     int64  `json:"created"`     // Unix seconds; the fold's time begins here

	People    []Person `json:"people"`
	Threshold int      `json:"threshold"` // t: people's shares that open an object

	Notaries []Notary `json:"notaries"`
	Faults   int      `json:"faults"` // f: notaries that may be hostile

	Log          PublicKey     `json:"log"` // Ed25519, signs checkpoints
	Coordinators []Coordinator `json:"coordinators"`

	Policy string `json:"policy"` // YAML, verbatim; see package policy

	// EKRoots are the certificates (DER) that endorsement-key certificates
	// of nodes must chain to; BootPolicy is the ceremony-witnessed P-256 key
	// that signs which boots may use a node's storage key; References are the
	// reference values nodes are appraised against, each a JSON set as
	// package attest reads it.
	EKRoots    [][]byte   `json:"ekRoots"`
	BootPolicy *PublicKey `json:"bootPolicy"`
	References []string   `json:"references"`
}

// A Person is one human with one vote, however many tokens. The first token's
// keys stand with the person, those of others are spares.
type Person struct {
	Name         string   `json:"name"`
	Organisation string   `json:"organisation"`
	Roles        []string `json:"roles"`
	Token
	Spares []Token `json:"spares,omitempty"`
}

// A Token is the two distinct keys of one token, or the one key of a holder that
// only signs, such as an SSH agent.
type Token struct {
	Signing  PublicKey `json:"signing"`           // P-256 or a security key, signs decisions
	Exchange PublicKey `json:"exchange,omitzero"` // P-256 or hybrid, receives shares; omitted: it opens none
}

// HoldsShare reports whether shares can be dealt to the token. All of a person's
// tokens do, or none does, so that who approves is enough to know how many shares
// come with it.
func (t Token) HoldsShare() bool {
	return len(t.Exchange.Encoded) > 0 || t.Exchange.Class != "" || t.Exchange.Hybrid()
}

// ID names the token: the fingerprint of its signing key. The id of the first
// token that a person had names the person, for good.
func (t Token) ID() Digest { return t.Signing.Fingerprint() }

// Tokens lists all of the person's tokens, the first one first.
func (p Person) Tokens() []Token { return append([]Token{p.Token}, p.Spares...) }

// Hybrid reports whether what is dealt to the person withstands a quantum
// computer as long as ML-KEM-768 does: it is dealt to each of the tokens.
func (p Person) Hybrid() bool {
	return !slices.ContainsFunc(p.Tokens(), func(t Token) bool { return !t.Exchange.Hybrid() })
}

// A Coordinator is an address at which the log is served. TLS is the
// fingerprint of the key it must show; its certificate's dates play no part.
type Coordinator struct {
	URL string `json:"url"`
	TLS Digest `json:"tls"`
}

// Kind is KindCharter.
func (c *Charter) Kind() Kind { return KindCharter }

// Cluster is zero: a charter belongs to nothing.
func (c *Charter) Cluster() Digest { return Digest{} }

func (c *Charter) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("policy", dsse.Sum("keyturn/policy/v1", []byte(c.Policy)))}
}

// Council is the notaries of the first term.
func (c *Charter) Council() Council { return Council{Notaries: c.Notaries, Faults: c.Faults} }

// Quorum is that of the first term.
func (c *Charter) Quorum() int { return c.Council().Quorum() }

// Bounds of a charter.
const (
	MaxPeople       = 64
	MaxTokens       = 4 // of one person
	MaxNotaries     = 31
	MaxCoordinators = 16
	MaxPolicy       = 16 << 10
	MaxReferences   = 16
)

// Validate checks names, numbers and keys. Two parties sharing any key, or a
// key in two roles, is refused.
func (c *Charter) Validate() error {
	if err := CheckName("name", c.Name); err != nil {
		return err
	}
	if c.Format != FormatLevel {
		return fmt.Errorf("format level %d, this program knows %d", c.Format, FormatLevel)
	}
	if c.Created <= 0 {
		return missing("created")
	}
	if c.Policy == "" || len(c.Policy) > MaxPolicy {
		return fmt.Errorf("policy of %d bytes, want 1 to %d", len(c.Policy), MaxPolicy)
	}
	if len(c.References) > MaxReferences {
		return fmt.Errorf("%d reference sets, at most %d", len(c.References), MaxReferences)
	}
	seen, err := c.Keys()
	if err != nil {
		return err
	}
	if err := c.CheckLogKey(c.Log, seen); err != nil {
		return err
	}
	return c.checkCoordinators()
}

// Keys checks every key but the log's and says what each is for.
func (c *Charter) Keys() (KeySet, error) {
	seen := KeySet{}
	if err := c.checkPeople(seen); err != nil {
		return nil, err
	}
	if err := c.Council().check(!c.Development, seen); err != nil {
		return nil, err
	}
	if c.BootPolicy != nil {
		if err := c.BootPolicy.check("boot policy key", !c.Development, hsm.ClassAttested, hsm.ClassWitnessed); err != nil {
			return nil, err
		}
		if _, err := c.BootPolicy.P256(); err != nil {
			return nil, fmt.Errorf("boot policy key: %w", err)
		}
		if err := seen.Add("boot policy key", *c.BootPolicy); err != nil {
			return nil, err
		}
	}
	for _, co := range c.Coordinators {
		if other, ok := seen[co.TLS]; ok {
			return nil, fmt.Errorf("the TLS key of %s is the same key as %s", co.URL, other)
		}
	}
	for _, co := range c.Coordinators { // who may share one key among themselves
		seen[co.TLS] = "the TLS key of " + co.URL
	}
	return seen, nil
}

// CheckLogKey reports whether k may sign this cluster's checkpoints: an Ed25519
// key of a class that the charter takes, and none of those seen.
func (c *Charter) CheckLogKey(k PublicKey, seen KeySet) error {
	if err := k.check("log key", !c.Development, hsm.ClassAttested, hsm.ClassWitnessed, hsm.ClassSealed); err != nil {
		return err
	}
	if _, err := k.Ed25519(); err != nil {
		return err
	}
	return seen.Add("log key", k)
}

func (c *Charter) checkCoordinators() error {
	if n := len(c.Coordinators); n == 0 || n > MaxCoordinators {
		return fmt.Errorf("%d coordinators, want 1 to %d", n, MaxCoordinators)
	}
	for _, co := range c.Coordinators {
		if co.URL == "" || co.TLS.IsZero() {
			return errors.New("a coordinator without address or TLS key")
		}
		if err := CheckText("coordinator's address", co.URL); err != nil {
			return err
		}
	}
	return nil
}

func (c *Charter) checkPeople(seen KeySet) error {
	n := len(c.People)
	if n == 0 || n > MaxPeople {
		return fmt.Errorf("%d people, want 1 to %d", n, MaxPeople)
	}
	if c.Threshold < 2 || c.Threshold > n {
		return fmt.Errorf("people's threshold %d of %d, want at least 2 and at most all", c.Threshold, n)
	}
	names := map[string]bool{}
	holders := 0
	for _, p := range c.People {
		if names[p.Name] {
			return fmt.Errorf("two people are named %q", p.Name)
		}
		names[p.Name] = true
		if err := CheckPerson(p, c.Development, seen); err != nil {
			return err
		}
		if p.HoldsShare() {
			holders++
		}
	}
	if holders < c.Threshold {
		return fmt.Errorf("%d of %d people have an exchange key and can hold a share, opening takes %d", holders, n, c.Threshold)
	}
	return nil
}

// CheckPerson checks the form of a person and the classes of the person's keys,
// and adds the keys to seen. One that stands there already is refused.
func CheckPerson(p Person, development bool, seen KeySet) error {
	if err := errors.Join(CheckName("person", p.Name), CheckName("organisation", p.Organisation)); err != nil {
		return err
	}
	if err := checkRoles(p.Name, p.Roles); err != nil {
		return err
	}
	if n := len(p.Tokens()); n > MaxTokens {
		return fmt.Errorf("%s has %d tokens, at most %d", p.Name, n, MaxTokens)
	}
	for _, t := range p.Tokens() {
		if err := CheckToken(p.Name, t, development, seen); err != nil {
			return err
		}
	}
	return p.CheckAlike()
}

// CheckAlike refuses a person some of whose tokens hold shares and some not.
func (p Person) CheckAlike() error {
	for _, t := range p.Spares {
		if t.HoldsShare() != p.HoldsShare() {
			return fmt.Errorf("some of %s's tokens have an exchange key and some have none; give one to all or to none", p.Name)
		}
	}
	return nil
}

// CheckToken is CheckPerson for one token.
func CheckToken(owner string, t Token, development bool, seen KeySet) error {
	field := owner + "'s signing key"
	if err := t.Signing.check(field, !development, hsm.ClassAttested, hsm.ClassWitnessed); err != nil {
		return err
	}
	if err := t.Signing.decides(); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	if err := seen.Add(field, t.Signing); err != nil || !t.HoldsShare() {
		return err
	}
	field = owner + "'s exchange key"
	if err := t.Exchange.P256Half().check(field, !development, hsm.ClassAttested, hsm.ClassWitnessed); err != nil {
		return err
	}
	if _, err := t.Exchange.Recipient(); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	return seen.Add(field, t.Exchange)
}

func checkRoles(person string, roles []string) error {
	if len(roles) == 0 || len(roles) > 16 {
		return fmt.Errorf("%s has %d roles, want 1 to 16", person, len(roles))
	}
	seen := map[string]bool{}
	for _, r := range roles {
		if err := CheckName("role", r); err != nil {
			return err
		}
		if seen[r] {
			return fmt.Errorf("%s has the role %q twice", person, r)
		}
		seen[r] = true
	}
	return nil
}

// A KeySet says what each key is for, by fingerprint.
type KeySet map[Digest]string

// Add refuses a key already seen in another place. Half of a hybrid key is no
// key of its own, with another half or with none: it would be the weaker one.
func (s KeySet) Add(field string, k PublicKey) error {
	for _, name := range k.Names() {
		if other, ok := s[name]; ok {
			return fmt.Errorf("%s is the same key as %s, or shares a half with it", field, other)
		}
	}
	s.Put(field, k)
	return nil
}

// Put says what a key is for, whatever was said of it before.
func (s KeySet) Put(field string, k PublicKey) {
	for _, name := range k.Names() {
		s[name] = field
	}
}

// An Acceptance is a signature by a token that comes in. A founder's stands
// under the charter, which is in force once every person in it has accepted it.
// Later ones answer a request to change people and show that the key is there;
// they count for that request alone.
type Acceptance struct {
	Charter Digest `json:"charter"`
	Person  Digest `json:"person"` // the token's id; of a founder's first token that is the person's
	Request Digest `json:"request,omitzero"`
}

// Kind is KindAcceptance.
func (a *Acceptance) Kind() Kind { return KindAcceptance }

// Cluster is the charter accepted.
func (a *Acceptance) Cluster() Digest { return a.Charter }

func (a *Acceptance) subjects() []dsse.Subject {
	if !a.Request.IsZero() {
		return []dsse.Subject{dsse.About("charter", a.Charter), dsse.About("request", a.Request)}
	}
	return []dsse.Subject{dsse.About("charter", a.Charter)}
}

// Validate refuses an acceptance by nobody.
func (a *Acceptance) Validate() error {
	if a.Person.IsZero() {
		return missing("person")
	}
	return nil
}
