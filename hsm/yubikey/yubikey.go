// Package yubikey reads the certificate by which a YubiKey states that it made a key
// of its PIV application itself (Yubico, "PIV attestation"). Of a key that was
// imported there is none.
package yubikey

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/hsm"
)

// A Statement is what a YubiKey says of a key that it made and never gives out.
type Statement struct {
	Maker    string // subject of the root that vouches for the device
	Serial   uint32 // printed on the device
	Firmware string // like 5.4.3
	Slot     string // of the PIV application, like 9c
	PIN      string // before a use of the key: never, once (a session) or always
	Touch    string // before a use of the key: never, always or cached (for 15 s)
}

// The extensions of a statement; values as the certificates have them.
var (
	oidFirmware = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, 3} // major, minor, patch: a byte each
	oidSerial   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, 7} // DER INTEGER
	oidPolicy   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, 8} // PIN, touch: a byte each
)

// A byte of oidPolicy is an index here; an empty string is no policy.
var (
	pinPolicies   = []string{"", "never", "once", "always"}
	touchPolicies = []string{"", "never", "always", "cached"}
)

const subjectPrefix = "YubiKey PIV Attestation "

// maxChain bounds the certificates of one statement: the key's, the device's and
// those between it and the root.
const maxChain = 5

// Verify reads the statement in chain, the key's certificate first and then that of
// the device (slot f9) and others up to a root, and wants it to be about public and
// to hold at now. Only roots are trusted; intermediates may complete the chain.
//
// Errors: hsm.ErrWrongIdentity if it is about another key.
func Verify(chain []*x509.Certificate, roots, intermediates *x509.CertPool, public crypto.PublicKey, now time.Time) (*Statement, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return nil, fmt.Errorf("yubikey: %d certificates: want the key's, the device's of slot f9, and at most %d in all", len(chain), maxChain)
	}
	if roots == nil {
		return nil, errors.New("yubikey: no roots to hold the certificates to") // x509 would take the system's
	}
	pool := x509.NewCertPool()
	if intermediates != nil {
		pool = intermediates.Clone()
	}
	for _, c := range chain[1:] {
		pool.AddCert(c)
	}
	leaf := chain[0]
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("yubikey: the certificate of the key, by %d others with it: %w", len(chain)-1, err)
	}
	if leaf.IsCA {
		return nil, errors.New("yubikey: the first certificate is a device's or a maker's own, not a key's")
	}
	s := &Statement{Maker: chains[0][len(chains[0])-1].Subject.String()}
	if err := s.read(leaf); err != nil {
		return nil, fmt.Errorf("yubikey: the certificate of the key: %w", err)
	}
	if err := hsm.SamePublic(public, leaf.PublicKey); err != nil {
		return nil, fmt.Errorf("yubikey: the certificate is of another key: %w", err)
	}
	return s, nil
}

func (s *Statement) read(leaf *x509.Certificate) error {
	slot, ok := strings.CutPrefix(leaf.Subject.CommonName, subjectPrefix)
	if !ok || len(slot) != 2 {
		return fmt.Errorf("subject %q: want %q and a slot", leaf.Subject.CommonName, subjectPrefix)
	}
	s.Slot = slot
	firmware, err := extension(leaf, oidFirmware, "firmware")
	if err != nil {
		return err
	}
	if len(firmware) != 3 {
		return fmt.Errorf("firmware of %d bytes, want 3", len(firmware))
	}
	s.Firmware = fmt.Sprintf("%d.%d.%d", firmware[0], firmware[1], firmware[2])
	serial, err := extension(leaf, oidSerial, "serial number")
	if err != nil {
		return err
	}
	var n int64
	if rest, err := asn1.Unmarshal(serial, &n); err != nil || len(rest) > 0 || n <= 0 || n != int64(uint32(n)) {
		return fmt.Errorf("serial number %x is no INTEGER of 32 bits", serial)
	}
	s.Serial = uint32(n)
	policy, err := extension(leaf, oidPolicy, "policies")
	if err != nil {
		return err
	}
	if len(policy) != 2 {
		return fmt.Errorf("policies of %d bytes, want 2", len(policy))
	}
	for i, p := range []struct {
		what  string
		names []string
		to    *string
	}{{"PIN", pinPolicies, &s.PIN}, {"touch", touchPolicies, &s.Touch}} {
		if int(policy[i]) < len(p.names) {
			*p.to = p.names[policy[i]]
		}
		if *p.to == "" {
			return fmt.Errorf("%s policy %d is unknown", p.what, policy[i])
		}
	}
	return nil
}

func extension(c *x509.Certificate, id asn1.ObjectIdentifier, what string) ([]byte, error) {
	i := slices.IndexFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(id) })
	if i < 0 {
		return nil, fmt.Errorf("it says no %s (extension %v)", what, id)
	}
	return c.Extensions[i].Value, nil
}
