package attest

import (
	"crypto"
	"encoding/binary"
	"fmt"

	_ "crypto/sha256" // the hashes that the decoders may ask for
	_ "crypto/sha512"
)

// Constants of TCG TPM 2.0 Library, Part 2 (section 6.3 TPM_ALG_ID, 6.4
// TPM_ECC_CURVE, 6.9 TPM_ST, 7.4 TPM_HANDLE).
const (
	algRSA    uint16 = 0x0001
	algSHA1   uint16 = 0x0004
	algAES    uint16 = 0x0006
	algMGF1   uint16 = 0x0007
	algSHA256 uint16 = 0x000b
	algSHA384 uint16 = 0x000c
	algSHA512 uint16 = 0x000d
	algNull   uint16 = 0x0010
	algSM4    uint16 = 0x0013
	algRSASSA uint16 = 0x0014
	algRSAES  uint16 = 0x0015
	algRSAPSS uint16 = 0x0016
	algOAEP   uint16 = 0x0017
	algECDSA  uint16 = 0x0018
	algECDH   uint16 = 0x0019
	algECDAA  uint16 = 0x001a
	algECMQV  uint16 = 0x001d
	algKDF1a  uint16 = 0x0020
	algKDF2   uint16 = 0x0021
	algKDF1b  uint16 = 0x0022
	algECC    uint16 = 0x0023

	curveP256 uint16 = 0x0003
	curveP384 uint16 = 0x0004

	magicGenerated uint32 = 0xff544347 // TPM_GENERATED_VALUE: only a TPM puts it in front of what it signs

	stCertify uint16 = 0x8017
	stQuote   uint16 = 0x8018

	handleNull        uint32 = 0x40000007
	handleEndorsement uint32 = 0x4000000b

	ccPolicyAuthorize uint32 = 0x0000016a
)

// hashOf returns the hash that alg names if it is strong enough to be judged:
// SHA-256, SHA-384 or SHA-512.
func hashOf(alg uint16) (crypto.Hash, error) {
	switch alg {
	case algSHA256:
		return crypto.SHA256, nil
	case algSHA384:
		return crypto.SHA384, nil
	case algSHA512:
		return crypto.SHA512, nil
	case algSHA1:
		return 0, fmt.Errorf("SHA-1 is refused; use sha256 or stronger")
	}
	return 0, fmt.Errorf("hash algorithm 0x%04x is not one of sha256, sha384, sha512", alg)
}

// bankName returns the name of a PCR bank as tools print it.
func bankName(alg uint16) string {
	switch alg {
	case algSHA1:
		return "sha1"
	case algSHA256:
		return "sha256"
	case algSHA384:
		return "sha384"
	case algSHA512:
		return "sha512"
	}
	return fmt.Sprintf("0x%04x", alg)
}

// A cursor reads big-endian TPM structures. The first failure sticks, later
// reads return zeros, and end reports it; so a decoder reads straight down and
// checks once.
type cursor struct {
	data []byte
	off  int
	err  error
}

// fail records the first failure with the offset at which it was seen.
func (c *cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("at byte %d: %s", c.off, fmt.Sprintf(format, args...))
	}
}

// next returns the next n bytes, not copied.
func (c *cursor) next(n int) []byte {
	if c.err != nil {
		return nil
	}
	if n > len(c.data)-c.off {
		c.fail("%d bytes wanted, %d left", n, len(c.data)-c.off)
		return nil
	}
	b := c.data[c.off : c.off+n : c.off+n]
	c.off += n
	return b
}

func (c *cursor) u8() uint8 {
	if b := c.next(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.next(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.next(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.next(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// sized reads a TPM2B: a 16-bit size and at most limit bytes.
func (c *cursor) sized(what string, limit int) []byte {
	n := int(c.u16())
	if n > limit {
		c.fail("%s of %d bytes is longer than %d", what, n, limit)
		return nil
	}
	return c.next(n)
}

// end returns the first failure, and one if anything is left over.
func (c *cursor) end() error {
	if c.err == nil && c.off != len(c.data) {
		c.fail("%d bytes left over", len(c.data)-c.off)
	}
	return c.err
}

// appendSized appends b as a TPM2B.
func appendSized(dst, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(b))), b...)
}
