package signofftest_test

import (
	"errors"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A dealer that sends one member a wrong sub-share, and lies again when it has to
// answer, is named by entries of the log. Who reads them needs no fold and no
// notary: two signatures, the commitments and the published sub-share do.
func TestAttackDealerSendsWrongSubshare(t *testing.T) {
	t.Parallel()
	w := &world{signofftest.Keys(t, nil), t}
	c := &signofftest.CrookedDealer{Cluster: w.Cluster, From: 1, To: 3, Lies: true}
	w.Host.Meddle = c.Meddle
	w.Found()
	w.start(1, 2, 3, 4)
	w.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	abort := w.onlyAbort()
	dealer, accuser := w.Notaries[0].Doc.ID(), w.Notaries[2].Doc.ID()
	if abort.Reason != authority.WrongAnswer || !slices.Equal(abort.Dealers, []signoff.Digest{dealer}) || !slices.Equal(abort.Accusers, []signoff.Digest{accuser}) {
		t.Fatalf("%+v", abort)
	}

	// The independent reader.
	lines, err := w.Client.Entries(t.Context(), 0, w.size())
	w.must(err)
	read := func(index uint64) *signoff.Signed {
		s, err := signoff.ReadLine(lines[index])
		w.must(err)
		return s
	}
	signedBy := func(s *signoff.Signed, n *signofftest.Notary) {
		key, err := n.Doc.Signing.Public()
		w.must(err)
		w.must(s.Verify(key))
	}
	accusation, answer := read(abort.Entries[0]), read(abort.Entries[1])
	signedBy(accusation, w.Notaries[2])
	signedBy(answer, w.Notaries[0])
	said, told := accusation.Doc.(*signoff.Transcript), answer.Doc.(*signoff.DealerAnswer)
	if !slices.Equal(said.Accused, []signoff.Digest{dealer}) || told.Accuser != accuser || told.Digest != said.Digest {
		t.Fatalf("accusation %+v, answer %+v", said, told)
	}
	var round1 frost.Round1
	seen := [][]byte{w.ID[:]}
	for i := range abort.Entries[0] {
		s := read(i)
		id := s.Digest()
		switch d := s.Doc.(type) {
		case *signoff.Commitment:
			if seen = append(seen, id[:]); d.Notary == dealer {
				signedBy(s, w.Notaries[0])
				round1.Proof = [64]byte(d.Proof)
				for _, p := range d.Commitments {
					round1.Commitments = append(round1.Commitments, [32]byte(p))
				}
			}
		case *signoff.Dealing:
			seen = append(seen, id[:])
		}
	}
	if dsse.Sum("keyturn/dkg/v1", seen...) != told.Digest {
		t.Error("the answer is not about these commitments and dealings")
	}
	ceremony, err := w.FirstCeremony()
	w.must(err)
	err = ceremony.VerifySubshare(1, 3, round1, [32]byte(told.Share))
	if cheat := (*frost.CheatError)(nil); !errors.As(err, &cheat) || cheat.Step != "subshare" || !slices.Equal(cheat.IDs, []uint16{1}) {
		t.Errorf("the published sub-share: %v", err)
	}
}

// onlyAbort is the one attempt that accusations ended.
func (w *world) onlyAbort() (abort authority.Abort) {
	w.t.Helper()
	w.folded(func(s *authority.State) {
		if n := len(s.Aborts); n != 1 {
			w.t.Fatalf("%d attempts ended by accusations, want 1", n)
		}
		abort = *s.Aborts[0]
	})
	return abort
}

// folded shows the final state, by a fold that begins now.
func (w *world) folded(show func(*authority.State)) {
	w.t.Helper()
	note, err := w.Client.Checkpoint(w.t.Context(), true, w.size(), 20*time.Second)
	w.must(err)
	f, _ := w.follower()
	_, err = f.Final(w.t.Context(), note)
	w.must(err)
	w.must(f.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		show(a.State())
		return nil
	}))
}

// One that deals a wrong sub-share and answers with the right one gets away with
// it, and gains nothing: the member has its share, in the same attempt.
func TestAttackWrongSubshareRightAnswer(t *testing.T) {
	t.Parallel()
	w := &world{signofftest.Keys(t, nil), t}
	c := &signofftest.CrookedDealer{Cluster: w.Cluster, From: 1, To: 3}
	w.Host.Meddle = c.Meddle
	w.Found()
	w.start(1, 2, 3, 4)
	w.answeredOnce(w.Notaries[0], w.Notaries[2])
}

// A member whose token misreads an honest dealer's sub-share accuses it. The
// dealer's notary answers by itself, the member takes what was published, and its
// share is as good as any.
func TestAttackFalseAccusation(t *testing.T) {
	t.Parallel()
	w := &world{signofftest.Keys(t, nil), t}
	dealer, accuser := w.Notaries[0], w.Notaries[2]
	m := &signofftest.Misreader{Decrypter: accuser.Exchange, Dealer: dealer.Doc.ID(), Place: 2}
	accuser.Exchange, w.Host.Meddle = m, m.Meddle
	w.Found()
	w.start(1, 2, 3, 4)
	w.answeredOnce(dealer, accuser)
}

// No answer gets into the log. The other notaries' clocks run all the same, in a
// key generation too, where else nothing waits for time.
func TestAccusedSilentIsTimed(t *testing.T) {
	t.Parallel()
	w := &world{signofftest.Keys(t, nil), t}
	c := &signofftest.CrookedDealer{Cluster: w.Cluster, From: 1, To: 3}
	w.Host.Meddle = func(next http.Handler) http.Handler {
		return c.Meddle(signofftest.Rewrite(next, func(doc *signoff.Signed) signoff.Document {
			if _, ok := doc.Doc.(*signoff.DealerAnswer); ok {
				panic(http.ErrAbortHandler)
			}
			return nil
		}, nil))
	}
	w.Found()
	w.start(1, 2, 3, 4)
	var since int64
	w.Wait("the time to answer begins", func(s *authority.State) bool {
		if len(s.Keygen.Disputes) > 0 {
			since = s.Keygen.Disputes[0].Since
		}
		return since > 0
	})
	if late := time.Now().Unix() - since; late > 60 {
		t.Errorf("it began %d s ago", late)
	}
	if os.Getenv("KEYTURN_SLOW") == "" {
		return
	}
	w.Wait("time goes on", func(s *authority.State) bool { return s.Time >= since+20 })
}

// answeredOnce wants a group key in the first attempt, after one accusation and
// its answer, and the accuser's share to sign with it.
func (w *world) answeredOnce(dealer, accuser *signofftest.Notary) {
	w.t.Helper()
	w.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	w.State(func(_ *authority.Authority, s *authority.State) {
		k := s.Keygen
		if k.Attempt != 1 || len(s.Aborts) > 0 || len(k.Disputes) != 1 || k.Disputed() {
			w.t.Fatalf("attempt %d, aborts %v, disputes %+v", k.Attempt, s.Aborts, k.Disputes)
		}
		if x := k.Disputes[0]; x.Dealer != dealer.Doc.ID() || x.Accuser != accuser.Doc.ID() {
			w.t.Errorf("%+v", x)
		}
	})
	w.stop(4) // so that the accuser's share is needed
	w.changePolicy("signed with a published sub-share")
}
