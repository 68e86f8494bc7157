package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A search says which entries are wanted; all that is set must fit.
type search struct {
	person, node, kind, about, request, object string
}

func (x *audit) findCmd() *cobra.Command {
	var q search
	cmd := &cobra.Command{Use: "find DIR", Short: "list the entries about a request, an object, a person, a node or a digest", Args: cobra.ExactArgs(1),
		Long: `Find lists the entries that fit everything asked for. Digests may be cut to
their first eight digits or more.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := x.open(cmd.Context(), args[0]); err != nil {
				return err
			}
			found, err := x.find(q)
			if err != nil {
				return err
			}
			if len(found) == 0 {
				return ui.WithHint(errors.New("no entry matches"), "audit export lists all")
			}
			return x.Answer(found, func(w writer) { findText(w, found) })
		}}
	f := cmd.Flags()
	f.StringVar(&q.request, "request", "", "is this request, or is about it, its warrant or its uses")
	f.StringVar(&q.object, "object", "", "is or names this object")
	f.StringVar(&q.person, "person", "", "signed by this person, or names the person's key")
	f.StringVar(&q.node, "node", "", "signed by this node, or names it")
	f.StringVar(&q.kind, "kind", "", "of this kind: request, approval, warrant, halt, ...")
	f.StringVar(&q.about, "about", "", "is or names this digest, whatever it is of")
	return cmd
}

func (x *audit) find(q search) ([]auditEntry, error) {
	var terms []term
	err := x.view(func(_ *authority.Authority, s *authority.State) (err error) {
		terms, err = q.terms(s)
		return err
	})
	if err != nil {
		return nil, err
	}
	found := []auditEntry{}
	for i, e := range x.entries {
		if (q.kind == "" || string(e.Kind) == q.kind) && x.fits(i, terms) {
			found = append(found, e)
		}
	}
	return found, nil
}

// A term fits an entry signed by signer, or that is or names one of the digests.
type term struct {
	signer  string
	digests []string // lower-case hex, perhaps cut
}

func (q search) terms(s *authority.State) ([]term, error) {
	var terms []term
	for _, text := range []string{q.about, q.object} {
		if text != "" {
			d, err := cutDigest(text)
			if err != nil {
				return nil, err
			}
			terms = append(terms, term{digests: []string{d}})
		}
	}
	if q.request != "" {
		d, err := cutDigest(q.request)
		if err != nil {
			return nil, err
		}
		terms = append(terms, term{digests: append(following(s, d), d)})
	}
	if q.person != "" {
		t := term{signer: q.person}
		for _, x := range s.Tokens {
			if hex := x.Person.Hex(); x.Name == q.person && !slices.Contains(t.digests, hex) {
				t.digests = append(t.digests, hex)
			}
		}
		terms = append(terms, t)
	}
	if q.node != "" {
		t := term{signer: "node " + q.node}
		if n, ok := s.NodeNamed(q.node); ok {
			t.digests = []string{n.ID.Hex()}
		} else if d, err := cutDigest(q.node); err == nil {
			t.digests = []string{d}
		}
		terms = append(terms, t)
	}
	return terms, nil
}

// cutDigest reads a digest or its beginning.
func cutDigest(text string) (string, error) {
	d := strings.TrimPrefix(text, "sha256:")
	if len(d) < 8 || len(d) > 64 || strings.Trim(d, "0123456789abcdef") != "" {
		return "", usage(fmt.Errorf("%q is no digest: want 8 to 64 lower-case hex digits", text))
	}
	return d, nil
}

// following are the warrants and claims that came of the requests that d begins.
func following(s *authority.State, d string) []string {
	var out []string
	for _, r := range s.Requests {
		if !strings.HasPrefix(r.ID.Hex(), d) || r.Warrant.IsZero() {
			continue
		}
		out = append(out, r.Warrant.Hex())
		for _, c := range s.Claims {
			if c.Doc.Warrant == r.Warrant {
				out = append(out, c.ID.Hex())
			}
		}
	}
	return out
}

func (x *audit) fits(i int, terms []term) bool {
	for _, t := range terms {
		if t.signer != "" && x.entries[i].Signer == t.signer {
			continue
		}
		if !x.mentions(i, t.digests) {
			return false
		}
	}
	return true
}

// mentions reports whether entry i is, or names in its payload, a digest.
func (x *audit) mentions(i int, digests []string) bool {
	doc, err := signoff.ReadLine(x.lines[i])
	if err != nil {
		return false
	}
	for _, d := range digests {
		if strings.HasPrefix(doc.Digest().Hex(), d) || strings.Contains(string(doc.Payload), d) {
			return true
		}
	}
	return false
}

func findText(w writer, found []auditEntry) {
	rows := [][]string{{"ENTRY", "KIND", "SIGNED BY", "DOCUMENT", "VOID"}}
	for _, e := range found {
		rows = append(rows, []string{fmt.Sprint(e.Index), string(e.Kind), e.Signer, e.Document.String(), printable(e.Void)})
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
