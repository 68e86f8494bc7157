package authority_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/hsmtest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// authenticators has one of each type.
func authenticators() []*hsmtest.Authenticator {
	return []*hsmtest.Authenticator{hsmtest.NewECDSAAuthenticator("ssh:keyturn"), hsmtest.NewEd25519Authenticator("ssh:keyturn")}
}

// withAuthenticator is a log in whose charter erin signs with a FIDO key.
func withAuthenticator(t *testing.T, a hsm.Key) *log {
	t.Helper()
	keys := signofftest.Keys(t, func(c *signoff.Charter) {
		c.Created = began
		fourOfFour(c)
	})
	keys.SignsOnlyWith("erin", a)
	fold, err := authority.New(keys.ID)
	if err != nil {
		t.Fatal(err)
	}
	return (&log{Cluster: keys, t: t, fold: fold, blobs: blobs{}}).founded().keygen()
}

// An approval by a FIDO key is one vote and no share.
func TestSecurityKeyApproves(t *testing.T) {
	for _, a := range authenticators() {
		l := withAuthenticator(t, a)
		if n := len(l.holders().People.Holders); n != 4 {
			t.Fatalf("shares are dealt to %d people, want 4", n)
		}
		r := l.takes(l.export("alice", l.sealed("model")))
		l.approves(r, "bob", "carol", "dave")
		if l.satisfied(r) {
			t.Fatal("three approvals satisfied a rule that wants four")
		}
		l.voids(l.decides("erin", signoff.Approve, r), "has no exchange key and was dealt none")
		a.Flags, a.Counter = 5, 9
		l.takes(l.decides("erin", signoff.Approve, r, withoutShares))
		if !l.satisfied(r) {
			t.Fatal("the fourth approval did not count")
		}
		w := l.takes(l.warrant(r))
		if n := len(l.state().Warrants[w].Doc.Approvals); n != 4 {
			t.Errorf("the warrant counts %d approvals", n)
		}
		l.foldsAlike()
	}
}

func withoutShares(a *signoff.Approval) { a.Shares = nil }

// foldsAlike folds the log one by one and on all cores.
func (l *log) foldsAlike() {
	l.t.Helper()
	fold, err := authority.New(l.ID)
	l.must(err)
	l.must(fold.ApplyAll(l.lines, l.blobs, func(authority.Outcome, []byte) {}))
	if one := l.again(); one.StateDigest() != l.fold.StateDigest() || fold.StateDigest() != l.fold.StateDigest() {
		l.t.Error("the same entries folded to another state")
	}
}

func TestAttackSecurityKeyApproval(t *testing.T) {
	for _, a := range authenticators() {
		l := withAuthenticator(t, a)
		r := l.takes(l.policy("alice", l.Charter.Policy))
		good := l.decides("erin", signoff.Approve, r)
		message := dsse.PAE(good.Payload)
		with := func(edit func(*hsmtest.Authenticator)) []byte {
			other := *a
			edit(&other)
			sig, err := other.SignMessageContext(context.Background(), message)
			l.must(err)
			return sig
		}
		plain, err := a.Private.Sign(rand.Reader, message, crypto.Hash(0))
		if _, ok := a.Private.(*ecdsa.PrivateKey); ok {
			sum := sha256.Sum256(message)
			plain, err = a.Private.Sign(rand.Reader, sum[:], crypto.SHA256)
		}
		l.must(err)
		bob, err := hsm.SignMessage(context.Background(), l.People["bob"].Signing, message)
		l.must(err)
		strangers := authenticators()
		for _, forged := range []struct {
			what   string
			sig    []byte
			reason string
		}{
			{"for another application", with(func(o *hsmtest.Authenticator) { o.Application = "ssh:login" }), "does not verify"},
			{"untouched", with(func(o *hsmtest.Authenticator) { o.Flags = 0 }), "no proof of presence"},
			{"verified and untouched", with(func(o *hsmtest.Authenticator) { o.Flags = 4 }), "no proof of presence"},
			{"copied", with(func(o *hsmtest.Authenticator) { o.Flags = 0x19 }), "no proof of presence"},
			{"not counted", with(func(o *hsmtest.Authenticator) { o.Counter = 0 }), "no proof of presence"},
			{"cut", good.Sig[:len(good.Sig)-4], "does not verify"},
			{"flags alone", good.Sig[len(good.Sig)-5:], "no flags and counter"},
			{"touch pretended", slices.Concat(with(func(o *hsmtest.Authenticator) { o.Flags = 0 })[:len(good.Sig)-5], []byte{1, 0, 0, 0, 1}), "does not verify"},
			{"plain", plain, "does not verify"},
			{"plain with a tail", append(plain, 1, 0, 0, 0, 1), "does not verify"},
			{"by bob", bob, "does not verify"},
			{"by another P-256 key", with(func(o *hsmtest.Authenticator) { o.Private = strangers[0].Private }), "does not verify"},
			{"by another Ed25519 key", with(func(o *hsmtest.Authenticator) { o.Private = strangers[1].Private }), "does not verify"},
		} {
			t.Run(fmt.Sprintf("%T/%s", a.Private, forged.what), func(t *testing.T) {
				l.t = t
				env := *good.Envelope
				env.Sig = forged.sig
				l.voids(&signoff.Signed{Envelope: &env, Doc: good.Doc}, forged.reason)
			})
		}
		l.t = t
		// Enrolled for another application, it is nobody's key, whatever is signed.
		elsewhere := *a
		elsewhere.Application, elsewhere.Enrolled = "ssh:login", "ssh:login"
		l.voids(l.signed(&elsewhere, good.Doc), "which is none of erin's")
		if p, ok := a.Private.(*ecdsa.PrivateKey); ok {
			l.voids(l.signed(plainKey{a, p}, good.Doc), "which is none of erin's")
		}
		if len(l.state().Requests[r].Votes) != 0 {
			t.Fatal("a forged approval counts")
		}
		l.takes(good)
		l.foldsAlike()
	}
}

// plainKey is the key of an authenticator outside of it.
type plainKey struct {
	*hsmtest.Authenticator
	key *ecdsa.PrivateKey
}

func (p plainKey) Public() crypto.PublicKey { return p.key.Public() }

func (p plainKey) SignMessageContext(_ context.Context, message []byte) ([]byte, error) {
	sum := sha256.Sum256(message)
	return p.key.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// A newcomer shows that the authenticator is there, and counts from then on; the
// next takes the first one's place.
func TestSecurityKeyComesIn(t *testing.T) {
	l := ready(t, fourOfFour)
	for i, a := range authenticators() {
		p := l.NewPerson(fmt.Sprintf("frank-%d", i), "watch", "safety")
		p.Signing, p.Exchange = a, nil
		public, err := signoff.NewPublicKey(a.Public(), hsm.ClassSoftware)
		l.must(err)
		p.Doc.Token = signoff.Token{Signing: public}
		change := adds(p)
		if i > 0 {
			change.Remove = []Digest{l.id(fmt.Sprintf("frank-%d", i-1))}
		}
		r := l.takes(l.people("alice", change))
		accepts := l.accepts(p, r)
		env := *accepts.Envelope
		env.Sig = append(slices.Clone(env.Sig[:len(env.Sig)-5]), 5, 0, 0, 0, 1)
		l.voids(&signoff.Signed{Envelope: &env, Doc: accepts.Doc}, "does not verify")
		l.takes(accepts)
		l.approves(r, "bob", "carol", "dave", "erin")
		l.takes(l.warrant(r))

		ask := l.takes(l.export("alice", l.sealed(fmt.Sprintf("model-%d", i))))
		l.takes(l.decides(p.Name, signoff.Approve, ask, withoutShares))
		l.approves(ask, "bob", "carol", "erin")
		if !l.satisfied(ask) {
			t.Error("an authenticator's approval does not count")
		}
	}
	l.foldsAlike()
}
