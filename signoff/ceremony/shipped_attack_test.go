package ceremony_test

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/ceremony/paper"
)

// shipped runs a test on a room for each script that is shipped: a genesis, the
// notaries' keys, a change of people, one of notaries, and a drill.
func shipped(t *testing.T, test func(t *testing.T, text string)) {
	t.Helper()
	files, err := filepath.Glob("../../deploy/ceremony/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d scripts: %v", len(files), err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".yaml"), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			test(t, string(b))
		})
	}
}

func roomOf(t testing.TB, mode ceremony.Mode, text string) *room {
	t.Helper()
	r := newRoom(t, mode)
	r.script = text
	r.begin()
	return r
}

// A ceremony of each kind that is followed counts; one that is cut anywhere, has
// a step left out or moved, or has one of another ceremony, another run or a
// rehearsal in it, does not.
func TestAttackShippedScriptsCutAndMixed(t *testing.T) {
	shipped(t, func(t *testing.T, text string) {
		real := roomOf(t, ceremony.Real, text)
		x := real.through().transcript()
		report, err := parse(t, x)
		real.must(err)
		real.must(report.Counts(report.Charter))

		others := map[string]*room{"a rehearsal is never the real thing": roomOf(t, ceremony.Rehearsal, text), "of run": roomOf(t, ceremony.Real, text),
			"the script was changed": roomOf(t, ceremony.Real, strings.Replace(text, "title: ", "title: Another. ", 1))}
		others["of run"].run = []byte("another run: 16b")
		all := spans(t, x)
		few := 1 + len(all)/12 // of a long script some steps do
		for reason, other := range others {
			other.keys, other.made = real.keys, real.made // the same people, tokens and keys
			other.begin()
			y := other.through().transcript()
			theirs := spans(t, y)
			for i, s := range all {
				if i%few != 0 {
					continue
				}
				from := theirs[i]
				mixed := clone(x)
				mixed.Records = slices.Concat(x.Records[:s[0]], y.Records[from[0]:from[1]], x.Records[s[1]:])
				refused(t, mixed, reason)
			}
		}
		for i, s := range all {
			if i%few != 0 {
				continue
			}
			y := clone(x)
			y.Records = y.Records[:s[0]]
			refused(t, y, "the transcript ends before step "+real.chain.Script.Steps[i].Name)
			if i == len(all)-1 {
				continue
			}
			y.Records = slices.Concat(x.Records[:s[0]], x.Records[s[1]:])
			refused(t, y, "a record is missing or out of order")
			next := all[i+1]
			y.Records = slices.Concat(x.Records[:s[0]], x.Records[next[0]:next[1]], x.Records[s[0]:s[1]], x.Records[next[1]:])
			refused(t, y, "a record is missing or out of order")
		}
		other := others["a rehearsal is never the real thing"]
		report, err = parse(t, other.transcript())
		real.must(err)
		wants(t, report.Counts(report.Charter), "this is a REHEARSAL")
	})
}

// In no kind of ceremony is there a way to the end past a step that proves or
// makes something: it is not waived, and a ceremony that was aborted in it counts
// for nothing. Nor does a record hold with the word of somebody else than its
// witness.
func TestAttackShippedScriptsEndedEarly(t *testing.T) {
	shipped(t, func(t *testing.T, text string) {
		r := roomOf(t, ceremony.Real, text)
		proved := 0
		for step := r.chain.Next(); step != nil; step = r.chain.Next() {
			d := r.draft(ceremony.Waived)
			signed := r.signs(d, signersOf(d)...)
			if step.Proves != "" || step.Slot != "" || step.Do == ceremony.WriteCharter || step.Do == ceremony.WriteChange {
				proved++
				wants(t, r.chain.Add(signed[0].Payload, signed), "it cannot be waived")
			} else {
				r.must(r.chain.Check(d))
			}

			d = r.draft(ceremony.Passed)
			for i, name := range signersOf(d) {
				if p, _ := r.chain.Script.Person(name); !p.Is(ceremony.Witness) {
					continue
				}
				names := signersOf(d)
				names[i] = "mallory"
				signed := r.signs(d, names...)
				wants(t, r.chain.Add(signed[0].Payload, signed), "signature of "+name+": dsse: verify")
			}

			d = r.draft(ceremony.Aborted)
			end := r.transcript()
			for _, e := range r.signs(d, signersOf(d)...) {
				end.Records = append(end.Records, string(e.Line()))
			}
			report, err := parse(t, end)
			r.must(err)
			wants(t, report.Counts(report.Charter), "it was aborted in step "+step.Name)
			r.step(ceremony.Passed)
		}
		if proved == 0 {
			t.Error("the script proves nothing")
		}
	})
}

// Nobody is holder and witness, by role or by a key under another name.
func TestAttackHolderAsWitness(t *testing.T) {
	_, err := ceremony.ParseScript([]byte(strings.Replace(script, "roles: [holder]", "roles: [holder, witness]", 1)))
	wants(t, err, "alice is a holder, and master or witness too")
	_, err = ceremony.ParseScript([]byte(strings.NewReplacer("roles: [holder]", "roles: [holder, master]", "roles: [master]", "roles: [guest]").Replace(script)))
	wants(t, err, "alice is a holder, and master or witness too")

	// Wendy signs with alice's spare: before it is proved, and after.
	for _, first := range []bool{true, false} {
		r := newRoom(t, ceremony.Real)
		r.keys["alice-spare"] = r.key("walter")
		if first {
			r.keys["alice-spare"] = r.key("wendy")
		}
		for range 3 {
			r.step(ceremony.Passed)
		}
		d := r.draft(ceremony.Passed)
		signed := r.signs(d, signersOf(d)...)
		wants(t, r.chain.Add(signed[0].Payload, signed), "want one that nobody else signs with")
	}
	r := roomOf(t, ceremony.Real, strings.Replace(script, "by: [maria, wendy, walter]", "by: [maria, wendy]", 1))
	for range 4 {
		r.step(ceremony.Passed)
	}
	r.keys["walter"] = r.keys["alice-spare"]
	d := r.draft(ceremony.Passed)
	signed := r.signs(d, signersOf(d)...)
	wants(t, r.chain.Add(signed[0].Payload, signed), "walter signs with key "+r.public("walter").Fingerprint().String()+", which is alice's")

	// A witness whom nobody knows by name, and whose key the log knows as another's.
	r = newRoom(t, ceremony.Real)
	report, err := parse(t, r.through().transcript())
	r.must(err)
	a := r.anchors()
	delete(a, "walter")
	a.Add("bob", r.public("walter").Fingerprint())
	wants(t, report.Anchor(a, false), "which is bob's")
}

// A token with the spare's label and serial number, and another key on it.
func TestAttackSpareOfAnotherKey(t *testing.T) {
	r := newChange(t)
	for r.chain.Next().Name != "erin-spare" {
		r.step(ceremony.Passed)
	}
	made := r.public("erin-spare").Fingerprint()
	r.keys["erin-spare"] = r.key("mallory")
	d := r.draft(ceremony.Passed)
	signed := r.signs(d, signersOf(d)...)
	wants(t, r.chain.Add(signed[0].Payload, signed), "the ceremony made "+made.String()+" as their spare")

	// The first token in the place of the spare, where the log is to have it.
	r = newRoom(t, ceremony.Real)
	r.keys["alice-spare"] = r.key("alice")
	for range 3 {
		r.step(ceremony.Passed)
	}
	d = r.draft(ceremony.Passed)
	signed = r.signs(d, signersOf(d)...)
	wants(t, r.chain.Add(signed[0].Payload, signed), "with which alice signs")

	// A key that the log does not have as alice's.
	r = newRoom(t, ceremony.Real)
	report, err := parse(t, r.through().transcript())
	r.must(err)
	a := r.anchors()
	a["alice"] = a["alice"][:1]
	wants(t, report.Anchor(a, false), "step spare: alice's spare signed with key")
}

// One key in two places.
func TestAttackOneKeyMadeTwice(t *testing.T) {
	r := newChange(t)
	r.made["spare-open"] = r.made["erin-open"]
	for r.chain.Next().Name != "spare-open" {
		r.step(ceremony.Passed)
	}
	wants(t, r.chain.Check(r.draft(ceremony.Passed)), "which is erin's already")
}

// A log that is older than what the ceremony saw, or another.
func TestAttackOlderOrOtherLog(t *testing.T) {
	text, err := os.ReadFile("../../deploy/ceremony/notaries.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for reason, edit := range map[string]func(*ceremony.Record){
		"found a log of 8 entries, step shares found 9: the copy is older":        func(d *ceremony.Record) { d.Findings[1].Value = "8" },
		"found a log with another root than step shares":                          func(d *ceremony.Record) { d.Findings[2].Value = ceremony.Digest{1}.String() },
		"found entries \"many\", want a number":                                   func(d *ceremony.Record) { d.Findings[1].Value = "many" },
		"found charter sha256:01000000000000000000000000000000000000000000000000": func(d *ceremony.Record) { d.Findings[0].Value = ceremony.Digest{1}.String() },
	} {
		r := roomOf(t, ceremony.Real, string(text))
		for r.chain.Next().Name != "after" {
			r.step(ceremony.Passed)
		}
		d := r.draft(ceremony.Passed)
		edit(d)
		d.Display = sha256.Sum256([]byte(ceremony.Text(r.chain.Script, d)))
		wants(t, r.chain.Check(d), reason)
	}
}

// newNotaries is the shipped change of notaries, followed, with the councils
// before and after it.
func newNotaries(t *testing.T) (*room, ceremony.Roster) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/ceremony/notaries.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r := roomOf(t, ceremony.Real, string(text)).through()
	notary := func(name string) signoff.Notary {
		return signoff.Notary{Name: name, Organisation: "lab", Signing: r.public(name), Exchange: r.fresh(hsm.KindECDH), Witness: r.fresh(hsm.KindEd25519)}
	}
	before := signoff.Council{Notaries: []signoff.Notary{notary("n1"), notary("n2"), notary("n3"), notary("n4")}, Faults: 1}
	n5 := signoff.Notary{Name: "n5", Organisation: "university", Signing: r.made["n5-sign"], Exchange: r.made["n5-exchange"], Witness: r.made["n5-witness"]}
	after := signoff.Council{Notaries: append(slices.Clone(before.Notaries[:3]), n5), Faults: 1}
	return r, ceremony.Roster{Councils: []signoff.Council{before, after}}
}

// Whatever the log has otherwise than the script says of its notaries.
func TestAttackNotarySwapped(t *testing.T) {
	r, roster := newNotaries(t)
	r.must(r.chain.Held(roster))
	report, err := parse(t, r.transcript())
	r.must(err)
	var page bytes.Buffer
	r.must(paper.Write(&page, report))
	for _, want := range []string{"<th>joins</th><td>notary n5 of university", "<th>leaves</th><td>notary n4"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page does not say %s", want)
		}
	}
	for reason, edit := range map[string]func(before, after *signoff.Council){
		"step n5-sign made key":                                  func(_, c *signoff.Council) { c.Notaries[3].Signing = r.fresh(hsm.KindP256) },
		"step n5-exchange made key":                              func(_, c *signoff.Council) { c.Notaries[3].Exchange = r.fresh(hsm.KindECDH) },
		"step n5-witness made key":                               func(_, c *signoff.Council) { c.Notaries[3].Witness = r.fresh(hsm.KindEd25519) },
		"this script says of university":                         func(_, c *signoff.Council) { c.Notaries[3].Organisation = "lab" },
		"the log has none of that name in office":                func(_, c *signoff.Council) { c.Notaries[3].Name = "n6" },
		"n4 leaves by this script, and the log has it in office": func(b, c *signoff.Council) { c.Notaries = append(c.Notaries, b.Notaries[3]) },
		"notary n2 in office no more":                            func(_, c *signoff.Council) { c.Notaries = slices.Delete(c.Notaries, 1, 2) },
		"has notary n2 in office, who did not join by this":      func(_, c *signoff.Council) { c.Notaries[1].Exchange = r.fresh(hsm.KindECDH) },
		"has notary n7 in office, who did not join by this":      func(_, c *signoff.Council) { c.Notaries[1].Name = "n7" },
		"n4 leaves by this script, and was not in office":        func(b, _ *signoff.Council) { b.Notaries = b.Notaries[:3] },
		"lets 2 notaries be hostile, this script 1":              func(_, c *signoff.Council) { c.Faults = 2 },
	} {
		before, after := roster.Councils[0], roster.Councils[1]
		before.Notaries, after.Notaries = slices.Clone(before.Notaries), slices.Clone(after.Notaries)
		edit(&before, &after)
		wants(t, r.chain.Held(ceremony.Roster{Councils: []signoff.Council{before, after}}), reason)
	}
	wants(t, r.chain.Held(ceremony.Roster{Councils: roster.Councils[:1]}), "the log has those of its charter still")
}

// madeScript makes a key for each place that is not a person's, in a drill.
const madeScript = `version: 2
name: new-keys
purpose: drill
title: New keys for the coordinator
charter: "sha256:89ed000000000000000000000000000000000000000000000000000000000001"
people:
  - {name: maria, organisation: lab, roles: [master]}
  - {name: wendy, organisation: auditor, roles: [witness]}
  - {name: n1, organisation: lab, roles: [holder]}
equipment:
  - {name: token, what: token, label: new, serial: "1"}
steps:
  - {name: charter, do: verify-charter, file: charter.json, text: "The charter.", by: [maria, wendy]}
  - {name: log-key, do: make-key, token: token, object: log, key: ed25519, slot: log, text: "A key.", by: [maria, wendy]}
  - {name: tls-key, do: make-key, token: token, object: tls, key: p256, slot: tls, text: "A key.", by: [maria, wendy]}
  - {name: boot-key, do: make-key, token: token, object: boot, key: p256, slot: boot, text: "A key.", by: [maria, wendy]}
  - {name: exchange, do: make-key, token: token, object: exchange, key: ecdh, slot: notaries n1 exchange, text: "A key.", by: [maria, wendy]}
  - {name: position, do: position, file: position.json, proves: "n1 states its position", text: "The position.", by: [n1, wendy]}
  - {name: log, do: verify-log, log: log, proves: "the log has these keys", text: "The log.", by: [n1, maria, wendy]}
`

// What any ceremony made is looked for in the log: the coordinator's keys and a
// notary's as well.
func TestAttackMadeKeyNotInTheLog(t *testing.T) {
	r := roomOf(t, ceremony.Real, madeScript).through()
	if step, _ := r.chain.Script.Step("log"); !r.chain.Script.Compares(step) {
		t.Fatal("the log is not compared")
	}
	roster := func() ceremony.Roster {
		n1 := signoff.Notary{Name: "n1", Exchange: r.made["exchange"]}
		return ceremony.Roster{Log: r.made["log-key"], Boot: r.made["boot-key"], TLS: []ceremony.Digest{r.made["tls-key"].Fingerprint()},
			Councils: []signoff.Council{{Notaries: []signoff.Notary{n1}}}}
	}
	r.must(r.chain.Held(roster()))
	other := r.fresh(hsm.KindP256)
	for reason, edit := range map[string]func(*ceremony.Roster){
		"does not have it as log":                  func(x *ceremony.Roster) { x.Log = other },
		"does not have it as boot":                 func(x *ceremony.Roster) { x.Boot = signoff.PublicKey{} },
		"does not have it as tls":                  func(x *ceremony.Roster) { x.TLS[0] = other.Fingerprint() },
		"does not have it as notaries n1 exchange": func(x *ceremony.Roster) { x.Councils[0].Notaries[0].Exchange = other },
		"step exchange made key":                   func(x *ceremony.Roster) { x.Councils = nil },
	} {
		x := roster()
		edit(&x)
		wants(t, r.chain.Held(x), reason)
	}
	for _, test := range []struct{ old, new, reason string }{
		{`proves: "the log has these keys", `, "", "want a later verify-log, with proves"},
		{", slot: log", "", "a key without a slot"},
		{"  - {name: log, do: verify-log", "  - {name: more, do: make-key, token: token, object: more, key: ecdh, slot: notaries n2 exchange, text: x, by: [maria, wendy]}\n  - {name: log, do: verify-log", ""},
	} {
		_, err := ceremony.ParseScript([]byte(strings.Replace(madeScript, test.old, test.new, 1)))
		if test.reason == "" {
			r.must(err)
			continue
		}
		wants(t, err, test.reason)
	}
	_, err := ceremony.ParseScript([]byte(madeScript + "  - {name: more, do: make-key, token: token, object: more, key: ecdh, slot: notaries n2 exchange, text: x, by: [maria, wendy]}\n"))
	wants(t, err, "step more makes a key, and no later verify-log or verify-keygen")
}
