package notary

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff/authority"
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

// A sealer that seals something else, or otherwise.
type faultySealer struct {
	hsm.Sealer
	fault func(s hsm.Sealer, plaintext, ad []byte) ([]byte, error)
}

func (f faultySealer) Seal(_ context.Context, plaintext, ad []byte) ([]byte, error) {
	return f.fault(f.Sealer, plaintext, ad)
}

// A token that does not seal what it was given keeps the notary from agreeing to
// a share that nobody can open.
func TestFaultSealerGarbles(t *testing.T) {
	uri := "file:" + filepath.Join(t.TempDir(), "seal.pem")
	if _, err := file.Generate(uri, hsm.KindSeal); err != nil {
		t.Fatal(err)
	}
	sealer, err := file.OpenSealer(uri)
	if err != nil {
		t.Fatal(err)
	}
	for name, fault := range map[string]func(s hsm.Sealer, plaintext, ad []byte) ([]byte, error){
		"nothing":         func(hsm.Sealer, []byte, []byte) ([]byte, error) { return nil, nil },
		"the plaintext":   func(_ hsm.Sealer, plaintext, _ []byte) ([]byte, error) { return plaintext, nil },
		"another secret":  func(s hsm.Sealer, _, ad []byte) ([]byte, error) { return s.Seal(t.Context(), []byte("b share"), ad) },
		"a shorter one":   func(s hsm.Sealer, p, ad []byte) ([]byte, error) { return s.Seal(t.Context(), p[:1], ad) },
		"for another use": func(s hsm.Sealer, p, _ []byte) ([]byte, error) { return s.Seal(t.Context(), p, nil) },
	} {
		n := &Notary{cfg: Config{Charter: Digest{1}, Sealer: faultySealer{sealer, fault}}, id: Digest{2}, store: &store{dir: t.TempDir()}}
		if err := n.saveSealed(t.Context(), "share-1.sealed", []byte("a share")); !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Errorf("%s: %v, want ErrWrongIdentity", name, err)
		}
		if b, err := n.store.read("share-1.sealed"); b != nil || err != nil {
			t.Errorf("%s: %d bytes were kept: %v", name, len(b), err)
		}
	}
}

// Another token answers to the sealing key's name while the notary is down. It is
// given nothing to seal, neither in the place of what there is nor beside it.
func TestAttackSealerReplaced(t *testing.T) {
	var sealers []hsm.Sealer
	for range 2 {
		uri := "file:" + filepath.Join(t.TempDir(), "seal.pem")
		if _, err := file.Generate(uri, hsm.KindSeal); err != nil {
			t.Fatal(err)
		}
		s, err := file.OpenSealer(uri)
		if err != nil {
			t.Fatal(err)
		}
		sealers = append(sealers, s)
	}
	asked := false
	impostor := faultySealer{sealers[1], func(s hsm.Sealer, plaintext, ad []byte) ([]byte, error) {
		asked = true
		return s.Seal(t.Context(), plaintext, ad)
	}}
	n := &Notary{cfg: Config{Charter: Digest{1}, Sealer: sealers[0]}, id: Digest{2}, store: &store{dir: t.TempDir()}}
	if err := n.saveSealed(t.Context(), "share-1.sealed", []byte("a share")); err != nil {
		t.Fatal(err)
	}
	n.cfg.Sealer = impostor
	for _, name := range []string{"share-1.sealed", "share-2.sealed"} {
		if err := n.saveSealed(t.Context(), name, []byte("the next share")); !errors.Is(err, hsm.ErrWrongIdentity) || asked {
			t.Errorf("%s: %v, asked to seal: %t", name, err, asked)
		}
	}
	// One file that is damaged, or another's, is no reason to stop.
	n.cfg.Sealer = sealers[0]
	if err := n.store.write("share-0.sealed", []byte("junk")); err != nil {
		t.Fatal(err)
	}
	if err := n.saveSealed(t.Context(), "share-2.sealed", []byte("the next share")); err != nil {
		t.Error(err)
	}
}

// A copy that the fuse has not let pass opens no share, of the group key or of an
// object.
func TestAttackShareBeforeTheFuse(t *testing.T) {
	n := &Notary{store: &store{dir: t.TempDir()}}
	_, object := n.share(t.Context(), &authority.Object{}, 1)
	group := n.withShare(t.Context(), &frost.Group{}, func(*frost.KeyShare) error { return nil })
	for what, err := range map[string]error{"of an object": object, "of the group key": group} {
		if err == nil || !strings.Contains(err.Error(), "the directory is not in use") {
			t.Errorf("a share %s: %v", what, err)
		}
	}
}
