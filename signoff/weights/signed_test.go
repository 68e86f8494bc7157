package weights

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
)

func signingKey(t testing.TB) hsm.Key {
	t.Helper()
	uri := "file:" + filepath.Join(t.TempDir(), "key.pem")
	if _, err := file.Generate(uri, hsm.KindP256); err != nil {
		t.Fatal(err)
	}
	return must(file.Open(uri, nil))
}

// A manifest of many files is far larger than a log entry, and is signed and
// read all the same.
func TestSignManifest(t *testing.T) {
	var files []File
	for i := range 2000 {
		files = append(files, File{fmt.Sprintf("shard-%05d.safetensors", i), []Digest{{byte(i), 1}}, -1})
	}
	m := must(newManifest("model", false, files))
	k := signingKey(t)
	data := must(SignManifest(context.Background(), k, m))
	e, got, err := ReadSigned(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Verify(k.Public()); err != nil {
		t.Fatal(err)
	}
	if got.Digest() != m.Digest() || len(got.Files) != len(files) {
		t.Fatalf("read %d files with digest %x, want %d with %x", len(got.Files), got.Digest(), len(files), m.Digest())
	}
	if err := e.Verify(signingKey(t).Public()); err == nil {
		t.Fatal("another key verified")
	}
}

func TestReadSignedRefuses(t *testing.T) {
	m := must(newManifest("model", false, []File{{"a", []Digest{{1}}, -1}}))
	data := must(SignManifest(context.Background(), signingKey(t), m))
	for name, bad := range map[string][]byte{
		"nothing": {}, "no newline": data[:len(data)-1], "two lines": append(bytes.Clone(data), data...),
		"space": bytes.Replace(data, []byte(`{"mediaType"`), []byte(`{ "mediaType"`), 1),
		"other": bytes.Replace(data, []byte(`"signatures":[`), []byte(`"signatures":[{"sig":"AAAA"},`), 1),
	} {
		if _, _, err := ReadSigned(bad); err == nil {
			t.Errorf("%s: read", name)
		}
	}
}
