package ceremony_test

import (
	"crypto/ecdh"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// changeScript has erin join, bob leave, carol get a spare and alice another
// first token.
const changeScript = `version: 2
name: change-lab
purpose: membership
title: A change of the lab
charter: "sha256:89ed000000000000000000000000000000000000000000000000000000000001"
people:
  - {name: maria, organisation: lab, roles: [master]}
  - {name: wendy, organisation: auditor, roles: [witness]}
  - {name: alice, organisation: lab, roles: [holder], token: token-alice, object: sign}
  - {name: carol, organisation: lab, roles: [holder]}
  - {name: erin, organisation: partner, roles: [holder], token: token-erin, object: sign}
equipment:
  - {name: token-erin, what: token, label: erin, serial: "1"}
  - {name: token-erin-spare, what: token, label: erin-spare, serial: "2"}
  - {name: token-carol, what: token, label: carol, serial: "3"}
  - {name: token-alice, what: token, label: alice, serial: "4"}
  - {name: spare-alice, what: token, label: alice-spare, serial: 00FF-12}
change:
  join:
    - {name: erin, organisation: partner, roles: [research, security]}
  leave: [bob]
  retire:
    - {person: alice, key: "sha256:1bd5000000000000000000000000000000000000000000000000000000000002"}
steps:
  - {name: erin-sign, do: make-key, token: token-erin, object: sign, key: p256, slot: people erin signing, text: "A key.", by: [maria, wendy]}
  - {name: erin-open, do: make-key, token: token-erin, object: open, key: ecdh, slot: people erin exchange, text: "A key.", by: [maria, wendy]}
  - {name: spare-sign, do: make-key, token: token-erin-spare, object: sign, key: p256, slot: people erin spare-signing, text: "A key.", by: [maria, wendy]}
  - {name: spare-open, do: make-key, token: token-erin-spare, object: open, key: ecdh, slot: people erin spare-exchange, text: "A key.", by: [maria, wendy]}
  - {name: carol-sign, do: make-key, token: token-carol, object: sign, key: p256, slot: people carol spare-signing, text: "A key.", by: [maria, wendy]}
  - {name: alice-sign, do: make-key, token: token-alice, object: sign, key: p256, slot: people alice signing, text: "A key.", by: [maria, wendy]}
  - {name: spare, do: prove-spare, person: alice, token: spare-alice, object: sign, log: before, proves: "Alice's spare signs", text: "Alice's spare signs.", by: [alice, wendy]}
  - {name: erin-spare, do: prove-spare, person: erin, token: token-erin-spare, object: sign, proves: "Erin's spare signs", text: "Erin's spare signs.", by: [erin, wendy]}
  - {name: carol-spare, do: prove-spare, person: carol, token: token-carol, object: sign, proves: "Carol's spare signs", text: "Carol's spare signs.", by: [carol, wendy]}
  - {name: change, do: write-change, text: "The change.", by: [maria, wendy]}
  - {name: after, do: verify-log, log: log, proves: "the log holds it", text: "The log.", by: [maria, wendy]}
`

// changeScriptOne is a change as scripts of version 1 had it.
const changeScriptOne = `version: 1
name: change-lab
purpose: membership
title: A change of the lab
charter: "sha256:89ed000000000000000000000000000000000000000000000000000000000001"
people:
  - {name: maria, organisation: lab, roles: [master]}
  - {name: wendy, organisation: auditor, roles: [witness]}
  - {name: alice, organisation: lab, roles: [holder]}
equipment:
  - {name: token-erin, what: token, label: erin, serial: "1"}
  - {name: token-erin-spare, what: token, label: erin-spare, serial: "2"}
  - {name: token-carol, what: token, label: carol, serial: "3"}
  - {name: token-alice, what: token, label: alice, serial: "4"}
  - {name: spare-alice, what: token, label: alice-spare, serial: 00FF-12}
change:
  join:
    - {name: erin, organisation: partner, roles: [research, security]}
  leave: [bob]
  retire:
    - {person: alice, key: "sha256:1bd5000000000000000000000000000000000000000000000000000000000002"}
steps:
  - {name: erin-sign, do: make-key, token: token-erin, object: sign, key: p256, slot: people erin signing, text: "A key.", by: [maria, wendy]}
  - {name: erin-open, do: make-key, token: token-erin, object: open, key: ecdh, slot: people erin exchange, text: "A key.", by: [maria, wendy]}
  - {name: spare-sign, do: make-key, token: token-erin-spare, object: sign, key: p256, slot: people erin spare-signing, text: "A key.", by: [maria, wendy]}
  - {name: spare-open, do: make-key, token: token-erin-spare, object: open, key: ecdh, slot: people erin spare-exchange, text: "A key.", by: [maria, wendy]}
  - {name: carol-sign, do: make-key, token: token-carol, object: sign, key: p256, slot: people carol spare-signing, text: "A key.", by: [maria, wendy]}
  - {name: alice-sign, do: make-key, token: token-alice, object: sign, key: p256, slot: people alice signing, text: "A key.", by: [maria, wendy]}
  - {name: spare, do: prove-spare, person: alice, token: spare-alice, object: sign, proves: "Alice's spare signs", text: "Alice's spare signs.", by: [alice, wendy]}
  - {name: change, do: write-change, text: "The change.", by: [maria, wendy]}
  - {name: after, do: verify-log, log: log, proves: "the log holds it", text: "The log.", by: [maria, wendy]}
`

var retired = ceremony.Digest{0x1b, 0xd5, 31: 2}

func newChange(t *testing.T) *room {
	r := newRoom(t, ceremony.Real)
	r.script = changeScript
	r.begin()
	for i := range r.chain.Script.Steps {
		if s := &r.chain.Script.Steps[i]; s.Do == ceremony.MakeKey {
			r.makes(s)
		}
	}
	return r
}

func (r *room) fresh(kind hsm.Kind) signoff.PublicKey {
	r.t.Helper()
	uri := "file:" + filepath.Join(r.t.TempDir(), "key.pem")
	c, err := file.Generate(uri, kind)
	r.must(err)
	k, err := signoff.NewPublicKey(c, hsm.ClassSelfDeclared)
	r.must(err)
	return k
}

func (r *room) change() ceremony.Digest {
	r.t.Helper()
	c, err := r.chain.Change()
	r.must(err)
	d, err := c.Sum()
	r.must(err)
	return d
}

// roster is what the log has after the change. It shares no slices.
func (r *room) roster() ceremony.Roster {
	token := func(name string) signoff.Token { return signoff.Token{Signing: r.public(name)} }
	m := r.made
	return ceremony.Roster{
		People: []signoff.Person{
			{Name: "carol", Organisation: "lab", Roles: []string{"safety"}, Token: token("walter"), Spares: []signoff.Token{{Signing: m["carol-sign"]}}},
			{Name: "alice", Organisation: "lab", Roles: []string{"safety"}, Token: signoff.Token{Signing: m["alice-sign"]}, Spares: []signoff.Token{token("alice-spare")}},
			{Name: "erin", Organisation: "partner", Roles: []string{"research", "security"}, Token: signoff.Token{Signing: m["erin-sign"], Exchange: m["erin-open"]},
				Spares: []signoff.Token{{Signing: m["spare-sign"], Exchange: m["spare-open"]}}}},
		Ever: map[ceremony.Digest]string{{7}: "bob", retired: "alice"},
	}
}

// Whatever stands in another place than the ceremony made it for is refused, by
// the name of its step or person.
func TestAttackMembershipKeySwapped(t *testing.T) {
	r := newChange(t).through()
	r.must(r.chain.Held(r.roster()))
	report, err := parse(t, r.transcript())
	r.must(err)
	r.must(report.Counts(report.Charter))
	r.must(report.Holds(&signoff.Charter{})) // its keys are the log's, not the charter's
	other, open := r.fresh(hsm.KindP256), r.fresh(hsm.KindECDH)
	for _, test := range []struct {
		do     func(x *ceremony.Roster, carol, alice, erin *signoff.Person)
		reason string
	}{
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) { p.Signing = other }, "step erin-sign made key " + r.made["erin-sign"].Fingerprint().String()},
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) { p.Exchange = open }, "step erin-open made key"},
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) { p.Exchange = signoff.PublicKey{} }, "step erin-open made key"},
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) { p.Spares[0].Signing = other }, "step spare-sign made key"},
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) { p.Spares[0].Exchange = open }, "step spare-open made key"},
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) { p.Spares = nil }, "step spare-sign made key"},
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) { p.Token, p.Spares[0] = p.Spares[0], p.Token }, "step erin-sign made key"},
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) {
			p.Exchange, p.Spares[0].Exchange = p.Spares[0].Exchange, p.Exchange
		}, "step erin-open made key"},
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) {
			p.Spares = append(p.Spares, signoff.Token{Signing: other, Exchange: open})
		}, "3 tokens of erin, this ceremony made 2: key " + other.Fingerprint().String()},
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) { p.Roles = append(p.Roles, "leadership") }, "has erin of partner as research, security, leadership"},
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) { p.Organisation = "lab" }, "has erin of lab"},
		{func(_ *ceremony.Roster, _, _, p *signoff.Person) { p.Name = "eryn" }, "the log has nobody of that name"},
		{func(_ *ceremony.Roster, p, _, _ *signoff.Person) { p.Spares[0].Signing = other }, "step carol-sign made key"},
		{func(_ *ceremony.Roster, p, _, _ *signoff.Person) { p.Spares[0].Exchange = open }, "has a key as people carol spare-exchange, and no step made one"},
		{func(_ *ceremony.Roster, p, _, _ *signoff.Person) { p.Token, p.Spares[0] = p.Spares[0], p.Token }, "step carol-sign made key"},
		{func(_ *ceremony.Roster, _, p, _ *signoff.Person) { p.Signing = other }, "step alice-sign made key"},
		{func(_ *ceremony.Roster, _, p, _ *signoff.Person) { p.Token, p.Spares[0] = p.Spares[0], p.Token }, "step alice-sign made key"},
		{func(x *ceremony.Roster, p, _, _ *signoff.Person) { x.Ever[p.ID()], p.Name = "bob", "bob" }, "step carol-sign made key"},
		{func(x *ceremony.Roster, _, _, _ *signoff.Person) {
			x.People = append(x.People, signoff.Person{Name: "bob", Token: signoff.Token{Signing: other}})
		}, "the log has bob among its people"},
		{func(x *ceremony.Roster, _, _, _ *signoff.Person) { delete(x.Ever, ceremony.Digest{7}) }, "never had anybody of that name"},
		{func(x *ceremony.Roster, _, _, _ *signoff.Person) { x.Ever[retired] = "carol" }, "never had it as theirs"},
	} {
		x := r.roster()
		test.do(&x, &x.People[0], &x.People[1], &x.People[2])
		wants(t, r.chain.Held(x), test.reason)
	}
}

// A token that was to be given up, and is not.
func TestAttackMembershipTokenKept(t *testing.T) {
	r := newChange(t)
	kept := r.public("mallory")
	r.script = strings.Replace(changeScript, retired.String(), kept.Fingerprint().String(), 1)
	r.begin()
	r.through()
	x := r.roster()
	x.Ever[kept.Fingerprint()] = "alice"
	r.must(r.chain.Held(x))
	x.People[1].Spares = append(x.People[1].Spares, signoff.Token{Signing: kept})
	wants(t, r.chain.Held(x), "the log has it as theirs still")
}

// What the records say of the change is derived from them again, and a key that
// was not made has no place.
func TestAttackMembershipOtherChangeRecorded(t *testing.T) {
	for _, at := range []string{"change", "after"} {
		r := newChange(t)
		for r.chain.Next().Name != at {
			r.step(ceremony.Passed)
		}
		d := r.draft(ceremony.Passed)
		i := slices.IndexFunc(d.Findings, func(f ceremony.Finding) bool { return f.Name == "change" })
		d.Findings[i].Value = program.String()
		d.Display = ceremony.SumScript([]byte(ceremony.Text(r.chain.Script, d)))
		wants(t, r.chain.Check(d), "the keys made here give "+r.change().String())
	}
	r := newChange(t)
	d := r.draft(ceremony.Waived)
	wants(t, r.chain.Check(d), "a later step compares what this make-key makes: it cannot be waived")
	_, err := r.chain.Change()
	wants(t, err, "step erin-sign did not pass")
	wants(t, r.chain.Held(r.roster()), "step erin-sign did not pass")
}

func TestChangeScriptRefused(t *testing.T) {
	write := "  - {name: change, do: write-change, text: \"The change.\", by: [maria, wendy]}\n"
	for _, test := range []struct{ old, new, reason string }{
		{write, "", "want a write-change step"},
		{write, write + strings.Replace(write, "name: change", "name: again", 1), "a second time"},
		{"name: after, do: verify-log, log: log, proves: \"the log holds it\"", "name: after, do: manual", "no verify-log step after change"},
		{"slot: people erin signing", "slot: log", "takes a ed25519 key"},
		{"key: p256, slot: people erin signing", "key: ed25519, slot: log", "is no place of a person"},
		{"slot: people erin exchange", "slot: people erin signing", "takes a p256 key"},
		{"slot: people erin signing, ", "", "erin joins and no step makes a key"},
		{"slot: people erin spare-signing, ", "", "on a token without a signing key"},
		{"slot: people erin spare-exchange, ", "", "a key without a slot: nothing would compare it"},
		{"token: token-erin, object: open", "token: token-carol, object: open", "one token has both"},
		{"roles: [holder], token: token-erin, object: sign", "roles: [guest], token: token-erin, object: sign", "erin gets a key and is no holder"},
		{"roles: [holder], token: token-erin, object: sign", "roles: [holder], token: token-erin, object: other", "erin does not sign with the key that is made"},
		{"roles: [holder], token: token-erin, object: sign", "roles: [holder, witness], token: token-erin, object: sign", "nobody watches over their own keys"},
		{"person: carol, token: token-carol, object: sign, proves: \"Carol's spare signs\"", "person: carol, token: token-erin-spare, object: sign, proves: \"Carol's spare signs\"", "no later prove-spare, with proves, has carol sign"},
		{"log: before, ", "", "name the log that has it"},
		{"object: sign, proves: \"Erin's spare signs\"", "object: sign, log: before, proves: \"Erin's spare signs\"", "so no log has it"},
		{"slot: people carol spare-signing", "slot: people bob spare-signing", "bob leaves, and a step makes a key"},
		{"slot: people carol spare-signing", "slot: people carol signing", "retire does not say"},
		{"slot: people carol spare-signing", "slot: people alice spare-signing", "one request brings one"},
		{"leave: [bob]", "leave: [erin]", "erin joins and leaves"},
		{"leave: [bob]", "leave: [bob, bob]", "bob leaves and leaves"},
		{"leave: [bob]", "leave: [alice]", "alice leaves and gives up a token"},
		{"leave: [bob]", "leave: [\"b b\"]", "person"},
		{"organisation: partner, roles: [research, security]", "organisation: \"a b\", roles: [research, security]", "organisation"},
		{"roles: [research, security]", "roles: []", "0 roles"},
		{retired.String(), "sha256:" + strings.Repeat("0", 64), "want the fingerprint"},
		{"purpose: membership", "purpose: drill", "only a membership ceremony"},
	} {
		if strings.Count(changeScript, test.old) != 1 {
			t.Fatalf("%q is not once in the script", test.old)
		}
		_, err := ceremony.ParseScript([]byte(strings.Replace(changeScript, test.old, test.new, 1)))
		wants(t, err, test.reason)
	}
}

// The canonical form of a change, of 2026-11-26, whose digest people sign.
func TestGoldenChange(t *testing.T) {
	r := newRoom(t, ceremony.Real)
	r.script, r.made = changeScriptOne, map[string]signoff.PublicKey{}
	r.begin()
	for _, s := range r.chain.Script.Steps {
		name := s.Name
		if s.Do != ceremony.MakeKey {
			continue
		}
		seed := sha256.Sum256([]byte(name))
		k, err := ecdh.P256().NewPrivateKey(seed[:])
		r.must(err)
		r.made[name], err = signoff.NewPublicKey(k.PublicKey(), hsm.ClassSelfDeclared)
		r.must(err)
	}
	r.through()
	c, err := r.chain.Change()
	r.must(err)
	got, err := dsse.Encode(c)
	r.must(err)
	path := filepath.Join("testdata", "change.json")
	if *update {
		r.must(os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	r.must(err)
	if string(got) != string(want) {
		t.Errorf("a change is written as\n%s\nwant\n%s", got, want)
	}
}
