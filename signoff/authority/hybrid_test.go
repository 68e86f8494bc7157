package authority_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// hybridLog has people of the charter with hybrid exchange keys.
func hybridLog(t *testing.T, names ...string) *log {
	t.Helper()
	return ready(t, func(c *signoff.Charter) {
		for i, p := range c.People {
			if slices.Contains(names, p.Name) {
				c.People[i].Exchange = signofftest.Hybrid(p.Exchange)
			}
		}
	})
}

// newHybrid makes a person with a hybrid exchange key, whom no charter names.
func (l *log) newHybrid(name string, roles ...string) *signofftest.Person {
	l.t.Helper()
	p := l.NewPerson(name, "third", roles...)
	p.Doc.Exchange = signofftest.Hybrid(p.Doc.Exchange)
	return p
}

// exposure is what the log so far tells of an object.
func (l *log) exposure(object Digest) *authority.Exposure {
	l.t.Helper()
	x, err := authority.NewExposure(l.state().Objects[object], l.state().Tokens)
	l.must(err)
	for _, line := range l.lines {
		l.must(x.Entry(line, l.blobs))
	}
	return x
}

// withstands wants that many people's shares under P-256 alone in the worst
// epoch, and the answer that follows.
func (l *log) withstands(object Digest, classic int, want bool) {
	l.t.Helper()
	x := l.exposure(object)
	if n, takes := x.Side(lockbox.People); n != classic || takes != 3 || x.Withstands() != want {
		l.t.Fatalf("%d people's shares where %d open stand under P-256 alone, withstands: %v; want %d and %v", n, takes, x.Withstands(), classic, want)
	}
	if n, takes := x.Side(lockbox.Machines); n != 4 || takes != 3 {
		l.t.Fatalf("%d notaries' shares where %d open", n, takes)
	}
}

// exportAway asks for an object to go to a P-256 key of nobody here.
func (l *log) exportAway(object Digest) Digest {
	l.t.Helper()
	to := l.NewPerson("partner", "elsewhere", "research").Doc.Exchange
	return l.takes(l.asks("alice", signoff.ActionExport, func(r *signoff.Request) {
		r.Export = &signoff.Export{Object: object, Recipient: "partner", RecipientKey: to, Destination: "disk 7"}
	}))
}

func (l *log) redealAll(object Digest, people ...string) {
	l.t.Helper()
	for _, p := range people[:3] {
		l.takes(l.deals(p, object))
	}
	for _, p := range people {
		l.takes(l.custody(p, object))
	}
	if e := l.state().Objects[object].People.Epoch; e != 2 {
		l.t.Fatalf("epoch %d after the re-deal", e)
	}
}

func TestHybridShares(t *testing.T) {
	l := hybridLog(t, "alice", "bob", "carol")
	object := l.sealed("model")
	l.withstands(object, 2, true)
	frank := l.newHybrid("frank", "leadership", "security")
	change := adds(frank)
	change.Remove = []Digest{l.id("erin")}
	l.changes(change, frank)
	l.redealAll(object, "alice", "bob", "dave", "carol", "frank")
	for _, p := range []string{"alice", "bob", "carol", "dave", "frank"} {
		l.share(p, object).Wipe()
	}
	l.withstands(object, 2, true) // epoch 1's, of whom one left
	if again := l.again(); again.StateDigest() != l.fold.StateDigest() {
		t.Fatal("the same entries folded to another state")
	}
	// Dave's share stands under P-256 anyhow; bob's and carol's do with their approvals.
	away := l.exportAway(object)
	l.approves(away, "dave", "bob")
	l.withstands(object, 2, true)
	l.approves(away, "carol")
	l.withstands(object, 3, false)
}

// Old deals stay where they are copied: better keys in a later epoch help only
// objects that are sealed then.
func TestRedealToHybridKeysHidesNothingOld(t *testing.T) {
	l := hybridLog(t, "alice", "bob")
	object := l.sealed("old")
	l.withstands(object, 3, false)
	frank := l.newHybrid("frank", "leadership", "security")
	change := adds(frank)
	change.Remove = []Digest{l.id("erin")}
	l.changes(change, frank)
	l.redealAll(object, "alice", "bob", "dave", "carol", "frank")
	l.withstands(object, 3, false)
	l.withstands(l.sealed("new"), 2, true)
}

// Dealing on to too many P-256 keys gives the shares away, though nobody accepts.
func TestRedealToClassicKeysExposes(t *testing.T) {
	l := hybridLog(t, "alice", "bob", "carol")
	object := l.sealed("model")
	grace, heidi := l.NewPerson("grace", "third", "research"), l.NewPerson("heidi", "third", "research")
	l.changes(adds(grace, heidi), grace, heidi)
	l.withstands(object, 2, true)
	for _, p := range []string{"alice", "bob", "carol"} {
		l.takes(l.deals(p, object))
	}
	if e := l.state().Objects[object].People.Epoch; e != 1 {
		t.Fatalf("epoch %d", e)
	}
	l.withstands(object, 4, false) // dave, erin and the two
}

// The nodes of its run have the people's half of a snapshot, under P-256. Of an
// object whose deals nobody saw nothing good is known.
func TestExposureOfSnapshots(t *testing.T) {
	l := hybridLog(t, "alice", "bob", "carol", "dave", "erin")
	id, secrets := l.object("model")
	defer secrets.Wipe()
	deals, err := secrets.Deal(id, 1)
	l.must(err)
	for _, tc := range []struct {
		claim Digest
		deals []lockbox.Deal
		want  bool
	}{{Digest{}, deals.People, true}, {Digest{1}, deals.People, false}, {Digest{}, deals.Machines, false}, {Digest{}, nil, false}} {
		doc := *l.state().Objects[id].Doc
		doc.Claim = tc.claim
		x, err := authority.NewExposure(&authority.Object{ID: id, Doc: &doc}, l.state().Tokens)
		l.must(err)
		x.Deals(tc.deals...)
		if x.Withstands() != tc.want {
			t.Errorf("claim %s, %d deals: withstands %v", tc.claim, len(tc.deals), x.Withstands())
		}
	}
}

// A blob that is not here could hold anything.
func TestExposureWithoutBlob(t *testing.T) {
	l := hybridLog(t, "alice", "bob", "carol")
	object := l.sealed("model")
	x, err := authority.NewExposure(l.state().Objects[object], l.state().Tokens)
	l.must(err)
	var missing error
	for _, line := range l.lines {
		if err := x.Entry(line, blobs{}); err != nil {
			missing = err
		}
	}
	if missing == nil || !strings.Contains(missing.Error(), "deals") {
		t.Fatalf("a log without the deals: %v", missing)
	}
}

// Whoever is hybrid in the roster is dealt nothing under P-256 alone, and does
// not become so.
func TestAttackHybridDowngrade(t *testing.T) {
	l := hybridLog(t, "alice", "bob", "carol")
	alice := l.People["alice"].Doc.Exchange
	half, err := alice.P256Half().Recipient()
	l.must(err)

	// A sealer deals to the P-256 half, and says so or not.
	id, secrets := l.object("model")
	defer secrets.Wipe()
	honest, err := secrets.Deal(id, 1)
	l.must(err)
	identity := l.People["alice"].Identity(t)
	sharing, err := lockbox.ParseSharing(3, l.state().Objects[id].Doc.Lockbox.People.Commitments)
	l.must(err)
	share, err := lockbox.OpenShare(context.Background(), identity, lockbox.Context{Charter: l.ID, Object: id, Side: lockbox.People, Epoch: 1, Index: 1,
		Holder: identity.Recipient().ID()}, sharing, honest.People[0])
	l.must(err)
	defer share.Wipe()
	weak, err := share.DealTo(half)
	l.must(err)
	open := honest
	open.People = append([]lockbox.Deal{weak}, honest.People[1:]...)
	l.voids(l.dealt(id, open), "which holds no such share")
	disguised := weak
	disguised.Holder = alice.Fingerprint()
	open.People = append([]lockbox.Deal{disguised}, honest.People[1:]...)
	l.voids(l.dealt(id, open), "has 145 bytes, to that key it has 1233")
	if _, err := lockbox.OpenShare(context.Background(), identity, share.Context(), sharing, disguised); err == nil {
		t.Fatal("a hybrid key opened what was sealed to its P-256 half")
	}
	l.takes(l.dealt(id, honest))

	// So does the holder, for own tokens.
	blob, err := dsse.Encode([]lockbox.Deal{disguised})
	l.must(err)
	l.voids(l.signed(l.People["alice"].Signing, &signoff.Custody{Charter: l.ID, Person: l.id("alice"), Blob: l.blobs.put(blob),
		Shares: []signoff.Held{{Object: id, Epoch: 1, Sharing: authority.SharingDigest(sharing)}}}), "has 145 bytes, to that key it has 1233")
	l.withstands(id, 3, false) // refused, and on record none the less

	// The roster goes back to P-256, by another token or by half of the old one.
	classic := l.spare("alice")
	l.voids(l.people("alice", l.gives("alice", classic, l.id("alice"))), "alice's exchange keys are hybrid and the new token's is not")
	l.voids(l.people("alice", l.gives("alice", classic, Digest{})), "alice's exchange keys are hybrid and the new token's is not")
	for name, key := range map[string]signoff.PublicKey{
		"the P-256 half":                  alice.P256Half(),
		"the P-256 half with another":     {Encoded: alice.Encoded, Class: alice.Class, MLKEM768: signofftest.Hybrid(classic.Doc.Exchange).MLKEM768},
		"another with the ML-KEM-768 one": {Encoded: classic.Doc.Exchange.Encoded, Class: alice.Class, MLKEM768: alice.MLKEM768},
	} {
		p := l.NewPerson("x-"+strings.ToLower(strings.ReplaceAll(name, " ", "-")), "lab", "research")
		p.Doc.Exchange = key
		l.voids(l.people("bob", adds(p)), "is the same key as alice's exchange key, or shares a half with it")
	}
	next := l.newHybrid("alice-next", "research")
	l.changes(l.gives("alice", next, l.id("alice")), next)
}
