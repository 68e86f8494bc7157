package tpm

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/hsm"
	keys "github.com/keyturn/keyturn/hsm/tpm"
)

// ProveKey shows that the key of a key file (tpm:PATH) is in the TPM that its
// maker vouches for: the EK certificate chains to roots at the time given, and
// the TPM with that EK answers a challenge to the key's own name, which covers
// that it was made there and cannot leave (TPM2_ActivateCredential, Part 3,
// section 12.5). It returns the endorsement key.
//
// The proof is to this process, which chose the challenge. Others have its word.
func (d *Device) ProveKey(ctx context.Context, uri string, a keys.Access, roots, intermediates *x509.CertPool, now time.Time) (*attest.EK, error) {
	cert, template, err := d.EKCertificate(ctx)
	if err != nil {
		return nil, err
	}
	ek, err := attest.VerifyEKCert(cert, roots, intermediates, now)
	if err != nil {
		return nil, err
	}
	var secret [32]byte
	rand.Read(secret[:])
	kind := ekKinds[slices.IndexFunc(ekKinds, func(k ekKind) bool { return k.template == template })]
	err = d.WithKey(ctx, uri, a, "prove where "+uri+" is", func(tr transport.TPM, key tpm2.AuthHandle) error {
		object, err := makeEK(tr, kind, cert)
		if err != nil {
			return err
		}
		// The name is computed from the public area, not taken from the TPM.
		blob, enc, err := attest.NewChallenge(rand.Reader, object.Public(), key.Name.Buffer, secret)
		if err != nil {
			return err
		}
		answer, err := activate(tr, object, key, blob, enc)
		if err == nil && subtle.ConstantTimeCompare(answer[:], secret[:]) != 1 {
			err = fmt.Errorf("%w: the challenge came back as another", hsm.ErrWrongIdentity)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return ek, nil
}
