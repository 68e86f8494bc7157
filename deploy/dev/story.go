package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// A step is one line of summary.json.
type step struct {
	Step     string `json:"step"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
	OK       bool   `json:"ok"`
}

// tell runs the story and writes summary.json.
func (s *stage) tell(ctx context.Context) error {
	err := s.story(ctx)
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
		return fmt.Errorf("%d of %d steps did not come out as expected; see summary.json", failed, len(s.steps))
	}
	s.say("all %d steps came out as expected", len(s.steps))
	return nil
}

func (s *stage) story(ctx context.Context) error { return nil }

func (s *stage) leave() error { return nil }
