package signofftest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A liar is a hostile notary in league with the coordinator: it offers a nonce
// before anybody else does, and answers each list of commitments with a wrong
// share.
type liar struct {
	w      *world
	notary *signofftest.Notary
	index  uint16

	mu    sync.Mutex
	lists map[signoff.Digest]bool // offered for a payload, or answered
}

func (l *liar) meddle(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/v1/mail/sign-") {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			if lie := l.lie(body); lie != nil {
				first := httptest.NewRequest(http.MethodPost, r.URL.Path, bytes.NewReader(lie))
				next.ServeHTTP(httptest.NewRecorder(), first)
			}
		}
		next.ServeHTTP(w, r)
	})
}

// lie is what the hostile notary says before message is heard, or nil.
func (l *liar) lie(message []byte) []byte {
	doc, err := signoff.ReadLine(message)
	if err != nil || doc.Hint == l.notary.Doc.ID() {
		return nil
	}
	m := *doc.Doc.(*signoff.Signing)
	about := m.List
	if m.Offer = nil; len(m.Share) == 0 {
		about, m.Offer = m.Payload, l.offer()
	} else {
		m.Share = append([]byte{7}, make([]byte, 31)...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lists[about] {
		return nil
	}
	l.lists[about] = true
	m.Notary = l.notary.Doc.ID()
	s, err := signoff.Sign(l.w.t.Context(), l.notary.Signing, &m)
	if err != nil {
		return nil
	}
	return s.Line()
}

// offer commits to nonces that nobody knows.
func (l *liar) offer() []byte {
	c, err := frost.NewKeyGen(frost.Params{Threshold: 3, Members: 4}, []byte("points"))
	if err != nil {
		return nil
	}
	d, err := c.Deal(rand.Reader, l.index)
	if err != nil {
		return nil
	}
	points := d.Round1().Commitments
	b, _ := frost.Commitment{ID: l.index, Hiding: points[0], Binding: points[1]}.MarshalBinary()
	return b
}

// A notary that offers nonces and then posts wrong shares is convicted by one
// entry of the log, though it is the first whose turn it is to append that, and
// the warrant is signed without it.
func TestAttackWrongShare(t *testing.T) {
	t.Parallel()
	w := &world{signofftest.Keys(t, nil), t}
	hostile := w.Notaries[0]
	l := &liar{w: w, notary: hostile, index: 1, lists: map[signoff.Digest]bool{}}
	w.Host.Meddle = l.meddle
	w.Found()
	w.start(1, 2, 3, 4)
	w.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	w.stop(1)
	w.changePolicy("signed in spite of it")
	w.Wait("a conviction", func(s *authority.State) bool { return len(s.Convicts) > 0 })
	w.changePolicy("and once more")

	// A fold that begins now names the notary, and no other.
	var c authority.Conviction
	w.folded(func(s *authority.State) {
		if len(s.Convicts) != 1 {
			t.Fatalf("%d convictions, want 1", len(s.Convicts))
		}
		c = *s.Convicts[0]
	})
	if c.Notary != hostile.Doc.ID() || c.Term != 1 || c.Reason != authority.WrongShare || c.By == hostile.Doc.ID() {
		t.Fatalf("%+v", c)
	}
	w.convictedByEntries(hostile, 1, c.Index)
	for i, n := range w.Notaries[1:] {
		if w.Logged("cheated while signing", "notary="+n.Doc.ID().String()) {
			t.Errorf("notary %d was named and is honest", i+2)
		}
	}
}

// convictedByEntries is the reader that needs no fold and no notary: of the one
// entry that shows the fault, the accused's signature, the two digests in what it
// signed, and the equation of its share do, with the group that the commitments
// of the key generation make.
func (w *world) convictedByEntries(accused *signofftest.Notary, index uint16, at uint64) {
	w.t.Helper()
	lines, err := w.Client.Entries(w.t.Context(), 0, w.size())
	w.must(err)
	var f *signoff.SigningFault
	round1s := make([]frost.Round1, len(w.Notaries))
	for i, line := range lines {
		s, err := signoff.ReadLine(line)
		w.must(err)
		switch d := s.Doc.(type) {
		case *signoff.SigningFault:
			if uint64(i) == at { // a slow host may have another, which is void
				f = d
			}
		case *signoff.Commitment:
			place := slices.IndexFunc(w.Notaries, func(n *signofftest.Notary) bool { return n.Doc.ID() == d.Notary })
			round1s[place].Proof = [64]byte(d.Proof)
			for _, p := range d.Commitments {
				round1s[place].Commitments = append(round1s[place].Commitments, [32]byte(p))
			}
		}
	}
	if f == nil {
		w.t.Fatalf("entry %d shows no fault", at)
	}
	ceremony, err := w.FirstCeremony()
	w.must(err)
	group, err := ceremony.Group(round1s)
	w.must(err)

	said, err := signoff.ReadLine([]byte(f.Message))
	w.must(err)
	key, err := accused.Doc.Signing.Public()
	w.must(err)
	w.must(said.Verify(key))
	m := said.Doc.(*signoff.Signing)
	if m.Payload != sha256.Sum256(f.Payload) || m.List != dsse.Sum("keyturn/frost-list/v1", f.List...) {
		w.t.Fatal("the message is about another payload or list")
	}
	list := make([]frost.Commitment, len(f.List))
	for i := range list {
		w.must(list[i].UnmarshalBinary(f.List[i]))
	}
	err = frost.VerifyShare(group, index, [32]byte(m.Share), dsse.PAE(f.Payload), list)
	if cheat := (*frost.CheatError)(nil); !errors.As(err, &cheat) || cheat.Step != "signature share" || !slices.Equal(cheat.IDs, []uint16{index}) {
		w.t.Errorf("the share: %v", err)
	}
}

// backup copies a notary's directory; restore puts it back.
func (w *world) backup(number int) (restore func()) {
	w.t.Helper()
	n := w.Notaries[number-1]
	dir := w.t.TempDir()
	w.must(os.CopyFS(dir, os.DirFS(n.Dir)))
	return func() {
		w.must(os.RemoveAll(n.Dir))
		w.must(os.CopyFS(n.Dir, os.DirFS(dir)))
	}
}

// A notary restored from a backup of its directory has forgotten what it
// cosigned. Shown a second branch from there, with a hostile notary's word for
// it, it asks the others and cosigns nothing.
func TestAttackNotaryRestoredFromBackup(t *testing.T) {
	for name, early := range map[string]bool{"from the start": true, "from later": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &world{signofftest.Keys(t, nil), t}
			w.Found()
			restore := w.backup(3)
			w.start(1, 2, 3, 4)
			w.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
			w.StopCoordinator()
			w.stop(3)
			if !early {
				restore = w.backup(3)
			}
			b := w.Host.Copy("branch")
			w.StartCoordinator()
			w.start(3)
			w.stop(4) // the hostile one; so 3 cosigns what follows
			w.append(w.halt("bob", "one"))
			w.append(w.halt("bob", "two"))
			size := w.size()
			w.stop(3)
			restore()
			b.Start()
			for range 16 {
				b.Put(w.halt("carol", "the second branch").Line())
			}
			b.Stop()
			b.Start()
			note := w.pending(b, size+1, 0)
			w.lay(b, 3, 4)
			w.start(3, 4) // 4 has not seen the first branch and says so
			w.cosign(b, 4, note)
			time.Sleep(time.Second)
			w.never(b, size+1)
			for range 4 {
				if strings.Contains(string(w.pending(b, size+1, 1)), "\n— n3 ") {
					t.Fatal("the restored notary cosigned a second branch")
				}
				time.Sleep(200 * time.Millisecond)
			}
			// On the log it knew it goes on, once the others have told it.
			w.lay(w.Host, 3)
			w.append(w.halt("erin", "three"))
		})
	}
}

// Two processes on one notary's directory would each forget what the other
// one cosigned.
func TestAttackTwoProcessesOneNotary(t *testing.T) {
	w := start(t)
	if err := w.TryNotary(w.Notaries[0]); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("a second process runs on the directory of a notary: %v", err)
	}
	w.stop(1)
	w.must(w.TryNotary(w.Notaries[0]))
}

// A recovery takes an operator's word; a question in the mailbox does not get
// it.
func TestAttackRecoveryStatementByMail(t *testing.T) {
	w := start(t)
	nonce := make([]byte, 32) // as long as a key's fingerprint
	ask := []byte(`{"notary":"` + w.Notaries[1].Doc.ID().String() + `","nonce":"` + base64.StdEncoding.EncodeToString(nonce) + `"}`)
	w.must(w.Client.Send(t.Context(), "positions", ask))
	short := []byte(`{"notary":"` + w.Notaries[1].Doc.ID().String() + `","nonce":"` + base64.StdEncoding.EncodeToString(nonce[:16]) + `"}`)
	w.must(w.Client.Send(t.Context(), "positions", short))
	answers := map[int]int{}
	w.eventually("the short question is answered by the three others", func() bool {
		mail, err := w.Client.Receive(t.Context(), "positions", 0, time.Second)
		w.must(err)
		clear(answers)
		for _, m := range mail.Messages {
			if doc, err := signoff.ReadLine(m.Body); err == nil {
				if p, ok := doc.Doc.(*signoff.Position); ok && bytes.Equal(p.Answer, nonce[:len(p.Answer)]) {
					answers[len(p.Answer)]++
				}
			}
		}
		return answers[16] == 3
	})
	if answers[32] != 0 {
		t.Fatalf("%d notaries signed a position over 32 bytes for whoever asked", answers[32])
	}
}
