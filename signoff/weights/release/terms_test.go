package release_test

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
	"github.com/keyturn/keyturn/signoff/weights/release"
	"github.com/keyturn/keyturn/signoff/weights/release/releasetest"
)

// a checkpoint of any log, cosigned by some.
func checkpoint(t *testing.T, w *releasetest.World, by ...*signofftest.Notary) string {
	t.Helper()
	ctx := t.Context()
	note, err := proof.SignCheckpoint(ctx, proof.Checkpoint{Origin: w.Charter.Name, Size: 9, Root: dsse.Digest{1}, State: dsse.Digest{2}}, w.Charter.Name, w.LogKey)
	for _, n := range by {
		if err != nil {
			break
		}
		var line []byte
		if line, err = proof.Cosign(ctx, note, n.Name, n.Witness, 1); err == nil {
			note, err = proof.AddCosignature(note, line)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(note)
}

// replaced is a term in which n5 has n4's place. edit changes the request.
func replaced(w *releasetest.World, n5 *signofftest.Notary, group hsm.Key, note string, edit func(*signoff.Request)) release.Term {
	n := w.Charter.Notaries
	q := &signoff.Request{Charter: w.ID, Action: signoff.ActionNotaries, Requester: w.People["alice"].Doc.ID(), Purpose: "n4's disk died", Created: w.Now, Expiry: w.Now + 60,
		Nonce: signofftest.Nonce(), Seen: signoff.Seen{Size: 1, Root: dsse.Digest{1}}, Notaries: &signoff.NotaryChange{Term: 1, Faults: 1, Notaries: []signoff.Notary{n[0], n[1], n[2], n5.Doc}}}
	if edit != nil {
		edit(q)
	}
	asked := w.Sign("alice", q)
	granted := w.By(group, &signoff.Warrant{Charter: w.ID, Request: asked.Digest(), Action: signoff.ActionNotaries, Policy: dsse.Digest{1}, Rule: dsse.Digest{1}, Index: 3,
		Approvals: []signoff.Digest{{1}}, Issued: w.Now, Expiry: w.Now + 60, Uses: 1})
	takeover := w.By(n5.Signing, &signoff.Takeover{Charter: w.ID, Notary: n5.Doc.ID(), Term: 2, Checkpoint: note})
	return release.Term{Request: string(asked.Line()), Warrant: string(granted.Line()), Takeover: string(takeover.Line())}
}

// A recipient who knows nothing but the charter's digest follows the notaries
// from term to term, and takes no other council's word for the last one's.
func TestAttackTerms(t *testing.T) {
	w := releasetest.New(t)
	o := w.Seal("model", model())
	n5, n6 := w.NewNotary("n5"), w.NewNotary("n6")
	n1, n2, n3, n4 := w.Notaries[0], w.Notaries[1], w.Notaries[2], w.Notaries[3]
	good := replaced(w, n5, w.Group, checkpoint(t, w, n1, n2, n3, n5), nil)
	bundle := func(terms []release.Term, cosigners ...*signofftest.Notary) *release.Bundle {
		b := w.Bundle(o, w.Recipient.PublicKey())
		b.Terms = terms
		founders := w.Notaries
		w.Notaries = cosigners
		b.Proof = w.Prove([]byte(b.Warrant), w.LogKey, len(cosigners))
		w.Notaries = founders
		return b
	}
	r, err := again(t, bundle([]release.Term{good}, n1, n2, n5)).Verify(w.ID)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Council.Has(n5.Doc) || r.Council.Has(n4.Doc) {
		t.Errorf("the council is %v", r.Council)
	}
	swapped := good
	swapped.Request = replaced(w, n6, w.Group, checkpoint(t, w, n1, n2, n3, n6), nil).Request
	for name, x := range map[string]struct {
		bundle *release.Bundle
		reason string
	}{
		"no term shown":            {bundle(nil, n1, n2, n5), "2 of the 3 cosignatures"},
		"the one that left":        {bundle([]release.Term{good}, n1, n2, n4), "2 of the 3 cosignatures"},
		"another list":             {bundle([]release.Term{swapped}, n1, n2, n6), "not for a change of the notaries"},
		"no sign-off":              {bundle([]release.Term{replaced(w, n5, n5.Signing, checkpoint(t, w, n1, n2, n3, n5), nil)}, n1, n2, n5), "the document names key"},
		"without the old quorum":   {bundle([]release.Term{replaced(w, n5, w.Group, checkpoint(t, w, n1, n2, n5), nil)}, n1, n2, n5), "2 of the 3 cosignatures"},
		"of another term":          {bundle([]release.Term{replaced(w, n5, w.Group, checkpoint(t, w, n1, n2, n3, n5), func(q *signoff.Request) { q.Notaries.Term = 2 })}, n1, n2, n5), "from the term before"},
		"the same term twice":      {bundle([]release.Term{good, good}, n1, n2, n5), "from the term before"},
		"a key that has a purpose": {bundle([]release.Term{replaced(w, n5, w.Group, checkpoint(t, w, n1, n2, n3, n5), func(q *signoff.Request) { q.Notaries.Notaries[3].Exchange = n4.Doc.Exchange })}, n1, n2, n5), "is the same key as notary n4's exchange key"},
	} {
		if _, err := x.bundle.Verify(w.ID); err == nil || !strings.Contains(err.Error(), x.reason) {
			t.Errorf("%s: %v, want %s", name, err, x.reason)
		}
	}
}
