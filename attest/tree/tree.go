// Package tree reads what a software package installs and says what a machine
// that uses it measures: reference values are built from what was built, not read
// off a machine that is believed to be good.
//
// Of PE images (shim, GRUB, kernels, unified kernel images) it gives the
// Authenticode digest, which firmware measures into PCR 4; of initial RAM disks the
// digest, which boot loaders and the kernel's EFI stub measure into PCR 9; and of
// every file that a kernel may execute, map as code, load as a module or as
// firmware, the path and digest that stand in its measurement list.
package tree

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/keyturn/keyturn/attest/uki"
)

// maxFiles bounds the files of one tree: a whole distribution's installation has a
// few 100,000.
const maxFiles = 1 << 20

// A File is one file with the SHA-256 digest of its content, or of an image.
type File struct {
	Path   string // absolute, as on the machine
	Digest [32]byte
}

// A Tree is what was found, each in the order of paths.
type Tree struct {
	Images  []File // Authenticode digests
	Initrds []File
	Files   []File // that a kernel measures when it uses them
}

// Read reads a tree as it will lie below the machine's root. If the machine's /bin,
// /lib and the like are links into /usr, as on most distributions today, merged
// gives the paths that its kernel sees. Links are passed over: kernels measure what
// they lead to. A file that cannot be read is an error.
func Read(root fs.FS, merged bool) (*Tree, error) {
	t := &Tree{}
	n := 0
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if n++; n > maxFiles {
			return fmt.Errorf("more than %d files", maxFiles)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return t.take(root, name, info, merged)
	})
	if err != nil {
		return nil, fmt.Errorf("tree: %w", err)
	}
	if n == 0 {
		return nil, fmt.Errorf("tree: there is no file in it")
	}
	return t, nil
}

// take looks at one regular file.
func (t *Tree) take(root fs.FS, name string, info fs.FileInfo, merged bool) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	at, ok := f.(io.ReaderAt)
	if !ok {
		return fmt.Errorf("%s: cannot be read at an offset", name)
	}
	head := make([]byte, 4)
	if n, err := at.ReadAt(head, 0); err != nil && err != io.EOF {
		return err
	} else if head = head[:n]; n == 0 {
		return nil // nothing to measure
	}
	where := onMachine(name, merged)
	if bytes.HasPrefix(head, []byte("MZ")) {
		// Programs for DOS and for Windows begin so too; those are files like others.
		if digest, err := uki.Authenticode(at, info.Size()); err == nil {
			t.Images = append(t.Images, File{where, digest})
		}
	}
	initrd, used := isInitrd(where), info.Mode()&0o111 != 0 || bytes.Equal(head, []byte("\x7fELF")) || isModule(where) || isFirmware(where)
	if !initrd && !used {
		return nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	file := File{where, [32]byte(h.Sum(nil))}
	if initrd {
		t.Initrds = append(t.Initrds, file)
	}
	if used {
		t.Files = append(t.Files, file)
	}
	return nil
}

// onMachine is the path of a file on the machine.
func onMachine(name string, merged bool) string {
	first, _, below := strings.Cut(name, "/")
	if merged && below {
		switch first {
		case "bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32":
			return "/usr/" + name
		}
	}
	return "/" + name
}

func isInitrd(where string) bool {
	base := path.Base(where)
	return strings.HasPrefix(base, "initrd") || strings.HasPrefix(base, "initramfs")
}

func isModule(where string) bool {
	base := path.Base(where)
	return strings.HasSuffix(base, ".ko") || strings.Contains(base, ".ko.")
}

func isFirmware(where string) bool {
	return strings.HasPrefix(where, "/usr/lib/firmware/") || strings.HasPrefix(where, "/lib/firmware/")
}
