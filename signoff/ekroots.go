package signoff

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// MaxEKRoots bounds the certificates of TPM makers in force, and those that one
// request adds or removes.
const MaxEKRoots = 64

// An EKRootsChange says which makers of TPMs are believed: whose certificates
// stand at the end of the chain of a node's endorsement-key certificate.
type EKRootsChange struct {
	Add    [][]byte `json:"add,omitempty"`    // CA certificates, DER
	Remove []Digest `json:"remove,omitempty"` // SHA-256 of the DER of certificates in force
}

func (c *EKRootsChange) check() error {
	if len(c.Add) == 0 && len(c.Remove) == 0 {
		return missing("the certificates to add or to remove")
	}
	if len(c.Add) > 0 {
		var ids []Digest
		for i, der := range c.Add {
			if _, err := ParseEKRoot(der); err != nil {
				return fmt.Errorf("certificate %d to add: %w", i+1, err)
			}
			ids = append(ids, sha256.Sum256(der))
		}
		if err := checkDigests("certificates to add", ids, MaxEKRoots); err != nil {
			return err
		}
	}
	if len(c.Remove) > 0 {
		return checkDigests("certificates to remove", c.Remove, MaxEKRoots)
	}
	return nil
}

func (c *EKRootsChange) subjects() []dsse.Subject {
	var out []dsse.Subject
	for _, der := range c.Add {
		out = append(out, dsse.About("EK root to add", sha256.Sum256(der)))
	}
	for _, id := range c.Remove {
		out = append(out, dsse.About("EK root to remove", id))
	}
	return out
}

// ParseEKRoot reads a certificate (DER) that EK certificates may chain to: that of
// an authority which may sign certificates (RFC 5280, sections 4.2.1.3 and 4.2.1.9).
func ParseEKRoot(der []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if !cert.BasicConstraintsValid || !cert.IsCA {
		return nil, fmt.Errorf("certificate of %q is not that of an authority: basic constraints do not say CA", cert.Subject)
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("certificate of %q may not sign certificates: its key usage lacks keyCertSign", cert.Subject)
	}
	return cert, nil
}
