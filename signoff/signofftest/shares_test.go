package signofftest_test

import (
	"crypto/rand"
	"fmt"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

func names(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("model-%d", i))
	}
	return out
}

// follows waits until the machines' shares of all objects are in an epoch.
func (w *world) follows(epoch uint32, objects ...signoff.Digest) {
	w.t.Helper()
	w.Wait("shares to follow the notaries", func(s *authority.State) bool {
		for _, id := range objects {
			if o := s.Objects[id]; o.Machines.Epoch != epoch || s.Displaced(o, lockbox.Machines) {
				return false
			}
		}
		return true
	})
}

// exports asks for an object to go to alice, with all approvals, and returns
// the warrant.
func (w *world) exports(object signoff.Digest) (warrant signoff.Digest) {
	w.t.Helper()
	w.Tick()
	req := w.Request("dave", signoff.ActionExport, func(r *signoff.Request) {
		r.Export = &signoff.Export{Object: object, Recipient: "an evaluator", RecipientKey: w.People["alice"].Doc.Exchange, Destination: "disk 7"}
	})
	w.append(req)
	for _, p := range []string{"bob", "carol", "erin"} {
		a := *w.Decide(p, req.Digest(), signoff.Approve).Doc.(*signoff.Approval)
		w.State(func(_ *authority.Authority, s *authority.State) {
			m, _ := s.Person(a.Person)
			a.Shares = []signoff.Share{{Object: object, Epoch: s.Objects[object].People.Epoch, Index: m.Index,
				Recipient: w.People["alice"].Doc.Exchange.Fingerprint(), Sealed: []byte("the machines' side is looked at here")}}
		})
		w.append(w.Sign(p, &a))
	}
	w.Wait("the warrant", func(s *authority.State) bool { return !s.Requests[req.Digest()].Warrant.IsZero() })
	w.State(func(_ *authority.Authority, s *authority.State) { warrant = s.Requests[req.Digest()].Warrant })
	return warrant
}

// opens waits for releases of an epoch by a quorum, and opens each of them.
func (w *world) opens(warrant, object signoff.Digest, epoch uint32) (by []signoff.Digest) {
	w.t.Helper()
	w.Wait("releases", func(s *authority.State) bool {
		n := 0
		for _, r := range s.Releases[warrant] {
			if r.Share.Epoch == epoch {
				n++
			}
		}
		return n >= s.Council().Quorum()
	})
	id, err := lockbox.TokenIdentity(w.People["alice"].Exchange)
	w.must(err)
	w.State(func(_ *authority.Authority, s *authority.State) {
		sharing, err := s.Objects[object].Machines.Sharing(epoch)
		w.must(err)
		for _, r := range s.Releases[warrant] {
			if r.Share.Epoch != epoch {
				continue
			}
			y, ok := s.AnyNotary(r.Notary)
			if !ok {
				w.t.Fatalf("released by %s, who is nobody", r.Notary)
			}
			where := lockbox.Context{Charter: w.ID, Object: object, Side: lockbox.Machines, Epoch: epoch, Index: r.Share.Index, Holder: y.Exchange.Fingerprint()}
			share, err := lockbox.OpenRelease(w.t.Context(), id, lockbox.ReleaseContext{Context: where, Request: s.Warrants[warrant].Doc.Request, Recipient: id.Recipient().ID()}, sharing, r.Share.Sealed)
			w.must(err)
			share.Wipe()
			by = append(by, r.Notary)
		}
	})
	return by
}

// Two of four notaries change. Those who left help to move what was sealed before
// to those who came, without being asked, and are needed for nothing from then
// on: they are stopped, and exports of old objects go on.
func TestSharesFollowTheNotaries(t *testing.T) {
	w := start(t)
	objects := w.Seal(names(signoff.MaxRedealt + 6)...)
	before := w.exports(objects[0])
	w.opens(before, objects[0], 1)
	for _, name := range []string{"n5", "n6"} {
		w.Notaries = append(w.Notaries, w.Newcomer(name))
	}
	w.start(5, 6)
	w.changeNotaries(1, w.Notaries[0], w.Notaries[1], w.Notaries[4], w.Notaries[5])
	w.inOffice(2)
	w.follows(2, objects...)
	w.eventually("who left has destroyed its exchange key", func() bool { return !w.HasExchangeKey(w.Notaries[2]) && !w.HasExchangeKey(w.Notaries[3]) })
	for _, i := range []int{0, 1, 4, 5} {
		if n := w.Notaries[i]; !w.HasExchangeKey(n) {
			t.Errorf("%s, who is in office, destroyed its exchange key", n.Name)
		}
	}
	w.stop(3, 4)
	w.opens(before, objects[0], 2) // released before, and not used: it opens with the new shares
	w.stop(2)                      // so that both newcomers are needed
	last := objects[len(objects)-1]
	by := w.opens(w.exports(last), last, 2)
	if len(by) != 3 {
		t.Errorf("released by %d notaries", len(by))
	}
}

// Until the shares have moved, those that were dealt first open the object, and
// one that left keeps its key and releases its share.
func TestFormerNotaryServesUntilSharesMoved(t *testing.T) {
	t.Parallel()
	w := &world{signofftest.Keys(t, nil), t}
	w.Host.Meddle = without(signoff.KindCustody)
	w.Found()
	w.start(1, 2, 3, 4)
	w.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	object := w.Seal("model")[0]
	w.Notaries = append(w.Notaries, w.Newcomer("n5"))
	w.start(5)
	w.changeNotaries(1, w.Notaries[0], w.Notaries[1], w.Notaries[2], w.Notaries[4])
	w.inOffice(2)
	w.Wait("dealers", func(s *authority.State) bool { return s.Redealing(s.Objects[object], lockbox.Machines).Sharing != nil })
	w.stop(3) // so that the one that left is needed
	by := w.opens(w.exports(object), object, 1)
	left := w.Notaries[3]
	if len(by) != 3 || !slices.Contains(by, left.Doc.ID()) {
		t.Errorf("released by %v", by)
	}
	if !w.HasExchangeKey(left) {
		t.Error("it destroyed the key of a share that is in force")
	}
}

// A hostile dealer gives the newcomer what is another's. The newcomer says so by
// itself, one that left deals instead, and the shares move.
func TestAttackNotaryDealsWrongShares(t *testing.T) {
	t.Parallel()
	w := &world{signofftest.Keys(t, nil), t}
	liar := w.Notaries[1]
	w.Host.Meddle = without(signoff.KindRedealing, liar) // what its program says
	w.Found()
	w.start(1, 2, 3, 4)
	w.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	object := w.Seal("model")[0]
	w.Notaries = append(w.Notaries, w.Newcomer("n5"))
	w.start(5)
	w.changeNotaries(1, w.Notaries[0], liar, w.Notaries[2], w.Notaries[4])
	w.inOffice(2)
	w.Host.Put(w.dealsWrong(liar, object).Line())
	w.follows(2, object)
	if !w.Logged("notary=n5", "part of this notary's new share is wrong", "dealer=2") {
		t.Error("nobody named the liar")
	}
	w.stop(3) // so that the newcomer is needed, and the liar
	w.opens(w.exports(object), object, 2)
}

// dealsWrong is a notary's share dealt on, with the last one's part exchanged for
// the first one's.
func (w *world) dealsWrong(n *signofftest.Notary, object signoff.Digest) *signoff.Signed {
	w.t.Helper()
	id, err := lockbox.TokenIdentity(n.Exchange)
	w.must(err)
	doc := &signoff.Redealing{Charter: w.ID, Notary: n.Doc.ID(), Objects: []signoff.Digest{object}}
	w.State(func(_ *authority.Authority, s *authority.State) {
		o := s.Objects[object]
		blob, err := w.Client.Blob(w.t.Context(), o.Machines.Deals)
		w.must(err)
		deals, err := lockbox.ParseDeals(blob)
		w.must(err)
		deal, err := deals.Find(lockbox.Machines, id.Recipient().ID())
		w.must(err)
		box, err := s.Lockbox(o, lockbox.Machines)
		w.must(err)
		share, err := lockbox.OpenShare(w.t.Context(), id, lockbox.Context{Charter: w.ID, Object: object, Side: lockbox.Machines, Epoch: 1, Index: deal.Index, Holder: deal.Holder}, box.Old, deal)
		w.must(err)
		part, err := box.Deal(rand.Reader, share)
		w.must(err)
		part.Deals[3].Sealed = part.Deals[0].Sealed
		text, err := dsse.Encode([]*lockbox.SubDeals{part})
		w.must(err)
		doc.Blob, err = w.Client.PutBlob(w.t.Context(), text)
		w.must(err)
		doc.Roster, doc.Warrant = s.Term().Index, s.Term().Warrant
	})
	signed, err := signoff.Sign(w.t.Context(), n.Signing, doc)
	w.must(err)
	return signed
}

// A dealer and a newcomer are killed while thousands of shares, here as many as
// go into two documents, are on their way: what is in the log is not done twice,
// and what is not there is done.
func TestDeadNotaryWhileSharesMove(t *testing.T) {
	for _, who := range []string{"dealer", "newcomer"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			w := &world{signofftest.Keys(t, nil), t}
			r := &reaper{dead: make(chan string), seen: map[string]int{}, victim: &signofftest.Notary{Name: "nobody yet", Doc: w.NewNotary("nobody").Doc}}
			w.Host.Meddle = r.meddle
			w.Found()
			w.start(1, 2, 3, 4)
			w.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
			objects := w.Seal(names(signoff.MaxRedealt + 6)...)
			n5 := w.Newcomer("n5")
			w.Notaries = append(w.Notaries, n5)
			w.start(5)
			w.stop(4) // so that every one of the others is needed
			w.changeNotaries(1, w.Notaries[0], w.Notaries[1], w.Notaries[2], n5)
			victim, steps := n5, []string{string(signoff.KindCustody)}
			if who == "dealer" {
				victim, steps = w.Notaries[1], append(steps, string(signoff.KindRedealing))
			}
			r.mu.Lock()
			r.victim = victim
			r.mu.Unlock()
			stop := w.deaths(victim, r)
			w.inOffice(2)
			w.follows(2, objects...)
			w.stop(3) // so that the victim is needed
			w.opens(w.exports(objects[0]), objects[0], 2)
			w.diedAt(stop(), steps...)
		})
	}
}
