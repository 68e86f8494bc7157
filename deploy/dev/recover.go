package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/keyturn/keyturn/signoff"
)

// recoverStory replaces the log key as if it had been stolen: a quorum of
// notaries say where they stand, and the log goes on from there.
func (s *stage) recoverStory(ctx context.Context) error {
	for _, n := range notaries {
		d := s.find(n)
		if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
			return err
		}
		<-d.done
	}
	fingerprint, err := s.newLogKey(ctx)
	if err != nil {
		return err
	}
	two, err := s.recovery(ctx, fingerprint, notaries[:2])
	if err != nil {
		return err
	}
	s.refused("a recovery by two of four notaries", s.recover(ctx, two, "log.two"), "want 3")
	three, err := s.recovery(ctx, fingerprint, notaries[:3])
	if err != nil {
		return err
	}
	if r := s.recover(ctx, three, "log.new"); r.code != 0 {
		return s.allowed("a recovery by three of four notaries", "", r)
	}
	if err := s.goOn(ctx); err != nil {
		return err
	}
	r := s.as(ctx, "dave", "", "halt", "--everything", "--reason", "after the recovery")
	if r.code == 0 {
		r = s.audit(ctx, s.path("coordinator", "log"))
	}
	return s.allowed("three notaries replace the log key; the log goes on and verifies", "log key "+fingerprint, r)
}

func (s *stage) newLogKey(ctx context.Context) (string, error) {
	r := s.exec(ctx, "coordinator", s.pins["coordinator"]+"\n", "", "key", "new", "--kind", "ed25519", uri("coordinator", "log-2"))
	if r.code != 0 {
		return "", fmt.Errorf("new log key: %s", r.err)
	}
	var key signoff.PublicKey
	if err := json.Unmarshal([]byte(r.out), &key); err != nil {
		return "", err
	}
	return key.Fingerprint().String(), os.WriteFile(s.path("coordinator", "log-key.json"), []byte(r.out), 0o644)
}

// notary runs keyturn-notary as one of the notaries.
func (s *stage) notary(ctx context.Context, name, answer string, args ...string) result {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "keyturn-notary"), append([]string{"--pin-fd", "3", "--config", s.path("notaries", name, "notary.yaml")}, args...)...)
	cmd.Env = s.env(name)
	return runCommand(cmd, s.pins[name]+"\n", answer+"\n")
}

// recovery has notaries state their positions and the first of them sign.
func (s *stage) recovery(ctx context.Context, fingerprint string, from []string) (string, error) {
	var files []string
	for _, n := range from {
		file := s.path("notaries", n, fmt.Sprintf("position-%d", len(from)))
		if r := s.notary(ctx, n, "state", "position", "--log-key", fingerprint, "--out", file); r.code != 0 {
			return "", fmt.Errorf("position of %s: %s", n, r.err)
		}
		files = append(files, file)
	}
	out := s.path(fmt.Sprintf("recovery-%d.json", len(from)))
	r := s.notary(ctx, from[0], "recover", append([]string{"recovery", "--log-key", s.path("coordinator", "log-key.json"), "--out", out}, files...)...)
	if r.code != 0 {
		return "", fmt.Errorf("recovery: %s", r.err)
	}
	return out, nil
}

func (s *stage) recover(ctx context.Context, recovery, to string) result {
	return s.program(ctx, "coordinator", "keyturnd", "recover", "--charter", s.charter, "--from", s.path("coordinator", "log"),
		"--to", s.path("coordinator", to), "--recovery", recovery)
}

// goOn puts the new log in the place of the old and starts everything.
func (s *stage) goOn(ctx context.Context) error {
	at := func(name string) string { return s.path("coordinator", name) }
	if err := errors.Join(os.Rename(at("log"), at("log.old")), os.Rename(at("log.new"), at("log")), os.Rename(at("etcd"), at("etcd.old"))); err != nil {
		return err
	}
	if err := s.writeConfig("coordinator/keyturnd.yaml", map[string]string{"listen": strings.TrimPrefix(s.url, "https://"), "dir": ".",
		"genesis": "../genesis.jsonl", "logKey": uri("coordinator", "log-2"), "logKeyPublic": "log-key.json", "tlsKey": uri("coordinator", "tls")}); err != nil {
		return err
	}
	if err := s.daemon("coordinator", "keyturnd", "--config", at("keyturnd.yaml")); err != nil {
		return err
	}
	for _, n := range notaries {
		if err := s.daemon(n, "keyturn-notary", "run", "--config", s.path("notaries", n, "notary.yaml")); err != nil {
			return err
		}
	}
	return s.await(ctx, "the log to go on", func(v statusView) bool { return v.GroupKey })
}
