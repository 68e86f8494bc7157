package sha2x

import "golang.org/x/sys/cpu"

// available reports the instructions that blocks2 uses: SHA, SSE4.1, SSSE3.
func available() bool { return hasSHA() && cpu.X86.HasSSE41 && cpu.X86.HasSSSE3 }

// hasSHA asks CPUID leaf 7 for the SHA extensions (EBX bit 29).
func hasSHA() bool

// blocks2 adds n blocks at p to the state a and n blocks at q to the state b.
// States are in the instructions' order of words.
//
//go:noescape
func blocks2(a, b *[8]uint32, p, q *byte, n int)
