package weights

import (
	"bytes"
	"context"
	"fmt"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// MaxSigned bounds the file of a signed manifest, in bytes.
const MaxSigned = dsse.MaxFile + 1

// SignManifest returns the manifest as a DSSE envelope signed by k, written as
// a one-line sigstore bundle with a newline: the content of manifest.json.
func SignManifest(ctx context.Context, k hsm.Key, m *Manifest) ([]byte, error) {
	e, err := dsse.SignFile(ctx, k, m.payload)
	if err != nil {
		return nil, fmt.Errorf("weights: sign manifest: %w", err)
	}
	return append(e.Line(), '\n'), nil
}

// ReadSigned reads what SignManifest writes and nothing else. It does not
// verify: look up the key that the envelope's hint names, decide whether it may
// sign, and call [dsse.Envelope.Verify].
func ReadSigned(data []byte) (*dsse.Envelope, *Manifest, error) {
	line, ended := bytes.CutSuffix(data, []byte("\n"))
	if !ended {
		return nil, nil, fmt.Errorf("weights: signed manifest of %d bytes: want one line, ended by a newline", len(data))
	}
	e, err := dsse.ParseFile(line)
	if err != nil {
		return nil, nil, fmt.Errorf("weights: read signed manifest: %w", err)
	}
	m, err := ParseManifest(e.Payload)
	return e, m, err
}
