package dsse_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"math/big"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// golden is a document as it was written on 2026-11-24. Its bytes are the
// format: if this test fails, old logs no longer read.
const golden = `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}},` +
	`"dsseEnvelope":{"payload":"eyJhIjoxfQ==","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"c2lnbmF0dXJl"}]}}`

func goldenEnvelope() *dsse.Envelope {
	return &dsse.Envelope{Payload: []byte(`{"a":1}`), Sig: []byte("signature"), Hint: dsse.Digest(bytes.Repeat([]byte{1}, 32))}
}

func TestGolden(t *testing.T) {
	if got := string(goldenEnvelope().Line()); got != golden {
		t.Errorf("line\n%s\nwant\n%s", got, golden)
	}
	if got, want := string(dsse.PAE([]byte(`{"a":1}`))), `DSSEv1 28 application/vnd.in-toto+json 7 {"a":1}`; got != want {
		t.Errorf("PAE %q, want %q", got, want)
	}
	if got, want := goldenEnvelope().Digest().String(), "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"; got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	// Each field behind its length, four bytes, big-endian; computed by another program.
	if got, want := dsse.Sum("label", []byte("ab"), []byte("c")).Hex(), "42e769bd61d73e1c1c170e0270b5036a00c2fa147167a97359e9a8e093cf07a2"; got != want {
		t.Errorf("sum %s, want %s", got, want)
	}
}

func TestParseReadsWhatLineWrites(t *testing.T) {
	e, err := dsse.Parse([]byte(golden))
	if err != nil {
		t.Fatal(err)
	}
	want := goldenEnvelope()
	if !bytes.Equal(e.Payload, want.Payload) || !bytes.Equal(e.Sig, want.Sig) || e.Hint != want.Hint {
		t.Fatalf("read %+v", e)
	}
}

// Every line but the one spelling is refused, so that two readers never see
// two documents in one line.
func TestAttackOtherSpellings(t *testing.T) {
	swap := func(old, new string) string {
		if !strings.Contains(golden, old) {
			t.Fatalf("the golden line holds no %q", old)
		}
		return strings.Replace(golden, old, new, 1)
	}
	long := strings.Repeat("A", dsse.MaxLine)
	for name, line := range map[string]string{
		"empty":                   "",
		"no JSON":                 "hello",
		"null":                    "null",
		"an array":                "[]",
		"no members":              "{}",
		"a newline behind":        golden + "\n",
		"a space before":          " " + golden,
		"a byte order mark":       "\ufeff" + golden,
		"two documents":           golden + golden,
		"a space inside":          swap(`"signatures":[`, `"signatures": [`),
		"other order":             swap(`"payload":"eyJhIjoxfQ==","payloadType":"application/vnd.in-toto+json"`, `"payloadType":"application/vnd.in-toto+json","payload":"eyJhIjoxfQ=="`),
		"escaped member name":     swap(`"payload":`, `"\u0070ayload":`),
		"escaped text":            swap(`eyJhIjoxfQ==`, `\u0065yJhIjoxfQ==`),
		"case-folded member":      swap(`"payload":`, `"Payload":`),
		"duplicate member":        swap(`"payload":"eyJhIjoxfQ=="`, `"payload":"eyJhIjoxfQ==","payload":"eyJhIjoyfQ=="`),
		"duplicate by case":       swap(`"payload":"eyJhIjoxfQ=="`, `"payload":"eyJhIjoxfQ==","PAYLOAD":"eyJhIjoyfQ=="`),
		"unknown member":          swap(`"payload":`, `"more":1,"payload":`),
		"unknown member at top":   swap(`{"mediaType":`, `{"more":1,"mediaType":`),
		"a keyid":                 swap(`{"sig":`, `{"keyid":"","sig":`),
		"a certificate":           swap(`{"publicKey":`, `{"certificate":{},"publicKey":`),
		"no signature":            swap(`[{"sig":"c2lnbmF0dXJl"}]`, `[]`),
		"null signatures":         swap(`[{"sig":"c2lnbmF0dXJl"}]`, `null`),
		"empty signature":         swap(`c2lnbmF0dXJl`, ``),
		"two signatures":          swap(`{"sig":"c2lnbmF0dXJl"}`, `{"sig":"c2lnbmF0dXJl"},{"sig":"c2lnbmF0dXJl"}`),
		"a huge signature":        swap(`c2lnbmF0dXJl`, long[:4*(dsse.MaxSignature/3+1)]),
		"other media type":        swap(`v0.3+json`, `v0.2+json`),
		"other payload type":      swap(`application/vnd.in-toto+json`, `application/json`),
		"short hint":              swap(`AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=`, `AQEB`),
		"no hint":                 swap(`AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=`, ``),
		"base64 with spare bits":  swap(`eyJhIjoxfQ==`, `eyJhIjoxfR==`),
		"base64 without padding":  swap(`eyJhIjoxfQ==`, `eyJhIjoxfQ`),
		"base64 with line breaks": swap(`eyJhIjoxfQ==`, `eyJh\nIjoxfQ==`),
		"base64url":               swap(`c2lnbmF0dXJl`, `c2lnbmF0dXJ-_w==`),
		"invalid UTF-8":           swap(`sigstore`, "sigst\xffre"),
		"a surrogate half":        swap(`sigstore`, `sigst\ud800re`),
		"oversized":               swap(`eyJhIjoxfQ==`, long),
		"deeply nested":           strings.Repeat(`{"a":`, 10000),
	} {
		if e, err := dsse.Parse([]byte(line)); err == nil {
			t.Errorf("%s: read %+v", name, e)
		} else if !strings.HasPrefix(err.Error(), "dsse: ") || len(err.Error()) > 600 {
			t.Errorf("%s: error of %d bytes: %.80s", name, len(err.Error()), err)
		}
	}
}

func genEnvelope(t *rapid.T) *dsse.Envelope {
	return &dsse.Envelope{
		Payload: rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "payload"),
		Sig:     rapid.SliceOfN(rapid.Byte(), 1, dsse.MaxSignature).Draw(t, "signature"),
		Hint:    dsse.Digest(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "hint")),
	}
}

func TestPropertyLineIsTheOnlySpelling(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := genEnvelope(t)
		line := e.Line()
		back, err := dsse.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(back.Payload, e.Payload) || !bytes.Equal(back.Sig, e.Sig) || back.Hint != e.Hint {
			t.Fatal("read something else than was written")
		}
		i := rapid.IntRange(0, len(line)-1).Draw(t, "place")
		line[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		other, err := dsse.Parse(line)
		if err == nil && bytes.Equal(other.Payload, e.Payload) && bytes.Equal(other.Sig, e.Sig) && other.Hint == e.Hint {
			t.Fatalf("a second spelling of the same document: %q", line)
		}
	})
}

// Lists of fields that differ hash differently, however they are cut.
func TestPropertySumSeparatesFields(t *testing.T) {
	fields := rapid.SliceOfN(rapid.SliceOfN(rapid.ByteRange(0, 2), 0, 4), 0, 4)
	join := func(fs [][]byte) string {
		var b strings.Builder
		for _, f := range fs {
			b.WriteString("/" + string(f))
		}
		return b.String()
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := fields.Draw(t, "a"), fields.Draw(t, "b")
		if same := join(a) == join(b); same != (dsse.Sum("x", a...) == dsse.Sum("x", b...)) {
			t.Fatalf("%q and %q: same fields %v, same sum %v", a, b, same, !same)
		}
		if len(a) > 0 && dsse.Sum(string(a[0]), a[1:]...) == dsse.Sum("x", a...) && string(a[0]) != "x" {
			t.Fatal("a label passes for a field")
		}
	})
}

func TestDigestText(t *testing.T) {
	const hex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for text, ok := range map[string]bool{
		"sha256:" + hex:                     true,
		hex:                                 false,
		"sha256:" + strings.ToUpper(hex):    false,
		"SHA256:" + hex:                     false,
		"sha256:" + hex[:63]:                false,
		"sha256:" + hex + "0":               false,
		"sha256: " + hex[:63]:               false,
		"sha256:" + hex[:63] + "g":          false,
		"sha512:" + hex:                     false,
		"sha256:" + hex + "\n":              false,
		"":                                  false,
		"sha256:" + strings.Repeat("0", 64): true,
	} {
		d, err := dsse.ParseDigest(text)
		if (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
		if err != nil && !d.IsZero() {
			t.Errorf("%q: refused, and yet %s", text, d)
		}
		if err == nil && !d.IsZero() && d.String() != text {
			t.Errorf("%q reads back as %q", text, d)
		}
	}
}

// The missing digest is written as nothing; 64 zeros are another spelling of
// it, which the canonical form of a document refuses.
func TestMissingDigestIsWrittenEmpty(t *testing.T) {
	b, err := dsse.Encode(struct{ D dsse.Digest }{})
	if err != nil || string(b) != `{"D":""}` {
		t.Fatalf("%s, %v", b, err)
	}
}

func key(t testing.TB, kind hsm.Kind) hsm.Key {
	t.Helper()
	uri := "file:" + filepath.Join(t.TempDir(), "key.pem")
	if _, err := file.Generate(uri, kind); err != nil {
		t.Fatal(err)
	}
	k, err := file.Open(uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSignVerify(t *testing.T) {
	ctx := context.Background()
	for _, kind := range []hsm.Kind{hsm.KindP256, hsm.KindEd25519} {
		k, other := key(t, kind), key(t, kind)
		e, err := dsse.Sign(ctx, k, []byte(`{"a":1}`))
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Verify(k.Public()); err != nil {
			t.Fatal(err)
		}
		if err := e.Verify(other.Public()); err == nil {
			t.Error("verified with another key")
		}
		// The hint is not signed: naming another key must not help.
		fp, err := hsm.Fingerprint(other.Public())
		if err != nil {
			t.Fatal(err)
		}
		moved := &dsse.Envelope{Payload: e.Payload, Sig: e.Sig, Hint: fp}
		if moved.Verify(other.Public()) == nil || moved.Verify(k.Public()) == nil {
			t.Error("a moved hint verifies")
		}
		edited := &dsse.Envelope{Payload: []byte(`{"a":2}`), Sig: e.Sig, Hint: e.Hint}
		if edited.Verify(k.Public()) == nil {
			t.Error("an edited payload verifies")
		}
		raw, err := hsm.SignMessage(ctx, k, e.Payload)
		if err != nil {
			t.Fatal(err)
		}
		if (&dsse.Envelope{Payload: e.Payload, Sig: raw, Hint: e.Hint}).Verify(k.Public()) == nil {
			t.Error("a signature of the bare payload passes for one of its PAE")
		}
	}
}

func TestSignBounds(t *testing.T) {
	k := key(t, hsm.KindEd25519)
	for n, ok := range map[int]bool{0: false, 1: true, dsse.MaxPayload: true, dsse.MaxPayload + 1: false} {
		e, err := dsse.Sign(context.Background(), k, make([]byte, n))
		if (err == nil) != ok {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if err == nil && len(e.Line()) > dsse.MaxLine {
			t.Fatalf("a payload of %d bytes makes a line of %d", n, len(e.Line()))
		}
	}
}

// ECDSA signatures can be altered without the key: (r, n-s) verifies too. It
// is another line and the same document, so whoever counts documents by their
// digest counts it once.
func TestAttackMalleatedSignatureKeepsTheDigest(t *testing.T) {
	k := key(t, hsm.KindP256)
	e, err := dsse.Sign(context.Background(), k, []byte(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(e.Sig, &rs); err != nil {
		t.Fatal(err)
	}
	rs.S.Sub(elliptic.P256().Params().N, rs.S)
	sig, err := asn1.Marshal(rs)
	if err != nil {
		t.Fatal(err)
	}
	twin := &dsse.Envelope{Payload: e.Payload, Sig: sig, Hint: e.Hint}
	if bytes.Equal(twin.Line(), e.Line()) {
		t.Fatal("the signature was not altered")
	}
	if !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), sum(dsse.PAE(e.Payload)), sig) {
		t.Fatal("the altered signature is no signature, so this test shows nothing")
	}
	if twin.Digest() != e.Digest() {
		t.Fatal("the same payload has two digests")
	}
}

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

func FuzzParse(f *testing.F) {
	f.Add([]byte(golden))
	f.Add([]byte(strings.Replace(golden, `"payload"`, `"Payload"`, 1)))
	f.Add([]byte(`{}`))
	random := make([]byte, 100)
	rand.Read(random)
	f.Add((&dsse.Envelope{Payload: random, Sig: random[:64]}).Line())
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := dsse.Parse(line)
		if err == nil && !bytes.Equal(e.Line(), line) {
			t.Fatalf("a second spelling was read: %q", line)
		}
	})
}
