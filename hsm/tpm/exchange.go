package tpm

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/hsm"
)

// nonceSize is that of a session's nonces, in bytes.
const nonceSize = 16

// exchangeKey is what the two kinds of key agreement keys share.
type exchangeKey struct {
	tpm    *TPM
	object *Object
	public *ecdh.PublicKey
	info   hsm.Info
}

// PublicKey returns the public half.
func (k *exchangeKey) PublicKey() *ecdh.PublicKey { return k.public }

// Curve is P-256.
func (k *exchangeKey) Curve() ecdh.Curve { return ecdh.P256() }

// Info describes the key.
func (k *exchangeKey) Info() hsm.Info { return k.info }

// Object returns the key as an object, to be certified.
func (k *exchangeKey) Object() *Object { return k.object }

func (t *TPM) exchangeKey(o *Object, uri string) (exchangeKey, error) {
	public, err := o.publicKey()
	if err != nil {
		return exchangeKey{}, err
	}
	agreement, err := public.ECDH()
	if err != nil {
		return exchangeKey{}, err
	}
	if a := o.public.ObjectAttributes; !a.Decrypt || a.SignEncrypt || a.Restricted {
		return exchangeKey{}, fmt.Errorf("%s is not an unrestricted decryption key", uri)
	}
	return exchangeKey{tpm: t, object: o, public: agreement, info: t.info(uri)}, nil
}

// zgen runs TPM2_ECDH_ZGen (Part 3, section 14.5) in a session that encrypts
// the answer and authorises the key, and returns the x coordinate, 32 bytes.
func (k *exchangeKey) zgen(tr transport.TPM, session tpm2.Session, peer *ecdh.PublicKey) ([]byte, error) {
	point := peer.Bytes()
	var z []byte
	err := k.object.Use(tr, func(h tpm2.NamedHandle) error {
		rsp, err := tpm2.ECDHZGen{
			KeyHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: session},
			InPoint: tpm2.New2B(tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
			}),
		}.Execute(tr)
		if err != nil {
			return err
		}
		out, err := rsp.OutPoint.Contents()
		if err != nil {
			return err
		}
		buf, err := uncompressed(out)
		if err != nil {
			return err
		}
		z = buf[1:33]
		return nil
	})
	return z, err
}

func checkPeer(peer *ecdh.PublicKey) error {
	if peer == nil || peer.Curve() != ecdh.P256() {
		return errors.New("tpm: agree on a secret: the other key is not on P-256")
	}
	return nil
}

// salted are the options of a session whose secrets only the TPM with the
// storage root key can follow: Part 1, section 19.6.
func (t *TPM) salted(tr transport.TPM, f func(opts []tpm2.AuthOption) error) error {
	root, err := t.storageRoot(tr)
	if err != nil {
		return err
	}
	return root.Use(tr, func(h tpm2.NamedHandle) error {
		return f([]tpm2.AuthOption{tpm2.Salted(h.Handle, root.public)})
	})
}

// withPolicySession opens a salted policy session, and closes it whatever f does.
func (t *TPM) withPolicySession(tr transport.TPM, f func(s tpm2.Session) error) error {
	var session tpm2.Session
	var end func() error
	err := t.salted(tr, func(opts []tpm2.AuthOption) (err error) {
		session, end, err = tpm2.PolicySession(tr, tpm2.TPMAlgSHA256, nonceSize, append(opts, encryptOut)...)
		return err
	})
	if err != nil {
		return err
	}
	return errors.Join(f(session), end())
}

// A StorageKey is a P-256 agreement key that works only in an approved boot. It
// implements hsm.Decrypter.
type StorageKey struct {
	exchangeKey
	authority *ecdsa.PublicKey

	mu        sync.Mutex
	approvals []BootApproval // guarded by mu
}

var _ hsm.Decrypter = (*StorageKey)(nil)

// NewStorageKey makes a P-256 agreement key: unrestricted, fixed to this TPM,
// usable only under a boot policy that authority (P-256) approved.
func (t *TPM) NewStorageKey(ctx context.Context, authority *ecdsa.PublicKey) (Blob, error) {
	policy, err := bootPolicy(authority)
	if err != nil {
		return Blob{}, err
	}
	template := p256Template(tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, NoDA: true, Decrypt: true,
	})
	template.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy}
	return t.create(ctx, "make storage key", template)
}

// StorageKey loads a storage key made for authority. It opens nothing before
// [StorageKey.SetApprovals]. uri names it in its Info.
func (t *TPM) StorageKey(ctx context.Context, b Blob, authority *ecdsa.PublicKey, uri string) (*StorageKey, error) {
	policy, err := bootPolicy(authority)
	if err != nil {
		return nil, err
	}
	o, err := t.load(ctx, "load storage key", b)
	if err != nil {
		return nil, err
	}
	k, err := t.exchangeKey(o, uri)
	if err != nil {
		return nil, fmt.Errorf("tpm: load storage key: %w", err)
	}
	if string(o.public.AuthPolicy.Buffer) != string(policy) {
		return nil, fmt.Errorf("tpm: load storage key: %w: %s was made for another boot-policy key", hsm.ErrWrongIdentity, uri)
	}
	return &StorageKey{exchangeKey: k, authority: authority}, nil
}

// SetApprovals replaces the approved boots, each checked first. The one that
// fits the running boot is used.
func (k *StorageKey) SetApprovals(approvals []BootApproval) error {
	for i, a := range approvals {
		if err := a.Verify(k.authority); err != nil {
			return fmt.Errorf("tpm: boot approval %d: %w", i, err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.approvals = append([]BootApproval(nil), approvals...)
	return nil
}

// ECDH is ECDHContext without a deadline.
func (k *StorageKey) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return k.ECDHContext(context.Background(), peer)
}

// ECDHContext agrees on a secret, 32 bytes. It returns [ErrBootNotApproved] if
// the PCRs are not those of an approved boot.
func (k *StorageKey) ECDHContext(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	if err := checkPeer(peer); err != nil {
		return nil, err
	}
	k.mu.Lock()
	approvals := k.approvals
	k.mu.Unlock()
	var z []byte
	err := k.tpm.Run(ctx, "agree on a secret", func(tr transport.TPM) error {
		for _, a := range approvals {
			err := k.tpm.withPolicySession(tr, func(s tpm2.Session) (err error) {
				if err := a.satisfy(tr, s, k.authority); err != nil {
					return err
				}
				z, err = k.zgen(tr, s, peer)
				return err
			})
			if !errors.Is(err, ErrBootNotApproved) {
				return err
			}
		}
		return fmt.Errorf("%w: none of %d approvals fits the PCRs; have this boot's reference approved, or boot an approved one", ErrBootNotApproved, len(approvals))
	})
	return z, err
}

// A FreshKey is a P-256 agreement key for one use, in the NULL hierarchy: it is
// gone for good after Close, or when the TPM resets. It implements hsm.Decrypter.
type FreshKey struct{ exchangeKey }

var _ hsm.Decrypter = (*FreshKey)(nil)

// NewFreshKey makes a key for one use. It takes a place in the TPM until Close.
func (t *TPM) NewFreshKey(ctx context.Context) (*FreshKey, error) {
	template := p256Template(tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Decrypt: true,
	})
	// A primary key follows from the hierarchy's seed and the template; what is
	// random here is never seen again, so nor is the key.
	x, y := make([]byte, 32), make([]byte, 32)
	rand.Read(x)
	rand.Read(y)
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y},
	})
	var fresh *FreshKey
	err := t.Run(ctx, "make a key for one use", func(tr transport.TPM) error {
		o, err := loadPrimary(tr, tpm2.TPMRHNull, template)
		if err != nil {
			return err
		}
		k, err := t.exchangeKey(o, "tpm:fresh")
		if err != nil {
			return errors.Join(err, flush(tr, o.handle))
		}
		fresh = &FreshKey{k}
		return nil
	})
	return fresh, err
}

// Close flushes the key. Closing twice is not an error.
func (k *FreshKey) Close() error {
	return k.tpm.Run(context.Background(), "flush a key for one use", func(tr transport.TPM) error {
		if k.object.gone {
			return nil
		}
		k.object.gone = true
		return flush(tr, k.object.handle)
	})
}

// ECDH is ECDHContext without a deadline.
func (k *FreshKey) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return k.ECDHContext(context.Background(), peer)
}

// ECDHContext agrees on a secret, 32 bytes.
func (k *FreshKey) ECDHContext(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	if err := checkPeer(peer); err != nil {
		return nil, err
	}
	var z []byte
	err := k.tpm.Run(ctx, "agree on a secret", func(tr transport.TPM) error {
		var session tpm2.Session
		var end func() error
		err := k.tpm.salted(tr, func(opts []tpm2.AuthOption) (err error) {
			session, end, err = tpm2.HMACSession(tr, tpm2.TPMAlgSHA256, nonceSize, append(opts, encryptOut, tpm2.Auth(nil))...)
			return err
		})
		if err != nil {
			return err
		}
		z, err = k.zgen(tr, session, peer)
		return errors.Join(err, end())
	})
	return z, err
}
