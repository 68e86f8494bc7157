package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A session is one run of ceremony run: the people in the room, the ceremony's
// directory and, for one step at a time, their tokens.
type session struct {
	*app
	*journal
	dir     string
	files   string            // directory of what is laid out for the ceremony
	modules map[string]string // PKCS#11 module by token of the equipment; "" for all others
	uris    map[string]string // signing key by person, of those without a token in the script
	opens   map[string]string // the key that opens shares, likewise
}

func ceremonyRunCmd(a *app) *cobra.Command {
	s := &session{app: a}
	var rehearsal bool
	var modules, uris, opens []string
	cmd := &cobra.Command{Use: "run SCRIPT --dir DIR", Short: "follow a script, or go on with it where it stopped", Args: cobra.ExactArgs(1),
		Long: `Run follows a script from one computer, to which the people of each step bring
their tokens. All that happens is written to DIR before the next thing is done:
after a crash, or the word stop, the same command goes on.

Before a step it takes one word: go does it (done, where people do it
themselves); except records an exception and asks again; waive goes on without
the step and abort ends the ceremony, each with an exception, signed by the
master and all witnesses; stop leaves. Then the record is shown, and each
signer types their name and gives the PIN of their token.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := s.flags(args[0], modules, uris, opens); err != nil {
				return usage(err)
			}
			return s.run(cmd.Context(), args[0], modeOf(rehearsal))
		}}
	f := cmd.Flags()
	f.StringVar(&s.dir, "dir", "", "directory of the ceremony, made by its first run")
	f.StringVar(&s.files, "files", "", "directory of the files that the script names (default the script's)")
	f.StringArrayVar(&modules, "module", nil, "PKCS#11 module of the tokens, PATH, or TOKEN=PATH for one of the script's tokens")
	f.StringArrayVar(&uris, "key", nil, "NAME=URI, the signing key of a person to whom the script gives no token")
	f.StringArrayVar(&opens, "exchange", nil, "NAME=URI, the key that opens a person's shares, for a step that names no token")
	f.BoolVar(&rehearsal, "rehearsal", false, "use throw-away keys made in DIR, and mark everything as a REHEARSAL")
	return require(cmd, "dir")
}

func (s *session) flags(script string, modules, uris, opens []string) error {
	if s.files == "" {
		s.files = filepath.Dir(script)
	}
	s.modules, s.uris, s.opens = map[string]string{}, map[string]string{}, map[string]string{}
	for _, m := range modules {
		name, path, ok := strings.Cut(m, "=")
		if !ok {
			name, path = "", m
		}
		if !filepath.IsAbs(path) {
			return fmt.Errorf("--module %s: want an absolute path", m)
		}
		s.modules[name] = path
	}
	for into, list := range map[*map[string]string][]string{&s.uris: uris, &s.opens: opens} {
		for _, u := range list {
			name, uri, ok := strings.Cut(u, "=")
			if _, err := hsm.ParseURI(uri); !ok || err != nil {
				return fmt.Errorf("key %s: want NAME=URI", u)
			}
			(*into)[name] = uri
		}
	}
	return nil
}

func (s *session) run(ctx context.Context, script string, mode ceremony.Mode) error {
	text, _, err := readScript(script)
	if err != nil {
		return err
	}
	var resumed bool
	if s.journal, resumed, err = openJournal(s.dir, mode, text, s.journals); err != nil {
		return err
	}
	defer s.journal.close()
	if resumed && s.chain.Next() != nil {
		s.say("goes on with step %s\n", s.chain.Next().Name)
		if err := s.interrupted(); err != nil {
			return err
		}
	}
	for s.chain.Next() != nil {
		if err := s.step(ctx); err != nil {
			return ui.WithHint(err, "nothing that was signed is lost: the same command goes on with step %s", s.chain.Next().Name)
		}
	}
	return s.end()
}

// interrupted records that the ceremony stopped, but for a record that is
// already fixed and waits for signatures.
func (s *session) interrupted() error {
	if s.payload != nil || s.begun == 0 {
		return nil
	}
	return s.incident(errors.New("the ceremony was interrupted in this step, and went on"))
}

func (s *session) incident(err error) error {
	note := ceremony.Note(time.Now().Unix(), err.Error())
	return s.add(happening{Incident: &note})
}

// say shows text, marked in a rehearsal.
func (s *session) say(format string, args ...any) {
	fmt.Fprint(s.Err, ceremony.Mark(s.chain.Mode, fmt.Sprintf(format, args...)))
}

func (s *session) ask(ctx context.Context, format string, args ...any) (string, error) {
	return s.Ask(ctx, strings.TrimSuffix(ceremony.Mark(s.chain.Mode, fmt.Sprintf(format, args...)), "\n"))
}

// step brings one step to its signed record. It returns an error only if the
// ceremony must stop here.
func (s *session) step(ctx context.Context) error {
	step, number := s.chain.Next(), len(s.chain.Entries)
	if s.begun == 0 {
		if err := s.add(happening{Begun: time.Now().Unix()}); err != nil {
			return err
		}
	}
	for len(s.chain.Entries) == number {
		if s.payload == nil {
			if err := s.prepare(ctx, step); err != nil {
				return err
			}
			continue
		}
		if err := s.sign(ctx); err != nil {
			return err
		}
	}
	return nil
}

// prepare shows the step, asks what to do, does it, and fixes the record. What
// fails is told, noted and asked again.
func (s *session) prepare(ctx context.Context, step *ceremony.Step) error {
	s.say("\n%s", s.chain.ShowStep(step))
	word := "go"
	if step.Do == ceremony.Manual {
		word = "done"
	}
	answer, err := s.ask(ctx, "[%s, except, waive, abort or stop]", word)
	if err != nil {
		return err
	}
	switch answer {
	case word:
		err = s.pass(ctx, step)
	case "except":
		err = s.except(ctx)
	case "waive":
		err = s.giveUp(ctx, ceremony.Waived)
	case "abort":
		err = s.giveUp(ctx, ceremony.Aborted)
	case "stop":
		return errors.New("stopped")
	default:
		s.say("nothing was done: %q is none of the words\n", answer)
		return nil
	}
	return s.tell(ctx, err)
}

// errJournal marks what must stop a ceremony: it cannot be written down.
var errJournal = errors.New("the journal cannot be written")

// tell shows what failed and notes it, for the record of this step.
func (s *session) tell(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, errJournal) || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	if err := s.incident(err); err != nil {
		return err
	}
	s.say("FAILED: %s\n", s.incidents[len(s.incidents)-1].Text) // as it will be signed
	var hint *ui.Hint
	if errors.As(err, &hint) {
		s.say("hint: %s\n", hint.Do)
	}
	return nil
}

func (s *session) pass(ctx context.Context, step *ceremony.Step) error {
	if s.found == nil {
		found, err := s.do(ctx, step)
		s.closeKeys()
		if err != nil {
			return err
		}
		if err := s.write(happening{Found: found}); err != nil {
			return err
		}
	}
	return s.draft(ctx, ceremony.Passed)
}

func (s *session) write(h happening) error {
	if err := s.add(h); err != nil {
		return fmt.Errorf("%w: %w", errJournal, err)
	}
	return nil
}

// draft fixes the record that is signed.
func (s *session) draft(ctx context.Context, o ceremony.Outcome) error {
	r, err := s.chain.Draft(o)
	if err != nil {
		return err
	}
	if o == ceremony.Passed {
		r.Findings = append(r.Findings, s.found...)
	}
	r.Incidents = append(r.Incidents, s.incidents...)
	if most := ceremony.MaxIncidents; len(r.Incidents) > most {
		more := ceremony.Note(r.Incidents[len(r.Incidents)-1].Time, fmt.Sprintf("%d more", len(r.Incidents)-most+1))
		r.Incidents = append(r.Incidents[:most-1], more)
	}
	r.Exceptions = append(r.Exceptions, s.exceptions...)
	for _, name := range s.chain.Script.Signers(s.chain.Next(), o) {
		pub, err := s.publicOf(ctx, name, r)
		if err != nil {
			return err
		}
		r.Signers = append(r.Signers, ceremony.Signer{Name: name, Key: pub})
	}
	r.Begun, r.Ended = s.begun, time.Now().Unix()
	_, payload, err := s.chain.Finish(r)
	if err != nil {
		return err
	}
	return s.write(happening{Record: payload})
}

// publicOf is the key that a person will sign with: as before, or as it was
// made here, or, the first time, as the token shows it.
func (s *session) publicOf(ctx context.Context, name string, r *ceremony.Record) (signoff.PublicKey, error) {
	if k, ok := s.chain.Keys[name]; ok {
		return k, nil
	}
	if k, ok := s.chain.Made(name, s.chain.Next(), r); ok {
		return k, nil
	}
	key, err := s.signerOf(ctx, name)
	s.closeKeys()
	if err != nil {
		return signoff.PublicKey{}, err
	}
	return signoff.NewPublicKey(key.Public(), key.Info().Class)
}

// except asks for an exception and notes it.
func (s *session) except(ctx context.Context) error {
	var x ceremony.Exception
	for _, q := range []struct {
		into     *string
		question string
	}{{&x.Kind, "exception: which kind? [" + strings.Join(ceremony.Exceptions, ", ") + "]"}, {&x.Text, "exception: what, and why?"}, {&x.Decided, "exception: who decided?"}} {
		var err error
		if *q.into, err = s.ask(ctx, "%s", q.question); err != nil {
			return err
		}
	}
	if err := ceremony.CheckException(x); err != nil {
		return err
	}
	if _, ok := s.chain.Script.Person(x.Decided); !ok {
		return fmt.Errorf("%q is nobody of the script", x.Decided)
	}
	return s.write(happening{Exception: &x})
}

func (s *session) giveUp(ctx context.Context, o ceremony.Outcome) error {
	if o == ceremony.Waived {
		if err := s.chain.Script.Waivable(s.chain.Next()); err != nil {
			return err
		}
	}
	if err := s.except(ctx); err != nil {
		return err
	}
	return s.draft(ctx, o)
}

// sign shows the record and collects the signatures that are not there yet. A
// signer who does not sign, or whose token fails, undoes the record.
func (s *session) sign(ctx context.Context) error {
	s.say("\n")
	fmt.Fprint(s.Err, ceremony.Text(s.chain.Script, s.record))
	entry := ceremony.Entry{Payload: s.payload}
	g := ceremony.Groups(entry.Sum())
	s.say("this record  %s\n             %s\n", g[0], g[1])
	for _, signer := range s.record.Signers[len(s.signed):] {
		err := s.countersign(ctx, signer)
		s.closeKeys()
		if err != nil && (errors.Is(err, errJournal) || errors.Is(err, errNoAnswer) || ctx.Err() != nil) {
			return err
		}
		if err != nil {
			if err := s.write(happening{Discard: true}); err != nil {
				return err
			}
			return s.tell(ctx, fmt.Errorf("%s did not sign: %w", signer.Name, err))
		}
	}
	return nil
}

// errNoAnswer means that nobody is there, which decides nothing.
var errNoAnswer = errors.New("nobody answered")

func (s *session) countersign(ctx context.Context, signer ceremony.Signer) error {
	answer, err := s.ask(ctx, "%s: type %s to sign this record, or no", signer.Name, signer.Name)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	if answer != signer.Name {
		return fmt.Errorf("the answer was %q", answer)
	}
	key, err := s.signerOf(ctx, signer.Name)
	if err != nil {
		return err
	}
	env, err := dsse.Sign(ctx, key, s.payload)
	if err != nil {
		return err
	}
	if err := ceremony.VerifySigner(s.payload, signer, env); err != nil {
		return err
	}
	return s.write(happening{Signature: string(env.Line())})
}

// signerOf opens the key that a person signs with, pinned to what it was when
// the person signed before.
func (s *session) signerOf(ctx context.Context, name string) (hsm.Key, error) {
	uri, err := s.uriOf(name)
	if err != nil {
		return nil, err
	}
	var pinned crypto.PublicKey // what the person signed with before, or is to sign now
	k, ok := s.chain.Keys[name]
	if s.record != nil {
		for _, g := range s.record.Signers {
			if g.Name == name {
				k, ok = g.Key, true
			}
		}
	}
	if ok {
		if pinned, err = k.Public(); err != nil {
			return nil, err
		}
	}
	key, err := s.keyring().Key(ctx, uri, pinned)
	if err != nil {
		return nil, fmt.Errorf("%s's key: %w", name, err)
	}
	return key, nil
}

func (s *session) uriOf(name string) (string, error) {
	p, ok := s.chain.Script.Person(name)
	switch {
	case !ok:
		return "", fmt.Errorf("%q is nobody of the script", name)
	case p.Token != "":
		return s.tokenURI(p.Token, p.Object, hsm.KindP256)
	case s.chain.Mode != ceremony.Real:
		return s.throwaway(name, hsm.KindP256)
	case s.uris[name] == "":
		return "", noToken(name, "key")
	}
	return s.uris[name], nil
}

// exchangeOf names the key that opens a person's shares in a step.
func (s *session) exchangeOf(step *ceremony.Step) (string, error) {
	switch {
	case step.Token != "":
		return s.tokenURI(step.Token, step.Object, hsm.KindECDH)
	case s.chain.Mode != ceremony.Real:
		return s.throwaway(step.Person+"_exchange", hsm.KindECDH)
	case s.opens[step.Person] == "":
		return "", noToken(step.Person, "exchange")
	}
	return s.opens[step.Person], nil
}

func noToken(name, flag string) error {
	return ui.WithHint(fmt.Errorf("the script gives %s no token", name), "stop, and name the key with --%s %s=URI", flag, name)
}

// tokenURI names a key on a token of the equipment, by its label and serial
// number: another token that happens to be plugged in is not taken. In a
// rehearsal it names a throw-away key.
func (s *session) tokenURI(token, object string, kind hsm.Kind) (string, error) {
	if s.chain.Mode != ceremony.Real {
		return s.throwaway(token+"_"+object, kind)
	}
	thing, ok := s.chain.Script.Thing(token)
	if !ok {
		return "", fmt.Errorf("%q is no token of the script", token)
	}
	module, ok := s.modules[token]
	if !ok {
		module = s.modules[""]
	}
	if module == "" {
		return "", ui.WithHint(fmt.Errorf("no PKCS#11 module is named for %s", token), "stop, and name it with --module /ABSOLUTE.so or --module %s=/ABSOLUTE.so", token)
	}
	return hsm.URI{Scheme: hsm.SchemePKCS11, Token: thing.Label, Serial: thing.Serial, Object: object, ModulePath: module}.String(), nil
}

// closeKeys closes the tokens of one step: whoever sits down next must give a
// PIN.
func (s *session) closeKeys() {
	s.app.close()
	s.ring = nil
}

// end writes the transcript and answers with what is in it.
func (s *session) end() error {
	b, err := s.chain.Transcript(s.script).Marshal()
	if err != nil {
		return err
	}
	report, err := ceremony.Parse(b)
	if err != nil {
		return err
	}
	v := viewCeremony(report)
	v.Path = transcriptFile(s.dir, s.chain.Mode)
	if err := writeFile(v.Path, append(slices.Clip(b), '\n')); err != nil {
		return err
	}
	return s.Answer(v, v.write)
}
