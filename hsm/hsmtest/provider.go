package hsmtest

import (
	"crypto/ecdsa"
	"crypto/x509"
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

//go:embed testdata/authenticator.c
var provider []byte

// A Provider is a FIDO authenticator in software for OpenSSH's programs.
type Provider struct {
	t    testing.TB
	Dir  string // for ssh-agent -P DIR/*
	Path string // for ssh-keygen -w and ssh-add -S
}

// NewProvider builds it, and puts into the environment what the agents that are
// started later need.
func NewProvider(t testing.TB) *Provider {
	t.Helper()
	for _, tool := range []string{"cc", "ssh-agent", "ssh-add", "ssh-keygen", "/usr/lib/openssh/ssh-sk-helper"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	if err := exec.Command("cc", "-E", "-include", "openssl/evp.h", "-x", "c", "/dev/null", "-o", "/dev/null").Run(); err != nil {
		t.Skip("needs openssl/evp.h of libssl-dev")
	}
	p := &Provider{t: t, Dir: t.TempDir()}
	p.Path = filepath.Join(p.Dir, "authenticator.so")
	source := filepath.Join(p.Dir, "authenticator.c")
	if err := os.WriteFile(source, provider, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", p.Path, source, "-lcrypto").CombinedOutput(); err != nil {
		t.Fatalf("cc: %v: %s", err, out)
	}
	t.Setenv("SK_SAYS", p.says())
	t.Setenv("SK_ATTESTS", p.Dir)
	return p
}

// Attests has it attest to the keys that it makes from here on, with a P-256 key and
// its certificate.
func (p *Provider) Attests(key *ecdsa.PrivateKey, certificate []byte) {
	p.t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	for name, b := range map[string][]byte{"key.der": der, "certificate.der": certificate} {
		if err := os.WriteFile(filepath.Join(p.Dir, name), b, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *Provider) says() string { return filepath.Join(p.Dir, "says") }

// Says has it sign with these flags and this counter, in hex. Until then the
// flags are those that are asked for, and the counter is 7.
func (p *Provider) Says(flagsAndCounter string) {
	p.t.Helper()
	if err := os.WriteFile(p.says(), []byte(flagsAndCounter), 0o600); err != nil {
		p.t.Fatal(err)
	}
}
