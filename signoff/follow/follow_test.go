package follow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A branch is a log in memory, with all keys at hand: what a hostile
// coordinator can show, and more notaries than may be hostile as well.
type branch struct {
	*signofftest.Cluster
	t       testing.TB
	key     hsm.Key
	entries [][]byte
	fail    error // of the source, after half of what is asked for
}

func found(t testing.TB) *branch {
	c := signofftest.Keys(t, nil)
	return &branch{Cluster: c, t: t, key: c.LogKey, entries: c.Genesis}
}

func (b *branch) Blob(context.Context, signoff.Digest) ([]byte, error) {
	return nil, authority.ErrMissingBlob
}

func (b *branch) Entries(_ context.Context, from, to uint64) ([][]byte, error) {
	if to > uint64(len(b.entries)) {
		return nil, errors.New("no such entries")
	}
	if b.fail != nil {
		if half := (from + to) / 2; half > from {
			return b.entries[from:half], nil
		}
		return nil, b.fail
	}
	return b.entries[from:to], nil
}

// with returns a branch that goes on from size with n entries of its own.
func (b *branch) with(size, n int, reason string) *branch {
	b.t.Helper()
	out := *b
	out.entries = append([][]byte(nil), b.entries[:size]...)
	for i := range n {
		h := b.Sign("bob", &signoff.Halt{Charter: b.ID, Person: b.People["bob"].Doc.ID(), Everything: true, Reason: fmt.Sprintf("%s %d", reason, i), Created: time.Now().Unix(), Nonce: signofftest.Nonce()})
		out.entries = append(out.entries, h.Line())
	}
	return &out
}

func (b *branch) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// fold is what the first size entries give.
func (b *branch) fold(size int) *authority.Authority {
	b.t.Helper()
	a, err := authority.New(b.ID)
	b.must(err)
	for _, line := range b.entries[:size] {
		_, err := a.Apply(line, nil)
		b.must(err)
	}
	return a
}

// note is a checkpoint with cosignatures by the first so many notaries.
func (b *branch) note(size, cosigners int) []byte {
	b.t.Helper()
	a := b.fold(size)
	c := proof.Checkpoint{Origin: b.Charter.Name, Size: uint64(size), Root: a.Root(), State: a.StateDigest()}
	return b.sign(c, cosigners)
}

func (b *branch) sign(c proof.Checkpoint, cosigners int) []byte {
	b.t.Helper()
	note, err := proof.SignCheckpoint(context.Background(), c, b.Charter.Name, b.key)
	b.must(err)
	for _, n := range b.Notaries[:cosigners] {
		line, err := proof.Cosign(context.Background(), note, n.Name, n.Witness, 1)
		b.must(err)
		note, err = proof.AddCosignature(note, line)
		b.must(err)
	}
	return note
}

// A shown is a source whose branch can be changed under its follower.
type shown struct{ *branch }

func (b *branch) follower() (*follow.Follower, *shown) {
	b.t.Helper()
	s := &shown{b}
	f, err := follow.New(b.ID, s, nil)
	b.must(err)
	return f, s
}

func TestFollow(t *testing.T) {
	log := found(t).with(6, 6, "a")
	f, _ := log.follower()
	for _, size := range []int{6, 7, 7, 12} {
		if _, err := f.Final(t.Context(), log.note(size, 3)); err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		if f.Seen().Size != uint64(size) {
			t.Fatalf("saw %d, want %d", f.Seen().Size, size)
		}
	}
	if _, err := f.Final(t.Context(), log.note(11, 3)); !errors.Is(err, follow.ErrRollback) {
		t.Fatalf("a shorter log: %v", err)
	}
}

// Two followers are shown two logs, each with a quorum (more notaries are
// hostile than may be). Whoever has seen one does not take the other.
func TestAttackEquivocation(t *testing.T) {
	base := found(t)
	a, b := base.with(6, 3, "a"), base.with(6, 5, "b")
	for name, accept := range map[string]func(*follow.Follower, []byte) error{
		"final": func(f *follow.Follower, note []byte) error { _, err := f.Final(t.Context(), note); return err },
		"committed": func(f *follow.Follower, note []byte) error {
			_, err := f.Committed(t.Context(), note)
			return err
		},
	} {
		for _, size := range []int{9, 10, 11} {
			t.Run(fmt.Sprint(name, " at ", size), func(t *testing.T) {
				one, shownOne := a.follower()
				two, _ := b.follower()
				noteA, noteB := a.note(9, 3), b.note(size, 3)
				a.must(accept(one, noteA))
				a.must(accept(two, noteB))
				shownOne.branch = b
				if err := accept(one, noteB); !errors.Is(err, follow.ErrRollback) {
					t.Fatalf("a follower took the second log: %v", err)
				}
				// It stands where it stood, and goes on where it was.
				if seen := one.Seen(); seen.Size != 9 || seen.Root != signoff.Digest(a.fold(9).Root()) {
					t.Fatalf("it has seen %v", seen)
				}
				shownOne.branch = a
				longer := a.with(9, 2, "more")
				shownOne.branch = longer
				a.must(accept(one, longer.note(11, 3)))
			})
		}
	}
}

// Every single thing that can be wrong with a checkpoint is refused, leaves
// the view as it was or closed, and does not stop the next good one.
func TestAttackCheckpoints(t *testing.T) {
	log := found(t).with(6, 3, "a")
	a := log.fold(9)
	good := proof.Checkpoint{Origin: log.Charter.Name, Size: 9, Root: a.Root(), State: a.StateDigest()}
	other := found(t)
	edit := func(f func(*proof.Checkpoint)) []byte {
		c := good
		f(&c)
		return log.sign(c, 3)
	}
	stranger := *log
	stranger.key = other.LogKey
	for name, note := range map[string][]byte{
		"empty":                nil,
		"another root":         edit(func(c *proof.Checkpoint) { c.Root[0] ^= 1 }),
		"another state":        edit(func(c *proof.Checkpoint) { c.State[0] ^= 1 }),
		"another origin":       edit(func(c *proof.Checkpoint) { c.Origin = "elsewhere" }),
		"a larger size":        edit(func(c *proof.Checkpoint) { c.Size = 10 }),
		"a huge size":          edit(func(c *proof.Checkpoint) { c.Size = 1 << 40 }),
		"a smaller size":       edit(func(c *proof.Checkpoint) { c.Size = 8 }),
		"size zero":            edit(func(c *proof.Checkpoint) { c.Size = 0 }),
		"two cosignatures":     log.note(9, 2),
		"no cosignature":       log.note(9, 0),
		"another log key":      stranger.note(9, 3),
		"cosigners elsewhere":  append(log.note(9, 0), other.with(6, 3, "x").note(9, 3)[len(other.with(6, 3, "x").note(9, 0)):]...),
		"signature of another": append(log.note(9, 2)[:len(log.note(9, 2))-20], []byte("AAAAAAAAAAAAAAAAAAA=")...),
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := log.follower()
			if name != "size zero" {
				_, err := f.Final(t.Context(), log.note(7, 3))
				log.must(err)
			}
			if _, err := f.Final(t.Context(), note); err == nil {
				t.Fatal("taken")
			}
			_ = f.View(func(a *authority.Authority, c proof.Checkpoint, _ []byte) error {
				if a.Size() != 7 || c.Size != 7 {
					t.Errorf("the view is at %d entries under a checkpoint of %d", a.Size(), c.Size)
				}
				return nil
			})
			if _, err := f.Final(t.Context(), log.note(9, 3)); err != nil {
				t.Fatalf("the good one after it: %v", err)
			}
		})
	}
}

// Whatever a source shows in whatever order, a follower only ever stands on
// final checkpoints that extend each other, and a good one is taken after
// at most one refusal.
func TestAttackSourceChangesItsMind(t *testing.T) {
	base := found(t)
	branches := []*branch{base.with(6, 4, "honest"), base.with(6, 6, "b"), base.with(7-1, 2, "c")}
	honest := branches[0]
	rapid.Check(t, func(r *rapid.T) {
		f, src := honest.follower()
		for range rapid.IntRange(1, 8).Draw(r, "steps") {
			b := *branches[rapid.IntRange(0, 2).Draw(r, "branch")]
			if rapid.Bool().Draw(r, "fails") {
				b.fail = errors.New("the line went dead")
			}
			src.branch = &b
			about := branches[rapid.IntRange(0, 2).Draw(r, "note of")]
			size := rapid.IntRange(6, len(about.entries)).Draw(r, "size")
			cosigners := 2 // of a hostile branch
			if about == honest {
				cosigners = 3
			}
			before := f.Seen()
			if _, err := f.Final(t.Context(), about.note(size, cosigners)); err == nil && (about != honest || f.Seen().Size < before.Size) {
				r.Fatalf("took a note of size %d with %d cosignatures after %d", size, cosigners, before.Size)
			}
		}
		src.branch = honest
		_, err := f.Final(t.Context(), honest.note(len(honest.entries), 3))
		if err != nil {
			r.Fatalf("the honest log was refused in the end: %v", err)
		}
		honest.must(f.View(func(a *authority.Authority, c proof.Checkpoint, _ []byte) error {
			if a.Root() != signoff.Digest(c.Root) || a.StateDigest() != signoff.Digest(c.State) {
				return errors.New("the view is not at its checkpoint")
			}
			return nil
		}))
	})
}
