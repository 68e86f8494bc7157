package agent

import (
	"bytes"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff/dsse"
)

func resume(t testing.TB, nodes ...resumeNode) []byte {
	b, err := dsse.Encode(resumeFile{Nodes: nodes})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseResume(t *testing.T) {
	me, other := Digest{1}, Digest{2}
	two := [][]byte{{1}, {2}}
	for name, tc := range map[string]struct {
		file []byte
		want string
	}{
		"ours among others": {resume(t, resumeNode{other, nil}, resumeNode{me, two}), ""},
		"not ours":          {resume(t, resumeNode{other, two}), "nothing for this node"},
		"nobody's":          {resume(t), "nothing for this node"},
		"one short":         {resume(t, resumeNode{me, two[:1]}), "1 shares"},
		"a flood":           {resume(t, resumeNode{me, slicesOf(10_000)}), "10000 shares"},
		"no JSON":           {[]byte("{"), ""},
		"unknown member":    {[]byte(`{"nodes":[],"more":1}`), "more"},
	} {
		got, err := parseResume(tc.file, me, 2)
		if name == "ours among others" {
			if err != nil || len(got) != 2 || !bytes.Equal(got[1], two[1]) {
				t.Errorf("%s: %v, %v", name, got, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, tc.want)
		}
	}
}

func slicesOf(n int) [][]byte { return make([][]byte, n) }

func FuzzParseResume(f *testing.F) {
	f.Add(resume(f, resumeNode{Digest{1}, [][]byte{{1}, {2}}}))
	f.Add([]byte(`{"nodes":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := parseResume(b, Digest{1}, 2); (err == nil) != (len(got) == 2) {
			t.Errorf("%d shares, %v", len(got), err)
		}
	})
}
