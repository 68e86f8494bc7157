package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"

	"github.com/keyturn/keyturn/policy"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/proof"
)

// A history is what was in force when: the final state knows only the last.
type history struct {
	policies []policyFrom
	proposed map[dsse.Digest]string // policies asked for, by request
}

// A policyFrom is a policy and the entry that put it in force.
type policyFrom struct {
	index uint64
	text  string
}

func (h *history) add(e auditEntry) {
	if e.Void != "" {
		return
	}
	switch doc := e.Predicate.(type) {
	case *signoff.Charter:
		h.policies, h.proposed = []policyFrom{{e.Index, doc.Policy}}, map[dsse.Digest]string{}
	case *signoff.Request:
		if doc.Policy != nil {
			h.proposed[e.Document] = doc.Policy.Policy
		}
	case *signoff.Warrant:
		if text, ok := h.proposed[doc.Request]; ok {
			h.policies = append(h.policies, policyFrom{e.Index, text})
		}
	}
}

// rule names the rule for an action that was in force after the entry.
func (h *history) rule(index uint64, action string) string {
	text := ""
	for _, p := range h.policies {
		if p.index <= index {
			text = p.text
		}
	}
	p, err := policy.Parse([]byte(text))
	if err != nil {
		return "none"
	}
	i := slices.IndexFunc(p.Rules, func(r policy.Rule) bool { return string(r.Action) == action })
	if i < 0 {
		return "none"
	}
	return p.Rules[i].Name
}

// trusts are what checkpoints of this log were held to, the newest first.
func (x *audit) trusts(s *authority.State) ([]proof.Trust, error) {
	var all []proof.Trust
	for _, w := range slices.Backward(s.Watches) {
		t, err := w.Trust(s.Charter.Name)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
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
	return x.view(func(a *authority.Authority, s *authority.State) error {
		c, err := x.openUnderAny(s, func(t proof.Trust) (proof.Checkpoint, error) {
			c, _, err := proof.OpenFinal(b, t)
			return c, err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", x.since, err)
		}
		return prefix(a, c, x.since)
	})
}

// openUnderAny tries the log keys and councils that ever were in force; the
// error is that of the present ones.
func (x *audit) openUnderAny(s *authority.State, open func(proof.Trust) (proof.Checkpoint, error)) (proof.Checkpoint, error) {
	trusts, err := x.trusts(s)
	if err != nil {
		return proof.Checkpoint{}, err
	}
	var first error
	for _, t := range trusts {
		c, err := open(t)
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
	}
	return proof.Checkpoint{}, first
}

// prefix refuses a final checkpoint that this log does not begin with.
func prefix(a *authority.Authority, c proof.Checkpoint, file string) error {
	if root, ok := a.RootAt(c.Size); !ok || root != dsse.Digest(c.Root) {
		return fmt.Errorf("the log of %d entries does not contain the final checkpoint of %d entries in %s: %w", a.Size(), c.Size, file, follow.ErrRollback)
	}
	return nil
}

// proves holds a proof that somebody saved against this log.
func (x *audit) proves() error {
	if x.proofFile == "" && x.docFile == "" {
		return nil
	}
	b, err := os.ReadFile(x.proofFile)
	if err != nil {
		return err
	}
	p, err := proof.ParseProof(b)
	if err != nil {
		return fmt.Errorf("%s: %w", x.proofFile, err)
	}
	leaf, err := os.ReadFile(x.docFile)
	if err != nil {
		return err
	}
	leaf = bytes.TrimRight(leaf, "\n")
	return x.view(func(a *authority.Authority, s *authority.State) error {
		c, err := x.openUnderAny(s, func(t proof.Trust) (proof.Checkpoint, error) {
			c, _, err := proof.VerifyLeaf(t, p, leaf)
			return c, err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", x.proofFile, err)
		}
		if err := prefix(a, c, x.proofFile); err != nil {
			return err
		}
		x.proved = &p.Index
		return nil
	})
}
