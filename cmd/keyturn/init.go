package main

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/display"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A founding file says what a charter is to hold. It is the charter without
// what init works out: the time of creation and the policy's text.
type founding struct {
	Name         string                `json:"name"`
	Development  bool                  `json:"development"`
	People       []signoff.Person      `json:"people"`
	Threshold    int                   `json:"threshold"`
	Notaries     []signoff.Notary      `json:"notaries"`
	Faults       int                   `json:"faults"`
	Log          signoff.PublicKey     `json:"log"`
	Coordinators []signoff.Coordinator `json:"coordinators"`
	EKRoots      [][]byte              `json:"ekRoots"`
	BootPolicy   *signoff.PublicKey    `json:"bootPolicy,omitempty"`
	References   []string              `json:"references"`
}

func initCmd(a *app) *cobra.Command {
	var in, policyFile, out string
	cmd := &cobra.Command{Use: "init", Short: "write a charter from its founding file and policy", Args: cobra.NoArgs,
		Long: `Init checks the founding file and the policy against each other, and writes
charter.json and charter.sha256 into a directory. Nothing is in force until
every person in the charter has run keyturn accept on it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			charter, err := readFounding(in, policyFile)
			if err != nil {
				return err
			}
			payload, err := signoff.Write(charter)
			if err != nil {
				return err
			}
			if err := authority.CheckCharter(charter); err != nil {
				return err
			}
			digest := (&dsse.Envelope{Payload: payload}).Digest()
			if err := os.MkdirAll(out, 0o755); err != nil {
				return err
			}
			if err := errors.Join(
				writeNew(filepath.Join(out, "charter.json"), payload),
				writeNew(filepath.Join(out, "charter.sha256"), []byte(digest.String()+"\n"))); err != nil {
				return err
			}
			return a.Answer(struct {
				Charter dsse.Digest `json:"charter"`
			}{digest}, func(w writer) { fmt.Fprintln(w, digest) })
		}}
	cmd.Flags().StringVar(&in, "founding", "", "the founding file, JSON")
	cmd.Flags().StringVar(&policyFile, "policy", "", "the policy, YAML")
	cmd.Flags().StringVar(&out, "out", ".", "directory to write into, made if it is not there")
	return require(cmd, "founding", "policy")
}

func readFounding(in, policyFile string) (*signoff.Charter, error) {
	b, err := os.ReadFile(in)
	if err != nil {
		return nil, err
	}
	var f founding
	if err := dsse.Decode(b, &f); err != nil {
		return nil, fmt.Errorf("%s is not a founding file: %w", in, err)
	}
	policy, err := os.ReadFile(policyFile)
	if err != nil {
		return nil, err
	}
	return &signoff.Charter{Name: f.Name, Format: signoff.FormatLevel, Development: f.Development, Created: time.Now().Unix(), People: f.People,
		Threshold: f.Threshold, Notaries: f.Notaries, Faults: f.Faults, Log: f.Log, Coordinators: f.Coordinators, Policy: string(policy),
		EKRoots: f.EKRoots, BootPolicy: f.BootPolicy, References: f.References}, nil
}

func acceptCmd(a *app) *cobra.Command {
	var key, out string
	cmd := &cobra.Command{Use: "accept CHARTER-FILE", Short: "sign a charter as one of its founders", Args: cobra.ExactArgs(1),
		Long: `Accept shows who and what the charter names, asks, and signs. It adds two
lines to the genesis file: the charter, if it is the first, and the acceptance.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			payload, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			id := (&dsse.Envelope{Payload: payload}).Digest()
			charter, err := config.ReadCharter(payload, id)
			if err != nil {
				return err
			}
			return a.accepts(cmd, charter, payload, id, key, out)
		}}
	cmd.Flags().StringVar(&key, "key", "", "URI of your signing key")
	cmd.Flags().StringVar(&out, "genesis", "", "genesis file to add to")
	return require(cmd, "key", "genesis")
}

func (a *app) accepts(cmd *cobra.Command, c *signoff.Charter, payload []byte, id dsse.Digest, uri, out string) error {
	key, err := a.keyring().Key(cmd.Context(), uri, crypto.PublicKey(nil))
	if err != nil {
		return err
	}
	me, err := founder(c, key.Public())
	if err != nil {
		return err
	}
	names, err := foundersIn(out, c, id)
	if err != nil {
		return err
	}
	if slices.Contains(names, me.Name) {
		return fmt.Errorf("%s has accepted in %s already", me.Name, out)
	}
	charterText(a.Err, c, id)
	if err := a.Confirm(cmd.Context(), fmt.Sprintf("Accept this charter as %s?", me.Name), "accept"); err != nil {
		return err
	}
	var lines []byte
	if _, err := os.Stat(out); errors.Is(err, os.ErrNotExist) {
		env, err := dsse.Sign(cmd.Context(), key, payload)
		if err != nil {
			return err
		}
		lines = append(env.Line(), '\n')
	}
	s, err := signoff.Sign(cmd.Context(), key, &signoff.Acceptance{Charter: id, Person: me.ID()})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(append(lines, s.Line()...), '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	waits := []string{}
	for _, p := range c.People {
		if p.Name != me.Name && !slices.Contains(names, p.Name) {
			waits = append(waits, p.Name)
		}
	}
	return a.Answer(struct {
		Charter  dsse.Digest `json:"charter"`
		Person   string      `json:"person"`
		WaitsFor []string    `json:"waitsFor"`
	}{id, me.Name, waits}, func(w writer) {
		fmt.Fprintf(w, "accepted     by %s, %d of %d\n", me.Name, len(names)+1, len(c.People))
		if len(waits) > 0 {
			fmt.Fprintf(w, "waits for    %s; carry %s on\n", strings.Join(waits, ", "), out)
		}
	})
}

func founder(c *signoff.Charter, pub crypto.PublicKey) (*signoff.Person, error) {
	k, err := signoff.NewPublicKey(pub, "")
	if err != nil {
		return nil, err
	}
	for i := range c.People {
		if c.People[i].ID() == k.Fingerprint() {
			return &c.People[i], nil
		}
	}
	return nil, fmt.Errorf("key %s is nobody's in this charter", k.Fingerprint())
}

// charterText shows what a founder signs: digests in groups, to be compared aloud.
func charterText(w writer, c *signoff.Charter, id dsse.Digest) {
	var l display.Lines
	digest := func(name string, d dsse.Digest) {
		g := ceremony.Groups(d)
		l.Field(name, "%s", g[0])
		l.Field("", "%s", g[1])
	}
	key := func(what string, k signoff.PublicKey) {
		l.Field("", "%s, %s key:", what, k.Class)
		digest("", k.Fingerprint())
	}
	digest("charter", id)
	l.Field("cluster", "%s, format level %d", c.Name, c.Format)
	if c.Development {
		l.Field("", "DEVELOPMENT CHARTER: takes software keys and emulated machines")
	}
	holders := 0
	for _, p := range c.People {
		l.Field("person", "%s of %s: %s", p.Name, p.Organisation, strings.Join(p.Roles, ", "))
		for _, t := range p.Tokens() {
			key("signs with", t.Signing)
			if t.HoldsShare() {
				key("opens with", t.Exchange)
			}
		}
		if p.HoldsShare() {
			holders++
		} else {
			l.Field("", "holds no share")
		}
	}
	l.Field("shares", "%d of %d people open weights, with a quorum of notaries", c.Threshold, holders)
	for i := range c.Notaries {
		y := &c.Notaries[i]
		l.Field("notary", "%s of %s", y.Name, y.Organisation)
		key("signs with", y.Signing)
	}
	l.Field("quorum", "%d of %d notaries, %d may be hostile", c.Quorum(), len(c.Notaries), c.Faults)
	l.Field("log", "")
	key("signed by", c.Log)
	for _, co := range c.Coordinators {
		l.Field("coordinator", "%s, with TLS key:", co.URL)
		digest("", co.TLS)
	}
	if c.BootPolicy != nil {
		l.Field("boots", "which may open shares, says one key alone:")
		key("signs with", *c.BootPolicy)
	}
	for _, der := range c.EKRoots {
		subject := "A CERTIFICATE THAT CANNOT BE READ"
		if cert, err := x509.ParseCertificate(der); err == nil {
			subject = cert.Subject.String()
		}
		l.Prose("TPMs of", subject)
		digest("", sha256.Sum256(der))
	}
	for _, text := range c.References {
		name := "A SET THAT CANNOT BE READ"
		if set, err := attest.ParseReferenceSet([]byte(text)); err == nil {
			name = fmt.Sprintf("%s version %d, until %s", set.Name, set.Version, day(set.NotAfter))
		}
		l.Field("boots of", "%s; keyturn reference show tells which:", name)
		digest("", sha256.Sum256([]byte(text)))
	}
	l.Field("policy", "")
	fmt.Fprint(w, l.String(), c.Policy)
}

// foundersIn reads a genesis file: who has accepted the charter in it. There is
// none before the first founder.
func foundersIn(path string, c *signoff.Charter, id dsse.Digest) (names []string, err error) {
	b, err := readBounded(path, maxCarry)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for i, line := range bytes.Split(bytes.TrimRight(b, "\n"), []byte("\n")) {
		s, err := signoff.ReadLine(line)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, i+1, err)
		}
		if i == 0 {
			if s.Digest() != id {
				return nil, ui.WithHint(fmt.Errorf("%s is the genesis of %s %s, not of charter %s", path, s.Doc.Kind(), s.Digest(), id), "name another file, or find out who made this one")
			}
			continue
		}
		a, ok := s.Doc.(*signoff.Acceptance)
		person := slices.IndexFunc(c.People, func(p signoff.Person) bool { return ok && p.ID() == a.Person })
		if person < 0 || a.Charter != id {
			return nil, fmt.Errorf("%s, line %d: want an acceptance of this charter by one of its people", path, i+1)
		}
		names = append(names, c.People[person].Name)
	}
	return names, nil
}
