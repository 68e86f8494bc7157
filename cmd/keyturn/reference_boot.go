package main

import (
	"crypto"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/hsm/tpm"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// approveBootCmd signs, with the charter's boot-policy key, in which boot a
// node's storage key may be used.
func approveBootCmd(a *app) *cobra.Command {
	var key string
	cmd := &cobra.Command{Use: "approve-boot SET", Short: "sign that nodes may open shares in the boot that a reference set describes", Args: cobra.ExactArgs(1),
		Long: `Approve-boot signs the PCR values of a reference set with the boot-policy key of
the charter, which is kept apart and opens nothing by itself. Add the line it
prints to the file that bootApproval names in the node's configuration.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			pcrs, err := bootOf(args[0])
			if err != nil {
				return err
			}
			signer, err := a.keyring().Key(cmd.Context(), key, crypto.PublicKey(nil))
			if err != nil {
				return err
			}
			approval, err := tpm.ApproveBoot(cmd.Context(), signer, pcrs)
			if err != nil {
				return err
			}
			b, err := dsse.Encode(approval)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Out, "%s\n", b)
			return err
		}}
	cmd.Flags().StringVar(&key, "key", "", "URI of the boot-policy key")
	return require(cmd, "key")
}

// bootOf reads the one boot that a set describes.
func bootOf(file string) (map[int][32]byte, error) {
	set, _, err := readSet(file)
	if err != nil {
		return nil, err
	}
	out := map[int][32]byte{}
	for i, values := range set.PCRs {
		if len(values) != 1 {
			return nil, fmt.Errorf("%s allows %d values of PCR %d; a boot has one: make a set of one boot", file, len(values), i)
		}
		out[i] = values[0]
	}
	return out, nil
}
