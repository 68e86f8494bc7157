package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// A step is one line of summary.json.
type step struct {
	Step     string `json:"step"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
	OK       bool   `json:"ok"`
}

// tell runs the chapters and writes summary.json.
func (s *stage) tell(ctx context.Context, chapters ...func(context.Context) error) error {
	var err error
	for _, chapter := range chapters {
		if err = chapter(ctx); err != nil {
			break
		}
	}
	b, e := json.MarshalIndent(s.steps, "", "  ")
	if e := errors.Join(e, os.WriteFile(s.path("summary.json"), append(b, '\n'), 0o644)); e != nil {
		return e
	}
	if err != nil {
		return err
	}
	failed := 0
	for _, st := range s.steps {
		if !st.OK {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d steps did not come out as expected; see %s", failed, len(s.steps), s.path("summary.json"))
	}
	s.say("all %d steps came out as expected; they are in %s", len(s.steps), relative(s.path("summary.json")))
	return nil
}

// note records a step and prints it.
func (s *stage) note(name, expected, got string, ok bool) {
	s.steps = append(s.steps, step{name, expected, got, ok})
	mark := "  ok  "
	switch {
	case !ok:
		mark = " WRONG"
	case strings.HasPrefix(expected, "refused"):
		mark = "REFUSED"
	}
	s.say("%-7s %s: %s", mark, name, got)
}

// refused records a step that must fail, with why in the reason given.
func (s *stage) refused(name string, r result, why string) {
	got := r.reason()
	s.note(name, "refused: "+why, got, r.code != 0 && strings.Contains(r.err, why))
}

// allowed records a step that must succeed, and ends the story if it did not:
// what follows would mean nothing.
func (s *stage) allowed(name, got string, r result) error {
	if r.code != 0 {
		got = r.reason()
	}
	s.note(name, "allowed", got, r.code == 0)
	if r.code != 0 {
		return fmt.Errorf("%s: %s", name, r.err)
	}
	return nil
}

// decide has a person decide on a request.
func (s *stage) decide(ctx context.Context, person, decision, request string) result {
	return s.as(ctx, person, decision+"\n", decision, request, "--reason", "the demo's story")
}

// approvals has people approve one after the other.
func (s *stage) approvals(ctx context.Context, request string, people ...string) error {
	for _, p := range people {
		if r := s.decide(ctx, p, "approve", request); r.code != 0 {
			return fmt.Errorf("%s approves: %s", p, r.err)
		}
	}
	return nil
}

// ask makes a request and returns its digest.
func (s *stage) ask(ctx context.Context, person, purpose string, args ...string) (string, error) {
	r := s.as(ctx, person, "", append([]string{"request", args[0], "--purpose", purpose}, args[1:]...)...)
	if r.code != 0 {
		return "", fmt.Errorf("%s asks for %s: %s", person, args[0], r.err)
	}
	return strings.TrimSpace(r.out), nil
}

// relative names a file as seen from where the demo was started.
func relative(path string) string {
	if dir, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(dir, path); err == nil {
			return rel
		}
	}
	return path
}
