package attest

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func aSet() *ReferenceSet {
	return &ReferenceSet{Name: "rack-a", Version: 1, NotBefore: 10, NotAfter: 20, PCRs: map[int][]Digest{4: {{1}, {2}}, 11: {{3}}}}
}

func TestReferenceSetRoundTrip(t *testing.T) {
	b, err := aSet().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseReferenceSet(b)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Marshal(); err != nil || !bytes.Equal(again, b) {
		t.Errorf("%s, then %s: %v", b, again, err)
	}
	for name, text := range map[string]string{
		"unknown member":   `{"extra":1,` + string(b[1:]),
		"duplicate member": `{"name":"x",` + string(b[1:]),
		"folded case":      string(bytes.Replace(b, []byte(`"pcrs"`), []byte(`"PCRs"`), 1)),
		"bare hex":         string(bytes.Replace(b, []byte(`sha256:`), nil, 1)),
		"empty":            `{}`,
		"nothing":          ``,
		"behind":           string(b) + "x",
	} {
		if _, err := ParseReferenceSet([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestReferenceSetRefusals(t *testing.T) {
	for name, change := range map[string]func(*ReferenceSet){
		"no name":          func(r *ReferenceSet) { r.Name = "" },
		"control in name":  func(r *ReferenceSet) { r.Name = "a\x1b[2J" },
		"padded name":      func(r *ReferenceSet) { r.Name = " a" },
		"version 0":        func(r *ReferenceSet) { r.Version = 0 },
		"no validity":      func(r *ReferenceSet) { r.NotBefore, r.NotAfter = 0, 0 },
		"backward":         func(r *ReferenceSet) { r.NotAfter = r.NotBefore },
		"no pcrs":          func(r *ReferenceSet) { r.PCRs = nil },
		"no values":        func(r *ReferenceSet) { r.PCRs[4] = nil },
		"zero value":       func(r *ReferenceSet) { r.PCRs[4] = []Digest{{1}, {}} },
		"zero, resettable": func(r *ReferenceSet) { r.PCRs[16] = []Digest{{}} },
		"pcr out of range": func(r *ReferenceSet) { r.PCRs[24] = []Digest{{1}} },
		"pcr negative":     func(r *ReferenceSet) { r.PCRs[-1] = []Digest{{1}} },
	} {
		r := aSet()
		change(r)
		if r.Validate() == nil {
			t.Errorf("%s: valid", name)
		}
		if len(Current([]*ReferenceSet{r}, 15)) != 0 {
			t.Errorf("%s: counts", name)
		}
	}
}

// Whatever sets there are, those that count are valid, current, and at most two
// of a name, none of them older than one left out.
func TestCurrentProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sets []*ReferenceSet
		for range rapid.IntRange(0, 12).Draw(t, "sets") {
			r := aSet()
			r.Name = rapid.SampledFrom([]string{"a", "b", ""}).Draw(t, "name")
			r.Version = rapid.Uint64Range(0, 5).Draw(t, "version")
			r.NotBefore = rapid.Int64Range(0, 20).Draw(t, "from")
			r.NotAfter = rapid.Int64Range(0, 20).Draw(t, "to")
			sets = append(sets, r)
		}
		now := rapid.Int64Range(-1, 21).Draw(t, "now")
		kept := Current(sets, now)
		count := map[string]int{}
		for _, r := range kept {
			if r.Validate() != nil || now < r.NotBefore || now > r.NotAfter {
				t.Fatalf("%+v counts at %d", r, now)
			}
			if count[r.Name]++; count[r.Name] > generations {
				t.Fatalf("%d versions of %s count", count[r.Name], r.Name)
			}
		}
		for _, k := range kept {
			newer := 0
			for _, r := range sets {
				if r.Validate() == nil && r.begun(now) && r.Name == k.Name && r.Version > k.Version {
					newer++
				}
			}
			if newer >= generations {
				t.Fatalf("version %d counts, which %d newer ones replaced", k.Version, newer)
			}
		}
	})
}

// Two generations overlap; the end of the newest does not bring back the third.
func TestGenerations(t *testing.T) {
	version := func(v uint64, from, to int64) *ReferenceSet {
		r := aSet()
		r.Version, r.NotBefore, r.NotAfter = v, from, to
		return r
	}
	sets := []*ReferenceSet{version(1, 10, 100), version(2, 20, 100), version(3, 30, 40)}
	for now, want := range map[int64][]uint64{9: nil, 10: {1}, 20: {2, 1}, 29: {2, 1}, 30: {3, 2}, 40: {3, 2}, 41: {2}, 100: {2}, 101: nil} {
		var got []uint64
		for _, r := range Current(sets, now) {
			got = append(got, r.Version)
		}
		if !slices.Equal(got, want) {
			t.Errorf("at %d versions %v count, want %v", now, got, want)
		}
	}
	pcrs := map[int]Digest{}
	for pcr, values := range sets[0].PCRs {
		pcrs[pcr] = values[0]
	}
	sets[0].PCRs[4], sets[1].PCRs[4] = []Digest{{8}}, []Digest{{9}}
	for value, reason := range map[byte]string{8: "rack-a version 1, which no longer counts", 9: "", 7: "version 2 does not allow"} {
		pcrs[4] = Digest{value}
		v := Verdict{PCRs: pcrs}
		no := v.consult(nil, NewReferences(sets, 41))
		if reason == "" && no == nil {
			continue
		}
		if no == nil || !strings.Contains(no.err.Error(), reason) || value == 7 && strings.Contains(no.err.Error(), "no longer counts") {
			t.Errorf("PCR 4 of %d: %v", value, no)
		}
	}
}

func TestSelection(t *testing.T) {
	if got := Selection([]*ReferenceSet{aSet()}, []int{14, 4}, 15); !slices.Equal(got, []int{0, 1, 2, 3, 4, 5, 6, 7, 11, 14}) {
		t.Errorf("selection %v", got)
	}
	if got := Selection([]*ReferenceSet{aSet()}, nil, 21); len(got) != 8 {
		t.Errorf("selection after the set ran out %v", got)
	}
}

// What nothing may be added to is all zeros, and one extend is refused.
func TestReferenceSetWantsNothingMeasured(t *testing.T) {
	r := aSet()
	r.PCRs[12] = []Digest{{}}
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	pcrs := map[int]Digest{12: {}}
	for pcr, values := range r.PCRs {
		pcrs[pcr] = values[0]
	}
	if d := r.Differs(pcrs); d != nil {
		t.Fatalf("PCR %d differs", d)
	}
	pcrs[12] = Digest{1}
	if d := r.Differs(pcrs); !slices.Equal(d, []int{12}) {
		t.Fatalf("an extended PCR 12 was accepted: %d differ", d)
	}
	delete(pcrs, 12)
	if d := r.Differs(pcrs); !slices.Equal(d, []int{12}) {
		t.Fatalf("a PCR 12 that was not quoted was accepted: %d differ", d)
	}
}
