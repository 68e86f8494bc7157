// Package wire is what the client of a token and its helper process say to each
// other over their socketpair: frames of at most one mebibyte, requests and
// answers matched by number, in any order.
//
// A frame is a big-endian uint32 length, then that many bytes: a uint64 number,
// one byte that is the operation of a request or the code of an answer, and
// fields, each a big-endian uint32 length and its bytes. An answer has one
// field: the result, or what went wrong. Secrets travel here, so frames of the
// size that secrets have are built and read in locked memory, all are wiped
// after use, and only what is not secret is JSON.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
)

// Version is the first field of OpOpen, OpTokens and OpInit: client and helper
// of different builds refuse each other.
const Version = "keyturn-token/2"

// The bounds of both sides.
const (
	MaxFrame  = 1 << 20 // bytes after the length
	MaxFields = 8
	MaxInput  = 1 << 17 // bytes that a key signs; a log leaf is under 2^16
	MaxSecret = 4 << 10 // bytes that a key seals
	MaxAD     = 1 << 16 // bytes of associated data
	IVSize    = 12      // bytes in front of a sealed secret (NIST SP 800-38D)
	TagSize   = 16      // bytes behind it
	MaxPIN    = 255
	MaxLabel  = 255
	MaxKeys   = 1000 // keys listed on one token

	SealOverhead = IVSize + TagSize
)

// Op is the operation of a request.
type Op byte

// The operations, their fields, and the field of the answer.
const (
	OpTokens    Op = 1 + iota // version, module path -> JSON []TokenInfo
	OpInit                    // version, module path, label, SO PIN, user PIN -> nothing
	OpOpen                    // version, module path, JSON Selector -> JSON TokenInfo
	OpLogin                   // PIN, interactive (one byte, 0 or 1) -> nothing
	OpInfo                    // -> JSON TokenInfo
	OpList                    // -> JSON []KeyInfo
	OpGenerate                // kind, label -> public point
	OpChangePIN               // old PIN, new PIN, interactive -> nothing
	OpSign                    // kind, label, public point, digest or message -> raw signature
	OpECDH                    // label, public point, peer's point -> x coordinate
	OpWitness                 // label -> witness of the sealing key
	OpSeal                    // label, witness, plaintext, associated data -> IV and ciphertext
	OpUnseal                  // label, witness, IV and ciphertext, associated data -> plaintext
	OpDestroy                 // kind, label, public point or nothing -> nothing
)

// Code says how an operation went.
type Code byte

const (
	CodeOK            Code = iota
	CodeRefused            // the token said no, and is well
	CodeAbsent             // no such key, and the token is well
	CodeLost               // the token or its session is gone; start again
	CodeWrongPIN           // never to be retried unattended
	CodeLocked             // no PIN is taken any more
	CodeAuthExpired        // the PIN must be changed first
	CodeWrongIdentity      // a key answers to the name, but another one
)

// ErrLost is hsm.ErrGone where a new helper may find what this one lost.
var ErrLost = fmt.Errorf("%w, helper or token lost", hsm.ErrGone)

// ErrRefused: the token is there, and said no for a reason that has no code.
var ErrRefused = errors.New("refused")

// Err returns the error that c stands for, with what the helper said about it.
// An unknown code is an error like any other.
func (c Code) Err(text string) error {
	kind, known := map[Code]error{
		CodeAbsent:        hsm.ErrGone,
		CodeLost:          ErrLost,
		CodeWrongPIN:      hsm.ErrWrongPIN,
		CodeLocked:        hsm.ErrLocked,
		CodeAuthExpired:   hsm.ErrAuthExpired,
		CodeWrongIdentity: hsm.ErrWrongIdentity,
	}[c]
	switch {
	case c == CodeOK:
		return nil
	case known:
		return fmt.Errorf("%w: %s", kind, text)
	case c == CodeRefused:
		return fmt.Errorf("%w: %s", ErrRefused, text)
	}
	return fmt.Errorf("helper answered with unknown code %d", c)
}

// Frame is one request or answer. Its fields may be secret: Wipe it after use.
type Frame struct {
	ID     uint64
	Code   byte // Op or Code
	Fields [][]byte
	memory Memory // that Fields points into, if it was read
}

// Wipe overwrites the bytes that were read. Fields are no more.
func (f Frame) Wipe() { f.memory.Wipe() }

// Memory holds one frame.
type Memory struct {
	Bytes  []byte
	locked *secret.Buffer // nil: the heap's
}

// maxLocked is the size in bytes up to which frames are in locked memory: a
// page. A PIN, a share and a sealed dealing fit with all that goes with them.
const maxLocked = 4096

func newMemory(size int) (Memory, error) {
	if size > maxLocked {
		return Memory{Bytes: make([]byte, size)}, nil
	}
	b, err := secret.New(size)
	return Memory{b.Bytes(), b}, err
}

// Wipe overwrites the memory and gives it back.
func (m Memory) Wipe() {
	if m.locked != nil {
		m.locked.Wipe()
		return
	}
	clear(m.Bytes)
}

const headSize = 8 + 1

// Marshal returns f, length and all, in memory that the caller wipes.
func (f Frame) Marshal() (Memory, error) {
	size := headSize
	for _, field := range f.Fields {
		size += 4 + len(field)
	}
	if size > MaxFrame || len(f.Fields) > MaxFields {
		return Memory{}, fmt.Errorf("wire: frame of %d bytes and %d fields is over %d or %d", size, len(f.Fields), MaxFrame, MaxFields)
	}
	m, err := newMemory(4 + size)
	if err != nil {
		return Memory{}, fmt.Errorf("wire: %w", err)
	}
	defer secret.Scrub()
	buf := m.Bytes[:0]
	buf = binary.BigEndian.AppendUint32(buf, uint32(size))
	buf = binary.BigEndian.AppendUint64(buf, f.ID)
	buf = append(buf, f.Code)
	for _, field := range f.Fields {
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(field)))
		buf = append(buf, field...)
	}
	return m, nil
}

// Read returns the next frame, io.EOF at the end of the stream, or an error for
// anything that Marshal does not make.
func Read(r io.Reader) (Frame, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return Frame{}, err
	}
	size := binary.BigEndian.Uint32(length[:])
	if size < headSize || size > MaxFrame {
		return Frame{}, fmt.Errorf("wire: frame of %d bytes is not between %d and %d", size, headSize, MaxFrame)
	}
	m, err := newMemory(int(size))
	if err != nil {
		return Frame{}, fmt.Errorf("wire: %w", err)
	}
	body := m.Bytes
	if _, err := io.ReadFull(r, body); err != nil {
		m.Wipe()
		return Frame{}, fmt.Errorf("wire: frame of %d bytes cut short: %w", size, err)
	}
	f := Frame{ID: binary.BigEndian.Uint64(body), Code: body[8], memory: m}
	for rest := body[headSize:]; len(rest) > 0; {
		if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) || len(f.Fields) == MaxFields {
			m.Wipe()
			return Frame{}, fmt.Errorf("wire: field %d does not fit the frame", len(f.Fields))
		}
		n := binary.BigEndian.Uint32(rest)
		f.Fields = append(f.Fields, rest[4:4+n:4+n])
		rest = rest[4+n:]
	}
	return f, nil
}

// Selector names one token. Empty fields match all, but not all may be empty.
type Selector struct {
	Token        string `json:"token"`
	Serial       string `json:"serial"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
}

// TokenInfo is what a token says of itself (PKCS #11, CK_TOKEN_INFO).
type TokenInfo struct {
	Label        string `json:"label"`
	Serial       string `json:"serial"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Initialized  bool   `json:"initialized"`
	PINSet       bool   `json:"pinSet"`      // a user PIN was set
	PINCountLow  bool   `json:"pinCountLow"` // a wrong PIN was tried since the last right one
	PINFinalTry  bool   `json:"pinFinalTry"` // one more wrong PIN locks the token
	PINLocked    bool   `json:"pinLocked"`   // no PIN is taken any more
}

// KeyInfo is what a token says of one private or secret key.
type KeyInfo struct {
	Label            string   `json:"label"`
	ID               string   `json:"id"`               // CKA_ID, hexadecimal
	Kind             hsm.Kind `json:"kind"`             // empty if keyturn has no use for such a key
	Point            []byte   `json:"point"`            // public: 65 bytes uncompressed for P-256, 32 for Ed25519
	Sign             bool     `json:"sign"`             // may sign
	Derive           bool     `json:"derive"`           // may agree
	Sensitive        bool     `json:"sensitive"`        // does not leave in the clear
	Extractable      bool     `json:"extractable"`      // may leave wrapped
	AlwaysSensitive  bool     `json:"alwaysSensitive"`  // was sensitive from the start
	NeverExtractable bool     `json:"neverExtractable"` // was not extractable from the start
	Local            bool     `json:"local"`            // was made on the token
}
