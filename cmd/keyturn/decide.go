package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// A decision is what approve, reject and withdraw have in common.
type decision struct {
	*app
	what   signoff.Decision
	reason string
	life   time.Duration
	out    string
}

func approveCmd(a *app) *cobra.Command {
	return decideCmd(a, signoff.Approve, "approve REQUEST", "show a request, ask, and sign your approval")
}

func rejectCmd(a *app) *cobra.Command {
	return decideCmd(a, signoff.Reject, "reject REQUEST", "sign a rejection: a veto where the rule gives you one")
}

func withdrawCmd(a *app) *cobra.Command {
	return decideCmd(a, signoff.Withdraw, "withdraw REQUEST", "take your approval back, or your own request")
}

func decideCmd(a *app, what signoff.Decision, use, short string) *cobra.Command {
	d := &decision{app: a, what: what}
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return d.run(cmd.Context(), args[0]) }}
	f := cmd.Flags()
	f.StringVar(&d.reason, "reason", "", "why, for the log")
	f.DurationVar(&d.life, "valid", 12*time.Hour, "how long the decision counts")
	f.StringVar(&a.carry, "file", "", "work from a carried log instead of a coordinator")
	f.StringVar(&d.out, "out", "", "write the signed decision to this file instead of sending it")
	cmd.MarkFlagRequired("reason")
	return cmd
}

func (d *decision) run(ctx context.Context, name string) error {
	if d.carry != "" && d.out == "" {
		return usage(errors.New("with --file, say with --out where to write the decision"))
	}
	if d.carry == "" {
		if err := d.freshTime(ctx); err != nil {
			return err
		}
	}
	if err := d.sync(ctx, 1); err != nil {
		return err
	}
	id, err := d.find(name)
	if err != nil {
		return err
	}
	plan, err := d.plan(id)
	if err != nil {
		return err
	}
	fmt.Fprint(d.Err, plan.text)
	for _, o := range plan.shuts {
		d.Note("object %s, %q, stays shut after it: too few of those who then belong hold a share, and whoever sealed it counts no longer; if it is worth something, reject, and run keyturn weights redeal first", o.ID, o.Doc.Name)
	}
	staysText(d.Err, plan.convicted)
	if err := d.Confirm(ctx, fmt.Sprintf("%s this request as %s?", capital(string(d.what)), d.conf.Name), string(d.what)); err != nil {
		return err
	}
	if d.what == signoff.Approve {
		if plan.doc.Shares, err = d.shares(ctx, plan); err != nil {
			return err
		}
	}
	key, err := d.signer(ctx)
	if err != nil {
		return err
	}
	signed, err := signoff.Sign(ctx, key, plan.doc)
	if err != nil {
		return err
	}
	return d.deliver(ctx, signed)
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// A plan is what will be signed, made from the state once and not looked up
// again: what was shown is what is signed.
type plan struct {
	doc        *signoff.Approval
	text       string
	objects    []*authority.Object
	recipients []recipient
	shuts      []*authority.Object // that nobody could open after a change of people
	convicted  []convictView       // who stays in office all the same; not signed
}

type recipient struct {
	id  dsse.Digest
	key lockbox.Recipient
}

func (d *decision) plan(id dsse.Digest) (*plan, error) {
	me, err := d.me()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	p := &plan{}
	return p, d.view(func(_ *authority.Authority, s *authority.State) error {
		r := s.Requests[id]
		if r.Ended != "" {
			return fmt.Errorf("request %s has ended: %s", id.Short(), r.Ended)
		}
		rule, _, err := s.Evaluate(r)
		if err != nil {
			return err
		}
		if p.text, err = s.Display(id); err != nil {
			return err
		}
		if _, ok := s.Person(me.ID); !ok {
			return fmt.Errorf("%s is no longer a person of this cluster", me.Name)
		}
		if r.Doc.People != nil {
			p.shuts, _ = s.Shuts(r.Doc.People) // of what cannot be done now there is nothing to say
		}
		expiry := min(now.Add(d.life).Unix(), r.Doc.Expiry)
		p.doc = &signoff.Approval{Charter: s.ID, Request: id, Person: me.ID, Decision: d.what, Rule: s.RuleDigest(rule), Reason: d.reason,
			Created: now.Unix(), Expiry: expiry, Nonce: nonce(), Display: textDigest(p.text), Seen: d.seen}
		p.convicted = viewRequest(s, r).Convicted
		for _, o := range r.Doc.Objects() {
			p.objects = append(p.objects, s.Objects[o])
		}
		p.recipients, err = recipientsOf(s, r.Doc)
		return err
	})
}

func recipientsOf(s *authority.State, r *signoff.Request) ([]recipient, error) {
	var out []recipient
	if r.Export != nil {
		key, err := r.Export.RecipientKey.Recipient()
		return append(out, recipient{r.Export.RecipientKey.Fingerprint(), key}), err
	}
	if r.Launch != nil {
		for _, id := range r.Launch.Pool {
			key, err := lockbox.P256Recipient(s.Nodes[id].Keys.StorageKey)
			if err != nil {
				return nil, err
			}
			out = append(out, recipient{s.Nodes[id].StorageFingerprint(), key})
		}
	}
	return out, nil
}

// shares opens this person's share of each object, one token operation each,
// and seals it to every recipient. A person whose token only signs has none. Toward them that cannot be taken back.
func (d *decision) shares(ctx context.Context, p *plan) ([]signoff.Share, error) {
	me, err := d.me()
	if err != nil {
		return nil, err
	}
	if len(p.objects) == 0 || !me.HoldsShare() {
		return nil, nil
	}
	key, err := d.exchange(ctx)
	if err != nil {
		return nil, err
	}
	var out []signoff.Share
	for _, o := range p.objects {
		share, err := d.openShare(ctx, key, o, me.Index)
		if err != nil {
			return nil, err
		}
		defer share.Wipe()
		for _, to := range p.recipients {
			where := lockbox.ReleaseContext{Context: share.Context(), Request: p.doc.Request, Recipient: to.key.ID()}
			sealed, err := lockbox.Reseal(share, to.key, where)
			if err != nil {
				return nil, err
			}
			out = append(out, signoff.Share{Object: o.ID, Epoch: o.People.Epoch, Index: me.Index, Recipient: to.id, Sealed: sealed})
		}
	}
	return out, nil
}

// openShare fetches the deals of an object and opens the one dealt to id.
func (a *app) openShare(ctx context.Context, id *lockbox.Identity, o *authority.Object, index uint16) (*lockbox.Share, error) {
	holder := id.Recipient().ID()
	deal, err := a.dealTo(ctx, o, index, holder)
	if err != nil {
		return nil, err
	}
	sharing, err := o.People.Sharing(o.People.Epoch)
	if err != nil {
		return nil, err
	}
	where := lockbox.Context{Charter: a.id, Object: o.ID, Side: lockbox.People, Epoch: o.People.Epoch, Index: index, Holder: holder}
	return lockbox.OpenShare(ctx, id, where, sharing, deal)
}

// unswapped refuses to have a share in memory that may be written to a swap
// device, where it would stay. Under a development charter it says so.
func (a *app) unswapped(swap error) error {
	if swap == nil {
		return nil
	}
	return a.view(func(_ *authority.Authority, s *authority.State) error {
		if !s.Charter.Development {
			return fmt.Errorf("open a share: %w", swap)
		}
		a.Note("%v", swap)
		return nil
	})
}

// dealTo finds the deal of an object to a key among the sealer's, or among those
// that its holder made when the shares were dealt anew.
func (a *app) dealTo(ctx context.Context, o *authority.Object, index uint16, holder dsse.Digest) (lockbox.Deal, error) {
	digest, own := o.People.DealsOf(index)
	if digest.IsZero() {
		return lockbox.Deal{}, fmt.Errorf("no share of object %s was dealt to holder %d", o.ID.Short(), index)
	}
	blob, err := a.follower.Source().Blob(ctx, digest)
	if err != nil {
		return lockbox.Deal{}, err
	}
	if !own {
		deals, err := lockbox.ParseDeals(blob)
		if err != nil {
			return lockbox.Deal{}, err
		}
		deal, err := deals.Find(lockbox.People, holder)
		if err != nil {
			err = ui.WithHint(err, "if you or your token came after it was sealed, shares are dealt anew by keyturn weights redeal")
		}
		return deal, err
	}
	deals, err := lockbox.ParseDealList(lockbox.People, blob)
	if err != nil {
		return lockbox.Deal{}, err
	}
	for _, d := range deals {
		if d.Object == o.ID && d.Holder == holder {
			return d, nil
		}
	}
	return lockbox.Deal{}, ui.WithHint(fmt.Errorf("no share of object %s was dealt to key %s", o.ID.Short(), holder), "give the token your share, with one that has it: keyturn weights redeal")
}

// deliver sends the signed document or writes it to a file.
func (d *decision) deliver(ctx context.Context, s *signoff.Signed) error {
	if d.out != "" {
		return d.answerSent(d.keep(s, d.out))
	}
	return d.answerSent(d.done(ctx, s))
}

// find resolves a request by digest or by an unambiguous beginning of
// its hex digits, at least six.
func (a *app) find(name string) (dsse.Digest, error) {
	var found []dsse.Digest
	err := a.view(func(_ *authority.Authority, s *authority.State) error {
		hexed := strings.TrimPrefix(name, "sha256:")
		for id := range s.Requests {
			if len(hexed) >= 6 && strings.HasPrefix(id.Hex(), hexed) {
				found = append(found, id)
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return dsse.Digest{}, err
	case len(found) == 0:
		return dsse.Digest{}, ui.WithHint(fmt.Errorf("no request %.80q in the log", name), "keyturn list shows them; give at least six digits")
	case len(found) > 1:
		return dsse.Digest{}, fmt.Errorf("%d requests begin with %q; give more digits", len(found), name)
	}
	return found[0], nil
}
