package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"filippo.io/age/plugin"
	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/weights/release"
)

// agePlugin is the name under which age finds age-plugin-keyturn.
const agePlugin = "keyturn"

func recipientCmd(a *app) *cobra.Command {
	var out, public string
	cmd := &cobra.Command{Use: "recipient --out KEYFILE", Short: "make a software key for receiving exports, and print its public half", Args: cobra.NoArgs,
		Long: `Recipient makes a P-256 key in a file, for those who have no token. Whoever
reads the file opens whatever was exported to it, and approvers are shown that
it is a software key. Make keys on a token with keyturn key new instead.`,
		RunE: func(*cobra.Command, []string) error {
			k, err := newRecipient(out)
			if err != nil {
				return err
			}
			b, err := dsse.Encode(k)
			if err != nil {
				return err
			}
			if public != "" {
				if err := writeNew(public, append(b, '\n')); err != nil {
					return err
				}
			}
			return a.Answer(k, func(w writer) { fmt.Fprintf(w, "%s\n", b) })
		}}
	cmd.Flags().StringVar(&out, "out", "", "file to write the private key to")
	cmd.Flags().StringVar(&public, "public", "", "write the public key to this file too")
	return require(cmd, "out")
}

func newRecipient(path string) (signoff.PublicKey, error) {
	uri, err := absoluteKey(hsm.URI{Scheme: hsm.SchemeFile, Path: path}.String())
	if err != nil {
		return signoff.PublicKey{}, err
	}
	pub, err := file.Generate(uri, hsm.KindECDH)
	if err != nil {
		return signoff.PublicKey{}, err
	}
	return signoff.NewPublicKey(pub, hsm.ClassSoftware)
}

// absoluteKey makes the path of a file: URI independent of the directory that
// somebody happens to be in.
func absoluteKey(uri string) (string, error) {
	u, err := hsm.ParseURI(uri)
	if err != nil || u.Scheme != hsm.SchemeFile {
		return uri, err
	}
	u.Path, err = filepath.Abs(u.Path)
	return u.String(), err
}

func identityCmd(a *app) *cobra.Command {
	var trust trustFlags
	var key, out string
	cmd := &cobra.Command{Use: "identity --release FILE --key URI", Short: "write an identity file with which age opens an export", Args: cobra.NoArgs,
		Long: `Identity writes a file for age -d -i FILE, with age-plugin-keyturn on the PATH.
It holds no secret: it says where the release bundle and the key are, and which
charter to trust. The plugin checks the bundle against it each time.

Age knows neither the names of files nor what was signed: whoever had the export on
its way can have given one file the name of another. Compare what age wrote with
keyturn weights verify --sealed DIR.`,
		RunE: func(*cobra.Command, []string) error { return a.identity(trust, key, out) }}
	trust.add(cmd)
	cmd.Flags().StringVar(&key, "key", "", "URI of the recipient's key: pkcs11:... or file:PATH")
	cmd.Flags().StringVar(&out, "out", "", "file to write (default standard output)")
	return require(cmd, "release", "key")
}

func (a *app) identity(trust trustFlags, key, out string) error {
	r, err := trust.bundle(a, "")
	if err != nil {
		return err
	}
	path, err := filepath.Abs(trust.release)
	if err != nil {
		return err
	}
	uri, err := absoluteKey(key)
	if err != nil {
		return err
	}
	data, err := release.Identity{Charter: r.CharterID, Release: path, Key: uri}.Marshal()
	if err != nil {
		return err
	}
	line := plugin.EncodeIdentity(agePlugin, data)
	if line == "" {
		return fmt.Errorf("the identity of %d bytes has no age encoding", len(data))
	}
	text := fmt.Sprintf("# keyturn: opens object %s\n# exported to %s for request %s\n# with age-plugin-keyturn and key %s\n%s\n",
		r.ObjectID, r.Request.Export.Recipient, r.RequestID, uri, line)
	if out != "" {
		if err := writeNew(out, []byte(text)); err != nil {
			return err
		}
	}
	return a.Answer(struct {
		Object   dsse.Digest `json:"object"`
		Identity string      `json:"identity"`
	}{r.ObjectID, line}, func(w writer) {
		if out == "" {
			fmt.Fprint(w, text)
		}
	})
}

func drillCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "drill OBJECT", Short: "open your own share of an object on your token, and check it", Args: cobra.ExactArgs(1),
		Long: `Drill opens your share with one operation of your token and compares it with
the commitments that the sealer signed, or that
follow from them after a re-deal, so that a share that would fail you on
the day is found today. The share is wiped and sent nowhere.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.drill(cmd.Context(), args[0]) }}
}

func (a *app) drill(ctx context.Context, name string) error {
	if err := a.sync(ctx, 1); err != nil {
		return err
	}
	me, err := a.me()
	if err != nil {
		return err
	}
	object, err := a.findObject(name)
	if err != nil {
		return err
	}
	key, err := a.exchange(ctx)
	if err != nil {
		return err
	}
	share, err := a.openShare(ctx, key, object, me.Index)
	if said := (*ui.Hint)(nil); err != nil && !errors.As(err, &said) {
		err = ui.WithHint(err, "this share would not open the object: tell whoever dealt it, and see keyturn weights redeal --help")
	}
	if err != nil {
		return err
	}
	share.Wipe()
	return a.Answer(struct {
		Object dsse.Digest `json:"object"`
		Name   string      `json:"name"`
		Epoch  uint32      `json:"epoch"`
		Index  uint16      `json:"index"`
		Key    dsse.Digest `json:"key"`
		OK     bool        `json:"ok"`
	}{object.ID, object.Doc.Name, object.People.Epoch, me.Index, share.Context().Holder, true}, func(w writer) {
		fmt.Fprintf(w, "share %d of %s opens and matches its commitments (object %s, epoch %d)\n", me.Index, object.Doc.Name, object.ID, object.People.Epoch)
	})
}

// findObject resolves an object by its id or at least six digits of it.
func (a *app) findObject(name string) (found *authority.Object, err error) {
	hexed := strings.TrimPrefix(name, "sha256:")
	err = a.view(func(_ *authority.Authority, s *authority.State) error {
		for id, o := range s.Objects {
			if len(hexed) < 6 || !strings.HasPrefix(id.Hex(), hexed) {
				continue
			}
			if found != nil {
				return fmt.Errorf("several objects begin with %q; give more digits", hexed)
			}
			found = o
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case found == nil:
		return nil, ui.WithHint(fmt.Errorf("no object %.80q in the log", name), "give its id or at least six digits of it; keyturn weights info prints it")
	case found.People.Epoch == 0:
		return nil, fmt.Errorf("the shares of object %s are not dealt", found.ID.Short())
	}
	return found, nil
}
