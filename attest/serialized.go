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
	sizeSelection  = 2 + 1 + maxSelect + 1 // algorithm, size, bitmap, padding
	sizeSelections = 4 + 16*sizeSelection
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

// unserialize returns the values of such a file by bank and PCR. The tools read up
// to eight values at a time and write them one behind the other in the order of the
// file's own selection, whatever was signed.
func unserialize(b []byte) (map[uint16]map[int][]byte, error) {
	values, err := serializedValues(b[sizeSelections+4:])
	if err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(b)
	if n > (sizeSelections-4)/sizeSelection {
		return nil, fmt.Errorf("PCR values: a selection of %d banks, at most %d fit", n, (sizeSelections-4)/sizeSelection)
	}
	all := make(map[uint16]map[int][]byte)
	for i := range n {
		selection := b[4+i*sizeSelection:]
		bank := make(map[int][]byte)
		all[binary.LittleEndian.Uint16(selection)] = bank
		for pcr := range 8 * maxSelect {
			if selection[3+pcr/8]>>(pcr%8)&1 == 0 {
				continue
			}
			if len(values) == 0 {
				return nil, errors.New("PCR values: the file has fewer than it selects")
			}
			bank[pcr], values = values[0], values[1:]
		}
	}
	if len(values) > 0 {
		return nil, fmt.Errorf("PCR values: the file has %d more than it selects", len(values))
	}
	return all, nil
}

// serializedValues returns the digests of TPML_DIGEST that fill lists.
func serializedValues(lists []byte) ([][]byte, error) {
	var values [][]byte
	for list := lists; len(list) > 0; list = list[sizeDigestList:] {
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
			values = append(values, digest[2:][:size])
		}
	}
	return values, nil
}
