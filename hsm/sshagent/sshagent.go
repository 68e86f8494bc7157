// Package sshagent signs with keys that an SSH agent holds. The agent protocol
// is the one way to a YubiKey's PIV slot, a gpg-agent, a TPM behind
// ssh-tpm-agent and a PKCS#11 token in OpenSSH's own agent that asks for no
// code of theirs in this process.
//
// An agent signs messages and hashes them itself. There is no way to have it
// sign a digest, so a P-256 or FIDO key from here is an [hsm.MessageSigner]: use
// hsm.SignMessage, for SignContext refuses. Nor does an agent agree on secrets:
// who approves with such a key holds no share of any object.
//
// FIDO keys (sk-…) are [hsm.SecurityKey]s: they sign the message under the
// application that they were enrolled for, and only when they are touched.
//
// The protocol says nothing about where a key lives, and in the plain case that
// is the memory of the agent, so keys from here show class "software". A FIDO
// key's type says that it is in an authenticator, which nobody checked, so it
// shows "self-declared". A ceremony that watched a token make the key may enter
// it higher. Whoever
// reaches the socket can sign: never forward the agent to another machine. What
// keyturn signs starts with text ("DSSEv1 ", an origin line) and is neither an
// SSH authentication request nor an SSHSIG blob.
package sshagent

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/keyturn/keyturn/hsm"
)

// DefaultTimeout bounds one operation: a person may have to touch a token or
// answer a prompt of the agent.
const DefaultTimeout = 30 * time.Second

// maxMessage bounds what is signed, in bytes. OpenSSH's agent takes requests of
// up to 256 KiB; a log leaf has less than 64.
const maxMessage = 1 << 17

// Config says where the agent is.
type Config struct {
	Socket  string        // absolute path of its socket; empty: $SSH_AUTH_SOCK
	Timeout time.Duration // of one operation whose context allows more; 0: DefaultTimeout
}

// Open returns the key at uri (ssh-agent:SHA256:…). The key must be pinned, a
// P-256 *ecdsa.PublicKey, an ed25519.PublicKey or an *hsm.SecurityKey; nil takes
// the key with that fingerprint and is for enrolment only. Nothing stays open between operations.
//
// Errors: ErrGone (no agent, or it lacks the key), ErrLocked (it is locked or
// empty, which look the same), ErrWrongIdentity, ErrTimeout.
func Open(ctx context.Context, cfg Config, uri string, pinned crypto.PublicKey) (hsm.MessageSigner, error) {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	if u.Scheme != hsm.SchemeSSHAgent {
		return nil, fmt.Errorf("sshagent: %s is not an ssh-agent: URI", uri)
	}
	if cfg, err = cfg.complete(); err != nil {
		return nil, err
	}
	k := &key{cfg: cfg, info: hsm.Info{URI: u.String(), Class: hsm.ClassSoftware}}
	err = k.do(ctx, func(c agent.ExtendedAgent) error {
		k.ssh, err = find(c, u.Fingerprint)
		return err
	})
	if err == nil {
		k.public, err = publicOf(k.ssh, pinned)
	}
	if err != nil {
		return nil, k.explain("open", err)
	}
	if _, ok := k.public.(*hsm.SecurityKey); ok {
		k.info.Class = hsm.ClassSelfDeclared
	}
	return k, nil
}

// complete fills in what c leaves to defaults.
func (c Config) complete() (Config, error) {
	if c.Socket == "" {
		c.Socket = os.Getenv("SSH_AUTH_SOCK")
	}
	if c.Socket == "" {
		return c, fmt.Errorf("sshagent: %w: SSH_AUTH_SOCK is not set; start ssh-agent or name its socket", hsm.ErrGone)
	}
	if !filepath.IsAbs(c.Socket) {
		return c, fmt.Errorf("sshagent: socket %q must be an absolute path", c.Socket)
	}
	if c.Timeout < 0 {
		return c, fmt.Errorf("sshagent: timeout %v is negative", c.Timeout)
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	return c, nil
}

// find returns the agent's key with this fingerprint.
func find(c agent.ExtendedAgent, fingerprint string) (ssh.PublicKey, error) {
	keys, err := c.List()
	if err != nil {
		return nil, fmt.Errorf("%w: it does not list its keys: %w", hsm.ErrGone, err)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: the agent lists no key; it is locked (ssh-add -X) or empty (ssh-add FILE)", hsm.ErrLocked)
	}
	i := slices.IndexFunc(keys, func(k *agent.Key) bool { return ssh.FingerprintSHA256(k) == fingerprint })
	if i < 0 {
		return nil, fmt.Errorf("%w: it is none of the agent's %d keys (ssh-add -l)", hsm.ErrGone, len(keys))
	}
	return ssh.ParsePublicKey(keys[i].Blob)
}

// publicOf returns the key in the form that charters record, if it is of a type
// that keyturn uses and the pinned one.
func publicOf(k ssh.PublicKey, pinned crypto.PublicKey) (crypto.PublicKey, error) {
	public, err := decode(k)
	if err == nil {
		err = hsm.CheckPublic(public)
	}
	if err != nil {
		return nil, fmt.Errorf("a key of type %s is of no use here; want ecdsa-sha2-nistp256 or ssh-ed25519, plain or in a FIDO authenticator (sk-): %w", k.Type(), err)
	}
	if pinned == nil {
		return public, nil
	}
	return public, hsm.SamePublic(pinned, public)
}

func decode(k ssh.PublicKey) (crypto.PublicKey, error) {
	if isFIDO(k.Type()) {
		return hsm.ParseSecurityKey(k.Marshal())
	}
	holder, ok := k.(ssh.CryptoPublicKey)
	if !ok {
		return nil, errors.New("a type that has no public key of its own")
	}
	return holder.CryptoPublicKey(), nil
}

func isFIDO(keyType string) bool {
	return keyType == ssh.KeyAlgoSKECDSA256 || keyType == ssh.KeyAlgoSKED25519
}

type key struct {
	cfg    Config
	ssh    ssh.PublicKey
	public crypto.PublicKey
	info   hsm.Info
}

func (k *key) Public() crypto.PublicKey { return k.public }
func (k *key) Info() hsm.Info           { return k.info }

func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// SignContext signs with an Ed25519 key, whose digest is the message. With a
// P-256 or FIDO key it refuses.
func (k *key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := hsm.CheckInput(k.public, digest, opts); err != nil {
		return nil, err
	}
	if opts.HashFunc() != 0 {
		return nil, k.explain("sign", errors.New("an SSH agent hashes by itself and cannot sign a digest; sign the message (hsm.SignMessage)"))
	}
	return k.SignMessageContext(ctx, digest)
}

// SignMessageContext signs message. Errors: ErrGone, ErrLocked (also: the
// agent, its user or its token refused), ErrWrongIdentity (a signature by
// another key), ErrPresence (by a FIDO key that
// nobody touched), ErrTimeout.
func (k *key) SignMessageContext(ctx context.Context, message []byte) ([]byte, error) {
	if len(message) > maxMessage {
		return nil, k.explain("sign", fmt.Errorf("a message of %d bytes is over %d", len(message), maxMessage))
	}
	var sig *ssh.Signature
	err := k.do(ctx, func(c agent.ExtendedAgent) error {
		var refusal error
		if sig, refusal = c.Sign(k.ssh, message); refusal == nil {
			return nil
		}
		// The agent does not say why. If it still has the key, it or somebody
		// behind it said no.
		if _, err := find(c, ssh.FingerprintSHA256(k.ssh)); err != nil {
			return err
		}
		return fmt.Errorf("%w: the agent has the key and refused to sign: %w", hsm.ErrLocked, refusal)
	})
	if err != nil {
		return nil, k.explain("sign", err)
	}
	raw, err := convert(k.ssh.Type(), sig)
	if err == nil {
		err = hsm.VerifyMessage(k.public, message, raw)
	}
	if errors.Is(err, hsm.ErrPresence) {
		return nil, k.explain("sign", err)
	}
	if err != nil {
		return nil, k.explain("sign", fmt.Errorf("%w: %w", hsm.ErrWrongIdentity, err))
	}
	return raw, nil
}

// explain says what was attempted with which key.
func (k *key) explain(what string, err error) error {
	return fmt.Errorf("sshagent: %s with %s: %w", what, k.info.URI, err)
}
