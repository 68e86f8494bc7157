package notary

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/proof"
)

// An ask is a notary's question after a restart: where do you stand?
type ask struct {
	Notary Digest `json:"notary"`
	Nonce  []byte `json:"nonce"` // 16 random bytes
}

const nonceSize = 16

// A reminder shows a notary that asks the newest final checkpoint with its
// cosignature that the sender saw. The cosignature proves it, whoever sends it.
type reminder struct {
	Notary   Digest `json:"notary"`
	Cosigned string `json:"cosigned"` // note (c2sp.org/tlog-checkpoint)
}

// recall asks the other notaries, after a restart, for the checkpoint each
// cosigned last, and waits until q-1 of them stand on the log that it is shown.
// A notary whose disk was rolled back would otherwise cosign a second branch in
// good faith, and so would one whose disk was rolled back to the very start. With a
// fuse, one that is shown that it cosigned more than its disk says is refused.
func (n *Notary) recall(ctx context.Context) error {
	nonce := make([]byte, nonceSize)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	box := api.NewReader(api.TopicPositions)
	answers := map[Digest]signoff.Seen{}
	reminded := map[signoff.Seen]bool{} // of checkpoints, however often each is shown
	asked, told := time.Time{}, ""
	for ctx.Err() == nil {
		if err := n.catchUp(ctx); errors.Is(err, ErrFuse) {
			return err
		} else if err != nil {
			if err.Error() != told {
				told = err.Error()
				n.cfg.Log.Warn("waiting for the log", "err", err)
			}
			pause(ctx, time.Second)
			continue
		}
		if time.Since(asked) > 3*time.Second {
			q, err := dsse.Encode(ask{n.id, nonce})
			if err != nil {
				return err
			}
			if err := n.cfg.Client.Send(ctx, api.TopicPositions, q); err != nil {
				pause(ctx, time.Second)
				continue
			}
			asked = time.Now()
		}
		msgs, err := box.Receive(ctx, n.cfg.Client, time.Second)
		if err != nil {
			pause(ctx, time.Second)
			continue
		}
		// Answer others who restarted at the same time, or all would wait
		// for each other.
		n.replyAll(ctx, msgs)
		n.takeReminders(msgs, reminded)
		enough, err := n.takeAnswers(msgs, nonce, answers)
		// Each notary reminds before it answers. What is not on this log yet is
		// when its answer is.
		for cosigned := range reminded {
			if err := n.outdated(ctx, cosigned); err != nil {
				return err
			}
		}
		if enough {
			return nil
		}
		if err != nil {
			n.cfg.Log.Warn("waiting for the other notaries", "err", err)
		}
	}
	return ctx.Err()
}

// catchUp folds the newest checkpoint without cosigning it. What was folded in
// here binds to nothing, only what was cosigned does: shown another log than a
// moment ago, the fold begins again.
func (n *Notary) catchUp(ctx context.Context) error {
	note, err := n.cfg.Client.Checkpoint(ctx, false, 1, time.Second)
	if err != nil {
		return err
	}
	_, err = n.follower.Committed(ctx, note)
	if errors.Is(err, follow.ErrRollback) {
		if n.follower, err = follow.New(n.cfg.Charter, n.cfg.Client, nil); err == nil {
			_, err = n.follower.Committed(ctx, note)
		}
	}
	if err != nil {
		return err
	}
	if err := n.whoAmI(); err != nil {
		return err
	}
	if _, err = n.extends(n.store.position()); err != nil {
		return err
	}
	if cosigned, ok := n.cosignedAt(note); ok {
		return n.outdated(ctx, cosigned)
	}
	return nil
}

// cosignedAt returns the checkpoint of a note that has this notary's cosignature.
func (n *Notary) cosignedAt(note []byte) (signoff.Seen, bool) {
	c, err := proof.Unverified(note)
	if err != nil || !n.cosigned(note) {
		return signoff.Seen{}, false
	}
	return signoff.Seen{Size: c.Size, Root: Digest(c.Root)}, true
}

// outdated refuses the directory of a notary with a fuse, for good, if a checkpoint
// that this notary cosigned is of the log that was folded and the directory is
// from before it: what is cosigned is on disk first, so no crash leaves that.
func (n *Notary) outdated(ctx context.Context, cosigned signoff.Seen) error {
	if !n.store.fused() {
		return nil
	}
	known := n.store.position().Seen.Size
	older := false
	err := n.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		root, ok := a.RootAt(cosigned.Size)
		older = ok && root == cosigned.Root && cosigned.Size > known
		return nil
	})
	if err != nil || !older {
		return err
	}
	return fmt.Errorf("notary: use %s: %w: it says that nothing above size %d was cosigned, and this notary's cosignature at %d was shown: this is a copy of an older state; %s",
		n.cfg.Dir, errors.Join(ErrFuse, n.store.blow(ctx)), known, cosigned.Size, replace)
}

// takeReminders notes what others show this notary that it cosigned. Anybody can
// show it, and the same again and again.
func (n *Notary) takeReminders(msgs [][]byte, reminded map[signoff.Seen]bool) {
	for _, m := range msgs {
		var r reminder
		if dsse.Decode(m, &r) != nil || r.Notary != n.id {
			continue
		}
		if cosigned, ok := n.cosignedAt([]byte(r.Cosigned)); ok {
			reminded[cosigned] = true
		}
	}
}

// takeAnswers counts notaries whose position is on the log that was folded.
// Those who are elsewhere may be hostile and are not waited for; the error
// tells of them.
func (n *Notary) takeAnswers(msgs [][]byte, nonce []byte, answers map[Digest]signoff.Seen) (bool, error) {
	enough := false
	err := n.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		s := a.State()
		for _, m := range msgs {
			doc, err := signoff.ReadLine(m)
			if err != nil {
				continue
			}
			p, ok := doc.Doc.(*signoff.Position)
			if !ok || p.Charter != s.ID || p.Notary == n.id || !bytes.Equal(p.Answer, nonce) {
				continue
			}
			y, _, ok := s.Notary(p.Notary) // in office: who left or is to come saw nothing that counts
			if !ok {
				continue
			}
			pub, err := y.Signing.Public()
			if err == nil && doc.Verify(pub) == nil {
				answers[p.Notary] = p.Seen
			}
		}
		count := 0
		for _, seen := range answers {
			if root, ok := a.RootAt(seen.Size); seen.Size == 0 || (ok && root == seen.Root) {
				count++
			}
		}
		enough = count >= s.Council().Quorum()-1
		if len(answers) > count {
			return fmt.Errorf("notary: %d notaries are ahead of this log or on another", len(answers)-count)
		}
		return nil
	})
	return enough, err
}

// answerPositions answers other notaries' questions.
func (n *Notary) answerPositions(ctx context.Context) error {
	box := api.NewReader(api.TopicPositions)
	for ctx.Err() == nil {
		msgs, err := box.Receive(ctx, n.cfg.Client, 5*time.Second)
		if err != nil {
			pause(ctx, time.Second)
			continue
		}
		n.replyAll(ctx, msgs)
	}
	return nil
}

// replyAll signs at most one answer for each notary that asked, the newest:
// anybody can write questions, and signing takes the token's time. A nonce of
// another length is refused, because a position signed over 32 bytes is a word
// for a recovery.
func (n *Notary) replyAll(ctx context.Context, msgs [][]byte) {
	asked := map[Digest][]byte{}
	for _, m := range msgs {
		var q ask
		if dsse.Decode(m, &q) == nil && q.Notary != n.id && len(q.Nonce) == nonceSize {
			asked[q.Notary] = q.Nonce
		}
	}
	for _, y := range n.others(asked) {
		n.remind(ctx, y)
		p := &signoff.Position{Charter: n.cfg.Charter, Notary: n.id, Seen: n.store.position().Seen, Answer: asked[y.ID()]}
		doc, err := n.sign(ctx, p)
		if err == nil {
			err = n.cfg.Client.Send(ctx, api.TopicPositions, doc.Line())
		}
		if err != nil && ctx.Err() == nil {
			n.cfg.Log.Warn("cannot answer a notary that restarted", "err", err)
		}
	}
}

// remind is of use to a notary that forgot, and no condition of anything.
func (n *Notary) remind(ctx context.Context, y *signoff.Notary) {
	n.mu.Lock()
	note := n.cosignedBy[y.Name]
	n.mu.Unlock()
	if note == nil {
		return
	}
	m, err := dsse.Encode(reminder{y.ID(), string(note)})
	if err == nil {
		err = n.cfg.Client.Send(ctx, api.TopicPositions, m)
	}
	if err != nil && ctx.Err() == nil {
		n.cfg.Log.Warn("cannot remind a notary that restarted", "err", err)
	}
}

// others keeps those who are, were or become notaries, as far as the log says.
func (n *Notary) others(asked map[Digest][]byte) (out []*signoff.Notary) {
	_ = n.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		for id := range asked {
			if y, ok := a.State().AnyNotary(id); ok {
				out = append(out, y)
			}
		}
		return nil
	})
	return out
}

// StatePosition signs, for a recovery under the new log key, which checkpoint
// this notary cosigned last. It is an act of the notary's operator, and before
// the word is out the notary's directory keeps that it was given: nothing more
// is cosigned, under any log key, until the log has this recovery or another.
func (n *Notary) StatePosition(ctx context.Context, newLogKey Digest) (*signoff.Signed, error) {
	if err := n.arm(ctx); err != nil {
		return nil, err
	}
	seen, err := n.store.state(ctx)
	if err != nil {
		return nil, err
	}
	return n.sign(ctx, &signoff.Position{Charter: n.cfg.Charter, Notary: n.id, Seen: seen, Answer: newLogKey[:]})
}
