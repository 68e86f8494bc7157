package ceremony_test

import (
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// spans are where the signatures of each record begin and end.
func spans(t testing.TB, x *ceremony.Transcript) [][2]int {
	t.Helper()
	var out [][2]int
	var last dsse.Digest
	for i, l := range x.Records {
		e, err := dsse.Parse([]byte(l))
		if err != nil {
			t.Fatal(err)
		}
		if e.Digest() != last {
			out = append(out, [2]int{i, i})
		}
		last = e.Digest()
		out[len(out)-1][1] = i + 1
	}
	return out
}

func clone(x *ceremony.Transcript) *ceremony.Transcript {
	y := *x
	y.Records = slices.Clone(x.Records)
	return &y
}

func TestAttackStepRemoved(t *testing.T) {
	x := newRoom(t, ceremony.Real).through().transcript()
	all := spans(t, x)
	for i, s := range all {
		y := clone(x)
		y.Records = slices.Delete(y.Records, s[0], s[1])
		reason := "a record is missing or out of order"
		if i == len(all)-1 {
			reason = "records are missing"
		}
		refused(t, y, reason)
	}
	y := clone(x)
	y.Records = y.Records[:0]
	refused(t, y, "records are missing")
}

func TestAttackStepsReordered(t *testing.T) {
	x := newRoom(t, ceremony.Real).through().transcript()
	all := spans(t, x)
	for i := range all[:len(all)-1] {
		a, b := all[i], all[i+1]
		y := clone(x)
		y.Records = slices.Concat(x.Records[:a[0]], x.Records[b[0]:b[1]], x.Records[a[0]:a[1]], x.Records[b[1]:])
		refused(t, y, "out of order")
	}
}

// Records that are signed by the right people, and yet do not follow.
func TestAttackSignedOutOfOrder(t *testing.T) {
	for reason, edit := range map[string]func(*ceremony.Record){
		"want number 3":          func(d *ceremony.Record) { d.Number = 2 },
		"as the one before":      func(d *ceremony.Record) { d.Previous[0] ^= 1 },
		"next step is aloud":     func(d *ceremony.Record) { d.Step = "end" },
		"the script was changed": func(d *ceremony.Record) { d.Script[0] ^= 1 },
		"of run":                 func(d *ceremony.Record) { d.Run = []byte("another run: 16b") },
		"the script wants":       func(d *ceremony.Record) { d.Signers = d.Signers[:2] },
		"wants [maria wendy wal": func(d *ceremony.Record) { slices.Reverse(d.Signers) },
		"has found its digest":   func(d *ceremony.Record) { d.Findings = []ceremony.Finding{} },
		"nobody of the script":   func(d *ceremony.Record) { d.Exceptions = []ceremony.Exception{{"time", "late", "mallory"}} },
	} {
		r := newRoom(t, ceremony.Real)
		r.step(ceremony.Passed)
		r.step(ceremony.Passed)
		d := r.draft(ceremony.Passed)
		edit(d)
		d.Display = sha256.Sum256([]byte(ceremony.Text(r.chain.Script, d)))
		signed := r.signs(d, signersOf(d)...)
		wants(t, r.chain.Add(signed[0].Payload, signed), reason)
	}
}

func TestAttackAlteredAfterSigning(t *testing.T) {
	r := newRoom(t, ceremony.Real)
	r.step(ceremony.Passed)
	d := r.draft(ceremony.Passed)
	signed := r.signs(d, "maria", "wendy")
	d.Findings[1].Value = "8"
	d.Display = sha256.Sum256([]byte(ceremony.Text(r.chain.Script, d)))
	payload, err := d.Write()
	r.must(err)
	for _, e := range signed {
		e.Payload = payload
	}
	wants(t, r.chain.Add(payload, signed), "signature of maria: dsse: verify")

	// One of the two signs what was altered, the other does not.
	again := r.signs(d, "maria")
	wants(t, r.chain.Add(payload, []*dsse.Envelope{again[0], signed[1]}), "signature of wendy: dsse: verify")
}

func TestAttackWrongSigner(t *testing.T) {
	r := newRoom(t, ceremony.Real)
	d := r.draft(ceremony.Passed)
	for reason, people := range map[string][]string{
		"signature of wendy: dsse: verify": {"maria", "walter"},
		"signature of maria: dsse: verify": {"mallory", "wendy"},
		"1 signatures, its 2 signers":      {"maria"},
		"3 signatures, its 2 signers":      {"maria", "wendy", "walter"},
	} {
		signed := r.signs(d, people...)
		wants(t, r.chain.Add(signed[0].Payload, signed), reason)
	}

	// Somebody who signed before comes with another key.
	r.step(ceremony.Passed)
	d = r.draft(ceremony.Passed)
	d.Signers[1].Key = r.public("mallory")
	d.Display = sha256.Sum256([]byte(ceremony.Text(r.chain.Script, d)))
	signed := r.signs(d, "maria", "mallory")
	wants(t, r.chain.Add(signed[0].Payload, signed), "and signed with")

	// From the first record on, for whoever knows the keys.
	r = newRoom(t, ceremony.Real)
	r.keys["wendy"] = r.keys["mallory"]
	report, err := parse(t, r.through().transcript())
	r.must(err)
	honest := newRoom(t, ceremony.Real).anchors()
	for _, name := range []string{"maria", "walter", "alice"} {
		honest[name] = []ceremony.Digest{r.public(name).Fingerprint()}
	}
	wants(t, report.Anchor(honest, false), "wendy signed with key")
}

func TestAttackOneSignsTwice(t *testing.T) {
	r := newRoom(t, ceremony.Real)
	d := r.draft(ceremony.Passed)
	signed := r.signs(d, "maria", "maria")
	wants(t, r.chain.Add(signed[0].Payload, signed), "signature of wendy")

	// One key under two names, in one record and over two.
	d.Signers[1].Key = d.Signers[0].Key
	d.Display = sha256.Sum256([]byte(ceremony.Text(r.chain.Script, d)))
	signed = r.signs(d, "maria", "maria")
	wants(t, r.chain.Add(signed[0].Payload, signed), "maria and wendy sign with one key")
	r.step(ceremony.Passed)
	r.step(ceremony.Passed)
	r.keys["walter"] = r.keys["maria"]
	d = r.draft(ceremony.Passed)
	signed = r.signs(d, signersOf(d)...)
	wants(t, r.chain.Add(signed[0].Payload, signed), "maria and walter sign with one key")
}

// A rehearsal is never the real thing: not as it is, not with its flag flipped,
// not in parts, and not the other way round.
func TestAttackRehearsalAsReal(t *testing.T) {
	real, rehearsal := newRoom(t, ceremony.Real), newRoom(t, ceremony.Rehearsal)
	rehearsal.keys = real.keys // even if somebody rehearsed with real keys
	x, y := real.through().transcript(), rehearsal.through().transcript()

	report, err := parse(t, y)
	real.must(err)
	wants(t, report.Counts(report.Charter), "this is a REHEARSAL")

	for _, pair := range [][2]*ceremony.Transcript{{x, y}, {y, x}} {
		flipped := clone(pair[0])
		flipped.Version = pair[1].Version
		refused(t, flipped, "a rehearsal is never the real thing, nor part of it")
		for i, s := range spans(t, pair[0]) {
			from := spans(t, pair[1])[i]
			mixed := clone(pair[0])
			mixed.Records = slices.Concat(pair[0].Records[:s[0]], pair[1].Records[from[0]:from[1]], pair[0].Records[s[1]:])
			refused(t, mixed, "a rehearsal is never the real thing, nor part of it")
		}
	}

	// The mode inside of the statement, and the statement's type.
	e, err := dsse.Parse([]byte(y.Records[0]))
	real.must(err)
	for old, new := range map[string]string{`"mode":"REHEARSAL"`: `"mode":"real"`, "ceremony-rehearsal-step/v1": "ceremony-step/v1"} {
		payload := strings.Replace(string(e.Payload), old, new, 1)
		_, err := ceremony.ReadRecord([]byte(payload))
		wants(t, err, "in a statement of type")
	}
	both := strings.NewReplacer(`"mode":"REHEARSAL"`, `"mode":"real"`, "ceremony-rehearsal-step/v1", "ceremony-step/v1").Replace(string(e.Payload))
	_, err = ceremony.ReadRecord([]byte(both))
	wants(t, err, "its subjects are not those it names")

	// Every line that was shown says so.
	for _, entry := range report.Entries {
		for line := range strings.Lines(ceremony.Text(report.Script, entry.Record)) {
			if !strings.HasPrefix(line, "REHEARSAL | ") {
				t.Fatalf("a rehearsal showed %q", line)
			}
		}
	}
}

func TestAttackScriptChanged(t *testing.T) {
	x := newRoom(t, ceremony.Real).through().transcript()
	x.Script = edited(t, "Nobody else is here.", "Nobody else is there.")
	refused(t, x, "the script was changed")
}

func TestAttackAnotherRun(t *testing.T) {
	one, two := newRoom(t, ceremony.Real), newRoom(t, ceremony.Real)
	two.keys, two.run = one.keys, []byte("another run: 16b")
	two.begin()
	x, y := one.through().transcript(), two.through().transcript()
	s := spans(t, x)[2]
	copy(x.Records[s[0]:s[1]], y.Records[s[0]:s[1]])
	refused(t, x, "of run")
}

// The text that was signed is the text that script and record give.
func TestAttackShownSomethingElse(t *testing.T) {
	r := newRoom(t, ceremony.Real)
	r.step(ceremony.Passed)
	d := r.draft(ceremony.Passed)
	shown := strings.Replace(ceremony.Text(r.chain.Script, d), ceremony.Groups(program)[0][:4], "0000", 1)
	d.Display = sha256.Sum256([]byte(shown))
	signed := r.signs(d, "maria", "wendy")
	wants(t, r.chain.Add(signed[0].Payload, signed), "its signers were shown text")
}

func TestAttackOtherDigestReadAloud(t *testing.T) {
	r := newRoom(t, ceremony.Real)
	r.step(ceremony.Passed)
	r.step(ceremony.Passed)
	d := r.draft(ceremony.Passed)
	d.Findings[0].Value = ceremony.Digest{1}.String()
	d.Display = sha256.Sum256([]byte(ceremony.Text(r.chain.Script, d)))
	signed := r.signs(d, signersOf(d)...)
	wants(t, r.chain.Add(signed[0].Payload, signed), "was read aloud, step file found")
}

// The spare signs in this run, in this place, and is the token of the script.
func TestAttackSpareThatIsNone(t *testing.T) {
	for reason, edit := range map[string]func(*room, *ceremony.Record){
		"serial number": func(_ *room, d *ceremony.Record) { d.Findings[0].Value = "00FF-13" },
		"did not sign in this step": func(r *room, d *ceremony.Record) {
			d.Findings[2].Value = base64.StdEncoding.EncodeToString(r.public("mallory").Encoded)
			d.Findings[3].Value = r.public("mallory").Fingerprint().String()
		},
		"the key has":       func(_ *room, d *ceremony.Record) { d.Findings[3].Value = ceremony.Digest{1}.String() },
		"found its signatu": func(_ *room, d *ceremony.Record) { d.Findings = d.Findings[:4] },
	} {
		r := newRoom(t, ceremony.Real)
		for range 3 {
			r.step(ceremony.Passed)
		}
		d := r.draft(ceremony.Passed)
		edit(r, d)
		d.Display = sha256.Sum256([]byte(ceremony.Text(r.chain.Script, d)))
		signed := r.signs(d, signersOf(d)...)
		wants(t, r.chain.Add(signed[0].Payload, signed), reason)
	}

	// A signature of another run.
	other := newRoom(t, ceremony.Real)
	other.run = []byte("another run: 16b")
	other.begin()
	for range 3 {
		other.step(ceremony.Passed)
	}
	r := newRoom(t, ceremony.Real)
	r.keys = other.keys
	for range 3 {
		r.step(ceremony.Passed)
	}
	d := r.draft(ceremony.Passed)
	d.Findings = other.draft(ceremony.Passed).Findings
	d.Display = sha256.Sum256([]byte(ceremony.Text(r.chain.Script, d)))
	signed := r.signs(d, signersOf(d)...)
	wants(t, r.chain.Add(signed[0].Payload, signed), "did not sign in this step")
}

// What has to be proved cannot be waived by everybody together, nor by ending
// the ceremony early.
func TestAttackObligationWaived(t *testing.T) {
	r := newRoom(t, ceremony.Real)
	for range 3 {
		r.step(ceremony.Passed)
	}
	d := r.draft(ceremony.Waived)
	signed := r.signs(d, signersOf(d)...)
	wants(t, r.chain.Add(signed[0].Payload, signed), "it cannot be waived")

	r.step(ceremony.Aborted)
	report, err := parse(t, r.transcript())
	r.must(err)
	wants(t, report.Counts(report.Charter), "it was aborted in step spare")
	y := r.transcript()
	y.Records = append(y.Records, newRoom(t, ceremony.Real).through().transcript().Records[10:]...)
	refused(t, y, "has ended before it")
}

// An exception is signed by the master and all witnesses, whoever the step asks for.
func TestAttackWaivedByFew(t *testing.T) {
	r := newRoom(t, ceremony.Real)
	d := r.draft(ceremony.Waived)
	d.Signers = d.Signers[:2]
	d.Display = sha256.Sum256([]byte(ceremony.Text(r.chain.Script, d)))
	signed := r.signs(d, "maria", "wendy")
	wants(t, r.chain.Add(signed[0].Payload, signed), "the script wants [maria wendy walter]")
	d.Exceptions = []ceremony.Exception{}
	_, err := d.Write()
	wants(t, err, "without an exception")
}

func TestAttackForeignCharterAndUnknownHolder(t *testing.T) {
	r := newRoom(t, ceremony.Real)
	report, err := parse(t, r.through().transcript())
	r.must(err)
	wants(t, report.Counts(ceremony.Digest{1}), "it belongs to charter")
	a := r.anchors()
	delete(a, "alice")
	wants(t, report.Anchor(a, false), "alice is a holder")
	a = r.anchors()
	delete(a, "walter")
	r.must(report.Anchor(a, false))
	if !slices.Equal(report.Unknown, []string{"walter"}) {
		t.Errorf("unknown are %v", report.Unknown)
	}
}

// No text of a script or of a failure draws on a screen.
func TestAttackHostileText(t *testing.T) {
	for _, evil := range []string{`\e[31mred`, `\u202eabc`, `\u2066abc`, `a\u200bb`, `a\nsigned by nobody`, `a\rb`, `\u2800`} {
		for _, place := range []string{"title: A drill of the lab", `text: "Nobody else is here."`, `proves: "Alice's spare signs"`, "serial: 00FF-12", "serial: PF-1", "label: alice-spare"} {
			key, _, _ := strings.Cut(place, ":")
			text := edited(t, place, key+`: "`+evil+`"`)
			if _, err := ceremony.ParseScript([]byte(text)); err == nil || !strings.Contains(err.Error(), "character") && !strings.Contains(err.Error(), "bytes that print") {
				t.Errorf("%s in the place of %s: %v", evil, place, err)
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		note := ceremony.Note(1, rapid.String().Draw(t, "error"))
		d := &ceremony.Record{Mode: ceremony.Real, Script: program, Run: []byte("0123456789abcdef"), Number: 1, Previous: program, Step: "a", Outcome: ceremony.Passed,
			Findings: []ceremony.Finding{}, Incidents: []ceremony.Incident{note}, Exceptions: []ceremony.Exception{}, Begun: 1, Ended: 1, Display: program}
		if _, err := d.Write(); err == nil || strings.Contains(err.Error(), "incident") {
			t.Fatalf("note %q: %v", note.Text, err) // no signers is the only thing wrong with it
		}
	})
}

// Whatever one byte of a transcript becomes, it is refused.
func TestAttackAnyByte(t *testing.T) {
	b, err := newRoom(t, ceremony.Real).through().transcript().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ceremony.Parse(b); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		at, flip := rapid.IntRange(0, len(b)-1).Draw(t, "at"), rapid.ByteRange(1, 255).Draw(t, "flip")
		c := slices.Clone(b)
		c[at] ^= flip
		if _, err := ceremony.Parse(c); err == nil {
			t.Fatalf("byte %d as %q was accepted", at, c[at])
		}
	})
}
