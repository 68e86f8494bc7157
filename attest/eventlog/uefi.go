package eventlog

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"unicode/utf16"
)

// A GUID is 16 bytes in the order of the UEFI specification, appendix A: its first
// three fields are little-endian.
type GUID [16]byte

// String returns the registry format, such as 8be4df61-93ca-11d2-aa0d-00e098032b8c.
func (g GUID) String() string {
	b := [16]byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6]}
	copy(b[8:], g[8:])
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Who owns the variables that PCR 7 is about: the UEFI specification (sections 3.3
// and 32.6) and shim.
const (
	globalVariable = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
	imageSecurity  = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
	shimLock       = "605dab50-e046-4300-abb6-3dd810dd8b23"
)

// A Variable is a UEFI_VARIABLE_DATA (PFP 10.2.6).
type Variable struct {
	Vendor GUID
	Name   string
	Data   []byte
}

// is reports whether the variable is the vendor's of that name.
func (v *Variable) is(vendor, name string) bool {
	return v.Name == name && v.Vendor.String() == vendor
}

// parseVariable reads a UEFI_VARIABLE_DATA that fills data.
func parseVariable(data []byte) (*Variable, error) {
	const fixed = 16 + 8 + 8
	if len(data) < fixed {
		return nil, fmt.Errorf("a UEFI variable of %d bytes, wanted at least %d", len(data), fixed)
	}
	v := &Variable{Vendor: GUID(data[:16])}
	units, size := binary.LittleEndian.Uint64(data[16:]), binary.LittleEndian.Uint64(data[24:])
	rest := data[fixed:]
	if units > maxName || 2*units > uint64(len(rest)) {
		return nil, fmt.Errorf("a UEFI variable's name of %d characters, %d bytes left", units, len(rest))
	}
	name := make([]uint16, units)
	for i := range name {
		name[i] = binary.LittleEndian.Uint16(rest[2*i:])
	}
	rest = rest[2*units:]
	if size != uint64(len(rest)) {
		return nil, fmt.Errorf("a UEFI variable's data of %d bytes, %d left", size, len(rest))
	}
	v.Name, v.Data = string(utf16.Decode(name)), rest
	return v, nil
}

// A Signature is one entry of a signature database: a certificate, a hash or a key,
// as its type says.
type Signature struct {
	Type  GUID // such as EFI_CERT_X509_GUID or EFI_CERT_SHA256_GUID
	Owner GUID
	Data  []byte
}

// parseSignatures reads a sequence of EFI_SIGNATURE_LIST (UEFI 32.4.1).
func parseSignatures(data []byte) ([]Signature, error) {
	const fixed = 16 + 4 + 4 + 4
	var all []Signature
	for off := 0; off < len(data); {
		rest := data[off:]
		if len(rest) < fixed {
			return nil, fmt.Errorf("signature list at byte %d: %d bytes left, wanted at least %d", off, len(rest), fixed)
		}
		list := int64(binary.LittleEndian.Uint32(rest[16:]))
		header := int64(binary.LittleEndian.Uint32(rest[20:]))
		size := int64(binary.LittleEndian.Uint32(rest[24:]))
		switch {
		case list < fixed || list > int64(len(rest)):
			return nil, fmt.Errorf("signature list at byte %d: SignatureListSize is %d, %d bytes left", off, list, len(rest))
		case header > list-fixed:
			return nil, fmt.Errorf("signature list at byte %d: SignatureHeaderSize is %d, the list has %d bytes", off, header, list)
		case size <= 16 || (list-fixed-header)%size != 0:
			return nil, fmt.Errorf("signature list at byte %d: SignatureSize %d does not divide %d bytes", off, size, list-fixed-header)
		}
		for body := rest[fixed+header : list]; len(body) > 0; body = body[size:] {
			if len(all) == maxSignatures {
				return nil, fmt.Errorf("more than %d signatures", maxSignatures)
			}
			all = append(all, Signature{GUID(rest[:16]), GUID(body[:16]), body[16:size]})
		}
		off += int(list)
	}
	return all, nil
}
