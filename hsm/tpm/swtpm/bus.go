package swtpm

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// A Bus is somebody between a machine and its TPM, as one with wires on the
// board: it reads all that passes, and may change an answer.
type Bus struct {
	Path string // to open in the TPM's place

	mu     sync.Mutex
	passed bytes.Buffer // both ways
	look   func(command []byte)
	change func(code uint32, answer []byte)
}

// NewBus sits between the emulator and who opens Path, for as long as a test.
func NewBus(tb TB, e *Emulator) *Bus {
	tb.Helper()
	dir, err := os.MkdirTemp("", "keyturn-bus") // a test's own directory can be too long for a socket
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	at := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", at)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	b, chip := &Bus{Path: "unix:" + at}, strings.TrimPrefix(e.Path, "unix:") // which stays through a Reset
	go func() {
		for {
			host, err := l.Accept()
			if err != nil {
				return
			}
			go b.serve(host, chip)
		}
	}()
	return b
}

// Passed returns a copy of all that passed.
func (b *Bus) Passed() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.passed.Bytes())
}

// Watch has f look at each command to come, before the TPM has it.
func (b *Bus) Watch(f func(command []byte)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.look = f
}

// Change has f look at, and alter, each answer to come. The code is that of the
// command.
func (b *Bus) Change(f func(code uint32, answer []byte)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.change = f
}

func (b *Bus) serve(host net.Conn, at string) {
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
		b.mu.Lock()
		if b.look != nil {
			b.look(command)
		}
		b.mu.Unlock()
		if _, err = chip.Write(command); err != nil {
			return
		}
		answer, err := frame(chip)
		if err != nil {
			return
		}
		b.mu.Lock()
		b.passed.Write(command)
		b.passed.Write(answer)
		if b.change != nil {
			b.change(binary.BigEndian.Uint32(command[6:]), answer)
		}
		b.mu.Unlock()
		if _, err = host.Write(answer); err != nil {
			return
		}
	}
}

// frame reads one command or answer: tag, size and code are in front of each
// (TPM 2.0 Part 1, section 18.2).
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
