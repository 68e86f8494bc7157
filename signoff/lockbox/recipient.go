package lockbox

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/mlkem"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff/dsse"
)

const (
	p256Prefix   = "p256:"
	hybridPrefix = "mlkem768-p256:"

	pointSize = 65 // uncompressed P-256 point
	tagSize   = 16 // ChaCha20-Poly1305
)

// A Recipient is a public key to which shares are sealed: P-256 by
// DHKEM(P-256, HKDF-SHA256), or the hybrid MLKEM768-P256 (draft-ietf-hpke-pq).
// As text it is "p256:" or "mlkem768-p256:" and the standard base64 of the
// HPKE encoding: 65 bytes, or 1184 bytes of ML-KEM and 65 of P-256.
// The zero Recipient is nobody.
type Recipient struct {
	key hpke.PublicKey
	id  [32]byte
}

// P256Recipient returns the recipient with a P-256 key.
func P256Recipient(pub *ecdh.PublicKey) (Recipient, error) {
	id, err := hsm.Fingerprint(pub)
	if err != nil {
		return Recipient{}, fmt.Errorf("lockbox: recipient: %w", err)
	}
	key, err := hpke.NewDHKEMPublicKey(pub)
	if err != nil {
		return Recipient{}, fmt.Errorf("lockbox: recipient: %w", err)
	}
	return Recipient{key, id}, nil
}

// HybridRecipient returns the recipient with an ML-KEM-768 and a P-256 key, of
// which an attacker must break both.
func HybridRecipient(pq *mlkem.EncapsulationKey768, pub *ecdh.PublicKey) (Recipient, error) {
	if pq == nil {
		return Recipient{}, errors.New("lockbox: hybrid recipient: no ML-KEM-768 key")
	}
	if err := hsm.CheckPublic(pub); err != nil {
		return Recipient{}, fmt.Errorf("lockbox: hybrid recipient: %w", err)
	}
	key, err := hpke.NewHybridPublicKey(pq, pub)
	if err != nil {
		return Recipient{}, fmt.Errorf("lockbox: hybrid recipient: %w", err)
	}
	return Recipient{key, HybridID(pq.Bytes(), pub.Bytes())}, nil
}

// HybridID is [Recipient.ID] of a hybrid key, of its ML-KEM-768 encapsulation key
// and its uncompressed P-256 point. It checks neither.
func HybridID(pq, point []byte) [32]byte {
	return dsse.Sum("keyturn/recipient/v1", []byte(strings.TrimSuffix(hybridPrefix, ":")), slices.Concat(pq, point))
}

// ParseRecipient reads what [Recipient.String] writes, and no other spelling.
func ParseRecipient(text string) (Recipient, error) {
	prefix, encoded, _ := strings.Cut(text, ":")
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return Recipient{}, fmt.Errorf("lockbox: recipient %.40q: %w", text, err)
	}
	r, err := parseRecipient(prefix+":", raw)
	if err != nil {
		return Recipient{}, err
	}
	if r.String() != text {
		return Recipient{}, fmt.Errorf("lockbox: recipient %.40q is not in its only spelling", text)
	}
	return r, nil
}

func parseRecipient(prefix string, raw []byte) (Recipient, error) {
	switch {
	case prefix == p256Prefix:
		pub, err := ecdh.P256().NewPublicKey(raw)
		if err != nil {
			return Recipient{}, fmt.Errorf("lockbox: recipient of %d bytes: %w", len(raw), err)
		}
		return P256Recipient(pub)
	case prefix == hybridPrefix && len(raw) == mlkem.EncapsulationKeySize768+pointSize:
		pq, err := mlkem.NewEncapsulationKey768(raw[:mlkem.EncapsulationKeySize768])
		if err != nil {
			return Recipient{}, fmt.Errorf("lockbox: hybrid recipient: %w", err)
		}
		pub, err := ecdh.P256().NewPublicKey(raw[mlkem.EncapsulationKeySize768:])
		if err != nil {
			return Recipient{}, fmt.Errorf("lockbox: hybrid recipient: %w", err)
		}
		return HybridRecipient(pq, pub)
	}
	return Recipient{}, fmt.Errorf("lockbox: recipient %.20q with %d bytes, want %s or %s and a key of that kind", prefix, len(raw), p256Prefix, hybridPrefix)
}

// ID is the fingerprint that contexts and documents carry: for P-256 that of
// [hsm.Fingerprint], for a hybrid key SHA-256 over the length-prefixed
// "keyturn/recipient/v1", "mlkem768-p256" and the 1249 bytes of the key.
func (r Recipient) ID() [32]byte { return r.id }

// IsZero reports whether r is nobody.
func (r Recipient) IsZero() bool { return r.key == nil }

// Hybrid reports whether what is sealed to r withstands a quantum computer as
// long as ML-KEM-768 does.
func (r Recipient) Hybrid() bool { return r.key != nil && r.key.KEM().ID() == hpke.MLKEM768P256().ID() }

// String returns the text form, or "" for nobody.
func (r Recipient) String() string {
	switch {
	case r.IsZero():
		return ""
	case r.Hybrid():
		return hybridPrefix + base64.StdEncoding.EncodeToString(r.key.Bytes())
	}
	return p256Prefix + base64.StdEncoding.EncodeToString(r.key.Bytes())
}

// MarshalText writes the text form; nobody is an error.
func (r Recipient) MarshalText() ([]byte, error) {
	if r.IsZero() {
		return nil, errors.New("lockbox: a recipient without a key has no text form")
	}
	return []byte(r.String()), nil
}

// UnmarshalText reads what MarshalText writes.
func (r *Recipient) UnmarshalText(text []byte) error {
	parsed, err := ParseRecipient(string(text))
	if err != nil {
		return err
	}
	*r = parsed
	return nil
}

// encSize is the length of the encapsulated key: 65 bytes, or 1088 of ML-KEM
// ciphertext before them.
func (r Recipient) encSize() int {
	if r.Hybrid() {
		return mlkem.CiphertextSize768 + pointSize
	}
	return pointSize
}

// SealedSize is the length of a share sealed to r, and tells which of the two
// KEMs it was sealed with.
func (r Recipient) SealedSize() int { return r.encSize() + pairSize + tagSize }

// seal returns enc ‖ ciphertext of a 64-byte pair.
func (r Recipient) seal(info []byte, p pair) ([]byte, error) {
	if r.IsZero() {
		return nil, errors.New("lockbox: seal a share: no recipient")
	}
	plain := p.bytes()
	defer clear(plain)
	sealed, err := hpke.Seal(r.key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info, plain)
	if err != nil {
		return nil, fmt.Errorf("lockbox: seal a share: %w", err)
	}
	return sealed, nil
}

// An Identity opens what was sealed to its Recipient, with one agreement of the
// token for each opened share.
type Identity struct {
	recipient Recipient
	private   func(context.Context) (hpke.PrivateKey, error)
}

// TokenIdentity returns the identity of a P-256 agreement key.
func TokenIdentity(d hsm.Decrypter) (*Identity, error) {
	if d == nil {
		return nil, errors.New("lockbox: identity: no key")
	}
	r, err := P256Recipient(d.PublicKey())
	if err != nil {
		return nil, err
	}
	return &Identity{r, func(ctx context.Context) (hpke.PrivateKey, error) {
		return hsm.HPKEPrivate(ctx, d)
	}}, nil
}

// HybridIdentity returns the identity of a P-256 agreement key and an
// ML-KEM-768 key, each of which may live in a token.
func HybridIdentity(d hsm.Decrypter, pq crypto.Decapsulator) (*Identity, error) {
	if d == nil || pq == nil {
		return nil, errors.New("lockbox: hybrid identity: want a P-256 and an ML-KEM-768 key")
	}
	encapsulation, ok := pq.Encapsulator().(*mlkem.EncapsulationKey768)
	if !ok {
		return nil, fmt.Errorf("lockbox: hybrid identity: %T is not an ML-KEM-768 key", pq)
	}
	r, err := HybridRecipient(encapsulation, d.PublicKey())
	if err != nil {
		return nil, err
	}
	return &Identity{r, func(ctx context.Context) (hpke.PrivateKey, error) {
		return hpke.NewHybridPrivateKey(pq, bound{d, ctx})
	}}, nil
}

// bound gives the agreement inside HPKE its deadline.
type bound struct {
	hsm.Decrypter
	ctx context.Context
}

func (b bound) ECDH(peer *ecdh.PublicKey) ([]byte, error) { return b.ECDHContext(b.ctx, peer) }

// Recipient is the public half.
func (id *Identity) Recipient() Recipient { return id.recipient }

// open undoes seal. What is wrong with the bytes is a [ShareError] about where;
// what is wrong with the token is passed on as it is. Lengths and points are
// checked before the token is asked.
func (id *Identity) open(ctx context.Context, where Context, info, sealed []byte) (pair, error) {
	n := id.recipient.encSize()
	if want := n + pairSize + tagSize; len(sealed) != want {
		return pair{}, where.fault(Malformed, fmt.Errorf("sealed share of %d bytes, want %d", len(sealed), want))
	}
	if _, err := ecdh.P256().NewPublicKey(sealed[n-pointSize : n]); err != nil {
		return pair{}, where.fault(Malformed, fmt.Errorf("encapsulated key: %w", err))
	}
	private, err := id.private(ctx)
	if err != nil {
		return pair{}, fmt.Errorf("lockbox: open %s: %w", where, err)
	}
	opener, err := hpke.NewRecipient(sealed[:n], private, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), info)
	if err != nil {
		return pair{}, fmt.Errorf("lockbox: open %s: the key did not agree: %w", where, err)
	}
	plain, err := opener.Open(nil, sealed[n:])
	if err != nil {
		return pair{}, where.fault(Unopened, errors.New("altered, or sealed for another charter, object, epoch, holder, request or recipient"))
	}
	defer clear(plain)
	p, err := parsePair(plain)
	if err != nil {
		return pair{}, where.fault(Malformed, err)
	}
	return p, nil
}
