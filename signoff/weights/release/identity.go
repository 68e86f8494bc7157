package release

import (
	"errors"
	"fmt"
	"path"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// An Identity tells age-plugin-keyturn where the release bundle is and which
// key opens it: the data of an AGE-PLUGIN-KEYTURN-1 identity, as JSON. It holds
// no secret; the key stays where its URI says.
type Identity struct {
	Charter Digest `json:"charter"` // the trust anchor
	Release string `json:"release"` // absolute path of release.json
	Key     string `json:"key"`     // URI of the recipient's key
}

// ParseIdentity reads what Marshal writes.
func ParseIdentity(data []byte) (Identity, error) {
	var id Identity
	if err := dsse.Decode(data, &id); err != nil {
		return id, fmt.Errorf("release: read identity: %w", err)
	}
	return id, id.check()
}

// Marshal writes the identity's data.
func (id Identity) Marshal() ([]byte, error) {
	if err := id.check(); err != nil {
		return nil, err
	}
	return dsse.Encode(id)
}

func (id Identity) check() error {
	if id.Charter.IsZero() || id.Release == "" || id.Key == "" {
		return errors.New("release: an identity needs charter, release and key; make one with keyturn weights identity")
	}
	if !path.IsAbs(id.Release) { // age starts plugins in a directory of its own
		return fmt.Errorf("release: an identity needs the absolute path of its release, not %.200q", id.Release)
	}
	return nil
}
