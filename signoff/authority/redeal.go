package authority

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// A Redeal is the people's side of an object on its way to the people of a
// roster. The epoch in force stays so until every one of them has opened the
// new share and found it right.
type Redeal struct {
	Epoch    uint32            `json:"epoch"`
	Roster   uint64            `json:"roster"`   // Roster.Index dealt to
	Dealers  []Dealer          `json:"dealers"`  // in the log's order, fixed when as many as the threshold
	Barred   []uint16          `json:"barred"`   // share indices of dealers whose part somebody found wrong
	Accepted map[uint16]Digest `json:"accepted"` // blobs with holders' deals for themselves, by share index
	Sharing  lockbox.Sharing   `json:"-"`        // of the new epoch, once the dealers are fixed
}

// A Dealer is one who dealt on.
type Dealer struct {
	Index uint16 `json:"index"`
	Blob  Digest `json:"blob"` // lockbox.SubDeals of several objects
	Place int    `json:"place"`
}

// SharingDigest names commitments.
func SharingDigest(s lockbox.Sharing) Digest {
	var fields [][]byte
	for _, c := range s.Bytes() {
		fields = append(fields, c)
	}
	return dsse.Sum("keyturn/sharing/v1", fields...)
}

// DealsOf is the blob with the deals of a holder, and whether the holder made
// it for own tokens.
func (h Holding) DealsOf(index uint16) (blob Digest, own bool) {
	if blob, ok := h.Own[index]; ok {
		return blob, true
	}
	return h.Deals, false
}

// Redealing is the object's re-deal to the roster in force as far as it has
// come; a beginning if there is none. What was dealt to another roster is void.
func (s *State) Redealing(o *Object) *Redeal {
	if o.Redeal != nil && o.Redeal.Roster == s.People.Index {
		return o.Redeal
	}
	return &Redeal{Epoch: o.People.Epoch + 1, Roster: s.People.Index, Accepted: map[uint16]Digest{}}
}

// Displaced reports whether the object's shares are not where the people are:
// somebody who left holds one, somebody who is here and can holds none, or fewer
// of them open the object than now have to.
func (s *State) Displaced(o *Object) bool {
	if o.People.Epoch == 0 {
		return false
	}
	if o.People.Threshold() < s.People.Threshold {
		return true
	}
	here := s.People.shareholders()
	for _, index := range o.People.Holders {
		if !here[index] {
			return true
		}
	}
	return len(s.People.holding(o.People)) < len(here)
}

// shareholders are the share indices of those who can hold one.
func (r *Roster) shareholders() map[uint16]bool {
	out := map[uint16]bool{}
	for _, m := range r.Members {
		if m.HoldsShare() {
			out[m.Index] = true
		}
	}
	return out
}

// HoldsShare reports whether the person holds a share of the object on a token
// that they have, and whether on each of them.
func (s *State) HoldsShare(o *Object, m *Member) (some, all bool) {
	all = true
	for _, t := range m.Tokens() {
		holds := o.People.Holders[t.Exchange.Fingerprint()] == m.Index
		some, all = some || holds, all && holds
	}
	return some, all
}

// Lockbox is the arithmetic of the object's re-deal to the roster in force.
func (s *State) Lockbox(o *Object) (*lockbox.Redeal, error) {
	old, err := o.People.Sharing(o.People.Epoch)
	if err != nil {
		return nil, err
	}
	group, err := s.People.Holders()
	return &lockbox.Redeal{Charter: s.ID, Object: o.ID, Side: lockbox.People, From: o.People.Epoch, Epoch: o.People.Epoch + 1, Old: old, Group: group}, err
}

// redealing takes a person's sub-deals. Objects that have as many dealers as
// they need are passed over, so that two may deal at the same time; anything
// else that is wrong with one object voids the whole document.
func (d decision) redealing(r *signoff.Redealing) ([]change, error) {
	s := d.state
	if r.Roster != s.People.Index {
		return nil, fmt.Errorf("dealt to the people of entry %d, those here are of entry %d", r.Roster, s.People.Index)
	}
	m, _ := s.Person(r.Person)
	blobs := subDeals{d: d, read: map[Digest][]*lockbox.SubDeals{}}
	mine, err := blobs.get(r.Blob)
	if err != nil {
		return nil, err
	}
	if len(mine) != len(r.Objects) {
		return nil, fmt.Errorf("sub-deals of %d objects for %d", len(mine), len(r.Objects))
	}
	var out []change
	for i, id := range r.Objects {
		o, ok := s.Objects[id]
		if !ok || !s.Displaced(o) {
			return nil, fmt.Errorf("object %s is not in the log, or its shares are where the people are", id)
		}
		next := *s.Redealing(o)
		if next.Sharing != nil {
			continue
		}
		if err := s.MayDeal(o, m); err != nil {
			return nil, err
		}
		box, err := s.Lockbox(o)
		if err != nil {
			return nil, err
		}
		if mine[i].Dealer != m.Index {
			return nil, fmt.Errorf("sub-deals of holder %d, %s is holder %d", mine[i].Dealer, m.Name, m.Index)
		}
		if err := box.Verify(mine[i]); err != nil {
			return nil, err
		}
		next.Dealers = append(slices.Clone(next.Dealers), Dealer{m.Index, r.Blob, i})
		if len(next.Dealers) == len(box.Old) {
			if next.Sharing, err = blobs.sharing(box, next.Dealers); err != nil {
				return nil, err
			}
		}
		rec := *o
		rec.Redeal = &next
		out = append(out, putObject(&rec))
	}
	if len(out) == 0 {
		return nil, errors.New("all these objects have as many dealers as they need")
	}
	return out, nil
}

// MayDeal wants a holder of a share who has not dealt yet.
func (s *State) MayDeal(o *Object, m *Member) error {
	r := s.Redealing(o)
	if some, _ := s.HoldsShare(o, m); !some {
		return fmt.Errorf("%s holds no share of object %s in epoch %d", m.Name, o.ID.Short(), o.People.Epoch)
	}
	if slices.ContainsFunc(r.Dealers, func(x Dealer) bool { return x.Index == m.Index }) {
		return fmt.Errorf("%s has dealt the share of object %s on", m.Name, o.ID.Short())
	}
	if slices.Contains(r.Barred, m.Index) {
		return fmt.Errorf("somebody found %s's part of object %s wrong; others deal", m.Name, o.ID.Short())
	}
	return nil
}

// subDeals reads blobs of sub-deals, each once.
type subDeals struct {
	d    decision
	read map[Digest][]*lockbox.SubDeals
}

func (b subDeals) get(blob Digest) ([]*lockbox.SubDeals, error) {
	if list, ok := b.read[blob]; ok {
		return list, nil
	}
	data, err := b.d.blob(blob)
	if err != nil {
		return nil, err
	}
	list, err := lockbox.ParseSubDealsList(data)
	if err == nil {
		b.read[blob] = list
	}
	return list, err
}

// sharing is what the dealers' parts come to.
func (b subDeals) sharing(box *lockbox.Redeal, dealers []Dealer) (lockbox.Sharing, error) {
	var all []*lockbox.SubDeals
	for _, x := range dealers {
		list, err := b.get(x.Blob)
		if err != nil {
			return nil, err
		}
		all = append(all, list[x.Place])
	}
	return box.Sharing(all)
}

// custody takes a person's word on own shares: of the epoch in force, dealt to
// other tokens of the person; or of the next, right or wrong.
func (d decision) custody(c *signoff.Custody) ([]change, error) {
	m, _ := d.state.Person(c.Person)
	if !m.HoldsShare() {
		return nil, fmt.Errorf("%s signs and holds no shares", m.Name)
	}
	deals, err := d.ownDeals(c, m)
	if err != nil {
		return nil, err
	}
	var out []change
	for _, x := range c.Shares {
		o, ok := d.state.Objects[x.Object]
		if !ok || o.People.Epoch == 0 {
			return nil, fmt.Errorf("object %s is not in the log, or its shares are not dealt", x.Object)
		}
		if x.Wrong == 0 {
			if deals, err = takeOwn(deals, o.ID, x.Epoch, m); err != nil {
				return nil, err
			}
		}
		rec, err := d.held(o, x, m, c.Blob)
		if err != nil {
			return nil, err
		}
		ch := putObject(rec)
		if rec.People.Epoch != o.People.Epoch {
			ch.shares = o.ID
		}
		out = append(out, ch)
	}
	if len(deals) > 0 {
		return nil, fmt.Errorf("%d deals more than shares", len(deals))
	}
	return out, nil
}

func (d decision) ownDeals(c *signoff.Custody, m *Member) ([]lockbox.Deal, error) {
	if c.Blob.IsZero() {
		return nil, nil
	}
	data, err := d.blob(c.Blob)
	if err != nil {
		return nil, err
	}
	return lockbox.ParseDealList(data)
}

// takeOwn checks the deals of one object, one for each token of the person, by
// what they say of themselves, and returns the rest.
func takeOwn(deals []lockbox.Deal, object Digest, epoch uint32, m *Member) ([]lockbox.Deal, error) {
	for _, t := range m.Tokens() {
		if len(deals) == 0 {
			return nil, fmt.Errorf("no deal of object %s for token %s", object.Short(), t.ID().Short())
		}
		x := deals[0]
		if x.Object != object || x.Epoch != epoch || x.Index != m.Index || x.Holder != t.Exchange.Fingerprint() {
			return nil, fmt.Errorf("a deal of share %d of object %s in epoch %d for key %s stands where share %d of %s in epoch %d for %s belongs",
				x.Index, x.Object.Short(), x.Epoch, x.Holder.Short(), m.Index, object.Short(), epoch, t.Exchange.Fingerprint().Short())
		}
		deals = deals[1:]
	}
	return deals, nil
}

// held is the object after one person's word on one share of it.
func (d decision) held(o *Object, x signoff.Held, m *Member, blob Digest) (*Object, error) {
	rec := *o
	now, err := o.People.Sharing(o.People.Epoch)
	if err != nil {
		return nil, err
	}
	next := *d.state.Redealing(o)
	switch {
	case x.Epoch == o.People.Epoch && x.Sharing == SharingDigest(now) && x.Wrong == 0:
		if !slices.Contains(slices.Collect(maps.Values(o.People.Holders)), m.Index) {
			return nil, fmt.Errorf("%s holds no share of object %s in epoch %d", m.Name, o.ID.Short(), x.Epoch)
		}
		rec.People = o.People.kept(m, blob)
	case x.Epoch != next.Epoch || next.Sharing == nil || x.Sharing != SharingDigest(next.Sharing):
		return nil, fmt.Errorf("shares of object %s in epoch %d under commitments %s are none that are dealt", o.ID.Short(), x.Epoch, x.Sharing.Short())
	case x.Wrong != 0:
		return &rec, rec.without(&next, x.Wrong)
	default:
		if _, ok := next.Accepted[m.Index]; ok {
			return nil, fmt.Errorf("%s has accepted the new share of object %s", m.Name, o.ID.Short())
		}
		next.Accepted = maps.Clone(next.Accepted)
		next.Accepted[m.Index] = blob
		rec.Redeal = &next
		if len(next.Accepted) == len(d.state.People.shareholders()) {
			rec.People, rec.Redeal = o.People.follow(&next, d.state.People), nil
		}
	}
	return &rec, nil
}

// without drops a dealer whose part somebody found wrong, for as long as the
// roster lasts; somebody else deals instead, and all accept anew. Who is right,
// accuser or accused, nobody else can tell.
func (o *Object) without(next *Redeal, dealer uint16) error {
	i := slices.IndexFunc(next.Dealers, func(x Dealer) bool { return x.Index == dealer })
	if i < 0 {
		return fmt.Errorf("holder %d dealt no part of object %s", dealer, o.ID.Short())
	}
	next.Dealers = slices.Delete(slices.Clone(next.Dealers), i, i+1)
	next.Barred = append(slices.Clone(next.Barred), dealer)
	next.Accepted, next.Sharing = map[uint16]Digest{}, nil
	o.Redeal = next
	return nil
}

// kept is the holding with one person's share on all tokens of that person.
func (h Holding) kept(m *Member, blob Digest) Holding {
	h.Own, h.Holders = maps.Clone(h.Own), maps.Clone(h.Holders)
	if h.Own == nil {
		h.Own = map[uint16]Digest{}
	}
	h.Own[m.Index] = blob
	for _, t := range m.Tokens() {
		h.Holders[t.Exchange.Fingerprint()] = m.Index
	}
	return h
}

// follow is the holding of the next epoch.
func (h Holding) follow(r *Redeal, people *Roster) Holding {
	next := Holding{Epoch: r.Epoch, Own: r.Accepted, Holders: map[Digest]uint16{}, Sharings: append(slices.Clone(h.Sharings), r.Sharing)}
	for _, t := range people.Tokens() {
		if !t.HoldsShare() {
			continue
		}
		next.Holders[t.Exchange.Fingerprint()] = t.Index
	}
	return next
}
