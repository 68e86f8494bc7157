package lockbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cloudflare/circl/group"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// A Redeal moves one side of one object to other holders. Each of a threshold
// of old holders shares its share again (Deal); everybody can check that
// (Verify, Sharing); each new holder combines one sub-share of each dealer into
// a share of the same secret (Accept). The secret is never formed, and the new
// commitments keep the old constant term.
//
// All new holders must accept the same dealers: whoever runs the re-deal fixes
// them in the log. A re-deal takes nothing away: a threshold of old shares that
// were kept still opens the object. Revoking means sealing anew.
type Redeal struct {
	Charter [32]byte
	Object  [32]byte
	Side    Side
	From    uint32  // epoch of the old deals
	Epoch   uint32  // epoch of the new deals, later than From
	Old     Sharing // commitments in epoch From
	Group   Group   // the new holders
}

// Check refuses missing members, an epoch that does not move forward, and a
// threshold below the old one.
func (r *Redeal) Check() error {
	if err := r.Side.check(); err != nil {
		return err
	}
	if r.Charter == [32]byte{} || r.Object == [32]byte{} {
		return errors.New("lockbox: re-deal without charter or object")
	}
	if r.From == 0 || r.Epoch <= r.From {
		return fmt.Errorf("lockbox: re-deal from epoch %d to epoch %d, want a later one", r.From, r.Epoch)
	}
	if err := r.Old.Check(); err != nil {
		return err
	}
	if err := r.Group.Check(); err != nil {
		return err
	}
	if int(r.Group.Threshold) < len(r.Old) {
		return fmt.Errorf("lockbox: re-deal to threshold %d, below %d; seal the object anew to lower it", r.Group.Threshold, len(r.Old))
	}
	return nil
}

// SubDeals is what one old holder deals: the commitments to its polynomial and
// a sub-share for every key of the new group, in the group's order.
type SubDeals struct {
	Object      dsse.Digest `json:"object"`
	Side        Side        `json:"side"`
	From        uint32      `json:"from"`
	Epoch       uint32      `json:"epoch"`
	Dealer      uint16      `json:"dealer"` // index of the old holder
	Commitments Sharing     `json:"commitments"`
	Deals       []SubDeal   `json:"deals"`
}

// A SubDeal is one sub-share, sealed to a key of a new holder.
type SubDeal struct {
	Index  uint16      `json:"index"`
	Holder dsse.Digest `json:"holder"`
	Sealed []byte      `json:"sealed"`
}

// ParseSubDeals reads the JSON of [SubDeals] strictly. [Redeal.Verify] checks
// what it says.
func ParseSubDeals(data []byte) (*SubDeals, error) {
	d := new(SubDeals)
	if err := dsse.Decode(data, d); err != nil {
		return nil, fmt.Errorf("lockbox: sub-deals: %w", err)
	}
	if n := len(d.Deals); n > MaxHolders {
		return nil, fmt.Errorf("lockbox: %d sub-deals, at most %d", n, MaxHolders)
	}
	return d, nil
}

// ParseSubDealsList is ParseSubDeals for one dealer's sub-deals of several
// objects.
func ParseSubDealsList(data []byte) ([]*SubDeals, error) {
	var list []*SubDeals
	if err := dsse.Decode(data, &list); err != nil {
		return nil, fmt.Errorf("lockbox: sub-deals: %w", err)
	}
	for _, d := range list {
		if d == nil || len(d.Deals) > MaxHolders {
			return nil, fmt.Errorf("lockbox: empty sub-deals, or more than %d of one object", MaxHolders)
		}
	}
	return list, nil
}

// slot is the context of a sub-share for h.
func (r *Redeal) slot(h Holder) Context {
	return Context{r.Charter, r.Object, r.Side, r.Epoch, h.Index, h.ID()}
}

// info is the HPKE info of the sub-share that dealer deals to c.
func (r *Redeal) info(c Context, dealer uint16) []byte {
	return join("keyturn/subdeal/v1", append(c.fields(),
		binary.BigEndian.AppendUint32(nil, r.From),
		binary.BigEndian.AppendUint16(nil, dealer))...)
}

// Deal shares an old holder's share among the new holders.
func (r *Redeal) Deal(rand io.Reader, s *Share) (*SubDeals, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	if rand == nil || s == nil {
		return nil, errors.New("lockbox: re-deal: no source of randomness or no share")
	}
	c := s.context
	if c.Charter != r.Charter || c.Object != r.Object || c.Side != r.Side || c.Epoch != r.From {
		return nil, c.fault(Foreign, fmt.Errorf("side %s of object %s from epoch %d is re-dealt", r.Side, dsse.Digest(r.Object), r.From))
	}
	if err := s.Verify(r.Old); err != nil {
		return nil, err
	}
	f, err := newPolynomial(rand, s.secret, int(r.Group.Threshold))
	if err != nil {
		return nil, err
	}
	defer f.wipe()
	out := &SubDeals{Object: r.Object, Side: r.Side, From: r.From, Epoch: r.Epoch, Dealer: c.Index, Commitments: f.commit()}
	for _, h := range r.Group.Holders {
		sub := f.at(h.Index)
		sealed, err := h.Key.seal(r.info(r.slot(h), c.Index), sub)
		sub.wipe()
		if err != nil {
			return nil, err
		}
		out.Deals = append(out.Deals, SubDeal{h.Index, h.ID(), sealed})
	}
	return out, nil
}

// Verify checks what is public about one dealer's sub-deals: that they are of
// this re-deal, that the dealer shares exactly its own old share with exactly
// the agreed degree, and that every key of the new group has one.
func (r *Redeal) Verify(d *SubDeals) error {
	if err := r.Check(); err != nil {
		return err
	}
	if d == nil || d.Dealer == 0 {
		return errors.New("lockbox: sub-deals without a dealer")
	}
	dealer := Context{Charter: r.Charter, Object: r.Object, Side: r.Side, Epoch: r.From, Index: d.Dealer}
	fault := func(f Fault, format string, args ...any) error {
		return &ShareError{Fault: f, Context: dealer, Dealer: d.Dealer, Err: fmt.Errorf(format, args...)}
	}
	if d.Object != r.Object || d.Side != r.Side {
		return fault(Foreign, "the sub-deals are of side %.20q of object %s", string(d.Side), d.Object)
	}
	if d.From != r.From || d.Epoch != r.Epoch {
		return fault(Replayed, "the sub-deals go from epoch %d to %d", d.From, d.Epoch)
	}
	if len(d.Commitments) != int(r.Group.Threshold) {
		return fault(Malformed, "%d commitments, want %d", len(d.Commitments), r.Group.Threshold)
	}
	if err := d.Commitments.Check(); err != nil {
		return fault(Malformed, "%w", err)
	}
	old, err := r.Old.at(d.Dealer)
	if err != nil {
		return err
	}
	if encodePoint(old) != d.Commitments[0] {
		return fault(Wrong, "the constant term is not the dealer's own share")
	}
	return r.verifyAddressees(d, fault)
}

func (r *Redeal) verifyAddressees(d *SubDeals, fault func(Fault, string, ...any) error) error {
	if len(d.Deals) != len(r.Group.Holders) {
		return fault(Malformed, "%d sub-deals for %d keys", len(d.Deals), len(r.Group.Holders))
	}
	for i, h := range r.Group.Holders {
		sub := d.Deals[i]
		if sub.Index != h.Index || sub.Holder != h.ID() {
			return fault(Foreign, "sub-deal %d is for holder %d (key %s), want holder %d (key %s)", i, sub.Index, sub.Holder, h.Index, dsse.Digest(h.ID()))
		}
		if want := h.Key.encSize() + pairSize + tagSize; len(sub.Sealed) != want {
			return fault(Malformed, "sub-deal %d has %d sealed bytes, want %d", i, len(sub.Sealed), want)
		}
	}
	return nil
}

// dealers verifies every dealer's sub-deals and returns the Lagrange weights:
// exactly as many dealers as the old threshold, each once.
func (r *Redeal) dealers(deals []*SubDeals) ([]group.Scalar, error) {
	if len(deals) != len(r.Old) {
		return nil, fmt.Errorf("lockbox: re-deal by %d dealers, want exactly %d, the same at every new holder", len(deals), len(r.Old))
	}
	seen := map[uint16]bool{}
	xs := make([]uint16, len(deals))
	for i, d := range deals {
		if err := r.Verify(d); err != nil {
			return nil, err
		}
		if seen[d.Dealer] {
			return nil, fmt.Errorf("lockbox: old holder %d dealt twice", d.Dealer)
		}
		seen[d.Dealer], xs[i] = true, d.Dealer
	}
	return weights(xs), nil
}

// Sharing returns the commitments of the new epoch. They follow from the
// dealers' commitments alone, so that everybody derives the same.
func (r *Redeal) Sharing(deals []*SubDeals) (Sharing, error) {
	ws, err := r.dealers(deals)
	if err != nil {
		return nil, err
	}
	sums := make([]group.Element, r.Group.Threshold)
	for k := range sums {
		sums[k] = curve.Identity()
	}
	for i, d := range deals {
		points, err := d.Commitments.points()
		if err != nil {
			return nil, err
		}
		for k, p := range points {
			sums[k].Add(sums[k], p.Mul(p, ws[i]))
		}
	}
	out := make(Sharing, len(sums))
	for k, p := range sums {
		out[k] = encodePoint(p)
	}
	return out, out.Continues(r.Old)
}

// Accept opens the sub-shares for the key of id, one operation of the token for
// each dealer, names the dealer of a bad one, and returns the new share with
// its deal, sealed to the same key under the new epoch.
func (r *Redeal) Accept(ctx context.Context, id *Identity, index uint16, deals []*SubDeals) (*Share, Deal, error) {
	sharing, err := r.Sharing(deals)
	if err != nil {
		return nil, Deal{}, err
	}
	if id == nil {
		return nil, Deal{}, errors.New("lockbox: accept: no identity")
	}
	h, err := r.Group.find(index, id.Recipient().ID())
	if err != nil {
		return nil, Deal{}, err
	}
	sum, err := r.collect(ctx, id, h, deals)
	if err != nil {
		return nil, Deal{}, err
	}
	share, err := verified(r.slot(h), sum, sharing)
	if err != nil {
		return nil, Deal{}, err
	}
	deal, err := sealDeal(share.context, h.Key, share.secret)
	if err != nil {
		share.Wipe()
		return nil, Deal{}, err
	}
	return share, deal, nil
}

// collect opens and checks h's sub-share of each dealer and returns their
// weighted sum.
func (r *Redeal) collect(ctx context.Context, id *Identity, h Holder, deals []*SubDeals) (pair, error) {
	xs := make([]uint16, len(deals))
	subs := make([]pair, 0, len(deals))
	defer func() {
		for _, p := range subs {
			p.wipe()
		}
	}()
	for i, d := range deals {
		sub, err := r.openSub(ctx, id, h, d)
		if err != nil {
			return pair{}, dealtBy(d.Dealer, err)
		}
		xs[i], subs = d.Dealer, append(subs, sub.secret)
	}
	return interpolate(xs, subs), nil
}

func (r *Redeal) openSub(ctx context.Context, id *Identity, h Holder, d *SubDeals) (*Share, error) {
	slot := r.slot(h)
	for _, sub := range d.Deals {
		if sub.Index == h.Index && sub.Holder == h.ID() {
			p, err := id.open(ctx, slot, r.info(slot, d.Dealer), sub.Sealed)
			if err != nil {
				return nil, err
			}
			return verified(slot, p, d.Commitments)
		}
	}
	return nil, slot.fault(Malformed, errors.New("no sub-share for this key"))
}
