package main

import (
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age/plugin"

	"github.com/keyturn/keyturn/signoff/weights/release"
	"github.com/keyturn/keyturn/signoff/weights/release/releasetest"
)

const program = "age-plugin-keyturn"

// TestMain is the plugin itself when age runs it by that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == program {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

// A site is an exported directory at its recipient's, with stock age and the
// plugin.
type site struct {
	*releasetest.World
	object  *releasetest.Object
	dir     string
	path    string
	program string // age
}

func newSite(t *testing.T) *site {
	t.Helper()
	if _, err := exec.LookPath("age"); err != nil {
		t.Skip("needs age on the PATH; install the Debian package age")
	}
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, program)); err != nil {
		t.Fatal(err)
	}
	s := &site{World: releasetest.New(t), path: bin + ":" + os.Getenv("PATH"), program: "age"}
	big := make([]byte, 200<<10)
	rand.Read(big)
	s.object = s.Seal("model", map[string][]byte{"big.bin": big, "empty": {}, "deep/config.json": []byte("{}\n")})
	s.dir = filepath.Join(t.TempDir(), "exported")
	s.Export(s.object, s.Bundle(s.object, s.Recipient.PublicKey()), s.dir)
	return s
}

// identity writes an identity file for a release bundle.
func (s *site) identity(bundle, key string) string {
	s.T.Helper()
	data, err := release.Identity{Charter: s.ID, Release: bundle, Key: key}.Marshal()
	if err != nil {
		s.T.Fatal(err)
	}
	f := filepath.Join(s.T.TempDir(), "identity.txt")
	if err := os.WriteFile(f, []byte("# a comment\n"+plugin.EncodeIdentity("keyturn", data)+"\n"), 0o600); err != nil {
		s.T.Fatal(err)
	}
	return f
}

func (s *site) age(identity, file, out string) (string, error) {
	cmd := exec.Command(s.program, "-d", "-i", identity, "-o", out, file)
	cmd.Env = append(os.Environ(), "PATH="+s.path)
	b, err := cmd.CombinedOutput()
	return string(b), err
}

// The age of the distribution, and the current one, which go.mod pins.
func TestStockAgeOpensExport(t *testing.T) {
	s := newSite(t)
	t.Run("Debian", s.opensExport)
	s.program = filepath.Join(t.TempDir(), "age")
	if out, err := exec.Command("go", "build", "-o", s.program, "filippo.io/age/cmd/age").CombinedOutput(); err != nil {
		t.Fatalf("build age: %s", out)
	}
	t.Run("Current", s.opensExport)
}

func (s *site) opensExport(t *testing.T) {
	id, out := s.identity(filepath.Join(s.dir, "release.json"), s.RecipientURI), filepath.Join(t.TempDir(), "plain")
	if err := os.MkdirAll(filepath.Join(out, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"big.bin", "empty", "deep/config.json"} {
		if text, err := s.age(id, filepath.Join(s.dir, "files", name+".age"), filepath.Join(out, name)); err != nil {
			t.Fatalf("age -d %s: %v: %s", name, err, text)
		}
		got, err := os.ReadFile(filepath.Join(out, name))
		if name == "empty" && os.IsNotExist(err) { // age 1.1.1 makes no file of an empty plaintext
			got, err = nil, os.WriteFile(filepath.Join(out, name), nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(s.object.Plain, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s came out as other %d bytes, want %d", name, len(got), len(want))
		}
	}
	sums := exec.Command("sha256sum", "--strict", "-c", filepath.Join(s.dir, "SHA256SUMS"))
	sums.Dir = out
	if text, err := sums.CombinedOutput(); err != nil {
		t.Fatalf("sha256sum -c: %v: %s", err, text)
	}
}

// Each attack is what somebody on the way could do to the export or its
// recipient's files. Age must fail, and say why where it is not simply another
// object.
func TestAttackOnTheWay(t *testing.T) {
	s := newSite(t)
	to := s.Recipient.PublicKey()
	other := s.Seal("other", map[string][]byte{"big.bin": []byte("other"), "empty": {}, "x": {}})
	good := s.Bundle(s.object, to)
	write := func(edit func(*release.Bundle)) string {
		b := *good
		edit(&b)
		data, err := b.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		f := filepath.Join(t.TempDir(), "release.json")
		if err := os.WriteFile(f, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return f
	}
	unchanged := write(func(*release.Bundle) {})
	big := filepath.Join(s.dir, "files", "big.bin.age")
	for _, a := range []struct{ name, bundle, key, file, want string }{
		{"ReleaseOfAnotherObject", write(func(b *release.Bundle) { *b = *s.Bundle(other, to) }), s.RecipientURI, big, "no identity matched"},
		{"TamperedApproval", write(func(b *release.Bundle) {
			b.Approvals = []string{good.Approvals[0], good.Approvals[1], strings.Replace(good.Approvals[2], `"sig":"ME`, `"sig":"MF`, 1)}
		}), s.RecipientURI, big, "approvals"},
		{"OneApprovalShort", write(func(b *release.Bundle) { b.Approvals = good.Approvals[:2] }), s.RecipientURI, big, "approval"},
		{"StolenBundle", unchanged, "file:" + filepath.Join(s.Dir, "bob-x.pem"), big, "not the pinned key"},
		{"NoBundle", filepath.Join(t.TempDir(), "gone.json"), s.RecipientURI, big, "no such file"},
		{"HeaderOfAnotherFile", unchanged, s.RecipientURI, graft(t, filepath.Join(s.dir, "files", "deep", "config.json.age"), big), ""},
	} {
		t.Run(a.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			text, err := s.age(s.identity(a.bundle, a.key), a.file, out)
			if err == nil || !strings.Contains(text, a.want) {
				t.Fatalf("got %v: %s; want a failure with %q", err, text, a.want)
			}
			if b, err := os.ReadFile(out); err == nil && len(b) > 0 {
				t.Fatalf("%d bytes were written", len(b))
			}
		})
	}
}

// graft puts the header of one age file on the body of another.
func graft(t *testing.T, header, body string) string {
	t.Helper()
	h, err := os.ReadFile(header)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(body)
	if err != nil {
		t.Fatal(err)
	}
	f := filepath.Join(t.TempDir(), "grafted.age")
	if err := os.WriteFile(f, append(h[:4096:4096], b[4096:]...), 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}
