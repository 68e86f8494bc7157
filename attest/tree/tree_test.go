package tree

import (
	"crypto/sha256"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestRead(t *testing.T) {
	exec := &fstest.MapFile{Data: []byte("#!/bin/sh\n"), Mode: 0o755}
	plain := func(content string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(content), Mode: 0o644} }
	root := fstest.MapFS{
		"bin/sh":                           exec,
		"usr/bin/tool":                     exec,
		"usr/lib/x86_64-linux-gnu/libc.so": plain("\x7fELF and more"),
		"lib/modules/6.1/kernel/a.ko.xz":   plain("module"),
		"lib/firmware/gpu.bin":             plain("firmware"),
		"usr/share/doc/copyright":          plain("text"),
		"usr/bin/empty":                    {Mode: 0o755},
		"usr/bin/link":                     {Data: []byte("tool"), Mode: fs.ModeSymlink | 0o777},
		"boot/initrd.img-6.1":              plain("cpio"),
		"boot/dos.exe":                     plain("MZ and nothing more"),
	}
	for merged, want := range map[bool][]string{
		true:  {"/usr/bin/sh", "/usr/lib/firmware/gpu.bin", "/usr/lib/modules/6.1/kernel/a.ko.xz", "/usr/bin/tool", "/usr/lib/x86_64-linux-gnu/libc.so"},
		false: {"/bin/sh", "/lib/firmware/gpu.bin", "/lib/modules/6.1/kernel/a.ko.xz", "/usr/bin/tool", "/usr/lib/x86_64-linux-gnu/libc.so"},
	} {
		tree, err := Read(root, merged)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range tree.Files {
			got = append(got, f.Path)
		}
		if !slices.Equal(got, want) {
			t.Errorf("merged %t: %v, want %v", merged, got, want)
		}
		if tree.Files[0].Digest != sha256.Sum256(exec.Data) {
			t.Error("the digest is not that of the content")
		}
		if len(tree.Initrds) != 1 || tree.Initrds[0].Path != "/boot/initrd.img-6.1" || len(tree.Images) != 0 {
			t.Errorf("%+v", tree)
		}
	}
	if _, err := Read(fstest.MapFS{}, true); err == nil || !strings.Contains(err.Error(), "no file") {
		t.Errorf("an empty tree: %v", err)
	}
}
