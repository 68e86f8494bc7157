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
// does; a Summary of another bank is refused. It reads what tpm2_pcrread prints as
// well: the bank and a colon, then lines "0 : 0xhex". It refuses duplicates, indices
// and hex that are not well-formed, and no values at all.
func DecodePCRs(data []byte, bankName string, names ...string) (PCRs, error) {
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] != '{' {
		return decodeListing(trimmed, bankName)
	}
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
		if err := pcrs.decode(index, value); err != nil {
			return nil, err
		}
	}
	return pcrs, nil
}

// decode adds the value of one PCR in hex.
func (p PCRs) decode(index, value string) error {
	pcr, err := strconv.Atoi(index)
	if err != nil || strconv.Itoa(pcr) != index || pcr < 0 || pcr >= pcrCount {
		return fmt.Errorf("eventlog: expected PCR %.20q: want 0 to %d", index, pcrCount-1)
	}
	if _, told := p[pcr]; told {
		return fmt.Errorf("eventlog: expected value of PCR %d is told twice", pcr)
	}
	if p[pcr], err = hex.DecodeString(strings.TrimPrefix(value, "0x")); err != nil {
		return fmt.Errorf("eventlog: expected value of PCR %d: %w", pcr, err)
	}
	return nil
}

// decodeListing reads the bank's part of what tpm2_pcrread prints.
func decodeListing(data []byte, bankName string) (PCRs, error) {
	pcrs, bank, n := make(PCRs), "", 0
	for line := range strings.Lines(string(data)) {
		n++
		left, right, found := strings.Cut(line, ":")
		left, right = strings.TrimSpace(left), strings.TrimSpace(right)
		switch {
		case !found && left != "":
			return nil, fmt.Errorf("eventlog: expected PCRs, line %d: %.40q is neither JSON nor what tpm2_pcrread prints", n, left)
		case found && right == "":
			bank = left
		case found && bank == bankName:
			if err := pcrs.decode(left, right); err != nil {
				return nil, err
			}
		}
	}
	if len(pcrs) == 0 {
		return nil, fmt.Errorf("eventlog: the expected PCRs have no bank %q", bankName)
	}
	return pcrs, nil
}
