package coordinator

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
)

// TLS is how a coordinator is served: TLS 1.3 with the certificate that own
// returns, of which clients pin the key.
// People, notaries and nodes not yet enrolled show no certificate; who shows
// one must be an enrolled node (see VerifyConnection).
func (c *Coordinator) TLS(own func() *tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own(), nil },
		ClientAuth:     tls.RequestClientCert,
		// Every connection is looked at anew: a node retired meanwhile
		// does not come back on an old ticket.
		SessionTicketsDisabled: true,
		VerifyConnection:       c.VerifyConnection,
	}
}

// VerifyConnection refuses a client that shows a certificate whose key is not
// the TLS key of a node enrolled in the log and not retired. Names and dates
// in the certificate play no part.
func (c *Coordinator) VerifyConnection(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	cert := cs.PeerCertificates[0]
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return errors.New("coordinator: the client's certificate has no P-256 key")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.auth.State().Nodes {
		if !n.Retired && n.Keys.TLSKey.Equal(key) {
			return nil
		}
	}
	return fmt.Errorf("coordinator: key %s is not the TLS key of an enrolled node; enrol the node first", Digest(sha256.Sum256(cert.RawSubjectPublicKeyInfo)))
}
