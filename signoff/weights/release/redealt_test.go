package release_test

import (
	"crypto/ecdh"
	"crypto/rand"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/weights/release"
	"github.com/keyturn/keyturn/signoff/weights/release/releasetest"
)

// moved is the notaries' side of an object in its second epoch.
type moved struct {
	*releasetest.World
	o       *releasetest.Object
	sharing lockbox.Sharing
	shares  []*lockbox.Share // of the notaries, in order
}

// move deals the notaries' shares of an object anew, to the same notaries.
func move(t *testing.T, w *releasetest.World, o *releasetest.Object) *moved {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	old, err := lockbox.ParseSharing(o.Doc.Lockbox.Machines.Threshold, o.Doc.Lockbox.Machines.Commitments)
	must(err)
	box := &lockbox.Redeal{Charter: w.ID, Object: o.Digest(), Side: lockbox.Machines, From: 1, Epoch: 2, Old: old, Group: lockbox.Group{Threshold: uint16(len(old))}}
	var ids []*lockbox.Identity
	for i, n := range w.Notaries {
		id, err := lockbox.TokenIdentity(n.Exchange)
		must(err)
		ids = append(ids, id)
		box.Group.Holders = append(box.Group.Holders, lockbox.Holder{Index: uint16(i + 1), Key: id.Recipient()})
	}
	var parts []*lockbox.SubDeals
	for i, id := range ids[:len(old)] {
		deal, err := o.Deals.Find(lockbox.Machines, id.Recipient().ID())
		must(err)
		where := lockbox.Context{Charter: w.ID, Object: o.Digest(), Side: lockbox.Machines, Epoch: 1, Index: uint16(i + 1), Holder: id.Recipient().ID()}
		share, err := lockbox.OpenShare(t.Context(), id, where, old, deal)
		must(err)
		part, err := box.Deal(rand.Reader, share)
		must(err)
		parts = append(parts, part)
	}
	m := &moved{World: w, o: o}
	m.sharing, err = box.Sharing(parts)
	must(err)
	for i, id := range ids {
		share, _, err := box.Accept(t.Context(), id, uint16(i+1), parts)
		must(err)
		m.shares = append(m.shares, share)
	}
	return m
}

// release is notary i's release of its new share, from 0.
func (m *moved) release(t *testing.T, i int, request, warrant dsse.Digest, to *ecdh.PublicKey) string {
	t.Helper()
	key, err := lockbox.P256Recipient(to)
	if err != nil {
		t.Fatal(err)
	}
	where := m.shares[i].Context()
	sealed, err := lockbox.Reseal(m.shares[i], key, lockbox.ReleaseContext{Context: where, Request: request, Recipient: key.ID()})
	if err != nil {
		t.Fatal(err)
	}
	n := m.Notaries[i]
	return string(m.By(n.Signing, &signoff.Release{Charter: m.ID, Notary: n.Doc.ID(), Warrant: warrant,
		Share: signoff.Share{Object: m.o.Digest(), Epoch: where.Epoch, Index: where.Index, Recipient: key.ID(), Sealed: sealed}}).Line())
}

// Notaries' shares that were dealt anew open with the commitments of their epoch,
// which anybody may give, as only those that continue the object's own are taken.
func TestAttackNotariesSharesDealtAnew(t *testing.T) {
	w := releasetest.New(t)
	to := w.Recipient.PublicKey()
	m := move(t, w, w.Seal("model", model()))
	other := move(t, w, w.Seal("another", model()))
	first := w.Bundle(m.o, to)
	request, warrant := parse(t, first.Request).Digest(), parse(t, first.Warrant).Digest()
	second := *first
	second.Machines, second.Releases = m.sharing.Bytes(), nil
	for i := range 3 {
		second.Releases = append(second.Releases, m.release(t, i, request, warrant, to))
	}
	for _, b := range []*release.Bundle{first, &second} {
		r, err := again(t, b).Verify(w.ID)
		if err != nil {
			t.Fatal(err)
		}
		u, err := r.Unlock(t.Context(), w.Recipient)
		if err != nil {
			t.Fatal(err)
		}
		u.Wipe()
	}
	for name, x := range map[string]struct {
		edit   func(*release.Bundle)
		reason string
	}{
		"without commitments":        {func(b *release.Bundle) { b.Machines = nil }, "with later commitments given: false"},
		"old shares under new ones":  {func(b *release.Bundle) { b.Releases = first.Releases }, "with later commitments given: true"},
		"of two epochs":              {func(b *release.Bundle) { b.Releases[0] = first.Releases[0] }, "with later commitments given: true"},
		"one short":                  {func(b *release.Bundle) { b.Releases = b.Releases[:2] }, "2 notaries' shares, it takes 3"},
		"of another object":          {func(b *release.Bundle) { b.Machines = other.sharing.Bytes() }, "is not to the sealed secret"},
		"a lower threshold":          {func(b *release.Bundle) { b.Machines = b.Machines[:2] }, "is below the sealed threshold"},
		"as commitments of people":   {func(b *release.Bundle) { b.Sharing, b.Machines = b.Machines, nil }, "is not to the sealed secret"},
		"another index in its place": {func(b *release.Bundle) { b.Releases[0] = b.Releases[1] }, "two by n2"},
	} {
		b := second
		b.Releases = slices.Clone(b.Releases)
		x.edit(&b)
		if _, err := b.Verify(w.ID); err == nil || !strings.Contains(err.Error(), x.reason) {
			t.Errorf("%s: %v, want %s", name, err, x.reason)
		}
	}
}
