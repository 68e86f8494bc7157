package ima

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func parseOne(t testing.TB, m made) Entry {
	t.Helper()
	l, err := Parse(m.binary())
	if err != nil {
		t.Fatal(err)
	}
	return l.Entries[0]
}

func TestRules(t *testing.T) {
	good := "sha256:" + hex.EncodeToString(sum32[:])
	other := [32]byte{9}
	everywhere := Rules{Digests: []string{good}}
	there := Rules{Files: map[string][]string{"/bin/a": {good}}}
	tmp := Rules{Digests: []string{good}, Ignore: []string{"/tmp/", "/var/log/wtmp"}}
	violation := file("/bin/a", sum32, nil)
	violation.violation = true
	verity := made{pcr: PCR, template: "ima-sigv2", fields: [][]byte{append([]byte("verity:"), digestNG("sha256", sum32[:])...), []byte("/bin/a\x00"), nil}}
	weak := made{pcr: PCR, template: "ima-ng", fields: [][]byte{digestNG("sm3", sum32[:]), []byte("/bin/a\x00")}}
	tests := []struct {
		name  string
		rules Rules
		entry made
		ok    bool
	}{
		{"digest anywhere", everywhere, file("/bin/x", sum32, nil), true},
		{"digest and path", there, file("/bin/a", sum32, nil), true},
		{"ignored below", tmp, file("/tmp/x/y", other, nil), true},
		{"ignored file", tmp, file("/var/log/wtmp", other, nil), true},
		{"other digest", everywhere, file("/bin/a", other, nil), false},
		{"other path", there, file("/bin/b", sum32, nil), false},
		{"path in other case", there, file("/bin/A", sum32, nil), false},
		{"path longer", there, file("/bin/a/", sum32, nil), false},
		{"violation", everywhere, violation, false},
		{"violation where ignored", Rules{Digests: []string{good}, Ignore: []string{"/bin/"}}, violation, false},
		{"fs-verity", everywhere, verity, false},
		{"digest of another algorithm", everywhere, weak, false},
		{"beside what is ignored", tmp, file("/tmpx", other, nil), false},
		{"out of what is ignored", tmp, file("/tmp/../bin/evil", other, nil), false},
		{"file treated as folder", tmp, file("/var/log/wtmp/x", other, nil), false},
		{"a file called boot_aggregate", everywhere, file(bootAggregate, other, nil), false},
		{"empty name", there, file("", sum32, nil), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			judge, err := NewJudge(tt.rules)
			if err != nil {
				t.Fatal(err)
			}
			e := parseOne(t, tt.entry)
			err = judge.Check([]Entry{parseOne(t, file("/bin/a", sum32, nil)), e})
			var refused *Refusal
			if tt.ok != (err == nil) || err != nil && (!errors.As(err, &refused) || refused.Index != 1 || refused.Path != e.Path()) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRulesRefused(t *testing.T) {
	good := `"sha256:` + hex.EncodeToString(sum32[:]) + `"`
	if _, err := ParseRules([]byte(`{"files":{"/bin/a":[` + good + `]},"digests":[],"signed":[],"ignore":[]}`)); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		``, `null`, `[]`, `{}`,
		`{"ignore":["/tmp/"]}`,
		`{"signed":true}`,
		`{"signed":[]}`,
		`{"digests":[` + good + `],"Digests":[]}`,
		`{"digests":[` + good + `],"digests":[]}`,
		`{"digests":["` + strings.Repeat("00", 32) + `"]}`,
		`{"digests":["sha1:` + strings.Repeat("00", 20) + `"]}`,
		`{"digests":["md5:` + strings.Repeat("00", 16) + `"]}`,
		`{"digests":["sha256:` + strings.Repeat("00", 31) + `"]}`,
		`{"digests":["sha256:` + strings.Repeat("AB", 32) + `"]}`,
		`{"digests":["sha256:` + strings.Repeat("zz", 32) + `"]}`,
		`{"files":{"":[` + good + `]}}`,
		`{"digests":[` + good + `],"ignore":["/"]}`,
		`{"digests":[` + good + `],"ignore":[""]}`,
		`{"digests":[` + good + `],"ignore":["tmp/"]}`,
	} {
		if _, err := ParseRules([]byte(text)); err == nil {
			t.Errorf("%s: accepted", text)
		}
	}
}
