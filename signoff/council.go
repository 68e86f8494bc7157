package signoff

import (
	"errors"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A Notary is one independent host. Its index in FROST and in the machines'
// factor is its place in its council's list, from 1.
type Notary struct {
	Name         string    `json:"name"`
	Organisation string    `json:"organisation"`
	Signing      PublicKey `json:"signing"`  // P-256, signs documents
	Exchange     PublicKey `json:"exchange"` // P-256, receives shares
	Witness      PublicKey `json:"witness"`  // Ed25519, cosigns checkpoints
}

// ID names the notary: the fingerprint of the signing key.
func (n Notary) ID() Digest { return n.Signing.Fingerprint() }

// Equal reports whether o is the same notary with the same keys.
func (n Notary) Equal(o Notary) bool {
	same := func(a, b PublicKey) bool { return a.Fingerprint() == b.Fingerprint() && a.Class == b.Class }
	return n.Name == o.Name && n.Organisation == o.Organisation &&
		same(n.Signing, o.Signing) && same(n.Exchange, o.Exchange) && same(n.Witness, o.Witness)
}

// A Council is the notaries that are in office together. The charter's is that
// of the first term; each further one comes by a sign-off.
type Council struct {
	Notaries []Notary `json:"notaries"`
	Faults   int      `json:"faults"` // f: notaries that may be hostile
}

// Quorum is q = ⌊(n+f)/2⌋ + 1: the notaries that make something final.
func (c Council) Quorum() int { return (len(c.Notaries)+c.Faults)/2 + 1 }

// Find returns the notary with the given signing fingerprint and its index,
// from 1.
func (c Council) Find(id Digest) (*Notary, uint16, bool) {
	for i := range c.Notaries {
		if c.Notaries[i].ID() == id {
			return &c.Notaries[i], uint16(i + 1), true
		}
	}
	return nil, 0, false
}

// Has reports whether exactly this notary is in the council.
func (c Council) Has(n Notary) bool { return slices.ContainsFunc(c.Notaries, n.Equal) }

// check wants a legal number of notaries with distinct names and keys.
func (c Council) check(production bool, seen KeySet) error {
	n := len(c.Notaries)
	if n > MaxNotaries {
		return fmt.Errorf("%d notaries, at most %d", n, MaxNotaries)
	}
	if c.Faults < 1 || n < 3*c.Faults+1 {
		return fmt.Errorf("%d notaries with %d hostile: want at least one hostile and n ≥ 3f+1 (4 for 1, 7 for 2, 13 for 4)", n, c.Faults)
	}
	names := map[string]bool{}
	for _, y := range c.Notaries {
		if err := errors.Join(CheckName("notary", y.Name), CheckName("organisation", y.Organisation)); err != nil {
			return err
		}
		if names[y.Name] {
			return fmt.Errorf("two notaries are named %q", y.Name)
		}
		names[y.Name] = true
		if err := y.check(production, seen); err != nil {
			return err
		}
	}
	return nil
}

func (n Notary) check(production bool, seen KeySet) error {
	for _, k := range []struct {
		use string
		key PublicKey
	}{{"signing key", n.Signing}, {"exchange key", n.Exchange}, {"witness key", n.Witness}} {
		field := "notary " + n.Name + "'s " + k.use
		if err := k.key.check(field, production, hsm.ClassAttested, hsm.ClassWitnessed, hsm.ClassSealed); err != nil {
			return err
		}
		if err := seen.Add(field, k.key); err != nil {
			return err
		}
	}
	if _, err := n.Signing.P256(); err != nil {
		return fmt.Errorf("notary %s's signing key: %w", n.Name, err)
	}
	if _, err := n.Witness.Ed25519(); err != nil {
		return fmt.Errorf("notary %s's witness key: %w", n.Name, err)
	}
	if _, err := n.Exchange.ECDH(); err != nil {
		return fmt.Errorf("notary %s's exchange key: %w", n.Name, err)
	}
	return nil
}

// AddTo says in keys what each of the notaries' keys is for.
func (c Council) AddTo(keys KeySet) {
	for _, n := range c.Notaries {
		keys.Put("notary "+n.Name+"'s signing key", n.Signing)
		keys.Put("notary "+n.Name+"'s exchange key", n.Exchange)
		keys.Put("notary "+n.Name+"'s witness key", n.Witness)
	}
}

// Follows reports whether next may follow on the councils before it, the one in
// office last. A notary either stays exactly as it is in office or has a name
// that no notary ever had and keys that nothing in taken has: one that lost its
// state is replaced, it never returns. The quorum does not fall: objects were
// dealt among as many.
func (next Council) Follows(before []Council, production bool, taken KeySet) error {
	office, names := before[len(before)-1], map[string]bool{}
	for _, c := range before {
		c.AddTo(taken)
		for _, y := range c.Notaries {
			names[y.Name] = true
		}
	}
	if q, now := next.Quorum(), office.Quorum(); q < now {
		return fmt.Errorf("a quorum of %d, it is %d now and must not fall", q, now)
	}
	for _, y := range next.Notaries {
		if office.Has(y) {
			continue
		}
		if names[y.Name] {
			return fmt.Errorf("notary %s has the name of one that is or was in office, and other keys; give it another name", y.Name)
		}
		if err := y.check(production, taken); err != nil {
			return err
		}
	}
	return nil
}

// A NotaryChange puts a new council in the place of the one in office: other
// members, other numbers, or the same members with fresh shares. The group's
// public key stays.
type NotaryChange struct {
	Term     uint32   `json:"term"` // the one in office, which ends
	Notaries []Notary `json:"notaries"`
	Faults   int      `json:"faults"`
}

// Council is the council asked for.
func (n *NotaryChange) Council() Council { return Council{Notaries: n.Notaries, Faults: n.Faults} }

func (n *NotaryChange) check() error {
	if n.Term == 0 {
		return missing("term")
	}
	return n.Council().check(false, KeySet{})
}

// A Joining is the word of a notary that a NotaryChange brings in: it has the
// keys that the request says, and means this request. Its signing key signs
// the document, its witness key the Message; its exchange key shows itself
// when it opens what is dealt to it.
type Joining struct {
	Charter Digest `json:"charter"`
	Notary  Digest `json:"notary"`
	Request Digest `json:"request"`
	Witness []byte `json:"witness"` // Ed25519 signature of Message
}

// Kind is KindJoining.
func (j *Joining) Kind() Kind { return KindJoining }

// Cluster is the charter the joining belongs to.
func (j *Joining) Cluster() Digest { return j.Charter }

func (j *Joining) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("request", j.Request)}
}

// Validate checks the length of the signature.
func (j *Joining) Validate() error {
	if j.Notary.IsZero() || j.Request.IsZero() {
		return missing("notary or request")
	}
	if len(j.Witness) != 64 {
		return fmt.Errorf("a witness key's signature of %d bytes, want 64", len(j.Witness))
	}
	return nil
}

// Message is what the witness key signs. No cosignature begins like it.
func (j *Joining) Message() []byte {
	d := dsse.Sum("keyturn/joining/v1", j.Charter[:], j.Notary[:], j.Request[:])
	return append([]byte("keyturn/joining/v1\n"), d[:]...)
}

// A Takeover begins a term. Checkpoint is a signed checkpoint, made after all
// members of the new council had their shares, that a quorum of the old council
// and one of the new cosigned: the same log, handed from one to the other.
type Takeover struct {
	Charter    Digest `json:"charter"`
	Notary     Digest `json:"notary"`
	Term       uint32 `json:"term"` // that begins
	Checkpoint string `json:"checkpoint"`
}

// Kind is KindTakeover.
func (t *Takeover) Kind() Kind { return KindTakeover }

// Cluster is the charter the takeover belongs to.
func (t *Takeover) Cluster() Digest { return t.Charter }

func (t *Takeover) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("charter", t.Charter)}
}

// Validate refuses what begins no term after the first.
func (t *Takeover) Validate() error {
	if t.Notary.IsZero() || t.Checkpoint == "" {
		return missing("notary or checkpoint")
	}
	if t.Term < 2 {
		return fmt.Errorf("term %d, want 2 or later", t.Term)
	}
	if n := len(t.Checkpoint); n > MaxCheckpoint {
		return fmt.Errorf("a checkpoint of %d bytes, at most %d", n, MaxCheckpoint)
	}
	return nil
}

// MaxCheckpoint bounds a signed checkpoint inside a document: two full
// councils' cosignatures have room.
const MaxCheckpoint = 16 << 10
