package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
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
