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
	Bank       string `json:"bank"`
	Offset     int    `json:"offset"` // bytes of the list
	Entries    int    `json:"entries"`
	Violations int    `json:"violations"`
	PCR        []byte `json:"pcr"` // value of PCR 10
}

// NewState returns the state of a kernel that has measured nothing. SHA-1 is
// refused, as is any bank that cannot be replayed.
func NewState(bank string) (*State, error) {
	h, err := strongHash(bank)
	if err != nil {
		return nil, err
	}
	return &State{Bank: bank, PCR: make([]byte, h.size)}, nil
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
// the state's Offset; what follows the prefix is not looked at. If no prefix fits, or
// an entry of it is malformed or for another PCR, which this quote does not prove,
// the state stays as it was. After a reboot begin with a new state.
func (s *State) Advance(list, quoted []byte) ([]Entry, error) {
	h, err := s.check()
	switch {
	case err != nil:
		return nil, err
	case len(quoted) != h.size:
		return nil, fmt.Errorf("ima: a quoted value of %d bytes, those of %s have %d", len(quoted), s.Bank, h.size)
	case allZero(quoted):
		return nil, fmt.Errorf("ima: PCR %d is all zeros: the kernel measured nothing", PCR)
	case bytes.Equal(quoted, s.PCR):
		return nil, nil
	}
	n, size, err := prefix(h, s.PCR, list, quoted)
	if err != nil {
		return nil, err
	}
	entries, err := collect(list[:size], n)
	if err != nil {
		return nil, err
	}
	s.commit(entries, quoted)
	return entries, nil
}

// Prove returns the entries of the shortest prefix of a whole list that leads to the
// quoted value of PCR 10: see [State.Advance].
func Prove(bank string, list, quoted []byte) ([]Entry, error) {
	s, err := NewState(bank)
	if err != nil {
		return nil, err
	}
	return s.Advance(list, quoted)
}

// check refuses a state that NewState and Advance did not make.
func (s *State) check() (hash, error) {
	h, err := strongHash(s.Bank)
	if err != nil {
		return hash{}, err
	}
	fresh := s.Entries == 0 && s.Offset == 0 && allZero(s.PCR)
	later := s.Entries > 0 && s.Offset > 0 && !allZero(s.PCR)
	if len(s.PCR) != h.size || s.Violations < 0 || s.Violations > s.Entries || !fresh && !later {
		return hash{}, fmt.Errorf("ima: a state of %d entries up to offset %d with PCR %x is none of ours", s.Entries, s.Offset, s.PCR)
	}
	return h, nil
}

// commit moves the state behind the entries.
func (s *State) commit(entries []Entry, quoted []byte) {
	base := s.Offset
	for i := range entries {
		entries[i].Offset += base
		s.Offset += entries[i].Size
		if entries[i].Violation {
			s.Violations++
		}
	}
	s.Entries += len(entries)
	s.PCR = bytes.Clone(quoted)
}

// prefix extends entries into PCR 10 until it has the value, and returns how many
// entries and bytes it took. It keeps none of them, so that a list that proves nothing
// takes no memory.
func prefix(h hash, start, list, value []byte) (n, size int, err error) {
	r := &replay{hash: h}
	at := r.value[PCR][:h.size]
	copy(at, start)
	sc := newScanner(list)
	sc.proved = true
	var e Entry
	for {
		more, err := sc.next(&e)
		if err == nil && more && e.PCR != PCR {
			sc.entries, sc.off = sc.entries-1, sc.off-e.Size
			err = sc.fail(fmt.Errorf("it is for PCR %d, which the value of PCR %d does not prove", e.PCR, PCR))
		}
		if err != nil {
			return 0, 0, fmt.Errorf("%w; the entries before it do not lead to PCR %d, %x", err, PCR, value)
		}
		if !more {
			return 0, 0, noPrefix(h, start, list, value, at)
		}
		if r.extend(&e); bytes.Equal(at, value) {
			return sc.entries, sc.off, nil
		}
	}
}

// collect returns the n entries of a list that prefix went over.
func collect(list []byte, n int) ([]Entry, error) {
	sc := newScanner(list)
	sc.proved = true
	entries := make([]Entry, n)
	for i := range entries {
		if _, err := sc.next(&entries[i]); err != nil {
			return nil, fmt.Errorf("ima: the list changed while it was read: %w", err)
		}
	}
	return entries, nil
}

// noPrefix says what the list leads to instead. SHA-1 digests padded with zeros, as
// kernels before 5.8 extended them, are told and never accepted.
func noPrefix(h hash, start, list, value, at []byte) error {
	pair := make([]byte, 2*h.size)
	copy(pair, start)
	sc := newScanner(list)
	sc.proved = true
	var e Entry
	for more, err := sc.next(&e); more && err == nil; more, err = sc.next(&e) {
		clear(pair[h.size:])
		copy(pair[h.size:], e.Digest)
		if e.Violation {
			copy(pair[h.size:], bytes.Repeat([]byte{0xff}, h.size))
		}
		next := h.sum(pair)
		if copy(pair, next[:h.size]); bytes.Equal(pair[:h.size], value) {
			return fmt.Errorf("ima: PCR %d is %x, which holds SHA-1 digests padded with zeros: use a kernel of version 5.8 or later", PCR, value)
		}
	}
	return fmt.Errorf("ima: no prefix of %d entries leads to PCR %d, %x; all of them lead to %x", sc.entries, PCR, value, at)
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

// pcrs returns those that entries were extended into.
func (r *replay) pcrs() map[int][]byte {
	out := make(map[int][]byte)
	for i := range r.value {
		if r.extended[i] {
			out[i] = bytes.Clone(r.value[i][:r.hash.size])
		}
	}
	return out
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
