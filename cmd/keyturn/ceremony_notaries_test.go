package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/ceremony"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// newNotaryHall is the shipped script in which n5 takes the place of n4, for a
// desk, with a token for n5 and key files for maria and wendy.
func newNotaryHall(t *testing.T, d *desk) *hall {
	t.Helper()
	h := &hall{t: t, dir: t.TempDir()}
	serials := h.tokens("n5")
	text, err := os.ReadFile("../../deploy/ceremony/notaries.yaml")
	h.must(err)
	h.script = h.write("script.yaml", strings.NewReplacer("FILL-IN-31", `"`+serials["n5"]+`"`, "sha256:"+strings.Repeat("0", 63)+"1", d.ID.String()).Replace(string(text)))
	for _, name := range []string{"maria", "wendy"} {
		uri := "file:" + h.path(name+".pem")
		_, err := file.Generate(uri, hsm.KindP256)
		h.must(err)
		h.args = append(h.args, "--key", name+"="+uri)
	}
	return h
}

// copies lays a fresh copy of the desk's log beside the script.
func (h *hall) copies(d *desk) {
	h.t.Helper()
	h.must(os.RemoveAll(h.path("log")))
	copyLog(h.t, filepath.Join(d.Dir, "log"), h.path("log"))
}

func tokenN5(object string) string {
	return "pkcs11:token=n5;object=" + object + "?module-path=" + softHSM
}

// shows is the public half of a key on the token n5, as anybody can ask for it.
func (h *hall) shows(object string) (k signoff.PublicKey) {
	h.t.Helper()
	o := keyturn(h.t, "key", "show", tokenN5(object), "--pin-fd", fmt.Sprint(h.pinFD()))
	if o.code != 0 {
		h.t.Fatal(o.err)
	}
	h.must(dsse.Decode([]byte(strings.TrimSpace(o.out)), &k))
	return k
}

// newcomer is the notary of an entry that the ceremony wrote, with its keys on
// the token n5, each held to the entry as keyturn-notary does.
func (h *hall) newcomer(d *desk, entry string) *signofftest.Notary {
	h.t.Helper()
	ctx := context.Background()
	doc, err := config.ReadNotary(entry)
	h.must(err)
	ring := keys.New(func(context.Context, string) (*secret.Buffer, error) { return secret.Take([]byte(hallPIN)) })
	h.t.Cleanup(ring.Close)

	n := d.Newcomer(doc.Name) // its sealing key is made on its own host
	n.Doc = *doc
	signing, err := doc.Signing.Public()
	h.must(err)
	n.Signing, err = ring.Key(ctx, tokenN5("sign"), signing)
	h.must(err)
	witness, err := doc.Witness.Public()
	h.must(err)
	n.Witness, err = ring.Key(ctx, tokenN5("witness"), witness)
	h.must(err)
	exchange, err := doc.Exchange.ECDH()
	h.must(err)
	n.Exchange, err = ring.Decrypter(ctx, tokenN5("exchange"), exchange)
	h.must(err)
	return n
}

var asksNotaries = regexp.MustCompile(`(?m)^keyturn (request notaries) --purpose '\.\.\.' (.+)$`)

// Notary n5 takes the place of n4 by the shipped script, with keys that are made
// in it on a token, and serves with them. [TestAttackNotaryKeySwapped] is the same
// with other keys in office.
func TestCeremonyNotaryChange(t *testing.T) {
	d := newDesk(t)
	h := newNotaryHall(t, d)
	o, _ := h.run(func(q string) (string, error) {
		if strings.HasPrefix(q, "[done") { // the request
			return "stop", nil
		}
		return "", errors.New("")
	})
	asks := asksNotaries.FindStringSubmatch(o.err)
	if asks == nil || h.records() != 10 {
		t.Fatalf("stopped after %d signatures: %s", h.records(), tail(o.err))
	}

	n4, n5 := d.Notaries[3], h.newcomer(d, h.path("ceremony", "notaries", "n5.json"))
	d.StartNotary(n5)
	args := slices.Concat(strings.Fields(asks[1]), []string{"--purpose", "n5 for n4"}, strings.Fields(asks[2]))
	id := strings.TrimSpace(d.does("alice", "", args...))
	d.approve(id, "bob", "carol", "dave")
	d.Wait("n5 in office", func(s *authority.State) bool { return len(s.Terms) == 2 })
	h.copies(d)

	var v ceremonyView
	h.must(dsse.Decode([]byte(strings.TrimSpace(h.does("--json").out)), &v))
	if v.Mode != ceremony.Real || v.Records != 8 || !v.Complete || v.Exceptions != 0 || len(v.Waived) != 0 || len(v.People) != 3 {
		t.Fatalf("run answered %+v", v)
	}
	h.people("maria", "wendy")
	verify := []string{"ceremony", "verify", v.Path, "--charter", d.path("charter.json"), "--people", h.path("people.json")}
	if o := keyturn(t, verify...); o.code == 0 || !strings.Contains(o.err, "is not known by any key") {
		t.Errorf("verify without n5's key: exit %d: %s", o.code, o.err)
	}
	sign, exchange, witness := h.shows("sign"), h.shows("exchange"), h.shows("witness")
	var known map[string]signoff.PublicKey
	h.must(readJSON(h.path("people.json"), &known))
	known["n5"] = sign
	list, err := dsse.Encode(known)
	h.must(err)
	h.write("people.json", string(list))
	if o := keyturn(t, verify...); o.code != 0 || !strings.Contains(o.out, "8 records, complete") {
		t.Fatalf("verify: exit %d: %s%s", o.code, o.out, o.err)
	}

	// What the records found, the token has and the log has in office.
	_, r, err := readTranscript(v.Path)
	h.must(err)
	d.State(func(_ *authority.Authority, s *authority.State) {
		now := s.Council()
		in, _, ok := now.Find(sign.Fingerprint())
		if !ok || in.Exchange.Fingerprint() != exchange.Fingerprint() || in.Witness.Fingerprint() != witness.Fingerprint() || now.Has(n4.Doc) {
			t.Errorf("in office are %+v", now.Notaries)
		}
		group, transcript, err := keygenDone(s)
		h.must(err)
		for _, want := range []struct {
			step, name string
			value      dsse.Digest
		}{
			{"n5-sign", "fingerprint", sign.Fingerprint()}, {"n5-exchange", "fingerprint", exchange.Fingerprint()}, {"n5-witness", "fingerprint", witness.Fingerprint()},
			{"shares", "group", group}, {"shares", "transcript", transcript},
		} {
			if record, ok := r.Done(want.step); !ok || record.Find(want.name) != want.value.String() {
				t.Errorf("step %s found another %s than %s", want.step, want.name, want.value)
			}
		}
	})

	// With n1 and n4 gone nothing is final and no warrant is signed without n5.
	d.Notaries[0].Stop()
	n4.Stop()
	d.does("alice", "register", "ceremony", "register", v.Path)
	id = strings.TrimSpace(d.does("alice", "", "request", "policy", "--purpose", "as it is", "--policy", d.path("policy.yaml")))
	d.approve(id, "bob", "carol", "dave", "erin")
	d.does("alice", "", "warrant", "get", id, "--out", d.path("warrant.json"))
}
