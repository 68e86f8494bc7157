package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/hpke"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// The files that a genesis makes in its directory.
const (
	charterFile = "charter.json"
	genesisFile = "genesis.jsonl"
)

// do carries a step out and returns what was found. It may be called again
// after it was cut off anywhere, and then makes nothing twice.
func (s *session) do(ctx context.Context, step *ceremony.Step) ([]ceremony.Finding, error) {
	switch step.Do {
	case ceremony.Manual:
		return []ceremony.Finding{}, nil
	case ceremony.MakeKey:
		return s.makeKey(ctx, step)
	case ceremony.ProveSpare:
		return s.proveSpare(ctx, step)
	case ceremony.WriteChange:
		return s.writeChange()
	case ceremony.WriteCharter:
		return s.writeCharter(step)
	case ceremony.VerifyCharter:
		return s.verifyCharter(step)
	case ceremony.Accept:
		return s.acceptCharter(ctx, step)
	case ceremony.VerifyKeygen, ceremony.VerifyLog:
		return s.verifyLog(ctx, step)
	case ceremony.DrillShare:
		return s.drillShare(ctx, step)
	case ceremony.Position:
		return s.position(step)
	case ceremony.ReadAloud:
		return s.readAloud(ctx, step)
	case ceremony.FileDigest:
		return s.fileDigest(step)
	}
	return nil, fmt.Errorf("this program does not know how to %s", step.Do)
}

func found(name string, value any) ceremony.Finding {
	return ceremony.Finding{Name: name, Value: fmt.Sprint(value)}
}

// intend writes down that something is about to be made which is not there yet.
// If it is there at the next attempt, this step made it.
func (s *session) intend(step *ceremony.Step) error {
	if s.intent {
		return nil
	}
	return s.write(happening{Intent: step.Name})
}

// throwaway names a software key for this rehearsal, and makes it if need be.
func (s *session) throwaway(name string, kind hsm.Kind) (string, error) {
	dir, err := filepath.Abs(filepath.Join(s.dir, "rehearsal-keys"))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	uri := hsm.URI{Scheme: hsm.SchemeFile, Path: filepath.Join(dir, name+".pem")}.String()
	_, err = file.Generate(uri, kind)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return uri, err
}

// A device is a token as a step found it, or its stand-in of a rehearsal.
type device struct {
	serial string
	class  hsm.Class
}

func (d device) findings() []ceremony.Finding {
	return []ceremony.Finding{found("serial", d.serial), found("class", d.class)}
}

// device opens the token of a step and says what it is.
func (s *session) device(ctx context.Context, step *ceremony.Step, uri string) (*token.Token, device, error) {
	if s.chain.Mode != ceremony.Real {
		return nil, device{"none, a throw-away key", hsm.ClassSoftware}, nil
	}
	t, _, err := s.keyring().Token(ctx, uri)
	if err != nil {
		return nil, device{}, err
	}
	info, err := t.Info(ctx)
	return t, device{info.Serial, token.ClassOf(info)}, err
}

func (s *session) makeKey(ctx context.Context, step *ceremony.Step) ([]ceremony.Finding, error) {
	uri, err := s.tokenURI(step.Token, step.Object, step.Key)
	if err != nil {
		return nil, err
	}
	t, d, err := s.device(ctx, step, uri)
	if err != nil {
		return nil, err
	}
	public, err := s.generate(ctx, t, step, uri)
	if err != nil {
		return nil, err
	}
	if step.Key == hsm.KindSeal {
		return d.findings(), nil
	}
	return s.keyFindings(d, public)
}

func (s *session) keyFindings(d device, public any) ([]ceremony.Finding, error) {
	key, err := signoff.NewPublicKey(public, d.class)
	if err != nil {
		return nil, err
	}
	return append(d.findings(), found("public", base64.StdEncoding.EncodeToString(key.Encoded)), found("fingerprint", key.Fingerprint())), nil
}

// generate makes the key, unless an earlier attempt of this step was cut off
// after it made it.
func (s *session) generate(ctx context.Context, t *token.Token, step *ceremony.Step, uri string) (any, error) {
	if t == nil {
		return throwawayPublic(uri, step.Key)
	}
	list, err := t.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range list {
		if k.Label != step.Object {
			continue
		}
		if !s.intent || k.Kind != step.Key || !k.Local || k.Extractable || !k.Sensitive {
			return nil, ui.WithHint(fmt.Errorf("token %s has a key %q already, which this step did not make", step.Token, step.Object), "take an empty token, as the script means it")
		}
		return k.Public, nil
	}
	if err := s.intend(step); err != nil {
		return nil, err
	}
	return t.Generate(ctx, step.Object, step.Key)
}

func throwawayPublic(uri string, kind hsm.Kind) (any, error) {
	switch kind {
	case hsm.KindSeal:
		return nil, nil
	case hsm.KindECDH:
		d, err := file.OpenDecrypter(uri, nil)
		if err != nil {
			return nil, err
		}
		return d.PublicKey(), nil
	}
	k, err := file.Open(uri, nil)
	if err != nil {
		return nil, err
	}
	return k.Public(), nil
}

func (s *session) proveSpare(ctx context.Context, step *ceremony.Step) ([]ceremony.Finding, error) {
	uri, err := s.tokenURI(step.Token, step.Object, hsm.KindP256)
	if err != nil {
		return nil, err
	}
	_, d, err := s.device(ctx, step, uri)
	if err != nil {
		return nil, err
	}
	key, err := s.keyring().Key(ctx, uri, nil)
	if err != nil {
		return nil, err
	}
	if err := s.knownSpare(ctx, step, key.Public()); err != nil {
		return nil, err
	}
	sig, err := hsm.SignMessage(ctx, key, ceremony.SpareChallenge(s.chain, step.Person))
	if err != nil {
		return nil, err
	}
	list, err := s.keyFindings(d, key.Public())
	return append(list, found("signature", base64.StdEncoding.EncodeToString(sig))), err
}

// knownSpare holds a spare's key to the one that this ceremony made for it or
// that, where none was made, the log or a genesis's charter has as a spare of its
// person. The keys of a rehearsal are in neither.
func (s *session) knownSpare(ctx context.Context, step *ceremony.Step, public crypto.PublicKey) error {
	key, err := signoff.NewPublicKey(public, "")
	if err != nil {
		return err
	}
	made, err := s.chain.SpareKey(step)
	switch {
	case err != nil:
		return err
	case made != nil && made.Fingerprint() != key.Fingerprint():
		return ui.WithHint(fmt.Errorf("the token signs with key %s, this ceremony made %s for it", key.Fingerprint(), made.Fingerprint()), "find the token that the key was made on; one with the same label and serial number is a copy or a fake")
	case made != nil || s.chain.Mode != ceremony.Real:
		return nil
	}
	people, where, err := s.peopleOf(ctx, step)
	if err != nil {
		return err
	}
	for _, p := range people {
		if p.Name == step.Person && slices.ContainsFunc(p.Spares, func(t signoff.Token) bool { return t.ID() == key.Fingerprint() }) {
			return nil
		}
	}
	return ui.WithHint(fmt.Errorf("the token signs with key %s, which %s does not have as a spare of %s", key.Fingerprint(), where, step.Person), "keyturn people lists the tokens that count")
}

// peopleOf are those of the log that a step names, or of this ceremony's charter.
func (s *session) peopleOf(ctx context.Context, step *ceremony.Step) (people []signoff.Person, where string, err error) {
	if step.Log == "" {
		c, _, err := s.readCharter()
		if err != nil {
			return nil, "", err
		}
		return c.People, "the charter", nil
	}
	x, err := s.replay(ctx, step.Log)
	if err != nil {
		return nil, "", err
	}
	return people, "the log", x.view(func(_ *authority.Authority, st *authority.State) error {
		people = roster(st).People
		return nil
	})
}

// input is a file that the script names.
func (s *session) input(name string) string { return filepath.Join(s.files, name) }

// rehearsed reports whether the step is only rehearsed because what it reads
// does not exist yet.
func (s *session) rehearsed(name string) bool {
	if s.chain.Mode == ceremony.Real {
		return false
	}
	_, err := os.Stat(s.input(name))
	return errors.Is(err, fs.ErrNotExist)
}

// nothing is the digest that a rehearsal finds where there is nothing to read.
func (s *session) nothing() dsse.Digest {
	return dsse.Sum("keyturn/ceremony-rehearsed/v1", s.chain.Run)
}

func (s *session) charterPath() string {
	if s.chain.Mode != ceremony.Real {
		return filepath.Join(s.dir, string(ceremony.Rehearsal)+"-"+charterFile)
	}
	return filepath.Join(s.dir, charterFile)
}

// readCharter reads the charter that this ceremony made or verified.
func (s *session) readCharter() (*signoff.Charter, []byte, error) {
	payload, err := readBounded(s.charterPath(), dsse.MaxPayload)
	if err != nil {
		return nil, nil, err
	}
	c, err := config.ReadCharter(payload, s.chain.Charter)
	return c, payload, err
}

func (s *session) writeCharter(step *ceremony.Step) ([]ceremony.Finding, error) {
	payload, err := readIfThere(s.charterPath())
	if err != nil {
		return nil, err
	}
	if payload != nil && !s.intent {
		return nil, fmt.Errorf("%s is there already, and this step did not write it", s.charterPath())
	}
	if err := s.intend(step); err != nil {
		return nil, err
	}
	if payload == nil {
		if payload, err = s.founded(step); err != nil {
			return nil, err
		}
	}
	return s.checkCharter(payload)
}

// founded writes the charter of a founding file, with the keys of this ceremony.
func (s *session) founded(step *ceremony.Step) ([]byte, error) {
	charter, err := readFounding(s.input(step.File), s.input(step.Policy))
	if err != nil {
		return nil, err
	}
	if s.chain.Mode != ceremony.Real {
		charter.Name, charter.Development = "rehearsal-of-"+charter.Name, true
	}
	if err := s.fill(charter); err != nil {
		return nil, err
	}
	return signoff.Write(charter)
}

// fill puts the keys that were made into their places. People watched: what a
// token says of itself becomes the class witnessed.
func (s *session) fill(c *signoff.Charter) error {
	for _, t := range s.chain.Script.Steps {
		r, ok := s.chain.Done(t.Name)
		if !ok || t.Slot == "" {
			continue
		}
		slot, _, err := ceremony.ParseSlot(t.Slot)
		if err != nil {
			return err
		}
		key, err := ceremony.FoundKey(r)
		if err != nil {
			return err
		}
		if key.Class == hsm.ClassSelfDeclared {
			key.Class = hsm.ClassWitnessed
		}
		if err := slot.Fill(c, key); err != nil {
			return err
		}
	}
	return nil
}

// checkCharter checks a charter as the fold will, and that the keys of this
// ceremony stand in it, and keeps it.
func (s *session) checkCharter(payload []byte) ([]ceremony.Finding, error) {
	id := (&dsse.Envelope{Payload: payload}).Digest()
	c, err := config.ReadCharter(payload, id)
	if err != nil {
		return nil, err
	}
	if err := authority.CheckCharter(c); err != nil {
		return nil, err
	}
	if err := s.chain.Holds(c); err != nil {
		return nil, err
	}
	if want := s.chain.Charter; !want.IsZero() && id != want {
		return nil, fmt.Errorf("the charter has digest %s, this ceremony is about %s", id, want)
	}
	var text bytes.Buffer
	charterText(&text, c, id)
	s.say("%s", text.String())
	if err := writeFile(s.charterPath(), payload); err != nil {
		return nil, err
	}
	return []ceremony.Finding{found("charter", id)}, nil
}

func (s *session) verifyCharter(step *ceremony.Step) ([]ceremony.Finding, error) {
	if want := s.chain.Script.Charter; s.rehearsed(step.File) && !want.IsZero() {
		return []ceremony.Finding{found("charter", want)}, nil
	}
	payload, err := readBounded(s.input(step.File), dsse.MaxPayload)
	if err != nil {
		return nil, err
	}
	return s.checkCharter(payload)
}

// acceptCharter adds a person's acceptance to the genesis file.
func (s *session) acceptCharter(ctx context.Context, step *ceremony.Step) ([]ceremony.Finding, error) {
	charter, payload, err := s.readCharter()
	if err != nil {
		return nil, err
	}
	key, err := s.signerOf(ctx, step.Person)
	if err != nil {
		return nil, err
	}
	me, err := founder(charter, key.Public())
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.dir, genesisFile)
	if s.chain.Mode != ceremony.Real {
		path = filepath.Join(s.dir, string(ceremony.Rehearsal)+"-"+genesisFile)
	}
	lines, line, err := acceptances(path, me.ID())
	if err != nil {
		return nil, err
	}
	if line == nil {
		if line, lines, err = s.signAcceptance(ctx, key, me.ID(), payload, lines); err != nil {
			return nil, err
		}
		if err := writeFile(path, lines); err != nil {
			return nil, err
		}
	}
	return []ceremony.Finding{found("charter", s.chain.Charter), found("acceptance", string(line))}, nil
}

// acceptances reads a genesis file and finds the line of one person in it.
func acceptances(path string, person dsse.Digest) (all, line []byte, err error) {
	if all, err = readIfThere(path); err != nil {
		return nil, nil, err
	}
	for l := range bytes.Lines(all) {
		l = bytes.TrimSuffix(l, []byte("\n"))
		doc, err := signoff.ReadLine(l)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		if a, ok := doc.Doc.(*signoff.Acceptance); ok && a.Person == person {
			line = l
		}
	}
	return all, line, nil
}

// signAcceptance signs, and before the first acceptance the charter itself.
func (s *session) signAcceptance(ctx context.Context, key hsm.Key, me dsse.Digest, payload, lines []byte) (line, all []byte, err error) {
	if len(lines) == 0 {
		env, err := dsse.Sign(ctx, key, payload)
		if err != nil {
			return nil, nil, err
		}
		lines = append(env.Line(), '\n')
	}
	a, err := signoff.Sign(ctx, key, &signoff.Acceptance{Charter: s.chain.Charter, Person: me})
	if err != nil {
		return nil, nil, err
	}
	return a.Line(), append(append(lines, a.Line()...), '\n'), nil
}

// replay audits a log directory from the ceremony's charter.
func (s *session) replay(ctx context.Context, name string) (*audit, error) {
	x := &audit{app: &app{Printer: s.Printer}, charterText: s.chain.Charter.String()}
	if err := x.open(ctx, s.input(name)); err != nil {
		return nil, err
	}
	return x, nil
}

func (s *session) verifyLog(ctx context.Context, step *ceremony.Step) ([]ceremony.Finding, error) {
	list := []ceremony.Finding{found("charter", s.chain.Charter)}
	if s.chain.Script.Held(step) {
		f, err := s.change()
		if err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	if s.rehearsed(step.Log) {
		none := s.nothing()
		return append(list, found("entries", 0), found("root", none), found("state", none), found("group", none), found("transcript", none)), nil
	}
	x, err := s.replay(ctx, step.Log)
	if err != nil {
		return nil, err
	}
	list = append(list, found("entries", x.final.Size), found("root", dsse.Digest(x.final.Root)))
	if err := s.statedIn(x); err != nil {
		return nil, err
	}
	return list, x.view(func(auth *authority.Authority, st *authority.State) error {
		if step.Do == ceremony.VerifyLog {
			list = append(list, found("state", auth.StateDigest()))
			return s.held(step, st)
		}
		group, transcript, err := keygenDone(st)
		list = append(list, found("group", group), found("transcript", transcript))
		return errors.Join(err, s.held(step, st))
	})
}

// statedIn wants the log to hold every position that a notary stated in this
// ceremony.
func (s *session) statedIn(x *audit) error {
	for _, t := range s.chain.Script.Steps {
		r, ok := s.chain.Done(t.Name)
		if !ok || t.Do != ceremony.Position || s.chain.Mode != ceremony.Real {
			continue
		}
		size, err := strconv.ParseUint(r.Find("size"), 10, 63)
		if err != nil {
			return err
		}
		if size > x.final.Size {
			return ui.WithHint(fmt.Errorf("notary %s cosigned %d entries (step %s), this log has %d", r.Find("notary"), size, t.Name, x.final.Size), "bring a newer copy of the log; if there is none, entries are lost: keep the position")
		}
		root, err := x.archive.Root(size)
		if err != nil {
			return err
		}
		if got := dsse.Digest(root).String(); got != r.Find("root") {
			return fmt.Errorf("notary %s cosigned root %s of %d entries (step %s), this log has %s there: one of the two is a fork", r.Find("notary"), r.Find("root"), size, t.Name, got)
		}
	}
	return nil
}

// change is the finding of what this ceremony brings about.
func (s *session) change() (ceremony.Finding, error) {
	c, err := s.chain.Change()
	if err != nil {
		return ceremony.Finding{}, err
	}
	sum, err := c.Sum()
	return found("change", sum), err
}

// writeChange writes a file for each person and notary with new keys, and says
// what to ask for with them.
func (s *session) writeChange() ([]ceremony.Finding, error) {
	c, err := s.chain.Change()
	if err != nil {
		return nil, err
	}
	command := "keyturn request people --purpose '...'"
	for _, p := range c.Join {
		path, err := s.keep("people", p.Name, p)
		if err != nil {
			return nil, err
		}
		command += " --add " + path
	}
	for _, t := range c.Tokens {
		path, err := s.keep("people", t.Person, t.Token)
		if err != nil {
			return nil, err
		}
		command += " --token " + t.Person + "=" + path
	}
	for _, name := range c.Leave {
		command += " --remove " + name
	}
	for _, r := range c.Retire {
		command += " --retire " + r.Person + "=" + r.Key.String()
	}
	commands := []string{command}
	if c.Notaries != nil {
		notaries, err := s.notaryCommand(c.Notaries)
		if err != nil {
			return nil, err
		}
		if commands = append(commands, notaries); len(c.Join)+len(c.Tokens)+len(c.Leave)+len(c.Retire) == 0 {
			commands = commands[1:]
		}
	}
	s.say("somebody who belongs asks for it with\n%s\n", strings.Join(commands, "\n"))
	f, err := s.change()
	return []ceremony.Finding{f}, err
}

// notaryCommand writes a file for each notary that joins, and says what to ask
// for with them.
func (s *session) notaryCommand(c *ceremony.NotaryChange) (string, error) {
	command := "keyturn request notaries --purpose '...'"
	for _, y := range c.Join {
		path, err := s.keep("notaries", y.Name, y)
		if err != nil {
			return "", err
		}
		command += " --add " + path
	}
	for _, name := range c.Leave {
		command += " --remove " + name
	}
	if c.Faults > 0 {
		command += fmt.Sprintf(" --faults %d", c.Faults)
	}
	return command, nil
}

// keep writes a person's or notary's file below the ceremony's directory, once.
func (s *session) keep(dir, name string, v any) (path string, err error) {
	if name += ".json"; s.chain.Mode != ceremony.Real {
		name = string(ceremony.Rehearsal) + "-" + name
	}
	path = filepath.Join(s.dir, dir, name)
	b, err := dsse.Encode(v)
	if err != nil {
		return "", err
	}
	was, err := readIfThere(path)
	if err != nil {
		return "", err
	}
	if was != nil && !bytes.Equal(was, b) {
		return "", ui.WithHint(fmt.Errorf("%s is there already, with other keys than this ceremony made", path), "move it away")
	}
	return path, writeFile(path, b)
}

// held compares what the log has with what this ceremony made. The keys of a
// rehearsal are in no log.
func (s *session) held(step *ceremony.Step, st *authority.State) error {
	if !s.chain.Script.Compares(step) || s.chain.Mode != ceremony.Real {
		return nil
	}
	if err := s.chain.Held(roster(st)); err != nil {
		return ui.WithHint(err, "the request was made with other keys, is not final yet, or the copy of the log is older than it")
	}
	return nil
}

// roster is whose keys the log has now.
func roster(st *authority.State) ceremony.Roster {
	r := ceremony.Roster{Ever: map[dsse.Digest]string{}, Log: st.LogKey}
	for _, m := range st.People.Members {
		r.People = append(r.People, m.Person)
	}
	for key, t := range st.Tokens {
		r.Ever[key] = t.Name
	}
	for _, t := range st.Terms {
		r.Councils = append(r.Councils, t.Council)
	}
	if b := st.Charter.BootPolicy; b != nil {
		r.Boot = *b
	}
	for _, c := range st.Charter.Coordinators {
		r.TLS = append(r.TLS, c.TLS)
	}
	return r
}

// keygenDone wants every notary to have agreed to one transcript and one key.
func keygenDone(st *authority.State) (group, transcript dsse.Digest, err error) {
	if !st.Keygen.Done {
		err := fmt.Errorf("the notaries are making the shares of term %d, attempt %d", st.Keygen.Term, st.Keygen.Attempt)
		return group, transcript, ui.WithHint(err, "it waits: %s", strings.Join(sharesWait(st), "; "))
	}
	for i := range st.Keygen.Members.Notaries {
		n := &st.Keygen.Members.Notaries[i]
		t, ok := st.Keygen.Transcripts[n.ID()]
		if !ok || i > 0 && t.Digest != transcript || !bytes.Equal(t.Group, st.Group.PublicKey[:]) {
			return group, transcript, fmt.Errorf("notary %s did not agree to the transcript and group key of the others", n.Name)
		}
		transcript = t.Digest
	}
	return groupFingerprint(st), transcript, nil
}

// drillShare opens a person's share on the token, compares it with the sealer's
// commitments, and wipes it. A rehearsal opens something that it sealed itself.
func (s *session) drillShare(ctx context.Context, step *ceremony.Step) ([]ceremony.Finding, error) {
	uri, err := s.exchangeOf(step)
	if err != nil {
		return nil, err
	}
	key, err := s.keyring().Decrypter(ctx, uri, nil)
	if err != nil {
		return nil, err
	}
	pub, err := signoff.NewPublicKey(key.PublicKey(), key.Info().Class)
	if err != nil {
		return nil, err
	}
	if s.chain.Mode != ceremony.Real {
		if err := opensOwn(ctx, key); err != nil {
			return nil, err
		}
		return []ceremony.Finding{found("object", step.Weights), found("epoch", 0), found("index", 0), found("key", pub.Fingerprint())}, nil
	}
	x, err := s.replay(ctx, step.Log)
	if err != nil {
		return nil, err
	}
	opener := &app{Printer: s.Printer, follower: x.follower, id: s.chain.Charter}
	object, err := opener.findObject(step.Weights.String())
	if err != nil {
		return nil, err
	}
	var me *authority.Member
	if err := x.view(func(_ *authority.Authority, st *authority.State) (err error) {
		var ok bool
		if me, ok = st.People.Named(step.Person); !ok {
			err = fmt.Errorf("%s is nobody among the people of this log", step.Person)
		}
		return err
	}); err != nil {
		return nil, err
	}
	if err := opener.unswapped(secret.CheckSwap()); err != nil {
		return nil, err
	}
	id, err := lockbox.TokenIdentity(key)
	if err != nil {
		return nil, err
	}
	if me.Hybrid() {
		return nil, fmt.Errorf("%s's exchange key is hybrid; a ceremony drills P-256 keys, keyturn weights drill drills this one", me.Name)
	}
	share, err := opener.openShare(ctx, id, object, me.Index)
	if err != nil {
		return nil, err
	}
	share.Wipe()
	return []ceremony.Finding{found("object", object.ID), found("epoch", object.People.Epoch), found("index", me.Index), found("key", pub.Fingerprint())}, nil
}

// opensOwn seals something to a key and opens it with the key.
func opensOwn(ctx context.Context, key hsm.Decrypter) error {
	to, err := hpke.NewDHKEMPublicKey(key.PublicKey())
	if err != nil {
		return err
	}
	private, err := hsm.HPKEPrivate(ctx, key)
	if err != nil {
		return err
	}
	const info, text = "keyturn/ceremony-rehearsal/v1", "rehearsal"
	sealed, err := hpke.Seal(to, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(info), []byte(text))
	if err != nil {
		return err
	}
	opened, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(info), sealed)
	if err == nil && string(opened) != text {
		err = errors.New("the key opened something else than was sealed")
	}
	return err
}

// position checks a notary's signed position.
func (s *session) position(step *ceremony.Step) ([]ceremony.Finding, error) {
	if s.rehearsed(step.File) {
		return []ceremony.Finding{found("notary", "none"), found("size", 0), found("root", s.nothing()), found("answer", "none")}, nil
	}
	charter, _, err := s.readCharter()
	if err != nil {
		return nil, err
	}
	doc, err := readLineFile(s.input(step.File))
	if err != nil {
		return nil, err
	}
	p, ok := doc.Doc.(*signoff.Position)
	if !ok || p.Charter != s.chain.Charter {
		return nil, fmt.Errorf("%s holds a %s of charter %s, want a position of %s", step.File, doc.Doc.Kind(), doc.Doc.Cluster(), s.chain.Charter)
	}
	if p.Seen == (signoff.Seen{}) {
		return nil, errors.New("the notary states that it never cosigned anything")
	}
	for i := range charter.Notaries {
		n := &charter.Notaries[i]
		if n.ID() != p.Notary {
			continue
		}
		pub, err := n.Signing.Public()
		if err != nil {
			return nil, err
		}
		return []ceremony.Finding{found("notary", n.Name), found("size", p.Seen.Size), found("root", p.Seen.Root), found("answer", fmt.Sprintf("%x", p.Answer))}, doc.Verify(pub)
	}
	return nil, fmt.Errorf("%s is no notary of the charter", p.Notary)
}

func (s *session) readAloud(ctx context.Context, step *ceremony.Step) ([]ceremony.Finding, error) {
	want, err := s.chain.Expected(step)
	if err != nil {
		return nil, err
	}
	text, err := s.ask(ctx, "type the digest of step %s as it is read aloud, 64 hex digits:", step.Of)
	if err != nil {
		return nil, err
	}
	got, err := ceremony.ParseGroups(text)
	if err != nil {
		return nil, err
	}
	if got != want {
		return nil, ui.WithHint(fmt.Errorf("%s was typed, step %s found %s", got, step.Of, want), "read again, slowly; if the two differ, find out which is right before anything else")
	}
	return []ceremony.Finding{found("digest", got)}, nil
}

func (s *session) fileDigest(step *ceremony.Step) ([]ceremony.Finding, error) {
	info, err := os.Stat(s.input(step.File))
	if err != nil {
		return nil, err
	}
	d, err := fileDigest(s.input(step.File))
	if err != nil {
		return nil, err
	}
	if !step.Digest.IsZero() && d != step.Digest {
		return nil, fmt.Errorf("%s has digest %s, the script wants %s", step.File, d, step.Digest)
	}
	return []ceremony.Finding{found("digest", d), found("bytes", strconv.FormatInt(info.Size(), 10))}, nil
}
