package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/attest/eventlog"
)

// QuoteFiles are the raw files that a person has at hand, as tpm2_quote and
// tpm2_pcrread write them.
type QuoteFiles struct {
	Quote     []byte   // TPMS_ATTEST (tpm2_quote -m)
	Signature []byte   // TPMT_SIGNATURE (tpm2_quote -s)
	AK        []byte   // PKIX as PEM or DER, or TPMT_PUBLIC, with or without its 16-bit size in front
	Nonce     []byte   // extra data expected, nil to accept any that is not empty
	PCRs      []byte   // what eventlog.DecodePCRs takes, a file of tpm2_quote -o or tpm2_pcrread -o, or raw values in order of selection; nil for none
	Log       []byte   // firmware event log, nil for none; without PCRs it must lead to what was signed, by itself
	Names     []string // of the machine, for PCRs in JSON that hold those of several
}

// A QuoteReport is what a quote says once its signature was checked. What was
// not given could not be checked: see the last fields.
type QuoteReport struct {
	Selection    map[string][]int `json:"selection"` // bank to PCRs, as signed
	PCRDigest    string           `json:"pcrDigest"` // hex, as signed
	Clock        uint64           `json:"clock"`     // milliseconds
	ResetCount   uint32           `json:"resetCount"`
	RestartCount uint32           `json:"restartCount"`
	Safe         bool             `json:"safe"`
	Firmware     string           `json:"firmware"` // hex
	ExtraData    string           `json:"extraData"`
	Key          string           `json:"key"` // such as "ECDSA P-256"

	AttributesChecked bool `json:"attributesChecked"` // false for a PKIX key: nothing says that it is restricted
	NonceChecked      bool `json:"nonceChecked"`
	PCRsChecked       bool `json:"pcrsChecked"`
	LogChecked        bool `json:"logChecked"`
}

// InspectQuote verifies a quote by whatever the files allow and refuses, with one
// line: a bad signature, a wrong magic or type, a TPMT_PUBLIC that is not an
// attestation key, SHA-1 in signature or selection, an empty selection, an empty
// or other nonce, PCRs that are not those signed, PCRs that are all zero, and a
// log that does not lead to the PCRs. A nil PCRs or Nonce checks less, and the
// report says so: to rely on a quote use [VerifyQuote].
func InspectQuote(f QuoteFiles) (*QuoteReport, error) {
	r, err := inspectQuote(f)
	if err != nil {
		return nil, fmt.Errorf("attest: quote: %w", err)
	}
	return r, nil
}

func inspectQuote(f QuoteFiles) (*QuoteReport, error) {
	key, ak, err := DecodeAK(f.AK)
	if err != nil {
		return nil, err
	}
	signature, s, err := verifyLoose(key, ak, f)
	if err != nil {
		return nil, err
	}
	selection, err := strongSelection(s.banks)
	if err != nil {
		return nil, err
	}
	if unmeasured(signature.Hash, s) {
		return nil, errors.New("every quoted PCR is as a reset leaves it, all zeros: there was no measured boot")
	}
	r := &QuoteReport{
		Selection: selection, PCRDigest: hex.EncodeToString(s.pcrDigest),
		Clock: s.clock.Milliseconds, ResetCount: s.clock.ResetCount, RestartCount: s.clock.RestartCount,
		Safe: s.clock.Safe, Firmware: fmt.Sprintf("%016x", s.clock.Firmware), ExtraData: hex.EncodeToString(s.extraData),
		Key: keyName(key, signature), AttributesChecked: ak != nil, NonceChecked: f.Nonce != nil,
	}
	return r, r.checkPCRs(f, signature.Hash, s)
}

// verifyLoose checks the signature and the parts that need no further files.
func verifyLoose(key crypto.PublicKey, ak *Public, f QuoteFiles) (*Signature, *statement, error) {
	signature, err := ParseSignature(f.Signature)
	if err != nil {
		return nil, nil, err
	}
	if ak != nil {
		if err := signature.fits(ak); err != nil {
			return nil, nil, err
		}
	}
	if err := signature.verify(key, f.Quote); err != nil {
		return nil, nil, err
	}
	s, err := parseStatement(f.Quote, stQuote)
	if err != nil {
		return nil, nil, err
	}
	if len(s.extraData) == 0 {
		return nil, nil, errors.New("the nonce is empty: anyone could replay this quote")
	}
	if f.Nonce != nil && !bytes.Equal(s.extraData, f.Nonce) {
		if fmt.Sprintf("%x", s.extraData) == strings.ToLower(string(bytes.TrimSpace(f.Nonce))) {
			return nil, nil, fmt.Errorf("the nonce is %x, and what is expected is this in hex: give the bytes", s.extraData)
		}
		return nil, nil, fmt.Errorf("the nonce is %x, not the %x expected", s.extraData, f.Nonce)
	}
	return signature, s, nil
}

// DecodeAK reads an attestation key from a PKIX public key, PEM or DER, or from a
// TPMT_PUBLIC, also with a TPM2B's size in front. The Public is nil for PKIX, which
// says nothing of attributes; for a TPMT_PUBLIC they are those of an attestation
// key or it is refused.
func DecodeAK(b []byte) (crypto.PublicKey, *Public, error) {
	der := b
	if block, _ := pem.Decode(b); block != nil {
		der = block.Bytes
	}
	const sequence = 0x30 // a TPMT_PUBLIC begins with 0, and so does a size
	if len(der) > 0 && der[0] == sequence {
		key, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, nil, fmt.Errorf("attest: attestation key: %w", err)
		}
		return key, nil, checkLooseKey(key)
	}
	if len(b) > 2 && int(b[0])<<8|int(b[1]) == len(b)-2 {
		b = b[2:]
	}
	ak, err := attestationKey(b)
	if err != nil {
		return nil, nil, err
	}
	return ak.Key, ak, nil
}

func checkLooseKey(key crypto.PublicKey) error {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 8*minModulus || bits > 8*maxModulus {
			return fmt.Errorf("attest: attestation key: RSA of %d bits is not between 2048 and 4096", bits)
		}
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return fmt.Errorf("attest: attestation key: curve %s is neither P-256 nor P-384", key.Curve.Params().Name)
		}
	default:
		return fmt.Errorf("attest: attestation key: %T is neither RSA nor ECC", key)
	}
	return nil
}

func keyName(key crypto.PublicKey, s *Signature) string {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Curve.Params().Name
	case *rsa.PublicKey:
		scheme := "RSASSA"
		if s.Scheme == algRSAPSS {
			scheme = "RSAPSS"
		}
		return fmt.Sprintf("%s %d", scheme, key.N.BitLen())
	}
	return ""
}

// strongSelection returns the signed selection if something is selected, and
// only in banks of sha256 and stronger.
func strongSelection(banks []Bank) (map[string][]int, error) {
	selection := make(map[string][]int)
	for _, bank := range banks {
		if len(bank.PCRs) == 0 {
			continue
		}
		if _, err := hashOf(bank.Algorithm); err != nil {
			return nil, fmt.Errorf("the signed selection is %s: PCR bank: %w", describe(banks), err)
		}
		selection[bankName(bank.Algorithm)] = bank.PCRs
	}
	if len(selection) == 0 {
		return nil, errors.New("the signed selection is empty: it says nothing about any PCR")
	}
	return selection, nil
}

// size returns the length of a PCR value in the bank.
func (b Bank) size() int {
	h, err := hashOf(b.Algorithm)
	if err != nil {
		return 0
	}
	return h.Size()
}

// unmeasured reports whether the signed digest is that of PCRs as a reset leaves
// them: zeros, and ones in PCR 17 to 22 unless a dynamic launch began (PC Client
// platform TPM profile). This shows without anyone telling the values.
func unmeasured(h crypto.Hash, s *statement) bool {
	for _, dynamic := range []byte{0x00, 0xff} {
		var values [][]byte
		for _, bank := range s.banks {
			for _, pcr := range bank.PCRs {
				fill := byte(0)
				if pcr >= 17 && pcr <= 22 {
					fill = dynamic
				}
				values = append(values, bytes.Repeat([]byte{fill}, bank.size()))
			}
		}
		if bytes.Equal(digestOf(h, values), s.pcrDigest) {
			return true
		}
	}
	return false
}

// checkFirmware refuses values in which the firmware measured nothing into any
// of the quoted PCR 0 to 7.
func checkFirmware(values map[int][]byte) error {
	quoted, measured := 0, 0
	for pcr, v := range values {
		if pcr > 7 {
			continue
		}
		quoted++
		if !bytes.Equal(v, make([]byte, len(v))) {
			measured++
		}
	}
	if quoted > 0 && measured == 0 {
		return errors.New("PCR 0 to 7 are all zeros where quoted: there was no measured boot")
	}
	return nil
}

// checkPCRs compares the values given with the signed digest, then the log with
// the values. A log alone must lead to the values that were signed.
func (r *QuoteReport) checkPCRs(f QuoteFiles, h crypto.Hash, s *statement) error {
	var values map[uint16]map[int][]byte
	var err error
	said := "that of the PCR values given"
	switch {
	case f.PCRs != nil:
		values, err = decodePCRs(f.PCRs, s.banks, f.Names...)
	case f.Log != nil:
		values, err = replayedPCRs(f.Log, s.banks)
		said = "what the log leads to; give the PCR values to learn which differ"
	default:
		return nil
	}
	if err != nil {
		return err
	}
	var ordered [][]byte
	for _, bank := range s.banks {
		for _, pcr := range bank.PCRs {
			ordered = append(ordered, values[bank.Algorithm][pcr])
		}
	}
	if !bytes.Equal(digestOf(h, ordered), s.pcrDigest) {
		return fmt.Errorf("the signed digest %x is not %s", s.pcrDigest, said)
	}
	for _, bank := range s.banks {
		if err := checkFirmware(values[bank.Algorithm]); err != nil {
			return err
		}
	}
	r.PCRsChecked = true
	if f.Log == nil {
		return nil
	}
	for _, bank := range s.banks {
		boot := withoutIMA(values[bank.Algorithm])
		if len(boot) == 0 {
			continue // a bank of which nothing is quoted that firmware logs
		}
		if err := explainLog(f.Log, bankName(bank.Algorithm), boot); err != nil {
			return err
		}
		r.LogChecked = true
	}
	return nil
}

// replayedPCRs are the values of the selected PCRs that the firmware's log leads to.
func replayedPCRs(log []byte, banks []Bank) (map[uint16]map[int][]byte, error) {
	l, err := eventlog.Parse(log)
	if err != nil {
		return nil, err
	}
	return selectPCRs(banks, func(bank Bank) (map[int][]byte, error) {
		if slices.Contains(bank.PCRs, pcrIMA) {
			return nil, fmt.Errorf("PCR %d is quoted, which no firmware's log explains: give the PCR values as well", pcrIMA)
		}
		return l.Values(bankName(bank.Algorithm))
	})
}

// withoutIMA leaves out the PCR that the firmware's log does not explain.
func withoutIMA(pcrs map[int][]byte) map[int][]byte {
	delete(pcrs, pcrIMA)
	return pcrs
}

// decodePCRs reads the values of the selected PCRs.
func decodePCRs(b []byte, banks []Bank, names ...string) (map[uint16]map[int][]byte, error) {
	switch {
	case isText(b):
		return selectPCRs(banks, func(bank Bank) (map[int][]byte, error) {
			return eventlog.DecodePCRs(b, bankName(bank.Algorithm), names...)
		})
	case len(b) != rawSize(banks) && serialized(b):
		all, err := unserialize(b)
		if err != nil {
			return nil, err
		}
		return selectPCRs(banks, func(bank Bank) (map[int][]byte, error) { return all[bank.Algorithm], nil })
	}
	return rawPCRs(b, banks)
}

// isText reports whether b is printable ASCII, which raw values never are in practice:
// those of PCRs that nobody extended are not.
func isText(b []byte) bool {
	return !bytes.ContainsFunc(b, func(r rune) bool { return (r < ' ' || r > '~') && r != '\n' && r != '\r' && r != '\t' })
}

// rawPCRs reads values one behind the other, in the order of the selection.
func rawPCRs(b []byte, banks []Bank) (map[uint16]map[int][]byte, error) {
	values := make(map[uint16]map[int][]byte)
	for _, bank := range banks {
		values[bank.Algorithm] = make(map[int][]byte)
		for _, pcr := range bank.PCRs {
			n := bank.size()
			if len(b) < n {
				return nil, fmt.Errorf("PCR values are cut off at %s:%d", bankName(bank.Algorithm), pcr)
			}
			values[bank.Algorithm][pcr], b = b[:n], b[n:]
		}
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%d bytes follow the PCR values that were selected", len(b))
	}
	return values, nil
}

// rawSize returns how many bytes the values of the selected PCRs have.
func rawSize(banks []Bank) int {
	n := 0
	for _, bank := range banks {
		n += len(bank.PCRs) * bank.size()
	}
	return n
}

// selectPCRs takes the values of the selected PCRs from those given. Others are
// passed over.
func selectPCRs(banks []Bank, given func(Bank) (map[int][]byte, error)) (map[uint16]map[int][]byte, error) {
	values := make(map[uint16]map[int][]byte)
	for _, bank := range banks {
		values[bank.Algorithm] = make(map[int][]byte)
		if len(bank.PCRs) == 0 {
			continue
		}
		all, err := given(bank)
		if err != nil {
			return nil, err
		}
		for _, pcr := range bank.PCRs {
			v := all[pcr]
			if len(v) != bank.size() {
				return nil, fmt.Errorf("value of PCR %s:%d has %d bytes, wanted %d", bankName(bank.Algorithm), pcr, len(v), bank.size())
			}
			values[bank.Algorithm][pcr] = v
		}
	}
	return values, nil
}
