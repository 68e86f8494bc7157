package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"testing"
)

// The forger holds attestation keys in software and encodes whatever structure a
// test asks for: what somebody could send who has no TPM at all.

const akAttributes = genuine | Restricted | Sign | UserWithAuth | NoDA

type forger struct {
	key    crypto.Signer
	public []byte // TPMT_PUBLIC
	scheme uint16
	hash   uint16
}

// eccPublic encodes a TPMT_PUBLIC on P-256 or P-384.
func eccPublic(key *ecdsa.PublicKey, attributes Attributes, scheme, hash uint16, policy []byte) []byte {
	curve, n := curveP256, 32
	if key.Curve == elliptic.P384() {
		curve, n = curveP384, 48
	}
	b := binary.BigEndian.AppendUint16(nil, algECC)
	b = binary.BigEndian.AppendUint16(b, algSHA256)
	b = binary.BigEndian.AppendUint32(b, uint32(attributes))
	b = appendSized(b, policy)
	b = binary.BigEndian.AppendUint16(b, algNull)
	b = binary.BigEndian.AppendUint16(b, scheme)
	if scheme != algNull {
		b = binary.BigEndian.AppendUint16(b, hash)
	}
	b = binary.BigEndian.AppendUint16(b, curve)
	b = binary.BigEndian.AppendUint16(b, algNull)
	point, err := key.Bytes()
	if err != nil {
		panic(err)
	}
	return appendSized(appendSized(b, point[1:1+n]), point[1+n:])
}

func rsaPublic(key *rsa.PublicKey, attributes Attributes, scheme, hash uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, algRSA)
	b = binary.BigEndian.AppendUint16(b, algSHA256)
	b = binary.BigEndian.AppendUint32(b, uint32(attributes))
	b = appendSized(b, nil)
	b = binary.BigEndian.AppendUint16(b, algNull)
	b = binary.BigEndian.AppendUint16(b, scheme)
	b = binary.BigEndian.AppendUint16(b, hash)
	b = binary.BigEndian.AppendUint16(b, uint16(key.N.BitLen()))
	b = binary.BigEndian.AppendUint32(b, 0)
	return appendSized(b, key.N.Bytes())
}

func newForger(t testing.TB, curve elliptic.Curve, attributes Attributes, hash uint16) *forger {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &forger{key, eccPublic(&key.PublicKey, attributes, algECDSA, hash, nil), algECDSA, hash}
}

func newRSAForger(t testing.TB, scheme, hash uint16) *forger {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &forger{key, rsaPublic(&key.PublicKey, akAttributes, scheme, hash), scheme, hash}
}

// sign makes a TPMT_SIGNATURE.
func (f *forger) sign(t testing.TB, message []byte) []byte {
	t.Helper()
	h := crypto.SHA256
	switch f.hash {
	case algSHA384:
		h = crypto.SHA384
	case algSHA512:
		h = crypto.SHA512
	}
	w := h.New()
	w.Write(message)
	out := binary.BigEndian.AppendUint16(nil, f.scheme)
	out = binary.BigEndian.AppendUint16(out, f.hash)
	switch key := f.key.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, w.Sum(nil))
		if err != nil {
			t.Fatal(err)
		}
		return appendSized(appendSized(out, r.Bytes()), s.Bytes())
	case *rsa.PrivateKey:
		opts := crypto.SignerOpts(h)
		if f.scheme == algRSAPSS {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
		}
		sig, err := key.Sign(rand.Reader, w.Sum(nil), opts)
		if err != nil {
			t.Fatal(err)
		}
		return appendSized(out, sig)
	}
	t.Fatalf("no way to sign with %T", f.key)
	return nil
}

func (f *forger) name(t testing.TB) []byte {
	t.Helper()
	p, err := ParsePublic(f.public)
	if err != nil {
		t.Fatal(err)
	}
	return p.Name()
}

// header is the part that all TPMS_ATTEST share.
func header(magic uint32, kind uint16, signer, extra []byte, c Clock) []byte {
	b := binary.BigEndian.AppendUint32(nil, magic)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = appendSized(appendSized(b, signer), extra)
	b = binary.BigEndian.AppendUint64(b, c.Milliseconds)
	b = binary.BigEndian.AppendUint32(b, c.ResetCount)
	b = binary.BigEndian.AppendUint32(b, c.RestartCount)
	safe := byte(0)
	if c.Safe {
		safe = 1
	}
	b = append(b, safe)
	return binary.BigEndian.AppendUint64(b, c.Firmware)
}

func selection(banks ...Bank) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(banks)))
	for _, bank := range banks {
		b = binary.BigEndian.AppendUint16(b, bank.Algorithm)
		bitmap := make([]byte, 3)
		for _, pcr := range bank.PCRs {
			bitmap[pcr/8] |= 1 << (pcr % 8)
		}
		b = append(append(b, 3), bitmap...)
	}
	return b
}

var someClock = Clock{Milliseconds: 1000, ResetCount: 7, RestartCount: 2, Safe: true, Firmware: 9}

// forgedQuote is a TPMS_ATTEST over PCR values, digested with SHA-256.
func forgedQuote(extra []byte, sel []byte, values ...[]byte) []byte {
	h := sha256.New()
	for _, v := range values {
		h.Write(v)
	}
	b := header(magicGenerated, stQuote, []byte("signer"), extra, someClock)
	return appendSized(append(b, sel...), h.Sum(nil))
}

func pcrValues(pcrs ...int) (map[int][32]byte, [][]byte) {
	values := make(map[int][32]byte)
	var list [][]byte
	for _, pcr := range pcrs {
		v := sha256.Sum256([]byte{byte(pcr)})
		values[pcr] = v
		list = append(list, v[:])
	}
	return values, list
}
