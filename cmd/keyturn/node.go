package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff/agent"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// agentSocket is where an agent listens unless its configuration says other.
const agentSocket = "/run/keyturn/agent.sock"

func runCmd(a *app) *cobra.Command {
	var executable, resume, socket string
	cmd := &cobra.Command{
		Use: "run WARRANT", Short: "have this node's agent take one use of a launch warrant", Args: cobra.ExactArgs(1),
		Long: `Run asks the agent of this node to take one use of the warrant with the given
executable, and shows what the run writes. The agent judges everything itself.
WARRANT is a digest or the file that keyturn warrant get wrote. The node's lease
lists a new warrant from the next epoch on; run waits for it.

Interrupted before the use is claimed, it is not taken; after that the run goes
on without you.

If the launch has an output, the run renames each finished snapshot to a
directory in /run/keyturn/output. The agent seals it, puts it into the log and
removes it there. With --resume a later use of the same warrant finds it in
/run/keyturn/inputs/resume.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			warrant, err := dsse.ParseDigest(args[0])
			if s, bad := readLineFile(args[0]); err != nil && bad == nil {
				warrant, err = s.Digest(), nil
			}
			if err != nil {
				return usage(ui.WithHint(err, "give the warrant's digest, or the file that keyturn warrant get wrote"))
			}
			path, err := filepath.Abs(executable)
			if err != nil {
				return err
			}
			var snapshot dsse.Digest
			if resume != "" {
				if snapshot, err = dsse.ParseDigest(resume); err != nil {
					return usage(err)
				}
			}
			c, err := a.agent(socket)
			if err != nil {
				return err
			}
			return a.watchRun(func(see func(agent.Event)) error {
				return c.Run(cmd.Context(), warrant, path, snapshot, see)
			})
		}}
	cmd.Flags().StringVar(&resume, "resume", "", "object id of a snapshot that an earlier use of this warrant made")
	cmd.Flags().StringVar(&executable, "executable", "", "file of the approved executable")
	cmd.Flags().StringVar(&socket, "socket", agentSocket, "control socket of the agent")
	return require(cmd, "executable")
}

func (a *app) agent(socket string) (*agent.Client, error) {
	c, err := agent.Dial(socket)
	if err != nil {
		return nil, ui.WithHint(err, "is keyturn-agent running here, and may you open %s?", socket)
	}
	return c, nil
}

// A runView is the answer of run.
type runView struct {
	Claim dsse.Digest `json:"claim"`
	Use   int         `json:"use"`
	Code  int         `json:"code"`
	Ended string      `json:"ended"`

	Snapshots []snapshotView `json:"snapshots"` // sealed and in the log
}

type snapshotView struct {
	Object dsse.Digest `json:"object"`
	Name   string      `json:"name"`
}

// watchRun shows a run. With --json its output goes to standard error.
func (a *app) watchRun(run func(see func(agent.Event)) error) error {
	v := runView{Snapshots: []snapshotView{}}
	out := a.Out
	if a.JSON {
		out = a.Err
	}
	err := run(func(e agent.Event) {
		switch e.Event {
		case agent.EventOutput:
			out.Write(e.Output)
			return
		case agent.EventClaimed:
			v.Claim, v.Use = e.Claim, e.Use
		case agent.EventEnded:
			v.Ended, v.Code = e.Text, e.Code
		case agent.EventKept:
			v.Snapshots = append(v.Snapshots, snapshotView{e.Object, e.Text})
		}
		a.Note("%s", eventText(e))
	})
	if err != nil {
		return ui.WithHint(err, "keyturn node status --socket says how the agent stands; keyturn node explain NODE says why it has no lease")
	}
	if err := a.Answer(v, func(io.Writer) {}); err != nil {
		return err
	}
	if v.Code != 0 {
		return fmt.Errorf("the run ended with status %d", v.Code)
	}
	return nil
}

func eventText(e agent.Event) string {
	switch e.Event {
	case agent.EventClaimed:
		return fmt.Sprintf("claimed use %d: %s", e.Use, e.Claim)
	case agent.EventOpened:
		return "people's and notaries' shares opened"
	case agent.EventKept:
		return fmt.Sprintf("snapshot %s sealed: %s", e.Text, e.Object)
	case agent.EventLost:
		return "SNAPSHOT NOT KEPT: " + e.Text
	}
	if e.Text == "" {
		return e.Event
	}
	return e.Event + ": " + e.Text
}

func nodeCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "look at nodes, and reach the agent of this one"}
	cmd.AddCommand(nodeStatusCmd(a), nodeExplainCmd(a), nodeHaltCmd(a), nodeEKRootsCmd(a))
	return cmd
}

func nodeHaltCmd(a *app) *cobra.Command {
	var socket string
	cmd := &cobra.Command{Use: "halt FILE", Short: "give a signed halt to this node's agent by hand", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			line, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			c, err := a.agent(socket)
			if err != nil {
				return err
			}
			if err := c.Halt(cmd.Context(), line); err != nil {
				return err
			}
			a.Note("the agent obeys %s; it stands until a final resume names it", args[0])
			return nil
		}}
	cmd.Flags().StringVar(&socket, "socket", agentSocket, "control socket of the agent")
	return cmd
}

// A nodeReport is a node as the log has it.
type nodeReport struct {
	Node     dsse.Digest   `json:"node"`
	Name     string        `json:"name"`
	Retired  bool          `json:"retired"`
	Emulated bool          `json:"emulated"` // the TPM is a program: nothing is proved by it
	Epoch    uint64        `json:"epoch"`
	Verdict  string        `json:"verdict"` // pass or fail; empty before the first epoch
	Reason   string        `json:"reason"`
	Remedy   string        `json:"remedy"`
	Warrants []dsse.Digest `json:"warrants"` // launches it may start or go on with
	Halted   bool          `json:"halted"`   // as a whole
}

func reportNode(s *authority.State, n *authority.Node) nodeReport {
	v := nodeReport{Node: n.ID, Name: n.Name, Retired: n.Retired, Emulated: n.Keys.Emulated, Warrants: []dsse.Digest{}}
	_, v.Halted = s.Halted(dsse.Digest{}, n.ID)
	if l, _, ok := s.Epoch.Lease(n.ID); ok {
		v.Epoch, v.Verdict, v.Reason, v.Remedy = l.Epoch, l.Verdict, l.Reason, l.Remedy
		for _, w := range l.Warrants {
			v.Warrants = append(v.Warrants, w.Warrant)
		}
	}
	return v
}

func nodeStatusCmd(a *app) *cobra.Command {
	var socket string
	cmd := &cobra.Command{Use: "status [NODE]", Short: "say which nodes the last epoch gave a lease", Args: cobra.MaximumNArgs(1),
		Long: `Status reads the log. With --socket it asks the agent of this node instead,
which knows its own lease, halts and runs.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if socket != "" {
				return a.agentStatus(cmd.Context(), socket)
			}
			if err := a.sync(cmd.Context(), 1); err != nil {
				return err
			}
			views := []nodeReport{}
			if err := a.view(func(_ *authority.Authority, s *authority.State) error {
				for _, n := range s.Nodes {
					if len(args) == 0 || n.Name == args[0] || n.ID.String() == args[0] {
						views = append(views, reportNode(s, n))
					}
				}
				return nil
			}); err != nil {
				return err
			}
			if len(views) == 0 && len(args) > 0 {
				return fmt.Errorf("no node named %q is enrolled", args[0])
			}
			slices.SortFunc(views, func(x, y nodeReport) int { return slices.Compare([]byte(x.Name), []byte(y.Name)) })
			return a.Answer(views, func(w io.Writer) { nodeTable(w, views) })
		}}
	cmd.Flags().StringVar(&socket, "socket", "", "ask the agent at this control socket")
	return cmd
}

func nodeTable(w io.Writer, views []nodeReport) {
	rows := [][]string{{"NODE", "ID", "EPOCH", "VERDICT", "RUNS", "WHY"}}
	for _, v := range views {
		verdict := v.Verdict
		switch {
		case v.Retired:
			verdict = "retired"
		case verdict == "":
			verdict = "no epoch yet"
		}
		if v.Halted {
			verdict += ", halted"
		}
		if v.Emulated {
			verdict += " (emulated TPM)"
		}
		rows = append(rows, []string{v.Name, v.Node.Short(), fmt.Sprint(v.Epoch), verdict, fmt.Sprint(len(v.Warrants)), v.Reason})
	}
	ui.Table(w, rows)
}

func (a *app) agentStatus(ctx context.Context, socket string) error {
	c, err := a.agent(socket)
	if err != nil {
		return err
	}
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	return a.Answer(s, func(w io.Writer) { agentText(w, s) })
}

func agentText(w io.Writer, s *agent.Status) {
	fmt.Fprintf(w, "node      %s %s\n", s.Name, s.Node)
	if s.Emulated {
		fmt.Fprintln(w, "TPM       emulated: it proves nothing")
	}
	fmt.Fprintf(w, "log       %d entries final, time %s\n", s.Size, time.Unix(s.Time, 0).UTC().Format(time.RFC3339))
	if s.Lease > 0 {
		fmt.Fprintf(w, "lease     epoch %d, %d s left, %d warrants live\n", s.Epoch, s.Lease, len(s.Live))
	} else {
		fmt.Fprintf(w, "lease     %s\n", s.NoLease)
	}
	for _, h := range s.Halts {
		where := "told to this agent, not in the log yet"
		if h.Logged {
			where = "in the log"
		}
		fmt.Fprintf(w, "halt      %s, %s\n", h.Halt, where)
	}
	for _, r := range s.Runs {
		fmt.Fprintf(w, "run       %s, use %d of warrant %s: %s\n", r.Claim, r.Use, r.Warrant.Short(), r.State)
	}
}

// short is enough of a digest to tell two apart on a screen.
func short(d string) string { return d[:min(len(d), len("sha256:")+12)] }
