package vm

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

//go:embed init.sh
var initScript []byte

// modules are what Debian's cloud kernel does not have built in, in the order
// of their dependencies.
var modules = []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk", "failover", "net_failover", "virtio_net"}

// initramfs builds an initramfs with the package's init, busybox, the kernel's
// modules, and the programs. Equal input gives equal bytes.
func (i Image) initramfs() ([]byte, error) {
	a := &archive{}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "run", "tmp", "data", "modules"} {
		a.add(dir, 0o040755, nil)
	}
	a.add("init", 0o100755, initScript)
	a.add("modules/order", 0o100644, []byte(strings.Join(modules, "\n")+"\n"))
	if i.Note != "" {
		a.add("etc/note", 0o100644, []byte(i.Note))
	}
	for _, p := range append([]string{"/bin/busybox"}, i.Programs...) {
		if err := a.addFile("bin/"+filepath.Base(p), 0o100755, p); err != nil {
			return nil, err
		}
	}
	for _, m := range modules {
		found, err := find(i.Kernel, m+".ko")
		if err != nil {
			return nil, err
		}
		if err := a.addFile("modules/"+m+".ko", 0o100644, found); err != nil {
			return nil, err
		}
	}
	return a.gzip()
}

// find returns the one file of a name below dir.
func find(dir, name string) (string, error) {
	out := ""
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == name {
			out = p
		}
		return err
	})
	if err == nil && out == "" {
		err = fmt.Errorf("vm: no %s below %s", name, dir)
	}
	return out, err
}

// An archive is a cpio archive in the kernel's format (newc; Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst), without times.
type archive struct {
	bytes.Buffer
	inode int
}

func (a *archive) add(name string, mode uint32, data []byte) {
	a.inode++
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) addFile(name string, mode uint32, from string) error {
	b, err := os.ReadFile(from)
	if err == nil {
		a.add(name, mode, b)
	}
	return err
}

func (a *archive) pad() { a.Write(make([]byte, (4-a.Len()%4)%4)) }

func (a *archive) gzip() ([]byte, error) {
	a.add("TRAILER!!!", 0, nil)
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(a.Bytes()); err != nil {
		return nil, err
	}
	err := z.Close()
	return out.Bytes(), err
}
