package ceremony

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/hsm"
)

// checkObligations wants a step that proves what the purpose demands: that the
// way back works, before the ceremony ends and everybody leaves.
func (s *Script) checkObligations() error {
	for _, name := range s.With(Holder) {
		if !slices.ContainsFunc(s.Steps, func(t Step) bool { return t.Proves != "" && slices.Contains(t.By, name) }) {
			return fmt.Errorf("%s is a holder and signs no step that proves something", name)
		}
	}
	switch s.Purpose {
	case Genesis:
		if err := s.everyHolder("accepts the charter", Accept); err != nil {
			return err
		}
		return s.everyHolder("proves a second token or a share", ProveSpare, DrillShare)
	case NotaryKeys:
		if !slices.ContainsFunc(s.Steps, func(t Step) bool { return t.Proves != "" && t.Do == VerifyKeygen }) {
			return errors.New("no verify-keygen step proves that the notaries' key generation is complete")
		}
		return nil
	case Membership:
		if !slices.ContainsFunc(s.Steps, func(t Step) bool { return t.Proves != "" && t.Do == VerifyLog }) {
			return errors.New("no verify-log step proves what the log says after the change")
		}
		if s.Version > 1 && !s.Change.Notaries.empty() {
			if !slices.ContainsFunc(s.Steps, func(t Step) bool { return t.Proves != "" && t.Do == VerifyKeygen }) {
				return errors.New("no verify-keygen step proves that every notary of the new term has its share")
			}
			if s.Change.noPeople() && !s.fills("people") {
				return nil
			}
		}
		return s.everyHolder("proves a second token or a share", ProveSpare, DrillShare)
	case Drill:
		if slices.ContainsFunc(s.Steps, func(t Step) bool { return t.Proves != "" && t.Do == Position }) {
			return nil // of notaries, who are named in the position
		}
		return s.everyHolder("proves a share or a second token", DrillShare, ProveSpare)
	}
	return fmt.Errorf("purpose %.40q, want genesis, notary-keys, membership or drill", s.Purpose)
}

// fills reports whether a step makes a key for a slot of people or notaries.
func (s *Script) fills(of string) bool {
	return slices.ContainsFunc(s.Steps, func(t Step) bool { return strings.HasPrefix(t.Slot, of+" ") })
}

// everyHolder wants of each holder a step of one of the kinds that proves
// something, so that it cannot be waived.
func (s *Script) everyHolder(what string, do ...Kind) error {
	for _, name := range s.With(Holder) {
		if !slices.ContainsFunc(s.Steps, func(t Step) bool {
			return t.Person == name && slices.Contains(do, t.Do) && t.Proves != ""
		}) {
			return fmt.Errorf("no step in which %s %s: want one of %v for each holder, marked with proves so that it cannot be waived", name, what, do)
		}
	}
	return nil
}

// checkBonds is what version 2 of the script adds: every key that a step makes
// is one that a later step looks for, nobody watches themselves, and a spare is
// held to the key that it is said to have.
func (s *Script) checkBonds() error {
	for _, p := range s.People {
		if p.Is(Holder) && (p.Is(Witness) || p.Is(Master)) {
			return fmt.Errorf("%s is a holder, and master or witness too: nobody watches over their own keys", p.Name)
		}
	}
	last, charter, proof := -1, -1, -1
	for i := range s.Steps {
		t := &s.Steps[i]
		switch {
		case t.Do == MakeKey:
			if err := s.checkPlace(t); err != nil {
				return fmt.Errorf("step %s: %w", t.Name, err)
			}
			if t.Slot != "" {
				last = i
			}
		case t.Do == ProveSpare:
			if err := s.checkSpare(t, charter >= 0); err != nil {
				return fmt.Errorf("step %s: %w", t.Name, err)
			}
		case t.Do == WriteCharter || t.Do == VerifyCharter:
			charter = i
		case (t.Do == VerifyLog || t.Do == VerifyKeygen) && t.Proves != "":
			proof = i
		case t.Do == Position:
			if !slices.ContainsFunc(s.Steps[i:], func(t Step) bool { return t.Do == VerifyLog && t.Proves != "" }) {
				return fmt.Errorf("step %s: want a later verify-log, with proves, that finds the position in the log", t.Name)
			}
		}
	}
	switch {
	case s.Purpose == Genesis && charter < last:
		return fmt.Errorf("step %s makes a key after the charter, which has no place for it", s.Steps[last].Name)
	case s.Purpose != Genesis && proof < last:
		return fmt.Errorf("step %s makes a key, and no later verify-log or verify-keygen, with proves, looks for it in the log", s.Steps[last].Name)
	}
	return nil
}

// checkPlace wants a new key to have a place, or to be what the master or a
// witness signs with.
func (s *Script) checkPlace(t *Step) error {
	owner := slices.IndexFunc(s.People, func(p Person) bool { return p.Token == t.Token && p.Object == t.Object })
	if t.Slot == "" {
		if t.Key == hsm.KindSeal || owner >= 0 && !s.People[owner].Is(Holder) {
			return nil
		}
		return errors.New("a key without a slot: nothing would compare it with charter or log")
	}
	slot, _, err := ParseSlot(t.Slot)
	if err != nil {
		return err
	}
	if owner >= 0 && slot.Name != s.People[owner].Name {
		return fmt.Errorf("%s signs with this key, and slot %q is not theirs", s.People[owner].Name, t.Slot)
	}
	if slot.Of != "people" {
		return nil
	}
	if p, ok := s.Person(slot.Name); !ok || !p.Is(Holder) {
		return fmt.Errorf("%s gets a key and is no holder of the script", slot.Name)
	}
	return s.checkProved(t, slot)
}

// checkProved wants whoever gets a key to show that they have it: the first
// signing key signs records, that of a spare a challenge, and an exchange key is
// on the token of the signing key.
func (s *Script) checkProved(t *Step, slot Slot) error {
	p, _ := s.Person(slot.Name)
	switch spare := strings.HasPrefix(slot.Use, "spare-"); {
	case slot.Use == "signing" && (p.Token != t.Token || p.Object != t.Object):
		return fmt.Errorf("%s does not sign with the key that is made as %q", p.Name, t.Slot)
	case slot.Use == "spare-signing":
		_, at := s.Step(t.Name)
		if !slices.ContainsFunc(s.Steps[at:], func(x Step) bool {
			return x.Do == ProveSpare && x.Person == p.Name && x.Token == t.Token && x.Object == t.Object && x.Proves != ""
		}) {
			return fmt.Errorf("no later prove-spare, with proves, has %s sign with this key", p.Name)
		}
	case strings.HasSuffix(slot.Use, "exchange"):
		first := s.placed("people " + p.Name + " " + prefix(spare) + "signing")
		if first != nil && first.Token != t.Token {
			return fmt.Errorf("%s's signing key is made on %s, and the exchange key on %s: one token has both", p.Name, first.Token, t.Token)
		}
	}
	return nil
}

// placed is the step that makes the key of a slot, or nil.
func (s *Script) placed(slot string) *Step {
	i := slices.IndexFunc(s.Steps, func(t Step) bool { return t.Slot == slot })
	if i < 0 {
		return nil
	}
	return &s.Steps[i]
}

// checkSpare wants a spare's key to be known: from an earlier step, from a log,
// or in a genesis from the charter.
func (s *Script) checkSpare(t *Step, charter bool) error {
	made, known := s.makes(t.Token, t.Object), "people "+t.Person+" spare-signing"
	_, at := s.Step(t.Name)
	switch {
	case made != nil && made.Slot != known:
		return fmt.Errorf("step %s makes this key as %q, want %q", made.Name, made.Slot, known)
	case made != nil && t.Log != "":
		return fmt.Errorf("step %s makes this key, so no log has it: leave log out", made.Name)
	case made != nil:
		if _, m := s.Step(made.Name); m > at {
			return fmt.Errorf("step %s makes this key, and comes later", made.Name)
		}
	case s.Purpose == Genesis && !charter:
		return errors.New("no earlier step makes this key, and no charter was written or read that could have it")
	case s.Purpose == Genesis && t.Log != "":
		return errors.New("a genesis has no log")
	case s.Purpose != Genesis && t.Log == "":
		return errors.New("no earlier step makes this key: name the log that has it, a directory beside the script, as log")
	}
	return nil
}

// makes is the step that makes a key on a token, or nil.
func (s *Script) makes(token, object string) *Step {
	i := slices.IndexFunc(s.Steps, func(t Step) bool { return t.Do == MakeKey && t.Token == token && t.Object == object })
	if i < 0 {
		return nil
	}
	return &s.Steps[i]
}

// Waivable says why a step cannot be waived, by everybody together or anybody.
func (s *Script) Waivable(t *Step) error {
	switch {
	case t.Proves != "":
		return fmt.Errorf("this step proves that %s: it cannot be waived, only done again, or the ceremony aborted", t.Proves)
	case s.Version > 1 && (t.Slot != "" || t.Do == WriteCharter || t.Do == WriteChange):
		return fmt.Errorf("a later step compares what this %s makes: it cannot be waived, only done again, or the ceremony aborted", t.Do)
	}
	return nil
}

// Compares reports whether the log that the step reads has to hold what the
// ceremony made.
func (s *Script) Compares(step *Step) bool {
	_, at := s.Step(step.Name)
	last, write := -1, -1
	for i, t := range s.Steps {
		if t.Slot != "" {
			last = i
		}
		if t.Do == WriteChange {
			write = i
		}
	}
	if s.Purpose == Membership {
		reads := step.Do == VerifyLog || step.Do == VerifyKeygen && !s.Change.Notaries.empty()
		return reads && write >= 0 && at > write
	}
	return (step.Do == VerifyLog || step.Do == VerifyKeygen) && last >= 0 && at > last
}
