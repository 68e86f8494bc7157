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
	"github.com/go-json-experiment/json/jsontext"
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

// DecodePCRs reads expected values: {"0":"hex"}, or an object that holds such an
// object as the member named as the bank, as one of names, or "pcrs", as a [Summary]
// does; a Summary of another bank is refused. It refuses duplicate members, indices
// and hex that are not well-formed, and no values at all.
func DecodePCRs(data []byte, bankName string, names ...string) (PCRs, error) {
	members := make(map[string]jsontext.Value)
	if err := json.Unmarshal(data, &members); err != nil {
		return nil, fmt.Errorf("eventlog: expected PCRs are not {\"0\":\"hex\"}: %w", err)
	}
	var bank string
	if value, told := members["bank"]; told && (json.Unmarshal(value, &bank) != nil || bank != bankName) {
		return nil, fmt.Errorf("eventlog: the expected PCRs are of bank %.20s, not %q", value, bankName)
	}
	for _, name := range append([]string{bankName, "pcrs"}, names...) {
		if value, found := members[name]; found && value.Kind() == '{' {
			return decodeFlat(value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if members[name].Kind() == '{' {
			return nil, fmt.Errorf("eventlog: the expected PCRs have no bank %q; they have %.40q", bankName, name)
		}
	}
	return decodeFlat(data)
}

// decodeFlat reads {"0":"hex"}.
func decodeFlat(data []byte) (PCRs, error) {
	flat := make(map[string]string)
	if err := json.Unmarshal(data, &flat); err != nil {
		return nil, fmt.Errorf("eventlog: expected PCRs are not {\"0\":\"hex\"}: %w", err)
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
