package ima

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A made entry is what tests build lists from.
type made struct {
	pcr       uint32
	template  string
	fields    [][]byte // as in the template data, without lengths
	violation bool
	hash      hash // of the template digest, SHA-1 if empty
}

func digestNG(algorithm string, digest []byte) []byte {
	return append([]byte(algorithm+":\x00"), digest...)
}

// file returns an ima-sig entry.
func file(path string, digest [32]byte, sig []byte) made {
	return made{pcr: PCR, template: "ima-sig", fields: [][]byte{digestNG("sha256", digest[:]), []byte(path + "\x00"), sig}}
}

// data returns the template data.
func (m made) data() []byte {
	var b []byte
	for _, f := range m.fields {
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return b
}

// digest returns the listed template digest.
func (m made) digest() []byte {
	h := m.hash
	if h.size == 0 {
		h = hashes[0]
	}
	out := make([]byte, h.size)
	if m.violation {
		return out
	}
	input := m.data()
	if m.template == legacy {
		input = make([]byte, 20+256)
		copy(input, m.fields[0])
		copy(input[20:], m.fields[1])
	}
	sum := h.sum(input)
	copy(out, sum[:])
	return out
}

// binary returns the entry as the binary list has it.
func (m made) binary() []byte {
	b := binary.LittleEndian.AppendUint32(nil, m.pcr)
	b = append(b, m.digest()...)
	b = appendPrefixed(b, []byte(m.template))
	if m.template == legacy {
		return appendPrefixed(append(b, m.fields[0]...), m.fields[1])
	}
	return appendPrefixed(b, m.data())
}

// ascii returns the entry as the ASCII list has it.
func (m made) ascii() []byte {
	t, err := findTemplate([]byte(m.template))
	if err != nil {
		panic(err)
	}
	parts := []string{strconv.Itoa(int(m.pcr)), hex.EncodeToString(m.digest()), m.template}
	for i, f := range t.fields {
		v := m.fields[i]
		switch f {
		case fieldDigestNG, fieldDigestV2, fieldModDig:
			i := bytes.IndexByte(v, 0)
			parts = append(parts, string(v[:max(i, 0)])+hex.EncodeToString(v[i+1:]))
		case fieldName, fieldNameNG, fieldXNames:
			parts = append(parts, strings.TrimSuffix(string(v), "\x00"))
		case fieldUID, fieldGID:
			parts = append(parts, fmt.Sprint(binary.LittleEndian.Uint32(v)))
		case fieldMode:
			parts = append(parts, fmt.Sprint(binary.LittleEndian.Uint16(v)))
		default:
			parts = append(parts, hex.EncodeToString(v))
		}
	}
	return []byte(strings.Join(parts, " ") + "\n")
}

func binaryList(entries ...made) []byte {
	var b []byte
	for _, e := range entries {
		b = append(b, e.binary()...)
	}
	return b
}

func asciiList(entries ...made) []byte {
	var b []byte
	for _, e := range entries {
		b = append(b, e.ascii()...)
	}
	return b
}

// extended is the definition of PCR 10's value after the entries, written again.
func extended(h hash, entries ...made) []byte {
	pcr := make([]byte, h.size)
	for _, e := range entries {
		digest := bytes.Repeat([]byte{0xff}, h.size)
		if !e.violation {
			e.hash = h
			digest = e.digest()
		}
		sum := h.sum(append(bytes.Clone(pcr), digest...))
		pcr = sum[:h.size]
	}
	return pcr
}

var sha256Hash = hashes[1]

func samples(n int) []made {
	var all []made
	for i := range n {
		all = append(all, file(fmt.Sprintf("/usr/bin/tool%d", i), [32]byte{byte(i), 1}, nil))
	}
	return all
}

// localBoot returns a list of the project's own boots and the PCRs that were quoted.
func localBoot(t testing.TB, name string) ([]byte, map[int][]byte) {
	t.Helper()
	dir := filepath.Join("..", "testdata", "local-boot")
	list, err := os.ReadFile(filepath.Join(dir, name+".ima"))
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
	pcrs := make(map[int][]byte)
	for index, value := range all[name] {
		pcr, err := strconv.Atoi(index)
		if err != nil {
			t.Fatal(err)
		}
		if pcrs[pcr], err = hex.DecodeString(value); err != nil {
			t.Fatal(err)
		}
	}
	return list, pcrs
}

// fetched returns the folder of public lists, which are not the project's to commit.
func fetched(t testing.TB) string {
	t.Helper()
	dir := filepath.Join("..", "..", "..", "shared", "testdata", "attest")
	if root := os.Getenv("KEYTURN_TESTDATA"); root != "" {
		dir = filepath.Join(root, "attest")
	}
	if _, err := os.Stat(filepath.Join(dir, "cases.json")); err != nil {
		t.Skipf("no public measurement lists: %v (set KEYTURN_TESTDATA to the folder that holds attest/cases.json)", err)
	}
	return dir
}

func sha1Of(b []byte) []byte {
	sum := sha1.Sum(b)
	return sum[:]
}
