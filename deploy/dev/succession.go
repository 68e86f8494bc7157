package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// successionStory changes who is there: a person comes and another leaves, and
// a notary whose disk died is replaced. Weights and public key stay.
func (s *stage) successionStory(ctx context.Context) error {
	if err := s.peopleStory(ctx); err != nil {
		return err
	}
	return s.notaryStory(ctx)
}

func (s *stage) peopleStory(ctx context.Context) error {
	keys, err := s.makeToken(ctx, "frank", map[string]string{"sign": "p256", "exchange": "ecdh"})
	if err != nil {
		return err
	}
	if err := s.writeJSON("people/frank.json", foundingPerson{"frank", "institute", []string{"security", "research"}, keys["sign"], keys["exchange"]}); err != nil {
		return err
	}
	if err := s.writeConfig("people/frank/keyturn.yaml", map[string]string{"name": "frank", "signing": uri("frank", "sign"), "exchange": uri("frank", "exchange"), "state": "state"}); err != nil {
		return err
	}
	id, err := s.ask(ctx, "alice", "erin moves on, frank comes", "people", "--add", s.path("people", "frank.json"), "--remove", "erin")
	if err != nil {
		return err
	}
	if r := s.as(ctx, "frank", "accept\n", "people", "accept", id); r.code != 0 {
		return fmt.Errorf("frank accepts: %s", r.err)
	}
	s.refused("frank approves that he comes", s.decide(ctx, "frank", "approve", id), "nobody among the people")
	if err := s.approvals(ctx, id, "bob", "carol", "dave"); err != nil {
		return err
	}
	r := s.as(ctx, "alice", "", "warrant", "get", id, "--out", s.path("warrant-people.json"))
	if err := s.allowed("frank comes and erin leaves: three people agreed", "warrant-people.json", r); err != nil {
		return err
	}
	s.refused("erin, who left, halts", s.as(ctx, "erin", "", "halt", "--everything", "--reason", "the demo's story"), "no longer a person of this cluster")
	return s.redeal(ctx)
}

// redeal has three holders deal their shares on, and everybody accept.
func (s *stage) redeal(ctx context.Context) error {
	for _, p := range []string{"alice", "bob", "carol", "dave", "frank", "alice", "bob"} {
		if r := s.as(ctx, p, "", "weights", "redeal", "--all"); r.code != 0 {
			return fmt.Errorf("%s deals on: %s", p, r.err)
		}
	}
	r := s.as(ctx, "frank", "", "weights", "drill", s.object)
	return s.allowed("shares follow the people, files stay as they are: frank's opens on frank's token", "drill passed", r)
}

func (s *stage) notaryStory(ctx context.Context) error {
	before := s.as(ctx, "alice", "", "warrant", "group")
	s.kill("west")
	if err := os.RemoveAll(s.path("notaries", "west")); err != nil {
		return err
	}
	keys, err := s.makeToken(ctx, "centre", map[string]string{"sign": "p256", "exchange": "ecdh", "witness": "ed25519", "seal": "seal"})
	if err != nil {
		return err
	}
	entry := filepath.Join("notaries", "centre.json")
	if err := s.writeJSON(entry, foundingNotary{"centre", "team-centre", keys["sign"], keys["exchange"], keys["witness"]}); err != nil {
		return err
	}
	if err := s.startNotary(ctx, "centre", map[string]string{"entry": s.path(entry)}); err != nil {
		return err
	}
	id, err := s.ask(ctx, "alice", "west's disk died", "notaries", "--add", s.path(entry), "--remove", "west")
	if err != nil {
		return err
	}
	if err := s.approvals(ctx, id, "bob", "carol", "frank"); err != nil {
		return err
	}
	if r := s.as(ctx, "alice", "", "warrant", "get", id, "--out", s.path("warrant-notaries.json")); r.code != 0 {
		return fmt.Errorf("the warrant for the change of notaries: %s", r.err)
	}
	if err := s.await(ctx, "the new notaries to take over", func(v statusView) bool { return !strings.Contains(strings.Join(v.Waits, "\n"), "term 2") }); err != nil {
		return err
	}
	after := s.as(ctx, "alice", "", "warrant", "group")
	s.note("a notary whose disk died is replaced; the group's key stays", "allowed", "centre for west", before.code == 0 && after.code == 0 && bytes.Equal([]byte(before.out), []byte(after.out)))
	r := s.as(ctx, "alice", "", "weights", "info", s.path("model.sealed"), "--log")
	s.note("notaries' shares follow by themselves, files stay as they are", "allowed", "the shares of term 2", r.code == 0 && strings.Contains(r.out, "epoch 2, with the notaries of term 2"))
	s.kill("north")
	r = s.as(ctx, "dave", "", "halt", "--everything", "--reason", "with another notary gone")
	if r.code == 0 {
		r = s.audit(ctx, s.path("coordinator", "log"))
	}
	return s.allowed("with one more notary gone its word counts, and the log verifies", "a halt is final", r)
}

// startNotary writes a notary's configuration, makes its memory and starts it.
func (s *stage) startNotary(ctx context.Context, name string, more map[string]string) error {
	values := map[string]string{"name": name, "dir": "memory", "signing": uri(name, "sign"), "exchange": uri(name, "exchange"), "witness": uri(name, "witness"), "seal": uri(name, "seal")}
	for k, v := range more {
		values[k] = v
	}
	if err := s.writeConfig(filepath.Join("notaries", name, "notary.yaml"), values); err != nil {
		return err
	}
	file := s.path("notaries", name, "notary.yaml")
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "keyturn-notary"), "init", "--config", file)
	if r := runCommand(cmd, "", ""); r.code != 0 {
		return fmt.Errorf("notary %s: %s", name, r.err)
	}
	return s.daemon(name, "keyturn-notary", "run", "--config", file)
}

func (s *stage) writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(s.path(name), b, 0o644)
}
