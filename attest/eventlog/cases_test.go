package eventlog

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A testCase is an entry of cases.json.
type testCase struct {
	File   string
	Kind   string
	Expect struct {
		Result      string
		PCRs        map[string]map[string]string
		SecureBoot  *bool `json:"secure_boot"`
		Authorities *int  `json:"post_separator_authorities"`
	}
}

func loadCases(t testing.TB, dir string) []testCase {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []testCase
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(c testCase) bool { return c.Kind != "uefi" && c.Kind != "attack" })
}

// TestCases reads real logs and gives each its right answer.
func TestCases(t *testing.T) {
	dir := fetched(t)
	all := loadCases(t, dir)
	if len(all) < 20 {
		t.Fatalf("cases.json has %d event logs, wanted at least 20", len(all))
	}
	for _, c := range all {
		t.Run(filepath.Base(c.File), func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(dir, c.File))
			if err != nil {
				t.Fatal(err)
			}
			c.run(t, data)
		})
	}
}

func (c testCase) run(t *testing.T, data []byte) {
	l, err := Parse(data)
	if c.Expect.Result == "refuse" {
		var refused *ParseError
		if !errors.As(err, &refused) || refused.Reason == "" {
			t.Fatalf("got %v, wanted a ParseError", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	switch result, _, _ := strings.Cut(c.Expect.Result, ";"); result {
	case "replays":
		c.replays(t, l)
	case "mismatch":
		c.differs(t, l)
	case "parses-sha1":
		if got := l.Banks(); !slices.Equal(got, []string{"sha1"}) {
			t.Errorf("banks %v, wanted sha1", got)
		}
	case "parses":
	default:
		t.Fatalf("case of unknown result %q", result)
	}
	c.claims(t, l)
}

func (c testCase) replays(t *testing.T, l *Log) {
	if len(c.Expect.PCRs) == 0 {
		t.Fatal("a case that replays to nothing")
	}
	for bank, values := range c.Expect.PCRs {
		quoted := decode(t, values)
		s, err := l.Summary(bank, quoted)
		if err != nil {
			t.Fatal(err)
		}
		for pcr, value := range s.PCRs {
			if want, given := quoted[pcr]; given && string(want) != string(value) {
				t.Errorf("%s PCR %d is %x, wanted %x", bank, pcr, value, want)
			}
		}
		if err := l.Explain(bank, quoted); (err == nil) != (bank != "sha1") {
			t.Errorf("Explain(%s): %v", bank, err)
		}
	}
}

func (c testCase) differs(t *testing.T, l *Log) {
	for bank, values := range c.Expect.PCRs {
		_, err := l.Summary(bank, decode(t, values))
		var no *UnexplainedError
		if !errors.As(err, &no) {
			t.Fatalf("Summary(%s): %v, wanted an UnexplainedError", bank, err)
		}
		t.Log(err)
	}
}

func (c testCase) claims(t *testing.T, l *Log) {
	bank := l.Banks()[len(l.Banks())-1]
	claim := l.SecureBoot(bank)
	if (claim.State == Unknown) != (claim.Reason != "") {
		t.Errorf("state %v with reason %q", claim.State, claim.Reason)
	}
	if want := c.Expect.SecureBoot; want != nil && claim.State != map[bool]State{true: On, false: Off}[*want] {
		t.Errorf("secure boot is %v (%s), wanted %v", claim.State, claim.Reason, *want)
	}
	if want := c.Expect.Authorities; want != nil && len(claim.PostSeparator) != *want {
		t.Errorf("%d authorities after the separator, wanted %d", len(claim.PostSeparator), *want)
	}
	if want, known := secureBootOf[c.File]; known && claim.State != want {
		t.Errorf("secure boot is %v (%s), wanted %v", claim.State, claim.Reason, want)
	}
}

// secureBootOf adds what the notes of cases.json say in prose, and what the logs'
// SecureBoot variables hold.
var secureBootOf = map[string]State{
	"uefi/rhel8-uefi.bin":             On,
	"uefi/ubuntu-1804-amd-sev.bin":    Off,
	"uefi/arch-linux-workstation.bin": Unknown,
	"attack/unknown-type-pcr7.bin":    Unknown,
	"uefi/event.bin":                  Unknown,
}

// TestCasesTruncated cuts each real log anywhere: what still parses must not
// explain what the whole log does, unless the cut events are of other PCRs.
func TestCasesTruncated(t *testing.T) {
	dir := fetched(t)
	for _, c := range loadCases(t, dir) {
		values := c.Expect.PCRs["sha256"]
		if !strings.HasPrefix(c.Expect.Result, "replays") || values == nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, c.File))
		if err != nil {
			t.Fatal(err)
		}
		whole, quoted := mustParse(t, data), decode(t, values)
		last := lastExtend(whole, slices.Collect(maps.Keys(quoted)))
		for cut := 1; cut <= last; cut += 1 + cut/97 {
			l, err := Parse(data[:cut])
			if err == nil && l.Explain("sha256", quoted) == nil {
				t.Errorf("%s cut at %d of %d explains the quote", c.File, cut, len(data))
			}
		}
	}
}

// lastExtend returns the offset of the last event that one of the PCRs was extended
// with.
func lastExtend(l *Log, pcrs []int) int {
	off := 0
	for i := range l.Events {
		if e := &l.Events[i]; e.Type != NoAction && slices.Contains(pcrs, int(e.PCR)) {
			off = e.Offset
		}
	}
	return off
}
