//go:build !amd64

package sha2x

// available: crypto/sha256 is what other machines have.
func available() bool { return false }

// blocks2 is not reached where available is false.
func blocks2(_, _ *[8]uint32, _, _ *byte, _ int) {
	panic("sha2x: no interleaved code for this machine")
}
