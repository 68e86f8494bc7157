package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/weights"
	"github.com/keyturn/keyturn/signoff/weights/release"
	"github.com/keyturn/keyturn/signoff/weights/stream"
)

func weightsInfoCmd(a *app) *cobra.Command {
	var trust trustFlags
	var log bool
	cmd := &cobra.Command{Use: "info DIR.sealed", Short: "say what is sealed, who opens it and what it withstands", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if log {
				if err := a.sync(cmd.Context(), 1); err != nil {
					return err
				}
			}
			t, err := trust.trusted(a, args[0])
			if err != nil {
				return err
			}
			d, err := sealedAt(args[0], t)
			if err != nil {
				return err
			}
			return a.info(cmd.Context(), d, log)
		}}
	trust.add(cmd)
	cmd.Flags().BoolVar(&log, "log", false, "ask the log whether the shares are dealt")
	return cmd
}

func (a *app) info(ctx context.Context, d *sealedDir, log bool) error {
	files, err := d.open()
	if err != nil {
		return err
	}
	defer files.Close()
	if err := files.Check(ctx); err != nil {
		return err
	}
	view, err := d.view()
	if err != nil {
		return err
	}
	view.Epoch, view.Notaries = firstEpoch, firstEpoch
	if log {
		if err := errors.Join(a.held(&view), a.exposed(ctx, &view)); err != nil {
			return err
		}
	}
	return a.Answer(view, view.text)
}

// held says what the log knows of an object's shares.
func (a *app) held(v *weightsView) error {
	return a.view(func(_ *authority.Authority, s *authority.State) error {
		o, ok := s.Objects[v.Object]
		ok = ok && o.People.Epoch > 0
		if v.Registered = &ok; !ok {
			return nil
		}
		v.Epoch, v.Redeal = o.People.Epoch, viewRedeal(s, o, lockbox.People)
		v.Notaries, v.Handover, v.Term = o.Machines.Epoch, viewRedeal(s, o, lockbox.Machines), s.Term().Number
		v.Machines.Threshold, v.Machines.Holders = o.Machines.Threshold(), len(o.Machines.Holders)
		indices := slices.Compact(slices.Sorted(maps.Values(o.People.Holders)))
		v.People.Threshold, v.People.Holders = o.People.Threshold(), len(indices)
		for _, i := range indices {
			v.HeldBy = append(v.HeldBy, s.HolderName(i))
		}
		return nil
	})
}

// exposed looks through the log for the object's shares, and for what they are
// sealed to.
func (a *app) exposed(ctx context.Context, v *weightsView) error {
	if v.Registered == nil || !*v.Registered {
		return nil
	}
	return a.view(func(_ *authority.Authority, s *authority.State) error {
		x, err := authority.NewExposure(s.Objects[v.Object], s.Tokens)
		if err != nil {
			return err
		}
		for i, line := range a.leaves {
			if err := x.Entry(line, sourceBlobs{ctx, a.follower.Source()}); err != nil {
				return ui.WithHint(fmt.Errorf("entry %d: %w", i, err), "without it nobody can say what the object withstands; ask a copy of the log that has it")
			}
		}
		v.expose(x)
		return nil
	})
}

// sourceBlobs reads blobs from where the log comes from.
type sourceBlobs struct {
	ctx    context.Context
	source follow.Source
}

func (b sourceBlobs) Blob(d dsse.Digest) ([]byte, error) { return b.source.Blob(b.ctx, d) }

func weightsVerifyCmd(a *app) *cobra.Command {
	var trust trustFlags
	var manifest, sealed string
	cmd := &cobra.Command{Use: "verify DIR", Short: "compare plaintext with its signed manifest", Args: cobra.ExactArgs(1),
		Long: `Verify compares every file of DIR with a manifest that one of the charter's
people signed: the same files, no others, and every digest. SHA256SUMS tells
whether files came over whole; this tells whether they are what was sealed.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (manifest == "") == (sealed == "") {
				return usage(errors.New("give either --manifest FILE or --sealed DIR.sealed"))
			}
			m, err := a.manifest(cmd.Context(), trust, manifest, sealed)
			if err != nil {
				return err
			}
			report, done := a.progress("verifying")
			err = weights.Verify(cmd.Context(), args[0], m, weights.Run{Progress: report})
			done()
			if err != nil {
				return err
			}
			return a.Answer(struct {
				Manifest dsse.Digest `json:"manifest"`
				Files    int         `json:"files"`
				OK       bool        `json:"ok"`
			}{m.Digest(), len(m.Files), true}, func(w writer) { fmt.Fprintf(w, "%s: %d files are what was signed\n", args[0], len(m.Files)) })
		}}
	trust.add(cmd)
	cmd.Flags().StringVar(&manifest, "manifest", "", "signed manifest, manifest.json of a sealed directory")
	cmd.Flags().StringVar(&sealed, "sealed", "", "sealed directory whose manifest and object to check against")
	return cmd
}

func (a *app) manifest(ctx context.Context, trust trustFlags, file, sealed string) (*weights.Manifest, error) {
	t, err := trust.trusted(a, sealed)
	if err != nil {
		return nil, err
	}
	if file != "" {
		return t.manifest(file)
	}
	d, err := sealedAt(sealed, t)
	if err != nil {
		return nil, err
	}
	return d.manifest, a.vouched(ctx, trust, d)
}

// vouched refuses a snapshot unless its id comes from where its sealer's key is
// known: from the log, or from a release, which people approved.
func (a *app) vouched(ctx context.Context, trust trustFlags, d *sealedDir) error {
	if d.object.Claim.IsZero() {
		return nil
	}
	if trust.anchor != "" {
		r, err := trust.bundle(a, d.path)
		if err == nil && r.ObjectID != d.objectID {
			err = fmt.Errorf("%s is object %s, the release is of %s", d.path, d.objectID, r.ObjectID)
		}
		return err
	}
	if err := a.sync(ctx, 1); err != nil {
		return err
	}
	known, _, err := a.dealt(d.objectID)
	if err == nil && !known {
		err = ui.WithHint(fmt.Errorf("%s says that it is a snapshot, object %s, and the log has no such object", d.path, d.objectID), "only the log vouches for what a node sealed")
	}
	return err
}

func openCmd(a *app) *cobra.Command {
	var trust trustFlags
	var key, out string
	cmd := &cobra.Command{Use: "open DIR", Short: "open an export with the recipient's key", Args: cobra.ExactArgs(1),
		Long: `Open checks the release bundle against the charter's digest: that enough people
approved this request for this key, that a quorum of notaries warranted it and
released their shares, and that the warrant is in the final log. Then it opens
the shares with your key, decrypts, and compares every file with the signed
manifest. No server is asked.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.open(cmd.Context(), trust, args[0], key, out) }}
	trust.add(cmd)
	cmd.Flags().StringVar(&key, "key", "", "URI of the recipient's key: pkcs11:... or file:PATH")
	cmd.Flags().StringVar(&out, "out", "", "directory to make")
	return require(cmd, "key", "out")
}

func (a *app) open(ctx context.Context, trust trustFlags, dir, key, out string) error {
	if err := vacant(out); err != nil {
		return err
	}
	x, err := a.exported(trust, dir)
	if err != nil {
		return err
	}
	defer x.files.Close()
	keyFor, wipe, err := a.unlock(ctx, x.release, key)
	if err != nil {
		return err
	}
	defer wipe()
	report, done := a.progress("opening")
	err = x.files.Open(ctx, out, keyFor, weights.Run{Progress: report})
	done()
	if err != nil {
		return err
	}
	return a.Answer(struct {
		Object dsse.Digest `json:"object"`
		Path   string      `json:"path"`
		Files  int         `json:"files"`
	}{x.objectID, out, len(x.manifest.Files)}, func(w writer) {
		fmt.Fprintf(w, "%s: %d files, each what was signed\n", out, len(x.manifest.Files))
	})
}

// An export is a sealed directory with the verified release of its object.
type export struct {
	*sealedDir
	release *release.Release
	files   *weights.Directory // the caller closes it
}

func (a *app) exported(trust trustFlags, dir string) (*export, error) {
	r, err := trust.bundle(a, dir)
	if err != nil {
		return nil, err
	}
	d, err := sealedAt(dir, trustedBy(r))
	if err != nil {
		return nil, err
	}
	if d.objectID != r.ObjectID {
		return nil, ui.WithHint(fmt.Errorf("%s is object %s, the release is of %s", dir, d.objectID, r.ObjectID), "use the release bundle of this export")
	}
	files, err := d.open()
	return &export{d, r, files}, err
}

// unlock opens the shares of a release with the recipient's key.
func (a *app) unlock(ctx context.Context, r *release.Release, uri string) (weights.KeyFunc, func(), error) {
	pinned, err := r.Request.Export.RecipientKey.ECDH()
	if err != nil {
		return nil, nil, err
	}
	key, err := a.keyring().Decrypter(ctx, uri, pinned)
	if err != nil {
		return nil, nil, err
	}
	u, err := r.Unlock(ctx, key)
	if err != nil {
		return nil, nil, err
	}
	return func(file int, s stream.Stanza) (stream.FileKey, error) {
		k, err := u.FileKey(uint32(file), s.Body)
		return stream.FileKey(k), err
	}, u.Wipe, nil
}
