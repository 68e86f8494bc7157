package authority

import (
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// An Exposure counts whose shares of one object were ever sealed to P-256 alone:
// what a quantum computer gets from a copy of the log and its blobs. Shares that
// were dealt on to better keys are still in the old deals, so every epoch counts
// (docs/lockbox.md, "Quantum computers").
type Exposure struct {
	object *Object
	hybrid map[Digest]lockbox.Recipient // of people and notaries, by fingerprint
	dealt  map[lockbox.Side]bool        // whether any deal was seen: of what nobody saw nothing is known
	shares map[dealing]map[uint16]bool  // share indices
}

type dealing struct {
	side  lockbox.Side
	epoch uint32
}

// NewExposure knows of no deal yet. tokens are all that people ever had. A
// snapshot's people's half lies with the nodes of its run, sealed to their P-256
// keys.
func NewExposure(o *Object, tokens map[Digest]Owned) (*Exposure, error) {
	x := &Exposure{object: o, hybrid: map[Digest]lockbox.Recipient{}, dealt: map[lockbox.Side]bool{}, shares: map[dealing]map[uint16]bool{}}
	for _, t := range tokens {
		if !t.Exchange.Hybrid() {
			continue
		}
		key, err := t.Exchange.Recipient()
		if err != nil {
			return nil, fmt.Errorf("authority: %s: %w", t.Name, err)
		}
		x.hybrid[key.ID()] = key
	}
	if !o.Doc.Claim.IsZero() {
		for i := range o.Doc.Lockbox.People.Threshold {
			x.exposes(lockbox.People, 1, uint16(i+1))
		}
	}
	return x, nil
}

func (x *Exposure) exposes(side lockbox.Side, epoch uint32, index uint16) {
	at := dealing{side, epoch}
	if x.shares[at] == nil {
		x.shares[at] = map[uint16]bool{}
	}
	x.shares[at][index] = true
}

// sealed takes a share or sub-share that is sealed to a holder.
func (x *Exposure) sealed(side lockbox.Side, epoch uint32, index uint16, holder Digest, sealed []byte) {
	x.dealt[side] = true
	if key, ok := x.hybrid[holder]; !ok || len(sealed) != key.SealedSize() {
		x.exposes(side, epoch, index)
	}
}

// Deals takes deals, of whichever objects.
func (x *Exposure) Deals(deals ...lockbox.Deal) {
	for _, d := range deals {
		if d.Object == x.object.ID {
			x.sealed(d.Side, d.Epoch, d.Index, d.Holder, d.Sealed)
		}
	}
}

// Entry takes one entry of the log. What a void one names counts too: whoever
// copied the log has it. A blob that is not here is an error, since nobody can say
// what is in it; one that is no list of shares has none.
func (x *Exposure) Entry(line []byte, blobs Blobs) error {
	s, err := signoff.ReadLine(line)
	if err != nil {
		return nil // of no effect, and nothing that a program of ours wrote
	}
	if err := x.document(s.Doc, blobs); err != nil {
		return fmt.Errorf("authority: %s %s: %w", s.Doc.Kind(), s.Digest().Short(), err)
	}
	return nil
}

func (x *Exposure) document(doc signoff.Document, blobs Blobs) error {
	switch d := doc.(type) {
	case *signoff.Approval: // recipients have P-256 keys
		for _, sh := range d.Shares {
			if sh.Object == x.object.ID {
				x.exposes(lockbox.People, sh.Epoch, sh.Index)
			}
		}
	case *signoff.Release:
		if d.Share.Object == x.object.ID {
			x.exposes(lockbox.Machines, d.Share.Epoch, d.Share.Index)
		}
	case *signoff.Deals:
		if d.Object == x.object.ID {
			return x.blob(d.Blob, blobs, func(b []byte) {
				deals, _ := lockbox.ParseDeals(b)
				x.Deals(slices.Concat(deals.People, deals.Machines)...)
			})
		}
	case *signoff.Custody:
		if slices.ContainsFunc(d.Shares, func(h signoff.Held) bool { return h.Object == x.object.ID }) {
			return x.blob(d.Blob, blobs, func(b []byte) {
				side := lockbox.People
				if !d.Notary.IsZero() {
					side = lockbox.Machines
				}
				deals, _ := lockbox.ParseDealList(side, b)
				x.Deals(deals...)
			})
		}
	case *signoff.Redealing:
		if slices.Contains(d.Objects, x.object.ID) {
			return x.blob(d.Blob, blobs, func(b []byte) {
				list, _ := lockbox.ParseSubDealsList(b)
				x.subDeals(list)
			})
		}
	}
	return nil
}

func (x *Exposure) subDeals(list []*lockbox.SubDeals) {
	for _, part := range list {
		for _, d := range part.Deals {
			if part.Object == x.object.ID {
				x.sealed(part.Side, part.Epoch, d.Index, d.Holder, d.Sealed)
			}
		}
	}
}

func (x *Exposure) blob(digest Digest, blobs Blobs, take func([]byte)) error {
	if digest.IsZero() {
		return nil
	}
	b, err := fetch(blobs, digest)
	if err != nil {
		return err
	}
	take(b)
	return nil
}

// Side is the epoch of a side that is worst off: of how many holders the share
// stands under P-256 alone, and how many shares it takes. The side withstands if
// the former is less.
func (x *Exposure) Side(side lockbox.Side) (classic, threshold int) {
	held, sealed := x.object.People, x.object.Doc.Lockbox.People
	if side == lockbox.Machines {
		held, sealed = x.object.Machines, x.object.Doc.Lockbox.Machines
	}
	threshold = sealed.Threshold
	for at, shares := range x.shares {
		if at.side != side {
			continue
		}
		// Of an epoch that is not in force yet the threshold is at least the last.
		t := max(sealed.Threshold, held.Threshold())
		if s, err := held.Sharing(at.epoch); err == nil {
			t = s.Threshold()
		}
		if n := len(shares); n-t > classic-threshold || n-t == classic-threshold && t < threshold {
			classic, threshold = n, t
		}
	}
	return classic, threshold
}

// Withstands reports whether a quantum computer gets too few shares of the
// people's or of the machines' side from what is recorded; both secrets are needed.
func (x *Exposure) Withstands() bool {
	return x.withstands(lockbox.People) || x.withstands(lockbox.Machines)
}

func (x *Exposure) withstands(side lockbox.Side) bool {
	classic, threshold := x.Side(side)
	return x.dealt[side] && classic < threshold
}
