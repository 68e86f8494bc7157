package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/eventlog"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A boot that differs is told register by register: what it is of, what would have
// been accepted by which set, and which events changed.
func TestExplainInWords(t *testing.T) {
	good, bad, other := attest.Digest{1}, attest.Digest{2}, attest.Digest{3}
	evidence := func(pcr4, pcr8 attest.Digest) *authority.Presented {
		return &authority.Presented{Seen: signoff.Seen{Size: 9}, Evidence: attest.Evidence{PCRs: map[int]attest.Digest{0: other, 4: pcr4, 8: pcr8}}}
	}
	sets := []*attest.ReferenceSet{
		{Name: "rack-a", Version: 2, NotBefore: 1, NotAfter: 1_800_000_000, PCRs: map[int][]attest.Digest{4: {good}, 0: {other}}},
		{Name: "rack-b", Version: 7, NotBefore: 1, NotAfter: 1_800_000_000, PCRs: map[int][]attest.Digest{0: {other}}},
	}
	x := &nodeExplanation{nodeReport: nodeReport{Name: "node-1", Epoch: 5, Verdict: "fail", Reason: "PCR 4 is another", Remedy: "boot what the set describes"}, Since: dsse.Digest{7}}
	x.compare(evidence(bad, bad), evidence(good, good), sets)
	x.Changes = viewChanges([]eventlog.Change{
		{PCR: 8, Digest: []byte{8}, Text: "linux /vmlinuz init=/bin/sh\x1b"}, {PCR: 4, Digest: []byte{4}, Said: 0x80000003},
		{PCR: 8, Gone: true, Digest: []byte{9}, Text: "linux /vmlinuz quiet"},
	})
	var out bytes.Buffer
	explainText(&out, x)
	for _, line := range []string{
		"do        boot what the set describes",
		"against   rack-a version 2, until 2027-01-15: differs in PCR 4",
		"against   rack-b version 7, until 2027-01-15: accepts the boot",
		"PCR 4, boot loaders and kernels, changed since evidence 070000000000:",
		"  new   sha256:04, which the log calls EV_EFI_BOOT_SERVICES_APPLICATION",
		`  new   "linux /vmlinuz init=/bin/sh\x1b"`,
		`  gone  "linux /vmlinuz quiet"`,
	} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("no line %q in:\n%s", line, out.String())
		}
	}
	for _, word := range []string{"NOT EXPECTED, changed", "not judged, changed", "as expected"} {
		if !strings.Contains(out.String(), word) {
			t.Errorf("no %q in:\n%s", word, out.String())
		}
	}
	// Nobody knows what to accept, and nobody sent evidence.
	x = &nodeExplanation{nodeReport: nodeReport{Name: "node-1"}}
	x.compare(nil, nil, nil)
	out.Reset()
	explainText(&out, x)
	if !strings.Contains(out.String(), "NO reference set counts") || !strings.Contains(out.String(), "evidence  none") {
		t.Errorf("%s", out.String())
	}
}

// recordedBoot is a firmware's log and what was quoted of it.
func recordedBoot(t *testing.T, name string) ([]byte, map[int]attest.Digest) {
	t.Helper()
	log, err := os.ReadFile(localBoot(name + ".bios"))
	if err != nil {
		t.Fatal(err)
	}
	expected, err := os.ReadFile(localBoot("expected-sha256.json"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := eventlog.DecodePCRs(expected, "sha256", name)
	if err != nil {
		t.Fatal(err)
	}
	pcrs := map[int]attest.Digest{}
	for _, pcr := range []int{0, 1, 2, 3, 4, 5, 6, 7, 10, 11} {
		pcrs[pcr] = attest.Digest(all[pcr])
	}
	return log, pcrs
}

// Two recorded boots that differ in the kernel's command line differ in the
// image and its section, and in nothing else that was quoted. A log that does not
// lead to its quote tells nothing, nor does one of a register that was not quoted.
func TestAttackChangesFromAnotherLog(t *testing.T) {
	before, pcrsBefore := recordedBoot(t, "uki-secureboot")
	now, pcrsNow := recordedBoot(t, "uki-secureboot-cmdline")
	if got := provedChanges(before, now, pcrsBefore, pcrsNow); len(got) != 4 {
		t.Errorf("%+v", got)
	}
	if got := provedChanges(before, now, pcrsBefore, pcrsBefore); got != nil {
		t.Errorf("a log of another boot is told of: %+v", got)
	}
	delete(pcrsNow, 11)
	got := provedChanges(before, now, pcrsBefore, pcrsNow)
	for _, c := range got {
		if c.PCR == 11 {
			t.Errorf("a register that was not quoted is told of: %+v", c)
		}
	}
	if len(got) != 2 {
		t.Errorf("%+v", got)
	}
}
