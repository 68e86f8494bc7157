package notary

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/hsm"
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

// due returns the release of the first object that is still owed, or nil.
func (n *Notary) due(l look, r *authority.Request, warrant, claim Digest, objects []Digest, to *ecdh.PublicKey) func(context.Context) error {
	key := claim
	if key.IsZero() {
		key = warrant
	}
	for _, object := range objects {
		done := slices.ContainsFunc(l.state.Releases[key], func(x *signoff.Release) bool {
			return x.Notary == n.id && x.Share.Object == object
		})
		o := l.state.Objects[object]
		if _, index, ok := l.state.Holder(object, n.id); ok && !done {
			d := dueRelease{warrant, claim, r.ID, o, index, to}
			return func(ctx context.Context) error { return n.release(ctx, d) }
		}
	}
	return nil
}

// release opens this notary's share with one operation of its token, checks
// it against the object's commitments and seals it to the recipient.
func (n *Notary) release(ctx context.Context, d dueRelease) error {
	blob, err := n.cfg.Client.Blob(ctx, d.object.Machines.Deals)
	if err != nil {
		return err
	}
	deals, err := lockbox.ParseDeals(blob)
	if err != nil {
		return err
	}
	holder, err := hsm.Fingerprint(n.cfg.Exchange.PublicKey())
	if err != nil {
		return err
	}
	deal, err := deals.Find(lockbox.Machines, holder)
	if err != nil {
		return err
	}
	sharing, err := d.object.Machines.Sharing(d.object.Machines.Epoch)
	if err != nil {
		return err
	}
	id, err := lockbox.TokenIdentity(n.cfg.Exchange)
	if err != nil {
		return err
	}
	where := lockbox.Context{Charter: n.cfg.Charter, Object: d.object.ID, Side: lockbox.Machines, Epoch: d.object.Machines.Epoch, Index: d.index, Holder: holder}
	share, err := lockbox.OpenShare(ctx, id, where, sharing, deal)
	if err != nil {
		return err
	}
	defer share.Wipe()
	to, err := lockbox.P256Recipient(d.recipient)
	if err != nil {
		return err
	}
	sealed, err := lockbox.Reseal(share, to, lockbox.ReleaseContext{Context: where, Request: d.request, Recipient: to.ID()})
	if err != nil {
		return err
	}
	return n.append(ctx, &signoff.Release{Charter: n.cfg.Charter, Notary: n.id, Warrant: d.warrant, Claim: d.claim,
		Share: signoff.Share{Object: d.object.ID, Epoch: d.object.Machines.Epoch, Index: d.index, Recipient: to.ID(), Sealed: sealed}})
}
