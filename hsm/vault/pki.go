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

	"github.com/keyturn/keyturn/hsm"
)

// maxChain bounds the certificates of one answer.
const maxChain = 8

var pkiRole = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}/sign/[A-Za-z0-9_.-]{1,64}$`)

// Certificate has the PKI engine at role, MOUNT/sign/ROLE, sign a certificate
// for key's public half, for hosts (names or addresses, at least one). It
// returns the chain, leaf first, in DER. The key stays where it is: it signs
// the request and nothing else.
//
// Whoever trusts keys, not authorities, loses nothing by such a certificate: a
// leaf with another key is refused with ErrWrongIdentity.
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
	chain, err := readChain(append([]string{out.Data.Certificate}, out.Data.Chain...), key.Public())
	if err != nil {
		return nil, s.explain(what, err)
	}
	return chain, nil
}

// readChain decodes certificates of which the first must be of key.
func readChain(texts []string, key crypto.PublicKey) ([][]byte, error) {
	if len(texts) > maxChain {
		return nil, fmt.Errorf("%w: a chain of %d certificates is over %d", hsm.ErrWrongIdentity, len(texts), maxChain)
	}
	var chain [][]byte
	for i, text := range texts {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || strings.TrimSpace(string(rest)) != "" {
			return nil, fmt.Errorf("%w: certificate %d does not parse", hsm.ErrWrongIdentity, i)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d: %w", hsm.ErrWrongIdentity, i, err)
		}
		if i == 0 {
			if err := hsm.SamePublic(key, cert.PublicKey); err != nil {
				return nil, err
			}
		}
		chain = append(chain, block.Bytes)
	}
	return chain, nil
}
