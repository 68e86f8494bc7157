package eventlog

import (
	"fmt"
	"maps"
	"strings"
	"testing"
)

// What changed between two boots is told by digests, and in words where they prove
// them.
func TestCompare(t *testing.T) {
	cmd := func(text string) made {
		return made{pcr: 8, typ: 0xd, data: []byte("grub_cmd: " + text), digest: []byte(text)}
	}
	image := func(content string) made {
		return made{pcr: 4, typ: 0x80000003, data: []byte("path"), digest: []byte(content)}
	}
	state := func(v byte) made {
		return made{pcr: 7, typ: EFIDriverConfig, data: variable(globalVariable, "SecureBoot", []byte{v})}
	}
	same := made{pcr: 0, typ: 8, data: []byte("firmware 1")}
	before := mustParse(t, agile([]Algorithm{SHA1, SHA256}, same, state(1), image("kernel 1"), image("kernel 1"), cmd("linux /vmlinuz quiet")))
	now := mustParse(t, agile([]Algorithm{SHA256}, same, state(0), image("kernel 1"), image("kernel 2"), cmd("linux /vmlinuz init=/bin/sh"), cmd("forged")))
	now.Events[5].Data = []byte("grub_cmd: harmless") // not what was measured
	changes, err := Compare(before, now, "sha256")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range changes {
		word := "new"
		if c.Gone {
			word = "gone"
		}
		got = append(got, word+" "+string(rune('0'+c.PCR))+" "+c.Text)
	}
	want := "new 7 secure boot off; new 4 ; new 8 linux /vmlinuz init=/bin/sh; new 8 ; gone 7 secure boot on; gone 4 ; gone 8 linux /vmlinuz quiet"
	if strings.Join(got, "; ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "; "), want)
	}
	if changes, err := Compare(now, now, "sha256"); err != nil || len(changes) != 0 {
		t.Errorf("a boot differs from itself: %v %v", changes, err)
	}
	if _, err := Compare(before, now, "sha1"); err == nil {
		t.Error("compared in a bank that one log has not")
	}
}

// Two recorded boots of signed images that differ in the kernel's command line:
// the section is named, though its content is told by its digest alone.
func TestCompareImages(t *testing.T) {
	one, _ := localBoot(t, "uki-secureboot")
	other, _ := localBoot(t, "uki-secureboot-cmdline")
	changes, err := Compare(mustParse(t, one), mustParse(t, other), "sha256")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, c := range changes {
		got[fmt.Sprint(c.PCR, " ", c.Text)]++
	}
	// The firmware measures the image, the stub its section, the kernel its options.
	want := map[string]int{"4 ": 2, "9 ": 2, "11 content of section .cmdline": 2}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
