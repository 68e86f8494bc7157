package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

// oneLineRefusal wants exit code 1, nothing on standard output, and one line.
func oneLineRefusal(t *testing.T, reason string, args ...string) {
	t.Helper()
	code, out, errs := runHere(args...)
	first, rest, _ := strings.Cut(errs, "\n")
	if code != ui.ExitRefused || out != "" || !strings.HasPrefix(first, "keyturn: ") || !strings.Contains(first, reason) || (rest != "" && !strings.HasPrefix(rest, "hint: ")) {
		t.Fatalf("keyturn %s: exit %d, %q, %q; want 1 and one line with %q", strings.Join(args, " "), code, out, errs, reason)
	}
}

// members are the names in a JSON object, sorted.
func members(t *testing.T, object string) []string {
	t.Helper()
	var all map[string]json.RawMessage
	if err := json.Unmarshal([]byte(object), &all); err != nil {
		t.Fatalf("%q: %v", object, err)
	}
	return slices.Sorted(maps.Keys(all))
}

// The shapes that other programs read do not change.
func TestAttestJSONShapes(t *testing.T) {
	dir := testData(t)
	code, out, errs := runHere("attest", "eventlog", filepath.Join(dir, "uefi", "rhel8-uefi.bin"), "--json")
	if code != 0 || !slices.Equal(members(t, out), []string{"bank", "bootApplications", "events", "pcrs", "secureBoot"}) {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	if !strings.Contains(out, `"secureBoot":true`) || !strings.Contains(out, `"bank":"sha256"`) || strings.Count(out, "\n") != 1 {
		t.Errorf("%s", out)
	}
	_, out, _ = runHere("attest", "eventlog", filepath.Join(dir, "attack", "unknown-type-pcr7.bin"), "--json")
	if !strings.Contains(out, `"secureBoot":null`) {
		t.Errorf("%s", out)
	}
	code, out, errs = runHere("attest", "ima", filepath.Join(dir, "local-boot", "uki-systemd-stub.ima"), "--json")
	if code != 0 || !slices.Equal(members(t, out), []string{"bootAggregate", "entries", "pcrs", "template", "violations"}) {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
}

// Every recorded log says of secure boot what its source says, in each bank.
func TestAttestSecureBootCases(t *testing.T) {
	dir, cases := attestCases(t)
	n := 0
	for _, c := range cases {
		if c.Expect.SecureBoot == nil {
			continue
		}
		banks := slices.Sorted(maps.Keys(c.Expect.PCRs))
		if len(banks) == 0 {
			banks = []string{"sha256"}
		}
		for _, bank := range banks {
			n++
			code, out, errs := runHere("attest", "eventlog", filepath.Join(dir, c.File), "--bank", bank, "--json")
			if want := `"secureBoot":` + strconv.FormatBool(*c.Expect.SecureBoot); code != 0 || !strings.Contains(out, want) {
				t.Errorf("%s %s: exit %d %s; want %s", c.File, bank, code, errs, want)
			}
		}
	}
	if n < 4 {
		t.Fatalf("%d answers in the data, want more", n)
	}
}

// A log without the bank is refused, and the refusal names those it has.
func TestAttestMissingBank(t *testing.T) {
	dir := testData(t)
	for _, name := range []string{"debian-10.bin", "event-uefi-sha1-log.bin", "windows_gcp_shielded_vm.bin", "short_no_action_eventlog"} {
		file := filepath.Join(dir, "uefi", name)
		oneLineRefusal(t, "it has sha1", "attest", "eventlog", file)
		if code, out, errs := runHere("attest", "eventlog", file, "--bank", "sha1", "--json"); code != 0 || !strings.Contains(out, `"bank":"sha1"`) {
			t.Errorf("%s: exit %d: %s", name, code, errs)
		}
	}
	oneLineRefusal(t, "no such file", "attest", "eventlog", filepath.Join(dir, "nothing"))
}

// What --json printed, and a file with the values of several machines, can be
// expected later.
func TestAttestExpectForms(t *testing.T) {
	dir := filepath.Join(testData(t), "local-boot")
	uki, shim := filepath.Join(dir, "uki-systemd-stub.bios"), filepath.Join(dir, "secureboot-shim-grub.bios")
	for _, file := range []string{uki, shim} {
		if code, _, errs := runHere("attest", "eventlog", file, "--expect", filepath.Join(dir, "expected-sha256.json")); code != 0 {
			t.Errorf("%s: %s", file, errs)
		}
	}
	_, out, _ := runHere("attest", "eventlog", uki, "--json")
	earlier := filepath.Join(t.TempDir(), "earlier.json")
	if err := os.WriteFile(earlier, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := runHere("attest", "eventlog", uki, "--expect", earlier); code != 0 {
		t.Error(errs)
	}
	oneLineRefusal(t, "is not explained", "attest", "eventlog", shim, "--expect", earlier)
	oneLineRefusal(t, "no bank", "attest", "eventlog", filepath.Join(dir, "..", "uefi", "rhel8-uefi.bin"), "--expect", filepath.Join(dir, "expected-sha256.json"))
}

// A directory of roots may hold PEM and DER, several certificates in one file as a
// TPM keeps its chain, and files that are none.
func TestAttestEKRoots(t *testing.T) {
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	issue := func(c, parent *x509.Certificate, public any, by *ecdsa.PrivateKey) []byte {
		c.SerialNumber, c.NotBefore, c.NotAfter, c.BasicConstraintsValid = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0), true
		der, err := x509.CreateCertificate(rand.Reader, c, parent, public, by)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	rootKey, midKey, lastKey := key(), key(), key()
	root := &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	middle := &x509.Certificate{Subject: pkix.Name{CommonName: "middle"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	last := &x509.Certificate{Subject: pkix.Name{CommonName: "last"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER, middleDER, lastDER := issue(root, root, rootKey.Public(), rootKey), issue(middle, root, midKey.Public(), rootKey), issue(last, middle, lastKey.Public(), midKey)
	name := pkix.RDNSequence{{{Type: []int{2, 23, 133, 2, 1}, Value: "id:4B455954"}}, {{Type: []int{2, 23, 133, 2, 2}, Value: "M1"}}, {{Type: []int{2, 23, 133, 2, 3}, Value: "id:1"}}}
	rdn, err := asn1.Marshal(name)
	if err != nil {
		t.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: rdn}})
	if err != nil {
		t.Fatal(err)
	}
	ek := issue(&x509.Certificate{
		KeyUsage: x509.KeyUsageKeyAgreement, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 17}, Critical: true, Value: san}},
	}, last, key().Public(), lastKey)
	dir := t.TempDir()
	put := func(name string, b []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	file := filepath.Join(t.TempDir(), "ek.bin")
	if err := os.WriteFile(file, append(ek, bytes.Repeat([]byte{0xff}, 200)...), 0o600); err != nil {
		t.Fatal(err)
	}
	put("chain.bin", append(middleDER, lastDER...))
	oneLineRefusal(t, "no root certificate", "attest", "ekcert", file, "--roots", dir)
	put("root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}))
	accepted(t, []string{"attest", "ekcert", file, "--roots", dir, "--json"}, `"chainChecked":true`, `"key":"ECC P-384"`)
	accepted(t, []string{"attest", "roots", dir, "--json"}, `"file":"root.pem","subject":"CN=root"`, `"maker":"","use":"root"`, `"file":"chain.bin","subject":"CN=last"`, `"use":"intermediate"`)
	accepted(t, []string{"attest", "roots", dir}, "NOT KNOWN", "CN=middle")
	put("README", []byte("certificates of makers"))
	code, _, errs := runHere("attest", "ekcert", file, "--roots", dir)
	if code != 0 || !strings.Contains(errs, `passed over "README"`) {
		t.Errorf("exit %d: %s", code, errs)
	}
	if err := os.Remove(filepath.Join(dir, "chain.bin")); err != nil {
		t.Fatal(err)
	}
	put("chain.bin", lastDER)
	code, out, errs := runHere("attest", "ekcert", file, "--roots", dir)
	if code != ui.ExitRefused || out != "" || !strings.Contains(errs, "unknown authority") {
		t.Errorf("a broken chain: exit %d: %s", code, errs)
	}
}

// A word that names no hash is wrong usage.
func TestAttestUnknownHash(t *testing.T) {
	for _, args := range [][]string{{"eventlog", "x", "--bank", "md5"}, {"ima", "x", "--template-hash", "crc32"}, {"eventlog", "x", "--bank", ""}} {
		code, out, errs := runHere(append([]string{"attest"}, args...)...)
		if code != ui.ExitUsage || out != "" || !strings.Contains(errs, "sha1, sha256, sha384 or sha512") {
			t.Errorf("%q: exit %d: %s", args, code, errs)
		}
	}
}

// quoteFiles writes a quote's parts where the command can read them.
func quoteFiles(t *testing.T, parts map[string][]byte) []string {
	t.Helper()
	dir, args := t.TempDir(), []string{"attest", "quote", "--json"}
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, parts[name], 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--"+name, file)
	}
	return args
}

func decodeFile(t *testing.T, v any, path ...string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// rsaSignature frames a bare RSASSA signature with SHA-256 as TPMs do.
func rsaSignature(raw []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0, 0x14, 0, 0x0b}, uint16(len(raw))), raw...)
}

func accepted(t *testing.T, args []string, want ...string) {
	t.Helper()
	code, out, errs := runHere(args...)
	for _, w := range want {
		if code != 0 || !strings.Contains(out, w) {
			t.Fatalf("exit %d: %s%s; want %s", code, out, errs, w)
		}
	}
}

// Quotes of other people's machines.
func TestAttestQuoteCases(t *testing.T) {
	dir := filepath.Join(testData(t), "quote")
	t.Run("az-cvm", func(t *testing.T) {
		b, err := os.ReadFile(filepath.Join(dir, "az-cvm_quote.bin"))
		if err != nil {
			t.Fatal(err)
		}
		ak, err := os.ReadFile(filepath.Join(dir, "az-cvm_akpub.pem"))
		if err != nil {
			t.Fatal(err)
		}
		next := func() []byte {
			n := int(binary.LittleEndian.Uint64(b))
			v := b[8:][:n]
			b = b[8+n:]
			return v
		}
		sig, quote := next(), next()
		pcrs := b[8:][:24*32] // a count, and the values
		parts := map[string][]byte{"quote": quote, "sig": rsaSignature(sig), "ak": ak, "nonce": []byte("challenge"), "pcrs": pcrs}
		accepted(t, quoteFiles(t, parts), `"nonceChecked":true`, `"pcrsChecked":true`, `"RSASSA 2048"`)
		parts["nonce"] = []byte("another")
		oneLineRefusal(t, "the nonce is", quoteFiles(t, parts)...)
	})
	t.Run("az-snp", func(t *testing.T) {
		var d struct {
			Report string `json:"hcl_report"` // base64url
			Quote  struct {
				Message, Signature string
				PCRs               []string
			} `json:"tpm_quote"`
		}
		decodeFile(t, &d, dir, "az-snp-vtpm_evidence-v1.json")
		report, err := base64.URLEncoding.DecodeString(d.Report)
		if err != nil {
			t.Fatal(err)
		}
		pcrs := map[string]string{}
		for i, v := range d.Quote.PCRs {
			pcrs[strconv.Itoa(i)] = v
		}
		values, err := json.Marshal(map[string]any{"pcrs": pcrs})
		if err != nil {
			t.Fatal(err)
		}
		message, sig := unhex(t, d.Quote.Message), rsaSignature(unhex(t, d.Quote.Signature))
		parts := map[string][]byte{"quote": message, "sig": sig, "ak": jwkOf(t, report, "HCLAkPub"), "nonce": []byte("challenge"), "pcrs": values}
		accepted(t, quoteFiles(t, parts), `"nonceChecked":true`, `"pcrsChecked":true`)
		parts["quote"] = bytes.Replace(message, []byte("challenge"), []byte("challengf"), 1)
		parts["nonce"] = []byte("challengf")
		oneLineRefusal(t, "does not verify", quoteFiles(t, parts)...)
	})
	t.Run("windows", func(t *testing.T) {
		var d struct {
			AK    struct{ Public []byte }
			Quote struct{ Quote, Signature []byte }
		}
		decodeFile(t, &d, dir, "windows_gcp_shielded_vm.json")
		oneLineRefusal(t, "SHA-1", quoteFiles(t, map[string][]byte{"quote": d.Quote.Quote, "sig": d.Quote.Signature, "ak": d.AK.Public})...)
	})
	t.Run("trustee", func(t *testing.T) {
		var d struct {
			Public []byte                              `json:"ak_public"`
			Quote  struct{ Message, Signature []byte } `json:"tpm_quote"`
		}
		decodeFile(t, &d, dir, "trustee_tpm_evidence.json")
		ak := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: d.Public})
		oneLineRefusal(t, "no measured boot", quoteFiles(t, map[string][]byte{"quote": d.Quote.Message, "sig": d.Quote.Signature, "ak": ak})...)
	})
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// jwkOf takes an RSA key from the JSON web keys that end a report.
func jwkOf(t *testing.T, report []byte, kid string) []byte {
	t.Helper()
	var d struct {
		Keys []struct{ Kid, N, E string }
	}
	begin := bytes.Index(report, []byte(`{"keys"`))
	if begin < 0 {
		t.Fatal("the report has no keys")
	}
	if err := json.NewDecoder(bytes.NewReader(report[begin:])).Decode(&d); err != nil {
		t.Fatal(err)
	}
	for _, k := range d.Keys {
		if k.Kid != kid {
			continue
		}
		n, err := base64.RawURLEncoding.DecodeString(k.N)
		if err != nil {
			t.Fatal(err)
		}
		e, err := base64.RawURLEncoding.DecodeString(k.E)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())})
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}
	t.Fatalf("the report has no key %s", kid)
	return nil
}

// The files that tpm2-tools write, in their default forms, from a TPM emulator.
func TestAttestQuoteOfTPM2Tools(t *testing.T) {
	if _, err := exec.LookPath("tpm2_quote"); err != nil {
		t.Skip("tpm2-tools are not installed")
	}
	e := swtpm.New(t)
	dir := t.TempDir()
	tool := func(args ...string) {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(e.Path, "unix:"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	digest := sha256.Sum256([]byte("kernel"))
	tool("tpm2_pcrextend", "4:sha256="+hex.EncodeToString(digest[:]))
	tool("tpm2_createek", "-c", "ek.ctx", "-G", "ecc", "-u", "ek.pub")
	tool("tpm2_flushcontext", "-t")
	tool("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-u", "ak.pub")
	tool("tpm2_flushcontext", "-t")
	tool("tpm2_readpublic", "-c", "ak.ctx", "-f", "pem", "-o", "ak.pem")
	tool("tpm2_flushcontext", "-t")
	if err := os.WriteFile(filepath.Join(dir, "nonce"), []byte("0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	tool("tpm2_quote", "-c", "ak.ctx", "-l", "sha256:0,1,2,3,4,5,6,7,10", "-q", "nonce", "-m", "quote", "-s", "sig", "-o", "pcrs", "-g", "sha256")
	for _, ak := range []string{"ak.pub", "ak.pem"} {
		args := []string{"attest", "quote", "--json"}
		for _, part := range []string{"quote", "sig", "nonce", "pcrs"} {
			args = append(args, "--"+part, filepath.Join(dir, part))
		}
		args = append(args, "--ak", filepath.Join(dir, ak))
		accepted(t, args, `"pcrsChecked":true`, `"nonceChecked":true`, `"attributesChecked":`+strconv.FormatBool(ak == "ak.pub"))
	}
}
