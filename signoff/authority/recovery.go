package authority

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/signoff"
)

// recovery replaces the log key. It must be the first entry after Base, and a
// quorum of notaries must each have signed that Base, or a prefix of it, is
// the last thing they cosigned and that they mean this new key. A final
// checkpoint has a quorum of cosigners, two quorums share an honest notary,
// and an honest notary's position is at least the last final checkpoint it
// cosigned: so nothing final is dropped. While one council hands over to
// another both have to say so, as both cosign.
func (d decision) recovery(r *signoff.Recovery) ([]change, error) {
	if r.Base.Size != d.index {
		return nil, fmt.Errorf("goes on from size %d, but stands at entry %d", r.Base.Size, d.index)
	}
	if err := d.saw(r.Base); err != nil {
		return nil, err
	}
	if r.Log.Fingerprint() == d.state.LogKey.Fingerprint() {
		return nil, errors.New("the new log key is the old one")
	}
	if d.state.logKeys[r.Log.Fingerprint()] {
		return nil, fmt.Errorf("the new log key %s was the log's before; whoever has it could go on with that branch", r.Log.Fingerprint())
	}
	keys, err := d.state.Keys()
	if err != nil {
		return nil, err
	}
	if err := d.state.Charter.CheckLogKey(r.Log, keys); err != nil {
		return nil, err
	}
	stated := map[Digest]bool{}
	reached := false
	for _, line := range r.Positions {
		p, err := d.position(line, r)
		if err != nil {
			return nil, err
		}
		if stated[p.Notary] {
			return nil, fmt.Errorf("two positions by notary %s", p.Notary)
		}
		stated[p.Notary] = true
		reached = reached || p.Seen.Size == r.Base.Size
	}
	for _, c := range d.state.councils() {
		n := 0
		for _, y := range c.Notaries {
			if stated[y.ID()] {
				n++
			}
		}
		if q := c.Quorum(); n < q {
			return nil, fmt.Errorf("%d notaries stated their position, want %d", n, q)
		}
	}
	if !reached {
		return nil, errors.New("no notary's position is the base: entries nobody cosigned would be kept")
	}
	return []change{{key: "log-key", value: r.Log, put: func(s *State) {
		s.signsLog(r.Log)
		s.Recoveries, s.Recovered = s.Recoveries+1, d.index+1
		s.watched(d.index)
	}}}, nil
}

// signsLog puts the log under k and remembers it.
func (s *State) signsLog(k signoff.PublicKey) {
	s.LogKey = k
	s.logKeys[k.Fingerprint()] = true
}

func (d decision) position(line string, r *signoff.Recovery) (*signoff.Position, error) {
	doc, err := signoff.ReadLine([]byte(line))
	if err != nil {
		return nil, err
	}
	p, ok := doc.Doc.(*signoff.Position)
	if !ok || p.Charter != d.state.ID {
		return nil, errors.New("a position that is none, or of another cluster")
	}
	if err := d.state.byMember(prepared{doc: doc}, p.Notary); err != nil {
		return nil, err
	}
	fp := r.Log.Fingerprint()
	if !bytes.Equal(p.Answer, fp[:]) {
		return nil, fmt.Errorf("notary %s stated its position for another log key", p.Notary)
	}
	// What was stated for an earlier recovery says nothing about what was
	// cosigned since; an old log key could come back with it.
	if p.Seen.Size < d.state.Recovered {
		return nil, fmt.Errorf("notary %s stated size %d, which is before the recovery at entry %d", p.Notary, p.Seen.Size, d.state.Recovered-1)
	}
	if p.Seen == (signoff.Seen{}) {
		return p, nil // cosigned nothing yet, so it stands on every log
	}
	return p, d.saw(p.Seen)
}
