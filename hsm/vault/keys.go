package vault

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keyturn/keyturn/hsm"
)

// The types of transit keys that are of use here.
const (
	typeP256    = "ecdsa-p256"
	typeEd25519 = "ed25519"
	typeSeal    = "aes256-gcm96"
)

// Key returns the signing key at uri (vault:transit/NAME?version=N), of type
// ecdsa-p256 or ed25519. Pinned is its public key as recorded at enrolment, a
// P-256 *ecdsa.PublicKey or an ed25519.PublicKey; nil takes what the server
// shows and is for enrolment only.
func (s *Store) Key(ctx context.Context, uri string, pinned crypto.PublicKey) (hsm.Key, error) {
	id, found, err := s.find(ctx, uri, typeP256, typeEd25519)
	if err != nil {
		return nil, err
	}
	public, verifier, err := found.public(id.uri.Version)
	if err == nil && pinned != nil {
		err = hsm.SamePublic(pinned, public)
	}
	if err != nil {
		return nil, id.explain("find the key", err)
	}
	return &key{id, public, verifier}, nil
}

// Sealer returns the sealing key at uri (vault:transit/NAME?version=N), of type
// aes256-gcm96. It unseals what this version sealed and nothing else. Where the
// version is disabled for encryption, it unseals only.
func (s *Store) Sealer(ctx context.Context, uri string) (hsm.Sealer, error) {
	id, found, err := s.find(ctx, uri, typeSeal)
	if err != nil {
		return nil, err
	}
	k := &sealer{identity: id}
	if found.disabled(id.uri.Version) == nil {
		k.canary = make([]byte, 32)
		rand.Read(k.canary) // never fails, see crypto/rand
		if k.witness, err = k.encrypt(ctx, k.canary, nil); err != nil {
			return nil, id.explain("use the sealing key", err)
		}
	}
	return k, nil
}

// identity names one version of a transit key.
type identity struct {
	s    *Store
	uri  hsm.URI
	info hsm.Info
}

func (id *identity) Info() hsm.Info { return id.info }

func (id *identity) explain(what string, err error) error {
	return id.s.explain(what+" "+id.info.URI, err)
}

// record is what transit says of a key.
type record struct {
	Type                 string                    `json:"type"`
	Derived              bool                      `json:"derived"`
	Exportable           bool                      `json:"exportable"`
	AllowPlaintextBackup bool                      `json:"allow_plaintext_backup"`
	LatestVersion        int                       `json:"latest_version"`
	MinDecryptionVersion int                       `json:"min_decryption_version"`
	MinEncryptionVersion int                       `json:"min_encryption_version"` // of signing, too
	Versions             map[string]jsontext.Value `json:"keys"`
}

// find reads the record of a key and refuses one that is not fit for use.
func (s *Store) find(ctx context.Context, uri string, types ...string) (*identity, *record, error) {
	u, err := hsm.ParseURI(uri)
	if err != nil {
		return nil, nil, err
	}
	if u.Scheme != hsm.SchemeVault {
		return nil, nil, fmt.Errorf("vault: %s is not a vault: URI", uri)
	}
	id := &identity{s, u, hsm.Info{URI: u.String(), Class: hsm.ClassSelfDeclared, Manufacturer: "Vault transit"}}
	found, err := id.record(ctx)
	if err == nil {
		err = found.fit(u.Version, types)
	}
	if err != nil {
		return nil, nil, id.explain("find the key", err)
	}
	return id, found, nil
}

func (id *identity) record(ctx context.Context) (*record, error) {
	var out answer[record]
	err := id.s.call(ctx, "transit/keys/"+id.uri.Name, nil, &out)
	return &out.Data, err
}

// fit refuses a key of another type, one that would leave the server, and a
// version that is not there.
func (r *record) fit(version int, types []string) error {
	usable := false
	for _, t := range types {
		usable = usable || r.Type == t
	}
	switch {
	case !usable:
		return fmt.Errorf("it is of type %.40q; want %s", r.Type, strings.Join(types, " or "))
	case r.Derived:
		return errors.New("it is derived: each context is another key; make one that is not")
	case r.Exportable || r.AllowPlaintextBackup:
		return errors.New("the server would give this key away (exportable or allow_plaintext_backup); make another")
	}
	if _, there := r.Versions[strconv.Itoa(version)]; !there {
		return fmt.Errorf("%w: version %d is not among versions %d to %d of the key", hsm.ErrGone, version, max(r.MinDecryptionVersion, 1), r.LatestVersion)
	}
	return nil
}

// disabled returns an error if a version may not sign or seal any more.
func (r *record) disabled(version int) error {
	if version < r.MinEncryptionVersion {
		return fmt.Errorf("%w: version %d is disabled: min_encryption_version is %d", hsm.ErrGone, version, r.MinEncryptionVersion)
	}
	return nil
}

// public returns the public key of a version, which was checked.
func (r *record) public(version int) (crypto.PublicKey, hsm.Verifier, error) {
	var v struct {
		PublicKey string `json:"public_key"`
	}
	if err := json.Unmarshal(r.Versions[strconv.Itoa(version)], &v); err != nil {
		return nil, hsm.Verifier{}, fmt.Errorf("version %d has no public key: %w", version, err)
	}
	var verifier hsm.Verifier
	public, err := parsePublic(r.Type, v.PublicKey)
	if err == nil {
		verifier, err = hsm.NewVerifier(public)
	}
	if err != nil {
		return nil, hsm.Verifier{}, fmt.Errorf("public key of version %d: %w", version, err)
	}
	return public, verifier, nil
}

// parsePublic reads what transit shows: PEM for P-256, base64 of the 32 bytes
// for Ed25519.
func parsePublic(keyType, text string) (crypto.PublicKey, error) {
	if keyType == typeEd25519 {
		raw, err := base64.StdEncoding.Strict().DecodeString(text)
		return ed25519.PublicKey(raw), err
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("is not exactly one PEM block \"PUBLIC KEY\"")
	}
	return x509.ParsePKIXPublicKey(block.Bytes)
}

// request makes one request for this key. If it is refused, the record of the
// key tells whether that is because the key or the version is gone.
func (id *identity) request(ctx context.Context, operation string, in, out any) error {
	err := id.s.call(ctx, "transit/"+operation+"/"+id.uri.Name, in, out)
	if err == nil || hsm.ContextError(ctx) != nil || typed(err) || errors.Is(err, hsm.ErrSealed) || errors.Is(err, hsm.ErrTimeout) {
		return err
	}
	found, lookup := id.record(ctx)
	if errors.Is(lookup, hsm.ErrGone) {
		return lookup
	}
	if lookup != nil {
		return err
	}
	gone := found.fit(id.uri.Version, []string{found.Type})
	if gone == nil && operation != "decrypt" {
		gone = found.disabled(id.uri.Version)
	}
	if gone != nil {
		return fmt.Errorf("%w; %w", gone, err)
	}
	return err
}

// strip removes "vault:vN:" from what transit signed or sealed, and decodes the
// rest. Only the pinned version will do, and only the one encoding of it.
func (id *identity) strip(text string) ([]byte, error) {
	encoded, found := strings.CutPrefix(text, fmt.Sprintf("vault:v%d:", id.uri.Version))
	if !found {
		return nil, fmt.Errorf("%w: want something by version %d, not %.16q", hsm.ErrWrongIdentity, id.uri.Version, text)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || base64.StdEncoding.EncodeToString(raw) != encoded { // the decoder passes over line ends
		return nil, fmt.Errorf("the %d bytes behind the version are not base64", len(encoded))
	}
	return raw, nil
}

type key struct {
	*identity
	public   crypto.PublicKey
	verifier hsm.Verifier // of public
}

func (k *key) Public() crypto.PublicKey { return k.public }

func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.SignContext(context.Background(), digest, opts)
}

// signRequest is the body of transit/sign. The last three members are for P-256
// only: an Ed25519 key that is sent a digest would sign the digest.
type signRequest struct {
	Input       []byte `json:"input"`
	KeyVersion  int    `json:"key_version"`
	Prehashed   bool   `json:"prehashed,omitzero"`
	Hash        string `json:"hash_algorithm,omitzero"`
	Marshalling string `json:"marshaling_algorithm,omitzero"`
}

func (k *key) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.verifier.CheckInput(digest, opts); err != nil {
		return nil, err
	}
	if len(digest) > maxMessage {
		return nil, fmt.Errorf("vault: a message of %d bytes is over %d", len(digest), maxMessage)
	}
	in := signRequest{Input: digest, KeyVersion: k.uri.Version}
	if _, isECDSA := k.public.(*ecdsa.PublicKey); isECDSA {
		in.Prehashed, in.Hash, in.Marshalling = true, "sha2-256", "asn1"
	}
	var out answer[struct {
		Signature string `json:"signature"`
	}]
	if err := k.request(ctx, "sign", in, &out); err != nil {
		return nil, k.explain("sign with", err)
	}
	sig, err := k.strip(out.Data.Signature)
	if err == nil {
		err = k.verifier.Verify(digest, sig, opts)
	}
	if err != nil {
		return nil, k.explain("sign with", fmt.Errorf("%w: %w", hsm.ErrWrongIdentity, err))
	}
	return sig, nil
}

type sealer struct {
	*identity
	canary  []byte // 32 random bytes
	witness []byte // canary, sealed when the key was opened; nil if it could not seal then
}

// item is one plaintext or ciphertext on its way to the server or back.
type item struct {
	Plaintext  []byte `json:"plaintext,omitempty"`
	Ciphertext string `json:"ciphertext,omitzero"`
	AD         []byte `json:"associated_data,omitempty"`
	KeyVersion int    `json:"key_version,omitzero"`
}

// Seal wraps 1 to 4096 bytes. What it returns was opened by the server again.
func (k *sealer) Seal(ctx context.Context, plaintext, ad []byte) ([]byte, error) {
	if len(plaintext) == 0 || len(plaintext) > maxSecret || len(ad) > maxAD {
		return nil, fmt.Errorf("vault: a secret has 1 to %d bytes, not %d, and its associated data up to %d, not %d",
			maxSecret, len(plaintext), maxAD, len(ad))
	}
	if k.witness == nil {
		return nil, k.explain("seal with", fmt.Errorf("%w: the version was disabled for sealing when the key was opened", hsm.ErrGone))
	}
	sealed, err := k.encrypt(ctx, plaintext, ad)
	if err == nil {
		err = k.prove(ctx, sealed, plaintext, ad)
	}
	if err != nil {
		return nil, k.explain("seal with", err)
	}
	return sealed, nil
}

// Unseal opens what Seal of the same version returned, and nothing else.
func (k *sealer) Unseal(ctx context.Context, sealed, ad []byte) ([]byte, error) {
	if len(sealed) > maxSealed || len(ad) > maxAD {
		return nil, fmt.Errorf("vault: sealed secret of %d bytes or associated data of %d is over %d or %d", len(sealed), len(ad), maxSealed, maxAD)
	}
	if _, err := k.strip(string(sealed)); err != nil {
		return nil, k.explain("unseal with", err)
	}
	plaintext, err := k.decrypt(ctx, sealed, ad)
	if err != nil {
		return nil, k.explain("unseal with", err)
	}
	return plaintext, nil
}

func (k *sealer) encrypt(ctx context.Context, plaintext, ad []byte) ([]byte, error) {
	var out answer[item]
	in := item{Plaintext: plaintext, AD: ad, KeyVersion: k.uri.Version}
	if err := k.request(ctx, "encrypt", in, &out); err != nil {
		return nil, err
	}
	if _, err := k.strip(out.Data.Ciphertext); err != nil {
		return nil, err
	}
	return []byte(out.Data.Ciphertext), nil
}

func (k *sealer) decrypt(ctx context.Context, sealed, ad []byte) ([]byte, error) {
	var out answer[item]
	if err := k.request(ctx, "decrypt", item{Ciphertext: string(sealed), AD: ad}, &out); err != nil {
		return nil, err
	}
	if len(out.Data.Plaintext) == 0 {
		return nil, fmt.Errorf("%w: the server opened it and returned nothing", hsm.ErrWrongIdentity)
	}
	return out.Data.Plaintext, nil
}

// prove returns nil if the key that opens the witness opens sealed as well.
func (k *sealer) prove(ctx context.Context, sealed, plaintext, ad []byte) error {
	canary, err := k.decrypt(ctx, k.witness, nil)
	if err != nil {
		return fmt.Errorf("it does not open what it sealed when it was opened: %w", err)
	}
	again, err := k.decrypt(ctx, sealed, ad)
	if err != nil {
		return fmt.Errorf("what was sealed does not open: %w", err)
	}
	defer clear(again)
	if subtle.ConstantTimeCompare(canary, k.canary)&subtle.ConstantTimeCompare(again, plaintext) != 1 {
		return fmt.Errorf("%w: what was sealed opens as something else", hsm.ErrWrongIdentity)
	}
	return nil
}
