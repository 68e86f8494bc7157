package signofftest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// changeNotaries goes from a request for a new council to all approvals. The
// newcomers have to run for it to be satisfied.
func (w *world) changeNotaries(faults int, to ...*signofftest.Notary) signoff.Digest {
	w.t.Helper()
	w.Tick()
	req := w.Request("alice", signoff.ActionNotaries, func(r *signoff.Request) {
		w.State(func(_ *authority.Authority, s *authority.State) {
			r.Notaries = &signoff.NotaryChange{Term: s.Term().Number, Faults: faults}
		})
		for _, n := range to {
			r.Notaries.Notaries = append(r.Notaries.Notaries, n.Doc)
		}
	})
	w.append(req)
	for _, p := range []string{"bob", "carol", "dave"} {
		w.append(w.Decide(p, req.Digest(), signoff.Approve))
	}
	return req.Digest()
}

// inOffice waits until a term has begun.
func (w *world) inOffice(term uint32) {
	w.t.Helper()
	w.Wait("the term", func(s *authority.State) bool { return s.Term().Number == term })
}

func (w *world) groupKey() (key [32]byte) {
	w.t.Helper()
	w.State(func(_ *authority.Authority, s *authority.State) { key = s.Group.PublicKey })
	return key
}

// sealedFiles are the secrets on a notary's disk.
func (w *world) sealedFiles(n *signofftest.Notary) (names []string) {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.Dir, "*.sealed"))
	w.must(err)
	for _, f := range files {
		names = append(names, filepath.Base(f))
	}
	return names
}

// A notary's disk is lost. The other three and a newcomer take over under
// sign-off; the group key is the same, warrants go on, nothing of the old
// shares stays on any disk, and the lost one is not needed, nor heard.
func TestLostNotaryIsReplaced(t *testing.T) {
	w := start(t)
	key := w.groupKey()
	lost := w.Notaries[3]
	lost.Stop()
	w.must(os.RemoveAll(lost.Dir))
	n5 := w.Newcomer("n5")
	w.StartNotary(n5)
	w.changeNotaries(1, w.Notaries[0], w.Notaries[1], w.Notaries[2], n5)
	w.inOffice(2)
	if w.groupKey() != key {
		t.Error("the group key changed")
	}
	w.stop(2) // so that the newcomer is needed
	w.changePolicy("signed by the new council")
	w.Notaries[1].Stop()
	for _, n := range []*signofftest.Notary{w.Notaries[0], w.Notaries[2], n5} {
		n.Stop()
		if files := w.sealedFiles(n); len(files) != 1 || !strings.HasPrefix(files[0], "share-") {
			t.Errorf("%s keeps %v", n.Name, files)
		}
	}
}

// A notary that was replaced comes back from a backup of its disk, share and
// all. It erases the share and is nobody: with it two of the new council do not
// become three.
func TestAttackReplacedNotaryRestored(t *testing.T) {
	w := start(t)
	left := w.Notaries[3]
	left.Stop()
	n5 := w.Newcomer("n5")
	w.StartNotary(n5)
	w.changeNotaries(1, w.Notaries[0], w.Notaries[1], w.Notaries[2], n5)
	w.inOffice(2)
	if len(w.sealedFiles(left)) == 0 {
		t.Fatalf("the backup has %v", w.sealedFiles(left))
	}
	w.StartNotary(left)
	for deadline := time.Now().Add(2 * time.Minute); len(w.sealedFiles(left)) > 0; w.Tick() {
		if time.Now().After(deadline) {
			t.Fatal("it keeps its share")
		}
	}
	w.stop(1, 2)
	out, err := w.Client.Append(t.Context(), w.halt("dave", "smoke").Line())
	w.must(err)
	note := w.pending(w.Host, out.Index+1, 2)
	line, err := proof.Cosign(t.Context(), note, left.Name, left.Witness, 1)
	w.must(err)
	signed, err := proof.AddCosignature(note, line)
	w.must(err)
	if err := w.Client.Cosign(t.Context(), signed); err == nil {
		note = w.pending(w.Host, out.Index+1, 2)
		if n := w.cosignatures(note); n != 2 {
			t.Errorf("%d cosignatures count", n)
		}
	}
	w.never(w.Host, out.Index+1)
	w.start(1, 2)
	w.Sync(out.Index + 1)
}

// A share file works on no other host, even under the same sealing key.
func TestAttackShareFileCopied(t *testing.T) {
	w := start(t)
	n1, n2 := w.Notaries[0], w.Notaries[1]
	w.stop(2, 4)
	files := w.sealedFiles(n1)
	name := files[len(files)-1] // behind a dealing that is not erased yet
	b, err := os.ReadFile(filepath.Join(n1.Dir, name))
	w.must(err)
	w.must(os.WriteFile(filepath.Join(n2.Dir, name), b, 0o600))
	n2.Sealer = n1.Sealer
	w.start(2)
	id := w.approved("needs three shares, of which one is a copy")
	for deadline := time.Now().Add(2 * time.Minute); !w.Logged("notary=n2", "unseal "+name); w.Tick() {
		if time.Now().After(deadline) {
			t.Fatal("the copy was not refused")
		}
	}
	w.State(func(_ *authority.Authority, s *authority.State) {
		if !s.Requests[id].Warrant.IsZero() {
			t.Error("signed with a copied share")
		}
	})
}
