package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

type writer = io.Writer

// A requestView is a request as list and show answer it.
type requestView struct {
	Request   dsse.Digest `json:"request"`
	Action    string      `json:"action"`
	Requester string      `json:"requester"`
	Purpose   string      `json:"purpose"`
	Index     uint64      `json:"index"`
	Created   int64       `json:"created"` // by the requester's clock
	Expiry    int64       `json:"expiry"`
	State     string      `json:"state"` // open, satisfied, warranted, ended
	Ended     string      `json:"ended,omitempty"`
	Warrant   dsse.Digest `json:"warrant,omitempty"`
	Decisions []voteView  `json:"decisions"`
	Missing   []string    `json:"missing"`
	Text      string      `json:"text,omitempty"` // what approvers sign, on show only

	Convicted []convictView `json:"convicted,omitempty"` // of an open change of notaries: who cheated and stays
}

type voteView struct {
	Person   string           `json:"person"`
	Decision signoff.Decision `json:"decision"`
	Reason   string           `json:"reason"`
	Index    uint64           `json:"index"`
	Created  int64            `json:"created"` // by the person's clock
	Document dsse.Digest      `json:"document"`
	Presence string           `json:"presence,omitempty"` // in an audit, of who signs with a FIDO key: touched or verified
}

func viewRequest(s *authority.State, r *authority.Request) requestView {
	v := requestView{Request: r.ID, Action: r.Doc.Action, Requester: personName(s, r.Doc.Requester), Purpose: r.Doc.Purpose, Index: r.Index,
		Created: r.Doc.Created, Expiry: r.Doc.Expiry, State: "open", Ended: r.Ended, Warrant: r.Warrant, Decisions: []voteView{}, Missing: []string{}}
	for _, vote := range r.Votes {
		v.Decisions = append(v.Decisions, voteView{Person: personName(s, vote.Doc.Person), Decision: vote.Doc.Decision, Reason: vote.Doc.Reason, Index: vote.Index, Created: vote.Doc.Created, Document: vote.Approval})
	}
	switch {
	case !r.Warrant.IsZero():
		v.State = "warranted"
	case r.Ended != "":
		v.State = "ended"
	case r.Satisfied != nil:
		v.State = "satisfied"
	}
	if v.State == "open" {
		v.Missing = missingFor(s, r)
	}
	if r.Ended == "" && r.Doc.Notaries != nil {
		v.Convicted = convictionsIn(s, r.Doc.Notaries.Council())
	}
	return v
}

// missingFor says in words what an open request still waits for.
func missingFor(s *authority.State, r *authority.Request) []string {
	rule, res, err := s.Evaluate(r)
	if err != nil {
		return []string{err.Error()}
	}
	out := slices.Clone(res.Missing)
	for _, v := range r.Votes {
		if why := s.Stale(r, v, s.RuleDigest(rule)); v.Doc.Decision == signoff.Approve && why != nil {
			out = append(out, fmt.Sprintf("%s's approval counts no longer: %v; a new approval will", personName(s, v.Doc.Person), why))
		}
	}
	if n := s.Council().Quorum() - len(r.Activated); r.Doc.Enrol != nil && n > 0 {
		out = append(out, fmt.Sprintf("%d notaries have still to challenge the node's TPM; keyturn-agent must be running there", n))
	}
	if c := r.Doc.People; c != nil && len(r.Activated) < len(c.NewTokens()) {
		out = append(out, fmt.Sprintf("%d new tokens have still to accept (keyturn people accept)", len(c.NewTokens())-len(r.Activated)))
	}
	for _, y := range s.Unjoined(r) {
		out = append(slices.Clone(out), fmt.Sprintf("notary %s has still to show its keys; its keyturn-notary must be running", y.Name))
	}
	return out
}

func personName(s *authority.State, id dsse.Digest) string {
	if name := s.PersonName(id); name != "" {
		return name
	}
	return id.String()
}

func listCmd(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{Use: "list", Short: "list requests and what they wait for", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.sync(cmd.Context(), 1); err != nil {
				return err
			}
			views := []requestView{}
			if err := a.view(func(_ *authority.Authority, s *authority.State) error {
				for _, r := range s.Requests {
					if v := viewRequest(s, r); all || v.State == "open" || v.State == "satisfied" {
						views = append(views, v)
					}
				}
				return nil
			}); err != nil {
				return err
			}
			slices.SortFunc(views, func(x, y requestView) int { return int(x.Index) - int(y.Index) })
			return a.Answer(views, func(w writer) { listText(w, views) })
		}}
	cmd.Flags().BoolVar(&all, "all", false, "also those that ended or have their warrant")
	cmd.Flags().StringVar(&a.carry, "file", "", "work from a carried log instead of a coordinator")
	return cmd
}

func listText(w writer, views []requestView) {
	if len(views) == 0 {
		fmt.Fprintln(w, "no requests wait for anybody")
		return
	}
	rows := [][]string{{"REQUEST", "ACTION", "ASKED BY", "STATE", "WAITS FOR"}}
	for _, v := range views {
		waits := strings.Join(v.Missing, "; ")
		if v.State == "satisfied" {
			waits = "a quorum of notaries to sign the warrant"
		}
		rows = append(rows, []string{v.Request.Short(), v.Action, v.Requester, v.State, waits})
	}
	ui.Table(w, rows)
}

func showCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "show REQUEST", Short: "show exactly what is asked, its rule, who signed, what is missing", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.sync(cmd.Context(), 1); err != nil {
				return err
			}
			id, err := a.find(args[0])
			if err != nil {
				return err
			}
			var v requestView
			if err := a.view(func(_ *authority.Authority, s *authority.State) error {
				v = viewRequest(s, s.Requests[id])
				v.Text, err = s.Display(id)
				return err
			}); err != nil {
				return err
			}
			return a.Answer(v, func(w writer) { showText(w, v) })
		}}
	cmd.Flags().StringVar(&a.carry, "file", "", "work from a carried log instead of a coordinator")
	return cmd
}

func showText(w writer, v requestView) {
	fmt.Fprint(w, v.Text)
	staysText(w, v.Convicted)
	fmt.Fprintf(w, "\nstate        %s\n", strings.TrimSpace(v.State+" "+v.Ended))
	if !v.Warrant.IsZero() {
		fmt.Fprintf(w, "warrant      %s\n", v.Warrant)
	}
	for _, d := range v.Decisions {
		fmt.Fprintf(w, "decided      %s: %s (entry %d): %s\n", d.Person, d.Decision, d.Index, d.Reason)
	}
	for _, m := range v.Missing {
		fmt.Fprintf(w, "waits for    %s\n", m)
	}
}

// A statusView is what the cluster waits for.
type statusView struct {
	Cluster  string      `json:"cluster"`
	Charter  dsse.Digest `json:"charter"`
	Size     uint64      `json:"size"`
	Time     int64       `json:"time"`
	Lag      int64       `json:"lag"` // seconds the log's time is behind the clock here
	GroupKey bool        `json:"groupKey"`
	Epoch    uint64      `json:"epoch"`
	Nodes    []nodeView  `json:"nodes"`
	Halts    []haltView  `json:"halts"`
	Waits    []string    `json:"waits"`

	Convicted []convictView `json:"convicted"` // notaries in office
}

type nodeView struct {
	Name    string      `json:"name"`
	Node    dsse.Digest `json:"node"`
	Verdict string      `json:"verdict"`
	Reason  string      `json:"reason"`
	Remedy  string      `json:"remedy"`
}

type haltView struct {
	Halt   dsse.Digest `json:"halt"`
	By     string      `json:"by"`
	Reason string      `json:"reason"`
	Scope  string      `json:"scope"` // everything, request DIGEST or node NAME
}

func statusCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "status", Short: "say how the cluster is and what it waits for", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.sync(cmd.Context(), 1); err != nil {
				return err
			}
			var v statusView
			if err := a.view(func(auth *authority.Authority, s *authority.State) error {
				v = viewStatus(auth, s, time.Now())
				return nil
			}); err != nil {
				return err
			}
			return a.Answer(v, func(w writer) { statusText(w, v) })
		}}
}

func viewStatus(auth *authority.Authority, s *authority.State, now time.Time) statusView {
	v := statusView{Cluster: s.Charter.Name, Charter: s.ID, Size: auth.Size(), Time: s.Time, Lag: now.Unix() - s.Time, GroupKey: s.Group != nil,
		Nodes: []nodeView{}, Waits: []string{}}
	if n := len(s.Charter.People) - len(s.Accepted); n > 0 {
		v.Waits = append(v.Waits, fmt.Sprintf("%d founders have still to accept the charter (keyturn accept)", n))
	}
	v.Waits = append(v.Waits, sharesWait(s)...)
	v.Waits = append(v.Waits, handoverWait(s)...)
	for _, r := range s.Requests {
		if r.Ended == "" {
			for _, m := range missingFor(s, r) {
				v.Waits = append(v.Waits, fmt.Sprintf("%s %s: %s", r.Doc.Action, r.ID.Short(), m))
			}
			if r.Satisfied != nil {
				v.Waits = append(v.Waits, fmt.Sprintf("%s %s: a quorum of notaries to sign the warrant", r.Doc.Action, r.ID.Short()))
			}
		}
	}
	slices.Sort(v.Waits)
	if s.Epoch != nil {
		v.Epoch = s.Epoch.Number
	}
	for _, n := range s.Nodes {
		v.Nodes = append(v.Nodes, viewNode(s, n))
	}
	slices.SortFunc(v.Nodes, func(x, y nodeView) int { return strings.Compare(x.Name, y.Name) })
	v.Halts, v.Convicted = standingHalts(s), convictionsIn(s, s.Council())
	return v
}

// sharesWait says for which notaries the making of their shares waits.
func sharesWait(s *authority.State) (waits []string) {
	k := s.Keygen
	if !s.InForce {
		return nil
	}
	if next, ok := s.Incoming(); ok {
		return []string{fmt.Sprintf("term %d: %d of the notaries in office and %d of those to come have to cosign the same checkpoint", k.Term, s.Council().Quorum(), next.Quorum())}
	}
	if k.Done {
		return nil
	}
	if k.Failed != "" {
		waits = append(waits, fmt.Sprintf("the shares of term %d are made again: %s", k.Term, k.Failed))
	}
	for _, x := range k.Disputes {
		if x.Open() {
			waits = append(waits, fmt.Sprintf("notary %s has still to answer the accusation by %s (entry %d)", notaryName(s, x.Dealer), notaryName(s, x.Accuser), x.Index))
		}
	}
	if s.WantsDealers() {
		return append(waits, fmt.Sprintf("%d more notaries to deal the shares of term %d", s.Council().Quorum()-len(k.Dealers), k.Term))
	}
	kind, from := s.Awaited()
	for _, y := range from {
		waits = append(waits, fmt.Sprintf("notary %s has still to %s term %d: %s", y.Name, keygenDoes[kind], k.Term, silentRemedy(k.Term)))
	}
	return waits
}

var keygenDoes = map[signoff.Kind]string{signoff.KindCommitment: "commit to the shares of", signoff.KindDealing: "deal the shares of", signoff.KindTranscript: "accept its share of"}

// silentRemedy says what to do about a notary that does not come. All of a key
// generation have to, so that no time limit would help: an attempt without one
// is with other notaries.
func silentRemedy(term uint32) string {
	if term == 1 {
		return "see that its keyturn-notary runs and what its journal says; if it is lost, found anew without it"
	}
	return "see that its keyturn-notary runs and what its journal says; if it is lost, keyturn request notaries without it"
}

// handoverWait says how far the notaries' shares of objects have followed a
// change of notaries, and for whom the first of them wait.
func handoverWait(s *authority.State) []string {
	if !s.InForce {
		return nil
	}
	left := s.DisplacedObjects(lockbox.Machines)
	if len(left) == 0 {
		return nil
	}
	first := viewRedeal(s, left[0], lockbox.Machines)
	return []string{fmt.Sprintf("shares of %d of %d objects are on their way to the notaries of term %d; of %s: %s", len(left), len(s.Objects), s.Term().Number, left[0].ID.Short(), first)}
}

func viewNode(s *authority.State, n *authority.Node) nodeView {
	v := nodeView{Name: n.Name, Node: n.ID, Verdict: "none"}
	if n.Retired {
		v.Verdict = "retired"
		return v
	}
	if l, _, ok := s.Epoch.Lease(n.ID); ok {
		v.Verdict, v.Reason, v.Remedy = l.Verdict, l.Reason, l.Remedy
	}
	return v
}

func statusText(w writer, v statusView) {
	fmt.Fprintf(w, "cluster      %s, charter %s\n", v.Cluster, v.Charter)
	fmt.Fprintf(w, "log          %d entries, final; its time is %d s behind this clock\n", v.Size, v.Lag)
	fmt.Fprintf(w, "group key    %s\n", map[bool]string{true: "in force", false: "not yet"}[v.GroupKey])
	for _, n := range v.Nodes {
		fmt.Fprintf(w, "node         %s: %s\n", n.Name, strings.TrimSuffix(n.Verdict+", "+n.Reason, ", "))
	}
	for _, h := range v.Halts {
		fmt.Fprintf(w, "HALT         %s of %s, by %s: %s\n", h.Halt, h.Scope, h.By, h.Reason)
	}
	for _, c := range v.Convicted {
		c.text(w, "")
	}
	for _, m := range v.Waits {
		fmt.Fprintf(w, "waits for    %s\n", m)
	}
	if len(v.Waits) == 0 {
		fmt.Fprintln(w, "waits for    nobody")
	}
}
