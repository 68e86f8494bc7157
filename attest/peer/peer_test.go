// Package peer measures attest against google/go-attestation on the same quote
// and the same firmware log. It is a module of its own: see go.mod.
package peer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"slices"
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

// large is a quote over another machine's log, of 34,034 bytes: RHEL 8 in Google's
// cloud, with three banks. Its TPM's key is in that cloud, so a key made here signs
// the values, in the form of the other quote.
func large(tb testing.TB) boot {
	const dir = "../../../shared/testdata/attest/"
	log, err := os.ReadFile(dir + "uefi/rhel8-uefi.bin")
	if err != nil {
		tb.Skip("skipped: ../shared/testdata/attest is not here")
	}
	text, err := os.ReadFile(dir + "cases.json")
	if err != nil {
		tb.Fatal(err)
	}
	type known struct {
		File   string
		Expect struct{ PCRs map[string]map[string]string }
	}
	var cases []known
	if err := json.Unmarshal(text, &cases); err != nil {
		tb.Fatal(err)
	}
	i := slices.IndexFunc(cases, func(c known) bool { return c.File == "uefi/rhel8-uefi.bin" })
	if i < 0 {
		tb.Fatal("no case uefi/rhel8-uefi.bin")
	}
	like := load(tb)
	b := boot{log: log, firmware: map[int][]byte{}, want: attest.QuoteExpectation{ExtraData: like.want.ExtraData, PCRs: map[int][32]byte{}}}
	var mask [3]byte
	h := sha256.New()
	for pcr := range 24 {
		v, err := hex.DecodeString(cases[i].Expect.PCRs["sha256"][strconv.Itoa(pcr)])
		if err != nil || len(v) != 32 {
			continue
		}
		mask[pcr/8] |= 1 << (pcr % 8)
		h.Write(v)
		b.want.PCRs[pcr], b.firmware[pcr] = [32]byte(v), v
		b.pcrs = append(b.pcrs, theirs.PCR{Index: pcr, Digest: v, DigestAlg: crypto.SHA256})
	}
	// TPMS_ATTEST ends with the selection's bitmap, and the digest with its size.
	b.quote = slices.Concat(like.quote[:len(like.quote)-37], mask[:], like.quote[len(like.quote)-34:len(like.quote)-32], h.Sum(nil))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	point, err := key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		tb.Fatal(err)
	}
	b.ak = slices.Concat(like.ak[:len(like.ak)-66], point[1:33], like.ak[len(like.ak)-34:len(like.ak)-32], point[33:])
	digest := sha256.Sum256(b.quote)
	r, sig, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		tb.Fatal(err)
	}
	b.sig = slices.Concat(like.sig[:6], r.FillBytes(make([]byte, 32)), like.sig[38:40], sig.FillBytes(make([]byte, 32)))
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
		for log, b := range map[string]boot{"16 kB": load(t), "34 kB": large(t)} {
			c.change(&b)
			ours, peer := b.ours(), b.peer()
			if (ours == nil) != c.good || (peer == nil) != c.good {
				t.Errorf("%s, %s: we say %v, go-attestation %v", name, log, ours, peer)
			}
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
	b.Run("16kB", func(b *testing.B) { compare(b, load(b)) })
	b.Run("34kB", func(b *testing.B) { compare(b, large(b)) })
}

func compare(b *testing.B, in boot) {
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
