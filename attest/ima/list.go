package ima

import (
	"bytes"
	"errors"
	"fmt"
)

// A List is a measurement list in the kernel's order.
type List struct {
	Entries []Entry
}

// A ListError tells how far a list was good.
type ListError struct {
	Entries   int // good ones before the fault
	Offset    int // of the faulty entry, in bytes
	Truncated bool
	Reason    error
}

// Error names the entry, its offset and the reason.
func (e *ListError) Error() string {
	if e.Truncated {
		return fmt.Sprintf("ima: the list is truncated after %d entries, at offset %d: %v", e.Entries, e.Offset, e.Reason)
	}
	return fmt.Sprintf("ima: entry %d, at offset %d: %v", e.Entries, e.Offset, e.Reason)
}

// Unwrap returns the reason.
func (e *ListError) Unwrap() error { return e.Reason }

// Parse reads a whole list, binary_runtime_measurements or
// ascii_runtime_measurements, and checks each template digest. Lists with other
// template digests than SHA-1, as newer kernels offer for each bank, are told by
// their first entry. Errors are of type *ListError; an empty list is one. The list
// aliases data, which must not change.
func Parse(data []byte) (*List, error) {
	l := &List{}
	s := newScanner(data)
	l.Entries = make([]Entry, 0, len(data)/typicalEntry+1)
	for {
		l.Entries = append(l.Entries, Entry{})
		more, err := s.next(&l.Entries[len(l.Entries)-1])
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	if l.Entries = l.Entries[:len(l.Entries)-1]; len(l.Entries) == 0 {
		return nil, &ListError{Reason: errors.New("the list is empty: it has not even a boot_aggregate")}
	}
	return l, nil
}

// A scanner yields the entries of a list one by one.
type scanner struct {
	data    []byte
	off     int
	entries int  // yielded
	proved  bool // by a PCR, through a stronger hash than the listed template digests
	text    *asciiDecoder
	decoder
	buf [20 + imaName + 1]byte
}

func newScanner(data []byte) *scanner {
	s := &scanner{data: data}
	if len(data) > 1 && isDigit(data[0]) && (isDigit(data[1]) || data[1] == ' ') {
		s.text = &asciiDecoder{}
	} else {
		s.digest = digestSize(data)
	}
	return s
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// digestSize returns the size of template digests that makes the first entry of a
// binary list well-formed, and that of SHA-1 if none does.
func digestSize(data []byte) int {
	for _, h := range hashes {
		var e Entry
		d := decoder{digest: h.size}
		if _, err := d.next(data, &e); err == nil {
			return h.size
		}
	}
	return hashes[0].size
}

// next decodes and checks one entry. It returns false behind the last.
func (s *scanner) next(e *Entry) (bool, error) {
	rest := s.data[s.off:]
	switch {
	case len(s.data) > maxList:
		return false, s.fail(fmt.Errorf("the list has %d bytes, more than %d", len(s.data), maxList))
	case len(rest) == 0:
		return false, nil
	}
	n, err := s.decode(rest, e)
	if err == nil && !s.proved {
		err = s.check(e)
	}
	if err != nil {
		return false, s.fail(err)
	}
	e.Offset, e.Size = s.off, n
	s.off += n
	s.entries++
	return true, nil
}

func (s *scanner) decode(rest []byte, e *Entry) (int, error) {
	if s.text == nil {
		return s.decoder.next(rest, e)
	}
	line, _, complete := bytes.Cut(rest, []byte{'\n'})
	entry, err := s.text.encode(line)
	if err == nil {
		s.digest = s.text.digest
		_, err = s.decoder.next(entry, e)
	}
	if complete {
		return len(line) + 1, uncut(err)
	}
	// A last line without its end is whole if its template digest fits, which
	// says nothing for a violation.
	if err != nil || e.Violation || s.check(e) != nil {
		return 0, fmt.Errorf("%w in a line: %.80q", errCut, line)
	}
	return len(line), nil
}

// uncut keeps a line that is too short from being taken for a list that is.
func uncut(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(err.Error())
}

func (s *scanner) fail(err error) error {
	return &ListError{s.entries, s.off, errors.Is(err, errCut), err}
}

// check compares the listed template digest with the template data.
func (s *scanner) check(e *Entry) error {
	if e.Violation || s.fits(e) {
		return nil
	}
	return fmt.Errorf("template digest %x is not that of the template data", e.Digest)
}

func (s *scanner) fits(e *Entry) bool {
	sum := hash{size: len(e.Digest)}.sum(e.input(&s.buf))
	return bytes.Equal(sum[:len(e.Digest)], e.Digest)
}
