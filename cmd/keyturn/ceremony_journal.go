package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/keyturn/keyturn/hsm/durable"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A journal is what a ceremony leaves on disk while it runs: one line for each
// thing that happened, written through before the next thing is done. Folding
// it from its first line gives where the ceremony stands, so a ceremony that
// was interrupted anywhere goes on there and does nothing twice.
type journal struct {
	file journalMedium
	standing
}

// A journalMedium is an *os.File; tests have one that fails.
type journalMedium interface {
	io.ReadWriteSeeker
	io.Closer
	Sync() error
	Truncate(size int64) error
	Fd() uintptr
	Name() string
}

func openMedium(path string) (journalMedium, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

// A happening is one line of the journal. Exactly one member is set.
type happening struct {
	Opening   *opening            `json:"opening,omitzero"`
	Begun     int64               `json:"begun,omitzero"`     // the step was begun, at that time
	Intent    string              `json:"intent,omitzero"`    // the step is about to make something
	Found     []ceremony.Finding  `json:"found,omitzero"`     // the step's work is done
	Incident  *ceremony.Incident  `json:"incident,omitzero"`  // an attempt failed, or there was an interruption
	Exception *ceremony.Exception `json:"exception,omitzero"` // somebody decided on a deviation
	Record    []byte              `json:"record,omitzero"`    // payload that is to be signed
	Signature string              `json:"signature,omitzero"` // line
	Discard   bool                `json:"discard,omitzero"`   // the record is not signed after all
}

// An opening says of which script and in which mode the ceremony is.
type opening struct {
	Version string        `json:"version"`
	Mode    ceremony.Mode `json:"mode"`
	Script  string        `json:"script"` // verbatim
	Run     []byte        `json:"run"`    // 16 random bytes
}

const (
	journalVersion = "keyturn ceremony journal 1"
	journalFile    = "journal.jsonl"
	maxJournal     = 64 << 20 // bytes
)

// standing is where a ceremony stands: the fold of its journal.
type standing struct {
	script []byte
	chain  *ceremony.Chain

	// Of the step that is under way:
	begun      int64
	intent     bool
	found      []ceremony.Finding
	incidents  []ceremony.Incident
	exceptions []ceremony.Exception
	payload    []byte
	record     *ceremony.Record
	signed     []*dsse.Envelope
}

// openJournal opens the journal of a directory, which it makes. A ceremony that
// was begun there must have been begun with this script, in this mode.
func openJournal(dir string, mode ceremony.Mode, script []byte, medium func(string) (journalMedium, error)) (j *journal, resumed bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, false, err
	}
	if medium == nil {
		medium = openMedium
	}
	f, err := medium(filepath.Join(dir, journalFile))
	if err != nil {
		return nil, false, err
	}
	j = &journal{file: f}
	if resumed, err = j.open(mode, script); err == nil {
		err = durable.SyncDir(dir)
	}
	if err != nil {
		return nil, false, errors.Join(fmt.Errorf("%s: %w", f.Name(), err), f.Close())
	}
	return j, resumed, nil
}

func (j *journal) open(mode ceremony.Mode, script []byte) (resumed bool, err error) {
	if err := syscall.Flock(int(j.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return false, errors.New("another process is running this ceremony")
	}
	if err := j.replay(); err != nil {
		return false, err
	}
	if j.chain == nil {
		run := make([]byte, 16)
		rand.Read(run)
		return false, j.add(happening{Opening: &opening{journalVersion, mode, string(script), run}})
	}
	if j.chain.Mode != mode {
		return true, fmt.Errorf("a ceremony of mode %s was begun here, not one of mode %s; use another directory", j.chain.Mode, mode)
	}
	if !bytes.Equal(j.script, script) {
		return true, fmt.Errorf("the ceremony was begun with script %s, this one is %s: the script was changed", j.chain.Digest, ceremony.SumScript(script))
	}
	return true, nil
}

// replay folds what is there. A last line that was cut off while it was written
// never happened.
func (j *journal) replay() error {
	b, err := readAtMost(j.file, maxJournal)
	if err != nil {
		return err
	}
	whole := bytes.LastIndexByte(b, '\n') + 1
	for line := range bytes.Lines(b[:whole]) {
		var h happening
		if err := dsse.Decode(line, &h); err != nil {
			return err
		}
		if err := j.happened(h); err != nil {
			return err
		}
	}
	if whole < len(b) {
		if err := j.file.Truncate(int64(whole)); err != nil {
			return err
		}
	}
	_, err = j.file.Seek(int64(whole), io.SeekStart)
	return err
}

// add writes through what happened, and then takes it as happened.
func (j *journal) add(h happening) error {
	line, err := dsse.Encode(h)
	if err != nil {
		return err
	}
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		return err
	}
	return j.happened(h)
}

func (s *standing) happened(h happening) error {
	if (s.chain == nil) != (h.Opening != nil) {
		return errors.New("the journal does not begin with its opening, or opens twice")
	}
	switch {
	case h.Opening != nil:
		return s.opened(h.Opening)
	case h.Begun != 0:
		s.begun = h.Begun
	case h.Intent != "":
		s.intent = true
	case h.Found != nil:
		s.found = h.Found
	case h.Incident != nil:
		s.incidents = append(s.incidents, *h.Incident)
	case h.Exception != nil:
		s.exceptions = append(s.exceptions, *h.Exception)
	case h.Discard:
		s.payload, s.record, s.signed, s.found = nil, nil, nil, nil
	case h.Record != nil:
		r, err := ceremony.ReadRecord(h.Record)
		if err == nil {
			err = s.chain.Check(r)
		}
		s.payload, s.record, s.signed = h.Record, r, nil
		return err
	case h.Signature != "":
		return s.countersigned([]byte(h.Signature))
	}
	return nil
}

func (s *standing) opened(o *opening) (err error) {
	if o.Version != journalVersion {
		return fmt.Errorf("version %.80q, want %q", o.Version, journalVersion)
	}
	s.script = []byte(o.Script)
	s.chain, err = ceremony.Begin(o.Mode, s.script, o.Run)
	return err
}

// countersigned takes a signature; with the last one the step is done.
func (s *standing) countersigned(line []byte) error {
	e, err := dsse.Parse(line)
	if err != nil {
		return err
	}
	if s.record == nil || len(s.signed) >= len(s.record.Signers) {
		return errors.New("a signature without a record to sign")
	}
	if err := ceremony.VerifySigner(s.payload, s.record.Signers[len(s.signed)], e); err != nil {
		return err
	}
	s.signed = append(s.signed, e)
	if len(s.signed) < len(s.record.Signers) {
		return nil
	}
	if err := s.chain.Add(s.payload, s.signed); err != nil {
		return err
	}
	*s = standing{script: s.script, chain: s.chain}
	return nil
}

func (j *journal) close() error { return j.file.Close() }
