package hsmtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"github.com/keyturn/keyturn/hsm"
)

// An Authenticator is a FIDO security key in software that says what a test has
// it say. It is written from OpenSSH's PROTOCOL.u2f and shares no code with
// package hsm.
type Authenticator struct {
	Private     crypto.Signer // *ecdsa.PrivateKey on P-256 or ed25519.PrivateKey
	Application string        // that it signs for
	Enrolled    string        // application that its public key names
	Flags       byte
	Counter     uint32
}

// NewAuthenticator returns one that is touched at each signature.
func NewAuthenticator(application string, private crypto.Signer) *Authenticator {
	return &Authenticator{Private: private, Application: application, Enrolled: application, Flags: 1, Counter: 1}
}

// NewECDSAAuthenticator returns one with a new P-256 key.
func NewECDSAAuthenticator(application string) *Authenticator {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return NewAuthenticator(application, k)
}

// NewEd25519Authenticator returns one with a new Ed25519 key.
func NewEd25519Authenticator(application string) *Authenticator {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return NewAuthenticator(application, k)
}

// Public returns the *hsm.SecurityKey.
func (a *Authenticator) Public() crypto.PublicKey {
	return &hsm.SecurityKey{Key: a.Private.Public(), Application: a.Enrolled}
}

// Info says that it is software.
func (a *Authenticator) Info() hsm.Info {
	return hsm.Info{URI: "ssh-agent:SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Class: hsm.ClassSoftware}
}

// SignMessageContext signs message with flags and counter as they are set.
func (a *Authenticator) SignMessageContext(_ context.Context, message []byte) ([]byte, error) {
	application, digest := sha256.Sum256([]byte(a.Application)), sha256.Sum256(message)
	tail := binary.BigEndian.AppendUint32([]byte{a.Flags}, a.Counter)
	input := slices.Concat(application[:], tail, digest[:])
	hash := crypto.Hash(0)
	if _, ok := a.Private.(*ecdsa.PrivateKey); ok {
		sum := sha256.Sum256(input)
		input, hash = sum[:], crypto.SHA256
	}
	sig, err := a.Private.Sign(rand.Reader, input, hash)
	return append(sig, tail...), err
}

// SignContext refuses: authenticators sign no digests.
func (a *Authenticator) SignContext(context.Context, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("hsmtest: an authenticator signs messages")
}

// Sign refuses likewise.
func (a *Authenticator) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return a.SignContext(context.Background(), nil, nil)
}
