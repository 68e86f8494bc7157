package keys

import (
	"context"
	"crypto/ecdh"
	"io"
	"time"

	"crypto"

	"github.com/keyturn/keyturn/hsm"
)

// slowAfter is how long an operation may take before the person in front of the
// token is told that it may want a touch: no interface says so beforehand.
const slowAfter = time.Second

// A patient key tells that it waits.
type patient struct {
	hsm.Key
	waits func()
}

func (k patient) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	defer time.AfterFunc(slowAfter, k.waits).Stop()
	return k.Key.SignContext(ctx, digest, opts)
}

func (k patient) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// patientMessage is patient for a key that takes whole messages.
type patientMessage struct {
	patient
	signer hsm.MessageSigner
}

func (k patientMessage) SignMessageContext(ctx context.Context, message []byte) ([]byte, error) {
	defer time.AfterFunc(slowAfter, k.waits).Stop()
	return k.signer.SignMessageContext(ctx, message)
}

// patientDecrypter is patient for agreement keys.
type patientDecrypter struct {
	hsm.Decrypter
	waits func()
}

func (d patientDecrypter) ECDHContext(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	defer time.AfterFunc(slowAfter, d.waits).Stop()
	return d.Decrypter.ECDHContext(ctx, peer)
}

func (d patientDecrypter) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return d.ECDHContext(context.Background(), peer)
}

// waiting wraps a key if somebody wants to be told.
func (r *Ring) waiting(k hsm.Key) hsm.Key {
	if r.Waits == nil {
		return k
	}
	p := patient{k, func() { r.Waits(k.Info()) }}
	if m, ok := k.(hsm.MessageSigner); ok {
		return patientMessage{p, m}
	}
	return p
}

func (r *Ring) waitingDecrypter(d hsm.Decrypter) hsm.Decrypter {
	if r.Waits == nil {
		return d
	}
	return patientDecrypter{d, func() { r.Waits(d.Info()) }}
}
