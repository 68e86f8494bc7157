package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/weights"
	"github.com/keyturn/keyturn/signoff/weights/release"
)

// An exporting is one run of weights export.
type exporting struct {
	*app
	sealed, out string
	request     *authority.Request
	warrant     *authority.Warrant
	attempt     uint32 // at the key generation, the last one seen
}

func exportCmd(a *app) *cobra.Command {
	x := &exporting{app: a}
	cmd := &cobra.Command{Use: "export REQUEST", Short: "write a warranted export: ciphertext, release bundle and receipt", Args: cobra.ExactArgs(1),
		Long: `Export wants the request's warrant in the final log and waits for a quorum of
notaries to release their shares. It copies the unchanged ciphertext, sharing
blocks where the file system can, puts the release bundle beside it, and signs
and logs a receipt. Only the recipient's key opens the result.

With --file it works from a carried log; carry receipt.json of the result
back and send it with keyturn submit.`,
		RunE: func(cmd *cobra.Command, args []string) error { return x.run(cmd.Context(), args[0]) }}
	cmd.Flags().StringVar(&x.sealed, "sealed", "", "the sealed directory")
	cmd.Flags().StringVar(&x.out, "out", "", "directory to make, as a rule on the medium that the request names")
	cmd.Flags().StringVar(&a.carry, "file", "", "work from a carried log instead of a coordinator")
	return require(cmd, "sealed", "out")
}

func (x *exporting) run(ctx context.Context, name string) error {
	if err := vacant(x.out); err != nil {
		return err
	}
	if err := x.sync(ctx, 1); err != nil {
		return err
	}
	if err := x.find(name); err != nil {
		return err
	}
	if err := x.awaitReleases(ctx); err != nil {
		return err
	}
	bundle, err := x.bundle()
	if err != nil {
		return err
	}
	receipt, err := x.write(ctx, bundle)
	if err != nil {
		return err
	}
	if x.carry == "" {
		if _, err := x.done(ctx, receipt); err != nil {
			return ui.WithHint(fmt.Errorf("%s is complete, but its receipt is not in the log: %w", x.out, err), "keyturn submit %s/%s", x.out, receiptFile)
		}
	}
	r := receipt.Doc.(*signoff.Receipt)
	return x.Answer(struct {
		Request dsse.Digest `json:"request"`
		Warrant dsse.Digest `json:"warrant"`
		Path    string      `json:"path"`
		Bytes   int64       `json:"bytes"`
		Receipt dsse.Digest `json:"receipt"`
	}{x.request.ID, x.warrant.ID, x.out, r.Bytes, receipt.Digest()}, func(w writer) {
		fmt.Fprintf(w, "%s: %s for %s\n", x.out, ui.Bytes(r.Bytes), x.request.Doc.Export.Recipient)
	})
}

// find looks the request up and refuses unless its export may happen now and
// the person at the keyboard is the one who asked.
func (x *exporting) find(name string) error {
	id, err := x.app.find(name)
	if err != nil {
		return err
	}
	me, err := x.me()
	if err != nil {
		return err
	}
	return x.view(func(_ *authority.Authority, s *authority.State) error {
		x.request = s.Requests[id]
		switch {
		case x.request.Doc.Export == nil:
			return fmt.Errorf("request %s is for %s, not for an export", id.Short(), x.request.Doc.Action)
		case x.request.Warrant.IsZero():
			return noWarrant(s, x.request)
		case x.request.Doc.Requester != me.ID:
			return fmt.Errorf("request %s is %s's; whoever asked exports and signs the receipt", id.Short(), personName(s, x.request.Doc.Requester))
		}
		w, _, err := s.Live(x.request.Warrant, dsse.Digest{})
		if err != nil {
			return err
		}
		if w.Exported {
			return fmt.Errorf("warrant %s was used: its export is in the log; ask again for another", w.ID.Short())
		}
		x.warrant = w
		return nil
	})
}

// awaitReleases waits until a quorum of notaries released in the final log.
func (x *exporting) awaitReleases(ctx context.Context) error {
	for deadline := time.Now().Add(x.wait); ; {
		var have, want int
		if err := x.view(func(_ *authority.Authority, s *authority.State) error {
			_, have, want = x.released(s)
			_, _, err := s.Live(x.warrant.ID, dsse.Digest{})
			return err
		}); err != nil {
			return err
		}
		if have >= want {
			return nil
		}
		late := &ui.Exit{Code: ui.ExitNotFinal, Err: ui.WithHint(fmt.Errorf("%d of %d notaries have released their shares", have, want), "wait longer with --wait; see keyturn status")}
		if x.carry != "" || !time.Now().Before(deadline) {
			return late
		}
		if err := x.next(ctx); err != nil {
			x.Note("%v", err)
			return late
		}
	}
}

// released is the newest epoch of which enough notaries released their shares,
// or else the one in force; how many did, and how many it takes. Those of two
// epochs do not combine.
func (x *exporting) released(s *authority.State) (epoch uint32, have, want int) {
	held, count := s.Objects[x.request.Doc.Export.Object].Machines, map[uint32]int{}
	for _, r := range s.Releases[x.warrant.ID] {
		count[r.Share.Epoch]++
	}
	for e := held.Epoch; e > 0; e-- {
		if sharing, err := held.Sharing(e); err == nil && count[e] >= sharing.Threshold() {
			return e, count[e], sharing.Threshold()
		}
	}
	return held.Epoch, count[held.Epoch], held.Threshold()
}

// next wakes the notaries, who release only while the log's time is fresh, and
// waits for one more final entry.
func (x *exporting) next(ctx context.Context) error {
	client, err := x.coordinator()
	if err != nil {
		return err
	}
	if err := client.Send(ctx, api.TopicWake, []byte("release")); err != nil {
		return err
	}
	return x.sync(ctx, x.follower.Seen().Size+1)
}

// bundle collects from the final log what the recipient needs, and verifies it
// as the recipient will.
func (x *exporting) bundle() ([]byte, error) {
	b := &release.Bundle{Version: release.Version, Charter: string(x.leaves[0])}
	err := x.app.follower.View(func(auth *authority.Authority, _ proof.Checkpoint, note []byte) error {
		s := auth.State()
		for i, line := range x.leaves {
			doc, err := signoff.ReadLine(line)
			if err != nil {
				continue
			}
			if at, ok := s.Documents[doc.Digest()]; ok && at == uint64(i) {
				x.collect(s, b, doc)
			}
		}
		if err := x.sharing(s, b); err != nil {
			return err
		}
		path, err := proof.NewTree(x.leaves).Prove(x.warrant.Index)
		p := &proof.Proof{Index: x.warrant.Index, Path: path, Checkpoint: note}
		b.Proof = string(p.Marshal())
		return err
	})
	if err != nil {
		return nil, err
	}
	if _, err := b.Verify(x.id); err != nil {
		return nil, err
	}
	return b.Marshal()
}

// collect puts an entry that took effect into the bundle if it belongs there.
func (x *exporting) collect(s *authority.State, b *release.Bundle, doc *signoff.Signed) {
	line := string(doc.Line())
	switch d := doc.Doc.(type) {
	case *signoff.Transcript:
		if d.Term == 1 {
			x.vouches(b, d, line)
		}
	case *signoff.Takeover:
		w := s.Warrants[s.Terms[d.Term-1].Warrant]
		b.Terms = append(b.Terms, release.Term{Request: x.entry(s, w.Doc.Request), Warrant: x.entry(s, w.ID), Takeover: line})
	case *signoff.Recovery:
		if n := len(b.Terms); n > 0 {
			b.Terms[n-1].Recovery = line
		} else {
			b.Recovery = line
		}
	case *signoff.Object:
		if doc.Digest() == x.request.Doc.Export.Object {
			b.Object = line
		}
	case *signoff.Request:
		if doc.Digest() == x.request.ID {
			b.Request = line
		}
	case *signoff.Warrant:
		if doc.Digest() == x.warrant.ID {
			b.Warrant = line
		} else if d.Action == signoff.ActionPeopleChange && b.Warrant == "" {
			b.People = append(b.People, release.Change{Request: string(x.leaves[s.Requests[d.Request].Index]), Warrant: line})
		}
	case *signoff.Approval:
		if slices.ContainsFunc(x.request.Votes, func(v authority.Vote) bool {
			return v.Approval == doc.Digest() && v.Doc.Decision == signoff.Approve && v.Doc.Rule == x.warrant.Doc.Rule && v.Doc.Shares[0].Epoch == x.epoch(s)
		}) {
			b.Approvals = append(b.Approvals, line)
		}
	case *signoff.Release:
		if epoch, _, _ := x.released(s); d.Warrant == x.warrant.ID && d.Claim.IsZero() && d.Share.Epoch == epoch {
			b.Releases = append(b.Releases, line)
		}
	}
}

// entry is the leaf by which a document took effect.
func (x *exporting) entry(s *authority.State, document dsse.Digest) string {
	return string(x.leaves[s.Documents[document]])
}

// vouches keeps the transcripts of the last attempt at the key generation.
func (x *exporting) vouches(b *release.Bundle, t *signoff.Transcript, line string) {
	if t.Attempt != x.attempt {
		x.attempt, b.Transcripts = t.Attempt, nil
	}
	if len(t.Accused) == 0 {
		b.Transcripts = append(b.Transcripts, line)
	}
}

// epoch is that of the shares in the approvals that the warrant counts.
func (x *exporting) epoch(s *authority.State) uint32 {
	for _, v := range s.Requests[x.request.ID].Votes {
		if slices.Contains(x.warrant.Doc.Approvals, v.Approval) {
			return v.Doc.Shares[0].Epoch
		}
	}
	return 0
}

// sharing puts the commitments beside shares that were dealt anew.
func (x *exporting) sharing(s *authority.State, b *release.Bundle) (err error) {
	o := s.Objects[x.request.Doc.Export.Object]
	if b.Sharing, err = later(o.People, x.epoch(s)); err != nil {
		return err
	}
	epoch, _, _ := x.released(s)
	b.Machines, err = later(o.Machines, epoch)
	return err
}

// later are the commitments of an epoch; none of the first, whose the object's
// statement has.
func later(held authority.Holding, epoch uint32) ([][]byte, error) {
	if epoch == firstEpoch {
		return nil, nil
	}
	sharing, err := held.Sharing(epoch)
	return sharing.Bytes(), err
}

// write makes the export with its signed receipt in it. The directory appears
// at once and whole, so the receipt is never there without what it is for.
func (x *exporting) write(ctx context.Context, bundle []byte) (*signoff.Signed, error) {
	t, err := x.trusted()
	if err != nil {
		return nil, err
	}
	d, err := sealedAt(x.sealed, t)
	if err != nil {
		return nil, err
	}
	if want := x.request.Doc.Export.Object; d.objectID != want {
		return nil, fmt.Errorf("%s is object %s, the request is for %s", x.sealed, d.objectID, want)
	}
	files, err := d.open()
	if err != nil {
		return nil, err
	}
	defer files.Close()
	size, err := files.Size()
	if err != nil {
		return nil, err
	}
	receipt, err := x.receipt(ctx, size, len(d.manifest.Files))
	if err != nil {
		return nil, err
	}
	report, done := x.progress("exporting")
	err = files.Export(ctx, x.out, map[string][]byte{releaseFile: bundle, receiptFile: append(receipt.Line(), '\n')}, weights.Run{Progress: report})
	done()
	if errors.Is(err, weights.ErrExists) {
		err = ui.WithHint(err, "choose another place or remove it")
	}
	return receipt, err
}

func (x *exporting) receipt(ctx context.Context, size int64, files int) (*signoff.Signed, error) {
	key, err := x.signer(ctx)
	if err != nil {
		return nil, err
	}
	e := x.request.Doc.Export
	return signoff.Sign(ctx, key, &signoff.Receipt{Charter: x.id, Signer: x.request.Doc.Requester, Warrant: x.warrant.ID, Event: signoff.EventExported,
		Detail: fmt.Sprintf("%d files of object %s for key %s", files, e.Object, e.RecipientKey.Fingerprint()), Bytes: size, Created: time.Now().Unix()})
}
