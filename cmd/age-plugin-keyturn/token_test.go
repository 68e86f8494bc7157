package main

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/token"
)

const (
	softHSM = "/usr/lib/softhsm/libsofthsm2.so"
	userPIN = "user-pin-55120"
)

// newToken makes a recipient's key on a token and puts keyturn-token where the
// plugin looks for it: beside itself.
func (s *site) newToken() (uri string, pub *ecdh.PublicKey) {
	t := s.T
	t.Helper()
	if _, err := os.Stat(softHSM); err != nil {
		t.Skip("needs SoftHSM2 (package softhsm2)")
	}
	bin, dir := t.TempDir(), t.TempDir()
	self, err := os.Executable()
	must(t, err)
	must(t, exec.Command("cp", self, filepath.Join(bin, program)).Run())
	helper := filepath.Join(bin, "keyturn-token")
	if out, err := exec.Command("go", "build", "-o", helper, "../keyturn-token").CombinedOutput(); err != nil {
		t.Fatalf("build keyturn-token: %s", out)
	}
	s.path = bin + ":" + os.Getenv("PATH")
	conf := filepath.Join(dir, "softhsm2.conf")
	must(t, errors.Join(os.Mkdir(filepath.Join(dir, "tokens"), 0o700),
		os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s/tokens\nlog.level = ERROR\n", dir), 0o600)))
	os.Setenv("SOFTHSM2_CONF", conf)
	t.Cleanup(func() { os.Unsetenv("SOFTHSM2_CONF") })
	ctx, cfg := context.Background(), token.Config{Helper: helper, Module: softHSM}
	must(t, token.Init(ctx, cfg, "partner", []byte("officer-pin-1"), []byte(userPIN)))
	uri = "pkcs11:token=partner?module-path=" + softHSM
	tok, err := token.Open(ctx, cfg, uri, func(context.Context, string) ([]byte, error) { return []byte(userPIN), nil })
	must(t, err)
	defer tok.Close()
	key, err := tok.Generate(ctx, "open", hsm.KindECDH)
	must(t, err)
	return "pkcs11:token=partner;object=open?module-path=" + softHSM, key.(*ecdh.PublicKey)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The recipient's key is on a token: age asks for the PIN on its terminal, and
// a wrong one opens nothing.
func TestStockAgeAsksForPIN(t *testing.T) {
	s := newSite(t)
	if _, err := exec.LookPath("script"); err != nil {
		t.Skip("needs script (package bsdutils) to give age a terminal")
	}
	uri, pub := s.newToken()
	dir := filepath.Join(t.TempDir(), "exported")
	s.Export(s.object, s.Bundle(s.object, pub), dir)
	id := s.identity(filepath.Join(dir, "release.json"), uri)
	open := func(pin string) (string, []byte) {
		out := filepath.Join(t.TempDir(), "out")
		cmd := exec.Command("script", "-qec", fmt.Sprintf("age -d -i %s -o %s %s", id, out, filepath.Join(dir, "files", "big.bin.age")), "/dev/null")
		cmd.Env = append(os.Environ(), "PATH="+s.path)
		cmd.Stdin = strings.NewReader(pin + "\n")
		text, _ := cmd.CombinedOutput()
		plain, _ := os.ReadFile(out)
		return string(text), plain
	}
	want, err := os.ReadFile(filepath.Join(s.object.Plain, "big.bin"))
	must(t, err)
	text, got := open(userPIN)
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes came out, want %d: %s", len(got), len(want), text)
	}
	if text, got = open("wrong-pin-1"); len(got) != 0 || !strings.Contains(text, "wrong pin") {
		t.Fatalf("with a wrong PIN %d bytes came out: %s", len(got), text)
	}
	if strings.Contains(text, userPIN) {
		t.Fatal("the PIN was shown")
	}
}
