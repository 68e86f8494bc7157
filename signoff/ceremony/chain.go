package ceremony

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A Chain is a ceremony up to some record. Whoever runs one and whoever
// verifies a transcript use the same chain.
type Chain struct {
	Script  *Script
	Digest  Digest // the script's
	Mode    Mode
	Run     []byte // 16 bytes
	Charter Digest // that the ceremony belongs to; zero until a genesis has made it
	Entries []Entry
	Keys    map[string]signoff.PublicKey // that people signed with so far

	last Digest
	next int // the step to do
	over bool
}

// An Entry is a record with its signatures.
type Entry struct {
	Record  *Record
	Payload []byte
	Signed  []*dsse.Envelope // one of each signer, in the record's order
}

// Sum is the digest of the record: what the next one names.
func (e Entry) Sum() Digest { return sha256.Sum256(e.Payload) }

// Begin starts the chain of a run.
func Begin(m Mode, script, run []byte) (*Chain, error) {
	s, err := ParseScript(script)
	if err != nil {
		return nil, err
	}
	if len(run) != 16 {
		return nil, fmt.Errorf("ceremony: run of %d bytes, want 16", len(run))
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("ceremony: %w", err)
	}
	digest := SumScript(script)
	return &Chain{Script: s, Digest: digest, Mode: m, Run: run, Charter: s.Charter, Keys: map[string]signoff.PublicKey{},
		last: First(m, digest, run)}, nil
}

// Next is the step to do, or nil at the end.
func (c *Chain) Next() *Step {
	if c.over || c.next == len(c.Script.Steps) {
		return nil
	}
	return &c.Script.Steps[c.next]
}

// Last is the digest of the newest record.
func (c *Chain) Last() Digest { return c.last }

// Complete reports whether every step has its record and none ended the
// ceremony.
func (c *Chain) Complete() bool { return !c.over && c.next == len(c.Script.Steps) }

// Aborted reports whether a record ended the ceremony.
func (c *Chain) Aborted() bool { return c.over }

// Draft begins the record of the next step. Findings, incidents, exceptions,
// signers and times are for the caller to fill in, then [Chain.Finish].
func (c *Chain) Draft(o Outcome) (*Record, error) {
	step := c.Next()
	if step == nil {
		return nil, errors.New("ceremony: every step has its record")
	}
	return &Record{Mode: c.Mode, Script: c.Digest, Run: c.Run, Number: len(c.Entries) + 1, Previous: c.last, Step: step.Name, Outcome: o,
		Findings: []Finding{}, Incidents: []Incident{}, Exceptions: []Exception{}}, nil
}

// Finish writes the text of a draft, checks the record as a verifier will, and
// returns text and payload.
func (c *Chain) Finish(r *Record) (text string, payload []byte, err error) {
	text = Text(c.Script, r)
	r.Display = sha256.Sum256([]byte(text))
	if payload, err = r.Write(); err != nil {
		return "", nil, err
	}
	return text, payload, c.Check(r)
}

// Check says whether the record may be the next one, whoever signed it.
func (c *Chain) Check(r *Record) error {
	step := c.Next()
	if step == nil {
		return fmt.Errorf("ceremony: record %d, %s: the ceremony has ended before it", r.Number, r.Step)
	}
	if err := c.check(r, step); err != nil {
		return fmt.Errorf("ceremony: record %d, %s: %w", r.Number, r.Step, err)
	}
	return nil
}

func (c *Chain) check(r *Record, step *Step) error {
	switch {
	case r.Mode != c.Mode:
		return fmt.Errorf("mode %s in a chain of mode %s: a rehearsal is never the real thing, nor part of it", r.Mode, c.Mode)
	case r.Script != c.Digest:
		return fmt.Errorf("made under script %s, this one is %s: the script was changed", r.Script, c.Digest)
	case !bytes.Equal(r.Run, c.Run):
		return fmt.Errorf("of run %x, this is run %x", r.Run, c.Run)
	case r.Number != len(c.Entries)+1:
		return fmt.Errorf("want number %d: a record is missing or out of order", len(c.Entries)+1)
	case r.Previous != c.last:
		return fmt.Errorf("names %s as the one before, which is %s: a record is missing, altered or out of order", r.Previous, c.last)
	case r.Step != step.Name:
		return fmt.Errorf("the script's next step is %s: a step is missing or out of order", step.Name)
	}
	if r.Outcome == Waived {
		if err := c.Script.Waivable(step); err != nil {
			return err
		}
	}
	if err := c.checkSigners(r, step); err != nil {
		return err
	}
	if err := c.checkMade(r, step); err != nil {
		return err
	}
	for _, x := range r.Exceptions {
		if _, ok := c.Script.Person(x.Decided); !ok {
			return fmt.Errorf("exception decided by %s, who is nobody of the script", x.Decided)
		}
	}
	if r.Outcome == Passed {
		if err := c.checkFindings(r, step); err != nil {
			return err
		}
	}
	if want := Digest(sha256.Sum256([]byte(Text(c.Script, r)))); r.Display != want {
		return fmt.Errorf("its signers were shown text %s, script and record give %s", r.Display, want)
	}
	return nil
}

// checkSigners wants exactly the people whom script and outcome ask for, each
// with the key they signed with before, and no key twice.
func (c *Chain) checkSigners(r *Record, step *Step) error {
	want := c.Script.Signers(step, r.Outcome)
	if len(r.Signers) != len(want) {
		return fmt.Errorf("%d signers, the script wants %v", len(r.Signers), want)
	}
	for i, g := range r.Signers {
		if g.Name != want[i] {
			return fmt.Errorf("signer %d is %s, the script wants %v", i+1, g.Name, want)
		}
		if known, ok := c.Keys[g.Name]; ok && !bytes.Equal(known.Encoded, g.Key.Encoded) {
			return fmt.Errorf("%s signs with key %s, and signed with %s before", g.Name, g.Key.Fingerprint(), known.Fingerprint())
		}
		for name, k := range c.Keys {
			if name != g.Name && bytes.Equal(k.Encoded, g.Key.Encoded) {
				return fmt.Errorf("%s and %s sign with one key, %s", name, g.Name, k.Fingerprint())
			}
		}
		for _, other := range r.Signers[:i] {
			if bytes.Equal(other.Key.Encoded, g.Key.Encoded) {
				return fmt.Errorf("%s and %s sign with one key, %s", other.Name, g.Name, g.Key.Fingerprint())
			}
		}
		if owner := c.owner(g.Key); c.Script.Version > 1 && owner != "" && owner != g.Name {
			return fmt.Errorf("%s signs with key %s, which is %s's", g.Name, g.Key.Fingerprint(), owner)
		}
	}
	return nil
}

// owner is whose key the ceremony made or found it to be, or "".
func (c *Chain) owner(key signoff.PublicKey) string {
	for _, e := range c.Entries {
		t, _ := c.Script.Step(e.Record.Step)
		if e.Record.Outcome != Passed || t.Do != MakeKey && t.Do != ProveSpare || t.Key == hsm.KindSeal {
			continue
		}
		if k, err := FoundKey(e.Record); err != nil || !bytes.Equal(k.Encoded, key.Encoded) {
			continue
		}
		if t.Do == ProveSpare {
			return t.Person
		}
		if slot, _, err := ParseSlot(t.Slot); err == nil {
			return cmp.Or(slot.Name, slot.Of)
		}
		for _, p := range c.Script.People {
			if p.Token == t.Token && p.Object == t.Object {
				return p.Name
			}
		}
	}
	return ""
}

// checkFindings looks at what a passed step must have found, and checks again
// what can be checked with public keys alone.
func (c *Chain) checkFindings(r *Record, step *Step) error {
	for _, name := range findsOf(step) {
		if r.Find(name) == "" {
			return fmt.Errorf("a %s that passed has found its %s, this one has not", step.Do, name)
		}
	}
	switch step.Do {
	case MakeKey, ProveSpare:
		return c.checkKey(r, step)
	case WriteCharter, VerifyCharter:
		return c.checkCharter(r)
	case Accept:
		return c.checkAcceptance(r, step)
	case WriteChange:
		return c.checkChange(r)
	case VerifyKeygen, VerifyLog:
		return c.checkLog(r, step)
	case Position:
		if c.Script.Version == 1 {
			return nil
		}
		if _, err := r.digest("root"); err != nil {
			return err
		}
		_, err := size(r, "size")
		return err
	case ReadAloud:
		return c.checkAloud(r, step)
	case FileDigest:
		got, err := r.digest("digest")
		if err == nil && !step.Digest.IsZero() && got != step.Digest {
			err = fmt.Errorf("file %s has digest %s, the script wants %s", step.File, got, step.Digest)
		}
		return err
	}
	return nil
}

// Made is the key that this ceremony made for the person to sign with, in an
// earlier step or in r, the record of step.
func (c *Chain) Made(name string, step *Step, r *Record) (signoff.PublicKey, bool) {
	p, ok := c.Script.Person(name)
	if !ok || p.Token == "" {
		return signoff.PublicKey{}, false
	}
	i := slices.IndexFunc(c.Script.Steps, func(t Step) bool { return t.Do == MakeKey && t.Token == p.Token && t.Object == p.Object })
	if i < 0 {
		return signoff.PublicKey{}, false
	}
	made, ok := c.Done(c.Script.Steps[i].Name)
	if c.Script.Steps[i].Name == step.Name && r.Outcome == Passed {
		made, ok = r, true
	}
	if !ok {
		return signoff.PublicKey{}, false
	}
	key, err := FoundKey(made)
	return key, err == nil
}

// checkMade wants whoever signs with a key that this ceremony made to sign with
// that key, from the step on in which it was made.
func (c *Chain) checkMade(r *Record, step *Step) error {
	for _, g := range r.Signers {
		if key, ok := c.Made(g.Name, step, r); ok && !bytes.Equal(key.Encoded, g.Key.Encoded) {
			return fmt.Errorf("%s signs with key %s, which is not the one that this ceremony made, %s", g.Name, g.Key.Fingerprint(), key.Fingerprint())
		}
	}
	return nil
}

func findsOf(step *Step) []string {
	finds := strings.Fields(kinds[step.Do].finds)
	if step.Do == MakeKey && step.Key != hsm.KindSeal {
		finds = append(finds, "public", "fingerprint")
	}
	return finds
}

// SpareChallenge is what a spare token signs: it is of this run and place.
func SpareChallenge(c *Chain, person string) []byte {
	d := dsse.Sum("keyturn/ceremony-spare/v1", []byte(c.Mode), c.Digest[:], c.Run, c.last[:], []byte(person))
	return d[:]
}

func (c *Chain) checkKey(r *Record, step *Step) error {
	thing, ok := c.Script.Thing(step.Token)
	if !ok || c.Mode == Real && r.Find("serial") != thing.Serial {
		return fmt.Errorf("found a token with serial number %q, the script wants %s with %q", r.Find("serial"), step.Token, thing.Serial)
	}
	if !hsm.Class(r.Find("class")).Valid() {
		return fmt.Errorf("key class %q is unknown", r.Find("class"))
	}
	if step.Key == hsm.KindSeal {
		return nil
	}
	key, err := FoundKey(r)
	if err == nil && c.Script.Version > 1 {
		err = c.checkBond(key, step, r)
	}
	if err != nil {
		return err
	}
	pub, err := key.Public()
	if err != nil {
		return err
	}
	if got, err := r.digest("fingerprint"); err != nil || got != key.Fingerprint() {
		return fmt.Errorf("found fingerprint %q, the key has %s", r.Find("fingerprint"), key.Fingerprint())
	}
	if step.Do != ProveSpare {
		return nil
	}
	sig, err := base64.StdEncoding.DecodeString(r.Find("signature"))
	if err == nil {
		err = hsm.VerifyMessage(pub, SpareChallenge(c, step.Person), sig)
	}
	if err != nil {
		return fmt.Errorf("%s's spare did not sign in this step: %w", step.Person, err)
	}
	return nil
}

// checkBond holds a spare to the key that an earlier step made for it, and lets
// no key be made or proved twice, nor for somebody while another signs with it.
func (c *Chain) checkBond(key signoff.PublicKey, step *Step, r *Record) error {
	person, owner := step.Person, c.owner(key)
	if step.Do == MakeKey {
		if owner != "" {
			return fmt.Errorf("found key %s, which is %s's already", key.Fingerprint(), owner)
		}
		if i := slices.IndexFunc(c.Script.People, func(p Person) bool { return p.Token == step.Token && p.Object == step.Object }); i >= 0 {
			person = c.Script.People[i].Name
		}
	} else {
		made, err := c.SpareKey(step)
		switch {
		case err != nil:
			return err
		case made != nil && !bytes.Equal(made.Encoded, key.Encoded):
			return fmt.Errorf("%s signed with key %s, the ceremony made %s as their spare", person, key.Fingerprint(), made.Fingerprint())
		case owner != "" && owner != person:
			return fmt.Errorf("%s signed with key %s, which is %s's", person, key.Fingerprint(), owner)
		}
	}
	signers := slices.Clone(r.Signers)
	for name, k := range c.Keys {
		signers = append(signers, Signer{name, k})
	}
	for _, g := range signers {
		if bytes.Equal(g.Key.Encoded, key.Encoded) && (step.Do == ProveSpare || g.Name != person) {
			return fmt.Errorf("found key %s, with which %s signs: want one that nobody else signs with, and a spare that signs no record", key.Fingerprint(), g.Name)
		}
	}
	return nil
}

// SpareKey is the key that an earlier step made for the token of a prove-spare,
// or nil if none is to make it: then a log or the charter has it.
func (c *Chain) SpareKey(step *Step) (*signoff.PublicKey, error) {
	made := c.Script.makes(step.Token, step.Object)
	if made == nil {
		return nil, nil
	}
	r, ok := c.Done(made.Name)
	if !ok {
		return nil, fmt.Errorf("step %s, which makes this key, did not pass", made.Name)
	}
	key, err := FoundKey(r)
	return &key, err
}

// checkLog holds a log to what the ceremony found in it before, or a notary
// stated: it only grows.
func (c *Chain) checkLog(r *Record, step *Step) error {
	if err := c.checkCharter(r); err != nil {
		return err
	}
	if c.Script.Version > 1 {
		if err := c.checkGrown(r, step); err != nil {
			return err
		}
	}
	if !c.Script.Held(step) {
		return nil
	}
	return c.checkChange(r)
}

func (c *Chain) checkGrown(r *Record, step *Step) error {
	entries, err := size(r, "entries")
	if err != nil {
		return err
	}
	for _, e := range c.Entries {
		t, _ := c.Script.Step(e.Record.Step)
		if e.Record.Outcome != Passed || t.Do != VerifyLog && t.Do != VerifyKeygen && t.Do != Position {
			continue
		}
		if was := e.Record.Find("group"); t.Do == step.Do && was != r.Find("group") {
			return fmt.Errorf("found group key %s, step %s found %s", r.Find("group"), t.Name, was)
		}
		name := map[bool]string{true: "size", false: "entries"}[t.Do == Position]
		was, err := size(e.Record, name)
		if err != nil {
			return err
		}
		if entries < was {
			return fmt.Errorf("found a log of %d entries, step %s found %d: the copy is older", entries, t.Name, was)
		}
		if entries == was && e.Record.Find("root") != r.Find("root") {
			return fmt.Errorf("found a log with another root than step %s, and as many entries", t.Name)
		}
	}
	return nil
}

// size returns a finding that is a number of entries.
func size(r *Record, name string) (uint64, error) {
	n, err := strconv.ParseUint(r.Find(name), 10, 63)
	if err != nil {
		return 0, fmt.Errorf("found %s %.40q, want a number of entries", name, r.Find(name))
	}
	return n, nil
}

// FoundKey is the public key that a step found.
func FoundKey(r *Record) (signoff.PublicKey, error) {
	encoded, err := base64.StdEncoding.DecodeString(r.Find("public"))
	if err != nil {
		return signoff.PublicKey{}, fmt.Errorf("found public key: %w", err)
	}
	return signoff.PublicKey{Encoded: encoded, Class: hsm.Class(r.Find("class"))}, nil
}

// checkCharter holds every step to one charter.
func (c *Chain) checkCharter(r *Record) error {
	d, err := r.digest("charter")
	if err == nil && !c.Charter.IsZero() && d != c.Charter {
		err = fmt.Errorf("found charter %s, this ceremony is about %s", d, c.Charter)
	}
	return err
}

func (c *Chain) checkAcceptance(r *Record, step *Step) error {
	if err := c.checkCharter(r); err != nil {
		return err
	}
	line, err := signoff.ReadLine([]byte(r.Find("acceptance")))
	if err != nil {
		return err
	}
	a, ok := line.Doc.(*signoff.Acceptance)
	if !ok || a.Charter != c.Charter || !a.Request.IsZero() {
		return fmt.Errorf("a %s of charter %s, want an acceptance of %s", line.Doc.Kind(), line.Doc.Cluster(), c.Charter)
	}
	for _, g := range r.Signers {
		if g.Name != step.Person {
			continue
		}
		pub, err := g.Key.Public()
		if err != nil {
			return err
		}
		if a.Person != g.Key.Fingerprint() {
			return fmt.Errorf("accepted by %s, %s is %s", a.Person, g.Name, g.Key.Fingerprint())
		}
		return line.Verify(pub)
	}
	return fmt.Errorf("%s does not sign", step.Person)
}

func (c *Chain) checkAloud(r *Record, step *Step) error {
	want, err := c.Expected(step)
	if err != nil {
		return err
	}
	got, err := r.digest("digest")
	if err == nil && got != want {
		err = fmt.Errorf("%s was read aloud, step %s found %s", got, step.Of, want)
	}
	return err
}

// Expected is the digest that a read-aloud step is to hear.
func (c *Chain) Expected(step *Step) (Digest, error) {
	of, ok := c.Done(step.Of)
	if !ok {
		return Digest{}, fmt.Errorf("step %s did not pass: there is no digest to compare", step.Of)
	}
	t, _ := c.Script.Step(step.Of)
	return of.digest(digestOf[t.Do])
}

// Done returns the record of a step that passed.
func (c *Chain) Done(step string) (*Record, bool) {
	i := slices.IndexFunc(c.Entries, func(e Entry) bool { return e.Record.Step == step && e.Record.Outcome == Passed })
	if i < 0 {
		return nil, false
	}
	return c.Entries[i].Record, true
}

// Add verifies a record and its signatures, one of each signer in the record's
// order, and takes it as the next. On any error the chain is as it was.
func (c *Chain) Add(payload []byte, signed []*dsse.Envelope) error {
	r, err := ReadRecord(payload)
	if err != nil {
		return err
	}
	if err := c.Check(r); err != nil {
		return err
	}
	if len(signed) != len(r.Signers) {
		return fmt.Errorf("ceremony: record %d, %s: %d signatures, its %d signers sign once each", r.Number, r.Step, len(signed), len(r.Signers))
	}
	for i, g := range r.Signers {
		if err := VerifySigner(payload, g, signed[i]); err != nil {
			return fmt.Errorf("ceremony: record %d, %s: %w", r.Number, r.Step, err)
		}
	}
	c.add(Entry{r, payload, signed})
	return nil
}

// VerifySigner checks one countersignature.
func VerifySigner(payload []byte, g Signer, e *dsse.Envelope) error {
	if !bytes.Equal(e.Payload, payload) {
		return fmt.Errorf("%s's signature is over another record", g.Name)
	}
	pub, err := g.Key.Public()
	if err == nil {
		err = e.Verify(pub)
	}
	if err != nil {
		return fmt.Errorf("signature of %s: %w", g.Name, err)
	}
	return nil
}

// add is the only function that changes a chain.
func (c *Chain) add(e Entry) {
	c.Entries = append(c.Entries, e)
	c.last = e.Sum()
	for _, g := range e.Record.Signers {
		c.Keys[g.Name] = g.Key
	}
	if e.Record.Outcome == Aborted {
		c.over = true
		return
	}
	step := c.Next()
	if e.Record.Outcome == Passed && (step.Do == WriteCharter || step.Do == VerifyCharter) {
		c.Charter, _ = e.Record.digest("charter") // checked before
	}
	c.next++
}
