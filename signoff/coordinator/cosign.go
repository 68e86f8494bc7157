package coordinator

import (
	"bytes"
	"errors"

	"github.com/keyturn/keyturn/signoff/proof"
)

// mergeCosignatures adds to note the cosignatures in signed that trusted
// witnesses made over the same text. A line that does not verify is left out:
// one bad line would make the whole note unreadable.
func mergeCosignatures(note, signed []byte, t proof.Trust) ([]byte, error) {
	text, lines, err := split(signed)
	if err != nil {
		return nil, err
	}
	mine, _, err := split(note)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(text, mine) {
		return nil, errors.New("the note cosigned is not the one pending")
	}
	added := false
	for _, line := range lines {
		for _, w := range t.All() {
			if _, err := proof.VerifyCosignature(note, line, w); err != nil {
				continue
			}
			if note, err = proof.AddCosignature(note, line); err != nil {
				return nil, err
			}
			added = true
		}
	}
	if !added {
		return nil, errors.New("no cosignature of a notary in office")
	}
	return note, nil
}

// split cuts a signed note into its text and its signature lines.
func split(signed []byte) ([]byte, [][]byte, error) {
	text, sigs, ok := bytes.Cut(signed, []byte("\n\n"))
	if !ok {
		return nil, nil, errors.New("not a signed note")
	}
	var lines [][]byte
	for line := range bytes.Lines(sigs) {
		lines = append(lines, line)
	}
	return text, lines, nil
}
