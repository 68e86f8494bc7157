package ceremony

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/display"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A Mode tells the real thing from its rehearsal. It stands in every record,
// and decides the record's predicate type as well.
type Mode string

const (
	Real      Mode = "real"
	Rehearsal Mode = "REHEARSAL"
)

// PredicateType is the in-toto predicate type of the mode's records.
func (m Mode) PredicateType() string {
	if m == Real {
		return "https://keyturn.dev/ceremony-step/v1"
	}
	return "https://keyturn.dev/ceremony-rehearsal-step/v1"
}

func (m Mode) check() error {
	if m != Real && m != Rehearsal {
		return fmt.Errorf("mode %.40q, want %s or %s", m, Real, Rehearsal)
	}
	return nil
}

// An Outcome is how a step ended.
type Outcome string

const (
	Passed  Outcome = "passed"  // done as the script says
	Waived  Outcome = "waived"  // not done, and the master decided to go on
	Aborted Outcome = "aborted" // not done, and the ceremony ends here
)

// Exceptions are the kinds of deviation from a script.
var Exceptions = []string{"equipment", "person", "interruption", "time", "text", "failure"}

// An Exception is a deviation that somebody decided on.
type Exception struct {
	Kind    string `json:"kind"`
	Text    string `json:"text"`
	Decided string `json:"decided"` // name
}

// An Incident is an attempt that failed, or an interruption: what happened in a
// step before its record was signed.
type Incident struct {
	Time int64  `json:"time"`
	Text string `json:"text"`
}

// A Finding is what keyturn made or read in a step.
type Finding struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// A Signer is who signs the record, with which key. The class is what the
// token says of itself.
type Signer struct {
	Name string            `json:"name"`
	Key  signoff.PublicKey `json:"key"`
}

// A Record is one step as it was done: the predicate of the statement that each
// of its signers signs. Times are the ceremony computer's, Unix seconds.
type Record struct {
	Mode       Mode        `json:"mode"`
	Script     Digest      `json:"script"`
	Run        []byte      `json:"run"`      // 16 random bytes, of this run of the script
	Number     int         `json:"number"`   // from 1
	Previous   Digest      `json:"previous"` // payload of the record before; of the first, see [First]
	Step       string      `json:"step"`
	Outcome    Outcome     `json:"outcome"`
	Findings   []Finding   `json:"findings"`
	Incidents  []Incident  `json:"incidents"`
	Exceptions []Exception `json:"exceptions"`
	Signers    []Signer    `json:"signers"`
	Begun      int64       `json:"begun"`
	Ended      int64       `json:"ended"`
	Display    Digest      `json:"display"` // SHA-256 of the text that was shown, see [Text]
}

// First is what the first record names as the one before it.
func First(m Mode, script Digest, run []byte) Digest {
	return dsse.Sum("keyturn/ceremony/v1", []byte(m), script[:], run)
}

// Find returns the finding of that name, or "".
func (r *Record) Find(name string) string {
	for _, f := range r.Findings {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// digest returns a finding that is a digest.
func (r *Record) digest(name string) (Digest, error) {
	d, err := dsse.ParseDigest(r.Find(name))
	if err != nil {
		return d, fmt.Errorf("found %s: %w", name, err)
	}
	return d, nil
}

// Write returns the payload to sign.
func (r *Record) Write() ([]byte, error) {
	if err := r.validate(); err != nil {
		return nil, fmt.Errorf("ceremony: record of step %.80q: %w", r.Step, err)
	}
	return dsse.Statement(r.Mode.PredicateType(), r.subjects(), r)
}

func (r *Record) subjects() []dsse.Subject {
	mark := ""
	if r.Mode != Real {
		mark = string(r.Mode) + " "
	}
	return []dsse.Subject{dsse.About(mark+"script", r.Script), dsse.About(mark+"previous step", r.Previous)}
}

// ReadRecord parses a payload strictly and checks its form.
func ReadRecord(payload []byte) (*Record, error) {
	kind, predicate, err := dsse.OpenStatement(payload)
	if err != nil {
		return nil, err
	}
	r := new(Record)
	if err := dsse.Decode(predicate, r); err != nil {
		return nil, fmt.Errorf("ceremony: read record: %w", err)
	}
	again, err := r.Write()
	if err != nil {
		return nil, err
	}
	if kind != r.Mode.PredicateType() {
		return nil, fmt.Errorf("ceremony: read record: mode %s in a statement of type %.100q", r.Mode, kind)
	}
	if !bytes.Equal(again, payload) {
		return nil, errors.New("ceremony: read record: not in canonical form, or its subjects are not those it names")
	}
	return r, nil
}

func (r *Record) validate() error {
	if err := errors.Join(r.Mode.check(), signoff.CheckName("step", r.Step)); err != nil {
		return err
	}
	if r.Script.IsZero() || r.Previous.IsZero() || r.Display.IsZero() || len(r.Run) != 16 || r.Number < 1 || r.Begun <= 0 || r.Ended <= 0 {
		return errors.New("script, run of 16 bytes, number, previous, begun, ended or display is missing")
	}
	if !slices.Contains([]Outcome{Passed, Waived, Aborted}, r.Outcome) {
		return fmt.Errorf("outcome %.40q, want %s, %s or %s", r.Outcome, Passed, Waived, Aborted)
	}
	if len(r.Findings) > maxFindings || len(r.Incidents) > MaxIncidents || len(r.Exceptions) > maxExceptions || len(r.Signers) > MaxSigners {
		return fmt.Errorf("more than %d findings, %d incidents, %d exceptions or %d signers", maxFindings, MaxIncidents, maxExceptions, MaxSigners)
	}
	if r.Findings == nil || r.Incidents == nil || r.Exceptions == nil || len(r.Signers) < 2 {
		return errors.New("a list is missing, or fewer than two people sign")
	}
	if r.Outcome != Passed && len(r.Exceptions) == 0 {
		return fmt.Errorf("%s without an exception that says why", r.Outcome)
	}
	return r.validateLists()
}

func (r *Record) validateLists() error {
	var errs []error
	names := map[string]bool{}
	for _, f := range r.Findings {
		errs = append(errs, signoff.CheckName("finding", f.Name), signoff.CheckText(f.Name, f.Value))
		if names[f.Name] {
			errs = append(errs, fmt.Errorf("finding %s twice", f.Name))
		}
		names[f.Name] = true
	}
	for _, i := range r.Incidents {
		errs = append(errs, signoff.CheckText("incident", i.Text))
		if len(i.Text) > maxNote || i.Time <= 0 {
			errs = append(errs, fmt.Errorf("an incident of %d bytes at %d, want 1 to %d bytes and a time", len(i.Text), i.Time, maxNote))
		}
	}
	for _, x := range r.Exceptions {
		errs = append(errs, CheckException(x))
	}
	for _, s := range r.Signers {
		errs = append(errs, signoff.CheckName("signer", s.Name))
		if _, err := s.Key.Public(); err != nil || !s.Key.Class.Valid() {
			errs = append(errs, fmt.Errorf("%s's key: class %.40q, %w", s.Name, s.Key.Class, err))
		}
	}
	return errors.Join(errs...)
}

// CheckException checks the form of an exception.
func CheckException(x Exception) error {
	if !slices.Contains(Exceptions, x.Kind) {
		return fmt.Errorf("exception %.40q, want one of %s", x.Kind, strings.Join(Exceptions, ", "))
	}
	return errors.Join(signoff.CheckText("exception", x.Text), signoff.CheckName("decided", x.Decided))
}

// Note makes an incident of whatever went wrong: printable, and of bounded
// length.
func Note(at int64, text string) Incident {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\t' }), " ")
	var b strings.Builder
	for _, r := range text {
		if signoff.CheckText("", "."+string(r)+".") != nil {
			r = '?'
		}
		if b.Len() > maxNote-8 {
			b.WriteString("...")
			break
		}
		b.WriteRune(r)
	}
	text = strings.TrimSpace(b.String())
	if text == "" {
		text = "no reason was given"
	}
	return Incident{Time: at, Text: text}
}

// Groups writes a digest for reading aloud: two lines of eight groups of four
// hex digits.
func Groups(d Digest) [2]string {
	var groups []string
	for h := d.Hex(); h != ""; h = h[4:] {
		groups = append(groups, h[:4])
	}
	return [2]string{strings.Join(groups[:8], " "), strings.Join(groups[8:], " ")}
}

// ParseGroups reads a digest as somebody types it who hears it: hex digits,
// with spaces wherever and sha256: or not.
func ParseGroups(text string) (Digest, error) {
	d, err := dsse.ParseDigest("sha256:" + strings.TrimPrefix(strings.ToLower(strings.Join(strings.Fields(text), "")), "sha256:"))
	if err != nil {
		return d, fmt.Errorf("ceremony: %.80q is no digest: want 64 hex digits, with spaces or without", text)
	}
	return d, nil
}

// Version heads every text.
const Version = "keyturn ceremony 1"

// longValue is from where on a finding is shown by its digest: a line or a key
// that nobody reads.
const longValue = 72

// Text is what the signers of a record are shown: lines that end in a newline.
// It depends on the script and on the record, all but Display. In a rehearsal
// each line says so.
func Text(s *Script, r *Record) string {
	l := new(display.Lines)
	l.Prose("ceremony", s.Name+": "+s.Title)
	groups(l, "script", r.Script)
	l.Field("run", "%x", r.Run)
	step, at := s.Step(r.Step)
	if step == nil {
		step = new(Step)
	}
	l.Field("step", "%d of %d, record %d: %s", at+1, len(s.Steps), r.Number, r.Step)
	s.describe(l, step)
	for _, f := range r.Findings {
		d, err := dsse.ParseDigest(f.Value)
		switch {
		case err == nil:
			l.Field("found", "%s:", f.Name)
			groups(l, "", d)
		case len(f.Value) > longValue:
			l.Prose("found", fmt.Sprintf("%s: %d bytes with digest", f.Name, len(f.Value)))
			groups(l, "", sha256.Sum256([]byte(f.Value)))
		default:
			l.Prose("found", f.Name+": "+f.Value)
		}
	}
	for _, i := range r.Incidents {
		l.Time("incident", i.Time)
		l.Prose("", i.Text)
	}
	for _, x := range r.Exceptions {
		l.Prose("exception", fmt.Sprintf("%s, decided by %s: %s", x.Kind, x.Decided, x.Text))
	}
	l.Time("begun", r.Begun)
	l.Time("ended", r.Ended)
	l.Field("outcome", "%s", r.Outcome)
	for _, g := range r.Signers {
		l.Field("to sign", "%s, %s key", g.Name, g.Key.Class)
		groups(l, "", g.Key.Fingerprint())
	}
	groups(l, "previous", r.Previous)
	return Mark(r.Mode, Version+"\n"+l.String())
}

func groups(l *display.Lines, name string, d Digest) {
	g := Groups(d)
	l.Field(name, "%s", g[0])
	l.Field("", "%s", g[1])
}

// describe writes what the script says of a step.
func (s *Script) describe(l *display.Lines, t *Step) {
	l.Field("do", "%s", t.Do)
	l.Prose("text", t.Text)
	if t.Proves != "" {
		l.Prose("proves", t.Proves)
	}
	for _, m := range []struct{ name, value string }{{"person", t.Person}, {"key", string(t.Key)}, {"label", t.Object}, {"slot", t.Slot},
		{"file", t.File}, {"policy", t.Policy}, {"log", t.Log}, {"compare with", t.Of}} {
		if m.value != "" {
			l.Prose(m.name, m.value)
		}
	}
	if t.Do == WriteChange {
		s.Change.show(l)
	}
	if e, ok := s.Thing(t.Token); ok {
		l.Prose("token", fmt.Sprintf("%s: label %s, serial number %s", e.Name, e.Label, e.Serial))
	}
	for _, m := range []struct {
		name   string
		digest Digest
	}{{"expected", t.Digest}, {"weights", t.Weights}} {
		if !m.digest.IsZero() {
			groups(l, m.name, m.digest)
		}
	}
}

// ShowStep writes what the script says of the step to do.
func (c *Chain) ShowStep(t *Step) string {
	l := new(display.Lines)
	_, at := c.Script.Step(t.Name)
	l.Field("step", "%d of %d: %s", at+1, len(c.Script.Steps), t.Name)
	c.Script.describe(l, t)
	l.Prose("signed by", strings.Join(t.By, ", "))
	return l.String()
}

// Mark puts the word REHEARSAL before every line of a rehearsal.
func Mark(m Mode, text string) string {
	if m == Real {
		return text
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(string(Rehearsal) + " | " + line)
	}
	return b.String()
}

// Step finds a step and its place, from 0.
func (s *Script) Step(name string) (*Step, int) {
	i := slices.IndexFunc(s.Steps, func(t Step) bool { return t.Name == name })
	if i < 0 {
		return nil, i
	}
	return &s.Steps[i], i
}

// Show writes the script as its people will see it, before it is run.
func (s *Script) Show(m Mode, digest Digest) string {
	l := new(display.Lines)
	l.Prose("ceremony", s.Name+": "+s.Title)
	l.Field("purpose", "%s", s.Purpose)
	groups(l, "script", digest)
	if !s.Charter.IsZero() {
		groups(l, "charter", s.Charter)
	}
	for _, p := range s.People {
		l.Prose("person", fmt.Sprintf("%s of %s: %s", p.Name, p.Organisation, strings.Join(p.Roles, ", ")))
		if p.Token != "" {
			l.Prose("", fmt.Sprintf("signs with key %s on %s", p.Object, p.Token))
		}
	}
	for _, e := range s.Equipment {
		l.Prose("equipment", fmt.Sprintf("%s: %s, serial number %s", e.Name, e.What, e.Serial))
	}
	s.Change.show(l)
	for i := range s.Steps {
		t := &s.Steps[i]
		l.Field("", "")
		l.Field("step", "%d of %d: %s", i+1, len(s.Steps), t.Name)
		s.describe(l, t)
		l.Prose("signed by", strings.Join(t.By, ", "))
	}
	return Mark(m, Version+"\n"+l.String())
}
