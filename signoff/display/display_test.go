package display_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/ima"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/policy"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/display"
)

type Digest = signoff.Digest

// The texts in testdata are what people sign: format "keyturn display 1",
// recorded 2026-11-24, people-hybrid 2026-11-26. A change to one of them is a new format.
var update = flag.Bool("update", false, "write the golden texts anew")

func digest(s string) Digest { return sha256.Sum256([]byte(s)) }

func key(name string) signoff.PublicKey {
	return signoff.PublicKey{Encoded: []byte(name), Class: "software"}
}

// fido is a key in an authenticator, recorded 2026-11-26.
func fido(name string) signoff.PublicKey {
	seed := digest(name)
	k, err := signoff.NewPublicKey(&hsm.SecurityKey{Key: ed25519.NewKeyFromSeed(seed[:]).Public(), Application: "ssh:keyturn"}, "witnessed")
	if err != nil {
		panic(err)
	}
	return k
}

var charter = &signoff.Charter{Name: "lab", Development: true, People: []signoff.Person{
	{Name: "alice", Organisation: "lab", Roles: []string{"research"}, Token: signoff.Token{Signing: key("alice")}},
	{Name: "bob", Organisation: "watch", Roles: []string{"safety", "security"}, Token: signoff.Token{Signing: key("bob")}},
}}

func notary(name string) signoff.Notary {
	return signoff.Notary{Name: name, Organisation: "team-" + name, Signing: key(name), Exchange: key(name + " x"), Witness: key(name + " w")}
}

var council = signoff.Council{Notaries: []signoff.Notary{notary("n1"), notary("n2"), notary("n3"), notary("n4")}, Faults: 1}

const rules = `version: 1
leases: {epoch: 600, lease: 21600, drainGrace: 60}
rules:
  - {name: export, action: weights.export, quorum: {all: [{atLeast: {k: 1, role: safety}}, {any: [{atLeast: {k: 1, role: research}}, {atLeast: {k: 1, role: security}}]}], organisations: 2}, veto: [safety], expiry: 86400, coolingOff: 60}
  - {name: launch, action: training.launch, quorum: {atLeast: {k: 2, roles: [research, safety]}}, expiry: 86400, uses: 4}
  - {name: enrol, action: node.enrol, quorum: {atLeast: {k: 2, roles: [research, safety]}}, expiry: 86400}
  - {name: retire, action: node.retire, quorum: {atLeast: {k: 1, role: safety}}, expiry: 86400}
  - {name: people, action: people.change, quorum: {atLeast: {k: 2, roles: [research, safety]}}, expiry: 86400}
  - {name: change, action: policy.change, quorum: {atLeast: {k: 2, roles: [research, safety]}}, expiry: 86400}
  - {name: adopt, action: reference.adopt, quorum: {atLeast: {k: 2, roles: [research, safety]}}, expiry: 86400}
  - {name: withdraw, action: reference.withdraw, quorum: {atLeast: {k: 1, role: safety}}, expiry: 86400}
  - {name: halt, action: halt, quorum: {atLeast: {k: 1, roles: [research, safety]}}, expiry: 3600}
  - {name: resume, action: resume, quorum: {atLeast: {k: 2, roles: [research, safety]}}, expiry: 86400}
`

func rule(t testing.TB, action string) *policy.Bound {
	t.Helper()
	p, err := policy.Parse([]byte(rules + "  - {name: notaries, action: notaries.change, quorum: {atLeast: {k: 2, roles: [research, safety]}}, expiry: 86400}\n" +
		"  - {name: ek-roots, action: ekroots.change, quorum: {atLeast: {k: 2, roles: [research, safety]}}, expiry: 86400}\n"))
	if err != nil {
		t.Fatal(err)
	}
	roster := policy.Roster{}
	for _, x := range append(charter.People, signoff.Person{Name: "carol", Organisation: "third", Roles: []string{"safety", "research"}, Token: signoff.Token{Signing: key("carol")}}) {
		roster.People = append(roster.People, policy.Person{ID: x.ID(), Name: x.Name, Organisation: x.Organisation, Roles: x.Roles, HoldsShare: true})
	}
	c, err := p.Compile(roster, policy.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Rule(policy.Action(action))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// input is a request by alice with everything it can name known.
func input(t testing.TB, action string, edit func(*signoff.Request)) display.Input {
	t.Helper()
	r := &signoff.Request{Charter: digest("charter"), Action: action, Requester: charter.People[0].ID(), Purpose: "evaluation by the institute",
		Created: 1_790_000_000, Expiry: 1_790_003_600}
	edit(r)
	return display.Input{
		Charter: charter, ID: digest("charter"), Request: r, Digest: digest("request"), Rule: rule(t, action), Council: council, Term: 1,
		People: map[Digest]*signoff.Person{charter.People[0].ID(): &charter.People[0], charter.People[1].ID(): &charter.People[1]},
		Objects: map[Digest]*signoff.Object{digest("object"): {Sealer: charter.People[1].ID(), Name: "model-7b", Manifest: digest("manifest"),
			Summary: signoff.Summary{Files: 3, Bytes: 14 << 30, Tensors: 291, Parameters: 7_000_000_000, DTypes: []string{"BF16", "F32"}}},
			digest("snapshot"): {Sealer: digest("n2"), Claim: digest("claim"), Name: "train-0, use 3: step-9", Manifest: digest("manifest"), Summary: signoff.Summary{Files: 1, Bytes: 7}}},
		Nodes: map[Digest]display.Node{digest("n1"): {Name: "node-1"}, digest("n2"): {Name: "node-2", Emulated: true}},
		Halts: map[Digest]*signoff.Halt{digest("h1"): {Person: charter.People[1].ID(), Everything: true, Reason: "loss of the cooling"},
			digest("h2"): {Person: charter.People[1].ID(), Node: digest("n1"), Reason: "the node was opened"}},
	}
}

func export(r *signoff.Request) {
	r.Export = &signoff.Export{Object: digest("object"), Recipient: "the institute", RecipientKey: key("recipient"), Destination: "disk S/N 12-34"}
}

func launch(r *signoff.Request) {
	r.Launch = &signoff.Launch{Name: "train-1", Executable: digest("program"), Argv: []string{"train", "--data=/in", "caf\u00e9"}, Env: []string{"HOME=/"},
		Objects: []Digest{digest("object"), digest("snapshot"), digest("gone")}, Pool: []Digest{digest("n1"), digest("n2"), digest("n3")}, Uses: 2, Seconds: 3600, Output: 200_000_000_000}
}

// set is a reference set; values are told by words.
func set(name string, version uint64, pcrs map[int][]string) *attest.ReferenceSet {
	r := &attest.ReferenceSet{Name: name, Version: version, NotBefore: 1_790_000_000, NotAfter: 1_800_000_000, PCRs: map[int][]attest.Digest{}}
	for pcr, words := range pcrs {
		for _, w := range words {
			r.PCRs[pcr] = append(r.PCRs[pcr], attest.Digest(digest(w)))
		}
	}
	return r
}

// inForce are two versions of rack-a and one of rack-b.
func inForce() []display.Reference {
	return []display.Reference{
		{ID: digest("rack-a 2"), Set: set("rack-a", 2, map[int][]string{4: {"kernel 2"}, 7: {"keys"}, 14: {"mok"}})},
		{ID: digest("rack-a 1"), Set: set("rack-a", 1, map[int][]string{4: {"kernel 1"}, 7: {"keys"}})},
		{ID: digest("rack-b 7"), Set: set("rack-b", 7, map[int][]string{4: {"kernel 3"}})},
	}
}

func sum(s string) string { return digest(s).String() }

func adopting(t testing.TB, version uint64) display.Input {
	in := input(t, signoff.ActionReferenceAdopt, func(r *signoff.Request) {
		r.Adopt = &signoff.ReferenceAdopt{Name: "rack-a", Version: version, Set: digest("new")}
	})
	in.Set, in.InForce = set("rack-a", version, map[int][]string{4: {"kernel 3", "kernel 4"}, 7: {"keys"}}), inForce()
	in.Set.IMA = &ima.Rules{Files: map[string][]string{"/usr/bin/train": {sum("train 2")}, "/usr/bin/a path\nset": {sum("odd")}, "/usr/bin/sh": {sum("sh")}},
		Digests: []string{sum("anywhere")}, Signed: []ima.Signed{{Below: "/opt/vendor/", Keys: [][]byte{[]byte("vendor's key")}}}, Ignore: []string{"/var/log/"}}
	in.InForce[0].Set.IMA = &ima.Rules{Files: map[string][]string{"/usr/bin/train": {sum("train 1")}, "/usr/bin/sh": {sum("sh")}}}
	return in
}

func withdrawing(t testing.TB, sets ...Digest) display.Input {
	in := input(t, signoff.ActionReferenceWithdraw, func(r *signoff.Request) { r.Withdraw = &signoff.ReferenceWithdraw{Sets: sets} })
	in.InForce = inForce()
	return in
}

func people(r *signoff.Request) {
	spare := signoff.Token{Signing: key("bob-2"), Exchange: key("bob-2-x")}
	r.People = &signoff.PeopleChange{
		Add: []signoff.Person{{Name: "carol", Organisation: "third", Roles: []string{"safety", "research"},
			Token: signoff.Token{Signing: key("carol"), Exchange: key("carol-x")}, Spares: []signoff.Token{{Signing: key("carol-2"), Exchange: key("carol-2-x")}}}},
		Remove: []Digest{charter.People[0].ID(), digest("nobody")},
		Tokens: []signoff.TokenChange{{Person: charter.People[1].ID(), Retire: charter.People[1].ID(), Add: &spare}},
	}
}

// changingEKRoots adds a root, and removes it and one that nobody knows.
func changingEKRoots(t testing.TB) display.Input {
	der, err := os.ReadFile(filepath.Join("..", "testdata", "ekroot.der"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := signoff.ParseEKRoot(der)
	if err != nil {
		t.Fatal(err)
	}
	id := Digest(sha256.Sum256(der))
	in := input(t, signoff.ActionEKRoots, func(r *signoff.Request) {
		r.EKRoots = &signoff.EKRootsChange{Add: [][]byte{der}, Remove: []Digest{id, digest("gone")}}
	})
	in.EKRoots = map[Digest]*x509.Certificate{id: cert}
	return in
}

func TestGolden(t *testing.T) {
	first := adopting(t, 1)
	first.InForce, first.Set.IMA = nil, nil
	roles := input(t, signoff.ActionPeopleChange, func(r *signoff.Request) {
		r.People = &signoff.PeopleChange{Threshold: 4, Roles: []signoff.RoleChange{
			{Person: charter.People[0].ID(), Roles: []string{"leadership", "safety"}}, {Person: digest("nobody"), Roles: []string{"research"}}}}
	})
	roles.Shares = 3
	hybrid := signoff.Token{Signing: key("bob-3"), Exchange: signoff.PublicKey{Encoded: []byte("bob-3-x"), Class: "witnessed", MLKEM768: []byte("bob-3-pq")}}
	for name, in := range map[string]display.Input{
		"people-hybrid": input(t, signoff.ActionPeopleChange, func(r *signoff.Request) {
			r.People = &signoff.PeopleChange{Tokens: []signoff.TokenChange{{Person: charter.People[1].ID(), Add: &hybrid}}}
		}),
		"export": input(t, signoff.ActionExport, export),
		"launch": input(t, signoff.ActionLaunch, launch),
		"enrol": input(t, signoff.ActionEnrol, func(r *signoff.Request) {
			r.Enrol = &signoff.Enrol{Name: "node-3", Node: digest("n3"), Enrolment: digest("blob")}
		}),
		"enrol-again": input(t, signoff.ActionEnrol, func(r *signoff.Request) {
			r.Enrol = &signoff.Enrol{Name: "node-1", Node: digest("n1"), Enrolment: digest("blob"), Replaces: digest("old blob")}
		}),
		"retire":           input(t, signoff.ActionRetire, func(r *signoff.Request) { r.Retire = &signoff.Retire{Node: digest("n2")} }),
		"policy":           input(t, signoff.ActionPolicyChange, func(r *signoff.Request) { r.Policy = &signoff.PolicyChange{Policy: rules} }),
		"people-threshold": roles,
		"notaries": input(t, signoff.ActionNotaries, func(r *signoff.Request) {
			r.Notaries = &signoff.NotaryChange{Term: 1, Faults: 1, Notaries: append(slices.Clone(council.Notaries[:3]), notary("n5"))}
		}),
		"ek-roots": changingEKRoots(t),
		"resume": input(t, signoff.ActionResume, func(r *signoff.Request) {
			r.Resume = &signoff.Resume{Halts: []Digest{digest("h1"), digest("h2"), digest("gone")}}
		}),
		"adopt":        adopting(t, 3),
		"adopt-first":  first,
		"withdraw":     withdrawing(t, digest("rack-a 2"), digest("gone")),
		"withdraw-all": withdrawing(t, digest("rack-a 2"), digest("rack-a 1"), digest("rack-b 7")),
		"people":       input(t, signoff.ActionPeopleChange, people),
		"people-fido": input(t, signoff.ActionPeopleChange, func(r *signoff.Request) {
			r.People = &signoff.PeopleChange{Tokens: []signoff.TokenChange{{Person: charter.People[1].ID(), Add: &signoff.Token{Signing: fido("bob-2")}}}}
		}),
	} {
		t.Run(name, func(t *testing.T) {
			path, got := filepath.Join("testdata", name+".txt"), display.Request(in)
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the text changed, so every approval of it would be void:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// checkScreen wants lines that no terminal breaks, of visible ASCII or letters,
// with exactly the names of fields that this package writes.
func checkScreen(t interface {
	Helper()
	Fatalf(string, ...any)
}, text string, hostile ...string) {
	t.Helper()
	fields := map[string]bool{"": true, display.Version[:12]: true}
	for _, f := range strings.Fields("cluster request action purpose created expires weights recipient destination effect run executable node uses output enrolment rule set files replaces stays joins leaves notaries COMES GOES") {
		fields[f] = true
	}
	for _, f := range []string{"asked by", "time limit", "new policy", "lifts halt", "no longer", "ends set", "tokens of"} {
		fields[f] = true
	}
	seen := map[string]int{}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if !utf8.ValidString(line) || strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
			t.Fatalf("line %q would disturb a terminal", line)
		}
		if len(line) < 12 {
			t.Fatalf("line %q has no first column", line)
		}
		name := strings.TrimRight(line[:12], " ")
		if !fields[name] {
			t.Fatalf("line %q begins a field of its own", line)
		}
		seen[name]++
	}
	for _, once := range []string{"purpose", "action", "request", "expires", "rule", "asked by"} {
		if seen[once] != 1 {
			t.Fatalf("%d lines begin %q", seen[once], once)
		}
	}
	for _, h := range hostile {
		if strings.Contains(text, h) {
			t.Fatalf("%q reached the screen", h)
		}
	}
}

func TestAttackTextOnTheScreen(t *testing.T) {
	for _, evil := range []string{
		"ok\nrule         nothing", "ok\r\npurpose      none", "\rrule         anybody", "\x1b[2Jcleared", "\x1b]0;title\a", "\u202eesrever", "\u2066iso\u2069",
		"a\u0085b", "a\u2028b", "zero\u200bwidth", "\u00a0nbsp", "\xff\xfe", "null\x00", "tab\tbed", "\v", "\x7f\b\b\b", "\n", "trailing\n", "\u2800", "\u3164x", "e\ufe0f",
	} {
		for name, in := range map[string]display.Input{
			"export": input(t, signoff.ActionExport, func(r *signoff.Request) {
				export(r)
				r.Purpose, r.Export.Recipient, r.Export.Destination = evil, evil, evil
			}),
			"launch": input(t, signoff.ActionLaunch, func(r *signoff.Request) {
				launch(r)
				r.Launch.Argv, r.Launch.Env = []string{evil, "train"}, []string{evil}
			}),
			"policy": input(t, signoff.ActionPolicyChange, func(r *signoff.Request) { r.Policy = &signoff.PolicyChange{Policy: rules + evil} }),
			"notaries": input(t, signoff.ActionNotaries, func(r *signoff.Request) {
				r.Notaries = &signoff.NotaryChange{Term: 1, Faults: 1, Notaries: append(slices.Clone(council.Notaries[:3]), notary("n5"))}
			}),
			"resume": input(t, signoff.ActionResume, func(r *signoff.Request) { r.Resume = &signoff.Resume{Halts: []Digest{digest("h1")}} }),
		} {
			o := *in.Objects[digest("object")]
			o.Name, o.Summary.DTypes = evil, []string{evil, evil}
			in.Objects[digest("object")] = &o
			in.Halts[digest("h1")].Reason = evil
			t.Run(fmt.Sprintf("%s %q", name, evil), func(t *testing.T) {
				checkScreen(t, display.Request(in), "\u202e", "\x1b", "\r", "\u2800", "\u3164", "\ufe0f", "\u00a0")
			})
		}
	}
}

// A terminal of 80 columns breaks long lines by itself; what comes after such
// a break would look like a field.
func TestAttackFieldByWrapping(t *testing.T) {
	for _, evil := range []string{
		"fine" + strings.Repeat(" ", 63) + "rule         nobody needs to sign",
		strings.Repeat("x", 67) + "purpose      harmless",
		strings.Repeat("\uac00", 500), strings.Repeat("word ", 399) + "end",
	} {
		in := input(t, signoff.ActionExport, func(r *signoff.Request) { export(r); r.Purpose = evil })
		text := display.Request(in)
		checkScreen(t, text)
		joined := ""
		inside := false
		for _, line := range strings.Split(text, "\n") {
			if columns(line) > 80 && !strings.Contains(line, "sha256:") {
				t.Errorf("a line of %d columns: %q", columns(line), line)
			}
			switch {
			case strings.HasPrefix(line, "purpose "):
				inside, joined = true, line[13:]
			case inside && strings.HasPrefix(line, "             > "):
				joined += line[15:]
			default:
				inside = false
			}
		}
		if joined != evil {
			t.Errorf("what was signed cannot be read back:\n%q\n%q", joined, evil)
		}
	}
}

func columns(s string) int {
	n := 0
	for _, r := range s {
		n++
		if r >= 0x1100 {
			n++
		}
	}
	return n
}

// A name cannot continue into the words that follow it.
func TestAttackSealerInTheName(t *testing.T) {
	in := input(t, signoff.ActionExport, export)
	in.Objects[digest("object")].Name = "model-7b, sealed by alice (research of lab)"
	text := display.Request(in)
	if !strings.Contains(text, "\n             sealed by bob (") || strings.Contains(text, "\n             sealed by alice") {
		t.Errorf("the sealer cannot be told:\n%s", text)
	}
}

func TestAnyTextIsSafeAndTellsItselfApart(t *testing.T) {
	for _, action := range []string{signoff.ActionExport, signoff.ActionPolicyChange} {
		base := input(t, action, func(r *signoff.Request) {
			if export(r); action == signoff.ActionPolicyChange {
				r.Export, r.Policy = nil, &signoff.PolicyChange{}
			}
		})
		rapid.Check(t, func(t *rapid.T) {
			show := func(s string) string {
				r := *base.Request
				if r.Policy != nil {
					r.Policy = &signoff.PolicyChange{Policy: s}
				} else {
					r.Purpose = s
				}
				in := base
				in.Request = &r
				return display.Request(in)
			}
			a, b := rapid.String().Draw(t, "a"), rapid.String().Draw(t, "b")
			checkScreen(t, show(a))
			if show(a) != show(a) {
				t.Fatalf("the text depends on something else")
			}
			if a != b && signoff.CheckText("a", a) == nil && signoff.CheckText("b", b) == nil && show(a) == show(b) {
				t.Fatalf("%q and %q look the same", a, b)
			}
		})
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("purpose", "argument", []byte("policy"))
	f.Add("\r\n", "\x1b[0m", []byte("\n\r|"))
	in := input(f, signoff.ActionLaunch, launch)
	f.Fuzz(func(t *testing.T, purpose, arg string, text []byte) {
		r := *in.Request
		l := *r.Launch
		l.Argv = []string{arg}
		r.Launch, r.Purpose = &l, purpose
		x := in
		x.Request = &r
		checkScreen(t, display.Request(x))
		r.Launch, r.Policy = nil, &signoff.PolicyChange{Policy: string(text)}
		checkScreen(t, display.Request(x))
	})
}
