package policy_test

import (
	"os"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/policy"
)

// minimalHead is a policy to which rules can be added; minimal has one.
const (
	minimalHead = `version: 1
leases: {epoch: 600, lease: 21600, drainGrace: 300}
rules:
  - {name: stop, action: halt, quorum: {atLeast: {k: 1, role: security}}, expiry: 3600}`
	enrol   = `{name: enrol, action: node.enrol, quorum: {atLeast: {k: 2, role: security}}, expiry: 3600}`
	minimal = minimalHead + "\n  - " + enrol
)

func parsed(t *testing.T, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func compiled(t *testing.T, text string) *policy.Compiled {
	t.Helper()
	c, err := parsed(t, text).Compile(five(), policy.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func exampleSource(t *testing.T) *policy.Policy {
	t.Helper()
	text, err := os.ReadFile("../deploy/policy/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return parsed(t, string(text))
}

func swap(old, new string) string { return strings.Replace(minimal, old, new, 1) }

func TestParseRefuses(t *testing.T) {
	compiled(t, minimal)
	for name, c := range map[string]struct{ text, want string }{
		"nothing":               {"", "empty"},
		"a comment":             {"# nothing\n", "empty"},
		"a word":                {"yes", "want a mapping"},
		"two documents":         {minimal + "\n---\n" + minimal, "second document"},
		"no version":            {swap("version: 1\n", ""), "version is missing"},
		"version 2":             {swap("version: 1", "version: 2"), "version 2 is unknown"},
		"no leases":             {swap("leases: {epoch: 600, lease: 21600, drainGrace: 300}\n", ""), "leases is missing"},
		"zero epoch":            {swap("epoch: 600", "epoch: 0"), "at least 1"},
		"lease under an epoch":  {swap("lease: 21600", "lease: 599"), "shorter than"},
		"no rules":              {"version: 1\nleases: {epoch: 1, lease: 1, drainGrace: 1}\nrules: []", "at least one item"},
		"unknown key":           {swap("expiry: 3600}", "expiry: 3600, waive: 1}"), `unknown key "waive"`},
		"upper-case key":        {swap("k: 1", "K: 1"), `unknown key "K"`},
		"duplicate key":         {swap("k: 1", "k: 1, k: 2"), "appears twice"},
		"case-folded duplicate": {swap("k: 1", "k: 1, K: 2"), "appears twice"},
		"unknown action":        {swap("node.enrol", "node.enroll"), "unknown action"},
		"folded action":         {swap("node.enrol", "Node.enrol"), "unknown action"},
		"two rules for one":     {minimal + "\n  - " + strings.Replace(enrol, "name: enrol", "name: again", 1), "already has a rule"},
		"two rules of a name":   {minimal + "\n  - " + strings.Replace(enrol, "node.enrol", "resume", 1), "is taken"},
		"no quorum":             {swap("quorum: {atLeast: {k: 2, role: security}}, ", ""), "quorum is missing"},
		"empty quorum":          {swap("{atLeast: {k: 2, role: security}}", "{}"), "empty node"},
		"empty all":             {swap("{atLeast: {k: 2, role: security}}", "{all: []}"), "at least one item"},
		"empty any":             {swap("{atLeast: {k: 2, role: security}}", "{any: []}"), "at least one item"},
		"two kinds":             {swap("{k: 2, role: security}}", "{k: 2, role: security}, any: [{atLeast: {k: 1, role: safety}}]}"), "exactly one of"},
		"all and any": {swap("{atLeast: {k: 2, role: security}}",
			"{all: [{atLeast: {k: 2, role: security}}], any: [{atLeast: {k: 1, role: safety}}]}"), "exactly one of"},
		"k 0":                  {swap("k: 2", "k: 0"), "at least 1"},
		"no k":                 {swap("k: 2, ", ""), "k is missing"},
		"k negative":           {swap("k: 2", "k: -2"), "at least 1"},
		"k hexadecimal":        {swap("k: 2", "k: 0x2"), "decimal"},
		"k octal":              {swap("k: 2", "k: 02"), "decimal"},
		"k with underscore":    {swap("k: 2", "k: 2_0"), "decimal"},
		"k float":              {swap("k: 2", "k: 2.0"), "decimal"},
		"k quoted":             {swap("k: 2", `k: "2"`), "decimal"},
		"k null":               {swap("k: 2", "k: ~"), "decimal"},
		"k huge":               {swap("k: 2", "k: 65"), "1 to 64"},
		"k overflowing":        {swap("k: 2", "k: 18446744073709551618"), "decimal"},
		"no role":              {swap(", role: security}}, expiry: 3600}\n", "}}, expiry: 3600}\n"), "role"},
		"role and roles":       {swap("role: security", "role: security, roles: [safety]"), "exactly one of"},
		"role twice":           {swap("role: security", "roles: [security, security]"), "named twice"},
		"organisations in all": {swap("{atLeast: {k: 2, role: security}}", "{all: [{organisations: 2, atLeast: {k: 2, role: security}}]}"), "unknown key"},
		"organisations 0":      {swap("quorum: {", "quorum: {organisations: 0, "), "at least 1"},
		"no expiry":            {swap(", expiry: 3600", ""), "expiry is missing"},
		"endless expiry":       {swap("expiry: 3600", "expiry: 999999999999"), "seconds"},
		"cooling-off 0":        {minimal[:len(minimal)-1] + ", coolingOff: 0}", "at least 1"},
		"cooling-off for ever": {minimal[:len(minimal)-1] + ", coolingOff: 3600}", "leaves no time"},
		"uses 0":               {minimal[:len(minimal)-1] + ", uses: 0}", "at least 1"},
		"empty veto":           {minimal[:len(minimal)-1] + ", veto: []}", "at least one item"},
		"veto as a word":       {minimal[:len(minimal)-1] + ", veto: safety}", "want a list"},
		"veto on halt":         {swap("expiry: 3600}", "expiry: 3600, veto: [safety]}"), "halt takes no veto"},
		"cooling-off on halt":  {swap("expiry: 3600}", "expiry: 3600, coolingOff: 5}"), "halt takes no veto"},
		"anchor":               {swap("role: security", "role: &a security"), "anchors"},
		"alias":                {swap("role: security", "role: &a security") + "\n  - *a", "anchors"},
		"merge key":            {swap("k: 2", "<<: {k: 2}"), "unknown key"},
		"tag":                  {swap("k: 2", "k: !!int 2"), "tags"},
		"custom tag":           {swap("role: security", "role: !x security"), "tags"},
		"not UTF-8":            {swap("security", "\xff"), "policy:"},
		"too deep":             {swap("{atLeast: {k: 2, role: security}}", strings.Repeat("{all: [", 9)+"{atLeast: {k: 2, role: security}}"+strings.Repeat("]}", 9)), "deeper"},
	} {
		p, err := policy.Parse([]byte(c.text))
		if err == nil || p != nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "policy: ") {
			t.Errorf("%s: %v, want one with %q", name, err, c.want)
		}
	}
}

func TestAttackOversizedPolicy(t *testing.T) {
	if _, err := policy.Parse([]byte(minimal + strings.Repeat("\n", policy.MaxBytes))); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("an oversized policy: %v", err)
	}
	deep := strings.Repeat("[", policy.MaxBytes/2) + strings.Repeat("]", policy.MaxBytes/2)
	if _, err := policy.Parse([]byte(deep)); err == nil {
		t.Error("a policy of brackets was read")
	}
}

func TestAttackCollidingRoleNames(t *testing.T) {
	for _, role := range []string{"Security", "ｓecurity", "sеcurity", "security\u200b", "security ", "-security", "se_curity", "", strings.Repeat("s", 65)} {
		if _, err := policy.Parse([]byte(swap("role: security", "role: '"+role+"'"))); err == nil {
			t.Errorf("a policy with role %q was read", role)
		}
		roster := five()
		roster.People[0].Roles = []string{"security", role}
		if _, err := parsed(t, minimal).Compile(roster, policy.Limits{}); err == nil {
			t.Errorf("a roster with role %q was accepted", role)
		}
		roster = five()
		roster.People[0].Name = role
		if _, err := parsed(t, minimal).Compile(roster, policy.Limits{}); err == nil {
			t.Errorf("a roster with a person %q was accepted", role)
		}
	}
}

func TestRosterRefuses(t *testing.T) {
	for name, change := range map[string]func(*policy.Roster){
		"nobody":                   func(r *policy.Roster) { r.People = nil },
		"zero id":                  func(r *policy.Roster) { r.People[0].ID = [32]byte{} },
		"one id twice":             func(r *policy.Roster) { r.People[1].ID = r.People[0].ID },
		"one name twice":           func(r *policy.Roster) { r.People[1].Name = r.People[0].Name },
		"one role twice":           func(r *policy.Roster) { r.People[0].Roles = []string{"security", "security"} },
		"no organisation":          func(r *policy.Roster) { r.People[0].Organisation = "" },
		"organisation in Cyrillic": func(r *policy.Roster) { r.People[0].Organisation = "Lаb" },
		"organisation in capitals": func(r *policy.Roster) { r.People[0].Organisation = "LAB" },
		"organisation with blanks": func(r *policy.Roster) { r.People[0].Organisation = "Lab " },
		"too many":                 func(r *policy.Roster) { r.People = make([]policy.Person, policy.MaxPeople+1) },
	} {
		roster := five()
		change(&roster)
		if c, err := parsed(t, minimal).Compile(roster, policy.Limits{}); err == nil || c != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	add := func(rules string) string { return minimalHead + "\n  - " + rules }
	for name, c := range map[string]struct{ text, want string }{
		"no halt":                    {"version: 1\nleases: {epoch: 1, lease: 1, drainGrace: 1}\nrules:\n  - " + enrol, "no rule for halt"},
		"halt by two":                {strings.Replace(minimal, "k: 1", "k: 2", 1), "one person must be able to halt"},
		"unknown role":               {add(`{name: a, action: resume, quorum: {atLeast: {k: 2, role: nobody}}, expiry: 9}`), `nobody holds role "nobody"`},
		"unknown veto":               {add(`{name: a, action: resume, quorum: {atLeast: {k: 2, role: security}}, veto: [nobody], expiry: 9}`), `nobody holds role "nobody"`},
		"k over the holders":         {add(`{name: a, action: resume, quorum: {atLeast: {k: 3, role: security}}, expiry: 9}`), "only 2 hold it"},
		"a dead branch":              {add(`{name: a, action: resume, quorum: {any: [{atLeast: {k: 2, role: security}}, {atLeast: {k: 2, role: research}}]}, expiry: 9}`), "only 1 hold it"},
		"dan in two places":          {add(`{name: a, action: resume, quorum: {all: [{atLeast: {k: 2, role: security}}, {atLeast: {k: 2, role: safety}}]}, expiry: 9}`), "no set of distinct people"},
		"everybody, so nobody asks":  {add(`{name: a, action: resume, quorum: {atLeast: {k: 5, roles: [security, research, leadership, safety]}}, expiry: 9}`), "no set of distinct people"},
		"organisations that are not": {add(`{name: a, action: resume, quorum: {organisations: 3, atLeast: {k: 3, roles: [security, research, leadership]}}, expiry: 9}`), "no set of distinct people"},
		"export by one":              {add(`{name: a, action: weights.export, quorum: {atLeast: {k: 1, role: security}}, expiry: 9}`), "takes at least 2"},
		"export by one in some way":  {add(`{name: a, action: weights.export, quorum: {any: [{atLeast: {k: 1, role: research}}, {atLeast: {k: 2, role: security}}]}, expiry: 9}`), "takes at least 2"},
		"anybody":                    {add(`{name: a, action: node.retire, quorum: {atLeast: {k: 1, roles: [security, research, leadership, safety]}}, expiry: 9}`), "everybody in the roster"},
		"resume under launch": {add(`{name: a, action: resume, quorum: {atLeast: {k: 2, role: security}}, expiry: 9}
  - {name: b, action: training.launch, quorum: {atLeast: {k: 3, roles: [security, research]}}, expiry: 9}`), "lifting a halt"},
	} {
		p := parsed(t, c.text)
		got, err := p.Compile(five(), policy.Limits{})
		if err == nil || got != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want one with %q", name, err, c.want)
		}
	}
	var none *policy.Policy
	if _, err := none.Compile(five(), policy.Limits{}); err == nil {
		t.Error("no policy compiled")
	}
	if _, err := new(policy.Policy).Compile(five(), policy.Limits{}); err == nil {
		t.Error("an empty policy compiled")
	}
}

func TestTooFewShares(t *testing.T) {
	p := exampleSource(t)
	compile := func(r policy.Roster, need uint) error {
		_, err := p.Compile(r, policy.Limits{MinShares: map[policy.Action]uint{policy.WeightsExport: need}})
		return err
	}
	if err := compile(five(), 3); err != nil {
		t.Errorf("three shares of three people: %v", err)
	}
	if err := compile(five(), 4); err == nil || !strings.Contains(err.Error(), "only 3 shares: opening takes 4") {
		t.Errorf("four shares of three people: %v", err)
	}
	signsOnly := five()
	signsOnly.People[1].HoldsShare = false
	if err := compile(signsOnly, 3); err == nil || !strings.Contains(err.Error(), "only 2 shares: opening takes 3") {
		t.Errorf("ben signs but opens nothing: %v", err)
	}
	if _, err := p.Compile(five(), policy.Limits{MinShares: map[policy.Action]uint{policy.Resume: 1}}); err == nil {
		t.Error("a limit on an action that opens nothing was ignored")
	}
}

func TestNoRuleMeansNo(t *testing.T) {
	c := compiled(t, minimal)
	for _, a := range []policy.Action{policy.WeightsExport, "", "HALT", "anything"} {
		if b, err := c.Rule(a); err == nil || b != nil {
			t.Errorf("%q has a rule", a)
		}
	}
}

func TestLoosens(t *testing.T) {
	old := example(t)
	if why := policy.Loosens(old, old); len(why) > 0 {
		t.Errorf("no change loosens: %q", why)
	}
	at := func(p *policy.Policy, a policy.Action) *policy.Rule {
		for i := range p.Rules {
			if p.Rules[i].Action == a {
				return &p.Rules[i]
			}
		}
		t.Fatalf("no rule for %s", a)
		return nil
	}
	for _, c := range []struct {
		name   string
		change func(*policy.Policy, *policy.Roster)
		want   string // empty: stricter
	}{
		{"longer lease", func(p *policy.Policy, _ *policy.Roster) { p.Leases.Lease++ }, "leases.lease grows"},
		{"shorter lease", func(p *policy.Policy, _ *policy.Roster) { p.Leases.Lease-- }, ""},
		{"fewer for launch", func(p *policy.Policy, _ *policy.Roster) { at(p, policy.TrainingLaunch).Quorum.Tree.AtLeast.K = 2 }, "training.launch: people who"},
		{"more for enrolment", func(p *policy.Policy, _ *policy.Roster) { at(p, policy.NodeEnrol).Quorum.Tree.AtLeast.K = 3 }, ""},
		{"launch as an export", func(p *policy.Policy, _ *policy.Roster) {
			at(p, policy.TrainingLaunch).Quorum = at(p, policy.WeightsExport).Quorum
		}, ""},
		{"export as a launch", func(p *policy.Policy, _ *policy.Roster) {
			at(p, policy.WeightsExport).Quorum = at(p, policy.TrainingLaunch).Quorum
		}, "weights.export: people who"},
		{"no veto", func(p *policy.Policy, _ *policy.Roster) { at(p, policy.NodeEnrol).Veto = nil }, "node.enrol: dan loses a veto"},
		{"more vetoes", func(p *policy.Policy, _ *policy.Roster) {
			at(p, policy.NodeEnrol).Veto = []string{"safety", "research"}
		}, ""},
		{"longer expiry", func(p *policy.Policy, _ *policy.Roster) { at(p, policy.NodeEnrol).Expiry++ }, "expiry grows"},
		{"approvals for ever", func(p *policy.Policy, _ *policy.Roster) { at(p, policy.WeightsOpen).ApprovalExpiry = 0 }, "approvals count for longer"},
		{"shorter approvals", func(p *policy.Policy, _ *policy.Roster) { at(p, policy.WeightsOpen).ApprovalExpiry = 60 }, ""},
		{"cooling off", func(p *policy.Policy, _ *policy.Roster) { at(p, policy.WeightsOpen).CoolingOff = 60 }, ""},
		{"more uses", func(p *policy.Policy, _ *policy.Roster) { at(p, policy.WeightsOpen).Uses++ }, "uses grow"},
		{"no rule", func(p *policy.Policy, _ *policy.Roster) { p.Rules = p.Rules[1:] }, ""},
		{"halt by fewer", func(p *policy.Policy, _ *policy.Roster) {
			at(p, policy.Halt).Quorum.Tree.AtLeast.Roles = []string{"security"}
		}, "halt: people who could halt"},
		{"one more approver", func(_ *policy.Policy, r *policy.Roster) {
			r.People = append(r.People, person("fay", "Lab", "research"))
		}, "training.launch: people who"},
		{"one more auditor", func(_ *policy.Policy, r *policy.Roster) {
			r.People = append(r.People, person("fay", "Lab", "auditor"))
		}, ""},
	} {
		p, roster := exampleSource(t), five()
		c.change(p, &roster)
		changed, err := p.Compile(roster, policy.Limits{})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		why := strings.Join(policy.Loosens(old, changed), "; ")
		if (why == "") != (c.want == "") || !strings.Contains(why, c.want) {
			t.Errorf("%s: %q, want %q", c.name, why, c.want)
		}
	}
	fewer := exampleSource(t)
	fewer.Rules = fewer.Rules[1:]
	without, err := fewer.Compile(five(), policy.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if why := policy.Loosens(without, old); len(why) != 1 || !strings.Contains(why[0], "was refused and is now possible") {
		t.Errorf("a new rule: %q", why)
	}
}

func FuzzParse(f *testing.F) {
	text, err := os.ReadFile("../deploy/policy/example.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(minimal))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := policy.Parse(text)
		if err != nil {
			if p != nil {
				t.Error("a policy came with an error")
			}
			return
		}
		c, err := p.Compile(five(), policy.Limits{})
		if err != nil {
			return
		}
		for _, a := range c.Actions() {
			b, _ := c.Rule(a)
			if b.Evaluate(asked("zoe"), nil, now).Satisfied {
				t.Errorf("%s is satisfied without approvals", a)
			}
		}
	})
}
