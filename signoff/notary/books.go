package notary

import (
	"crypto"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
)

// signBooks is what the mail about one signature adds up to. It is a pure
// function of the messages in their order, so all notaries who read the same
// mail agree on sessions, cheats and the signature.
type signBooks struct {
	group     *frost.Group
	roast     *frost.Roast
	term      uint32 // whose shares sign
	attempt   uint32
	faults    int
	open      map[uint16]*frost.Session // by signer that owes a share
	sessions  map[Digest]*frost.Session // by list of commitments, the name all know a session by
	waiting   map[uint16]waiting        // by signer, the offer for the latest attempt after this
	signature *[64]byte
	named     map[uint16]bool // signers shown to cheat
	cheats    []cheat         // what shows it, not taken yet
}

// A waiting is an offer for a later attempt, with the message it came in.
type waiting struct {
	*signoff.Signing
	line []byte
}

// A cheat is a notary shown to have sent a wrong share or offer, with the signed
// message that shows it, and for a share the list that the message names. With
// these, the group and the payload anybody can check it.
type cheat struct {
	notary Digest
	line   []byte
	list   []frost.Commitment
	err    error
}

// signer is a notary as its messages are checked.
type signer struct {
	index  uint16
	public crypto.PublicKey
}

func newSignBooks(group *frost.Group, term uint32, message []byte, faults int) (*signBooks, error) {
	roast, err := frost.NewRoast(group, message)
	if err != nil {
		return nil, err
	}
	return &signBooks{group: group, roast: roast, term: term, attempt: 1, faults: faults, open: map[uint16]*frost.Session{},
		sessions: map[Digest]*frost.Session{}, waiting: map[uint16]waiting{}, named: map[uint16]bool{}}, nil
}

// isCheat reports whether the message at hand is the cheat. An error that wraps
// one refuses a signer for an earlier message, and this one proves nothing.
func isCheat(err error) bool {
	_, ok := err.(*frost.CheatError)
	return ok
}

// listDigest names a list of commitments.
func listDigest(list []frost.Commitment) Digest {
	return signoff.FrostList(encoded(list))
}

// encoded is the commitments as they were offered.
func encoded(list []frost.Commitment) [][]byte {
	var out [][]byte
	for _, c := range list {
		b, err := c.MarshalBinary()
		if err != nil {
			return nil
		}
		out = append(out, b)
	}
	return out
}

// note takes one message. Whatever is not a well-formed message of a notary
// about this very payload is passed over.
func (b *signBooks) note(line []byte, charter, payload Digest, signers map[Digest]signer) {
	doc, err := signoff.ReadLine(line)
	if err != nil {
		return
	}
	m, ok := doc.Doc.(*signoff.Signing)
	if !ok || m.Charter != charter || m.Payload != payload || m.Term != b.term || b.signature != nil {
		return
	}
	who, ok := signers[m.Notary]
	if !ok || doc.Verify(who.public) != nil {
		return
	}
	switch {
	case m.Attempt == b.attempt:
		b.take(m, who.index, line)
	case m.Attempt > b.attempt:
		b.wait(m, who.index, line)
	}
}

func (b *signBooks) take(m *signoff.Signing, index uint16, line []byte) {
	// Sessions are counted differently by who came late or lost mail; what
	// a signer answers is the list it signed.
	if session, ok := b.sessions[m.List]; ok && len(m.Share) == 32 {
		sig, err := b.roast.Deliver(session.Number, index, [32]byte(m.Share))
		switch {
		case isCheat(err):
			b.names(index, cheat{m.Notary, line, session.Commitments, err})
			delete(b.open, index)
			return
		case err == nil:
			delete(b.open, index)
			b.signature = sig
		}
	}
	if len(m.Offer) > 0 && b.signature == nil {
		b.offer(m, index, line)
	}
}

func (b *signBooks) offer(m *signoff.Signing, index uint16, line []byte) {
	var c frost.Commitment
	if err := c.UnmarshalBinary(m.Offer); err != nil || c.ID != index {
		b.names(index, cheat{m.Notary, line, nil, fmt.Errorf("notary: offer of member %d does not decode as its own: %w", index, err)})
		return
	}
	session, err := b.roast.Offer(c)
	if isCheat(err) {
		b.names(index, cheat{m.Notary, line, nil, err})
	}
	if err != nil || session == nil {
		return
	}
	b.sessions[listDigest(session.Commitments)] = session
	for _, c := range session.Commitments {
		b.open[c.ID] = session
	}
}

// wait keeps offers for later attempts. One begins once more notaries than can
// be hostile ask for it or for one after it, so none alone can keep starting
// over, and a notary that knows less than the others gets to where they are.
func (b *signBooks) wait(m *signoff.Signing, index uint16, line []byte) {
	if have, ok := b.waiting[index]; len(m.Offer) == 0 || ok && have.Attempt >= m.Attempt {
		return
	}
	b.waiting[index] = waiting{m, line}
	if len(b.waiting) <= b.faults {
		return
	}
	var asked []uint32
	for _, w := range b.waiting {
		asked = append(asked, w.Attempt)
	}
	slices.Sort(asked)
	b.attempt = asked[len(asked)-1-b.faults]
	b.roast.Retry()
	clear(b.open)
	for id := uint16(1); id <= b.group.Members; id++ {
		w, ok := b.waiting[id]
		if !ok || w.Attempt > b.attempt {
			continue
		}
		delete(b.waiting, id)
		if w.Attempt == b.attempt {
			b.offer(w.Signing, id, w.line)
		}
	}
}

// openFor is the session that awaits this signer's share, or nil.
func (b *signBooks) openFor(index uint16) *frost.Session { return b.open[index] }

// names keeps the first cheat of each signer. One is enough, and a signer could
// send any number.
func (b *signBooks) names(index uint16, c cheat) {
	if !b.named[index] {
		b.named[index] = true
		b.cheats = append(b.cheats, c)
	}
}

func (b *signBooks) takeCheats() []cheat {
	out := b.cheats
	b.cheats = nil
	return out
}
