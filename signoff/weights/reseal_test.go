package weights

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// Sealing anew makes another object of the same manifest, under other keys.
func TestReseal(t *testing.T) {
	for name, sharded := range map[string]bool{"whole": false, "sharded": true} {
		t.Run(name, func(t *testing.T) {
			files, old, fresh := sample(), newBox(), newBox()
			dst, s := sealTo(t, model(t, files), old, func(o *Options) { o.Sharded = sharded })
			again := filepath.Join(t.TempDir(), "again")
			r, err := directory(t, dst, s).Reseal(t.Context(), again, old.keyFor, Options{Finish: fresh.finish})
			if err != nil {
				t.Fatal(err)
			}
			if r.Manifest.Digest() != s.Manifest.Digest() || r.Object == s.Object {
				t.Error("the new object is not another one of the same manifest")
			}
			if d := cmp.Diff(s.Summary, r.Summary); d != "" {
				t.Error(d)
			}
			out := filepath.Join(t.TempDir(), "out")
			if err := directory(t, again, r).Open(t.Context(), out, fresh.keyFor, Run{}); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(files, contents(t, out)); d != "" {
				t.Error(d)
			}
			before, after := contents(t, dst), contents(t, again)
			for name := range files {
				name = filepath.Join(filesName, name+sealedSuffix)
				if bytes.Equal(before[name][stream.HeaderSize:], after[name][stream.HeaderSize:]) {
					t.Errorf("%s has the same body as before", name)
				}
			}
		})
	}
}

// A body that a holder of its key forged is found before anything is signed.
func TestAttackResealOfAForgedBody(t *testing.T) {
	old := newBox()
	dst, s := sealTo(t, model(t, map[string][]byte{"a": random(100_000), "b": random(10)}), old)
	path := filepath.Join(dst, filesName, "a.age")
	d := directory(t, dst, s)
	src, err := d.open(0)
	if err != nil {
		t.Fatal(err)
	}
	key := must(src.key(0, old.keyFor))
	nonce := src.nonce
	src.Close()
	f := must(os.OpenFile(path, os.O_WRONLY, 0))
	defer f.Close()
	forged := random(100_000)
	if err := stream.NewEngine(1).Encrypt(t.Context(), stream.Body{Dst: f, Off: stream.BodyOffset, Src: bytes.NewReader(forged), Size: int64(len(forged)), Key: key, Nonce: nonce}, nil); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "again")
	_, err = d.Reseal(t.Context(), again, old.keyFor, Options{Finish: func(context.Context, *Draft) (*Final, error) {
		t.Error("something was to be signed")
		return nil, errors.New("no")
	}})
	if !errors.Is(err, ErrMismatch) {
		t.Errorf("a forged body was sealed anew: %v", err)
	}
	absent(t, again)
	absent(t, again+partialSuffix)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Reseal(t.Context(), again, old.keyFor, Options{Finish: newBox().finish}); err == nil {
		t.Error("an empty file was sealed anew")
	}
	absent(t, again)
}
