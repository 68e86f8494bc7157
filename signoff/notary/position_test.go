package notary

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// The position of a notary with and without a fuse, as of 2026-11-26. Their MAC is
// that of openssl dgst -sha256 -mac HMAC over the file without it.
func TestPositionGolden(t *testing.T) {
	p := position{Charter: Digest{1}, Seen: signoff.Seen{Size: 7, Root: Digest{2}}, Recoveries: 1}
	const plain = `{"charter":"sha256:0100000000000000000000000000000000000000000000000000000000000000","seen":{"size":7,"root":"sha256:0200000000000000000000000000000000000000000000000000000000000000"},"recoveries":1`
	for _, x := range []struct {
		edit func()
		want string
	}{
		{func() {}, plain + `}`},
		{func() { p.Fuse, p.Burning = 41, true }, plain + `,"fuse":41,"burning":true,"mac":"sha256:2b9d87d8d4f484c16b963d56a33b3cc9d8219531bec4664e3f4c0f80f8739320"}`},
	} {
		x.edit()
		s := &store{dir: t.TempDir()}
		if p.Fuse > 0 {
			s.key = bytes.Repeat([]byte{3}, 32)
		}
		if err := s.save(p); err != nil {
			t.Fatal(err)
		}
		got, err := s.read(positionFile)
		if err != nil || string(got) != x.want {
			t.Errorf("%v\n%s, want\n%s", err, got, x.want)
		}
		var back position
		if err := dsse.Decode(got, &back); err != nil || back != s.last {
			t.Errorf("read back as %+v: %v", back, err)
		}
	}
}

// What a killed process had not renamed is gone with the next start.
func TestStartSweepsTemporaryFiles(t *testing.T) {
	dir := t.TempDir()
	first := &store{dir: dir}
	if err := first.save(position{Charter: Digest{1}}); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, "share-1.sealed.123.tmp")
	if err := os.WriteFile(stale, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := openStore(dir, Digest{1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if _, err := os.Lstat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there: %v", stale, err)
	}
	if s.last.Charter != (Digest{1}) {
		t.Errorf("position %+v", s.last)
	}
}
