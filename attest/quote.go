package attest

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// A Quote is what a TPM signed about its PCRs, after every check.
type Quote struct {
	PCRs      map[int][32]byte // the sha256 values that the signed digest covers
	PCRDigest []byte           // as signed
	ExtraData []byte
	Clock     Clock
	Signer    []byte // qualified name of the AK
}

// QuoteExpectation is what a quote must say. Every field is required.
type QuoteExpectation struct {
	ExtraData []byte           // exactly what must have been signed, not empty
	PCRs      map[int][32]byte // the sha256 PCRs that must be selected, no more and no fewer, with their values
}

// VerifyQuote checks a TPMS_ATTEST of type quote and its TPMT_SIGNATURE against
// the AK's TPMT_PUBLIC and what is expected (Part 3, section 18.4). The AK must
// be restricted, signing, fixedTPM, fixedParent and sensitiveDataOrigin; the
// signed selection must name the sha256 bank alone and exactly the PCRs wanted;
// the signed digest must be that of the values wanted.
func VerifyQuote(akPublic, quote, sig []byte, want QuoteExpectation) (*Quote, error) {
	ak, err := attestationKey(akPublic)
	if err != nil {
		return nil, err
	}
	return verifyQuote(ak, quote, sig, want)
}

func verifyQuote(ak *Public, quote, sig []byte, want QuoteExpectation) (*Quote, error) {
	s, signature, err := verifyStatement(ak, quote, sig, stQuote, want.ExtraData)
	if err != nil {
		return nil, fmt.Errorf("attest: quote: %w", err)
	}
	pcrs, err := sha256Selection(s.banks)
	if err != nil {
		return nil, fmt.Errorf("attest: quote: %w", err)
	}
	wanted := slices.Sorted(maps.Keys(want.PCRs))
	if !slices.Equal(pcrs, wanted) {
		return nil, fmt.Errorf("attest: quote: the signed selection is PCR %v, wanted %v", pcrs, wanted)
	}
	values := make([][]byte, len(pcrs))
	for i, pcr := range pcrs {
		v := want.PCRs[pcr]
		values[i] = v[:]
	}
	if !bytes.Equal(digestOf(signature.Hash, values), s.pcrDigest) {
		return nil, fmt.Errorf("attest: quote: the signed digest %x is not that of the PCR values given", s.pcrDigest)
	}
	return &Quote{
		PCRs: maps.Clone(want.PCRs), PCRDigest: s.pcrDigest, ExtraData: s.extraData,
		Clock: s.clock, Signer: s.qualifiedSigner,
	}, nil
}

// sha256Selection returns the selected PCRs if they are all in the sha256 bank
// and there is at least one.
func sha256Selection(banks []Bank) ([]int, error) {
	if len(banks) != 1 || banks[0].Algorithm != algSHA256 {
		return nil, fmt.Errorf("the signed selection must name the sha256 bank alone, not %s", describe(banks))
	}
	if len(banks[0].PCRs) == 0 {
		return nil, errors.New("the signed selection is empty: it says nothing about any PCR")
	}
	return banks[0].PCRs, nil
}

func describe(banks []Bank) string {
	if len(banks) == 0 {
		return "no bank"
	}
	var b bytes.Buffer
	for i, bank := range banks {
		if i > 0 {
			b.WriteString(" and ")
		}
		fmt.Fprintf(&b, "%s:%v", bankName(bank.Algorithm), bank.PCRs)
	}
	return b.String()
}

// digestOf returns the hash over the concatenated PCR values.
func digestOf(h crypto.Hash, values [][]byte) []byte {
	w := h.New()
	for _, v := range values {
		w.Write(v)
	}
	return w.Sum(nil)
}

// A Certified is a key that an AK vouched for.
type Certified struct {
	Public        *Public
	QualifiedName []byte // places the key under its parents and hierarchy
	Signer        []byte // qualified name of the AK
	Clock         Clock
}

// VerifyCertify checks a TPMS_ATTEST of type certify and its TPMT_SIGNATURE: the
// AK (TPMT_PUBLIC, with the attributes that [VerifyQuote] asks for) says that the
// key whose TPMT_PUBLIC is keyPublic was loaded in its TPM, over exactly the
// qualifying data wanted (Part 3, section 18.2). It says nothing about that key's
// attributes: the caller reads them from the result, which is bound by the name.
func VerifyCertify(akPublic, certInfo, sig, keyPublic, wantQualifying []byte) (*Certified, error) {
	ak, err := attestationKey(akPublic)
	if err != nil {
		return nil, err
	}
	return verifyCertify(ak, certInfo, sig, keyPublic, wantQualifying)
}

func verifyCertify(ak *Public, certInfo, sig, keyPublic, wantQualifying []byte) (*Certified, error) {
	s, _, err := verifyStatement(ak, certInfo, sig, stCertify, wantQualifying)
	if err != nil {
		return nil, fmt.Errorf("attest: certify: %w", err)
	}
	key, err := ParsePublic(keyPublic)
	if err != nil {
		return nil, err
	}
	if name := key.Name(); !bytes.Equal(name, s.name) {
		return nil, fmt.Errorf("attest: certify: the certified name is %x, the key's is %x: another key was certified", s.name, name)
	}
	return &Certified{Public: key, QualifiedName: s.qualifiedName, Signer: s.qualifiedSigner, Clock: s.clock}, nil
}
