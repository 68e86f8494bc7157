package tpm

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/attest"
)

const ccActivateCredential = 0x147

// An interposer sits on the bus between a machine and its TPM: it reads all that
// passes, and may change an answer.
type interposer struct {
	path string // for Open

	mu     sync.Mutex
	passed bytes.Buffer // both ways
	change func(code uint32, answer []byte)
}

func (b *bench) interpose(t *testing.T) *interposer {
	t.Helper()
	dir, err := os.MkdirTemp("", "keyturn-bus") // a test's own directory can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	at := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	i := &interposer{path: "unix:" + at, change: func(uint32, []byte) {}}
	go func() {
		for {
			host, err := l.Accept()
			if err != nil {
				return
			}
			go i.serve(host, strings.TrimPrefix(b.emulator.Path, "unix:"))
		}
	}()
	return i
}

func (i *interposer) serve(host net.Conn, at string) {
	defer host.Close()
	chip, err := net.Dial("unix", at)
	if err != nil {
		return
	}
	defer chip.Close()
	for {
		command, err := frame(host)
		if err != nil {
			return
		}
		if _, err = chip.Write(command); err != nil {
			return
		}
		answer, err := frame(chip)
		if err != nil {
			return
		}
		i.mu.Lock()
		i.passed.Write(command)
		i.passed.Write(answer)
		i.change(binary.BigEndian.Uint32(command[6:]), answer)
		i.mu.Unlock()
		if _, err = host.Write(answer); err != nil {
			return
		}
	}
}

// frame reads one command or answer: tag, size and code are in front of each
// (Part 1, section 18.2).
func frame(r io.Reader) ([]byte, error) {
	head := make([]byte, 10)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	b := make([]byte, max(10, min(binary.BigEndian.Uint32(head[2:]), 1<<16)))
	copy(b, head)
	_, err := io.ReadFull(r, b[10:])
	return b, err
}

// What sits on the bus while a challenge is answered neither reads the secret nor
// changes it unseen.
func TestAttackInterposerOnActivateCredential(t *testing.T) {
	b := newBench(t)
	bus := b.interpose(t)
	if err := b.device.Close(); err != nil {
		t.Fatal(err)
	}
	device, err := Open(bus.path)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	b.device = device
	b.load(t)
	secret := [32]byte{}
	rand.Read(secret[:])
	blob, enc, err := attest.ChallengeFor(rand.Reader, b.enrol, b.node, secret)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.identity.Activate(t.Context(), blob, enc)
	if err != nil || got != secret {
		t.Fatalf("through an interposer that only reads: %v", err)
	}
	bus.mu.Lock()
	if bus.passed.Len() == 0 || bytes.Contains(bus.passed.Bytes(), secret[:]) {
		t.Error("the secret passed the bus as it is, or nothing did")
	}
	changed := 0
	bus.change = func(code uint32, answer []byte) {
		if code == ccActivateCredential && len(answer) > 40 {
			answer[20] ^= 1 // in the encrypted secret, behind tag, size, code, size of parameters and its own size
			changed++
		}
	}
	bus.mu.Unlock()
	if got, err := b.identity.Activate(t.Context(), blob, enc); err == nil {
		t.Errorf("a changed answer was taken: secret is as it was: %t", got == secret)
	}
	if changed == 0 {
		t.Error("the interposer saw no answer to change")
	}
}
