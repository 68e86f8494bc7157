package vm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf16"
)

// Where Debian's ovmf puts firmware that enforces secure boot, and the variables
// of a machine that nobody has set up.
const (
	firmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	Variables    = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// guid encodes a GUID given in registry format (UEFI specification, appendix A).
func guid(text string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != 16 {
		panic("vm: not a GUID: " + text)
	}
	for _, part := range [][]byte{b[:4], b[4:6], b[6:8]} {
		for i, j := 0, len(part)-1; i < j; i, j = i+1, j-1 {
			part[i], part[j] = part[j], part[i]
		}
	}
	return b
}

var (
	globalVariable = guid("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	imageSecurity  = guid("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
	storeSignature = guid("aaf32c78-947b-439a-a180-2e144ec37792") // authenticated variables
	x509Type       = guid("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
	owner          = guid("7b1f4b5c-7e0e-4d3e-9c55-6b657974726e") // of what we enrol
)

// Enrol returns a copy of OVMF's empty variable store in which secure boot is
// on: cert (DER) is platform key, key exchange key, and the one signer of images.
func Enrol(empty, cert []byte) ([]byte, error) {
	const volume, header = 0x48, 28
	store := bytes.Clone(empty)
	if len(store) < volume+header || !bytes.Equal(store[volume:volume+16], storeSignature) {
		return nil, fmt.Errorf("vm: %d bytes are not a variable store of OVMF", len(empty))
	}
	var all []byte
	for _, v := range []struct {
		vendor []byte
		name   string
	}{{globalVariable, "PK"}, {globalVariable, "KEK"}, {imageSecurity, "db"}} {
		all = append(all, variable(v.vendor, v.name, signatureList(cert))...)
	}
	free := store[volume+header:]
	if len(all) > len(free) || len(bytes.Trim(free[:len(all)], "\xff")) > 0 {
		return nil, fmt.Errorf("vm: the variable store is not empty")
	}
	copy(free, all)
	return store, nil
}

// signatureList is an EFI_SIGNATURE_LIST of one X.509 certificate (UEFI
// specification 32.4.1).
func signatureList(cert []byte) []byte {
	le := binary.LittleEndian
	b := bytes.Clone(x509Type)
	b = le.AppendUint32(b, uint32(len(b)+12+16+len(cert)))
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(16+len(cert)))
	return append(append(b, owner...), cert...)
}

// variable is a record of the store: an AUTHENTICATED_VARIABLE_HEADER of EDK II
// (MdeModulePkg/Include/Guid/VariableFormat.h), name and data.
func variable(vendor []byte, name string, data []byte) []byte {
	const added = 0x3f
	const attributes = 0x27 // non-volatile, for boot and run time, changed by signature
	var text []byte
	for _, unit := range append(utf16.Encode([]rune(name)), 0) {
		text = binary.LittleEndian.AppendUint16(text, unit)
	}
	le := binary.LittleEndian
	b := []byte{0xaa, 0x55, added, 0}
	b = le.AppendUint32(b, attributes)
	b = append(b, make([]byte, 8+16+4)...) // count, time, key index
	b = le.AppendUint32(b, uint32(len(text)))
	b = le.AppendUint32(b, uint32(len(data)))
	b = append(append(append(b, vendor...), text...), data...)
	return append(b, bytes.Repeat([]byte{0xff}, (4-len(b)%4)%4)...)
}
