package weights

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"unicode/utf8"
)

// Bounds of Linux file systems, in bytes.
const (
	maxName = 255  // NAME_MAX
	maxPath = 4095 // PATH_MAX without the NUL
)

const sealedSuffix = ".age"

// checkName refuses names that cannot be carried faithfully: anything but clean
// relative slash-separated UTF-8 with parts of at most 255 bytes. Control
// characters are legal in names; quoting them is up to whoever shows them.
func checkName(name string) error {
	if !utf8.ValidString(name) {
		return fmt.Errorf("weights: name %q is not UTF-8, so no manifest can carry it; rename the file", name)
	}
	if name == "." || !fs.ValidPath(name) || strings.Contains(name, "\x00") {
		return fmt.Errorf("weights: name %q is not a clean relative path", name)
	}
	if len(name) > maxPath {
		return fmt.Errorf("weights: name of %d bytes exceeds %d: %.60q", len(name), maxPath, name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > maxName {
			return fmt.Errorf("weights: name has a part of %d bytes, at most %d are possible: %.60q", len(part), maxName, part)
		}
	}
	return nil
}

// compareNames orders names part by part, the order of OMS resources (its
// reference implementation sorts paths as tuples of parts).
func compareNames(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return cmp.Compare(rank(a[i]), rank(b[i]))
		}
	}
	return cmp.Compare(len(a), len(b))
}

// rank sorts the separator before every other byte; names hold no zero byte.
func rank(c byte) byte {
	if c == '/' {
		return 0
	}
	return c
}

// checkNames refuses lists that are not strictly ascending, or in which a file
// is also a directory.
func checkNames(names []string) error {
	for i, name := range names {
		if err := checkName(name); err != nil {
			return err
		}
		if i == 0 {
			continue
		}
		if compareNames(names[i-1], name) >= 0 {
			return fmt.Errorf("weights: name %q follows %q: repeated or out of order", name, names[i-1])
		}
		if strings.HasPrefix(name, names[i-1]+"/") {
			return fmt.Errorf("weights: name %q is a file and a directory", names[i-1])
		}
	}
	return nil
}

// sealedNames returns where the age files of names lie below files/: NAME.age,
// or, where that is too long or also the name of a directory, sha256-HEX.age
// beside it with the digest of the file's base name.
func sealedNames(names []string) ([]string, error) {
	dirs := map[string]bool{}
	for _, name := range names {
		for d := path.Dir(name); d != "." && !dirs[d]; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	out := make([]string, len(names))
	seen := make(map[string]bool, len(names))
	for i, name := range names {
		s := name + sealedSuffix
		if dirs[s] || len(path.Base(s)) > maxName {
			sum := sha256.Sum256([]byte(path.Base(name)))
			s = path.Join(path.Dir(name), "sha256-"+hex.EncodeToString(sum[:])+sealedSuffix)
		}
		if seen[s] || dirs[s] {
			return nil, fmt.Errorf("weights: two files would be sealed as %q; rename %q", s, name)
		}
		seen[s], out[i] = true, s
	}
	return out, nil
}

// sumsEscape writes names as sha256sum does; a line that needs it begins with a
// backslash (GNU coreutils manual, "cksum common options").
var sumsEscape = strings.NewReplacer("\\", "\\\\", "\n", "\\n", "\r", "\\r")

// writeSums writes lines that sha256sum -c reads.
func writeSums(w *bufio.Writer, names []string, sums []Digest) error {
	for i, name := range names {
		escaped := sumsEscape.Replace(name)
		if escaped != name {
			w.WriteByte('\\')
		}
		fmt.Fprintf(w, "%x  %s\n", sums[i], escaped)
	}
	return w.Flush()
}
