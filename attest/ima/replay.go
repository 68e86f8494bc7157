package ima

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// PCR is the register that the kernel extends unless a policy rule names another.
const PCR = 10

// A State is how far a list was proved, so that the next quote costs only the new
// entries. It may be kept as JSON. The zero State is refused: see NewState.
type State struct {
	Bank       string         `json:"bank"`
	Offset     int            `json:"offset"` // bytes of the list
	Entries    int            `json:"entries"`
	Violations int            `json:"violations"`
	PCRs       map[int][]byte `json:"pcrs"` // those that entries were extended into
}

// NewState returns the state of a kernel that has measured nothing. SHA-1 is
// refused, as is any bank that cannot be replayed.
func NewState(bank string) (*State, error) {
	if _, err := strongHash(bank); err != nil {
		return nil, err
	}
	return &State{Bank: bank, PCRs: map[int][]byte{}}, nil
}

// strongHash returns the hash of a bank that proves something.
func strongHash(bank string) (hash, error) {
	h, err := bankHash(bank)
	if err == nil && h.name == "sha1" {
		err = errors.New("ima: SHA-1 proves nothing: quote the sha256 bank, or a stronger one")
	}
	return h, err
}

// Advance finds the shortest prefix of list that leads from the state to the quoted
// value of PCR 10, moves the state to its end and returns its entries, which the
// quote proves. There are none if nothing was measured since. The list begins at
// the state's Offset; what follows the prefix is not looked at. A list in which no
// prefix fits is an error and leaves the state as it was: retry with the list from
// the beginning and a new state only after a reboot.
func (s *State) Advance(list, quoted []byte) ([]Entry, error) {
	r, err := s.resume()
	if err != nil {
		return nil, err
	}
	switch {
	case len(quoted) != r.hash.size:
		return nil, fmt.Errorf("ima: a quoted value of %d bytes, those of %s have %d", len(quoted), s.Bank, r.hash.size)
	case allZero(quoted):
		return nil, fmt.Errorf("ima: PCR %d is all zeros: the kernel measured nothing", PCR)
	}
	entries, err := r.until(list, quoted)
	if err != nil {
		return nil, err
	}
	s.commit(r, entries)
	return entries, nil
}

// commit moves the state to where the replay is, behind the entries.
func (s *State) commit(r *replay, entries []Entry) {
	base := s.Offset
	for i := range entries {
		entries[i].Offset += base
		s.Offset += entries[i].Size
		if entries[i].Violation {
			s.Violations++
		}
	}
	s.Entries += len(entries)
	s.PCRs = r.pcrs()
}

// resume returns a replay that begins at the state.
func (s *State) resume() (*replay, error) {
	h, err := strongHash(s.Bank)
	if err != nil {
		return nil, err
	}
	r := &replay{hash: h}
	if s.Offset < 0 || s.Entries < 0 || s.Violations < 0 || (s.Entries == 0) != (len(s.PCRs) == 0) {
		return nil, fmt.Errorf("ima: a state of %d entries up to offset %d with %d PCRs is none of ours", s.Entries, s.Offset, len(s.PCRs))
	}
	for pcr, value := range s.PCRs {
		if pcr < 0 || pcr >= pcrCount || len(value) != h.size {
			return nil, fmt.Errorf("ima: a state with %d bytes for PCR %d is none of ours", len(value), pcr)
		}
		copy(r.value[pcr][:], value)
		r.extended[pcr] = true
	}
	return r, nil
}

// A replay is the PCRs of one bank while a list is extended into them.
type replay struct {
	hash     hash
	value    [pcrCount][maxDigest]byte // the front of each is in use
	extended [pcrCount]bool
	input    [20 + imaName + 1]byte
	pair     [2 * maxDigest]byte
}

// extend takes in one entry: the bank's hash of its template data, or ones for a
// violation.
func (r *replay) extend(e *Entry) {
	n := r.hash.size
	var digest [maxDigest]byte
	if e.Violation {
		for i := range digest {
			digest[i] = 0xff
		}
	} else {
		digest = r.hash.sum(e.input(&r.input))
	}
	pcr := &r.value[e.PCR]
	copy(r.pair[:], pcr[:n])
	copy(r.pair[n:], digest[:n])
	*pcr = r.hash.sum(r.pair[:2*n])
	r.extended[e.PCR] = true
}

func (r *replay) pcrs() map[int][]byte {
	out := make(map[int][]byte)
	for i := range r.value {
		if r.extended[i] {
			out[i] = bytes.Clone(r.value[i][:r.hash.size])
		}
	}
	return out
}

// until extends entries until PCR 10 has the value.
func (r *replay) until(list, value []byte) ([]Entry, error) {
	at := r.value[PCR][:r.hash.size]
	if bytes.Equal(at, value) {
		return nil, nil
	}
	padded := paddedReplay{pcr: make([]byte, r.hash.size)}
	sc := newScanner(list)
	entries := make([]Entry, 0, len(list)/typicalEntry+1)
	for {
		var e Entry
		more, err := sc.next(&e)
		if err != nil {
			return nil, fmt.Errorf("ima: no prefix of %d entries leads to PCR %d, %x: %w", len(entries), PCR, value, err)
		}
		if !more {
			break
		}
		r.extend(&e)
		entries = append(entries, e)
		if bytes.Equal(at, value) {
			return entries, nil
		}
	}
	if padded.leads(entries, r.hash, value) {
		return nil, fmt.Errorf("ima: PCR %d is %x, which holds SHA-1 digests padded with zeros: a kernel before 5.8, or one that has no %s", PCR, value, r.hash.name)
	}
	return nil, fmt.Errorf("ima: no prefix of %d entries leads to PCR %d, %x; all of them lead to %x", len(entries), PCR, value, at)
}

// A paddedReplay is what kernels before 5.8 did in banks other than SHA-1. It serves
// to say so, and never to accept.
type paddedReplay struct{ pcr []byte }

func (p *paddedReplay) leads(entries []Entry, h hash, value []byte) bool {
	for i := range entries {
		e := &entries[i]
		if e.PCR != PCR || len(e.Digest) != 20 {
			continue
		}
		digest := make([]byte, h.size)
		copy(digest, e.Digest)
		if e.Violation {
			copy(digest, bytes.Repeat([]byte{0xff}, h.size))
		}
		next := h.sum(slices.Concat(p.pcr, digest))
		if p.pcr = bytes.Clone(next[:h.size]); bytes.Equal(p.pcr, value) {
			return true
		}
	}
	return false
}

// Prove returns the entries of the shortest prefix that leads to the quoted value of
// PCR 10 from the start of the kernel.
func (l *List) Prove(bank string, quoted []byte) ([]Entry, error) {
	s, err := NewState(bank)
	if err != nil {
		return nil, err
	}
	return s.Advance(l.data, quoted)
}

// Replay extends every entry into the bank, SHA-1 included, and returns the PCRs.
func (l *List) Replay(bank string) (map[int][]byte, error) {
	h, err := bankHash(bank)
	if err != nil {
		return nil, err
	}
	r := &replay{hash: h}
	for i := range l.Entries {
		r.extend(&l.Entries[i])
	}
	return r.pcrs(), nil
}

// bootAggregate is what the kernel calls its first entry: a hash of the PCRs that
// the firmware and the boot loader left behind.
const bootAggregate = "boot_aggregate"

// BootAggregate checks that the entry is the kernel's first and is the hash of the
// bank's PCRs 0 to 9, or 0 to 7 as earlier kernels had it. SHA-1 is refused.
// It ties the list to the boot that the other PCRs show.
func (e *Entry) BootAggregate(bank string, pcrs map[int][]byte) error {
	h, err := strongHash(bank)
	switch {
	case err != nil:
		return err
	case e.Violation || string(e.name) != bootAggregate:
		return fmt.Errorf("ima: the first entry is %v, wanted %s", e, bootAggregate)
	case e.Algorithm != h.name:
		return fmt.Errorf("ima: %s is over the %s bank, the PCRs are of %s", bootAggregate, e.Algorithm, h.name)
	}
	var values []byte
	for pcr := range 10 {
		if len(pcrs[pcr]) != h.size {
			if pcr < 8 {
				return fmt.Errorf("ima: %s needs PCR %d, which has %d bytes, wanted %d", bootAggregate, pcr, len(pcrs[pcr]), h.size)
			}
			break
		}
		values = append(values, pcrs[pcr]...)
		if sum := h.sum(values); (pcr == 7 || pcr == 9) && bytes.Equal(sum[:h.size], e.FileDigest) {
			return nil
		}
	}
	return fmt.Errorf("ima: %s is %x, which is not that of PCRs %v: the list is from another boot", bootAggregate, e.FileDigest, slices.Sorted(maps.Keys(pcrs)))
}
