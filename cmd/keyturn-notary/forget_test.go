package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A notary destroys its own exchange key on its token, opened and in use as it is
// then, and no other key that has that name.
func TestForget(t *testing.T) {
	const softHSM = "/usr/lib/softhsm/libsofthsm2.so"
	if _, err := os.Stat(softHSM); err != nil {
		t.Skip("needs SoftHSM2 (package softhsm2)")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	must(err)
	build := exec.Command("go", "build", "-o", filepath.Join(filepath.Dir(self), "keyturn-token"), "../keyturn-token")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build keyturn-token: %s", out)
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	must(os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s\nlog.level = ERROR\n", dir), 0o600))
	t.Setenv("SOFTHSM2_CONF", conf)
	ctx := t.Context()
	must(token.Init(ctx, token.Config{Module: softHSM}, "north", []byte("officer-pin-1"), []byte("notary-pin-1")))
	ring := keys.New(func(context.Context, string) (*secret.Buffer, error) { return secret.Take([]byte("notary-pin-1")) })
	defer ring.Close()
	uri := "pkcs11:token=north;object=exchange?module-path=" + softHSM
	made, err := ring.Generate(ctx, uri, hsm.KindECDH, nil, nil)
	must(err)
	fp, err := hsm.Fingerprint(made.Public)
	must(err)

	if err := forget(ctx, ring, uri, dsse.Digest{1}); err == nil {
		t.Error("destroyed the key of somebody else")
	}
	if _, err := ring.Decrypter(ctx, uri, nil); err != nil {
		t.Error("the key is gone:", err)
	}
	must(forget(ctx, ring, uri, fp))
	if _, err := ring.Decrypter(ctx, uri, nil); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("after it was destroyed: %v", err)
	}
}
