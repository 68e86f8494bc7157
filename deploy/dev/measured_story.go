package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/deploy/dev/vm"
)

// approvedStory boots the approved image for good: the guest enrols, proves that
// boot, and reads weights.
func (s *stage) approvedStory(ctx context.Context) error {
	if err := s.fillData(ctx); err != nil {
		return err
	}
	if err := s.bootGuest(ctx, "approved", secure); err != nil {
		return err
	}
	if err := s.evidence(ctx, "approved"); err != nil {
		return err
	}
	if err := s.crossCheck(ctx, "approved"); err != nil {
		return err
	}
	if err := s.fetch(ctx, "/data/enrolment.json", s.guestPath("enrolment.json")); err != nil {
		return err
	}
	if err := s.admit(ctx, guest, s.guestPath("enrolment.json")); err != nil {
		return err
	}
	if err := s.lease(ctx, "the guest proves the approved boot and holds a lease", "version 1"); err != nil {
		return err
	}
	_, warrant, err := s.launch(ctx, "launch", 4, 0)
	if err != nil {
		return err
	}
	s.warrant = warrant
	return s.readWeights("the run on the guest reads the weights", s.runInGuest(ctx))
}

// fillData puts on the guest's disk what its agent is to have. The charter's
// digest is there and not in the image, because this charter names the image.
func (s *stage) fillData(ctx context.Context) error {
	data := s.guestPath("data")
	line, err := s.approveBoot(ctx, s.guestPath("approved.reference.json"))
	if err != nil {
		return err
	}
	config := "charter: " + s.charter + "\ncharterFile: charter.json\ntpm: /dev/tpmrm0\ndir: memory\nsocket: /run/keyturn/agent.sock\n" +
		"eventLog: /sys/kernel/security/tpm0/binary_bios_measurements\nbootApproval: boot-approvals.jsonl\nobjects: [model.sealed]\nsnapshots: snapshots\n"
	if err := errors.Join(os.Mkdir(filepath.Join(data, "snapshots"), 0o700), os.WriteFile(filepath.Join(data, "agent.yaml"), []byte(config), 0o644),
		os.WriteFile(filepath.Join(data, "boot-approvals.jsonl"), []byte(line), 0o644),
		os.CopyFS(filepath.Join(data, "model.sealed"), os.DirFS(s.path("model.sealed")))); err != nil {
		return err
	}
	for _, file := range []string{s.path("charter.json"), s.train, filepath.Join(s.bin, "keyturn")} {
		b, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(data, filepath.Base(file)), b, 0o755)
		}
		if err != nil {
			return err
		}
	}
	return vm.WriteData(s.guestPath("data.img"), data)
}

// lease waits for a lease of the boot that the set of the version describes.
func (s *stage) lease(ctx context.Context, step, version string) error {
	reason := ""
	err := s.await(ctx, step, func(v statusView) bool {
		for _, n := range v.Nodes {
			reason = n.Reason
			return n.Verdict == "pass" && strings.HasSuffix(n.Reason, version)
		}
		return false
	})
	if err == nil {
		s.note(step, "allowed", reason, true)
	}
	return err
}

// runInGuest has the guest's agent take a use of the warrant. It waits itself
// until the agent's lease lists it.
func (s *stage) runInGuest(ctx context.Context) result {
	return s.inGuest(ctx, "/data/keyturn run %s --executable /data/train", s.warrant)
}

// crossCheck compares what keyturn and others make of the guest's logs.
func (s *stage) crossCheck(ctx context.Context, name string) error {
	log := s.guestPath(name + ".eventlog")
	yaml := runCommand(exec.CommandContext(ctx, "tpm2_eventlog", log), "", "")
	if yaml.code != 0 {
		return fmt.Errorf("tpm2_eventlog: %s", yaml.err)
	}
	theirs, n := tpm2PCRs(yaml.out), 0
	var ours struct {
		PCRs map[string]string `json:"pcrs"`
	}
	for _, bank := range slices.Backward(banks) { // the last is sha256
		r := s.program(ctx, guest, "keyturn", "attest", "eventlog", log, "--json", "--bank", bank, "--expect", s.guestPath(name+".pcrs.json"))
		ours.PCRs = nil
		if err := s.allowed("the firmware's log leads to the TPM's "+bank+" PCRs", fmt.Sprintf("%d bytes of log", fileSize(log)), r); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(r.out), &ours); err != nil {
			return err
		}
		for pcr, value := range ours.PCRs {
			if theirs[bank][pcr] != value {
				return fmt.Errorf("tpm2_eventlog says that %s PCR %s is %q, keyturn %q", bank, pcr, theirs[bank][pcr], value)
			}
			n++
		}
	}
	s.note("tpm2_eventlog of tpm2-tools agrees with keyturn", "allowed", fmt.Sprintf("%d PCRs of %v", n, banks), n > 0)
	return s.bootAggregate(ctx, name, ours.PCRs)
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// tpm2PCRs reads the PCRs by bank from what tpm2_eventlog prints.
func tpm2PCRs(yaml string) map[string]map[string]string {
	out, bank := map[string]map[string]string{}, ""
	_, yaml, _ = strings.Cut(yaml, "\npcrs:\n")
	for line := range strings.Lines(yaml) {
		key, value, _ := strings.Cut(line, ":")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if value == "" {
			bank = key
			out[bank] = map[string]string{}
		} else {
			out[bank][key] = strings.TrimPrefix(value, "0x")
		}
	}
	return out
}

// bootAggregate wants the kernel's own list to begin with the PCRs of the boot.
func (s *stage) bootAggregate(ctx context.Context, name string, pcrs map[string]string) error {
	r := s.program(ctx, guest, "keyturn", "attest", "ima", s.guestPath(name+".ima"), "--json")
	var v struct {
		Entries       int    `json:"entries"`
		BootAggregate string `json:"bootAggregate"`
	}
	if err := s.allowed("the kernel's measurement list replays", fmt.Sprintf("%d bytes", fileSize(s.guestPath(name+".ima"))), r); err != nil {
		return err
	}
	h := sha256.New()
	for pcr := range 10 {
		value, err := hex.DecodeString(pcrs[fmt.Sprint(pcr)])
		if err != nil {
			return err
		}
		if len(value) == 0 {
			value = make([]byte, sha256.Size)
		}
		h.Write(value)
	}
	err := json.Unmarshal([]byte(r.out), &v)
	s.note("its boot aggregate is that of PCR 0 to 9", "allowed", v.BootAggregate, strings.HasSuffix(v.BootAggregate, hex.EncodeToString(h.Sum(nil))))
	return err
}

// updateStory boots the next image, which was judged without ever being booted.
// It holds a lease, but its TPM opens no share before the ceremony's key signs.
func (s *stage) updateStory(ctx context.Context) error {
	if err := s.bootGuest(ctx, "next", secure); err != nil {
		return err
	}
	if err := s.evidence(ctx, "next"); err != nil {
		return err
	}
	if err := s.lease(ctx, "the guest boots an image whose PCRs were predicted, and holds a lease", "version 2"); err != nil {
		return err
	}
	s.refused("a run in a boot that the ceremony has not approved: the TPM opens no share", s.runInGuest(ctx), "boot not approved")
	line, err := s.approveBoot(ctx, s.guestPath("next.reference.json"))
	if err != nil {
		return err
	}
	if r := s.inGuest(ctx, "echo '%s' >>/data/boot-approvals.jsonl", strings.TrimSpace(line)); r.code != 0 {
		return fmt.Errorf("add the approval: %s", r.err)
	}
	return s.readWeights("the ceremony approves the boot: the same keys open the shares", s.runInGuest(ctx))
}

// refusedStory changes one thing at a time, each signed where that helps.
func (s *stage) refusedStory(ctx context.Context) error {
	pcr4 := map[string][]string{}
	for _, image := range []string{"next", "options", "initrd"} {
		var err error
		if pcr4[image], err = s.predicted(ctx, image); err != nil {
			return err
		}
	}
	for _, c := range []struct{ step, disk, variables, why, changed string }{
		{"another kernel command line, signed", "options", secure, pcr4["options"][0], "PCR 11: content of section .cmdline"},
		{"another initramfs, signed", "initrd", secure, pcr4["initrd"][0], "PCR 11: content of section .initrd"},
		{"a credential beside the image, by whoever can write to the disk", "beside", secure, "PCR 12 is sha256:", "PCR 12"},
		{"the image itself, with secure boot off", "next", insecure, pcr4["next"][1], "PCR 7: secure boot off"},
	} {
		if err := s.bootGuest(ctx, c.disk, c.variables); err != nil {
			return err
		}
		if err := s.evidence(ctx, c.disk+"."+c.variables); err != nil {
			return err
		}
		if err := s.failing(ctx, c.step, c.why, c.changed); err != nil {
			return err
		}
		s.refused("a run there: no lease", s.runInGuest(ctx), c.why)
	}
	return s.powerOff(ctx)
}

// predicted returns what PCR 4 can be on a machine that boots the image.
func (s *stage) predicted(ctx context.Context, image string) ([]string, error) {
	r := s.program(ctx, guest, "keyturn", "reference", "from-uki", s.guestPath(image+".efi"), "--json")
	var v struct {
		PCR4 []string `json:"pcr4"`
	}
	if r.code != 0 || json.Unmarshal([]byte(r.out), &v) != nil || len(v.PCR4) != 2 {
		return nil, fmt.Errorf("predict %s: %s%s", image, r.out, r.err)
	}
	return v.PCR4, nil
}

// failing waits for a failing verdict with words that no other boot of the story
// gives, and wants the explanation to name the one thing that was changed.
func (s *stage) failing(ctx context.Context, step, why, changed string) error {
	reason := ""
	if err := s.await(ctx, "a failing verdict on "+step, func(v statusView) bool {
		for _, n := range v.Nodes {
			reason = n.Reason
			return n.Verdict == "fail" && strings.Contains(n.Reason, why)
		}
		return false
	}); err != nil {
		return err
	}
	s.note(step, "refused: "+why, reason, true)
	r := s.as(ctx, "alice", "", "node", "explain", guest, "--json")
	var v struct {
		Changes []struct {
			PCR          int
			Gone         bool
			Digest, Text string
		}
	}
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || r.code != 0 {
		return fmt.Errorf("explain: %w: %s", err, r.err)
	}
	// That the image as a whole is another one, and with which keys it was
	// verified, follows from what is looked for here.
	var told []string
	for _, c := range v.Changes {
		if !c.Gone && (c.PCR == 11 || c.PCR == 12 || strings.HasPrefix(c.Text, "secure boot")) {
			told = append(told, fmt.Sprintf("PCR %d: %s", c.PCR, strings.TrimSpace(c.Text+" "+c.Digest)))
		}
	}
	got := strings.Join(told, "; ")
	s.note("what changed, in words", "refused: "+changed, got, len(told) == 1 && strings.HasPrefix(got, changed))
	return nil
}
