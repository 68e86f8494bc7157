package main

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age/plugin"

	"github.com/keyturn/keyturn/signoff/weights/release"
	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// A peer speaks the plugin protocol (C2SP age-plugin.md) from the client's side
// as rage does: in a working directory of its own, without the plugin's
// standard error, with grease between its commands, and "unsupported" for every
// command that it does not know.
type peer struct {
	t       *testing.T
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	answers []stream.Stanza // all commands but grease
}

func (s *site) peer(t *testing.T, machine string) *peer {
	t.Helper()
	cmd := exec.Command(filepath.Join(strings.Split(s.path, ":")[0], program), "--age-plugin="+machine)
	cmd.Dir = t.TempDir()
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	p := &peer{t: t, cmd: cmd, in: in, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return p
}

func (p *peer) send(kind string, body []byte, args ...string) {
	p.t.Helper()
	fmt.Fprintf(p.in, "-> %s\n", strings.Join(append([]string{kind}, args...), " "))
	enc := base64.RawStdEncoding.EncodeToString(body)
	for len(enc) >= 64 {
		fmt.Fprintf(p.in, "%s\n", enc[:64])
		enc = enc[64:]
	}
	fmt.Fprintf(p.in, "%s\n", enc)
}

// command sends a command between two that nobody knows.
func (p *peer) command(kind string, body []byte, args ...string) {
	p.t.Helper()
	p.send("q8-grease", []byte("anything, and enough of it to fill a line of base64 and begin the next"), "x", "y")
	p.send(kind, body, args...)
	p.send("extension-nobody-knows", nil)
}

// converse answers the plugin until it says done or ends. It returns its exit
// code.
func (p *peer) converse(known ...string) int {
	p.t.Helper()
	for {
		s, err := p.receive()
		if err == io.EOF {
			break
		}
		must(p.t, err)
		if s.Type == "done" {
			break
		}
		if !slices.Contains(known, s.Type) {
			p.send("unsupported", nil)
			continue
		}
		p.answers = append(p.answers, s)
		p.send("ok", nil)
	}
	p.in.Close()
	p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

func (p *peer) receive() (s stream.Stanza, err error) {
	line, err := p.out.ReadString('\n')
	if err != nil {
		return s, err
	}
	words := strings.Fields(line)
	if len(words) < 2 || words[0] != "->" {
		return s, fmt.Errorf("the plugin said %q", line)
	}
	s.Type, s.Args = words[1], words[2:]
	for {
		if line, err = p.out.ReadString('\n'); err != nil {
			return s, err
		}
		part, err := base64.RawStdEncoding.DecodeString(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return s, err
		}
		if s.Body = append(s.Body, part...); len(line) <= 64 {
			return s, nil
		}
	}
}

// header reads the header of a sealed file.
func header(t *testing.T, file string) *stream.Header {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	h, err := stream.ParseHeader(f)
	must(t, err)
	return h
}

func (p *peer) file(index int, h *stream.Header) {
	for _, s := range h.Stanzas {
		p.command("recipient-stanza", s.Body, append([]string{fmt.Sprint(index), s.Type}, s.Args...)...)
	}
}

func encoded(t *testing.T, id release.Identity) string {
	t.Helper()
	data, err := id.Marshal()
	must(t, err)
	return plugin.EncodeIdentity("keyturn", data)
}

func TestPluginSpeaksAsRageDoes(t *testing.T) {
	s := newSite(t)
	other := s.Seal("other", map[string][]byte{"x": {}})
	mine, foreign := header(t, filepath.Join(s.dir, "files", "big.bin.age")), header(t, filepath.Join(other.Dir, "files", "x.age"))
	good := release.Identity{Charter: s.ID, Release: filepath.Join(s.dir, "release.json"), Key: s.RecipientURI}
	gone := good
	gone.Release += ".gone"
	for name, tc := range map[string]struct {
		identity release.Identity
		files    []*stream.Header
		want     string // the first answer's type and arguments, and text in its body
		text     string
	}{
		"one file":          {good, []*stream.Header{mine}, "file-key 0", ""},
		"the second of two": {good, []*stream.Header{foreign, mine}, "file-key 1", ""},
		"another object":    {good, []*stream.Header{foreign}, "", ""},
		"no release":        {gone, []*stream.Header{mine}, "error stanza 0 0", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			p := s.peer(t, "identity-v1")
			p.command("add-identity", nil, encoded(t, tc.identity))
			for i, h := range tc.files {
				p.file(i, h)
			}
			p.send("done", nil)
			if code := p.converse("msg", "confirm", "request-public", "request-secret", "file-key", "error"); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if tc.want == "" {
				if len(p.answers) != 0 {
					t.Fatalf("answered %v", p.answers)
				}
				return
			}
			if len(p.answers) != 1 || strings.Join(append([]string{p.answers[0].Type}, p.answers[0].Args...), " ") != tc.want {
				t.Fatalf("answered %v, want %q", p.answers, tc.want)
			}
			body := p.answers[0].Body
			if p.answers[0].Type == "file-key" {
				if err := mine.Verify(stream.FileKey(body)); err != nil {
					t.Error(err)
				}
			} else if !strings.Contains(string(body), tc.text) {
				t.Errorf("said %q, want %q", body, tc.text)
			}
		})
	}
}

// A client that wants to encrypt is told where that is done.
func TestPluginRefusesToWrap(t *testing.T) {
	s := newSite(t)
	id := encoded(t, release.Identity{Charter: s.ID, Release: filepath.Join(s.dir, "release.json"), Key: s.RecipientURI})
	for command, argument := range map[string]string{
		"add-recipient": plugin.EncodeRecipient("keyturn", []byte("anybody")),
		"add-identity":  id,
	} {
		p := s.peer(t, "recipient-v1")
		p.command(command, nil, argument)
		p.command("extension-labels", nil)
		p.command("wrap-file-key", make([]byte, stream.FileKeySize))
		p.send("done", nil)
		if code := p.converse("msg", "labels", "recipient-stanza", "error"); code == 0 {
			t.Errorf("%s: exit code 0", command)
		}
		if len(p.answers) != 1 || p.answers[0].Type != "error" || !strings.Contains(string(p.answers[0].Body), "keyturn weights seal") {
			t.Errorf("%s: answered %v, want one error that names keyturn weights seal", command, p.answers)
		}
	}
}

// A client that stops in the middle gets no key.
func TestPluginOfAClientThatStops(t *testing.T) {
	s := newSite(t)
	p := s.peer(t, "identity-v1")
	p.command("add-identity", nil, encoded(t, release.Identity{Charter: s.ID, Release: filepath.Join(s.dir, "release.json"), Key: s.RecipientURI}))
	p.file(0, header(t, filepath.Join(s.dir, "files", "big.bin.age")))
	p.in.Close()
	if code := p.converse("file-key", "error"); code == 0 || len(p.answers) != 0 {
		t.Errorf("exit code %d, answers %v", code, p.answers)
	}
}
