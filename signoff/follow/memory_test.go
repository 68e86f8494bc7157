package follow_test

import (
	"context"
	"errors"
	"testing"

	"github.com/keyturn/keyturn/signoff/follow"
)

// memory holds what was kept of an earlier run.
type memory struct {
	b   []byte
	err error
}

func (m memory) Load() ([]byte, error) { return m.b, m.err }
func (m memory) Save([]byte) error     { return errors.New("disk full") }

// Whatever a memory holds, a follower comes to the log that it is shown, and to no
// other: memory of it, of more of it, of another branch, and of nothing.
func TestMemoryChangesNothing(t *testing.T) {
	b := found(t)
	log := b.with(len(b.entries), 6, "on")
	other := b.with(len(b.entries), 9, "another way")
	size := len(log.entries)
	kept := func(b *branch, size int) []byte {
		out, err := b.fold(size).Keep()
		b.must(err)
		return out
	}
	for name, m := range map[string]memory{
		"none":           {},
		"of a part":      {b: kept(log, size-3)},
		"of the whole":   {b: kept(log, size)},
		"of more":        {b: kept(log.with(size, 5, "later"), size+5)},
		"of a branch":    {b: kept(other, size-1)},
		"of one as long": {b: kept(other, size)},
		"garbage":        {b: []byte("{")},
		"unreadable":     {err: errors.New("input/output error")},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := follow.Remember(log.ID, log, nil, m)
			log.must(err)
			if c, err := f.Final(context.Background(), log.note(size, 3)); err != nil || int(c.Size) != size {
				t.Fatalf("size %d, %v", c.Size, err)
			}
			further := log.with(size, 4, "later")
			f, err = follow.Remember(further.ID, further, nil, m)
			further.must(err)
			for _, size := range []int{size - 5, size, size + 4} {
				if c, err := f.Final(context.Background(), further.note(size, 3)); err != nil || int(c.Size) != size {
					t.Fatalf("size %d, %v", c.Size, err)
				}
			}
			if _, err := f.Final(context.Background(), other.note(len(other.entries), 3)); err == nil {
				t.Error("took another log for the one it saw")
			}
		})
	}
}
