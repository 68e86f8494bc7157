package ceremony_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/ceremony/paper"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// The scripts that are shipped can be followed.
func TestShippedScripts(t *testing.T) {
	files, err := filepath.Glob("../../deploy/ceremony/*.yaml")
	if err != nil || len(files) != 5 {
		t.Fatalf("%d scripts, want 5: %v", len(files), err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ceremony.ParseScript(text)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		shown := s.Show(ceremony.Real, ceremony.SumScript(text))
		for _, step := range s.Steps {
			if !strings.Contains(shown, step.Name) {
				t.Errorf("%s: step %s is not shown", f, step.Name)
			}
		}
	}
}

// A ceremony that is followed holds, its page is the same twice, and what is
// shown tells the steps.
func TestFollowed(t *testing.T) {
	r := newRoom(t, ceremony.Real)
	r.step(ceremony.Waived)
	x := r.through().transcript()
	report, err := parse(t, x)
	r.must(err)
	r.must(report.Counts(report.Charter))
	r.must(report.Anchor(r.anchors(), false))
	if !report.Complete() || report.Exceptions() != 1 || len(report.Waived()) != 1 || len(report.Unknown) != 0 || len(report.Entries) != 5 {
		t.Errorf("report %+v", report)
	}
}

func TestScriptRefused(t *testing.T) {
	for _, test := range []struct{ old, new, reason string }{
		{"version: 2", "version: 3", "version 3, this program knows 1 to 2"},
		{"version: 2", "version: 2\nextra: 1", "field extra not found"},
		{"version: 2", "version: 2\nVersion: 1", "field Version not found"},
		{"version: 2", "version: 2\nversion: 1", "already"},
		{"name: drill-lab", "name: &a drill-lab", "anchors"},
		{"name: drill-lab", "name: !!str drill-lab", "tags"},
		{"name: drill-lab", "name: ", "empty value"},
		{"purpose: drill", "purpose: party", "purpose"},
		{"purpose: drill", "purpose: genesis", "a genesis makes one"},
		{"purpose: drill", "purpose: membership", "no verify-log step"},
		{"purpose: drill", "purpose: notary-keys", "no verify-keygen step"},
		{"roles: [master]", "roles: [boss]", "exactly one person of role master"},
		{"roles: [master]", "roles: [master, witness]", "cannot be a witness too"},
		{"roles: [holder]", "roles: [guest]", "holder"},
		{"serial: PF-1", "serial: ''", "serial number"},
		{"what: laptop", "what: toaster", "toaster"},
		{"name: aloud", "name: file", "two steps are named file"},
		{"of: file", "of: room", "no earlier step"},
		{"of: file", "of: spare", "no earlier step"},
		{"do: manual, text: \"Nobody", "do: shell, text: \"Nobody", "is unknown"},
		{"do: manual, text: \"Nobody", "do: manual, file: x, text: \"Nobody", "has no file"},
		{"file: keyturn, ", "", "needs file"},
		{"file: keyturn", "file: ../keyturn", "without a path"},
		{"file: keyturn", "file: .profile", "without a path"},
		{"by: [alice, wendy]", "by: [alice, maria]", "no witness signs"},
		{"by: [alice, wendy]", "by: [maria, wendy]", "acts and does not sign"},
		{"by: [alice, wendy]", "by: [wendy]", "want 2 to"},
		{"by: [alice, wendy]", "by: [alice, wendy, wendy]", "signs twice"},
		{"by: [alice, wendy]", "by: [alice, wendy, mallory]", "nobody of the script"},
		{"token: spare-alice", "token: laptop", "is no token"},
		{"proves: \"Alice's spare signs\", ", "", "signs no step that proves"},
	} {
		_, err := ceremony.ParseScript([]byte(edited(t, test.old, test.new)))
		if err == nil || !strings.Contains(err.Error(), test.reason) {
			t.Errorf("%q as %q: %v, want %q", test.old, test.new, err, test.reason)
		}
	}
	many := strings.Builder{}
	many.WriteString(script)
	for i := range 400 {
		fmt.Fprintf(&many, "  - {name: s%d, do: manual, text: x, by: [maria, wendy, walter]}\n", i)
	}
	if _, err := ceremony.ParseScript([]byte(many.String())); err == nil || !strings.Contains(err.Error(), "405 steps") {
		t.Errorf("405 steps: %v", err)
	}
	if _, err := ceremony.ParseScript([]byte(script + "---\nversion: 1\n")); err == nil {
		t.Error("a second document was read")
	}
	if _, err := ceremony.ParseScript(make([]byte, ceremony.MaxScript+1)); err == nil {
		t.Error("a script without bounds was read")
	}
}

// Signatures by the throw-away keys of 2026-11-25. What people signed must stay
// readable.
func TestGoldenRecord(t *testing.T) {
	s, err := ceremony.ParseScript([]byte(scriptOne))
	if err != nil {
		t.Fatal(err)
	}
	d := &ceremony.Record{Mode: ceremony.Rehearsal, Script: ceremony.SumScript([]byte(scriptOne)), Run: []byte("0123456789abcdef"), Number: 1, Step: "file", Outcome: ceremony.Passed,
		Previous: ceremony.First(ceremony.Rehearsal, ceremony.SumScript([]byte(scriptOne)), []byte("0123456789abcdef")),
		Findings: []ceremony.Finding{{"digest", program.String()}, {"bytes", "7"}}, Incidents: []ceremony.Incident{ceremony.Note(1_790_000_001, "token\ngone\x1b")},
		Exceptions: []ceremony.Exception{{"time", "an hour late", "maria"}}, Begun: 1_790_000_000, Ended: 1_790_000_060}
	for _, name := range []string{"maria", "wendy"} {
		d.Signers = append(d.Signers, ceremony.Signer{Name: name, Key: known(name)})
	}
	text := ceremony.Text(s, d)
	d.Display = ceremony.SumScript([]byte(text))
	payload, err := d.Write()
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{"record.json": string(payload), "record.txt": text, "show.txt": s.Show(ceremony.Real, d.Script)} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: wrote\n%s\nrecorded\n%s", name, got, want)
		}
	}
}

// known is a key that everybody knows.
func known(name string) signoff.PublicKey {
	seed := sha256.Sum256([]byte(name))
	k, err := signoff.NewPublicKey(ed25519.NewKeyFromSeed(seed[:]).Public(), hsm.ClassSoftware)
	if err != nil {
		panic(err)
	}
	return k
}

func TestGroupsReadAloud(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := ceremony.Digest(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "digest"))
		g := ceremony.Groups(d)
		for _, typed := range []string{g[0] + " " + g[1], strings.ToUpper(g[0] + g[1]), d.String(), d.Hex()} {
			if got, err := ceremony.ParseGroups(typed); err != nil || got != d {
				t.Fatalf("%q gives %v, %v", typed, got, err)
			}
		}
		if _, err := ceremony.ParseGroups(g[0]); err == nil {
			t.Fatal("half a digest was taken")
		}
	})
}

func FuzzParseScript(f *testing.F) {
	f.Add([]byte(script))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ceremony.ParseScript(text)
		if err != nil {
			return
		}
		for line := range strings.Lines(s.Show(ceremony.Rehearsal, ceremony.SumScript(text))) {
			if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Fatalf("the script shows %q", line)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	b, err := newRoom(f, ceremony.Real).through().transcript().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ceremony.Parse(data)
		if err != nil {
			return
		}
		again, err := r.Chain.Transcript([]byte(rereadScript(t, data))).Marshal()
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("a transcript that was taken is written otherwise: %v", err)
		}
	})
}

func rereadScript(t *testing.T, data []byte) string {
	var x ceremony.Transcript
	if err := dsse.Decode(data, &x); err != nil {
		t.Fatal(err)
	}
	return x.Script
}

// What a script says is text on the page, whatever it is in HTML or CSS.
func TestAttackPage(t *testing.T) {
	r := newRoom(t, ceremony.Rehearsal)
	const evil = `</style><script src=//x></script>{{.Run}}`
	r.script = strings.NewReplacer("A drill of the lab", `'`+evil+`'`, "PF-1", `'`+evil+`'`).Replace(script)
	r.begin()
	report, err := parse(t, r.through().transcript())
	r.must(err)
	var page bytes.Buffer
	r.must(paper.Write(&page, report))
	if n := strings.Count(page.String(), "&lt;/style&gt;&lt;script src=//x&gt;&lt;/script&gt;{{.Run}}"); n < 2 || strings.Contains(page.String(), "<script") {
		t.Errorf("the text is there %d times:\n%.600s", n, page.String())
	}
	if !strings.Contains(page.String(), `content: "REHEARSAL - keyturn ceremony drill-lab"`) {
		t.Error("the page's header does not say REHEARSAL")
	}
}
