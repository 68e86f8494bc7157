package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A request is one append that waits for the writer.
type request struct {
	id   [16]byte
	leaf []byte
	sum  [32]byte
	done chan outcome // has room for one
}

type outcome struct {
	index   uint64
	existed bool
	err     error
}

// Append gives leaf, of 1 to MaxLeaf bytes, the next index, and returns once a
// majority of etcd has it on disk. id, random or derived by the caller and not
// zero, names this append for ever: the same id again returns the same index
// and existed, and with another leaf [ErrConflict]. If ctx ends first, the error is
// [ErrTimeout] and the append may still happen.
func (o *Order) Append(ctx context.Context, id [16]byte, leaf []byte) (index uint64, existed bool, err error) {
	if id == [16]byte{} {
		return 0, false, fmt.Errorf("etcd: append: the id is zero")
	}
	if len(leaf) == 0 || len(leaf) > MaxLeaf {
		return 0, false, fmt.Errorf("etcd: append %x: a leaf of %d bytes; an entry has 1 to %d: %w", id, len(leaf), MaxLeaf, ErrTooLarge)
	}
	r := &request{id: id, leaf: bytes.Clone(leaf), sum: sha256.Sum256(leaf), done: make(chan outcome, 1)}
	select {
	case o.requests <- r:
	case <-o.stopped:
		return 0, false, fmt.Errorf("etcd: append %x: the order was closed: %w", id, ErrUnavailable)
	case <-ctx.Done():
		return 0, false, fmt.Errorf("etcd: append %x: %w: %w", id, ErrTimeout, ctx.Err())
	}
	select {
	case out := <-r.done:
		return out.index, out.existed, out.err
	case <-o.stopped:
		select {
		case out := <-r.done: // answered just before the end
			return out.index, out.existed, out.err
		default:
		}
		return 0, false, fmt.Errorf("etcd: append %x: the order was closed: %w", id, ErrUnavailable)
	case <-ctx.Done():
		return 0, false, fmt.Errorf("etcd: append %x: %w: %w", id, ErrTimeout, ctx.Err())
	}
}

// write is the one goroutine that appends. While a transaction runs, requests
// gather for the next.
func (o *Order) write(ctx context.Context) {
	defer close(o.stopped)
	var at head // as far as this writer knows; the transaction finds out
	var kept *request
	for {
		first := kept
		if kept = nil; first == nil {
			select {
			case first = <-o.requests:
			case <-ctx.Done():
				return
			}
		}
		var g group
		g.add(first)
		kept = o.gather(&g)
		g.commit(ctx, o, &at)
	}
}

// gather fills the group with what waits, and returns a request that did not
// fit.
func (o *Order) gather(g *group) *request {
	for len(g.unique) < maxGroup {
		select {
		case r := <-o.requests:
			if !g.add(r) {
				return r
			}
		default:
			return nil
		}
	}
	return nil
}

// A group is what one transaction appends: requests with distinct ids, and
// those that wait for the outcome of the same append.
type group struct {
	unique []*request
	twins  map[[16]byte][]*request
	bytes  int
}

// add reports whether r fits. An id that is there with another leaf does not:
// one of the two is wrong, and the next transaction tells which.
func (g *group) add(r *request) bool {
	for _, u := range g.unique {
		if u.id != r.id {
			continue
		}
		if u.sum != r.sum {
			return false
		}
		if g.twins == nil {
			g.twins = map[[16]byte][]*request{}
		}
		g.twins[r.id] = append(g.twins[r.id], r)
		return true
	}
	if len(g.unique) > 0 && g.bytes+len(r.leaf) > maxGroupBytes {
		return false
	}
	g.unique = append(g.unique, r)
	g.bytes += len(r.leaf)
	return true
}

// answer tells a request and those that wait with it.
func (g *group) answer(r *request, out outcome) {
	r.done <- out
	out.existed = out.err == nil
	for _, twin := range g.twins[r.id] {
		twin.done <- out
	}
}

func reused(id [16]byte) error {
	return fmt.Errorf("etcd: append %x: this id was used for another entry: %w", id, ErrConflict)
}

// commit appends the group and answers everyone in it.
func (g *group) commit(ctx context.Context, o *Order, at *head) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	err := o.space()
	for err == nil && len(g.unique) > 0 {
		err = g.try(ctx, o, at)
	}
	for _, r := range g.unique {
		g.answer(r, outcome{err: err})
	}
}

// try runs one transaction. If the head had moved or an id was there, nothing
// is written; then it answers those that were appended before, and leaves the
// others for the next try.
func (g *group) try(ctx context.Context, o *Order, at *head) error {
	cmps := at.unmoved()
	gets := []clientv3.Op{clientv3.OpGet(headKey)}
	var puts []clientv3.Op
	for i, r := range g.unique {
		index := at.size + uint64(i)
		cmps = append(cmps, absent(idKey(r.id)))
		gets = append(gets, clientv3.OpGet(idKey(r.id)))
		puts = append(puts, clientv3.OpPut(entryKey(index), string(r.leaf)), clientv3.OpPut(idKey(r.id), r.record(index)))
	}
	next := at.size + uint64(len(g.unique))
	puts = append(puts, putHead(next))
	resp, err := o.client.Txn(ctx).If(cmps...).Then(puts...).Else(gets...).Commit()
	if err != nil {
		return failed(fmt.Sprintf("append %d entries", len(g.unique)), err)
	}
	if !resp.Succeeded {
		return g.resolve(resp.Responses, at)
	}
	for i, r := range g.unique {
		g.answer(r, outcome{index: at.size + uint64(i)})
	}
	*at = head{next, resp.Header.Revision}
	g.unique = nil
	return nil
}

// unmoved says that the head is what was seen. That there is no entry beyond
// it is compared as well, so that writing over one does not hang on the head
// alone.
func (h head) unmoved() []clientv3.Cmp {
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(headKey), "=", h.revision),
		absent(entryKey(h.size)).WithRange(clientv3.GetPrefixRangeEnd(entryPrefix)),
	}
}

func absent(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
}

func putHead(size uint64) clientv3.Op {
	return clientv3.OpPut(headKey, string(binary.BigEndian.AppendUint64(nil, size)))
}

// record is the value under an id.
func (r *request) record(index uint64) string {
	return string(append(binary.BigEndian.AppendUint64(nil, index), r.sum[:]...))
}

// resolve learns from a refused transaction where the head is and which ids
// were there.
func (g *group) resolve(responses []*pb.ResponseOp, at *head) error {
	if len(responses) != 1+len(g.unique) {
		return fmt.Errorf("etcd: append: %d answers for %d questions: %w", len(responses), 1+len(g.unique), ErrCorrupt)
	}
	now, err := parseHead((*clientv3.GetResponse)(responses[0].GetResponseRange()))
	if err != nil {
		return err
	}
	var rest []*request
	for i, r := range g.unique {
		kvs := responses[1+i].GetResponseRange().GetKvs()
		if len(kvs) == 0 {
			rest = append(rest, r)
			continue
		}
		g.answer(r, r.found(kvs[0].Value))
	}
	if now == *at && len(rest) == len(g.unique) {
		return fmt.Errorf("etcd: append: there are entries beyond the head at %d: %w", now.size, ErrCorrupt)
	}
	g.unique, *at = rest, now
	return nil
}

// found reads what is under the id of r.
func (r *request) found(value []byte) outcome {
	if len(value) != 8+len(r.sum) {
		return outcome{err: fmt.Errorf("etcd: append %x: %d bytes under its id: %w", r.id, len(value), ErrCorrupt)}
	}
	if !bytes.Equal(value[8:], r.sum[:]) {
		return outcome{err: reused(r.id)}
	}
	return outcome{index: binary.BigEndian.Uint64(value), existed: true}
}

// Restore writes the entries from an index on, which must be where the head is,
// into an etcd that lost them: an empty one from 0, in as many calls as
// convenient. Their ids are not known any more, so an append that was under way
// when etcd was lost may happen a second time. [ErrConflict] if the head is
// elsewhere; after another error continue from [Order.Head].
func (o *Order) Restore(ctx context.Context, from uint64, leaves [][]byte) error {
	at, err := o.head(ctx)
	if err != nil {
		return err
	}
	if at.size != from {
		return fmt.Errorf("etcd: restore from %d: the head is at %d: %w", from, at.size, ErrConflict)
	}
	for len(leaves) > 0 {
		n, size := 0, 0
		for n < len(leaves) && n < maxGroup && size+len(leaves[n]) <= maxGroupBytes {
			if len(leaves[n]) == 0 || len(leaves[n]) > MaxLeaf {
				return fmt.Errorf("etcd: restore entry %d of %d bytes; an entry has 1 to %d: %w", at.size+uint64(n), len(leaves[n]), MaxLeaf, ErrTooLarge)
			}
			size += len(leaves[n])
			n++
		}
		if at, err = o.restore(ctx, at, leaves[:n]); err != nil {
			return err
		}
		leaves = leaves[n:]
	}
	return nil
}

func (o *Order) restore(ctx context.Context, at head, leaves [][]byte) (head, error) {
	if err := o.space(); err != nil {
		return head{}, err
	}
	var puts []clientv3.Op
	for i, l := range leaves {
		puts = append(puts, clientv3.OpPut(entryKey(at.size+uint64(i)), string(l)))
	}
	next := at.size + uint64(len(leaves))
	resp, err := o.client.Txn(ctx).If(at.unmoved()...).Then(append(puts, putHead(next))...).Commit()
	if err != nil {
		return head{}, failed(fmt.Sprintf("restore entries from %d", at.size), err)
	}
	if !resp.Succeeded {
		return head{}, fmt.Errorf("etcd: restore from %d: someone else writes: %w", at.size, ErrConflict)
	}
	return head{next, resp.Header.Revision}, nil
}
