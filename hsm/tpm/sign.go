package tpm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/keyturn/keyturn/hsm"
)

// p256Template returns the public area of an unrestricted P-256 key without scheme.
func p256Template(attributes tpm2.TPMAObject) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

// publicKey returns the P-256 key of an object.
func (o *Object) publicKey() (*ecdsa.PublicKey, error) {
	parameters, err := o.public.Parameters.ECCDetail()
	if err != nil {
		return nil, fmt.Errorf("not an ECC key: %w", err)
	}
	if parameters.CurveID != tpm2.TPMECCNistP256 {
		return nil, fmt.Errorf("curve 0x%04x is not P-256", uint16(parameters.CurveID))
	}
	point, err := o.public.Unique.ECC()
	if err != nil {
		return nil, err
	}
	buf, err := uncompressed(point)
	if err != nil {
		return nil, err
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), buf)
}

// uncompressed writes a P-256 point as SEC 1 has it. TPMs may leave out leading zeros.
func uncompressed(p *tpm2.TPMSECCPoint) ([]byte, error) {
	if len(p.X.Buffer) > 32 || len(p.Y.Buffer) > 32 {
		return nil, fmt.Errorf("coordinates of %d and %d bytes are not P-256", len(p.X.Buffer), len(p.Y.Buffer))
	}
	buf := make([]byte, 65)
	buf[0] = 4
	copy(buf[33-len(p.X.Buffer):33], p.X.Buffer)
	copy(buf[65-len(p.Y.Buffer):], p.Y.Buffer)
	return buf, nil
}

// A SigningKey is a P-256 key in a TPM. It implements hsm.Key.
type SigningKey struct {
	tpm    *TPM
	object *Object
	public *ecdsa.PublicKey
	info   hsm.Info
}

var _ hsm.Key = (*SigningKey)(nil)

// NewSigningKey makes a P-256 signing key: unrestricted, fixed to this TPM,
// usable without a PIN. Load it with [TPM.SigningKey].
func (t *TPM) NewSigningKey(ctx context.Context) (Blob, error) {
	return t.create(ctx, "make signing key", p256Template(tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true,
	}))
}

// SigningKey loads a signing key. uri names it in its Info.
func (t *TPM) SigningKey(ctx context.Context, b Blob, uri string) (*SigningKey, error) {
	o, err := t.load(ctx, "load signing key", b)
	if err != nil {
		return nil, err
	}
	public, err := o.publicKey()
	if err != nil {
		return nil, fmt.Errorf("tpm: load signing key: %w", err)
	}
	if a := o.public.ObjectAttributes; !a.SignEncrypt || a.Decrypt || a.Restricted {
		return nil, fmt.Errorf("tpm: load signing key: %s is not an unrestricted signing key", uri)
	}
	return &SigningKey{tpm: t, object: o, public: public, info: t.info(uri)}, nil
}

// Public returns the *ecdsa.PublicKey.
func (k *SigningKey) Public() crypto.PublicKey { return k.public }

// Info describes the key.
func (k *SigningKey) Info() hsm.Info { return k.info }

// Object returns the key as an object, to be certified.
func (k *SigningKey) Object() *Object { return k.object }

// Sign is SignContext without a deadline.
func (k *SigningKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// SignContext signs a SHA-256 digest and returns ASN.1 DER, after it verified
// under the public key.
func (k *SigningKey) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := hsm.CheckInput(k.public, digest, opts); err != nil {
		return nil, err
	}
	var sig []byte
	err := k.tpm.Run(ctx, "sign", func(tr transport.TPM) error {
		return k.object.UseWithAuth(tr, func(h tpm2.AuthHandle) (err error) {
			sig, err = signDigest(tr, h, digest)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	if err := hsm.VerifySignature(k.public, digest, sig, opts); err != nil {
		return nil, fmt.Errorf("tpm: %w: %s returned a signature that its public key refuses", hsm.ErrWrongIdentity, k.info.URI)
	}
	return sig, nil
}

// signDigest signs a SHA-256 digest and returns ASN.1 DER.
func signDigest(tr transport.TPM, key tpm2.AuthHandle, digest []byte) ([]byte, error) {
	rsp, err := tpm2.Sign{
		KeyHandle: key, Digest: tpm2.TPM2BDigest{Buffer: digest}, InScheme: ecdsaSHA256(),
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(tr)
	if err != nil {
		return nil, err
	}
	return signatureDER(&rsp.Signature)
}

func ecdsaSHA256() tpm2.TPMTSigScheme {
	return tpm2.TPMTSigScheme{
		Scheme:  tpm2.TPMAlgECDSA,
		Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
	}
}

// signatureDER turns a TPM's (r, s) into ASN.1 DER.
func signatureDER(sig *tpm2.TPMTSignature) ([]byte, error) {
	parts, err := sig.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(parts.SignatureR.Buffer))
		b.AddASN1BigInt(new(big.Int).SetBytes(parts.SignatureS.Buffer))
	})
	return b.Bytes()
}
