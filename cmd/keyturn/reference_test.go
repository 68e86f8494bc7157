package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/eventlog"
	"github.com/keyturn/keyturn/attest/tree"
	"github.com/keyturn/keyturn/cmd/internal/ui"
)

// ukiFile writes a small unified kernel image with sections of name and content.
func ukiFile(t *testing.T, sections ...[2]string) string {
	t.Helper()
	const pe, optional, headers = 0x40, 0x58, 0x400
	le := binary.LittleEndian
	b := make([]byte, headers)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], pe)
	copy(b[pe:], "PE\x00\x00")
	le.PutUint16(b[pe+6:], uint16(len(sections)))
	le.PutUint16(b[pe+20:], 240)
	le.PutUint16(b[optional:], 0x20b)
	le.PutUint32(b[optional+60:], headers)
	le.PutUint32(b[optional+108:], 16)
	for i, s := range sections {
		row := b[optional+240+40*i:]
		copy(row[:8], s[0])
		le.PutUint32(row[8:], uint32(len(s[1])))
		le.PutUint32(row[16:], uint32(len(s[1])))
		le.PutUint32(row[20:], uint32(len(b)))
		b = append(b, s[1]...)
	}
	file := filepath.Join(t.TempDir(), "linux.efi")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const stubMagic = "#### LoaderInfo: systemd-stub 254.1 ####\x00"

// extended is a PCR after the texts given were measured into it.
func extended(texts ...string) string {
	var pcr [32]byte
	for _, text := range texts {
		digest := sha256.Sum256([]byte(text))
		pcr = sha256.Sum256(append(pcr[:], digest[:]...))
	}
	return hex.EncodeToString(pcr[:])
}

// A reference set predicted from an image is what a node that boots it is held
// to, before anybody boots it.
func TestReferenceFromUKI(t *testing.T) {
	file := ukiFile(t, [2]string{".linux", "kernel"}, [2]string{".sdmagic", stubMagic}, [2]string{".cmdline", "quiet"})
	measured := []string{".linux\x00", "kernel", ".cmdline\x00", "quiet"}
	code, out, errs := runHere("reference", "from-uki", file, "--json")
	var v ukiView
	if err := json.Unmarshal([]byte(out), &v); code != 0 || err != nil {
		t.Fatalf("exit %d: %s %v", code, errs, err)
	}
	if v.PCR11 != extended(measured...) || v.Stub != "254.1" || len(v.Sections) != 2 || len(v.PCR4) != 1 || v.Kernel != "" {
		t.Errorf("%+v", v)
	}
	if last := v.Phases[len(v.Phases)-1]; last.Phase != "ready" || last.PCR11 != extended(append(measured, "enter-initrd", "leave-initrd", "sysinit", "ready")...) {
		t.Errorf("%+v", last)
	}
	set := filepath.Join(t.TempDir(), "set.json")
	args := []string{"reference", "from-uki", file, "--name", "rack-a", "--version", "3", "--pcrs", "4,11", "--phase", "enter-initrd", "--valid", "1h", "--out", set}
	if code, out, errs := runHere(args...); code != 0 || !strings.Contains(out, v.PCR4[0]) {
		t.Fatalf("exit %d: %s", code, errs)
	}
	b, err := os.ReadFile(set)
	if err != nil {
		t.Fatal(err)
	}
	r, err := attest.ParseReferenceSet(b)
	if err != nil {
		t.Fatal(err)
	}
	if r.Name != "rack-a" || r.Version != 3 || r.NotAfter-r.NotBefore != 3600 || len(r.PCRs) != 2 ||
		r.PCRs[4][0].String() != "sha256:"+v.PCR4[0] || r.PCRs[11][0].String() != "sha256:"+extended(append(measured, "enter-initrd")...) {
		t.Errorf("%+v", r)
	}
}

func TestReferenceFromUKIRefusals(t *testing.T) {
	good := [][2]string{{".linux", "kernel"}, {".sdmagic", stubMagic}}
	out := filepath.Join(t.TempDir(), "set.json")
	oneLineRefusal(t, "no section .linux", "reference", "from-uki", ukiFile(t, good[1:]...))
	oneLineRefusal(t, "no section .sdmagic", "reference", "from-uki", ukiFile(t, good[:1]...))
	oneLineRefusal(t, "is not a file", "reference", "from-uki", t.TempDir())
	oneLineRefusal(t, "the name is not printable ASCII", "reference", "from-uki", ukiFile(t, good...), "--out", out)
	for _, wrong := range [][]string{{"--pcrs", "7"}, {"--phase", "shutdown"}} {
		args := append([]string{"reference", "from-uki", ukiFile(t, good...), "--name", "a", "--out", out}, wrong...)
		if code, _, _ := runHere(args...); code != ui.ExitUsage {
			t.Errorf("%v: exit %d", wrong, code)
		}
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Error("a refused set was written")
	}
}

// Values that the machine's TPM did not show make no set.
func TestReferenceFromEventLogExpects(t *testing.T) {
	dir := filepath.Join(testData(t), "local-boot")
	args := []string{"reference", "from-eventlog", filepath.Join(dir, "uki-systemd-stub.bios"), "--name", "rack-a", "--expect"}
	if code, out, errs := runHere(append(slices.Clone(args), filepath.Join(dir, "expected-sha256.json"))...); code != 0 || !strings.Contains(out, `"name":"rack-a"`) {
		t.Fatalf("exit %d: %s", code, errs)
	}
	other := filepath.Join(t.TempDir(), "other.json")
	if err := os.WriteFile(other, []byte(`{"4":"`+strings.Repeat("ab", 32)+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	oneLineRefusal(t, "is not explained", append(args, other)...)
}

// PCR 4 predicted for shim, GRUB and kernel is that of a machine that booted them,
// and --boot finds images by their paths.
func TestReferenceFromPackageBoot(t *testing.T) {
	log, err := os.ReadFile(filepath.Join("..", "..", "attest", "testdata", "local-boot", "secureboot-shim-grub.bios"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := eventlog.Parse(log)
	if err != nil {
		t.Fatal(err)
	}
	apps, err := l.BootApplications("sha256")
	if err != nil || len(apps) != 4 || string(apps[2].Digest) != string(apps[3].Digest) {
		t.Fatalf("%d applications: %v", len(apps), err)
	}
	dir := t.TempDir()
	var all tree.Tree
	p := &packageFlags{}
	for i, name := range []string{"/usr/lib/shim/shimx64.efi", "/usr/lib/grub/grubx64.efi", "/boot/vmlinuz"} {
		all.Images = append(all.Images, tree.File{Path: name, Digest: [32]byte(apps[i].Digest)})
		p.boot = append(p.boot, name)
	}
	pcr4, err := p.pcr4(&all)
	if err != nil {
		t.Fatal(err)
	}
	pcrs, err := l.Replay("sha256")
	if err != nil || !slices.Contains(pcr4, attest.Digest(pcrs[4])) {
		t.Errorf("predicted %v, measured %x: %v", pcr4, pcrs[4], err)
	}
	// The digest is that of the file, and two files of one path are ambiguous.
	image := ukiFile(t, [2]string{".linux", "kernel"}, [2]string{".sdmagic", stubMagic})
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(dir, sub, "boot"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, sub, "boot", "linux.efi"), b, 0o644); err != nil {
			t.Fatal(err)
		}
		b[len(b)-1] ^= 1
	}
	_, out, _ := runHere("reference", "from-uki", image, "--json")
	var v ukiView
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatal(err)
	}
	set := filepath.Join(dir, "set.json")
	code, out, errs := runHere("reference", "from-package", filepath.Join(dir, "a"), "--boot", "/boot/linux.efi", "--name", "rack-a", "--out", set, "--json")
	if code != 0 || !strings.Contains(out, v.Authenticode) || !strings.Contains(out, v.PCR4[0]) {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	r, _, err := readSet(set)
	if err != nil || len(r.PCRs[4]) != 2 || r.PCRs[4][0].String() != "sha256:"+v.PCR4[0] || r.IMA != nil {
		t.Errorf("%+v: %v", r, err)
	}
	oneLineRefusal(t, "have 2 images of that path", "reference", "from-package", filepath.Join(dir, "a"), filepath.Join(dir, "b"), "--boot", "/boot/linux.efi")
}

// localBoot is a recorded boot of the project's own, in the repository.
func localBoot(name string) string {
	return filepath.Join("..", "..", "attest", "testdata", "local-boot", name)
}

// An image with a kernel that the firmware can execute too, so that PCR 4 has two values.
func kernelImage(t *testing.T) string {
	t.Helper()
	kernel, err := os.ReadFile(ukiFile(t, [2]string{".text", "the kernel's code"}))
	if err != nil {
		t.Fatal(err)
	}
	return ukiFile(t, [2]string{".linux", string(kernel)}, [2]string{".sdmagic", stubMagic}, [2]string{".cmdline", "quiet"})
}

// What an image does not tell of comes from the log of a machine, and with it
// the set describes the one boot that will be.
func TestReferenceFromUKIAndEventLog(t *testing.T) {
	file := kernelImage(t)
	code, out, errs := runHere("reference", "from-uki", file, "--json")
	var v ukiView
	if err := json.Unmarshal([]byte(out), &v); code != 0 || err != nil || len(v.PCR4) != 2 {
		t.Fatalf("exit %d: %s %v %+v", code, errs, err, v)
	}
	for log, images := range map[string]int{"uki-systemd-stub": 2, "uki-secureboot": 1} {
		set := filepath.Join(t.TempDir(), "set.json")
		if code, _, errs := runHere("reference", "from-uki", file, "--name", "rack-a", "--eventlog", localBoot(log+".bios"), "--expect", localBoot("expected-sha256.json"),
			"--pcrs", "0,1,2,3,4,5,6,7,11,12,13", "--out", set); code != 0 {
			t.Fatalf("exit %d: %s", code, errs)
		}
		pcrs, err := bootOf(set) // as approve-boot reads it
		if err != nil {
			t.Fatal(err)
		}
		summary, err := summarise(localBoot(log+".bios"), "sha256", "")
		if err != nil {
			t.Fatal(err)
		}
		for _, pcr := range []int{0, 1, 2, 3, 5, 6, 7} {
			if got := pcrs[pcr]; string(got[:]) != string(summary.PCRs[pcr]) {
				t.Errorf("%s: PCR %d is %x", log, pcr, got)
			}
		}
		if got := attest.Digest(pcrs[4]); got.String() != "sha256:"+v.PCR4[images-1] {
			t.Errorf("%s: PCR 4 is %v", log, got)
		}
		if pcrs[12] != [32]byte{} || pcrs[13] != [32]byte{} || len(pcrs) != 11 {
			t.Errorf("%s: %x", log, pcrs)
		}
	}
}

func TestReferenceFromUKIAndEventLogRefusals(t *testing.T) {
	out := filepath.Join(t.TempDir(), "set.json")
	args := func(file, log string, more ...string) []string {
		return append([]string{"reference", "from-uki", file, "--name", "a", "--out", out, "--pcrs", "0,4", "--eventlog", localBoot(log)}, more...)
	}
	oneLineRefusal(t, "executed 4 images", args(kernelImage(t), "secureboot-shim-grub.bios")...)
	plain := ukiFile(t, [2]string{".linux", "kernel"}, [2]string{".sdmagic", stubMagic})
	oneLineRefusal(t, "executed 2 images", args(plain, "uki-systemd-stub.bios")...)
	other := filepath.Join(t.TempDir(), "other.json")
	if err := os.WriteFile(other, []byte(`{"0":"`+strings.Repeat("ab", 32)+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	oneLineRefusal(t, "is not explained", args(kernelImage(t), "uki-systemd-stub.bios", "--expect", other)...)
	for _, pcrs := range []string{"8", "9", "10", "14", "23"} {
		if code, _, _ := runHere(args(kernelImage(t), "uki-systemd-stub.bios", "--pcrs", pcrs)...); code != ui.ExitUsage {
			t.Errorf("PCR %s: exit %d", pcrs, code)
		}
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Error("a refused set was written")
	}
}

// A machine on which PCR 4 tells of more than images cannot be predicted.
func TestAsBootedWantsNothingElse(t *testing.T) {
	log, err := summarise(localBoot("uki-systemd-stub.bios"), "sha256", "")
	if err != nil {
		t.Fatal(err)
	}
	values := make([][32]byte, 2)
	if _, err := asBooted(values, log); err != nil {
		t.Fatal(err)
	}
	log.BootApplications = log.BootApplications[1:]
	if _, err := asBooted(values, log); err == nil || !strings.Contains(err.Error(), "did more in PCR 4") {
		t.Fatal(err)
	}
}
