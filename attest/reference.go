package attest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
)

// generations is how many versions of one set count at a time: the one in force
// and the one before or after, so that a fleet can be updated node by node.
const generations = 2

// A ReferenceSet says which values people accept in PCRs of the sha256 bank. A
// node matches a set if every PCR that the set names has one of its values.
type ReferenceSet struct {
	Name      string           `json:"name"`      // what the set is for, such as "rack-a"
	Version   uint64           `json:"version"`   // from 1; of one name only the two highest current versions count
	NotBefore int64            `json:"notBefore"` // Unix seconds, inclusive
	NotAfter  int64            `json:"notAfter"`  // Unix seconds, inclusive
	PCRs      map[int][]Digest `json:"pcrs"`      // index to the values allowed
}

// ParseReferenceSet decodes a set strictly and validates it.
func ParseReferenceSet(data []byte) (*ReferenceSet, error) {
	var r ReferenceSet
	if err := json.Unmarshal(data, &r, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("attest: parse reference set: %w", err)
	}
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return &r, nil
}

// Marshal encodes a valid set so that equal sets give equal bytes.
func (r *ReferenceSet) Marshal() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(r, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("attest: encode reference set: %w", err)
	}
	return b, nil
}

// Validate refuses a set that says nothing, and one that accepts a PCR that was
// never extended: that is what a machine without measured boot shows.
func (r *ReferenceSet) Validate() error {
	if !printableASCII(r.Name) || strings.TrimSpace(r.Name) != r.Name {
		return fmt.Errorf("attest: reference set name %q is not printable ASCII of 1 to 128 characters", r.Name)
	}
	if err := r.validate(); err != nil {
		return fmt.Errorf("attest: reference set %q version %d: %w", r.Name, r.Version, err)
	}
	return nil
}

func (r *ReferenceSet) validate() error {
	if r.Version == 0 {
		return errors.New("versions count from 1")
	}
	if r.NotBefore <= 0 || r.NotAfter <= r.NotBefore {
		return fmt.Errorf("validity from %d to %d is not a span of time", r.NotBefore, r.NotAfter)
	}
	if len(r.PCRs) == 0 {
		return errors.New("it names no PCR")
	}
	for _, pcr := range slices.Sorted(maps.Keys(r.PCRs)) {
		values := r.PCRs[pcr]
		if pcr < 0 || pcr > maxPCR {
			return fmt.Errorf("PCR %d is not between 0 and %d", pcr, maxPCR)
		}
		if len(values) == 0 || len(values) > maxAlts {
			return fmt.Errorf("PCR %d has %d values, wanted 1 to %d", pcr, len(values), maxAlts)
		}
		if slices.Contains(values, Digest{}) {
			return fmt.Errorf("PCR %d may be all zeros: nothing would have been measured", pcr)
		}
	}
	return nil
}

// current reports whether the set is valid at the time given (Unix seconds).
func (r *ReferenceSet) current(now int64) bool {
	return now > 0 && r.NotBefore <= now && now <= r.NotAfter
}

// Current returns the sets that count at the time given (Unix seconds): valid,
// and one of the two highest versions of their name. Newest first by name.
func Current(sets []*ReferenceSet, now int64) []*ReferenceSet {
	var live []*ReferenceSet
	for _, r := range sets {
		if r != nil && r.Validate() == nil && r.current(now) {
			live = append(live, r)
		}
	}
	slices.SortStableFunc(live, func(a, b *ReferenceSet) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return cmp.Compare(b.Version, a.Version)
	})
	var kept []*ReferenceSet
	for i, r := range live {
		if i < generations || live[i-generations].Name != r.Name {
			kept = append(kept, r)
		}
	}
	return kept
}

// Selection returns the PCRs that a node must quote: 0 to 7, those that policy
// adds, and those that the current sets name. Ascending.
func Selection(sets []*ReferenceSet, policy []int, now int64) []int {
	pcrs := []int{0, 1, 2, 3, 4, 5, 6, 7}
	pcrs = append(pcrs, policy...)
	for _, r := range Current(sets, now) {
		pcrs = slices.AppendSeq(pcrs, maps.Keys(r.PCRs))
	}
	slices.Sort(pcrs)
	return slices.Compact(pcrs)
}

// mismatch returns the lowest PCR that the set does not accept, and false if it
// accepts all that it names. A PCR without a value is not accepted.
func (r *ReferenceSet) mismatch(pcrs map[int]Digest) (int, bool) {
	for _, pcr := range slices.Sorted(maps.Keys(r.PCRs)) {
		value, measured := pcrs[pcr]
		if !measured || !slices.Contains(r.PCRs[pcr], value) {
			return pcr, true
		}
	}
	return 0, false
}
