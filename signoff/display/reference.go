package display

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/ima"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// adopt shows every value of the set, and which of them no set in force allows;
// then what the newest version in force allows and this one does not.
func (in Input) adopt(w *writer, a *signoff.ReferenceAdopt) {
	w.prose("set", fmt.Sprintf("%s version %d", safe(a.Name), a.Version))
	w.field("", "%s", a.Set)
	if in.Set == nil {
		w.field("", "UNKNOWN to this log")
		return
	}
	validity(w, in.Set)
	for _, pcr := range slices.Sorted(maps.Keys(in.Set.PCRs)) {
		name := fmt.Sprintf("PCR %d", pcr)
		for _, v := range in.Set.PCRs[pcr] {
			w.field(name, "%s", dsse.Digest(v))
			w.prose("", in.known(pcr, v))
			name = ""
		}
	}
	same := in.named(a.Name)
	var before *ima.Rules
	if len(same) > 0 {
		before = same[0].Set.IMA
	}
	files(w, in.Set.IMA, before)
	if len(same) > 0 {
		in.dropped(w, same[0].Set)
		for i, r := range same {
			word := "may count beside it"
			if i > 0 {
				word = "counts no longer once both newer ones have begun"
			}
			w.prose("replaces", fmt.Sprintf("version %d %s", r.Set.Version, word))
		}
	} else {
		w.field("replaces", "nothing: no set of that name is in force")
	}
	w.field("effect", "a machine that boots what the set describes may be given weights")
}

// known says where a value is allowed already.
func (in Input) known(pcr int, v attest.Digest) string {
	for _, r := range in.InForce {
		if slices.Contains(r.Set.PCRs[pcr], v) {
			return fmt.Sprintf("as in %s version %d", safe(r.Set.Name), r.Set.Version)
		}
	}
	return "NEW: no set in force allows it"
}

// named lists the sets in force of one name, newest first.
func (in Input) named(name string) []Reference {
	return slices.DeleteFunc(slices.Clone(in.InForce), func(r Reference) bool { return r.Set.Name != name })
}

// dropped shows what the set before asks for and this one does not.
func (in Input) dropped(w *writer, before *attest.ReferenceSet) {
	for _, pcr := range slices.Sorted(maps.Keys(before.PCRs)) {
		now, judged := in.Set.PCRs[pcr]
		if !judged {
			w.field("", "PCR %d is NO LONGER JUDGED; version %d judges it", pcr, before.Version)
			continue
		}
		for _, v := range before.PCRs[pcr] {
			if !slices.Contains(now, v) {
				w.field("no longer", "PCR %d %s", pcr, dsse.Digest(v))
			}
		}
	}
}

// files shows the rules for files: all that the version before did not say, and all
// that it did and this one does not.
func files(w *writer, now, before *ima.Rules) {
	switch {
	case now == nil && before == nil:
		w.field("files", "not judged")
		return
	case now == nil:
		w.field("files", "NO LONGER JUDGED")
		return
	}
	was := allowed(before)
	rules := allowed(now)
	w.field("files", "%d rules, %d of them in the version before", len(rules), common(rules, was))
	for _, r := range slices.SortedFunc(maps.Keys(rules), fileRule.compare) {
		if !was[r] {
			r.show(w, "")
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(was), fileRule.compare) {
		if !rules[r] {
			r.show(w, "no longer")
		}
	}
}

// A fileRule is a path with a digest, a digest under any path (""), a path that
// is not judged (no digest), or a path below which files count that a key signed.
type fileRule struct{ path, digest, key string }

func (r fileRule) compare(other fileRule) int {
	return cmp.Or(cmp.Compare(r.path, other.path), cmp.Compare(r.digest, other.digest), cmp.Compare(r.key, other.key))
}

func (r fileRule) show(w *writer, name string) {
	switch {
	case r.key != "":
		w.prose(name, "WHATEVER IS SIGNED below "+safe(r.path))
		w.field("", "by key %s", r.key)
		return
	case r.digest == "":
		w.prose(name, "NOT JUDGED "+safe(r.path))
		return
	case r.path == "":
		w.prose(name, "under any path")
	default:
		w.prose(name, safe(r.path))
	}
	const onOneLine = len("sha256:") + 64
	if len(r.digest) > onOneLine {
		w.prose("", safe(r.digest))
		return
	}
	w.field("", "%s", safe(r.digest))
}

func allowed(rules *ima.Rules) map[fileRule]bool {
	out := make(map[fileRule]bool)
	if rules == nil {
		return out
	}
	for path, digests := range rules.Files {
		for _, d := range digests {
			out[fileRule{path: path, digest: d}] = true
		}
	}
	for _, d := range rules.Digests {
		out[fileRule{digest: d}] = true
	}
	for _, s := range rules.Signed {
		for _, key := range s.Keys {
			out[fileRule{path: s.Below, key: dsse.Digest(sha256.Sum256(key)).String()}] = true
		}
	}
	for _, path := range rules.Ignore {
		out[fileRule{path: path}] = true
	}
	return out
}

func common(a, b map[fileRule]bool) int {
	n := 0
	for r := range a {
		if b[r] {
			n++
		}
	}
	return n
}

// withdraw shows the sets that would end, and what stays.
func (in Input) withdraw(w *writer, sets []dsse.Digest) {
	for _, id := range sets {
		w.field("ends set", "%s", id)
		i := slices.IndexFunc(in.InForce, func(r Reference) bool { return r.ID == id })
		if i < 0 {
			w.field("", "UNKNOWN to this log")
			continue
		}
		set := in.InForce[i].Set
		w.prose("", fmt.Sprintf("%s version %d", safe(set.Name), set.Version))
		validity(w, set)
		for _, pcr := range slices.Sorted(maps.Keys(set.PCRs)) {
			for _, v := range set.PCRs[pcr] {
				w.field("", "PCR %d %s", pcr, dsse.Digest(v))
			}
		}
	}
	name := "stays"
	for _, r := range in.InForce {
		if !slices.Contains(sets, r.ID) {
			w.prose(name, fmt.Sprintf("%s version %d", safe(r.Set.Name), r.Set.Version))
			name = ""
		}
	}
	if name != "" {
		w.field(name, "NOTHING: every machine loses its lease")
	}
	w.field("effect", "a machine that no set which stays describes loses its lease")
}

func validity(w *writer, set *attest.ReferenceSet) {
	w.field("", "from %s", when(set.NotBefore))
	w.field("", "to %s", when(set.NotAfter))
}
