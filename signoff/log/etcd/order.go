package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An Order is a connection to the etcd that orders the log. Its methods may be
// called from any goroutine.
type Order struct {
	client *clientv3.Client
	server *server // nil unless embedded
	space  func() error

	requests chan *request
	stop     context.CancelFunc
	stopped  chan struct{} // closed when the writer has ended
	closing  sync.Once
	closed   error // of the one close
}

// Dial connects to an etcd that runs elsewhere. tls may be nil only if every
// endpoint is a unix socket; the certificates it asks for are etcd's own and
// say nothing about keyturn's people. It fails if etcd does not answer.
func Dial(ctx context.Context, endpoints []string, tls *tls.Config) (*Order, error) {
	if len(endpoints) == 0 {
		return nil, errors.New("etcd: connect: no endpoint was given")
	}
	for _, e := range endpoints {
		if tls == nil && !strings.HasPrefix(e, "unix://") {
			return nil, fmt.Errorf("etcd: connect to %q: only unix:// goes without TLS", e)
		}
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		TLS:                  tls,
		DialTimeout:          opTimeout,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("etcd: connect: %w", err)
	}
	o := &Order{
		client:   client,
		space:    func() error { return nil }, // etcd's own quota answers
		requests: make(chan *request, 4*maxGroup),
		stopped:  make(chan struct{}),
	}
	if _, err := o.Head(ctx); err != nil {
		client.Close()
		return nil, fmt.Errorf("etcd: connect to %s: %w", strings.Join(endpoints, ", "), err)
	}
	writing, stop := context.WithCancel(context.Background())
	o.stop = stop
	go o.write(writing)
	return o, nil
}

// Close ends the connection and an embedded etcd. Appends that wait are told
// [ErrUnavailable]. Closing again does nothing.
func (o *Order) Close() error {
	o.closing.Do(func() {
		o.stop()
		<-o.stopped
		o.closed = o.client.Close()
		if o.server != nil {
			o.server.close()
		}
	})
	if o.closed != nil {
		return fmt.Errorf("etcd: close: %w", o.closed)
	}
	return nil
}

// Head returns the number of entries, as a majority of etcd holds it now.
func (o *Order) Head(ctx context.Context) (uint64, error) {
	h, err := o.head(ctx)
	return h.size, err
}

// head is the number of entries with the revision of the key that says so.
type head struct {
	size     uint64
	revision int64 // 0 if there is no entry
}

func (o *Order) head(ctx context.Context) (head, error) {
	resp, err := o.client.Get(ctx, headKey)
	if err != nil {
		return head{}, failed("read the head", err)
	}
	return parseHead(resp)
}

func parseHead(resp *clientv3.GetResponse) (head, error) {
	if len(resp.Kvs) == 0 {
		return head{}, nil
	}
	kv := resp.Kvs[0]
	if len(kv.Value) != 8 {
		return head{}, fmt.Errorf("etcd: the head has %d bytes, not 8: %w", len(kv.Value), ErrCorrupt)
	}
	return head{binary.BigEndian.Uint64(kv.Value), kv.ModRevision}, nil
}

// Entries returns the entries from an index on: all there are, but at most
// limit and at most 256. None is no error.
func (o *Order) Entries(ctx context.Context, from uint64, limit int) ([][]byte, error) {
	if limit <= 0 {
		return nil, fmt.Errorf("etcd: read entries from %d: limit %d", from, limit)
	}
	resp, err := o.client.Get(ctx, entryKey(from),
		clientv3.WithRange(clientv3.GetPrefixRangeEnd(entryPrefix)), clientv3.WithLimit(int64(min(limit, maxRead))))
	if err != nil {
		return nil, failed(fmt.Sprintf("read entries from %d", from), err)
	}
	var leaves [][]byte
	for i, kv := range resp.Kvs {
		if want := entryKey(from + uint64(i)); string(kv.Key) != want {
			return nil, fmt.Errorf("etcd: %q follows where %q should: %w", kv.Key, want, ErrCorrupt)
		}
		leaves = append(leaves, kv.Value)
	}
	return leaves, nil
}

// Watch calls fn with every entry from an index on, in order and without a gap,
// several at a time, and goes on with new ones as they come. It outlasts times
// when etcd cannot be reached. It ends when ctx does, when fn returns an error,
// or with [ErrCorrupt], and returns that error.
func (o *Order) Watch(ctx context.Context, from uint64, fn func(from uint64, leaves [][]byte) error) error {
	for {
		err := o.follow(ctx, &from, fn)
		if ctx.Err() != nil {
			return fmt.Errorf("etcd: watch from %d: %w", from, ctx.Err())
		}
		if err != nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrTimeout) {
			return err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// follow is Watch until the connection fails. The watch on the head is only a
// bell: what is delivered is always read.
func (o *Order) follow(ctx context.Context, from *uint64, fn func(uint64, [][]byte) error) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	// The first answer says that the watch stands, and no entry after it
	// rings unheard.
	for resp := range o.client.Watch(ctx, headKey, clientv3.WithCreatedNotify()) {
		if err := resp.Err(); err != nil {
			return failed("watch the head", err)
		}
		for {
			leaves, err := o.Entries(ctx, *from, maxRead)
			if err != nil {
				return err
			}
			if len(leaves) == 0 {
				break
			}
			if err := fn(*from, leaves); err != nil {
				return err
			}
			*from += uint64(len(leaves))
		}
	}
	return fmt.Errorf("etcd: watch the head: %w", ErrUnavailable)
}

// Checkpoint returns the checkpoint that was signed last, nil if there is none.
func (o *Order) Checkpoint(ctx context.Context) ([]byte, error) {
	resp, err := o.client.Get(ctx, checkpointKey)
	if err != nil {
		return nil, failed("read the checkpoint", err)
	}
	if len(resp.Kvs) == 0 {
		return nil, nil
	}
	return resp.Kvs[0].Value, nil
}

// CompareAndSwapCheckpoint writes next if old is what is there, where nil means
// that there is none yet, and reports whether next is there now; false means
// that another coordinator signed first. Only what was swapped in may be shown
// to anyone. After an unknown outcome the same call may be made again.
func (o *Order) CompareAndSwapCheckpoint(ctx context.Context, old, next []byte) (bool, error) {
	if len(next) == 0 || len(next) > maxCheckpoint {
		return false, fmt.Errorf("etcd: a checkpoint of %d bytes; it has 1 to %d: %w", len(next), maxCheckpoint, ErrTooLarge)
	}
	unchanged := clientv3.Compare(clientv3.Value(checkpointKey), "=", string(old))
	if len(old) == 0 {
		unchanged = clientv3.Compare(clientv3.CreateRevision(checkpointKey), "=", 0)
	}
	resp, err := o.client.Txn(ctx).If(unchanged).
		Then(clientv3.OpPut(checkpointKey, string(next))).
		Else(clientv3.OpGet(checkpointKey)).Commit()
	if err != nil {
		return false, failed("swap the checkpoint", err)
	}
	if resp.Succeeded {
		return true, nil
	}
	kvs := resp.Responses[0].GetResponseRange().GetKvs()
	return len(kvs) == 1 && bytes.Equal(kvs[0].Value, next), nil
}

func entryKey(index uint64) string { return fmt.Sprintf("%s%016x", entryPrefix, index) }

func idKey(id [16]byte) string { return idPrefix + hex.EncodeToString(id[:]) }

// failed gives an error of etcd's client its place among ours.
func failed(what string, err error) error {
	var e rpctypes.EtcdError
	code := status.Code(err)
	if errors.As(err, &e) {
		code = e.Code()
	}
	kind := ErrUnavailable
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		kind = ErrNoSpace
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		kind = ErrTooLarge
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled),
		code == codes.DeadlineExceeded, code == codes.Canceled, strings.Contains(err.Error(), "request timed out"):
		kind = ErrTimeout
	case code == codes.InvalidArgument, code == codes.DataLoss:
		kind = ErrCorrupt
	}
	return fmt.Errorf("etcd: %s: %w: %w", what, kind, err)
}
