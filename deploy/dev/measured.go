package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keyturn/keyturn/deploy/dev/vm"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

// guest is the node that is a virtual machine.
const guest = "node-m"

// bootPatience bounds one boot, in which a processor is emulated.
const bootPatience = 10 * time.Minute

// bootTries bounds how often a boot is tried whose kernel gave the TPM up.
const bootTries = 3

// judged are the PCRs that the guest's reference sets name: the firmware's, the
// image's, and those of what may lie beside an image.
const judged = "0,1,2,3,4,5,6,7,11,12,13"

// banks are those of the guest's TPM.
var banks = []string{"sha256", "sha384"}

// cmdline is what the approved image gives its kernel.
const cmdline = "console=ttyS0 panic=1"

// images are what the guest boots, by name. All are signed with the same key.
// The last two are the next one with one thing changed.
var images = map[string]vm.Image{
	"approved": {CommandLine: cmdline, Note: "version 1"},
	"next":     {CommandLine: cmdline + " quiet", Note: "version 2"},
	"options":  {CommandLine: cmdline + " quiet mitigations=off", Note: "version 2"},
	"initrd":   {CommandLine: cmdline + " quiet", Note: "version 2 with a back door"},
}

// The firmware's variables: with the signer's key enrolled, and as they come.
const (
	secure   = "secure.fd"
	insecure = "insecure.fd"
)

// vmtest tells of one node that boots as a real one does.
func (s *stage) vmtest(ctx context.Context, kernel string) error {
	s.host, s.nodes, s.leases, s.modelBytes, s.patience = "localhost", []string{guest}, "{epoch: 5, lease: 120, drainGrace: 5}", 16<<20, bootPatience
	defer s.stop()
	err := s.setUp(ctx, func(ctx context.Context, f *founding) error { return s.makeGuest(ctx, f, kernel) })
	if err == nil {
		err = s.tell(ctx, s.sealWeights, s.approvedStory, s.updateStory, s.refusedStory)
	}
	if err != nil {
		s.showConsole()
	}
	return err
}

func (s *stage) guestPath(name string) string { return s.path("nodes", guest, name) }

// showConsole prints the end of what the guest wrote to its console.
func (s *stage) showConsole() {
	const most = 6000
	for _, name := range []string{"console.log", "console.log.qemu"} {
		if b, err := os.ReadFile(s.guestPath(name)); err == nil && len(b) > 0 {
			fmt.Printf("--- the end of %s:\n%s\n---\n", relative(s.guestPath(name)), b[max(0, len(b)-most):])
		}
	}
}

// makeGuest makes the machine and its images and learns what its firmware
// measures. The charter gets a reference set for two of them: the approved image
// and the next one, which nobody has booted yet.
func (s *stage) makeGuest(ctx context.Context, f *founding, kernel string) error {
	s.say("machine: %s, a qemu with OVMF, secure boot and a TPM (swtpm: EMULATED)", guest)
	ca := s.path("tpm-ca")
	if err := swtpm.Setup(s.guestPath("tpm"), ca, banks[1:]...); err != nil {
		return err
	}
	var err error
	if f.EKRoots, err = swtpm.Roots(ca); err != nil {
		return err
	}
	if err := s.makeImages(kernel); err != nil {
		return err
	}
	s.say("images: %d, each with the agent in its initramfs, signed with the one key that the firmware accepts", len(images))
	if err := s.learn(ctx); err != nil {
		return err
	}
	for version, name := range []string{"approved", "next"} {
		set := s.guestPath(name + ".reference.json")
		r := s.program(ctx, guest, "keyturn", "reference", "from-uki", s.guestPath(name+".efi"), "--name", "measured", "--version", fmt.Sprint(version+1),
			"--eventlog", s.guestPath("first.eventlog"), "--expect", s.guestPath("first.pcrs.json"), "--pcrs", judged, "--out", set)
		if r.code != 0 {
			return fmt.Errorf("reference values: %s", r.err)
		}
		b, err := os.ReadFile(set)
		if err != nil {
			return err
		}
		f.References = append(f.References, strings.TrimSpace(string(b)))
	}
	return nil
}

// makeImages makes the key that signs, the firmware's variables with it and
// without, a disk for each image, and one with a file beside the image.
func (s *stage) makeImages(kernel string) error {
	key, cert := s.guestPath("signer.key"), s.guestPath("signer.crt")
	der, err := vm.NewSigner(key, cert)
	if err != nil {
		return err
	}
	empty, err := os.ReadFile(vm.Variables)
	if err != nil {
		return err
	}
	enrolled, err := vm.Enrol(empty, der)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(s.guestPath(insecure), empty, 0o600), os.WriteFile(s.guestPath(secure), enrolled, 0o600)); err != nil {
		return err
	}
	for name, i := range images {
		i.Kernel, i.Programs = kernel, []string{filepath.Join(s.bin, "keyturn-agent")}
		if err := i.Build(s.guestPath(name+".efi"), key, cert); err != nil {
			return err
		}
		if err := vm.WriteESP(s.guestPath(name+".esp"), s.guestPath(name+".efi")); err != nil {
			return err
		}
	}
	credential := s.guestPath("evil.cred")
	if err := os.WriteFile(credential, []byte("what the running system would believe"), 0o644); err != nil {
		return err
	}
	return vm.WriteESP(s.guestPath("beside.esp"), s.guestPath("next.efi"), credential)
}

// bootGuest ends the machine that runs, if one does, and boots from a disk.
func (s *stage) bootGuest(ctx context.Context, disk, variables string) error {
	if err := s.powerOff(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootPatience, fmt.Errorf("no answer within %v", bootPatience))
	defer cancel()
	start := time.Now()
	c := vm.Config{TPM: s.guestPath("tpm"), Socket: filepath.Join(os.TempDir(), fmt.Sprintf("keyturn-%d-%s.sock", os.Getpid(), guest)),
		Variables: s.guestPath(variables), ESP: s.guestPath(disk + ".esp"), Data: s.guestPath("data.img"), Console: s.guestPath("console.log")}
	var err error
	for range bootTries {
		if s.machine, err = vm.Boot(ctx, c); !errors.Is(err, vm.ErrNoTPM) {
			break
		}
		s.say("%s boots again: %v", guest, err)
	}
	if err == nil {
		s.say("%s booted from %s.esp with %s in %.0f s", guest, disk, variables, time.Since(start).Seconds())
	}
	return err
}

func (s *stage) powerOff(ctx context.Context) error {
	if s.machine == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	m := s.machine
	s.machine = nil
	return m.PowerOff(ctx)
}

// inGuest runs a command line on the guest, as root.
func (s *stage) inGuest(ctx context.Context, format string, args ...any) result {
	r, err := s.machine.Run(ctx, fmt.Sprintf(format, args...))
	if err != nil {
		return result{err: err.Error(), code: -1}
	}
	return result{out: r.Out, err: r.Err, code: r.Code}
}

// fetch copies a file of the guest.
func (s *stage) fetch(ctx context.Context, from, to string) error {
	r := s.inGuest(ctx, "cat %s", from)
	if r.code != 0 {
		return fmt.Errorf("%s of %s: %s", from, guest, r.err)
	}
	return os.WriteFile(to, []byte(r.out), 0o644)
}

// learn boots the approved image, keeps the firmware's log, and holds it against
// the PCRs that the guest's kernel reads from the TPM.
func (s *stage) learn(ctx context.Context) error {
	if err := errors.Join(os.MkdirAll(s.guestPath("data"), 0o755), vm.WriteData(s.guestPath("data.img"), s.guestPath("data"))); err != nil {
		return err
	}
	if err := s.bootGuest(ctx, "approved", secure); err != nil {
		return err
	}
	if err := s.evidence(ctx, "first"); err != nil {
		return err
	}
	return s.powerOff(ctx)
}

// evidence copies what the guest's firmware and kernel logged, as NAME.eventlog
// and NAME.ima, and what PCRs its TPM has, as NAME.pcrs.json.
func (s *stage) evidence(ctx context.Context, name string) error {
	err := errors.Join(s.fetch(ctx, "/sys/kernel/security/tpm0/binary_bios_measurements", s.guestPath(name+".eventlog")),
		s.fetch(ctx, "/sys/kernel/security/ima/binary_runtime_measurements", s.guestPath(name+".ima")))
	pcrs := map[string]map[string]string{}
	for _, bank := range banks {
		pcrs[bank] = map[string]string{}
		r := s.inGuest(ctx, "cd /sys/class/tpm/tpm0/pcr-%s && grep . *", bank)
		for line := range strings.Lines(r.out) {
			if pcr, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				pcrs[bank][pcr] = strings.ToLower(value)
			}
		}
		if len(pcrs[bank]) != 24 {
			return fmt.Errorf("%s of %s shows %d PCRs: %s", bank, guest, len(pcrs[bank]), r.err)
		}
	}
	b, e := json.Marshal(pcrs)
	return errors.Join(err, e, os.WriteFile(s.guestPath(name+".pcrs.json"), b, 0o644))
}
