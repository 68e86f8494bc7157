package ima

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

type testCase struct {
	File   string
	Kind   string
	Expect struct {
		Result   string
		Entries  int
		Template string
		First    string
		Last     string
	}
}

// TestCases reads real lists and gives each its right answer.
func TestCases(t *testing.T) {
	dir := fetched(t)
	data, err := os.ReadFile(filepath.Join(dir, "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []testCase
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, c := range all {
		if c.Kind != "ima" {
			continue
		}
		ran++
		t.Run(filepath.Base(c.File), func(t *testing.T) {
			list, err := os.ReadFile(filepath.Join(dir, c.File))
			if err != nil {
				t.Fatal(err)
			}
			c.run(t, list)
		})
	}
	if ran < 7 {
		t.Fatalf("cases.json has %d measurement lists, wanted at least 7", ran)
	}
}

func (c testCase) run(t *testing.T, list []byte) {
	l, err := Parse(list)
	var refused *ListError
	switch c.Expect.Result {
	case "refuse":
		if !errors.As(err, &refused) {
			t.Fatalf("got %v, wanted a ListError", err)
		}
		return
	case "truncated":
		if !errors.As(err, &refused) || !refused.Truncated || refused.Entries != c.Expect.Entries {
			t.Fatalf("got %v, wanted it truncated after %d entries", err, c.Expect.Entries)
		}
		if l, err = Parse(list[:refused.Offset]); err != nil {
			t.Fatal(err)
		}
	case "consistent", "parses":
		if err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatalf("case of unknown result %q", c.Expect.Result)
	}
	s, err := l.Summary("sha256")
	if err != nil {
		t.Fatal(err)
	}
	if c.Expect.Entries != 0 && s.Entries != c.Expect.Entries || c.Expect.Template != "" && s.Template != c.Expect.Template {
		t.Errorf("%d entries of %s, wanted %d of %s", s.Entries, s.Template, c.Expect.Entries, c.Expect.Template)
	}
	first, last := hex.EncodeToString(l.Entries[0].Digest), hex.EncodeToString(l.Entries[len(l.Entries)-1].Digest)
	if c.Expect.First != "" && (first != c.Expect.First || last != c.Expect.Last) {
		t.Errorf("template digests from %s to %s, wanted %s to %s", first, last, c.Expect.First, c.Expect.Last)
	}
	entries, err := Prove("sha256", list, s.PCRs[PCR])
	if err != nil || len(entries) != s.Entries {
		t.Errorf("%d of %d entries proved, %v", len(entries), s.Entries, err)
	}
}

// keylimeRSA is the public key that made the first file signature of
// keylime_signatures.ascii; its second is by a key on secp256k1, which is refused.
const keylimeRSA = `-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA1cD7bW5tX5qIVgWskS5t
zY+XpqWzcW6HFq5npj8dHFIWsAJJCUdoSU631hkyY8HP/RfXDPq/J4IeKvx35EVX
j49t1Z1FTJBgUlEbkKvqm0rY6jo7PnJ6BsDRrauXtiEXVKNXcWXDk8ES+9v9Cz26
BJYAr+5Xgm2aEyAbj8GhicxUZfsjDm8eJ7ZnQKuhF7jejG5dYAYxnBVu99bQJHI5
Fsu3dAjGbys9v7ToNbonS+1bJXdHyEE0swhxBOPvvV6vx5CzRNw1Sou3rT19T4j8
wpsFOyYXVcbbRVBAmBE2Qy2UHvojFqaJN/A9lztllyER1S5heGG6CxK3GoR6pkOX
AQIDAQAB
-----END PUBLIC KEY-----
`

// TestSignaturesMadeByOthers verifies a file signature that the kernel's own tools
// made.
func TestSignaturesMadeByOthers(t *testing.T) {
	list, err := os.ReadFile(filepath.Join(fetched(t), "ima", "keylime_signatures.ascii"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := Parse(list)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ParseKeyring([]byte(keylimeRSA))
	if err != nil {
		t.Fatal(err)
	}
	if err := keys.Verify(&l.Entries[0]); err != nil {
		t.Error(err)
	}
	if err := keys.Verify(&l.Entries[1]); err == nil {
		t.Error("a signature by another key verified")
	}
}
