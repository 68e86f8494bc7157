package tpm

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Event types of the TCG PC Client Platform Firmware Profile, section 10.4.1.
const (
	EventNoAction        uint32 = 0x00000003
	EventSeparator       uint32 = 0x00000004
	EventAction          uint32 = 0x00000005
	EventSCRTMVersion    uint32 = 0x00000008
	EventIPL             uint32 = 0x0000000d
	EventBootApplication uint32 = 0x80000003
)

// Measured is something that a synthetic boot measures: the digest is that of Data.
type Measured struct {
	PCR  int
	Type uint32
	Data []byte
}

// SyntheticBoot extends the sha256 PCRs of a TPM as a firmware would have, and
// returns the matching log in the crypto-agile format. An emulator without
// firmware has neither; whoever shows the result says that the boot is
// synthetic. It refuses a TPM that is not an emulator, and one already measured
// into. Boot applications, and PCRs above 7, come after the separators.
func SyntheticBoot(ctx context.Context, d *Device, components []Measured) (log []byte, err error) {
	if !d.Emulated() {
		return nil, errors.New("tpm: synthetic boot: refused on a TPM that is not an emulator")
	}
	err = d.Run(ctx, "synthetic boot", func(tr transport.TPM) error {
		values, err := readPCRs(tr, []int{0})
		if err != nil {
			return err
		}
		if values[0] != ([32]byte{}) {
			return errors.New("PCR 0 was extended already; start the emulator anew")
		}
		log = specIDEvent()
		for _, m := range bootOrder(components) {
			if m.PCR < 0 || m.PCR > 15 {
				return fmt.Errorf("PCR %d is not between 0 and 15", m.PCR)
			}
			digest := sha256.Sum256(m.Data)
			if err := extend(tr, m.PCR, digest); err != nil {
				return err
			}
			log = appendEvent(log, m, digest)
		}
		return nil
	})
	return log, err
}

// bootOrder puts separators for PCR 0 to 7 between what comes before the
// operating system's loader and what comes after.
func bootOrder(components []Measured) []Measured {
	var before, after []Measured
	for _, m := range components {
		if m.PCR > 7 || m.Type == EventBootApplication {
			after = append(after, m)
		} else {
			before = append(before, m)
		}
	}
	for pcr := range 8 {
		before = append(before, Measured{pcr, EventSeparator, make([]byte, 4)})
	}
	return append(before, after...)
}

func extend(tr transport.TPM, pcr int, digest [32]byte) error {
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
			{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]},
		}},
	}.Execute(tr)
	return err
}

// Extend extends one sha256 PCR of an emulator, to show what a change looks like.
func Extend(ctx context.Context, d *Device, pcr int, digest [32]byte) error {
	if !d.Emulated() {
		return errors.New("tpm: extend: refused on a TPM that is not an emulator")
	}
	if pcr < 0 || pcr > 23 {
		return fmt.Errorf("tpm: extend: PCR %d is not between 0 and 23", pcr)
	}
	return d.Run(ctx, "extend a PCR", func(tr transport.TPM) error { return extend(tr, pcr, digest) })
}

// specIDEvent is the first entry of a crypto-agile log, in the old format, that
// declares the sha256 bank (firmware profile, section 10.4.5.1).
func specIDEvent() []byte {
	var data []byte
	data = append(data, "Spec ID Event03\x00"...)
	data = binary.LittleEndian.AppendUint32(data, 0) // platform class: client
	data = append(data, 0, 2, 0, 2)                  // version 2.0, errata 0, 64-bit integers
	data = binary.LittleEndian.AppendUint32(data, 1) // algorithms
	data = binary.LittleEndian.AppendUint16(data, uint16(tpm2.TPMAlgSHA256))
	data = binary.LittleEndian.AppendUint16(data, sha256.Size)
	data = append(data, 0) // no vendor information

	b := binary.LittleEndian.AppendUint32(nil, 0) // PCR
	b = binary.LittleEndian.AppendUint32(b, EventNoAction)
	b = append(b, make([]byte, 20)...) // the SHA-1 digest of something not extended
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendEvent appends a TCG_PCR_EVENT2.
func appendEvent(log []byte, m Measured, digest [32]byte) []byte {
	log = binary.LittleEndian.AppendUint32(log, uint32(m.PCR))
	log = binary.LittleEndian.AppendUint32(log, m.Type)
	log = binary.LittleEndian.AppendUint32(log, 1)
	log = binary.LittleEndian.AppendUint16(log, uint16(tpm2.TPMAlgSHA256))
	log = append(log, digest[:]...)
	log = binary.LittleEndian.AppendUint32(log, uint32(len(m.Data)))
	return append(log, m.Data...)
}
