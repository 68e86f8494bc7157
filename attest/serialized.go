package attest

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What tpm2_quote -o and tpm2_pcrread -o write unless asked for values only is
// the memory of the tools' own C structures, little-endian: a TPML_PCR_SELECTION
// with room for 16 banks, a count, and as many TPML_DIGEST with room for 8
// digests of 64 bytes each.
const (
	sizeSelections = 4 + 16*8
	digestsInList  = 8
	sizeDigest     = 2 + 64
	sizeDigestList = 4 + digestsInList*sizeDigest
)

// serialized reports whether b has the length of such a file.
func serialized(b []byte) bool {
	if len(b) < sizeSelections+4 {
		return false
	}
	lists := binary.LittleEndian.Uint32(b[sizeSelections:])
	return lists > 0 && uint64(len(b)-sizeSelections-4) == uint64(lists)*sizeDigestList
}

// unserialize returns the values of such a file one behind the other. Its own
// selection is not read: what counts is the one that was signed.
func unserialize(b []byte) ([]byte, error) {
	var values []byte
	for list := b[sizeSelections+4:]; len(list) > 0; list = list[sizeDigestList:] {
		n := binary.LittleEndian.Uint32(list)
		if n > digestsInList {
			return nil, fmt.Errorf("PCR values: a list of %d digests, at most %d fit", n, digestsInList)
		}
		for i := range n {
			digest := list[4+i*sizeDigest:]
			size := binary.LittleEndian.Uint16(digest)
			if size > sizeDigest-2 {
				return nil, fmt.Errorf("PCR values: a digest of %d bytes", size)
			}
			values = append(values, digest[2:][:size]...)
		}
	}
	if len(values) == 0 {
		return nil, errors.New("PCR values: the file has none")
	}
	return values, nil
}
