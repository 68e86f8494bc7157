package frost

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"testing"
	"time"
)

// pace compares an operation with bare Ed25519, one signature and its
// verification. The two take turns, and the fastest of each counts, so that a
// busy machine slows both or neither.
type pace struct {
	pub       ed25519.PublicKey
	key       ed25519.PrivateKey
	own, bare time.Duration
}

func newPace(b *testing.B) *pace {
	b.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	return &pace{pub, key, time.Hour, time.Hour}
}

func (p *pace) run(b *testing.B, operation func()) {
	start := time.Now()
	operation()
	p.own = min(p.own, time.Since(start))
	b.StopTimer()
	start = time.Now()
	if !ed25519.Verify(p.pub, message, ed25519.Sign(p.key, message)) {
		b.Fatal("no signature")
	}
	p.bare = min(p.bare, time.Since(start))
	b.StartTimer()
}

func (p *pace) report(b *testing.B, signatures uint16) {
	b.ReportMetric(float64(p.own)/float64(p.bare)/float64(signatures), "x-bare-ed25519")
}

// BenchmarkSign makes a signature, both rounds of every signer and the
// aggregation, one after the other. The ratio is to as many bare signatures,
// verified, as there are signers.
func BenchmarkSign(b *testing.B) {
	for _, p := range []Params{{3, 4}, {5, 7}, {9, 13}} {
		b.Run(fmt.Sprintf("%dof%d", p.Threshold, p.Members), func(b *testing.B) {
			c := keygen(b, p.Threshold, p.Members)
			ids := firstIDs(p.Threshold)
			pace := newPace(b)
			for b.Loop() {
				pace.run(b, func() {
					nonces, list := c.commit(b, ids...)
					if _, err := Aggregate(c.Group, message, list, c.sign(b, nonces, message, list)); err != nil {
						b.Fatal(err)
					}
				})
			}
			pace.report(b, p.Threshold)
		})
	}
}

// BenchmarkSigner is both rounds of one member, what each notary pays.
func BenchmarkSigner(b *testing.B) {
	for _, p := range []Params{{3, 4}, {5, 7}, {9, 13}} {
		b.Run(fmt.Sprintf("%dof%d", p.Threshold, p.Members), func(b *testing.B) {
			c := keygen(b, p.Threshold, p.Members)
			_, others := c.commit(b, firstIDs(p.Threshold)[1:]...)
			pace := newPace(b)
			for b.Loop() {
				pace.run(b, func() {
					nonces, own := c.commit(b, 1)
					if _, err := c.shares[0].Sign(nonces[1], c.Group, message, append(own, others...)); err != nil {
						b.Fatal(err)
					}
				})
			}
			pace.report(b, 1)
		})
	}
}

// BenchmarkKeyGen is one member's whole part: deal, verify all, finish.
func BenchmarkKeyGen(b *testing.B) {
	for _, p := range []Params{{3, 4}, {9, 13}, {21, 31}} {
		b.Run(fmt.Sprintf("%dof%d", p.Threshold, p.Members), func(b *testing.B) {
			c := ceremony(b, p.Threshold, p.Members)
			ds := dealAll(b, c)
			for b.Loop() {
				d, err := c.Deal(rand.Reader, 1)
				if err != nil {
					b.Fatal(err)
				}
				ds[0] = d
				if _, _, err := c.Finish(1, published(ds), dealtTo(b, ds, 1)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReshare is one member's whole part, as dealer and as receiver.
func BenchmarkReshare(b *testing.B) {
	for _, p := range []Params{{3, 4}, {9, 13}, {21, 31}} {
		b.Run(fmt.Sprintf("%dof%d", p.Threshold, p.Members), func(b *testing.B) {
			old := keygen(b, p.Threshold, p.Members)
			c, err := NewReshare(old.Group, firstIDs(p.Threshold), p, []byte("epoch 1"))
			if err != nil {
				b.Fatal(err)
			}
			var ds []*Dealing
			for _, id := range c.Dealers() {
				d, err := c.Redeal(rand.Reader, old.shares[id-1])
				if err != nil {
					b.Fatal(err)
				}
				ds = append(ds, d)
			}
			for b.Loop() {
				if ds[0], err = c.Redeal(rand.Reader, old.shares[0]); err != nil {
					b.Fatal(err)
				}
				if _, _, err := c.Finish(1, published(ds), dealtTo(b, ds, 1)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDecodePoint is what signing does most.
func BenchmarkDecodePoint(b *testing.B) {
	c := keygen(b, 2, 2)
	pace := newPace(b)
	for b.Loop() {
		pace.run(b, func() {
			if _, err := decodePoint(c.PublicKey); err != nil {
				b.Fatal(err)
			}
		})
	}
	pace.report(b, 1)
}
