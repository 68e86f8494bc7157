package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// A redealing is one run of weights redeal: this person's part of moving the
// shares of objects to the people of the roster.
type redealing struct {
	*app
	me      *authority.Member
	holder  dsse.Digest // the exchange key at hand
	key     hsm.Key
	opens   *lockbox.Identity
	blobs   map[dsse.Digest][]*lockbox.SubDeals
	objects map[dsse.Digest]bool // nil: all

	tally struct{ dealt, accepted, kept int }
	wrong []string
}

func redealCmd(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{Use: "redeal [OBJECT...]", Short: "move shares to the people of today, with the others' help", Args: cobra.ArbitraryArgs,
		Long: `Redeal does your part in moving the shares of objects to the people of the
roster, after people or tokens changed: as many old holders as open an object
deal their shares on, every person of the roster opens the new share, compares
it with the commitments and accepts, and with the last acceptance the new epoch
is in force. Until then the old one works. Run it again when others have dealt;
what is done is in the log and is not done twice.

Objects keep their ids and files; no plaintext, no key of a file and no secret
is formed anywhere. A dealer whose part of your share is wrong is named in the
log, and another deals instead. A token that you added is given your share
without the others.

This is not revocation. Whoever left and kept enough old shares together can
still use them with a quorum of notaries; whoever had the plaintext has it.
To take weights away from somebody, seal them anew: keyturn weights reseal.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all != (len(args) == 0) {
				return usage(errors.New("name objects, or give --all"))
			}
			return (&redealing{app: a, blobs: map[dsse.Digest][]*lockbox.SubDeals{}}).run(cmd.Context(), args)
		}}
	cmd.Flags().BoolVar(&all, "all", false, "all objects whose shares are not where the people are")
	return cmd
}

func (r *redealing) run(ctx context.Context, names []string) error {
	if err := r.prepare(ctx, names); err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		todo func(*authority.State, *authority.Object) bool
		do   func(context.Context, []*authority.Object) (signoff.Document, error)
	}{{"dealing on", r.mayDeal, r.deal}, {"accepting", r.mayAccept, r.accept}, {"dealing to your tokens", r.mayKeep, r.keep}} {
		update, done := r.Progress(step.what)
		err := r.batches(ctx, step.todo, step.do, update)
		done()
		if err != nil {
			return err
		}
	}
	if err := r.answer(); err != nil {
		return err
	}
	if len(r.wrong) > 0 {
		return fmt.Errorf("%d parts of your shares are wrong, and their dealers are named in the log: %s", len(r.wrong), strings.Join(r.wrong, "; "))
	}
	return nil
}

func (r *redealing) prepare(ctx context.Context, names []string) error {
	if err := r.sync(ctx, 1); err != nil {
		return err
	}
	for _, name := range names {
		o, err := r.findObject(name)
		if err != nil {
			return err
		}
		if r.objects == nil {
			r.objects = map[dsse.Digest]bool{}
		}
		r.objects[o.ID] = true
	}
	var err error
	if r.me, err = r.app.me(); err != nil {
		return err
	}
	token, key, err := r.token(ctx)
	if err != nil {
		return err
	}
	r.key, r.holder = key, token.Exchange.Fingerprint()
	r.opens, err = r.exchange(ctx)
	return err
}

// batches does one step for all objects that want it, so many to an entry. The
// log says what is left: a run that was cut off goes on where it ended, and what
// others did meanwhile is not asked for again.
func (r *redealing) batches(ctx context.Context, todo func(*authority.State, *authority.Object) bool, do func(context.Context, []*authority.Object) (signoff.Document, error), update func(done, total int64)) error {
	var finished int64
	var failed error
	for last := (dsse.Digest{}); ; {
		objects, total, err := r.next(todo)
		if err != nil || total == 0 {
			return err
		}
		if failed != nil && objects[0].ID == last {
			return failed
		}
		update(finished, finished+int64(total))
		doc, err := do(ctx, objects)
		if err != nil {
			return err
		}
		signed, err := signoff.Sign(ctx, r.key, doc)
		if err != nil {
			return err
		}
		last = objects[0].ID
		if _, failed = r.submit(ctx, signed); failed != nil {
			// Somebody may have been quicker; what is left then is something else.
			if err := r.sync(ctx, 1); err != nil {
				return errors.Join(failed, err)
			}
			continue
		}
		finished += int64(len(objects))
	}
}

// maxSubShare bounds a sub-share in a blob, in bytes: 1233 in base64 if its key
// is hybrid, and whom it is for.
const maxSubShare = 2 << 10

// next lists a batch of objects that want a step, and how many do. A batch has a
// sub-share for every token of the roster and must fit a blob.
func (r *redealing) next(todo func(*authority.State, *authority.Object) bool) (batch []*authority.Object, total int, err error) {
	tokens := 1
	err = r.view(func(_ *authority.Authority, s *authority.State) error {
		tokens = max(1, len(s.People.Tokens()))
		for id, o := range s.Objects {
			if (r.objects == nil || r.objects[id]) && todo(s, o) {
				batch = append(batch, o)
			}
		}
		return nil
	})
	slices.SortFunc(batch, func(x, y *authority.Object) int { return int(x.Index) - int(y.Index) })
	total = len(batch)
	return batch[:min(total, signoff.MaxRedealt, maxShares/(tokens*maxSubShare))], total, err
}

func (r *redealing) mayDeal(s *authority.State, o *authority.Object) bool {
	return s.Displaced(o, lockbox.People) && s.Redealing(o, lockbox.People).Sharing == nil && o.People.Holders[r.holder] == r.me.Index && s.MayDeal(o, r.me.Bearer()) == nil
}

func (r *redealing) mayAccept(s *authority.State, o *authority.Object) bool {
	next := s.Redealing(o, lockbox.People)
	_, accepted := next.Accepted[r.me.Index]
	return s.Displaced(o, lockbox.People) && next.Sharing != nil && !accepted
}

func (r *redealing) mayKeep(s *authority.State, o *authority.Object) bool {
	_, all := o.People.Of(r.me.Bearer())
	return !s.Displaced(o, lockbox.People) && o.People.Epoch > 0 && !all && o.People.Holders[r.holder] == r.me.Index
}

// put stores a blob.
func (r *redealing) put(ctx context.Context, v any) (dsse.Digest, error) {
	b, err := dsse.Encode(v)
	if err != nil {
		return dsse.Digest{}, err
	}
	client, err := r.coordinator()
	if err != nil {
		return dsse.Digest{}, err
	}
	return client.PutBlob(ctx, b)
}

// boxes is the arithmetic of the objects' re-deals, and the roster dealt to.
func (r *redealing) boxes(objects []*authority.Object) (boxes []*lockbox.Redeal, roster uint64, err error) {
	return boxes, roster, r.view(func(_ *authority.Authority, s *authority.State) error {
		roster = s.People.Index
		for _, o := range objects {
			box, err := s.Lockbox(o, lockbox.People)
			if err != nil {
				return err
			}
			boxes = append(boxes, box)
		}
		return nil
	})
}

// deal opens this person's old share of each object, one operation of the
// token, and deals it on.
func (r *redealing) deal(ctx context.Context, objects []*authority.Object) (signoff.Document, error) {
	boxes, roster, err := r.boxes(objects)
	if err != nil {
		return nil, err
	}
	doc := &signoff.Redealing{Charter: r.id, Person: r.me.ID, Roster: roster}
	var parts []*lockbox.SubDeals
	for i, o := range objects {
		share, err := r.openShare(ctx, r.opens, o, r.me.Index)
		if err != nil {
			return nil, err
		}
		part, err := boxes[i].Deal(rand.Reader, share)
		share.Wipe()
		if err != nil {
			return nil, err
		}
		parts, doc.Objects = append(parts, part), append(doc.Objects, o.ID)
	}
	r.tally.dealt += len(objects)
	doc.Blob, err = r.put(ctx, parts)
	return doc, err
}

// accept opens each dealer's part of this person's new share of each object,
// one operation of the token each, and names a dealer whose part is wrong.
func (r *redealing) accept(ctx context.Context, objects []*authority.Object) (signoff.Document, error) {
	boxes, _, err := r.boxes(objects)
	if err != nil {
		return nil, err
	}
	c := &custody{redealing: r, doc: &signoff.Custody{Charter: r.id, Person: r.me.ID}}
	for i, o := range objects {
		held := signoff.Held{Object: o.ID, Epoch: o.Redeal.Epoch, Sharing: authority.SharingDigest(o.Redeal.Sharing)}
		parts, err := r.parts(ctx, o.Redeal)
		if err != nil {
			return nil, err
		}
		share, _, err := boxes[i].Accept(ctx, r.opens, r.me.Index, parts)
		var fault *lockbox.ShareError
		switch {
		case errors.As(err, &fault) && fault.Dealer != 0:
			held.Wrong = fault.Dealer
			r.wrong = append(r.wrong, err.Error())
			c.doc.Shares = append(c.doc.Shares, held)
			continue
		case err != nil:
			return nil, err
		}
		r.tally.accepted++
		if err := c.take(share, held); err != nil {
			return nil, err
		}
	}
	return c.finish(ctx)
}

// parts are the fixed dealers' parts of an object.
func (r *redealing) parts(ctx context.Context, x *authority.Redeal) ([]*lockbox.SubDeals, error) {
	var parts []*lockbox.SubDeals
	for _, d := range x.Dealers {
		list, ok := r.blobs[d.Blob]
		if !ok {
			blob, err := r.follower.Source().Blob(ctx, d.Blob)
			if err != nil {
				return nil, err
			}
			if list, err = lockbox.ParseSubDealsList(blob); err != nil {
				return nil, err
			}
			r.blobs[d.Blob] = list
		}
		if d.Place >= len(list) {
			return nil, fmt.Errorf("blob %s has the parts of %d objects, the log names place %d", d.Blob, len(list), d.Place)
		}
		parts = append(parts, list[d.Place])
	}
	return parts, nil
}

// keep deals this person's share to all of the own tokens.
func (r *redealing) keep(ctx context.Context, objects []*authority.Object) (signoff.Document, error) {
	c := &custody{redealing: r, doc: &signoff.Custody{Charter: r.id, Person: r.me.ID}}
	for _, o := range objects {
		share, err := r.openShare(ctx, r.opens, o, r.me.Index)
		if err != nil {
			return nil, err
		}
		sharing, err := o.People.Sharing(o.People.Epoch)
		if err != nil {
			return nil, err
		}
		if err := c.take(share, signoff.Held{Object: o.ID, Epoch: o.People.Epoch, Sharing: authority.SharingDigest(sharing)}); err != nil {
			return nil, err
		}
		r.tally.kept++
	}
	return c.finish(ctx)
}

// A custody is a document about own shares in the making.
type custody struct {
	*redealing
	doc   *signoff.Custody
	deals []lockbox.Deal
}

// take seals a share to each of the person's tokens, and wipes it.
func (c *custody) take(share *lockbox.Share, held signoff.Held) error {
	defer share.Wipe()
	for _, t := range c.me.Tokens() {
		key, err := t.Exchange.Recipient()
		if err != nil {
			return err
		}
		deal, err := share.DealTo(key)
		if err != nil {
			return err
		}
		c.deals = append(c.deals, deal)
	}
	c.doc.Shares = append(c.doc.Shares, held)
	return nil
}

func (c *custody) finish(ctx context.Context) (_ signoff.Document, err error) {
	if len(c.deals) > 0 {
		c.doc.Blob, err = c.put(ctx, c.deals)
	}
	return c.doc, err
}

// A redealView is where a side of an object stands.
type redealView struct {
	Object   dsse.Digest `json:"object"`
	Epoch    uint32      `json:"epoch"` // in force
	Dealt    int         `json:"dealt"` // dealers so far, toward the next epoch
	Want     int         `json:"want"`  // as many as it takes
	WaitsFor []string    `json:"waitsFor"`
}

// viewRedeal says what a re-deal of a side of the object waits for; nil if its
// shares are where they are to be.
func viewRedeal(s *authority.State, o *authority.Object, side lockbox.Side) *redealView {
	if !s.Displaced(o, side) {
		return nil
	}
	held := o.Holding(side)
	v := &redealView{Object: o.ID, Epoch: held.Epoch, Dealt: len(s.Redealing(o, side).Dealers), Want: held.Threshold(), WaitsFor: []string{}}
	for _, b := range s.WaitsFor(o, side) {
		v.WaitsFor = append(v.WaitsFor, b.Name)
	}
	return v
}

func (v *redealView) String() string {
	if v.Dealt < v.Want {
		return fmt.Sprintf("%d of %d dealers; %d more of %s", v.Dealt, v.Want, v.Want-v.Dealt, strings.Join(v.WaitsFor, ", "))
	}
	return "all dealt; to be accepted by " + strings.Join(v.WaitsFor, ", ")
}

func (r *redealing) answer() error {
	v := struct {
		Dealt    int           `json:"dealt"`
		Accepted int           `json:"accepted"`
		Kept     int           `json:"kept"` // dealt to own tokens
		Wrong    []string      `json:"wrong"`
		Waiting  []*redealView `json:"waiting"`
		Lacking  int           `json:"lacking"` // shares that another of the own tokens has, and this one not
	}{r.tally.dealt, r.tally.accepted, r.tally.kept, append([]string{}, r.wrong...), []*redealView{}, 0}
	if err := r.view(func(_ *authority.Authority, s *authority.State) error {
		for id, o := range s.Objects {
			if index, _ := o.People.Of(r.me.Bearer()); index > 0 && o.People.Holders[r.holder] == 0 && (r.objects == nil || r.objects[id]) {
				v.Lacking++
			}
			if w := viewRedeal(s, o, lockbox.People); w != nil && (r.objects == nil || r.objects[id]) {
				v.Waiting = append(v.Waiting, w)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	slices.SortFunc(v.Waiting, func(x, y *redealView) int { return slices.Compare(x.Object[:], y.Object[:]) })
	return r.Answer(v, func(w writer) {
		fmt.Fprintf(w, "dealt on %d shares, accepted %d, dealt %d to your own tokens\n", v.Dealt, v.Accepted, v.Kept)
		rows := [][]string{}
		for _, x := range v.Waiting {
			rows = append(rows, []string{x.Object.Short(), "in epoch " + fmt.Sprint(x.Epoch), x.String()})
		}
		ui.Table(w, rows)
		if v.Lacking > 0 {
			fmt.Fprintf(w, "shares not with this token: %d; run the same with another of yours, which has them\n", v.Lacking)
		} else if len(rows) == 0 {
			fmt.Fprintln(w, "nothing waits")
		}
	})
}
