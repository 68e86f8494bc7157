package signofftest_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/coordinator"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// positions lets the operators of some notaries state where they stand. The
// notaries are stopped for it, and stay so.
func (w *world) positions(key hsm.Key, numbers ...int) (lines []string, base signoff.Seen) {
	w.t.Helper()
	fp, err := hsm.Fingerprint(key.Public())
	w.must(err)
	for _, i := range numbers {
		n := w.Notaries[i-1]
		n.Stop()
		y := w.OpenNotary(n)
		s, err := y.StatePosition(w.t.Context(), fp)
		w.must(err)
		w.must(y.Close())
		lines = append(lines, string(s.Line()))
		if seen := s.Doc.(*signoff.Position).Seen; seen.Size > base.Size {
			base = seen
		}
	}
	return lines, base
}

// recovery is the document for it, signed by notary 1.
func (w *world) recovery(key hsm.Key, lines []string, base signoff.Seen) []byte {
	w.t.Helper()
	pub, err := signoff.NewPublicKey(key.Public(), hsm.ClassSoftware)
	w.must(err)
	s, err := signoff.Sign(w.t.Context(), w.Notaries[0].Signing, &signoff.Recovery{Charter: w.ID, Log: pub, Base: base, Positions: lines})
	w.must(err)
	return s.Line()
}

// recover makes a host that goes on from another one's log.
func (w *world) recover(from *signofftest.Host, key hsm.Key, line []byte) *signofftest.Host {
	w.t.Helper()
	to := w.NewHost("recovered-" + string(signofftest.Nonce()[0]%26+'a'))
	w.must(coordinator.Recover(w.t.Context(), w.ID, from.LogDir(), to.LogDir(), line))
	to.LogKey = key
	return to
}

// forked is a cluster whose log stalls: notaries 1 and 2 cosigned an entry on
// branch a, 3 one on branch b, and 4, which is hostile or dead, nothing.
func forked(t *testing.T) (w *world, a, b *signofftest.Host, docA, docB *signoff.Signed) {
	t.Helper()
	w = start(t)
	w.stop(4)
	a, b = w.fork()
	size := w.size()
	w.lay(a, 1, 2)
	w.lay(b, 3)
	docA, docB = w.halt("bob", "branch a"), w.halt("bob", "branch b")
	a.Put(docA.Line())
	b.Put(docB.Line())
	w.pending(a, size+1, 2)
	w.pending(b, size+1, 1)
	return w, a, b, docA, docB
}

// The whole of a recovery: the branch that could be final is kept, the other
// one's tail is dropped, and everybody goes on under the new log key, the
// notary that cosigned what was dropped as well.
func TestRecoverAfterFork(t *testing.T) {
	w, a, b, docA, docB := forked(t)
	size := w.size()
	key := w.NewKey("log-2", hsm.KindEd25519)
	lines, base := w.positions(key, 1, 2, 4)
	if base.Size != size+1 {
		t.Fatalf("the longest position is %d, want the entry that two cosigned at %d", base.Size, size+1)
	}
	a.Stop()
	c := w.recover(a, key, w.recovery(key, lines, base))
	b.Stop()
	c.Start()
	w.lay(c, 1, 2, 3, 4)
	w.start(1, 2, 4)
	w.Use(c)
	w.Sync(base.Size + 1)
	w.State(func(_ *authority.Authority, s *authority.State) {
		if _, ok := s.Documents[docA.Digest()]; !ok {
			t.Error("the entry that two notaries cosigned was dropped")
		}
		if _, ok := s.Documents[docB.Digest()]; ok {
			t.Error("the other branch's entry is there")
		}
		if s.Recoveries != 1 {
			t.Errorf("%d recoveries", s.Recoveries)
		}
	})
	note, err := c.Client.Checkpoint(t.Context(), true, base.Size+1, 0)
	w.must(err)
	if _, err := w.NewFollower(c.Client).Final(t.Context(), note); err != nil {
		t.Fatal("a newcomer:", err)
	}
	// The notary that cosigned branch b is needed for this one.
	w.stop(1)
	w.changePolicy("after the recovery")
}

// A recovery takes a quorum's positions on one branch.
func TestAttackRecoveryWithoutQuorum(t *testing.T) {
	w, a, b, _, _ := forked(t)
	key := w.NewKey("log-2", hsm.KindEd25519)
	linesA, base := w.positions(key, 1, 2)
	linesB, _ := w.positions(key, 3)
	a.Stop()
	b.Stop()
	other, _ := w.positions(w.NewKey("log-3", hsm.KindEd25519), 4)
	for name, lines := range map[string][]string{
		"two of three":         linesA,
		"one on another log":   append(slices.Clone(linesA), linesB...),
		"one twice":            append(slices.Clone(linesA), linesA[0]),
		"one for another key":  append(slices.Clone(linesA), other...),
		"one that is none":     append(slices.Clone(linesA), string(w.Genesis[1])),
		"one that is not JSON": append(slices.Clone(linesA), "x"),
	} {
		to := filepath.Join(t.TempDir(), "log")
		if err := coordinator.Recover(t.Context(), w.ID, a.LogDir(), to, w.recovery(key, lines, base)); err == nil {
			t.Errorf("recovered from %s", name)
		}
		if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a refused recovery left a directory behind", name)
		}
	}
}

// A recovery below what is final drops something final, so honest notaries'
// positions do not allow it.
func TestAttackRecoveryDropsFinal(t *testing.T) {
	w := start(t)
	old := w.Follower.Seen()
	w.append(w.halt("bob", "final"))
	w.stop(4)
	key := w.NewKey("log-2", hsm.KindEd25519)
	lines, base := w.positions(key, 1, 2, 3)
	w.StopCoordinator()
	to := filepath.Join(t.TempDir(), "log")
	if err := coordinator.Recover(t.Context(), w.ID, w.Host.LogDir(), to, w.recovery(key, lines, old)); err == nil {
		t.Fatal("recovered below a final entry")
	}
	// One hostile notary among the three does not change that.
	fp, err := hsm.Fingerprint(key.Public())
	w.must(err)
	lie, err := signoff.Sign(t.Context(), w.Notaries[3].Signing, &signoff.Position{Charter: w.ID, Notary: w.Notaries[3].Doc.ID(), Seen: old, Answer: fp[:]})
	w.must(err)
	if err := coordinator.Recover(t.Context(), w.ID, w.Host.LogDir(), to, w.recovery(key, []string{string(lie.Line()), lines[0], lines[1]}, old)); err == nil {
		t.Fatal("recovered below a final entry with a hostile notary's help")
	}
	w.must(coordinator.Recover(t.Context(), w.ID, w.Host.LogDir(), to, w.recovery(key, lines, base)))
}

// A notary that stated its position cosigns nothing more under the old key,
// restarted or not.
func TestAttackCosignAfterStatedPosition(t *testing.T) {
	w := start(t)
	w.positions(w.NewKey("log-2", hsm.KindEd25519), 1, 2)
	w.start(1, 2)
	out, err := w.Client.Append(t.Context(), w.halt("bob", "under the old key").Line())
	w.must(err)
	w.never(w.Host, out.Index+1)
	if n := w.cosignatures(w.pending(w.Host, out.Index+1, 2)); n != 2 {
		t.Fatalf("%d notaries cosigned, only 3 and 4 may", n)
	}
}

// The old log key, in whosever hands, signs nothing that counts after a
// recovery: not for notaries, not for followers.
func TestAttackOldLogKeyAfterRecovery(t *testing.T) {
	w, a, b, _, _ := forked(t)
	old, key := w.LogKey, w.NewKey("log-2", hsm.KindEd25519)
	lines, base := w.positions(key, 1, 2, 4)
	a.Stop()
	b.Stop()
	c := w.recover(a, key, w.recovery(key, lines, base))
	c.Start()
	w.lay(c, 1, 2, 3, 4)
	w.start(1, 2, 4)
	w.Use(c)
	w.Sync(base.Size + 1)
	w.stop(4) // 3, which cosigned branch b, must come over
	w.append(w.halt("carol", "under the new key"))
	w.start(4)
	size := w.size()
	// The old branch goes on under the old key, for longer.
	b.Start()
	for range 16 {
		b.Put(w.halt("bob", "under the old key").Line())
	}
	b.Stop()
	b.Start()
	w.lay(b, 1, 2, 3, 4)
	note, err := b.Client.Checkpoint(t.Context(), false, size+1, 10*time.Second)
	w.must(err)
	w.never(b, base.Size)
	if note, err = b.Client.Checkpoint(t.Context(), false, size+1, 0); err != nil || strings.Count(string(note), "\n— ") != 1 {
		t.Fatalf("want the coordinator's signature alone under the old key: %v\n%s", err, note)
	}
	if _, err := w.Follower.Final(t.Context(), note); err == nil {
		t.Fatal("a follower went back to the old key")
	}
	// A recovered log cannot be served under the old key either.
	b.Stop()
	c.Stop()
	c.LogKey = old
	c.Start()
	w.lay(c, 1, 2, 3, 4)
	index := c.Put(w.halt("erin", "recovered entries, old key").Line())
	w.never(c, index+1)
}
