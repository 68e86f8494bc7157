package notary

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
)

// planJoining shows this notary's keys to an open request that brings it in.
// That is no consent to anything: whoever runs this program with these keys
// wants them in, and whether they come in is for the people to say.
func (n *Notary) planJoining(l look) (func(context.Context) error, error) {
	for id, r := range l.state.Requests {
		if r.Doc.Notaries == nil || r.Ended != "" || !l.isFinal(r.Index) || slices.Contains(r.Joined, n.id) {
			continue
		}
		me := slices.IndexFunc(l.state.Joiners(r.Doc.Notaries), func(y signoff.Notary) bool { return y.ID() == n.id })
		if me < 0 {
			continue
		}
		if err := n.checkKeys(&l.state.Joiners(r.Doc.Notaries)[me]); err != nil {
			return nil, err
		}
		return func(ctx context.Context) error { return n.join(ctx, id) }, nil
	}
	return nil, nil
}

func (n *Notary) join(ctx context.Context, request Digest) error {
	j := &signoff.Joining{Charter: n.cfg.Charter, Notary: n.id, Request: request}
	var err error
	if j.Witness, err = hsm.SignMessage(ctx, n.cfg.Witness, j.Message()); err != nil {
		return err
	}
	return n.append(ctx, j)
}

// planTakeover hands in the checkpoint on which both councils stand. Every
// notary of the two can; they take turns, and whoever sees it in the log leaves
// it.
func (n *Notary) planTakeover(l look) (func(context.Context) error, error) {
	next, ok := l.state.Incoming()
	if !ok || !l.isFinal(l.state.Keygen.Index) {
		return nil, nil
	}
	term := l.state.Keygen.Term
	if n.handover != term {
		n.handover, n.handSince = term, l.now
	}
	turn := l.index
	if _, index, ok := next.Find(n.id); ok {
		turn = index
	}
	if turn == 0 || l.now.Sub(n.handSince) < time.Duration(turn-1)*handIn {
		return nil, nil
	}
	n.mu.Lock()
	note := n.finalNote
	n.mu.Unlock()
	return func(ctx context.Context) error {
		return n.append(ctx, &signoff.Takeover{Charter: n.cfg.Charter, Notary: n.id, Term: term, Checkpoint: string(note)})
	}, nil
}

// planErase leaves on disk the share of the group in office and no other, and
// no polynomial: once the entry that put it in office is final, nothing can
// bring another back. A notary that left office keeps none.
func (n *Notary) planErase(l look) (func(context.Context) error, error) {
	k, term := l.state.Keygen, l.state.Term()
	if l.state.Group == nil || !k.Done || k.Term != term.Number || !l.isFinal(max(k.Index, term.Index)) {
		return nil, nil
	}
	group := l.state.Group.Digest()
	if n.erased == Digest(group) {
		return nil, nil
	}
	mine := ""
	if l.index > 0 {
		mine = shareFile(l.state.Group)
	}
	return func(context.Context) error {
		err := n.store.erase(func(name string) bool {
			secret := strings.HasPrefix(name, sharePrefix) || strings.HasPrefix(name, dealingPrefix)
			return !secret || name == mine
		})
		if err == nil {
			n.erased = group
		}
		return err
	}, nil
}

// planForget destroys the exchange key of a notary that left office, once no
// object's share is with it: with q such keys the shares that were dealt to them,
// which stay recorded, would still open their half of everything. All that it
// goes by is final, so no share can come back.
func (n *Notary) planForget(l look) (func(context.Context) error, error) {
	me, was := l.state.NotaryBearer(n.id)
	if !was || l.index > 0 || n.forgot || n.cfg.Forget == nil || l.final < l.auth.Size() {
		return nil, nil
	}
	for _, o := range l.state.Objects {
		if index, _ := o.Machines.Of(me); index > 0 {
			return nil, nil
		}
	}
	return func(ctx context.Context) error {
		n.forgot = true
		if err := n.cfg.Forget(ctx); err != nil {
			n.cfg.Log.Warn("left office and holds no share; its exchange key could not be destroyed: destroy it by hand", "err", err)
			return nil
		}
		n.cfg.Log.Warn("left office and holds no share: its exchange key is destroyed; stop this notary and destroy its other keys")
		return nil
	}, nil
}
