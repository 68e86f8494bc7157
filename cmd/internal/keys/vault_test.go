package keys

import (
	"context"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm/vault"
)

func TestVaultConfig(t *testing.T) {
	base := "VAULT_ADDR=https://v:8200 "
	tests := map[string]struct {
		env  string
		want func(vault.Login) bool // nil: refused
	}{
		"token file": {base + "KEYTURN_VAULT_TOKEN_FILE=/t", func(l vault.Login) bool { return l == vault.TokenFile("/t") }},
		"AppRole": {base + "KEYTURN_VAULT_ROLE_ID_FILE=/r KEYTURN_VAULT_SECRET_ID_FILE=/s", func(l vault.Login) bool {
			a, ok := l.(vault.AppRole)
			return ok && a.RoleID != nil && a.SecretID != nil
		}},
		"certificate": {base + "VAULT_CLIENT_CERT=/c VAULT_CLIENT_KEY=/k", func(l vault.Login) bool {
			return l == vault.Certificate{CertFile: "/c", KeyFile: "/k"}
		}},
		"nothing":           {"", nil},
		"no address":        {"KEYTURN_VAULT_TOKEN_FILE=/t", nil},
		"no login":          {base, nil},
		"a bare token":      {base + "VAULT_TOKEN=hvs.x", nil},
		"two logins":        {base + "KEYTURN_VAULT_TOKEN_FILE=/t VAULT_CLIENT_CERT=/c VAULT_CLIENT_KEY=/k", nil},
		"half an AppRole":   {base + "KEYTURN_VAULT_TOKEN_FILE=/t KEYTURN_VAULT_ROLE_ID_FILE=/r", nil},
		"half a key pair":   {base + "KEYTURN_VAULT_TOKEN_FILE=/t VAULT_CLIENT_KEY=/k", nil},
		"a secret id alone": {base + "KEYTURN_VAULT_SECRET_ID_FILE=/s", nil},
	}
	for name, test := range tests {
		env := map[string]string{}
		for _, pair := range strings.Fields(test.env) {
			k, v, _ := strings.Cut(pair, "=")
			env[k] = v
		}
		c, err := vaultConfig(func(k string) string { return env[k] })
		if (err == nil) != (test.want != nil) {
			t.Errorf("%s: %v", name, err)
		} else if err == nil && (!test.want(c.Login) || c.Address != "https://v:8200") {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// What a scheme cannot do is refused with a word about what can.
func TestUnsupportedUses(t *testing.T) {
	r := New(nil)
	defer r.Close()
	ctx, agent := context.Background(), "ssh-agent:SHA256:"+strings.Repeat("A", 43)
	for _, uri := range []string{agent, "vault:transit/k?version=1"} {
		if _, err := r.Decrypter(ctx, uri, nil); err == nil || !strings.Contains(err.Error(), "opens no share") {
			t.Errorf("agree by %s: %v", uri, err)
		}
	}
	if _, err := r.Sealer(ctx, agent); err == nil || !strings.Contains(err.Error(), "seal") {
		t.Errorf("seal by %s: %v", agent, err)
	}
}
