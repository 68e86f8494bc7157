package ima

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"
)

// longList is what a busy host measures: ima-ng entries with paths of the usual length.
func longList(n int) ([]byte, []byte) {
	var entries []made
	for i := range n {
		digest := sha256Hash.sum([]byte{byte(i), byte(i >> 8)})
		entries = append(entries, made{pcr: PCR, template: "ima-ng", fields: [][]byte{
			digestNG("sha256", digest[:32]), fmt.Appendf(nil, "/usr/lib/x86_64/lib%d.so\x00", i)}})
	}
	return binaryList(entries...), extended(sha256Hash, entries...)
}

// TestReplayAllocatesNothing: reading and extending an entry do not allocate.
func TestReplayAllocatesNothing(t *testing.T) {
	list, _ := longList(1)
	r := &replay{hash: sha256Hash}
	s := newScanner(list)
	var e Entry
	n := testing.AllocsPerRun(100, func() {
		s.off = 0
		if more, err := s.next(&e); err != nil || !more {
			t.Fatal(err)
		}
		r.extend(&e)
	})
	if n != 0 {
		t.Errorf("%v allocations for an entry", n)
	}
}

// best is the shortest run: what others do on the machine at the same time makes
// runs longer, never shorter.
type best time.Duration

func (b *best) run(f func()) {
	start := time.Now()
	f()
	if took := best(time.Since(start)); *b == 0 || took < *b {
		*b = took
	}
}

// hashing is the hashing alone of n entries: of each the template data and the
// extend, of two blocks each.
func hashing(n int) {
	var data [100]byte
	var pair [64]byte
	for range n {
		x := sha256.Sum256(data[:])
		copy(pair[32:], x[:])
		y := sha256.Sum256(pair[:])
		copy(pair[:], y[:])
	}
}

// BenchmarkList reports, from one run and alternating, entries per second: replay
// reads a list and extends it up to the quote, prove returns the entries as well,
// extend replays entries that were read before, and hashing is the ceiling of all.
func BenchmarkList(b *testing.B) {
	const n = 100_000
	list, quoted := longList(n)
	l, err := Parse(list)
	if err != nil {
		b.Fatal(err)
	}
	start := make([]byte, 32)
	var replayed, proved, extended, ceiling best
	for b.Loop() {
		replayed.run(func() {
			if got, _, err := prefix(sha256Hash, start, list, quoted); err != nil || got != n {
				b.Fatal(err)
			}
		})
		proved.run(func() {
			if entries, err := Prove("sha256", list, quoted); err != nil || len(entries) != n {
				b.Fatal(err)
			}
		})
		extended.run(func() {
			if _, err := l.Replay("sha256"); err != nil {
				b.Fatal(err)
			}
		})
		ceiling.run(func() { hashing(n) })
	}
	for name, took := range map[string]best{"replay": replayed, "prove": proved, "extend": extended, "hashing": ceiling} {
		b.ReportMetric(n/time.Duration(took).Seconds(), name+"-entries/s")
	}
	b.ReportMetric(float64(replayed)/float64(ceiling), "replay/hashing")
	b.ReportMetric(0, "ns/op")
}
