package authority

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
)

// maxSet bounds the bytes of a reference set: everyone folds and keeps it.
const maxSet = 4 << 20

// maxAdoptions bounds the open requests of one person to adopt a set, which
// everybody keeps until they end.
const maxAdoptions = 4

// maxConsulted bounds the sets that an appraisal looks at, ended ones included,
// from which a verdict may say that the boot was good once.
const maxConsulted = 64

// A Reference is a reference set that people put into force, with the charter or
// by a warrant. It stays known after it was withdrawn: no version is given twice.
type Reference struct {
	ID        Digest               `json:"id"` // SHA-256 of the set's bytes
	Name      string               `json:"name"`
	Version   uint64               `json:"version"`
	Index     uint64               `json:"index"`     // of the entry that put it into force
	Adopted   Digest               `json:"adopted"`   // request; zero for the charter's
	Withdrawn Digest               `json:"withdrawn"` // request; zero for none
	Set       *attest.ReferenceSet `json:"-"`         // withdrawing ends its validity
}

// putReference records what the entry at index makes of a set.
func putReference(r *Reference, index uint64) change {
	return change{key: "reference/" + r.ID.Hex(), value: r, put: func(s *State) { s.setReferences(r); s.referenced = index }}
}

// setReferences puts records into the state and works out what follows from them.
func (s *State) setReferences(refs ...*Reference) {
	s.References = maps.Clone(s.References)
	for _, r := range refs {
		s.References[r.ID] = r
	}
	all := s.AllReferences()
	newest := newest(all, s.Time)
	s.inForce, s.consulted = inForce(newest, s.Time), nil
	live := make(map[string]bool)
	for _, r := range s.inForce {
		live[r.Name] = true
	}
	// Those in force first, then those that ended and keep older ones out, then
	// what only explains refusals.
	rank := func(r *Reference) int {
		switch {
		case slices.Contains(s.inForce, r):
			return 0
		case live[r.Name] && slices.Contains(newest, r):
			return 1
		}
		return 2
	}
	slices.SortStableFunc(all, func(a, b *Reference) int { return cmp.Compare(rank(a), rank(b)) })
	for _, r := range all[:min(len(all), maxConsulted)] {
		s.consulted = append(s.consulted, r.Set)
	}
}

// newest leaves out the sets that two newer ones have replaced.
func newest(all []*Reference, now int64) []*Reference {
	var sets []*attest.ReferenceSet
	for _, r := range all {
		sets = append(sets, r.Set)
	}
	sets = attest.Newest(sets, now)
	return slices.DeleteFunc(slices.Clone(all), func(r *Reference) bool { return !slices.Contains(sets, r.Set) })
}

// inForce leaves out the sets that ended.
func inForce(newest []*Reference, now int64) []*Reference {
	return slices.DeleteFunc(slices.Clone(newest), func(r *Reference) bool { return !r.Withdrawn.IsZero() || r.Set.NotAfter < now })
}

// AllReferences lists every reference set that was ever in force, by name, newest
// first.
func (s *State) AllReferences() []*Reference {
	return slices.SortedFunc(maps.Values(s.References), func(a, b *Reference) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return cmp.Compare(b.Version, a.Version)
	})
}

// ReferencesInForce lists the reference sets that were adopted and neither ended,
// withdrawn nor replaced when the last was adopted or withdrawn, by name, newest
// first. Which of them count at a time is [attest.Current]'s to say. The caller
// must not change it.
func (s *State) ReferencesInForce() []*Reference { return s.inForce }

// ReferenceSets are what nodes are judged by, ended sets included. The caller must
// not change it.
func (s *State) ReferenceSets() []*attest.ReferenceSet { return s.consulted }

// charterReferences reads the sets that a charter begins with.
func charterReferences(texts []string) ([]*Reference, error) {
	var out []*Reference
	for _, text := range texts {
		set, err := attest.ParseReferenceSet([]byte(text))
		if err != nil {
			return nil, err
		}
		for _, other := range out {
			if other.Name == set.Name && other.Version == set.Version {
				return nil, fmt.Errorf("the charter has two reference sets %s version %d", set.Name, set.Version)
			}
		}
		out = append(out, &Reference{ID: sha256.Sum256([]byte(text)), Name: set.Name, Version: set.Version, Set: set})
	}
	return out, nil
}

// referenceSet reads the set that a request would adopt.
func (d decision) referenceSet(a *signoff.ReferenceAdopt) (*attest.ReferenceSet, error) {
	blob, err := d.blob(a.Set)
	if err != nil {
		return nil, err
	}
	if len(blob) > maxSet {
		return nil, fmt.Errorf("a reference set of %d bytes, at most %d", len(blob), maxSet)
	}
	set, err := attest.ParseReferenceSet(blob)
	if err != nil {
		return nil, err
	}
	if set.Name != a.Name || set.Version != a.Version {
		return nil, fmt.Errorf("the set is %s version %d, the request names %.80q version %d", set.Name, set.Version, a.Name, a.Version)
	}
	if set.NotAfter <= d.state.Time {
		return nil, fmt.Errorf("reference set %s version %d ended at %d, it is %d", set.Name, set.Version, set.NotAfter, d.state.Time)
	}
	return set, nil
}

// fewAdoptions refuses a person who has asked for many sets already.
func (s *State) fewAdoptions(requester Digest) error {
	n := 0
	for _, r := range s.Requests {
		if r.Doc.Adopt != nil && r.Ended == "" && r.Doc.Requester == requester {
			n++
		}
	}
	if n >= maxAdoptions {
		return fmt.Errorf("%d requests of this person to adopt a reference set are open, at most %d may be; withdraw one", n, maxAdoptions)
	}
	return nil
}

// setOf is the set that the request would adopt, or has; nil for one that ended
// without.
func (s *State) setOf(r *Request) *attest.ReferenceSet {
	if r.Doc.Adopt == nil || r.Set != nil {
		return r.Set
	}
	if ref, ok := s.References[r.Doc.Adopt.Set]; ok {
		return ref.Set
	}
	return nil
}

// adoptable refuses what would bring an old version back, and too many sets.
func (s *State) adoptable(a *signoff.ReferenceAdopt) error {
	for _, have := range s.AllReferences() { // newest first
		if have.Name == a.Name && have.Version >= a.Version {
			return fmt.Errorf("version %d of reference set %s was adopted at entry %d; what follows it has a higher version, whatever it allows", have.Version, have.Name, have.Index)
		}
	}
	if _, again := s.References[a.Set]; again {
		return fmt.Errorf("reference set %s was adopted before", a.Set)
	}
	if n := len(inForce(newest(s.AllReferences(), s.Time), s.Time)); n >= signoff.MaxReferences {
		return fmt.Errorf("%d reference sets are in force, at most %d; withdraw some first", n, signoff.MaxReferences)
	}
	return nil
}

// withdrawable wants sets in force.
func (s *State) withdrawable(sets []Digest) error {
	for _, id := range sets {
		if !slices.ContainsFunc(s.inForce, func(r *Reference) bool { return r.ID == id }) {
			return fmt.Errorf("%s is not a reference set in force", id)
		}
	}
	return nil
}

// withdrawals end what withdrawable has found in force. A set that ended goes on
// keeping out the versions that it replaced.
func (d decision) withdrawals(request Digest, sets []Digest) []change {
	var out []change
	for _, id := range sets {
		r := *d.state.References[id]
		r.Withdrawn, r.Set = request, endedBefore(r.Set, d.state.Time)
		out = append(out, putReference(&r, d.index))
	}
	return out
}

// endedBefore returns the set as if it had ended before the time given. It stays a
// valid one that had begun, if it had, and never is one otherwise.
func endedBefore(set *attest.ReferenceSet, now int64) *attest.ReferenceSet {
	ended := *set
	ended.NotAfter = min(set.NotAfter, now-1)
	if set.NotBefore <= now {
		ended.NotBefore = min(set.NotBefore, ended.NotAfter-1)
	}
	return &ended
}
