package weights

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/signoff/weights/sha2x"
)

// A digester hashes one file as it streams by: as a whole, and if sharded also
// by shards, both at once.
type digester struct {
	whole  *sha2x.Stream
	shard  *sha2x.Stream // nil if not sharded
	filled int64         // bytes in shard
	size   int64
	shards []Digest
}

func newDigester(sharded bool) *digester {
	d := &digester{whole: sha2x.New()}
	if sharded {
		d.shard = sha2x.New()
	}
	return d
}

// Write never fails.
func (d *digester) Write(p []byte) (int, error) {
	d.size += int64(len(p))
	if d.shard == nil {
		return d.whole.Write(p)
	}
	for rest := p; len(rest) > 0; {
		if d.filled == ShardSize {
			d.endShard()
		}
		n := min(int64(len(rest)), ShardSize-d.filled)
		sha2x.Write2(d.whole, d.shard, rest[:n], rest[:n])
		d.filled += n
		rest = rest[n:]
	}
	return len(p), nil
}

// write2 adds p to d and q to e, in less time than one after the other.
func write2(d, e *digester, p, q []byte) {
	if d.shard != nil || e.shard != nil { // each has two streams of its own
		d.Write(p)
		e.Write(q)
		return
	}
	d.size += int64(len(p))
	e.size += int64(len(q))
	sha2x.Write2(d.whole, e.whole, p, q)
}

func (d *digester) endShard() {
	d.shards = append(d.shards, d.shard.Sum())
	d.shard.Reset()
	d.filled = 0
}

// sum returns the digest of the whole file.
func (d *digester) sum() Digest { return d.whole.Sum() }

// file ends the stream and describes it.
func (d *digester) file(name string) File {
	if d.shard == nil {
		return File{Name: name, Digests: []Digest{d.sum()}, Size: d.size}
	}
	if d.filled > 0 || d.size == 0 {
		d.endShard()
	}
	return File{Name: name, Digests: d.shards, Size: d.size}
}

// check ends the stream and compares it with what the manifest says.
func (d *digester) check(want File) error {
	got := d.file(want.Name)
	if want.Size >= 0 && got.Size != want.Size {
		return fmt.Errorf("%d bytes where %d are signed: %w", got.Size, want.Size, ErrMismatch)
	}
	if len(got.Digests) != len(want.Digests) {
		return fmt.Errorf("%d digests where %d are signed: %w", len(got.Digests), len(want.Digests), ErrMismatch)
	}
	for i := range got.Digests {
		if got.Digests[i] != want.Digests[i] {
			return fmt.Errorf("sha256 %x where %x is signed: %w", got.Digests[i], want.Digests[i], ErrMismatch)
		}
	}
	return nil
}

// pairUp puts indexes of files of similar size together, the largest first,
// since two are hashed in little more time than one. One may be left alone.
func pairUp(sizes []int64) [][]int {
	bySize := make([]int, len(sizes))
	for i := range bySize {
		bySize[i] = i
	}
	slices.SortStableFunc(bySize, func(a, b int) int { return cmp.Compare(sizes[b], sizes[a]) })
	return slices.Collect(slices.Chunk(bySize, 2))
}
