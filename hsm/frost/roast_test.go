package frost

import (
	"crypto/ed25519"
	"crypto/rand"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// table is a Roast and the signers around it, each remembering its nonce.
type table struct {
	club
	*Roast
	t      testing.TB
	nonces map[uint16]*Nonce
	last   *Session
}

func sit(t testing.TB, c club) *table {
	t.Helper()
	r, err := NewRoast(c.Group, message)
	if err != nil {
		t.Fatal(err)
	}
	return &table{club: c, Roast: r, t: t, nonces: map[uint16]*Nonce{}}
}

// offer lets members offer commitments; it wants a session at the last only
// if starts says so.
func (tb *table) offer(starts bool, ids ...uint16) {
	tb.t.Helper()
	for i, id := range ids {
		nonces, list := tb.commit(tb.t, id)
		s, err := tb.Offer(list[0])
		if err != nil {
			tb.t.Fatalf("offer of %d: %v", id, err)
		}
		if want := starts && i == len(ids)-1; (s != nil) != want {
			tb.t.Fatalf("offer of %d started a session: %v", id, s != nil)
		}
		tb.nonces[id] = nonces[id]
		if s != nil {
			tb.last = s
		}
	}
}

func (tb *table) share(s *Session, id uint16) [32]byte {
	tb.t.Helper()
	z, err := tb.shares[id-1].Sign(tb.nonces[id], tb.club.Group, message, s.Commitments)
	if err != nil {
		tb.t.Fatal(err)
	}
	return z
}

// deliver lets members deliver good shares and returns the last outcome.
func (tb *table) deliver(s *Session, ids ...uint16) (sig *[64]byte) {
	tb.t.Helper()
	for _, id := range ids {
		var err error
		if sig, err = tb.Deliver(s.Number, id, tb.share(s, id)); err != nil {
			tb.t.Fatalf("share of %d: %v", id, err)
		}
	}
	return sig
}

func signers(s *Session) (ids []uint16) {
	for _, c := range s.Commitments {
		ids = append(ids, c.ID)
	}
	return ids
}

func wantIDs(t testing.TB, what string, got []uint16, want ...uint16) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

func TestRoastStraight(t *testing.T) {
	tb := sit(t, keygen(t, 3, 4))
	tb.offer(true, 4, 1, 3)
	wantIDs(t, "signers", signers(tb.last), 1, 3, 4)
	if sig := tb.deliver(tb.last, 3, 1); sig != nil {
		t.Fatal("two of three signed")
	}
	sig := tb.deliver(tb.last, 4)
	if sig == nil || !ed25519.Verify(tb.Ed25519(), message, sig[:]) {
		t.Fatal("no signature")
	}
	_, list := tb.commit(t, 2)
	_, err := tb.Offer(list[0])
	wantRefused(t, "an offer after the end", err)
}

// Member 3 falls silent: the others meet again without it, no clock needed,
// and its late share is still good for the first session.
func TestRoastSilentSigner(t *testing.T) {
	for _, late := range []bool{false, true} {
		tb := sit(t, keygen(t, 3, 4))
		tb.offer(true, 1, 2, 3)
		first, nonce := tb.last, tb.nonces[3]
		tb.deliver(first, 1, 2)
		tb.offer(true, 1, 2, 4)
		wantIDs(t, "signers", signers(tb.last), 1, 2, 4)
		wantIDs(t, "owing", tb.Owing(), 1, 2, 3, 4)
		var sig *[64]byte
		if late {
			tb.nonces[3] = nonce
			sig = tb.deliver(first, 3)
		} else {
			sig = tb.deliver(tb.last, 4, 2, 1)
		}
		if sig == nil {
			t.Fatalf("no signature (late: %v)", late)
		}
	}
}

func TestAttackRoastWrongShare(t *testing.T) {
	tb := sit(t, keygen(t, 3, 4))
	tb.offer(true, 1, 2, 3)
	tb.deliver(tb.last, 1, 2)
	_, err := tb.Deliver(tb.last.Number, 3, [32]byte{7})
	wantCheat(t, err, "signature share", 3)
	wantIDs(t, "cheats", tb.Cheats(), 3)
	_, list := tb.commit(t, 3)
	_, err = tb.Offer(list[0])
	wantRefused(t, "a cheat's next offer", err)
	_, err = tb.Deliver(tb.last.Number, 3, [32]byte{7})
	wantRefused(t, "a cheat's next share", err)
	tb.Retry()
	_, err = tb.Offer(list[0])
	wantRefused(t, "a cheat's offer after a retry", err)
	if tb.Hopeless() {
		t.Error("three honest members are enough")
	}
	tb.offer(true, 1, 2, 4)
	if tb.deliver(tb.last, 1, 2, 4) == nil {
		t.Fatal("no signature")
	}
}

func TestAttackRoastOutOfTurn(t *testing.T) {
	tb := sit(t, keygen(t, 2, 4))
	_, list := tb.commit(t, 1, 2, 3, 4)
	for _, id := range []uint16{0, 5} {
		c := list[0]
		c.ID = id
		_, err := tb.Offer(c)
		wantRefused(t, "an offer of nobody", err)
	}
	tb.offer(false, 1)
	_, err := tb.Offer(list[0])
	wantRefused(t, "a second offer", err)
	_, err = tb.Deliver(0, 1, [32]byte{1})
	wantRefused(t, "a share before any session", err)
	tb.offer(true, 2)
	_, err = tb.Offer(list[0])
	wantRefused(t, "an offer instead of the share owed", err)
	for _, n := range []int{-1, 1 << 10, 1 << 20} {
		_, err = tb.Deliver(n, 1, tb.share(tb.last, 1))
		wantRefused(t, "a share of no session", err)
		tb.Retry()
		tb.offer(true, 1, 2)
	}
	_, err = tb.Deliver(0, 1, [32]byte{1})
	wantRefused(t, "a share of a session given up", err)
	wantIDs(t, "cheats", tb.Cheats())

	bad := list[2]
	bad.Binding = [32]byte{1}
	_, err = tb.Offer(bad)
	wantCheat(t, err, "nonce commitment", 3)
}

// A member crashed, its nonce is gone; with another one silent for good, only
// a retry with fresh nonces helps.
func TestRoastRetryAfterCrash(t *testing.T) {
	tb := sit(t, keygen(t, 3, 4))
	tb.offer(true, 1, 2, 3)
	tb.deliver(tb.last, 1, 2)
	tb.offer(false, 1, 2)
	old := tb.last
	tb.Retry()
	wantIDs(t, "owing", tb.Owing())
	tb.offer(true, 3, 2, 1)
	if tb.last.Number == old.Number {
		t.Fatal("a number of a session was used again")
	}
	if tb.deliver(tb.last, 1, 2, 3) == nil {
		t.Fatal("no signature")
	}
}

func TestRoastHopeless(t *testing.T) {
	tb := sit(t, keygen(t, 2, 3))
	for _, id := range []uint16{1, 2} {
		if tb.Hopeless() {
			t.Fatal("given up too early")
		}
		_, err := tb.Offer(Commitment{ID: id})
		wantCheat(t, err, "nonce commitment", id)
	}
	if !tb.Hopeless() {
		t.Error("one honest member cannot sign")
	}
}

// Whatever the bad members do, and in whatever order messages arrive, enough
// good members sign within Members-Threshold+1 sessions and none of them is
// named a cheat.
func TestRoastAlwaysEnds(t *testing.T) {
	c := keygen(t, 3, 5)
	rapid.Check(t, func(rt *rapid.T) {
		bad := map[uint16]bool{}
		for _, id := range rapid.SliceOfNDistinct(rapid.Uint16Range(1, 5), 0, 2, rapid.ID).Draw(rt, "bad") {
			bad[id] = true
		}
		sim := &simulation{table: *sit(t, c), bad: bad}
		for step := 0; sim.sig == nil; step++ {
			if step > 100 {
				rt.Fatalf("no end; owing %v, cheats %v", sim.Owing(), sim.Cheats())
			}
			for _, id := range rapid.Permutation([]uint16{1, 2, 3, 4, 5}).Draw(rt, "order") {
				sim.act(rt, id)
			}
		}
		for _, id := range sim.Cheats() {
			if !bad[id] {
				rt.Fatalf("member %d is honest and was named", id)
			}
		}
		if n := len(sim.sessions); n > 3 {
			rt.Fatalf("%d sessions", n)
		}
	})
}

type simulation struct {
	table
	bad     map[uint16]bool
	started []*Session
	sig     *[64]byte
}

// act lets one member do its next step, if it has one and chooses to.
func (s *simulation) act(rt *rapid.T, id uint16) {
	if s.sig != nil || s.cheats[id] != nil {
		return
	}
	mood := "honest"
	if s.bad[id] {
		mood = rapid.SampledFrom([]string{"honest", "silent", "lying"}).Draw(rt, "mood")
	}
	n, owes := s.owes[id]
	switch _, ready := s.ready[id]; {
	case mood == "silent" || ready && !owes:
	case owes && mood == "lying":
		if _, err := s.Deliver(n, id, [32]byte{byte(id)}); err == nil {
			rt.Fatal("a lie was accepted")
		}
	case owes:
		sig, err := s.Deliver(n, id, s.share(s.started[n], id))
		if err != nil {
			rt.Fatal(err)
		}
		s.sig = sig
	default:
		nonce, com, err := s.shares[id-1].Commit(rand.Reader)
		if err != nil {
			rt.Fatal(err)
		}
		session, err := s.Offer(com)
		if err != nil {
			rt.Fatal(err)
		}
		s.nonces[id] = nonce
		if session != nil {
			s.started = append(s.started, session)
		}
	}
}
