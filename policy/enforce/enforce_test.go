package enforce_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/policy/enforce"
)

func good() enforce.Spec {
	return enforce.Spec{
		ID:         "run-1",
		Executable: enforce.Executable{Digest: [32]byte{1}, Source: strings.NewReader("x")},
		Argv:       []string{"x"},
		Env:        []string{"A=1", "B="},
		TimeLimit:  time.Minute,
	}
}

func TestValidate(t *testing.T) {
	s := good()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*enforce.Spec){
		"everything":            func(s *enforce.Spec) { *s = enforce.Spec{} },
		"no id":                 func(s *enforce.Spec) { s.ID = "" },
		"an id that is a path":  func(s *enforce.Spec) { s.ID = "../other" },
		"a long id":             func(s *enforce.Spec) { s.ID = strings.Repeat("a", 65) },
		"no digest":             func(s *enforce.Spec) { s.Executable.Digest = [32]byte{} },
		"no source":             func(s *enforce.Spec) { s.Executable.Source = nil },
		"no argv":               func(s *enforce.Spec) { s.Argv = nil },
		"NUL in argv":           func(s *enforce.Spec) { s.Argv = []string{"x", "a\x00b"} },
		"NUL in env":            func(s *enforce.Spec) { s.Env = []string{"A=1\x00B=2"} },
		"no name":               func(s *enforce.Spec) { s.Env = []string{"=1"} },
		"no value":              func(s *enforce.Spec) { s.Env = []string{"A"} },
		"a variable set twice":  func(s *enforce.Spec) { s.Env = []string{"A=1", "A=2"} },
		"too much":              func(s *enforce.Spec) { s.Argv = []string{strings.Repeat("x", enforce.MaxArguments)} },
		"no time limit":         func(s *enforce.Spec) { s.TimeLimit = 0 },
		"a negative time limit": func(s *enforce.Spec) { s.TimeLimit = -1 },
		"an endless time limit": func(s *enforce.Spec) { s.TimeLimit = enforce.MaxTime + 1 },
		"grace over the limit":  func(s *enforce.Spec) { s.Grace = s.TimeLimit },
		"unbounded inputs": func(s *enforce.Spec) {
			s.Inputs.Fill = func(context.Context, *os.Root) error { return nil }
		},
	} {
		s := good()
		change(&s)
		if err := s.Validate(); err == nil || !strings.HasPrefix(err.Error(), "enforce: ") {
			t.Errorf("without or with wrong: %s: %v", name, err)
		}
	}
}
