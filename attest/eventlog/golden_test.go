package eventlog

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// TestSecureBootedMachine reads the project's own boot by shim and GRUB.
func TestSecureBootedMachine(t *testing.T) {
	data, quoted := localBoot(t, "secureboot-shim-grub")
	l := mustParse(t, data)
	if err := l.Explain("sha256", quoted); err != nil {
		t.Fatal(err)
	}
	if got := l.Banks(); !slices.Equal(got, []string{"sha1", "sha256", "sha384"}) {
		t.Errorf("banks %v", got)
	}
	claim := l.SecureBoot("sha256")
	if claim.State != On || len(claim.PK) != 1 || len(claim.KEK) != 2 || len(claim.DB) != 2 || len(claim.DBX) != 1 {
		t.Errorf("secure boot %v (%s) with %d, %d, %d, %d keys", claim.State, claim.Reason, len(claim.PK), len(claim.KEK), len(claim.DB), len(claim.DBX))
	}
	var names []string
	for _, a := range claim.PostSeparator {
		names = append(names, a.Variable.Name)
	}
	if want := []string{"db", "SbatLevel", "MokListRT"}; !slices.Equal(names, want) {
		t.Errorf("authorities %v, wanted %v", names, want)
	}
	apps, err := l.BootApplications("sha256")
	if err != nil || len(apps) != 4 {
		t.Fatalf("%d boot applications, %v; wanted shim, GRUB, and the kernel twice", len(apps), err)
	}
	if apps[0].After != "Calling EFI Application from Boot Option" || apps[0].BeforeSeparator {
		t.Errorf("shim is %+v", apps[0])
	}
	texts := measuredTexts(t, l, 8)
	if !slices.Contains(texts, "linux /vmlinuz console=ttyS0 panic=-1 quiet") || slices.Contains(texts, "") {
		t.Errorf("GRUB's commands are %q", texts)
	}
	if texts := measuredTexts(t, l, 14); len(texts) != 3 || strings.Join(texts, "") != "" {
		t.Errorf("PCR 14 shows %q: the names beside its digests are not proved", texts)
	}
}

func measuredTexts(t *testing.T, l *Log, pcrs ...int) []string {
	t.Helper()
	all, err := l.Measurements("sha256", pcrs...)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, m := range all {
		texts = append(texts, m.Text)
	}
	return texts
}

// TestUnifiedKernelImage reads the project's own boot of a UKI. Both boots ran the
// same kernel and initrd, so GRUB's digests of the files are those of the sections.
func TestUnifiedKernelImage(t *testing.T) {
	data, quoted := localBoot(t, "uki-systemd-stub")
	l := mustParse(t, data)
	if err := l.Explain("sha256", quoted); err != nil {
		t.Fatal(err)
	}
	if claim := l.SecureBoot("sha256"); claim.State != Off {
		t.Errorf("secure boot is %v (%s)", claim.State, claim.Reason)
	}
	sections, err := l.UKISections("sha256")
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	var names []string
	for _, s := range sections {
		names = append(names, s.Name)
		got[s.Name] = hex.EncodeToString(s.Digest)
	}
	if want := []string{".linux", ".osrel", ".cmdline", ".initrd"}; !slices.Equal(names, want) {
		t.Fatalf("sections %v, wanted %v", names, want)
	}
	other, _ := localBoot(t, "secureboot-shim-grub")
	files, err := mustParse(t, other).Measurements("sha256", 9)
	if err != nil || len(files) != 3 {
		t.Fatalf("%d files, %v; wanted grub.cfg, kernel and initrd", len(files), err)
	}
	if k, i := hex.EncodeToString(files[1].Digest), hex.EncodeToString(files[2].Digest); got[".linux"] != k || got[".initrd"] != i {
		t.Errorf("kernel and initrd are %s and %s, GRUB read %s and %s", got[".linux"], got[".initrd"], k, i)
	}
	if sections, err := mustParse(t, other).UKISections("sha256"); err != nil || len(sections) != 0 {
		t.Errorf("a boot without a UKI shows %v, %v", sections, err)
	}
}

// TestSummaryJSON pins what the command line prints.
func TestSummaryJSON(t *testing.T) {
	image := bytes.Repeat([]byte{1}, 32)
	events := append(secureBootEvents(1),
		made{pcr: 4, typ: Separator, data: zero4},
		made{pcr: 4, typ: 0x80000003, data: []byte("a device path"), digest: image})
	l := mustParse(t, agile([]Algorithm{SHA256}, events...))
	pcrs := mustReplay(t, l, "sha256")
	s, err := l.Summary("sha256", pcrs)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	digest := SHA256.sum(image)
	want := `{"bank":"sha256","pcrs":{"4":"` + hex.EncodeToString(pcrs[4]) + `","7":"` + hex.EncodeToString(pcrs[7]) +
		`"},"events":5,"secureBoot":true,"bootApplications":["` + hex.EncodeToString(digest[:32]) + `"]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// A claim that is open is null; PCRs come in the order of numbers.
	l = mustParse(t, agile([]Algorithm{SHA256}, made{pcr: 10, data: zero4}, made{pcr: 4, data: zero4}, made{pcr: 4, data: zero4}))
	s, err = l.Summary("sha256", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	if text := string(got); !strings.Contains(text, `"secureBoot":null,"bootApplications":null`) || strings.Index(text, `"4":`) > strings.Index(text, `"10":`) {
		t.Errorf("got %s", got)
	}
}

// TestSummaryLeavesIMA: the kernel's PCR is not the firmware log's to explain, unless the
// log speaks of it. Explain makes no exception.
func TestSummaryLeavesIMA(t *testing.T) {
	data, quoted := localBoot(t, "uki-systemd-stub")
	l := mustParse(t, data)
	quoted[10] = bytes.Repeat([]byte{5}, 32)
	if _, err := l.Summary("sha256", quoted); err != nil {
		t.Error(err)
	}
	if err := l.Explain("sha256", quoted); err == nil {
		t.Error("Explain passed over PCR 10")
	}
	if _, err := l.Summary("sha256", PCRs{10: quoted[10]}); err == nil {
		t.Error("nothing but PCR 10 was expected, and that was enough")
	}
}

func TestDecodePCRs(t *testing.T) {
	good := []string{
		`{"0":"00ff","16":"0x0102"}`, `{"sha1":{"0":"aa"},"sha256":{"0":"00FF","16":"0102"}}`,
		`{"bank":"sha256","pcrs":{"0":"00ff","16":"0102"},"events":3,"secureBoot":null}`, `{"pcrs":{"0":"00ff","16":"0102"}}`,
		`{"other":{"0":"aa"},"rack-a":{"0":"00ff","16":"0102"}}`,
		"  sha1:\n    0 : 0xAA\n  sha256:\n    0 : 0x00FF\n    16: 0x0102\n", "sha256:\r\n0: 00ff\r\n16: 0102\r\n\r\nsha384:\r\n1: 00\r\n",
	}
	for _, text := range good {
		pcrs, err := DecodePCRs([]byte(text), "sha256", "rack-a")
		if err != nil || len(pcrs) != 2 || !bytes.Equal(pcrs[0], []byte{0, 0xff}) || !bytes.Equal(pcrs[16], []byte{1, 2}) {
			t.Errorf("%s: %v, %v", text, pcrs, err)
		}
	}
	bad := []string{
		``, `null`, `{}`, `[]`, `{"0":1}`, `{"0":"0"}`, `{"0":"xx"}`, `{"24":"00"}`, `{"-1":"00"}`, `{"01":"00"}`, `{"+1":"00"}`,
		`{"0":"00","0":"01"}`, `{"sha1":{"0":"00"}}`, `{"sha256":{}}`, `{"0":"00"}x`,
		`{"bank":"sha1","pcrs":{"0":"00"}}`, `{"bank":1,"pcrs":{"0":"00"}}`, `{"pcrs":{}}`, `{"pcrs":{"0":"00","0":"01"}}`, `{"rack-a":{"0":"00"}}`,
		"sha256:\n", "sha1:\n 0 : 0x00\n", "0 : 0x00\n", "sha256:\n 0 : 0x00\n 0 : 0x00\n", "sha256:\n 24: 0x00\n", "sha256:\n 0 : 0xzz\n",
		"sha256:\n 0 : 0x00\nsha256:\n 0 : 0x01\n", "sha256:\n 0 0x00\n",
	}
	for _, text := range bad {
		if pcrs, err := DecodePCRs([]byte(text), "sha256"); err == nil {
			t.Errorf("%s: accepted as %v", text, pcrs)
		}
	}
}
