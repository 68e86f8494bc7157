package tpm

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

const (
	ccCreatePrimary    = 0x131
	ccSign             = 0x15d
	ccUnseal           = 0x15e
	ccStartAuthSession = 0x176
)

// opens reports whether any 32 bytes in a row of what passed are the key that
// sealed.
func opens(t *testing.T, passed, sealed []byte) bool {
	t.Helper()
	for i := 0; i+32 <= len(passed); i++ {
		block, err := aes.NewCipher(passed[i : i+32])
		if err != nil {
			t.Fatal(err)
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := aead.Open(nil, nil, sealed, nil); err == nil {
			return true
		}
	}
	return false
}

// What sits on the bus while a secret is unsealed reads neither the key that
// comes out of the TPM nor the PIN that goes in, and cannot change the key
// unseen.
func TestAttackInterposerOnUnseal(t *testing.T) {
	e := swtpm.New(t)
	bus := swtpm.NewBus(t, e)
	d, err := Open(bus.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	uri, _ := newKey(t, d, hsm.KindSeal, Guard{PIN: []byte(testPIN)})
	s, err := d.Sealer(t.Context(), uri, pin(testPIN, false))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Seal(t.Context(), []byte("share"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Unseal(t.Context(), sealed, nil); err != nil || string(got) != "share" {
		t.Fatalf("through an interposer that only reads: %q, %v", got, err)
	}
	passed := bus.Passed()
	if len(passed) < 1000 || bytes.Contains(passed, []byte(testPIN)) || opens(t, passed, sealed) {
		t.Errorf("key or PIN passed the bus as they are, or nothing did: %d bytes", len(passed))
	}
	// The search finds a key where there is one.
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	if !opens(t, append(passed[:100:100], key...), aead.Seal(nil, nil, []byte("share"), nil)) {
		t.Error("the search does not find a key that passed")
	}

	changed := 0
	bus.Change(func(code uint32, answer []byte) {
		if code == ccUnseal && len(answer) > 40 {
			answer[20] ^= 1 // in the encrypted key, behind tag, size, code, size of parameters and its own size
			changed++
		}
	})
	if got, err := s.Unseal(t.Context(), sealed, nil); err == nil {
		t.Errorf("a changed answer was taken: %q", got)
	}
	bus.Change(nil)
	if changed == 0 {
		t.Error("the interposer saw no answer to change")
	}
	if got, err := s.Unseal(t.Context(), sealed, nil); err != nil || string(got) != "share" {
		t.Errorf("after it: %q, %v", got, err)
	}
}

// A thief on the bus passes its own key off as the storage root key, so that it
// can follow the sessions that are salted to that.
type thief struct {
	key                    *ecdh.PrivateKey
	zeros                  bool // the last command made the primary key of the zero template: the storage root
	salt, caller, tpm      []byte
	params, nonce, proof   []byte // of the command that proves the PIN
	attributes             byte
	offered, session, seen int
}

func steal(t *testing.T, bus *swtpm.Bus) *thief {
	t.Helper()
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h := &thief{key: key}
	bus.Watch(h.command)
	bus.Change(h.answer)
	return h
}

// sized takes a 16-bit length and as many bytes.
func sized(b []byte) (value, rest []byte) {
	n := 2 + int(binary.BigEndian.Uint16(b))
	return bytes.Clone(b[2:n]), b[n:]
}

func (h *thief) command(b []byte) {
	switch binary.BigEndian.Uint32(b[6:]) {
	case ccCreatePrimary:
		h.zeros = bytes.Contains(b, make([]byte, 32))
	case ccStartAuthSession:
		var secret []byte
		h.caller, b = sized(b[18:]) // behind the salt's key and what is bound to
		secret, _ = sized(b)
		x, y := sized(secret)
		y, _ = sized(y)
		peer, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, x...), y...))
		if err != nil {
			return
		}
		z, err := h.key.ECDH(peer)
		if err != nil {
			return
		}
		h.salt = tpm2.KDFe(crypto.SHA256, z, "SECRET", x, h.key.PublicKey().Bytes()[1:33], 256)
	case ccSign:
		h.seen++
		b = b[22:] // behind key, size of authorisations and session
		h.nonce, b = sized(b)
		h.attributes, b = b[0], b[1:]
		h.proof, h.params = sized(b)
		h.params = bytes.Clone(h.params)
	}
}

func (h *thief) answer(code uint32, b []byte) {
	switch {
	case code == ccCreatePrimary && h.zeros && len(b) > 200:
		end := 20 + int(binary.BigEndian.Uint16(b[18:])) // of the public area, whose last are x and y
		point := h.key.PublicKey().Bytes()
		copy(b[end-66:], point[1:33])
		copy(b[end-32:], point[33:])
		h.offered++
	case code == ccStartAuthSession && len(b) > 20:
		h.session++
		h.tpm, _ = sized(b[14:])
	}
}

// guess returns the PIN that made the proof for the key of this name.
func (h *thief) guess(name []byte, pins ...string) string {
	command := sha256.Sum256(append(append([]byte{0, 0, 1, 0x5d}, name...), h.params...))
	key := tpm2.KDFa(crypto.SHA256, h.salt, "ATH", h.tpm, h.caller, 256)
	for _, pin := range pins {
		m := hmac.New(sha256.New, append(bytes.Clone(key), pin...))
		m.Write(command[:])
		m.Write(h.nonce)
		m.Write(h.tpm)
		m.Write([]byte{h.attributes})
		if hmac.Equal(m.Sum(nil), h.proof) {
			return pin
		}
	}
	return ""
}

// Who sits on the bus and offers a storage root key of its own would get to try
// PINs at home, where no TPM counts. The key's file knows the true one, and no
// session begins under another.
func TestAttackInterposerOffersItsRoot(t *testing.T) {
	e := swtpm.New(t)
	bus := swtpm.NewBus(t, e)
	d, err := Open(bus.Path)
	if err != nil {
		t.Fatal(err)
	}
	uri, _ := newKey(t, d, hsm.KindP256, Guard{PIN: []byte("4711")})
	path := strings.TrimPrefix(uri, "tpm:")
	try := func() (*thief, []byte, error) {
		if err := d.Close(); err != nil { // a new process begins with no key
			t.Fatal(err)
		}
		h := steal(t, bus)
		if d, err = Open(bus.Path); err != nil {
			t.Fatal(err)
		}
		k, err := d.Key(t.Context(), uri, nil, pin("4711", true))
		if err != nil {
			return h, nil, err
		}
		return h, k.(*guardedKey).object.Name(), sign(t.Context(), k)
	}
	if h, _, err := try(); !errors.Is(err, hsm.ErrWrongIdentity) || h.offered == 0 || h.session > 0 || h.seen > 0 {
		t.Errorf("%d roots offered, %d sessions begun, %d proofs of the pin: %v", h.offered, h.session, h.seen, err)
	}
	// Of a file that does not say, the attack works.
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text[bytes.Index(text, []byte("-----")):], 0o600); err != nil {
		t.Fatal(err)
	}
	if h, name, err := try(); name == nil || h.guess(name, "0000", "1234", "4711") != "4711" {
		t.Errorf("the attack is not one: %d roots offered, %d proofs seen: %v", h.offered, h.seen, err)
	}
	d.Close()
}
