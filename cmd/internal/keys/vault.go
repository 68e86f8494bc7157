package keys

import (
	"context"
	"errors"
	"os"

	"github.com/keyturn/keyturn/hsm/vault"
)

// The environment that says where Vault is and how to log in. The names that
// start with VAULT_ are Vault's own. All secrets are in files, which only their
// owner can read; VAULT_TOKEN is not used, since an environment is easily read.
const (
	envAddress   = "VAULT_ADDR"      // https://HOST:PORT
	envCACert    = "VAULT_CACERT"    // PEM file; empty: the system's authorities
	envNamespace = "VAULT_NAMESPACE" // may be empty

	// One of these three logins.
	envTokenFile    = "KEYTURN_VAULT_TOKEN_FILE"
	envRoleIDFile   = "KEYTURN_VAULT_ROLE_ID_FILE" // AppRole, with
	envSecretIDFile = "KEYTURN_VAULT_SECRET_ID_FILE"
	envClientCert   = "VAULT_CLIENT_CERT" // certificate login, PEM, with
	envClientKey    = "VAULT_CLIENT_KEY"
)

// Vault returns the login to Vault, which is made at the first use.
func (r *Ring) Vault(ctx context.Context) (*vault.Store, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.vault != nil {
		return r.vault, nil
	}
	c, err := vaultConfig(os.Getenv)
	if err != nil {
		return nil, err
	}
	r.vault, err = vault.Open(ctx, c)
	return r.vault, err
}

// vaultConfig reads the environment. Half a login, or two, is refused.
func vaultConfig(env func(string) string) (vault.Config, error) {
	c := vault.Config{Address: env(envAddress), CACert: env(envCACert), Namespace: env(envNamespace)}
	if c.Address == "" {
		return c, errors.New("keys: a vault: key needs VAULT_ADDR=https://HOST:PORT")
	}
	var logins []vault.Login
	if path := env(envTokenFile); path != "" {
		logins = append(logins, vault.TokenFile(path))
	}
	if role, secret := env(envRoleIDFile), env(envSecretIDFile); role != "" && secret != "" {
		logins = append(logins, vault.AppRole{RoleID: vault.File(role), SecretID: vault.File(secret)})
	} else if role+secret != "" {
		return c, errors.New("keys: " + envRoleIDFile + " and " + envSecretIDFile + " go together")
	}
	if cert, key := env(envClientCert), env(envClientKey); cert != "" && key != "" {
		logins = append(logins, vault.Certificate{CertFile: cert, KeyFile: key})
	} else if cert+key != "" {
		return c, errors.New("keys: " + envClientCert + " and " + envClientKey + " go together")
	}
	if len(logins) != 1 {
		return c, errors.New("keys: a vault: key needs exactly one login: " + envTokenFile + ", or " +
			envRoleIDFile + " with " + envSecretIDFile + ", or " + envClientCert + " with " + envClientKey)
	}
	c.Login = logins[0]
	return c, nil
}
