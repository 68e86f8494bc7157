package authority

import (
	"fmt"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/ceremony"
)

// A Ceremony is a ceremony whose transcript is in the log. Its last record
// names it: signatures in a transcript can be altered without a key, and the
// records that they sign cannot.
type Ceremony struct {
	Last       Digest `json:"last"` // record
	Document   Digest `json:"document"`
	Index      uint64 `json:"index"`
	Script     Digest `json:"script"`
	Transcript Digest `json:"transcript"` // blob
}

// ceremony takes the transcript of a real ceremony of this charter that was
// carried through, each of its holders signing with a key of theirs. It has no
// effect but to stand here.
func (d decision) ceremony(c *signoff.Ceremony) ([]change, error) {
	blob, err := d.blob(c.Transcript)
	if err != nil {
		return nil, err
	}
	report, err := ceremony.Parse(blob)
	if err != nil {
		return nil, err
	}
	if old, ok := d.state.Ceremonies[report.Last()]; ok {
		return nil, fmt.Errorf("this ceremony is registered at entry %d", old.Index)
	}
	if report.Digest != c.Script {
		return nil, fmt.Errorf("it names script %s, the transcript is of script %s", c.Script, report.Digest)
	}
	if err := report.Counts(d.state.ID); err != nil {
		return nil, err
	}
	if err := report.Anchor(d.state.CeremonyAnchors(), d.state.Charter.Development); err != nil {
		return nil, err
	}
	if report.Script.Version > 1 {
		if err := report.Holds(d.state.Charter); err != nil {
			return nil, err
		}
	}
	r := &Ceremony{Last: report.Last(), Document: d.id, Index: d.index, Script: c.Script, Transcript: c.Transcript}
	return []change{{key: "ceremony/" + r.Last.Hex(), value: r, put: func(s *State) { s.Ceremonies[r.Last] = r }}}, nil
}

// CeremonyAnchors are the keys of everybody who is or was in this cluster.
func (s *State) CeremonyAnchors() ceremony.Anchors {
	a := ceremony.Anchors{}
	for key, t := range s.Tokens {
		a.Add(t.Name, key)
	}
	for key, g := range s.signers {
		if g.notary != nil {
			a.Add(g.notary.Name, key)
		}
	}
	return a
}
