package lockbox

import (
	"errors"
	"fmt"
	"io"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// Secrets is what the sealer holds while it seals: both polynomials. It serves
// one object. Wipe it when the deals are written.
type Secrets struct {
	params           Params
	commitments      Commitments
	people, machines polynomial
	object           [32]byte
	wrapped          map[uint32]bool
}

// New draws the two secrets of a lockbox and commits to them. rand must be a
// cryptographic source such as crypto/rand.Reader; it gives 32 bytes of salt,
// then for each side and coefficient 64 bytes of value and 64 of blinding.
func New(rand io.Reader, p Params) (*Secrets, Commitments, error) {
	if err := p.Check(); err != nil {
		return nil, Commitments{}, err
	}
	if rand == nil {
		return nil, Commitments{}, errors.New("lockbox: no source of randomness")
	}
	s := &Secrets{params: p, wrapped: map[uint32]bool{}}
	if _, err := io.ReadFull(rand, s.commitments.Salt[:]); err != nil {
		return nil, Commitments{}, fmt.Errorf("lockbox: draw the salt: %w", err)
	}
	var err error
	if s.people, err = freshPolynomial(rand, int(p.People.Threshold)); err != nil {
		return nil, Commitments{}, err
	}
	if s.machines, err = freshPolynomial(rand, int(p.Machines.Threshold)); err != nil {
		s.Wipe()
		return nil, Commitments{}, err
	}
	s.commitments.People, s.commitments.Machines = s.people.commit(), s.machines.commit()
	if err := s.commitments.Check(); err != nil { // a broken source gives identities
		s.Wipe()
		return nil, Commitments{}, err
	}
	return s, s.commitments, nil
}

func freshPolynomial(rand io.Reader, threshold int) (polynomial, error) {
	secret, err := randomPair(rand)
	if err != nil {
		return nil, err
	}
	defer secret.wipe()
	return newPolynomial(rand, secret, threshold)
}

// use binds the secrets to the first object id they meet: shares and file keys
// of one lockbox never serve two objects.
func (s *Secrets) use(object [32]byte) error {
	switch {
	case s == nil || s.people == nil || s.machines == nil:
		return errors.New("lockbox: the secrets were wiped; seal the object anew")
	case object == [32]byte{}:
		return errors.New("lockbox: no object id")
	case s.object != [32]byte{} && s.object != object:
		return fmt.Errorf("lockbox: these secrets seal object %s and not %s; make new ones", dsse.Digest(s.object), dsse.Digest(object))
	}
	s.object = object
	return nil
}

// A Deal is one holder's share, sealed to one of the holder's keys. The
// members around the ciphertext serve to find it and to name what is wrong with
// it; opening never believes them.
type Deal struct {
	Object dsse.Digest `json:"object"`
	Side   Side        `json:"side"`
	Epoch  uint32      `json:"epoch"`
	Index  uint16      `json:"index"`
	Holder dsse.Digest `json:"holder"`
	Sealed []byte      `json:"sealed"` // HPKE: enc ‖ ciphertext of value ‖ blinding
}

// Deals are the deals of both sides, in the order of the holders.
type Deals struct {
	People   []Deal `json:"people"`
	Machines []Deal `json:"machines"`
}

// ParseDeals reads the JSON of [Deals] strictly.
func ParseDeals(data []byte) (Deals, error) {
	var d Deals
	if err := dsse.Decode(data, &d); err != nil {
		return Deals{}, fmt.Errorf("lockbox: deals: %w", err)
	}
	if err := errors.Join(checkDeals(People, d.People), checkDeals(Machines, d.Machines)); err != nil {
		return Deals{}, err
	}
	return d, nil
}

func checkDeals(side Side, deals []Deal) error {
	if n := len(deals); n < MinThreshold || n > MaxHolders {
		return fmt.Errorf("lockbox: %d deals on side %s, want %d to %d", n, side, MinThreshold, MaxHolders)
	}
	seen := map[[32]byte]bool{}
	for _, d := range deals {
		if d.Side != side || d.Epoch == 0 || d.Index == 0 || d.Object.IsZero() || d.Holder.IsZero() {
			return fmt.Errorf("lockbox: deal to %s on side %s: side, epoch, index, object or holder is missing or other", d.Holder, side)
		}
		if seen[d.Holder] {
			return fmt.Errorf("lockbox: two deals to holder %s on side %s", d.Holder, side)
		}
		seen[d.Holder] = true
		if n := len(d.Sealed); n != sealedSize && n != hybridSealedSize {
			return fmt.Errorf("lockbox: deal to %s on side %s has %d sealed bytes, want %d or %d", d.Holder, side, n, sealedSize, hybridSealedSize)
		}
	}
	return nil
}

// ParseDealList reads deals of a side that a holder made for own tokens, of one
// object or of several.
func ParseDealList(side Side, data []byte) ([]Deal, error) {
	var list []Deal
	if err := dsse.Decode(data, &list); err != nil {
		return nil, fmt.Errorf("lockbox: deals: %w", err)
	}
	for _, d := range list {
		if n := len(d.Sealed); d.Side != side || (n != sealedSize && n != hybridSealedSize) {
			return nil, fmt.Errorf("lockbox: deal to %s on side %.20q with %d sealed bytes, want side %s and %d or %d", d.Holder, string(d.Side), n, side, sealedSize, hybridSealedSize)
		}
	}
	return list, nil
}

// Find returns the deal to the key with that fingerprint.
func (d Deals) Find(side Side, holder [32]byte) (Deal, error) {
	deals := d.People
	if side == Machines {
		deals = d.Machines
	}
	for _, deal := range deals {
		if deal.Side == side && deal.Holder == holder {
			return deal, nil
		}
	}
	return Deal{}, fmt.Errorf("lockbox: no deal to %s on side %.20q", dsse.Digest(holder), string(side))
}

// Deal seals every share to its holder, under an epoch from 1. It can be
// repeated for the same object.
func (s *Secrets) Deal(object [32]byte, epoch uint32) (Deals, error) {
	if err := s.use(object); err != nil {
		return Deals{}, err
	}
	people, err := s.dealSide(People, s.params.People, s.people, epoch)
	if err != nil {
		return Deals{}, err
	}
	machines, err := s.dealSide(Machines, s.params.Machines, s.machines, epoch)
	if err != nil {
		return Deals{}, err
	}
	return Deals{people, machines}, nil
}

func (s *Secrets) dealSide(side Side, g Group, f polynomial, epoch uint32) ([]Deal, error) {
	deals := make([]Deal, 0, len(g.Holders))
	for _, h := range g.Holders {
		c := Context{s.params.Charter, s.object, side, epoch, h.Index, h.ID()}
		if err := c.Check(); err != nil {
			return nil, err
		}
		share := f.at(h.Index)
		deal, err := sealDeal(c, h.Key, share)
		share.wipe()
		if err != nil {
			return nil, err
		}
		deals = append(deals, deal)
	}
	return deals, nil
}

func sealDeal(c Context, to Recipient, share pair) (Deal, error) {
	sealed, err := to.seal(c.dealInfo(), share)
	if err != nil {
		return Deal{}, err
	}
	return Deal{c.Object, c.Side, c.Epoch, c.Index, c.Holder, sealed}, nil
}

// Release seals one share to a recipient at once, as its holder would release
// it later. It is for an object whose next reader is known while it is sealed.
// c.Holder is the sealer's own key: the recipient knows from it that no holder
// of a deal released this.
func (s *Secrets) Release(c ReleaseContext, to Recipient) ([]byte, error) {
	if err := errors.Join(c.Check(), s.use(c.Object)); err != nil {
		return nil, err
	}
	if c.Charter != s.params.Charter {
		return nil, fmt.Errorf("lockbox: release %s: these secrets are of charter %s", c.Context, dsse.Digest(s.params.Charter))
	}
	f := s.people
	if c.Side == Machines {
		f = s.machines
	}
	share := &Share{c.Context, f.at(c.Index)}
	defer share.Wipe()
	return Reseal(share, to, c)
}

// Wipe forgets both secrets. The Secrets refuse to serve from then on.
func (s *Secrets) Wipe() {
	s.people.wipe()
	s.machines.wipe()
	s.people, s.machines = nil, nil
}

// Format prints no secret, whatever the verb.
func (s Secrets) Format(f fmt.State, _ rune) { redact(f, "secrets") }

func redact(w io.Writer, what string) { io.WriteString(w, "lockbox "+what+" (redacted)") }
