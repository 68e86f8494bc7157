package vm

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/pe"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// stub is where Debian's systemd-boot-efi puts the program in front of the kernel.
const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

// An Image says what is in a unified kernel image.
type Image struct {
	Kernel      string   // directory with an unpacked kernel package of Debian
	CommandLine string   // of the kernel
	Programs    []string // files that the initramfs has in /bin, beside busybox
	Note        string   // put into the initramfs, to tell one from another
}

// Build puts kernel, command line and initramfs behind systemd-stub, as ukify
// does, and signs the image with key and certificate (PEM files).
func (i Image) Build(out, key, cert string) error {
	file, err := filepath.Glob(filepath.Join(i.Kernel, "boot", "vmlinuz-*"))
	if err != nil || len(file) != 1 {
		return fmt.Errorf("vm: %d kernels below %s, wanted one (%v)", len(file), i.Kernel, err)
	}
	kernel, err := os.ReadFile(file[0])
	if err != nil {
		return err
	}
	initrd, err := i.initramfs()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "keyturn-image")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	at, err := end(stub)
	if err != nil {
		return err
	}
	var args []string
	for _, s := range []struct {
		name string
		data []byte
	}{{".osrel", []byte("ID=keyturn-test\n")}, {".cmdline", []byte(i.CommandLine)}, {".linux", kernel}, {".initrd", initrd}} {
		part := filepath.Join(dir, s.name)
		if err := os.WriteFile(part, s.data, 0o600); err != nil {
			return err
		}
		args = append(args, "--add-section", s.name+"="+part, "--change-section-vma", fmt.Sprintf("%s=%#x", s.name, at))
		at = aligned(at + uint64(len(s.data)))
	}
	unsigned := filepath.Join(dir, "unsigned.efi")
	if err := command("objcopy", append(args, stub, unsigned)...); err != nil {
		return err
	}
	return command("sbsign", "--key", key, "--cert", cert, "--output", out, unsigned)
}

// end is the first address behind an image's sections.
func end(file string) (uint64, error) {
	f, err := pe.Open(file)
	if err != nil {
		return 0, fmt.Errorf("vm: %s: %w", file, err)
	}
	defer f.Close()
	header, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		return 0, fmt.Errorf("vm: %s is no 64-bit image", file)
	}
	last := uint64(0)
	for _, s := range f.Sections {
		last = max(last, uint64(s.VirtualAddress)+uint64(s.VirtualSize))
	}
	return aligned(header.ImageBase + last), nil
}

func aligned(at uint64) uint64 { return (at + 0xfff) &^ 0xfff }

// command runs a program of the machine and wants it to succeed.
func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("vm: %s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

// NewSigner makes a key and a certificate for it, to sign images with, and writes
// both (PEM). It returns the certificate (DER), for [Enrol].
func NewSigner(key, cert string) ([]byte, error) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "keyturn test image signer"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(253402300799, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return der, errors.Join(
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
}
