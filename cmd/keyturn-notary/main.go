// Keyturn-notary is the daemon of one notary: it checks everything again,
// cosigns what it agrees with, and signs warrants together with the others.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/notary"
)

// options are the flags all subcommands share.
type options struct {
	config     string
	pinFD      keys.FD
	credential string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p, o := ui.New(), &options{}
	root := &cobra.Command{Use: "keyturn-notary", Short: "the daemon of one notary", SilenceUsage: true, SilenceErrors: true}
	f := root.PersistentFlags()
	f.StringVar(&o.config, "config", "/etc/keyturn/notary.yaml", "configuration file")
	f.Var(&o.pinFD, "pin-fd", "read the token's PIN from this file descriptor")
	f.StringVar(&o.credential, "pin-credential", "", "read the token's PIN from this service credential")
	root.AddCommand(
		&cobra.Command{Use: "init", Short: "make the directory of a new notary, once", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return o.init(cmd.Context()) }},
		&cobra.Command{Use: "run", Short: "run until told to stop", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) }},
		o.positionCmd(p), o.recoveryCmd(p),
	)
	os.Exit(p.Report("keyturn-notary", root.ExecuteContext(ctx)))
}

func (o *options) load() (*config.Notary, *signoff.Charter, dsse.Digest, error) {
	var c config.Notary
	if err := config.Load(o.config, &c); err != nil {
		return nil, nil, dsse.Digest{}, err
	}
	charter, id, err := c.Anchor(o.config)
	c.Dir = config.Beside(o.config, c.Dir)
	return &c, charter, id, err
}

// init opens keys only for a fuse, whose secret is sealed.
func (o *options) init(ctx context.Context) error {
	c, _, id, err := o.load()
	if err != nil {
		return err
	}
	if c.Fuse == "" {
		return notary.Init(c.Dir, id)
	}
	cfg, closeKeys, err := o.openKeys(ctx)
	if err != nil {
		return err
	}
	defer closeKeys()
	return notary.InitFused(ctx, *cfg)
}

func (o *options) run(ctx context.Context) error {
	n, closeKeys, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer closeKeys()
	return n.Run(ctx)
}

// open opens the notary with its keys.
func (o *options) open(ctx context.Context) (*notary.Notary, func(), error) {
	cfg, closeKeys, err := o.openKeys(ctx)
	if err != nil {
		return nil, nil, err
	}
	n, err := notary.New(*cfg)
	if err != nil {
		closeKeys()
		return nil, nil, err
	}
	return n, closeKeys, nil
}

// openKeys opens the four keys, each pinned to what the charter says of this
// notary, and the fuse's TPM. The process is locked in memory first: what it
// computes with a share must not be swapped out.
func (o *options) openKeys(ctx context.Context) (*notary.Config, func(), error) {
	if err := errors.Join(secret.Harden(), secret.LockProcess()); err != nil {
		return nil, nil, err
	}
	c, charter, id, err := o.load()
	if err != nil {
		return nil, nil, err
	}
	me, err := self(charter, c, o.config)
	if err != nil {
		return nil, nil, err
	}
	pin, err := keys.DaemonPIN(o.pinFD, o.credential)
	if err != nil {
		return nil, nil, err
	}
	ring := keys.New(pin)
	cfg := &notary.Config{Charter: id, Dir: c.Dir, Log: keys.Logger("keyturn-notary").With("notary", c.Name),
		Forget: func(ctx context.Context) error { return forget(ctx, ring, c.Exchange, me.Exchange.Fingerprint()) }}
	err = pinned(ctx, ring, c, me, cfg)
	if err == nil {
		cfg.Fuse, err = fuse(ring, c.Fuse, charter.Development)
	}
	if err == nil {
		cfg.Client, err = api.NewClient(config.Endpoints(charter), nil)
	}
	if err != nil {
		ring.Close()
		return nil, nil, err
	}
	return cfg, ring.Close, nil
}

// forget destroys the exchange key, and no other that has its name by now.
func forget(ctx context.Context, ring *keys.Ring, uri string, mine dsse.Digest) error {
	k, err := ring.Describe(ctx, uri)
	if err != nil {
		return err
	}
	if fp, err := hsm.Fingerprint(k.Public); err != nil || dsse.Digest(fp) != mine {
		return errors.Join(fmt.Errorf("key %s is %s, not this notary's exchange key %s", uri, dsse.Digest(fp), mine), err)
	}
	return ring.Destroy(ctx, uri)
}

// fuse opens the TPM of the fuse that the configuration names, if it names one.
// A program's counter is a file, which a copy of the machine has as well.
func fuse(ring *keys.Ring, index string, development bool) (*notary.Fuse, error) {
	if index == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(index, 0, 32)
	if err != nil {
		return nil, fmt.Errorf("the configuration's fuse %q is not an NV index such as 0x01800100", index)
	}
	t, err := ring.TPM()
	if err != nil {
		return nil, fmt.Errorf("the configuration names a fuse: %w", err)
	}
	if t.Emulated() && !development {
		return nil, fmt.Errorf("the configuration names a fuse, and the TPM (%s) is a program, whose counters are copied with it; use a TPM, or no fuse", t.Manufacturer())
	}
	return &notary.Fuse{TPM: t, Index: uint32(n)}, nil
}

// self is what the charter says of this notary, or, if it came later, its entry.
// The log has the last word: a notary runs with no other keys than it names.
func self(charter *signoff.Charter, c *config.Notary, file string) (*signoff.Notary, error) {
	for i := range charter.Notaries {
		if charter.Notaries[i].Name == c.Name {
			return &charter.Notaries[i], nil
		}
	}
	if c.Entry == "" {
		return nil, ui.WithHint(errNobody(c.Name), "set name in the configuration to the notary's name in the charter, or entry to the file that a request brings it in with")
	}
	y, err := config.ReadNotary(config.Beside(file, c.Entry))
	if err == nil && y.Name != c.Name {
		err = fmt.Errorf("%s is of notary %q, the configuration of %q", c.Entry, y.Name, c.Name)
	}
	return y, err
}

type errNobody string

func (e errNobody) Error() string { return "notary " + string(e) + " is not in the charter" }

func pinned(ctx context.Context, ring *keys.Ring, c *config.Notary, me *signoff.Notary, cfg *notary.Config) error {
	signing, err := me.Signing.Public()
	if err != nil {
		return err
	}
	if cfg.Signing, err = ring.Key(ctx, c.Signing, signing); err != nil {
		return err
	}
	witness, err := me.Witness.Public()
	if err != nil {
		return err
	}
	if cfg.Witness, err = ring.Key(ctx, c.Witness, witness); err != nil {
		return err
	}
	exchange, err := me.Exchange.ECDH()
	if err != nil {
		return err
	}
	if cfg.Exchange, err = ring.Decrypter(ctx, c.Exchange, exchange); err != nil {
		return err
	}
	cfg.Sealer, err = ring.Sealer(ctx, c.Seal)
	return err
}

// positionCmd is for a recovery: see keyturnd recover.
func (o *options) positionCmd(p *ui.Printer) *cobra.Command {
	var key, out string
	cmd := &cobra.Command{Use: "position", Short: "sign which checkpoint was cosigned last, for a recovery under a new log key", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fp, err := dsse.ParseDigest(key)
			if err != nil {
				return err
			}
			n, closeKeys, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			defer closeKeys()
			if err := p.Confirm(cmd.Context(), "State this notary's position? Stop its daemon first: it must cosign nothing more under the old log key.", "state"); err != nil {
				return err
			}
			s, err := n.StatePosition(cmd.Context(), fp)
			if err != nil {
				return err
			}
			return os.WriteFile(out, append(s.Line(), '\n'), 0o644)
		}}
	cmd.Flags().StringVar(&key, "log-key", "", "fingerprint of the new log key")
	cmd.Flags().StringVar(&out, "out", "", "file to write")
	cmd.MarkFlagRequired("log-key")
	cmd.MarkFlagRequired("out")
	return cmd
}
