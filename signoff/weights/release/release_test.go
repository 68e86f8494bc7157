package release_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/weights/release"
	"github.com/keyturn/keyturn/signoff/weights/release/releasetest"
)

func model() map[string][]byte {
	return map[string][]byte{"a.bin": bytes.Repeat([]byte("weights"), 1000), "empty": {}}
}

// again sends a bundle through its file form.
func again(t *testing.T, b *release.Bundle) *release.Bundle {
	t.Helper()
	data, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := release.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestVerifyAndUnlock(t *testing.T) {
	w := releasetest.New(t)
	o := w.Seal("model", model())
	r, err := again(t, w.Bundle(o, w.Recipient.PublicKey())).Verify(w.ID)
	if err != nil {
		t.Fatal(err)
	}
	if r.ObjectID != o.Digest() || strings.Join(r.Approvers, " ") != "bob carol dave" || len(r.Witnesses) != w.Charter.Quorum() {
		t.Fatalf("verified object %s, approvers %v, %d witnesses", r.ObjectID, r.Approvers, len(r.Witnesses))
	}
	u, err := r.Unlock(context.Background(), w.Recipient)
	if err != nil {
		t.Fatal(err)
	}
	u.Wipe()
}

// An approver without an exchange key is counted and brings no share: the others'
// must be enough.
func TestVerifyApproverWithoutShare(t *testing.T) {
	w := releasetest.New(t, func(c *signoff.Charter) { c.People[4].Exchange = signoff.PublicKey{} })
	o := w.Seal("model", model())
	r, err := again(t, w.BundleBy(o, w.Recipient.PublicKey(), "bob", "erin", "carol", "dave")).Verify(w.ID)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(r.Approvers, " ") != "bob erin carol dave" {
		t.Errorf("approvers are %v", r.Approvers)
	}
	u, err := r.Unlock(context.Background(), w.Recipient)
	if err != nil {
		t.Fatal(err)
	}
	u.Wipe()
	if _, err := w.BundleBy(o, w.Recipient.PublicKey(), "bob", "erin", "carol").Verify(w.ID); err == nil || !strings.Contains(err.Error(), "2 people's shares, it takes 3") {
		t.Errorf("two shares and a signature: %v", err)
	}
}

// A snapshot was signed by a node's key, which the recipient cannot know: that
// people approved this object is what counts.
func TestVerifySnapshot(t *testing.T) {
	w := releasetest.New(t)
	o := w.Snapshot("snapshot", model())
	r, err := again(t, w.Bundle(o, w.Recipient.PublicKey())).Verify(w.ID)
	if err != nil {
		t.Fatal(err)
	}
	u, err := r.Unlock(context.Background(), w.Recipient)
	if err != nil {
		t.Fatal(err)
	}
	u.Wipe()
	forged := *w.Seal("model", model()).Doc
	forged.Claim = dsse.Digest{2} // so that nobody asks for the sealer's signature
	b := w.Bundle(o, w.Recipient.PublicKey())
	b.Object = string(w.Sign("bob", &forged).Line())
	if _, err := b.Verify(w.ID); err == nil || !strings.Contains(err.Error(), "asks for object") {
		t.Fatalf("got %v, want the object that nobody approved refused", err)
	}
}

// One approver sealed garbage: a further approval makes up for it, and without
// one the error says whose share is bad.
func TestUnlockPassesOverBadShare(t *testing.T) {
	w := releasetest.New(t)
	o, to := w.Seal("model", model()), w.Recipient.PublicKey()
	b := w.Bundle(o, to)
	request := parse(t, b.Request).Digest()
	bad := w.Approve("bob", o, request, to, func(a *signoff.Approval) { a.Shares[0].Sealed[100] ^= 1 })
	b.Approvals[0] = string(bad.Line())
	warrant := w.Warrant(request, bad.Digest(), parse(t, b.Approvals[1]).Digest(), parse(t, b.Approvals[2]).Digest())
	b.Warrant, b.Proof = string(warrant.Line()), w.Prove(warrant.Line(), w.LogKey, 3)
	for i := range b.Releases {
		b.Releases[i] = string(w.Release(i, o, request, warrant.Digest(), to).Line())
	}
	r, err := b.Verify(w.ID)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Unlock(context.Background(), w.Recipient)
	var share *lockbox.ShareError
	if !errors.As(err, &share) || share.Context.Index != 2 || share.Context.Side != lockbox.People {
		t.Fatalf("got %v, want the share of people's holder 2 (bob) named", err)
	}
	b.Approvals = append(b.Approvals, string(w.Approve("erin", o, request, to, nil).Line()))
	if r, err = b.Verify(w.ID); err != nil {
		t.Fatal(err)
	}
	u, err := r.Unlock(context.Background(), w.Recipient)
	if err != nil {
		t.Fatal(err)
	}
	u.Wipe()
}

// One share under two names, as a former notary and the one in its place could
// release it, counts once and does not keep a good one out.
func TestAttackShareTwice(t *testing.T) {
	w := releasetest.New(t)
	r, err := w.Bundle(w.Seal("model", model()), w.Recipient.PublicKey()).Verify(w.ID)
	if err != nil {
		t.Fatal(err)
	}
	r.RepeatFirst()
	u, err := r.Unlock(t.Context(), w.Recipient)
	if err != nil {
		t.Fatal(err)
	}
	u.Wipe()
}

func parse(t *testing.T, line string) *signoff.Signed {
	t.Helper()
	s, err := signoff.ReadLine([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A quorum of notaries can replace the log key; a bundle made after that shows
// it.
func TestRecoveredLogKey(t *testing.T) {
	w := releasetest.New(t)
	o := w.Seal("model", model())
	b := w.Bundle(o, w.Recipient.PublicKey())
	b.Proof = w.Prove([]byte(b.Warrant), w.Group, 3) // any other Ed25519 key
	if _, err := b.Verify(w.ID); err == nil || !strings.Contains(err.Error(), "not signed by the log key") {
		t.Fatalf("got %v, want the foreign log key refused", err)
	}
	recover := func(notaries int, key signoff.PublicKey) string {
		seen := signoff.Seen{Size: 2, Root: w.ID}
		x := &signoff.Recovery{Charter: w.ID, Log: w.Public(w.Group.Public()), Base: seen}
		fp := key.Fingerprint()
		for _, n := range w.Notaries[:notaries] {
			x.Positions = append(x.Positions, string(w.By(n.Signing, &signoff.Position{Charter: w.ID, Notary: n.Doc.ID(), Seen: seen, Answer: fp[:]}).Line()))
		}
		return string(w.By(w.Notaries[0].Signing, x).Line())
	}
	b.Recovery = recover(3, w.Public(w.Group.Public()))
	if _, err := b.Verify(w.ID); err != nil {
		t.Fatal(err)
	}
	b.Recovery = recover(2, w.Public(w.Group.Public()))
	if _, err := b.Verify(w.ID); err == nil || !strings.Contains(err.Error(), "2 notaries stated") {
		t.Fatalf("got %v, want two notaries refused", err)
	}
	b.Recovery = recover(3, w.Charter.Log)
	if _, err := b.Verify(w.ID); err == nil || !strings.Contains(err.Error(), "another log key") {
		t.Fatalf("got %v, want positions for another key refused", err)
	}
}

// Every attack starts from a good bundle, changes one thing, signs whatever the
// attacker could get signed, and must be refused for the reason given.
func TestAttacks(t *testing.T) {
	w := releasetest.New(t)
	to := w.Recipient.PublicKey()
	o, other := w.Seal("model", model()), w.Seal("other", model())
	good := w.Bundle(o, to)
	foreign := w.Bundle(other, to)
	request, warrant := parse(t, good.Request).Digest(), parse(t, good.Warrant).Digest()
	stranger := w.NewRecipient("stranger")
	lines := func(ls ...*signoff.Signed) (out []string) {
		for _, l := range ls {
			out = append(out, string(l.Line()))
		}
		return out
	}
	attacks := []struct {
		name, want string
		do         func(*release.Bundle)
	}{
		{"OtherObject", "asks for object", func(b *release.Bundle) { b.Object = foreign.Object }},
		{"OtherRequest", "asks for object", func(b *release.Bundle) { b.Request = foreign.Request }},
		{"OtherWarrant", "it is for weights.export of request", func(b *release.Bundle) { b.Warrant, b.Proof = foreign.Warrant, foreign.Proof }},
		{"ApprovalsOfOtherRequest", "for request", func(b *release.Bundle) { b.Approvals = foreign.Approvals }},
		{"ReleasesOfOtherWarrant", "released for warrant", func(b *release.Bundle) { b.Releases = foreign.Releases }},
		{"OneApprovalShort", "is not in the bundle", func(b *release.Bundle) { b.Approvals = b.Approvals[:2] }},
		{"OneApprovalShortWarrantAgrees", "2 people's shares, it takes 3", func(b *release.Bundle) {
			b.Approvals = b.Approvals[:2]
			x := w.Warrant(request, parse(t, b.Approvals[0]).Digest(), parse(t, b.Approvals[1]).Digest())
			b.Warrant, b.Proof = string(x.Line()), w.Prove(x.Line(), w.LogKey, 3)
		}},
		{"ApprovalTwice", "two by bob", func(b *release.Bundle) { b.Approvals[1] = b.Approvals[0] }},
		{"RejectionAsApproval", "signed reject", func(b *release.Bundle) {
			b.Approvals = append(b.Approvals, lines(w.Approve("erin", o, request, to, func(a *signoff.Approval) { a.Decision, a.Shares = signoff.Reject, nil }))...)
		}},
		{"ApprovalUnderOtherRule", "under rule", func(b *release.Bundle) {
			b.Approvals = append(b.Approvals, lines(w.Approve("erin", o, request, to, func(a *signoff.Approval) { a.Rule = w.ID }))...)
		}},
		{"ApprovalByNobody", "none of person", func(b *release.Bundle) {
			b.Approvals = append(b.Approvals, lines(w.Approve("erin", o, request, to, func(a *signoff.Approval) { a.Person = w.ID }))...)
		}},
		{"ApprovalInAnothersName", "none of person", func(b *release.Bundle) {
			b.Approvals = append(b.Approvals, lines(w.Approve("erin", o, request, to, func(a *signoff.Approval) { a.Person = w.People["alice"].Doc.ID() }))...)
		}},
		{"AnothersShare", "want share 5", func(b *release.Bundle) {
			b.Approvals = append(b.Approvals, lines(w.Approve("erin", o, request, to, func(a *signoff.Approval) { a.Shares[0].Index = 1 }))...)
		}},
		{"ShareForStranger", "for sha256:", func(b *release.Bundle) {
			b.Approvals = append(b.Approvals, lines(w.Approve("erin", o, request, stranger.PublicKey(), nil))...)
		}},
		{"OneReleaseShort", "2 notaries' shares, it takes 3", func(b *release.Bundle) { b.Releases = b.Releases[:2] }},
		{"ReleaseTwice", "two by n1", func(b *release.Bundle) { b.Releases[1] = b.Releases[0] }},
		{"ReleaseByPerson", "not a notary", func(b *release.Bundle) {
			s := w.Share(o, lockbox.Machines, 1, w.Notaries[0].Exchange, request, to)
			b.Releases[0] = lines(w.Sign("bob", &signoff.Release{Charter: w.ID, Notary: w.People["bob"].Doc.ID(), Warrant: warrant, Share: s}))[0]
		}},
		{"ChangedDestination", "verify", func(b *release.Bundle) { b.Request = forge(t, b.Request, "disk 1", "disk 2") }},
		{"ChangedRecipient", "verify", func(b *release.Bundle) { b.Request = forge(t, b.Request, "partner", "partnes") }},
		{"ResignedRequest", "it is for weights.export of request", func(b *release.Bundle) { b.Request = lines(w.Ask(o, stranger.PublicKey()))[0] }},
		{"WarrantByOnePerson", "names key", func(b *release.Bundle) {
			x := w.Sign("bob", parse(t, b.Warrant).Doc)
			b.Warrant, b.Proof = string(x.Line()), w.Prove(x.Line(), w.LogKey, 3)
		}},
		{"OwnGroupKey", "do not agree", func(b *release.Bundle) {
			b.Transcripts[0] = lines(w.Transcript(0, w.LogKey))[0]
		}},
		{"GroupKeyByQuorumOnly", "all 4 have to", func(b *release.Bundle) { b.Transcripts = b.Transcripts[:3] }},
		{"GroupKeyByOneNotaryFourTimes", "1 notaries vouch", func(b *release.Bundle) {
			x := w.Transcript(0, w.LogKey)
			b.Transcripts = lines(x, x, x, x)
		}},
		{"NotFinal", "not final", func(b *release.Bundle) { b.Proof = w.Prove([]byte(b.Warrant), w.LogKey, 2) }},
		{"NotInLog", "not proved", func(b *release.Bundle) { b.Proof = foreign.Proof }},
		{"NoProof", "not a proof", func(b *release.Bundle) { b.Proof = "" }},
		{"OtherCharter", "do not go on", func(b *release.Bundle) { b.Charter = string(releasetest.New(t).Genesis[0]) }},
		{"Swapped", "stands where", func(b *release.Bundle) { b.Object, b.Request = b.Request, b.Object }},
		{"Empty", "charter", func(b *release.Bundle) { *b = release.Bundle{Version: release.Version} }},
	}
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			b := again(t, good)
			a.do(b)
			if _, err := b.Verify(w.ID); err == nil || !strings.Contains(err.Error(), a.want) {
				t.Fatalf("got %v, want an error with %q", err, a.want)
			}
		})
	}
	if _, err := good.Verify(dsse.Digest{}); err == nil {
		t.Fatal("verified without an anchor")
	}
}

// forge changes words of the payload under the old signature.
func forge(t *testing.T, line, from, to string) string {
	t.Helper()
	e, err := dsse.Parse([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	e.Payload = bytes.ReplaceAll(e.Payload, []byte(from), []byte(to))
	return string(e.Line())
}

// Whoever steals the bundle, or is another recipient of the same object, opens
// nothing; neither does the right key with the shares of another export.
func TestAttackForeignKey(t *testing.T) {
	w := releasetest.New(t)
	o := w.Seal("model", model())
	second := w.NewRecipient("second")
	r, err := w.Bundle(o, w.Recipient.PublicKey()).Verify(w.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Unlock(context.Background(), second); err == nil || !strings.Contains(err.Error(), "released to key") {
		t.Fatalf("got %v, want the other key refused", err)
	}
	var none hsm.Decrypter
	if _, err := r.Unlock(context.Background(), none); err == nil {
		t.Fatal("unlocked without a key")
	}
}

// Shares released for one request do not open under another request of the same
// object and recipient: requests that were vetoed cannot be collected.
func TestAttackCollectedShares(t *testing.T) {
	w := releasetest.New(t)
	to := w.Recipient.PublicKey()
	o := w.Seal("model", model())
	b := w.Bundle(o, to)
	request := parse(t, b.Request).Digest()
	vetoed := w.Ask(o, to)
	var approvals []dsse.Digest
	for i, person := range []string{"bob", "carol", "dave"} {
		stolen := w.Approve(person, o, vetoed.Digest(), to, nil).Doc.(*signoff.Approval).Shares
		a := w.Approve(person, o, request, to, func(a *signoff.Approval) { a.Shares = stolen })
		b.Approvals[i] = string(a.Line())
		approvals = append(approvals, a.Digest())
	}
	warrant := w.Warrant(request, approvals...)
	b.Warrant, b.Proof = string(warrant.Line()), w.Prove(warrant.Line(), w.LogKey, 3)
	for i := range b.Releases {
		b.Releases[i] = string(w.Release(i, o, request, warrant.Digest(), to).Line())
	}
	r, err := b.Verify(w.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Unlock(context.Background(), w.Recipient); !errors.Is(err, lockbox.Unopened) {
		t.Fatalf("got %v, want shares that do not open", err)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, data := range map[string]string{
		"nothing": "", "other version": `{"version":"keyturn release 2"}`, "unknown member": `{"version":"keyturn release 1","extra":1}`,
		"twice": `{"version":"keyturn release 1","version":"keyturn release 1"}`, "case": `{"Version":"keyturn release 1"}`,
		"trailing": `{"version":"keyturn release 1"}{}`,
	} {
		if _, err := release.Parse([]byte(data)); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
	for name, data := range map[string]string{"nothing": "", "no charter": `{"charter":"","release":"/r","key":"file:/k"}`, "extra": `{"charter":"","release":"/r","key":"file:/k","pin":"1"}`} {
		if _, err := release.ParseIdentity([]byte(data)); err == nil {
			t.Errorf("identity, %s: parsed", name)
		}
	}
}

// FuzzVerify puts any bytes in the place of one member of a good bundle: nothing
// but the member itself may verify.
func FuzzVerify(f *testing.F) {
	w := releasetest.New(f)
	o := w.Seal("model", model())
	good := w.Bundle(o, w.Recipient.PublicKey())
	for i := range uint8(9) {
		f.Add(i, `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"AAAA"}}}`)
		f.Add(i, "c2sp.org/tlog-proof@v1\nindex 2\n\n")
	}
	f.Fuzz(func(t *testing.T, member uint8, text string) {
		b := *good
		for _, list := range []*[]string{&b.Approvals, &b.Releases, &b.Transcripts} {
			*list = slices.Clone(*list)
		}
		members := []*string{&b.Version, &b.Charter, &b.Object, &b.Request, &b.Warrant, &b.Proof, &b.Approvals[0], &b.Releases[0], &b.Transcripts[0]}
		at := members[int(member)%len(members)]
		if at == &b.Version || *at == text {
			return
		}
		*at = text
		if _, err := b.Verify(w.ID); err == nil {
			t.Fatalf("verified with member %d replaced by %q", member, text)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":"keyturn release 1","charter":"","transcripts":[],"object":"","request":"","warrant":"","proof":"","approvals":[],"releases":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := release.Parse(data)
		if err != nil {
			return
		}
		again, err := b.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := release.Parse(again); err != nil {
			t.Fatalf("parsed, but not what was written from it: %v", err)
		}
	})
}

// changed is a change of people that took effect.
func changed(w *releasetest.World, by hsm.Key, c signoff.PeopleChange) release.Change {
	q := w.Sign("alice", &signoff.Request{Charter: w.ID, Action: signoff.ActionPeopleChange, Requester: w.People["alice"].Doc.ID(), Purpose: "a test",
		Created: w.Now, Expiry: w.Now + 3600, Nonce: make([]byte, 16), Seen: signoff.Seen{Size: 1, Root: dsse.Digest{1}}, People: &c})
	warrant := w.By(by, &signoff.Warrant{Charter: w.ID, Request: q.Digest(), Action: signoff.ActionPeopleChange, Policy: dsse.Digest{1}, Rule: dsse.Digest{1}, Index: 5,
		Approvals: []dsse.Digest{{1}}, Issued: w.Now, Expiry: w.Now + 3600, Uses: 1})
	return release.Change{Request: string(q.Line()), Warrant: string(warrant.Line())}
}

func TestVerifyFollowsChangesOfPeople(t *testing.T) {
	w := releasetest.New(t)
	b := w.Bundle(w.Seal("model", model()), w.Recipient.PublicKey())
	frank := w.NewPerson("frank", "third", "research")
	b.People = []release.Change{
		changed(w, w.Group, signoff.PeopleChange{Add: []signoff.Person{frank.Doc}}),
		changed(w, w.Group, signoff.PeopleChange{Remove: []dsse.Digest{w.People["erin"].Doc.ID()}}),
	}
	r, err := again(t, b).Verify(w.ID)
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := r.People.Named("frank"); !ok || m.Index != 6 || len(r.People.Members) != 5 {
		t.Fatalf("people after the changes: %+v", r.People.Members)
	}
	// An object from before more shares were asked for opens with as many as it
	// was sealed for.
	b.People = append(b.People, changed(w, w.Group, signoff.PeopleChange{Threshold: 4}))
	if r, err = again(t, b).Verify(w.ID); err != nil || r.People.Threshold != 4 {
		t.Fatalf("after the threshold rose: %v", err)
	}
	b.People = append(b.People, changed(w, w.Group, signoff.PeopleChange{Threshold: 3}))
	if _, err := again(t, b).Verify(w.ID); err == nil || !strings.Contains(err.Error(), "can only rise") {
		t.Fatalf("got %v, want a lower threshold refused", err)
	}
}

func TestAttackForgedChangeOfPeople(t *testing.T) {
	w := releasetest.New(t)
	good := w.Bundle(w.Seal("model", model()), w.Recipient.PublicKey())
	frank := w.NewPerson("frank", "third", "research")
	joins := signoff.PeopleChange{Add: []signoff.Person{frank.Doc}}
	one, two := changed(w, w.Group, joins), changed(w, w.Group, signoff.PeopleChange{Remove: []dsse.Digest{w.People["erin"].Doc.ID()}})
	for name, c := range map[string]struct {
		people []release.Change
		want   string
	}{
		"not by the group":         {[]release.Change{changed(w, w.People["alice"].Signing, joins)}, "names key"},
		"another change's warrant": {[]release.Change{{Request: one.Request, Warrant: two.Warrant}}, "stands beside"},
		"an export":                {[]release.Change{{Request: good.Request, Warrant: good.Warrant}}, "where a change of people belongs"},
		"twice":                    {[]release.Change{one, one}, "named"},
		"nothing":                  {[]release.Change{{}}, "people"},
	} {
		b := again(t, good)
		b.People = c.people
		if _, err := b.Verify(w.ID); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.want)
		}
	}
}
