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
	oneLineRefusal(t, "reference set name", "reference", "from-uki", ukiFile(t, good...), "--out", out)
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
