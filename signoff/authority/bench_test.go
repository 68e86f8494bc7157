package authority_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A check is one signature verification that a fold cannot do without.
type check struct {
	pub      crypto.PublicKey
	msg, sig []byte
}

// checks lists the bare verifications in the lines, with the keys that the
// fold finds for them.
func (l *log) checks(lines [][]byte) []check {
	l.t.Helper()
	keys := map[Digest]crypto.PublicKey{}
	add := func(pub crypto.PublicKey) {
		fp, err := hsm.Fingerprint(pub)
		l.must(err)
		keys[fp] = pub
	}
	for _, p := range l.People {
		add(p.Signing.Public())
	}
	for _, n := range l.Notaries {
		add(n.Signing.Public())
	}
	add(crypto.PublicKey(l.group.Ed25519()))
	var out []check
	for _, line := range lines {
		env, err := dsse.Parse(line)
		l.must(err)
		if keys[env.Hint] == nil {
			l.t.Fatalf("no key for %s", env.Hint)
		}
		out = append(out, check{keys[env.Hint], dsse.PAE(env.Payload), env.Sig})
	}
	return out
}

func (c check) run(b *testing.B) {
	switch pub := c.pub.(type) {
	case *ecdsa.PublicKey:
		d := sha256.Sum256(c.msg)
		if !ecdsa.VerifyASN1(pub, d[:], c.sig) {
			b.Fatal("a signature does not verify")
		}
	default:
		if err := hsm.VerifyMessage(c.pub, c.msg, c.sig); err != nil {
			b.Fatal(err)
		}
	}
}

// spent is one way to do the work: the time of its fastest run, and the
// processor time of all its runs.
type spent struct{ wall, cpu time.Duration }

// compare does the work in two ways in turn, and reports what the bare way
// takes over what the other takes, by the clock and by processor time: 1 is
// all there is to gain.
func compare(b *testing.B, entries int, full, bare func() spent) {
	b.Helper()
	sum := [2]spent{{wall: time.Hour}, {wall: time.Hour}}
	for range b.N {
		for i, f := range []func() spent{full, bare} {
			s := f()
			sum[i] = spent{min(sum[i].wall, s.wall), sum[i].cpu + s.cpu}
		}
	}
	b.ReportMetric(float64(sum[1].wall)/float64(sum[0].wall), "of-bare")
	b.ReportMetric(float64(sum[1].cpu)/float64(sum[0].cpu), "cpu-of-bare")
	b.ReportMetric(float64(entries)/sum[0].wall.Seconds(), "entries/s")
	b.ReportMetric(0, "ns/op")
}

// measure times f.
func measure(b *testing.B, f func()) spent {
	b.Helper()
	before, start := cpu(b), time.Now()
	f()
	return spent{time.Since(start), cpu(b) - before}
}

// cpu is the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// runAll does the bare verifications.
func runAll(b *testing.B, checks []check) spent {
	b.Helper()
	return measure(b, func() {
		for _, c := range checks {
			c.run(b)
		}
	})
}

// BenchmarkReplay is what an auditor does: fold a log of decisions. The peer
// is the bare signature verifications in the same log, nothing else.
func BenchmarkReplay(b *testing.B) {
	l := ready(b).tick(began + 10)
	object := l.sealed("weights")
	for range 200 {
		id := l.takes(l.export("alice", object))
		l.approves(id, "bob", "carol", "dave", "erin")
		l.takes(l.warrant(id))
	}
	bare := l.checks(l.lines)
	compare(b, len(l.lines), func() spent {
		fold, err := authority.New(l.ID)
		l.must(err)
		return measure(b, func() {
			l.applyAll(fold, l.lines[:1])
			l.applyAll(fold, l.lines[1:])
		})
	}, func() spent { return runAll(b, bare) })
}

// applyAll folds lines as a follower does.
func (l *log) applyAll(fold *authority.Authority, lines [][]byte) {
	l.t.Helper()
	l.must(fold.ApplyAll(lines, l.blobs, func(out authority.Outcome, _ []byte) {
		if out.Void != nil {
			l.t.Fatal(out.Void)
		}
	}))
}

// BenchmarkWarrantOfSevenApprovers is an agent's full check of one warrant: the
// request, seven approvals and the group's signature, judged and folded. The
// peer is the nine bare verifications in it.
func BenchmarkWarrantOfSevenApprovers(b *testing.B) {
	people := []string{"frank", "grace", "heidi"}
	l := readyWith(b, people, func(c *signoff.Charter) {
		c.Policy = strings.Replace(signofftest.Policy, "- atLeast: {k: 1, roles:", "- atLeast: {k: 5, roles:", 1)
	}).tick(began + 10)
	object := l.sealed("weights")
	before := len(l.lines)
	id := l.takes(l.export("alice", object))
	l.approves(id, append(people, "bob", "carol", "dave", "erin")...)
	l.takes(l.warrant(id))
	rest := l.lines[before:]
	bare := l.checks(rest)
	if len(bare) != 9 {
		b.Fatalf("%d signatures, want 9", len(bare))
	}
	prefix := l.lines[:before]
	compare(b, len(rest), func() spent {
		fold, err := authority.New(l.ID)
		l.must(err)
		l.applyAll(fold, prefix[:1])
		l.applyAll(fold, prefix[1:])
		return measure(b, func() { l.applyAll(fold, rest) })
	}, func() spent { return runAll(b, bare) })
}
