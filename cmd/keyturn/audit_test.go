package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/log"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A told desk has a story in its log: an export by bob, carol and dave, a
// change of policy that renames the rule, a halt and its end, a request under
// the new rule that waits, and a halt that stands.
type told struct {
	*desk
	export, change, resume, waiting string
	halt, standing                  string
	early                           string // the log's directory before the change
	late                            string // and at the end
}

func tell(t *testing.T) *told {
	t.Helper()
	s := &told{desk: newDesk(t)}
	_, public := s.recipient("partner")
	s.export = s.askExport(s.seal("erin", "model").Object, public)
	s.approve(s.export, "bob")
	s.does("bob", "withdraw", "withdraw", s.export, "--reason", "too early")
	s.approve(s.export, "bob", "carol", "dave")
	s.does("alice", "", "warrant", "get", s.export, "--out", s.path("export.json"))
	s.does("alice", "", "weights", "export", s.export, "--sealed", s.path("model.sealed"), "--out", s.path("exported"))
	s.early = s.copyLog("early")

	renamed := strings.ReplaceAll(signofftest.Policy, "name: change-policy", "name: change-the-rules")
	policy := s.write("renamed.yaml", []byte(renamed))
	s.change = s.asks("policy", "--purpose", "clearer names", "--policy", policy)
	s.approve(s.change, "bob", "carol", "dave", "erin")
	s.does("alice", "", "warrant", "get", s.change, "--out", s.path("change.json"))
	s.halt = strings.TrimSpace(s.does("dave", "", "halt", "--everything", "--reason", "a strange noise"))
	s.resume = s.asks("resume", "--purpose", "it was the fan", "--halt", s.halt)
	s.approve(s.resume, "bob", "carol", "dave")
	s.does("alice", "", "warrant", "get", s.resume, "--out", s.path("resume.json"))
	s.waiting = s.asks("policy", "--purpose", "back again", "--policy", s.write("policy.yaml", []byte(signofftest.Policy)))
	s.standing = strings.TrimSpace(s.does("erin", "", "halt", "--everything", "--reason", "once more"))
	s.late = s.copyLog("late")
	return s
}

func (s *told) asks(args ...string) string {
	s.t.Helper()
	return strings.TrimSpace(s.does("alice", "", append([]string{"request"}, args...)...))
}

// copyLog copies the archive while it is in use, as often as it takes to find
// all of it final: ticks and epochs come on meanwhile.
func (d *desk) copyLog(name string) string {
	d.t.Helper()
	from, to := filepath.Join(d.Dir, "log"), d.path("logs", name)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := copyOnce(from, to)
		r := d.audit("verify", to)
		if err == nil && r.code == 0 && !strings.Contains(r.out, "NOT FINAL") {
			return to
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("copy the log: %v; its audit: exit %d, %s%s", err, r.code, r.out, r.err)
		}
		if err := os.RemoveAll(to); err != nil {
			d.t.Fatal(err)
		}
	}
}

// copyOnce copies the checkpoint first, since what it covers does not go away.
func copyOnce(from, to string) error {
	note, err := os.ReadFile(filepath.Join(from, "checkpoint"))
	if err != nil {
		return err
	}
	for _, part := range []string{"tile", "blob"} {
		err := os.CopyFS(filepath.Join(to, part), os.DirFS(filepath.Join(from, part)))
		if err != nil && (part == "tile" || !errors.Is(err, fs.ErrNotExist)) { // a young log has no blobs
			return err
		}
	}
	return os.WriteFile(filepath.Join(to, "checkpoint"), note, 0o600)
}

func (d *desk) audit(command, dir string, more ...string) outcome {
	d.t.Helper()
	return d.as("", "", append([]string{"audit", command, dir, "--charter", d.ID.String()}, more...)...)
}

// sound wants a good audit and returns what it says.
func (d *desk) sound(dir string, more ...string) string {
	d.t.Helper()
	r := d.audit("verify", dir, more...)
	if r.code != 0 {
		d.t.Fatalf("audit verify %s %v: exit %d: %s", dir, more, r.code, r.err)
	}
	return r.out
}

// unsound wants exit code 1, no answer, and a reason on one line.
func (d *desk) unsound(reason, dir string, more ...string) {
	d.t.Helper()
	r := d.audit("verify", dir, more...)
	first, rest, _ := strings.Cut(r.err, "\n")
	if r.code != ui.ExitRefused || r.out != "" || !strings.Contains(first, reason) || (rest != "" && !strings.HasPrefix(rest, "hint: ")) {
		d.t.Fatalf("audit verify %s %v: exit %d, %q, %q; want 1 and one line with %q", dir, more, r.code, r.out, r.err, reason)
	}
}

// An audit tells the story from nothing but the directory and the charter's
// digest, and sees whatever was done to the directory.
func TestAudit(t *testing.T) {
	s := tell(t)
	for name, test := range map[string]func(*told, *testing.T){
		"Story": (*told).story, "Find": (*told).found, "NotFinal": (*told).notFinal, "Proof": (*told).proofs,
		"AttackRollback": (*told).rollback, "AttackFlippedByte": (*told).flipped, "AttackMissingFile": (*told).missing,
		"AttackCheckpoint": (*told).checkpoints, "AttackRewrittenLog": (*told).rewritten,
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			test(s, t)
		})
	}
}

func (s *told) story(t *testing.T) {
	text := s.sound(s.late)
	for _, want := range []string{
		"log          ", "DEVELOPMENT CHARTER", "cosigned by  ",
		"weights.export, asked by alice: a joint test", "for partner (key sha256:", "rule export-weights\n",
		"bob: withdraw (entry ", "bob: approve (entry ", ", counted): agreed", "verified under the notaries' joint key sha256:", "shares released by notary ",
		"receipt by alice (entry ", "rule change-policy\n", "rule change-the-rules\n", "waits for 4 more of",
		"halt         " + s.halt + " by dave", "lifted by request " + s.resume, "HALT         " + s.standing + " by erin", "stands: once more",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the story lacks %q:\n%s", want, text)
		}
	}
	var v auditView
	s.answer(&v, "", "audit", "verify", s.late, "--charter", s.ID.String())
	if v.Charter != s.ID || !v.Development || v.NotFinal != 0 || len(v.Requests) != 4 || len(v.Halts) != 2 || len(v.CosignedBy) < 3 {
		t.Errorf("%+v", v)
	}
	export, change, waiting := v.Requests[0], v.Requests[1], v.Requests[3]
	if export.Request.String() != s.export || len(export.Decisions) != 5 || export.Decisions[1].Decision != "withdraw" || len(export.ReleasedBy) < 3 ||
		len(export.Receipts) != 1 || export.Receipts[0].Event != "exported" || export.RuleDigest.IsZero() ||
		len(export.Counted) != 3 || slices.Contains(export.Counted, export.Decisions[0].Document) || !slices.Contains(export.Counted, export.Decisions[2].Document) {
		t.Errorf("export %+v", export)
	}
	if change.Rule != "change-policy" || len(change.Decisions) != 4 || change.WarrantIndex == 0 {
		t.Errorf("change of policy %+v", change)
	}
	if waiting.Request.String() != s.waiting || waiting.Rule != "change-the-rules" || waiting.State != "open" || waiting.WarrantIndex != 0 {
		t.Errorf("waiting %+v", waiting)
	}
}

func (s *told) found(t *testing.T) {
	find := func(args ...string) []auditEntry {
		t.Helper()
		r := s.audit("find", s.late, append(args, "--json")...)
		if r.code != 0 {
			t.Fatalf("find %v: %s", args, r.err)
		}
		// A busy program sends a halt again; the second is void.
		return slices.DeleteFunc(parseFound(t, r.out), func(e auditEntry) bool { return e.Void != "" })
	}
	kinds := map[string]int{}
	for _, e := range find("--request", s.export) {
		kinds[string(e.Kind)]++
	}
	if kinds["request"] != 1 || kinds["approval"] != 5 || kinds["warrant"] != 1 || kinds["release"] < 3 || kinds["receipt"] != 1 {
		t.Errorf("about the export: %v", kinds)
	}
	if got := find("--person", "dave", "--kind", "halt"); len(got) != 1 || got[0].Document.String() != s.halt {
		t.Errorf("dave's halts: %+v", got)
	}
	if got := find("--about", s.halt[len("sha256:"):][:12]); len(got) != 2 || got[0].Kind != "halt" || got[1].Document.String() != s.resume {
		t.Errorf("about the halt: %+v", got)
	}
	for _, wrong := range [][]string{{"--request", "1234567"}, {"--object", "weights"}, {"--about", strings.Repeat("a", 65)}} {
		if r := s.audit("find", s.late, wrong...); r.code != ui.ExitUsage {
			t.Errorf("find %v: exit %d: %s", wrong, r.code, r.err)
		}
	}
	for _, none := range [][]string{{"--person", "nobody"}, {"--node", "nobody"}, {"--request", strings.Repeat("0", 64)}} {
		if r := s.audit("find", s.late, none...); r.code != ui.ExitRefused || !strings.Contains(r.err, "no entry matches") {
			t.Errorf("find %v: exit %d: %s", none, r.code, r.err)
		}
	}
}

// Entries beyond the final checkpoint are told, and count for nothing.
func (s *told) notFinal(t *testing.T) {
	dir := s.forge(s.late, "longer")
	a, err := log.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Append([][]byte{[]byte("nobody's word")}); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if text := s.sound(dir); !strings.Contains(text, "NOT FINAL    1 entries") {
		t.Errorf("%s", text)
	}
}

// What an approver saved holds against the log, and against no other.
func (s *told) proofs(t *testing.T) {
	saved, err := filepath.Glob(s.path("state-bob", "proofs", "*.tlog-proof"))
	if err != nil || len(saved) < 2 {
		t.Fatalf("%d proofs saved: %v", len(saved), err)
	}
	document := func(proof string) string { return strings.TrimSuffix(proof, ".tlog-proof") + ".json" }
	for _, p := range saved {
		if text := s.sound(s.late, "--proof", p, "--entry", document(p)); !strings.Contains(text, "proof        good") {
			t.Errorf("%s", text)
		}
	}
	s.unsound(saved[0], s.late, "--proof", saved[0], "--entry", document(saved[1]))
	if r := s.audit("verify", s.late, "--proof", saved[0]); r.code != ui.ExitUsage {
		t.Errorf("a proof without its entry: exit %d: %s", r.code, r.err)
	}
	last := slices.MaxFunc(saved, func(a, b string) int { return int(written(t, a) - written(t, b)) })
	s.unsound("does not contain", s.early, "--proof", last, "--entry", document(last))
}

func written(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime().UnixNano()
}

func (s *told) rollback(t *testing.T) {
	s.sound(s.early)
	s.sound(s.late, "--since", filepath.Join(s.early, "checkpoint"))
	s.sound(s.late, "--since", filepath.Join(s.late, "checkpoint"))
	s.unsound("does not contain the final checkpoint", s.early, "--since", filepath.Join(s.late, "checkpoint"))
	s.unsound("", s.late, "--since", s.path("policy.yaml"))
}

// forge copies a log to do something to it.
func (s *told) forge(from, name string) string {
	s.t.Helper()
	dir := s.path("logs", name)
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// files lists a log's files, at most n of each part, evenly.
func files(t *testing.T, dir string, n int) []string {
	t.Helper()
	parts := map[string][]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		part, _, _ := strings.Cut(filepath.ToSlash(rel), "/")
		if strings.HasPrefix(filepath.ToSlash(rel), "tile/entries/") {
			part = "entries"
		}
		parts[part] = append(parts[part], path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(parts["tile"]) == 0 || len(parts["entries"]) == 0 || len(parts["blob"]) == 0 || len(parts["checkpoint"]) != 1 {
		t.Fatalf("the log is not complete: %v", parts)
	}
	var out []string
	for _, all := range parts {
		for i := 0; i < len(all); i += max(1, len(all)/n) {
			out = append(out, all[i])
		}
	}
	return out
}

func (s *told) flipped(t *testing.T) {
	dir := s.forge(s.late, "flipped")
	for _, file := range files(t, dir, 6) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, len(b) / 2, len(b) - 1} {
			changed := slices.Clone(b)
			changed[at] ^= 1
			s.replace(file, changed)
			s.unsound("", dir)
		}
		s.replace(file, b)
	}
	note := filepath.Join(dir, "checkpoint")
	b, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	for at := range b {
		if at%11 == 0 {
			changed := slices.Clone(b)
			changed[at] ^= 1
			s.replace(note, changed)
			s.unsound("", dir)
		}
	}
	s.replace(note, b)
	s.sound(dir)
}

func (s *told) replace(file string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(file, data, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *told) missing(t *testing.T) {
	dir := s.forge(s.late, "missing")
	for _, file := range newest(t, dir) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		s.unsound("", dir)
		s.replace(file, b)
	}
	s.sound(dir)
	s.unsound("", s.path("no-such-log"))
	if _, err := os.Stat(s.path("no-such-log")); !os.IsNotExist(err) {
		t.Error("an audit made a directory")
	}
}

// newest are the files that the log cannot do without: the widest tile and
// bundle, a blob, and the checkpoint.
func newest(t *testing.T, dir string) []string {
	t.Helper()
	out := []string{filepath.Join(dir, "checkpoint")}
	for _, part := range []string{"tile/0", "tile/entries"} {
		widest, width := "", -1
		for _, file := range files(t, dir, 1<<20) {
			rel, _ := filepath.Rel(dir, file)
			var w int
			if strings.HasPrefix(filepath.ToSlash(rel), part+"/") {
				if _, err := fmt.Sscanf(filepath.Base(file), "%d", &w); err == nil && w > width {
					widest, width = file, w
				}
			}
		}
		out = append(out, widest)
	}
	blobs := slices.DeleteFunc(files(t, dir, 1<<20), func(f string) bool { return !strings.Contains(filepath.ToSlash(f), "/blob/") })
	return append(out, blobs[0])
}

func (s *told) checkpoints(t *testing.T) {
	dir := s.forge(s.late, "checkpoints")
	file := filepath.Join(dir, "checkpoint")
	note, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text, signatures, _ := bytes.Cut(note, []byte("\n\n"))
	lines := bytes.SplitAfter(bytes.TrimSuffix(signatures, []byte("\n")), []byte("\n"))
	join := func(lines ...[]byte) []byte {
		return append(slices.Concat(text, []byte("\n\n"), bytes.TrimSuffix(bytes.Join(lines, nil), []byte("\n"))), '\n')
	}
	s.replace(file, join(lines[:3]...)) // the log key and two notaries
	s.unsound("not final", dir)
	s.replace(file, join(lines[1:]...))
	s.unsound("", dir)
	stranger := []byte("\u2014 stranger AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n")
	s.replace(file, append(slices.Clone(note), stranger...))
	s.unsound("of which the log key and the notaries made", dir)
	early, err := os.ReadFile(filepath.Join(s.early, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	s.replace(file, early) // good, but it covers less
	if out := s.sound(dir); !strings.Contains(out, "NOT FINAL") {
		t.Errorf("%s", out)
	}
	s.unsound("does not contain", dir, "--since", filepath.Join(s.late, "checkpoint"))
}

// A log with the same entries in another order, or with one left out, has a
// directory that is right in itself. Only the checkpoint shows it.
func (s *told) rewritten(t *testing.T) {
	a, err := log.OpenReadOnly(s.late)
	if err != nil {
		t.Fatal(err)
	}
	leaves, err := a.Leaves(context.Background(), 0, a.Size())
	if err != nil {
		t.Fatal(err)
	}
	last := len(leaves) - 1
	for name, forged := range map[string][][]byte{
		"omitted": slices.Delete(slices.Clone(leaves), last/2, last/2+1),
		"swapped": slices.Concat(leaves[:1], leaves[2:3], leaves[1:2], leaves[3:]), // two acceptances; the last entries may be one document sent twice
		"empty":   leaves[:1],
	} {
		dir := s.path("logs", name)
		w, err := log.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Append(forged); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(filepath.Join(dir, "blob"), os.DirFS(filepath.Join(s.late, "blob"))); err != nil {
			t.Fatal(err)
		}
		s.unsound("no checkpoint", dir)
		note, err := os.ReadFile(filepath.Join(s.late, "checkpoint"))
		if err != nil {
			t.Fatal(err)
		}
		s.replace(filepath.Join(dir, "checkpoint"), note)
		s.unsound("", dir)
	}
}

// parseFound reads what find prints, without the predicates, whose types only
// the log knows.
func parseFound(t *testing.T, out string) []auditEntry {
	t.Helper()
	var rows []struct {
		Index    uint64          `json:"index"`
		Kind     signoff.Kind    `json:"kind"`
		Document dsse.Digest     `json:"document"`
		Signer   string          `json:"signer"`
		Rest     json.RawMessage `json:"predicate"`
	}
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatal(err)
	}
	var found []auditEntry
	for _, r := range rows {
		found = append(found, auditEntry{Index: r.Index, Kind: r.Kind, Document: r.Document, Signer: r.Signer})
	}
	return found
}

// An audit says which notary was disqualified while shares were made, why, and
// which entries prove it; and which accusations were answered.
func TestAuditNamesTheDealer(t *testing.T) {
	for name, lies := range map[string]bool{"wrong answer": true, "right answer": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &desk{Cluster: signofftest.Keys(t, nil), t: t, work: t.TempDir()}
			c := &signofftest.CrookedDealer{Cluster: d.Cluster, From: 1, To: 3, Lies: lies}
			d.Host.Meddle = c.Meddle
			d.Found()
			for _, n := range d.Notaries {
				d.StartNotary(n)
			}
			d.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
			dir := d.copyLog("log")
			var v auditView
			d.answer(&v, "", "audit", "verify", dir, "--charter", d.ID.String())
			text, want := d.sound(dir), "answered     notary n1, accused by n3: the sub-share published is right"
			if lies {
				want = fmt.Sprintf("DISQUALIFIED notary n1: a wrong answer, accused by n3; shares of term 1, attempt 1; proof: entries %v\n", v.Aborts[0].Entries)
			}
			if !strings.Contains(text, want) {
				t.Errorf("the audit lacks %q:\n%s", want, text)
			}
			if lies && (len(v.Aborts) != 1 || !v.Aborts[0].Disqualified || len(v.Aborts[0].Entries) != 2 || len(v.Answered) != 0) ||
				!lies && (len(v.Aborts) != 0 || len(v.Answered) != 1 || len(v.Answered[0].Entries) != 2) {
				t.Errorf("aborts %+v, answered %+v", v.Aborts, v.Answered)
			}
			found := parseFound(t, d.audit("find", dir, "--kind", "dkg-answer", "--json").out)
			if len(found) == 0 || found[0].Signer != "notary n1" {
				t.Errorf("answers found: %+v", found)
			}
		})
	}
}
