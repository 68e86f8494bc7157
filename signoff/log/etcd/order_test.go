package etcd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func openTest(t testing.TB, dir string) *Order {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	o, err := OpenEmbedded(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close() })
	return o
}

// second is another coordinator: a client of its own to the same etcd.
func second(t testing.TB, o *Order) *Order {
	t.Helper()
	p, err := Dial(context.Background(), o.client.Endpoints(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func id(a, b int) (id [16]byte) {
	binary.BigEndian.PutUint64(id[:], uint64(a)+1)
	binary.BigEndian.PutUint64(id[8:], uint64(b)+1)
	return id
}

func all(t testing.TB, o *Order) [][]byte {
	t.Helper()
	var out [][]byte
	for {
		leaves, err := o.Entries(context.Background(), uint64(len(out)), maxRead)
		if err != nil {
			t.Fatal(err)
		}
		if len(leaves) == 0 {
			break
		}
		out = append(out, leaves...)
	}
	n, err := o.Head(context.Background())
	if err != nil || n != uint64(len(out)) {
		t.Fatalf("the head is %d and there are %d entries: %v", n, len(out), err)
	}
	return out
}

func TestAppend(t *testing.T) {
	ctx := context.Background()
	o := openTest(t, t.TempDir())
	for i := range 5 {
		leaf := fmt.Appendf(nil, "leaf %d", i)
		index, existed, err := o.Append(ctx, id(0, i), leaf)
		if err != nil || existed || index != uint64(i) {
			t.Fatalf("append %d: index %d, existed %v: %v", i, index, existed, err)
		}
		index, existed, err = o.Append(ctx, id(0, i), leaf)
		if err != nil || !existed || index != uint64(i) {
			t.Fatalf("append %d again: index %d, existed %v: %v", i, index, existed, err)
		}
	}
	if got := all(t, o); len(got) != 5 || string(got[3]) != "leaf 3" {
		t.Fatalf("%q", got)
	}
	for name, c := range map[string]struct {
		id   [16]byte
		leaf []byte
		want error
	}{
		"the id of another entry": {id(0, 1), []byte("other"), ErrConflict},
		"an empty leaf":           {id(9, 9), nil, ErrTooLarge},
		"a leaf one too long":     {id(9, 9), make([]byte, MaxLeaf+1), ErrTooLarge},
	} {
		if _, _, err := o.Append(ctx, c.id, c.leaf); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := o.Append(ctx, [16]byte{}, []byte("x")); err == nil {
		t.Error("a zero id passed")
	}
	if _, _, err := o.Append(ctx, id(9, 9), make([]byte, MaxLeaf)); err != nil {
		t.Errorf("the largest leaf: %v", err)
	}
	if all := all(t, o); len(all) != 6 {
		t.Errorf("%d entries; something refused was written", len(all))
	}
}

// What callers were told is checked against one list, the log itself: every
// acknowledged append is there once, at the index it was told, whichever client
// it went through and however often it was sent.
func TestConcurrentClients(t *testing.T) {
	ctx := context.Background()
	a := openTest(t, t.TempDir())
	clients := []*Order{a, second(t, a)}
	const workers, each = 16, 40
	var mu sync.Mutex
	told := map[string]uint64{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				leaf := fmt.Sprintf("worker %d leaf %d", w, i)
				first, _, err := clients[w%2].Append(ctx, id(w, i), []byte(leaf))
				if err != nil {
					t.Error(err)
					return
				}
				if i%8 == 0 { // a retry through the other coordinator
					again, existed, err := clients[(w+1)%2].Append(ctx, id(w, i), []byte(leaf))
					if err != nil || !existed || again != first {
						t.Errorf("%s: index %d, then %d, existed %v: %v", leaf, first, again, existed, err)
					}
				}
				mu.Lock()
				told[leaf] = first
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	log := all(t, a)
	if len(log) != workers*each {
		t.Fatalf("%d entries for %d appends", len(log), workers*each)
	}
	for leaf, index := range told {
		if string(log[index]) != leaf {
			t.Errorf("%q was told index %d, where %q is", leaf, index, log[index])
		}
	}
}

// The same id at the same time is one entry.
func TestConcurrentRetries(t *testing.T) {
	a := openTest(t, t.TempDir())
	b := second(t, a)
	var fresh, conflicts int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			leaf := "leaf"
			if i%4 == 3 {
				leaf = "another leaf"
			}
			o := a
			if i%2 == 1 {
				o = b
			}
			index, existed, err := o.Append(context.Background(), id(0, 0), []byte(leaf))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ErrConflict):
				conflicts++
			case err != nil || index != 0:
				t.Errorf("index %d: %v", index, err)
			case !existed:
				fresh++
			}
		})
	}
	wg.Wait()
	if fresh != 1 || len(all(t, a)) != 1 || (conflicts != 16 && conflicts != 48) {
		t.Fatalf("%d appends of one id, %d conflicts, log %q", fresh, conflicts, all(t, a))
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		o := openTest(t, dir)
		if got := len(all(t, o)); got != round*10 {
			t.Fatalf("round %d: %d entries", round, got)
		}
		for i := range 10 {
			if _, _, err := o.Append(context.Background(), id(round, i), []byte{byte(round), byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := o.Append(context.Background(), id(7, 7), []byte("x")); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("append after close: %v", err)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	openTest(t, dir)
	start := time.Now()
	if _, err := OpenEmbedded(context.Background(), dir); err == nil || time.Since(start) > 5*time.Second {
		t.Fatalf("opened twice, or waited %v: %v", time.Since(start), err)
	}
}

func TestWatch(t *testing.T) {
	o := openTest(t, t.TempDir())
	const total = 700
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	go func() {
		for i := range total {
			if _, _, err := o.Append(ctx, id(0, i), fmt.Appendf(nil, "%d", i)); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	enough := errors.New("enough")
	next := uint64(0)
	err := o.Watch(ctx, 0, func(from uint64, leaves [][]byte) error {
		for i, l := range leaves {
			if from+uint64(i) != next || string(l) != fmt.Sprint(next) {
				t.Errorf("got %q as %d, want %d", l, from+uint64(i), next)
			}
			next++
		}
		if next == total {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer stop()
	if err := o.Watch(short, total, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("watch past its context: %v", err)
	}
}

func TestSwapCheckpoint(t *testing.T) {
	ctx := context.Background()
	a := openTest(t, t.TempDir())
	b := second(t, a)
	c, err := a.Checkpoint(ctx)
	if err != nil || c != nil {
		t.Fatalf("a checkpoint before the first: %q, %v", c, err)
	}
	for _, s := range []struct {
		o         *Order
		old, next string
		want      bool
	}{
		{a, "0", "1", false}, // there is none yet
		{a, "", "1", true},
		{b, "", "1", true}, // the same again after a timeout
		{b, "", "2", false},
		{b, "1", "2", true},
		{a, "1", "2b", false}, // two coordinators cannot both sign
		{a, "2", "3", true},
	} {
		if ok, err := s.o.CompareAndSwapCheckpoint(ctx, []byte(s.old), []byte(s.next)); err != nil || ok != s.want {
			t.Errorf("from %q to %q: %v, %v", s.old, s.next, ok, err)
		}
	}
	if c, err := b.Checkpoint(ctx); err != nil || string(c) != "3" {
		t.Fatalf("%q, %v", c, err)
	}
	if _, err := a.CompareAndSwapCheckpoint(ctx, []byte("3"), nil); err == nil {
		t.Fatal("an empty checkpoint was written")
	}
}

func TestRestore(t *testing.T) {
	ctx := context.Background()
	a := openTest(t, t.TempDir())
	var leaves [][]byte
	for i := range 300 {
		leaves = append(leaves, make([]byte, 1+i*200))
	}
	if err := a.Restore(ctx, 0, leaves[:100]); err != nil {
		t.Fatal(err)
	}
	if err := a.Restore(ctx, 0, leaves[:1]); !errors.Is(err, ErrConflict) {
		t.Fatalf("restoring over entries: %v", err)
	}
	if err := a.Restore(ctx, 100, leaves[100:]); err != nil {
		t.Fatal(err)
	}
	got := all(t, a)
	for i := range leaves {
		if len(got[i]) != len(leaves[i]) {
			t.Fatalf("entry %d has %d bytes", i, len(got[i]))
		}
	}
	if i, _, err := a.Append(ctx, id(0, 0), []byte("next")); err != nil || i != 300 {
		t.Fatalf("append after restore: %d, %v", i, err)
	}
}

func TestNoSpace(t *testing.T) {
	ctx := context.Background()
	o := openTest(t, t.TempDir())
	o.space = func() error { return freeSpace(t.TempDir(), 1<<62) }
	if _, _, err := o.Append(ctx, id(0, 0), []byte("x")); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("append on a full disk: %v", err)
	}
	o.space = func() error { return nil }
	if i, existed, err := o.Append(ctx, id(0, 0), []byte("x")); err != nil || existed || i != 0 {
		t.Fatalf("append after making room: %v", err)
	}
}

// etcd's own quota, met for real: a clear refusal, and what was acknowledged
// stays readable.
func TestQuota(t *testing.T) {
	ctx := context.Background()
	o, err := openEmbedded(ctx, t.TempDir(), 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	acknowledged := 0
	for i := 0; err == nil && i < 200; i++ {
		if _, _, err = o.Append(ctx, id(0, i), make([]byte, MaxLeaf)); err == nil {
			acknowledged++
		}
	}
	if !errors.Is(err, ErrNoSpace) || acknowledged < 10 {
		t.Fatalf("after %d entries: %v", acknowledged, err)
	}
	if got := len(all(t, o)); got != acknowledged {
		t.Fatalf("%d entries, %d were acknowledged", got, acknowledged)
	}
}

// The directory may lie deep, where a socket's address has no room for it, and
// may be moved while closed.
func TestDeepAndMoved(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("d", 120), "order")
	o := openTest(t, deep)
	if _, _, err := o.Append(context.Background(), id(0, 0), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(deep, moved); err != nil {
		t.Fatal(err)
	}
	if got := all(t, openTest(t, moved)); len(got) != 1 {
		t.Fatalf("%q", got)
	}
}

// Someone with access to etcd puts the head back: entries that were
// acknowledged are not written over.
func TestAttackHeadRolledBack(t *testing.T) {
	ctx := context.Background()
	o := openTest(t, t.TempDir())
	for i := range 3 {
		if _, _, err := o.Append(ctx, id(0, i), []byte{byte(i + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.client.Put(ctx, headKey, string(binary.BigEndian.AppendUint64(nil, 1))); err != nil {
		t.Fatal(err)
	}
	if _, _, err := o.Append(ctx, id(0, 9), []byte("forged")); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("append under a head that was put back: %v", err)
	}
	got, err := o.Entries(ctx, 0, 10)
	if err != nil || len(got) != 3 || got[1][0] != 2 {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestAttackEntryRemoved(t *testing.T) {
	ctx := context.Background()
	o := openTest(t, t.TempDir())
	for i := range 3 {
		if _, _, err := o.Append(ctx, id(0, i), []byte{byte(i + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.client.Delete(ctx, entryKey(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Entries(ctx, 0, 10); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("entries with a gap: %v", err)
	}
	if err := o.Watch(ctx, 0, func(uint64, [][]byte) error { return nil }); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("watch over a gap: %v", err)
	}
}

func TestDialRefuses(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	for _, e := range [][]string{nil, {"http://127.0.0.1:2379"}, {"127.0.0.1:2379"}} {
		if _, err := Dial(ctx, e, nil); err == nil {
			t.Errorf("%q without TLS was accepted", e)
		}
	}
	_, err := Dial(ctx, []string{"unix://" + t.TempDir() + "/none.sock"}, nil)
	if !errors.Is(err, ErrTimeout) && !errors.Is(err, ErrUnavailable) {
		t.Errorf("nobody there: %v", err)
	}
}

// An append whose caller gave up may happen; the retry finds it.
func TestTimeoutThenRetry(t *testing.T) {
	o := openTest(t, t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for i := range 50 {
		if _, _, err := o.Append(ctx, id(0, i), []byte{byte(i)}); err != nil && !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
	}
	seen := map[uint64]bool{}
	for i := range 50 {
		index, _, err := o.Append(context.Background(), id(0, i), []byte{byte(i)})
		if err != nil || seen[index] {
			t.Fatalf("retry %d: index %d: %v", i, index, err)
		}
		seen[index] = true
	}
	if got := len(all(t, o)); got != 50 {
		t.Fatalf("%d entries", got)
	}
}

func BenchmarkAppend(b *testing.B) {
	ctx := context.Background()
	o := openTest(b, b.TempDir())
	leaf := make([]byte, 1024)
	run, bare := 0, time.Duration(0)
	b.Run("one", func(b *testing.B) {
		run++
		put := time.Duration(0)
		for i := range b.N {
			if _, _, err := o.Append(ctx, id(run, i), leaf); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			start := time.Now()
			if _, err := o.client.Put(ctx, fmt.Sprintf("bare/%d", i), string(leaf)); err != nil {
				b.Fatal(err)
			}
			put += time.Since(start)
			b.StartTimer()
		}
		bare = put / time.Duration(b.N)
		b.ReportMetric(float64(b.Elapsed())/float64(put), "x-bare-put")
	})
	b.Run("grouped", func(b *testing.B) {
		run++
		group := run
		work := make(chan int)
		var wg sync.WaitGroup
		for range 128 {
			wg.Go(func() {
				for i := range work {
					if _, _, err := o.Append(ctx, id(group, i), leaf); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		for i := range b.N {
			work <- i
		}
		close(work)
		wg.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		if bare > 0 {
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(bare), "x-bare-put")
		}
	})
}

// etcd goes away under a coordinator: typed errors, and Watch waits.
func TestGone(t *testing.T) {
	o := openTest(t, t.TempDir())
	p := second(t, o)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	gone := func(err error) bool { return errors.Is(err, ErrTimeout) || errors.Is(err, ErrUnavailable) }
	if _, _, err := p.Append(ctx, id(0, 0), []byte("x")); !gone(err) {
		t.Errorf("append: %v", err)
	}
	if _, err := p.Head(ctx); !gone(err) {
		t.Errorf("head: %v", err)
	}
	if _, err := p.CompareAndSwapCheckpoint(ctx, nil, []byte("x")); !gone(err) {
		t.Errorf("swap: %v", err)
	}
	if err := p.Watch(ctx, 0, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("watch: %v", err)
	}
}
