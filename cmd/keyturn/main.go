// Keyturn is the command line of requesters, approvers and auditors.
//
// It trusts one thing, the charter digest in its configuration, and folds the
// log itself before it shows or signs anything. See keyturn help config for
// the configuration and package ui for the rules of its output.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/signoff/authority"
)

func main() {
	if err := secret.Harden(); err != nil {
		os.Exit(ui.New().Report("keyturn", err))
	}
	_ = secret.LockProcess() // where it may; before it opens a share it asks secret.CheckSwap
	os.Exit(run(os.Args[1:]))
}

// run is main without the exit, so that tests can register it as a command.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{Printer: ui.New()}
	defer a.close()
	root := rootCmd(a)
	root.SetArgs(args)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	return a.Report("keyturn", root.ExecuteContext(ctx))
}

func rootCmd(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "keyturn",
		Short: "sign-off by many people for what must not happen by few",
		Long: `Nothing leaves and nothing starts unless enough keys turn.

keyturn shows exactly what is asked, signs decisions with your token, and
checks everything itself against the charter digest in your configuration.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 committed to the
log but not yet final.`,
		SilenceUsage: true, SilenceErrors: true,
	}
	f := root.PersistentFlags()
	f.StringVar(&a.configFile, "config", "", "configuration file (default $"+envConfig+" or keyturn/keyturn.yaml in the user's configuration directory)")
	f.BoolVar(&a.JSON, "json", false, "answer as JSON")
	f.Var((*keys.FD)(&a.pinFD), "pin-fd", "read PINs from this file descriptor, one line for each token")
	f.StringVar(&a.pinCredential, "pin-credential", "", "read the PIN from this service credential")
	f.DurationVar(&a.wait, "wait", 20*time.Second, "how long to wait for the notaries")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(ui.WithHint(err, "%s --help lists the flags", cmd.CommandPath()))
	})
	root.AddCommand(
		keyCmd(a), initCmd(a), acceptCmd(a),
		requestCmd(a), listCmd(a), showCmd(a), statusCmd(a),
		approveCmd(a), rejectCmd(a), withdrawCmd(a), submitCmd(a), carryCmd(a),
		haltCmd(a), auditCmd(a), attestCmd(a), referenceCmd(a), warrantCmd(a), paeCmd(a), pemCmd(a), manCmd(root), configHelp(),
		peopleCmd(a), weightsCmd(a), ceremonyCmd(a),
		runCmd(a), nodeCmd(a),
	)
	strictArgs(root)
	completeNames(a, root)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages ", ".FlagUsagesWrapped 80 "))
	return root
}

// completeNames has a shell complete the arguments that name something in the log.
func completeNames(a *app, c *cobra.Command) {
	for _, what := range []struct {
		arg   string
		names func(*authority.State) []string
	}{{" REQUEST", requestNames}, {" NODE", nodeNames}, {" [NODE]", nodeNames}} {
		if strings.HasSuffix(c.Use, what.arg) {
			c.ValidArgsFunction = a.complete(what.names)
		}
	}
	for _, sub := range c.Commands() {
		completeNames(a, sub)
	}
}

// completePatience is how long a shell waits for the log.
const completePatience = 2 * time.Second

func (a *app) complete(names func(*authority.State) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) (found []string, _ cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		a.wait = completePatience
		err := a.sync(cmd.Context(), 1)
		if err == nil {
			err = a.view(func(_ *authority.Authority, s *authority.State) error {
				found = names(s)
				return nil
			})
		}
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

func requestNames(s *authority.State) (names []string) {
	for id, r := range s.Requests {
		names = append(names, cobra.CompletionWithDesc(id.Short(), fmt.Sprintf("%s, asked by %s", r.Doc.Action, personName(s, r.Doc.Requester))))
	}
	slices.Sort(names)
	return names
}

func nodeNames(s *authority.State) (names []string) {
	for _, n := range s.Nodes {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return names
}

// usage marks an error as wrong usage.
func usage(err error) error { return &ui.Exit{Err: err, Code: ui.ExitUsage} }

// unknownCommand says which command was meant, if that can be guessed.
func unknownCommand(group *cobra.Command, name string) error {
	hint := group.CommandPath() + " --help lists the commands"
	if like := group.SuggestionsFor(name); len(like) > 0 {
		hint = "did you mean " + group.CommandPath() + " " + like[0] + "?"
	}
	return usage(ui.WithHint(fmt.Errorf("%s has no command %q", group.CommandPath(), name), "%s", hint))
}

// strictArgs makes wrong arguments and missing flags exit as wrong usage, and
// a command group without a subcommand too.
func strictArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err == nil {
				err = cmd.ValidateRequiredFlags()
			}
			if err != nil {
				return usage(ui.WithHint(err, "usage: %s", cmd.UseLine()))
			}
			return nil
		}
	}
	if c.HasSubCommands() && c.RunE == nil {
		c.Args, c.SuggestionsMinimumDistance = cobra.ArbitraryArgs, 2
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			if err := cmd.Help(); err != nil || !cmd.HasParent() {
				return err
			}
			return usage(errors.New("name one of the commands above"))
		}
	}
	for _, sub := range c.Commands() {
		strictArgs(sub)
	}
}
