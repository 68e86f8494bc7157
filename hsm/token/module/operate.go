package module

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/token/internal/wire"
)

// sign returns the raw signature: r and s for P-256, 64 bytes for Ed25519. The
// client verifies it.
func (d *device) sign(fields [][]byte) ([]byte, error) {
	n := name{hsm.Kind(fields[0]), string(fields[1]), string(fields[2])}
	mechanism := uint(pkcs11.CKM_ECDSA)
	switch n.kind {
	case hsm.KindP256:
	case hsm.KindEd25519:
		mechanism = ckmEdDSA
	default:
		return nil, fmt.Errorf("a key of kind %q does not sign", n.kind)
	}
	if len(fields[3]) > wire.MaxInput {
		return nil, fmt.Errorf("input of %d bytes is over %d", len(fields[3]), wire.MaxInput)
	}
	var sig []byte
	err := d.use(n, func(s pkcs11.SessionHandle, h pkcs11.ObjectHandle) error {
		err := d.p.SignInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, h)
		if err == nil {
			sig, err = d.p.Sign(s, fields[3])
		}
		return wrap("sign", err)
	})
	return sig, err
}

// agree returns the x coordinate of peer times the private key (PKCS #11,
// CKM_ECDH1_DERIVE with CKD_NULL). It is derived into a session object, which
// is read and destroyed.
func (d *device) agree(fields [][]byte) ([]byte, error) {
	n := name{hsm.KindECDH, string(fields[0]), string(fields[1])}
	peer := fields[2]
	if len(peer) != 65 || peer[0] != 4 {
		return nil, fmt.Errorf("the peer's point has %d bytes, not 65 uncompressed", len(peer))
	}
	var secret []byte
	err := d.use(n, func(s pkcs11.SessionHandle, h pkcs11.ObjectHandle) error {
		params := pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, peer)
		derived, err := d.p.DeriveKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDH1_DERIVE, params)}, h, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, uint(pkcs11.CKO_SECRET_KEY)),
			pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, uint(pkcs11.CKK_GENERIC_SECRET)),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
			pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false),
			pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
			pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
		})
		if err != nil {
			return wrap("derive", err)
		}
		value, err := d.attributes(s, derived, pkcs11.CKA_VALUE)
		if err == nil {
			secret = value[0]
		}
		return errors.Join(err, wrap("destroy derived secret", d.p.DestroyObject(s, derived)))
	})
	return secret, err
}

// A witness is a fixed text under the sealing key. It opens under no other key,
// so it pins one that has no public half.
var (
	witnessText = []byte("keyturn")
	witnessAD   = []byte("keyturn/seal/witness/v1")
)

func (d *device) witness(fields [][]byte) ([]byte, error) {
	var sealed []byte
	err := d.session(func(s pkcs11.SessionHandle) error {
		found, err := d.find(s, attributesOf(hsm.KindSeal, string(fields[0]))...)
		if err != nil {
			return err
		}
		if len(found) != 1 {
			return coded{wire.CodeAbsent, fmt.Errorf("the token has %d sealing keys of this label, not one", len(found))}
		}
		sealed, err = d.encrypt(s, found[0], witnessText, witnessAD)
		return err
	})
	return sealed, err
}

func (d *device) seal(fields [][]byte) ([]byte, error) {
	if len(fields[2]) == 0 || len(fields[2]) > wire.MaxSecret || len(fields[3]) > wire.MaxAD {
		return nil, fmt.Errorf("secret of %d bytes or associated data of %d is out of bounds", len(fields[2]), len(fields[3]))
	}
	// A signature by another key shows, and what another key opens does not open.
	// What another key seals shows when it is too late.
	d.forget(sealName(fields))
	var sealed []byte
	err := d.use(sealName(fields), func(s pkcs11.SessionHandle, h pkcs11.ObjectHandle) (err error) {
		sealed, err = d.encrypt(s, h, fields[2], fields[3])
		return err
	})
	return sealed, err
}

func (d *device) unseal(fields [][]byte) ([]byte, error) {
	if n := len(fields[2]); n <= wire.SealOverhead || n > wire.MaxSecret+wire.SealOverhead || len(fields[3]) > wire.MaxAD {
		return nil, fmt.Errorf("sealed secret of %d bytes or associated data of %d is out of bounds", n, len(fields[3]))
	}
	var plaintext []byte
	err := d.use(sealName(fields), func(s pkcs11.SessionHandle, h pkcs11.ObjectHandle) (err error) {
		plaintext, err = d.decrypt(s, h, fields[2], fields[3])
		return err
	})
	return plaintext, err
}

func sealName(fields [][]byte) name {
	return name{hsm.KindSeal, string(fields[0]), string(fields[1])}
}

// encrypt returns IV, ciphertext and tag of AES-GCM. Some tokens choose the IV
// themselves, so it is read back.
func (d *device) encrypt(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, plaintext, ad []byte) ([]byte, error) {
	iv := make([]byte, wire.IVSize)
	rand.Read(iv)
	params := pkcs11.NewGCMParams(iv, ad, wire.TagSize*8)
	defer params.Free()
	err := d.p.EncryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, h)
	if err != nil {
		return nil, wrap("encrypt", err)
	}
	ciphertext, err := d.p.Encrypt(s, plaintext)
	if err != nil {
		return nil, wrap("encrypt", err)
	}
	if iv = params.IV(); len(iv) != wire.IVSize || len(ciphertext) != len(plaintext)+wire.TagSize {
		return nil, fmt.Errorf("encrypt: the token made %d bytes with an IV of %d", len(ciphertext), len(iv))
	}
	return append(iv, ciphertext...), nil
}

func (d *device) decrypt(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, sealed, ad []byte) ([]byte, error) {
	if len(sealed) <= wire.SealOverhead {
		return nil, errors.New("decrypt: too short")
	}
	params := pkcs11.NewGCMParams(sealed[:wire.IVSize], ad, wire.TagSize*8)
	defer params.Free()
	err := d.p.DecryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, h)
	if err != nil {
		return nil, wrap("decrypt", err)
	}
	plaintext, err := d.p.Decrypt(s, sealed[wire.IVSize:])
	if err == nil && len(plaintext) != len(sealed)-wire.SealOverhead {
		clear(plaintext)
		return nil, fmt.Errorf("decrypt: the token made %d bytes of %d", len(plaintext), len(sealed))
	}
	return plaintext, wrap("decrypt", err)
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
