package main

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/ima"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// readSet reads a reference set, and returns the bytes that it is known by as well.
func readSet(file string) (*attest.ReferenceSet, []byte, error) {
	b, err := readEvidence(file)
	if err != nil {
		return nil, nil, err
	}
	set, err := attest.ParseReferenceSet(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	b, err = set.Marshal()
	return set, b, err
}

// A setView is the answer of reference show.
type setView struct {
	ID        dsse.Digest             `json:"id"`
	Name      string                  `json:"name"`
	Version   uint64                  `json:"version"`
	NotBefore int64                   `json:"notBefore"`
	NotAfter  int64                   `json:"notAfter"`
	PCRs      map[int][]attest.Digest `json:"pcrs"`
	IMA       *ima.Rules              `json:"ima"` // null: files are not judged
}

func setShowCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "show FILE", Short: "say in words what a reference set accepts", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			set, b, err := readSet(args[0])
			if err != nil {
				return err
			}
			v := setView{sha256.Sum256(b), set.Name, set.Version, set.NotBefore, set.NotAfter, set.PCRs, set.IMA}
			return a.Answer(v, func(w writer) { setText(w, v, time.Now()) })
		}}
}

// pcrMeanings say what a register holds, in a few words (PC Client Platform
// Firmware Profile, section 3.3.4, and UAPI's Linux TPM PCR registry).
var pcrMeanings = map[int]string{
	0: "the firmware's code", 1: "the firmware's settings", 2: "option ROMs and drivers", 3: "their settings",
	4: "boot loaders and kernels", 5: "boot settings and the partition table", 6: "the platform maker's own", 7: "secure boot's state and keys",
	8: "the boot loader's commands", 9: "files that the boot loader read", 10: "what the kernel measured",
	11: "the unified kernel image", 12: "its command line and credentials", 13: "its system extensions", 14: "shim's keys", 15: "what systemd set up",
}

func pcrMeaning(pcr int) string { return orElse(pcrMeanings[pcr], "what the system measured there") }

func setText(w writer, v setView, now time.Time) {
	fmt.Fprintf(w, "set          %s version %d\n             %s\n", v.Name, v.Version, v.ID)
	fmt.Fprintf(w, "counts       from %s to %s%s\n", day(v.NotBefore), day(v.NotAfter), span(v.NotBefore, v.NotAfter, now))
	for _, pcr := range slices.Sorted(maps.Keys(v.PCRs)) {
		fmt.Fprintf(w, "PCR %-8d %s: any of %d values\n", pcr, pcrMeaning(pcr), len(v.PCRs[pcr]))
		for _, d := range v.PCRs[pcr] {
			fmt.Fprintf(w, "             %s\n", d)
		}
	}
	if v.IMA == nil {
		fmt.Fprintln(w, "NOT JUDGED   files: what runs after the boot")
	} else {
		fmt.Fprintf(w, "files        %d paths, and %d digests under any path\n", len(v.IMA.Files), len(v.IMA.Digests))
		for _, s := range v.IMA.Signed {
			fmt.Fprintf(w, "             whatever is signed below %s\n", strconv.QuoteToASCII(s.Below))
			for _, key := range s.Keys {
				fmt.Fprintf(w, "             by key %s\n", dsse.Digest(sha256.Sum256(key)))
			}
		}
		for _, path := range v.IMA.Ignore {
			fmt.Fprintf(w, "NOT JUDGED   %s\n", strconv.QuoteToASCII(path))
		}
	}
	for pcr := range 8 {
		if _, judged := v.PCRs[pcr]; !judged {
			fmt.Fprintf(w, "NOT JUDGED   PCR %d, %s\n", pcr, pcrMeaning(pcr))
		}
	}
}

func day(t int64) string { return time.Unix(t, 0).UTC().Format(time.RFC3339) }

// span says how a validity stands to the time given.
func span(from, to int64, now time.Time) string {
	switch {
	case now.Unix() < from:
		return ", NOT YET"
	case now.Unix() > to:
		return ", NO LONGER"
	}
	return ""
}

// An adoptedView is one line of reference list.
type adoptedView struct {
	ID        dsse.Digest `json:"id"`
	Name      string      `json:"name"`
	Version   uint64      `json:"version"`
	NotBefore int64       `json:"notBefore"`
	NotAfter  int64       `json:"notAfter"`
	Index     uint64      `json:"index"`     // of the entry that put it into force
	Adopted   dsse.Digest `json:"adopted"`   // request; empty for the charter's
	Withdrawn dsse.Digest `json:"withdrawn"` // request; empty for none
	State     string      `json:"state"`     // counts, replaced, not begun, ended or withdrawn
}

func setListCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "list the reference sets that were adopted, and which of them count", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.sync(cmd.Context(), 1); err != nil {
				return err
			}
			var out []adoptedView
			if err := a.view(func(_ *authority.Authority, s *authority.State) error {
				out = adopted(s)
				return nil
			}); err != nil {
				return err
			}
			return a.Answer(out, func(w writer) { adoptedText(w, out) })
		}}
	cmd.Flags().StringVar(&a.carry, "file", "", "work from a carried log instead of a coordinator")
	return cmd
}

// adopted lists every set that was ever in force, by name, newest first.
func adopted(s *authority.State) []adoptedView {
	current := attest.Current(s.ReferenceSets(), s.Time)
	out := []adoptedView{}
	for _, r := range s.AllReferences() {
		v := adoptedView{r.ID, r.Name, r.Version, r.Set.NotBefore, r.Set.NotAfter, r.Index, r.Adopted, r.Withdrawn, "replaced"}
		switch {
		case !r.Withdrawn.IsZero():
			v.State = "withdrawn"
		case s.Time > r.Set.NotAfter:
			v.State = "ended"
		case s.Time < r.Set.NotBefore:
			v.State = "not begun"
		case slices.Contains(current, r.Set):
			v.State = "counts"
		}
		out = append(out, v)
	}
	return out
}

func adoptedText(w writer, sets []adoptedView) {
	rows := [][]string{{"SET", "VERSION", "STATE", "FROM", "TO", "BY", "DIGEST"}}
	for _, v := range sets {
		by := "charter"
		if !v.Adopted.IsZero() {
			by = "request " + v.Adopted.Short()
		}
		rows = append(rows, []string{v.Name, fmt.Sprint(v.Version), v.State, day(v.NotBefore), day(v.NotAfter), by, v.ID.String()})
	}
	ui.Table(w, rows)
}
