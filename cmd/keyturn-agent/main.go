// Keyturn-agent runs on a node: it proves the machine with its TPM, holds its
// lease, starts what a warrant allows, and stops it when it must. It needs
// root, and believes nothing but the charter digest in its configuration.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/keyturn/keyturn/attest/tpm"
	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm/durable"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/policy/enforce/linux"
	"github.com/keyturn/keyturn/signoff/agent"
	"github.com/spf13/cobra"
)

// program is one start of it.
type program struct {
	*ui.Printer
	config string
}

func main() {
	linux.Init() // never returns in the first process of a run
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p := &program{Printer: ui.New()}
	root := &cobra.Command{Use: "keyturn-agent", Short: "the agent of a node", SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return secret.Harden() }}
	root.PersistentFlags().StringVar(&p.config, "config", "/etc/keyturn/agent.yaml", "configuration file")
	root.AddCommand(p.runCmd(), p.enrolmentCmd())
	os.Exit(p.Report("keyturn-agent", root.ExecuteContext(ctx)))
}

func (p *program) runCmd() *cobra.Command {
	return &cobra.Command{Use: "run", Short: "be this node's agent until told to end", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Keys of weights are computed here.
			if err := secret.LockProcess(); err != nil {
				return err
			}
			cfg, group, err := p.load()
			if err != nil {
				return err
			}
			defer cfg.TPM.Close()
			if cfg.Gate, err = linux.New(linux.Config{Parent: group}); err != nil {
				return err
			}
			cfg.Log = slog.New(slog.NewTextHandler(p.Err, nil)).With("program", "keyturn-agent")
			if cfg.TPM.Emulated() {
				cfg.Log.Warn("the TPM is a program: this node proves nothing, and is marked so")
			}
			a, err := agent.New(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			cfg.Log.Info("ready", "node", a.Node().String(), "socket", cfg.Socket)
			return a.Run(cmd.Context())
		}}
}

func (p *program) enrolmentCmd() *cobra.Command {
	var out string
	cmd := &cobra.Command{Use: "enrolment --out FILE", Short: "make this node's keys, once, and write what people enrol", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := p.load()
			if err != nil {
				return err
			}
			defer cfg.TPM.Close()
			enrolment, node, err := agent.Provision(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if err := writeNew(out, enrolment); err != nil {
				return err
			}
			p.Note("%s: node %s; on a person's machine: keyturn request enrol --enrolment FILE --name NAME", out, node)
			return nil
		}}
	cmd.Flags().StringVar(&out, "out", "", "file to write")
	cmd.MarkFlagRequired("out")
	return cmd
}

// writeNew writes a file; one that is there must hold the same already.
func writeNew(path string, data []byte) error {
	err := durable.Create(path, data, 0o644)
	if errors.Is(err, fs.ErrExist) {
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
			return nil
		}
	}
	return err
}

// imaList is where Linux shows its measurement list.
const imaList = "/sys/kernel/security/ima/binary_runtime_measurements"

// load reads the configuration and opens the TPM. It returns the cgroup too.
func (p *program) load() (agent.Config, string, error) {
	var conf config.Agent
	if err := config.Load(p.config, &conf); err != nil {
		return agent.Config{}, "", err
	}
	charter, id, err := conf.Anchor(p.config)
	if err != nil {
		return agent.Config{}, "", err
	}
	beside := func(path string) string { return config.Beside(p.config, path) }
	cfg := agent.Config{ID: id, Charter: charter, Dir: beside(conf.Dir), EventLog: beside(conf.EventLog), IMA: imaList, BootApproval: beside(conf.BootApproval), Socket: beside(conf.Socket)}
	if conf.IMA != "" {
		cfg.IMA = beside(conf.IMA)
	}
	if conf.Snapshots != "" {
		cfg.Snapshots = beside(conf.Snapshots)
	}
	for _, dir := range conf.Objects {
		cfg.Objects = append(cfg.Objects, beside(dir))
	}
	if conf.TPM == "" {
		return cfg, "", ui.WithHint(fmt.Errorf("%s names no TPM", p.config), "set tpm to /dev/tpmrm0")
	}
	cfg.TPM, err = tpm.Open(conf.TPM)
	return cfg, conf.Cgroup, err
}
