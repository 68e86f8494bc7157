// Package uki predicts, from a unified kernel image alone, what a machine that
// boots it measures: reference values are built from what was built, not read
// off a machine that is believed to be good.
//
// The firmware measures the image's Authenticode digest into PCR 4. Then
// systemd-stub, the program in front of the kernel, measures each section that
// it knows into PCR 11: the section's name, with a zero byte, then its content
// as it lies in memory (UAPI specification "Unified Kernel Image", "UKI TPM PCR
// Measurements"). Which sections a stub knows depends on its version, so a stub
// that does not tell its version is refused, as is an image of which the machine
// chooses parts when it boots: those values cannot be told beforehand.
package uki

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// An Image is a unified kernel image and what it will be measured as.
type Image struct {
	Stub         string    // version of systemd-stub, such as 252.39-1
	Authenticode [32]byte  // SHA-256, as the firmware measures the image
	Sections     []Section // that the stub measures, in its order

	// Kernel is the Authenticode digest of the section .linux, nil if the
	// kernel is no PE image. Stubs that start the kernel through the firmware
	// have it measured into PCR 4 as well.
	Kernel *[32]byte
}

// A Section is a part of an image that the stub measures.
type Section struct {
	Name   string
	Size   int64    // in memory
	Digest [32]byte // SHA-256
}

// known are the sections that systemd-stub measures, in its canonical order, and
// the version that began to.
var known = []struct {
	name  string
	since int
}{
	{".linux", 252}, {".osrel", 252}, {".cmdline", 252}, {".initrd", 252}, {".ucode", 256}, {".splash", 252}, {".dtb", 252},
	{".uname", 253}, {".sbat", 254}, {".pcrpkey", 252}, {".profile", 257}, {".dtbauto", 257}, {".hwids", 257}, {".efifw", 258},
}

// firstMeasuring is the version of systemd-stub that began to measure sections.
const firstMeasuring = 252

// Read reads an image of the given size in bytes.
func Read(r io.ReaderAt, size int64) (*Image, error) {
	u, err := read(r, size)
	if err != nil {
		return nil, fmt.Errorf("uki: %w", err)
	}
	return u, nil
}

func read(r io.ReaderAt, size int64) (*Image, error) {
	p, err := parse(r, size)
	if err != nil {
		return nil, err
	}
	u := &Image{}
	if u.Stub, err = p.stub(); err != nil {
		return nil, err
	}
	version, err := major(u.Stub)
	if err != nil {
		return nil, err
	}
	if err := p.fixed(version); err != nil {
		return nil, err
	}
	if u.Authenticode, err = p.authenticode(); err != nil {
		return nil, err
	}
	for _, k := range known {
		s, ok := p.named(k.name)
		if !ok || k.since > version {
			continue
		}
		h := sha256.New()
		if _, err := io.Copy(h, p.content(s)); err != nil {
			return nil, fmt.Errorf("section %s: %w", s.name, err)
		}
		u.Sections = append(u.Sections, Section{s.name, s.virtual, [32]byte(h.Sum(nil))})
	}
	if u.Kernel, err = p.kernel(); err != nil {
		return nil, err
	}
	return u, nil
}

// Authenticode returns the SHA-256 digest of any PE image, as the firmware
// measures it into PCR 4 and compares it with signatures: a boot loader, a
// kernel, a driver. Where the file has gaps between sections, tools that sign
// hash them and firmware does not; this is what firmware does.
func Authenticode(r io.ReaderAt, size int64) ([32]byte, error) {
	p, err := parse(r, size)
	if err == nil {
		var digest [32]byte
		if digest, err = p.authenticode(); err == nil {
			return digest, nil
		}
	}
	return [32]byte{}, fmt.Errorf("uki: %w", err)
}

// named returns the first section of the name that is not empty in memory.
func (p *image) named(name string) (section, bool) {
	i := slices.IndexFunc(p.sections, func(s section) bool { return s.name == name })
	if i < 0 || p.sections[i].virtual == 0 {
		return section{}, false
	}
	return p.sections[i], true
}

// fixed refuses an image of which the machine chooses parts as it boots.
func (p *image) fixed(version int) error {
	if _, ok := p.named(".linux"); !ok {
		return errors.New("no section .linux: not a unified kernel image")
	}
	count := map[string]int{}
	for _, s := range p.sections {
		count[s.name]++
	}
	for _, name := range []string{".dtbauto", ".efifw"} {
		if count[name] > 0 && version >= 257 {
			return fmt.Errorf("it has sections %s, of which the machine chooses one when it boots", name)
		}
	}
	for _, k := range known {
		if count[k.name] > 1 && (k.name == ".profile" || count[".profile"] > 0) && version >= 257 {
			return fmt.Errorf("it has %d sections %s: which profile is measured is chosen when it boots", count[k.name], k.name)
		}
	}
	return nil
}

// stub returns the version that systemd-stub tells of itself.
func (p *image) stub() (string, error) {
	const before, after = "#### LoaderInfo: systemd-stub ", " ####"
	s, ok := p.named(".sdmagic")
	if !ok || s.virtual > 1024 {
		return "", errors.New("no section .sdmagic: not started by systemd-stub, so nobody can say what it measures")
	}
	b, err := io.ReadAll(p.content(s))
	if err != nil {
		return "", err
	}
	version, told := strings.CutPrefix(string(b), before)
	version, _, ended := strings.Cut(version, after)
	if !told || !ended {
		return "", fmt.Errorf("section .sdmagic %.60q does not tell a version of systemd-stub", b)
	}
	return version, nil
}

// major returns the number before the first other character.
func major(version string) (int, error) {
	digits := strings.TrimPrefix(version, "v")
	if i := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = digits[:i]
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("version %.60q of systemd-stub begins with no number", version)
	}
	if n < firstMeasuring {
		return 0, fmt.Errorf("systemd-stub %d measures no sections; %d and later do", n, firstMeasuring)
	}
	return n, nil
}

// kernel returns the Authenticode digest of .linux, nil if it is no PE image,
// as compressed kernels of some machines are not.
func (p *image) kernel() (*[32]byte, error) {
	s, _ := p.named(".linux")
	content := p.content(s)
	inner, err := parse(content, content.Size())
	if err != nil {
		return nil, nil
	}
	digest, err := inner.authenticode()
	if err != nil {
		return nil, fmt.Errorf("section .linux: %w", err)
	}
	return &digest, nil
}

// Phases are the words that systemd extends PCR 11 with while it boots, in
// order, if systemd-pcrphase is installed.
var Phases = []string{"enter-initrd", "leave-initrd", "sysinit", "ready"}

// PCR11 is the sha256 value of PCR 11 after the stub, and after the given words
// of [Phases] if any.
func (u *Image) PCR11(phases ...string) [32]byte {
	var pcr [32]byte
	for _, s := range u.Sections {
		pcr = extend(pcr, sha256.Sum256(append([]byte(s.Name), 0)))
		pcr = extend(pcr, s.Digest)
	}
	for _, word := range phases {
		pcr = extend(pcr, sha256.Sum256([]byte(word)))
	}
	return pcr
}

// What firmware extends PCR 4 with before the first image it boots (PFP 3.3.4.5,
// 10.4.4).
var (
	bootAction = sha256.Sum256([]byte("Calling EFI Application from Boot Option"))
	separator  = sha256.Sum256(make([]byte, 4))
)

// PCR4 are the sha256 values that PCR 4 can have when the firmware's first boot
// option is the image itself: without the kernel inside being measured as an
// image of its own, and with it. Stubs of version 252 have it measured where
// secure boot is off, and not where it is on.
func (u *Image) PCR4() [][32]byte {
	values := [][32]byte{PCR4(u.Authenticode)}
	if u.Kernel != nil {
		values = append(values, PCR4(u.Authenticode, *u.Kernel))
	}
	return values
}

// PCR4 is the sha256 value of PCR 4 after the firmware's first boot option started
// the first of these images (Authenticode digests) and each the next.
func PCR4(images ...[32]byte) [32]byte {
	pcr := extend(extend([32]byte{}, bootAction), separator)
	for _, digest := range images {
		pcr = extend(pcr, digest)
	}
	return pcr
}

func extend(pcr, digest [32]byte) [32]byte {
	return sha256.Sum256(slices.Concat(pcr[:], digest[:]))
}
