// Package keys opens the keys that URIs name. It is the one place where all
// backends meet.
package keys

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"fmt"
	"os"
	"sync"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/hsm/sshagent"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/hsm/tpm"
	"github.com/keyturn/keyturn/hsm/vault"
)

// A Ring opens keys and keeps their tokens, the TPM and the login to Vault open
// until Close. A PIN is asked for once for each token, and for each TPM key.
type Ring struct {
	pin hsm.PIN

	// Attended: a person is there to answer for the last PIN try before a token
	// locks. Waits, if not nil, is told of each operation of a token or an agent
	// that takes more than a second. Both are to be set before use.
	Attended bool
	Waits    func(hsm.Info)

	mu     sync.Mutex
	tokens map[string]*token.Token
	tpm    *tpm.TPM     // nil before its first key
	vault  *vault.Store // nil before its first key
}

// New returns a ring that asks pin.
func New(pin hsm.PIN) *Ring { return &Ring{pin: pin, tokens: map[string]*token.Token{}} }

// envTPM names the TPM of tpm: keys: a device, or unix:/SOCKET of an emulator.
const envTPM = "KEYTURN_TPM"

// TPM opens this machine's TPM.
func (r *Ring) TPM() (*tpm.TPM, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tpm == nil {
		path := os.Getenv(envTPM)
		if path == "" {
			path = "/dev/tpmrm0"
		}
		t, err := tpm.Open(path)
		if err != nil {
			return nil, fmt.Errorf("%w (%s names another TPM)", err, envTPM)
		}
		r.tpm = t
	}
	return r.tpm, nil
}

// Access is where the PINs of tpm: keys come from.
func (r *Ring) Access() tpm.Access { return tpm.Access{PIN: r.pin, Interactive: r.Attended} }

// Token opens the token that a pkcs11: URI names.
func (r *Ring) Token(ctx context.Context, uri string) (*token.Token, hsm.URI, error) {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return nil, u, err
	}
	if u.Scheme != hsm.SchemePKCS11 {
		return nil, u, fmt.Errorf("keys: %s is not on a PKCS#11 token", uri)
	}
	whole := u
	whole.Object = ""
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.tokens[whole.String()]; ok {
		return t, u, nil
	}
	t, err := token.Open(ctx, token.Config{Interactive: r.Attended}, whole.String(), r.pin)
	if err != nil {
		return nil, u, err
	}
	r.tokens[whole.String()] = t
	return t, u, nil
}

// Key opens a signing key. pinned is its public key as the charter has it;
// nil only while enrolling.
func (r *Ring) Key(ctx context.Context, uri string, pinned crypto.PublicKey) (hsm.Key, error) {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case hsm.SchemePKCS11:
		t, u, err := r.Token(ctx, uri)
		if err != nil {
			return nil, err
		}
		k, err := t.Key(ctx, u.Object, pinned)
		if err != nil {
			return nil, err
		}
		return r.waiting(k), nil
	case hsm.SchemeVault:
		v, err := r.Vault(ctx)
		if err != nil {
			return nil, err
		}
		return v.Key(ctx, uri, pinned)
	case hsm.SchemeTPM:
		t, err := r.TPM()
		if err != nil {
			return nil, err
		}
		return t.Key(ctx, uri, pinned, r.Access())
	case hsm.SchemeSSHAgent:
		k, err := sshagent.Open(ctx, sshagent.Config{}, uri, pinned)
		if err != nil {
			return nil, err
		}
		return r.waiting(k), nil
	case hsm.SchemeFile:
		return file.Open(uri, pinned)
	}
	return nil, unsupported(uri, "pkcs11:, tpm:, vault:, ssh-agent: and file: keys sign")
}

// Decrypter opens a key-agreement key.
func (r *Ring) Decrypter(ctx context.Context, uri string, pinned *ecdh.PublicKey) (hsm.Decrypter, error) {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case hsm.SchemePKCS11:
		t, u, err := r.Token(ctx, uri)
		if err != nil {
			return nil, err
		}
		d, err := t.Decrypter(ctx, u.Object, pinned)
		if err != nil {
			return nil, err
		}
		return r.waitingDecrypter(d), nil
	case hsm.SchemeTPM:
		t, err := r.TPM()
		if err != nil {
			return nil, err
		}
		return t.Decrypter(ctx, uri, pinned, r.Access())
	case hsm.SchemeFile:
		return file.OpenDecrypter(uri, pinned)
	}
	return nil, unsupported(uri, "only pkcs11:, tpm: and file: keys agree on secrets; a key in Vault or in an SSH agent signs and opens no share")
}

// Sealer opens a sealing key.
func (r *Ring) Sealer(ctx context.Context, uri string) (hsm.Sealer, error) {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case hsm.SchemePKCS11:
		t, u, err := r.Token(ctx, uri)
		if err != nil {
			return nil, err
		}
		return t.Sealer(ctx, u.Object)
	case hsm.SchemeTPM:
		t, err := r.TPM()
		if err != nil {
			return nil, err
		}
		return t.Sealer(ctx, uri, r.Access())
	case hsm.SchemeVault:
		v, err := r.Vault(ctx)
		if err != nil {
			return nil, err
		}
		return v.Sealer(ctx, uri)
	case hsm.SchemeFile:
		return file.OpenSealer(uri)
	}
	return nil, unsupported(uri, "pkcs11:, tpm:, vault: and file: keys seal")
}

func unsupported(uri, which string) error {
	return fmt.Errorf("keys: %.80q cannot be used for this: %s", uri, which)
}

// Close closes all tokens and the TPM, and gives up the login to Vault.
func (r *Ring) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.tokens {
		t.Close()
	}
	clear(r.tokens)
	if r.tpm != nil {
		r.tpm.Close()
		r.tpm = nil
	}
	if r.vault != nil {
		r.vault.Close()
		r.vault = nil
	}
}
