package attest

import (
	"bytes"
	"crypto/elliptic"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

// serialize writes values of the banks' PCRs as tpm2-tools do.
func serialize(banks []Bank, values ...[]byte) []byte {
	lists := (len(values) + digestsInList - 1) / digestsInList
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(banks)))
	for _, bank := range banks {
		selection := make([]byte, sizeSelection)
		binary.LittleEndian.PutUint16(selection, bank.Algorithm)
		selection[2] = 3
		for _, pcr := range bank.PCRs {
			selection[3+pcr/8] |= 1 << (pcr % 8)
		}
		b = append(b, selection...)
	}
	b = binary.LittleEndian.AppendUint32(append(b, make([]byte, sizeSelections-len(b))...), uint32(lists))
	for i := range lists {
		part := values[i*digestsInList : min(len(values), (i+1)*digestsInList)]
		list := binary.LittleEndian.AppendUint32(nil, uint32(len(part)))
		for _, v := range part {
			list = append(binary.LittleEndian.AppendUint16(list, uint16(len(v))), v...)
			list = append(list, make([]byte, sizeDigest-2-len(v))...)
		}
		b = append(b, append(list, make([]byte, sizeDigestList-len(list))...)...)
	}
	return b
}

func TestSerializedPCRs(t *testing.T) {
	nonce := []byte("0123456789abcdef")
	pcrs := []int{0, 1, 2, 3, 4, 5, 6, 7, 14}
	values, ordered := pcrValues(pcrs...)
	banks := []Bank{{algSHA256, pcrs}}
	f := newForger(t, elliptic.P256(), akAttributes, algSHA256)
	quote := forgedQuote(nonce, selection(Bank{algSHA256, pcrs}), ordered...)
	files := QuoteFiles{Quote: quote, Signature: f.sign(t, quote), AK: f.public, Nonce: nonce, PCRs: serialize(banks, ordered...)}
	if r, err := InspectQuote(files); err != nil || !r.PCRsChecked {
		t.Fatal(err)
	}
	// tpm2_pcrread -o may have read more, and other banks first.
	more := []Bank{{algSHA1, []int{0, 4}}, {algSHA256, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 14, 23}}}
	all := [][]byte{make([]byte, 20), make([]byte, 20)}
	for _, pcr := range more[1].PCRs {
		v := values[pcr]
		all = append(all, v[:])
	}
	good := files.PCRs
	files.PCRs = serialize(more, all...)
	if r, err := InspectQuote(files); err != nil || !r.PCRsChecked {
		t.Fatal(err)
	}
	for reason, pcrs := range map[string][]byte{
		"fewer than it selects":           serialize(banks, ordered[1:]...),
		"1 more than it selects":          serialize(banks, append(ordered, ordered[0])...),
		"PCR sha256:14 has 0 bytes":       serialize([]Bank{{algSHA256, pcrs[:8]}}, ordered[:8]...),
		"PCR sha256:0 has 0 bytes":        serialize([]Bank{{algSHA384, pcrs}}, ordered...),
		"is not that of the PCR values":   edited(good, sizeSelections+4+4+2, good[sizeSelections+4+4+2]^1),
		"a list of 9 digests":             edited(good, sizeSelections+4, 9),
		"a digest of 65 bytes":            edited(good, sizeSelections+4+4, 65),
		"a selection of 17 banks":         edited(good, 0, 17),
		"a selection of 4278190081 banks": edited(good, 3, 0xff),
	} {
		files.PCRs = pcrs
		_, err := InspectQuote(files)
		wantError(t, err, reason)
	}
}

func edited(b []byte, off int, v byte) []byte {
	b = bytes.Clone(b)
	b[off] = v
	return b
}

// What tpm2_pcrread prints is taken as it is.
func TestListedPCRs(t *testing.T) {
	nonce := []byte("0123456789abcdef")
	_, ordered := pcrValues(0, 4)
	f := newForger(t, elliptic.P256(), akAttributes, algSHA256)
	quote := forgedQuote(nonce, selection(Bank{algSHA256, []int{0, 4}}), ordered...)
	listing := fmt.Sprintf("  sha1:\n    0 : 0x00\n  sha256:\n    0 : 0x%X\n    1 : 0x00\n    4 : 0x%X\n", ordered[0], ordered[1])
	files := QuoteFiles{Quote: quote, Signature: f.sign(t, quote), AK: f.public, Nonce: nonce, PCRs: []byte(listing)}
	if r, err := InspectQuote(files); err != nil || !r.PCRsChecked {
		t.Fatal(err)
	}
	files.PCRs = []byte(strings.Replace(listing, "    4 :", "    5 :", 1))
	_, err := InspectQuote(files)
	wantError(t, err, "PCR sha256:4 has 0 bytes")
}
