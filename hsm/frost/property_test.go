package frost

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"filippo.io/edwards25519"
	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"
)

func drawParams(rt *rapid.T) Params {
	n := rapid.Uint16Range(2, 5).Draw(rt, "members")
	return Params{rapid.Uint16Range(2, n).Draw(rt, "threshold"), n}
}

// drawIDs draws at least least members, ascending.
func drawIDs(rt *rapid.T, p Params, least uint16, most uint16) []uint16 {
	ids := rapid.SliceOfNDistinct(rapid.Uint16Range(1, p.Members), int(least), int(most), rapid.ID).Draw(rt, "ids")
	return slices.Sorted(slices.Values(ids))
}

// One key goes through a chain of groups; every quorum of each signs with it,
// and shares of different groups never do.
func TestReshareKeepsTheKey(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := drawParams(rt)
		c := keygen(t, p.Threshold, p.Members)
		key := c.PublicKey
		for range rapid.IntRange(1, 2).Draw(rt, "epochs") {
			dealers := drawIDs(rt, c.Params, c.Threshold, c.Threshold)
			p := drawParams(rt)
			next := c.reshare(t, p.Threshold, p.Members, dealers...)
			if next.PublicKey != key {
				rt.Fatal("the public key changed")
			}
			if next.Digest() == c.Digest() {
				rt.Fatal("the group did not change")
			}
			if err := next.Validate(); err != nil {
				rt.Fatal(err)
			}
			for i, k := range next.shares[:min(len(next.shares), len(c.shares))] {
				if k.secret.Equal(c.shares[i].secret) == 1 {
					rt.Fatalf("member %d kept its share", i+1)
				}
			}
			c = next
			c.signature(t, message, drawIDs(rt, c.Params, c.Threshold, c.Members)...)
		}
	})
}

// A single flipped bit in any contribution is refused and blamed on its maker.
func TestFlippedBitsAreBlamed(t *testing.T) {
	c := keygen(t, 3, 5)
	rapid.Check(t, func(rt *rapid.T) {
		ids := drawIDs(rt, c.Params, 3, 5)
		victim := rapid.SampledFrom(ids).Draw(rt, "victim")
		bit := rapid.IntRange(0, 255).Draw(rt, "bit")
		nonces, list := c.commit(t, ids...)
		shares := c.sign(t, nonces, message, list)
		z := shares[victim]
		z[bit/8] ^= 1 << (bit % 8)
		shares[victim] = z
		_, err := Aggregate(c.Group, message, list, shares)
		wantCheat(t, err, "signature share", victim)
	})
}

// The polynomial in the exponent follows the polynomial, and both interpolate.
func TestPolynomials(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := randomPolynomial(t, rapid.IntRange(1, 6).Draw(rt, "terms"))
		x := rapid.Uint16().Draw(rt, "x")
		f := p.commit()
		if f.at(x).Equal(new(edwards25519.Point).ScalarBaseMult(p.at(x))) != 1 {
			rt.Fatal("the commitments evaluate to something else")
		}
		ids := rapid.SliceOfNDistinct(rapid.Uint16Range(1, MaxMembers), len(p), len(p), rapid.ID).Draw(rt, "ids")
		sum := edwards25519.NewScalar()
		for _, id := range ids {
			sum.MultiplyAdd(lagrange(ids, id, x), p.at(id), sum)
		}
		if sum.Equal(p.at(x)) != 1 {
			rt.Fatalf("interpolating %v at %d", ids, x)
		}
	})
}

func TestTimesSmall(t *testing.T) {
	p := new(edwards25519.Point).ScalarBaseMult(random(t))
	for _, n := range []uint16{0, 1, 2, 3, 7, 8, 31, 63, 64, 255, 65535} {
		if timesSmall(p, n).Equal(new(edwards25519.Point).ScalarMult(scalarOf(n), p)) != 1 {
			t.Errorf("%d times a point", n)
		}
	}
}

// inSubgroup agrees with multiplying by the order, on every coset, whatever
// the projective coordinates.
func TestInSubgroup(t *testing.T) {
	small := torsion(t)
	rapid.Check(t, func(rt *rapid.T) {
		p := new(edwards25519.Point).ScalarBaseMult(random(t))
		for i, q := range small {
			shifted := new(edwards25519.Point).Add(p, q)
			if isIdentity(timesOrder(shifted)) != (i == 0) {
				rt.Fatalf("torsion point %d is not what it is taken for", i)
			}
			decoded, err := new(edwards25519.Point).SetBytes(shifted.Bytes())
			if err != nil {
				rt.Fatal(err)
			}
			if inSubgroup(shifted) != (i == 0) || inSubgroup(decoded) != (i == 0) {
				rt.Fatalf("a prime-order point plus torsion point %d: %v", i, i != 0)
			}
		}
	})
	for i, q := range small {
		if inSubgroup(q) {
			t.Errorf("torsion point %d", i)
		}
	}
	if !inSubgroup(edwards25519.NewGeneratorPoint()) {
		t.Error("the generator")
	}
}

// On encodings chosen without regard to the subgroup, too.
func TestInSubgroupOfArbitraryPoints(t *testing.T) {
	in, out := 0, 0
	for y := range uint16(4000) {
		var b [32]byte
		binary.LittleEndian.PutUint16(b[:], y)
		p, err := new(edwards25519.Point).SetBytes(b[:])
		if err != nil || isIdentity(p) {
			continue
		}
		want := isIdentity(timesOrder(p))
		if inSubgroup(p) != want {
			t.Fatalf("y = %d: want %v", y, want)
		}
		if want {
			in++
		} else {
			out++
		}
	}
	if in < 100 || out < 1000 {
		t.Errorf("%d points in the subgroup and %d outside are too few to tell", in, out)
	}
}

func TestParams(t *testing.T) {
	for _, p := range []Params{{}, {0, 3}, {1, 1}, {1, 3}, {2, 1}, {4, 3}, {2, 0}, {2, MaxMembers + 1}, {65535, 65535}} {
		wantRefused(t, "params", p.Validate())
		_, err := NewKeyGen(p, []byte("context"))
		wantRefused(t, "a ceremony", err)
		_, err = NewReshare(keygen(t, 2, 2).Group, []uint16{1, 2}, p, []byte("context"))
		wantRefused(t, "a reshare", err)
		wantRefused(t, "a group", (&Group{Params: p}).Validate())
	}
	_, err := NewKeyGen(Params{2, MaxMembers}, nil)
	wantRefused(t, "no context", err)
	_, err = NewReshare(keygen(t, 2, 2).Group, []uint16{1, 2}, Params{2, 2}, nil)
	wantRefused(t, "no context", err)
	_, err = NewReshare(nil, []uint16{1, 2}, Params{2, 2}, []byte("context"))
	wantRefused(t, "no group", err)
	for _, p := range []Params{{2, 2}, {3, 4}, {MaxMembers, MaxMembers}} {
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
	}
}

// Fields are told apart however bytes are moved between them.
func TestFields(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		lists := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 3), 0, 3)
		a, b := lists.Draw(rt, "a"), lists.Draw(rt, "b")
		if bytes.Equal(fields(a...), fields(b...)) != slices.EqualFunc(a, b, bytes.Equal) {
			rt.Fatal("two lists, one encoding")
		}
	})
}

func TestEncodings(t *testing.T) {
	c := ceremony(t, 3, 4)
	d, err := c.Deal(rand.Reader, 2)
	if err != nil {
		t.Fatal(err)
	}
	g := keygen(t, 2, 3)
	_, list := g.commit(t, 3)
	roundTrip(t, d.Round1(), Round1{})
	roundTrip(t, list[0], Commitment{})
	roundTrip(t, *g.Group, Group{})

	b, err := (&Round1{}).MarshalBinary()
	wantRefused(t, "encoding no commitments", err)
	if b != nil {
		t.Error("it was encoded all the same")
	}
	r, com := d.Round1(), list[0]
	rb, _ := r.MarshalBinary()
	cb, _ := com.MarshalBinary()
	var r2 Round1
	var com2 Commitment
	if err := r2.UnmarshalBinary(rb); err != nil || !bytes.Equal(r2.encode(), rb) {
		t.Errorf("Round1: %v", err)
	}
	if err := com2.UnmarshalBinary(cb); err != nil || com2 != com {
		t.Errorf("Commitment: %v", err)
	}
}

// roundTrip wants one JSON text, of base64, for one value.
func roundTrip[T any](t *testing.T, v, empty T) {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &empty, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(empty)
	if err != nil || !bytes.Equal(text, again) {
		t.Errorf("%T: %s, then %s (%v)", v, text, again, err)
	}
	if !strings.Contains(string(text), `="`) {
		t.Errorf("%T: points are not base64 strings: %s", v, text)
	}
	short := strings.Replace(string(text), `="`, `"`, 1)
	wantRefused(t, "a point cut short", json.Unmarshal([]byte(short), &empty))
}

// What this package calls a signature, the standard library does, and it is no
// signature on anything else.
func TestSignatureStandsAlone(t *testing.T) {
	c := keygen(t, 2, 3)
	rapid.Check(t, func(rt *rapid.T) {
		msg := rapid.SliceOf(rapid.Byte()).Draw(rt, "message")
		sig := c.signature(t, msg, 1, 3)
		other := sha256.Sum256(msg)
		if ed25519.Verify(c.Ed25519(), other[:], sig[:]) {
			rt.Fatal("it signs another message too")
		}
	})
}

// alike is the same source in every process of a fuzzing run, so that the
// seeds of one are valid in the others.
func alike() io.Reader { return mathrand.NewChaCha8([32]byte{1}) }

func FuzzRound1(f *testing.F) {
	c := ceremony(f, 2, 3)
	r := dealFrom(f, alike(), c)[0].Round1()
	f.Add(r.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		var got Round1
		if got.UnmarshalBinary(b) != nil {
			return
		}
		if again, err := got.MarshalBinary(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("two encodings of one value: %x, %x", b, again)
		}
		if c.VerifyRound1(1, got) == nil && !bytes.Equal(b, r.encode()) {
			t.Fatal("a forgery")
		}
	})
}

func FuzzCommitment(f *testing.F) {
	f.Add(make([]byte, commitmentSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Commitment
		if c.UnmarshalBinary(b) != nil {
			return
		}
		if again, err := c.MarshalBinary(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("two encodings of one value: %x, %x", b, again)
		}
	})
}

// FuzzDecodePoint: what is accepted has one encoding and prime order.
func FuzzDecodePoint(f *testing.F) {
	for _, b := range badPoints(f) {
		f.Add(b[:])
	}
	f.Add(edwards25519.NewGeneratorPoint().Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != 32 {
			return
		}
		p, err := decodePoint([32]byte(b))
		if err != nil {
			return
		}
		if encodePoint(p) != [32]byte(b) {
			t.Fatalf("accepted %x, which encodes %x", b, p.Bytes())
		}
		if !isIdentity(timesOrder(p)) || isIdentity(p) {
			t.Fatalf("accepted %x, which is not of prime order", b)
		}
	})
}

func FuzzUnmarshalSecrets(f *testing.F) {
	c := ceremony(f, 2, 2)
	ds := dealFrom(f, alike(), c)
	g := finish(f, c, ds)
	f.Add(seal(f, ds[0]))
	f.Add(seal(f, g.shares[0]))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := c.UnmarshalDealing(b); err == nil && !bytes.Equal(seal(t, d), b) {
			t.Fatal("another dealing")
		}
		if k, err := UnmarshalKeyShare(g.Group, b); err == nil && !bytes.Equal(seal(t, k), b) {
			t.Fatal("another share")
		}
	})
}
