package authority_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A signing is a session of notaries 1 to q of the term in office over a payload.
type signing struct {
	*log
	term    uint32
	payload []byte
	list    []frost.Commitment
	nonces  []*frost.Nonce
}

func (l *log) signing(payload string) *signing {
	l.t.Helper()
	s := &signing{log: l, term: l.state().Term().Number, payload: []byte(payload)}
	for _, k := range l.shares[:l.state().Council().Quorum()] {
		nonce, c, err := k.Commit(rand.Reader)
		l.must(err)
		s.nonces, s.list = append(s.nonces, nonce), append(s.list, c)
	}
	return s
}

func (s *signing) encoded() (out [][]byte) {
	for _, c := range s.list {
		b, _ := c.MarshalBinary()
		out = append(out, b)
	}
	return out
}

// share is the right one of the notary with this place, from 0. It can be had
// once.
func (s *signing) share(i int) [32]byte {
	s.t.Helper()
	z, err := s.shares[i].Sign(s.nonces[i], s.group, dsse.PAE(s.payload), s.list)
	s.must(err)
	return z
}

// says is the notary's message with a share.
func (s *signing) says(y *signofftest.Notary, share [32]byte) *signoff.Signed {
	s.t.Helper()
	return s.signed(y.Signing, &signoff.Signing{Charter: s.ID, Notary: y.Doc.ID(), Payload: sha256.Sum256(s.payload), Term: s.term, Attempt: 1,
		List: signoff.FrostList(s.encoded()), Share: share[:]})
}

// shown is what a notary says against the one that said something in the session.
func (s *signing) shown(by *signofftest.Notary, said *signoff.Signed) *signoff.Signed {
	s.t.Helper()
	return s.signed(by.Signing, s.fault(by, said))
}

func (s *signing) fault(by *signofftest.Notary, said *signoff.Signed) *signoff.SigningFault {
	return &signoff.SigningFault{Charter: s.ID, Notary: by.Doc.ID(), Accused: said.Doc.(*signoff.Signing).Notary, Message: string(said.Line()),
		Payload: s.payload, List: s.encoded()}
}

// raw signs a fault that no honest program would write.
func (l *log) raw(by *signofftest.Notary, f *signoff.SigningFault) []byte {
	l.t.Helper()
	payload, err := dsse.Statement(f.Kind().PredicateType(), []dsse.Subject{dsse.About("accused", f.Accused)}, f)
	l.must(err)
	env, err := dsse.Sign(l.t.Context(), by.Signing, payload)
	l.must(err)
	return env.Line()
}

// convicts wants exactly these notaries convicted, of the term, in order.
func (l *log) convicts(term uint32, who ...*signofftest.Notary) {
	l.t.Helper()
	var got []Digest
	for _, c := range l.state().Convicts {
		if c.Term == term {
			got = append(got, c.Notary)
		}
	}
	if !slices.Equal(got, ids(who)) {
		l.t.Fatalf("convicted in term %d: %v, want %v", term, got, ids(who))
	}
	if got, want := l.again().StateDigest(), l.fold.StateDigest(); got != want {
		l.t.Errorf("folded again the state is %s, not %s", got, want)
	}
}

// A wrong share convicts whoever signed it, once, by whatever is wrong with it.
func TestAttackWrongSignatureShare(t *testing.T) {
	for name, lie := range map[string]func(s *signing) [32]byte{
		"another's": func(s *signing) [32]byte { return s.share(1) },
		"of another payload": func(s *signing) [32]byte {
			return (&signing{s.log, s.term, []byte("other"), s.list, s.nonces}).share(2)
		},
		"of another session":   func(s *signing) [32]byte { return s.signing("a warrant").share(2) },
		"one bit is different": func(s *signing) [32]byte { z := s.share(2); z[0] ^= 1; return z },
		"no canonical scalar":  func(*signing) [32]byte { return [32]byte(bytes.Repeat([]byte{0xff}, 32)) },
		"zero":                 func(*signing) [32]byte { return [32]byte{} },
	} {
		t.Run(name, func(t *testing.T) {
			l := ready(t)
			s := l.signing("a warrant")
			n1, n2, n3 := l.Notaries[0], l.Notaries[1], l.Notaries[2]
			said := s.says(n3, lie(s))
			l.takes(s.shown(n2, said))
			l.convicts(1, n3)
			c, ok := l.state().Convicted(n3.Doc.ID(), 1)
			if want := (authority.Conviction{Notary: n3.Doc.ID(), Term: 1, Reason: authority.WrongShare, By: n2.Doc.ID(), Index: l.at()}); !ok || *c != want {
				t.Errorf("%+v, want %+v", c, want)
			}
			l.voids(s.shown(n1, said), "convicted in term 1 already")
			next := l.signing("another warrant")
			l.voids(next.shown(n1, next.says(n3, [32]byte{1})), "convicted in term 1 already")
			l.convicts(1, n3)
		})
	}
}

// An offer that no honest signer makes convicts by itself.
func TestAttackMalformedOffer(t *testing.T) {
	l := ready(t)
	n1, n2 := l.Notaries[0], l.Notaries[1]
	_, c, err := l.shares[1].Commit(rand.Reader)
	l.must(err)
	good, err := c.MarshalBinary()
	l.must(err)
	identity := append([]byte{1}, make([]byte, 31)...)
	shows := func(offer []byte) *signoff.Signed {
		said := l.signed(n2.Signing, &signoff.Signing{Charter: l.ID, Notary: n2.Doc.ID(), Payload: Digest{1}, Term: 1, Attempt: 1, Offer: offer})
		return l.signed(n1.Signing, &signoff.SigningFault{Charter: l.ID, Notary: n1.Doc.ID(), Accused: n2.Doc.ID(), Message: string(said.Line())})
	}
	l.voids(shows(good), "well-formed")
	for name, offer := range map[string][]byte{
		"short": good[:65], "long": append(slices.Clone(good), 0), "another's": slices.Concat([]byte{0, 1}, good[2:]),
		"hiding": slices.Concat(good[:2], identity, good[34:]), "binding": slices.Concat(good[:34], identity), "no point": slices.Concat(good[:34], bytes.Repeat([]byte{0xff}, 32)),
	} {
		out, _, err := l.fold.Judge(shows(offer).Line(), l.blobs)
		if l.must(err); out.Void != nil {
			t.Errorf("%s: %v", name, out.Void)
		}
	}
	l.takes(shows(good[:65]))
	l.convicts(1, n2)
	if c, _ := l.state().Convicted(n2.Doc.ID(), 1); c.Reason != authority.BadOffer {
		t.Errorf("convicted of %s", c.Reason)
	}
}

func TestAttackRightShareShownAsWrong(t *testing.T) {
	l := ready(t)
	s := l.signing("a warrant")
	n1, n2 := l.Notaries[0], l.Notaries[1]
	l.voids(s.shown(n1, s.says(n2, s.share(1))), "the share is right")
	l.convicts(1)
}

// Nobody but the accused signs what convicts it.
func TestAttackForgedMessage(t *testing.T) {
	l := ready(t)
	s := l.signing("a warrant")
	n1, n2 := l.Notaries[0], l.Notaries[1]
	said := s.says(n2, s.share(1))
	lie := *said.Doc.(*signoff.Signing)
	lie.Share = bytes.Repeat([]byte{1}, 32)
	forged := l.signed(n1.Signing, &lie)
	l.voids(s.shown(n1, forged), "not the accused's")
	forged.Hint = n2.Doc.ID()
	l.voids(s.shown(n1, forged), "not the accused's")
	forged.Sig = said.Sig
	l.voids(s.shown(n1, forged), "not the accused's")
	f := s.fault(n1, said)
	f.Accused = l.Notaries[2].Doc.ID()
	l.voidLine(l.raw(n1, f), "accused is "+f.Accused.String())
	l.convicts(1)
}

// A coordinator shows different notaries different mail. A right share stays
// one of the list that its maker signed, and is shown beside no other.
func TestAttackFramedByAnotherList(t *testing.T) {
	l := ready(t)
	s, other := l.signing("a warrant"), l.signing("a warrant")
	n1, n2 := l.Notaries[0], l.Notaries[1]
	said := s.says(n2, s.share(1))
	mixed := *s
	mixed.list = slices.Clone(s.list)
	mixed.list[2] = other.list[2]
	for _, x := range []*signing{other, &mixed} {
		l.voidLine(l.raw(n1, x.fault(n1, said)), "the message's share is for")
	}
	f := s.fault(n1, said)
	slices.Reverse(f.List)
	l.voidLine(l.raw(n1, f), "the message's share is for")
	l.convicts(1)
}

// A list that was made up, with others' commitments that are no points or that
// nobody offered, is the fault of nobody in it: no honest notary signs for one
// that cannot be signed in, and one that can be has right shares.
func TestAttackFramedByBadList(t *testing.T) {
	l := ready(t)
	n2, n3 := l.Notaries[1], l.Notaries[2]
	s := l.signing("a warrant")
	s.list[0].Hiding, s.list[0].Binding = s.list[1].Binding, s.list[1].Hiding
	l.voids(s.shown(n3, s.says(n2, s.share(1))), "the share is right")
	for name, edit := range map[string]func(s *signing){
		"no points":  func(s *signing) { s.list[0].Hiding = [32]byte(bytes.Repeat([]byte{0xff}, 32)) },
		"unsorted":   func(s *signing) { slices.Reverse(s.list) },
		"twice":      func(s *signing) { s.list[2] = s.list[1] },
		"too few":    func(s *signing) { s.list = s.list[:2] },
		"strangers":  func(s *signing) { s.list[2].ID = 9 },
		"without it": func(s *signing) { s.list[1].ID, s.list[2].ID = 3, 4 },
	} {
		s := l.signing("a warrant")
		edit(s)
		if _, err := s.shares[1].Sign(s.nonces[1], s.group, dsse.PAE(s.payload), s.list); err == nil {
			t.Errorf("%s: an honest notary signs", name)
		}
		l.voids(s.shown(n3, s.says(n2, [32]byte{1})), "no session that could be signed in")
	}
	l.convicts(1)
}

func TestAttackFramedByAnotherSession(t *testing.T) {
	l := ready(t)
	s, other := l.signing("a warrant"), l.signing("another warrant")
	n1, n2 := l.Notaries[0], l.Notaries[1]
	f := s.fault(n1, s.says(n2, s.share(1)))
	f.Payload = other.payload
	l.voidLine(l.raw(n1, f), "the message's share is of")
	f = other.fault(n1, s.says(n2, other.share(1)))
	f.Payload = s.payload
	l.voidLine(l.raw(n1, f), "the message's share is for")
	l.convicts(1)
}

// A message is judged by the council and the group of the term that it names,
// whoever is in office.
func TestAttackReplayAfterReshare(t *testing.T) {
	c := replaced(t)
	old := c.signing("a warrant of term 1")
	n1, n2, n4, n5 := c.old[0], c.old[1], c.old[3], c.next[3]
	right, wrong, wrong4 := old.says(n2, old.share(1)), old.says(n1, old.share(2)), old.says(n4, [32]byte{1})
	c.voids(old.shown(n1, wrong4), "no session that could be signed in") // n4 is not in the list
	c.inOffice()
	c.voids(old.shown(n1, right), "the share is right")
	c.voids(old.shown(n4, wrong), "left office")

	s := c.signing("a warrant of term 2")
	told := s.says(n2, s.share(1))
	c.voids(s.shown(n5, told), "the share is right")
	// With the keys of an earlier term the same share would be wrong, and the
	// other way round: the term is what its maker signed.
	for _, x := range []struct {
		*signing
		said *signoff.Signed
		term uint32
	}{{s, told, 1}, {old, right, 2}} {
		m := *x.said.Doc.(*signoff.Signing)
		m.Term = x.term
		forged := c.signed(n5.Signing, &m)
		forged.Hint, forged.Sig = n2.Doc.ID(), x.said.Sig
		c.voids(x.shown(n5, forged), "not the accused's")
	}
	s.term = 3
	c.voids(s.shown(n1, s.says(n2, [32]byte{1})), "in which nobody has signed")
	s.term = 1
	c.voids(s.shown(n1, s.says(n5, [32]byte{1})), "was no notary in term 1")
	c.convicts(1)
	c.convicts(2)

	c.takes(old.shown(n5, wrong))
	c.convicts(1, n1)
	s.term = 2
	c.takes(s.shown(n5, s.says(n1, [32]byte{1})))
	c.convicts(2, n1)
}

// What a notary says against itself convicts it, and nobody else.
func TestAttackAccusesItself(t *testing.T) {
	l := ready(t)
	s := l.signing("a warrant")
	n2 := l.Notaries[1]
	l.voids(s.shown(n2, s.says(n2, s.share(1))), "the share is right")
	l.convicts(1)
	l.takes(s.shown(n2, s.says(n2, [32]byte{1})))
	l.convicts(1, n2)
}

// Only a notary in office shows faults, and of none before there is a key.
func TestAttackFaultByOthers(t *testing.T) {
	l := newLog(t).founded()
	y := l.Notaries[1]
	said := l.signed(y.Signing, &signoff.Signing{Charter: l.ID, Notary: y.Doc.ID(), Payload: Digest{1}, Term: 1, Attempt: 1, Offer: []byte("short")})
	f := &signoff.SigningFault{Charter: l.ID, Notary: l.Notaries[0].Doc.ID(), Accused: y.Doc.ID(), Message: string(said.Line())}
	l.voids(l.signed(l.Notaries[0].Signing, f), "in which nobody has signed")
	l.keygen()
	for _, by := range []struct {
		key  hsm.Key
		id   Digest
		want string
	}{{l.People["bob"].Signing, l.People["bob"].Doc.ID(), "not a notary"}, {l.Notaries[2].Signing, l.Notaries[0].Doc.ID(), "the document names key"}} {
		f := *f
		f.Notary = by.id
		l.voids(l.signed(by.key, &f), by.want)
	}
	l.convicts(1)
}

// However messages, payloads and lists of two sessions in two terms are put
// together: only a share that is wrong for exactly what its maker signed
// convicts, and only its maker.
func TestConvictsOnlyByOwnWord(t *testing.T) {
	c := replaced(t)
	type message struct {
		of    *signing
		said  *signoff.Signed
		wrong bool
	}
	var sessions []*signing
	var messages []message
	hear := func(s *signing) {
		sessions = append(sessions, s)
		for i, y := range c.Notaries[:3] {
			z := s.share(i)
			messages = append(messages, message{s, s.says(y, z), false})
			z[i] ^= 4
			messages = append(messages, message{s, s.says(y, z), true})
		}
	}
	hear(c.signing("one"))
	hear(c.signing("two"))
	c.inOffice()
	hear(c.signing("one"))
	hear(c.signing("two"))
	rapid.Check(t, func(t *rapid.T) {
		m := rapid.SampledFrom(messages).Draw(t, "message")
		by := rapid.SampledFrom(c.Notaries).Draw(t, "by")
		payload, list := rapid.SampledFrom(sessions).Draw(t, "payload"), rapid.SampledFrom(sessions).Draw(t, "list")
		f := payload.fault(by, m.said)
		f.List = list.encoded()
		if rapid.Bool().Draw(t, "swap") {
			i := rapid.IntRange(0, 2).Draw(t, "place")
			f.List[i] = rapid.SampledFrom(sessions).Draw(t, "from").encoded()[i]
		}
		out, _, err := c.fold.Judge(c.raw(by, f), c.blobs)
		c.must(err)
		if want := m.wrong && bytes.Equal(f.Payload, m.of.payload) && slices.EqualFunc(f.List, m.of.encoded(), bytes.Equal); (out.Void == nil) != want {
			t.Fatalf("convicted %t, want %t: %v", out.Void == nil, want, out.Void)
		}
	})
}
