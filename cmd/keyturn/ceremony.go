package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/ceremony/paper"
	"github.com/keyturn/keyturn/signoff/dsse"
)

func ceremonyCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "ceremony", Short: "follow a ceremony's script, step by step, countersigned by the people in the room",
		Long: `A ceremony is a script (YAML): who takes part, with which equipment, and the
steps in their order. Run shows one step at a time, does what keyturn does in
it, shows exactly what is signed, and has each person whom the step names sign
with their own token. What comes out is a transcript, which anybody can verify
with public keys alone, print, and put into the log.

Rehearse first: --rehearsal follows the same script with throw-away keys, and
says REHEARSAL on every line that it shows or has signed.

Whatever a step makes, a later one looks for: a genesis in its charter, any
other ceremony in the log that its last verify-log or verify-keygen reads. A
membership script names who joins and leaves, people or notaries, and where new
keys go. Its write-change step writes the files that keyturn request people and
keyturn request notaries take, and prints the commands; its verify-log step
passes only with a log that has exactly these keys in these places, and nobody
who leaves.`}
	cmd.AddCommand(ceremonyShowCmd(a), ceremonyRunCmd(a), ceremonyVerifyCmd(a), ceremonyRecordCmd(a), ceremonyRegisterCmd(a))
	return cmd
}

// modeOf says which mode the flag --rehearsal asks for.
func modeOf(rehearsal bool) ceremony.Mode {
	if rehearsal {
		return ceremony.Rehearsal
	}
	return ceremony.Real
}

func readScript(path string) ([]byte, *ceremony.Script, error) {
	text, err := readBounded(path, ceremony.MaxScript)
	if err != nil {
		return nil, nil, err
	}
	s, err := ceremony.ParseScript(text)
	if err != nil {
		return nil, nil, ui.WithHint(fmt.Errorf("%s: %w", path, err), "deploy/ceremony has scripts to start from")
	}
	if s.Version < ceremony.ScriptVersion {
		return nil, nil, ui.WithHint(fmt.Errorf("%s: a script of version %d, which is read in transcripts and held no more", path, s.Version),
			"write version: %d and read what keyturn ceremony show says is missing; deploy/ceremony has scripts to start from", ceremony.ScriptVersion)
	}
	return text, s, nil
}

func ceremonyShowCmd(a *app) *cobra.Command {
	var rehearsal bool
	cmd := &cobra.Command{Use: "show SCRIPT", Short: "print a script as its people will see it", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			text, s, err := readScript(args[0])
			if err != nil {
				return err
			}
			shown, digest := s.Show(modeOf(rehearsal), ceremony.SumScript(text)), ceremony.SumScript(text)
			return a.Answer(struct {
				Name    string           `json:"name"`
				Purpose ceremony.Purpose `json:"purpose"`
				Script  dsse.Digest      `json:"script"`
				Steps   int              `json:"steps"`
				Text    string           `json:"text"`
			}{s.Name, s.Purpose, digest, len(s.Steps), shown}, func(w writer) { fmt.Fprint(w, shown) })
		}}
	cmd.Flags().BoolVar(&rehearsal, "rehearsal", false, "as the rehearsal shows it")
	return cmd
}

// readTranscript reads a transcript and verifies all that it says of itself.
func readTranscript(path string) ([]byte, *ceremony.Report, error) {
	b, err := readBounded(path, ceremony.MaxTranscript)
	if err != nil {
		return nil, nil, err
	}
	b = bytes.TrimSuffix(b, []byte("\n"))
	r, err := ceremony.Parse(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, r, nil
}

// A ceremonyView is the answer of ceremony run and ceremony verify.
type ceremonyView struct {
	Mode       ceremony.Mode  `json:"mode"`
	Name       string         `json:"name"`
	Script     dsse.Digest    `json:"script"`
	Transcript dsse.Digest    `json:"transcript"`
	Charter    dsse.Digest    `json:"charter"`
	Records    int            `json:"records"`
	Complete   bool           `json:"complete"`
	Exceptions int            `json:"exceptions"`
	Waived     []string       `json:"waived"`
	People     []ceremonyKeys `json:"people"`
	Path       string         `json:"path,omitempty"`
}

type ceremonyKeys struct {
	Name  string      `json:"name"`
	Key   dsse.Digest `json:"key"`
	Class string      `json:"class"`
}

func viewCeremony(r *ceremony.Report) ceremonyView {
	v := ceremonyView{Mode: r.Mode, Name: r.Script.Name, Script: r.Digest, Transcript: r.Transcript, Charter: r.Charter, Records: len(r.Entries),
		Complete: r.Complete(), Exceptions: r.Exceptions(), Waived: append([]string{}, r.Waived()...), People: []ceremonyKeys{}}
	for _, p := range r.Script.People {
		if k, ok := r.Keys[p.Name]; ok {
			v.People = append(v.People, ceremonyKeys{p.Name, k.Fingerprint(), string(k.Class)})
		}
	}
	return v
}

func (v ceremonyView) write(w writer) {
	var b strings.Builder
	fmt.Fprintf(&b, "ceremony     %s, %d records, %s\n", v.Name, v.Records, map[bool]string{true: "complete", false: "ABORTED"}[v.Complete])
	for _, d := range []struct {
		name   string
		digest dsse.Digest
	}{{"transcript", v.Transcript}, {"script", v.Script}, {"charter", v.Charter}} {
		if !d.digest.IsZero() {
			g := ceremony.Groups(d.digest)
			fmt.Fprintf(&b, "%-12s %s\n%-12s %s\n", d.name, g[0], "", g[1])
		}
	}
	for _, p := range v.People {
		g := ceremony.Groups(p.Key)
		fmt.Fprintf(&b, "signed by    %s, %s key\n%-12s %s\n%-12s %s\n", p.Name, p.Class, "", g[0], "", g[1])
	}
	fmt.Fprintf(&b, "exceptions   %d\n", v.Exceptions)
	if len(v.Waived) > 0 {
		fmt.Fprintf(&b, "NOT DONE     %s\n", strings.Join(v.Waived, ", "))
	}
	if v.Path != "" {
		fmt.Fprintf(&b, "written to   %s\n", v.Path)
	}
	fmt.Fprint(w, ceremony.Mark(v.Mode, b.String()))
}

// ceremonyTrust says whose keys are whose.
type ceremonyTrust struct{ charter, people string }

func (t *ceremonyTrust) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.charter, "charter", "", "charter file, whose people's and notaries' keys are trusted")
	cmd.Flags().StringVar(&t.people, "people", "", `JSON file of further people: {"NAME": public key as key show prints it, ...}`)
}

// anchors reads the two files. The charter is nil if none was given.
func (t *ceremonyTrust) anchors() (ceremony.Anchors, *signoff.Charter, dsse.Digest, error) {
	a, charter, id := ceremony.Anchors{}, (*signoff.Charter)(nil), dsse.Digest{}
	if t.charter == "" && t.people == "" {
		return nil, nil, id, usage(errors.New("say with --charter FILE or --people FILE whose keys are whose"))
	}
	if t.charter != "" {
		payload, err := readBounded(t.charter, dsse.MaxPayload)
		if err != nil {
			return nil, nil, id, err
		}
		id = (&dsse.Envelope{Payload: payload}).Digest()
		if charter, err = config.ReadCharter(payload, id); err != nil {
			return nil, nil, id, err
		}
		a = ceremony.CharterAnchors(charter)
	}
	if t.people != "" {
		b, err := readBounded(t.people, dsse.MaxPayload)
		if err != nil {
			return nil, nil, id, err
		}
		var people map[string]signoff.PublicKey
		if err := dsse.Decode(b, &people); err != nil {
			return nil, nil, id, fmt.Errorf("%s is not a file of public keys by name: %w", t.people, err)
		}
		for name, k := range people {
			if len(a[name]) > 0 {
				return nil, nil, id, fmt.Errorf("%s names %s, whose keys the charter has", t.people, name)
			}
			a.Add(name, k.Fingerprint())
		}
	}
	return a, charter, id, nil
}

// verify holds a transcript to what the files say. A rehearsal never holds.
func (t *ceremonyTrust) verify(r *ceremony.Report) error {
	if err := r.Counts(r.Charter); err != nil {
		return err
	}
	anchors, charter, id, err := t.anchors()
	if err != nil {
		return err
	}
	if charter == nil {
		id = r.Charter
	} else if err := r.Holds(charter); err != nil {
		return err
	}
	if err := r.Counts(id); err != nil {
		return err
	}
	if err := r.Anchor(anchors, charter != nil && charter.Development); err != nil {
		return err
	}
	if len(r.Unknown) > 0 {
		return ui.WithHint(fmt.Errorf("nothing says whose keys %s signed with", strings.Join(r.Unknown, ", ")), "give their public keys with --people FILE")
	}
	return nil
}

func ceremonyVerifyCmd(a *app) *cobra.Command {
	var trust ceremonyTrust
	cmd := &cobra.Command{Use: "verify TRANSCRIPT", Short: "check a transcript with public keys alone", Args: cobra.ExactArgs(1),
		Long: `Verify checks that every step of the script has its record, in order, each
signed by the people whom the script names and by nobody else, over the text
that script and record give; that what has to be proved was proved; and that the
keys are those of the people: of the charter (--charter), of a list (--people),
or of both. With a charter, the keys that the ceremony made must stand in it, but
those of a change of people, which stand in the log; only a development charter
takes software keys. A rehearsal is refused.`,
		RunE: func(_ *cobra.Command, args []string) error {
			_, r, err := readTranscript(args[0])
			if err != nil {
				return err
			}
			if err := trust.verify(r); err != nil {
				return err
			}
			v := viewCeremony(r)
			return a.Answer(v, v.write)
		}}
	trust.add(cmd)
	return cmd
}

func ceremonyRecordCmd(a *app) *cobra.Command {
	var out string
	cmd := &cobra.Command{Use: "record TRANSCRIPT --out FILE", Short: "write the printable record of a ceremony, one page of HTML", Args: cobra.ExactArgs(1),
		Long: `Record writes a page that needs nothing beside it. Print it from a browser, or
have the browser write a PDF. It checks the transcript in itself and not whose
keys signed it: that is for ceremony verify.`,
		RunE: func(_ *cobra.Command, args []string) error {
			_, r, err := readTranscript(args[0])
			if err != nil {
				return err
			}
			var page bytes.Buffer
			if err := paper.Write(&page, r); err != nil {
				return err
			}
			if err := writeNew(out, page.Bytes()); err != nil {
				return err
			}
			return a.Answer(struct {
				Mode       ceremony.Mode `json:"mode"`
				Transcript dsse.Digest   `json:"transcript"`
				Path       string        `json:"path"`
			}{r.Mode, r.Transcript, out}, func(w writer) { fmt.Fprint(w, ceremony.Mark(r.Mode, out+"\n")) })
		}}
	cmd.Flags().StringVar(&out, "out", "", "file to write, as a rule record.html")
	return require(cmd, "out")
}

func ceremonyRegisterCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "register TRANSCRIPT", Short: "put the transcript of a ceremony into the log", Args: cobra.ExactArgs(1),
		Long: `Register sends the transcript to the log and signs the entry that names it.
Anybody in the charter may do it, after the charter is in force; that of the
genesis too. The log takes only real ceremonies of its own charter that were
carried through, with holders' keys that it knows. It tells of other signers, as
witnesses from elsewhere, whom it does not know: you vouch for them.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.registerCeremony(cmd.Context(), args[0]) }}
	return cmd
}

func (a *app) registerCeremony(ctx context.Context, path string) error {
	blob, r, err := readTranscript(path)
	if err != nil {
		return err
	}
	if err := a.load(); err != nil {
		return err
	}
	if err := r.Counts(a.id); err != nil {
		return err
	}
	if err := a.sync(ctx, 1); err != nil {
		return err
	}
	me, err := a.me()
	if err != nil {
		return err
	}
	if err := a.view(func(_ *authority.Authority, s *authority.State) error {
		return r.Anchor(s.CeremonyAnchors(), s.Charter.Development)
	}); err != nil {
		return err
	}
	viewCeremony(r).write(a.Err)
	if len(r.Unknown) > 0 {
		a.Note("not known   %s: the log does not say whose keys these are", strings.Join(r.Unknown, ", "))
	}
	if err := a.Confirm(ctx, fmt.Sprintf("Put this ceremony into the log as %s?", me.Name), "register"); err != nil {
		return err
	}
	key, err := a.signer(ctx)
	if err != nil {
		return err
	}
	s, err := signoff.Sign(ctx, key, &signoff.Ceremony{Charter: a.id, Person: me.ID, Script: r.Digest, Transcript: r.Transcript})
	if err != nil {
		return err
	}
	client, err := a.coordinator()
	if err != nil {
		return err
	}
	if _, err := client.PutBlob(ctx, blob); err != nil {
		return err
	}
	out, err := a.submit(ctx, s)
	if err != nil {
		return err
	}
	return a.Answer(struct {
		Transcript dsse.Digest `json:"transcript"`
		Index      uint64      `json:"index"`
	}{r.Transcript, out.Index}, func(w writer) { fmt.Fprintf(w, "transcript %s is final at entry %d\n", r.Transcript, out.Index) })
}

// transcriptFile is the name under which a run writes its transcript.
func transcriptFile(dir string, m ceremony.Mode) string {
	if m == ceremony.Real {
		return filepath.Join(dir, "transcript.json")
	}
	return filepath.Join(dir, string(m)+"-transcript.json")
}

// readIfThere reads a file, and returns nil if there is none.
func readIfThere(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return b, err
}
