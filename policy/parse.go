package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Parse reads a policy. It takes the plain part of YAML only: mappings, lists,
// words and decimal integers. Anchors, aliases, tags, merge keys, a second
// document, unknown keys and keys repeated in whatever case are refused with
// the line they are on.
func Parse(text []byte) (*Policy, error) {
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("policy: %d bytes: at most %d", len(text), MaxBytes)
	}
	root, err := document(text)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	p, err := readPolicy(root)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if err := p.validate(); err != nil {
		return nil, err
	}
	return p, nil
}

// document parses text as exactly one YAML document and returns its root.
func document(text []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, next yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the file is empty")
		}
		return nil, err
	}
	if err := dec.Decode(&next); !errors.Is(err, io.EOF) {
		return nil, errors.New("a second document or text after the first: a file holds one policy")
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, errors.New("the file holds no mapping")
	}
	return doc.Content[0], plain(doc.Content[0])
}

// plain refuses the parts of YAML by which a text can mean something other
// than it shows.
func plain(n *yaml.Node) error {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return at(n, "anchors and aliases are not allowed")
	case n.Style&yaml.TaggedStyle != 0:
		return at(n, "tags are not allowed")
	}
	for _, c := range n.Content {
		if err := plain(c); err != nil {
			return err
		}
	}
	return nil
}

func at(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("line %d: %s", n.Line, fmt.Sprintf(format, args...))
}

// A reader gives the value of one key to whoever knows its meaning.
type reader func(*yaml.Node) error

// readMapping hands every value of n to the reader of its key. Required keys
// are those that must appear.
func readMapping(n *yaml.Node, required []string, readers map[string]reader) error {
	if n.Kind != yaml.MappingNode {
		return at(n, "want a mapping")
	}
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		folded := strings.ToLower(key.Value)
		if seen[folded] {
			return at(key, "key %q appears twice", clip(key.Value))
		}
		seen[folded] = true
		read, known := readers[key.Value]
		if !known || key.Kind != yaml.ScalarNode {
			return at(key, "unknown key %q", clip(key.Value))
		}
		if err := read(value); err != nil {
			return err
		}
	}
	for _, name := range required {
		if !seen[strings.ToLower(name)] {
			return at(n, "%s is missing", name)
		}
	}
	return nil
}

func readPolicy(n *yaml.Node) (*Policy, error) {
	p := new(Policy)
	err := readMapping(n, []string{"version", "leases", "rules"}, map[string]reader{
		"version": small(&p.Version),
		"leases": func(n *yaml.Node) error {
			return readMapping(n, []string{"epoch", "lease", "drainGrace"}, map[string]reader{
				"epoch":      integer(&p.Leases.Epoch),
				"lease":      integer(&p.Leases.Lease),
				"drainGrace": integer(&p.Leases.DrainGrace),
			})
		},
		"rules": list(&p.Rules, readRule),
	})
	return p, err
}

func readRule(n *yaml.Node, r *Rule) error {
	r.Uses = 1
	return readMapping(n, []string{"name", "action", "quorum", "expiry"}, map[string]reader{
		"name":           word(&r.Name),
		"action":         word((*string)(&r.Action)),
		"quorum":         func(n *yaml.Node) error { return readQuorum(n, &r.Quorum) },
		"veto":           list(&r.Veto, readWord),
		"expiry":         integer(&r.Expiry),
		"approvalExpiry": integer(&r.ApprovalExpiry),
		"coolingOff":     integer(&r.CoolingOff),
		"uses":           integer(&r.Uses),
	})
}

func readQuorum(n *yaml.Node, q *Quorum) error {
	readers := treeReaders(&q.Tree, 1)
	readers["organisations"] = small(&q.Organisations)
	return readMapping(n, nil, readers)
}

func treeReaders(t *Tree, depth int) map[string]reader {
	branch := func(n *yaml.Node, t *Tree) error {
		if depth >= MaxDepth {
			return at(n, "quorum: nested deeper than %d", MaxDepth)
		}
		return readMapping(n, nil, treeReaders(t, depth+1))
	}
	return map[string]reader{
		"all": list(&t.All, branch),
		"any": list(&t.Any, branch),
		"atLeast": func(n *yaml.Node) error {
			t.AtLeast = new(Leaf)
			return readLeaf(n, t.AtLeast)
		},
	}
}

func readLeaf(n *yaml.Node, l *Leaf) error {
	var one string
	err := readMapping(n, []string{"k"}, map[string]reader{
		"k":     small(&l.K),
		"role":  word(&one),
		"roles": list(&l.Roles, readWord),
	})
	if err != nil {
		return err
	}
	if (one == "") == (len(l.Roles) == 0) {
		return at(n, "atLeast has exactly one of role and roles")
	}
	if one != "" {
		l.Roles = []string{one}
	}
	return nil
}

func word(to *string) reader {
	return func(n *yaml.Node) error { return readWord(n, to) }
}

func readWord(n *yaml.Node, to *string) error {
	if n.Kind != yaml.ScalarNode || n.Value == "" {
		return at(n, "want a word")
	}
	*to = n.Value
	return nil
}

// integer reads a decimal of one or more without sign, point or leading zero;
// YAML's other spellings of numbers are traps in a document of thresholds.
// Zero is refused here since no field of a policy may be zero when written.
func integer(to *int64) reader {
	return func(n *yaml.Node) error {
		v, err := strconv.ParseInt(n.Value, 10, 64)
		if n.Kind != yaml.ScalarNode || n.Style != 0 || err != nil || v < 1 || strconv.FormatInt(v, 10) != n.Value {
			return at(n, "want a decimal integer of at least 1, not %q", clip(n.Value))
		}
		*to = v
		return nil
	}
}

func small(to *int) reader {
	return func(n *yaml.Node) error {
		var v int64
		if err := integer(&v)(n); err != nil {
			return err
		}
		if v > MaxBytes {
			return at(n, "%d is too large", v)
		}
		*to = int(v)
		return nil
	}
}

// list reads a list of at least one item.
func list[T any](to *[]T, item func(*yaml.Node, *T) error) reader {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
			return at(n, "want a list with at least one item")
		}
		items := make([]T, len(n.Content))
		for i, c := range n.Content {
			if err := item(c, &items[i]); err != nil {
				return err
			}
		}
		*to = items
		return nil
	}
}
