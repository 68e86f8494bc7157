package keys

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/keyturn/keyturn/hsm"
)

// A ring finds the agent of its environment.
func TestKeyInAgent(t *testing.T) {
	public, private := newEd25519(t)
	held := agent.NewKeyring()
	check(t, held.Add(agent.AddedKey{PrivateKey: private}))
	dir, err := os.MkdirTemp("", "agent") // a socket's path is short
	check(t, err)
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	check(t, err)
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(held, conn)
		}
	}()
	t.Setenv("SSH_AUTH_SOCK", l.Addr().String())
	name, err := ssh.NewPublicKey(public)
	check(t, err)
	signs(t, "ssh-agent:"+ssh.FingerprintSHA256(name), public)
}

// A ring finds the Vault of its environment. Package vault is tested against a
// real one; here it is enough that something speaks its protocol.
func TestKeyInVault(t *testing.T) {
	public, private := newEd25519(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/transit/keys/k", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Vault-Token") == "hvs.token" {
			fmt.Fprintf(w, `{"data":{"type":"ed25519","latest_version":1,"keys":{"1":{"public_key":%q}}}}`, base64.StdEncoding.EncodeToString(public))
		}
	})
	mux.HandleFunc("PUT /v1/transit/sign/k", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Input []byte }
		if err := json.NewDecoder(r.Body).Decode(&in); err == nil {
			fmt.Fprintf(w, `{"data":{"signature":"vault:v1:%s"}}`, base64.StdEncoding.EncodeToString(ed25519.Sign(private, in.Input)))
		}
	})
	server := httptest.NewTLSServer(mux)
	defer server.Close()
	token, ca := filepath.Join(t.TempDir(), "token"), filepath.Join(t.TempDir(), "ca.pem")
	check(t, os.WriteFile(token, []byte("hvs.token\n"), 0o600))
	check(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	t.Setenv("VAULT_ADDR", server.URL)
	t.Setenv("VAULT_CACERT", ca)
	t.Setenv("KEYTURN_VAULT_TOKEN_FILE", token)
	signs(t, "vault:transit/k?version=1", public)
}

func signs(t *testing.T, uri string, pinned ed25519.PublicKey) {
	t.Helper()
	r := New(nil)
	defer r.Close()
	k, err := r.Key(context.Background(), uri, pinned)
	check(t, err)
	sig, err := hsm.SignMessage(context.Background(), k, []byte("message"))
	check(t, err)
	check(t, hsm.VerifyMessage(pinned, []byte("message"), sig))
	other, _ := newEd25519(t)
	if _, err := r.Key(context.Background(), uri, other); err == nil {
		t.Errorf("%s was opened for another key", uri)
	}
}

func newEd25519(t *testing.T) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	return public, private
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
