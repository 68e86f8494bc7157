package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/eventlog"
	"github.com/keyturn/keyturn/signoff/dsse"
)

func referenceCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "reference", Short: "make reference values that nodes are judged by"}
	cmd.AddCommand(fromEventlogCmd(a))
	return cmd
}

func fromEventlogCmd(a *app) *cobra.Command {
	var name, out string
	var version uint64
	var pcrs []int
	var valid time.Duration
	cmd := &cobra.Command{Use: "from-eventlog FILE", Short: "accept the boot that a firmware event log describes", Args: cobra.ExactArgs(1),
		Long: `From-eventlog replays the log in the sha256 bank and writes a reference set for
the PCRs named. A log is what a machine says of itself: take it from a machine
whose boot you built and know, and put the set into the founding file of a
charter, where founders sign it.`,
		RunE: func(_ *cobra.Command, args []string) error {
			set, err := referenceFromLog(args[0], name, version, pcrs, time.Now(), valid)
			if err != nil {
				return err
			}
			b, err := set.Marshal()
			if err != nil {
				return err
			}
			if out == "" {
				_, err = fmt.Fprintf(a.Out, "%s\n", b)
				return err
			}
			return writeNew(out, append(b, '\n'))
		}}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "what the set is for, such as a rack")
	f.Uint64Var(&version, "version", 1, "version; of one name the two highest count")
	f.IntSliceVar(&pcrs, "pcrs", []int{0, 1, 2, 3, 4, 5, 6, 7}, "PCRs to accept values of")
	f.DurationVar(&valid, "valid", 365*24*time.Hour, "how long the set counts")
	f.StringVar(&out, "out", "", "file to write (default standard output)")
	return require(cmd, "name")
}

func referenceFromLog(file, name string, version uint64, pcrs []int, now time.Time, valid time.Duration) (*attest.ReferenceSet, error) {
	data, err := readEvidence(file)
	if err != nil {
		return nil, err
	}
	l, err := eventlog.Parse(data)
	if err != nil {
		return nil, err
	}
	replayed, err := l.Replay("sha256")
	if err != nil {
		return nil, err
	}
	slices.Sort(pcrs)
	set := &attest.ReferenceSet{Name: name, Version: version, NotBefore: now.Unix(), NotAfter: now.Add(valid).Unix(), PCRs: map[int][]attest.Digest{}}
	for _, i := range slices.Compact(pcrs) {
		value, ok := replayed[i]
		if !ok || len(value) != len(dsse.Digest{}) {
			return nil, fmt.Errorf("the log measures nothing into PCR %d; leave it out of --pcrs", i)
		}
		set.PCRs[i] = []attest.Digest{attest.Digest(value)}
	}
	return set, set.Validate()
}
