package ceremony

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// The first member of a transcript.
const (
	transcriptReal      = "keyturn ceremony transcript 1"
	transcriptRehearsal = "keyturn ceremony REHEARSAL transcript 1"
)

// A Transcript is a ceremony that has ended: the script and every record with
// its signatures, as one canonical JSON value.
type Transcript struct {
	Version string   `json:"version"`
	Script  string   `json:"script"`  // verbatim
	Run     []byte   `json:"run"`     // 16 bytes
	Records []string `json:"records"` // bundle lines, one for each signature, in order
}

// Transcript is the chain as a transcript. The script is given verbatim.
func (c *Chain) Transcript(script []byte) *Transcript {
	t := &Transcript{Version: transcriptReal, Script: string(script), Run: c.Run, Records: []string{}}
	if c.Mode != Real {
		t.Version = transcriptRehearsal
	}
	for _, e := range c.Entries {
		for _, s := range e.Signed {
			t.Records = append(t.Records, string(s.Line()))
		}
	}
	return t
}

// Marshal writes the transcript. Its SHA-256 names it.
func (t *Transcript) Marshal() ([]byte, error) {
	b, err := dsse.Encode(t)
	if err == nil && len(b) > MaxTranscript {
		err = fmt.Errorf("ceremony: transcript of %d bytes, at most %d are allowed", len(b), MaxTranscript)
	}
	return b, err
}

// Parse reads a transcript and checks every record and signature in it against
// the script in it and the keys in it. Whose keys these are is for
// [Report.Anchor] to say.
func Parse(data []byte) (*Report, error) {
	if len(data) > MaxTranscript {
		return nil, fmt.Errorf("ceremony: transcript of %d bytes, at most %d are read", len(data), MaxTranscript)
	}
	var t Transcript
	if err := dsse.Decode(data, &t); err != nil {
		return nil, fmt.Errorf("ceremony: read transcript: %w", err)
	}
	if again, err := dsse.Encode(t); err != nil || !bytes.Equal(again, data) {
		return nil, errors.New("ceremony: read transcript: not in canonical form")
	}
	mode := Real
	switch t.Version {
	case transcriptReal:
	case transcriptRehearsal:
		mode = Rehearsal
	default:
		return nil, fmt.Errorf("ceremony: read transcript: version %.80q, want %q", t.Version, transcriptReal)
	}
	chain, err := Begin(mode, []byte(t.Script), t.Run)
	if err != nil {
		return nil, err
	}
	if err := chain.replay(t.Records); err != nil {
		return nil, err
	}
	if !chain.Complete() && !chain.Aborted() {
		return nil, fmt.Errorf("ceremony: the transcript ends before step %s, and no record says that it was aborted: records are missing", chain.Next().Name)
	}
	return &Report{Chain: chain, Transcript: sha256.Sum256(data)}, nil
}

// replay adds every record. Lines of one payload that follow each other are
// one record's signatures.
func (c *Chain) replay(lines []string) error {
	if len(lines) > MaxSteps*MaxSigners {
		return fmt.Errorf("ceremony: %d signatures, at most %d are read", len(lines), MaxSteps*MaxSigners)
	}
	var signed []*dsse.Envelope
	flush := func() error {
		if len(signed) == 0 {
			return nil
		}
		err := c.Add(signed[0].Payload, signed)
		signed = nil
		return err
	}
	for _, l := range lines {
		e, err := dsse.Parse([]byte(l))
		if err != nil {
			return err
		}
		if len(signed) > 0 && !bytes.Equal(signed[0].Payload, e.Payload) {
			if err := flush(); err != nil {
				return err
			}
		}
		signed = append(signed, e)
	}
	return flush()
}

// A Report is a transcript that holds in itself.
type Report struct {
	*Chain
	Transcript Digest
	Unknown    []string // signers whom no anchor names, once Anchor was asked
}

// Anchors say whose keys are whose: fingerprints of signing keys by name.
type Anchors map[string][]Digest

// Add says that a key is somebody's.
func (a Anchors) Add(name string, key Digest) { a[name] = append(a[name], key) }

// owner is whose key it is, or "".
func (a Anchors) owner(key Digest) string {
	for name, keys := range a {
		if slices.Contains(keys, key) {
			return name
		}
	}
	return ""
}

// CharterAnchors are the signing keys of a charter's notaries and people.
func CharterAnchors(c *signoff.Charter) Anchors {
	a := Anchors{}
	for i := range c.Notaries {
		a.Add(c.Notaries[i].Name, c.Notaries[i].ID())
	}
	for _, p := range c.People {
		for _, t := range p.Tokens() {
			a.Add(p.Name, t.ID())
		}
	}
	return a
}

// Anchor refuses a signer whose key is not an anchored one, and a holder whom
// the anchors do not name; other signers whom they do not name it lists as
// unknown. Software keys sign a real ceremony only under a development charter.
func (r *Report) Anchor(a Anchors, development bool) error {
	r.Unknown = nil
	for _, p := range r.Script.People {
		k, signed := r.Keys[p.Name]
		if !signed {
			continue
		}
		want, ok := a[p.Name]
		switch {
		case r.Script.Version > 1 && !slices.Contains(want, k.Fingerprint()) && a.owner(k.Fingerprint()) != "":
			return fmt.Errorf("ceremony: %s signed with key %s, which is %s's", p.Name, k.Fingerprint(), a.owner(k.Fingerprint()))
		case !ok && p.Is(Holder):
			return fmt.Errorf("ceremony: %s is a holder, signed with key %s, and is not known by any key", p.Name, k.Fingerprint())
		case !ok:
			r.Unknown = append(r.Unknown, p.Name)
		case !slices.Contains(want, k.Fingerprint()):
			return fmt.Errorf("ceremony: %s signed with key %s, which is not known as theirs", p.Name, k.Fingerprint())
		}
		if k.Class == hsm.ClassSoftware && r.Mode == Real && !development {
			return fmt.Errorf("ceremony: %s signed with a software key, which only a development charter takes", p.Name)
		}
	}
	if r.Script.Version == 1 {
		return nil
	}
	return r.anchorSpares(a)
}

// anchorSpares wants a spare whose key this ceremony did not make to be known as
// its person's.
func (r *Report) anchorSpares(a Anchors) error {
	for i := range r.Script.Steps {
		t := &r.Script.Steps[i]
		record, ok := r.Done(t.Name)
		if !ok || t.Do != ProveSpare || r.Script.makes(t.Token, t.Object) != nil {
			continue
		}
		key, err := FoundKey(record)
		if err != nil {
			return err
		}
		if !slices.Contains(a[t.Person], key.Fingerprint()) {
			return fmt.Errorf("ceremony: step %s: %s's spare signed with key %s, which is not known as theirs", t.Name, t.Person, key.Fingerprint())
		}
	}
	return nil
}

// Counts reports whether the transcript shows that a real ceremony of the
// charter was carried through.
func (r *Report) Counts(charter Digest) error {
	switch {
	case r.Mode != Real:
		return errors.New("ceremony: this is a REHEARSAL: it proves nothing and cannot be registered")
	case !r.Complete():
		return fmt.Errorf("ceremony: it was aborted in step %s", r.Entries[len(r.Entries)-1].Record.Step)
	case r.Charter.IsZero() || r.Charter != charter:
		return fmt.Errorf("ceremony: it belongs to charter %s, not to %s", r.Charter, charter)
	}
	for i := range r.Script.Steps {
		t := &r.Script.Steps[i]
		if _, ok := r.Done(t.Name); !ok && r.Script.Waivable(t) != nil {
			return fmt.Errorf("ceremony: step %s did not pass: %w", t.Name, r.Script.Waivable(t))
		}
	}
	return nil
}

// Holds wants every key that a genesis made to stand in its place in the charter.
// Those of other ceremonies stand in the log, see [Chain.Held].
func (c *Chain) Holds(charter *signoff.Charter) error {
	if p := c.Script.Purpose; p == Membership || p != Genesis && c.Script.Version > 1 {
		return nil
	}
	return c.inPlaces(charter, "charter")
}

func (c *Chain) inPlaces(charter *signoff.Charter, where string) error {
	for _, t := range c.Script.Steps {
		r, ok := c.Done(t.Name)
		if !ok || t.Slot == "" {
			continue
		}
		slot, _, err := ParseSlot(t.Slot)
		if err != nil {
			return err
		}
		key, err := FoundKey(r)
		if err != nil {
			return err
		}
		if !slot.has(charter, key) {
			return fmt.Errorf("ceremony: step %s made key %s, and the %s does not have it as %s", t.Name, key.Fingerprint(), where, t.Slot)
		}
	}
	return nil
}

// Exceptions counts the deviations.
func (r *Report) Exceptions() int {
	n := 0
	for _, e := range r.Entries {
		n += len(e.Record.Exceptions)
	}
	return n
}

// Waived lists the steps that were not done.
func (r *Report) Waived() []string {
	var out []string
	for _, e := range r.Entries {
		if e.Record.Outcome == Waived {
			out = append(out, e.Record.Step)
		}
	}
	return slices.Clip(out)
}

// Rehearsed reports whether this was a rehearsal.
func (r *Report) Rehearsed() bool { return r.Mode != Real }
