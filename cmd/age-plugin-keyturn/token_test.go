package main

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/hsm/token"
	"github.com/keyturn/keyturn/signoff/lockbox"
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
	bin := t.TempDir()
	tok, key := openToken(t, bin)
	must(t, tok.Close())
	self, err := os.Executable()
	must(t, err)
	must(t, exec.Command("cp", self, filepath.Join(bin, program)).Run())
	s.path = bin + ":" + os.Getenv("PATH")
	return "pkcs11:token=partner;object=open?module-path=" + softHSM, key
}

// openToken makes a token with a key, and keyturn-token in bin.
func openToken(t testing.TB, bin string) (*token.Token, *ecdh.PublicKey) {
	t.Helper()
	if _, err := os.Stat(softHSM); err != nil {
		t.Skip("needs SoftHSM2 (package softhsm2)")
	}
	helper, dir := filepath.Join(bin, "keyturn-token"), t.TempDir()
	build := exec.Command("go", "build", "-o", helper, "../keyturn-token")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build keyturn-token: %s", out)
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	must(t, errors.Join(os.Mkdir(filepath.Join(dir, "tokens"), 0o700),
		os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s/tokens\nlog.level = ERROR\n", dir), 0o600)))
	t.Setenv("SOFTHSM2_CONF", conf)
	ctx, cfg := context.Background(), token.Config{Helper: helper, Module: softHSM}
	must(t, token.Init(ctx, cfg, "partner", []byte("officer-pin-1"), []byte(userPIN)))
	tok, err := token.Open(ctx, cfg, "pkcs11:token=partner", func(context.Context, string) (*secret.Buffer, error) { return secret.Take([]byte(userPIN)) })
	must(t, err)
	t.Cleanup(func() { tok.Close() })
	key, err := tok.Generate(ctx, "open", hsm.KindECDH)
	must(t, err)
	return tok, key.(*ecdh.PublicKey)
}

// BenchmarkRelease opens, checks and seals again one share, by a key on a
// token, as a person who approves and a notary who releases do. The peer is the
// token's bare agreement.
func BenchmarkRelease(b *testing.B) {
	tok, pub := openToken(b, b.TempDir())
	key, err := tok.Decrypter(b.Context(), "open", pub)
	must(b, err)
	id, err := lockbox.TokenIdentity(key)
	must(b, err)
	other := func() lockbox.Recipient {
		k, err := ecdh.P256().GenerateKey(rand.Reader)
		must(b, err)
		r, err := lockbox.P256Recipient(k.PublicKey())
		must(b, err)
		return r
	}
	group := func(k lockbox.Recipient) lockbox.Group {
		return lockbox.Group{Threshold: 2, Holders: []lockbox.Holder{{Index: 1, Key: k}, {Index: 2, Key: other()}, {Index: 3, Key: other()}}}
	}
	params := lockbox.Params{Charter: [32]byte{1}, People: group(id.Recipient()), Machines: group(other())}
	secrets, box, err := lockbox.New(rand.Reader, params)
	must(b, err)
	deals, err := secrets.Deal([32]byte{2}, 1)
	must(b, err)
	where := lockbox.Context{Charter: params.Charter, Object: [32]byte{2}, Side: lockbox.People, Epoch: 1, Index: 1, Holder: id.Recipient().ID()}
	to := other()
	peer := stranger(b)
	var bare time.Duration
	for b.Loop() {
		share, err := lockbox.OpenShare(b.Context(), id, where, box.People, deals.People[0])
		must(b, err)
		_, err = lockbox.Reseal(share, to, lockbox.ReleaseContext{Context: where, Request: [32]byte{3}, Recipient: to.ID()})
		must(b, err)
		b.StopTimer()
		start := time.Now()
		_, err = key.ECDHContext(b.Context(), peer)
		bare += time.Since(start)
		must(b, err)
		b.StartTimer()
	}
	b.ReportMetric(bare.Seconds()*1000/float64(b.N), "agreement-ms")
	b.ReportMetric(b.Elapsed().Seconds()*1000/float64(b.N), "release-ms")
}

func stranger(b *testing.B) *ecdh.PublicKey {
	k, err := ecdh.P256().GenerateKey(rand.Reader)
	must(b, err)
	return k.PublicKey()
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
