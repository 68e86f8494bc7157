package authority

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
)

// A member that got a wrong sub-share can show it to nobody: HPKE proves nothing
// about what it opened to. So it accuses, and the dealer publishes that one
// sub-share, which everybody checks against the dealer's commitments. A wrong
// one, or none in time, names the dealer; a right one serves the accuser, and
// says nothing about who lied.

// A Dispute is a member's word against a dealer in the attempt under way.
type Dispute struct {
	Accuser Digest   `json:"accuser"`
	Dealer  Digest   `json:"dealer"`
	Index   uint64   `json:"index"`  // of the accusation
	Round   uint64   `json:"round"`  // of ticks, the first that began after it
	Since   int64    `json:"since"`  // the time that this round told; 0 before
	Answer  uint64   `json:"answer"` // index of the answer, which is right; 0 before
	Share   [32]byte `json:"-"`      // the sub-share that was answered
}

// Open reports whether the dealer has still to answer.
func (x Dispute) Open() bool { return x.Answer == 0 }

// Why accusations ended an attempt. The first two disqualify the dealers named:
// a wrong answer is a proof for everybody, silence one for whoever believes that
// an answer would have got into the log. The others name all who were in it: some
// of them are at fault if no more notaries are hostile than the councils allow.
const (
	WrongAnswer  = "a wrong answer"
	NoAnswer     = "no answer in time"
	ManyAccusers = "more accusers than may lie"
	ManyAccused  = "more accused than may cheat"
)

// An Abort is an attempt at making shares that ended by accusations, with all
// that are named and the entries that show it.
type Abort struct {
	Term     uint32   `json:"term"`
	Attempt  uint32   `json:"attempt"`
	Reason   string   `json:"reason"`
	Dealers  []Digest `json:"dealers"`
	Accusers []Digest `json:"accusers"`
	Entries  []uint64 `json:"entries"` // accusations, then the answer or the tick that ended the wait
}

// Disqualified reports whether the dealers failed to answer, rather than that
// it is open who is at fault.
func (a *Abort) Disqualified() bool { return a.Reason == WrongAnswer || a.Reason == NoAnswer }

// answerTime is how long, in fold time, a dealer has to answer an accusation.
// It counts from the first round of ticks that began after it, since before a
// key generation ends the time that the fold knows may be old.
const answerTime = 300

// Disputed reports whether an answer is waited for.
func (k *Keygen) Disputed() bool { return !k.Done && slices.ContainsFunc(k.Disputes, Dispute.Open) }

// WantsTime reports whether the time to answer has still to begin.
func (k *Keygen) WantsTime() bool {
	return !k.Done && slices.ContainsFunc(k.Disputes, func(x Dispute) bool { return x.Open() && x.Since == 0 })
}

// accusation makes the accused answer, each to f members at most: more accusers
// than that are not all liars. As many published sub-shares, with those of f
// hostile members, are 2f < q, too few to give a dealer's polynomial away.
func (d decision) accusation(t *signoff.Transcript) ([]change, error) {
	s, k := d.state, d.state.Keygen.copy()
	if slices.ContainsFunc(k.Disputes, func(x Dispute) bool { return x.Accuser == t.Notary }) {
		return nil, errors.New("this notary has already accused")
	}
	for _, id := range t.Accused {
		if !s.Dealing(id) {
			return nil, fmt.Errorf("accuses %s, who dealt nothing", id)
		}
		k.Disputes = append(k.Disputes, Dispute{Accuser: t.Notary, Dealer: id, Index: d.index, Round: s.Ticks.Round + 1})
	}
	against := func(ids ...Digest) []Dispute {
		return slices.DeleteFunc(slices.Clone(k.Disputes), func(x Dispute) bool { return !contains(ids, x.Dealer) })
	}
	if len(t.Accused) > s.Council().Faults {
		return d.abort(ManyAccused, k.Disputes[len(k.Disputes)-len(t.Accused):], nil, s.Time), nil
	}
	var crowded []Digest
	for _, id := range t.Accused {
		if len(against(id)) > k.Members.Faults {
			crowded = append(crowded, id)
		}
	}
	if len(crowded) > 0 {
		return d.abort(ManyAccusers, against(crowded...), crowded, s.Time), nil
	}
	return []change{putKeygen(k)}, nil
}

// answer holds an accused dealer to its commitments. A wrong answer takes
// effect: it is the proof.
func (d decision) answer(a *signoff.DealerAnswer) ([]change, error) {
	s := d.state
	if err := d.dealerOpen(a.Term, a.Attempt, a.Notary); err != nil {
		return nil, err
	}
	if want := s.Keygen.Digest(s.ID); a.Digest != want {
		return nil, fmt.Errorf("answer about transcript %s, this log gives %s: the notary saw other messages", a.Digest, want)
	}
	k := s.Keygen.copy()
	i := slices.IndexFunc(k.Disputes, func(x Dispute) bool { return x.Dealer == a.Notary && x.Accuser == a.Accuser && x.Open() })
	if i < 0 {
		return nil, fmt.Errorf("no accusation by %s waits for this notary's answer", a.Accuser)
	}
	err := s.judgeAnswer(a)
	if cheat := (*frost.CheatError)(nil); errors.As(err, &cheat) {
		return d.abort(WrongAnswer, k.Disputes[i:i+1], []Digest{a.Notary}, s.Time), nil
	}
	if err != nil {
		return nil, err
	}
	k.Disputes[i].Answer, k.Disputes[i].Share = d.index, [32]byte(a.Share)
	return []change{putKeygen(k)}, nil
}

func (s *State) judgeAnswer(a *signoff.DealerAnswer) error {
	ceremony, err := s.Ceremony()
	if err != nil {
		return err
	}
	_, from, _ := s.Notary(a.Notary)
	_, to, _ := s.Keygen.Members.Find(a.Accuser)
	return ceremony.VerifySubshare(from, to, round1(s.Keygen.Commitments[a.Notary]), [32]byte(a.Share))
}

// disputesTicked starts the dealers' time with a round of ticks that was
// complete, or ends it.
func (d decision) disputesTicked(round uint64, now int64) []change {
	k := d.state.Keygen.copy()
	if !k.Disputed() {
		return nil
	}
	var overdue []Dispute
	var silent []Digest
	for i, x := range k.Disputes {
		switch {
		case !x.Open():
		case x.Since == 0 && round >= x.Round:
			k.Disputes[i].Since = now
		case x.Since > 0 && now-x.Since > answerTime:
			overdue = append(overdue, x)
			silent = appendNew(silent, x.Dealer)
		}
	}
	if len(overdue) > 0 {
		return d.abort(NoAnswer, overdue, silent, now)
	}
	return []change{putKeygen(k)}
}

// abort ends the attempt and begins the next, in which those at fault are last
// to deal. This entry stands last among those that show why.
func (d decision) abort(reason string, over []Dispute, fault []Digest, now int64) []change {
	k := d.state.Keygen
	a := &Abort{Term: k.Term, Attempt: k.Attempt, Reason: reason}
	for _, x := range over {
		a.Dealers, a.Accusers, a.Entries = appendNew(a.Dealers, x.Dealer), appendNew(a.Accusers, x.Accuser), appendNew(a.Entries, x.Index)
	}
	a.Entries = appendNew(a.Entries, d.index)
	why := fmt.Sprintf("%s: dealers %s, accusers %s", reason, shorts(a.Dealers), shorts(a.Accusers))
	return []change{putKeygen(d.state.nextAttempt(why, fault, now)),
		{key: "abort", value: a, put: func(s *State) { s.Aborts = append(slices.Clip(s.Aborts), a) }}}
}

func appendNew[T comparable](list []T, x T) []T {
	if slices.Contains(list, x) {
		return list
	}
	return append(list, x)
}

func shorts(ids []Digest) string {
	var out []string
	for _, id := range ids {
		out = append(out, id.Short())
	}
	return strings.Join(out, " ")
}
