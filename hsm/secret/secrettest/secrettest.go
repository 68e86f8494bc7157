// Package secrettest looks for secrets in the memory of a process, as somebody
// would who got hold of its core dump or of the swap device.
package secrettest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

// mask hides a needle from its own search.
const mask = 0x5a

// A Needle is what to look for, written so that it is not found itself.
type Needle []byte

// Hide returns the needle for a secret of at least 8 bytes. The secret stays
// as it is: wipe it.
func Hide(secret []byte) Needle {
	if len(secret) < 8 {
		panic("secrettest: so short a needle is found everywhere")
	}
	// Not append: it may work on the stack first and leave a copy there.
	n := make(Needle, len(secret))
	for i, b := range secret {
		n[i] = b ^ mask
	}
	return n
}

// Show returns the secret of a needle: a control copy that must be found.
func Show(n Needle) []byte {
	b := make([]byte, len(n))
	copy(b, n)
	flip(b)
	return b
}

func flip(b []byte) {
	for i := range b {
		b[i] ^= mask
	}
}

// Count returns how often the needle stands in the readable memory of a
// process, 0 for this one. It needs the rights of a debugger.
func Count(pid int, needle Needle) (int, error) {
	self := pid == 0 || pid == os.Getpid()
	proc := fmt.Sprintf("/proc/%d/", pid)
	if self {
		proc = "/proc/self/"
	}
	maps, err := os.ReadFile(proc + "maps")
	if err != nil {
		return 0, fmt.Errorf("secrettest: %w", err)
	}
	mem, err := os.Open(proc + "mem")
	if err != nil {
		return 0, fmt.Errorf("secrettest: %w", err)
	}
	defer mem.Close()
	// Not of the heap, so that it has a mapping of its own to be left out.
	chunk, err := syscall.Mmap(-1, 0, 4<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
	if err != nil {
		return 0, fmt.Errorf("secrettest: %w", err)
	}
	defer syscall.Munmap(chunk)
	found, read := 0, 0
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var from, to uint64
		var rights string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil {
			return 0, fmt.Errorf("secrettest: %q: %w", lines.Text(), err)
		}
		if !strings.HasPrefix(rights, "r") || strings.Contains(lines.Text(), "[v") {
			continue
		}
		n, r, err := countIn(mem, from, to, chunk, self, needle)
		if err != nil {
			return 0, err
		}
		found, read = found+n, read+r
	}
	if read == 0 {
		return 0, errors.New("secrettest: no memory could be read")
	}
	return found, nil
}

// countIn searches one mapping, in pieces that overlap by less than a needle.
func countIn(mem io.ReaderAt, from, to uint64, chunk []byte, self bool, needle Needle) (found, read int, err error) {
	own := Address(chunk)
	for at := from; at < to; {
		piece := chunk[:min(uint64(len(chunk)), to-at)]
		if self && at < own+uint64(len(chunk)) && own < at+uint64(len(piece)) { // never the chunk itself
			if at >= own {
				at = own + uint64(len(chunk))
				continue
			}
			piece = piece[:own-at]
		}
		n, err := mem.ReadAt(piece, int64(at))
		if n < len(needle) {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.EFAULT) {
				return 0, 0, fmt.Errorf("secrettest: read at %x: %w", at, err)
			}
			return found, read, nil // device memory, or a secret area
		}
		flip(piece[:n])
		found += bytes.Count(piece[:n], needle)
		read += n
		clear(piece)
		if at += uint64(n); at < to {
			at -= uint64(len(needle) - 1)
		}
	}
	return found, read, nil
}

// Address returns where b begins.
func Address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
