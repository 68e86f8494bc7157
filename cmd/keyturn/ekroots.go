package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

func (r *asking) ekRoots() *cobra.Command {
	var add, remove []string
	cmd := &cobra.Command{Use: "ek-roots", Short: "ask to change which makers of TPMs are believed", Args: cobra.NoArgs,
		Long: `Ek-roots asks to add and to remove certificates of TPM makers, to which the
endorsement-key certificates of nodes chain. A certificate to add is a file, PEM
or DER; keyturn attest roots says whether it is one that its maker publishes.

When a root is removed, nodes that no other root in force vouches for lose their
leases with the next epoch; keyturn node ek-roots says how many stand on which.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			change, err := ekRootsChange(add, remove)
			if err != nil {
				return err
			}
			return r.ask(cmd.Context(), signoff.ActionEKRoots, func(q *signoff.Request, _ *authority.State) error {
				q.EKRoots = change
				return nil
			})
		}}
	f := cmd.Flags()
	f.StringArrayVar(&add, "add", nil, "file with a certificate to add; may be repeated")
	f.StringSliceVar(&remove, "remove", nil, "digests of the certificates to remove, as keyturn node ek-roots prints them")
	cmd.MarkFlagsOneRequired("add", "remove")
	return cmd
}

// ekRootsChange reads what the flags name.
func ekRootsChange(add, remove []string) (*signoff.EKRootsChange, error) {
	c := &signoff.EKRootsChange{}
	for _, file := range add {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		der, err := attest.DecodeEKCert(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if _, err := signoff.ParseEKRoot(der); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		c.Add = append(c.Add, der)
	}
	for _, s := range remove {
		id, err := dsse.ParseDigest(s)
		if err != nil {
			return nil, err
		}
		c.Remove = append(c.Remove, id)
	}
	return c, nil
}

// An ekRootView is one line of node ek-roots.
type ekRootView struct {
	ID        dsse.Digest `json:"id"` // SHA-256 of the certificate
	Subject   string      `json:"subject"`
	Maker     string      `json:"maker"` // by the table of published roots; empty for one that is not in it
	NotBefore int64       `json:"notBefore"`
	NotAfter  int64       `json:"notAfter"`
	Index     uint64      `json:"index"`   // of the entry that put it into force
	Added     dsse.Digest `json:"added"`   // request; empty for the charter's
	Removed   dsse.Digest `json:"removed"` // request; empty while it is in force
	InForce   bool        `json:"inForce"`
	Nodes     int         `json:"nodes"` // not retired, whose TPM it vouches for
	Alone     []string    `json:"alone"` // names of those for whom no other root in force does
}

func nodeEKRootsCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "ek-roots", Short: "list the certificates of TPM makers, and the nodes that stand on them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return listEKRoots(cmd.Context(), a) }}
	cmd.Flags().StringVar(&a.carry, "file", "", "work from a carried log instead of a coordinator")
	return cmd
}

func listEKRoots(ctx context.Context, a *app) error {
	if err := a.sync(ctx, 1); err != nil {
		return err
	}
	out := []ekRootView{}
	if err := a.view(func(_ *authority.Authority, s *authority.State) error {
		for _, r := range s.AllEKRoots() {
			nodes, alone := s.Behind(r.ID)
			out = append(out, ekRootView{r.ID, r.Cert.Subject.String(), attest.VendorOf(r.Cert.Raw), r.Cert.NotBefore.Unix(), r.Cert.NotAfter.Unix(),
				r.Index, r.Added, r.Removed, r.InForce(), nodes, alone})
		}
		return nil
	}); err != nil {
		return err
	}
	return a.Answer(out, func(w writer) {
		rows := [][]string{{"SUBJECT", "STATE", "FROM", "TO", "NODES", "BY", "DIGEST"}}
		for _, v := range out {
			state, by := "in force", "charter"
			if !v.Added.IsZero() {
				by = "request " + v.Added.Short()
			}
			if !v.InForce {
				state, by = "removed", "request "+v.Removed.Short()
			}
			rows = append(rows, []string{printable(v.Subject), state, day(v.NotBefore), day(v.NotAfter), fmt.Sprint(v.Nodes), by, v.ID.String()})
		}
		ui.Table(w, rows)
	})
}
