package frost

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// seal encodes a secret as its holder would before sealing it.
func seal(t testing.TB, secret any) []byte {
	t.Helper()
	var b []byte
	var err error
	switch s := secret.(type) {
	case *KeyShare:
		b, err = s.Marshal()
	case *Dealing:
		b, err = s.MarshalSecret()
	}
	if err != nil || len(b) == 0 {
		t.Fatalf("sealing %T: %v", secret, err)
	}
	return b
}

func TestKeyShareSurvivesSealing(t *testing.T) {
	c := keygen(t, 2, 3)
	for i, k := range c.shares {
		back, err := UnmarshalKeyShare(c.Group, seal(t, k))
		if err != nil {
			t.Fatal(err)
		}
		if !back.Equal(k) || back.ID() != uint16(i+1) || back.GroupDigest() != c.Digest() {
			t.Error("another share came back")
		}
		c.shares[i] = back
	}
	if c.shares[0].Equal(c.shares[1]) || c.shares[0].Equal(nil) {
		t.Error("different shares are equal")
	}
	c.signature(t, message, 2, 3)
}

// A dealer killed mid-ceremony publishes and deals the same after its restart.
func TestDealingSurvivesRestart(t *testing.T) {
	c := ceremony(t, 3, 4)
	ds := dealAll(t, c)
	for i, d := range ds {
		back, err := ceremony(t, 3, 4).UnmarshalDealing(seal(t, d))
		if err != nil {
			t.Fatal(err)
		}
		was, is := d.Round1(), back.Round1()
		if !bytes.Equal(was.encode(), is.encode()) || back.Dealer() != d.Dealer() {
			t.Error("another dealing came back")
		}
		ds[i] = back
	}
	finish(t, c, ds).signature(t, message, 1, 2, 4)
}

// Every flipped bit of a sealed secret is noticed, even by whoever lacks a MAC.
func TestAttackSealedBitFlips(t *testing.T) {
	c := ceremony(t, 2, 2)
	ds := dealAll(t, c)
	g := finish(t, c, ds)
	share, dealing := seal(t, g.shares[0]), seal(t, ds[0])
	for name, s := range map[string]struct {
		sealed []byte
		open   func([]byte) error
	}{
		"share":   {share, func(b []byte) error { _, err := UnmarshalKeyShare(g.Group, b); return err }},
		"dealing": {dealing, func(b []byte) error { _, err := c.UnmarshalDealing(b); return err }},
	} {
		if err := s.open(s.sealed); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range len(s.sealed) * 8 {
			b := bytes.Clone(s.sealed)
			b[i/8] ^= 1 << (i % 8)
			wantRefused(t, fmt.Sprintf("%s, bit %d", name, i), s.open(b))
		}
		wantRefused(t, name+" cut short", s.open(s.sealed[:len(s.sealed)-1]))
		wantRefused(t, name+" and more", s.open(append(bytes.Clone(s.sealed), 0)))
		wantRefused(t, "no "+name, s.open(nil))
	}
}

func TestAttackDealingOfAnotherCeremony(t *testing.T) {
	sealed := seal(t, dealAll(t, ceremony(t, 2, 2))[0])
	other, err := NewKeyGen(Params{2, 2}, []byte("another context"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = other.UnmarshalDealing(sealed)
	wantRefused(t, "a dealing of another ceremony", err)
}

func TestWipe(t *testing.T) {
	c := ceremony(t, 2, 2)
	ds := dealAll(t, c)
	g := finish(t, c, ds)
	nonces, list := g.commit(t, 1, 2)

	d, coefficient := ds[0], ds[0].secret[1]
	d.Wipe()
	d.Wipe()
	if !bytes.Equal(coefficient.Bytes(), make([]byte, 32)) {
		t.Error("a coefficient outlived Wipe")
	}
	_, err := d.Share(1)
	_, err2 := d.MarshalSecret()
	k, secret := g.shares[0], g.shares[0].secret
	k.Wipe()
	k.Wipe()
	if !bytes.Equal(secret.Bytes(), make([]byte, 32)) {
		t.Error("the share outlived Wipe")
	}
	_, err3 := k.Marshal()
	_, err6 := (&KeyShare{}).Marshal()
	_, err7 := (&Dealing{}).MarshalSecret()
	_, _, err4 := k.Commit(rand.Reader)
	_, err5 := k.Sign(nonces[1], g.Group, message, list)
	for i, err := range []error{err, err2, err3, err4, err5, err6, err7} {
		if !errors.Is(err, ErrWiped) {
			t.Errorf("use %d after Wipe: %v", i, err)
		}
	}
	hiding := nonces[2].hiding
	nonces[2].Discard()
	if !bytes.Equal(hiding.Bytes(), make([]byte, 32)) {
		t.Error("the nonce outlived Discard")
	}
}

// holder is how a careless caller keeps secrets: in unexported fields, where
// package fmt calls no methods.
type holder struct {
	share   KeyShare
	sharep  *KeyShare
	shares  []*KeyShare
	dealing Dealing
	nonce   Nonce
}

func TestSecretsDoNotPrint(t *testing.T) {
	c := ceremony(t, 2, 2)
	ds := dealAll(t, c)
	k := finish(t, c, ds).shares[0]
	n, _, err := k.Commit(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, v := range []any{k, *k, ds[0], *ds[0], n, *n, []any{k, n}, holder{*k, k, []*KeyShare{k}, *ds[0], *n}, &holder{*k, k, []*KeyShare{k}, *ds[0], *n}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("text", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "v", v)
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
	}
	if !strings.Contains(out.String(), "frost.KeyShare(redacted)") {
		t.Error("nothing was redacted")
	}
	text := strings.ToLower(out.String())
	for _, s := range append(ds[0].secret, k.secret, n.hiding, n.binding) {
		limbs := strings.Trim(fmt.Sprint(*s), "{}[]")
		b64 := base64.StdEncoding.EncodeToString(s.Bytes())
		decimal := strings.Trim(fmt.Sprint(s.Bytes()), "[]")
		for _, form := range []string{hex.EncodeToString(s.Bytes()), strings.ToLower(b64), decimal, limbs} {
			if strings.Contains(text, form) {
				t.Errorf("a secret was printed as %.8s...", form)
			}
		}
	}
}

func TestNonceIsNotEncoded(t *testing.T) {
	n, _, err := keygen(t, 2, 2).shares[0].Commit(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, err = json.Marshal(n)
	wantRefused(t, "JSON v2", err)
	_, err = stdjson.Marshal(struct{ N *Nonce }{n})
	wantRefused(t, "JSON", err)
	wantRefused(t, "gob", gob.NewEncoder(io.Discard).Encode(n))
}

// A source of randomness that fails, ends or repeats itself makes nothing.
func TestBrokenRandomness(t *testing.T) {
	c := ceremony(t, 2, 2)
	k := keygen(t, 2, 2).shares[0]
	for name, r := range map[string]func() io.Reader{
		"none":      func() io.Reader { return nil },
		"empty":     func() io.Reader { return bytes.NewReader(nil) },
		"too short": func() io.Reader { return io.LimitReader(rand.Reader, 63) },
		"zeros":     func() io.Reader { return zeros{} },
	} {
		d, err := c.Deal(r(), 1)
		if wantRefused(t, name+" dealing", err); d != nil {
			t.Errorf("%s: a dealing came out", name)
		}
		n, _, err := k.Commit(r())
		if wantRefused(t, name+" committing", err); n != nil {
			t.Errorf("%s: a nonce came out", name)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
