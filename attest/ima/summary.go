package ima

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
)

// A Summary is what a person wants to know of a list. It is what the list says:
// only a quote proves it.
type Summary struct {
	Template      string    `json:"template"` // of the first entry
	Entries       int       `json:"entries"`
	Violations    int       `json:"violations"`
	PCRs          PCRValues `json:"pcrs"`
	BootAggregate string    `json:"bootAggregate"` // algorithm:hex, empty if the first entry is another
}

// PCRValues are values by index.
type PCRValues map[int][]byte

// MarshalJSON writes {"10":"hex"} in the order of the indices.
func (p PCRValues) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	for i, pcr := range slices.Sorted(maps.Keys(p)) {
		if i > 0 {
			out.WriteByte(',')
		}
		fmt.Fprintf(&out, `"%d":"%x"`, pcr, p[pcr])
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// Summary replays the whole list with the named template hash: sha256, or sha1 to
// look at a list.
func (l *List) Summary(bank string) (*Summary, error) {
	pcrs, err := l.Replay(bank)
	if err != nil {
		return nil, err
	}
	s := &Summary{Template: l.Entries[0].Template, Entries: len(l.Entries), PCRs: pcrs}
	for i := range l.Entries {
		if l.Entries[i].Violation {
			s.Violations++
		}
	}
	if first := &l.Entries[0]; !first.Violation && string(first.name) == bootAggregate {
		s.BootAggregate = first.Algorithm + ":" + hex.EncodeToString(first.FileDigest)
	}
	return s, nil
}
