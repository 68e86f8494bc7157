package tpm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/hsm"
	keys "github.com/keyturn/keyturn/hsm/tpm"
)

// A Device is a TPM in which a node keeps its identity.
type Device struct {
	*keys.TPM
}

// Open connects to a TPM: /dev/tpmrm0, or unix:/PATH for an emulator's socket.
// The caller closes it.
func Open(path string) (*Device, error) {
	t, err := keys.Open(path)
	if err != nil {
		return nil, err
	}
	return &Device{t}, nil
}

// State is what an agent keeps of its identity across restarts. Nothing in it is
// secret, and nothing in it works with another TPM.
type State struct {
	EKCert      []byte    `json:"ekCert"`      // DER
	EKTemplate  string    `json:"ekTemplate"`  // EKTemplateECC or EKTemplateRSA
	AKSeed      []byte    `json:"akSeed"`      // 32 random bytes in the AK's template: another seed, another AK
	AKName      []byte    `json:"akName"`      // that must come out
	StorageRoot []byte    `json:"storageRoot"` // name of the parent of the keys below
	TLS         keys.Blob `json:"tls"`
	Sign        keys.Blob `json:"sign"`
	Storage     keys.Blob `json:"storage"`
}

// The endorsement keys of the TCG EK Credential Profile 2.5 that are used here,
// by the name of their template there.
const (
	EKTemplateECC = "L-2" // P-256, certificate in NV index 0x01c0000a
	EKTemplateRSA = "L-1" // RSA-2048, certificate in NV index 0x01c00002
)

type ekKind struct {
	template string
	index    tpm2.TPMHandle // of the certificate
	public   tpm2.TPMTPublic
}

var ekKinds = []ekKind{
	{EKTemplateECC, 0x01c0000a, tpm2.ECCEKTemplate},
	{EKTemplateRSA, 0x01c00002, tpm2.RSAEKTemplate},
}

// EKCertificate reads the endorsement key's certificate (DER) from the TPM's NV
// memory, and tells which template it is for. Where there are two, it is the one
// for the ECC key.
func (d *Device) EKCertificate(ctx context.Context) (der []byte, template string, err error) {
	err = d.Run(ctx, "read the ek certificate", func(tr transport.TPM) error {
		for _, kind := range ekKinds {
			raw, err := readNV(tr, kind.index)
			if errors.Is(err, tpm2.TPMRCHandle) {
				continue // no such index
			}
			if err != nil {
				return fmt.Errorf("NV index 0x%08x: %w", uint32(kind.index), err)
			}
			der, err = attest.DecodeEKCert(raw)
			template = kind.template
			return err
		}
		return errors.New("the TPM holds no EK certificate in NV index 0x01c0000a or 0x01c00002; get it from the maker")
	})
	return der, template, err
}

// readNV reads a whole NV index that its own empty auth value opens.
func readNV(tr transport.TPM, index tpm2.TPMHandle) ([]byte, error) {
	const chunk = 512 // every TPM can give this much at a time
	public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tr)
	if err != nil {
		return nil, err
	}
	contents, err := public.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	var data []byte
	for size := int(contents.DataSize); len(data) < size; {
		rsp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: public.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: public.NVName},
			Size:       uint16(min(chunk, size-len(data))), Offset: uint16(len(data)),
		}.Execute(tr)
		if err != nil {
			return nil, err
		}
		if len(rsp.Data.Buffer) == 0 {
			return nil, fmt.Errorf("nothing read at byte %d of %d", len(data), size)
		}
		data = append(data, rsp.Data.Buffer...)
	}
	return data, nil
}

// akTemplate is a restricted P-256 signing key. The seed makes it one of many
// that the endorsement seed can give.
func akTemplate(seed []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: seed}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		}),
	}
}

// Provision makes a new identity: an AK and three keys, the storage key under
// the boot policy of bootPolicyKey (P-256). Nothing is written into the TPM.
func (d *Device) Provision(ctx context.Context, bootPolicyKey *ecdsa.PublicKey) (*State, error) {
	s := &State{AKSeed: make([]byte, 32)}
	rand.Read(s.AKSeed)
	var err error
	if s.EKCert, s.EKTemplate, err = d.EKCertificate(ctx); err != nil {
		return nil, err
	}
	ak, err := d.makeAK(ctx, s.AKSeed)
	if err != nil {
		return nil, err
	}
	s.AKName = ak.Name()
	if s.StorageRoot, err = d.StorageRoot(ctx); err != nil {
		return nil, err
	}
	if s.TLS, err = d.NewSigningKey(ctx); err != nil {
		return nil, err
	}
	if s.Sign, err = d.NewSigningKey(ctx); err != nil {
		return nil, err
	}
	s.Storage, err = d.NewStorageKey(ctx, bootPolicyKey)
	return s, err
}

func (d *Device) makeAK(ctx context.Context, seed []byte) (ak *keys.Object, err error) {
	err = d.Run(ctx, "make the attestation key", func(tr transport.TPM) (err error) {
		ak, err = keys.NewPrimary(tr, tpm2.TPMRHEndorsement, akTemplate(seed))
		return err
	})
	return ak, err
}

// An Identity is a node's keys, loaded. Its methods may be called from several
// goroutines. After the TPM was reset, open the device and load again.
type Identity struct {
	device *Device
	state  State
	ak     *keys.Object
	ek     *keys.Object // nil before it is needed; touched within Run only
	id     attest.Digest

	TLSKey     *keys.SigningKey // for mutual TLS
	SignKey    *keys.SigningKey // for claims and receipts
	StorageKey *keys.StorageKey // for the people's factor, in approved boots
}

// Load brings an identity back from its state, and pins the TPM's storage root
// key. Another TPM, a cleared one, or a changed state is refused with
// hsm.ErrWrongIdentity or hsm.ErrGone.
func (d *Device) Load(ctx context.Context, s *State, bootPolicyKey *ecdsa.PublicKey) (*Identity, error) {
	if s == nil {
		return nil, errors.New("tpm: load identity: no state was given; provision first")
	}
	ek, err := attest.ReadEKCert(s.EKCert)
	if err != nil {
		return nil, fmt.Errorf("tpm: load identity: %w", err)
	}
	if err := d.PinStorageRoot(s.StorageRoot); err != nil {
		return nil, err
	}
	i := &Identity{device: d, state: *s, id: ek.ID}
	if i.ak, err = d.makeAK(ctx, s.AKSeed); err != nil {
		return nil, err
	}
	if !bytes.Equal(i.ak.Name(), s.AKName) {
		return nil, fmt.Errorf("tpm: load identity: %w: attestation key %x, recorded %x: another TPM or a cleared one", hsm.ErrWrongIdentity, i.ak.Name(), s.AKName)
	}
	if i.TLSKey, err = d.SigningKey(ctx, s.TLS, "tpm:tls"); err != nil {
		return nil, err
	}
	if i.SignKey, err = d.SigningKey(ctx, s.Sign, "tpm:sign"); err != nil {
		return nil, err
	}
	i.StorageKey, err = d.StorageKey(ctx, s.Storage, bootPolicyKey, "tpm:storage")
	return i, err
}

// Node returns the node id: SHA-256 of the EK's SubjectPublicKeyInfo, from the
// certificate.
func (i *Identity) Node() attest.Digest { return i.id }

// AKName returns the attestation key's TPM name.
func (i *Identity) AKName() []byte { return i.ak.Name() }

// TLSName returns the TLS key's TPM name.
func (i *Identity) TLSName() []byte { return i.TLSKey.Object().Name() }
