package ima

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"
)

var sum32 = [32]byte{1, 2, 3}

// everyTemplate has an entry of each.
func everyTemplate() []made {
	sha := digestNG("sha256", sum32[:])
	name := []byte("/usr/bin/true\x00")
	owner, mode := []byte{1, 0, 0, 0}, []byte{0xed, 0x81}
	buf := []byte("root=/dev/sda1 quiet")
	bufSum := sha256Hash.sum(buf)
	return []made{
		{pcr: PCR, template: "ima", fields: [][]byte{sum32[:20], []byte("/sbin/init")}},
		{pcr: PCR, template: "ima-ng", fields: [][]byte{digestNG("sha1", sum32[:20]), name}},
		{pcr: PCR, template: "ima-sig", fields: [][]byte{sha, name, {3, 2, 4, 0, 0, 0, 0, 0, 1, 9}}},
		{pcr: PCR, template: "ima-sig", fields: [][]byte{sha, name, nil}},
		{pcr: PCR, template: "ima-ngv2", fields: [][]byte{append([]byte("ima:"), sha...), name}},
		{pcr: PCR, template: "ima-sigv2", fields: [][]byte{append([]byte("verity:"), sha...), name, nil}},
		{pcr: PCR, template: "ima-buf", fields: [][]byte{digestNG("sha256", bufSum[:32]), []byte("kexec-cmdline\x00"), buf}},
		{pcr: PCR, template: "ima-modsig", fields: [][]byte{sha, name, nil, sha, {0x30, 0x82}}},
		{pcr: PCR, template: "ima-modsig", fields: [][]byte{sha, name, {3}, nil, nil}},
		{pcr: PCR, template: "evm-sig", fields: [][]byte{sha, name, {5, 2}, []byte("security.ima\x00"), {1, 0, 0, 0}, {4}, owner, owner, mode}},
		{pcr: PCR, template: "d-ng|n-ng|iuid", fields: [][]byte{sha, name, owner}},
		{pcr: PCR, template: "ima-ng", fields: [][]byte{digestNG("sha512", make([]byte, 64)), name}, violation: true},
		{pcr: PCR, template: "ima-ng", fields: [][]byte{digestNG("sha256", make([]byte, 20)), name}, violation: true},
		{pcr: 11, template: "ima-ng", fields: [][]byte{digestNG("sm3", sum32[:]), name}},
	}
}

// TestEveryTemplate reads each template from both formats, with each size of template
// digest, to the same entries.
func TestEveryTemplate(t *testing.T) {
	for _, h := range hashes {
		entries := everyTemplate()
		for i := range entries {
			entries[i].hash = h
		}
		for format, list := range map[string][]byte{"binary": binaryList(entries...), "ASCII": asciiList(entries...)} {
			l, err := Parse(list)
			if err != nil || len(l.Entries) != len(entries) {
				t.Fatalf("%s with %s: %v", format, h.name, err)
			}
			end := 0
			for i, e := range l.Entries {
				checkEntry(t, &e, entries[i])
				if e.Offset != end {
					t.Errorf("%s: entry %d is at %d, wanted %d", format, i, e.Offset, end)
				}
				end += e.Size
			}
			if end != len(list) {
				t.Errorf("%s: entries end at %d of %d", format, end, len(list))
			}
		}
	}
}

func checkEntry(t *testing.T, e *Entry, m made) {
	t.Helper()
	if e.PCR != int(m.pcr) || e.Template != m.template || e.Violation != m.violation || !bytes.Equal(e.Digest, m.digest()) {
		t.Errorf("got %+v, wanted %+v", e, m)
	}
	if want := strings.TrimSuffix(string(m.fields[1]), "\x00"); e.Path() != want {
		t.Errorf("%s: path %q, wanted %q", m.template, e.Path(), want)
	}
	if !bytes.HasSuffix(m.fields[0], e.FileDigest) || e.Verity != bytes.HasPrefix(m.fields[0], []byte("verity:")) {
		t.Errorf("%s: file digest %s:%x, verity %v", m.template, e.Algorithm, e.FileDigest, e.Verity)
	}
	switch m.template {
	case "ima-sig", "ima-sigv2", "ima-modsig":
		if !bytes.Equal(e.Signature, m.fields[2]) {
			t.Errorf("%s: signature %x", m.template, e.Signature)
		}
	case "ima-buf":
		if !bytes.Equal(e.Buffer, m.fields[2]) {
			t.Errorf("buffer %q", e.Buffer)
		}
	case legacy:
		return
	}
	if !bytes.Equal(e.Data, m.data()) {
		t.Errorf("%s: template data %x, wanted %x", m.template, e.Data, m.data())
	}
}

// TestRefuse has one fault in each second entry.
func TestRefuse(t *testing.T) {
	good := file("/bin/a", sum32, nil)
	change := func(f func(*made)) []byte {
		m := made{pcr: PCR, template: good.template, fields: slices.Clone(good.fields)}
		f(&m)
		return append(good.binary(), m.binary()...)
	}
	field := func(i int, v string) []byte { return change(func(m *made) { m.fields[i] = []byte(v) }) }
	edit := func(f func([]byte)) []byte {
		b := good.binary()
		f(b)
		return append(good.binary(), b...)
	}
	line := func(s string) []byte { return append(good.ascii(), s+"\n"...) }
	tests := []struct {
		name   string
		list   []byte
		reason string
	}{
		{"PCR 24", change(func(m *made) { m.pcr = 24 }), "PCR 24"},
		{"PCR 2^32-1", change(func(m *made) { m.pcr = 1<<32 - 1 }), "PCR 4294967295"},
		{"big-endian", change(func(m *made) { m.pcr = 10 << 24 }), "big-endian; the kernel parameter ima_canonical_fmt"},
		{"zeros for a digest", field(0, "sha256:\x00"+string(make([]byte, 20))), "20 bytes"},
		{"violation with a short digest", change(func(m *made) { m.violation, m.fields[0] = true, []byte("sha256:\x00\x01") }), "1 bytes"},
		{"template digest", edit(func(b []byte) { b[4] ^= 1 }), "not that of the template data"},
		{"template unknown", change(func(m *made) { m.template = "ima-xx" }), "not one that is known"},
		{"template of 2^32-1 bytes", edit(func(b []byte) { binary.LittleEndian.PutUint32(b[24:], 1<<32-1) }), "more than"},
		{"field unknown", change(func(m *made) { m.template = "d-ng|n-ng|x" }), "field \"x\""},
		{"field twice", change(func(m *made) { m.template = "d-ng|n-ng|n-ng" }), "twice"},
		{"field missing", change(func(m *made) { m.fields = m.fields[:2] }), "ends before field sig"},
		{"field too many", change(func(m *made) { m.fields = append(m.fields, nil) }), "4 bytes follow"},
		{"algorithm unknown", field(0, "unknown:\x00xx"), "algorithm \"unknown\""},
		{"algorithm empty", field(0, ":\x00xx"), "algorithm \"\""},
		{"algorithm missing", field(0, string(sum32[:])), "no algorithm"},
		{"digest short", field(0, "sha256:\x00"+string(sum32[:31])), "31 bytes"},
		{"digest long", field(0, "sha1:\x00"+string(sum32[:21])), "21 bytes"},
		{"digest type unknown", change(func(m *made) { m.template, m.fields[0] = "ima-sigv2", append([]byte("x:"), m.fields[0]...) }), "neither ima nor verity"},
		{"name without zero", field(1, "/bin/a"), "only zero byte"},
		{"zero in name", field(1, "/bin\x00a\x00"), "only zero byte"},
		{"no name", field(1, ""), "only zero byte"},
		{"line of three fields", line("10 00 ima-ng"), "fewer than four"},
		{"empty line", line(""), "fewer than four"},
		{"zero byte in a line", line("10 00 ima-ng sha1:00 /\x00"), "zero byte"},
		{"PCR not a number", line("x 00 ima-ng sha1:00 /"), "want a number"},
		{"PCR -1", line("-1 00 ima-ng sha1:00 /"), "want a number"},
		{"template digest not hex", line("10 zz ima-ng sha1:00 /"), "template digest"},
		{"template digest of 32 bytes", line("10 " + strings.Repeat("ab", 32) + " ima-ng sha1:00 /"), "wanted 20"},
		{"a field more", line(strings.TrimSpace(string(good.ascii())) + " 00 00"), "follows the last field"},
		{"a field fewer", line("10 " + strings.Repeat("00", 20) + " ima-ng sha1:00"), "ends after field"},
		{"file digest not hex", line("10 " + strings.Repeat("00", 20) + " ima-ng sha1:xx /"), "d-ng"},
		{"short digest of ima", line("10 " + strings.Repeat("00", 20) + " ima 00 /"), "40 hex digits"},
		{"short line", line("10 " + strings.Repeat("ab", 20) + " ima-sig sha256:00 /bin/a"), "1 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(tt.list)
			var refused *ListError
			if !errors.As(err, &refused) || refused.Truncated || !strings.Contains(err.Error(), tt.reason) {
				t.Fatalf("got %v, wanted %q", err, tt.reason)
			}
			if len(tt.list) > 0 && refused.Entries != 1 {
				t.Errorf("%d entries were good, wanted 1", refused.Entries)
			}
		})
	}
	if _, err := Parse(make([]byte, maxList+1)); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too long: %v", err)
	}
}

// TestTruncated cuts lists everywhere: behind an entry they are shorter lists, and
// elsewhere they are refused with the number of entries that are whole.
func TestTruncated(t *testing.T) {
	entries := append(samples(3), everyTemplate()...)
	for format, encode := range map[string]func(made) []byte{"binary": made.binary, "ASCII": made.ascii} {
		var list []byte
		var ends []int
		for _, e := range entries {
			list = append(list, encode(e)...)
			ends = append(ends, len(list))
		}
		for cut := 1; cut < len(list); cut++ {
			whole, boundary := slices.BinarySearch(ends, cut)
			if boundary {
				whole++
			}
			l, err := Parse(list[:cut])
			if boundary {
				if err != nil || len(l.Entries) != whole {
					t.Fatalf("%s cut at %d, behind entry %d: %v", format, cut, whole, err)
				}
				continue
			}
			if err == nil && format == "ASCII" && len(l.Entries) == whole+1 {
				continue // only the end of the line, or an empty last field's space, is missing
			}
			var refused *ListError
			if !errors.As(err, &refused) || !refused.Truncated || refused.Entries != whole {
				t.Fatalf("%s cut at %d in entry %d: %v", format, cut, whole, err)
			}
		}
	}
}

// TestFormatsAgree draws lists and writes them in both formats.
func TestFormatsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := drawEntries(t)
		b, err := Parse(binaryList(entries...))
		if err != nil {
			t.Fatal(err)
		}
		a, err := Parse(asciiList(entries...))
		if err != nil {
			t.Fatal(err)
		}
		for i := range entries {
			x, y := b.Entries[i], a.Entries[i]
			if !bytes.Equal(x.Data, y.Data) || !bytes.Equal(x.Digest, y.Digest) || x.String() != y.String() || !bytes.Equal(x.Signature, y.Signature) {
				t.Fatalf("entry %d: %+v and %+v", i, x, y)
			}
		}
	})
}

func drawEntries(t *rapid.T) []made {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) made {
		path := rapid.StringMatching(`/[!-~]{0,30}`).Draw(t, "path")
		digest := [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "digest"))
		m := file(path, digest, rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "signature"))
		m.violation = rapid.IntRange(0, 9).Draw(t, "violation") == 0
		if rapid.Bool().Draw(t, "legacy") {
			m.template, m.fields = legacy, [][]byte{digest[:20], []byte(path)}
		}
		return m
	}), 1, 12).Draw(t, "entries")
}

// TestSummaryJSON pins what the command line prints.
func TestSummaryJSON(t *testing.T) {
	list, _ := localBoot(t, "secureboot-shim-grub")
	l, err := Parse(list)
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Summary("sha256")
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"template":"ima-sig","entries":6,"violations":0,"pcrs":{"10":"972ab920643af169ebbef8d16ffe6088cdff60bc685434e4ed32d849ab18c4a0"},` +
		`"bootAggregate":"sha256:dd7ef8bde835956ba172ab814e351d2e3de06c4aa2c101c17a7e052d74154a36"}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	l, err = Parse(binaryList(everyTemplate()...))
	if err != nil {
		t.Fatal(err)
	}
	if s, err = l.Summary("sha1"); err != nil || s.Violations != 2 || len(s.PCRs) != 2 || s.BootAggregate != "" {
		t.Errorf("got %+v, %v", s, err)
	}
	if _, err := l.Summary("md5"); err == nil {
		t.Error("an md5 bank was replayed")
	}
}
