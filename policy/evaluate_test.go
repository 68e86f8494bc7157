package policy_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/policy"
)

const created, now = 1_000_000, 1_001_000

func rule(t *testing.T, a policy.Action) *policy.Bound {
	t.Helper()
	b, err := example(t).Rule(a)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func vote(name string, d policy.Decision, at int64) policy.Vote {
	return policy.Vote{Person: id(name), Decision: d, Time: at, Expiry: at + 50_000}
}

func approvals(names ...string) []policy.Vote {
	var votes []policy.Vote
	for i, n := range names {
		votes = append(votes, vote(n, policy.Approve, created+int64(i)))
	}
	return votes
}

func asked(by string) policy.Request {
	return policy.Request{Requester: id(by), Created: created, Expiry: created + 80_000}
}

func names(ids [][32]byte) string {
	var s []string
	for _, p := range five().People {
		if slices.Contains(ids, p.ID) {
			s = append(s, p.Name)
		}
	}
	return strings.Join(s, " ")
}

func TestEvaluate(t *testing.T) {
	for _, c := range []struct {
		name    string
		action  policy.Action
		by      string
		votes   []policy.Vote
		missing string // of Missing, joined; empty: satisfied
	}{
		{"enough", policy.WeightsExport, "ben", approvals("ada", "cleo", "dan"), ""},
		{"a requester outside the roster", policy.WeightsExport, "zoe", approvals("ada", "ben", "cleo"), ""},
		{"launch", policy.TrainingLaunch, "ben", approvals("ada", "cleo", "dan"), ""},
		{"one short", policy.WeightsExport, "ben", approvals("ada", "cleo"),
			"1 more of roles leadership or research or safety or security, not the requester"},
		{"no leadership", policy.WeightsExport, "eve", approvals("ada", "ben", "dan"), "1 more of role leadership, not the requester"},
		{"no security", policy.WeightsExport, "ben", approvals("cleo", "eve"),
			"1 more of role security"},
		{"all but the requester", policy.PolicyChange, "ada", approvals("ben", "cleo", "dan", "eve"), ""},
		{"three where four are needed", policy.PolicyChange, "ada", approvals("ben", "cleo", "dan"),
			"1 more of roles leadership or research or safety or security, not the requester"},
		{"the same with leadership twice", policy.WeightsExport, "ben", approvals("cleo", "eve", "dan"), ""},
		{"halt by its requester", policy.Halt, "ben", approvals("ben"), ""},
		{"resume without safety", policy.Resume, "eve", approvals("ada", "ben", "cleo"), "1 more of role safety, not the requester"},
		{"resume", policy.Resume, "eve", approvals("ada", "ben", "dan"), ""},
		{"withdrawn", policy.NodeEnrol, "eve", append(approvals("ada", "ben"), vote("ada", policy.Withdraw, created+5)),
			"1 more of roles leadership or research or safety or security, not the requester"},
		{"withdrawn and given again", policy.NodeEnrol, "eve", append(approvals("ada", "ben"),
			vote("ada", policy.Withdraw, created+5), vote("ada", policy.Approve, created+6)), ""},
		{"withdrawn in the same second", policy.NodeEnrol, "eve", append(approvals("ada", "ben"), vote("ben", policy.Withdraw, created+1)),
			"1 more of roles leadership or research or safety or security, not the requester"},
		{"rejected without a veto", policy.NodeEnrol, "eve", append(approvals("ada", "ben", "cleo"), vote("ben", policy.Reject, created+5)), ""},
		{"vetoed", policy.NodeEnrol, "ben", append(approvals("ada", "cleo"), vote("dan", policy.Reject, created+5)),
			"a new request: this one was vetoed"},
		{"vetoed by the requester", policy.NodeEnrol, "eve", append(approvals("ada", "cleo"), vote("eve", policy.Reject, created+5)),
			"a new request: this one was vetoed"},
		{"no longer vetoed", policy.NodeEnrol, "ben", append([]policy.Vote{vote("dan", policy.Reject, created)},
			append(approvals("ada", "cleo"), vote("dan", policy.Approve, created+5))...), "a new request: this one was vetoed"},
		{"an approval from the future", policy.NodeEnrol, "ben", append(approvals("ada"), vote("cleo", policy.Approve, now+1)),
			"1 more of roles leadership or research or safety or security, not the requester"},
		{"an approval from before", policy.NodeEnrol, "ben", append(approvals("ada"), vote("cleo", policy.Approve, created-1)),
			"1 more of roles leadership or research or safety or security, not the requester"},
		{"a stranger's approval", policy.NodeEnrol, "ben", approvals("ada", "mallory"),
			"1 more of roles leadership or research or safety or security, not the requester"},
		{"an unknown decision", policy.NodeEnrol, "ben", append(approvals("ada"), vote("cleo", "Approve", created)),
			"1 more of roles leadership or research or safety or security, not the requester"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := rule(t, c.action).Evaluate(asked(c.by), c.votes, now)
			if got := strings.Join(res.Missing, "; "); got != c.missing || res.Satisfied != (c.missing == "") {
				t.Errorf("satisfied %v, missing %q, want %q", res.Satisfied, got, c.missing)
			}
		})
	}
}

func TestAttackNoApprovals(t *testing.T) {
	c := example(t)
	for _, a := range c.Actions() {
		b, err := c.Rule(a)
		if err != nil {
			t.Fatal(err)
		}
		for _, votes := range [][]policy.Vote{nil, {}, {{}}, make([]policy.Vote, 100)} {
			if res := b.Evaluate(asked("zoe"), votes, now); res.Satisfied || len(res.Missing) == 0 || len(res.Counted) > 0 {
				t.Errorf("%s with %d empty votes: %+v", a, len(votes), res)
			}
		}
	}
}

func TestAttackRequestersOwnApproval(t *testing.T) {
	c := example(t)
	for _, a := range c.Actions() {
		if a == policy.Halt {
			continue
		}
		b, _ := c.Rule(a)
		for _, p := range five().People {
			res := b.Evaluate(asked(p.Name), approvals("ada", "ben", "cleo", "dan", "eve"), now)
			if slices.Contains(res.Counted, p.ID) || slices.Contains(res.Standing, p.ID) {
				t.Errorf("%s: %s counts toward their own request", a, p.Name)
			}
			if !slices.Contains(res.Ignored, policy.Ignored{Person: p.ID, Why: "the requester's own"}) {
				t.Errorf("%s: nobody is told that %s does not count: %v", a, p.Name, res.Ignored)
			}
		}
	}
}

// dan holds two roles that the resume rule names; he fills one place.
func TestAttackOnePersonTwoRoles(t *testing.T) {
	res := rule(t, policy.Resume).Evaluate(asked("ben"), approvals("dan", "ada"), now)
	if res.Satisfied || names(res.Counted) != "ada dan" {
		t.Errorf("two people made three: %s", names(res.Counted))
	}
}

// The same person's vote by another key arrives under the same person, and
// two entries for one person make no roster.
func TestAttackOnePersonTwoKeys(t *testing.T) {
	res := rule(t, policy.NodeEnrol).Evaluate(asked("ben"), approvals("ada", "ada", "ada"), now)
	if res.Satisfied || names(res.Counted) != "ada" {
		t.Errorf("one person made two: %s", names(res.Counted))
	}
	r := five()
	spare := r.People[0]
	spare.ID = id("the second key of ada")
	r.People = append(r.People, spare)
	if _, err := parsed(t, minimal).Compile(r, policy.Limits{}); err == nil || !strings.Contains(err.Error(), `two people are named "ada"`) {
		t.Errorf("one person in the roster twice: %v", err)
	}
}

func TestExpiry(t *testing.T) {
	b := rule(t, policy.NodeEnrol)
	votes := approvals("ada", "cleo")
	for _, c := range []struct {
		name string
		req  policy.Request
		now  int64
		ok   bool
	}{
		{"in time", asked("ben"), now, true},
		{"last second", policy.Request{Requester: id("ben"), Created: created, Expiry: now + 1}, now, true},
		{"past its own expiry", policy.Request{Requester: id("ben"), Created: created, Expiry: now}, now, false},
		{"no expiry", policy.Request{Requester: id("ben"), Created: created}, now, false},
		{"no date", policy.Request{Requester: id("ben"), Expiry: now + 1}, now, false},
		{"from the future", policy.Request{Requester: id("ben"), Created: now + 1, Expiry: now + 2}, now, false},
		{"no requester", policy.Request{Created: created, Expiry: now + 1}, now, false},
		{"far future dates", policy.Request{Requester: id("ben"), Created: 1<<63 - 1, Expiry: 1<<63 - 1}, now, false},
		{"distant past dates", policy.Request{Requester: id("ben"), Created: -1 << 63, Expiry: 1<<63 - 1}, now, false},
	} {
		if res := b.Evaluate(c.req, votes, c.now); res.Satisfied != c.ok {
			t.Errorf("%s: %+v", c.name, res)
		}
	}
	long := policy.Request{Requester: id("ben"), Created: created, Expiry: created + 10*b.Expiry}
	fresh := []policy.Vote{{id("ada"), policy.Approve, created, 1 << 40}, {id("cleo"), policy.Approve, created, 1 << 40}}
	if res := b.Evaluate(long, fresh, created+b.Expiry-1); !res.Satisfied || res.Expired {
		t.Errorf("in the rule's last second: %+v", res)
	}
	if res := b.Evaluate(long, fresh, created+b.Expiry); res.Satisfied || !res.Expired {
		t.Errorf("past the rule's expiry: %+v", res)
	}
}

func TestApprovalExpiry(t *testing.T) {
	const text = minimalHead + `
  - {name: enrol, action: node.enrol, quorum: {atLeast: {k: 2, role: security}}, expiry: 5000, approvalExpiry: 100}`
	b, err := compiled(t, text).Rule(policy.NodeEnrol)
	if err != nil {
		t.Fatal(err)
	}
	votes := []policy.Vote{{id("ada"), policy.Approve, created, created + 500}, {id("dan"), policy.Approve, created + 50, created + 120}}
	for at, ok := range map[int64]bool{created + 50: true, created + 99: true, created + 100: false} {
		if res := b.Evaluate(asked("ben"), votes, at); res.Satisfied != ok {
			t.Errorf("at +%d: %+v", at-created, res)
		}
	}
	votes[0].Time = created + 60
	for at, ok := range map[int64]bool{created + 119: true, created + 120: false} {
		if res := b.Evaluate(asked("ben"), votes, at); res.Satisfied != ok {
			t.Errorf("own expiry, at +%d: %+v", at-created, res)
		}
	}
	votes[1].Expiry = 0
	if res := b.Evaluate(asked("ben"), votes, created+70); res.Satisfied {
		t.Error("an approval without expiry counts for ever")
	}
}

func TestCoolingOff(t *testing.T) {
	const text = minimalHead + `
  - {name: enrol, action: node.enrol, quorum: {atLeast: {k: 2, roles: [security, research]}}, expiry: 5000, coolingOff: 100}`
	b, err := compiled(t, text).Rule(policy.NodeEnrol)
	if err != nil {
		t.Fatal(err)
	}
	votes := []policy.Vote{vote("ada", policy.Approve, created), vote("dan", policy.Approve, created+10), vote("ben", policy.Approve, created+90)}
	if res := b.Evaluate(asked("eve"), votes[:1], created+5); res.ReadyAt != 0 {
		t.Errorf("cooling off before the quorum is met: %+v", res)
	}
	res := b.Evaluate(asked("eve"), votes, created+109)
	if res.Satisfied || res.ReadyAt != created+110 || !slices.Equal(res.Missing, []string{"1 more seconds of cooling-off"}) {
		t.Errorf("a second early: %+v", res)
	}
	if res := b.Evaluate(asked("eve"), votes, created+110); !res.Satisfied || res.ReadyAt != created+110 {
		t.Errorf("cooled off: %+v", res)
	}
	// Without dan, ada and ben have met the quorum only since ben's approval.
	votes = append(votes, vote("dan", policy.Withdraw, created+95))
	if res := b.Evaluate(asked("eve"), votes, created+110); res.Satisfied || res.ReadyAt != created+190 {
		t.Errorf("after a withdrawal: %+v", res)
	}
}

func TestOrganisations(t *testing.T) {
	const text = minimalHead + `
  - {name: enrol, action: node.enrol, quorum: {organisations: 2, atLeast: {k: 2, roles: [security, research, safety]}}, expiry: 5000}`
	b, err := compiled(t, text).Rule(policy.NodeEnrol)
	if err != nil {
		t.Fatal(err)
	}
	res := b.Evaluate(asked("cleo"), approvals("ada", "ben"), now)
	if res.Satisfied || !slices.Equal(res.Missing, []string{"approvals that span 1 more organisations (2 in all)"}) {
		t.Errorf("one organisation alone: %+v", res)
	}
	if res := b.Evaluate(asked("cleo"), approvals("ada", "ben", "dan"), now); !res.Satisfied || len(res.Counted) != 2 {
		t.Errorf("two organisations: %+v", res)
	}
}

func TestDigest(t *testing.T) {
	base := rule(t, policy.NodeEnrol).Digest()
	if base != rule(t, policy.NodeEnrol).Digest() {
		t.Fatal("the digest of one rule differs between two compilations")
	}
	seen := map[[32]byte]string{base: "unchanged"}
	for name, change := range map[string]func(*policy.Rule, *policy.Roster){
		"name":         func(r *policy.Rule, _ *policy.Roster) { r.Name = "other" },
		"k":            func(r *policy.Rule, _ *policy.Roster) { r.Quorum.Tree.AtLeast.K = 3 },
		"roles":        func(r *policy.Rule, _ *policy.Roster) { r.Quorum.Tree.AtLeast.Roles = []string{"security", "research"} },
		"all of one":   func(r *policy.Rule, _ *policy.Roster) { r.Quorum.Tree = policy.Tree{All: []policy.Tree{r.Quorum.Tree}} },
		"any of one":   func(r *policy.Rule, _ *policy.Roster) { r.Quorum.Tree = policy.Tree{Any: []policy.Tree{r.Quorum.Tree}} },
		"orgs":         func(r *policy.Rule, _ *policy.Roster) { r.Quorum.Organisations = 2 },
		"veto":         func(r *policy.Rule, _ *policy.Roster) { r.Veto = nil },
		"expiry":       func(r *policy.Rule, _ *policy.Roster) { r.Expiry++ },
		"approvals":    func(r *policy.Rule, _ *policy.Roster) { r.ApprovalExpiry = 7 },
		"cooling off":  func(r *policy.Rule, _ *policy.Roster) { r.CoolingOff = 7 },
		"uses":         func(r *policy.Rule, _ *policy.Roster) { r.Uses++ },
		"person":       func(_ *policy.Rule, p *policy.Roster) { p.People[0].ID[0] ^= 1 },
		"person name":  func(_ *policy.Rule, p *policy.Roster) { p.People[0].Name = "adah" },
		"organisation": func(_ *policy.Rule, p *policy.Roster) { p.People[0].Organisation = "Other" },
		"role":         func(_ *policy.Rule, p *policy.Roster) { p.People[0].Roles = []string{"safety", "security"} },
		"share":        func(_ *policy.Rule, p *policy.Roster) { p.People[4].HoldsShare = false },
		"new person":   func(_ *policy.Rule, p *policy.Roster) { p.People = append(p.People, person("fay", "Lab", "security")) },
	} {
		p, roster := exampleSource(t), five()
		i := slices.IndexFunc(p.Rules, func(r policy.Rule) bool { return r.Action == policy.NodeEnrol })
		change(&p.Rules[i], &roster)
		c, err := p.Compile(roster, policy.Limits{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, _ := c.Rule(policy.NodeEnrol)
		if other, taken := seen[b.Digest()]; taken {
			t.Errorf("%s and %s have one digest", name, other)
		}
		seen[b.Digest()] = name
	}
}

// A change to people whom a rule does not speak of, or to their order, leaves
// the approvals given under it valid.
func TestDigestIgnoresOthers(t *testing.T) {
	roster := five()
	slices.Reverse(roster.People)
	roster.People = append(roster.People, person("gus", "Lab", "auditor"))
	c, err := exampleSource(t).Compile(roster, policy.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := c.Rule(policy.NodeEnrol)
	if b.Digest() != rule(t, policy.NodeEnrol).Digest() {
		t.Error("a stranger or the order of the roster changed a rule's digest")
	}
	if c.Digest() == example(t).Digest() {
		t.Error("a new person did not change the policy's digest")
	}
}
