// Package hsmtest is the suite that every backend of package hsm passes, run
// against the real thing.
package hsmtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
)

// Backend describes what is to be exercised. A nil function says that the
// backend has no such key, and leaves that part out; a backend with nothing
// fails.
type Backend struct {
	Class hsm.Class // that every key must show

	// The openers pin the public key that is given; nil takes what is there.
	P256      func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error)
	Ed25519   func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error)
	Security  func(ctx context.Context, pinned crypto.PublicKey) (hsm.Key, error)
	Decrypter func(ctx context.Context, pinned *ecdh.PublicKey) (hsm.Decrypter, error)

	// Sealer and OtherSealer open two different keys, and both or none are set.
	Sealer, OtherSealer func(ctx context.Context) (hsm.Sealer, error)

	Maker *Maker // nil for a backend that makes no keys
}

// Maker makes keys of these kinds.
type Maker struct {
	Kinds []hsm.Kind
	// Generate makes a key under a name and returns its public key, nil for a sealing key.
	Generate func(ctx context.Context, name string, kind hsm.Kind) (public any, err error)
	// Open opens that key, pinned: an hsm.Key, an hsm.Decrypter or an hsm.Sealer.
	Open func(ctx context.Context, name string, kind hsm.Kind, pinned any) (any, error)
}

// Run exercises all that b has, each part as a subtest.
func Run(t *testing.T, b Backend) {
	if b.P256 == nil && b.Ed25519 == nil && b.Security == nil && b.Decrypter == nil && b.Sealer == nil {
		t.Fatal("hsmtest: the backend offers no key")
	}
	if b.P256 != nil {
		t.Run("P256", func(t *testing.T) { signing(t, b.Class, b.P256, &ecdsa.PublicKey{}) })
	}
	if b.Ed25519 != nil {
		t.Run("Ed25519", func(t *testing.T) { signing(t, b.Class, b.Ed25519, ed25519.PublicKey{}) })
	}
	if b.Security != nil {
		t.Run("Security", func(t *testing.T) { signing(t, b.Class, b.Security, &hsm.SecurityKey{}) })
	}
	if b.Decrypter != nil {
		t.Run("Decrypter", func(t *testing.T) { agreement(t, b.Class, b.Decrypter) })
	}
	if b.Sealer != nil {
		t.Run("Sealer", func(t *testing.T) { sealing(t, b) })
	}
	if b.Maker != nil {
		for _, kind := range b.Maker.Kinds {
			t.Run("generate/"+string(kind), func(t *testing.T) { generation(t, b.Maker, kind) })
		}
		t.Run("generate/unknown", func(t *testing.T) {
			if _, err := b.Maker.Generate(context.Background(), "unknown", "p384"); err == nil {
				t.Error("made a key of an unknown kind")
			}
			if _, err := b.Maker.Open(context.Background(), "unknown", hsm.KindP256, nil); err == nil {
				t.Error("what was refused is there")
			}
		})
	}
}

func signing(t *testing.T, class hsm.Class, open func(context.Context, crypto.PublicKey) (hsm.Key, error), want crypto.PublicKey) {
	ctx := context.Background()
	k := must(open(ctx, nil))(t)
	if reflect.TypeOf(k.Public()) != reflect.TypeOf(want) {
		t.Fatalf("public key is a %T, want a %T", k.Public(), want)
	}
	checkInfo(t, k.Info(), class)
	t.Run("sign", func(t *testing.T) { signsAndVerifies(t, k) })
	t.Run("refuse", func(t *testing.T) { refusesOtherInput(t, k) })
	t.Run("cancel", func(t *testing.T) {
		refusesWhenDone(t, func(ctx context.Context) ([]byte, error) { return hsm.SignMessage(ctx, k, []byte("m")) })
	})
	t.Run("pin", func(t *testing.T) {
		if _, err := open(ctx, k.Public()); err != nil {
			t.Errorf("open with its own public key: %v", err)
		}
		for _, other := range []crypto.PublicKey{newP256(t), newEd25519(t)} {
			if _, err := open(ctx, other); !errors.Is(err, hsm.ErrWrongIdentity) {
				t.Errorf("open pinned to another %T: %v, want ErrWrongIdentity", other, err)
			}
		}
	})
}

func isType[T any](v any) bool {
	_, ok := v.(T)
	return ok
}

// signsAndVerifies signs messages of many lengths, 16 at a time.
func signsAndVerifies(t *testing.T, k hsm.Key) {
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			message := bytes.Repeat([]byte{byte(i)}, i*i*i) // up to 3375 bytes
			sig, err := hsm.SignMessage(context.Background(), k, message)
			if err != nil {
				t.Errorf("sign %d bytes: %v", len(message), err)
				return
			}
			if err := hsm.VerifyMessage(k.Public(), message, sig); err != nil {
				t.Errorf("verify %d bytes: %v", len(message), err)
			}
			if err := hsm.VerifyMessage(k.Public(), append(message, 0), sig); err == nil {
				t.Errorf("the signature over %d bytes verifies over one more", len(message))
			}
			sig[len(sig)/2] ^= 1
			if err := hsm.VerifyMessage(k.Public(), message, sig); err == nil {
				t.Errorf("a flipped signature verifies")
			}
		})
	}
	all.Wait()
}

func refusesOtherInput(t *testing.T, k hsm.Key) {
	digest := sha256.Sum256([]byte("m"))
	tests := []struct {
		name  string
		input []byte
		opts  crypto.SignerOpts
		p256  bool // whether a P-256 key is to be asked this
		ed    bool
	}{
		{"no hash named", digest[:], nil, true, true},
		{"SHA-512 named", make([]byte, 64), crypto.SHA512, true, true},
		{"SHA-1 named", make([]byte, 20), crypto.SHA1, true, true},
		{"digest too short", digest[:31], crypto.SHA256, true, true},
		{"digest too long", append(digest[:], 0), crypto.SHA256, true, true},
		{"empty digest", nil, crypto.SHA256, true, true},
		{"unhashed", digest[:], crypto.Hash(0), true, false},
		{"prehashed", digest[:], crypto.SHA256, false, true},
		{"with a context", digest[:], &ed25519.Options{Context: "c"}, true, true},
	}
	for _, test := range tests {
		if isType[*ecdsa.PublicKey](k.Public()) && !test.p256 || isType[ed25519.PublicKey](k.Public()) && !test.ed {
			continue
		}
		if _, err := k.SignContext(context.Background(), test.input, test.opts); err == nil {
			t.Errorf("%s: signed", test.name)
		}
	}
}

func agreement(t *testing.T, class hsm.Class, open func(context.Context, *ecdh.PublicKey) (hsm.Decrypter, error)) {
	ctx := context.Background()
	d := must(open(ctx, nil))(t)
	checkInfo(t, d.Info(), class)
	t.Run("agree", func(t *testing.T) {
		for round := 0; round < 2; { // then with a secret that starts with a zero byte
			other := must(ecdh.P256().GenerateKey(rand.Reader))(t)
			want := must(other.ECDH(d.PublicKey()))(t)
			if (want[0] == 0) != (round == 1) {
				continue
			}
			got := must(d.ECDHContext(ctx, other.PublicKey()))(t)
			if !bytes.Equal(got, want) {
				t.Fatalf("agreed on %d other bytes than crypto/ecdh, of %d", len(got), len(want))
			}
			round++
		}
	})
	t.Run("refuse", func(t *testing.T) {
		x25519 := must(ecdh.X25519().GenerateKey(rand.Reader))(t)
		for _, peer := range []*ecdh.PublicKey{nil, x25519.PublicKey()} {
			if _, err := d.ECDHContext(ctx, peer); err == nil {
				t.Errorf("agreed with %v", peer)
			}
		}
	})
	t.Run("HPKE", func(t *testing.T) { opensHPKE(t, d) })
	t.Run("cancel", func(t *testing.T) {
		other := must(ecdh.P256().GenerateKey(rand.Reader))(t)
		refusesWhenDone(t, func(ctx context.Context) ([]byte, error) { return d.ECDHContext(ctx, other.PublicKey()) })
	})
	t.Run("pin", func(t *testing.T) {
		if _, err := open(ctx, d.PublicKey()); err != nil {
			t.Errorf("open with its own public key: %v", err)
		}
		other := must(ecdh.P256().GenerateKey(rand.Reader))(t)
		if _, err := open(ctx, other.PublicKey()); !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("open pinned to another key: %v, want ErrWrongIdentity", err)
		}
	})
}

func opensHPKE(t *testing.T, d hsm.Decrypter) {
	kdf, aead, info, secret := hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte("info"), []byte("a share")
	public := must(hpke.NewDHKEMPublicKey(d.PublicKey()))(t)
	ciphertext := must(hpke.Seal(public, kdf, aead, info, secret))(t)
	private := must(hsm.HPKEPrivate(context.Background(), d))(t)
	if got := must(hpke.Open(private, kdf, aead, info, ciphertext))(t); !bytes.Equal(got, secret) {
		t.Errorf("opened %q, want %q", got, secret)
	}
	if _, err := hpke.Open(private, kdf, aead, []byte("other info"), ciphertext); err == nil {
		t.Error("opened under other info")
	}
	done, cancel := context.WithCancel(context.Background())
	cancel()
	private = must(hsm.HPKEPrivate(done, d))(t)
	if _, err := hpke.Open(private, kdf, aead, info, ciphertext); err == nil {
		t.Error("opened under a context that was over")
	}
}

func sealing(t *testing.T, b Backend) {
	ctx := context.Background()
	s, other := must(b.Sealer(ctx))(t), must(b.OtherSealer(ctx))(t)
	checkInfo(t, s.Info(), b.Class)
	secret, ad := bytes.Repeat([]byte{7}, 32), []byte("share 3 of epoch 1")
	sealed := must(s.Seal(ctx, secret, ad))(t)
	if bytes.Contains(sealed, secret) {
		t.Error("the secret stands in the sealed bytes")
	}
	if again := must(s.Seal(ctx, secret, ad))(t); bytes.Equal(again, sealed) {
		t.Error("two seals of one secret are the same")
	}
	if got := must(s.Unseal(ctx, sealed, ad))(t); !bytes.Equal(got, secret) {
		t.Errorf("unsealed %x, want %x", got, secret)
	}
	if got := must(s.Unseal(ctx, must(s.Seal(ctx, secret[:1], nil))(t), nil))(t); !bytes.Equal(got, secret[:1]) {
		t.Errorf("one byte without associated data came back as %x", got)
	}
	refuse := func(what string, by hsm.Sealer, sealed, ad []byte) {
		if _, err := by.Unseal(ctx, sealed, ad); err == nil {
			t.Errorf("unsealed %s", what)
		}
	}
	refuse("with other associated data", s, sealed, []byte("share 4 of epoch 1"))
	refuse("without associated data", s, sealed, nil)
	refuse("by another key", other, sealed, ad)
	refuse("nothing", s, nil, ad)
	refuse("with a byte too many", s, append(bytes.Clone(sealed), 0), ad)
	for i := range sealed {
		refuse("cut short", s, sealed[:i], ad)
		tampered := bytes.Clone(sealed)
		tampered[i] ^= 0x80
		refuse("tampered with", s, tampered, ad)
	}
	if _, err := s.Seal(ctx, nil, ad); err == nil {
		t.Error("sealed nothing")
	}
	if got := must(s.Unseal(ctx, sealed, ad))(t); !bytes.Equal(got, secret) {
		t.Errorf("after the refusals: unsealed %x, want %x", got, secret)
	}
	t.Run("cancel", func(t *testing.T) {
		refusesWhenDone(t, func(ctx context.Context) ([]byte, error) { return s.Seal(ctx, secret, ad) })
		refusesWhenDone(t, func(ctx context.Context) ([]byte, error) { return s.Unseal(ctx, sealed, ad) })
	})
}

// refusesWhenDone calls op under contexts that are over.
func generation(t *testing.T, m *Maker, kind hsm.Kind) {
	ctx := context.Background()
	first, second := string(kind)+" 1", string(kind)+" 2"
	public := must(m.Generate(ctx, first, kind))(t)
	works(t, must(m.Open(ctx, first, kind, public))(t), public)
	if _, err := m.Generate(ctx, first, kind); err == nil {
		t.Error("made a second key under one name")
	}
	works(t, must(m.Open(ctx, first, kind, public))(t), public)
	other := must(m.Generate(ctx, second, kind))(t)
	if kind == hsm.KindSeal {
		if public != nil || other != nil {
			t.Errorf("a sealing key has a public key: %v, %v", public, other)
		}
		return
	}
	if _, err := m.Open(ctx, second, kind, public); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("the second key pinned to the first one's public key: %v, want ErrWrongIdentity", err)
	}
	works(t, must(m.Open(ctx, second, kind, other))(t), other)
}

// works uses a key that was made: it has to be the private part of public.
func works(t *testing.T, key, public any) {
	t.Helper()
	ctx, message := context.Background(), []byte("message")
	switch k := key.(type) {
	case hsm.Decrypter:
		peer := must(ecdh.P256().GenerateKey(rand.Reader))(t)
		got := must(k.ECDHContext(ctx, peer.PublicKey()))(t)
		if want := must(peer.ECDH(public.(*ecdh.PublicKey)))(t); !bytes.Equal(got, want) {
			t.Error("the key agrees on something else than its public key does")
		}
	case hsm.Sealer:
		if got := must(k.Unseal(ctx, must(k.Seal(ctx, message, nil))(t), nil))(t); !bytes.Equal(got, message) {
			t.Errorf("unsealed %q, want %q", got, message)
		}
	case hsm.Key:
		if err := hsm.VerifyMessage(public, message, must(hsm.SignMessage(ctx, k, message))(t)); err != nil {
			t.Error(err)
		}
	default:
		t.Fatalf("opened a %T", key)
	}
}

func refusesWhenDone(t *testing.T, op func(context.Context) ([]byte, error)) {
	t.Helper()
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if out, err := op(cancelled); out != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %d bytes and %v, want context.Canceled", len(out), err)
	}
	late, cancel := context.WithDeadline(context.Background(), time.Unix(1, 0))
	defer cancel()
	if out, err := op(late); out != nil || !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("past its deadline: got %d bytes and %v, want ErrTimeout", len(out), err)
	}
}

func checkInfo(t *testing.T, info hsm.Info, class hsm.Class) {
	t.Helper()
	if info.Class != class || !class.Valid() {
		t.Errorf("class is %q, want %q", info.Class, class)
	}
	u, err := hsm.ParseURI(info.URI)
	if err != nil {
		t.Errorf("its own URI: %v", err)
	} else if u.String() != info.URI {
		t.Errorf("URI %s is not in canonical form %s", info.URI, u)
	}
}

// must passes a value on or fails the test.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newP256(t *testing.T) *ecdsa.PublicKey {
	t.Helper()
	return &must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t).PublicKey
}

func newEd25519(t *testing.T) ed25519.PublicKey {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	return must(pub, err)(t)
}
