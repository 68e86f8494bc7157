package authority_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"strings"
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

// ratio times two ways to do the work in turn, and reports the faster run of
// the bare way over the faster run of the other: 1 is all there is to gain.
func ratio(b *testing.B, entries int, full, bare func()) {
	b.Helper()
	best := [2]time.Duration{time.Hour, time.Hour}
	b.ResetTimer()
	for range b.N {
		for i, f := range []func(){full, bare} {
			start := time.Now()
			f()
			best[i] = min(best[i], time.Since(start))
		}
	}
	b.ReportMetric(float64(best[1])/float64(best[0]), "of-bare")
	b.ReportMetric(float64(entries)/best[0].Seconds(), "entries/s")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkReplay is what an auditor does: fold a log of decisions. The peer
// is the bare signature verifications in the same log, nothing else.
func BenchmarkReplay(b *testing.B) {
	l := ready(b).tick(began + 10)
	object := l.sealed("weights")
	for range 40 {
		id := l.takes(l.export("alice", object))
		l.approves(id, "bob", "carol", "dave", "erin")
		l.takes(l.warrant(id))
	}
	bare := l.checks(l.lines)
	full := func() {
		fold, err := authority.New(l.ID)
		l.must(err)
		l.applyAll(fold, l.lines[:1])
		l.applyAll(fold, l.lines[1:])
	}
	ratio(b, len(l.lines), full, func() {
		for _, c := range bare {
			c.run(b)
		}
	})
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
	full := func() time.Duration {
		fold, err := authority.New(l.ID)
		l.must(err)
		l.applyAll(fold, prefix[:1])
		l.applyAll(fold, prefix[1:])
		start := time.Now()
		l.applyAll(fold, rest)
		return time.Since(start)
	}
	best := [2]time.Duration{time.Hour, time.Hour}
	for range b.N {
		best[0] = min(best[0], full())
		start := time.Now()
		for _, c := range bare {
			c.run(b)
		}
		best[1] = min(best[1], time.Since(start))
	}
	b.ReportMetric(float64(best[1])/float64(best[0]), "of-bare")
	b.ReportMetric(float64(best[0].Microseconds()), "µs/warrant")
	b.ReportMetric(0, "ns/op")
}
