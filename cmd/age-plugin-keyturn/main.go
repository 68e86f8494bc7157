// Age-plugin-keyturn lets stock age open what keyturn exported:
//
//	keyturn weights identity --release DIR/release.json --key URI --out identity.txt
//	age -d -i identity.txt DIR/files/NAME.age > NAME
//
// It speaks the age plugin protocol (C2SP age-plugin.md, identity-v1). For each
// run it verifies the release bundle against the charter digest in the identity
// and opens the shares with the recipient's key; a token's PIN is asked for by
// age on its terminal. It only opens: sealing is keyturn's.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"filippo.io/age"
	"filippo.io/age/plugin"

	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/weights"
	"github.com/keyturn/keyturn/signoff/weights/release"
)

func main() {
	if err := secret.Harden(); err != nil {
		fmt.Fprintf(os.Stderr, "age-plugin-keyturn: %v\n", err)
		os.Exit(1)
	}
	_ = secret.LockProcess() // where it may
	os.Exit(run())
}

func run() int {
	p, err := plugin.New("keyturn")
	if err != nil {
		fmt.Fprintf(os.Stderr, "age-plugin-keyturn: %v\n", err)
		return 1
	}
	ring := keys.New(func(_ context.Context, prompt string) (*secret.Buffer, error) {
		pin, err := p.RequestValue(prompt, true) // a string, which nobody can wipe
		if err != nil {
			return nil, err
		}
		return secret.Take([]byte(pin))
	})
	defer ring.Close()
	p.HandleIdentity(func(data []byte) (age.Identity, error) {
		at, err := release.ParseIdentity(data)
		return &identity{at: at, ring: ring}, err
	})
	p.HandleRecipient(func([]byte) (age.Recipient, error) { return nil, errOnlyOpens })
	p.HandleIdentityAsRecipient(func([]byte) (age.Recipient, error) { return nil, errOnlyOpens })
	return p.Main()
}

// errOnlyOpens answers who wants to encrypt to a keyturn key or identity.
var errOnlyOpens = errors.New("age-plugin-keyturn only opens exports; weights are sealed with keyturn weights seal")

// An identity opens the files of one release.
type identity struct {
	at   release.Identity
	ring *keys.Ring
	open *opened // made when the first file asks
}

// opened is a verified release and what its shares unlock.
type opened struct {
	*release.Release
	box *lockbox.Unlocker // made when the first of its files asks
}

// read reads and verifies the release that an identity points to. It waits for
// the first file, because only then can a client that runs its plugins without
// standard error, as rage does, be told what is wrong.
func (id *identity) read() (*opened, error) {
	f, err := os.Open(id.at.Release)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, release.MaxSize+1))
	if err != nil {
		return nil, err
	}
	bundle, err := release.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id.at.Release, err)
	}
	r, err := bundle.Verify(id.at.Charter)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id.at.Release, err)
	}
	return &opened{Release: r}, nil
}

// Unwrap returns the file key, or age.ErrIncorrectIdentity if the file is of
// another object.
func (id *identity) Unwrap(stanzas []*age.Stanza) (_ []byte, err error) {
	if id.open == nil {
		if id.open, err = id.read(); err != nil {
			return nil, err
		}
	}
	for _, s := range stanzas {
		file, ok, err := id.open.mine(s)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if id.open.box == nil {
			if id.open.box, err = id.unlock(context.Background()); err != nil {
				return nil, err
			}
		}
		key, err := id.open.box.FileKey(file, s.Body)
		return key[:], err
	}
	return nil, age.ErrIncorrectIdentity
}

// mine reports whether the stanza is of this release's object, and the file's
// index in the manifest.
func (o *opened) mine(s *age.Stanza) (file uint32, ok bool, err error) {
	if s.Type != weights.StanzaType {
		return 0, false, nil
	}
	if len(s.Args) != 2 {
		return 0, false, errors.New("a keyturn stanza has an object id and a file index")
	}
	if s.Args[0] != hex.EncodeToString(o.ObjectID[:]) {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(s.Args[1], 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != s.Args[1] {
		return 0, false, fmt.Errorf("file index %.40q is not a plain number", s.Args[1])
	}
	return uint32(n), true, nil
}

// unlock opens the shares with the recipient's key.
func (id *identity) unlock(ctx context.Context) (*lockbox.Unlocker, error) {
	pinned, err := id.open.Request.Export.RecipientKey.ECDH()
	if err != nil {
		return nil, err
	}
	key, err := id.ring.Decrypter(ctx, id.at.Key, pinned)
	if err != nil {
		return nil, err
	}
	return id.open.Unlock(ctx, key)
}
