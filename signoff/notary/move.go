package notary

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

const (
	// moveTime bounds one turn at moving shares, however slow the token is:
	// ticks, warrants and releases wait for it.
	moveTime = time.Second
	// moveWait is how long a notary that is not needed waits for each one
	// that deals before it.
	moveWait = 5 * time.Second
)

// A moving is the duties' memory of moving the machines' shares of objects to
// the notaries in office.
type moving struct {
	from  uint64            // size of the log at which to look again
	head  Digest            // the first object that waited for dealers
	since time.Time         // since when it is that
	deals uint32            // term in which this notary did not wait in vain
	unfit map[Digest]uint32 // epochs in which its share of an object was none
}

// A move is one object on its way.
type move struct {
	object *authority.Object
	next   *authority.Redeal
	box    *lockbox.Redeal
}

// planMove takes the next step in moving the machines' shares of objects to
// the notaries in office: this one accepts what was dealt to it, or deals on what
// it holds, as many objects at a time as go into a document. The log says what
// is left, so one that was killed goes on where it ended.
func (n *Notary) planMove(l look) (func(context.Context) error, error) {
	s, size, term := l.state, l.auth.Size(), l.state.Term()
	if term.Number == 1 || !l.isFinal(term.Index) || size < n.moving.from {
		return nil, nil
	}
	me, ok := s.NotaryBearer(n.id)
	if !ok {
		return nil, nil
	}
	var deal, accept []move
	for _, o := range s.DisplacedObjects(lockbox.Machines) {
		next := s.Redealing(o, lockbox.Machines)
		_, accepted := next.Accepted[me.Index]
		switch {
		case next.Sharing != nil && me.Index > 0 && !accepted:
			accept = append(accept, move{object: o, next: next})
		case next.Sharing == nil && s.MayDeal(o, me) == nil && n.moving.unfit[o.ID] != o.Machines.Epoch:
			deal = append(deal, move{object: o, next: next})
		}
	}
	switch {
	case len(accept) > 0:
		accept, err := batch(s, accept)
		return func(ctx context.Context) error { return n.acceptShares(ctx, size, me, accept) }, err
	case len(deal) == 0:
		n.moving.from = size + 1
		return nil, nil
	case !n.myTurn(l, me, deal[0].object):
		return nil, nil
	}
	deal, err := batch(s, deal)
	return func(ctx context.Context) error { return n.handOn(ctx, size, term, me, deal) }, err
}

func batch(s *authority.State, all []move) (out []move, err error) {
	out = all[:min(len(all), signoff.MaxRedealt)]
	for i, m := range out {
		if out[i].box, err = s.Lockbox(m.object, lockbox.Machines); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// myTurn lets as many deal as it takes, those in office first, as who left may
// be gone. Others wait until it is clear that somebody before them does not, and
// from then on deal along for the rest of the term.
func (n *Notary) myTurn(l look, me authority.Bearer, o *authority.Object) bool {
	held, stayed := o.Machines, map[uint16]bool{}
	for _, b := range l.state.Bearers(lockbox.Machines) {
		index, _ := held.Of(b)
		stayed[index] = true
	}
	mine, _ := held.Of(me)
	before := 0
	for _, index := range held.Holders {
		if stayed[index] && !stayed[mine] || stayed[index] == stayed[mine] && index < mine {
			before++
		}
	}
	if n.moving.head != o.ID {
		n.moving.head, n.moving.since = o.ID, l.now
	}
	if l.now.Sub(n.moving.since) >= time.Duration(before-held.Threshold()+1)*moveWait {
		n.moving.deals = l.state.Term().Number
	}
	return n.moving.deals == l.state.Term().Number
}

// handOn opens this notary's share of each object, one operation of the token,
// and deals it on to the council of the term.
func (n *Notary) handOn(ctx context.Context, size uint64, term *authority.Term, me authority.Bearer, moves []move) error {
	doc := &signoff.Redealing{Charter: n.cfg.Charter, Notary: n.id, Roster: term.Index, Warrant: term.Warrant}
	var parts []*lockbox.SubDeals
	for began := time.Now(); len(moves) > 0 && time.Since(began) < moveTime; moves = moves[1:] {
		o := moves[0].object
		part, err := n.dealOn(ctx, me, moves[0])
		var bad *lockbox.ShareError
		switch {
		case errors.As(err, &bad):
			if err := n.ownKeyWorks(ctx); err != nil {
				return err
			}
			n.moving.unfit[o.ID] = o.Machines.Epoch
			n.cfg.Log.Warn("this notary's share of an object is none; others have to deal", "object", o.ID, "err", err)
			continue
		case err != nil:
			return err
		}
		parts, doc.Objects = append(parts, part), append(doc.Objects, o.ID)
	}
	if len(parts) == 0 {
		return nil
	}
	var err error
	if doc.Blob, err = n.put(ctx, parts); err != nil {
		return err
	}
	n.cfg.Log.Info("dealing shares on", "term", term.Number, "objects", len(parts))
	return n.say(ctx, size, doc)
}

func (n *Notary) dealOn(ctx context.Context, me authority.Bearer, m move) (*lockbox.SubDeals, error) {
	index, _ := m.object.Machines.Of(me)
	share, err := n.share(ctx, m.object, index)
	if err != nil {
		return nil, err
	}
	defer share.Wipe()
	return m.box.Deal(rand.Reader, share)
}

// acceptShares opens each dealer's part of this notary's new share of each
// object, one operation of the token each, and names a dealer whose part is
// wrong.
func (n *Notary) acceptShares(ctx context.Context, size uint64, me authority.Bearer, moves []move) error {
	id, err := lockbox.TokenIdentity(n.cfg.Exchange)
	if err != nil {
		return err
	}
	doc := &signoff.Custody{Charter: n.cfg.Charter, Notary: n.id}
	var deals []lockbox.Deal
	blobs := map[Digest][]*lockbox.SubDeals{}
	for began := time.Now(); len(moves) > 0 && time.Since(began) < moveTime; moves = moves[1:] {
		m := moves[0]
		parts, err := n.parts(ctx, blobs, m.next)
		if err != nil {
			return err
		}
		word := signoff.Held{Object: m.object.ID, Epoch: m.next.Epoch, Sharing: authority.SharingDigest(m.next.Sharing)}
		share, deal, err := m.box.Accept(ctx, id, me.Index, parts)
		var bad *lockbox.ShareError
		switch {
		case errors.As(err, &bad) && bad.Dealer != 0:
			if err := n.ownKeyWorks(ctx); err != nil {
				return err
			}
			word.Wrong = bad.Dealer
			n.cfg.Log.Warn("a dealer's part of this notary's new share is wrong", "object", m.object.ID, "dealer", bad.Dealer, "err", err)
		case err != nil:
			return err
		default:
			share.Wipe()
			deals = append(deals, deal)
		}
		doc.Shares = append(doc.Shares, word)
	}
	if len(deals) > 0 {
		if doc.Blob, err = n.put(ctx, deals); err != nil {
			return err
		}
	}
	n.cfg.Log.Info("accepting shares", "objects", len(doc.Shares))
	return n.say(ctx, size, doc)
}

// parts are the fixed dealers' parts of an object. Blobs are read once.
func (n *Notary) parts(ctx context.Context, blobs map[Digest][]*lockbox.SubDeals, r *authority.Redeal) (parts []*lockbox.SubDeals, err error) {
	for _, d := range r.Dealers {
		list, ok := blobs[d.Blob]
		if !ok {
			blob, err := n.cfg.Client.Blob(ctx, d.Blob)
			if err != nil {
				return nil, err
			}
			if list, err = lockbox.ParseSubDealsList(blob); err != nil {
				return nil, err
			}
			blobs[d.Blob] = list
		}
		if d.Place >= len(list) {
			return nil, fmt.Errorf("notary: blob %s has the parts of %d objects, the log names place %d", d.Blob, len(list), d.Place)
		}
		parts = append(parts, list[d.Place])
	}
	return parts, nil
}

// ownKeyWorks tells a bad share from a bad token: nobody is accused for the own
// token's fault.
func (n *Notary) ownKeyWorks(ctx context.Context) error {
	private, err := hsm.HPKEPrivate(ctx, n.cfg.Exchange)
	if err != nil {
		return err
	}
	return n.selfTest(private)
}

// put stores a blob.
func (n *Notary) put(ctx context.Context, v any) (Digest, error) {
	b, err := dsse.Encode(v)
	if err != nil {
		return Digest{}, err
	}
	return n.cfg.Client.PutBlob(ctx, b)
}

// say appends a document about shares. Nothing more is done about them before
// the own fold has it, or, if it was void, whatever came before it.
func (n *Notary) say(ctx context.Context, size uint64, d signoff.Document) error {
	index, err := n.appendAt(ctx, d)
	if err == nil {
		n.moving.from = max(size, index) + 1
	}
	return err
}
