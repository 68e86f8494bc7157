package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/eventlog"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A nodeExplanation is what a person needs to act on a verdict.
type nodeExplanation struct {
	nodeReport
	Evidence dsse.Digest  `json:"evidence"` // blob that the verdict is of; zero for none
	Seen     uint64       `json:"seen"`     // size of the log that the evidence answers
	Log      dsse.Digest  `json:"log"`      // blob of the firmware's event log
	Files    uint64       `json:"files"`    // entries of the kernel's list that were allowed in this boot
	PCRs     []pcrView    `json:"pcrs"`
	Against  []setMatch   `json:"against"` // reference sets that count now
	Since    dsse.Digest  `json:"since"`   // evidence compared with, the last that passed before; zero for none
	Changes  []changeView `json:"changes"` // events of the firmware's log that differ from then
}

// A pcrView is one register: what was measured, what is expected, what it was.
type pcrView struct {
	PCR      int      `json:"pcr"`
	Meaning  string   `json:"meaning"`
	Measured string   `json:"measured"`
	Expected []string `json:"expected"` // empty: no set judges it
	Before   string   `json:"before,omitempty"`
	Word     string   `json:"word"` // as expected, not expected, not judged; and changed
}

// A setMatch says how the boot stands to one set.
type setMatch struct {
	Name     string `json:"name"`
	Version  uint64 `json:"version"`
	NotAfter int64  `json:"notAfter"`
	Files    bool   `json:"files"`   // it judges the kernel's list too
	Differs  []int  `json:"differs"` // PCRs that it does not accept; null without evidence
}

// A changeView is one event that is new, or gone, since the evidence before.
type changeView struct {
	PCR    int    `json:"pcr"`
	Gone   bool   `json:"gone"`
	Digest string `json:"digest"`
	Said   string `json:"said"` // what the log calls it
	Text   string `json:"text"` // what the digest proves that it is of; empty if that is not told
}

func nodeExplainCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "explain NODE", Short: "say what a node measured, what was expected and what changed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.sync(cmd.Context(), 1); err != nil {
				return err
			}
			x, err := a.explain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.Answer(x, func(w io.Writer) { explainText(w, x) })
		}}
}

func (a *app) explain(ctx context.Context, name string) (*nodeExplanation, error) {
	x := &nodeExplanation{PCRs: []pcrView{}, Against: []setMatch{}, Changes: []changeView{}}
	var sets []*attest.ReferenceSet
	var lease authority.Lease
	if err := a.view(func(_ *authority.Authority, s *authority.State) error {
		n, ok := s.NodeNamed(name)
		if id, err := dsse.ParseDigest(name); err == nil {
			n, ok = s.Nodes[id]
		}
		if !ok {
			return fmt.Errorf("no node named %q is enrolled", name)
		}
		x.nodeReport = reportNode(s, n)
		lease, _, _ = s.Epoch.Lease(n.ID)
		sets = attest.Current(s.ReferenceSets(), s.Time)
		return nil
	}); err != nil {
		return nil, err
	}
	x.Evidence, x.Since = lease.Evidence, lease.Before
	if lease.Verdict == authority.VerdictPass && lease.Past.IMA != nil {
		x.Files = lease.Past.IMA.Entries
	}
	now, err := a.presented(ctx, x.Evidence)
	if err != nil {
		return nil, err
	}
	before, err := a.presented(ctx, x.Since)
	if err != nil {
		return nil, err
	}
	x.compare(now, before, sets)
	if now == nil || before == nil {
		return x, nil
	}
	return x, a.compareLogs(ctx, x, &before.Evidence, &now.Evidence)
}

// presented fetches evidence that the log named; nil for none.
func (a *app) presented(ctx context.Context, d dsse.Digest) (*authority.Presented, error) {
	if d.IsZero() {
		return nil, nil
	}
	b, err := a.follower.Source().Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	return authority.ParsePresented(b)
}

// compare says how evidence stands to the sets and to the evidence before, either
// of which may be nil.
func (x *nodeExplanation) compare(now, before *authority.Presented, sets []*attest.ReferenceSet) {
	for _, r := range sets {
		m := setMatch{Name: r.Name, Version: r.Version, NotAfter: r.NotAfter, Files: r.IMA != nil}
		if now != nil {
			m.Differs = append([]int{}, r.Differs(now.Evidence.PCRs)...)
		}
		x.Against = append(x.Against, m)
	}
	if now == nil {
		return
	}
	x.Seen, x.Log = now.Seen.Size, dsse.Digest(now.Evidence.EventLog)
	var old map[int]attest.Digest
	if before != nil {
		old = before.Evidence.PCRs
	}
	x.PCRs = comparePCRs(now.Evidence.PCRs, old, sets)
}

func comparePCRs(now, before map[int]attest.Digest, sets []*attest.ReferenceSet) []pcrView {
	out := []pcrView{}
	for _, pcr := range slices.Sorted(maps.Keys(now)) {
		v := pcrView{PCR: pcr, Meaning: pcrMeaning(pcr), Measured: now[pcr].String(), Expected: []string{}, Word: "not judged"}
		for _, set := range sets {
			for _, d := range set.PCRs[pcr] {
				v.Expected = append(v.Expected, d.String())
			}
		}
		if len(v.Expected) > 0 {
			v.Word = "NOT EXPECTED"
			if slices.Contains(v.Expected, v.Measured) {
				v.Word = "as expected"
			}
		}
		if old, ok := before[pcr]; ok && old != now[pcr] {
			v.Before = old.String()
			v.Word += ", changed"
		}
		out = append(out, v)
	}
	return out
}

// compareLogs lists what the boot measured differently from the one before.
func (a *app) compareLogs(ctx context.Context, x *nodeExplanation, before, now *attest.Evidence) error {
	if before.EventLog == now.EventLog {
		return nil
	}
	var logs [2][]byte
	for i, e := range []*attest.Evidence{before, now} {
		var err error
		logs[i], err = a.follower.Source().Blob(ctx, dsse.Digest(e.EventLog))
		if errors.Is(err, authority.ErrMissingBlob) {
			a.Note("event log %s is not to be had, so what changed in it is not told", e.EventLog)
			return nil
		}
		if err != nil {
			return err
		}
	}
	x.Changes = viewChanges(provedChanges(logs[0], logs[1], before.PCRs, now.PCRs))
	return nil
}

// provedChanges compares the logs in the registers that both quotes proved. A log
// that cannot be read, or does not lead to its quote, is a reason of the verdict
// and tells nothing.
func provedChanges(before, now []byte, pcrsBefore, pcrsNow map[int]attest.Digest) []eventlog.Change {
	older, newer := explained(before, pcrsBefore), explained(now, pcrsNow)
	if older == nil || newer == nil {
		return nil
	}
	changes, err := eventlog.Compare(older, newer, "sha256")
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(changes, func(c eventlog.Change) bool {
		_, quotedBefore := pcrsBefore[c.PCR]
		_, quotedNow := pcrsNow[c.PCR]
		return !quotedBefore || !quotedNow
	})
}

// explained returns the log if it leads to the PCRs, without the one that the
// kernel's list is for, and nil otherwise.
func explained(log []byte, pcrs map[int]attest.Digest) *eventlog.Log {
	const kernels = 10
	quoted := map[int][]byte{}
	for pcr, value := range pcrs {
		if pcr != kernels {
			quoted[pcr] = value[:]
		}
	}
	l, err := eventlog.Parse(log)
	if err != nil || l.Explain("sha256", quoted) != nil {
		return nil
	}
	return l
}

func viewChanges(changes []eventlog.Change) []changeView {
	out := []changeView{}
	for _, c := range changes {
		out = append(out, changeView{c.PCR, c.Gone, "sha256:" + hex.EncodeToString(c.Digest), c.Said.String(), c.Text})
	}
	slices.SortStableFunc(out, func(p, q changeView) int { return cmp.Compare(p.PCR, q.PCR) })
	return out
}

func explainText(w io.Writer, x *nodeExplanation) {
	fmt.Fprintf(w, "node      %s %s\n", x.Name, x.Node)
	verdict := x.Verdict
	if verdict == "" {
		verdict = "no epoch has looked at it yet"
	}
	if x.Emulated {
		verdict += " (emulated TPM: it proves nothing)"
	}
	fmt.Fprintf(w, "epoch     %d: %s\nwhy       %s\n", x.Epoch, verdict, x.Reason)
	if x.Remedy != "" {
		fmt.Fprintf(w, "do        %s\n", x.Remedy)
	}
	for _, m := range x.Against {
		fmt.Fprintf(w, "against   %s\n", m.text())
	}
	if len(x.Against) == 0 {
		fmt.Fprintln(w, "against   NO reference set counts: nothing can pass")
	}
	if len(x.PCRs) == 0 {
		fmt.Fprintln(w, "evidence  none for this epoch")
		return
	}
	fmt.Fprintf(w, "evidence  %s answers the log at %d entries; event log %s\n", x.Evidence.Short(), x.Seen, x.Log.Short())
	if x.Files > 0 {
		fmt.Fprintf(w, "files     %d measured by the kernel in this boot, all allowed\n", x.Files)
	}
	fmt.Fprintln(w)
	rows := [][]string{{"PCR", "OF", "MEASURED", "WORD", "EXPECTED OR BEFORE"}}
	for _, p := range x.PCRs {
		rows = append(rows, []string{fmt.Sprint(p.PCR), p.Meaning, short(p.Measured), p.Word, pcrContext(p)})
	}
	ui.Table(w, rows)
	changesText(w, x)
}

// text says how the boot stands to the set.
func (m setMatch) text() string {
	s := fmt.Sprintf("%s version %d, until %s", m.Name, m.Version, time.Unix(m.NotAfter, 0).UTC().Format(time.DateOnly))
	switch {
	case m.Differs == nil:
		return s
	case len(m.Differs) > 0:
		return s + ": differs in PCR " + strings.Trim(fmt.Sprint(m.Differs), "[]")
	case m.Files:
		return s + ": accepts the boot; it judges files too"
	}
	return s + ": accepts the boot"
}

// changesText says what is behind the PCRs that changed.
func changesText(w io.Writer, x *nodeExplanation) {
	for _, p := range x.PCRs {
		if p.Before == "" {
			continue
		}
		fmt.Fprintf(w, "\nPCR %d, %s, changed since evidence %s:\n", p.PCR, p.Meaning, x.Since.Short())
		told := false
		for _, c := range x.Changes {
			if c.PCR != p.PCR {
				continue
			}
			told = true
			word, what := "new  ", c.Digest+", which the log calls "+c.Said
			if c.Gone {
				word = "gone "
			}
			if c.Text != "" {
				what = strconv.QuoteToASCII(c.Text)
			}
			fmt.Fprintf(w, "  %s %s\n", word, what)
		}
		if !told {
			fmt.Fprintln(w, "  the event logs do not say by what; the same events may have come in another order")
		}
	}
}

// pcrContext names the other values that matter to a register.
func pcrContext(p pcrView) string {
	var out []string
	if !slices.Contains(p.Expected, p.Measured) {
		for _, e := range p.Expected {
			out = append(out, short(e))
		}
	}
	if p.Before != "" {
		out = append(out, "before: "+short(p.Before))
	}
	return strings.Join(out, " ")
}
