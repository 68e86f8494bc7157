// Package file holds keys in files: software keys for development charters,
// tests and rehearsals. Whoever reads the file has the key, so their class is
// always "software", every document they touch says so, and a production
// charter refuses them.
//
// A private key is PKCS#8 in PEM, as openssl writes it. Such a file does not
// say whether its P-256 key signs or agrees: make one file for each, since
// enrolment refuses one public key in two roles. A sealing key is 32 random
// bytes in PEM.
package file

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/durable"
)

const (
	privatePEM = "PRIVATE KEY" // RFC 7468, section 10
	sealPEM    = "KEYTURN SEAL KEY"
	maxFile    = 16 << 10 // bytes; a PEM key is under 300
	maxSecret  = 4 << 10  // bytes that Seal takes, as on a token
)

// Open returns the signing key at uri (file:PATH). The key must be pinned,
// a P-256 *ecdsa.PublicKey or an ed25519.PublicKey; nil takes what is there and
// is for enrolment only.
func Open(uri string, pinned crypto.PublicKey) (hsm.Key, error) {
	info, private, err := readPrivate(uri)
	if err != nil {
		return nil, err
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("file: %s holds a %T, which does not sign", uri, private)
	}
	if err := checkPublic(uri, pinned, signer.Public()); err != nil {
		return nil, err
	}
	return &key{signer, info}, nil
}

// OpenDecrypter returns the agreement key at uri (file:PATH). The key must be
// pinned; nil takes what is there and is for enrolment only.
func OpenDecrypter(uri string, pinned *ecdh.PublicKey) (hsm.Decrypter, error) {
	info, private, err := readPrivate(uri)
	if err != nil {
		return nil, err
	}
	p256, ok := private.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("file: %s holds a %T, HPKE needs P-256", uri, private)
	}
	agreement, err := p256.ECDH()
	if err != nil {
		return nil, fmt.Errorf("file: %s: %w", uri, err)
	}
	var pin any
	if pinned != nil {
		pin = pinned
	}
	if err := checkPublic(uri, pin, agreement.PublicKey()); err != nil {
		return nil, err
	}
	return &decrypter{agreement, info}, nil
}

// OpenSealer returns the sealing key at uri (file:PATH).
func OpenSealer(uri string) (hsm.Sealer, error) {
	info, secret, err := read(uri, sealPEM)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	if len(secret) != 32 {
		return nil, fmt.Errorf("file: %s holds %d bytes, a sealing key has 32", uri, len(secret))
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, fmt.Errorf("file: %s: %w", uri, err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("file: %s: %w", uri, err)
	}
	return &sealer{aead, info}, nil
}

// Generate makes a key of the given kind in a new file that only its owner can
// read, and returns its public key: *ecdsa.PublicKey, ed25519.PublicKey,
// *ecdh.PublicKey, or nil for a sealing key. It never overwrites.
func Generate(uri string, kind hsm.Kind) (any, error) {
	u, err := parse(uri)
	if err != nil {
		return nil, err
	}
	block, public, err := generate(kind)
	if err != nil {
		return nil, err
	}
	defer clear(block.Bytes)
	text := pem.EncodeToMemory(block)
	defer clear(text)
	if err := durable.Create(u.Path, text, 0o600); err != nil {
		return nil, fmt.Errorf("file: write new key %s: %w", uri, err)
	}
	return public, nil
}

func generate(kind hsm.Kind) (*pem.Block, any, error) {
	var private, public any
	switch kind {
	case hsm.KindP256:
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, fmt.Errorf("file: generate: %w", err)
		}
		private, public = k, &k.PublicKey
	case hsm.KindEd25519:
		pub, k, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, nil, fmt.Errorf("file: generate: %w", err)
		}
		private, public = k, pub
	case hsm.KindECDH:
		k, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			return nil, nil, fmt.Errorf("file: generate: %w", err)
		}
		private, public = k, k.PublicKey()
	case hsm.KindSeal:
		secret := make([]byte, 32)
		rand.Read(secret) // never fails, see crypto/rand
		return &pem.Block{Type: sealPEM, Bytes: secret}, nil, nil
	default:
		return nil, nil, fmt.Errorf("file: generate: unknown kind of key %q", kind)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("file: encode new key: %w", err)
	}
	return &pem.Block{Type: privatePEM, Bytes: der}, public, nil
}

func parse(uri string) (hsm.URI, error) {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return u, err
	}
	if u.Scheme != hsm.SchemeFile {
		return u, fmt.Errorf("file: %s is not a file: URI", uri)
	}
	return u, nil
}

// read returns the bytes of the one PEM block in the file that uri names. The
// caller wipes them.
func read(uri, blockType string) (hsm.Info, []byte, error) {
	u, err := parse(uri)
	if err != nil {
		return hsm.Info{}, nil, err
	}
	text, err := readSecret(u.Path)
	defer clear(text)
	if errors.Is(err, os.ErrNotExist) {
		return hsm.Info{}, nil, fmt.Errorf("file: open %s: %w: %w", uri, hsm.ErrGone, err)
	}
	if err != nil {
		return hsm.Info{}, nil, fmt.Errorf("file: open %s: %w", uri, err)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != blockType || len(rest) != 0 {
		return hsm.Info{}, nil, fmt.Errorf("file: %s is not exactly one PEM block %q", uri, blockType)
	}
	return hsm.Info{URI: u.String(), Class: hsm.ClassSoftware}, block.Bytes, nil
}

// readSecret reads a regular file that nobody but its owner can open.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !stat.Mode().IsRegular() || stat.Size() > maxFile {
		return nil, fmt.Errorf("not a regular file of at most %d bytes", maxFile)
	}
	if perm := stat.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("mode %04o lets others at the key; chmod 600 it, or better make a new key", perm)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func readPrivate(uri string) (hsm.Info, any, error) {
	info, der, err := read(uri, privatePEM)
	if err != nil {
		return info, nil, err
	}
	defer clear(der)
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return info, nil, fmt.Errorf("file: %s is not a PKCS#8 private key", uri)
	}
	return info, private, nil
}

// checkPublic refuses a key of a type that keyturn does not use, and one that
// is not the pinned one.
func checkPublic(uri string, pinned, found any) error {
	if err := hsm.CheckPublic(found); err != nil {
		return fmt.Errorf("file: %s: %w", uri, err)
	}
	if pinned == nil {
		return nil
	}
	if err := hsm.SamePublic(pinned, found); err != nil {
		return fmt.Errorf("file: %s: %w", uri, err)
	}
	return nil
}

type key struct {
	crypto.Signer
	info hsm.Info
}

func (k *key) Info() hsm.Info { return k.info }

func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

func (k *key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := hsm.ContextError(ctx); err != nil {
		return nil, fmt.Errorf("file: sign with %s: %w", k.info.URI, err)
	}
	if err := hsm.CheckInput(k.Public(), digest, opts); err != nil {
		return nil, err
	}
	sig, err := k.Signer.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("file: sign with %s: %w", k.info.URI, err)
	}
	return sig, nil
}

type decrypter struct {
	*ecdh.PrivateKey
	info hsm.Info
}

func (d *decrypter) Info() hsm.Info { return d.info }

func (d *decrypter) ECDHContext(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	if err := hsm.ContextError(ctx); err != nil {
		return nil, fmt.Errorf("file: agree with %s: %w", d.info.URI, err)
	}
	if err := hsm.CheckPublic(peer); err != nil {
		return nil, err
	}
	return d.PrivateKey.ECDH(peer)
}

// ECDH is ECDHContext without a deadline.
func (d *decrypter) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return d.ECDHContext(context.Background(), peer)
}

type sealer struct {
	aead cipher.AEAD // puts a random nonce of 12 bytes in front
	info hsm.Info
}

func (s *sealer) Info() hsm.Info { return s.info }

func (s *sealer) Seal(ctx context.Context, plaintext, ad []byte) ([]byte, error) {
	if err := hsm.ContextError(ctx); err != nil {
		return nil, fmt.Errorf("file: seal with %s: %w", s.info.URI, err)
	}
	if len(plaintext) == 0 || len(plaintext) > maxSecret {
		return nil, fmt.Errorf("file: seal with %s: a secret has 1 to %d bytes, not %d", s.info.URI, maxSecret, len(plaintext))
	}
	return s.aead.Seal(nil, nil, plaintext, ad), nil
}

func (s *sealer) Unseal(ctx context.Context, sealed, ad []byte) ([]byte, error) {
	if err := hsm.ContextError(ctx); err != nil {
		return nil, fmt.Errorf("file: unseal with %s: %w", s.info.URI, err)
	}
	plaintext, err := s.aead.Open(nil, nil, sealed, ad)
	if err != nil {
		return nil, fmt.Errorf("file: unseal with %s: not sealed by this key with this associated data", s.info.URI)
	}
	return plaintext, nil
}
