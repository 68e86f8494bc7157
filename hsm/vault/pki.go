package vault

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"regexp"
	"strings"
	"time"

	"github.com/keyturn/keyturn/hsm"
)

// maxChain bounds the certificates of one answer.
const maxChain = 8

var pkiRole = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}/sign/[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)

// Certificate has the PKI engine at role, MOUNT/sign/ROLE, sign a certificate
// for key's public half, for hosts (names or addresses, at least one). It
// returns the chain, leaf first, in DER. The key stays where it is: it signs
// the request and nothing else.
//
// Whoever trusts keys, not authorities, loses nothing by such a certificate: a
// leaf with another key is refused with ErrWrongIdentity, and so is one that
// lacks a host or has ended, which would take the place of a better one.
func (s *Store) Certificate(ctx context.Context, role string, key crypto.Signer, hosts ...string) ([][]byte, error) {
	what := "have " + role + " sign a certificate"
	if !pkiRole.MatchString(role) || len(hosts) == 0 {
		return nil, fmt.Errorf("vault: %q for %q: a certificate needs MOUNT/sign/ROLE and a host", role, hosts)
	}
	request := &x509.CertificateRequest{}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			request.IPAddresses = append(request.IPAddresses, ip)
		} else {
			request.DNSNames = append(request.DNSNames, h)
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, request, key)
	if err != nil {
		return nil, s.explain(what, err)
	}
	var ips []string
	for _, ip := range request.IPAddresses {
		ips = append(ips, ip.String())
	}
	in := struct {
		CSR        string `json:"csr"`
		CommonName string `json:"common_name"`
		Names      string `json:"alt_names,omitzero"`
		Addresses  string `json:"ip_sans,omitzero"`
		ExcludeCN  bool   `json:"exclude_cn_from_sans"`
		Format     string `json:"format"`
	}{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), hosts[0],
		strings.Join(request.DNSNames, ","), strings.Join(ips, ","), true, "pem"}
	var out answer[struct {
		Certificate string   `json:"certificate"`
		Chain       []string `json:"ca_chain"`
	}]
	if err := s.call(ctx, role, in, &out); err != nil {
		return nil, s.explain(what, err)
	}
	chain, err := readChain(append([]string{out.Data.Certificate}, out.Data.Chain...))
	if err == nil {
		err = fits(chain[0], key.Public(), hosts, time.Now())
	}
	if err != nil {
		return nil, s.explain(what, err)
	}
	var der [][]byte
	for _, c := range chain {
		der = append(der, c.Raw)
	}
	return der, nil
}

// readChain decodes the certificates of an answer.
func readChain(texts []string) ([]*x509.Certificate, error) {
	if len(texts) > maxChain {
		return nil, fmt.Errorf("%w: a chain of %d certificates is over %d", hsm.ErrWrongIdentity, len(texts), maxChain)
	}
	var chain []*x509.Certificate
	for i, text := range texts {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || strings.TrimSpace(string(rest)) != "" {
			return nil, fmt.Errorf("%w: certificate %d does not parse", hsm.ErrWrongIdentity, i)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d: %w", hsm.ErrWrongIdentity, i, err)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

// fits refuses a certificate that is not key's, not for each of hosts, or has
// ended by now.
func fits(leaf *x509.Certificate, key crypto.PublicKey, hosts []string, now time.Time) error {
	if err := hsm.SamePublic(key, leaf.PublicKey); err != nil {
		return err
	}
	for _, h := range hosts {
		if err := leaf.VerifyHostname(h); err != nil {
			return fmt.Errorf("%w: %w", hsm.ErrWrongIdentity, err)
		}
	}
	if now.After(leaf.NotAfter) {
		return fmt.Errorf("%w: the certificate ended at %s", hsm.ErrWrongIdentity, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}
