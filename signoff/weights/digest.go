package weights

import (
	"crypto/sha256"
	"fmt"
	"hash"
)

// A digester hashes one file as it streams by: as a whole, and if sharded also
// by shards.
type digester struct {
	whole  hash.Hash
	shard  hash.Hash // nil if not sharded
	filled int64     // bytes in shard
	size   int64
	shards []Digest
}

func newDigester(sharded bool) *digester {
	d := &digester{whole: sha256.New()}
	if sharded {
		d.shard = sha256.New()
	}
	return d
}

// Write never fails.
func (d *digester) Write(p []byte) (int, error) {
	d.size += int64(len(p))
	d.whole.Write(p)
	if d.shard == nil {
		return len(p), nil
	}
	for rest := p; len(rest) > 0; {
		if d.filled == ShardSize {
			d.endShard()
		}
		n := min(int64(len(rest)), ShardSize-d.filled)
		d.shard.Write(rest[:n])
		d.filled += n
		rest = rest[n:]
	}
	return len(p), nil
}

func (d *digester) endShard() {
	d.shards = append(d.shards, Digest(d.shard.Sum(nil)))
	d.shard.Reset()
	d.filled = 0
}

// sum returns the digest of the whole file.
func (d *digester) sum() Digest { return Digest(d.whole.Sum(nil)) }

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
