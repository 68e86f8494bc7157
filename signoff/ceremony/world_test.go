package ceremony_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"flag"
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
const script = `version: 1
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
	for _, name := range []string{"maria", "wendy", "walter", "alice", "alice-spare", "mallory"} {
		uri := "file:" + filepath.Join(t.TempDir(), name+".pem")
		_, err := file.Generate(uri, hsm.KindP256)
		r.must(err)
		r.keys[name], err = file.Open(uri, nil)
		r.must(err)
	}
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
	k, err := signoff.NewPublicKey(r.keys[name].Public(), hsm.ClassSelfDeclared)
	r.must(err)
	return k
}

var program = ceremony.Digest(sha256.Sum256([]byte("keyturn")))

// finds is what an honest keyturn finds in a step.
func (r *room) finds(step *ceremony.Step) []ceremony.Finding {
	switch step.Do {
	case ceremony.FileDigest:
		return []ceremony.Finding{{"digest", program.String()}, {"bytes", "7"}}
	case ceremony.ReadAloud:
		return []ceremony.Finding{{"digest", program.String()}}
	case ceremony.ProveSpare:
		key := r.public("alice-spare")
		sig, err := hsm.SignMessage(context.Background(), r.keys["alice-spare"], ceremony.SpareChallenge(r.chain, "alice"))
		r.must(err)
		return []ceremony.Finding{{"serial", "00FF-12"}, {"class", "self-declared"}, {"public", base64.StdEncoding.EncodeToString(key.Encoded)},
			{"fingerprint", key.Fingerprint().String()}, {"signature", base64.StdEncoding.EncodeToString(sig)}}
	case ceremony.MakeKey:
		key := r.made[step.Name]
		thing, _ := r.chain.Script.Thing(step.Token)
		return []ceremony.Finding{{"serial", thing.Serial}, {"class", string(key.Class)}, {"public", base64.StdEncoding.EncodeToString(key.Encoded)},
			{"fingerprint", key.Fingerprint().String()}}
	case ceremony.WriteChange:
		return []ceremony.Finding{{"change", r.change().String()}}
	case ceremony.VerifyLog:
		return []ceremony.Finding{{"charter", r.chain.Charter.String()}, {"change", r.change().String()}, {"entries", "9"}, {"root", program.String()}, {"state", program.String()}}
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
		e, err := dsse.Sign(context.Background(), r.keys[name], payload)
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
