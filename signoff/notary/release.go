package notary

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// A due release is a share that this notary owes a recipient.
type dueRelease struct {
	warrant, claim, request Digest
	object                  *authority.Object
	index                   uint16 // of this notary's share of it
	recipient               *ecdh.PublicKey
}

// planRelease looks for final warrants, and final claims under them, to which
// this notary has not yet released its shares.
func (n *Notary) planRelease(l look) (func(context.Context) error, error) {
	if !l.onTime() {
		return nil, nil
	}
	for id, w := range l.state.Warrants {
		if !l.isFinal(w.Index) {
			continue
		}
		_, r, err := l.state.Live(id, Digest{})
		if err != nil || n.unloggedHalt(l, r.ID) {
			continue
		}
		if r.Doc.Export != nil {
			to, err := r.Doc.Export.RecipientKey.ECDH()
			if err != nil {
				return nil, err
			}
			if due := n.due(l, r, id, Digest{}, r.Doc.Objects(), to); due != nil {
				return due, nil
			}
		}
		if r.Doc.Launch != nil {
			if due, err := n.dueClaim(l, r, id); due != nil || err != nil {
				return due, err
			}
		}
	}
	return nil, nil
}

func (n *Notary) dueClaim(l look, r *authority.Request, warrant Digest) (func(context.Context) error, error) {
	for id, c := range l.state.Claims {
		if c.Doc.Warrant != warrant || c.Ended != "" || !l.isFinal(c.Index) {
			continue
		}
		if _, halted := l.state.Halted(r.ID, c.Doc.Node); halted {
			continue
		}
		to, err := freshKey(c)
		if err != nil {
			return nil, err
		}
		if due := n.due(l, r, warrant, id, l.state.Opens(c), to); due != nil {
			return due, nil
		}
	}
	return nil, nil
}

func freshKey(c *authority.Claim) (*ecdh.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(c.Fresh)
	if err != nil {
		return nil, fmt.Errorf("notary: fresh key of claim %s: %w", c.ID, err)
	}
	p, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("notary: fresh key of claim %s is a %T", c.ID, pub)
	}
	return p.ECDH()
}

// due returns the release of the first object that is still owed, or nil. When
// shares were dealt anew the old ones do not combine with those to come, so it
// is owed once more, unless the recipient has said that it has what it needs.
func (n *Notary) due(l look, r *authority.Request, warrant, claim Digest, objects []Digest, to *ecdh.PublicKey) func(context.Context) error {
	key, served := warrant, l.state.Warrants[warrant].Exported
	if !claim.IsZero() {
		key, served = claim, l.state.Claims[claim].Started
	}
	for _, object := range objects {
		o := l.state.Objects[object]
		done := slices.ContainsFunc(l.state.Releases[key], func(x *signoff.Release) bool {
			return x.Notary == n.id && x.Share.Object == object && (served || x.Share.Epoch == o.Machines.Epoch)
		})
		if _, index, ok := l.state.Holder(object, n.id); ok && !done {
			d := dueRelease{warrant, claim, r.ID, o, index, to}
			return func(ctx context.Context) error { return n.release(ctx, d) }
		}
	}
	return nil
}

// release opens this notary's share and seals it to the recipient.
func (n *Notary) release(ctx context.Context, d dueRelease) error {
	share, err := n.share(ctx, d.object, d.index)
	if err != nil {
		return err
	}
	defer share.Wipe()
	to, err := lockbox.P256Recipient(d.recipient)
	if err != nil {
		return err
	}
	where := share.Context()
	sealed, err := lockbox.Reseal(share, to, lockbox.ReleaseContext{Context: where, Request: d.request, Recipient: to.ID()})
	if err != nil {
		return err
	}
	return n.append(ctx, &signoff.Release{Charter: n.cfg.Charter, Notary: n.id, Warrant: d.warrant, Claim: d.claim,
		Share: signoff.Share{Object: d.object.ID, Epoch: where.Epoch, Index: where.Index, Recipient: to.ID(), Sealed: sealed}})
}

// share opens this notary's share of an object with one operation of its token
// and checks it against the object's commitments. Wipe it after use.
func (n *Notary) share(ctx context.Context, o *authority.Object, index uint16) (*lockbox.Share, error) {
	if err := n.store.hold(ctx); err != nil {
		return nil, err
	}
	id, err := lockbox.TokenIdentity(n.cfg.Exchange)
	if err != nil {
		return nil, err
	}
	held := o.Machines
	where := lockbox.Context{Charter: n.cfg.Charter, Object: o.ID, Side: lockbox.Machines, Epoch: held.Epoch, Index: index, Holder: id.Recipient().ID()}
	deal, err := n.deal(ctx, held, where)
	if err != nil {
		return nil, err
	}
	sharing, err := held.Sharing(held.Epoch)
	if err != nil {
		return nil, err
	}
	return lockbox.OpenShare(ctx, id, where, sharing, deal)
}

// deal finds the deal among the sealer's, or among those that this notary made
// for itself when the shares were dealt anew.
func (n *Notary) deal(ctx context.Context, held authority.Holding, where lockbox.Context) (lockbox.Deal, error) {
	digest, own := held.DealsOf(where.Index)
	blob, err := n.cfg.Client.Blob(ctx, digest)
	if err != nil {
		return lockbox.Deal{}, err
	}
	if !own {
		deals, err := lockbox.ParseDeals(blob)
		if err != nil {
			return lockbox.Deal{}, err
		}
		return deals.Find(lockbox.Machines, where.Holder)
	}
	deals, err := lockbox.ParseDealList(lockbox.Machines, blob)
	if err != nil {
		return lockbox.Deal{}, err
	}
	for _, x := range deals {
		if x.Object == where.Object && x.Holder == where.Holder {
			return x, nil
		}
	}
	return lockbox.Deal{}, fmt.Errorf("notary: blob %s has no deal of object %s for this notary", digest, Digest(where.Object))
}
