package weights

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// zeros gives the digests of the two shards of a file of 2^30 + 5 zero bytes.
func zeros(t *testing.T) File {
	t.Helper()
	d := newDigester(true)
	block := make([]byte, 3<<20+1) // crosses the border of the shards
	for left := ShardSize + 5; left > 0; left -= len(block) {
		d.Write(block[:min(left, len(block))])
	}
	return d.file("zeros")
}

func TestShardsOfALargeFile(t *testing.T) {
	if testing.Short() {
		t.Skip("hashes 2 GiB")
	}
	f := zeros(t)
	last := sha256.Sum256(make([]byte, 5))
	// head -c 1073741824 /dev/zero | sha256sum
	const first = "49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14"
	if len(f.Digests) != 2 || hex.EncodeToString(f.Digests[0][:]) != first || f.Digests[1] != last {
		t.Errorf("shards %x", f.Digests)
	}
	m, err := newManifest("model", true, []File{f})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(m.Payload(), []byte(`{"name":"zeros:0:1073741824","algorithm":"sha256-sharded-1073741824","digest":"`+first+`"}`)) ||
		!bytes.Contains(m.Payload(), []byte(`"zeros:1073741824:1073741829"`)) {
		t.Errorf("manifest %s", m.Payload())
	}
}

// The exact bytes are part of the format: object ids depend on them.
func TestManifestGolden(t *testing.T) {
	one, two := sha256.Sum256([]byte("one")), sha256.Sum256(nil)
	root := sha256.Sum256(append(one[:], two[:]...))
	resource := func(name, algorithm string, d Digest) string {
		return `{"name":"` + name + `","algorithm":"` + algorithm + `","digest":"` + hex.EncodeToString(d[:]) + `"}`
	}
	head := `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"m","digest":{"sha256":"` + hex.EncodeToString(root[:]) +
		`"}}],"predicateType":"https://model_signing/signature/v1.0","predicate":{"serialization":{"method":`
	for _, c := range []struct {
		sharded bool
		want    string
	}{
		{false, head + `"files","hash_type":"sha256","allow_symlinks":false,"ignore_paths":[]},"resources":[` +
			resource("a/x", "sha256", one) + "," + resource("b", "sha256", two) + `]}}`},
		{true, head + `"shards","hash_type":"sha256","shard_size":1073741824,"allow_symlinks":false,"ignore_paths":[]},"resources":[` +
			resource("a/x:0:3", "sha256-sharded-1073741824", one) + "," + resource("b:0:0", "sha256-sharded-1073741824", two) + `]}}`},
	} {
		m, err := newManifest("m", c.sharded, []File{{"a/x", []Digest{one}, 3}, {"b", []Digest{two}, 0}})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, string(m.Payload())); d != "" {
			t.Error(d)
		}
		if m.Digest() != sha256.Sum256([]byte(c.want)) {
			t.Error("the digest is not that of the payload")
		}
	}
}

func TestManifestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		sharded := rapid.Bool().Draw(rt, "sharded")
		sizes := rapid.SliceOfN(rapid.Int64Range(0, 5*ShardSize), 1, 9).Draw(rt, "sizes")
		var files []File
		for i, size := range sizes {
			f := File{Name: string(rune('a' + i)), Digests: []Digest{{byte(i)}}, Size: -1}
			if sharded {
				f.Size = size
				for range (size - 1) / ShardSize {
					f.Digests = append(f.Digests, Digest(random(32)))
				}
			}
			files = append(files, f)
		}
		m, err := newManifest("m", sharded, files)
		if err != nil {
			rt.Fatal(err)
		}
		if d := cmp.Diff(files, m.Files); d != "" {
			rt.Fatal(d)
		}
	})
}

func TestAttackManifests(t *testing.T) {
	one := sha256.Sum256([]byte("one"))
	files := string(must(newManifest("m", false, []File{{"a", []Digest{one}, 3}})).Payload())
	shards := string(must(newManifest("m", true, []File{{"a", []Digest{one, one}, ShardSize + 3}})).Payload())
	sum := hex.EncodeToString(one[:])
	for name, c := range map[string]struct{ from, old, new string }{
		"other statement":   {files, "in-toto.io/Statement/v1", "in-toto.io/Statement/v0.1"},
		"other predicate":   {files, "signature/v1.0", "Digests/v0.1"},
		"symlinks":          {files, `"allow_symlinks":false`, `"allow_symlinks":true`},
		"ignored paths":     {files, `"ignore_paths":[]`, `"ignore_paths":["weights.bin"]`},
		"other hash":        {files, `"hash_type":"sha256"`, `"hash_type":"blake3"`},
		"other method":      {files, `"method":"files"`, `"method":"digests"`},
		"no method":         {files, `"method":"files",`, ``},
		"size for files":    {files, `"hash_type"`, `"shard_size":1073741824,"hash_type"`},
		"other algorithm":   {files, `"algorithm":"sha256"`, `"algorithm":"blake2b"`},
		"upper-case digest": {files, `"digest":"` + sum, `"digest":"` + strings.ToUpper(sum)},
		"short digest":      {files, `"digest":"` + sum, `"digest":"` + sum[:62]},
		"other digest":      {files, `"digest":"` + sum, `"digest":"` + strings.Repeat("0", 64)},
		"no subject":        {files, `"subject":[`, `"subject":[],"was":[`},
		"unknown member":    {files, `{"_type"`, `{"x":1,"_type"`},
		"case":              {files, `"predicate":`, `"Predicate":`},
		"twice":             {files, `{"_type"`, `{"_type":"https://in-toto.io/Statement/v1","_type"`},
		"trailing":          {files, `]}}`, `]}}{}`},
		"no resources":      {files, `{"name":"a","algorithm":"sha256","digest":"` + sum + `"}`, ``},
		"other shard size":  {shards, `"shard_size":1073741824`, `"shard_size":1000000000`},
		"no shard size":     {shards, `"shard_size":1073741824,`, ``},
		"gap":               {shards, `a:1073741824:1073741827`, `a:1073741825:1073741827`},
		"overlap":           {shards, `a:1073741824:1073741827`, `a:0:1073741827`},
		"short first shard": {shards, `a:0:1073741824`, `a:0:1073741823`},
		"long last shard":   {shards, `a:1073741824:1073741827`, `a:1073741824:3221225472`},
		"empty last shard":  {shards, `a:1073741824:1073741827`, `a:1073741824:1073741824`},
		"padded number":     {shards, `a:1073741824:1073741827`, `a:1073741824:01073741827`},
		"signed number":     {shards, `a:1073741824:1073741827`, `a:1073741824:+1073741827`},
		"huge number":       {shards, `a:1073741824:1073741827`, `a:1073741824:99999999999999999999`},
		"negative":          {shards, `a:0:1073741824`, `a:-1073741824:0`},
		"colon":             {shards, `"a:0:1073741824"`, `"a:b:0:1073741824"`},
		"file in shards":    {shards, `"a:1073741824:1073741827"`, `"a"`},
		"first shard gone":  {shards, `a:0:1073741824`, `b:0:1073741824`},
	} {
		if !strings.Contains(c.from, c.old) {
			t.Fatalf("%s: the manifest has no %s", name, c.old)
		}
		if m, err := ParseManifest([]byte(strings.Replace(c.from, c.old, c.new, 1))); err == nil {
			t.Errorf("%s was accepted as %+v", name, m.Files)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add(must(newManifest("m", false, []File{{"a", []Digest{{1}}, 3}, {"b/c", []Digest{{2}}, 3}})).payload)
	f.Add(must(newManifest("m", true, []File{{"a", []Digest{{1}, {2}}, ShardSize + 3}, {"e", []Digest{{3}}, 0}})).payload)
	f.Fuzz(func(t *testing.T, payload []byte) {
		m, err := ParseManifest(payload)
		if err != nil {
			return
		}
		again, err := newManifest(m.Name, m.Sharded, m.Files)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(m.Files, again.Files); d != "" {
			t.Fatal(d)
		}
		if _, err := sealedNames(m.Names()); err != nil && !strings.Contains(err.Error(), "sealed as") {
			t.Fatal(err)
		}
	})
}
