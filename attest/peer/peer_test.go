// Package peer measures attest against google/go-attestation on the same quote
// and the same firmware log. It is a module of its own: see go.mod.
package peer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"strconv"
	"testing"
	"time"

	theirs "github.com/google/go-attestation/attest"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/eventlog"
)

// A boot is a quote of PCR 0 to 14 of the sha256 bank with its firmware log, made
// by Debian's shim, GRUB and kernel under OVMF and swtpm (testdata/local-boot).
type boot struct {
	ak, quote, sig, log []byte
	want                attest.QuoteExpectation
	firmware            map[int][]byte // without PCR 10, which is the kernel's
	pcrs                []theirs.PCR
}

func load(tb testing.TB) boot {
	const name = "secureboot-shim-grub"
	read := func(file string) []byte {
		b, err := os.ReadFile("../testdata/local-boot/" + file)
		if err != nil {
			tb.Fatal(err)
		}
		return b
	}
	b := boot{ak: read(name + ".ak"), quote: read(name + ".quote"), sig: read(name + ".sig"), log: read(name + ".bios"), firmware: map[int][]byte{}}
	b.want = attest.QuoteExpectation{ExtraData: read(name + ".nonce"), PCRs: map[int][32]byte{}}
	var values map[string]map[string]string
	if err := json.Unmarshal(read("expected-sha256.json"), &values); err != nil {
		tb.Fatal(err)
	}
	for pcr := range 15 {
		v, err := hex.DecodeString(values[name][strconv.Itoa(pcr)])
		if err != nil || len(v) != 32 {
			tb.Fatalf("PCR %d is not recorded", pcr)
		}
		b.want.PCRs[pcr] = [32]byte(v)
		b.pcrs = append(b.pcrs, theirs.PCR{Index: pcr, Digest: v, DigestAlg: crypto.SHA256})
		if pcr != 10 {
			b.firmware[pcr] = v
		}
	}
	return b
}

// ours verifies the quote and explains every PCR of the firmware.
func (b boot) ours() error {
	if _, err := attest.VerifyQuote(b.ak, b.quote, b.sig, b.want); err != nil {
		return err
	}
	log, err := eventlog.Parse(b.log)
	if err != nil {
		return err
	}
	return log.Explain("sha256", b.firmware)
}

// peer does the same: its log verification wants values of the PCRs that the log
// extends, and judges those.
func (b boot) peer() error {
	ak, err := theirs.ParseAKPublic(b.ak)
	if err != nil {
		return err
	}
	if err := ak.Verify(theirs.Quote{Quote: b.quote, Signature: b.sig}, b.pcrs, b.want.ExtraData); err != nil {
		return err
	}
	log, err := theirs.ParseEventLog(b.log)
	if err != nil {
		return err
	}
	_, err = log.Verify(b.pcrs)
	return err
}

// Both take the quote, and both refuse another nonce and a cut log.
func TestBothJudgeAlike(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*boot)
		good   bool
	}{
		"as it is":      {func(*boot) {}, true},
		"another nonce": {func(b *boot) { b.want.ExtraData = []byte("another nonce of a verifier") }, false},
		"log cut":       {func(b *boot) { b.log = b.log[:len(b.log)-1] }, false},
	} {
		b := load(t)
		c.change(&b)
		ours, peer := b.ours(), b.peer()
		if (ours == nil) != c.good || (peer == nil) != c.good {
			t.Errorf("%s: we say %v, go-attestation %v", name, ours, peer)
		}
	}
}

// best is the shortest of many short runs: what others do on the machine at the
// same time makes runs longer, never shorter.
type best time.Duration

func (b *best) run(tb testing.TB, f func() error) {
	const n = 10
	start := time.Now()
	for range n {
		if err := f(); err != nil {
			tb.Fatal(err)
		}
	}
	if took := best(time.Since(start) / n); *b == 0 || took < *b {
		*b = took
	}
}

// bare is what neither can do without: one P-256 verification, and one pass of
// SHA-256 over the log.
func (b boot) bare(tb testing.TB) func() error {
	key, _, err := attest.DecodeAK(b.ak)
	if err != nil {
		tb.Fatal(err)
	}
	r, s := new(big.Int).SetBytes(b.sig[6:38]), new(big.Int).SetBytes(b.sig[40:])
	digest := sha256.Sum256(b.quote)
	return func() error {
		if !ecdsa.Verify(key.(*ecdsa.PublicKey), digest[:], r, s) || sha256.Sum256(b.log) == [32]byte{} {
			return errors.New("the bare signature does not verify")
		}
		return nil
	}
}

// BenchmarkAgainstGoAttestation reports how many full checks we make in the time
// of one of go-attestation's, and what each takes over the bare work, in one run
// and alternating. The first cannot be more than the last: both verify one
// signature, with the same library.
func BenchmarkAgainstGoAttestation(b *testing.B) {
	in := load(b)
	floor := in.bare(b)
	var ours, peer, bare best
	for b.Loop() {
		ours.run(b, in.ours)
		peer.run(b, in.peer)
		bare.run(b, floor)
	}
	b.ReportMetric(float64(peer)/float64(ours), "go-attestation/ours")
	b.ReportMetric(float64(ours)/float64(bare), "ours/bare")
	b.ReportMetric(float64(peer)/float64(bare), "go-attestation/bare")
	b.ReportMetric(float64(ours)/1e3, "µs/ours")
	b.ReportMetric(float64(peer)/1e3, "µs/go-attestation")
	b.ReportMetric(0, "ns/op")
}
