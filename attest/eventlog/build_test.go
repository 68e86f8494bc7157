package eventlog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"unicode/utf16"
)

// A made event is what tests build logs from.
type made struct {
	pcr    uint32
	typ    Type
	data   []byte
	digest []byte // hashed from this, data if nil
}

var zero4 = []byte{0, 0, 0, 0}

func le32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }

// specID returns the data of a Spec ID event.
func specID(algs ...Algorithm) []byte {
	b := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	b = le32(b, uint32(len(algs)))
	for _, a := range algs {
		b = binary.LittleEndian.AppendUint16(b, uint16(a))
		b = binary.LittleEndian.AppendUint16(b, uint16(a.size()))
	}
	return append(b, 0)
}

// header returns a SHA-1 format EV_NO_ACTION event, as every agile log begins.
func header(data []byte) []byte {
	b := le32(make([]byte, 4, 64), uint32(NoAction))
	b = append(b, make([]byte, 20)...)
	return append(le32(b, uint32(len(data))), data...)
}

// agile returns a log in the crypto-agile format.
func agile(algs []Algorithm, events ...made) []byte {
	b := header(specID(algs...))
	for _, e := range events {
		b = append(b, e.agile(algs)...)
	}
	return b
}

func (e made) agile(algs []Algorithm) []byte {
	b := le32(le32(le32(nil, e.pcr), uint32(e.typ)), uint32(len(algs)))
	for _, a := range algs {
		sum := a.sum(e.measured())
		b = binary.LittleEndian.AppendUint16(b, uint16(a))
		b = append(b, sum[:a.size()]...)
	}
	return append(le32(b, uint32(len(e.data))), e.data...)
}

// legacy returns a log in the SHA-1 format.
func legacy(events ...made) []byte {
	var b []byte
	for _, e := range events {
		sum := SHA1.sum(e.measured())
		b = append(le32(le32(b, e.pcr), uint32(e.typ)), sum[:20]...)
		b = append(le32(b, uint32(len(e.data))), e.data...)
	}
	return b
}

func (e made) measured() []byte {
	if e.digest != nil {
		return e.digest
	}
	return e.data
}

// variable returns a UEFI_VARIABLE_DATA.
func variable(vendor, name string, data []byte) []byte {
	h, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(vendor), []byte("-"), nil)))
	if err != nil {
		panic(err)
	}
	slices.Reverse(h[:4])
	slices.Reverse(h[4:6])
	slices.Reverse(h[6:8])
	units := utf16.Encode([]rune(name))
	b := binary.LittleEndian.AppendUint64(h, uint64(len(units)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	for _, u := range units {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, data...)
}

// signatureList returns an EFI_SIGNATURE_LIST with the sizes it is told.
func signatureList(list, header, size uint32, body []byte) []byte {
	b := bytes.Repeat([]byte{0x26}, 16)
	return append(le32(le32(le32(b, list), header), size), body...)
}

// secureBootEvents is the least that PCR 7 holds.
func secureBootEvents(value ...byte) []made {
	return []made{
		{pcr: 7, typ: EFIDriverConfig, data: variable(globalVariable, "SecureBoot", value)},
		{pcr: 7, typ: EFIDriverConfig, data: variable(globalVariable, "PK", nil)},
		{pcr: 7, typ: Separator, data: zero4},
	}
}

func mustParse(t testing.TB, data []byte) *Log {
	t.Helper()
	l, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustReplay(t testing.TB, l *Log, bank string) PCRs {
	t.Helper()
	pcrs, err := l.Replay(bank)
	if err != nil {
		t.Fatal(err)
	}
	return pcrs
}

// localBoot returns a log of the project's own boots and the PCRs that its TPM
// quoted, without PCR 10, which belongs to the kernel.
func localBoot(t testing.TB, name string) ([]byte, PCRs) {
	t.Helper()
	dir := filepath.Join("..", "testdata", "local-boot")
	log, err := os.ReadFile(filepath.Join(dir, name+".bios"))
	if err != nil {
		t.Fatal(err)
	}
	expected, err := os.ReadFile(filepath.Join(dir, "expected-sha256.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]map[string]string
	if err := json.Unmarshal(expected, &all); err != nil {
		t.Fatal(err)
	}
	pcrs := decode(t, all[name])
	delete(pcrs, pcrIMA)
	return log, pcrs
}

func decode(t testing.TB, values map[string]string) PCRs {
	t.Helper()
	pcrs := make(PCRs)
	for index, value := range values {
		pcr, err := strconv.Atoi(index)
		if err != nil {
			t.Fatal(err)
		}
		if pcrs[pcr], err = hex.DecodeString(value); err != nil {
			t.Fatal(err)
		}
	}
	return pcrs
}

// fetched returns the folder of public logs, which are not the project's to commit.
func fetched(t testing.TB) string {
	t.Helper()
	dir := filepath.Join("..", "..", "..", "shared", "testdata", "attest")
	if root := os.Getenv("KEYTURN_TESTDATA"); root != "" {
		dir = filepath.Join(root, "attest")
	}
	if _, err := os.Stat(filepath.Join(dir, "cases.json")); err != nil {
		t.Skipf("no public attestation logs: %v (set KEYTURN_TESTDATA to the folder that holds attest/cases.json)", err)
	}
	return dir
}
