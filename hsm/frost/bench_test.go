package frost

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"testing"
	"time"
)

// bare is the time of one ordinary Ed25519 signature and its verification, the
// unit of the figures below, measured in the same run.
func bare(b *testing.B) time.Duration {
	b.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	const n = 200
	start := time.Now()
	for range n {
		if !ed25519.Verify(pub, message, ed25519.Sign(key, message)) {
			b.Fatal("no signature")
		}
	}
	return time.Since(start) / n
}

// BenchmarkSign makes a signature, both rounds of every signer and the
// aggregation, one after the other. The ratio is to as many bare signatures,
// verified, as there are signers.
func BenchmarkSign(b *testing.B) {
	for _, p := range []Params{{3, 4}, {5, 7}, {9, 13}} {
		b.Run(fmt.Sprintf("%dof%d", p.Threshold, p.Members), func(b *testing.B) {
			c := keygen(b, p.Threshold, p.Members)
			ids := firstIDs(p.Threshold)
			unit := bare(b)
			for b.Loop() {
				nonces, list := c.commit(b, ids...)
				if _, err := Aggregate(c.Group, message, list, c.sign(b, nonces, message, list)); err != nil {
					b.Fatal(err)
				}
			}
			each := b.Elapsed() / time.Duration(b.N)
			b.ReportMetric(float64(each)/float64(unit)/float64(p.Threshold), "x-bare-ed25519")
		})
	}
}

// BenchmarkSigner is one member's second round, what each notary pays.
func BenchmarkSigner(b *testing.B) {
	for _, p := range []Params{{3, 4}, {5, 7}, {9, 13}} {
		b.Run(fmt.Sprintf("%dof%d", p.Threshold, p.Members), func(b *testing.B) {
			c := keygen(b, p.Threshold, p.Members)
			unit := bare(b)
			_, others := c.commit(b, firstIDs(p.Threshold)[1:]...)
			for b.Loop() {
				nonces, own := c.commit(b, 1)
				if _, err := c.shares[0].Sign(nonces[1], c.Group, message, append(own, others...)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed()/time.Duration(b.N))/float64(unit), "x-bare-ed25519")
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

func BenchmarkDecodePoint(b *testing.B) {
	c := keygen(b, 2, 2)
	unit := bare(b)
	for b.Loop() {
		if _, err := decodePoint(c.PublicKey); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed()/time.Duration(b.N))/float64(unit), "x-bare-ed25519")
}
