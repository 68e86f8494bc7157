package lockbox

import (
	"context"
	"crypto/rand"
	"testing"
)

func BenchmarkSeal1000Shares(b *testing.B) {
	people, machines := newMembers(b, 990), newMembers(b, 10)
	p := Params{fill("charter"), groupOf(5, people), groupOf(7, machines)}
	object := fill("object")
	b.ResetTimer()
	for b.Loop() {
		s, _, err := New(rand.Reader, p)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Deal(object, 1); err != nil {
			b.Fatal(err)
		}
	}
}

// One approval of one object: open, check, re-seal.
func BenchmarkRelease(b *testing.B) {
	for name, hybrid := range map[string]bool{"p256": false, "hybrid": true} {
		b.Run(name, func(b *testing.B) { benchmarkRelease(b, hybrid) })
	}
}

func benchmarkRelease(b *testing.B, hybrid bool) {
	machines := newMembers(b, 13)
	machines[0] = newMember(b, 1, hybrid)
	w := sealWorld(b, 5, 9, newMembers(b, 9), machines)
	m, to := w.machines[0], newMember(b, 1, false)
	c, d := w.context(Machines, m), w.deal(Machines, m)
	rc := ReleaseContext{c, fill("request"), to.ID()}
	m.key.operations = 0
	n := 0
	for b.Loop() {
		n++
		s, err := OpenShare(context.Background(), m.id, c, w.commitments.Machines, d)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Reseal(s, to.Key, rc); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(m.key.operations)/float64(n), "token-ops/op")
}

// The recipient's part for 9 machines and 5 people, after opening.
func BenchmarkUnlock(b *testing.B) {
	w := newWorld(b, 5, 9, 9, 13)
	people, machines := w.openAll(People, w.people[:5]), w.openAll(Machines, w.machines[:9])
	b.ResetTimer()
	for b.Loop() {
		u, err := Unlock(w.object, w.commitments, people, machines)
		if err != nil {
			b.Fatal(err)
		}
		u.Wipe()
	}
}

// One new holder's part of one object, 5 old dealers.
func BenchmarkRedealAccept(b *testing.B) {
	w := newWorld(b, 5, 9, 2, 2)
	members := newMembers(b, 9)
	r, subs := w.redeal(5, members, w.people[:5])
	b.ResetTimer()
	for b.Loop() {
		if _, _, err := r.Accept(context.Background(), members[0].id, 1, subs); err != nil {
			b.Fatal(err)
		}
	}
}
