package attest

import (
	"bytes"
	"fmt"
)

// A Clock is a TPM's TPMS_CLOCK_INFO and firmware version at the moment it
// signed. All but the firmware version only grow.
type Clock struct {
	Milliseconds uint64 `json:"clock"`        // time powered since the TPM was made or cleared
	ResetCount   uint32 `json:"resetCount"`   // TPM resets: reboots
	RestartCount uint32 `json:"restartCount"` // restarts and resumes since the reset
	Safe         bool   `json:"safe"`         // false: Milliseconds may have been seen before
	Firmware     uint64 `json:"firmware"`     // vendor's version of the TPM's firmware
}

// A Bank is the part of a PCR selection that lies in one hash bank.
type Bank struct {
	Algorithm uint16 // TPM_ALG_ID of the hash
	PCRs      []int  // ascending
}

// statement is a decoded TPMS_ATTEST (Part 2, section 10.12.12).
type statement struct {
	qualifiedSigner []byte
	extraData       []byte
	clock           Clock

	banks     []Bank // quote
	pcrDigest []byte

	name, qualifiedName []byte // certify
}

// parseStatement decodes a TPMS_ATTEST of the type wanted, and refuses whatever
// does not begin with the magic of what a TPM made itself.
func parseStatement(b []byte, want uint16) (*statement, error) {
	if len(b) > maxAttest {
		return nil, fmt.Errorf("of %d bytes is longer than %d", len(b), maxAttest)
	}
	c := &cursor{data: b}
	s := &statement{}
	if magic := c.u32(); c.err == nil && magic != magicGenerated {
		c.fail("magic 0x%08x is not 0x%08x: not made by a TPM", magic, magicGenerated)
	}
	if kind := c.u16(); c.err == nil && kind != want {
		c.fail("type 0x%04x is not 0x%04x", kind, want)
	}
	s.qualifiedSigner = c.sized("qualifiedSigner", maxName)
	s.extraData = c.sized("extraData", maxData)
	s.clock = readClock(c)
	switch want {
	case stQuote:
		s.banks = readSelection(c)
		s.pcrDigest = c.sized("pcrDigest", maxDigest)
	case stCertify:
		s.name = c.sized("name", maxName)
		s.qualifiedName = c.sized("qualifiedName", maxName)
	default:
		c.fail("type 0x%04x is not supported", want)
	}
	return s, c.end()
}

// readClock reads TPMS_CLOCK_INFO and the firmware version.
func readClock(c *cursor) Clock {
	clock := Clock{Milliseconds: c.u64(), ResetCount: c.u32(), RestartCount: c.u32()}
	switch safe := c.u8(); safe {
	case 0:
	case 1:
		clock.Safe = true
	default:
		c.fail("safe is %d, neither 0 nor 1", safe)
	}
	clock.Firmware = c.u64()
	return clock
}

// ParseSelection decodes a TPML_PCR_SELECTION (Part 2, section 10.9.7): banks in
// the order given, each at most once, PCR 0 to 23.
func ParseSelection(b []byte) ([]Bank, error) {
	c := &cursor{data: b}
	banks := readSelection(c)
	if err := c.end(); err != nil {
		return nil, fmt.Errorf("attest: parse PCR selection: %w", err)
	}
	return banks, nil
}

func readSelection(c *cursor) []Bank {
	count := c.u32()
	if count > maxBanks {
		c.fail("%d PCR banks are more than %d", count, maxBanks)
	}
	var banks []Bank
	for i := uint32(0); i < count && c.err == nil; i++ {
		bank := Bank{Algorithm: c.u16()}
		for _, other := range banks {
			if other.Algorithm == bank.Algorithm {
				c.fail("PCR bank 0x%04x is named twice", bank.Algorithm)
			}
		}
		bank.PCRs = readBitmap(c)
		banks = append(banks, bank)
	}
	return banks
}

func readBitmap(c *cursor) []int {
	size := int(c.u8())
	if size > maxSelect {
		c.fail("PCR bitmap of %d bytes is longer than %d", size, maxSelect)
	}
	var pcrs []int
	for i, b := range c.next(size) {
		for bit := range 8 {
			if b&(1<<bit) == 0 {
				continue
			}
			if pcr := 8*i + bit; pcr <= maxPCR {
				pcrs = append(pcrs, pcr)
			} else {
				c.fail("PCR %d is above %d", pcr, maxPCR)
			}
		}
	}
	return pcrs
}

// attestationKey returns akPublic parsed if it is a key that only its TPM can
// use and that signs nothing but what that TPM made, by a signature that fits.
func attestationKey(akPublic []byte) (*Public, error) {
	ak, err := ParsePublic(akPublic)
	if err != nil {
		return nil, err
	}
	if err := ak.Attributes.require(genuine|Restricted|Sign, Decrypt); err != nil {
		return nil, fmt.Errorf("attest: not an attestation key: %w", err)
	}
	return ak, nil
}

// verifyStatement checks that ak signed the TPMS_ATTEST in signed, that it is of
// the type wanted, and that it carries exactly the extra data wanted.
func verifyStatement(ak *Public, signed, sig []byte, want uint16, extraData []byte) (*statement, *Signature, error) {
	if len(extraData) == 0 {
		return nil, nil, fmt.Errorf("no nonce was expected, so any replay would do; expect one")
	}
	signature, err := ParseSignature(sig)
	if err != nil {
		return nil, nil, err
	}
	if err := signature.fits(ak); err != nil {
		return nil, nil, err
	}
	if err := signature.verify(ak.Key, signed); err != nil {
		return nil, nil, err
	}
	s, err := parseStatement(signed, want)
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(s.extraData, extraData) {
		return nil, nil, fmt.Errorf("extra data %x is not the %x expected: a replay, or made for another purpose", s.extraData, extraData)
	}
	return s, signature, nil
}
