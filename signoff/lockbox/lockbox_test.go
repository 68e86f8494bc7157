package lockbox

import (
	"bytes"
	"context"
	"crypto/mlkem"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff/dsse"
)

func TestReleaseAndUnlock(t *testing.T) {
	w := newWorld(t, 3, 5, 3, 4)
	recipient, request := newMember(t, 1, false), fill("request")
	var people, machines []*Share
	for _, m := range w.people[1:4] {
		c, sealed := w.release(People, m, recipient, request)
		s, err := OpenRelease(context.Background(), recipient.id, c, w.commitments.People, sealed)
		w.must(err)
		people = append(people, s)
	}
	for _, m := range w.machines[:3] {
		c, sealed := w.release(Machines, m, recipient, request)
		s, err := OpenRelease(context.Background(), recipient.id, c, w.commitments.Machines, sealed)
		w.must(err)
		machines = append(machines, s)
	}
	u, err := Unlock(w.object, w.commitments, people, machines)
	w.must(err)
	got, err := u.FileKey(7, w.wrapped)
	w.must(err)
	if got != w.fileKey {
		t.Fatal("the file key that came out is not the one that went in")
	}
	if _, err := u.FileKey(8, w.wrapped); err == nil {
		t.Fatal("the key of file 7 opened as the key of file 8")
	}
	u.Wipe()
	if _, err := u.FileKey(7, w.wrapped); err == nil {
		t.Fatal("a wiped unlocker opened a file key")
	}
}

func TestOneTokenOperationEach(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 3)
	m, recipient := w.people[0], newMember(t, 1, false)
	c, sealed := w.release(People, m, recipient, fill("request"))
	if m.key.operations != 1 {
		t.Fatalf("approving took %d token operations, want 1", m.key.operations)
	}
	if _, err := OpenRelease(context.Background(), recipient.id, c, w.commitments.People, sealed); err != nil {
		t.Fatal(err)
	}
	if recipient.key.operations != 1 {
		t.Fatalf("opening a release took %d token operations, want 1", recipient.key.operations)
	}
}

func TestTokenErrorsAreNotTheShares(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 3)
	m := w.people[0]
	m.key.fails = hsm.ErrWrongPIN
	_, err := OpenShare(context.Background(), m.id, w.context(People, m), w.commitments.People, w.deal(People, m))
	var bad *ShareError
	if !errors.Is(err, hsm.ErrWrongPIN) || errors.As(err, &bad) {
		t.Fatalf("got %v, want the token's own error", err)
	}
	m.key.fails = nil
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = OpenShare(ctx, m.id, w.context(People, m), w.commitments.People, w.deal(People, m))
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want the context's error", err)
	}
}

// Any t and q shares open, in any order; one fewer on a side never does.
func TestPropertyThreshold(t *testing.T) {
	members := newMembers(t, 14)
	rapid.Check(t, func(rt *rapid.T) {
		m := rapid.IntRange(2, 7).Draw(rt, "people")
		n := rapid.IntRange(2, 7).Draw(rt, "machines")
		threshold := rapid.IntRange(2, m).Draw(rt, "t")
		quorum := rapid.IntRange(2, n).Draw(rt, "q")
		w := sealWorld(t, threshold, quorum, members[:m], members[7:7+n])
		people := rapid.Permutation(w.openAll(People, w.people)).Draw(rt, "order of people")
		machines := rapid.Permutation(w.openAll(Machines, w.machines)).Draw(rt, "order of machines")
		u, err := Unlock(w.object, w.commitments, people[:threshold], machines[:quorum])
		if err != nil {
			rt.Fatal(err)
		}
		if key, err := u.FileKey(7, w.wrapped); err != nil || key != w.fileKey {
			rt.Fatalf("file key differs: %v", err)
		}
		if _, err := Unlock(w.object, w.commitments, people[:threshold-1], machines); err == nil {
			rt.Fatal("t-1 people unlocked")
		}
		if _, err := Unlock(w.object, w.commitments, people, machines[:quorum-1]); err == nil {
			rt.Fatal("q-1 machines unlocked")
		}
	})
}

func TestGroupCheck(t *testing.T) {
	a, b, c := newMember(t, 1, false), newMember(t, 2, false), newMember(t, 3, false)
	with := func(m member, index uint16, spare bool) Holder { return Holder{Index: index, Key: m.Key, Spare: spare} }
	for name, tc := range map[string]struct {
		group Group
		want  string
	}{
		"empty":              {Group{}, "threshold 0"},
		"threshold 0":        {groupOf(0, []member{a, b, c}), "threshold 0"},
		"threshold 1":        {groupOf(1, []member{a, b, c}), "threshold 1"},
		"threshold too high": {groupOf(4, []member{a, b, c}), "threshold 4 with 3 holders"},
		"no holders":         {Group{Threshold: 2}, "threshold 2 with 0 holders"},
		"index 0":            {Group{2, []Holder{with(a, 0, false), b.Holder}}, "index 0"},
		"index twice":        {Group{2, []Holder{a.Holder, b.Holder, with(c, 2, false)}}, "index 2 stands twice"},
		"key twice":          {Group{2, []Holder{a.Holder, with(a, 2, false)}}, "stands twice"},
		"no key":             {Group{2, []Holder{a.Holder, {Index: 2}}}, "holder 2 has no key"},
		"only a spare":       {Group{2, []Holder{a.Holder, b.Holder, with(c, 3, true)}}, "only a spare"},
		"spare as a holder":  {Group{3, []Holder{a.Holder, b.Holder, with(c, 2, true)}}, "threshold 3 with 2 holders"},
		"too many":           {Group{2, make([]Holder, MaxHolders+1)}, "at most 1024"},
		"spare":              {Group{2, []Holder{with(c, 2, true), a.Holder, b.Holder}}, ""},
		"plain":              {groupOf(3, []member{a, b, c}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.group.Check()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestParamsCheck(t *testing.T) {
	people, machines := newMembers(t, 3), newMembers(t, 3)
	good := Params{fill("charter"), groupOf(2, people), groupOf(2, machines)}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]Params{
		"zero":           {},
		"no charter":     {[32]byte{}, good.People, good.Machines},
		"no machines":    {good.Charter, good.People, Group{}},
		"no people":      {good.Charter, Group{}, good.Machines},
		"key both sides": {good.Charter, good.People, groupOf(2, append(machines[:2:2], people[0]))},
	} {
		if _, _, err := New(rand.Reader, p); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
}

func TestRandomnessMustComeThrough(t *testing.T) {
	p := Params{fill("charter"), groupOf(2, newMembers(t, 2)), groupOf(2, newMembers(t, 2))}
	const need = 32 + 2*2*128
	for n := range need {
		if _, _, err := New(io.LimitReader(rand.Reader, int64(n)), p); err == nil {
			t.Fatalf("sealed with %d bytes of randomness, want %d", n, need)
		}
	}
	if _, _, err := New(io.LimitReader(rand.Reader, need), p); err != nil {
		t.Fatal(err)
	}
	if _, _, err := New(bytes.NewReader(make([]byte, need)), p); err == nil {
		t.Fatal("sealed with a source of zeros")
	}
	if _, _, err := New(nil, p); err == nil {
		t.Fatal("sealed without a source")
	}
}

func TestSecretsServeOneObjectAndWrapOnce(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	if _, err := w.secrets.Deal(fill("other object"), 1); err == nil {
		t.Error("dealt a second object")
	}
	if _, err := w.secrets.WrapFileKey(fill("other object"), 8, w.fileKey); err == nil {
		t.Error("wrapped a key for a second object")
	}
	if _, err := w.secrets.WrapFileKey(w.object, 7, w.fileKey); err == nil {
		t.Error("wrapped two keys for file 7")
	}
	if _, err := w.secrets.WrapFileKey(w.object, 8, w.fileKey); err != nil {
		t.Error(err)
	}
	if _, err := w.secrets.Deal(w.object, 0); err == nil {
		t.Error("dealt in epoch 0")
	}
	w.secrets.Wipe()
	w.secrets.Wipe()
	if _, err := w.secrets.Deal(w.object, 2); err == nil {
		t.Error("dealt after wiping")
	}
	if _, err := w.secrets.WrapFileKey(w.object, 9, w.fileKey); err == nil {
		t.Error("wrapped after wiping")
	}
}

func TestSpareKeyCountsOnce(t *testing.T) {
	people := newMembers(t, 3)
	spare := newMember(t, 1, false)
	spare.Spare = true
	w := sealWorld(t, 3, 2, append(people, spare), newMembers(t, 2))
	machines := w.openAll(Machines, w.machines)
	first, again := w.open(People, w.people[0]), w.open(People, w.people[3])
	second, third := w.open(People, w.people[1]), w.open(People, w.people[2])
	if _, err := Unlock(w.object, w.commitments, []*Share{first, again, second}, machines); err == nil {
		t.Fatal("two keys of one person counted twice")
	}
	if _, err := Unlock(w.object, w.commitments, []*Share{again, second, third}, machines); err != nil {
		t.Fatal(err)
	}
}

func TestWipedShareServesNothing(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	s := w.open(People, w.people[0])
	s.Wipe()
	wantFault(t, s.Verify(w.commitments.People), Wrong, s.Context())
	to := newMember(t, 1, false)
	if _, err := Reseal(s, to.Key, ReleaseContext{s.Context(), fill("request"), to.ID()}); err == nil {
		t.Fatal("re-sealed a wiped share")
	}
	if _, err := s.DealTo(to.Key); err == nil {
		t.Fatal("dealt a wiped share to a spare")
	}
}

func TestHybrid(t *testing.T) {
	people := []member{newMember(t, 1, true), newMember(t, 2, true), newMember(t, 3, false)}
	w := sealWorld(t, 2, 2, people, newMembers(t, 3))
	recipient := newMember(t, 1, true)
	var shares []*Share
	for _, m := range people[:2] {
		c, sealed := w.release(People, m, recipient, fill("request"))
		if m.key.operations != 1 || len(sealed) != hybridSealedSize {
			t.Fatalf("%d token operations and %d bytes, want 1 and %d", m.key.operations, len(sealed), hybridSealedSize)
		}
		s, err := OpenRelease(context.Background(), recipient.id, c, w.commitments.People, sealed)
		w.must(err)
		shares = append(shares, s)
	}
	u, err := Unlock(w.object, w.commitments, shares, w.openAll(Machines, w.machines))
	w.must(err)
	if key, err := u.FileKey(7, w.wrapped); err != nil || key != w.fileKey {
		t.Fatalf("file key differs: %v", err)
	}
	// The P-256 half of a hybrid key opens nothing by itself.
	half, err := TokenIdentity(people[0].key)
	w.must(err)
	if half.Recipient().ID() == people[0].ID() {
		t.Fatal("the hybrid key and its P-256 half have the same name")
	}
	d := w.deal(People, people[0])
	d.Holder = half.Recipient().ID()
	c := w.context(People, people[0])
	c.Holder = d.Holder
	_, err = OpenShare(context.Background(), half, c, w.commitments.People, d)
	wantFault(t, err, Malformed, c)
}

func TestRecipientText(t *testing.T) {
	for _, m := range []member{newMember(t, 1, false), newMember(t, 1, true)} {
		text, err := m.Key.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Recipient
		if err := back.UnmarshalText(text); err != nil || back.ID() != m.ID() || back.Hybrid() != m.Key.Hybrid() {
			t.Fatalf("%.20s: %v", text, err)
		}
		for name, bad := range map[string]string{
			"other case":   strings.ToUpper(string(text[:4])) + string(text[4:]),
			"newline":      string(text[:40]) + "\n" + string(text[40:]),
			"space":        string(text) + " ",
			"cut":          string(text[:len(text)-4]),
			"longer":       string(text) + "AAAA",
			"no prefix":    string(text[bytes.IndexByte(text, ':')+1:]),
			"other prefix": "x25519" + string(text[bytes.IndexByte(text, ':'):]),
		} {
			if _, err := ParseRecipient(bad); err == nil {
				t.Errorf("%s: accepted %.40q", name, bad)
			}
		}
	}
	if _, err := (Recipient{}).MarshalText(); err == nil {
		t.Error("nobody has a text form")
	}
	if _, err := HybridRecipient(nil, newKey(t).PublicKey()); err == nil {
		t.Error("hybrid recipient without ML-KEM")
	}
	if _, err := HybridRecipient(new(mlkem.EncapsulationKey768), nil); err == nil {
		t.Error("hybrid recipient without P-256")
	}
}

// The fingerprint of a P-256 recipient is that of the key everywhere else.
func TestRecipientIDIsTheFingerprint(t *testing.T) {
	m := newMember(t, 1, false)
	want, err := hsm.Fingerprint(m.key.PublicKey())
	if err != nil || m.ID() != want {
		t.Fatalf("id %x, fingerprint %x, %v", m.ID(), want, err)
	}
}

func TestDealsJSON(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 3)
	data, err := dsse.Encode(w.deals)
	w.must(err)
	back, err := ParseDeals(data)
	w.must(err)
	again, err := dsse.Encode(back)
	w.must(err)
	if !bytes.Equal(data, again) {
		t.Fatal("deals changed on their way through JSON")
	}
	text := string(data)
	for name, bad := range map[string]string{
		"unknown member":   strings.Replace(text, `"epoch"`, `"extra":1,"epoch"`, 1),
		"duplicate member": strings.Replace(text, `"epoch"`, `"epoch":1,"epoch"`, 1),
		"other case":       strings.Replace(text, `"epoch"`, `"Epoch"`, 1),
		"epoch 0":          strings.Replace(text, `"epoch":1`, `"epoch":0`, 1),
		"index 0":          strings.Replace(text, `"index":1`, `"index":0`, 1),
		"index too large":  strings.Replace(text, `"index":1`, `"index":65537`, 1),
		"side swapped":     strings.Replace(text, `"side":"people"`, `"side":"machines"`, 1),
		"trailing data":    text + "{}",
		"empty":            "{}",
		"nothing":          "",
	} {
		if _, err := ParseDeals([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	twice := w.deals
	twice.People = append(append([]Deal{}, w.deals.People...), w.deals.People[0])
	data, err = dsse.Encode(twice)
	w.must(err)
	if _, err := ParseDeals(data); err == nil {
		t.Error("two deals to one holder: accepted")
	}
}

func TestSecretsAreRedacted(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	share := w.open(People, w.people[0])
	u, err := Unlock(w.object, w.commitments, w.openAll(People, w.people), w.openAll(Machines, w.machines))
	w.must(err)
	type nest struct{ inner any }
	type deep struct{ share Share }
	printed := new(bytes.Buffer)
	for _, v := range []any{w.secrets, *w.secrets, share, *share, u, *u, nest{share}, &nest{*share}, deep{*share}, []*Share{share}, nest{*w.secrets}, nest{*u}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			fmt.Fprintf(printed, verb+"\n", v)
		}
		data, err := dsse.Encode(v)
		if err == nil {
			printed.Write(data)
		}
	}
	for _, secret := range []pair{share.secret, u.people, u.machines, w.secrets.people[1]} {
		b := secret.bytes()
		for _, form := range []string{hex.EncodeToString(b[:8]), string(b[:8]), strings.Trim(fmt.Sprint(b[:8]), "[]"), fmt.Sprint(secret.value)[2:18]} {
			if strings.Contains(strings.ToLower(printed.String()), form) {
				t.Fatalf("a secret was printed: %q", form)
			}
		}
	}
	if !strings.Contains(printed.String(), "redacted") {
		t.Fatal("nothing says that it was redacted")
	}
}

// The package reaches no file, network or clock by itself.
func TestImportsArePure(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range file.Imports {
			switch strings.Trim(imp.Path.Value, `"`) {
			case "os", "net", "time", "net/http", "log", "log/slog", "syscall", "crypto/rand", "math/rand", "math/rand/v2":
				t.Errorf("%s imports %s", e.Name(), imp.Path.Value)
			}
		}
	}
}
