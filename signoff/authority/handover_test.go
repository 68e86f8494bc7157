package authority_test

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// handedOver is a log in which n5 has taken n4's place after objects were sealed.
func handedOver(t *testing.T, names ...string) (*change, []Digest) {
	t.Helper()
	l := ready(t)
	var objects []Digest
	for _, n := range names {
		objects = append(objects, l.sealed(n))
	}
	c := l.reseats(l.Notaries[0], l.Notaries[1], l.Notaries[2], l.NewNotary("n5"))
	return c.inOffice(), objects
}

// notaryShare opens a notary's share of an object as it has it now.
func (l *log) notaryShare(y *signofftest.Notary, object Digest) *lockbox.Share {
	l.t.Helper()
	held := l.state().Objects[object].Machines
	id, err := lockbox.TokenIdentity(y.Exchange)
	l.must(err)
	b, _ := l.state().NotaryBearer(y.Doc.ID())
	index, _ := held.Of(b)
	digest, own := held.DealsOf(index)
	var deal lockbox.Deal
	if own {
		list, err := lockbox.ParseDealList(lockbox.Machines, l.blobs[digest])
		l.must(err)
		deal = list[slices.IndexFunc(list, func(d lockbox.Deal) bool { return d.Object == object })]
	} else {
		deals, err := lockbox.ParseDeals(l.blobs[digest])
		l.must(err)
		deal, err = deals.Find(lockbox.Machines, id.Recipient().ID())
		l.must(err)
	}
	sharing, err := held.Sharing(held.Epoch)
	l.must(err)
	share, err := lockbox.OpenShare(context.Background(), id, lockbox.Context{Charter: l.ID, Object: object, Side: lockbox.Machines, Epoch: held.Epoch,
		Index: index, Holder: id.Recipient().ID()}, sharing, deal)
	l.must(err)
	return share
}

func (l *log) notarySubDeals(y *signofftest.Notary, objects ...Digest) (list []*lockbox.SubDeals) {
	l.t.Helper()
	for _, id := range objects {
		box, err := l.state().Lockbox(l.state().Objects[id], lockbox.Machines)
		l.must(err)
		part, err := box.Deal(rand.Reader, l.notaryShare(y, id))
		l.must(err)
		list = append(list, part)
	}
	return list
}

// handsOn is a notary's document with sub-deals; edits spoil it.
func (l *log) handsOn(y *signofftest.Notary, list []*lockbox.SubDeals, objects []Digest, edits ...func(*signoff.Redealing)) *signoff.Signed {
	l.t.Helper()
	blob, err := dsse.Encode(list)
	l.must(err)
	term := l.state().Term()
	r := &signoff.Redealing{Charter: l.ID, Notary: y.Doc.ID(), Roster: term.Index, Warrant: term.Warrant, Objects: objects, Blob: l.blobs.put(blob)}
	for _, edit := range edits {
		edit(r)
	}
	return l.signed(y.Signing, r)
}

func (l *log) notaryDeals(y *signofftest.Notary, objects ...Digest) *signoff.Signed {
	l.t.Helper()
	return l.handsOn(y, l.notarySubDeals(y, objects...), objects)
}

// notaryAccepts opens a notary's parts of an object.
func (l *log) notaryAccepts(y *signofftest.Notary, object Digest) (lockbox.Deal, error) {
	l.t.Helper()
	o := l.state().Objects[object]
	box, err := l.state().Lockbox(o, lockbox.Machines)
	l.must(err)
	var parts []*lockbox.SubDeals
	for _, x := range l.state().Redealing(o, lockbox.Machines).Dealers {
		list, err := lockbox.ParseSubDealsList(l.blobs[x.Blob])
		l.must(err)
		parts = append(parts, list[x.Place])
	}
	id, err := lockbox.TokenIdentity(y.Exchange)
	l.must(err)
	_, index, _ := l.state().Notary(y.Doc.ID())
	_, deal, err := box.Accept(context.Background(), id, index, parts)
	return deal, err
}

// notaryCustody is a notary's word that its new shares are right.
func (l *log) notaryCustody(y *signofftest.Notary, objects ...Digest) *signoff.Signed {
	l.t.Helper()
	c := &signoff.Custody{Charter: l.ID, Notary: y.Doc.ID()}
	var deals []lockbox.Deal
	for _, object := range objects {
		deal, err := l.notaryAccepts(y, object)
		l.must(err)
		deals = append(deals, deal)
		r := l.state().Redealing(l.state().Objects[object], lockbox.Machines)
		c.Shares = append(c.Shares, signoff.Held{Object: object, Epoch: r.Epoch, Sharing: authority.SharingDigest(r.Sharing)})
	}
	blob, err := dsse.Encode(deals)
	l.must(err)
	c.Blob = l.blobs.put(blob)
	return l.signed(y.Signing, c)
}

// moved is handedOver with the machines' shares where the notaries are.
func (c *change) moved(objects []Digest) *change {
	c.t.Helper()
	for _, y := range c.old[:3] {
		c.takes(c.notaryDeals(y, objects...))
	}
	for _, y := range c.next {
		c.takes(c.notaryCustody(y, objects...))
	}
	return c
}

// released is a notary's release of its share to alice, as it claims to hold it.
func (l *log) released(y *signofftest.Notary, warrant, object Digest, epoch uint32, index uint16) *signoff.Signed {
	l.t.Helper()
	return l.signed(y.Signing, &signoff.Release{Charter: l.ID, Notary: y.Doc.ID(), Warrant: warrant,
		Share: signoff.Share{Object: object, Epoch: epoch, Index: index, Recipient: l.People["alice"].Doc.Exchange.Fingerprint(), Sealed: signofftest.Nonce()}})
}

func (l *log) exportWarrant(object Digest) Digest {
	l.t.Helper()
	r := l.takes(l.export("dave", object))
	l.approves(r, "bob", "carol", "alice")
	return l.takes(l.warrant(r))
}

// The old epoch works until every notary in office has its new share, and the
// new one from then on; the people's side, their approvals and the object's id
// stay as they are.
func TestSharesFollowTheNotaries(t *testing.T) {
	c, objects := handedOver(t, "one", "two")
	one := objects[0]
	w, open := c.exportWarrant(one), c.takes(c.export("alice", objects[1]))
	c.approves(open, "bob", "carol", "dave")
	left, n5 := c.old[3], c.next[3]
	c.takes(c.released(c.old[0], w, one, 1, 1))
	c.takes(c.released(left, w, one, 1, 4))
	c.voids(c.released(n5, w, one, 1, 4), "holds no share of object")
	for i, y := range c.old[:3] {
		if d := c.state().DisplacedObjects(lockbox.Machines); len(d) != 2 || d[0].ID != one {
			t.Fatalf("with %d dealers %d objects are displaced", i, len(d))
		}
		c.takes(c.notaryDeals(y, objects...))
	}
	c.voids(c.notaryDeals(left, objects...), "as many dealers as they need")
	for i, y := range c.next {
		if c.state().Objects[one].Machines.Epoch != 1 {
			t.Fatalf("the new epoch is in force with %d of 4 acceptances", i)
		}
		c.takes(c.notaryCustody(y, objects...))
	}
	for _, id := range objects {
		o := c.state().Objects[id]
		if o.Machines.Epoch != 2 || len(o.Machines.Holders) != 4 || o.Handover != nil || c.state().Displaced(o, lockbox.Machines) || o.People.Epoch != 1 {
			t.Fatalf("after the last acceptance: %+v", o)
		}
	}
	if !c.satisfied(open) {
		t.Error("moving the machines' side voids people's approvals")
	}
	// The new shares are of the secret that was sealed.
	var shares []*lockbox.Share
	for _, y := range c.next[1:] {
		shares = append(shares, c.notaryShare(y, one))
	}
	sharing, err := c.state().Objects[one].Machines.Sharing(2)
	c.must(err)
	sealed, err := c.state().Objects[one].Machines.Sharing(1)
	c.must(err)
	c.must(sharing.Continues(sealed))
	for _, s := range shares {
		c.must(s.Verify(sharing))
	}
	// A release before the move does not stand for one after it.
	c.takes(c.released(c.next[0], w, one, 2, 1))
	c.voids(c.released(c.next[0], w, one, 2, 1), "already released its share of epoch 2")
	c.takes(c.released(n5, w, one, 2, 4))
	if got, want := c.again().StateDigest(), c.fold.StateDigest(); got != want {
		t.Errorf("folded again the state is %s, not %s", got, want)
	}
}

// Once the shares have moved, one that left has none: neither under its old
// epoch nor under the new one does its word count.
func TestAttackFormerNotaryReleases(t *testing.T) {
	c, objects := handedOver(t, "model")
	left, object := c.old[3], objects[0]
	w := c.exportWarrant(object)
	c.moved(objects)
	c.voids(c.released(left, w, object, 1, 4), "epoch 1 is not what the warrant opens")
	c.voids(c.released(left, w, object, 2, 4), "holds no share of object")
	c.voids(c.released(c.old[0], w, object, 1, 1), "epoch 1 is not what the warrant opens") // nor one that stayed, with its old share
	c.takes(c.released(c.next[3], w, object, 2, 4))
}

// What a notary deals on is its own share, to the council in office, under the
// warrant that put it there.
func TestAttackHandovers(t *testing.T) {
	c, objects := handedOver(t, "one", "two")
	one, two := objects[0], objects[1]
	n1, n2, left, n5 := c.old[0], c.old[1], c.old[3], c.next[3]
	good := func() []*lockbox.SubDeals { return c.notarySubDeals(n1, one) }
	for _, x := range []struct {
		reason string
		edit   func(*signoff.Redealing)
	}{
		{"those here are of entry", func(r *signoff.Redealing) { r.Roster++ }},
		{"those here are of entry", func(r *signoff.Redealing) { r.Warrant = Digest{1} }},
		{"sub-deals of 1 objects for 2", func(r *signoff.Redealing) { r.Objects = objects }},
		{"foreign", func(r *signoff.Redealing) { r.Objects = []Digest{two} }},
		{"the document names key", func(r *signoff.Redealing) { r.Notary = n2.Doc.ID() }},
		{"not a notary", func(r *signoff.Redealing) { r.Notary = c.NewNotary("n9").Doc.ID() }},
	} {
		c.voids(c.handsOn(n1, good(), []Digest{one}, x.edit), x.reason)
	}
	spoiled := good()
	spoiled[0].Commitments[0] = spoiled[0].Commitments[1]
	c.voids(c.handsOn(n1, spoiled, []Digest{one}), "not the dealer's own share")
	other := c.notarySubDeals(n1, two)
	other[0].Object = one
	c.voids(c.handsOn(n1, other, []Digest{one}), "not the dealer's own share")
	c.voids(c.handsOn(n2, good(), []Digest{one}), "sub-deals of holder 1, n2 is holder 2")
	c.voids(c.handsOn(n5, good(), []Digest{one}), "n5 holds no share")
	// A person's share is of the other side, whoever says so.
	alice := good()
	c.voids(c.redealt("alice", alice, one), "where the people are")
	if c.state().Objects[one].Handover != nil {
		t.Fatal("a void document left something behind")
	}

	for _, y := range c.old[:3] {
		c.takes(c.notaryDeals(y, objects...))
	}
	word := c.notaryCustody(n5, one)
	with := func(k hsm.Key, edit func(*signoff.Custody)) *signoff.Signed {
		x := *word.Doc.(*signoff.Custody)
		x.Shares = slices.Clone(x.Shares)
		edit(&x)
		return c.signed(k, &x)
	}
	c.voids(with(left.Signing, func(x *signoff.Custody) { x.Notary = left.Doc.ID() }), "left office")
	c.voids(with(n1.Signing, func(x *signoff.Custody) { x.Notary = n1.Doc.ID() }), "stands where share 1")
	c.voids(with(c.People["bob"].Signing, func(x *signoff.Custody) { x.Notary, x.Person = Digest{}, c.People["bob"].Doc.ID() }), "want side people")
	c.voids(with(n5.Signing, func(x *signoff.Custody) { x.Shares[0].Sharing = Digest{1} }), "none that are dealt")
	c.takes(word)
	c.voids(c.notaryCustody(n5, one), "has accepted")
	// No notary gives its share in force to another key of its choice.
	sharing, err := c.state().Objects[two].Machines.Sharing(1)
	c.must(err)
	deal, err := c.notaryShare(n1, two).DealTo(recipient(t, n1.Doc.Exchange))
	c.must(err)
	blob, err := dsse.Encode([]lockbox.Deal{deal})
	c.must(err)
	c.voids(c.signed(n1.Signing, &signoff.Custody{Charter: c.ID, Notary: n1.Doc.ID(), Blob: c.blobs.put(blob),
		Shares: []signoff.Held{{Object: two, Epoch: 1, Sharing: authority.SharingDigest(sharing)}}}), "none that are dealt")
}

// A notary that deals a wrong part is named by who gets it, and one that left
// deals in its place.
func TestAttackWrongSubShareOfANotaryIsNamed(t *testing.T) {
	c, objects := handedOver(t, "model")
	object := objects[0]
	n2, left, n5 := c.old[1], c.old[3], c.next[3]
	bad := c.notarySubDeals(n2, object)
	bad[0].Deals[3].Sealed = bad[0].Deals[2].Sealed // n5 gets what is n3's
	c.takes(c.notaryDeals(c.old[0], object))
	c.takes(c.handsOn(n2, bad, objects))
	c.takes(c.notaryDeals(c.old[2], object))
	c.takes(c.notaryCustody(c.next[0], object))
	_, err := c.notaryAccepts(n5, object)
	var fault *lockbox.ShareError
	if !errors.As(err, &fault) || fault.Dealer != 2 || fault.Fault != lockbox.Unopened {
		t.Fatalf("a wrong sub-share: %v", err)
	}
	r := c.state().Redealing(c.state().Objects[object], lockbox.Machines)
	accuse := func(dealer uint16) *signoff.Signed {
		return c.signed(n5.Signing, &signoff.Custody{Charter: c.ID, Notary: n5.Doc.ID(),
			Shares: []signoff.Held{{Object: object, Epoch: 2, Sharing: authority.SharingDigest(r.Sharing), Wrong: dealer}}})
	}
	c.voids(accuse(4), "dealt no part")
	c.takes(accuse(2))
	c.voids(c.notaryDeals(n2, object), "found n2's part")
	c.takes(c.notaryDeals(left, object))
	for _, y := range c.next {
		c.takes(c.notaryCustody(y, object))
	}
	if o := c.state().Objects[object]; o.Machines.Epoch != 2 {
		t.Fatal("the handover did not end")
	}
}

// A change of notaries that overtakes a handover voids it; the shares go from
// those who hold them to those in office then.
func TestHandoverIsOvertaken(t *testing.T) {
	c, objects := handedOver(t, "model")
	object, stale := objects[0], c.notaryDeals(c.old[2], objects...)
	c.takes(c.notaryDeals(c.old[0], object))
	c.takes(c.notaryDeals(c.old[1], object))
	n := c.next
	c2 := c.reseats(n[0], n[1], c.NewNotary("n6"), n[3]).inOffice()
	c2.voids(stale, "those here are of entry")
	if r := c2.state().Redealing(c2.state().Objects[object], lockbox.Machines); len(r.Dealers) != 0 {
		t.Fatalf("%d dealers to another council count", len(r.Dealers))
	}
	for _, y := range []*signofftest.Notary{c.old[0], c.old[2], c.old[3]} { // two of whom left
		c2.takes(c2.notaryDeals(y, object))
	}
	for _, y := range c2.next {
		c2.takes(c2.notaryCustody(y, object))
	}
	if o := c2.state().Objects[object]; o.Machines.Epoch != 2 || c2.state().Displaced(o, lockbox.Machines) {
		t.Fatal("the handover did not end")
	}
}

// With more notaries of whom more act, what was sealed for three of four opens
// with five of seven, and with no three.
func TestSharesFollowAGreaterCouncil(t *testing.T) {
	l := ready(t)
	object, next := l.sealed("model"), slices.Clone(l.Notaries)
	for _, name := range []string{"n5", "n6", "n7"} {
		next = append(next, l.NewNotary(name))
	}
	c := l.reseatsFor(2, next...)
	c.chosen(c.old[0], c.old[1], c.old[2]).dealt().accepted()
	c.takes(c.takeover(next[4], c.note(next[0], next[1], next[2], next[4], next[5])))
	for _, y := range c.old[:3] {
		c.takes(c.notaryDeals(y, object))
	}
	for i, y := range next {
		if c.state().Objects[object].Machines.Epoch != 1 {
			t.Fatalf("the new epoch is in force with %d of 7 acceptances", i)
		}
		c.takes(c.notaryCustody(y, object))
	}
	o := c.state().Objects[object]
	if o.Machines.Epoch != 2 || o.Machines.Threshold() != 5 || len(o.Machines.Holders) != 7 || o.Doc.Lockbox.Machines.Threshold != 3 || c.state().Displaced(o, lockbox.Machines) {
		t.Fatalf("after the last acceptance: %+v, %d shares open it", o.Machines, o.Machines.Threshold())
	}
	c.notaryShare(next[6], object).Wipe()
}
