package notary

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
)

// A share's file opens for the notary, in the cluster and under the name that it
// was sealed for, and for no other under the same sealing key.
func TestAttackShareFileOfAnother(t *testing.T) {
	uri := "file:" + filepath.Join(t.TempDir(), "seal.pem")
	if _, err := file.Generate(uri, hsm.KindSeal); err != nil {
		t.Fatal(err)
	}
	sealer, err := file.OpenSealer(uri)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	notary := func(charter, id Digest) *Notary {
		return &Notary{cfg: Config{Charter: charter, Sealer: sealer}, id: id, store: &store{dir: dir}}
	}
	own, share := notary(Digest{1}, Digest{2}), []byte("a share")
	if err := own.saveSealed(t.Context(), "share-1.sealed", share); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "share-1.sealed"), filepath.Join(dir, "share-2.sealed")); err != nil {
		t.Fatal(err)
	}
	if got, err := own.loadSealed(t.Context(), "share-1.sealed"); err != nil || !bytes.Equal(got, share) {
		t.Fatalf("its own: %q, %v", got, err)
	}
	for what, c := range map[string]struct {
		n    *Notary
		name string
	}{
		"another notary":             {notary(Digest{1}, Digest{3}), "share-1.sealed"},
		"another charter":            {notary(Digest{3}, Digest{2}), "share-1.sealed"},
		"charter and notary swapped": {notary(Digest{2}, Digest{1}), "share-1.sealed"},
		"another name":               {own, "share-2.sealed"},
	} {
		if got, err := c.n.loadSealed(t.Context(), c.name); err == nil {
			t.Errorf("%s: opened as %q", what, got)
		}
	}
}
