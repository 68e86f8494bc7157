package notary

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// patience is how long a signing attempt may take before this notary asks for
// another with everybody's nonces forgotten. ROAST needs it only after crashes.
const patience = 3 * time.Second

// A signSession is this notary's part in signing one warrant. All notaries
// read the same mail in the same order and keep the same books, so each can
// finish the signature and append the warrant. Nonces are here, in memory,
// and nowhere else.
type signSession struct {
	index   uint16 // this notary's, in the term whose shares sign
	request Digest
	payload []byte
	message []byte // what is signed: the PAE of the payload
	group   *frost.Group
	books   *signBooks
	box     *api.Reader
	nonces  map[int]*frost.Nonce // by session, -1 for the one on offer
	offer   *frost.Commitment
	asked   uint32 // attempt in which this notary last offered
	began   time.Time
	done    time.Time // when the signature was complete
}

// handIn is how long a notary waits for the one before it to append a warrant.
const handIn = 300 * time.Millisecond

func (n *Notary) newSession(request Digest, payload []byte, l look) (*signSession, error) {
	message := dsse.PAE(payload)
	term := l.state.Term()
	books, err := newSignBooks(l.state.Group, term.Number, message, term.Council.Faults)
	if err != nil {
		return nil, err
	}
	return &signSession{index: l.index, request: request, payload: payload, message: message, group: l.state.Group, books: books,
		box: api.NewReader(api.TopicSign(sha256.Sum256(payload))), nonces: map[int]*frost.Nonce{}, began: l.now}, nil
}

// planSign works on the first satisfied request. What is signed is what the
// own fold derives; nothing that comes by mail can change it. Requests are
// judged again at every step: a veto, a halt or time ends the session.
func (n *Notary) planSign(l look) (func(context.Context) error, error) {
	want := map[Digest][]byte{}
	if l.groupFinal() && l.onTime() {
		for id, r := range l.state.Requests {
			if r.Ended != "" || r.Satisfied == nil || !l.isFinal(r.Satisfied.Index) || n.unloggedHalt(l, id) {
				continue
			}
			if _, payload, err := l.state.DeriveWarrant(id); err == nil {
				want[sha256.Sum256(payload)] = payload
			}
		}
	}
	for id, s := range n.signing {
		if _, ok := want[id]; !ok || s.books.term != l.state.Term().Number {
			s.discard()
			delete(n.signing, id)
		}
	}
	signers := map[Digest]signer{}
	for i, y := range l.state.Council().Notaries {
		pub, err := y.Signing.Public()
		if err != nil {
			return nil, err
		}
		signers[y.ID()] = signer{uint16(i + 1), pub}
	}
	for _, id := range slices.SortedFunc(maps.Keys(want), func(a, b Digest) int { return slices.Compare(a[:], b[:]) }) {
		if n.signing[id] == nil {
			s, err := n.newSession(id, want[id], l)
			if err != nil {
				return nil, err
			}
			n.signing[id] = s
		}
	}
	if len(n.signing) == 0 {
		return nil, nil
	}
	return func(ctx context.Context) error {
		var errs []error
		for _, s := range n.signing {
			errs = append(errs, n.advance(ctx, s, signers))
		}
		return errors.Join(errs...)
	}, nil
}

// groupFinal reports whether the group that signs is final. A share under one
// that a recovery could replace would be a wrong share under the next.
func (l look) groupFinal() bool {
	k := l.state.Keygen
	return l.state.Group != nil && (k.Term != l.state.Term().Number || l.isFinal(k.Index))
}

func (s *signSession) discard() {
	for _, nonce := range s.nonces {
		nonce.Discard()
	}
	clear(s.nonces)
}

// advance reads new mail, answers what is asked, and offers again if stuck.
func (n *Notary) advance(ctx context.Context, s *signSession, signers map[Digest]signer) error {
	msgs, err := s.box.Receive(ctx, n.cfg.Client, 0)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		s.books.note(m, n.cfg.Charter, sha256.Sum256(s.payload), signers)
	}
	for _, c := range s.books.takeCheats() {
		n.blames(s, c)
	}
	if sig := s.books.signature; sig != nil {
		// Every notary can hand the warrant in; they take turns, and whoever
		// sees it in the log leaves it.
		if s.done.IsZero() {
			s.done = time.Now()
		}
		if time.Since(s.done) < time.Duration(s.index-1)*handIn {
			return nil
		}
		return n.appendWarrant(ctx, s, *sig)
	}
	if open := s.books.openFor(s.index); open != nil {
		return n.answer(ctx, s, open)
	}
	switch attempt := s.books.attempt; {
	case s.asked < attempt:
		return n.offerNonce(ctx, s, attempt)
	case time.Since(s.began) > patience && s.asked == attempt:
		return n.offerNonce(ctx, s, attempt+1)
	}
	return nil
}

// offerNonce makes a nonce after the message is known and offers its
// commitment.
func (n *Notary) offerNonce(ctx context.Context, s *signSession, attempt uint32) error {
	s.discard()
	offer, err := n.freshOffer(ctx, s)
	if err != nil {
		return err
	}
	s.asked, s.began = attempt, time.Now()
	return n.post(ctx, s, &signoff.Signing{Attempt: attempt, Offer: offer})
}

func (n *Notary) freshOffer(ctx context.Context, s *signSession) ([]byte, error) {
	var encoded []byte
	err := n.withShare(ctx, s.group, func(share *frost.KeyShare) error {
		nonce, c, err := share.Commit(rand.Reader)
		if err != nil {
			return err
		}
		s.nonces[-1], s.offer = nonce, &c
		encoded, err = c.MarshalBinary()
		return err
	})
	return encoded, err
}

// answer delivers the share that an open session asks of this notary, with
// the offer for the next. A session whose nonce is not in memory (a restart)
// is not answered; the attempt after it is.
func (n *Notary) answer(ctx context.Context, s *signSession, open *frost.Session) error {
	nonce := s.nonces[-1]
	if nonce == nil || s.offer == nil || !slices.Contains(open.Commitments, *s.offer) {
		if time.Since(s.began) > patience {
			return n.offerNonce(ctx, s, s.books.attempt+1)
		}
		return nil
	}
	delete(s.nonces, -1)
	s.offer = nil
	defer nonce.Discard() // if it comes to no share
	if payload := Digest(sha256.Sum256(s.payload)); !n.burned[payload] {
		if err := n.store.burn(ctx, time.Now()); err != nil {
			return err
		}
		n.burned[payload] = true
	}
	msg := &signoff.Signing{Attempt: s.books.attempt, Session: open.Number, List: listDigest(open.Commitments)}
	err := n.withShare(ctx, s.group, func(share *frost.KeyShare) error {
		z, err := share.Sign(nonce, s.group, s.message, open.Commitments)
		msg.Share = z[:]
		return err
	})
	if err != nil {
		return err
	}
	if msg.Offer, err = n.freshOffer(ctx, s); err != nil {
		return err
	}
	return n.post(ctx, s, msg)
}

func (n *Notary) post(ctx context.Context, s *signSession, m *signoff.Signing) error {
	m.Charter, m.Notary, m.Payload, m.Term = n.cfg.Charter, n.id, sha256.Sum256(s.payload), s.books.term
	doc, err := n.sign(ctx, m)
	if err != nil {
		return err
	}
	return n.cfg.Client.Send(ctx, s.box.Topic(), doc.Line())
}

// appendWarrant hands the finished warrant in. All notaries do; the log takes
// one and calls the rest void.
func (n *Notary) appendWarrant(ctx context.Context, s *signSession, sig [64]byte) error {
	env := &dsse.Envelope{Payload: s.payload, Sig: sig[:]}
	key, err := signoff.NewPublicKey(s.group.Ed25519(), "")
	if err != nil {
		return err
	}
	env.Hint = key.Fingerprint()
	if err := env.Verify(s.group.Ed25519()); err != nil {
		return err
	}
	_, err = n.cfg.Client.Append(ctx, env.Line())
	var refused *api.Error
	if errors.As(err, &refused) && refused.Status == 422 {
		return nil
	}
	return err
}
