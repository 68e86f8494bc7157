package eventlog

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

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
		if err := l.explain(b, expect); err != nil {
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

// MarshalJSON writes {"0":"hex"} in the order of the indices.
func (p PCRs) MarshalJSON() ([]byte, error) {
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

// DecodePCRs reads expected values: {"0":"hex"}, or {"sha256":{"0":"hex"}}, of which
// the named bank is taken. It refuses duplicate members, indices and hex that are not
// well-formed, and no values at all.
func DecodePCRs(data []byte, bankName string) (PCRs, error) {
	flat := make(map[string]string)
	if err := json.Unmarshal(data, &flat); err != nil {
		nested := make(map[string]map[string]string)
		if json.Unmarshal(data, &nested) != nil {
			return nil, fmt.Errorf("eventlog: expected PCRs are not {\"0\":\"hex\"}: %w", err)
		}
		var found bool
		if flat, found = nested[bankName]; !found {
			return nil, fmt.Errorf("eventlog: the expected PCRs have no bank %q", bankName)
		}
	}
	if len(flat) == 0 {
		return nil, fmt.Errorf("eventlog: no expected PCR values were given")
	}
	pcrs := make(PCRs)
	for index, value := range flat {
		pcr, err := strconv.Atoi(index)
		if err != nil || strconv.Itoa(pcr) != index || pcr < 0 || pcr >= pcrCount {
			return nil, fmt.Errorf("eventlog: expected PCR %.20q: want 0 to %d", index, pcrCount-1)
		}
		if pcrs[pcr], err = hex.DecodeString(strings.TrimPrefix(value, "0x")); err != nil {
			return nil, fmt.Errorf("eventlog: expected value of PCR %d: %w", pcr, err)
		}
	}
	return pcrs, nil
}
