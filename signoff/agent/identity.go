package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/tpm"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// loadIdentity brings the node's keys back, or makes them once. The enrolment
// is kept as well: it holds fresh signatures each time it is made, and people
// decide about its digest.
func (a *Agent) loadIdentity(ctx context.Context) error {
	state, err := a.identityState(ctx)
	if err != nil {
		return err
	}
	if a.identity, err = a.cfg.TPM.Load(ctx, state, a.boot); err != nil {
		return fmt.Errorf("agent: the identity in %s: %w", a.cfg.Dir, err)
	}
	a.id = Digest(a.identity.Node())
	if a.enrol, err = a.store.read(enrolmentFile); err != nil {
		return err
	}
	if a.enrol != nil {
		_, err := attest.ParseEnrolment(a.enrol)
		return err
	}
	e, err := a.identity.Enrol(ctx)
	if err != nil {
		return err
	}
	if a.enrol, err = e.Marshal(); err != nil {
		return err
	}
	return a.store.write(enrolmentFile, a.enrol)
}

func (a *Agent) identityState(ctx context.Context) (*tpm.State, error) {
	b, err := a.store.read(identityFile)
	if err != nil {
		return nil, err
	}
	if b != nil {
		var state tpm.State
		if err := dsse.Decode(b, &state); err != nil {
			return nil, fmt.Errorf("agent: %s in %s: %w", identityFile, a.cfg.Dir, err)
		}
		return &state, nil
	}
	state, err := a.cfg.TPM.Provision(ctx, a.boot)
	if err != nil {
		return nil, err
	}
	if b, err = dsse.Encode(state); err != nil {
		return nil, err
	}
	return state, a.store.write(identityFile, b)
}

// certificate wraps the node's TLS key for a handshake. Coordinators look at
// the key alone; the dates are there because the format wants some.
func certificate(key crypto.Signer) (*tls.Certificate, error) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(253402300799, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("agent: certificate for the TLS key: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
