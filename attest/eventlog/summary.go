package eventlog

import (
	"encoding/hex"
	"maps"

	"github.com/go-json-experiment/json"
)

// A Summary is what a person wants to know of a log. Without expected values it is
// what the log says, not what the machine did.
type Summary struct {
	Bank             string  `json:"bank"`
	PCRs             PCRs    `json:"pcrs"`             // those that the log extends
	Events           int     `json:"events"`           // without the Spec ID header
	SecureBoot       State   `json:"secureBoot"`       // null if the log leaves it open
	BootApplications Digests `json:"bootApplications"` // null if the log leaves them open

	SecureBootReason string `json:"-"` // why SecureBoot is null
}

// Summary replays the bank, SHA-1 included, and refuses a log that does not lead to
// the expected values, nil for none. A PCR 10 among them is passed over unless the
// log extends it: the kernel's measurement list explains it, not the firmware's log.
func (l *Log) Summary(bankName string, expect map[int][]byte) (*Summary, error) {
	b, err := l.bank(bankName)
	if err != nil {
		return nil, err
	}
	s := &Summary{Bank: bankName, Events: len(l.Events)}
	if s.PCRs, err = l.Replay(bankName); err != nil {
		return nil, err
	}
	if expect != nil {
		expect = maps.Clone(expect)
		if _, extended := s.PCRs[pcrIMA]; !extended {
			delete(expect, pcrIMA)
		}
		if err := l.replayed(b).Explain(expect); err != nil {
			return nil, err
		}
	}
	secureBoot := l.SecureBoot(bankName)
	s.SecureBoot, s.SecureBootReason = secureBoot.State, secureBoot.Reason
	if apps, err := l.BootApplications(bankName); err == nil {
		s.BootApplications = Digests{}
		for _, app := range apps {
			s.BootApplications = append(s.BootApplications, app.Digest)
		}
	}
	return s, nil
}

const pcrIMA = 10 // that Linux extends with its integrity measurements

// Digests are in hex in JSON, and null there if nil.
type Digests [][]byte

// MarshalJSON writes ["hex"], or null.
func (d Digests) MarshalJSON() ([]byte, error) {
	if d == nil {
		return []byte("null"), nil
	}
	texts := make([]string, len(d))
	for i := range d {
		texts[i] = hex.EncodeToString(d[i])
	}
	return json.Marshal(texts)
}
