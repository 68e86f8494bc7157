package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/policy"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/log"
	"github.com/keyturn/keyturn/signoff/proof"
)

// An audit is a replay of a log directory from the charter's digest. It uses
// no configuration, no network and no key of ours.
type audit struct {
	*app
	charterText string
	since       string
	archive     *log.Archive
	follower    *follow.Follower
	entries     []auditEntry
	lines       [][]byte
	final       proof.Checkpoint
	beyond      uint64 // entries after the final checkpoint
}

// An auditEntry is one entry and what it did.
type auditEntry struct {
	Index     uint64           `json:"index"`
	Kind      signoff.Kind     `json:"kind"`
	Document  dsse.Digest      `json:"document"`
	Signer    string           `json:"signer"`
	Void      string           `json:"void,omitempty"`
	Changes   []string         `json:"changes,omitempty"`
	Predicate signoff.Document `json:"predicate,omitempty"`
	hint      dsse.Digest
}

func auditCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "replay a log directory and say who decided what, trusting nobody",
		Long: `Audit reads a log directory (tiles and blobs) and folds it from entry 0 with
the charter's digest as the only anchor. It needs no configuration and no
network. Every signature, every hash and every decision is checked again.`}
	x := &audit{app: a}
	f := cmd.PersistentFlags()
	f.StringVar(&x.charterText, "charter", "", "charter digest to trust, sha256:HEX")
	f.StringVar(&x.since, "since", "", "final checkpoint saved earlier; the log must contain it")
	cmd.MarkPersistentFlagRequired("charter")
	cmd.AddCommand(x.verifyCmd(), x.findCmd(), x.exportCmd())
	return cmd
}

// open replays the directory and checks it against its final checkpoint.
func (x *audit) open(ctx context.Context, dir string) error {
	charter, err := dsse.ParseDigest(x.charterText)
	if err != nil {
		return usage(err)
	}
	if x.archive, err = log.OpenReadOnly(dir); err != nil {
		return err
	}
	update, done := x.Progress("verifying tiles")
	err = x.archive.Verify(ctx, func(n, total uint64) { update(int64(n), int64(total)) })
	done()
	if err != nil {
		return err
	}
	note, err := x.archive.Checkpoint(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the directory has no checkpoint: nothing in it is final")
	}
	if err != nil {
		return err
	}
	if x.follower, err = follow.New(charter, archiveSource{x.archive}, x.observe); err != nil {
		return err
	}
	if x.final, err = x.follower.Final(ctx, note); err != nil {
		return err
	}
	x.beyond = x.archive.Size() - x.final.Size
	x.name()
	return x.contains()
}

// contains checks that a checkpoint saved earlier is a prefix of this log.
func (x *audit) contains() error {
	if x.since == "" {
		return nil
	}
	b, err := os.ReadFile(x.since)
	if err != nil {
		return err
	}
	return x.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		trust, err := follow.Trust(a.State())
		if err != nil {
			return err
		}
		c, _, err := proof.OpenFinal(b, trust)
		if err != nil {
			return fmt.Errorf("%s: %w", x.since, err)
		}
		if root, ok := a.RootAt(c.Size); !ok || root != dsse.Digest(c.Root) {
			return fmt.Errorf("the log of %d entries does not contain the final checkpoint of %d entries in %s: %w", a.Size(), c.Size, x.since, follow.ErrRollback)
		}
		return nil
	})
}

func (x *audit) observe(out authority.Outcome, line []byte) {
	e := auditEntry{Index: out.Index, Kind: out.Kind, Document: out.Document, Changes: out.Changes, hint: out.Signer}
	if out.Void != nil {
		e.Void = out.Void.Error()
	}
	if doc, err := signoff.ReadLine(line); err == nil {
		e.Predicate = doc.Doc
	}
	x.entries, x.lines = append(x.entries, e), append(x.lines, line)
}

// name gives signers the names that the final state knows them by.
func (x *audit) name() {
	x.follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		s := a.State()
		group := dsse.Digest{}
		if k, err := signoff.NewPublicKey(s.GroupKey(), ""); err == nil {
			group = k.Fingerprint()
		}
		for i := range x.entries {
			x.entries[i].Signer = signerName(s, x.entries[i].hint, group)
		}
		return nil
	})
}

func signerName(s *authority.State, hint, group dsse.Digest) string {
	if p, _, ok := s.Person(hint); ok {
		return p.Name
	}
	if n, _, ok := s.Notary(hint); ok {
		return "notary " + n.Name
	}
	if hint == group && !group.IsZero() {
		return "the notaries together"
	}
	for _, n := range s.Nodes {
		if k, err := signoff.NewPublicKey(n.Keys.SignKey, ""); err == nil && k.Fingerprint() == hint {
			return "node " + n.Name
		}
	}
	return hint.String()
}

// archiveSource lets a directory be followed.
type archiveSource struct{ archive *log.Archive }

func (s archiveSource) Entries(ctx context.Context, from, to uint64) ([][]byte, error) {
	return s.archive.Leaves(ctx, from, min(to, from+4096))
}

func (s archiveSource) Blob(ctx context.Context, d dsse.Digest) ([]byte, error) {
	b, err := s.archive.Blob(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", d, authority.ErrMissingBlob)
	}
	return b, err
}

// An auditView is the answer of audit verify.
type auditView struct {
	Charter     dsse.Digest    `json:"charter"`
	Cluster     string         `json:"cluster"`
	Development bool           `json:"development"`
	Entries     uint64         `json:"entries"`
	Void        int            `json:"void"`
	NotFinal    uint64         `json:"notFinal"`
	Root        dsse.Digest    `json:"root"`
	State       dsse.Digest    `json:"state"`
	Requests    []auditRequest `json:"requests"`
	Halts       []haltView     `json:"halts"` // standing
}

// An auditRequest is a request with the rule it was judged by.
type auditRequest struct {
	requestView
	Rule     string     `json:"rule"`
	Uses     []auditUse `json:"uses"`
	Releases int        `json:"releases"`
}

type auditUse struct {
	Use   int    `json:"use"`
	Node  string `json:"node"`
	Ended string `json:"ended"`
}

func (x *audit) verifyCmd() *cobra.Command {
	return &cobra.Command{Use: "verify DIR", Short: "check everything and say who decided what under which rule", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := x.open(cmd.Context(), args[0]); err != nil {
				return err
			}
			v, err := x.view()
			if err != nil {
				return err
			}
			return x.Answer(v, func(w writer) { x.verifyText(w, v) })
		}}
}

func (x *audit) view() (*auditView, error) {
	v := &auditView{Requests: []auditRequest{}, Halts: []haltView{}}
	for _, e := range x.entries {
		if e.Void != "" {
			v.Void++
		}
	}
	return v, x.follower.View(func(a *authority.Authority, c proof.Checkpoint, _ []byte) error {
		s := a.State()
		v.Charter, v.Cluster, v.Development = s.ID, s.Charter.Name, s.Charter.Development
		v.Entries, v.Root, v.State, v.NotFinal = c.Size, dsse.Digest(c.Root), dsse.Digest(c.State), x.beyond
		for _, r := range s.Requests {
			v.Requests = append(v.Requests, viewAudited(s, r))
		}
		slices.SortFunc(v.Requests, func(p, q auditRequest) int { return int(p.Index) - int(q.Index) })
		v.Halts = standingHalts(s)
		return nil
	})
}

func standingHalts(s *authority.State) []haltView {
	out := []haltView{}
	for _, h := range s.Halts {
		if h.Lifted.IsZero() {
			out = append(out, haltView{h.ID, personName(s, h.Doc.Person), h.Doc.Reason})
		}
	}
	slices.SortFunc(out, func(p, q haltView) int { return strings.Compare(p.Halt.Hex(), q.Halt.Hex()) })
	return out
}

func viewAudited(s *authority.State, r *authority.Request) auditRequest {
	v := auditRequest{requestView: viewRequest(s, r), Uses: []auditUse{}}
	if rule, err := s.Policy.Compiled.Rule(policy.Action(r.Doc.Action)); err == nil {
		v.Rule = rule.Name
	}
	v.Releases = len(s.Releases[r.Warrant])
	for _, c := range s.Claims {
		if c.Doc.Warrant == r.Warrant {
			u := auditUse{Use: c.Doc.Use, Node: c.Doc.Node.String(), Ended: c.Ended}
			if n, ok := s.Nodes[c.Doc.Node]; ok {
				u.Node = n.Name
			}
			v.Uses = append(v.Uses, u)
		}
	}
	slices.SortFunc(v.Uses, func(p, q auditUse) int { return p.Use - q.Use })
	return v
}

func (x *audit) verifyText(w writer, v *auditView) {
	fmt.Fprintf(w, "charter      %s (%s)\n", v.Charter, v.Cluster)
	if v.Development {
		fmt.Fprintln(w, "             DEVELOPMENT CHARTER: software keys and emulated machines are accepted")
	}
	fmt.Fprintf(w, "log          %d entries, final; %d of them void; root %s\n", v.Entries, v.Void, v.Root)
	fmt.Fprintf(w, "state        %s\n", v.State)
	if v.NotFinal > 0 {
		fmt.Fprintf(w, "NOT FINAL    %d entries after the checkpoint count for nothing yet\n", v.NotFinal)
	}
	for _, r := range v.Requests {
		fmt.Fprintf(w, "\nrequest      %s (entry %d)\n", r.Request, r.Index)
		fmt.Fprintf(w, "             %s, asked by %s: %s\n", r.Action, r.Requester, r.Purpose)
		fmt.Fprintf(w, "             rule %s\n", r.Rule)
		for _, d := range r.Decisions {
			fmt.Fprintf(w, "             %s: %s (entry %d): %s\n", d.Person, d.Decision, d.Index, d.Reason)
		}
		fmt.Fprintf(w, "             %s %s\n", r.State, r.Ended)
		if !r.Warrant.IsZero() {
			fmt.Fprintf(w, "             warrant %s, signed by the notaries together\n", r.Warrant)
		}
		if r.Releases > 0 {
			fmt.Fprintf(w, "             %d notaries released their shares\n", r.Releases)
		}
		for _, u := range r.Uses {
			fmt.Fprintf(w, "             use %d on %s: %s\n", u.Use, u.Node, orElse(u.Ended, "not ended"))
		}
	}
	for _, h := range v.Halts {
		fmt.Fprintf(w, "\nHALT         %s by %s stands: %s\n", h.Halt, h.By, h.Reason)
	}
	for _, e := range x.entries {
		if e.Void != "" {
			fmt.Fprintf(w, "void         entry %d, %s: %s\n", e.Index, orElse(string(e.Kind), "unreadable"), e.Void)
		}
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func (x *audit) findCmd() *cobra.Command {
	var person, node, kind, about string
	cmd := &cobra.Command{Use: "find DIR", Short: "list the entries about a person, a node, a kind or a digest", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := x.open(cmd.Context(), args[0]); err != nil {
				return err
			}
			found := []auditEntry{}
			for i, e := range x.entries {
				if (person == "" || e.Signer == person) && (node == "" || e.Signer == "node "+node) && (kind == "" || string(e.Kind) == kind) &&
					(about == "" || x.mentions(i, about)) {
					found = append(found, e)
				}
			}
			if len(found) == 0 {
				return ui.WithHint(errors.New("no entry matches"), "audit export lists all")
			}
			return x.Answer(found, func(w writer) { findText(w, found) })
		}}
	f := cmd.Flags()
	f.StringVar(&person, "person", "", "signed by this person")
	f.StringVar(&node, "node", "", "signed by this node")
	f.StringVar(&kind, "kind", "", "of this kind: request, approval, warrant, halt, ...")
	f.StringVar(&about, "about", "", "is or names this digest: a request, an object, a node, a warrant")
	return cmd
}

// mentions reports whether entry i is, or names in its payload, the digest.
func (x *audit) mentions(i int, digest string) bool {
	hexed := strings.TrimPrefix(digest, "sha256:")
	doc, err := signoff.ReadLine(x.lines[i])
	return err == nil && (doc.Digest().Hex() == hexed || strings.Contains(string(doc.Payload), hexed))
}

func findText(w writer, found []auditEntry) {
	rows := [][]string{{"ENTRY", "KIND", "SIGNED BY", "DOCUMENT", "VOID"}}
	for _, e := range found {
		rows = append(rows, []string{fmt.Sprint(e.Index), string(e.Kind), e.Signer, e.Document.String(), e.Void})
	}
	ui.Table(w, rows)
}

func (x *audit) exportCmd() *cobra.Command {
	var format string
	cmd := &cobra.Command{Use: "export DIR", Short: "write every entry as one JSON line, for other tools", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "jsonl" {
				return usage(fmt.Errorf("format %q; jsonl is the only one", format))
			}
			if err := x.open(cmd.Context(), args[0]); err != nil {
				return err
			}
			for _, e := range x.entries {
				b, err := dsse.Encode(e)
				if err != nil {
					return err
				}
				if _, err := fmt.Fprintf(x.Out, "%s\n", b); err != nil {
					return err
				}
			}
			return nil
		}}
	cmd.Flags().StringVar(&format, "format", "jsonl", "jsonl")
	return cmd
}
