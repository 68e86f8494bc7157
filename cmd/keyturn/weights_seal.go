package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/weights"
	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// firstEpoch is the epoch of the deals made while sealing.
const firstEpoch = 1

// A sealing is one run of weights seal.
type sealing struct {
	*app
	name, out string
	sharded   bool
	offline   bool

	sealer  *authority.Member
	key     hsm.Key
	secrets *lockbox.Secrets
	object  *signoff.Object
}

func sealCmd(a *app) *cobra.Command {
	s := &sealing{app: a}
	cmd := &cobra.Command{Use: "seal DIR", Short: "encrypt a directory so that only people and notaries together open it", Args: cobra.ExactArgs(1),
		Long: `Seal encrypts DIR into a new directory, signs its manifest and its object
statement with your token, and deals the shares of its lockbox to the people
and notaries of the charter. Then it puts shares and statements into the log;
with --offline do that later, from a connected machine, with
keyturn weights register. DIR is left as it is: remove it once you have
checked the result with keyturn weights info and keyturn weights drill.`,
		RunE: func(cmd *cobra.Command, args []string) error { return s.run(cmd.Context(), args[0]) }}
	f := cmd.Flags()
	f.StringVar(&s.out, "out", "", "directory to make, as a rule DIR.sealed")
	f.StringVar(&s.name, "name", "", "name that approvers are shown (default the directory's)")
	f.BoolVar(&s.sharded, "sharded", false, "describe files by shards of 1 GiB in the manifest")
	f.BoolVar(&s.offline, "offline", false, "do not send anything to the log")
	return require(cmd, "out")
}

func resealCmd(a *app) *cobra.Command {
	s := &sealing{app: a}
	var trust trustFlags
	var key string
	cmd := &cobra.Command{Use: "reseal EXPORT", Short: "seal an export anew, so that old shares open it no more", Args: cobra.ExactArgs(1),
		Long: `Reseal opens an export with the recipient's key and seals the same weights
again, as a new object with fresh keys for the people and notaries of today.
No plaintext is written anywhere, and the manifest stays the same to the byte.

This is what revokes: dealing again moves shares to other holders and changes
no key, so that enough old shares go on to open the old object. Once the new one
is checked (keyturn weights info, keyturn weights drill), destroy every copy of
the old ciphertext: whoever has one and enough old shares still opens it.`,
		RunE: func(cmd *cobra.Command, args []string) error { return s.reseal(cmd.Context(), trust, args[0], key) }}
	f := cmd.Flags()
	f.StringVar(&trust.release, "release", "", "release bundle (default "+releaseFile+" in the directory)")
	f.StringVar(&key, "key", "", "URI of the recipient's key: pkcs11:... or file:PATH")
	f.StringVar(&s.out, "out", "", "directory to make, as a rule DIR.sealed")
	f.StringVar(&s.name, "name", "", "name that approvers are shown (default the old object's)")
	f.BoolVar(&s.offline, "offline", false, "do not send anything to the log")
	return require(cmd, "key", "out")
}

func (s *sealing) reseal(ctx context.Context, trust trustFlags, dir, key string) error {
	if err := vacant(s.out); err != nil {
		return err
	}
	x, err := s.exported(trust, dir)
	if err != nil {
		return err
	}
	defer x.files.Close()
	if s.name == "" {
		s.name = x.object.Name
	}
	keyFor, wipe, err := s.unlock(ctx, x.release, key)
	if err != nil {
		return err
	}
	defer wipe()
	return s.make(ctx, "sealing anew", func(o weights.Options) error {
		_, err := x.files.Reseal(ctx, s.out, keyFor, o)
		return err
	})
}

func (s *sealing) run(ctx context.Context, dir string) error {
	if s.name == "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return err
		}
		s.name = filepath.Base(abs)
	}
	return s.make(ctx, "sealing", func(o weights.Options) error {
		o.Name, o.Sharded = s.name, s.sharded
		_, err := weights.Seal(ctx, dir, s.out, o)
		return err
	})
}

// make has seal make the sealed directory, and brings it into the log.
func (s *sealing) make(ctx context.Context, doing string, seal func(weights.Options) error) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	defer s.secrets.Wipe()
	report, done := s.progress(doing)
	err := seal(weights.Options{Progress: report, Finish: s.finish})
	done()
	if err != nil {
		return err
	}
	t, err := s.trusted()
	if err != nil {
		return err
	}
	sealed, err := sealedAt(s.out, t)
	if err != nil {
		return err
	}
	if !s.offline {
		if err := s.register(ctx, sealed); err != nil {
			return ui.WithHint(err, "%s is sealed; put it into the log with keyturn weights register %s", s.out, s.out)
		}
	}
	view, err := sealed.view()
	if err != nil {
		return err
	}
	view.Epoch, view.Notaries = firstEpoch, firstEpoch
	registered := !s.offline
	view.Registered = &registered
	return s.Answer(view, func(w writer) { fmt.Fprintln(w, view.Object) })
}

// prepare refuses what would fail after hours of work, and opens the token.
func (s *sealing) prepare(ctx context.Context) (err error) {
	if !s.offline { // the shares go to the people of today
		if err := s.sync(ctx, 1); err != nil {
			return err
		}
	}
	if s.sealer, err = s.me(); err != nil {
		return err
	}
	if err := signoff.CheckText("name", s.name); err != nil {
		return ui.WithHint(err, "give another name with --name")
	}
	if err := vacant(s.out); err != nil {
		return err
	}
	if s.key, err = s.signer(ctx); err != nil {
		return err
	}
	t, err := s.trusted()
	if err != nil {
		return err
	}
	params, err := t.holders()
	if err != nil {
		return err
	}
	var box lockbox.Commitments
	if s.secrets, box, err = lockbox.New(rand.Reader, params); err != nil {
		return err
	}
	s.object = &signoff.Object{Charter: s.id, Sealer: s.sealer.ID, Name: s.name, Lockbox: signoff.Lockbox{Salt: box.Salt[:],
		People:   signoff.Sharing{Threshold: box.People.Threshold(), Commitments: box.People.Bytes()},
		Machines: signoff.Sharing{Threshold: box.Machines.Threshold(), Commitments: box.Machines.Bytes()}}}
	return nil
}

// finish signs what the digests of the plaintext made possible: manifest and
// object, whose digest is the object id, and the deals that name it.
func (s *sealing) finish(ctx context.Context, d *weights.Draft) (*weights.Final, error) {
	manifest, err := weights.SignManifest(ctx, s.key, d.Manifest)
	if err != nil {
		return nil, err
	}
	s.object.Manifest, s.object.Created = d.Manifest.Digest(), time.Now().Unix()
	s.object.Summary = signoff.Summary{Files: d.Summary.Files, Bytes: d.Summary.Bytes, Tensors: d.Summary.Tensors,
		Parameters: d.Summary.Parameters, DTypes: d.Summary.DTypes}
	object, err := signoff.Sign(ctx, s.key, s.object)
	if err != nil {
		return nil, err
	}
	id := object.Digest()
	shares, deals, err := s.deal(ctx, id)
	if err != nil {
		return nil, err
	}
	return &weights.Final{
		Object: id,
		Wrap: func(file int, key stream.FileKey) ([]byte, error) {
			return s.secrets.WrapFileKey(id, uint32(file), key)
		},
		Documents: map[string][]byte{
			manifestFile: manifest, objectFile: append(object.Line(), '\n'),
			dealsFile: append(deals.Line(), '\n'), sharesFile: shares,
		},
	}, nil
}

// deal seals every share to its holder and signs where the shares are.
func (s *sealing) deal(ctx context.Context, object dsse.Digest) (shares []byte, doc *signoff.Signed, err error) {
	deals, err := s.secrets.Deal(object, firstEpoch)
	if err != nil {
		return nil, nil, err
	}
	if shares, err = dsse.Encode(deals); err != nil {
		return nil, nil, err
	}
	doc, err = signoff.Sign(ctx, s.key, &signoff.Deals{Charter: s.id, Sealer: s.sealer.ID, Object: object, Epoch: firstEpoch, Blob: textDigest(string(shares))})
	return shares, doc, err
}

func registerCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "register DIR.sealed", Short: "put weights that were sealed without a network into the log", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.sync(cmd.Context(), 1); err != nil {
				return err
			}
			t, err := a.trusted()
			if err != nil {
				return err
			}
			d, err := sealedAt(args[0], t)
			if err != nil {
				return err
			}
			if err := a.register(cmd.Context(), d); err != nil {
				return err
			}
			return a.Answer(struct {
				Object dsse.Digest `json:"object"`
			}{d.objectID}, func(w writer) { fmt.Fprintln(w, d.objectID) })
		}}
}

// register sends the shares and then the documents that name them. What an
// earlier run brought into the log is not sent again.
func (a *app) register(ctx context.Context, d *sealedDir) error {
	deals, shares, err := d.deals()
	if err != nil {
		return err
	}
	if err := a.sync(ctx, 1); err != nil {
		return err
	}
	known, dealt, err := a.dealt(d.objectID)
	if err != nil {
		return err
	}
	client, err := a.coordinator()
	if err != nil {
		return err
	}
	if _, err := client.PutBlob(ctx, shares); err != nil {
		return err
	}
	if !known {
		if _, err := a.done(ctx, d.signed); err != nil {
			return err
		}
	}
	if dealt {
		return nil
	}
	_, err = a.done(ctx, deals)
	return err
}

// dealt says what the log knows of an object.
func (a *app) dealt(object dsse.Digest) (known, dealt bool, err error) {
	err = a.view(func(_ *authority.Authority, s *authority.State) error {
		if o, ok := s.Objects[object]; ok {
			known, dealt = true, o.People.Epoch > 0
		}
		return nil
	})
	return known, dealt, err
}

// deals reads the signed deals and the shares that they name.
func (d *sealedDir) deals() (*signoff.Signed, []byte, error) {
	path := filepath.Join(d.path, dealsFile)
	s, err := readLineFile(path)
	if err != nil {
		return nil, nil, err
	}
	x, ok := s.Doc.(*signoff.Deals)
	if !ok || x.Charter != d.anchor || x.Object != d.objectID || x.Sealer != d.object.Sealer {
		return nil, nil, fmt.Errorf("%s holds a %s that does not belong to object %s", path, s.Doc.Kind(), d.objectID)
	}
	if err := d.sealedBy(s.Envelope); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	shares, err := readBounded(filepath.Join(d.path, sharesFile), maxShares)
	if err != nil {
		return nil, nil, err
	}
	if got := textDigest(string(shares)); got != x.Blob {
		return nil, nil, fmt.Errorf("%s has digest %s, %s names %s", filepath.Join(d.path, sharesFile), got, dealsFile, x.Blob)
	}
	_, err = lockbox.ParseDeals(shares)
	return s, shares, err
}

// maxShares bounds the shares of one object, in bytes: the size of a blob.
const maxShares = 8 << 20
