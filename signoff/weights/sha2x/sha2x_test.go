package sha2x

import (
	"crypto/rand"
	"crypto/sha256"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestFastPathIsOn(t *testing.T) {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !strings.Contains(string(info), "sha_ni") {
		t.Skip("this processor has no SHA extensions")
	}
	if !fast {
		t.Error("the processor has SHA extensions but they are not used")
	}
}

// Random lengths, cut at random places, must give what crypto/sha256 gives.
func TestWrite2EqualsSHA256(t *testing.T) {
	data := make([]byte, 1<<17)
	rand.Read(data)
	rapid.Check(t, func(rt *rapid.T) {
		a, b := New(), New()
		length := rapid.OneOf(rapid.IntRange(0, 300), rapid.Map(rapid.IntRange(0, 40), func(n int) int { return 64 * n }), rapid.IntRange(0, 1<<14))
		var na, nb int
		for range rapid.IntRange(1, 6).Draw(rt, "writes") {
			p, q := length.Draw(rt, "p"), length.Draw(rt, "q")
			Write2(a, b, data[na:na+p], data[1000+nb:1000+nb+q])
			na, nb = na+p, nb+q
		}
		if a.Sum() != sha256.Sum256(data[:na]) || b.Sum() != sha256.Sum256(data[1000:1000+nb]) {
			rt.Fatal("the digests differ from crypto/sha256")
		}
	})
}

func TestWrite2OfOneInput(t *testing.T) {
	data := make([]byte, 10_000)
	rand.Read(data)
	a, b := New(), New()
	b.Write(data[:64])
	Write2(a, b, data, data)
	if a.Sum() != sha256.Sum256(data) || b.Sum() != sha256.Sum256(append(data[:64:64], data...)) {
		t.Error("wrong digests")
	}
	a.Reset()
	Write2(a, a, data[:64], data[64:128])
	if a.Sum() != sha256.Sum256(data[:128]) {
		t.Error("one stream given twice is not written in order")
	}
}
