// Package weights seals directories of model weights, opens them again, and
// says exactly what is in them.
//
// Sealing reads each file once: the same bytes are hashed for the manifest and
// encrypted into an age v1 file (see package stream) under a fresh random key.
// When every digest is known the caller, through [Options.Finish], signs the
// manifest, names the object and wraps the file keys; only then are the age
// headers written. A sealed directory looks like this:
//
//	DIR.sealed/manifest.json       OMS v1 manifest, signed (from the caller)
//	DIR.sealed/...                 the caller's other documents
//	DIR.sealed/SHA256SUMS          digests of the plaintext, as sha256sum writes them
//	DIR.sealed/files/<NAME>.age    one age file for each file, same tree
//
// The manifest is a statement of the OpenSSF Model Signing specification
// (OMS v1), so other tools can check it. Everything that opens or verifies takes
// the manifest from a signed document, and compares plaintext with it: an age
// body is only as honest as the holder of its key.
//
// Directories are walked by open descriptors and never through symbolic links;
// links, devices, hard links and names that are not UTF-8 are refused, as is a
// directory that changes meanwhile. Results are built in a directory NAME.partial
// beside the place they are for, and appear there in one rename after they are
// on disk: whoever is interrupted finds the old state or the new one. Nothing is
// ever overwritten. Directories that hold no file are not carried over.
//
// Signing, wrapping and display are the caller's; this package prints nothing.
package weights

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// Digest is a SHA-256 digest.
type Digest = [sha256.Size]byte

var (
	// ErrExists reports that the place for a result is taken.
	ErrExists = errors.New("weights: output exists")
	// ErrBusy reports that another process is building the same result.
	ErrBusy = errors.New("weights: another process is at work on this output")
	// ErrChanged reports that a directory changed while it was read.
	ErrChanged = errors.New("weights: changed while being read")
	// ErrMismatch reports plaintext that is not what the manifest says.
	ErrMismatch = errors.New("weights: not what the signed manifest says")
)

// Progress says how far an operation has come.
type Progress struct {
	Bytes int64  // of plaintext or ciphertext, done so far
	Total int64  // that will be done
	File  string // worked on last, slash-separated; not safe to show on a terminal as it is
}

// Summary is what approvers are shown of the weights.
type Summary struct {
	Files      int
	Bytes      int64
	Tensors    int
	Parameters int64
	DTypes     []string // safetensors names, sorted
}

// StanzaType is the type of the age stanza that names the lockbox. Its
// arguments are the object id in hex and the file's index in the manifest in
// decimal, its body is the wrapped file key.
const StanzaType = "keyturn"

// A KeyFunc unwraps the key of a file, given its index in the manifest and its
// stanza, whose object and index have been checked.
type KeyFunc func(file int, stanza stream.Stanza) (stream.FileKey, error)

// Names inside a sealed directory.
const (
	sumsName  = "SHA256SUMS"
	filesName = "files"
)

// meter reports progress to one function from many goroutines.
type meter struct {
	mu     sync.Mutex
	now    Progress // guarded by mu
	report func(Progress)
}

func newMeter(report func(Progress), total int64) *meter {
	return &meter{now: Progress{Total: total}, report: report}
}

func (m *meter) add(file string, n int64) {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Bytes += n
	m.now.File = file
	m.report(m.now)
}

// writer counts what is written for file.
func (m *meter) writer(file string) meterWriter { return meterWriter{m, file} }

type meterWriter struct {
	m    *meter
	file string
}

func (w meterWriter) Write(p []byte) (int, error) {
	w.m.add(w.file, int64(len(p)))
	return len(p), nil
}

// about prefixes an error with what was done to which file.
func about(doing, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("weights: %s %q: %w", doing, name, err)
}
