package lockbox

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cloudflare/circl/group"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/keyturn/keyturn/signoff/dsse"
)

const fileKeySize = 16 // of age v1

// WrappedFileKeySize is the length of a wrapped age file key in bytes.
const WrappedFileKeySize = fileKeySize + tagSize

// WrapFileKey wraps the random age file key of the file with that index in the
// manifest, for the stanza of its header. A file is wrapped once: the key that
// wraps serves a single message.
func (s *Secrets) WrapFileKey(object [32]byte, file uint32, fileKey [fileKeySize]byte) ([]byte, error) {
	if err := s.use(object); err != nil {
		return nil, err
	}
	if s.wrapped[file] {
		return nil, fmt.Errorf("lockbox: the key of file %d was wrapped before; a second one would share its keystream: seal the object anew", file)
	}
	aead, err := fileAEAD(s.people[0].value, s.machines[0].value, s.commitments.Salt, object, file)
	if err != nil {
		return nil, err
	}
	s.wrapped[file] = true
	return aead.Seal(nil, make([]byte, chacha20poly1305.NonceSize), fileKey[:], nil), nil
}

// fileAEAD is ChaCha20-Poly1305 under HKDF-SHA256 (RFC 5869) of both secrets.
// Its nonce is zero, as each key has one message (C2SP age, "Recipient stanza").
func fileAEAD(people, machines group.Scalar, salt, object [32]byte, file uint32) (cipher.AEAD, error) {
	p, m := appendScalar(nil, people), appendScalar(nil, machines)
	ikm := make([]byte, 0, 2*(4+scalarSize))
	ikm = appendField(appendField(ikm, p), m)
	info := join("keyturn/file/v1", object[:], binary.BigEndian.AppendUint32(nil, file))
	key, err := hkdf.Key(sha256.New, ikm, salt[:], string(info), chacha20poly1305.KeySize)
	clear(p)
	clear(m)
	clear(ikm)
	if err != nil {
		return nil, fmt.Errorf("lockbox: derive the key of file %d: %w", file, err)
	}
	defer clear(key)
	return chacha20poly1305.New(key)
}

// An Unlocker holds both secrets of an object at its recipient. Wipe it.
type Unlocker struct {
	object, salt     [32]byte
	people, machines pair
}

// Unlock combines the shares of both sides. c is the object's lockbox as sealed,
// with the sharing of a side replaced after a re-deal ([Commitments.Redealt]).
// Shares that do not fit are passed over; with fewer good ones than a threshold
// the error says what was wrong with each.
func Unlock(object [32]byte, c Commitments, people, machines []*Share) (*Unlocker, error) {
	if object == [32]byte{} {
		return nil, errors.New("lockbox: unlock: no object id")
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	p, err := combine(object, People, c.People, people)
	if err != nil {
		return nil, err
	}
	m, err := combine(object, Machines, c.Machines, machines)
	if err != nil {
		p.wipe()
		return nil, err
	}
	return &Unlocker{object, c.Salt, p, m}, nil
}

// FileKey unwraps the age file key of the file with that index in the manifest.
// Whoever has it can also make a body: compare the plaintext with the signed
// manifest.
func (u *Unlocker) FileKey(file uint32, wrapped []byte) (key [fileKeySize]byte, err error) {
	if u == nil || u.people.value == nil {
		return key, errors.New("lockbox: the unlocker was wiped; combine the shares again")
	}
	if len(wrapped) != WrappedFileKeySize {
		return key, fmt.Errorf("lockbox: wrapped key of file %d has %d bytes, want %d", file, len(wrapped), WrappedFileKeySize)
	}
	aead, err := fileAEAD(u.people.value, u.machines.value, u.salt, u.object, file)
	if err != nil {
		return key, err
	}
	plain, err := aead.Open(nil, make([]byte, chacha20poly1305.NonceSize), wrapped, nil)
	if err != nil {
		return key, fmt.Errorf("lockbox: the wrapped key of file %d does not open: altered, or of another file or object than %s", file, dsse.Digest(u.object))
	}
	defer clear(plain)
	copy(key[:], plain)
	return key, nil
}

// Wipe forgets both secrets.
func (u *Unlocker) Wipe() {
	if u.people.value == nil {
		return
	}
	u.people.wipe()
	u.machines.wipe()
	u.people, u.machines = pair{}, pair{}
}

// Format prints no secret, whatever the verb.
func (u Unlocker) Format(f fmt.State, _ rune) { redact(f, "unlocker") }
