package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/notary"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A fuse that is configured is there or nothing starts, and a production charter
// takes none that is a program.
func TestFuse(t *testing.T) {
	t.Setenv("KEYTURN_TPM", "unix:/nonexistent/tpm")
	for _, x := range []struct{ index, words string }{
		{"on", "not an NV index"}, {"0x1ffffffff", "not an NV index"}, {"-1", "not an NV index"},
		{"0x01800100", "names a fuse: tpm: open"},
	} {
		ring := keys.New(nil)
		if f, err := fuse(ring, x.index, true); err == nil || f != nil || !strings.Contains(err.Error(), x.words) {
			t.Errorf("%q: %v, %v; want %q", x.index, f, err, x.words)
		}
		ring.Close()
	}
	t.Setenv("KEYTURN_TPM", swtpm.New(t).Path)
	ring := keys.New(nil)
	defer ring.Close()
	if f, err := fuse(ring, "0x01800100", false); err == nil || f != nil || !strings.Contains(err.Error(), "is a program") {
		t.Errorf("an emulated TPM in production: %v, %v", f, err)
	}
	if f, err := fuse(ring, "", false); f != nil || err != nil {
		t.Errorf("no fuse: %v, %v", f, err)
	}
	// As a file has it, quoted or not.
	for _, text := range []string{"fuse: 0x01800100\n", "fuse: \"0x01800100\"\n"} {
		file := filepath.Join(t.TempDir(), "notary.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var c config.Notary
		if err := config.Load(file, &c); err != nil {
			t.Fatal(err)
		}
		f, err := fuse(ring, c.Fuse, true)
		if err != nil || f.Index != 0x01800100 {
			t.Errorf("%q: %+v, %v", text, f, err)
		}
	}
}

// What init made with a fuse runs with that fuse alone, and a copy of it from
// before does not run.
func TestAttackBackupOfInit(t *testing.T) {
	t.Setenv("KEYTURN_TPM", swtpm.New(t).Path)
	c := signofftest.Keys(t, nil)
	charter, err := dsse.Parse(c.Genesis[0])
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "charter.json"), charter.Payload, 0o600))
	at := filepath.Join(c.Dir, "n1")
	configured := func(name, fuse string) *options {
		o := &options{config: filepath.Join(dir, name)}
		must(t, os.WriteFile(o.config, fmt.Appendf(nil, "charter: %s\ncharterFile: charter.json\nname: n1\ndir: memory\nsigning: file:%s.pem\nexchange: file:%s-x.pem\nwitness: file:%s-w.pem\nseal: file:%s-s.pem\n%s",
			c.ID, at, at, at, at, fuse), 0o600))
		return o
	}
	with, without := configured("with.yaml", "fuse: 0x01800100\n"), configured("without.yaml", "")
	must(t, with.init(t.Context()))
	if err := with.init(t.Context()); err == nil || !strings.Contains(err.Error(), "never made twice") {
		t.Errorf("init twice: %v", err)
	}
	memory := filepath.Join(dir, "memory")
	copied := t.TempDir()
	must(t, os.CopyFS(copied, os.DirFS(memory)))
	if err := without.run(t.Context()); !errors.Is(err, notary.ErrFuse) || !strings.Contains(err.Error(), "the configuration names none") {
		t.Errorf("run without the fuse: %v", err)
	}
	// It would wait for a coordinator next: stating where it stands needs none.
	n, closeKeys, err := with.open(t.Context())
	must(t, err)
	_, err = n.StatePosition(t.Context(), dsse.Digest{1})
	must(t, errors.Join(err, n.Close()))
	closeKeys()
	must(t, os.RemoveAll(memory))
	must(t, os.CopyFS(memory, os.DirFS(copied)))
	if err := with.run(t.Context()); !errors.Is(err, notary.ErrFuse) || !strings.Contains(err.Error(), "a copy of an older state") {
		t.Errorf("run on a copy of what init made: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
