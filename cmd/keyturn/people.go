package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

func peopleCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "people", Short: "list who belongs, with roles, share indices and tokens", Args: cobra.NoArgs,
		Long: `People lists those whose signatures count now. It begins with the charter's and
changes by keyturn request people, which the people there are have to approve.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.sync(cmd.Context(), 1); err != nil {
				return err
			}
			views := []personView{}
			if err := a.view(func(_ *authority.Authority, s *authority.State) error {
				for _, m := range s.People.Members {
					views = append(views, viewPerson(m))
				}
				return nil
			}); err != nil {
				return err
			}
			return a.Answer(views, func(w writer) { peopleText(w, views) })
		}}
	cmd.Flags().StringVar(&a.carry, "file", "", "work from a carried log instead of a coordinator")
	cmd.AddCommand(peopleAcceptCmd(a))
	return cmd
}

type personView struct {
	Person       dsse.Digest `json:"person"`
	Name         string      `json:"name"`
	Organisation string      `json:"organisation"`
	Roles        []string    `json:"roles"`
	Index        uint16      `json:"index"`
	Tokens       []tokenView `json:"tokens"`
}

type tokenView struct {
	Signing  dsse.Digest `json:"signing"`
	Exchange dsse.Digest `json:"exchange"` // empty of a token that only signs
	Class    hsm.Class   `json:"class"`    // of the signing key
}

func viewPerson(m *authority.Member) personView {
	v := personView{Person: m.ID, Name: m.Name, Organisation: m.Organisation, Roles: m.Roles, Index: m.Index}
	for _, t := range m.Tokens() {
		view := tokenView{Signing: t.Signing.Fingerprint(), Class: t.Signing.Class}
		if t.HoldsShare() {
			view.Exchange = t.Exchange.Fingerprint()
		}
		v.Tokens = append(v.Tokens, view)
	}
	return v
}

func peopleText(w writer, views []personView) {
	rows := [][]string{{"PERSON", "ORGANISATION", "ROLES", "SHARE", "SIGNS WITH"}}
	for _, v := range views {
		for i, t := range v.Tokens {
			row := []string{"", "", "", "", fmt.Sprintf("%s, %s", t.Signing.Short(), t.Class)}
			if i == 0 {
				share := fmt.Sprint(v.Index)
				if t.Exchange.IsZero() {
					share = "none"
				}
				copy(row, []string{v.Name, v.Organisation, strings.Join(v.Roles, ", "), share})
			}
			rows = append(rows, row)
		}
	}
	ui.Table(w, rows)
}

func peopleAcceptCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "accept REQUEST", Short: "sign, with a token that a request brings in, that it is there", Args: cobra.ExactArgs(1),
		Long: `Accept is for whoever holds a token that a request of keyturn request people
would let in: a new person, or somebody with a new or a spare token. It shows
the request and signs with the key that signing names in the configuration. The
request's warrant waits for every token that it brings.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.acceptToken(cmd.Context(), args[0]) }}
}

func (a *app) acceptToken(ctx context.Context, name string) error {
	if err := a.sync(ctx, 1); err != nil {
		return err
	}
	id, err := a.find(name)
	if err != nil {
		return err
	}
	var text string
	var brings []signoff.Token
	if err := a.view(func(_ *authority.Authority, s *authority.State) error {
		r := s.Requests[id]
		if r.Doc.People == nil || r.Ended != "" {
			return fmt.Errorf("request %s is not an open request to change people", id.Short())
		}
		brings = r.Doc.People.NewTokens()
		text, err = s.Display(id)
		return err
	}); err != nil {
		return err
	}
	key, err := a.keyring().Key(ctx, a.conf.Signing, crypto.PublicKey(nil))
	if err != nil {
		return err
	}
	public, err := signoff.NewPublicKey(key.Public(), "")
	if err != nil {
		return err
	}
	token := public.Fingerprint()
	if !slices.ContainsFunc(brings, func(t signoff.Token) bool { return t.ID() == token }) {
		return ui.WithHint(fmt.Errorf("request %s does not bring key %s", id.Short(), token), "set signing in %s to the new token's key", a.configFile)
	}
	fmt.Fprint(a.Err, text)
	if err := a.Confirm(ctx, fmt.Sprintf("Come in with key %s?", token), "accept"); err != nil {
		return err
	}
	signed, err := signoff.Sign(ctx, key, &signoff.Acceptance{Charter: a.id, Person: token, Request: id})
	if err != nil {
		return err
	}
	return a.answerSent(a.done(ctx, signed))
}

// people asks to change who belongs.
func (r *asking) people() *cobra.Command {
	var add, remove, tokens, retire, roles []string
	var threshold int
	cmd := &cobra.Command{Use: "people", Short: "ask to let people or tokens in or put them out, or for other roles", Args: cobra.NoArgs,
		Long: `People asks to change who belongs: all that the flags say at once, or nothing.
Those who belong now approve it under the policy's people.change rule, and every
new token accepts (keyturn people accept). Removing somebody takes nothing back
that was released to anybody, and moves no shares: that is keyturn weights
redeal, afterwards.

A person's FILE is as in a founding file: {"name", "organisation", "roles",
"signing", "exchange"}, the keys as keyturn key new prints them. A token's FILE
is {"signing", "exchange"}. --token and --retire of one person replace the one
token by the other. --threshold makes opening take more people's shares: at once
for what is sealed from then on, by weights redeal for what was sealed before.
It can only rise; what should open with fewer people is sealed anew.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("threshold") && threshold < 2 {
				return usage(fmt.Errorf("--threshold %d: want at least 2", threshold))
			}
			c := &signoff.PeopleChange{Threshold: threshold}
			for _, file := range add {
				var p signoff.Person
				if err := readJSON(file, &p); err != nil {
					return err
				}
				c.Add = append(c.Add, p)
			}
			return r.ask(cmd.Context(), signoff.ActionPeopleChange, func(q *signoff.Request, s *authority.State) error {
				q.People = c
				return fillPeople(c, s.People, remove, tokens, retire, roles)
			})
		}}
	f := cmd.Flags()
	f.StringArrayVar(&add, "add", nil, "FILE with a person who joins, as a charter names people")
	f.StringArrayVar(&remove, "remove", nil, "name of a person who leaves")
	f.StringArrayVar(&tokens, "token", nil, "NAME=FILE: a new token of somebody")
	f.StringArrayVar(&retire, "retire", nil, "NAME=KEY: a token to take away, by its signing key's fingerprint or six digits of it")
	f.StringArrayVar(&roles, "roles", nil, "NAME=ROLE,ROLE: all roles that somebody has from then on")
	f.IntVar(&threshold, "threshold", 0, "how many people's shares open what is sealed from then on")
	return cmd
}

func readJSON(file string, v any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := dsse.Decode(b, v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// fillPeople resolves names of people and tokens by the roster.
func fillPeople(c *signoff.PeopleChange, people *authority.Roster, remove, tokens, retire, roles []string) error {
	for _, name := range remove {
		m, ok := people.Named(name)
		if !ok {
			return fmt.Errorf("no person is named %q here", name)
		}
		c.Remove = append(c.Remove, m.ID)
	}
	for _, spec := range tokens {
		m, file, err := ofPerson(people, spec)
		if err != nil {
			return err
		}
		t := &signoff.Token{}
		if err := readJSON(file, t); err != nil {
			return err
		}
		c.Tokens = append(c.Tokens, signoff.TokenChange{Person: m.ID, Add: t})
	}
	for _, spec := range roles {
		m, list, err := ofPerson(people, spec)
		if err != nil {
			return err
		}
		c.Roles = append(c.Roles, signoff.RoleChange{Person: m.ID, Roles: strings.Split(list, ",")})
	}
	for _, spec := range retire {
		m, key, err := ofPerson(people, spec)
		if err != nil {
			return err
		}
		id, err := tokenOf(m, key)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(c.Tokens, func(t signoff.TokenChange) bool { return t.Person == m.ID && t.Retire.IsZero() })
		if i < 0 {
			c.Tokens = append(c.Tokens, signoff.TokenChange{Person: m.ID, Retire: id})
			continue
		}
		c.Tokens[i].Retire = id
	}
	return nil
}

func ofPerson(people *authority.Roster, spec string) (*authority.Member, string, error) {
	name, value, ok := strings.Cut(spec, "=")
	if !ok || value == "" {
		return nil, "", usage(fmt.Errorf("%q: want NAME=VALUE", spec))
	}
	m, ok := people.Named(name)
	if !ok {
		return nil, "", fmt.Errorf("no person is named %q here", name)
	}
	return m, value, nil
}

// tokenOf finds a token by its signing key's fingerprint or the beginning of it.
func tokenOf(m *authority.Member, key string) (dsse.Digest, error) {
	hexed := strings.TrimPrefix(key, "sha256:")
	var found []dsse.Digest
	for _, t := range m.Tokens() {
		if len(hexed) >= 6 && strings.HasPrefix(t.ID().Hex(), hexed) {
			found = append(found, t.ID())
		}
	}
	if len(found) != 1 {
		return dsse.Digest{}, ui.WithHint(errors.New(m.Name+" has no token, or several, with a key that begins with "+hexed), "keyturn people --json lists them")
	}
	return found[0], nil
}
