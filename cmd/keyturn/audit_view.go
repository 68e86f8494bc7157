package main

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

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
	CosignedBy  []string       `json:"cosignedBy"` // notaries
	GroupKey    dsse.Digest    `json:"groupKey,omitempty"`
	Requests    []auditRequest `json:"requests"`
	Halts       []auditHalt    `json:"halts"`
	Convicted   []convictView  `json:"convicted"`
	Aborts      []auditAbort   `json:"aborts"`
	Answered    []auditAnswer  `json:"answered"`
	Waits       []string       `json:"waits"` // for whom the making of shares waits
	Voids       []auditVoid    `json:"voids"`
	Proved      *uint64        `json:"proved,omitempty"` // index of the entry given with --proof
}

// An auditRequest is a request with the rule it was judged by and all that
// followed from it. Decisions are all that were taken, later ones after
// earlier ones.
type auditRequest struct {
	requestView
	Asks         []string       `json:"asks"`
	Rule         string         `json:"rule"`
	RuleDigest   dsse.Digest    `json:"ruleDigest,omitempty"` // with its people, once satisfied
	Counted      []dsse.Digest  `json:"counted"`              // approvals that satisfied it
	WarrantIndex uint64         `json:"warrantIndex,omitzero"`
	Uses         []auditUse     `json:"uses"`
	Releases     int            `json:"releases"`
	ReleasedBy   []string       `json:"releasedBy"`
	Receipts     []auditReceipt `json:"receipts"`
}

type auditUse struct {
	Use     int    `json:"use"`
	Node    string `json:"node"`
	Index   uint64 `json:"index"`
	Started bool   `json:"started"`
	Ended   string `json:"ended"`
}

type auditReceipt struct {
	Index  uint64 `json:"index"`
	By     string `json:"by"`
	Event  string `json:"event"`
	Detail string `json:"detail"`
	Bytes  int64  `json:"bytes"`
}

type auditHalt struct {
	haltView
	Index    uint64      `json:"index"`
	LiftedBy dsse.Digest `json:"liftedBy,omitempty"` // the request to resume
}

// An auditAbort is an attempt at making shares that accusations ended.
type auditAbort struct {
	Term         uint32   `json:"term"`
	Attempt      uint32   `json:"attempt"`
	Reason       string   `json:"reason"`
	Disqualified bool     `json:"disqualified"` // the dealers: they failed to answer
	Dealers      []string `json:"dealers"`
	Accusers     []string `json:"accusers"`
	Entries      []uint64 `json:"entries"` // that show it
}

// An auditAnswer is an accusation that was answered, while the last shares were
// made. That the answer is right does not say who lied.
type auditAnswer struct {
	Dealer  string   `json:"dealer"`
	Accuser string   `json:"accuser"`
	Entries []uint64 `json:"entries"` // accusation and answer
}

type auditVoid struct {
	Index  uint64       `json:"index"`
	Kind   signoff.Kind `json:"kind"`
	Reason string       `json:"reason"`
}

func (x *audit) verifyCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "verify DIR", Short: "check everything and say who decided what under which rule", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := x.open(cmd.Context(), args[0]); err != nil {
				return err
			}
			v, err := x.verified()
			if err != nil {
				return err
			}
			return x.Answer(v, func(w writer) { v.text(w) })
		}}
	cmd.Flags().StringVar(&x.proofFile, "proof", "", "proof saved by an approver (.tlog-proof), to be held against this log")
	cmd.Flags().StringVar(&x.docFile, "entry", "", "the document that the proof is of")
	return cmd
}

func (x *audit) verified() (*auditView, error) {
	v := &auditView{
		Entries: x.final.Size, Root: dsse.Digest(x.final.Root), State: dsse.Digest(x.final.State), NotFinal: x.beyond,
		CosignedBy: []string{}, Requests: []auditRequest{}, Voids: []auditVoid{}, Proved: x.proved,
	}
	for _, c := range x.cosigned {
		v.CosignedBy = append(v.CosignedBy, c.Name)
	}
	for _, e := range x.entries {
		if e.Void != "" {
			v.Void++
			v.Voids = append(v.Voids, auditVoid{e.Index, e.Kind, e.Void})
		}
	}
	return v, x.view(func(_ *authority.Authority, s *authority.State) error {
		v.Charter, v.Cluster, v.Development, v.GroupKey = s.ID, s.Charter.Name, s.Charter.Development, groupFingerprint(s)
		for _, r := range s.Requests {
			q, err := x.request(s, r)
			if err != nil {
				return err
			}
			v.Requests = append(v.Requests, q)
		}
		slices.SortFunc(v.Requests, func(p, q auditRequest) int { return cmp.Compare(p.Index, q.Index) })
		v.Halts = allHalts(s)
		v.Convicted = allConvictions(s)
		v.Aborts, v.Answered = accusations(s)
		v.Waits = append([]string{}, sharesWait(s)...)
		return nil
	})
}

// accusations are what became of those among notaries who made shares.
func accusations(s *authority.State) (aborts []auditAbort, answered []auditAnswer) {
	aborts, answered = []auditAbort{}, []auditAnswer{}
	for _, a := range s.Aborts {
		v := auditAbort{Term: a.Term, Attempt: a.Attempt, Reason: a.Reason, Disqualified: a.Disqualified(), Entries: a.Entries}
		for _, id := range a.Dealers {
			v.Dealers = append(v.Dealers, notaryName(s, id))
		}
		for _, id := range a.Accusers {
			v.Accusers = append(v.Accusers, notaryName(s, id))
		}
		aborts = append(aborts, v)
	}
	for _, x := range s.Keygen.Disputes {
		if !x.Open() {
			answered = append(answered, auditAnswer{notaryName(s, x.Dealer), notaryName(s, x.Accuser), []uint64{x.Index, x.Answer}})
		}
	}
	return aborts, answered
}

// notaryName is the name, or the key of one that never came into office.
func notaryName(s *authority.State, id dsse.Digest) string {
	if n, ok := s.AnyNotary(id); ok {
		return n.Name
	}
	return id.String()
}

// request tells a request's story from the entries.
func (x *audit) request(s *authority.State, r *authority.Request) (auditRequest, error) {
	v := auditRequest{requestView: viewRequest(s, r), Asks: asks(s, r.Doc), Uses: x.uses(s, r.Warrant), ReleasedBy: []string{}, Receipts: []auditReceipt{}, Counted: []dsse.Digest{}}
	v.Decisions = []voteView{}
	last := r.Index
	for _, e := range x.entries {
		if e.Void != "" {
			continue
		}
		switch doc := e.Predicate.(type) {
		case *signoff.Approval:
			if doc.Request == r.ID {
				v.Decisions, last = append(v.Decisions, voteView{e.Signer, doc.Decision, doc.Reason, e.Index, doc.Created, e.Document, x.presence(s, e)}), e.Index
			}
		case *signoff.Release:
			if doc.Warrant == r.Warrant {
				v.Releases++
				if !slices.Contains(v.ReleasedBy, e.Signer) {
					v.ReleasedBy = append(v.ReleasedBy, e.Signer)
				}
			}
		case *signoff.Receipt:
			if doc.Warrant == r.Warrant {
				v.Receipts = append(v.Receipts, auditReceipt{e.Index, e.Signer, doc.Event, doc.Detail, doc.Bytes})
			}
		}
	}
	switch {
	case r.Satisfied != nil:
		last, v.RuleDigest, v.Counted = r.Satisfied.Index, r.Satisfied.Rule, r.Satisfied.Approvals
	case r.Ended == "":
		last = x.final.Size
	}
	v.Rule = x.history.rule(last, r.Doc.Action)
	if r.Warrant.IsZero() {
		return v, nil
	}
	v.WarrantIndex = s.Warrants[r.Warrant].Index
	return v, x.underGroupKey(s, v.WarrantIndex)
}

// presence is what the authenticator said of whoever signed an entry, empty if
// the key is in none.
func (x *audit) presence(s *authority.State, e auditEntry) string {
	public, err := s.Tokens[e.hint].Signing.Public()
	key, ok := public.(*hsm.SecurityKey)
	if err != nil || !ok {
		return ""
	}
	doc, err := signoff.ReadLine(x.lines[e.Index])
	if err != nil {
		return ""
	}
	switch p, err := key.Verify(dsse.PAE(doc.Payload), doc.Sig); {
	case err != nil:
		return ""
	case p.Verified:
		return "verified"
	}
	return "touched"
}

// underGroupKey verifies a warrant once more, by itself.
func (x *audit) underGroupKey(s *authority.State, index uint64) error {
	doc, err := signoff.ReadLine(x.lines[index])
	if err == nil {
		err = doc.Verify(s.GroupKey())
	}
	if err != nil {
		return fmt.Errorf("warrant at entry %d: %w", index, err)
	}
	return nil
}

func (x *audit) uses(s *authority.State, warrant dsse.Digest) []auditUse {
	uses := []auditUse{}
	for _, c := range s.Claims {
		if c.Doc.Warrant == warrant {
			uses = append(uses, auditUse{c.Doc.Use, nodeName(s, c.Doc.Node), c.Index, c.Started, c.Ended})
		}
	}
	slices.SortFunc(uses, func(p, q auditUse) int { return cmp.Compare(p.Index, q.Index) })
	return uses
}

func nodeName(s *authority.State, id dsse.Digest) string {
	if n, ok := s.Nodes[id]; ok {
		return n.Name
	}
	return id.String()
}

// asks says in a few words what a request is for; keyturn show gives it all.
func asks(s *authority.State, r *signoff.Request) []string {
	switch {
	case r.Export != nil:
		return []string{fmt.Sprintf("object %s", r.Export.Object),
			fmt.Sprintf("for %s (key %s), to go to %s", r.Export.Recipient, r.Export.RecipientKey.Fingerprint(), r.Export.Destination)}
	case r.Launch != nil:
		out := []string{fmt.Sprintf("%s: %d uses of executable %s as %q", r.Launch.Name, r.Launch.Uses, r.Launch.Executable, r.Launch.Argv)}
		for _, o := range r.Launch.Objects {
			out = append(out, fmt.Sprintf("object %s", o))
		}
		for _, n := range r.Launch.Pool {
			out = append(out, fmt.Sprintf("node %s", nodeName(s, n)))
		}
		return out
	case r.Enrol != nil:
		return []string{fmt.Sprintf("node %s, TPM %s", r.Enrol.Name, r.Enrol.Node)}
	case r.Retire != nil:
		return []string{fmt.Sprintf("node %s", nodeName(s, r.Retire.Node))}
	case r.Policy != nil:
		return []string{fmt.Sprintf("policy %s", dsse.Sum("keyturn/policy/v1", []byte(r.Policy.Policy)))}
	case r.People != nil:
		return asksPeople(s, r.People)
	case r.Resume != nil:
		var out []string
		for _, h := range r.Resume.Halts {
			out = append(out, fmt.Sprintf("halt %s", h))
		}
		return out
	case r.Adopt != nil:
		return []string{fmt.Sprintf("reference set %s version %d, %s", r.Adopt.Name, r.Adopt.Version, r.Adopt.Set)}
	case r.Withdraw != nil:
		var out []string
		for _, id := range r.Withdraw.Sets {
			name := id.String()
			if ref, ok := s.References[id]; ok {
				name = fmt.Sprintf("%s version %d, %s", ref.Name, ref.Version, id)
			}
			out = append(out, "reference set "+name)
		}
		return out
	case r.EKRoots != nil:
		var out []string
		for _, der := range r.EKRoots.Add {
			out = append(out, fmt.Sprintf("add EK root %s", dsse.Digest(sha256.Sum256(der))))
		}
		for _, id := range r.EKRoots.Remove {
			out = append(out, fmt.Sprintf("remove EK root %s", id))
		}
		return out
	case r.Notaries != nil:
		out := []string{fmt.Sprintf("term %d, of which %d may be hostile", r.Notaries.Term+1, r.Notaries.Faults)}
		for _, n := range r.Notaries.Notaries {
			out = append(out, fmt.Sprintf("notary %s of %s", n.Name, n.Organisation))
		}
		return out
	}
	return []string{}
}

func asksPeople(s *authority.State, c *signoff.PeopleChange) []string {
	var out []string
	for _, p := range c.Add {
		out = append(out, fmt.Sprintf("%s of %s joins as %s", p.Name, p.Organisation, strings.Join(p.Roles, ", ")))
	}
	for _, id := range c.Remove {
		out = append(out, personName(s, id)+" leaves")
	}
	for _, x := range c.Roles {
		out = append(out, fmt.Sprintf("%s becomes %s", personName(s, x.Person), strings.Join(x.Roles, ", ")))
	}
	if c.Threshold != 0 {
		out = append(out, fmt.Sprintf("opening takes %d people's shares", c.Threshold))
	}
	for _, t := range c.Tokens {
		if !t.Retire.IsZero() {
			out = append(out, fmt.Sprintf("%s loses token %s", personName(s, t.Person), t.Retire))
		}
		if t.Add != nil {
			out = append(out, fmt.Sprintf("%s gets token %s", personName(s, t.Person), t.Add.ID()))
		}
	}
	return out
}

// standingHalts are those that no resume has lifted.
func standingHalts(s *authority.State) []haltView {
	out := []haltView{}
	for _, h := range allHalts(s) {
		if h.LiftedBy.IsZero() {
			out = append(out, h.haltView)
		}
	}
	return out
}

func allHalts(s *authority.State) []auditHalt {
	out := []auditHalt{}
	for _, h := range s.Halts {
		scope := "everything"
		switch {
		case !h.Doc.Request.IsZero():
			scope = "request " + h.Doc.Request.String()
		case !h.Doc.Node.IsZero():
			scope = "node " + nodeName(s, h.Doc.Node)
		}
		out = append(out, auditHalt{haltView{h.ID, personName(s, h.Doc.Person), h.Doc.Reason, scope}, h.Index, h.Lifted})
	}
	slices.SortFunc(out, func(p, q auditHalt) int { return cmp.Compare(p.Index, q.Index) })
	return out
}

func (v *auditView) text(w writer) {
	fmt.Fprintf(w, "charter      %s (%s)\n", v.Charter, v.Cluster)
	if v.Development {
		fmt.Fprintln(w, "             DEVELOPMENT CHARTER: software keys and emulated machines are accepted")
	}
	fmt.Fprintf(w, "log          %d entries, final; %d of them void; root %s\n", v.Entries, v.Void, v.Root)
	fmt.Fprintf(w, "state        %s\n", v.State)
	fmt.Fprintf(w, "cosigned by  %s\n", strings.Join(v.CosignedBy, ", "))
	if v.NotFinal > 0 {
		fmt.Fprintf(w, "NOT FINAL    %d entries after the checkpoint count for nothing yet\n", v.NotFinal)
	}
	if v.Proved != nil {
		fmt.Fprintf(w, "proof        good: the document is entry %d, and was final when the proof was saved\n", *v.Proved)
	}
	for i := range v.Requests {
		v.Requests[i].text(w, v.GroupKey)
	}
	if len(v.Convicted)+len(v.Aborts)+len(v.Answered)+len(v.Waits)+len(v.Halts)+len(v.Voids) > 0 {
		fmt.Fprintln(w)
	}
	for _, c := range v.Convicted {
		c.text(w, "")
	}
	for _, a := range v.Aborts {
		word := "aborted"
		if a.Disqualified {
			word = "DISQUALIFIED"
		}
		fmt.Fprintf(w, "%-12s notary %s: %s, accused by %s; shares of term %d, attempt %d; proof: entries %v\n", word,
			strings.Join(a.Dealers, ", "), a.Reason, strings.Join(a.Accusers, ", "), a.Term, a.Attempt, a.Entries)
	}
	for _, a := range v.Answered {
		fmt.Fprintf(w, "answered     notary %s, accused by %s: the sub-share published is right, which does not say who lied; entries %v\n", a.Dealer, a.Accuser, a.Entries)
	}
	for _, m := range v.Waits {
		fmt.Fprintf(w, "waits for    %s\n", m)
	}
	for _, h := range v.Halts {
		word, end := "HALT", "stands"
		if !h.LiftedBy.IsZero() {
			word, end = "halt", "lifted by request "+h.LiftedBy.String()
		}
		fmt.Fprintf(w, "%-12s %s by %s (entry %d) of %s, %s: %s\n", word, h.Halt, h.By, h.Index, h.Scope, end, h.Reason)
	}
	for _, e := range v.Voids {
		fmt.Fprintf(w, "void         entry %d, %s: %s\n", e.Index, orElse(string(e.Kind), "unreadable"), printable(e.Reason))
	}
}

func (r *auditRequest) text(w writer, group dsse.Digest) {
	const indent = "            "
	fmt.Fprintf(w, "\nrequest      %s (entry %d)\n", r.Request, r.Index)
	fmt.Fprintln(w, indent, "asked on "+day(r.Created))
	fmt.Fprintln(w, indent, fmt.Sprintf("%s, asked by %s: %s", r.Action, r.Requester, r.Purpose))
	for _, line := range r.Asks {
		fmt.Fprintln(w, indent, "  "+line)
	}
	fmt.Fprintln(w, indent, "rule", r.Rule)
	for _, d := range r.Decisions {
		counts := ""
		if slices.Contains(r.Counted, d.Document) {
			counts = ", counted"
		}
		if d.Presence != "" {
			counts += ", " + d.Presence
		}
		fmt.Fprintln(w, indent, fmt.Sprintf("%s %s: %s (entry %d%s): %s", day(d.Created), d.Person, d.Decision, d.Index, counts, d.Reason))
	}
	if r.Warrant.IsZero() {
		fmt.Fprintln(w, indent, strings.TrimSpace(r.State+" "+r.Ended))
	}
	for _, m := range r.Missing {
		fmt.Fprintln(w, indent, "waits for", m)
	}
	if !r.Warrant.IsZero() {
		fmt.Fprintln(w, indent, fmt.Sprintf("warrant %s (entry %d), verified under the notaries' joint key %s", r.Warrant, r.WarrantIndex, group))
	}
	if r.Releases > 0 {
		fmt.Fprintln(w, indent, fmt.Sprintf("%d shares released by %s", r.Releases, strings.Join(r.ReleasedBy, ", ")))
	}
	for _, u := range r.Uses {
		fmt.Fprintln(w, indent, fmt.Sprintf("use %d on %s (entry %d): %s", u.Use, u.Node, u.Index, orElse(u.Ended, "not ended")))
	}
	for _, c := range r.Receipts {
		fmt.Fprintln(w, indent, fmt.Sprintf("receipt by %s (entry %d): %s: %s", c.By, c.Index, c.Event, c.Detail))
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
