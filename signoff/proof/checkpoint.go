package proof

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Checkpoint is the head of the log at one size: what the log signs and the
// notaries cosign.
type Checkpoint struct {
	Origin string   // unique name of the log; no spaces, no plus
	Size   uint64   // number of entries, at most MaxSize
	Root   [32]byte // RFC 6962 Merkle tree hash of the entries
	State  [32]byte // digest of the state that folding the entries gives
}

// statePrefix starts the one extension line.
const statePrefix = "state "

// Marshal returns the text of the note (c2sp.org/tlog-checkpoint):
//
//	<origin>
//	<size, decimal>
//	<root, base64>
//	state <state, base64>
//
// each line ended by a newline. ParseCheckpoint accepts only these bytes.
func (c Checkpoint) Marshal() []byte {
	return fmt.Appendf(nil, "%s\n%d\n%s\n%s%s\n", c.Origin, c.Size,
		base64.StdEncoding.EncodeToString(c.Root[:]),
		statePrefix, base64.StdEncoding.EncodeToString(c.State[:]))
}

// ParseCheckpoint parses the text of a note, without its signatures. Another
// number of lines, another extension and any other spelling of the same values
// are refused.
func ParseCheckpoint(text []byte) (Checkpoint, error) {
	var c Checkpoint
	lines := strings.Split(string(text), "\n")
	if len(lines) != 5 || lines[4] != "" {
		return c, errors.New("proof: a checkpoint has exactly four lines: origin, size, root, state")
	}
	state, ok := strings.CutPrefix(lines[3], statePrefix)
	if !ok {
		return c, fmt.Errorf("proof: checkpoint: the fourth line %.40q is not the state", lines[3])
	}
	if err := checkName("origin", lines[0]); err != nil {
		return c, err
	}
	size, err := parseSize(lines[1])
	if err != nil {
		return c, err
	}
	root, err := parseHash(lines[2])
	if err != nil {
		return c, fmt.Errorf("proof: checkpoint root: %w", err)
	}
	digest, err := parseHash(state)
	if err != nil {
		return c, fmt.Errorf("proof: checkpoint state: %w", err)
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: root, State: digest}, nil
}

// parseSize reads a decimal of at most MaxSize with no sign and no leading zero.
func parseSize(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("proof: %.40q is not a plain decimal number", s)
	}
	if n > MaxSize {
		return 0, fmt.Errorf("proof: %d is above the largest log, %d", n, uint64(MaxSize))
	}
	return n, nil
}

// parseHash reads the one base64 spelling of 32 bytes.
func parseHash(s string) (h [32]byte, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(h) || len(s) != base64.StdEncoding.EncodedLen(len(h)) {
		return h, fmt.Errorf("%.60q is not 32 bytes in base64", s)
	}
	return [32]byte(b), nil
}

// checkName applies the rule of c2sp.org/signed-note for key names, which
// keyturn keeps for origins too, and a bound.
func checkName(what, name string) error {
	bad := func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) || r == '+' }
	if name == "" || len(name) > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("proof: %s %.40q must be 1 to %d bytes of printable text without spaces and plus", what, name, maxName)
	}
	return nil
}
