package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff"
)

// recoveryCmd puts a quorum's positions into the entry with which the log goes
// on. Any one notary can sign it; what counts are the positions.
func (o *options) recoveryCmd(p *ui.Printer) *cobra.Command {
	var key, out string
	cmd := &cobra.Command{Use: "recovery POSITION...", Short: "make the entry with which the log goes on under a new log key", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			public, err := config.ReadPublicKey(key)
			if err != nil {
				return err
			}
			r, err := recoveryOf(public, args)
			if err != nil {
				return err
			}
			if err := p.Confirm(cmd.Context(), fmt.Sprintf("Go on from %d entries, root %s, under log key %s?", r.Base.Size, r.Base.Root, public.Fingerprint()), "recover"); err != nil {
				return err
			}
			line, err := o.signRecovery(cmd.Context(), r)
			if err != nil {
				return err
			}
			return os.WriteFile(out, append(line, '\n'), 0o644)
		}}
	cmd.Flags().StringVar(&key, "log-key", "", "file with the new log key's public half, as key new prints it")
	cmd.Flags().StringVar(&out, "out", "", "file to write")
	cmd.MarkFlagRequired("log-key")
	cmd.MarkFlagRequired("out")
	return cmd
}

// recoveryOf goes on from the longest position; the fold checks that the
// others are prefixes of it.
func recoveryOf(key signoff.PublicKey, files []string) (*signoff.Recovery, error) {
	r := &signoff.Recovery{Log: key}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		line := bytes.TrimRight(b, "\n")
		doc, err := signoff.ReadLine(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		pos, ok := doc.Doc.(*signoff.Position)
		if !ok {
			return nil, fmt.Errorf("%s holds a %s, not a position", f, doc.Doc.Kind())
		}
		if pos.Seen.Size > r.Base.Size {
			r.Base = pos.Seen
		}
		r.Positions = append(r.Positions, string(line))
	}
	if r.Base.Size == 0 {
		return nil, errors.New("no position names a checkpoint: nothing was ever cosigned")
	}
	return r, nil
}

func (o *options) signRecovery(ctx context.Context, r *signoff.Recovery) ([]byte, error) {
	c, charter, id, err := o.load()
	if err != nil {
		return nil, err
	}
	me, err := self(charter, c, o.config)
	if err != nil {
		return nil, err
	}
	pin, err := keys.DaemonPIN(o.pinFD, o.credential)
	if err != nil {
		return nil, err
	}
	ring := keys.New(pin)
	defer ring.Close()
	pub, err := me.Signing.Public()
	if err != nil {
		return nil, err
	}
	key, err := ring.Key(ctx, c.Signing, pub)
	if err != nil {
		return nil, err
	}
	r.Charter = id
	doc, err := signoff.Sign(ctx, key, r)
	if err != nil {
		return nil, err
	}
	return doc.Line(), nil
}
