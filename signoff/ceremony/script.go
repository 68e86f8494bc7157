// Package ceremony holds ceremonies as data: the script that says who does what
// in which order, the record that the people of each step sign, and the
// transcript that shows to whoever has their public keys that the script was
// followed.
//
// A script holds no commands. A step is one of the few kinds of this package,
// or words that are read out and confirmed.
//
// Records form a chain. Each names the script, the run, the mode, its number
// and the digest of the record before, and carries the digest of the text that
// its signers were shown, which is derived again when it is verified. So no
// record can be removed, moved, altered, or taken from another run; and since a
// rehearsal's records are another predicate type, made with keys that exist for
// the rehearsal alone, none of them is ever a record of the real thing.
//
// The package is pure: keys, files, clock and screen are in cmd/keyturn.
package ceremony

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// Digest is a SHA-256 value, written sha256:<hex>.
type Digest = dsse.Digest

// A Purpose says what a ceremony is for, and so what it has to prove.
type Purpose string

const (
	Genesis    Purpose = "genesis"     // makes people's keys and the charter
	NotaryKeys Purpose = "notary-keys" // makes notaries' keys, or shows that their key generation is complete
	Membership Purpose = "membership"  // changes who takes part
	Drill      Purpose = "drill"       // practises a recovery
)

// The roles that the rules speak of; a script may have others.
const (
	Master  = "master"  // leads, decides on exceptions; exactly one
	Witness = "witness" // countersigns every step; at least one
	Holder  = "holder"  // keeps keys that the ceremony is about; at least one
)

// A Kind is what keyturn does in a step.
type Kind string

const (
	Manual        Kind = "manual"         // people do what the text says, and confirm it
	MakeKey       Kind = "make-key"       // make a key on a token
	ProveSpare    Kind = "prove-spare"    // a person's second token signs, with the key that was made for it or that the log has
	WriteChange   Kind = "write-change"   // write what a request takes to bring in the keys made so far
	WriteCharter  Kind = "write-charter"  // make the charter from a founding file and the keys made so far
	VerifyCharter Kind = "verify-charter" // read a charter and check it
	Accept        Kind = "accept"         // a person accepts the charter
	VerifyKeygen  Kind = "verify-keygen"  // the notaries' key generation is complete, with equal transcripts
	VerifyLog     Kind = "verify-log"     // audit a log directory
	DrillShare    Kind = "drill-share"    // a person's share of an object opens on the token
	Position      Kind = "position"       // a notary's signed position for a recovery
	ReadAloud     Kind = "read-aloud"     // a digest read out is typed and compared with an earlier step's
	FileDigest    Kind = "file-digest"    // the digest of a file, compared with the script's if that has one
)

// A Script is a ceremony before it takes place.
type Script struct {
	Version   int         `yaml:"version"` // 2; what was held by one of version 1 can still be read
	Name      string      `yaml:"name"`
	Purpose   Purpose     `yaml:"purpose"`
	Title     string      `yaml:"title"`
	Charter   Digest      `yaml:"charter"` // of every purpose but genesis
	People    []Person    `yaml:"people"`
	Equipment []Equipment `yaml:"equipment"`
	Change    Changes     `yaml:"change"` // of a membership ceremony
	Steps     []Step      `yaml:"steps"`
}

// A Person takes part. Token and Object name the key that the person signs
// steps with; without them the key is named when the ceremony is run.
type Person struct {
	Name         string   `yaml:"name"`
	Organisation string   `yaml:"organisation"`
	Roles        []string `yaml:"roles"`
	Token        string   `yaml:"token"`  // of the equipment
	Object       string   `yaml:"object"` // label of the signing key on it
}

// Is reports whether the person has the role.
func (p Person) Is(role string) bool { return slices.Contains(p.Roles, role) }

// Equipment is a thing with a serial number. A token is recognised by its own
// serial number and label, anything else by people.
type Equipment struct {
	Name   string `yaml:"name"`
	What   string `yaml:"what"` // token, media, laptop, safe, bag or other
	Serial string `yaml:"serial"`
	Label  string `yaml:"label"` // tokens only
}

// A Step is one thing to do. Which members beside name, do, text, by and proves
// it has depends on its kind.
type Step struct {
	Name   string   `yaml:"name"`
	Do     Kind     `yaml:"do"`
	Text   string   `yaml:"text"`   // read out
	By     []string `yaml:"by"`     // who signs, in this order
	Proves string   `yaml:"proves"` // what the ceremony is not complete without; such a step cannot be waived

	Person  string   `yaml:"person"`
	Token   string   `yaml:"token"`
	Object  string   `yaml:"object"` // label on the token
	Key     hsm.Kind `yaml:"key"`
	Slot    string   `yaml:"slot"`    // where a new key goes, see Slot
	File    string   `yaml:"file"`    // name of a file that is laid out for the ceremony
	Policy  string   `yaml:"policy"`  // the same
	Log     string   `yaml:"log"`     // name of a directory with a copy of the log
	Of      string   `yaml:"of"`      // an earlier step
	Digest  Digest   `yaml:"digest"`  // that is expected
	Weights Digest   `yaml:"weights"` // object whose share is opened
}

// ScriptVersion is the version of scripts that can be run. Version 1 does not
// tie spares and new keys to charter and log as [Script.Waivable], checkBonds and
// [Report.Anchor] do; it is read for the transcripts there are.
const ScriptVersion = 2

// SumScript is the digest that names a script: SHA-256 of its bytes.
func SumScript(text []byte) Digest { return sha256.Sum256(text) }

// ParseScript reads a script and checks that it can be followed and that it
// proves what its purpose demands. It takes the plain part of YAML only.
func ParseScript(text []byte) (*Script, error) {
	if len(text) > MaxScript {
		return nil, fmt.Errorf("ceremony: script of %d bytes, at most %d are read", len(text), MaxScript)
	}
	s, err := decode(text)
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return nil, fmt.Errorf("ceremony: script: %w", err)
	}
	return s, nil
}

func decode(text []byte) (*Script, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, clean(err)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("the file holds no mapping")
	}
	if err := plain(doc.Content[0], 0); err != nil {
		return nil, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	s := new(Script)
	if err := dec.Decode(s); err != nil {
		return nil, clean(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("a second document or text after the first: a file holds one script")
	}
	return s, nil
}

// clean quotes an error of the YAML parser, which repeats what it read.
func clean(err error) error {
	text := strings.ReplaceAll(err.Error(), "\n", " ")
	if signoff.CheckText("", text) != nil {
		return fmt.Errorf("%.300q", text)
	}
	return fmt.Errorf("%.300s", text)
}

// plain refuses the parts of YAML by which a text can mean something other
// than it shows.
func plain(n *yaml.Node, depth int) error {
	switch {
	case depth > maxDepth:
		return fmt.Errorf("line %d: nested deeper than %d", n.Line, maxDepth)
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return fmt.Errorf("line %d: anchors and aliases are not allowed", n.Line)
	case n.Style&yaml.TaggedStyle != 0 || n.Tag == "!!merge":
		return fmt.Errorf("line %d: tags and merge keys are not allowed", n.Line)
	case n.Tag == "!!null":
		return fmt.Errorf("line %d: an empty value; leave the key out", n.Line)
	}
	for _, c := range n.Content {
		if err := plain(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// Person finds somebody of the script.
func (s *Script) Person(name string) (*Person, bool) {
	i := slices.IndexFunc(s.People, func(p Person) bool { return p.Name == name })
	if i < 0 {
		return nil, false
	}
	return &s.People[i], true
}

// Thing finds a piece of equipment.
func (s *Script) Thing(name string) (*Equipment, bool) {
	i := slices.IndexFunc(s.Equipment, func(e Equipment) bool { return e.Name == name })
	if i < 0 {
		return nil, false
	}
	return &s.Equipment[i], true
}

// With lists who has a role, in the script's order.
func (s *Script) With(role string) []string {
	var out []string
	for _, p := range s.People {
		if p.Is(role) {
			out = append(out, p.Name)
		}
	}
	return out
}

// Signers lists who signs a step with the given outcome: those whom the step
// names, or, for a step that did not pass, the master and every witness.
func (s *Script) Signers(step *Step, o Outcome) []string {
	if o == Passed {
		return slices.Clone(step.By)
	}
	return append(s.With(Master), s.With(Witness)...)
}
