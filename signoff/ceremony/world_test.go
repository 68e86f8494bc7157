package ceremony_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/dsse"
)

var update = flag.Bool("update", false, "record the golden record anew")

// script is a small drill, with one step of each kind that needs no device but
// a key.
var script = strings.NewReplacer("version: 1", "version: 2", "object: sign, proves", "object: sign, log: log, proves").Replace(scriptOne)

// scriptOne is the same as scripts were written at first.
const scriptOne = `version: 1
name: drill-lab
purpose: drill
title: A drill of the lab
charter: "sha256:89ed000000000000000000000000000000000000000000000000000000000001"
people:
  - {name: maria, organisation: lab, roles: [master]}
  - {name: wendy, organisation: auditor, roles: [witness]}
  - {name: walter, organisation: university, roles: [witness]}
  - {name: alice, organisation: lab, roles: [holder]}
equipment:
  - {name: spare-alice, what: token, label: alice-spare, serial: 00FF-12}
  - {name: laptop, what: laptop, serial: PF-1}
steps:
  - {name: room, do: manual, text: "Nobody else is here.", by: [maria, wendy]}
  - {name: file, do: file-digest, file: keyturn, text: "The program.", by: [maria, wendy]}
  - {name: aloud, do: read-aloud, of: file, text: "Wendy reads the digest.", by: [maria, wendy, walter]}
  - {name: spare, do: prove-spare, person: alice, token: spare-alice, object: sign, proves: "Alice's spare signs", text: "Alice's spare signs.", by: [alice, wendy]}
  - {name: end, do: manual, text: "All is in the safe.", by: [maria, walter]}
`

// A room is people with keys, and a ceremony that they follow.
type room struct {
	t      testing.TB
	script string
	mode   ceremony.Mode
	run    []byte
	keys   map[string]hsm.Key           // by name; a spare is NAME-spare
	made   map[string]signoff.PublicKey // by step that makes it
	chain  *ceremony.Chain
}

func newRoom(t testing.TB, mode ceremony.Mode) *room {
	t.Helper()
	r := &room{t: t, script: script, mode: mode, run: []byte("0123456789abcdef"), keys: map[string]hsm.Key{}}
	r.begin()
	return r
}

func (r *room) begin() {
	r.t.Helper()
	var err error
	r.chain, err = ceremony.Begin(r.mode, []byte(r.script), r.run)
	r.must(err)
}

func (r *room) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *room) public(name string) signoff.PublicKey {
	r.t.Helper()
	k, err := signoff.NewPublicKey(r.key(name).Public(), hsm.ClassSelfDeclared)
	r.must(err)
	return k
}

var program = ceremony.Digest(sha256.Sum256([]byte("keyturn")))

// key is somebody's key, made when it is first asked for.
func (r *room) key(name string) hsm.Key {
	r.t.Helper()
	if r.keys[name] == nil {
		uri := "file:" + filepath.Join(r.t.TempDir(), "key.pem")
		_, err := file.Generate(uri, hsm.KindP256)
		r.must(err)
		r.keys[name], err = file.Open(uri, nil)
		r.must(err)
	}
	return r.keys[name]
}

// makes is the key that a step makes: what somebody signs with, if it is that.
func (r *room) makes(step *ceremony.Step) signoff.PublicKey {
	r.t.Helper()
	if k, ok := r.made[step.Name]; ok {
		return k
	}
	if r.made == nil {
		r.made = map[string]signoff.PublicKey{}
	}
	slot, _, err := ceremony.ParseSlot(step.Slot)
	r.must(err)
	switch name := slot.Name; slot.Use {
	case "signing":
		r.made[step.Name] = r.public(name)
	case "spare-signing":
		r.made[step.Name] = r.public(name + "-spare")
	default:
		r.made[step.Name] = r.fresh(step.Key)
	}
	return r.made[step.Name]
}

func of(name string, value any) ceremony.Finding {
	return ceremony.Finding{Name: name, Value: fmt.Sprint(value)}
}

func keyFindings(serial string, k signoff.PublicKey) []ceremony.Finding {
	return []ceremony.Finding{of("serial", serial), of("class", k.Class), of("public", base64.StdEncoding.EncodeToString(k.Encoded)), of("fingerprint", k.Fingerprint())}
}

// finds is what an honest keyturn finds in a step.
func (r *room) finds(step *ceremony.Step) []ceremony.Finding {
	r.t.Helper()
	charter := r.chain.Charter
	if charter.IsZero() {
		charter = program
	}
	switch step.Do {
	case ceremony.FileDigest:
		return []ceremony.Finding{of("digest", program), of("bytes", 7)}
	case ceremony.ReadAloud:
		d, err := r.chain.Expected(step)
		r.must(err)
		return []ceremony.Finding{of("digest", d)}
	case ceremony.ProveSpare:
		thing, _ := r.chain.Script.Thing(step.Token)
		sig, err := hsm.SignMessage(context.Background(), r.key(step.Person+"-spare"), ceremony.SpareChallenge(r.chain, step.Person))
		r.must(err)
		return append(keyFindings(thing.Serial, r.public(step.Person+"-spare")), of("signature", base64.StdEncoding.EncodeToString(sig)))
	case ceremony.MakeKey:
		thing, _ := r.chain.Script.Thing(step.Token)
		return keyFindings(thing.Serial, r.makes(step))
	case ceremony.WriteChange:
		return []ceremony.Finding{of("change", r.change())}
	case ceremony.WriteCharter, ceremony.VerifyCharter:
		return []ceremony.Finding{of("charter", charter)}
	case ceremony.Accept:
		a, err := signoff.Sign(context.Background(), r.key(step.Person), &signoff.Acceptance{Charter: charter, Person: r.public(step.Person).Fingerprint()})
		r.must(err)
		return []ceremony.Finding{of("charter", charter), of("acceptance", string(a.Line()))}
	case ceremony.Position:
		return []ceremony.Finding{of("notary", "n1"), of("size", 9), of("root", program), of("answer", "00")}
	case ceremony.DrillShare:
		return []ceremony.Finding{of("object", step.Weights), of("epoch", 1), of("index", 1), of("key", program)}
	case ceremony.VerifyKeygen:
		list := []ceremony.Finding{of("charter", charter), of("entries", 9), of("root", program), of("group", program), of("transcript", program)}
		if r.chain.Script.Held(step) {
			list = append(list, of("change", r.change()))
		}
		return list
	case ceremony.VerifyLog:
		list := []ceremony.Finding{of("charter", charter), of("entries", 9), of("root", program), of("state", program)}
		if r.chain.Script.Held(step) {
			list = append(list, of("change", r.change()))
		}
		return list
	}
	return []ceremony.Finding{}
}

// draft is the record of the next step, as it is signed unless somebody edits it.
func (r *room) draft(o ceremony.Outcome) *ceremony.Record {
	r.t.Helper()
	d, err := r.chain.Draft(o)
	r.must(err)
	step := r.chain.Next()
	if o == ceremony.Passed {
		d.Findings = r.finds(step)
	} else {
		d.Exceptions = []ceremony.Exception{{"failure", "it did not work", "maria"}}
	}
	for _, name := range r.chain.Script.Signers(step, o) {
		d.Signers = append(d.Signers, ceremony.Signer{Name: name, Key: r.public(name)})
	}
	d.Begun, d.Ended = 1_790_000_000+int64(60*d.Number), 1_790_000_030+int64(60*d.Number)
	d.Display = sha256.Sum256([]byte(ceremony.Text(r.chain.Script, d)))
	return d
}

// signs writes a record and has people sign it, whoever it asks for.
func (r *room) signs(d *ceremony.Record, people ...string) []*dsse.Envelope {
	r.t.Helper()
	payload, err := d.Write()
	r.must(err)
	var out []*dsse.Envelope
	for _, name := range people {
		e, err := dsse.Sign(context.Background(), r.key(name), payload)
		r.must(err)
		out = append(out, e)
	}
	return out
}

func signersOf(d *ceremony.Record) []string {
	var out []string
	for _, s := range d.Signers {
		out = append(out, s.Name)
	}
	return out
}

// step does the next step with the given outcome.
func (r *room) step(o ceremony.Outcome) {
	r.t.Helper()
	d := r.draft(o)
	signed := r.signs(d, signersOf(d)...)
	r.must(r.chain.Add(signed[0].Payload, signed))
}

// through does all steps that are left.
func (r *room) through() *room {
	r.t.Helper()
	for r.chain.Next() != nil {
		r.step(ceremony.Passed)
	}
	return r
}

func (r *room) transcript() *ceremony.Transcript { return r.chain.Transcript([]byte(r.script)) }

// parse reads a transcript as a stranger does.
func parse(t testing.TB, x *ceremony.Transcript) (*ceremony.Report, error) {
	t.Helper()
	b, err := x.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return ceremony.Parse(b)
}

// refused wants the transcript to be refused for the reason.
func refused(t testing.TB, x *ceremony.Transcript, reason string) {
	t.Helper()
	_, err := parse(t, x)
	wants(t, err, reason)
}

func wants(t testing.TB, err error, reason string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), reason) {
		t.Errorf("%v, want %q", err, reason)
	}
}

func (r *room) anchors() ceremony.Anchors {
	a := ceremony.Anchors{}
	for _, name := range []string{"maria", "wendy", "walter", "alice"} {
		a.Add(name, r.public(name).Fingerprint())
	}
	a.Add("alice", r.public("alice-spare").Fingerprint())
	return a
}

// edited is the script with one text in the place of another.
func edited(t testing.TB, old, new string) string {
	t.Helper()
	if strings.Count(script, old) != 1 {
		t.Fatalf("%q is not once in the script", old)
	}
	return strings.Replace(script, old, new, 1)
}
