package attest

import (
	"bytes"
	"slices"
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
		for _, r := range sets {
			if r.Validate() != nil || !r.current(now) || slices.Contains(kept, r) {
				continue
			}
			for _, k := range kept {
				if k.Name == r.Name && k.Version < r.Version {
					t.Fatalf("version %d counts and %d does not", k.Version, r.Version)
				}
			}
		}
	})
}

func TestSelection(t *testing.T) {
	if got := Selection([]*ReferenceSet{aSet()}, []int{14, 4}, 15); !slices.Equal(got, []int{0, 1, 2, 3, 4, 5, 6, 7, 11, 14}) {
		t.Errorf("selection %v", got)
	}
	if got := Selection([]*ReferenceSet{aSet()}, nil, 21); len(got) != 8 {
		t.Errorf("selection after the set ran out %v", got)
	}
}
