package authority_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// answer is what a dealer says to its accuser.
func (l *log) answer(dealer, accuser *signofftest.Notary, share [32]byte) *signoff.Signed {
	l.t.Helper()
	k := l.state().Keygen
	return l.signed(dealer.Signing, &signoff.DealerAnswer{Charter: l.ID, Notary: dealer.Doc.ID(), Term: k.Term, Attempt: k.Attempt,
		Digest: k.Digest(l.ID), Accuser: accuser.Doc.ID(), Share: share[:]})
}

// dealtTo is the sub-share that the dealer dealt the new member with an index.
func (c *change) dealtTo(dealer *signofftest.Notary, index uint16) [32]byte {
	c.t.Helper()
	s, err := c.dealings[dealer.Doc.ID()].Share(index)
	c.must(err)
	return s
}

// abortsWith wants the last attempt ended for a reason, with all that are named.
func (l *log) abortsWith(reason string, dealers, accusers []*signofftest.Notary, entries ...uint64) {
	l.t.Helper()
	s := l.state()
	if len(s.Aborts) == 0 {
		l.t.Fatalf("no attempt was ended, want %s", reason)
	}
	a := s.Aborts[len(s.Aborts)-1]
	if a.Reason != reason || a.Attempt+1 != s.Keygen.Attempt || !slices.Equal(a.Dealers, ids(dealers)) || !slices.Equal(a.Accusers, ids(accusers)) || !slices.Equal(a.Entries, entries) {
		l.t.Errorf("attempt %d ended by %s: dealers %v, accusers %v, entries %v; want %s, %v, %v, %v",
			a.Attempt, a.Reason, a.Dealers, a.Accusers, a.Entries, reason, ids(dealers), ids(accusers), entries)
	}
	if len(s.Keygen.Disputes) > 0 || !strings.Contains(s.Keygen.Failed, reason) {
		l.t.Errorf("%d disputes in a new attempt; failed: %s", len(s.Keygen.Disputes), s.Keygen.Failed)
	}
	if got, want := l.again().StateDigest(), l.fold.StateDigest(); got != want {
		l.t.Errorf("folded again the state is %s, not %s", got, want)
	}
}

func ids(ys []*signofftest.Notary) (out []Digest) {
	for _, y := range ys {
		out = append(out, y.Doc.ID())
	}
	return out
}

// at is the index of the entry that came last.
func (l *log) at() uint64 { return l.fold.Size() - 1 }

// A dealer whose answer does not fit its commitments is disqualified, and the
// entries say so to whoever has only them.
func TestAttackDealerSendsWrongSubshare(t *testing.T) {
	for name, lie := range map[string]func(*change) [32]byte{
		"another member's":     func(c *change) [32]byte { return c.dealtTo(c.old[0], 1) },
		"another dealer's":     func(c *change) [32]byte { return c.dealtTo(c.old[1], 4) },
		"no canonical scalar":  func(*change) [32]byte { return [32]byte(bytes.Repeat([]byte{0xff}, 32)) },
		"zero":                 func(*change) [32]byte { return [32]byte{} },
		"one bit is different": func(c *change) [32]byte { s := c.dealtTo(c.old[0], 4); s[0] ^= 1; return s },
	} {
		t.Run(name, func(t *testing.T) {
			c := replaced(t).chosen3().dealt()
			dealer, accuser := c.old[0], c.next[3]
			c.takes(c.transcript(accuser, dealer.Doc.ID()))
			accusation := c.at()
			if k := c.state().Keygen; k.Attempt != 1 || !k.Disputed() {
				t.Fatalf("attempt %d, disputes %v", k.Attempt, k.Disputes)
			}
			c.takes(c.transcript(c.next[1])) // others need not wait
			c.takes(c.answer(dealer, accuser, lie(c)))
			c.abortsWith(authority.WrongAnswer, []*signofftest.Notary{dealer}, []*signofftest.Notary{accuser}, accusation, c.at())
			if !c.state().Aborts[0].Disqualified() || !slices.Equal(c.state().Keygen.Late, ids(c.old[:1])) {
				t.Errorf("disqualified %t, late %v", c.state().Aborts[0].Disqualified(), c.state().Keygen.Late)
			}
			c.chosen(c.old[0], c.old[1], c.old[2])
			if len(c.state().Dealers()) > 0 {
				t.Fatal("the cheat deals again at once")
			}
			c.chosen(c.old[3]).dealt().accepted()
			if _, ok := c.state().Incoming(); !ok {
				t.Error("the change does not go on without the cheat")
			}
		})
	}
}

func (c *change) chosen3() *change { return c.chosen(c.old[0], c.old[1], c.old[2]) }

// Only the accused's own word about this very attempt is an answer, so none is
// carried over from another one, and nobody answers for somebody else.
func TestAttackAnswerOfAnother(t *testing.T) {
	c := replaced(t).chosen3().dealt()
	n1, n2, n5 := c.old[0], c.old[1], c.next[3]
	good := c.dealtTo(n1, 4)
	c.voids(c.answer(n1, n5, good), "no accusation by")
	c.takes(c.transcript(n5, n1.Doc.ID()))
	c.voids(c.answer(n1, c.next[0], c.dealtTo(n1, 1)), "no accusation by")
	c.voids(c.answer(n2, n5, c.dealtTo(n2, 4)), "no accusation by")
	c.voids(c.answer(c.old[3], n5, good), "does not deal in this attempt")
	a := *c.answer(n1, n5, good).Doc.(*signoff.DealerAnswer)
	c.voids(c.signed(n2.Signing, &a), "the document names key")
	edit := func(f func(*signoff.DealerAnswer)) *signoff.Signed {
		b := a
		f(&b)
		return c.signed(n1.Signing, &b)
	}
	c.voids(edit(func(a *signoff.DealerAnswer) { a.Attempt++ }), "attempt 1 is under way")
	c.voids(edit(func(a *signoff.DealerAnswer) { a.Term-- }), "those of term 2 are being made")
	c.voids(edit(func(a *signoff.DealerAnswer) { a.Digest = Digest{1} }), "the notary saw other messages")
	if k := c.state().Keygen; !k.Disputed() || len(c.state().Aborts) > 0 {
		t.Error("a void answer changed something")
	}
}

// A false accusation costs nothing: the dealer answers, the accuser has the same
// sub-share as everybody can now read, and the attempt goes on.
func TestAttackFalseAccusation(t *testing.T) {
	c := replaced(t).chosen3().dealt()
	dealer, accuser := c.old[0], c.next[3]
	c.takes(c.transcript(accuser, dealer.Doc.ID()))
	c.voids(c.transcript(accuser), "waits for the answer")
	c.voids(c.transcript(accuser, c.old[1].Doc.ID()), "already accused")
	c.takes(c.answer(dealer, accuser, c.dealtTo(dealer, 4)))
	answered := c.at()
	c.voids(c.answer(dealer, accuser, [32]byte{1}), "no accusation by")
	k := c.state().Keygen
	if k.Attempt != 1 || k.Disputed() || len(k.Disputes) != 1 || k.Disputes[0].Answer != answered || k.Disputes[0].Share != c.dealtTo(dealer, 4) {
		t.Fatalf("attempt %d, disputes %+v", k.Attempt, k.Disputes)
	}
	c.tick(c.state().Time + 1000)
	c.tick(c.state().Time + 1000)
	c.voids(c.transcript(accuser, c.old[1].Doc.ID()), "already accused")
	c.accepted()
	c.voids(c.transcript(c.next[0], dealer.Doc.ID()), "have their shares")
	if _, ok := c.state().Incoming(); !ok || len(c.state().Aborts) > 0 || len(c.state().Keygen.Late) > 0 {
		t.Errorf("incoming %t, aborts %v, late %v", ok, c.state().Aborts, c.state().Keygen.Late)
	}
}

// Who has agreed has said that everything was right.
func TestAttackAccusesAfterAgreeing(t *testing.T) {
	c := replaced(t).chosen3().dealt()
	c.takes(c.transcript(c.next[3]))
	c.voids(c.transcript(c.next[3], c.old[0].Doc.ID()), "already agreed")
}

// Silence ends after answerTime of the notaries' clocks, in a reshare and in the
// first key generation alike. The time counts from a round that began after the
// accusation: what the fold knew before may be hours old, and a round that was
// open may be completed with old ticks.
func TestAttackAccusedSilent(t *testing.T) {
	reshare := func() (*log, *signofftest.Notary, *signofftest.Notary, func() *signoff.Signed) {
		c := replaced(t).chosen3().dealt()
		return c.log, c.old[0], c.next[3], func() *signoff.Signed { return c.transcript(c.next[3], c.old[0].Doc.ID()) }
	}
	first := func() (*log, *signofftest.Notary, *signofftest.Notary, func() *signoff.Signed) {
		l := newLog(t).founded()
		ceremony, _, round1s := l.firstDealt()
		group, err := ceremony.Group(round1s)
		l.must(err)
		return l, l.Notaries[0], l.Notaries[3], func() *signoff.Signed {
			return l.signed(l.Notaries[3].Signing, &signoff.Transcript{Charter: l.ID, Notary: l.Notaries[3].Doc.ID(), Term: 1, Attempt: 1,
				Digest: l.state().Keygen.Digest(l.ID), Group: group.PublicKey[:], Accused: []Digest{l.Notaries[0].Doc.ID()}})
		}
	}
	for name, setting := range map[string]func() (*log, *signofftest.Notary, *signofftest.Notary, func() *signoff.Signed){"reshare": reshare, "key generation": first} {
		t.Run(name, func(t *testing.T) {
			l, dealer, accuser, accuse := setting()
			hours := l.state().Time + 10000
			l.takes(accuse())
			accusation := l.at()
			l.tick(l.state().Time + 1) // the round that was open
			l.tick(hours)              // and the first whose time counts
			l.tick(hours + 300)
			if k := l.state().Keygen; k.Attempt != 1 || !k.Disputed() || k.Disputes[0].Since != hours {
				t.Fatalf("attempt %d, disputes %+v before the time is over", k.Attempt, k.Disputes)
			}
			l.tick(hours + 301)
			l.abortsWith(authority.NoAnswer, []*signofftest.Notary{dealer}, []*signofftest.Notary{accuser}, accusation, l.at())
			if k := l.state().Keygen; !l.state().Aborts[0].Disqualified() || k.Began != hours+301 {
				t.Errorf("disqualified %t, next attempt began %d", l.state().Aborts[0].Disqualified(), k.Began)
			}
		})
	}
}

// Of two that are accused only the silent one is disqualified.
func TestAttackOneOfTwoSilent(t *testing.T) {
	c := replaced(t).chosen3().dealt()
	silent, other := c.old[1], c.old[0]
	c.takes(c.transcript(c.next[3], other.Doc.ID()))
	c.takes(c.transcript(c.next[2], silent.Doc.ID()))
	accusation := c.at()
	c.takes(c.answer(other, c.next[3], c.dealtTo(other, 4)))
	for _, after := range []int64{0, 0, 301} {
		c.tick(c.state().Time + after)
	}
	c.abortsWith(authority.NoAnswer, []*signofftest.Notary{silent}, []*signofftest.Notary{c.next[2]}, accusation, c.at())
	if late := c.state().Keygen.Late; !slices.Equal(late, ids([]*signofftest.Notary{silent})) {
		t.Errorf("late are %v", late)
	}
}

// An answer that comes just in time is one.
func TestAccusedAnswersLate(t *testing.T) {
	c := replaced(t).chosen3().dealt()
	dealer, accuser := c.old[0], c.next[3]
	c.takes(c.transcript(accuser, dealer.Doc.ID()))
	c.tick(c.state().Time)
	c.tick(c.state().Time)
	c.tick(c.state().Time + 300)
	c.takes(c.answer(dealer, accuser, c.dealtTo(dealer, 4)))
	c.tick(c.state().Time + 300)
	c.accepted()
}

// One of four may be hostile. Two that accuse one dealer, or one that accuses two,
// end the attempt with everybody named, before so many sub-shares are published
// that they tell more than the accusers knew.
func TestAttackTooManyAccusations(t *testing.T) {
	t.Run("accusers", func(t *testing.T) {
		c := replaced(t).chosen3().dealt()
		dealer, a, b := c.old[0], c.next[3], c.next[1]
		c.takes(c.transcript(a, dealer.Doc.ID()))
		one := c.at()
		c.takes(c.answer(dealer, a, c.dealtTo(dealer, 4)))
		late := c.answer(dealer, b, c.dealtTo(dealer, 2))
		c.takes(c.transcript(b, dealer.Doc.ID()))
		c.abortsWith(authority.ManyAccusers, []*signofftest.Notary{dealer}, []*signofftest.Notary{a, b}, one, c.at())
		c.voids(late, "attempt 2 is under way")
		if c.state().Aborts[0].Disqualified() {
			t.Error("nobody failed to answer")
		}
	})
	t.Run("accused", func(t *testing.T) {
		c := replaced(t).chosen3().dealt()
		accuser := c.next[3]
		c.takes(c.transcript(accuser, c.old[0].Doc.ID(), c.old[2].Doc.ID()))
		c.abortsWith(authority.ManyAccused, []*signofftest.Notary{c.old[0], c.old[2]}, []*signofftest.Notary{accuser}, c.at())
		if late := c.state().Keygen.Late; len(late) > 0 {
			t.Errorf("put last by one word: %v", late)
		}
	})
	t.Run("two dealers by one each", func(t *testing.T) {
		c := replaced(t).chosen3().dealt()
		c.takes(c.transcript(c.next[3], c.old[0].Doc.ID()))
		c.takes(c.transcript(c.next[2], c.old[1].Doc.ID()))
		if k := c.state().Keygen; k.Attempt != 1 || len(k.Disputes) != 2 {
			t.Fatalf("attempt %d, %d disputes", k.Attempt, len(k.Disputes))
		}
		c.takes(c.answer(c.old[1], c.next[2], c.dealtTo(c.old[1], 3)))
		c.takes(c.answer(c.old[0], c.next[3], c.dealtTo(c.old[0], 4)))
		c.accepted()
	})
}

// What may be published, with what f hostile members hold, stays below the number
// of points that a dealer's polynomial takes, whatever the council.
func TestAnswersGiveNoPolynomialAway(t *testing.T) {
	for n := 4; n <= signoff.MaxNotaries; n++ {
		for f := 1; 3*f+1 <= n; f++ {
			c := signoff.Council{Notaries: make([]signoff.Notary, n), Faults: f}
			if known := 2 * f; known >= c.Quorum() {
				t.Errorf("%d of %d hostile: %d points are known, %d are a polynomial", f, n, known, c.Quorum())
			}
		}
	}
}
