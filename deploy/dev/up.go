package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

// leave leaves the cluster running with one request that waits, and says what
// to try first.
func (s *stage) leave(ctx context.Context) error {
	if err := s.sealWeights(ctx); err != nil {
		return err
	}
	id, err := s.ask(ctx, "alice", "try keyturn", "export", "--object", s.object, "--recipient", "partner lab",
		"--recipient-key", s.path("partner.pub.json"), "--destination", "disk serial DEMO-0001")
	if err != nil {
		return err
	}
	if err := errors.Join(s.writeAs(), s.writePids()); err != nil {
		return err
	}
	as := relative(s.path("as"))
	fmt.Printf(`
The cluster runs. alice has asked for an export and waits for three others. Try:

  %[1]s bob status
  %[1]s bob show %[2]s
  %[1]s bob approve %[2]s --reason "I checked"

%[1]s NAME COMMAND... runs keyturn as alice, bob, carol, dave or erin, with
that person's token and its PIN. Stop it all with: make down
`, as, strings.TrimPrefix(id, "sha256:")[:12])
	return nil
}

// writeAs writes a script that runs keyturn as a person. PINs come from files
// here, because this is a stage and the tokens are programs.
func (s *stage) writeAs() error {
	script := `#!/bin/sh
# Runs keyturn as one of the stage's people: as NAME COMMAND...
who=${1:?say who: alice, bob, carol, dave or erin}; shift
SOFTHSM2_CONF='` + s.dir + `'/tokens/"$who"/softhsm2.conf exec '` + filepath.Join(s.bin, "keyturn") +
		`' --config '` + s.dir + `'/people/"$who"/keyturn.yaml --pin-fd 3 "$@" 3<'` + s.dir + `'/tokens/"$who"/pin
`
	return os.WriteFile(s.path("as"), []byte(script), 0o755)
}

func (s *stage) writePids() error {
	var b strings.Builder
	for _, d := range s.daemons {
		fmt.Fprintln(&b, d.cmd.Process.Pid)
	}
	for _, p := range s.tpms {
		fmt.Fprintln(&b, strings.TrimPrefix(p.Path, "unix:")) // before its process: down reads backward
		fmt.Fprintln(&b, p.Pid())
	}
	return os.WriteFile(s.path("pids"), []byte(b.String()), 0o644)
}

// down ends the processes that up left, last started first.
func (s *stage) down() error {
	b, err := os.ReadFile(s.path("pids"))
	if err != nil {
		return fmt.Errorf("nothing runs from %s: %w", s.dir, err)
	}
	lines := strings.Split(string(b), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if filepath.IsAbs(lines[i]) {
			swtpm.RemoveSockets(lines[i])
			continue
		}
		pid, err := strconv.Atoi(lines[i])
		if err != nil || pid <= 1 || !s.ours(pid) {
			continue
		}
		syscall.Kill(pid, syscall.SIGINT)
		for range 30 {
			if syscall.Kill(pid, 0) != nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if s.ours(pid) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return os.Remove(s.path("pids"))
}

// ours reports whether the process still is one that up started, and not
// another that was given the same number since.
func (s *stage) ours(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(b), s.dir)
}
