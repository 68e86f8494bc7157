package notary

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
)

// A ring is four notaries around one mailbox topic, of whom three sign.
type ring struct {
	t       *testing.T
	group   *frost.Group
	shares  []*frost.KeyShare
	keys    []hsm.Key
	signers map[Digest]signer
	charter Digest
	payload Digest
	message []byte
	mail    [][]byte
}

// A seat is one notary's view of the mail.
type seat struct {
	*ring
	index uint16
	books *signBooks
	read  int
	nonce *frost.Nonce
	offer frost.Commitment
}

func newRing(t *testing.T) *ring {
	t.Helper()
	r := &ring{t: t, signers: map[Digest]signer{}, charter: Digest{1}, payload: Digest{2}, message: []byte("a warrant")}
	c, err := frost.NewKeyGen(frost.Params{Threshold: 3, Members: 4}, []byte("test"))
	r.must(err)
	var dealings []*frost.Dealing
	var round1s []frost.Round1
	for i := uint16(1); i <= 4; i++ {
		d, err := c.Deal(rand.Reader, i)
		r.must(err)
		dealings, round1s = append(dealings, d), append(round1s, d.Round1())
	}
	for i := uint16(1); i <= 4; i++ {
		var received [][32]byte
		for _, d := range dealings {
			s, err := d.Share(i)
			r.must(err)
			received = append(received, s)
		}
		share, group, err := c.Finish(i, round1s, received)
		r.must(err)
		r.group, r.shares = group, append(r.shares, share)
		uri := "file:" + filepath.Join(t.TempDir(), "key.pem")
		_, err = file.Generate(uri, hsm.KindP256)
		r.must(err)
		k, err := file.Open(uri, nil)
		r.must(err)
		fp, err := hsm.Fingerprint(k.Public())
		r.must(err)
		r.keys, r.signers[fp] = append(r.keys, k), signer{i, k.Public()}
	}
	return r
}

func (r *ring) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// post signs as a member and puts the message into the mail.
func (r *ring) post(index uint16, m *signoff.Signing) []byte {
	r.t.Helper()
	fp, err := hsm.Fingerprint(r.keys[index-1].Public())
	r.must(err)
	m.Charter, m.Notary, m.Payload = r.charter, fp, r.payload
	s, err := signoff.Sign(r.t.Context(), r.keys[index-1], m)
	r.must(err)
	r.mail = append(r.mail, s.Line())
	return s.Line()
}

func (r *ring) sit(index uint16) *seat {
	r.t.Helper()
	b, err := newSignBooks(r.group, 1, r.message, 1)
	r.must(err)
	return &seat{ring: r, index: index, books: b}
}

// commit makes a fresh nonce and returns its commitment.
func (s *seat) commit() []byte {
	s.t.Helper()
	nonce, c, err := s.shares[s.index-1].Commit(rand.Reader)
	s.must(err)
	s.nonce, s.offer = nonce, c
	b, err := c.MarshalBinary()
	s.must(err)
	return b
}

func (s *seat) offers(attempt uint32) {
	s.post(s.index, &signoff.Signing{Term: 1, Attempt: attempt, Offer: s.commit()})
}

// reads takes the mail that came since.
func (s *seat) reads() {
	for ; s.read < len(s.mail); s.read++ {
		s.books.note(s.mail[s.read], s.charter, s.payload, s.signers)
	}
}

// answers delivers the share that an open session asks for.
func (s *seat) answers() {
	s.t.Helper()
	s.reads()
	open := s.books.openFor(s.index)
	if open == nil {
		s.t.Fatalf("nothing is asked of %d in attempt %d", s.index, s.books.attempt)
	}
	z, err := s.shares[s.index-1].Sign(s.nonce, s.group, s.message, open.Commitments)
	s.must(err)
	s.post(s.index, &signoff.Signing{Term: 1, Attempt: s.books.attempt, Session: open.Number, List: listDigest(open.Commitments), Share: z[:], Offer: s.commit()})
}

func (s *seat) signed() {
	s.t.Helper()
	s.reads()
	if s.books.signature == nil || !ed25519.Verify(s.group.PublicKey[:], s.message, s.books.signature[:]) {
		s.t.Fatalf("%d has no signature after attempt %d", s.index, s.books.attempt)
	}
}

func TestBooksAgree(t *testing.T) {
	r := newRing(t)
	seats := []*seat{r.sit(1), r.sit(2), r.sit(3), r.sit(4)}
	for _, s := range seats[:3] {
		s.offers(1)
	}
	for _, s := range seats[:3] {
		s.answers()
	}
	for _, s := range seats { // the fourth only read along
		s.signed()
	}
}

// A wrong share names its maker with the signed message, and three others
// finish.
func TestAttackWrongShareIsNamed(t *testing.T) {
	r := newRing(t)
	one, two, three, hostile := r.sit(1), r.sit(2), r.sit(3), r.sit(4)
	hostile.offers(1)
	one.offers(1)
	two.offers(1)
	hostile.reads()
	open := hostile.books.openFor(4)
	line := r.post(4, &signoff.Signing{Term: 1, Attempt: 1, Session: open.Number, List: listDigest(open.Commitments), Share: append([]byte{1}, make([]byte, 31)...)})
	one.answers()
	two.answers()
	three.offers(1)
	for _, s := range []*seat{one, two, three} {
		s.answers()
	}
	for _, s := range []*seat{one, two, three} {
		s.signed()
		cheats := s.books.takeCheats()
		if len(cheats) != 1 || string(cheats[0].line) != string(line) {
			t.Fatalf("%d names %d cheats", s.index, len(cheats))
		}
		if who := s.signers[cheats[0].notary].index; who != 4 {
			t.Fatalf("%d names %d", s.index, who)
		}
		r.convicts(cheats[0])
	}
}

// convicts wants the cheat shown by what is kept of it, to whoever knows the group
// and what was to be signed.
func (r *ring) convicts(c cheat) {
	r.t.Helper()
	doc, err := signoff.ReadLine(c.line)
	r.must(err)
	r.must(doc.Verify(r.signers[c.notary].public))
	said := doc.Doc.(*signoff.Signing)
	if listDigest(c.list) != said.List {
		r.t.Fatal("the list kept is not the one that the message names")
	}
	err = frost.VerifyShare(r.group, r.signers[c.notary].index, [32]byte(said.Share), r.message, c.list)
	if !isCheat(err) {
		r.t.Fatalf("the share kept as proof: %v", err)
	}
}

// An offer that is no pair of points is named by its own message. What its maker
// says afterwards is not listened to, and is kept as no proof of anything.
func TestAttackOfferedPoints(t *testing.T) {
	r := newRing(t)
	one, hostile := r.sit(1), r.sit(4)
	good := hostile.commit()
	identity := append([]byte{1}, make([]byte, 31)...)
	line := r.post(4, &signoff.Signing{Term: 1, Attempt: 1, Offer: slices.Concat(good[:2], identity, good[34:])})
	r.post(4, &signoff.Signing{Term: 1, Attempt: 1, Offer: good})
	one.reads()
	cheats := one.books.takeCheats()
	if len(cheats) != 1 || string(cheats[0].line) != string(line) || r.signers[cheats[0].notary].index != 4 {
		t.Fatalf("cheats: %v", cheats)
	}
}

// A share for another list than the signer signed is no cheat of the signer's:
// a coordinator that shows different mail cannot make one look like a cheat.
func TestAttackShareForAnotherList(t *testing.T) {
	r := newRing(t)
	one, two, three := r.sit(1), r.sit(2), r.sit(3)
	one.offers(1)
	two.offers(1)
	three.offers(1)
	one.reads()
	open := one.books.openFor(1)
	list := listDigest(open.Commitments)
	list[0] ^= 1
	r.post(1, &signoff.Signing{Term: 1, Attempt: 1, Session: open.Number, List: list, Share: append([]byte{1}, make([]byte, 31)...)})
	two.reads()
	if c := two.books.takeCheats(); len(c) != 0 {
		t.Fatalf("named for a list nobody has: %v", c[0].err)
	}
	for _, s := range []*seat{one, two, three} {
		s.answers()
	}
	two.signed()
}

// A malformed offer for the next attempt is proved by its own message, not by
// the one that starts the attempt.
func TestAttackBadOfferWaiting(t *testing.T) {
	r := newRing(t)
	one, two, hostile := r.sit(1), r.sit(2), r.sit(4)
	line := r.post(4, &signoff.Signing{Term: 1, Attempt: 2, Offer: hostile.commit()[:20]})
	two.offers(2)
	one.reads()
	cheats := one.books.takeCheats()
	if len(cheats) != 1 || string(cheats[0].line) != string(line) || one.signers[cheats[0].notary].index != 4 {
		t.Fatalf("cheats: %v", cheats)
	}
}

// A nonce that the fuse or the disk kept from signing is spent all the same: nothing
// refers to it any more, and nothing leaves its secrets in memory.
func TestFaultNonceOfAFailedAnswer(t *testing.T) {
	r := newRing(t)
	one, two, three := r.sit(1), r.sit(2), r.sit(3)
	for _, s := range []*seat{one, two, three} {
		s.offers(1)
	}
	one.reads()
	n := &Notary{store: &store{dir: t.TempDir()}, burned: map[Digest]bool{}}
	s := &signSession{index: 1, group: r.group, message: r.message, books: one.books, nonces: map[int]*frost.Nonce{-1: one.nonce}, offer: &one.offer}
	open := one.books.openFor(1)
	if err := n.answer(t.Context(), s, open); err == nil {
		t.Fatal("a share left a notary that does not hold its directory")
	}
	if _, err := r.shares[0].Sign(one.nonce, r.group, r.message, open.Commitments); !errors.Is(err, frost.ErrSpent) || len(s.nonces) > 0 {
		t.Errorf("the nonce: %v, %d kept", err, len(s.nonces))
	}
}

// Who sends malformed offers without end, each another, is named once: what is kept
// and written to the journal of the others is one message of each.
func TestAttackFloodOfBadOffers(t *testing.T) {
	r := newRing(t)
	one, two, hostile := r.sit(1), r.sit(2), r.sit(4)
	offer := hostile.commit()
	first := r.post(4, &signoff.Signing{Term: 1, Attempt: 1, Offer: offer[:1]})
	var cheats []cheat
	for n := range 50 {
		r.post(4, &signoff.Signing{Term: 1, Attempt: 1, Offer: offer[:2+n]})
		one.reads()
		cheats = append(cheats, one.books.takeCheats()...)
	}
	two.reads()
	for _, cheats := range [][]cheat{cheats, two.books.takeCheats()} {
		if len(cheats) != 1 || string(cheats[0].line) != string(first) {
			t.Errorf("%d cheats, want the first", len(cheats))
		}
	}
}

// One notary alone starts no attempt, however high it counts.
func TestAttackAttemptsByOne(t *testing.T) {
	r := newRing(t)
	one, two, three, hostile := r.sit(1), r.sit(2), r.sit(3), r.sit(4)
	for _, attempt := range []uint32{2, 3, 1 << 31, 1<<32 - 1} {
		hostile.offers(attempt)
	}
	for _, s := range []*seat{one, two, three} {
		s.offers(1)
	}
	for _, s := range []*seat{one, two, three} {
		s.answers()
	}
	one.signed()
	if one.books.attempt != 1 {
		t.Fatalf("one hostile notary started attempt %d", one.books.attempt)
	}
}

// The mail was lost while two notaries were attempts ahead of the third, which
// restarted. It gets to where they are, and they sign.
func TestLateNotaryCatchesUp(t *testing.T) {
	r := newRing(t)
	one, two, late := r.sit(1), r.sit(2), r.sit(3)
	for attempt := uint32(1); attempt <= 5; attempt++ {
		one.offers(attempt)
		two.offers(attempt)
		if attempt == 3 { // a session that is never answered, to count one
			r.sit(3).offers(3)
		}
		one.reads()
		two.reads()
	}
	r.mail, one.read, two.read = nil, 0, 0
	late.offers(1)
	one.offers(6)
	two.offers(6)
	late.reads()
	late.offers(late.books.attempt)
	for _, s := range []*seat{one, two, late} {
		s.answers()
	}
	for _, s := range []*seat{one, two, late} {
		s.signed()
	}
}
