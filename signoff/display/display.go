// Package display writes the text that a person sees before signing. An
// approval carries the SHA-256 of this text, and the fold writes it again and
// compares: what a person saw is what they signed.
//
// The text depends on documents and on nothing else: not on the clock, the
// terminal's width or who has signed so far. It is therefore part of the
// format: a change of wording is a new version.
//
// Everything in it that another person wrote is hostile. Documents refuse
// text with control characters, escapes, newlines and bidirectional or
// invisible characters; words of a command line, which may hold anything, are
// quoted here, and long text is broken here, so that one line of text is always
// one line on the screen and nobody but this package begins one.
package display

import (
	"crypto/x509"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/policy"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// Version heads every text.
const Version = "keyturn display 1"

// Input is what a text is written from. Objects, Nodes and Halts hold what the
// request names; one that is missing is shown as unknown.
type Input struct {
	Charter *signoff.Charter
	ID      dsse.Digest // the charter's
	Request *signoff.Request
	Digest  dsse.Digest // the request's
	Rule    *policy.Bound
	People  map[dsse.Digest]*signoff.Person // who belongs, by id
	Left    map[dsse.Digest]string          // names of those who belonged once
	Shares  int                             // of people, that open what is sealed now
	Council signoff.Council                 // in office
	Term    uint32                          // its number
	Objects map[dsse.Digest]*signoff.Object
	Nodes   map[dsse.Digest]Node
	Halts   map[dsse.Digest]*signoff.Halt
	EKRoots map[dsse.Digest]*x509.Certificate // that it would remove
	Set     *attest.ReferenceSet              // that the request would adopt
	InForce []Reference                       // by name, newest first, for a request about reference sets
}

// A Reference is a reference set in force.
type Reference struct {
	ID  dsse.Digest
	Set *attest.ReferenceSet
}

// A Node is what is said of a machine. Emulated: its TPM is software, or
// nobody known made it.
type Node struct {
	Name     string
	Emulated bool
}

// Request writes the text: lines that end in a newline.
func Request(in Input) string {
	w := &writer{}
	r := in.Request
	w.line("%s", Version)
	w.field("cluster", "%s, charter %s", in.Charter.Name, in.ID)
	if in.Charter.Development {
		w.field("", "DEVELOPMENT CHARTER: software keys and emulated TPMs are accepted")
	}
	w.field("request", "%s", in.Digest)
	w.field("action", "%s", r.Action)
	w.field("asked by", "%s", in.person(r.Requester))
	w.prose("purpose", safe(r.Purpose))
	w.field("created", "%s", when(r.Created))
	w.field("expires", "%s", when(r.Expiry))
	in.part(w)
	in.rule(w)
	return w.String()
}

func (in Input) part(w *writer) {
	r := in.Request
	switch {
	case r.Export != nil:
		in.object(w, r.Export.Object)
		w.prose("recipient", safe(r.Export.Recipient))
		w.field("", "key %s, %s", r.Export.RecipientKey.Fingerprint(), class(r.Export.RecipientKey))
		w.prose("destination", safe(r.Export.Destination))
		w.field("effect", "the recipient can open the weights for ever")
	case r.Launch != nil:
		in.launch(w, r.Launch)
	case r.Enrol != nil:
		w.field("node", "%s", r.Enrol.Name)
		w.field("", "id %s", r.Enrol.Node)
		w.field("enrolment", "%s", r.Enrol.Enrolment)
		if !r.Enrol.Replaces.IsZero() {
			w.field("replaces", "the keys of the node enrolled under this name")
			w.field("", "enrolment %s", r.Enrol.Replaces)
		}
		w.field("effect", "the machine may join pools and be given weights")
	case r.Retire != nil:
		w.field("node", "%s", in.node(r.Retire.Node))
		w.field("effect", "the machine is out for good")
	case r.Policy != nil:
		w.field("new policy", "%s", dsse.Sum("keyturn/policy/v1", []byte(r.Policy.Policy)))
		for _, l := range strings.Split(strings.TrimRight(r.Policy.Policy, "\n"), "\n") {
			w.prose("", "| "+safe(l))
		}
	case r.Resume != nil:
		for _, h := range r.Resume.Halts {
			in.halt(w, h)
		}
	case r.Adopt != nil:
		in.adopt(w, r.Adopt)
	case r.Withdraw != nil:
		in.withdraw(w, r.Withdraw.Sets)
	case r.People != nil:
		in.people(w, r.People)
	case r.EKRoots != nil:
		in.ekRoots(w, r.EKRoots)
	case r.Notaries != nil:
		in.notaries(w, r.Notaries)
	}
}

func (in Input) people(w *writer, c *signoff.PeopleChange) {
	for _, p := range c.Add {
		w.prose("joins", safe(fmt.Sprintf("%s of %s as %s", p.Name, p.Organisation, strings.Join(p.Roles, ", "))))
		for _, t := range p.Tokens() {
			token(w, t)
		}
	}
	for _, id := range c.Remove {
		w.field("leaves", "%s", in.person(id))
		w.field("", "id %s", id)
	}
	for _, t := range c.Tokens {
		w.field("tokens of", "%s", in.person(t.Person))
		if !t.Retire.IsZero() {
			w.field("", "takes away %s", t.Retire)
		}
		if t.Add != nil {
			token(w, *t.Add)
		}
	}
	for _, x := range c.Roles {
		w.field("roles of", "%s", in.person(x.Person))
		w.prose("", "then "+safe(strings.Join(x.Roles, ", ")))
	}
	if c.Threshold != 0 {
		w.field("opening", "takes %d people's shares from then on, %d now", c.Threshold, in.Shares)
		w.field("", "objects from before follow by keyturn weights redeal")
	}
	w.field("effect", "who joins can approve and be dealt shares; who leaves counts no longer")
}

func token(w *writer, t signoff.Token) {
	w.field("", "signs with %s, %s", t.Signing.Fingerprint(), class(t.Signing))
	if t.HoldsShare() {
		w.field("", "opens with %s, %s", t.Exchange.Fingerprint(), class(t.Exchange))
		if t.Exchange.Hybrid() {
			w.field("", "which is hybrid: its ML-KEM-768 half is in a sealed file")
		}
	} else {
		w.field("", "opens nothing: it signs, and holds no share")
	}
}

// notaries says in words who comes, who goes and what the numbers are then.
func (in Input) notaries(w *writer, n *signoff.NotaryChange) {
	next := n.Council()
	w.field("notaries", "%s now, in term %d", numbers(in.Council), in.Term)
	w.field("", "%s then, in term %d", numbers(next), n.Term+1)
	if n.Term != in.Term {
		w.field("", "ASKED IN TERM %d, which is over", n.Term)
	}
	others := false
	for _, y := range next.Notaries {
		if in.Council.Has(y) {
			w.field("stays", "%s of %s", y.Name, y.Organisation)
			continue
		}
		others = true
		w.field("COMES", "%s of %s", y.Name, y.Organisation)
		w.field("", "signing %s, %s", y.Signing.Fingerprint(), class(y.Signing))
		w.field("", "exchange %s, %s", y.Exchange.Fingerprint(), class(y.Exchange))
		w.field("", "witness %s, %s", y.Witness.Fingerprint(), class(y.Witness))
	}
	for _, y := range in.Council.Notaries {
		if !next.Has(y) {
			others = true
			w.field("GOES", "%s of %s", y.Name, y.Organisation)
		}
	}
	w.field("effect", "they alone act from then on, each with a new share of the")
	w.field("", "same group key; shares from before sign nothing any more")
	if others {
		w.field("", "who holds shares of objects deals them on to those then in office")
	}
}

func numbers(c signoff.Council) string {
	return fmt.Sprintf("%d of %d act, %d may be hostile", c.Quorum(), len(c.Notaries), c.Faults)
}

func (in Input) launch(w *writer, l *signoff.Launch) {
	w.field("run", "%s", l.Name)
	w.field("executable", "%s", l.Executable)
	for i, a := range l.Argv {
		w.prose("", fmt.Sprintf("argument %d  %s", i, strconv.QuoteToASCII(a)))
	}
	for _, e := range l.Env {
		w.prose("", "environment "+strconv.QuoteToASCII(e))
	}
	for _, o := range l.Objects {
		in.object(w, o)
	}
	for _, n := range l.Pool {
		w.field("node", "%s", in.node(n))
	}
	w.field("uses", "%d starts in all", l.Uses)
	w.field("time limit", "%d s for each", l.Seconds)
	if l.Output > 0 {
		w.field("output", "up to %d bytes of snapshots at a time, sealed as new objects", l.Output)
		w.field("", "later starts of this run may open them")
	}
	w.field("effect", "root on each of these nodes can keep the weights")
}

func (in Input) object(w *writer, id dsse.Digest) {
	w.field("weights", "%s", id)
	o, ok := in.Objects[id]
	if !ok {
		w.field("", "UNKNOWN to this log")
		return
	}
	w.prose("", "named "+safe(o.Name))
	if o.Claim.IsZero() {
		w.field("", "sealed by %s", in.person(o.Sealer))
	} else {
		w.field("", "a snapshot, sealed by node %s", in.node(o.Sealer))
		w.field("", "in the run of claim %s", o.Claim)
	}
	w.field("", "%d files, %d bytes, %d tensors, %d parameters", o.Summary.Files, o.Summary.Bytes, o.Summary.Tensors, o.Summary.Parameters)
	w.prose("", "of type "+safe(strings.Join(o.Summary.DTypes, " ")))
	w.field("", "manifest %s", o.Manifest)
}

func (in Input) rule(w *writer) {
	w.field("rule", "%s", in.Rule.Name)
	for _, l := range tree(in.Rule.Quorum.Tree, 0) {
		w.field("", "%s", l)
	}
	if n := in.Rule.Quorum.Organisations; n > 0 {
		w.field("", "from at least %d organisations", n)
	}
	if len(in.Rule.Veto) > 0 {
		w.field("", "veto: one rejection by %s", strings.Join(in.Rule.Veto, " or "))
	}
	if in.Rule.CoolingOff > 0 {
		w.field("", "cooling off: %d s after the last approval needed", in.Rule.CoolingOff)
	}
	w.field("", "not the requester; one person, one vote")
}

// tree writes a quorum as nested lines.
func tree(t policy.Tree, depth int) []string {
	pad := strings.Repeat("  ", depth)
	children := func(head string, ts []policy.Tree) []string {
		out := []string{pad + head}
		for _, c := range ts {
			out = append(out, tree(c, depth+1)...)
		}
		return out
	}
	switch {
	case t.AtLeast != nil:
		return []string{fmt.Sprintf("%sat least %d of %s", pad, t.AtLeast.K, strings.Join(t.AtLeast.Roles, " or "))}
	case len(t.All) > 0:
		return children("all of", t.All)
	}
	return children("any of", t.Any)
}

func (in Input) person(id dsse.Digest) string {
	if p, ok := in.People[id]; ok {
		return fmt.Sprintf("%s (%s of %s), %s", p.Name, strings.Join(p.Roles, ", "), p.Organisation, classes(p.Tokens()))
	}
	if name, ok := in.Left[id]; ok {
		return name + ", who has left, " + id.String()
	}
	return "UNKNOWN " + id.String()
}

func (in Input) node(id dsse.Digest) string {
	n, ok := in.Nodes[id]
	switch {
	case !ok:
		return "UNKNOWN " + id.String()
	case n.Emulated:
		return n.Name + ", EMULATED TPM, id " + id.String()
	}
	return n.Name + ", id " + id.String()
}

func (in Input) halt(w *writer, id dsse.Digest) {
	w.field("lifts halt", "%s", id)
	h, ok := in.Halts[id]
	switch {
	case !ok:
		w.field("", "UNKNOWN to this log")
		return
	case h.Everything:
		w.field("", "stops everything")
	case !h.Request.IsZero():
		w.field("", "stops request %s", h.Request)
	default:
		w.field("", "stops node %s", in.node(h.Node))
	}
	w.field("", "by %s", in.person(h.Person))
	w.prose("", "because "+safe(h.Reason))
}

func class(k signoff.PublicKey) string {
	if application := k.Application(); application != "" {
		return fmt.Sprintf("%s FIDO key for %s", k.Class, application)
	}
	return string(k.Class) + " key"
}

// classes names the signing keys' classes, the spare tokens' too: a vote is
// worth what the weakest of them is.
func classes(tokens []signoff.Token) string {
	words := []string{class(tokens[0].Signing)}
	for _, t := range tokens[1:] {
		words = append(words, "spare "+class(t.Signing))
	}
	return strings.Join(words, ", ")
}

// when writes a time in UTC with its number, so that nobody has to trust a
// time zone.
func when(t int64) string {
	return fmt.Sprintf("%s (%d)", time.Unix(t, 0).UTC().Format("2006-01-02 15:04:05 UTC"), t)
}

// safe quotes text that signoff.CheckText would refuse. Documents were
// checked when they were read; this holds for whatever comes another way.
func safe(s string) string {
	if s == "" || signoff.CheckText("text", strings.Trim(s, " ")) == nil {
		return s
	}
	return strconv.QuoteToASCII(s)
}

// writer lays fields out in two columns.
type writer struct{ strings.Builder }

func (w *writer) line(format string, args ...any) { fmt.Fprintf(&w.Builder, format+"\n", args...) }

func (w *writer) field(name, format string, args ...any) {
	fmt.Fprintf(&w.Builder, "%-12s %s\n", name, fmt.Sprintf(format, args...))
}

// proseWidth leaves a terminal of 80 columns no reason to break a line itself.
const proseWidth = 64

// prose is a field of text that somebody wrote. A terminal that broke it would
// let its author begin a line of the screen, and imitate a field; so it is
// broken here, and what goes on is marked.
func (w *writer) prose(name, text string) {
	first, rest := cut(text, proseWidth)
	w.field(name, "%s", first)
	for rest != "" {
		first, rest = cut(rest, proseWidth-2)
		w.field("", "> %s", first)
	}
}

// cut splits text after at most width columns, behind a space if there is one.
func cut(text string, width int) (first, rest string) {
	used, space := 0, 0
	for i, r := range text {
		if used += columns(r); used > width {
			if space == 0 {
				space = i
			}
			return text[:space], text[space:]
		}
		if r == ' ' {
			space = i + 1
		}
	}
	return text, ""
}

// columns is how wide a character may be: from Hangul on, two.
func columns(r rune) int {
	if r >= 0x1100 {
		return 2
	}
	return 1
}
