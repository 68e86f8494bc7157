package uki

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/attest/eventlog"
)

// A part is a section to build an image with.
type part struct {
	name    string
	data    []byte
	virtual int // 0 for the length of data
}

// Where build puts the headers, and the fields that a hash leaves out.
const (
	builtPE       = 0x80
	builtOptional = builtPE + sizeCOFF
	builtHeaders  = 0x400
	alignment     = 0x200
)

// build writes a PE32+ image with the sections given.
func build(parts ...part) []byte {
	b := make([]byte, builtHeaders)
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[offPE:], builtPE)
	copy(b[builtPE:], "PE\x00\x00")
	le.PutUint16(b[builtPE+4:], 0x8664)
	le.PutUint16(b[builtPE+6:], uint16(len(parts)))
	le.PutUint16(b[builtPE+20:], 240)
	le.PutUint16(b[builtPE+22:], 0x22e) // executable, large addresses
	o := b[builtOptional:]
	le.PutUint16(o, magicPE32Plus)
	le.PutUint32(o[32:], 0x1000) // alignment in memory
	le.PutUint32(o[36:], alignment)
	le.PutUint32(o[offHeadersSize:], builtHeaders)
	le.PutUint16(o[68:], 10) // EFI application
	le.PutUint32(o[108:], 16)
	address := uint32(0x1000)
	for i, p := range parts {
		virtual := p.virtual
		if virtual == 0 {
			virtual = len(p.data)
		}
		raw := (len(p.data) + alignment - 1) / alignment * alignment
		row := b[builtOptional+240+i*sizeSection:]
		copy(row[:8], p.name)
		le.PutUint32(row[8:], uint32(virtual))
		le.PutUint32(row[12:], address)
		le.PutUint32(row[16:], uint32(raw))
		le.PutUint32(row[20:], uint32(len(b)))
		address += uint32(virtual+0xfff) &^ 0xfff
		b = append(b, p.data...)
		b = append(b, make([]byte, raw-len(p.data))...)
	}
	le.PutUint32(b[builtOptional+56:], address)
	return b
}

func magic(version string) part {
	return part{name: ".sdmagic", data: []byte("#### LoaderInfo: systemd-stub " + version + " ####\x00")}
}

func mustRead(t testing.TB, b []byte) *Image {
	t.Helper()
	u, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func refused(t *testing.T, b []byte, why string) {
	t.Helper()
	if _, err := Read(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), why) {
		t.Fatalf("got %v, wanted a refusal with %q", err, why)
	}
}

func digest(t testing.TB, text string) [32]byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 32 {
		t.Fatalf("%q: %v", text, err)
	}
	return [32]byte(b)
}

// The values that a machine's TPM held after it had booted a unified kernel
// image of systemd-stub 252 without secure boot, the digests that its log has
// of the image, of the kernel inside and of the sections, as quoted.
func TestPredictsRecordedBoot(t *testing.T) {
	kernel := digest(t, "5f21ff2c0d5d899842b28a8b19901ba72cf7a7ab93c02a77fadc6ff72be85b31")
	u := &Image{
		Authenticode: digest(t, "5b13ffd86a6f51040e63ee8d28f079a3ccd42a9a7684bfb04fb418d4509b31d2"), Kernel: &kernel,
		Sections: []Section{
			{Name: ".linux", Digest: digest(t, "51349501a3d1ff83836437d2b365fd2d57f2feb8642d315e5181dec23d4c3275")},
			{Name: ".osrel", Digest: digest(t, "61713fdec9db2e2f54ee4bf0ae72e24b97c85a789bfe25d7c0dc89fa9482f508")},
			{Name: ".cmdline", Digest: digest(t, "7b0d45515923b92b9e42a255fc280a03c4bab1f304e7fe828b205b0228964cde")},
			{Name: ".initrd", Digest: digest(t, "5bd7e32b104aff2b11d467c71e9ca6c088695f0a39991ea02c9804ecf6d21973")},
		},
	}
	if got := u.PCR4(); len(got) != 2 || got[1] != digest(t, "a00c23caee457612ce5ab57234a338620fc533909fc19420ae6994c1e5c68665") {
		t.Errorf("PCR 4 %x", got)
	}
	if got := u.PCR11(); got != digest(t, "26b3d3afbf10021c7ed10fa1bd844a9c03d2b1bff07e8170c60bafa3d05a1c26") {
		t.Errorf("PCR 11 %x", got)
	}
	// With secure boot on the same stub starts the kernel without the firmware's
	// help, and so without its measuring the kernel: another recorded boot.
	signed := &Image{Authenticode: digest(t, "744cd4125b4c00344c9169eab2989c3d22aca48167444bfe17a20d2dde93da20"), Kernel: &kernel}
	if got := signed.PCR4(); len(got) != 2 || got[0] != digest(t, "abbcf7cd5ee47341f048911c81bdc10913cbd5b78a01960e4ac22ecfc0683be4") {
		t.Errorf("PCR 4 with secure boot %x", got)
	}
	if got, want := u.PCR11("enter-initrd"), extend(u.PCR11(), sha256.Sum256([]byte("enter-initrd"))); got != want {
		t.Errorf("PCR 11 in the initrd %x, want %x", got, want)
	}
}

// Each version of the stub measures the sections that it knows, in its own order
// and not the file's.
func TestSectionsByVersion(t *testing.T) {
	all := []part{
		{name: ".text", data: []byte("code")}, {name: ".sbat", data: []byte("sbat,1\n")}, {name: ".hwids", data: []byte("ids")}, {name: ".pcrsig", data: []byte("{}")},
		{name: ".ucode", data: []byte("microcode")}, {name: ".uname", data: []byte("6.1.0")}, {name: ".osrel", data: []byte("ID=debian")},
		{name: ".cmdline", data: []byte("quiet")}, {name: ".initrd", data: []byte("cpio")}, {name: ".pcrpkey", data: []byte("key")}, {name: ".linux", data: []byte("kernel")},
	}
	for version, want := range map[string]string{
		"252.39-1~deb12u2":  ".linux .osrel .cmdline .initrd .pcrpkey",
		"253.5-1":           ".linux .osrel .cmdline .initrd .uname .pcrpkey",
		"254.26-1.fc39":     ".linux .osrel .cmdline .initrd .uname .sbat .pcrpkey",
		"256~rc2":           ".linux .osrel .cmdline .initrd .ucode .uname .sbat .pcrpkey",
		"v257-2-g123-dirty": ".linux .osrel .cmdline .initrd .ucode .uname .sbat .pcrpkey .hwids",
	} {
		u := mustRead(t, build(append(slices.Clone(all), magic(version))...))
		var names []string
		for _, s := range u.Sections {
			names = append(names, s.Name)
		}
		if got := strings.Join(names, " "); got != want || u.Stub != version {
			t.Errorf("%s: %s, want %s", u.Stub, got, want)
		}
		if u.Sections[0].Digest != sha256.Sum256([]byte("kernel")) || u.Sections[0].Size != 6 || u.Kernel != nil {
			t.Errorf("%s: section %+v", version, u.Sections[0])
		}
	}
}

// What is measured is the section in memory: filled up with zeros, or cut.
func TestSectionInMemory(t *testing.T) {
	u := mustRead(t, build(magic("254"), part{".linux", []byte("kernel"), 1000}, part{".cmdline", []byte("quiet splash"), 5}))
	if want := sha256.Sum256(append([]byte("kernel"), make([]byte, 994)...)); u.Sections[0].Digest != want {
		t.Errorf(".linux %x, want %x", u.Sections[0].Digest, want)
	}
	if want := sha256.Sum256([]byte("quiet")); u.Sections[1].Digest != want {
		t.Errorf(".cmdline %x, want %x", u.Sections[1].Digest, want)
	}
}

// A kernel that is itself an image has its own digest in PCR 4.
func TestKernelInside(t *testing.T) {
	inner := build(part{name: ".text", data: []byte("the kernel")})
	want, err := Authenticode(bytes.NewReader(inner), int64(len(inner)))
	if err != nil {
		t.Fatal(err)
	}
	u := mustRead(t, build(part{name: ".linux", data: inner}, magic("252")))
	if u.Kernel == nil || *u.Kernel != want || len(u.PCR4()) != 2 {
		t.Fatalf("kernel %x, want %x", u.Kernel, want)
	}
	if got := u.PCR4()[1]; got != extend(u.PCR4()[0], want) {
		t.Errorf("PCR 4 %x", got)
	}
}

func TestRefusesWhatCannotBePredicted(t *testing.T) {
	linux := part{name: ".linux", data: []byte("kernel")}
	for why, b := range map[string][]byte{
		"no section .sdmagic":      build(linux),
		"does not tell a version":  build(linux, part{name: ".sdmagic", data: []byte("#### LoaderInfo: other-stub 1 ####")}),
		"begins with no number":    build(linux, magic("unknown")),
		"measures no sections":     build(linux, magic("251.4")),
		"no section .linux":        build(magic("254")),
		"sections .dtbauto":        build(linux, magic("257"), part{name: ".dtbauto", data: []byte("dtb")}),
		"sections .efifw":          build(linux, magic("258"), part{name: ".efifw", data: []byte("fw")}),
		"2 sections .profile":      build(linux, magic("257"), part{name: ".profile", data: []byte("a")}, part{name: ".profile", data: []byte("b")}),
		"2 sections .cmdline":      build(linux, magic("257"), part{name: ".cmdline", data: []byte("a")}, part{name: ".profile", data: []byte("p")}, part{name: ".cmdline", data: []byte("b")}),
		"headers end before":       []byte("MZ"),
		"does not begin as one":    make([]byte, 4096),
		"is not in the file":       build(linux, magic("254"))[:builtHeaders+alignment],
		"want 1 to":                func() []byte { b := build(linux); b[builtPE+6] = 0; return b }(),
		"optional header of kind":  func() []byte { b := build(linux); b[builtOptional] = 0; return b }(),
		"do not fit an image":      func() []byte { b := build(linux); b[builtOptional+offHeadersSize+3] = 1; return b }(),
		"bytes in memory and":      build(part{".linux", []byte("kernel"), 1 << 30}, magic("254")),
		"signatures of 4294967295": func() []byte { b := build(linux); copy(b[builtOptional+112+36:], "\xff\xff\xff\xff"); return b }(),
		"sections overlap": func() []byte {
			b := build(linux, part{name: ".a", data: []byte("a")}, magic("254"))
			binary.LittleEndian.PutUint32(b[builtOptional+240+sizeSection+16:], 2*alignment)
			return b
		}(),
	} {
		t.Run(why, func(t *testing.T) { refused(t, b, why) })
	}
}

// Any bit of the image changes its digest, but for those of the checksum and of
// the signatures' place.
func TestAuthenticodeCoversAll(t *testing.T) {
	b := build(part{name: ".text", data: bytes.Repeat([]byte("code"), 300)}, part{name: ".data", data: []byte("data")})
	b = append(b, "what follows the sections"...)
	plain, err := Authenticode(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.IntRange(0, len(b)-1).Draw(t, "offset")
		changed := slices.Clone(b)
		changed[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		got, err := Authenticode(bytes.NewReader(changed), int64(len(b)))
		out := at >= builtOptional+offChecksum && at < builtOptional+offChecksum+4 ||
			at >= builtOptional+112+32 && at < builtOptional+112+40
		if !out && err == nil && got == plain {
			t.Fatalf("offset %d is not covered", at)
		}
		if out && err == nil && got != plain && at < builtOptional+offChecksum+4 {
			t.Fatalf("offset %d of the checksum is covered", at)
		}
	})
}

// Another program's hash of the same image: osslsigncode signs it, which writes
// the digest into the signature and must leave ours as it was.
func TestAuthenticodeOfAnotherProgram(t *testing.T) {
	for _, tool := range []string{"osslsigncode", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: %s is not installed", tool)
		}
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		return string(out)
	}
	b := build(magic("254"), part{name: ".linux", data: bytes.Repeat([]byte("kernel"), 999)})
	if err := os.WriteFile(file("plain.efi"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-keyout", file("key.pem"), "-out", file("cert.pem"), "-addext", "extendedKeyUsage=codeSigning")
	run("osslsigncode", "sign", "-h", "sha256", "-certs", file("cert.pem"), "-key", file("key.pem"), "-in", file("plain.efi"), "-out", file("signed.efi"))
	out, _ := exec.Command("osslsigncode", "verify", "-in", file("signed.efi")).CombinedOutput()
	signed, err := os.ReadFile(file("signed.efi"))
	if err != nil {
		t.Fatal(err)
	}
	u := mustRead(t, signed)
	if plain := mustRead(t, b); u.Authenticode != plain.Authenticode || len(signed) == len(b) {
		t.Errorf("signed %x, plain %x", u.Authenticode, plain.Authenticode)
	}
	if want := strings.ToUpper(hex.EncodeToString(u.Authenticode[:])); !strings.Contains(string(out), want) {
		t.Errorf("%s is not the digest that osslsigncode found: %s", want, out)
	}
}

// The event log of a machine that boots the image gives back the sections.
func TestNamesAreThoseOfTheEventLog(t *testing.T) {
	var parts []part
	for _, k := range known {
		if k.name != ".dtbauto" && k.name != ".efifw" {
			parts = append(parts, part{name: k.name, data: []byte(k.name)})
		}
	}
	u := mustRead(t, build(append(parts, magic("258"))...))
	l, err := eventlog.Parse(logOf(u))
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.UKISections("sha256")
	if err != nil || len(got) != len(u.Sections) {
		t.Fatalf("%d sections of %d: %v", len(got), len(u.Sections), err)
	}
	for i, s := range got {
		if s.Name != u.Sections[i].Name || !bytes.Equal(s.Digest, u.Sections[i].Digest[:]) {
			t.Errorf("section %d is %s, want %s", i, s.Name, u.Sections[i].Name)
		}
	}
	value := u.PCR11()
	if err := l.Explain("sha256", map[int][]byte{11: value[:]}); err != nil {
		t.Error(err)
	}
}

// logOf writes the crypto-agile log of the stub's measurements.
func logOf(u *Image) []byte {
	le := binary.LittleEndian
	spec := slices.Concat([]byte("Spec ID Event03\x00"), []byte{0, 0, 0, 0, 0, 2, 0, 2}, []byte{1, 0, 0, 0, 0x0b, 0, 32, 0}, []byte{0})
	var b []byte
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, 3) // EV_NO_ACTION
	b = append(b, make([]byte, 20)...)
	b = append(le.AppendUint32(b, uint32(len(spec))), spec...)
	add := func(digest [32]byte, name string) {
		b = le.AppendUint32(b, 11)
		b = le.AppendUint32(b, 0x0d) // EV_IPL
		b = le.AppendUint32(b, 1)
		b = append(le.AppendUint16(b, 0x0b), digest[:]...)
		b = append(le.AppendUint32(b, uint32(len(name))), name...)
	}
	for _, s := range u.Sections {
		add(sha256.Sum256(append([]byte(s.Name), 0)), s.Name)
		add(s.Digest, s.Name)
	}
	return b
}

func FuzzRead(f *testing.F) {
	f.Add(build(part{name: ".linux", data: build(part{name: ".text", data: []byte("kernel")})}, part{name: ".cmdline", data: []byte("quiet")}, magic("252.39")))
	f.Add(build(part{name: ".linux", data: []byte("kernel")}, magic("257"), part{name: ".profile", data: []byte("p")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parse(bytes.NewReader(b), int64(len(b))); err == nil && slices.ContainsFunc(p.sections, func(s section) bool { return s.virtual > 1<<20 }) {
			t.Skip("skipped: hashing zeros would take all the time")
		}
		u, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "uki: ") {
				t.Errorf("%v", err)
			}
			return
		}
		if u.Stub == "" || len(u.Sections) == 0 || u.Sections[0].Name != ".linux" {
			t.Errorf("%+v", u)
		}
	})
}
