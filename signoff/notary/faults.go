package notary

import (
	"context"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/signoff"
)

// A notary gives the one before it time to show a fault, more than with a
// warrant, which is awaited; and shows it again if the log does not take it.
const (
	faultTurn  = time.Second
	faultAgain = time.Minute
)

// A culprit is a notary as it signs in one term.
type culprit struct {
	notary Digest
	term   uint32
}

// A fault is what convicts a culprit, until that is final in the log. It is in
// memory alone: every notary that kept the books of the signature has it.
type fault struct {
	doc *signoff.SigningFault
	due time.Time // when to show it
}

// blames takes note of a cheat. All notaries see it and take turns, as with
// warrants. The journal has the proof too, for a log that does not take it.
func (n *Notary) blames(s *signSession, c cheat) {
	list := encoded(c.list)
	n.cfg.Log.Error("a notary cheated while signing", "notary", c.notary, "why", c.err, "proof", string(c.line), "list", fmt.Sprintf("%x", list))
	who := culprit{c.notary, s.books.term}
	if _, known := n.faults[who]; known {
		return
	}
	doc := &signoff.SigningFault{Charter: n.cfg.Charter, Notary: n.id, Accused: c.notary, Message: string(c.line)}
	if len(list) > 0 {
		doc.Payload, doc.List = s.payload, list
	}
	n.faults[who] = &fault{doc, time.Now().Add(time.Duration(s.index-1) * faultTurn)}
}

// planFaults appends what convicts a notary that the log does not name.
func (n *Notary) planFaults(l look) (func(context.Context) error, error) {
	for who, f := range n.faults {
		c, named := l.state.Convicted(who.notary, who.term)
		switch {
		case named && l.isFinal(c.Index):
			delete(n.faults, who)
		case !named && !l.now.Before(f.due):
			f.due = l.now.Add(faultAgain)
			return func(ctx context.Context) error { return n.append(ctx, f.doc) }, nil
		}
	}
	return nil, nil
}
