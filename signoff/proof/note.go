package proof

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyturn/keyturn/hsm"
)

// Signature types of c2sp.org/signed-note.
const (
	algEd25519     = 0x01 // the log's own signature
	algCosignature = 0x04 // cosignature/v1 with Ed25519
)

// stampSize is the length of the time in front of a cosignature.
const stampSize = 8

// SignCheckpoint returns c as a note signed by the log under name. The
// signature was verified under k's public key. The caller has made sure that c
// extends every checkpoint it signed before.
func SignCheckpoint(ctx context.Context, c Checkpoint, name string, k hsm.Key) ([]byte, error) {
	text := c.Marshal()
	if _, err := ParseCheckpoint(text); err != nil {
		return nil, err
	}
	pub, err := signingKey(name, k)
	if err != nil {
		return nil, err
	}
	sig, err := hsm.SignMessage(ctx, k, text)
	if err != nil {
		return nil, fmt.Errorf("proof: sign checkpoint %d of %s: %w", c.Size, c.Origin, err)
	}
	return append(append(text, '\n'), line(name, keyHash(name, algEd25519, pub), sig)...), nil
}

// Cosign returns the signature line, newline included, by which a notary says
// that at time (Unix seconds, not 0) the log had grown to this checkpoint from
// all it cosigned before, and that it came to the same state. Only text counts,
// not the signatures already there; the caller has opened and judged the note.
func Cosign(ctx context.Context, signed []byte, name string, k hsm.Key, time uint64) ([]byte, error) {
	c, text, err := split(signed)
	if err != nil {
		return nil, err
	}
	pub, err := signingKey(name, k)
	if err != nil {
		return nil, err
	}
	message, err := cosigned(text, time)
	if err != nil {
		return nil, err
	}
	sig, err := hsm.SignMessage(ctx, k, message)
	if err != nil {
		return nil, fmt.Errorf("proof: cosign checkpoint %d of %s: %w", c.Size, c.Origin, err)
	}
	stamped := binary.BigEndian.AppendUint64(nil, time)
	return line(name, keyHash(name, algCosignature, pub), append(stamped, sig...)), nil
}

// VerifyCosignature returns the time of a signature line that w made over the
// checkpoint in signed. Whoever collects lines calls it before AddCosignature:
// [Open] refuses a whole note for one bad line of a known witness.
func VerifyCosignature(signed, sigLine []byte, w Witness) (time uint64, err error) {
	_, text, err := split(signed)
	if err != nil {
		return 0, err
	}
	name, hash, sig, err := parseLine(sigLine)
	if err != nil {
		return 0, err
	}
	v, err := newVerifier(w.Name, algCosignature, w.Key)
	if err != nil {
		return 0, err
	}
	if name != w.Name || hash != v.hash {
		return 0, fmt.Errorf("proof: the line of %q (key %08x) is not by witness %q (key %08x)", name, hash, w.Name, v.hash)
	}
	if !v.Verify(text, sig) {
		return 0, fmt.Errorf("proof: the cosignature of %q does not verify for this checkpoint", name)
	}
	return binary.BigEndian.Uint64(sig), nil
}

// AddCosignature returns signed with the line at its end. A line that is there
// already is not added again, and neither is another one of the same name and
// key: the first stays.
func AddCosignature(signed, sigLine []byte) ([]byte, error) {
	_, text, err := split(signed)
	if err != nil {
		return nil, err
	}
	name, hash, _, err := parseLine(sigLine)
	if err != nil {
		return nil, err
	}
	for have := range bytes.Lines(signed[len(text)+1:]) {
		if n, h, _, err := parseLine(have); err == nil && n == name && h == hash {
			return signed, nil
		}
	}
	out := append(bytes.Clone(signed), sigLine...)
	if _, _, err := split(out); err != nil {
		return nil, err
	}
	return out, nil
}

// Unverified returns the checkpoint of a well-formed note and checks no
// signature. It is for bookkeeping and messages; decide nothing on it.
func Unverified(signed []byte) (Checkpoint, error) {
	c, _, err := split(signed)
	return c, err
}

// split checks the form of a note and returns its checkpoint and its text.
func split(signed []byte) (Checkpoint, []byte, error) {
	n, err := openNote(signed, nil)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	c, err := ParseCheckpoint([]byte(n.Text))
	return c, []byte(n.Text), err
}

// openNote is note.Open with a bound, our prefix on errors, and only one
// spelling of each signature line. A note that nobody known signed is returned
// with no verified signature.
func openNote(signed []byte, known note.Verifiers) (*note.Note, error) {
	if len(signed) > maxNote {
		return nil, fmt.Errorf("proof: a signed checkpoint of %d bytes; at most %d", len(signed), maxNote)
	}
	n, err := note.Open(signed, known)
	if err != nil {
		var unverified *note.UnverifiedNoteError
		if !errors.As(err, &unverified) {
			return nil, fmt.Errorf("proof: open checkpoint: %w", err)
		}
		n = unverified.Note
	}
	for l := range bytes.Lines(signed[len(n.Text)+1:]) {
		if _, _, _, err := parseLine(l); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// signingKey returns the public half of k if k can sign notes under name.
func signingKey(name string, k hsm.Key) (ed25519.PublicKey, error) {
	if err := checkName("key name", name); err != nil {
		return nil, err
	}
	if k == nil {
		return nil, fmt.Errorf("proof: no key was given for %s", name)
	}
	pub, ok := k.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("proof: %s is a %T; notes are signed with Ed25519", k.Info().URI, k.Public())
	}
	return pub, nil
}

// cosigned returns the message of cosignature/v1.
func cosigned(text []byte, time uint64) ([]byte, error) {
	if time == 0 || time > math.MaxInt64 {
		return nil, fmt.Errorf("proof: %d is no time for a cosignature", time)
	}
	return append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", time), text...), nil
}

// keyHash is the key ID of c2sp.org/signed-note for Ed25519 keys.
func keyHash(name string, alg byte, pub ed25519.PublicKey) uint32 {
	h := sha256.New()
	h.Write([]byte(name))
	h.Write([]byte{'\n', alg})
	h.Write(pub)
	return binary.BigEndian.Uint32(h.Sum(nil))
}

// linePrefix starts every signature line: em dash, space.
const linePrefix = "— "

func line(name string, hash uint32, sig []byte) []byte {
	id := binary.BigEndian.AppendUint32(nil, hash)
	return fmt.Appendf(nil, "%s%s %s\n", linePrefix, name, base64.StdEncoding.EncodeToString(append(id, sig...)))
}

// parseLine reads one signature line, newline included.
func parseLine(l []byte) (name string, hash uint32, sig []byte, err error) {
	rest, ok := strings.CutPrefix(string(l), linePrefix)
	rest, nl := strings.CutSuffix(rest, "\n")
	name, b64, sp := strings.Cut(rest, " ")
	raw, err := base64.StdEncoding.Strict().DecodeString(b64)
	if !ok || !nl || !sp || err != nil || len(raw) < 5 || strings.Contains(rest, "\n") {
		return "", 0, nil, fmt.Errorf("proof: %.60q is not a signature line", l)
	}
	if err := checkName("key name", name); err != nil {
		return "", 0, nil, err
	}
	return name, binary.BigEndian.Uint32(raw), raw[4:], nil
}

// verifier is a note.Verifier of either signature type.
type verifier struct {
	name string
	alg  byte
	key  ed25519.PublicKey
	hash uint32
}

func newVerifier(name string, alg byte, key ed25519.PublicKey) (*verifier, error) {
	if err := checkName("key name", name); err != nil {
		return nil, err
	}
	if err := hsm.CheckPublic(key); err != nil {
		return nil, fmt.Errorf("proof: the key of %s: %w", name, err)
	}
	return &verifier{name: name, alg: alg, key: key, hash: keyHash(name, alg, key)}, nil
}

func (v *verifier) Name() string    { return v.name }
func (v *verifier) KeyHash() uint32 { return v.hash }

func (v *verifier) Verify(text, sig []byte) bool {
	if v.alg == algEd25519 {
		return len(sig) == ed25519.SignatureSize && ed25519.Verify(v.key, text, sig)
	}
	if len(sig) != stampSize+ed25519.SignatureSize {
		return false
	}
	message, err := cosigned(text, binary.BigEndian.Uint64(sig))
	return err == nil && ed25519.Verify(v.key, message, sig[stampSize:])
}
