package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

func keyCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "make and look at keys on your token"}
	cmd.AddCommand(keyInitCmd(a), keyNewCmd(a), keyListCmd(a), keyShowCmd(a))
	return cmd
}

func keyInitCmd(a *app) *cobra.Command {
	var module, label string
	cmd := &cobra.Command{Use: "init", Short: "initialise an empty token: two PINs, the security officer's and yours", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			ask := a.pinSource()
			so, err := ask(ctx, "security officer's PIN for "+label)
			if err != nil {
				return err
			}
			defer so.Wipe()
			user, err := ask(ctx, "user PIN for "+label)
			if err != nil {
				return err
			}
			defer user.Wipe()
			return token.Init(ctx, token.Config{Module: module}, label, so.Bytes(), user.Bytes())
		}}
	cmd.Flags().StringVar(&module, "module", "", "absolute path of the PKCS#11 module")
	cmd.Flags().StringVar(&label, "label", "", "label to give the token")
	return require(cmd, "module", "label")
}

func keyNewCmd(a *app) *cobra.Command {
	var kind string
	cmd := &cobra.Command{Use: "new URI", Short: "make a key on a token; it never leaves it", Args: cobra.ExactArgs(1),
		Long: `New makes one key. --kind is p256 (signs decisions), ecdh (receives shares),
ed25519 (signs checkpoints) or seal (keeps a notary's share). It prints the
public key as it goes into a charter.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, u, err := a.keyring().Token(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			pub, err := t.Generate(cmd.Context(), u.Object, hsm.Kind(kind))
			if err != nil {
				return err
			}
			if pub == nil {
				a.Note("made sealing key %s", u.Object)
				return nil
			}
			return a.printKey(cmd.Context(), t, pub)
		}}
	cmd.Flags().StringVar(&kind, "kind", "", "p256, ecdh, ed25519 or seal")
	return require(cmd, "kind")
}

// printKey prints a public key with the class that the token's maker allows.
func (a *app) printKey(ctx context.Context, t *token.Token, pub any) error {
	class, err := classOf(ctx, t, pub)
	if err != nil {
		return err
	}
	key, err := signoff.NewPublicKey(pub, class)
	if err != nil {
		return err
	}
	b, err := dsse.Encode(key)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Out, "%s\n", b)
	return err
}

func keyListCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "list URI", Short: "list the keys on a token", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, _, err := a.keyring().Token(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			list, err := t.List(cmd.Context())
			if err != nil {
				return err
			}
			views := []keyView{}
			for _, k := range list {
				views = append(views, viewKey(k))
			}
			return a.Answer(views, func(w writer) {
				rows := [][]string{{"LABEL", "KIND", "FINGERPRINT", "LEAVES THE TOKEN"}}
				for _, v := range views {
					rows = append(rows, []string{v.Label, v.Kind, v.Fingerprint, map[bool]string{true: "no", false: "YES"}[v.Kept]})
				}
				ui.Table(w, rows)
			})
		}}
}

type keyView struct {
	Label       string `json:"label"`
	Kind        string `json:"kind"`
	Fingerprint string `json:"fingerprint"`
	Kept        bool   `json:"kept"` // sensitive and not extractable
}

func viewKey(k token.KeyInfo) keyView {
	v := keyView{Label: k.Label, Kind: string(k.Kind), Kept: k.Sensitive && !k.Extractable}
	if v.Kind == "" {
		v.Kind = "other"
	}
	if fp, err := hsm.Fingerprint(k.Public); err == nil {
		v.Fingerprint = dsse.Digest(fp).String()
	}
	return v
}

func keyShowCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "show URI", Short: "print the public key of a key, as it goes into a charter", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, u, err := a.keyring().Token(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			list, err := t.List(cmd.Context())
			if err != nil {
				return err
			}
			for _, k := range list {
				if k.Label == u.Object && k.Public != nil {
					return a.printKey(cmd.Context(), t, k.Public)
				}
			}
			return fmt.Errorf("no key %q with a public half on the token", u.Object)
		}}
}

// classOf asks the backend, which knows the module, by opening the key.
func classOf(ctx context.Context, t *token.Token, pub any) (hsm.Class, error) {
	info, err := t.Info(ctx)
	if err != nil {
		return "", err
	}
	if info.Label == "" {
		return "", errors.New("the token has no label")
	}
	return token.ClassOf(info), nil
}
