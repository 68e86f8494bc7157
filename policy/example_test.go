package policy_test

import (
	"crypto/sha256"
	"os"
	"testing"

	"github.com/keyturn/keyturn/policy"
)

func id(name string) [32]byte { return sha256.Sum256([]byte(name)) }

func person(name, organisation string, roles ...string) policy.Person {
	return policy.Person{ID: id(name), Name: name, Organisation: organisation, Roles: roles, HoldsShare: true}
}

// five are the approvers that deploy/policy/example.yaml speaks of.
func five() policy.Roster {
	return policy.Roster{People: []policy.Person{
		person("ada", "Lab", "security"),
		person("ben", "Lab", "research"),
		person("cleo", "Lab", "leadership"),
		person("dan", "Institute", "security", "safety"),
		person("eve", "Institute", "safety", "leadership"),
	}}
}

func example(t *testing.T) *policy.Compiled {
	t.Helper()
	text, err := os.ReadFile("../deploy/policy/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Compile(five(), policy.Limits{MinShares: map[policy.Action]uint{
		policy.WeightsExport: 3, policy.WeightsOpen: 3, policy.TrainingLaunch: 3,
	}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestExampleCompiles(t *testing.T) {
	c := example(t)
	if n := len(c.Actions()); n != 14 {
		t.Fatalf("the example has rules for %d actions, want all 14", n)
	}
	if c.Leases() != (policy.Leases{Epoch: 600, Lease: 21600, DrainGrace: 300}) {
		t.Fatalf("leases %+v", c.Leases())
	}
}
