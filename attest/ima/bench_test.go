package ima

import (
	"crypto/sha256"
	"fmt"
	"testing"
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

// BenchmarkProve reads, checks and replays a list up to the quote.
func BenchmarkProve(b *testing.B) {
	const n = 100_000
	list, quoted := longList(n)
	b.SetBytes(int64(len(list)))
	b.ReportAllocs()
	for b.Loop() {
		if entries, err := Prove("sha256", list, quoted); err != nil || len(entries) != n {
			b.Fatal(err)
		}
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkReplay reads a list and extends it up to the quote, without keeping what
// it proves.
func BenchmarkReplay(b *testing.B) {
	const n = 100_000
	list, quoted := longList(n)
	start := make([]byte, 32)
	b.SetBytes(int64(len(list)))
	b.ReportAllocs()
	for b.Loop() {
		if got, _, err := prefix(sha256Hash, start, list, quoted); err != nil || got != n {
			b.Fatal(err)
		}
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkExtend replays entries that were read before.
func BenchmarkExtend(b *testing.B) {
	const n = 100_000
	list, _ := longList(n)
	l, err := Parse(list)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Replay("sha256"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkCeiling is the hashing alone: per entry, the template data and the extend,
// of two blocks each.
func BenchmarkCeiling(b *testing.B) {
	const n = 100_000
	var data [100]byte
	var pair [64]byte
	for b.Loop() {
		for range n {
			x := sha256.Sum256(data[:])
			copy(pair[32:], x[:])
			y := sha256.Sum256(pair[:])
			copy(pair[:], y[:])
		}
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
