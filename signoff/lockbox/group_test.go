package lockbox

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"testing"

	"pgregory.net/rapid"
)

func unhex32(t testing.TB, s string) (b [32]byte) {
	t.Helper()
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(b) {
		t.Fatalf("%q is not 32 bytes of hex", s)
	}
	copy(b[:], raw)
	return b
}

// The value was computed a second time by another implementation of RFC 9380
// and RFC 9496.
func TestSecondGenerator(t *testing.T) {
	const want = "c8a9451a238d6c4bb5abf60e862d337213bce2cc1674517f42fa40b381a4ba5e"
	if got := encodePoint(secondGenerator); got != unhex32(t, want) {
		t.Fatalf("second generator %x, want %s", got, want)
	}
}

// RFC 9496, appendix A.1: the first multiples of the generator.
func TestGeneratorMultiples(t *testing.T) {
	for x, want := range map[uint16]string{
		1: "e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76",
		2: "6a493210f7499cd17fecb510ae0cea23a110e8d5b901f8acadd3095c73a3b919",
	} {
		if got := encodePoint(scale(curve.Generator(), x)); got != unhex32(t, want) {
			t.Errorf("%d·G = %x, want %s", x, got, want)
		}
	}
}

// RFC 9496, appendix A.2, and the identity.
func TestAttackPointEncodings(t *testing.T) {
	for kind, encodings := range map[string][]string{
		"identity": {"0000000000000000000000000000000000000000000000000000000000000000"},
		"non-canonical": {
			"00ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
			"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
			"f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
			"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		},
		"negative": {
			"0100000000000000000000000000000000000000000000000000000000000000",
			"01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
			"ed57ffd8c914fb201471d1c3d245ce3c746fcbe63a3679d51b6a516ebebe0e20",
			"c34c4e1826e5d403b78e246e88aa051c36ccf0aafebffe137d148a2bf9104562",
			"c940e5a4404157cfb1628b108db051a8d439e1a421394ec4ebccb9ec92a8ac78",
			"47cfc5497c53dc8e61c91d17fd626ffb1c49e2bca94eed052281b510b1117a24",
		},
		"no square root": {
			"26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371",
			"4eac077a713c57b4f4397629a4145982c661f48044dd3f96427d40b147d9742f",
			"de6a7b00deadc788eb6b6c8d20c0ae96c2f2019078fa604fee5b87d6e989ad87",
			"bcab477be20861e01e4a0e295284146a510150d9817763caf1a6f4b422d67042",
		},
		"negative xy": {
			"3eb858e78f5a7254d8c9731174a94f76755fd3941c0ac93735c07ba14579630e",
			"a45fdc55c76448c049a1ab33f17023edfb2be3581e9c7aade8a6125215e04220",
		},
		"s = -1, order two on the curve": {"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"},
		"order eight on the curve":       {"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"},
	} {
		for _, e := range encodings {
			if _, err := parsePoint(unhex32(t, e)); err == nil {
				t.Errorf("%s: accepted %s", kind, e)
			}
			good := encodePoint(curve.Generator())
			if err := (Sharing{good, unhex32(t, e)}).Check(); err == nil {
				t.Errorf("%s: a sharing with %s was accepted", kind, e)
			}
		}
	}
}

func TestAttackScalarEncodings(t *testing.T) {
	for name, e := range map[string]string{
		"the order":          "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010",
		"the order plus one": "eed3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010",
		"top bit":            "0100000000000000000000000000000000000000000000000000000000000080",
		"all ones":           "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	} {
		b := unhex32(t, e)
		good := make([]byte, scalarSize)
		if _, err := parsePair(append(b[:], good...)); err == nil {
			t.Errorf("%s accepted as value", name)
		}
		if _, err := parsePair(append(good, b[:]...)); err == nil {
			t.Errorf("%s accepted as blinding", name)
		}
	}
	last := unhex32(t, "ecd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")
	if _, err := parseScalar(last[:]); err != nil {
		t.Errorf("the largest scalar: %v", err)
	}
	for n := range 130 {
		if _, err := parsePair(make([]byte, n)); (err == nil) != (n == pairSize) {
			t.Errorf("a pair of %d bytes: %v", n, err)
		}
	}
}

// Commitments are homomorphic: the commitment to f(x) follows from those to the
// coefficients, for every index that a document can hold.
func TestPropertyCommitmentAtIndex(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		threshold := rapid.IntRange(2, 6).Draw(rt, "t")
		x := rapid.Uint16Min(1).Draw(rt, "index")
		secret, err := randomPair(rand.Reader)
		if err != nil {
			rt.Fatal(err)
		}
		f, err := newPolynomial(rand.Reader, secret, threshold)
		if err != nil {
			rt.Fatal(err)
		}
		want, err := f.commit().at(x)
		if err != nil {
			rt.Fatal(err)
		}
		if !f.at(x).commit().IsEqual(want) {
			rt.Fatal("the commitment at an index is not that of the share")
		}
	})
}

// Any t points on a polynomial give its constant term; with one of them replaced
// by chance they give another.
func TestPropertyInterpolation(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		xs := rapid.SliceOfNDistinct(rapid.Uint16Min(1), 2, 7, rapid.ID[uint16]).Draw(rt, "indices")
		secret, err := randomPair(rand.Reader)
		if err != nil {
			rt.Fatal(err)
		}
		f, err := newPolynomial(rand.Reader, secret, len(xs))
		if err != nil {
			rt.Fatal(err)
		}
		ys := make([]pair, len(xs))
		for i, x := range xs {
			ys[i] = f.at(x)
		}
		if !bytes.Equal(interpolate(xs, ys).bytes(), secret.bytes()) {
			rt.Fatal("t points do not give the secret")
		}
		ys[0], err = randomPair(rand.Reader)
		if err != nil {
			rt.Fatal(err)
		}
		if bytes.Equal(interpolate(xs, ys).bytes(), secret.bytes()) {
			rt.Fatal("t-1 points give the secret")
		}
	})
}

func TestParseSharing(t *testing.T) {
	g := encodePoint(curve.Generator())
	for name, tc := range map[string]struct {
		threshold int
		points    [][]byte
	}{
		"none":           {0, nil},
		"one":            {1, [][]byte{g[:]}},
		"fewer":          {3, [][]byte{g[:], g[:]}},
		"more":           {2, [][]byte{g[:], g[:], g[:]}},
		"short":          {2, [][]byte{g[:], g[:31]}},
		"long":           {2, [][]byte{g[:], append(g[:], 0)}},
		"empty":          {2, [][]byte{g[:], nil}},
		"negative count": {-1, nil},
	} {
		if _, err := ParseSharing(tc.threshold, tc.points); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	s, err := ParseSharing(2, [][]byte{g[:], g[:]})
	if err != nil || s.Threshold() != 2 || !bytes.Equal(s.Bytes()[1], g[:]) {
		t.Fatalf("good sharing: %v", err)
	}
	if _, err := ParseSharing(MaxHolders+1, make([][]byte, MaxHolders+1)); err == nil {
		t.Error("a sharing above the bound was accepted")
	}
}
