package lockbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// redeal starts to deal the people's side again, to other members, and returns
// the sub-deals of the old holders in by.
func (w *world) redeal(threshold int, members []member, by []member) (*Redeal, []*SubDeals) {
	w.t.Helper()
	r := &Redeal{
		Charter: w.params.Charter, Object: w.object, Side: People, From: 1, Epoch: 2,
		Old: w.commitments.People, Group: groupOf(threshold, members),
	}
	var subs []*SubDeals
	for _, m := range by {
		sub, err := r.Deal(rand.Reader, w.open(People, m))
		w.must(err)
		w.must(r.Verify(sub))
		subs = append(subs, sub)
	}
	return r, subs
}

func (w *world) accept(r *Redeal, subs []*SubDeals, members []member) (shares []*Share, deals []Deal) {
	w.t.Helper()
	for _, m := range members {
		s, d, err := r.Accept(context.Background(), m.id, m.Index, subs)
		w.must(err)
		shares, deals = append(shares, s), append(deals, d)
	}
	return shares, deals
}

func TestRedealKeepsTheSecret(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 3)
	members := newMembers(t, 5)
	r, subs := w.redeal(3, members, []member{w.people[2], w.people[0]})
	shares, deals := w.accept(r, subs, members)
	sharing, err := r.Sharing(subs)
	w.must(err)
	if sharing[0] != w.commitments.People[0] {
		t.Fatal("the commitment to the secret changed")
	}
	now, err := w.commitments.Redealt(People, sharing)
	w.must(err)
	machines := w.openAll(Machines, w.machines)
	u, err := Unlock(w.object, now, shares[2:], machines)
	w.must(err)
	if key, err := u.FileKey(7, w.wrapped); err != nil || key != w.fileKey {
		t.Fatalf("file key differs after the re-deal: %v", err)
	}
	if _, err := Unlock(w.object, now, shares[:2], machines); err == nil {
		t.Fatal("the old threshold opens after it was raised")
	}
	// Later the holder opens the new deal like a first one, with one operation.
	m := members[4]
	m.key.operations = 0
	again, err := OpenShare(context.Background(), m.id, r.slot(m.Holder), sharing, deals[4])
	w.must(err)
	if !bytes.Equal(again.secret.bytes(), shares[4].secret.bytes()) || m.key.operations != 1 {
		t.Fatalf("the accepted deal holds another share, or took %d operations", m.key.operations)
	}
	// Old shares do not count beside new ones.
	if _, err := Unlock(w.object, now, append(shares[:2:2], w.open(People, w.people[2])), machines); err == nil {
		t.Fatal("an old share counted in the new epoch")
	}
}

// Any choice of groups, thresholds and dealers keeps the secret, twice in a row.
func TestPropertyRedeal(t *testing.T) {
	pool := newMembers(t, 12)
	rapid.Check(t, func(rt *rapid.T) {
		oldN := rapid.IntRange(2, 5).Draw(rt, "old holders")
		oldT := rapid.IntRange(2, oldN).Draw(rt, "old threshold")
		newN := rapid.IntRange(oldT, 5).Draw(rt, "new holders")
		newT := rapid.IntRange(oldT, newN).Draw(rt, "new threshold")
		w := sealWorld(t, oldT, 2, pool[:oldN], pool[10:12])
		by := rapid.Permutation(w.people).Draw(rt, "dealers")[:oldT]
		members := rapid.Permutation(pool[:10]).Draw(rt, "new members")[:newN]
		for i := range members {
			members[i].Holder.Index = uint16(i + 1)
		}
		r, subs := w.redeal(newT, members, by)
		shares, _ := w.accept(r, subs, members)
		want := w.secrets.people[0].bytes()
		sharing, err := r.Sharing(subs)
		if err != nil {
			rt.Fatal(err)
		}
		pick := rapid.Permutation(shares).Draw(rt, "shares")
		got, err := combine(w.object, People, sharing, pick[:newT])
		if err != nil || !bytes.Equal(got.bytes(), want) {
			rt.Fatalf("another secret: %v", err)
		}
		if _, err := combine(w.object, People, sharing, pick[:newT-1]); err == nil {
			rt.Fatal("one share fewer combined")
		}
	})
}

func TestRedealTwice(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	second, third := newMembers(t, 3), newMembers(t, 2)
	r, subs := w.redeal(2, second, w.people)
	shares, _ := w.accept(r, subs, second)
	sharing, err := r.Sharing(subs)
	w.must(err)
	next := &Redeal{r.Charter, r.Object, People, 2, 3, sharing, groupOf(2, third)}
	var later []*SubDeals
	for _, s := range shares[1:] {
		sub, err := next.Deal(rand.Reader, s)
		w.must(err)
		later = append(later, sub)
	}
	shares, _ = w.accept(next, later, third)
	last, err := next.Sharing(later)
	w.must(err)
	got, err := combine(w.object, People, last, shares)
	w.must(err)
	if !bytes.Equal(got.bytes(), w.secrets.people[0].bytes()) {
		t.Fatal("another secret after two re-deals")
	}
}

func TestRedealCheck(t *testing.T) {
	w := newWorld(t, 3, 3, 2, 2)
	members := newMembers(t, 4)
	good := Redeal{w.params.Charter, w.object, People, 1, 2, w.commitments.People, groupOf(3, members)}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	share := w.open(People, w.people[1])
	for name, change := range map[string]func(*Redeal){
		"no charter":        func(r *Redeal) { r.Charter = [32]byte{} },
		"no object":         func(r *Redeal) { r.Object = [32]byte{} },
		"no side":           func(r *Redeal) { r.Side = "" },
		"from epoch 0":      func(r *Redeal) { r.From = 0 },
		"same epoch":        func(r *Redeal) { r.Epoch = 1 },
		"backwards":         func(r *Redeal) { r.From, r.Epoch = 2, 1 },
		"no commitments":    func(r *Redeal) { r.Old = nil },
		"lower threshold":   func(r *Redeal) { r.Group.Threshold = 2 },
		"threshold 0":       func(r *Redeal) { r.Group.Threshold = 0 },
		"threshold too big": func(r *Redeal) { r.Group.Threshold = 5 },
		"nothing":           func(r *Redeal) { *r = Redeal{} },
	} {
		r := good
		change(&r)
		if _, err := r.Deal(rand.Reader, share); err == nil {
			t.Errorf("%s: dealt", name)
		}
		if err := r.Verify(&SubDeals{}); err == nil {
			t.Errorf("%s: verified", name)
		}
	}
	for name, change := range map[string]func(*Redeal){
		"other object":      func(r *Redeal) { r.Object = fill("other") },
		"other charter":     func(r *Redeal) { r.Charter = fill("other") },
		"other side":        func(r *Redeal) { r.Side = Machines },
		"other epoch":       func(r *Redeal) { r.From, r.Epoch = 2, 3 },
		"other commitments": func(r *Redeal) { r.Old = append(Sharing{}, r.Old...); r.Old[1], r.Old[2] = r.Old[2], r.Old[1] },
	} {
		r := good
		change(&r)
		var bad *ShareError
		if _, err := r.Deal(rand.Reader, share); !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := good.Deal(io.LimitReader(rand.Reader, 100), share); err == nil {
		t.Error("dealt without enough randomness")
	}
	if _, err := good.Deal(nil, share); err == nil {
		t.Error("dealt without randomness")
	}
}

// forge makes the sub-deals of a dealer who does as it likes: any polynomial.
func forge(t testing.TB, r *Redeal, dealer uint16, f polynomial) *SubDeals {
	t.Helper()
	d := &SubDeals{Object: r.Object, Side: r.Side, From: r.From, Epoch: r.Epoch, Dealer: dealer, Commitments: f.commit()}
	for _, h := range r.Group.Holders {
		sealed, err := h.Key.seal(r.info(r.slot(h), dealer), f.at(h.Index))
		if err != nil {
			t.Fatal(err)
		}
		d.Deals = append(d.Deals, SubDeal{h.Index, h.ID(), sealed})
	}
	return d
}

func mustPolynomial(t testing.TB, constant pair, threshold int) polynomial {
	t.Helper()
	f, err := newPolynomial(rand.Reader, constant, threshold)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// wantDealer fails the test unless err blames that dealer with that fault.
func wantDealer(t testing.TB, err error, fault Fault, dealer uint16) {
	t.Helper()
	var bad *ShareError
	if !errors.As(err, &bad) || bad.Fault != fault || bad.Dealer != dealer {
		t.Fatalf("got %v, want %q of dealer %d", err, fault, dealer)
	}
	if !strings.Contains(err.Error(), "old holder") {
		t.Fatalf("%q does not name the dealer", err)
	}
}

func TestAttackRedealOtherSecret(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 2)
	r, subs := w.redeal(2, newMembers(t, 3), w.people[:2])
	other, err := randomPair(rand.Reader)
	w.must(err)
	bad := forge(t, r, 1, mustPolynomial(t, other, 2))
	wantDealer(t, r.Verify(bad), Wrong, 1)
	_, err = r.Sharing([]*SubDeals{bad, subs[1]})
	wantDealer(t, err, Wrong, 1)
	// The old share of another holder is as wrong.
	wantDealer(t, r.Verify(forge(t, r, 1, mustPolynomial(t, w.open(People, w.people[2]).secret, 2))), Wrong, 1)
}

func TestAttackRedealOtherDegree(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 2)
	r, _ := w.redeal(3, newMembers(t, 4), nil)
	own := w.open(People, w.people[0]).secret
	for _, threshold := range []int{2, 4} {
		wantDealer(t, r.Verify(forge(t, r, 1, mustPolynomial(t, own, threshold))), Malformed, 1)
	}
	flat := mustPolynomial(t, own, 3)
	flat[2].wipe() // a leading coefficient of zero commits to the identity
	wantDealer(t, r.Verify(forge(t, r, 1, flat)), Malformed, 1)
}

// The commitments are right and one sub-share is not: its receiver names the
// dealer.
func TestAttackRedealBadSubShare(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 2)
	members := newMembers(t, 3)
	r, subs := w.redeal(2, members, w.people[:2])
	victim := members[1]
	good := subs[1].Deals[1].Sealed

	sealed, err := victim.Key.seal(r.info(r.slot(victim.Holder), subs[1].Dealer), zeroPair())
	w.must(err)
	subs[1].Deals[1].Sealed = sealed
	_, _, err = r.Accept(context.Background(), victim.id, victim.Index, subs)
	wantDealer(t, err, Wrong, 2)

	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	subs[1].Deals[1].Sealed = flipped
	_, _, err = r.Accept(context.Background(), victim.id, victim.Index, subs)
	wantDealer(t, err, Unopened, 2)

	subs[1].Deals[1].Sealed = good[:40]
	_, _, err = r.Accept(context.Background(), victim.id, victim.Index, subs)
	wantDealer(t, err, Malformed, 2)

	// The others are not touched by it, and another dealer takes over.
	third, err := r.Deal(rand.Reader, w.open(People, w.people[2]))
	w.must(err)
	w.accept(r, []*SubDeals{subs[0], third}, members)
}

// Sub-shares for one holder, one dealer, one epoch, one object stay there.
func TestAttackRedealReplay(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	members := newMembers(t, 3)
	r, subs := w.redeal(2, members, w.people)

	later := *r
	later.Epoch = 3
	wantDealer(t, later.Verify(subs[0]), Replayed, 1)
	relabelled := *subs[0]
	relabelled.Epoch = 3
	both := []*SubDeals{&relabelled, subs[1]}
	both[1] = &SubDeals{}
	*both[1] = *subs[1]
	both[1].Epoch = 3
	_, _, err := later.Accept(context.Background(), members[0].id, 1, both)
	wantDealer(t, err, Unopened, 1)

	elsewhere := *r
	elsewhere.Object = fill("other")
	wantDealer(t, elsewhere.Verify(subs[0]), Foreign, 1)
	side := *subs[0]
	side.Side = Machines
	wantDealer(t, r.Verify(&side), Foreign, 1)

	swapped := *subs[0]
	swapped.Deals = append([]SubDeal{}, subs[0].Deals...)
	swapped.Deals[0], swapped.Deals[1] = swapped.Deals[1], swapped.Deals[0]
	wantDealer(t, r.Verify(&swapped), Foreign, 1)
	swapped.Deals = subs[0].Deals[:2]
	wantDealer(t, r.Verify(&swapped), Malformed, 1)

	// One dealer's sub-deals under another dealer's name.
	renamed := *subs[0]
	renamed.Dealer = 2
	wantDealer(t, r.Verify(&renamed), Wrong, 2)
	renamed.Dealer = 0
	if err := r.Verify(&renamed); err == nil {
		t.Fatal("dealer 0 verified")
	}
	if err := r.Verify(nil); err == nil {
		t.Fatal("no sub-deals verified")
	}
}

func TestAttackRedealDealerSet(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 2)
	members := newMembers(t, 3)
	r, subs := w.redeal(2, members, w.people)
	for name, set := range map[string][]*SubDeals{
		"none": nil, "one": subs[:1], "all three": subs, "one twice": {subs[0], subs[0]},
	} {
		if _, err := r.Sharing(set); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, _, err := r.Accept(context.Background(), members[0].id, 1, set); err == nil {
			t.Errorf("%s: a share came out", name)
		}
	}
	// Holders who were shown different dealers do not hold shares of one
	// sharing: the mix is refused, never combined to something else.
	a, _, err := r.Accept(context.Background(), members[0].id, 1, subs[:2])
	w.must(err)
	b, _, err := r.Accept(context.Background(), members[1].id, 2, subs[1:])
	w.must(err)
	sharing, err := r.Sharing(subs[:2])
	w.must(err)
	_, err = combine(w.object, People, sharing, []*Share{a, b})
	wantFault(t, err, Wrong, b.Context())
}

func TestAttackRedealToOutsider(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	members := newMembers(t, 3)
	r, subs := w.redeal(2, members, w.people)
	eve := newMember(t, 1, false)
	if _, _, err := r.Accept(context.Background(), eve.id, 1, subs); err == nil {
		t.Fatal("an outsider accepted")
	}
	if _, _, err := r.Accept(context.Background(), members[0].id, 2, subs); err == nil {
		t.Fatal("accepted under another's index")
	}
	if _, _, err := r.Accept(context.Background(), nil, 1, subs); err == nil {
		t.Fatal("accepted without a key")
	}
}

func TestSharingContinues(t *testing.T) {
	a, b := newWorld(t, 3, 3, 2, 2), newWorld(t, 3, 3, 2, 2)
	if _, err := a.commitments.Redealt(People, b.commitments.People); err == nil {
		t.Error("the sharing of another secret continues")
	}
	if _, err := a.commitments.Redealt(People, a.commitments.People[:2]); err == nil {
		t.Error("a lower threshold continues")
	}
	if _, err := a.commitments.Redealt("", a.commitments.People); err == nil {
		t.Error("a side without a name continues")
	}
	if _, err := a.commitments.Redealt(Machines, a.commitments.People); err == nil {
		t.Error("one side continues the other")
	}
}

func TestSubDealsJSON(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	r, subs := w.redeal(2, []member{newMember(t, 1, true), newMember(t, 2, false)}, w.people)
	data, err := dsse.Encode(subs[0])
	w.must(err)
	back, err := ParseSubDeals(data)
	w.must(err)
	if err := r.Verify(back); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "{}x", `{"extra":1}`, strings.Replace(string(data), `"dealer":1`, `"dealer":1,"dealer":1`, 1)} {
		if _, err := ParseSubDeals([]byte(bad)); err == nil {
			t.Errorf("accepted %.40q", bad)
		}
	}
}
