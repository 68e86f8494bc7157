package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
)

// Auditors, whoever asks for the status and whoever decides about a change of
// notaries see which notary cheated while signing, and where the proof is; of a
// change that puts it out nothing more is said.
func TestConvictedNotaryIsShown(t *testing.T) {
	d := newDesk(t)
	n1, n2 := d.Notaries[0], d.Notaries[1]
	sign := func(by int, doc signoff.Document) *signoff.Signed {
		s, err := signoff.Sign(t.Context(), d.Notaries[by].Signing, doc)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	said := sign(1, &signoff.Signing{Charter: d.ID, Notary: n2.Doc.ID(), Payload: signoff.Digest{1}, Term: 1, Attempt: 1, Offer: []byte("no commitment")})
	shown := sign(0, &signoff.SigningFault{Charter: d.ID, Notary: n1.Doc.ID(), Accused: n2.Doc.ID(), Message: string(said.Line())})
	if err := d.Append(shown); err != nil {
		t.Fatal(err)
	}
	dir := d.copyLog("log")
	found := parseFound(t, d.audit("find", dir, "--kind", "signing-fault", "--json").out)
	if len(found) != 1 || found[0].Signer != "notary n1" {
		t.Fatalf("faults found: %+v", found)
	}
	want := fmt.Sprintf("CONVICTED    notary n2: a malformed nonce commitment in term 1; proof: its own message in entry %d, shown by n1", found[0].Index)
	holds := func(what, text, want string) {
		t.Helper()
		if !strings.Contains(text, want) {
			t.Errorf("%s lacks %q:\n%s", what, want, text)
		}
	}
	var audit auditView
	var status statusView
	d.answer(&audit, "", "audit", "verify", dir, "--charter", d.ID.String())
	d.answer(&status, "bob", "status")
	for what, got := range map[string][]convictView{"audit": audit.Convicted, "status": status.Convicted} {
		if want := (convictView{Notary: "n2", Term: 1, Reason: "a malformed nonce commitment", ShownBy: "n1", Entry: found[0].Index}); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	holds("the audit", d.sound(dir), want+"\n")
	holds("the status", d.does("bob", "", "status"), want+"\n")

	n5 := d.NewNotary("n5")
	d.writeJSON("n5.json", n5.Doc)
	stays := strings.TrimSpace(d.does("alice", "", "request", "notaries", "--purpose", "n3 moves on", "--add", d.path("n5.json"), "--remove", "n3"))
	want += "; IT STAYS IN OFFICE by this request\n"
	holds("show", d.does("bob", "", "show", stays), want)
	holds("approve", d.as("bob", "no", "approve", stays, "--reason", "agreed").err, want)
	goes := strings.TrimSpace(d.does("alice", "", "request", "notaries", "--purpose", "n2 cheated", "--add", d.path("n5.json"), "--remove", "n2"))
	if text := d.does("bob", "", "show", goes); strings.Contains(text, "CONVICTED") {
		t.Errorf("a change that puts it out warns:\n%s", text)
	}
}
