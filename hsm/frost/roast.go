package frost

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Roast chooses the signers of one message so that those who are silent or lie
// can only delay it (Ruffing et al., "ROAST: Robust Asynchronous Schnorr
// Threshold Signatures", 2022). A signer is ready when it offered a fresh
// commitment and owes no share; as soon as Threshold are ready they form a
// session. Whoever falls silent keeps owing and holds up that session only,
// while the others, each offering anew with the share it delivers, form the
// next. With q honest signers answering, at most Members-Threshold+1 sessions
// are needed, and no timeout.
//
// A timeout has one use: a signer that crashed lost its nonces and cannot
// deliver what it owes. [Roast.Retry] forgives all debts, for silence proves
// nothing, and starts over. Signers shown to cheat stay out.
//
// A Roast is bookkeeping and holds no secret. It is not for concurrent use.
type Roast struct {
	group    *Group
	msg      []byte
	ready    map[uint16]Commitment
	owes     map[uint16]int // signer to session
	cheats   map[uint16]error
	sessions []*openSession // nil once given up
	sig      *[64]byte
}

type openSession struct {
	list   []Commitment
	shares map[uint16][32]byte
}

// Session is a set of signers that are now asked for their shares.
type Session struct {
	Number      int          // to be named with the share, from 0
	Commitments []Commitment // exactly Threshold, ascending
}

// NewRoast starts the bookkeeping for one message.
func NewRoast(g *Group, msg []byte) (*Roast, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	r := &Roast{group: g, msg: slices.Clone(msg), cheats: map[uint16]error{}}
	r.Retry()
	return r, nil
}

// Offer makes a signer ready with a fresh commitment. It returns the session
// that this completes, or nil. A signer that cheated, is ready already or still
// owes a share is refused.
func (r *Roast) Offer(c Commitment) (*Session, error) {
	if err := r.admit(c.ID); err != nil {
		return nil, err
	}
	if n, ok := r.owes[c.ID]; ok {
		return nil, fmt.Errorf("frost: member %d still owes its share of session %d", c.ID, n)
	}
	if _, ok := r.ready[c.ID]; ok {
		return nil, fmt.Errorf("frost: member %d offered a commitment already", c.ID)
	}
	if err := c.Validate(); err != nil {
		return nil, r.condemn("nonce commitment", c.ID, err)
	}
	r.ready[c.ID] = c
	if len(r.ready) < int(r.group.Threshold) {
		return nil, nil
	}
	return r.start(), nil
}

func (r *Roast) admit(id uint16) error {
	if r.sig != nil {
		return errors.New("frost: the message is signed already")
	}
	if err := r.group.checkID(id); err != nil {
		return err
	}
	if err := r.cheats[id]; err != nil {
		return fmt.Errorf("frost: member %d is out of this signature: %w", id, err)
	}
	return nil
}

func (r *Roast) condemn(step string, id uint16, err error) error {
	r.cheats[id] = &CheatError{Step: step, IDs: []uint16{id}, Err: err}
	delete(r.ready, id)
	delete(r.owes, id)
	return r.cheats[id]
}

func (r *Roast) start() *Session {
	s := &openSession{shares: map[uint16][32]byte{}}
	for _, id := range slices.Sorted(maps.Keys(r.ready)) {
		s.list = append(s.list, r.ready[id])
		r.owes[id] = len(r.sessions)
	}
	clear(r.ready)
	r.sessions = append(r.sessions, s)
	return &Session{len(r.sessions) - 1, slices.Clone(s.list)}
}

// Deliver takes the share that a signer owes. The share that completes a
// session returns the verified signature, others nil. A wrong share returns a
// *[CheatError] and puts its signer out for good: the caller must have
// authenticated that this signer sent it, for this session.
func (r *Roast) Deliver(session int, id uint16, share [32]byte) (*[64]byte, error) {
	if err := r.admit(id); err != nil {
		return nil, err
	}
	if n, ok := r.owes[id]; !ok || n != session {
		return nil, fmt.Errorf("frost: member %d owes no share of session %d", id, session)
	}
	s := r.sessions[session]
	if err := VerifyShare(r.group, id, share, r.msg, s.list); err != nil {
		return nil, r.refuse(id, err)
	}
	delete(r.owes, id)
	s.shares[id] = share
	if len(s.shares) < len(s.list) {
		return nil, nil
	}
	sig, err := Aggregate(r.group, r.msg, s.list, s.shares)
	if err != nil {
		return nil, err
	}
	r.sig = &sig
	return &sig, nil
}

// refuse puts a signer out only for a share that is its own fault.
func (r *Roast) refuse(id uint16, err error) error {
	if cheat, ok := errors.AsType[*CheatError](err); ok {
		return r.condemn(cheat.Step, id, cheat.Err)
	}
	return err
}

// Retry gives up all sessions and forgets offers and debts, not cheats.
// Numbers of sessions go on, so that a late share meets no new session.
func (r *Roast) Retry() {
	r.ready, r.owes = map[uint16]Commitment{}, map[uint16]int{}
	for i := range r.sessions {
		r.sessions[i] = nil
	}
}

// Cheats returns the members shown to have cheated, ascending.
func (r *Roast) Cheats() []uint16 { return slices.Sorted(maps.Keys(r.cheats)) }

// Owing returns the members whose shares are awaited, ascending.
func (r *Roast) Owing() []uint16 { return slices.Sorted(maps.Keys(r.owes)) }

// Hopeless reports that too many members cheated for any signature.
func (r *Roast) Hopeless() bool {
	return int(r.group.Members)-len(r.cheats) < int(r.group.Threshold)
}
