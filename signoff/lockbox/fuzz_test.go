package lockbox

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// What parses writes itself back to a form that parses to the same.
func FuzzDeals(f *testing.F) {
	w := newWorld(f, 2, 2, 2, 2)
	data, err := dsse.Encode(w.deals)
	w.must(err)
	f.Add(data)
	f.Add([]byte(`{"people":[],"machines":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseDeals(data)
		if err != nil {
			return
		}
		again, err := dsse.Encode(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseDeals(again); err != nil {
			t.Fatal(err)
		}
	})
}

// No sub-deals of a stranger make Verify or Accept panic or succeed.
func FuzzSubDeals(f *testing.F) {
	w := newWorld(f, 2, 2, 2, 2)
	members := newMembers(f, 2)
	r, subs := w.redeal(2, members, w.people)
	good, err := dsse.Encode(subs[0])
	w.must(err)
	f.Add(good)
	f.Add([]byte(`{"dealer":1,"commitments":[],"deals":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseSubDeals(data)
		if err != nil {
			return
		}
		if err := r.Verify(d); err != nil {
			if _, _, err := r.Accept(context.Background(), members[0].id, 1, []*SubDeals{d, subs[1]}); err == nil {
				t.Fatal("accepted what does not verify")
			}
			return
		}
		if d.Commitments[0] != subs[0].Commitments[0] && d.Commitments[0] != subs[1].Commitments[0] {
			t.Fatal("verified another share")
		}
	})
}

func FuzzRecipient(f *testing.F) {
	f.Add(newMember(f, 1, false).Key.String())
	f.Add(newMember(f, 1, true).Key.String())
	f.Add("p256:")
	f.Add("mlkem768-p256:AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRecipient(text)
		if err != nil {
			return
		}
		if r.String() != text || r.IsZero() {
			t.Fatalf("%q reads as %q", text, r.String())
		}
	})
}

// Nothing but the deal itself opens.
func FuzzSealed(f *testing.F) {
	w := newWorld(f, 2, 2, 2, 2)
	m := w.people[0]
	c, d := w.context(People, m), w.deal(People, m)
	good := d.Sealed
	f.Add(good)
	f.Add(good[:pointSize])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, sealed []byte) {
		d := d
		d.Sealed = sealed
		_, err := OpenShare(context.Background(), m.id, c, w.commitments.People, d)
		if (err == nil) != bytes.Equal(sealed, good) {
			t.Fatalf("%x: %v", sealed, err)
		}
		var bad *ShareError
		if err != nil && !errors.As(err, &bad) {
			t.Fatalf("not a share error: %v", err)
		}
	})
}

// Points and scalars that decode are in their only encoding.
func FuzzGroup(f *testing.F) {
	g := encodePoint(curve.Generator())
	f.Add(g[:])
	f.Add(make([]byte, 32))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := parseScalar(data); err == nil && !bytes.Equal(appendScalar(nil, s), data) {
			t.Fatalf("scalar %x", data)
		}
		if len(data) != 32 {
			return
		}
		if p, err := parsePoint([32]byte(data)); err == nil && encodePoint(p) != [32]byte(data) {
			t.Fatalf("point %x", data)
		}
	})
}
