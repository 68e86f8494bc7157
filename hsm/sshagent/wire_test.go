package sshagent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"math/big"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/hsm"
)

// blob writes r and s as SSH does.
func blob(r, s *big.Int) []byte { return ssh.Marshal(struct{ R, S *big.Int }{r, s}) }

func TestConvertRefuses(t *testing.T) {
	one := big.NewInt(1)
	for name, sig := range map[string]*ssh.Signature{
		"another format":  {Format: ssh.KeyAlgoED25519, Blob: blob(one, one)},
		"trailing bytes":  {Format: ssh.KeyAlgoECDSA256, Blob: blob(one, one), Rest: []byte{0}},
		"r is zero":       {Format: ssh.KeyAlgoECDSA256, Blob: blob(new(big.Int), one)},
		"s is negative":   {Format: ssh.KeyAlgoECDSA256, Blob: blob(one, big.NewInt(-1))},
		"half":            {Format: ssh.KeyAlgoECDSA256, Blob: blob(one, one)[:5]},
		"a third number":  {Format: ssh.KeyAlgoECDSA256, Blob: append(blob(one, one), 0, 0, 0, 1, 1)},
		"empty":           {Format: ssh.KeyAlgoECDSA256},
		"a longer length": {Format: ssh.KeyAlgoECDSA256, Blob: []byte{255, 255, 255, 255, 1}},
	} {
		if der, err := convert(ssh.KeyAlgoECDSA256, sig); err == nil {
			t.Errorf("%s: converted to %x", name, der)
		}
		sig.Format = strings.Replace(sig.Format, ssh.KeyAlgoECDSA256, ssh.KeyAlgoSKECDSA256, 1)
		sig.Rest = append(sig.Rest, 1, 0, 0, 0, 1)
		if der, err := convert(ssh.KeyAlgoSKECDSA256, sig); err == nil {
			t.Errorf("%s, of an authenticator: converted to %x", name, der)
		}
	}
}

// Whatever an agent sends as a P-256 signature, it is refused or verifies.
func FuzzConvert(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blob(big.NewInt(1), big.NewInt(2)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		der, err := convert(ssh.KeyAlgoECDSA256, &ssh.Signature{Format: ssh.KeyAlgoECDSA256, Blob: b})
		if err != nil {
			return
		}
		if hsm.VerifyMessage(&key.PublicKey, []byte("m"), der) == nil {
			t.Errorf("%x verifies under a key that signed nothing", der)
		}
	})
}
