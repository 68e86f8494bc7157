package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/attest"
	keys "github.com/keyturn/keyturn/hsm/tpm"
)

// Enrol returns the document by which this node asks to be enrolled.
func (i *Identity) Enrol(ctx context.Context) (*attest.Enrolment, error) {
	ek, err := i.makeEK(ctx)
	if err != nil {
		return nil, err
	}
	e := &attest.Enrolment{EKCert: i.state.EKCert, EK: ek.Public(), AK: i.ak.Public()}
	for _, k := range []struct {
		role   string
		object *keys.Object
		into   *attest.CertifiedKey
	}{
		{attest.RoleTLS, i.TLSKey.Object(), &e.TLS},
		{attest.RoleSign, i.SignKey.Object(), &e.Sign},
		{attest.RoleStorage, i.StorageKey.Object(), &e.Storage},
	} {
		if *k.into, err = i.certify(ctx, k.role, k.object); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// makeEK makes the endorsement key of the certificate, once: RSA takes seconds.
func (i *Identity) makeEK(ctx context.Context) (ek *keys.Object, err error) {
	n := slices.IndexFunc(ekKinds, func(k ekKind) bool { return k.template == i.state.EKTemplate })
	if n < 0 {
		return nil, fmt.Errorf("tpm: endorsement key template %q is not known", i.state.EKTemplate)
	}
	err = i.device.Run(ctx, "make the endorsement key", func(tr transport.TPM) (err error) {
		if i.ek != nil {
			ek = i.ek
			return nil
		}
		ek, err = makeEK(tr, ekKinds[n], i.state.EKCert)
		i.ek = ek
		return err
	})
	return ek, err
}

// makeEK makes the endorsement key and holds it to its certificate, which names
// the key: what answers to it is this TPM and not something on the way to it.
func makeEK(tr transport.TPM, kind ekKind, cert []byte) (*keys.Object, error) {
	ek, err := keys.NewPrimary(tr, tpm2.TPMRHEndorsement, kind.public)
	if err != nil {
		return nil, err
	}
	return ek, attest.MatchEK(ek.Public(), cert)
}

// certify has the AK vouch for a key of this TPM (TPM2_Certify, Part 3, section 18.2).
func (i *Identity) certify(ctx context.Context, role string, object *keys.Object) (attest.CertifiedKey, error) {
	qualifying := attest.Qualifying(role, i.id, i.ak.Name())
	c := attest.CertifiedKey{Public: object.Public()}
	err := i.device.Run(ctx, "certify the "+role+" key", func(tr transport.TPM) error {
		return object.UseWithAuth(tr, func(h tpm2.AuthHandle) error {
			return i.ak.UseWithAuth(tr, func(ak tpm2.AuthHandle) error {
				rsp, err := tpm2.Certify{
					ObjectHandle: h, SignHandle: ak,
					QualifyingData: tpm2.TPM2BData{Buffer: qualifying[:]},
					InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
				}.Execute(tr)
				if err != nil {
					return err
				}
				c.CertifyInfo, c.Signature = rsp.CertifyInfo.Bytes(), tpm2.Marshal(rsp.Signature)
				return nil
			})
		})
	})
	return c, err
}

// Activate answers a challenge of attest.NewChallenge: it returns the secret if
// the challenge was made for this TPM's EK and this AK (TPM2_ActivateCredential,
// Part 3, section 12.5).
func (i *Identity) Activate(ctx context.Context, credentialBlob, encSecret []byte) ([32]byte, error) {
	var secret [32]byte
	ek, err := i.makeEK(ctx)
	if err != nil {
		return secret, err
	}
	err = i.device.Run(ctx, "answer a challenge", func(tr transport.TPM) error {
		return i.ak.UseWithAuth(tr, func(ak tpm2.AuthHandle) (err error) {
			secret, err = activate(tr, ek, ak, credentialBlob, encSecret)
			return err
		})
	})
	return secret, err
}

// activate runs the command in a session salted to the EK itself, whose public
// key the certificate gave: nobody between here and the TPM sees the secret. It
// comes out if the challenge names the object, an AK or another key.
func activate(tr transport.TPM, ek *keys.Object, object tpm2.AuthHandle, credentialBlob, encSecret []byte) (secret [32]byte, err error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek.Public())
	if err != nil {
		return secret, err
	}
	err = ek.Use(tr, func(h tpm2.NamedHandle) error {
		session, end, err := tpm2.PolicySession(tr, tpm2.TPMAlgSHA256, 16,
			tpm2.Salted(h.Handle, *public), tpm2.AESEncryption(128, tpm2.EncryptOut))
		if err != nil {
			return err
		}
		return errors.Join(activateIn(tr, session, tpm2.ActivateCredential{
			ActivateHandle: object,
			KeyHandle:      tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: session},
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: credentialBlob},
			Secret:         tpm2.TPM2BEncryptedSecret{Buffer: encSecret},
		}, &secret), end())
	})
	return secret, err
}

func activateIn(tr transport.TPM, session tpm2.Session, command tpm2.ActivateCredential, secret *[32]byte) error {
	_, err := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session.Handle(),
		NonceTPM:      session.NonceTPM(),
	}.Execute(tr)
	if err != nil {
		return err
	}
	rsp, err := command.Execute(tr)
	if err != nil {
		return err
	}
	if len(rsp.CertInfo.Buffer) != len(secret) {
		return fmt.Errorf("the secret has %d bytes, not %d", len(rsp.CertInfo.Buffer), len(secret))
	}
	copy(secret[:], rsp.CertInfo.Buffer)
	return nil
}

// quoteTries bounds how often a quote is repeated because a PCR changed between
// being quoted and being read.
const quoteTries = 5

// Quote has the AK sign the sha256 PCRs named and extraData (at most 64 bytes),
// and returns TPMS_ATTEST, TPMT_SIGNATURE and the values that the quote covers.
func (i *Identity) Quote(ctx context.Context, extraData []byte, pcrs []int) (quote, sig []byte, values map[int][32]byte, err error) {
	if len(extraData) == 0 || len(pcrs) == 0 {
		return nil, nil, nil, errors.New("tpm: quote: extra data and PCRs must not be empty")
	}
	if slices.Min(pcrs) < 0 || slices.Max(pcrs) > 23 {
		return nil, nil, nil, fmt.Errorf("tpm: quote: PCRs %v are not all between 0 and 23", pcrs)
	}
	err = i.device.Run(ctx, "quote", func(tr transport.TPM) error {
		for range quoteTries {
			done, err := i.quoteOnce(tr, extraData, pcrs, &quote, &sig, &values)
			if done || err != nil {
				return err
			}
		}
		return fmt.Errorf("PCRs kept changing through %d tries", quoteTries)
	})
	return quote, sig, values, err
}

// quoteOnce quotes, reads, and reports whether both saw the same values.
func (i *Identity) quoteOnce(tr transport.TPM, extraData []byte, pcrs []int, quote, sig *[]byte, values *map[int][32]byte) (bool, error) {
	var digest []byte
	err := i.ak.UseWithAuth(tr, func(ak tpm2.AuthHandle) error {
		rsp, err := tpm2.Quote{
			SignHandle: ak, QualifyingData: tpm2.TPM2BData{Buffer: extraData},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: keys.Selection(pcrs),
		}.Execute(tr)
		if err != nil {
			return err
		}
		attested, err := rsp.Quoted.Contents()
		if err != nil {
			return err
		}
		info, err := attested.Attested.Quote()
		if err != nil {
			return err
		}
		*quote, *sig, digest = rsp.Quoted.Bytes(), tpm2.Marshal(rsp.Signature), info.PCRDigest.Buffer
		return nil
	})
	if err != nil {
		return false, err
	}
	if *values, err = readPCRs(tr, pcrs); err != nil {
		return false, err
	}
	h := sha256.New()
	sorted := slices.Clone(pcrs)
	slices.Sort(sorted)
	for _, pcr := range slices.Compact(sorted) {
		v := (*values)[pcr]
		h.Write(v[:])
	}
	return bytes.Equal(h.Sum(nil), digest), nil
}

// readPCRs reads sha256 PCRs one by one: a TPM answers for eight at most.
func readPCRs(tr transport.TPM, pcrs []int) (map[int][32]byte, error) {
	values := make(map[int][32]byte, len(pcrs))
	for _, pcr := range pcrs {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: keys.Selection([]int{pcr})}.Execute(tr)
		if err != nil {
			return nil, err
		}
		if len(rsp.PCRValues.Digests) != 1 || len(rsp.PCRValues.Digests[0].Buffer) != sha256.Size {
			return nil, fmt.Errorf("the TPM has no sha256 bank with PCR %d; allocate one in the firmware set-up", pcr)
		}
		values[pcr] = [32]byte(rsp.PCRValues.Digests[0].Buffer)
	}
	return values, nil
}

// ReadPCRs reads PCRs of the sha256 bank.
func (d *Device) ReadPCRs(ctx context.Context, pcrs []int) (values map[int][32]byte, err error) {
	err = d.Run(ctx, "read PCRs", func(tr transport.TPM) (err error) {
		values, err = readPCRs(tr, pcrs)
		return err
	})
	return values, err
}

// A FreshKey is a key for one use together with the AK's word for it.
type FreshKey struct {
	*keys.FreshKey
	Certified attest.CertifiedKey
}

// FreshKey makes a key for one use and certifies it. The caller closes it after
// that use. A TPM without a resource manager has room for one at a time.
func (i *Identity) FreshKey(ctx context.Context) (*FreshKey, error) {
	k, err := i.device.NewFreshKey(ctx)
	if err != nil {
		return nil, err
	}
	c, err := i.certify(ctx, attest.RoleFresh, k.Object())
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return &FreshKey{k, c}, nil
}

// Evidence quotes PCRs for a binding, whose TLSName and FreshName it fills in,
// and returns what attest.Appraise asks for beside the logs that the binding
// names. fresh may be nil. To prove a kernel's list read it before: a list that
// has grown past what was read is proved by the next quote.
func (i *Identity) Evidence(ctx context.Context, b attest.Binding, pcrs []int, fresh *FreshKey) (*attest.Evidence, error) {
	ev := &attest.Evidence{
		Node: i.id, AKName: i.AKName(), TLSName: i.TLSName(), AgentNonce: b.AgentNonce,
		EventLog: b.EventLog, IMA: b.IMA, IMAFrom: b.IMAFrom, PCRs: map[int]attest.Digest{},
	}
	b.TLSName, b.FreshName = ev.TLSName, nil
	if fresh != nil {
		b.FreshName, ev.Fresh = fresh.Object().Name(), &fresh.Certified
	}
	digest := b.Digest()
	quote, sig, values, err := i.Quote(ctx, digest[:], pcrs)
	if err != nil {
		return nil, err
	}
	ev.Quote, ev.Signature = quote, sig
	for pcr, v := range values {
		ev.PCRs[pcr] = v
	}
	return ev, nil
}
