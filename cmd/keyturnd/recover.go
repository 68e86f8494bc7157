package main

import (
	"bytes"
	"os"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff/coordinator"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// recoverCmd makes the log that goes on after the log key was lost or forked.
func recoverCmd(p *ui.Printer) *cobra.Command {
	var charter, from, to, recovery string
	cmd := &cobra.Command{Use: "recover", Short: "make the log that goes on under a new log key, once a quorum of notaries stated where they stand", Args: cobra.NoArgs,
		Long: `Recover copies the log up to the recovery's base, appends the recovery, and
leaves the old directory as it is: it is evidence. The fold judges the recovery;
if it is refused there is no new directory.

  1. stop every notary and coordinator; make a new log key
  2. each notary: keyturn-notary position --log-key FINGERPRINT --out POSITION
  3. one notary:  keyturn-notary recovery --log-key FILE --out RECOVERY POSITION...
  4. keyturnd recover --charter sha256:... --from DIR/log --to DIR/log.new --recovery RECOVERY
  5. put log.new in the place of log, move etcd away, set logKey and
     logKeyPublic, start the coordinator, start the notaries`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			id, err := dsse.ParseDigest(charter)
			if err != nil {
				return err
			}
			line, err := os.ReadFile(recovery)
			if err != nil {
				return err
			}
			if err := coordinator.Recover(cmd.Context(), id, from, to, bytes.TrimRight(line, "\n")); err != nil {
				return err
			}
			p.Note("%s: the log that goes on; see keyturnd recover --help for what is left to do", to)
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&charter, "charter", "", "charter digest, sha256:HEX")
	f.StringVar(&from, "from", "", "directory of the old log")
	f.StringVar(&to, "to", "", "directory to make")
	f.StringVar(&recovery, "recovery", "", "the recovery, one bundle line")
	for _, name := range []string{"charter", "from", "to", "recovery"} {
		cmd.MarkFlagRequired(name)
	}
	return cmd
}
