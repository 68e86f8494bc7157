package eventlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// A Log is a parsed event log. It aliases the bytes given to Parse, which must
// not change. A Log is read-only and safe for concurrent use.
type Log struct {
	Events  []Event
	Padding int // bytes 0x00 or 0xff after the last event

	data     []byte
	banks    []bank
	locality int // that PCR 0 starts at: 0, 3 or 4
}

// An Event is one entry: a PCR, a digest per bank, and comments.
type Event struct {
	Offset int    // of the event in the log, in bytes
	PCR    uint32 // 0 to 23, except in EV_NO_ACTION events, which may have any
	Type   Type
	Data   []byte // proves nothing unless it hashes to a digest

	at [maxBanks]uint32 // offsets of the digests, by bank
}

// A ParseError tells where a log is malformed.
type ParseError struct {
	Offset int // in bytes
	Event  int // events read before
	Reason string
}

// Error names offset, event and reason.
func (e *ParseError) Error() string {
	return fmt.Sprintf("eventlog: offset %d, event %d: %s", e.Offset, e.Event, e.Reason)
}

var (
	agileSignature  = []byte("Spec ID Event03\x00")
	legacySignature = [][]byte{[]byte("Spec ID Event00\x00"), []byte("Spec ID Event02\x00")}
)

// Parse reads a log as /sys/kernel/security/tpm0/binary_bios_measurements or the
// firmware's table gives it: TCG_PCR_EVENT and TCG_PCR_EVENT2 (PFP 10.2). Errors
// are of type *ParseError. An empty log is refused; one with a header and no
// events is not, and explains nothing.
func Parse(data []byte) (*Log, error) {
	p := &parser{Log: &Log{data: data}, padding: paddingStart(data)}
	if err := p.parse(); err != nil {
		return nil, err
	}
	return p.Log, nil
}

type parser struct {
	*Log
	off     int
	padding int // where the run of equal last bytes begins

	localitySet bool // by a StartupLocality event
}

func (p *parser) fail(off int, format string, args ...any) error {
	return &ParseError{off, len(p.Events), fmt.Sprintf(format, args...)}
}

// paddingStart returns the offset from which on all bytes are 0x00, or all 0xff.
func paddingStart(data []byte) int {
	if len(data) == 0 {
		return 0
	}
	last := data[len(data)-1]
	if last != 0x00 && last != 0xff {
		return len(data)
	}
	return len(bytes.TrimRight(data, string([]byte{last})))
}

func (p *parser) parse() error {
	switch {
	case len(p.data) == 0:
		return p.fail(0, "the log is empty")
	case len(p.data) > maxLog:
		return p.fail(0, "the log has %d bytes, more than %d", len(p.data), maxLog)
	case p.padding == 0:
		return p.fail(0, "the log is nothing but padding")
	}
	p.banks = []bank{{SHA1, SHA1.size(), 0}}
	first, err := p.event(false)
	if err != nil {
		return err
	}
	agile := first.Type == NoAction && bytes.HasPrefix(first.Data, agileSignature)
	if agile {
		err = p.header(first)
	} else {
		err = p.add(first)
	}
	if err != nil {
		return err
	}
	p.Events = append(make([]Event, 0, (len(p.data)-p.off)/256+8), p.Events...)
	for p.off < p.padding {
		e, err := p.event(agile)
		if err != nil {
			return err
		}
		if err := p.add(e); err != nil {
			return err
		}
	}
	p.Padding = len(p.data) - p.off
	return nil
}

// uint32 reads a little-endian number.
func (p *parser) uint32(what string) (uint32, error) {
	if len(p.data)-p.off < 4 {
		return 0, p.fail(p.off, "cut off in %s: %d bytes left", what, len(p.data)-p.off)
	}
	v := binary.LittleEndian.Uint32(p.data[p.off:])
	p.off += 4
	return v, nil
}

// event reads one event of either format.
func (p *parser) event(agile bool) (e Event, err error) {
	e.Offset = p.off
	if e.PCR, err = p.uint32("the PCR index"); err != nil {
		return e, err
	}
	typ, err := p.uint32("the event type")
	if err != nil {
		return e, err
	}
	e.Type = Type(typ)
	if agile {
		err = p.digests(&e)
	} else {
		err = p.digest(&e, p.banks[0])
	}
	if err != nil {
		return e, err
	}
	e.Data, err = p.eventData()
	return e, err
}

// digests reads a TPML_DIGEST_VALUES: one digest for each bank of the header, in
// any order.
func (p *parser) digests(e *Event) error {
	start := p.off
	count, err := p.uint32("the digest count")
	if err != nil {
		return err
	}
	if int64(count) != int64(len(p.banks)) {
		return p.fail(start, "the event has %d digests, the header declares %d", count, len(p.banks))
	}
	for range p.banks {
		if len(p.data)-p.off < 2 {
			return p.fail(p.off, "cut off in a digest's algorithm")
		}
		alg := Algorithm(binary.LittleEndian.Uint16(p.data[p.off:]))
		b, err := p.declared(alg, e)
		if err != nil {
			return err
		}
		p.off += 2
		if err := p.digest(e, b); err != nil {
			return err
		}
	}
	return nil
}

// declared returns the bank of the algorithm that the event has no digest of yet.
func (p *parser) declared(alg Algorithm, e *Event) (bank, error) {
	for _, b := range p.banks {
		if b.alg != alg {
			continue
		}
		if e.at[b.slot] != 0 {
			return b, p.fail(p.off, "a second %s digest", alg)
		}
		return b, nil
	}
	return bank{}, p.fail(p.off, "digest algorithm %s is not one that the header declares", alg)
}

func (p *parser) digest(e *Event, b bank) error {
	if len(p.data)-p.off < b.size {
		return p.fail(p.off, "cut off in a %s digest: %d bytes left", b.alg, len(p.data)-p.off)
	}
	e.at[b.slot] = uint32(p.off)
	p.off += b.size
	return nil
}

func (p *parser) eventData() ([]byte, error) {
	start := p.off
	size, err := p.uint32("the event size")
	switch {
	case err != nil:
		return nil, err
	case int64(size) > int64(len(p.data)-p.off):
		return nil, p.fail(start, "event data of %d bytes, %d left", size, len(p.data)-p.off)
	case size > maxEventData:
		return nil, p.fail(start, "event data of %d bytes, more than %d", size, maxEventData)
	}
	data := p.data[p.off : p.off+int(size) : p.off+int(size)]
	p.off += int(size)
	return data, nil
}

// add appends the event and notes what it says of PCR 0's start.
func (p *parser) add(e Event) error {
	if len(p.Events) == maxEvents {
		return p.fail(e.Offset, "more than %d events", maxEvents)
	}
	if e.Type != NoAction {
		if e.PCR >= pcrCount {
			return p.fail(e.Offset, "PCR %d: there are PCR 0 to %d", e.PCR, pcrCount-1)
		}
	} else if err := p.noAction(e); err != nil {
		return err
	}
	p.Events = append(p.Events, e)
	return nil
}
