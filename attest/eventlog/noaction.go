package eventlog

import (
	"bytes"
	"encoding/binary"
)

var localitySignature = []byte("StartupLocality\x00")

// noAction looks at the EV_NO_ACTION events that change how a log is read.
func (p *parser) noAction(e Event) error {
	for _, signature := range legacySignature {
		if bytes.HasPrefix(e.Data, signature) {
			return p.vendorInfo(e, len(signature)+8)
		}
	}
	if bytes.HasPrefix(e.Data, localitySignature) && e.PCR == 0 {
		return p.startupLocality(e)
	}
	return nil
}

// startupLocality reads TCG_EfiStartupLocalityEvent (PFP 10.4.5.3): the locality
// of TPM2_Startup, which becomes the last byte of PCR 0 before the first extend.
// Zeros behind it are padding.
func (p *parser) startupLocality(e Event) error {
	rest := e.Data[len(localitySignature):]
	if len(rest) == 0 || len(bytes.Trim(rest[1:], "\x00")) != 0 {
		return p.fail(e.Offset, "a StartupLocality event of %d bytes, wanted %d", len(e.Data), len(localitySignature)+1)
	}
	locality := int(rest[0])
	switch {
	case locality != 0 && locality != 3 && locality != 4:
		return p.fail(e.Offset, "startup locality %d is not 0, 3 or 4", locality)
	case p.localitySet && p.locality != locality:
		return p.fail(e.Offset, "startup locality %d, and %d before", locality, p.locality)
	}
	p.locality, p.localitySet = locality, true
	return nil
}

// header reads TCG_EfiSpecIDEvent (PFP 10.4.5.1), which declares the banks of all
// events that follow it.
func (p *parser) header(e Event) error {
	const fixed = 16 + 4 + 4 // signature, platform class, version and UINTN size
	d := e.Data
	if e.PCR != 0 {
		return p.fail(e.Offset, "the Spec ID event is for PCR %d, wanted 0", e.PCR)
	}
	if len(d) < fixed+4 {
		return p.fail(e.Offset, "the Spec ID event has %d bytes, wanted at least %d", len(d), fixed+4)
	}
	count := binary.LittleEndian.Uint32(d[fixed:])
	if count == 0 || count > maxBanks {
		return p.fail(e.Offset, "the Spec ID event declares %d algorithms, wanted 1 to %d", count, maxBanks)
	}
	end := fixed + 4 + 4*int(count)
	if len(d) < end {
		return p.fail(e.Offset, "the Spec ID event of %d bytes has no room for %d algorithms", len(d), count)
	}
	p.banks = p.banks[:0]
	for i := fixed + 4; i < end; i += 4 {
		alg, size := Algorithm(binary.LittleEndian.Uint16(d[i:])), int(binary.LittleEndian.Uint16(d[i+2:]))
		if err := p.declare(e, alg, size); err != nil {
			return err
		}
	}
	return p.vendorInfo(e, end)
}

func (p *parser) declare(e Event, alg Algorithm, size int) error {
	for _, b := range p.banks {
		if b.alg == alg {
			return p.fail(e.Offset, "the Spec ID event declares %s twice", alg)
		}
	}
	if want := alg.size(); want != 0 && size != want || size == 0 || size > maxDigest {
		return p.fail(e.Offset, "the Spec ID event declares %s digests of %d bytes", alg, size)
	}
	p.banks = append(p.banks, bank{alg, size, len(p.banks)})
	return nil
}

// vendorInfo checks that the vendor's part, behind a one-byte size, ends with the
// event. Firmware that rounds the event's size up leaves zeros behind it.
func (p *parser) vendorInfo(e Event, off int) error {
	if len(e.Data) <= off {
		return p.fail(e.Offset, "the Spec ID event of %d bytes ends before its vendorInfoSize", len(e.Data))
	}
	size, rest := int(e.Data[off]), e.Data[off+1:]
	if size > len(rest) {
		return p.fail(e.Offset, "vendorInfoSize is %d, %d bytes left", size, len(rest))
	}
	if len(bytes.Trim(rest[size:], "\x00")) != 0 {
		return p.fail(e.Offset, "%d bytes follow the Spec ID event's vendor information", len(rest)-size)
	}
	return nil
}
