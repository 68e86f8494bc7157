package authority

import (
	"errors"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A notary signs its share of a warrant together with term, payload and list of
// commitments. These three fix which shares are right, so its message alone
// convicts it, whoever chose the list and whoever shows it: an honest notary
// signs no list that does not have its own commitment in it, and no share but
// the one that follows.

// A Conviction is a notary shown to have cheated while a warrant was signed. One
// for each notary and term is enough.
type Conviction struct {
	Notary Digest `json:"notary"`
	Term   uint32 `json:"term"`
	Reason string `json:"reason"`
	By     Digest `json:"by"`    // the notary that showed it, whose word counts for nothing
	Index  uint64 `json:"index"` // of the entry, which has the whole proof
}

// What a notary is convicted of.
const (
	WrongShare = "a wrong signature share"
	BadOffer   = "a malformed nonce commitment"
)

// Convicted returns the conviction of a notary in a term, if there is one.
func (s *State) Convicted(notary Digest, term uint32) (*Conviction, bool) {
	i := slices.IndexFunc(s.Convicts, func(c *Conviction) bool { return c.Notary == notary && c.Term == term })
	if i < 0 {
		return nil, false
	}
	return s.Convicts[i], true
}

// fault convicts the accused by its own signature and its own share of the
// group key that was in force in the term that its message names.
func (d decision) fault(f *signoff.SigningFault) ([]change, error) {
	said, m, err := f.Said()
	if err != nil {
		return nil, err
	}
	if c, ok := d.state.Convicted(f.Accused, m.Term); ok {
		return nil, fmt.Errorf("this notary was convicted in term %d already, by entry %d", c.Term, c.Index)
	}
	if int(m.Term) > len(d.state.Terms) || d.state.Terms[m.Term-1].Group == nil {
		return nil, fmt.Errorf("a message of term %d, in which nobody has signed", m.Term)
	}
	term := d.state.Terms[m.Term-1]
	accused, index, ok := term.Council.Find(f.Accused)
	if !ok {
		return nil, fmt.Errorf("%s was no notary in term %d", f.Accused, m.Term)
	}
	key, err := accused.Signing.Public()
	if err != nil {
		return nil, err
	}
	if err := said.Verify(key); err != nil {
		return nil, fmt.Errorf("the message is not the accused's: %w", err)
	}
	c := &Conviction{Notary: f.Accused, Term: m.Term, By: f.Notary, Index: d.index}
	if f.OfShare() {
		c.Reason, err = WrongShare, wrongShare(f, m, index, term.Group)
	} else {
		c.Reason, err = BadOffer, badOffer(m.Offer, index)
	}
	if err != nil {
		return nil, err
	}
	return []change{{key: "conviction/" + f.Accused.Hex(), value: c, put: func(s *State) { s.Convicts = append(slices.Clip(s.Convicts), c) }}}, nil
}

// wrongShare returns nil only if the share is at fault, and of all things that
// can be wrong with a session nothing else.
func wrongShare(f *signoff.SigningFault, m *signoff.Signing, index uint16, group *frost.Group) error {
	list := make([]frost.Commitment, len(f.List))
	for i, b := range f.List {
		if err := list[i].UnmarshalBinary(b); err != nil {
			return err
		}
	}
	err := frost.VerifyShare(group, index, [32]byte(m.Share), dsse.PAE(f.Payload), list)
	if cheat, ok := errors.AsType[*frost.CheatError](err); ok && cheat.Step == "signature share" && slices.Equal(cheat.IDs, []uint16{index}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("this is no session that could be signed in: %w", err)
	}
	return errors.New("the share is right")
}

// badOffer returns nil only if the offer is malformed.
func badOffer(offer []byte, index uint16) error {
	var c frost.Commitment
	if c.UnmarshalBinary(offer) != nil || c.ID != index || c.Validate() != nil {
		return nil
	}
	return errors.New("the offer is well-formed")
}
