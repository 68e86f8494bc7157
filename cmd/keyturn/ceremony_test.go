package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/log"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// An actor reads what the ceremony shows and answers its questions, as people
// do who follow the script.
type actor struct {
	mu      sync.Mutex
	asked   sync.Cond
	text    bytes.Buffer
	seen    int // bytes of text that were looked at
	pending []byte
	answer  func(question string) (string, error) // nil: as is asked
	ended   bool
	asks    int
	before  string // what earlier runs showed
}

func newActor(answer func(string) (string, error)) *actor {
	a := &actor{answer: answer}
	a.asked.L = &a.mu
	return a
}

func (a *actor) Write(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.text.Write(b)
	a.asked.Broadcast()
	return len(b), nil
}

func (a *actor) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	a.asked.Broadcast()
}

// Read waits for a question and gives the answer.
func (a *actor) Read(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.pending) == 0 {
		question, ok := a.question()
		if !ok && a.ended {
			return 0, io.EOF
		}
		if !ok {
			a.asked.Wait()
			continue
		}
		if a.asks++; a.asks > 400 {
			return 0, io.ErrUnexpectedEOF // whatever fails, fails again and again
		}
		answer, err := "", errors.New("")
		if a.answer != nil {
			answer, err = a.answer(question)
		}
		if err != nil && err.Error() == "" {
			answer, err = a.honest(question), nil
		}
		if err != nil {
			return 0, err
		}
		a.pending = []byte(answer + "\n")
	}
	n := copy(b, a.pending)
	a.pending = a.pending[n:]
	return n, nil
}

var questions = regexp.MustCompile(`(?m)^(?:REHEARSAL \| )?(\[(?:go|done), except.*|\w+: type \w+ to sign.*|type the digest.*|exception: .*)\n`)

func (a *actor) question() (string, bool) {
	rest := a.text.Bytes()[a.seen:]
	m := questions.FindSubmatchIndex(rest)
	if m == nil {
		return "", false
	}
	a.seen += m[1]
	return string(rest[m[2]:m[3]]), true
}

var shownDigest = regexp.MustCompile(`found +(?:charter|fingerprint|digest|root|transcript):\n(?:REHEARSAL \| )? +([0-9a-f ]{39})\n(?:REHEARSAL \| )? +([0-9a-f ]{39})\n`)

// honest does what the words ask for. Read-aloud steps in these tests follow
// the step whose digest they compare.
func (a *actor) honest(question string) string {
	switch {
	case strings.HasPrefix(question, "[go"):
		return "go"
	case strings.HasPrefix(question, "[done"):
		return "done"
	case strings.HasPrefix(question, "type the digest"):
		all := shownDigest.FindAllStringSubmatch(a.before+a.text.String(), -1)
		if all == nil {
			return "nothing was shown"
		}
		last := all[len(all)-1]
		return last[1] + " " + last[2]
	}
	name, _, _ := strings.Cut(question, ":")
	return name
}

// A hall is where a ceremony takes place: a directory with a script and what
// it names.
type hall struct {
	t      *testing.T
	dir    string
	script string // path
	args   []string
	medium func(string) (journalMedium, error)
	pins   bool
	before string // what was shown so far, the end of it
}

func (h *hall) path(name ...string) string {
	return filepath.Join(append([]string{h.dir}, name...)...)
}

// run follows the script, with answers other than the honest ones if answer
// gives them; an empty error means the honest answer.
func (h *hall) run(answer func(string) (string, error), more ...string) (outcome, *actor) {
	h.t.Helper()
	act := newActor(answer)
	act.before = h.before
	defer func() { h.before = last(h.before+act.text.String(), 1<<16) }()
	var out bytes.Buffer
	a := &app{Printer: &ui.Printer{Out: &out, Err: act, In: act}, journals: h.medium}
	defer a.close()
	root := rootCmd(a)
	args := append([]string{"ceremony", "run", h.script, "--dir", h.path("ceremony")}, append(h.args, more...)...)
	if h.pins {
		args = append(args, "--pin-fd", fmt.Sprint(h.pinFD()))
	}
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(act)
	code := a.Report("keyturn", root.ExecuteContext(context.Background()))
	return outcome{out.String(), act.text.String(), code}, act
}

// pinFD is a descriptor with a PIN for whoever asks. The program that reads it
// owns it.
func (h *hall) pinFD() int {
	h.t.Helper()
	r, w, err := os.Pipe()
	h.must(err)
	defer r.Close()
	_, err = io.WriteString(w, strings.Repeat(hallPIN+"\n", 400))
	h.must(errors.Join(err, w.Close()))
	fd, err := syscall.Dup(int(r.Fd()))
	h.must(err)
	return fd
}

// stuck does what is asked until a step is asked for a second time, and stops.
func (h *hall) stuck() outcome {
	h.t.Helper()
	at := -1
	o, _ := h.run(func(q string) (string, error) {
		if strings.HasPrefix(q, "[") {
			if h.records() == at {
				return "stop", nil
			}
			at = h.records()
		}
		return "", errors.New("")
	})
	return o
}

func (h *hall) does(more ...string) outcome {
	h.t.Helper()
	o, _ := h.run(nil, more...)
	if o.code != 0 {
		h.t.Fatalf("exit %d: %s", o.code, tail(o.err))
	}
	return o
}

func tail(s string) string { return last(s, 2500) }

func last(s string, n int) string { return s[max(0, len(s)-n):] }

func keyturn(t *testing.T, args ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{Printer: &ui.Printer{Out: &out, Err: &errs, In: strings.NewReader("")}}
	defer a.close()
	root := rootCmd(a)
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	code := a.Report("keyturn", root.ExecuteContext(context.Background()))
	return outcome{out.String(), errs.String(), code}
}

func (h *hall) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *hall) write(name, text string) string {
	h.t.Helper()
	h.must(os.WriteFile(h.path(name), []byte(text), 0o644))
	return h.path(name)
}

// smallScript has people without tokens, so that file keys sign.
const smallScript = `version: 2
name: keys-lab
purpose: notary-keys
title: The keys of the lab
charter: "%s"
people:
  - {name: maria, organisation: lab, roles: [master]}
  - {name: wendy, organisation: auditor, roles: [witness]}
  - {name: alice, organisation: lab, roles: [holder]}
steps:
  - {name: room, do: manual, text: "Nobody else is here.", by: [maria, wendy]}
  - {name: file, do: file-digest, file: script.yaml, text: "The script.", by: [maria, wendy]}
  - {name: aloud, do: read-aloud, of: file, text: "Wendy reads the digest.", by: [maria, alice, wendy]}
  - {name: charter, do: verify-charter, file: charter.json, text: "The charter.", by: [maria, wendy]}
  - {name: keys, do: verify-keygen, log: log, proves: "the notaries have their group key", text: "The group key.", by: [alice, wendy]}
`

// lab is a cluster's charter, a copy of its log and alice's key, by path. It is
// made once.
var lab struct {
	sync.Once
	id    dsse.Digest
	files map[string][]byte
}

func makeLab(t *testing.T) {
	d := newDesk(t)
	lab.id, lab.files = d.ID, map[string][]byte{}
	keep := func(to, from string) {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		lab.files[to] = b
	}
	keep("charter.json", d.path("charter.json"))
	keep("alice.pem", filepath.Join(d.Dir, "alice.pem"))
	dir := filepath.Join(t.TempDir(), "log")
	copyLog(t, filepath.Join(d.Dir, "log"), dir)
	if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		keep(filepath.Join("log", name), path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// layLab writes the lab's files into a directory.
func layLab(dir string) error {
	for name, b := range lab.files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// copyLog copies a log that goes on, as often as it takes to get one that opens:
// an entry may come between the copies of the tiles over it and of its bundle.
func copyLog(t *testing.T, from, to string) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := copyOnce(from, to)
		if err == nil {
			var a *log.Archive
			if a, err = log.OpenReadOnly(to); err == nil {
				a.Close()
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("copy the log: %v", err)
		}
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
	}
}

// newHall has keys in files for people of the small script, and a charter and a
// copy of its log.
func newHall(t *testing.T) *hall {
	t.Helper()
	lab.Do(func() { makeLab(t) })
	h := &hall{t: t, dir: t.TempDir()}
	h.must(layLab(h.dir))
	h.script = h.write("script.yaml", fmt.Sprintf(smallScript, lab.id))
	for _, name := range []string{"maria", "wendy"} {
		uri := "file:" + h.path(name+".pem")
		_, err := file.Generate(uri, hsm.KindP256)
		h.must(err)
		h.args = append(h.args, "--key", name+"="+uri)
	}
	h.args = append(h.args, "--key", "alice=file:"+h.path("alice.pem"))
	h.people("maria", "wendy")
	return h
}

// people writes the file that says whose keys maria's and wendy's are.
func (h *hall) people(names ...string) {
	h.t.Helper()
	list := map[string]signoff.PublicKey{}
	for _, name := range names {
		k, err := file.Open("file:"+h.path(name+".pem"), nil)
		h.must(err)
		list[name], err = signoff.NewPublicKey(k.Public(), hsm.ClassSoftware)
		h.must(err)
	}
	b, err := dsse.Encode(list)
	h.must(err)
	h.write("people.json", string(b))
}

// A ceremony from the first word to the printed page.
func TestCeremony(t *testing.T) {
	h := newHall(t)
	o := h.does("--json")
	var v ceremonyView
	h.must(dsse.Decode([]byte(strings.TrimSpace(o.out)), &v))
	if v.Mode != ceremony.Real || v.Records != 5 || !v.Complete || v.Exceptions != 0 || len(v.People) != 3 {
		t.Fatalf("run answered %+v", v)
	}
	verify := []string{"ceremony", "verify", v.Path, "--charter", h.path("charter.json"), "--people", h.path("people.json")}
	if o := keyturn(t, verify...); o.code != 0 || !strings.Contains(o.out, "5 records, complete") {
		t.Fatalf("verify: exit %d: %s", o.code, o.err)
	}
	people, err := os.ReadFile(h.path("people.json"))
	h.must(err)
	h.write("alice.json", strings.Replace(string(people), "maria", "alice", 1))
	for _, test := range []struct{ reason, args string }{
		{"say with --charter FILE or --people FILE", ""},
		{"nothing says whose keys maria, wendy signed with", "--charter charter.json"},
		{"maria signed with a software key", "--people people.json"},
		{"names alice, whose keys the charter has", "--charter charter.json --people alice.json"},
	} {
		args := []string{"ceremony", "verify", v.Path}
		for _, w := range strings.Fields(test.args) {
			if strings.HasSuffix(w, ".json") {
				w = h.path(w)
			}
			args = append(args, w)
		}
		if o := keyturn(t, args...); o.code == 0 || !strings.Contains(o.err, test.reason) {
			t.Errorf("verify %s: exit %d: %s", test.args, o.code, o.err)
		}
	}
	for _, out := range []string{"one.html", "two.html"} {
		if o := keyturn(t, "ceremony", "record", v.Path, "--out", h.path(out)); o.code != 0 {
			t.Fatal(o.err)
		}
	}
	one, err := os.ReadFile(h.path("one.html"))
	h.must(err)
	two, err := os.ReadFile(h.path("two.html"))
	h.must(err)
	if !bytes.Equal(one, two) {
		t.Error("two pages of one transcript differ")
	}
	if bytes.Contains(one, []byte("http")) && !bytes.Contains(one, []byte("http-equiv")) || bytes.Contains(one, []byte("<script")) || bytes.Contains(one, []byte("REHEARSAL")) {
		t.Error("the page reaches for something, or calls itself a rehearsal")
	}
	for _, want := range []string{"The keys of the lab", ceremony.Groups(v.Transcript)[0], "the notaries have their group key"} {
		if !bytes.Contains(one, []byte(want)) {
			t.Errorf("the page does not say %q", want)
		}
	}

	// Once more: nothing is left to do.
	if again := h.does("--json"); again.out != o.out {
		t.Errorf("a second run answered %s", again.out)
	}
	h.write("script.yaml", strings.Replace(fmt.Sprintf(smallScript, v.Charter), "Nobody else", "Somebody else", 1))
	if o, _ := h.run(nil); o.code == 0 || !strings.Contains(o.err, "the script was changed") {
		t.Errorf("with another script: exit %d: %s", o.code, tail(o.err))
	}
}

// The script is not changed while it is followed either.
func TestAttackCeremonyScriptChangedBetweenSteps(t *testing.T) {
	h := newHall(t)
	n := 0
	h.run(func(string) (string, error) {
		if n++; n == 4 {
			return "stop", nil
		}
		return "", errors.New("")
	})
	text, err := os.ReadFile(h.script)
	h.must(err)
	h.write("script.yaml", strings.Replace(string(text), "The group key.", "A group key.", 1))
	if o, _ := h.run(nil); o.code == 0 || !strings.Contains(o.err, "the script was changed") {
		t.Errorf("exit %d: %s", o.code, tail(o.err))
	}
}

// What failed, who refused and what was decided stands in the record of the step.
func TestCeremonyFailuresAreRecorded(t *testing.T) {
	h := newHall(t)
	script := []string{
		"done", "maria", "no", // wendy does not sign
		"nonsense", // nothing happens
		"except", "time", "we began an hour late", "maria",
		"except", "party", "no such kind", "maria",
		"done", "maria", "wendy",
		"waive", "equipment", "the file is on the other stick", "wendy", "maria", "wendy",
		"go", // nothing to compare
		"waive", "failure", "nothing to read aloud", "maria", "maria", "wendy",
		"go", "maria", "wendy",
		"waive", // it proves something
		"go", "alice", "wendy",
	}
	o, _ := h.run(func(string) (string, error) {
		if len(script) == 0 {
			return "", io.EOF
		}
		answer := script[0]
		script = script[1:]
		return answer, nil
	})
	if o.code != 0 || len(script) != 0 {
		t.Fatalf("exit %d, %d words left: %s", o.code, len(script), tail(o.err))
	}
	_, r, err := readTranscript(h.path("ceremony", "transcript.json"))
	h.must(err)
	first, last := r.Entries[0].Record, r.Entries[4].Record
	if len(first.Incidents) != 2 || !strings.Contains(first.Incidents[0].Text, "wendy did not sign") || !strings.Contains(first.Incidents[1].Text, "party") {
		t.Errorf("incidents %+v", first.Incidents)
	}
	if len(first.Exceptions) != 1 || first.Exceptions[0] != (ceremony.Exception{Kind: "time", Text: "we began an hour late", Decided: "maria"}) {
		t.Errorf("exceptions %+v", first.Exceptions)
	}
	if got := strings.Join(r.Waived(), " "); got != "file aloud" {
		t.Errorf("waived %s", got)
	}
	if len(last.Incidents) != 1 || !strings.Contains(last.Incidents[0].Text, "it cannot be waived") {
		t.Errorf("incidents %+v", last.Incidents)
	}
}

// A digest that is read wrongly is not taken.
func TestAttackCeremonyOtherDigestReadAloud(t *testing.T) {
	h := newHall(t)
	wrong := false
	o, _ := h.run(func(q string) (string, error) {
		if strings.HasPrefix(q, "type the digest") && !wrong {
			wrong = true
			return strings.Repeat("0123 ", 16), nil
		}
		return "", errors.New("")
	})
	if o.code != 0 || !wrong {
		t.Fatalf("exit %d: %s", o.code, tail(o.err))
	}
	_, r, err := readTranscript(h.path("ceremony", "transcript.json"))
	h.must(err)
	if i := r.Entries[2].Record.Incidents; len(i) != 1 || !strings.Contains(i[0].Text, "was typed, step file found") {
		t.Errorf("incidents %+v", i)
	}
}

// A rehearsal says so on every line, verifies as nothing, and cannot be turned
// into the real thing where it was held.
func TestAttackCeremonyRehearsalAsReal(t *testing.T) {
	h := newHall(t)
	o := h.does("--rehearsal")
	for line := range strings.Lines(o.err + o.out) {
		if !strings.HasPrefix(line, "REHEARSAL | ") {
			t.Fatalf("a rehearsal showed %q", line)
		}
	}
	path := h.path("ceremony", "REHEARSAL-transcript.json")
	if o := keyturn(t, "ceremony", "verify", path, "--charter", h.path("charter.json"), "--people", h.path("people.json")); o.code == 0 || !strings.Contains(o.err, "this is a REHEARSAL") {
		t.Errorf("verify: exit %d: %s", o.code, o.err)
	}
	if o, _ := h.run(nil); o.code == 0 || !strings.Contains(o.err, "was begun here, not one of mode real") {
		t.Errorf("the real thing where it was rehearsed: exit %d: %s", o.code, tail(o.err))
	}
	if o := keyturn(t, "ceremony", "record", path, "--out", h.path("page.html")); o.code != 0 {
		t.Fatal(o.err)
	}
	page, err := os.ReadFile(h.path("page.html"))
	h.must(err)
	if n := bytes.Count(page, []byte("REHEARSAL")); n < 12 {
		t.Errorf("the page says REHEARSAL %d times", n)
	}

	// And with the flag flipped in journal and transcript.
	for _, name := range []string{"REHEARSAL-transcript.json", "journal.jsonl"} {
		b, err := os.ReadFile(h.path("ceremony", name))
		h.must(err)
		b = bytes.Replace(b, []byte("ceremony REHEARSAL transcript"), []byte("ceremony transcript"), 1)
		b = bytes.Replace(b, []byte(`"mode":"REHEARSAL"`), []byte(`"mode":"real"`), 1)
		h.must(os.WriteFile(h.path("ceremony", name), b, 0o600))
	}
	const never = "a rehearsal is never the real thing"
	if o := keyturn(t, "ceremony", "verify", path, "--people", h.path("people.json")); o.code == 0 || !strings.Contains(o.err, never) {
		t.Errorf("flipped: exit %d: %s", o.code, o.err)
	}
	if o, _ := h.run(nil); o.code == 0 || !strings.Contains(o.err, never) {
		t.Errorf("flipped journal: exit %d: %s", o.code, tail(o.err))
	}
}

// Killed with SIGKILL at every question in turn, the ceremony goes on where it
// was, and asks nobody twice for what they signed.
func TestCeremonyKilledAtEveryQuestion(t *testing.T) {
	h := newHall(t)
	program, err := exec.LookPath("keyturn") // as testscript installs it
	h.must(err)
	signed := map[string]int{}
	for run := 0; ; run++ {
		if run > 100 {
			t.Fatalf("the ceremony does not come to an end: %v", signed)
		}
		n, killed := 0, false
		cmd := exec.Command(program, append([]string{"ceremony", "run", h.script, "--dir", h.path("ceremony")}, h.args...)...)
		act := newActor(func(q string) (string, error) {
			// Killed at the second, third and fourth question in turn: some steps
			// ask two before anything is written.
			if n++; n == 2+run%3 {
				killed = true
				cmd.Process.Kill()
				return "", io.EOF
			}
			if strings.Contains(q, "to sign") {
				signed[q+fmt.Sprint(h.records())]++
			}
			return "", errors.New("")
		})
		act.before = h.before
		cmd.Stderr = act
		in, err := cmd.StdinPipe()
		h.must(err)
		h.must(cmd.Start())
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			io.Copy(in, act) // ends when the process or the questions do
		}()
		err = cmd.Wait()
		act.end()
		<-answered
		h.before = last(h.before+act.text.String(), 1<<16)
		if err == nil {
			break
		}
		if !killed {
			t.Fatalf("run %d: %v: %s", run, err, tail(act.text.String()))
		}
	}
	for q, n := range signed {
		if n != 1 {
			t.Errorf("%s was answered %d times", q, n)
		}
	}
	if o := keyturn(t, "ceremony", "verify", h.path("ceremony", "transcript.json"), "--charter", h.path("charter.json"), "--people", h.path("people.json")); o.code != 0 {
		t.Fatalf("verify: exit %d: %s", o.code, o.err)
	}
}

// records counts the signatures in the journal.
func (h *hall) records() int {
	b, err := os.ReadFile(h.path("ceremony", "journal.jsonl"))
	h.must(err)
	return bytes.Count(b, []byte(`{"signature"`))
}

const hallPIN = "user-pin-20741"

// tokens makes SoftHSM tokens and returns their serial numbers by label.
func (h *hall) tokens(labels ...string) map[string]string {
	h.t.Helper()
	if _, err := os.Stat(softHSM); err != nil {
		h.t.Skip("needs SoftHSM2 (package softhsm2)")
	}
	self, err := os.Executable()
	h.must(err)
	helper := filepath.Join(filepath.Dir(self), "keyturn-token")
	build := exec.Command("go", "build", "-o", helper, "../keyturn-token")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		h.t.Fatalf("build keyturn-token: %s", out)
	}
	h.must(os.Mkdir(h.path("tokens"), 0o700))
	h.t.Setenv("SOFTHSM2_CONF", h.write("softhsm2.conf", fmt.Sprintf("directories.tokendir = %s\nlog.level = ERROR\n", h.path("tokens"))))
	cfg := token.Config{Module: softHSM}
	for _, l := range labels {
		h.must(token.Init(context.Background(), cfg, l, []byte("officer-pin-1"), []byte(hallPIN)))
	}
	all, err := token.Tokens(context.Background(), cfg)
	h.must(err)
	serials := map[string]string{}
	for _, i := range all {
		serials[i.Label] = i.Serial
	}
	h.pins = true
	h.args = append(h.args, "--module", softHSM)
	return serials
}

var fillIn = regexp.MustCompile(`label: ([a-z-]+), serial: FILL-IN-\d+`)

// newGenesis is the shipped genesis script with SoftHSM tokens.
func newGenesis(t *testing.T) *hall {
	t.Helper()
	h := &hall{t: t, dir: t.TempDir()}
	text, err := os.ReadFile("../../deploy/ceremony/genesis.yaml")
	h.must(err)
	var labels []string
	for _, m := range fillIn.FindAllStringSubmatch(string(text), -1) {
		labels = append(labels, m[1])
	}
	if len(labels) != 11 {
		t.Fatalf("the script has %d tokens", len(labels))
	}
	serials := h.tokens(labels...)
	var people []string
	for _, name := range []string{"maria", "wendy", "walter"} { // come with keys of their own
		o := keyturn(t, "key", "new", "pkcs11:token="+name+";object=sign?module-path="+softHSM, "--kind", "p256", "--pin-fd", fmt.Sprint(h.pinFD()))
		if o.code != 0 {
			t.Fatal(o.err)
		}
		people = append(people, fmt.Sprintf("%q:%s", name, strings.TrimSpace(o.out)))
	}
	filled := fillIn.ReplaceAllStringFunc(string(text), func(s string) string {
		label := fillIn.FindStringSubmatch(s)[1]
		return fmt.Sprintf("label: %s, serial: %q", label, serials[label])
	})
	h.script = h.write("script.yaml", filled)
	h.write("people.json", "{"+strings.Join(people, ",")+"}")
	h.write("keyturn", "the program")
	h.write("policy.yaml", signofftest.Policy)
	h.founding()
	return h
}

// founding writes a founding file in which the places for the keys of the
// ceremony are empty.
func (h *hall) founding() {
	h.t.Helper()
	c := signofftest.Keys(h.t, nil).Charter
	f := founding{Name: "lab-one", Development: true, Threshold: 2, Faults: 1, Notaries: c.Notaries,
		Coordinators: []signoff.Coordinator{{URL: "https://coordinator.lab:7700"}}, EKRoots: [][]byte{}, References: []string{}}
	// Three people who together have every role that the policy names.
	for name, of := range map[string][]string{"alice": {"research", "safety"}, "bob": {"security", "research"}, "carol": {"leadership", "safety", "security"}} {
		f.People = append(f.People, signoff.Person{Name: name, Organisation: "lab", Roles: of, Spares: []signoff.Token{{}}})
	}
	b, err := dsse.Encode(f)
	h.must(err)
	h.write("founding.json", string(b))
	h.write("policy.yaml", smallPolicy)
}

const smallPolicy = `version: 1
leases: {epoch: 600, lease: 21600, drainGrace: 60}
rules:
  - {name: change, action: policy.change, quorum: {atLeast: {k: 2, roles: [research, security, leadership]}}, expiry: 86400}
  - {name: resume, action: resume, quorum: {atLeast: {k: 2, roles: [research, security, leadership]}}, expiry: 86400}
  - {name: halt, action: halt, quorum: {atLeast: {k: 1, roles: [research, security, leadership]}}, expiry: 3600}
`

// The shipped genesis script, on tokens, with the journal cut at every write:
// once before the line is there, with half of it, and once after it, with the
// process gone. Whatever was made is made once, and what comes out is a charter
// in force and a transcript that verifies.
func TestCeremonyGenesisCutAtEveryWrite(t *testing.T) {
	h := newGenesis(t)
	cut := &cutter{}
	h.medium = cut.open
	var o outcome
	runs := 0
	for o.code = 1; o.code != 0; runs++ {
		if runs > 2000 {
			t.Fatalf("the ceremony does not come to an end: %s", tail(o.err))
		}
		cut.next()
		o, _ = h.run(nil)
		if o.code != 0 && !cut.dead {
			t.Fatalf("run %d stopped by itself: %s", runs, tail(o.err))
		}
	}
	t.Logf("%d runs", runs)
	h.genesisHolds()
}

// genesisHolds checks what a genesis made, by other means than the ceremony's.
func (h *hall) genesisHolds() {
	t := h.t
	t.Helper()
	payload, err := os.ReadFile(h.path("ceremony", "charter.json"))
	h.must(err)
	id := (&dsse.Envelope{Payload: payload}).Digest()
	auth, err := authority.New(id)
	h.must(err)
	genesis, err := os.ReadFile(h.path("ceremony", "genesis.jsonl"))
	h.must(err)
	n := 0
	for line := range bytes.Lines(genesis) {
		out, err := auth.Apply(bytes.TrimSuffix(line, []byte("\n")), nil)
		h.must(err)
		h.must(out.Void)
		n++
	}
	if n != 4 || !auth.State().InForce {
		t.Errorf("%d lines of genesis, in force %v", n, auth.State().InForce)
	}
	for label, want := range map[string]int{"alice": 2, "alice-spare": 2, "coordinator": 2, "boot": 1, "maria": 1} {
		uri := "pkcs11:token=" + label + "?module-path=" + softHSM
		tok, err := token.Open(context.Background(), token.Config{}, uri, func(context.Context, string) (*secret.Buffer, error) { return secret.Take([]byte(hallPIN)) })
		h.must(err)
		list, err := tok.List(context.Background())
		h.must(err)
		tok.Close()
		if len(list) != want {
			t.Errorf("token %s has %d keys, want %d", label, len(list), want)
		}
	}
	o := keyturn(t, "ceremony", "verify", h.path("ceremony", "transcript.json"), "--charter", h.path("ceremony", "charter.json"), "--people", h.path("people.json"))
	if o.code != 0 {
		t.Fatalf("verify: exit %d: %s", o.code, o.err)
	}
}

// A cutter is a disk on which each line of the journal fails once before and
// once after it is written. Incidents pass, or no ceremony would get further.
type cutter struct {
	after bool // the next failure is after the write
	dead  bool
}

func (c *cutter) next() { c.dead, c.after = false, !c.after }

func (c *cutter) open(path string) (journalMedium, error) {
	m, err := openMedium(path)
	return &cutMedium{m, c}, err
}

type cutMedium struct {
	journalMedium
	c *cutter
}

func (m *cutMedium) Write(b []byte) (int, error) {
	if m.c.dead {
		return 0, errors.New("written after the end")
	}
	if bytes.HasPrefix(b, []byte(`{"incident"`)) {
		return m.journalMedium.Write(b)
	}
	m.c.dead = true
	if m.c.after {
		n, err := m.journalMedium.Write(b)
		return n, errors.Join(err, errors.New("cut after the line"))
	}
	n, err := m.journalMedium.Write(b[:len(b)/2])
	return n, errors.Join(err, errors.New("cut in the line"))
}

// The shipped genesis script is rehearsed as it is, serial numbers not filled
// in, without a token.
func TestCeremonyGenesisRehearsed(t *testing.T) {
	h := &hall{t: t, dir: t.TempDir()}
	text, err := os.ReadFile("../../deploy/ceremony/genesis.yaml")
	h.must(err)
	h.script = h.write("script.yaml", string(text))
	h.write("keyturn", "the program")
	h.founding()
	h.does("--rehearsal")
	payload, err := os.ReadFile(h.path("ceremony", "REHEARSAL-charter.json"))
	h.must(err)
	doc, err := signoff.Read(payload)
	h.must(err)
	if c := doc.(*signoff.Charter); c.Name != "rehearsal-of-lab-one" || !c.Development {
		t.Errorf("the rehearsal made charter %s, development %v", c.Name, c.Development)
	}
	for _, name := range []string{"charter.json", "genesis.jsonl", "transcript.json"} {
		if _, err := os.Stat(h.path("ceremony", name)); err == nil {
			t.Errorf("the rehearsal made a %s", name)
		}
	}
}

// Another token than the script's, a wrong PIN and a key that is there already
// stop a step, and are noted.
func TestAttackCeremonyOtherToken(t *testing.T) {
	h := newGenesis(t)
	text, err := os.ReadFile(h.script)
	h.must(err)
	alice := regexp.MustCompile(`label: alice, serial: "([0-9a-f]+)"`).FindSubmatch(text)
	swapped := bytes.Replace(text, alice[1], []byte("0000000000000000"), 1)
	h.must(os.WriteFile(h.script, swapped, 0o644))
	failed := 0
	o, _ := h.run(func(q string) (string, error) {
		if strings.HasPrefix(q, "[go") && h.records() == 9 { // room, software and software-aloud are signed
			if failed++; failed == 2 {
				return "stop", nil
			}
		}
		return "", errors.New("")
	})
	if o.code == 0 || !strings.Contains(o.err, "FAILED: token: open") || !strings.Contains(o.err, "key gone") {
		t.Errorf("exit %d: %s", o.code, tail(o.err))
	}
}

// The spare's key is made anew between the step that made it and the one that
// proves it: the token is the same, by serial number and label.
func TestAttackCeremonySpareMadeAnew(t *testing.T) {
	h := newGenesis(t)
	o, _ := h.run(func(string) (string, error) {
		if h.records() == 57 { // up to charter-aloud
			return "stop", nil
		}
		return "", errors.New("")
	})
	uri := "pkcs11:token=alice-spare;object=sign?module-path=" + softHSM
	if h.records() != 57 {
		t.Fatalf("stopped after %d signatures: %s", h.records(), tail(o.err))
	}
	a := &app{Printer: &ui.Printer{Out: io.Discard, Err: io.Discard, In: strings.NewReader("")}, pinFD: h.pinFD()}
	defer a.close()
	h.must(a.keyring().Destroy(context.Background(), uri))
	a.close()
	if o := keyturn(t, "key", "new", uri, "--kind", "p256", "--pin-fd", fmt.Sprint(h.pinFD())); o.code != 0 {
		t.Fatal(o.err)
	}
	if o := h.stuck(); o.code == 0 || !strings.Contains(o.err, "FAILED: the token signs with key sha256:") || !strings.Contains(o.err, "this ceremony made sha256:") || h.records() != 57 {
		t.Errorf("exit %d after %d signatures: %s", o.code, h.records(), tail(o.err))
	}
}

func TestAttackCeremonyKeyMadeBefore(t *testing.T) {
	h := newGenesis(t)
	if o := keyturn(t, "key", "new", "pkcs11:token=alice;object=sign?module-path="+softHSM, "--kind", "p256", "--pin-fd", fmt.Sprint(h.pinFD())); o.code != 0 {
		t.Fatal(o.err)
	}
	failed := 0
	o, _ := h.run(func(q string) (string, error) {
		if strings.HasPrefix(q, "[go") && h.records() == 9 {
			if failed++; failed == 3 {
				return "stop", nil
			}
		}
		return "", errors.New("")
	})
	if o.code == 0 || strings.Count(o.err, "which this step did not make") != 2 {
		t.Errorf("exit %d: %s", o.code, tail(o.err))
	}
}

// logScript is a drill on a cluster that runs, by its people. The log's copy is
// in the directory log beside the script.
const logScript = `version: 2
name: drill-cluster
purpose: drill
title: A drill on the log
charter: "%s"
people:
  - {name: bob, organisation: lab, roles: [master]}
  - {name: carol, organisation: lab, roles: [witness]}
  - {name: alice, organisation: lab, roles: [holder]}
steps:
  - {name: charter, do: verify-charter, file: charter.json, text: "The charter.", by: [bob, carol]}
  - {name: position, do: position, file: position.json, text: "The position.", by: [bob, carol]}
  - {name: log, do: verify-log, log: log, proves: "the log has the position", text: "The log.", by: [bob, carol]}
  - {name: log-aloud, do: read-aloud, of: log, text: "Its root.", by: [bob, carol]}
  - {name: keys, do: verify-keygen, log: log, text: "The group key.", by: [bob, carol]}
  - {name: share, do: drill-share, person: alice, weights: "%s", log: log, proves: "alice's share opens", text: "The share.", by: [alice, carol]}
`

// A ceremony on a running cluster reads its log, opens a share, and ends in it.
func TestCeremonyInTheLog(t *testing.T) {
	d := newDesk(t)
	v := d.seal("erin", "model")
	h := &hall{t: t, dir: d.work}
	copyLog(t, filepath.Join(d.Dir, "log"), h.path("log"))
	h.states(d, 9)
	h.script = h.write("script.yaml", fmt.Sprintf(logScript, d.ID, v.Object))
	for _, name := range []string{"alice", "bob", "carol"} {
		h.args = append(h.args, "--key", name+"=file:"+filepath.Join(d.Dir, name+".pem"))
	}
	wrong := append(slices.Clip(h.args), "--exchange", "alice=file:"+filepath.Join(d.Dir, "bob-x.pem"))
	h.args = append(h.args, "--exchange", "alice=file:"+filepath.Join(d.Dir, "alice-x.pem"))
	right := h.args
	h.args = wrong
	failed := 0
	o, _ := h.run(func(q string) (string, error) {
		if strings.HasPrefix(q, "[go") && h.records() == 10 {
			if failed++; failed == 2 {
				return "stop", nil
			}
		}
		return "", errors.New("")
	})
	if o.code == 0 || strings.Count(o.err, "FAILED") != 1 {
		t.Fatalf("another's key opened alice's share: exit %d: %s", o.code, tail(o.err))
	}
	h.args = right
	h.does()
	path := h.path("ceremony", "transcript.json")
	_, r, err := readTranscript(path)
	h.must(err)
	keys, _ := r.Done("keys")
	var group string
	d.State(func(_ *authority.Authority, s *authority.State) { group = groupFingerprint(s).String() })
	if keys == nil || keys.Find("group") != group {
		t.Errorf("the ceremony found group key %q, the log has %s", keys.Find("group"), group)
	}
	if o := keyturn(t, "ceremony", "verify", path, "--charter", d.path("charter.json")); o.code != 0 {
		t.Fatalf("verify: exit %d: %s", o.code, o.err)
	}

	var registered struct {
		Transcript dsse.Digest `json:"transcript"`
		Index      uint64      `json:"index"`
	}
	h.must(dsse.Decode([]byte(strings.TrimSpace(d.does("dave", "register", "ceremony", "register", path, "--json"))), &registered))
	d.Sync(registered.Index + 1)
	d.State(func(_ *authority.Authority, s *authority.State) {
		if c := s.Ceremonies[r.Last()]; c == nil || c.Index != registered.Index || c.Script != r.Digest {
			t.Errorf("the log has %+v, register answered %+v", c, registered)
		}
	})
	if o := d.as("erin", "register", "ceremony", "register", path); o.code == 0 || !strings.Contains(o.err, "is registered at entry") {
		t.Errorf("registered twice: exit %d: %s", o.code, o.err)
	}

	copyLog(t, filepath.Join(d.Dir, "log"), h.path("copy"))
	if o := keyturn(t, "audit", "find", h.path("copy"), "--charter", d.ID.String(), "--kind", "ceremony"); o.code != 0 || !strings.Contains(o.out, "dave") {
		t.Errorf("audit find: exit %d: %s%s", o.code, o.out, o.err)
	}

	// A rehearsal of the same reads the same log, and stays out of it.
	h2 := &hall{t: t, dir: d.work, script: h.script, args: []string{"--dir", h.path("rehearsal")}}
	h2.does("--rehearsal")
	if o := d.as("dave", "register", "ceremony", "register", h.path("rehearsal", "REHEARSAL-transcript.json")); o.code == 0 || !strings.Contains(o.err, "this is a REHEARSAL") {
		t.Errorf("a rehearsal: exit %d: %s", o.code, o.err)
	}
}

// states writes the position of a notary that cosigned so many entries of the
// copy of the log.
func (h *hall) states(d *desk, size uint64) {
	h.t.Helper()
	archive, err := log.OpenReadOnly(h.path("log"))
	h.must(err)
	root, err := archive.Root(min(size, archive.Size()))
	h.must(errors.Join(err, archive.Close()))
	h.position(d, size, root)
}

func (h *hall) position(d *desk, size uint64, root dsse.Digest) {
	h.t.Helper()
	n := d.Notaries[0]
	p, err := signoff.Sign(context.Background(), n.Signing, &signoff.Position{Charter: d.ID, Notary: n.Doc.ID(), Seen: signoff.Seen{Size: size, Root: root}, Answer: make([]byte, 32)})
	h.must(err)
	h.write("position.json", string(p.Line())+"\n")
}

// A notary's position that the log does not have, or has otherwise, and no way to
// the end.
func TestAttackCeremonyPositionNotInTheLog(t *testing.T) {
	d := newDesk(t)
	for reason, state := range map[string]func(*hall){
		"this log has":                        func(h *hall) { h.states(d, 1<<20) },
		"one of the two is a fork":            func(h *hall) { h.position(d, 9, dsse.Digest{1}) },
		"never cosigned anything":             func(h *hall) { h.position(d, 0, dsse.Digest{}) },
		"want a position of " + d.ID.String(): func(h *hall) { h.write("position.json", string(d.Genesis[1])+"\n") },
	} {
		h := &hall{t: t, dir: t.TempDir()}
		copyLog(t, filepath.Join(d.Dir, "log"), h.path("log"))
		h.must(os.Symlink(d.path("charter.json"), h.path("charter.json")))
		h.script = h.write("script.yaml", fmt.Sprintf(logScript, d.ID, dsse.Digest{1}))
		for _, name := range []string{"alice", "bob", "carol"} {
			h.args = append(h.args, "--key", name+"=file:"+filepath.Join(d.Dir, name+".pem"))
		}
		state(h)
		o := h.stuck()
		if o.code == 0 || !strings.Contains(o.err, reason) {
			t.Errorf("exit %d: %s, want %q", o.code, tail(o.err), reason)
		}
	}
}

// One key of a person's file is swapped between the ceremony and the request, and
// everybody approves it as it is. The ceremony names the step and the key, and
// has no way to its end.
func TestAttackMembershipKeySwapped(t *testing.T) {
	d := newDesk(t)
	h := &hall{t: t, dir: t.TempDir()}
	serials := h.tokens("frank", "frank-spare")
	h.script = h.write("script.yaml", fillIn.ReplaceAllStringFunc(string(membership(t, d)), func(s string) string {
		label := fillIn.FindStringSubmatch(s)[1]
		return fmt.Sprintf("label: %s, serial: %q", label, serials[label])
	}))
	for _, name := range []string{"maria", "wendy"} {
		uri := "file:" + h.path(name+".pem")
		_, err := file.Generate(uri, hsm.KindP256)
		h.must(err)
		h.args = append(h.args, "--key", name+"="+uri)
	}
	o, _ := h.run(func(string) (string, error) {
		if h.records() == 13 {
			return "stop", nil
		}
		return "", errors.New("")
	})
	if h.records() != 13 {
		t.Fatalf("stopped after %d signatures: %s", h.records(), tail(o.err))
	}

	var p signoff.Person
	h.must(readJSON(h.path("ceremony", "people", "frank.json"), &p))
	made := p.Spares[0].Exchange.Fingerprint()
	p.Spares[0].Exchange = d.NewPerson("mallory", "lab", "security").Doc.Exchange
	d.writeJSON("frank.json", p)
	request := strings.TrimSpace(d.does("alice", "", "request", "people", "--purpose", "frank for bob", "--add", d.path("frank.json"), "--remove", "bob"))
	for _, l := range []string{"frank", "frank-spare"} {
		d.write(l+".yaml", fmt.Appendf(nil, "charter: %s\ncharterFile: charter.json\nname: frank\nsigning: pkcs11:token=%s;object=sign?module-path=%s\nstate: state-%s\n", d.ID, l, softHSM, l))
		d.does(l, "accept", "people", "accept", request, "--pin-fd", fmt.Sprint(h.pinFD()))
	}
	for _, name := range []string{"bob", "carol", "dave"} {
		d.does(name, "approve", "approve", request, "--reason", "agreed")
	}
	d.does("alice", "", "warrant", "get", request, "--out", d.path("warrant.json"))
	h.must(os.Symlink(filepath.Join(d.Dir, "log"), h.path("log")))

	words := []string{"go", "waive", "stop"}
	o, _ = h.run(func(q string) (string, error) {
		switch {
		case strings.HasPrefix(q, "[go"):
			word := words[0]
			words = words[1:]
			return word, nil
		case strings.HasPrefix(q, "exception: which"):
			return "failure", nil
		case strings.HasPrefix(q, "exception: who"):
			return "maria", nil
		}
		return "", errors.New("")
	})
	reason := fmt.Sprintf("step spare-exchange made key %s, and the log does not have it as people frank spare-exchange", made)
	if o.code == 0 || !strings.Contains(o.err, reason) || !strings.Contains(o.err, "it cannot be waived") || h.records() != 16 {
		t.Fatalf("exit %d after %d signatures, want %q: %s", o.code, h.records(), reason, tail(o.err))
	}
	if _, err := os.Stat(h.path("ceremony", "transcript.json")); err == nil {
		t.Error("the ceremony came to an end")
	}
}

// The notary that comes into office has other keys than those that the ceremony
// made for its name. The log says so, and the ceremony has no way to its end.
func TestAttackNotaryKeySwapped(t *testing.T) {
	d := newDesk(t)
	h := newNotaryHall(t, d)
	// All notaries of the first term have their shares, and that is not what counts.
	h.copies(d)
	if o := h.stuck(); !strings.Contains(o.err, "notaries change by this script, and the log has those of its charter still") || h.records() != 13 {
		t.Fatalf("before the change: %d signatures: %s", h.records(), tail(o.err))
	}

	n5 := d.Newcomer("n5") // the same name, and keys of its own
	d.writeJSON("n5.json", n5.Doc)
	d.StartNotary(n5)
	id := strings.TrimSpace(d.does("alice", "", "request", "notaries", "--purpose", "n5 for n4", "--add", d.path("n5.json"), "--remove", "n4"))
	d.approve(id, "bob", "carol", "dave")
	d.does("alice", "", "warrant", "get", id, "--out", d.path("warrant.json"))
	d.Wait("the new notaries in office", func(s *authority.State) bool { return len(s.Terms) == 2 })
	h.copies(d)

	var made signoff.Notary
	h.must(readJSON(h.path("ceremony", "notaries", "n5.json"), &made))
	reason := fmt.Sprintf("step n5-sign made key %s, and the log does not have it as notaries n5 signing", made.ID())
	if o := h.stuck(); o.code == 0 || !strings.Contains(o.err, reason) || h.records() != 13 {
		t.Errorf("exit %d after %d signatures, want %q: %s", o.code, h.records(), reason, tail(o.err))
	}
	// With exactly those keys it would have passed.
	d.State(func(_ *authority.Authority, s *authority.State) {
		r := roster(s)
		if n := len(r.Councils); n != 2 || !r.Councils[1].Has(n5.Doc) || r.Councils[1].Has(d.Notaries[3].Doc) {
			t.Errorf("the roster has %d councils", n)
		}
	})
}
