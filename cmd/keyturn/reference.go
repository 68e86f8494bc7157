package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/attest"
)

func referenceCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "reference", Short: "make reference values that nodes are judged by, and look at them"}
	cmd.AddCommand(fromEventlogCmd(a), fromUKICmd(a), fromPackageCmd(a), approveBootCmd(a), setShowCmd(a), setListCmd(a))
	return cmd
}

// setFlags say what a reference set is, how long it counts, and where it goes.
type setFlags struct {
	name, out string
	version   uint64
	pcrs      []int
	valid     time.Duration
}

func (s *setFlags) register(cmd *cobra.Command, pcrs []int, out string) {
	s.registerSet(cmd, out)
	cmd.Flags().IntSliceVar(&s.pcrs, "pcrs", pcrs, "PCRs to accept values of")
}

// registerSet is for commands that know the PCRs by themselves.
func (s *setFlags) registerSet(cmd *cobra.Command, out string) {
	f := cmd.Flags()
	f.StringVar(&s.name, "name", "", "what the set is for, such as a rack")
	f.Uint64Var(&s.version, "version", 1, "version; of one name the two highest count")
	f.DurationVar(&s.valid, "valid", 365*24*time.Hour, "how long the set counts")
	f.StringVar(&s.out, "out", "", out)
}

// set returns a set without values.
func (s *setFlags) set(now time.Time) *attest.ReferenceSet {
	return &attest.ReferenceSet{Name: s.name, Version: s.version, NotBefore: now.Unix(), NotAfter: now.Add(s.valid).Unix(), PCRs: map[int][]attest.Digest{}}
}

// write writes the set to its file, or to w if it has none.
func (s *setFlags) write(w writer, set *attest.ReferenceSet) error {
	b, err := set.Marshal()
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if s.out != "" {
		return writeNew(s.out, b)
	}
	_, err = w.Write(b)
	return err
}

func fromEventlogCmd(a *app) *cobra.Command {
	var s setFlags
	var expect string
	cmd := &cobra.Command{Use: "from-eventlog FILE", Short: "accept the boot that a firmware event log describes", Args: cobra.ExactArgs(1),
		Long: `From-eventlog replays the log in the sha256 bank and writes a reference set for
the PCRs named. A log is what a machine says of itself: take it from a machine
whose boot you built and know, give the PCRs that its TPM quoted with --expect,
and put the set into the founding file of a charter, where founders sign it, or
ask for its adoption with keyturn request reference-adopt.`,
		RunE: func(_ *cobra.Command, args []string) error {
			set, err := s.ofLog(args[0], expect, time.Now())
			if err != nil {
				return err
			}
			return s.write(a.Out, set)
		}}
	s.register(cmd, []int{0, 1, 2, 3, 4, 5, 6, 7}, "file to write (default standard output)")
	cmd.Flags().StringVar(&expect, "expect", "", `file with the PCRs that the log must lead to: {"0":"hex",...}`)
	return require(cmd, "name")
}

func (s *setFlags) ofLog(file, expect string, now time.Time) (*attest.ReferenceSet, error) {
	summary, err := summarise(file, "sha256", expect)
	if err != nil {
		return nil, err
	}
	set := s.set(now)
	for _, i := range s.pcrs {
		value, ok := summary.PCRs[i]
		if !ok || len(value) != len(attest.Digest{}) {
			return nil, fmt.Errorf("the log measures nothing into PCR %d; leave it out of --pcrs", i)
		}
		set.PCRs[i] = []attest.Digest{attest.Digest(value)}
	}
	return set, set.Validate()
}
