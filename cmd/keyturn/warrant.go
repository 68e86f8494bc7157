package main

import (
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// writeWarrant waits until the request's warrant is final and writes its line.
func (a *app) writeWarrant(cmd *cobra.Command, name, out string) error {
	if err := a.sync(cmd.Context(), 1); err != nil {
		return err
	}
	request, err := a.find(name)
	if err != nil {
		return err
	}
	warrant, err := a.awaitWarrant(cmd, request)
	if err != nil {
		return err
	}
	line, err := a.lineOf(warrant)
	if err != nil {
		return err
	}
	if err := writeNew(out, append(line, '\n')); err != nil {
		return err
	}
	return a.Answer(struct {
		Warrant dsse.Digest `json:"warrant"`
	}{warrant}, func(w writer) { fmt.Fprintln(w, warrant) })
}

// awaitWarrant syncs until the request has its warrant, for as long as only
// machines are waited for: people take the time they take.
func (a *app) awaitWarrant(cmd *cobra.Command, request dsse.Digest) (dsse.Digest, error) {
	for {
		var r *authority.Request
		var why error
		people := false
		if err := a.view(func(_ *authority.Authority, s *authority.State) error {
			r = s.Requests[request]
			why = noWarrant(s, r)
			_, res, err := s.Evaluate(r)
			people = err == nil && res.Satisfied
			return nil
		}); err != nil {
			return dsse.Digest{}, err
		}
		switch {
		case why == nil:
			return r.Warrant, nil
		case r.Ended != "" || !people:
			return dsse.Digest{}, why
		}
		if err := a.sync(cmd.Context(), a.seen.Size+1); err != nil {
			return dsse.Digest{}, err
		}
	}
}

// noWarrant says why a request has no warrant, nil if it has one.
func noWarrant(s *authority.State, r *authority.Request) error {
	switch {
	case !r.Warrant.IsZero():
		return nil
	case r.Ended != "":
		return fmt.Errorf("request %s has no warrant and will have none: %s", r.ID.Short(), r.Ended)
	case r.Satisfied == nil:
		return ui.WithHint(fmt.Errorf("request %s is not satisfied: %s", r.ID.Short(), strings.Join(missingFor(s, r), "; ")), "keyturn show %s says who signed and who is missing", r.ID.Short())
	}
	return ui.WithHint(fmt.Errorf("request %s is satisfied, but the notaries have not signed its warrant yet", r.ID.Short()), "a quorum of notaries must be running; see keyturn status")
}

// lineOf finds the entry that holds a document, among those folded.
func (a *app) lineOf(document dsse.Digest) ([]byte, error) {
	var index uint64
	ok := false
	if err := a.view(func(_ *authority.Authority, s *authority.State) error {
		index, ok = s.Documents[document]
		return nil
	}); err != nil {
		return nil, err
	}
	if !ok || index >= uint64(len(a.leaves)) {
		return nil, fmt.Errorf("document %s is not in the log", document)
	}
	return a.leaves[index], nil
}

func groupCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "group", Short: "print the notaries' joint public key, PEM", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.printPEM(cmd, func(s *authority.State) (signoff.PublicKey, error) {
				if s.GroupKey() == nil {
					return signoff.PublicKey{}, errors.New("the notaries have no group key yet")
				}
				return signoff.NewPublicKey(s.GroupKey(), hsm.ClassSealed)
			})
		}}
}

func pemCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "pem NAME", Short: "print the public signing key of a person or notary, PEM, or of a FIDO key as ssh-keygen does", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.printPEM(cmd, func(s *authority.State) (signoff.PublicKey, error) {
				if p, ok := s.People.Named(args[0]); ok {
					return p.Signing, nil
				}
				for _, t := range s.Terms {
					for _, n := range t.Council.Notaries {
						if n.Name == args[0] {
							return n.Signing, nil
						}
					}
				}
				return signoff.PublicKey{}, fmt.Errorf("%q is no person of the roster and no notary", args[0])
			})
		}}
}

// printPEM prints a key of the verified state, for other tools to check with.
func (a *app) printPEM(cmd *cobra.Command, find func(*authority.State) (signoff.PublicKey, error)) error {
	if err := a.sync(cmd.Context(), 1); err != nil {
		return err
	}
	var key signoff.PublicKey
	if err := a.view(func(_ *authority.Authority, s *authority.State) (err error) {
		key, err = find(s)
		return err
	}); err != nil {
		return err
	}
	public, err := key.Public()
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: key.Encoded})
	if _, ok := public.(*hsm.SecurityKey); ok {
		line, err := ssh.ParsePublicKey(key.Encoded)
		if err != nil {
			return err
		}
		text = ssh.MarshalAuthorizedKey(line)
	}
	return a.Answer(struct {
		PEM string `json:"pem"`
	}{string(text)}, func(w writer) { w.Write(text) })
}
