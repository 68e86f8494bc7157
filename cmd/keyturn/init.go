package main

import (
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
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
	cmd.Flags().StringVar(&out, "out", ".", "directory to write into")
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
	charterText(a.Err, c, id)
	if err := a.Confirm(fmt.Sprintf("Accept this charter as %s?", me.Name), "accept"); err != nil {
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
	return errors.Join(err, f.Sync(), f.Close())
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

// charterText shows what a founder signs.
func charterText(w writer, c *signoff.Charter, id dsse.Digest) {
	fmt.Fprintf(w, "charter      %s\ncluster      %s, format level %d\n", id, c.Name, c.Format)
	if c.Development {
		fmt.Fprintln(w, "             DEVELOPMENT CHARTER: software keys and emulated machines are accepted")
	}
	holders := 0
	for _, p := range c.People {
		signs := ""
		if p.HoldsShare() {
			holders++
		} else {
			signs = ", signs only"
		}
		fmt.Fprintf(w, "person       %s of %s, %v, %s key %s%s\n", p.Name, p.Organisation, p.Roles, p.Signing.Class, p.ID(), signs)
	}
	fmt.Fprintf(w, "shares       %d of %d people open weights\n", c.Threshold, holders)
	for i := range c.Notaries {
		y := &c.Notaries[i]
		fmt.Fprintf(w, "notary       %s of %s, %s key %s\n", y.Name, y.Organisation, y.Signing.Class, y.ID())
	}
	fmt.Fprintf(w, "quorum       %d of %d notaries, %d may be hostile\n", c.Quorum(), len(c.Notaries), c.Faults)
	fmt.Fprintf(w, "log key      %s, %s\n", c.Log.Fingerprint(), c.Log.Class)
	for _, co := range c.Coordinators {
		fmt.Fprintf(w, "coordinator  %s, key %s\n", co.URL, co.TLS)
	}
	fmt.Fprintf(w, "policy\n%s", c.Policy)
}
