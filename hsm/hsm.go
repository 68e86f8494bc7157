// Package hsm says what a key is to keyturn, whatever holds it.
//
// A [Key] signs, a [Decrypter] agrees on a secret (which is all that HPKE asks
// of the private half), and a [Sealer] wraps a small secret under a key that
// stays where it is. Each is named by a URI (see [ParseURI]), carries a [Class]
// that says how much is known about its custody, and is bound to the public key
// that was recorded at its enrolment: a token that was swapped or initialised
// again answers [ErrWrongIdentity], and no signature leaves before it was
// checked against that public key.
//
// The backends live in directories below this one: PKCS#11 (through a helper
// process) in token, TPM keys in tpm, Vault's transit engine in vault, the keys
// of an SSH agent in sshagent, development keys in file. Each has to pass the
// suite in hsmtest. Every error here means no.
package hsm

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/hpke"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/hsm/secret"
)

// The ways in which a key says no. Backends wrap them with what was attempted;
// test with [errors.Is].
var (
	// ErrWrongPIN: the token refused the PIN. Never try the same one again
	// unattended: tries are counted.
	ErrWrongPIN = errors.New("wrong pin")
	// ErrLocked: the token takes no PIN any more, or one more wrong try would
	// lock it and nobody is there to answer for that try.
	ErrLocked = errors.New("token locked")
	// ErrGone: the token, the key or the process that speaks to it is not there.
	ErrGone = errors.New("key gone")
	// ErrSealed: the store that holds the key is itself sealed and must be
	// opened by its own operators first.
	ErrSealed = errors.New("key store sealed")
	// ErrAuthExpired: the login to the store ended; log in again.
	ErrAuthExpired = errors.New("authorisation expired")
	// ErrDenied: the store knows who asks and says no. Logging in again does not
	// help; whoever writes the store's policies must.
	ErrDenied = errors.New("permission denied")
	// ErrWrongIdentity: a key answered, but not the one that was pinned.
	ErrWrongIdentity = errors.New("not the pinned key")
	// ErrPresence: an authenticator signed untouched, or with a key that is not
	// bound to it.
	ErrPresence = errors.New("no proof of presence")
	// ErrTimeout: no answer before the deadline. The operation may have run.
	ErrTimeout = errors.New("timed out")
)

// PIN asks a person or a protected store for a PIN. The prompt names the token
// and says what is unusual about its state. The caller of a PIN wipes what it
// returns after use; an error or nothing means no.
type PIN func(ctx context.Context, prompt string) (*secret.Buffer, error)

// Info describes where a key lives. It is shown to people and copied into
// documents, so backends put only printable text into it.
type Info struct {
	URI          string // names the key, as ParseURI reads it
	Class        Class  // what is known about its custody
	Token        string // label of the device, empty where there is none
	Manufacturer string // who made the device, as the device says
}

// Key is a signing key, P-256 or Ed25519, or a [SecurityKey], which is a
// MessageSigner.
//
// For P-256, digest is a SHA-256 digest (32 bytes), opts is crypto.SHA256, and
// the signature is ASN.1 DER. For Ed25519, digest is the message itself and
// opts is crypto.Hash(0); the signature is 64 bytes (RFC 8032). Everything else
// is refused. The random source of Sign is ignored: the holder has its own.
type Key interface {
	crypto.Signer
	SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
	Info() Info
}

// MessageSigner is a Key whose holder takes whole messages and hashes them
// itself, as SSH agents do. For P-256 and security keys its SignContext and Sign
// refuse, since nobody can have it sign a digest; [SignMessage] works with every key.
type MessageSigner interface {
	Key
	SignMessageContext(ctx context.Context, message []byte) ([]byte, error)
}

// Decrypter is a P-256 key agreement key: the private half of an HPKE key pair
// (RFC 9180, DHKEM). The shared secret is the x coordinate, 32 bytes.
type Decrypter interface {
	ecdh.KeyExchanger
	ECDHContext(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error)
	Info() Info
}

// Sealer wraps a small secret with associated data. Unseal returns an error
// unless sealed came from Seal of the same key with the same ad.
type Sealer interface {
	Seal(ctx context.Context, plaintext, ad []byte) ([]byte, error)
	Unseal(ctx context.Context, sealed, ad []byte) ([]byte, error)
	Info() Info
}

// HPKEPrivate returns d as the private key of DHKEM(P-256, HKDF-SHA256). Each
// opened ciphertext costs one ECDHContext, made under ctx.
func HPKEPrivate(ctx context.Context, d Decrypter) (hpke.PrivateKey, error) {
	if d == nil || d.Curve() != ecdh.P256() {
		return nil, errors.New("hsm: an HPKE key must be a P-256 agreement key")
	}
	k, err := hpke.NewDHKEMPrivateKey(bound{d, ctx})
	if err != nil {
		return nil, fmt.Errorf("hsm: use %s for HPKE: %w", d.Info().URI, err)
	}
	return k, nil
}

// bound gives a Decrypter the context that ecdh.KeyExchanger has no room for.
type bound struct {
	Decrypter
	ctx context.Context
}

func (b bound) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return b.ECDHContext(b.ctx, peer)
}

// ContextError returns nil while ctx lives, and otherwise an error that is both
// the context's own and, if the deadline passed, [ErrTimeout].
func ContextError(ctx context.Context) error {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	}
	return err
}
