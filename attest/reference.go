package attest

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"

	"github.com/keyturn/keyturn/attest/ima"
)

// generations is how many versions of one set count at a time: the newest and the
// one before, so that a fleet can be updated node by node.
const generations = 2

// A ReferenceSet says which values people accept in PCRs of the sha256 bank, and
// which files a kernel may use. A node matches a set if every PCR that the set
// names has one of its values and, if the set has rules for files, all that the
// kernel measured is allowed by them. PCR 10 grows while a machine runs and has no
// value to name: only rules judge it, and a set without rules passes over it.
type ReferenceSet struct {
	Name      string           `json:"name"`      // what the set is for, such as "rack-a"
	Version   uint64           `json:"version"`   // from 1; of one name only the two highest that have begun count
	NotBefore int64            `json:"notBefore"` // Unix seconds, inclusive
	NotAfter  int64            `json:"notAfter"`  // Unix seconds, inclusive
	PCRs      map[int][]Digest `json:"pcrs"`      // index to the values allowed
	IMA       *ima.Rules       `json:"ima,omitempty"`
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

// Validate refuses a set that says nothing, and one that accepts a PCR of the
// firmware that was never extended: that is what a machine without measured boot
// shows. In PCR 8 to 15 zeros say that nothing was added to what was booted. PCR 16
// and 23 are refused: any program can give them any value; so are 8 to 15 alone, as
// they say what a system measured and not which one was started.
func (r *ReferenceSet) Validate() error {
	err := r.sound()
	if err == nil && r.IMA != nil {
		_, err = ima.NewJudge(*r.IMA)
	}
	if err != nil {
		return fmt.Errorf("attest: reference set %q version %d: %w", r.Name, r.Version, err)
	}
	return nil
}

// resettable are the PCRs that any locality can reset, for debugging and for
// applications (PC Client platform TPM profile, table 5).
var resettable = []int{16, 23}

// sound is Validate without the rules for files, of which there may be many: they
// are compiled where a node is judged by them.
func (r *ReferenceSet) sound() error {
	if !printableASCII(r.Name) || strings.TrimSpace(r.Name) != r.Name {
		return errors.New("the name is not printable ASCII of 1 to 128 characters")
	}
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
		if pcr == pcrIMA {
			return fmt.Errorf("PCR %d grows while a machine runs and has no value to name; judge it by rules (\"ima\")", pcr)
		}
		if slices.Contains(resettable, pcr) {
			return fmt.Errorf("PCR %d proves nothing: whoever runs on the machine can reset it and extend it with these values", pcr)
		}
		if len(values) == 0 || len(values) > maxAlts {
			return fmt.Errorf("PCR %d has %d values, wanted 1 to %d", pcr, len(values), maxAlts)
		}
		if (pcr < 8 || pcr > 15) && slices.Contains(values, Digest{}) {
			return fmt.Errorf("PCR %d may be all zeros: nothing would have been measured", pcr)
		}
	}
	if pcrs := slices.Sorted(maps.Keys(r.PCRs)); pcrs[0] >= 8 && pcrs[len(pcrs)-1] <= 15 {
		return fmt.Errorf("it names PCR %v alone, which any system that was started can extend with these values; name PCR 4 or another of 0 to 7 as well", pcrs)
	}
	return nil
}

// begun reports whether the set's validity had begun at the time given (Unix
// seconds).
func (r *ReferenceSet) begun(now int64) bool { return now > 0 && r.NotBefore <= now }

// Newest returns, of each name, the versions that can count at the time given or
// later: the two highest that have begun, and those that have not. One that ended
// still keeps older ones out, so that no end brings back what was replaced. By
// name, newest first.
func Newest(sets []*ReferenceSet, now int64) []*ReferenceSet {
	valid := slices.DeleteFunc(slices.Clone(sets), func(r *ReferenceSet) bool { return r == nil || r.sound() != nil })
	slices.SortStableFunc(valid, func(a, b *ReferenceSet) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return cmp.Compare(b.Version, a.Version)
	})
	begun := make(map[string]int)
	return slices.DeleteFunc(valid, func(r *ReferenceSet) bool {
		if r.begun(now) {
			begun[r.Name]++
		}
		return begun[r.Name] > generations
	})
}

// Current returns the sets that count at the time given (Unix seconds): of each
// name the two highest versions that have begun, while they are valid. Newest
// first by name.
func Current(sets []*ReferenceSet, now int64) []*ReferenceSet {
	return slices.DeleteFunc(Newest(sets, now), func(r *ReferenceSet) bool { return !r.begun(now) || now > r.NotAfter })
}

// References are the sets that count at one time, made ready for many appraisals,
// and those that counted once, to explain a refusal.
type References struct{ sets, ended []reference }

type reference struct {
	*ReferenceSet
	pcrs  []int            // that it judges, ascending
	files func() fileRules // nil: PCR 10 is passed over
}

// fileRules are a set's rules for files, compiled when they are asked for first.
type fileRules struct {
	judge  *ima.Judge
	digest Digest
	err    error // nothing passes
}

func compileRules(r ima.Rules) (c fileRules) {
	text, err := json.Marshal(r, json.Deterministic(true))
	if err == nil {
		c.digest = sha256.Sum256(text)
		c.judge, err = ima.NewJudge(r)
	}
	c.err = err
	return c
}

// NewReferences takes the sets that count at the time given (Unix seconds).
func NewReferences(sets []*ReferenceSet, now int64) *References {
	refs := &References{}
	current := Current(sets, now)
	for _, r := range sets {
		if r != nil && r.sound() == nil && r.begun(now) && !slices.Contains(current, r) {
			refs.ended = append(refs.ended, reference{ReferenceSet: r, pcrs: slices.Sorted(maps.Keys(r.PCRs))})
		}
	}
	for _, r := range current {
		c := reference{ReferenceSet: r, pcrs: slices.Sorted(maps.Keys(r.PCRs))}
		if r.IMA != nil {
			c.files = sync.OnceValue(func() fileRules { return compileRules(*r.IMA) })
		}
		refs.sets = append(refs.sets, c)
	}
	return refs
}

// Selection returns the PCRs that a node must quote: 0 to 7, those that policy
// adds, those that the sets name, and, if one of them has rules for files, 10 with
// what the kernel's boot_aggregate is of, 8 and 9. Ascending.
func (refs *References) Selection(policy []int) []int {
	pcrs := []int{0, 1, 2, 3, 4, 5, 6, 7}
	pcrs = append(pcrs, policy...)
	for _, r := range refs.sets {
		pcrs = append(pcrs, r.pcrs...)
		if r.files != nil {
			pcrs = append(pcrs, 8, 9, pcrIMA)
		}
	}
	slices.Sort(pcrs)
	return slices.Compact(pcrs)
}

// WantIMA reports whether one of the sets has rules for files, and whether what
// was proved before may be left out of the list that is sent now: the rules that
// allowed it are still there. Before is nil if nothing was proved in this boot.
func (refs *References) WantIMA(before *Measured) (list, onlyNew bool) {
	for _, r := range refs.sets {
		list = list || r.files != nil
		onlyNew = onlyNew || r.files != nil && before != nil && r.files().digest == before.Rules
	}
	return list, onlyNew
}

// Selection is [References.Selection] of the sets that count at the time given
// (Unix seconds).
func Selection(sets []*ReferenceSet, policy []int, now int64) []int {
	return NewReferences(sets, now).Selection(policy)
}

// Differs returns the PCRs that the set names and does not accept, ascending. A
// PCR without a value is not accepted.
func (r *ReferenceSet) Differs(pcrs map[int]Digest) []int {
	return reference{ReferenceSet: r, pcrs: slices.Sorted(maps.Keys(r.PCRs))}.differs(pcrs)
}

func (r reference) differs(pcrs map[int]Digest) (out []int) {
	for _, pcr := range r.pcrs {
		value, measured := pcrs[pcr]
		if !measured || !slices.Contains(r.PCRs[pcr], value) {
			out = append(out, pcr)
		}
	}
	return out
}
