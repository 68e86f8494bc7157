package release

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// Unlock opens shares with the recipient's key, one agreement each, until both
// sides have as many good ones as it takes, and combines them. With too few the
// error names what was wrong with each bad one. Wipe the unlocker after use.
func (r *Release) Unlock(ctx context.Context, key hsm.Decrypter) (*lockbox.Unlocker, error) {
	id, err := lockbox.TokenIdentity(key)
	if err != nil {
		return nil, err
	}
	if want := r.Request.Export.RecipientKey.Fingerprint(); Digest(id.Recipient().ID()) != want {
		return nil, fmt.Errorf("release: released to key %s, the key at hand is %s", want, Digest(id.Recipient().ID()))
	}
	people, err := openSide(ctx, id, r.box.People, r.people)
	defer wipe(people)
	if err != nil {
		return nil, fmt.Errorf("release: people's shares: %w", err)
	}
	machines, err := openSide(ctx, id, r.box.Machines, r.machines)
	defer wipe(machines)
	if err != nil {
		return nil, fmt.Errorf("release: notaries' shares: %w", err)
	}
	return lockbox.Unlock(r.ObjectID, r.box, people, machines)
}

func openSide(ctx context.Context, id *lockbox.Identity, sharing lockbox.Sharing, sealed []sealedShare) (good []*lockbox.Share, err error) {
	var bad []error
	seen := map[uint16]bool{} // an index counts once, as notaries of two terms may have the same
	for _, s := range sealed {
		if len(good) == sharing.Threshold() {
			break
		}
		if seen[s.where.Index] {
			continue
		}
		share, err := lockbox.OpenRelease(ctx, id, s.where, sharing, s.sealed)
		var fault *lockbox.ShareError
		switch {
		case err == nil:
			good, seen[s.where.Index] = append(good, share), true
		case errors.As(err, &fault):
			bad = append(bad, err)
		default: // the token's own trouble blames no share
			return good, err
		}
	}
	if len(good) < sharing.Threshold() {
		return good, errors.Join(append([]error{fmt.Errorf("%d good ones, it takes %d", len(good), sharing.Threshold())}, bad...)...)
	}
	return good, nil
}

func wipe(shares []*lockbox.Share) {
	for _, s := range shares {
		s.Wipe()
	}
}

// commitments reads the lockbox of an object's statement.
func commitments(o *signoff.Object) (lockbox.Commitments, error) {
	c := lockbox.Commitments{Salt: [32]byte(o.Lockbox.Salt)}
	var err error
	if c.People, err = lockbox.ParseSharing(o.Lockbox.People.Threshold, o.Lockbox.People.Commitments); err != nil {
		return c, err
	}
	c.Machines, err = lockbox.ParseSharing(o.Lockbox.Machines.Threshold, o.Lockbox.Machines.Commitments)
	return c, err
}
