package signoff_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// optional are the members whose zero value says something.
var optional = map[string]string{
	"warrant": "Index", "approval": "Shares", "release": "Claim", "receipt": "Bytes", "epoch": "Previous Evidence", "position": "Seen",
	"signing": "Offer Session Share List", "object-snapshot": "Claim", "claim": "Resume", "acceptance-token": "Request", "redealing": "Roster",
}

// A missing member means no, in every document.
func TestAttackMissingMembers(t *testing.T) {
	for name, d := range samples() {
		v := reflect.ValueOf(d).Elem()
		for i := range v.NumField() {
			field := v.Type().Field(i).Name
			if v.Field(i).IsZero() || slices.Contains(strings.Fields(optional[name]), field) {
				continue
			}
			broken := reflect.New(v.Type())
			broken.Elem().Set(v)
			broken.Elem().Field(i).SetZero()
			if _, err := signoff.Write(broken.Interface().(signoff.Document)); err == nil {
				t.Errorf("%s without %s was written", name, field)
			}
		}
	}
}

func TestAttackHostileText(t *testing.T) {
	set := map[string]func(signoff.Document, string){
		"request-export": func(d signoff.Document, s string) { d.(*signoff.Request).Purpose = s },
		"approval":       func(d signoff.Document, s string) { d.(*signoff.Approval).Reason = s },
		"halt":           func(d signoff.Document, s string) { d.(*signoff.Halt).Reason = s },
		"object":         func(d signoff.Document, s string) { d.(*signoff.Object).Name = s },
		"receipt":        func(d signoff.Document, s string) { d.(*signoff.Receipt).Detail = s },
	}
	for _, evil := range []string{"", " ", "a ", " a", "a\nb", "a\rb", "\x1b[31mred", "\u202eabc", "\u2067abc\u2069", "\u200bx", "a\u00adb", "\ufeffa", "a\u2028b", "tab\there", "nul\x00",
		"\u0085", "a\u00a0b", "\u3000", "\u3164", "\u115f", "e\ufe0f", "a\u034fb", "\u2800", "\U000e0100", "\U000e0041", "\xff", "\xed\xa0\x80", "\ue000", strings.Repeat("x", dsse.MaxText+1)} {
		for name, edit := range set {
			d := samples()[name]
			edit(d, evil)
			if _, err := signoff.Write(d); err == nil {
				t.Errorf("%s with the text %.40q was written", name, evil)
			}
		}
		if evil == "" {
			continue
		}
		r := samples()["request-export"].(*signoff.Request)
		r.Export.Recipient = evil
		if _, err := signoff.Write(r); err == nil {
			t.Errorf("an export to %.40q was written", evil)
		}
	}
	for _, fine := range []string{"a", "Ausfuhr f\u00fcr das Institut", "\u8a55\u4fa1\u306e\u305f\u3081", "100 % \u2013 two  spaces", strings.Repeat("x", dsse.MaxText)} {
		if err := signoff.CheckText("purpose", fine); err != nil {
			t.Errorf("%.40q is refused: %v", fine, err)
		}
	}
}

func TestNames(t *testing.T) {
	for _, bad := range []string{"", "Alice", "1a", "-a", "a b", "a/b", "a_b", "\u0430lice", "a\n", strings.Repeat("a", 65)} {
		if err := signoff.CheckName("person", bad); err == nil {
			t.Errorf("name %q was accepted", bad)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		good := rapid.StringMatching(`[a-z][a-z0-9.-]{0,63}`).Draw(t, "name")
		if err := signoff.CheckName("person", good); err != nil {
			t.Fatal(err)
		}
	})
}

// A requester calls the recipient's key what nobody here can know, and approvers
// would read it.
func TestAttackRecipientsKeyPraised(t *testing.T) {
	for class, good := range map[hsm.Class]bool{hsm.ClassSoftware: true, hsm.ClassSelfDeclared: true,
		hsm.ClassSealed: false, hsm.ClassWitnessed: false, hsm.ClassAttested: false, "": false, "very good": false} {
		r := export()
		r.Export.RecipientKey.Class = class
		if _, err := signoff.Write(r); (err == nil) != good {
			t.Errorf("class %q: %v", class, err)
		}
	}
}

func TestAttackOversized(t *testing.T) {
	for name, edit := range map[string]func(map[string]signoff.Document) signoff.Document{
		"shares": func(s map[string]signoff.Document) signoff.Document { return many(s["approval"], signoff.MaxShares+1) },
		"sealed": func(s map[string]signoff.Document) signoff.Document {
			a := s["approval"].(*signoff.Approval)
			a.Shares[0].Sealed = bytesOf(signoff.MaxSealedShare + 1)
			return a
		},
		"approvals": func(s map[string]signoff.Document) signoff.Document {
			w := s["warrant"].(*signoff.Warrant)
			w.Approvals = digests(signoff.MaxPeople + 1)
			return w
		},
		"pool": func(s map[string]signoff.Document) signoff.Document {
			return withLaunch(s, func(l *signoff.Launch) { l.Pool = digests(signoff.MaxPool + 1) })
		},
		"objects for a pool": func(s map[string]signoff.Document) signoff.Document {
			return withLaunch(s, func(l *signoff.Launch) { l.Pool, l.Objects = digests(signoff.MaxPool), digests(2) })
		},
		"words": func(s map[string]signoff.Document) signoff.Document {
			return withLaunch(s, func(l *signoff.Launch) { l.Argv = slices.Repeat([]string{"x"}, signoff.MaxWords+1) })
		},
		"one word": func(s map[string]signoff.Document) signoff.Document {
			return withLaunch(s, func(l *signoff.Launch) { l.Argv = []string{strings.Repeat("x", dsse.MaxText+1)} })
		},
		"all words": func(s map[string]signoff.Document) signoff.Document {
			return withLaunch(s, func(l *signoff.Launch) { l.Argv = slices.Repeat([]string{strings.Repeat("x", 1000)}, 200) })
		},
		"uses": func(s map[string]signoff.Document) signoff.Document {
			return withLaunch(s, func(l *signoff.Launch) { l.Uses = signoff.MaxUses + 1 })
		},
		"seconds": func(s map[string]signoff.Document) signoff.Document {
			return withLaunch(s, func(l *signoff.Launch) { l.Seconds = 1 << 62 })
		},
		"policy": func(s map[string]signoff.Document) signoff.Document {
			r := s["request-policy"].(*signoff.Request)
			r.Policy.Policy = strings.Repeat("#", signoff.MaxPolicy+1)
			return r
		},
		"halts": func(s map[string]signoff.Document) signoff.Document {
			r := s["request-resume"].(*signoff.Request)
			r.Resume.Halts = digests(signoff.MaxResumeHalts + 1)
			return r
		},
		"people": func(s map[string]signoff.Document) signoff.Document {
			c := s["charter"].(*signoff.Charter)
			c.People = slices.Repeat(c.People, 30)
			return c
		},
		"EK roots": func(s map[string]signoff.Document) signoff.Document {
			c := s["charter"].(*signoff.Charter)
			c.EKRoots = [][]byte{bytesOf(1 << 16)}
			return c
		},
	} {
		if _, err := signoff.Write(edit(samples())); err == nil {
			t.Errorf("%s: an oversized document was written", name)
		}
	}
}

func withLaunch(s map[string]signoff.Document, edit func(*signoff.Launch)) signoff.Document {
	r := s["request-launch"].(*signoff.Request)
	edit(r.Launch)
	return r
}

func many(d signoff.Document, n int) signoff.Document {
	a := d.(*signoff.Approval)
	a.Shares = slices.Repeat(a.Shares, n)
	return a
}

func digests(n int) []Digest {
	var out []Digest
	for i := range n {
		out = append(out, Digest{byte(i >> 8), byte(i), 1})
	}
	return out
}

// q is what the design promises: 3 of 4, 5 of 7, 9 of 13; any two quorums
// share an honest notary.
func TestQuorum(t *testing.T) {
	for n, want := range map[int][2]int{4: {1, 3}, 7: {2, 5}, 13: {4, 9}} {
		c := &signoff.Charter{Notaries: make([]signoff.Notary, n), Faults: want[0]}
		if c.Quorum() != want[1] {
			t.Errorf("%d notaries, %d hostile: quorum %d, want %d", n, want[0], c.Quorum(), want[1])
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.IntRange(1, 10).Draw(t, "f")
		n := rapid.IntRange(3*f+1, signoff.MaxNotaries).Draw(t, "n")
		q := (&signoff.Charter{Notaries: make([]signoff.Notary, n), Faults: f}).Quorum()
		if 2*q-n <= f || q > n-f {
			t.Fatalf("n=%d f=%d q=%d: two quorums may share no honest notary, or the honest are too few", n, f, q)
		}
	})
}

func TestAttackCharterNumbers(t *testing.T) {
	for name, edit := range map[string]func(*signoff.Charter){
		"threshold 0":     func(c *signoff.Charter) { c.Threshold = 0 },
		"threshold 1":     func(c *signoff.Charter) { c.Threshold = 1 },
		"threshold of 4":  func(c *signoff.Charter) { c.Threshold = 4 },
		"nobody hostile":  func(c *signoff.Charter) { c.Faults = 0 },
		"two hostile":     func(c *signoff.Charter) { c.Faults = 2 },
		"three notaries":  func(c *signoff.Charter) { c.Notaries = c.Notaries[:3] },
		"format 0":        func(c *signoff.Charter) { c.Format = 0 },
		"format 2":        func(c *signoff.Charter) { c.Format = 2 },
		"an odd key":      func(c *signoff.Charter) { c.People[0].Signing.Encoded = append(c.People[0].Signing.Encoded, 0) },
		"no key":          func(c *signoff.Charter) { c.People[0].Signing.Encoded = nil },
		"no roles":        func(c *signoff.Charter) { c.People[0].Roles = nil },
		"an Ed25519 vote": func(c *signoff.Charter) { c.People[0].Signing = ed("vote") },

		"shares for an authenticator": func(c *signoff.Charter) { c.People[0].Exchange = fido(p256("x")) },
		"a notary's authenticator":    func(c *signoff.Charter) { c.Notaries[0].Signing = fido(p256("x")) },
		"notary's exchange in one":    func(c *signoff.Charter) { c.Notaries[0].Exchange = fido(p256("x")) },
		"notary's witness in one":     func(c *signoff.Charter) { c.Notaries[0].Witness = fido(ed("x")) },
		"the log in an authenticator": func(c *signoff.Charter) { c.Log = fido(ed("x")) },
		"boots in an authenticator":   func(c *signoff.Charter) { c.BootPolicy = new(fido(p256("x"))) },
		"an Ed25519 key for boots":    func(c *signoff.Charter) { c.BootPolicy = new(ed("x")) },
		"one authenticator of two":    func(c *signoff.Charter) { c.People[0].Signing, c.People[1].Signing = fido(ed("x")), fido(ed("x")) },
		"a web site's authenticator":  func(c *signoff.Charter) { c.People[0].Signing = ofWebSite() },
		"an authenticator's odd bytes": func(c *signoff.Charter) {
			c.People[0].Signing = fido(ed("x"))
			c.People[0].Signing.Encoded = append(c.People[0].Signing.Encoded, 0)
		},
		"software keys": func(c *signoff.Charter) { c.Development = false },
		"no class":      func(c *signoff.Charter) { c.People[0].Signing.Class = "" },
	} {
		c := charter()
		edit(c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
