package ima

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
)

// A hash is one that PCR banks and template digests are made with.
type hash struct {
	name string
	size int
}

var hashes = []hash{{"sha1", 20}, {"sha256", 32}, {"sha384", 48}, {"sha512", 64}}

// bankHash returns the hash of the named PCR bank.
func bankHash(name string) (hash, error) {
	for _, h := range hashes {
		if h.name == name {
			return h, nil
		}
	}
	return hash{}, fmt.Errorf("ima: bank %.20q cannot be replayed: want sha256, sha384 or sha512", name)
}

// sum hashes data and returns the digest at the front of an array, so that nothing
// escapes to the heap.
func (h hash) sum(data []byte) (out [maxDigest]byte) {
	switch h.size {
	case sha1.Size:
		d := sha1.Sum(data)
		copy(out[:], d[:])
	case sha256.Size:
		d := sha256.Sum256(data)
		copy(out[:], d[:])
	case sha512.Size384:
		d := sha512.Sum384(data)
		copy(out[:], d[:])
	case sha512.Size:
		out = sha512.Sum512(data)
	}
	return out
}

// fileHashes are the kernel's names (crypto/hash_info.c) of the algorithms that file
// digests are made with, and the digests' sizes in bytes.
var fileHashes = map[string]int{
	"md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64,
	"rmd128": 16, "rmd160": 20, "rmd256": 32, "rmd320": 40,
	"wp256": 32, "wp384": 48, "wp512": 64, "tgr128": 16, "tgr160": 20, "tgr192": 24,
	"sm3": 32, "sm3-256": 32, "streebog256": 32, "streebog512": 64,
	"sha3-256": 32, "sha3-384": 48, "sha3-512": 64,
}

// algorithm returns the name as a string of ours, so that no entry allocates one.
func algorithm(name []byte) (string, int, bool) {
	switch string(name) { // the common ones first, without a map
	case "sha256":
		return "sha256", 32, true
	case "sha1":
		return "sha1", 20, true
	}
	size, ok := fileHashes[string(name)]
	if !ok {
		return "", 0, false
	}
	return string(name), size, true
}
