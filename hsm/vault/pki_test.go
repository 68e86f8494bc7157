package vault_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
)

// newAuthority gives the server a PKI engine with a root of its own, and a role
// that signs for the coordinator's names.
func newAuthority(t testing.TB, s *server) *x509.CertPool {
	t.Helper()
	s.must(t, "sys/mounts/pki", map[string]any{"type": "pki"})
	root := s.must(t, "pki/root/generate/internal", map[string]any{"common_name": "the site's authority", "ttl": "24h"})
	s.must(t, "pki/roles/coordinator", map[string]any{"allowed_domains": "coordinator.lab", "allow_bare_domains": true,
		"allow_ip_sans": true, "key_type": "ec", "key_bits": 256, "max_ttl": "1h"})
	s.policy(t, "transit/keys/+", "transit/sign/+", "transit/encrypt/+", "transit/decrypt/+", "pki/sign/coordinator")
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(root.Data["certificate"].(string))) {
		t.Fatal("the authority's certificate does not parse")
	}
	return roots
}

func TestCertificate(t *testing.T) {
	s := startServer(t)
	roots := newAuthority(t, s)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	ctx := context.Background()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	chain, err := store.Certificate(ctx, "pki/sign/coordinator", key, "coordinator.lab", "127.0.0.1")
	check(t, err)
	leaf, err := x509.ParseCertificate(chain[0])
	check(t, err)
	for _, host := range []string{"coordinator.lab", "127.0.0.1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	check(t, hsm.SamePublic(&key.PublicKey, leaf.PublicKey))
	if len(leaf.DNSNames) != 1 || len(leaf.IPAddresses) != 1 {
		t.Errorf("names are %v and %v", leaf.DNSNames, leaf.IPAddresses)
	}
	if _, err := store.Certificate(ctx, "pki/sign/coordinator", key, "other.lab"); err == nil {
		t.Error("a certificate for a name that the role does not have")
	}
	if _, err := store.Certificate(ctx, "pki/sign/other", key, "coordinator.lab"); !errors.Is(err, hsm.ErrDenied) {
		t.Errorf("another role: %v, want ErrDenied", err)
	}
	for _, role := range []string{"", "pki/issue/coordinator", "pki/sign/", "../sign/coordinator", "pki/sign/a/b", "pki/sign/.."} {
		if _, err := store.Certificate(ctx, role, key, "coordinator.lab"); err == nil {
			t.Errorf("role %q was used", role)
		}
	}
	if _, err := store.Certificate(ctx, "pki/sign/coordinator", key); err == nil {
		t.Error("a certificate for no host")
	}
	check(t, s.root.Sys().Seal())
	if _, err := store.Certificate(ctx, "pki/sign/coordinator", key, "coordinator.lab"); !errors.Is(err, hsm.ErrSealed) {
		t.Errorf("sealed: %v, want ErrSealed", err)
	}
}

// A key in Vault's transit engine signs its own request.
func TestCertificateOfTransitKey(t *testing.T) {
	s := startServer(t)
	roots := newAuthority(t, s)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	k := openKey(t, store, s.newKey(t, "tls", "ecdsa-p256"), nil)
	chain, err := store.Certificate(context.Background(), "pki/sign/coordinator", k, "coordinator.lab")
	check(t, err)
	leaf, err := x509.ParseCertificate(chain[0])
	check(t, err)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "coordinator.lab"}); err != nil || !slices.Equal(leaf.DNSNames, []string{"coordinator.lab"}) {
		t.Errorf("%v: %v", leaf.DNSNames, err)
	}
}

// A Vault that puts another key under the coordinator's name, or answers with
// something else, gives no certificate.
func TestAttackCertificateOfAnotherKey(t *testing.T) {
	f := newImpostor(t, nil)
	issue := func(template *x509.Certificate) (string, *ecdsa.PrivateKey) {
		_, key := f.issue(t, "other", template)
		text, err := os.ReadFile(f.path("other.pem"))
		check(t, err)
		return strings.TrimSpace(string(text)), key
	}
	pem, theirs := issue(&x509.Certificate{DNSNames: []string{"coordinator.lab"}})
	store := openStore(t, f.config(t))
	ours, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	say := func(certificate string, chain ...string) {
		f.says("pki/sign/coordinator", 200, `{"data":{"certificate":%q,"ca_chain":["%s"]}}`, certificate, strings.Join(chain, `","`))
	}
	ask := func(key *ecdsa.PrivateKey) error {
		_, err := store.Certificate(t.Context(), "pki/sign/coordinator", key, "coordinator.lab")
		return err
	}
	say(pem, strings.ReplaceAll(pem, "\n", `\n`))
	if err := ask(ours); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("another key's certificate: %v, want ErrWrongIdentity", err)
	}
	if err := ask(theirs); err != nil {
		t.Errorf("its own: %v", err)
	}
	for name, text := range map[string]string{"nothing": "", "words": "certificate", "two in one": pem + "\n" + pem} {
		say(text, strings.ReplaceAll(pem, "\n", `\n`))
		if err := ask(theirs); !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: %v, want ErrWrongIdentity", name, err)
		}
	}
	say(pem, strings.Split(strings.Repeat("x,", 9), ",")...)
	if err := ask(theirs); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("a long chain: %v, want ErrWrongIdentity", err)
	}
	for name, template := range map[string]*x509.Certificate{
		"another host":   {DNSNames: []string{"another.lab"}},
		"no host":        {},
		"one that ended": {DNSNames: []string{"coordinator.lab"}, NotAfter: time.Now().Add(-time.Minute)},
	} {
		text, key := issue(template)
		say(text, strings.ReplaceAll(pem, "\n", `\n`))
		if err := ask(key); !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: %v, want ErrWrongIdentity", name, err)
		}
	}
}
