package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/hsm"
	keys "github.com/keyturn/keyturn/hsm/tpm"
)

var nonce = []byte("a nonce of the verifier")

func wantError(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted; want an error with %q", part)
	}
	if !strings.Contains(err.Error(), part) {
		t.Fatalf("refused with %q; want %q in it", err, part)
	}
}

// quoted is a good quote by a real TPM, with what it says.
type quoted struct {
	ak, quote, sig []byte
	values         map[int][32]byte
}

func (b *bench) quote(t *testing.T, extra []byte, pcrs ...int) quoted {
	t.Helper()
	quote, sig, values, err := b.identity.Quote(t.Context(), extra, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	return quoted{b.enrol.AK, quote, sig, values}
}

func (q quoted) verify(extra []byte) error {
	_, err := attest.VerifyQuote(q.ak, q.quote, q.sig, attest.QuoteExpectation{ExtraData: extra, PCRs: q.values})
	return err
}

func TestQuote(t *testing.T) {
	b := newBench(t)
	q := b.quote(t, nonce, 0, 1, 2, 3, 4, 5, 6, 7, 8)
	got, err := attest.VerifyQuote(q.ak, q.quote, q.sig, attest.QuoteExpectation{ExtraData: nonce, PCRs: q.values})
	if err != nil {
		t.Fatal(err)
	}
	if got.Clock.ResetCount == 0 || got.Clock.Firmware == 0 || !maps.Equal(got.PCRs, q.values) {
		t.Errorf("quote %+v", got)
	}
	// A boot is a reset: the count grows, and shows as it is.
	before := got.Clock
	b.emulator.Reset(t)
	b.open(t)
	b.load(t)
	q = b.quote(t, nonce, 0, 1, 2, 3, 4, 5, 6, 7, 8)
	if got, err = attest.VerifyQuote(q.ak, q.quote, q.sig, attest.QuoteExpectation{ExtraData: nonce, PCRs: q.values}); err != nil {
		t.Fatal(err)
	}
	if got.Clock.ResetCount != before.ResetCount+1 || got.Clock.Firmware != before.Firmware {
		t.Errorf("after a reset: %+v, before %+v", got.Clock, before)
	}
}

func TestQuoteRefusals(t *testing.T) {
	b := machine(t, 0)
	for _, c := range []struct {
		extra []byte
		pcrs  []int
	}{{nil, []int{0}}, {nonce, nil}, {nonce, []int{24}}, {nonce, []int{-1}}} {
		if _, _, _, err := b.identity.Quote(t.Context(), c.extra, c.pcrs); err == nil {
			t.Errorf("quoted %v for %x", c.pcrs, c.extra)
		}
	}
	if _, err := b.device.ReadPCRs(t.Context(), []int{24}); err == nil {
		t.Error("PCR 24 was read")
	}
}

func TestAttackNonceReplay(t *testing.T) {
	b := machine(t, 0)
	wantError(t, b.quote(t, nonce, 0, 1).verify([]byte("another nonce")), "a replay")
	wantError(t, b.quote(t, nonce, 0, 1).verify(nil), "no nonce was expected")
}

// A quote of one node is offered for another (cuckoo).
func TestAttackRelayedQuote(t *testing.T) {
	good, bad := machine(t, 0), machine(t, 1)
	q := good.quote(t, nonce, 0, 1)
	q.ak = bad.enrol.AK
	wantError(t, q.verify(nonce), "does not verify")
}

// What is selected is what was signed, whatever stands beside the quote.
func TestAttackSelectionRelabel(t *testing.T) {
	b := machine(t, 0)
	q := b.quote(t, nonce, 2, 3)
	q.values = map[int][32]byte{4: q.values[2], 7: q.values[3]}
	wantError(t, q.verify(nonce), "the signed selection is PCR [2 3], wanted [4 7]")
}

// sign has a key of the TPM sign bytes that the TPM hashed itself: that is how a
// restricted key signs what is not of the TPM's making.
func (b *bench) sign(t *testing.T, key *keys.Object, message []byte, scheme tpm2.TPMTSigScheme) ([]byte, error) {
	t.Helper()
	var sig []byte
	err := b.device.Run(t.Context(), "sign", func(tr transport.TPM) error {
		hashed, err := tpm2.Hash{Data: tpm2.TPM2BMaxBuffer{Buffer: message}, HashAlg: tpm2.TPMAlgSHA256, Hierarchy: tpm2.TPMRHEndorsement}.Execute(tr)
		if err != nil {
			return err
		}
		return key.UseWithAuth(tr, func(h tpm2.AuthHandle) error {
			rsp, err := tpm2.Sign{KeyHandle: h, Digest: hashed.OutHash, InScheme: scheme, Validation: hashed.Validation}.Execute(tr)
			if err != nil {
				return err
			}
			sig = tpm2.Marshal(rsp.Signature)
			return nil
		})
	})
	return sig, err
}

// The real AK signs a structure that looks like a quote but for the magic; with
// the magic, it refuses.
func TestAttackWrongMagicByRealAK(t *testing.T) {
	b := machine(t, 0)
	q := b.quote(t, nonce, 0, 1)
	_, err := b.sign(t, b.identity.ak, q.quote, tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull})
	if err == nil {
		t.Fatal("the AK signed something that begins with the TPM's magic")
	}
	forged := bytes.Clone(q.quote)
	forged[0] = 0
	if q.sig, err = b.sign(t, b.identity.ak, forged, tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}); err != nil {
		t.Fatal(err)
	}
	q.quote = forged
	wantError(t, q.verify(nonce), "not made by a TPM")
}

// An unrestricted key of the same TPM signs a forged quote, and the signature is
// good: only the key's attributes tell.
func TestAttackUnrestrictedKeySignsQuote(t *testing.T) {
	b := machine(t, 0)
	q := b.quote(t, nonce, 0, 1)
	scheme := tpm2.TPMTSigScheme{
		Scheme:  tpm2.TPMAlgECDSA,
		Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
	}
	var err error
	// Even the magic goes through if the digest comes from outside.
	digest := sha256.Sum256(q.quote)
	err = b.device.Run(t.Context(), "sign", func(tr transport.TPM) error {
		return b.identity.SignKey.Object().UseWithAuth(tr, func(h tpm2.AuthHandle) error {
			rsp, err := tpm2.Sign{KeyHandle: h, Digest: tpm2.TPM2BDigest{Buffer: digest[:]}, InScheme: scheme,
				Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck}}.Execute(tr)
			if err != nil {
				return err
			}
			q.sig = tpm2.Marshal(rsp.Signature)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	q.ak = b.identity.SignKey.Object().Public()
	wantError(t, q.verify(nonce), "attribute restricted is not set")
}

// The AK's word about one key is offered for a key that no TPM holds.
func TestAttackCertifyWithNonTPMKey(t *testing.T) {
	b := machine(t, 0)
	outside, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := outside.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	e := *b.enrol
	e.TLS.Public = bytes.Clone(e.TLS.Public)
	n := len(e.TLS.Public)
	copy(e.TLS.Public[n-66:], point[1:33]) // the coordinates end the public area, each behind its size
	copy(e.TLS.Public[n-32:], point[33:])
	_, err = attest.VerifyEnrolment(&e, b.roots, &b.boot.PublicKey, now)
	wantError(t, err, "another key was certified")
}

// The sign key's certificate is offered for the TLS key, and one key for two roles.
func TestAttackKeyInAnotherRole(t *testing.T) {
	b := machine(t, 0)
	e := *b.enrol
	e.TLS = e.Sign
	_, err := attest.VerifyEnrolment(&e, b.roots, &b.boot.PublicKey, now)
	wantError(t, err, "tls key")
	c, err := b.identity.certify(t.Context(), attest.RoleTLS, b.identity.SignKey.Object())
	if err != nil {
		t.Fatal(err)
	}
	e.TLS = c
	_, err = attest.VerifyEnrolment(&e, b.roots, &b.boot.PublicKey, now)
	wantError(t, err, "two roles")
	if c, err = b.identity.certify(t.Context(), attest.RoleStorage, b.identity.SignKey.Object()); err != nil {
		t.Fatal(err)
	}
	e = *b.enrol
	e.Storage = c
	_, err = attest.VerifyEnrolment(&e, b.roots, &b.boot.PublicKey, now)
	wantError(t, err, "storage key")
}

// A storage key under somebody else's boot policy, or free of any.
func TestAttackStorageKeyWithoutPolicy(t *testing.T) {
	b := machine(t, 0)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, err = attest.VerifyEnrolment(b.enrol, b.roots, &other.PublicKey, now)
	wantError(t, err, "is not the charter's boot policy")
	_, err = attest.VerifyEnrolment(b.enrol, b.roots, nil, now)
	wantError(t, err, "no key was given")
	fresh, err := b.device.NewFreshKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	e := *b.enrol
	if e.Storage, err = b.identity.certify(t.Context(), attest.RoleStorage, fresh.Object()); err != nil {
		t.Fatal(err)
	}
	_, err = attest.VerifyEnrolment(&e, b.roots, &b.boot.PublicKey, now)
	wantError(t, err, "storage key")
}

func TestAttackCredentialForAnotherName(t *testing.T) {
	b := machine(t, 0)
	secret := [32]byte{9}
	name := bytes.Clone(b.node.AKName)
	name[len(name)-1] ^= 1
	blob, enc, err := attest.NewChallenge(rand.Reader, b.enrol.EK, name, secret)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.identity.Activate(t.Context(), blob, enc); err == nil || got == secret {
		t.Fatal("a challenge for another key was answered")
	}
	// Sessions of failed answers do not pile up.
	for range 5 {
		if _, err := b.identity.Activate(t.Context(), blob, enc); err == nil {
			t.Fatal("a challenge for another key was answered")
		}
	}
	if blob, enc, err = attest.ChallengeFor(rand.Reader, b.enrol, b.node, secret); err != nil {
		t.Fatal(err)
	}
	if got, err := b.identity.Activate(t.Context(), blob, enc); err != nil || got != secret {
		t.Fatalf("after failures: %v", err)
	}
}

// One node enrols with another's endorsement key: alone that looks right if the
// keys are its own, but the challenge goes to the other's TPM.
func TestAttackNodeTakeover(t *testing.T) {
	victim, thief := machine(t, 0), machine(t, 1)
	e := *thief.enrol
	e.EKCert = victim.enrol.EKCert
	roots := victim.roots
	_, err := attest.VerifyEnrolment(&e, roots, &thief.boot.PublicKey, now)
	wantError(t, err, "not that of the key in the certificate")
	e.EK = victim.enrol.EK
	_, err = attest.VerifyEnrolment(&e, roots, &thief.boot.PublicKey, now)
	wantError(t, err, "extra data") // the certificates name the node
	// With certificates made for the victim's node id the document holds...
	thief.identity.id = victim.identity.id
	for _, k := range []struct {
		role   string
		object *keys.Object
		into   *attest.CertifiedKey
	}{{attest.RoleTLS, thief.identity.TLSKey.Object(), &e.TLS}, {attest.RoleSign, thief.identity.SignKey.Object(), &e.Sign}, {attest.RoleStorage, thief.identity.StorageKey.Object(), &e.Storage}} {
		if *k.into, err = thief.identity.certify(t.Context(), k.role, k.object); err != nil {
			t.Fatal(err)
		}
	}
	node, err := attest.VerifyEnrolment(&e, roots, &thief.boot.PublicKey, now)
	if err != nil {
		t.Fatal(err)
	}
	// ...and the challenge does not: neither TPM holds both keys.
	secret := [32]byte{1}
	blob, enc, err := attest.ChallengeFor(rand.Reader, &e, node, secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []*bench{thief, victim} {
		if _, err := b.identity.Activate(t.Context(), blob, enc); err == nil {
			t.Error("a challenge to a node with a stolen name was answered")
		}
	}
}

// An interposer offers its own storage root key to salt sessions with.
func TestAttackSessionInterposer(t *testing.T) {
	b, other := machine(t, 0), machine(t, 1)
	state := *b.state
	state.StorageRoot = other.state.StorageRoot
	if _, err := b.device.Load(t.Context(), &state, &b.boot.PublicKey); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Fatalf("load under another storage root key: %v", err)
	}
	if err := b.device.PinStorageRoot(b.state.StorageRoot); err != nil {
		t.Fatal(err)
	}
	// Nor does an EK that is not the certificate's get a session.
	ek := bytes.Clone(b.enrol.EK)
	binary.BigEndian.PutUint16(ek[len(ek)-2:], 1)
	if err := attest.MatchEK(ek, b.state.EKCert); err == nil {
		t.Fatal("another EK was accepted")
	}
}

func TestFreshKeyAgreesAndDies(t *testing.T) {
	b := machine(t, 0)
	fresh, err := b.identity.FreshKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := peer.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	want, err := private.ECDH(fresh.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		got, err := fresh.ECDH(private.PublicKey())
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("agreed on %x, want %x: %v", got, want, err)
		}
	}
	if err := errors.Join(fresh.Close(), fresh.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = fresh.ECDH(private.PublicKey())
	wantError(t, err, "flushed")
	// The place in the TPM is free again.
	for range 4 {
		again, err := b.identity.FreshKey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if again.PublicKey().Equal(fresh.PublicKey()) {
			t.Fatal("the same key came twice")
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
