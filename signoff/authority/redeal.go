package authority

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// A Redeal is one side of an object on its way to the people of a roster or to
// the council of a term. The epoch in force stays so until every one of them has
// opened the new share and found it right.
type Redeal struct {
	Epoch    uint32            `json:"epoch"`
	Roster   uint64            `json:"roster"`   // Roster.Index or Term.Index dealt to
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

// A Bearer is a person or a notary as a holder of shares.
type Bearer struct {
	Side  lockbox.Side
	Name  string
	Index uint16   // of the share that is dealt to it now; 0 if none is, as it left office
	Keys  []Digest // exchange keys by fingerprint, first the first token's; none of who only signs

	exchange []signoff.PublicKey // the same keys
}

// Bearer is the person as a holder of shares.
func (m *Member) Bearer() Bearer {
	b := Bearer{Side: lockbox.People, Name: m.Name, Index: m.Index}
	for _, t := range m.Tokens() {
		if t.HoldsShare() {
			b.Keys, b.exchange = append(b.Keys, t.Exchange.Fingerprint()), append(b.exchange, t.Exchange)
		}
	}
	return b
}

// NotaryBearer is a notary that is or was in office as a holder of shares.
func (s *State) NotaryBearer(id Digest) (Bearer, bool) {
	g, ok := s.signers[id]
	if !ok || g.notary == nil {
		return Bearer{}, false
	}
	x := g.notary.Exchange
	return Bearer{lockbox.Machines, g.notary.Name, g.index, []Digest{x.Fingerprint()}, []signoff.PublicKey{x}}, true
}

// Bearers are those who are to hold shares of a side: the people of the roster
// who can, or the notaries in office.
func (s *State) Bearers(side lockbox.Side) (out []Bearer) {
	if side == lockbox.Machines {
		for _, y := range s.Council().Notaries {
			b, _ := s.NotaryBearer(y.ID())
			out = append(out, b)
		}
		return out
	}
	for _, m := range s.People.Members {
		if m.HoldsShare() {
			out = append(out, m.Bearer())
		}
	}
	return out
}

// signed is who signed a document about shares: the one of the two that it
// names.
func (s *State) signed(person, notary Digest) (Bearer, error) {
	if b, ok := s.NotaryBearer(notary); ok {
		return b, nil
	}
	m, ok := s.Person(person)
	if !ok || !m.HoldsShare() {
		return Bearer{}, fmt.Errorf("%s signs and holds no shares", s.PersonName(person))
	}
	return m.Bearer(), nil
}

// roster is the entry that made those who are to hold a side's shares, and the
// warrant for it if they are notaries.
func (s *State) roster(side lockbox.Side) (index uint64, warrant Digest) {
	if side == lockbox.Machines {
		return s.Term().Index, s.Term().Warrant
	}
	return s.People.Index, Digest{}
}

// group is those who are to hold a side's shares as the lockbox has them.
func (s *State) group(side lockbox.Side) (lockbox.Group, error) {
	if side == lockbox.Machines {
		return councilHolders(s.Council())
	}
	return s.People.Holders()
}

// side is one side of an object, to be changed in a copy.
func (o *Object) side(side lockbox.Side) (*Holding, **Redeal) {
	if side == lockbox.Machines {
		return &o.Machines, &o.Handover
	}
	return &o.People, &o.Redeal
}

// Holding is who holds the shares of a side.
func (o *Object) Holding(side lockbox.Side) Holding {
	h, _ := o.side(side)
	return *h
}

// Of is the index of the share that was dealt to any of the bearer's keys, 0 if
// to none, and whether it was to all of them.
func (h Holding) Of(b Bearer) (index uint16, all bool) {
	all = true
	for _, k := range b.Keys {
		i := h.Holders[k]
		index, all = max(index, i), all && i > 0
	}
	return index, all && index > 0
}

// Redealing is the re-deal of a side of the object to those who are to hold it
// now, as far as it has come; a beginning if there is none. What was dealt to
// others is void.
func (s *State) Redealing(o *Object, side lockbox.Side) *Redeal {
	h, r := o.side(side)
	roster, _ := s.roster(side)
	if *r != nil && (*r).Roster == roster {
		return *r
	}
	return &Redeal{Epoch: h.Epoch + 1, Roster: roster, Accepted: map[uint16]Digest{}}
}

// Displaced reports whether the object's shares of a side are not where they are
// to be: somebody who left holds one, somebody who is here and can holds none,
// or fewer of them open the object than now have to.
func (s *State) Displaced(o *Object, side lockbox.Side) bool {
	return o.Holding(side).displaced(s.threshold(side), s.Bearers(side))
}

// threshold is how many shares of a side open what is sealed now.
func (s *State) threshold(side lockbox.Side) int {
	if side == lockbox.Machines {
		return s.Council().Quorum()
	}
	return s.People.Threshold
}

func (h Holding) displaced(threshold int, here []Bearer) bool {
	if h.Epoch == 0 {
		return false
	}
	held := make([]uint16, 0, signoff.MaxPeople)
	for _, b := range here {
		index, _ := h.Of(b)
		if index == 0 {
			return true
		}
		held = append(held, index)
	}
	for _, index := range h.Holders {
		if !slices.Contains(held, index) {
			return true
		}
	}
	return h.Threshold() < threshold
}

// DisplacedObjects are those of which a side's shares are not where they are to
// be, in the log's order.
func (s *State) DisplacedObjects(side lockbox.Side) (out []*Object) {
	threshold, here := s.threshold(side), s.Bearers(side)
	for _, o := range s.Objects {
		if o.Holding(side).displaced(threshold, here) {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(x, y *Object) int { return cmp.Compare(x.Index, y.Index) })
	return out
}

// Lockbox is the arithmetic of the object's re-deal to those who are to hold the
// side's shares now.
func (s *State) Lockbox(o *Object, side lockbox.Side) (*lockbox.Redeal, error) {
	h := o.Holding(side)
	old, err := h.Sharing(h.Epoch)
	if err != nil {
		return nil, err
	}
	group, err := s.group(side)
	return &lockbox.Redeal{Charter: s.ID, Object: o.ID, Side: side, From: h.Epoch, Epoch: h.Epoch + 1, Old: old, Group: group}, err
}

// redealing takes a holder's sub-deals. Objects that have as many dealers as
// they need are passed over, so that two may deal at the same time; anything
// else that is wrong with one object voids the whole document.
func (d decision) redealing(r *signoff.Redealing) ([]change, error) {
	s := d.state
	b, err := s.signed(r.Person, r.Notary)
	if err != nil {
		return nil, err
	}
	if roster, warrant := s.roster(b.Side); r.Roster != roster || r.Warrant != warrant {
		return nil, fmt.Errorf("dealt to the %s of entry %d, those here are of entry %d", whose(b.Side), r.Roster, roster)
	}
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
		if !ok || !s.Displaced(o, b.Side) {
			return nil, fmt.Errorf("object %s is not in the log, or its shares are where the %s are", id, whose(b.Side))
		}
		next := *s.Redealing(o, b.Side)
		if next.Sharing != nil {
			continue
		}
		if err := s.MayDeal(o, b); err != nil {
			return nil, err
		}
		box, err := s.Lockbox(o, b.Side)
		if err != nil {
			return nil, err
		}
		index, _ := o.Holding(b.Side).Of(b)
		if mine[i].Dealer != index {
			return nil, fmt.Errorf("sub-deals of holder %d, %s is holder %d", mine[i].Dealer, b.Name, index)
		}
		if err := box.Verify(mine[i]); err != nil {
			return nil, err
		}
		next.Dealers = append(slices.Clone(next.Dealers), Dealer{index, r.Blob, i})
		if len(next.Dealers) == len(box.Old) {
			if next.Sharing, err = blobs.sharing(box, next.Dealers); err != nil {
				return nil, err
			}
		}
		rec := *o
		_, to := rec.side(b.Side)
		*to = &next
		out = append(out, putObject(&rec))
	}
	if len(out) == 0 {
		return nil, errors.New("all these objects have as many dealers as they need")
	}
	return out, nil
}

func whose(side lockbox.Side) string {
	if side == lockbox.Machines {
		return "notaries"
	}
	return "people"
}

// MayDeal wants a holder of a share who has not dealt yet.
func (s *State) MayDeal(o *Object, b Bearer) error {
	r, h := s.Redealing(o, b.Side), o.Holding(b.Side)
	index, _ := h.Of(b)
	if index == 0 {
		return fmt.Errorf("%s holds no share of object %s in epoch %d", b.Name, o.ID.Short(), h.Epoch)
	}
	if slices.ContainsFunc(r.Dealers, func(x Dealer) bool { return x.Index == index }) {
		return fmt.Errorf("%s has dealt the share of object %s on", b.Name, o.ID.Short())
	}
	if slices.Contains(r.Barred, index) {
		return fmt.Errorf("somebody found %s's part of object %s wrong; others deal", b.Name, o.ID.Short())
	}
	return nil
}

// WaitsFor are those for whom the re-deal of a side of the object waits: holders
// who may deal, or, once enough have, those who have not accepted.
func (s *State) WaitsFor(o *Object, side lockbox.Side) (out []Bearer) {
	r := s.Redealing(o, side)
	if r.Sharing == nil {
		return slices.DeleteFunc(s.everyBearer(side), func(b Bearer) bool { return s.MayDeal(o, b) != nil })
	}
	return slices.DeleteFunc(s.Bearers(side), func(b Bearer) bool { _, ok := r.Accepted[b.Index]; return ok })
}

// everyBearer has the notaries that left office as well: they still deal.
func (s *State) everyBearer(side lockbox.Side) []Bearer {
	out := s.Bearers(side)
	if side == lockbox.People {
		return out
	}
	for _, t := range slices.Backward(s.Terms) {
		for _, y := range t.Council.Notaries {
			if b, _ := s.NotaryBearer(y.ID()); !slices.ContainsFunc(out, func(x Bearer) bool { return x.Name == b.Name }) {
				out = append(out, b)
			}
		}
	}
	return out
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

// custody takes a holder's word on own shares: of the epoch in force, dealt to
// other tokens of the person; or of the next, right or wrong.
func (d decision) custody(c *signoff.Custody) ([]change, error) {
	b, err := d.state.signed(c.Person, c.Notary)
	if err != nil {
		return nil, err
	}
	deals, err := d.ownDeals(c, b)
	if err != nil {
		return nil, err
	}
	var out []change
	for _, x := range c.Shares {
		o, ok := d.state.Objects[x.Object]
		if !ok || o.Holding(b.Side).Epoch == 0 {
			return nil, fmt.Errorf("object %s is not in the log, or its shares are not dealt", x.Object)
		}
		if x.Wrong == 0 {
			if deals, err = takeOwn(deals, o.ID, x.Epoch, b); err != nil {
				return nil, err
			}
		}
		rec, err := d.held(o, x, b, c.Blob)
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

func (d decision) ownDeals(c *signoff.Custody, b Bearer) ([]lockbox.Deal, error) {
	if c.Blob.IsZero() {
		return nil, nil
	}
	data, err := d.blob(c.Blob)
	if err != nil {
		return nil, err
	}
	return lockbox.ParseDealList(b.Side, data)
}

// takeOwn checks the deals of one object, one for each key of the bearer, by
// what they say of themselves, and returns the rest.
func takeOwn(deals []lockbox.Deal, object Digest, epoch uint32, b Bearer) ([]lockbox.Deal, error) {
	for i, k := range b.Keys {
		if len(deals) == 0 {
			return nil, fmt.Errorf("no deal of object %s for %s's key %s", object.Short(), b.Name, k.Short())
		}
		x := deals[0]
		if x.Object != object || x.Epoch != epoch || x.Index != b.Index || x.Holder != k {
			return nil, fmt.Errorf("a deal of share %d of object %s in epoch %d for key %s stands where share %d of %s in epoch %d for %s belongs",
				x.Index, x.Object.Short(), x.Epoch, x.Holder.Short(), b.Index, object.Short(), epoch, k.Short())
		}
		key, err := b.exchange[i].Recipient()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.Name, err)
		}
		if err := fits(x, key); err != nil {
			return nil, err
		}
		deals = deals[1:]
	}
	return deals, nil
}

// held is the object after one holder's word on one share of it.
func (d decision) held(o *Object, x signoff.Held, b Bearer, blob Digest) (*Object, error) {
	rec := *o
	holding, redeal := rec.side(b.Side)
	now, err := holding.Sharing(holding.Epoch)
	if err != nil {
		return nil, err
	}
	next := *d.state.Redealing(o, b.Side)
	switch {
	case x.Epoch == holding.Epoch && x.Sharing == SharingDigest(now) && x.Wrong == 0 && b.Side == lockbox.People:
		if !slices.Contains(slices.Collect(maps.Values(holding.Holders)), b.Index) {
			return nil, fmt.Errorf("%s holds no share of object %s in epoch %d", b.Name, o.ID.Short(), x.Epoch)
		}
		*holding = holding.kept(b, blob)
	case x.Epoch != next.Epoch || next.Sharing == nil || x.Sharing != SharingDigest(next.Sharing):
		return nil, fmt.Errorf("shares of object %s in epoch %d under commitments %s are none that are dealt", o.ID.Short(), x.Epoch, x.Sharing.Short())
	case x.Wrong != 0:
		*redeal = &next
		return &rec, next.without(o.ID, x.Wrong)
	default:
		if _, ok := next.Accepted[b.Index]; ok {
			return nil, fmt.Errorf("%s has accepted the new share of object %s", b.Name, o.ID.Short())
		}
		next.Accepted = maps.Clone(next.Accepted)
		next.Accepted[b.Index] = blob
		*redeal = &next
		if here := d.state.Bearers(b.Side); len(next.Accepted) == len(here) {
			*holding, *redeal = holding.follow(&next, here), nil
		}
	}
	return &rec, nil
}

// without drops a dealer whose part somebody found wrong, for as long as the
// roster lasts; somebody else deals instead, and all accept anew. Who is right,
// accuser or accused, nobody else can tell.
func (r *Redeal) without(object Digest, dealer uint16) error {
	i := slices.IndexFunc(r.Dealers, func(x Dealer) bool { return x.Index == dealer })
	if i < 0 {
		return fmt.Errorf("holder %d dealt no part of object %s", dealer, object.Short())
	}
	r.Dealers = slices.Delete(slices.Clone(r.Dealers), i, i+1)
	r.Barred = append(slices.Clone(r.Barred), dealer)
	r.Accepted, r.Sharing = map[uint16]Digest{}, nil
	return nil
}

// kept is the holding with one person's share on all tokens of that person.
func (h Holding) kept(b Bearer, blob Digest) Holding {
	h.Own, h.Holders = maps.Clone(h.Own), maps.Clone(h.Holders)
	if h.Own == nil {
		h.Own = map[uint16]Digest{}
	}
	h.Own[b.Index] = blob
	for _, k := range b.Keys {
		h.Holders[k] = b.Index
	}
	return h
}

// follow is the holding of the next epoch.
func (h Holding) follow(r *Redeal, bearers []Bearer) Holding {
	next := Holding{Epoch: r.Epoch, Own: r.Accepted, Holders: map[Digest]uint16{}, Sharings: append(slices.Clone(h.Sharings), r.Sharing)}
	for _, b := range bearers {
		for _, k := range b.Keys {
			next.Holders[k] = b.Index
		}
	}
	return next
}
