package attest

import (
	"bytes"
	"crypto/elliptic"
	"encoding/binary"
	"testing"
)

// serialize writes values as tpm2-tools do.
func serialize(values ...[]byte) []byte {
	lists := (len(values) + digestsInList - 1) / digestsInList
	b := binary.LittleEndian.AppendUint32(make([]byte, sizeSelections), uint32(lists))
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
	_, ordered := pcrValues(pcrs...)
	f := newForger(t, elliptic.P256(), akAttributes, algSHA256)
	quote := forgedQuote(nonce, selection(Bank{algSHA256, pcrs}), ordered...)
	files := QuoteFiles{Quote: quote, Signature: f.sign(t, quote), AK: f.public, Nonce: nonce, PCRs: serialize(ordered...)}
	if r, err := InspectQuote(files); err != nil || !r.PCRsChecked {
		t.Fatal(err)
	}
	good := files.PCRs
	files.PCRs = serialize(ordered[1:]...)
	_, err := InspectQuote(files)
	wantError(t, err, "cut off")
	files.PCRs = bytes.Clone(good)
	files.PCRs[sizeSelections+4+4+2] ^= 1
	_, err = InspectQuote(files)
	wantError(t, err, "is not that of the PCR values")
	files.PCRs = bytes.Clone(good)
	files.PCRs[sizeSelections+4] = 9
	_, err = InspectQuote(files)
	wantError(t, err, "a list of 9 digests")
	files.PCRs = bytes.Clone(good)
	files.PCRs[sizeSelections+4+4] = 65
	_, err = InspectQuote(files)
	wantError(t, err, "a digest of 65 bytes")
	files.PCRs = make([]byte, len(serialize(nil)))
	files.PCRs[sizeSelections] = 1
	_, err = InspectQuote(files)
	wantError(t, err, "the file has none")
}
