package main

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/cmd/internal/ui"
)

// runHere runs the command in this process and returns what it printed.
func runHere(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	a := &app{Printer: &ui.Printer{Out: &out, Err: &errs, In: strings.NewReader("")}}
	defer a.close()
	root := rootCmd(a)
	root.SetArgs(args)
	root.SetOut(io.Discard)
	root.SetErr(io.Discard)
	return a.Report("keyturn", root.Execute()), out.String(), errs.String()
}

// testData is where data that was fetched for tests lies, or the test skips.
func testData(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("KEYTURN_TESTDATA")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "testdata")
	}
	dir = filepath.Join(dir, "attest")
	if _, err := os.Stat(filepath.Join(dir, "cases.json")); err != nil {
		t.Skip("no shared test data; name its directory in KEYTURN_TESTDATA")
	}
	return dir
}

type attestCase struct {
	File, Kind string
	Expect     struct {
		Result     string
		PCRs       map[string]map[string]string
		SecureBoot *bool `json:"secure_boot"`
		Entries    int
		Template   string
	}
}

func attestCases(t *testing.T) (string, []attestCase) {
	t.Helper()
	dir := testData(t)
	b, err := os.ReadFile(filepath.Join(dir, "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var out []attestCase
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return dir, out
}

// Every recorded event log gives, through the command line, the PCRs that its
// source published, and every malformed one is refused with one line.
func TestAttestEventLogCases(t *testing.T) {
	dir, cases := attestCases(t)
	n := 0
	for _, c := range cases {
		if c.Kind != "uefi" && c.Kind != "attack" {
			continue
		}
		n++
		t.Run(c.File, func(t *testing.T) {
			file := filepath.Join(dir, c.File)
			if c.Expect.Result == "refuse" {
				code, out, errs := runHere("attest", "eventlog", file, "--bank", "sha1", "--json")
				if code != ui.ExitRefused || out != "" || strings.Count(errs, "\n") == 0 {
					t.Fatalf("code %d, out %q, err %q; want a refusal with a reason", code, out, errs)
				}
				return
			}
			for _, bank := range slices.Sorted(maps.Keys(c.Expect.PCRs)) {
				checkReplay(t, c, file, bank)
			}
		})
	}
	if n < 20 {
		t.Fatalf("%d event logs in the data, want more", n)
	}
}

func checkReplay(t *testing.T, c attestCase, file, bank string) {
	t.Helper()
	expect := filepath.Join(t.TempDir(), "pcrs.json")
	b, err := json.Marshal(c.Expect.PCRs[bank])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(expect, b, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := runHere("attest", "eventlog", file, "--bank", bank, "--expect", expect, "--json")
	if c.Expect.Result == "mismatch" {
		if code != ui.ExitRefused {
			t.Fatalf("%s: code %d; a log that does not lead to the PCRs was taken", bank, code)
		}
		return
	}
	if code != 0 {
		t.Fatalf("%s: %s", bank, errs)
	}
	var got struct {
		Bank       string
		PCRs       map[string]string
		Events     int
		SecureBoot *bool
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	for i, want := range c.Expect.PCRs[bank] {
		if have, ok := got.PCRs[i]; ok && have != want {
			t.Errorf("%s PCR %s is %s, want %s", bank, i, have, want)
		}
	}
	if want := c.Expect.SecureBoot; want != nil && got.SecureBoot != nil && *got.SecureBoot != *want {
		t.Errorf("secure boot %t, want %t", *got.SecureBoot, *want)
	}
	if strings.HasPrefix(c.Expect.Result, "replays; secure-boot claim") && got.SecureBoot != nil {
		t.Errorf("secure boot %t, want no claim", *got.SecureBoot)
	}
}

func TestAttestIMACases(t *testing.T) {
	dir, cases := attestCases(t)
	for _, c := range cases {
		if c.Kind != "ima" {
			continue
		}
		t.Run(c.File, func(t *testing.T) {
			code, out, errs := runHere("attest", "ima", filepath.Join(dir, c.File), "--json")
			switch c.Expect.Result {
			case "refuse", "truncated":
				if code != ui.ExitRefused || out != "" || errs == "" {
					t.Fatalf("code %d, out %q; want a refusal", code, out)
				}
				return
			}
			var got struct {
				Template string
				Entries  int
				PCRs     map[string]string
			}
			if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil {
				t.Fatalf("code %d: %s %v", code, errs, err)
			}
			if (c.Expect.Entries > 0 && got.Entries != c.Expect.Entries) || (c.Expect.Template != "" && got.Template != c.Expect.Template) || len(got.PCRs) == 0 {
				t.Fatalf("got %+v, want %+v", got, c.Expect)
			}
		})
	}
}

// A quote of a real measured boot: good as it is, refused with another nonce,
// another key's signature, or PCRs that it does not sign.
func TestAttestQuote(t *testing.T) {
	dir := filepath.Join(testData(t), "local-boot")
	file := func(name string) string { return filepath.Join(dir, name) }
	good := []string{"attest", "quote", "--json", "--quote", file("uki-systemd-stub.quote"), "--sig", file("uki-systemd-stub.sig"),
		"--ak", file("uki-systemd-stub.ak"), "--nonce", file("uki-systemd-stub.nonce")}
	if code, out, errs := runHere(good...); code != 0 || !strings.Contains(out, `"nonceChecked":true`) {
		t.Fatalf("code %d: %s%s", code, out, errs)
	}
	whole := append(slices.Clone(good), "--pcrs", file("expected-sha256.json"), "--log", file("uki-systemd-stub.bios"))
	if code, out, errs := runHere(whole...); code != 0 || !strings.Contains(out, `"pcrsChecked":true,"logChecked":true`) {
		t.Fatalf("code %d: %s%s", code, out, errs)
	}
	for name, change := range map[string][2]string{
		"AttackNonceReplay":      {"--nonce", file("secureboot-shim-grub.nonce")},
		"AttackForeignKey":       {"--ak", file("secureboot-shim-grub.ak")},
		"AttackForeignSignature": {"--sig", file("secureboot-shim-grub.sig")},
	} {
		t.Run(name, func(t *testing.T) {
			args := append(slices.Clone(good), change[0], change[1])
			if code, out, _ := runHere(args...); code != ui.ExitRefused || out != "" {
				t.Fatalf("code %d, out %q; want a refusal", code, out)
			}
		})
	}
}

func TestAttestEKCert(t *testing.T) {
	dir, cases := attestCases(t)
	for _, c := range cases {
		if c.Kind == "ekcert" {
			if code, _, errs := runHere("attest", "ekcert", filepath.Join(dir, c.File), "--roots", filepath.Join(dir, "ekroots")); code != ui.ExitRefused || !strings.Contains(errs, "2.23.133.8.1") {
				t.Errorf("%s: code %d, %s; want a refusal for the missing extended key usage", c.File, code, errs)
			}
		}
	}
	code, out, errs := runHere("attest", "ekcert", filepath.Join(dir, "local-boot", "uki-systemd-stub.ekcert.der"), "--json")
	if code != 0 || !strings.Contains(out, `"emulated":true`) || !strings.Contains(out, `"chainChecked":false`) {
		t.Fatalf("code %d: %s%s", code, out, errs)
	}
	if code, _, errs := runHere("attest", "ekcert", filepath.Join(dir, "local-boot", "uki-systemd-stub.ekcert.der"), "--roots", filepath.Join(dir, "ekroots")); code != ui.ExitRefused {
		t.Fatalf("an emulator's certificate was taken under vendors' roots: %s", errs)
	}
}

// A reference set made from a machine's log accepts what that log leads to and
// names no PCR that the log leaves at zero.
func TestReferenceFromEventLog(t *testing.T) {
	dir := filepath.Join(testData(t), "local-boot")
	code, out, errs := runHere("reference", "from-eventlog", filepath.Join(dir, "uki-systemd-stub.bios"), "--name", "rack-a", "--pcrs", "0,4,7,11")
	if code != 0 {
		t.Fatal(errs)
	}
	b, err := os.ReadFile(filepath.Join(dir, "expected-sha256.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]map[string]string
	var set struct {
		PCRs map[string][]string `json:"pcrs"`
	}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), &set); err != nil {
		t.Fatal(err)
	}
	for _, i := range []string{"0", "4", "7", "11"} {
		if got := set.PCRs[i]; len(got) != 1 || got[0] != "sha256:"+want["uki-systemd-stub"][i] {
			t.Errorf("PCR %s: %v, want %s", i, got, want["uki-systemd-stub"][i])
		}
	}
	if code, _, errs := runHere("reference", "from-eventlog", filepath.Join(dir, "uki-systemd-stub.bios"), "--name", "rack-a", "--pcrs", "16"); code != ui.ExitRefused {
		t.Errorf("PCR 16 was taken: %s", errs)
	}
}
