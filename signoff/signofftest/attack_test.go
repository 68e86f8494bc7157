package signofftest_test

import (
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A world is a cluster with the words that attacks are told in.
type world struct {
	*signofftest.Cluster
	t *testing.T
}

func start(t *testing.T) *world {
	t.Helper()
	t.Parallel() // most of a test is waiting
	return &world{signofftest.Start(t, nil), t}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// halt is the smallest document a person can put into the log.
func (w *world) halt(person, reason string) *signoff.Signed {
	w.t.Helper()
	return w.Sign(person, &signoff.Halt{Charter: w.ID, Person: w.People[person].Doc.ID(), Reason: reason, Created: time.Now().Unix(), Nonce: signofftest.Nonce(), Everything: true})
}

// append wants the document final.
func (w *world) append(s *signoff.Signed) {
	w.t.Helper()
	w.must(w.Append(s))
}

// changePolicy goes the whole way from a request to its effect.
func (w *world) changePolicy(mark string) {
	w.t.Helper()
	id := w.approved(mark)
	w.Wait("the warrant for "+mark, func(s *authority.State) bool { return !s.Requests[id].Warrant.IsZero() })
}

// approved makes a request and the approvals it needs.
func (w *world) approved(mark string) signoff.Digest {
	w.t.Helper()
	w.Tick()
	req := w.Request("alice", signoff.ActionPolicyChange, func(r *signoff.Request) {
		r.Policy = &signoff.PolicyChange{Policy: signofftest.Policy + "# " + mark + "\n"}
	})
	w.append(req)
	for _, p := range []string{"bob", "carol", "dave", "erin"} {
		w.append(w.Decide(p, req.Digest(), signoff.Approve))
	}
	return req.Digest()
}

// notaries stops or starts some, counted from 1.
func (w *world) stop(numbers ...int) {
	for _, i := range numbers {
		w.Notaries[i-1].Stop()
	}
}

func (w *world) start(numbers ...int) {
	w.t.Helper()
	for _, i := range numbers {
		w.StartNotary(w.Notaries[i-1])
	}
}

// lay moves the wires of some notaries to a host.
func (w *world) lay(h *signofftest.Host, numbers ...int) {
	for _, i := range numbers {
		w.Notaries[i-1].Wire.Lay(h)
	}
}

// pending waits for a note of a size at a host, final or not, with at least
// so many cosignatures.
func (w *world) pending(h *signofftest.Host, size uint64, cosigned int) []byte {
	w.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		note, err := h.Client.Checkpoint(w.t.Context(), false, size, time.Second)
		if err == nil && w.cosignatures(note) >= cosigned {
			return note
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("waited for %d cosignatures at size %d: %v\n%s", cosigned, size, err, note)
		}
		time.Sleep(30 * time.Millisecond)
	}
}

func (w *world) trust() (t proof.Trust) {
	w.t.Helper()
	w.State(func(_ *authority.Authority, s *authority.State) {
		var err error
		t, err = follow.Trust(s)
		w.must(err)
	})
	return t
}

func (w *world) cosignatures(note []byte) int {
	w.t.Helper()
	_, sigs, err := proof.Open(note, w.trust())
	w.must(err)
	return len(sigs)
}

// never wants no final checkpoint of the size at the host, for as long as an
// honest one takes many times over.
func (w *world) never(h *signofftest.Host, size uint64) {
	w.t.Helper()
	note, err := h.Client.Checkpoint(w.t.Context(), true, size, 1500*time.Millisecond)
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Status != 404 {
		w.t.Fatalf("a final checkpoint at size %d, or another error than that there is none: %v\n%s", size, err, note)
	}
}

// cosign lets a hostile notary cosign whatever it likes.
func (w *world) cosign(h *signofftest.Host, number int, note []byte) {
	w.t.Helper()
	n := w.Notaries[number-1]
	line, err := proof.Cosign(w.t.Context(), note, n.Name, n.Witness, uint64(time.Now().Unix()))
	w.must(err)
	signed, err := proof.AddCosignature(note, line)
	w.must(err)
	w.must(h.Client.Cosign(w.t.Context(), signed))
}

// fork stops the coordinator and starts two on copies of its log.
func (w *world) fork() (a, b *signofftest.Host) {
	w.t.Helper()
	w.StopCoordinator()
	a, b = w.Host.Copy("branch-a"), w.Host.Copy("branch-b")
	a.Start()
	b.Start()
	return a, b
}

func (w *world) size() uint64 { return w.Follower.Seen().Size }

// Entries that nothing can be made of, put into the order behind the door,
// are recorded and change nothing.
func TestAttackPoisonEntries(t *testing.T) {
	w := start(t)
	other := signofftest.Keys(t, nil)
	poison := [][]byte{
		[]byte("not json"), []byte("{}"), []byte{0}, []byte(strings.Repeat("[", 60000)),
		other.Genesis[0], w.Genesis[0], w.Genesis[1], // another charter, this one again, an acceptance again
	}
	first := uint64(0)
	for i, line := range poison {
		if index := w.Host.Put(line); i == 0 {
			first = index
		}
	}
	w.Sync(first + uint64(len(poison)))
	w.State(func(_ *authority.Authority, s *authority.State) {
		for id, index := range s.Documents {
			if index >= first && index < first+uint64(len(poison)) {
				t.Errorf("poison entry %d took effect as %s", index, id)
			}
		}
	})
	w.changePolicy("after the poison")
}

// A blob is durable before the entry that names it. At the door such an entry
// is refused; straight in the order it stops the fold, and nobody cosigns
// until the blob is there.
func TestAttackMissingBlob(t *testing.T) {
	w := start(t)
	w.Tick()
	req, blob := w.enrolment()
	var refused *api.Error
	if _, err := w.Client.Append(t.Context(), req.Line()); !errors.As(err, &refused) || refused.Status != 422 || !strings.Contains(refused.Hint, "blob") {
		t.Fatalf("an entry that names a missing blob was not refused at the door: %v", err)
	}
	index := w.Host.Put(req.Line())
	w.Host.Put(w.halt("bob", "behind the missing blob").Line())
	w.never(w.Host, index+1)
	// Nor does a restart get past it, or get stuck before the blob can come.
	w.StopCoordinator()
	w.StartCoordinator()
	w.never(w.Host, index+1)
	if _, err := w.Client.PutBlob(t.Context(), blob); err != nil {
		t.Fatal(err)
	}
	w.Sync(index + 2)
	w.changePolicy("after the blob")
}

// enrolment asks for a node whose enrolment blob nobody has seen yet.
func (w *world) enrolment() (*signoff.Signed, []byte) {
	w.t.Helper()
	blob := []byte("an enrolment " + string(signofftest.Nonce()))
	return w.Request("alice", signoff.ActionEnrol, func(r *signoff.Request) {
		r.Enrol = &signoff.Enrol{Node: digest("node"), Name: "node-1", Enrolment: digest(string(blob))}
	}), blob
}

// Fewer than a quorum of cosignatures make nothing final, for anybody.
func TestAttackTooFewCosignatures(t *testing.T) {
	w := start(t)
	w.stop(3, 4)
	out, err := w.Client.Append(t.Context(), w.halt("bob", "is it final?").Line())
	w.must(err)
	note := w.pending(w.Host, out.Index+1, 2)
	w.never(w.Host, out.Index+1)
	if _, err := w.Follower.Final(t.Context(), note); !errors.Is(err, proof.ErrNotFinal) {
		t.Fatalf("a follower took two of three cosignatures: %v", err)
	}
	// The same notary twice is one notary.
	n := w.Notaries[0]
	line, err := proof.Cosign(t.Context(), note, n.Name, n.Witness, uint64(time.Now().Unix())+7)
	w.must(err)
	if _, err := w.NewFollower(w.Client).Final(t.Context(), append(note, line...)); err == nil {
		t.Fatal("a follower counted one notary twice")
	}
	w.start(3)
	w.Sync(out.Index + 1)
}

// f hostile notaries and a coordinator that forks: the branch with a quorum is
// final, the other never is.
func TestAttackForkIsNeverFinalTwice(t *testing.T) {
	w := start(t)
	w.stop(4) // the hostile one acts by itself
	a, b := w.fork()
	size := w.size()
	w.lay(a, 1, 2)
	w.lay(b, 3)
	a.Put(w.halt("bob", "branch a").Line())
	b.Put(w.halt("bob", "branch b").Line())
	noteA, noteB := w.pending(a, size+1, 2), w.pending(b, size+1, 1)
	w.cosign(a, 4, noteA)
	w.cosign(b, 4, noteB)
	final, err := a.Client.Checkpoint(t.Context(), true, size+1, 10*time.Second)
	w.must(err)
	w.never(b, size+1)
	// Nor when everybody is shown the other branch as well.
	w.lay(b, 1, 2)
	w.never(b, size+1)
	if _, err := w.NewFollower(a.Client).Final(t.Context(), final); err != nil {
		t.Fatal(err)
	}
	if _, err := w.NewFollower(b.Client).Final(t.Context(), noteB); !errors.Is(err, proof.ErrNotFinal) {
		t.Fatalf("the other branch: %v", err)
	}
}

// Two branches with too few honest notaries on each: the log stalls, and two
// signatures of its key prove why.
func TestAttackTwoBranchesStallAndAreProved(t *testing.T) {
	w := start(t)
	a, b := w.fork()
	size := w.size()
	w.lay(a, 1, 2)
	w.lay(b, 3, 4)
	a.Put(w.halt("bob", "branch a").Line())
	b.Put(w.halt("bob", "branch b").Line())
	noteA, noteB := w.pending(a, size+1, 2), w.pending(b, size+1, 2)
	w.lay(b, 1, 2)
	w.lay(a, 3, 4)
	w.never(a, size+1)
	w.never(b, size+1)
	w.eventually("a notary says that the coordinator shows another log", func() bool { return w.Logged("shows another log") })
	fork, err := proof.ProveFork(noteA, noteB, w.trust())
	w.must(err)
	w.must(fork.Verify(w.trust()))
}

// A coordinator on an old copy of its directory signs another history. No
// notary cosigns it and no follower takes it.
func TestAttackRolledBackLog(t *testing.T) {
	w := start(t)
	w.StopCoordinator()
	old := w.Host.Copy("old")
	w.StartCoordinator()
	seer, view := w.follower()
	for _, why := range []string{"one", "two", "three"} {
		w.append(w.halt("bob", why))
	}
	size := w.size()
	final, err := w.Client.Checkpoint(t.Context(), true, size, 0)
	w.must(err)
	_, err = seer.Final(t.Context(), final)
	w.must(err)
	w.StopCoordinator()
	old.Start()
	view.Lay(old)
	w.lay(old, 1, 2, 3, 4)
	for range 6 {
		old.Put(w.halt("carol", "another history").Line())
	}
	w.never(old, size)
	note, err := old.Client.Checkpoint(t.Context(), false, 1, 0)
	w.must(err)
	if _, err := seer.Final(t.Context(), note); !errors.Is(err, follow.ErrRollback) {
		t.Fatalf("a follower that saw %d entries: %v", size, err)
	}
	// Restarted, it signs a longer log than anybody has seen.
	old.Stop()
	old.Start()
	note = w.pending(old, size+1, 0)
	w.never(old, size)
	if n := w.cosignatures(note); n != 0 {
		t.Fatalf("%d notaries cosigned another history", n)
	}
	w.eventually("a notary says that the coordinator shows another log", func() bool { return w.Logged("shows another log") })
}

// follower returns a follower and the wire by which it reaches the log.
func (w *world) follower() (*follow.Follower, *signofftest.Wire) {
	w.t.Helper()
	wire := w.NewWire(w.Host)
	return w.NewFollower(wire.Client), wire
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited 2 min until %s", what)
		}
	}
}

func digest(s string) signoff.Digest { return sha256.Sum256([]byte(s)) }
