package agent_test

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/ima"
	"github.com/keyturn/keyturn/attest/tpm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
)

// measures does what a kernel with IMA does: it extends PCR 10 and lengthens the
// list. swtpm stands for the TPM, a file for the kernel's.
func (m *machine) measures(path string, digest [32]byte) {
	m.w.t.Helper()
	sized := func(dst, b []byte) []byte {
		return append(binary.LittleEndian.AppendUint32(dst, uint32(len(b))), b...)
	}
	data := sized(nil, append([]byte("sha256:\x00"), digest[:]...))
	data = sized(data, append([]byte(path), 0))
	template := sha1.Sum(data)
	entry := append(binary.LittleEndian.AppendUint32(nil, ima.PCR), template[:]...)
	entry = sized(sized(entry, []byte("ima-ng")), data)
	m.w.must(tpm.Extend(context.Background(), m.device, ima.PCR, sha256.Sum256(data)))
	f, err := os.OpenFile(filepath.Join(m.dir, "ima"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	m.w.must(err)
	_, err = f.Write(entry)
	m.w.must(err)
	m.w.must(f.Close())
}

// kernel begins the list.
func (m *machine) kernel() {
	m.w.t.Helper()
	pcrs := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
	values, err := m.device.ReadPCRs(context.Background(), pcrs)
	m.w.must(err)
	var all []byte
	for _, pcr := range pcrs {
		v := values[pcr]
		all = append(all, v[:]...)
	}
	m.measures("boot_aggregate", sha256.Sum256(all))
}

// proved waits for an epoch in which so many entries of the node's list passed,
// and returns its evidence.
func (m *machine) proved(entries uint64) *authority.Presented {
	w := m.w
	w.t.Helper()
	var evidence signoff.Digest
	w.Wait(fmt.Sprintf("%d files", entries), func(s *authority.State) bool {
		l, _, ok := s.Epoch.Lease(m.id)
		evidence = l.Evidence
		return ok && l.Verdict == authority.VerdictPass && l.Past.IMA != nil && l.Past.IMA.Entries == entries
	})
	blob, err := w.Client.Blob(context.Background(), evidence)
	w.must(err)
	p, err := authority.ParsePresented(blob)
	w.must(err)
	return p
}

// passed is the machine's lease of the epoch with the evidence that it got it by;
// nil evidence if it has none.
func (m *machine) passed(s *authority.State) (authority.Lease, *authority.Presented) {
	l, _, ok := s.Epoch.Lease(m.id)
	if !ok || l.Verdict != authority.VerdictPass {
		return l, nil
	}
	blob, err := m.w.Client.Blob(context.Background(), l.Evidence)
	if err != nil {
		return l, nil
	}
	p, err := authority.ParsePresented(blob)
	if err != nil {
		return l, nil
	}
	return l, p
}

// A node is held to what its kernel measures while it runs: it sends its list
// once and then what is new, and a file that no rule allows ends its lease.
func TestAttackFileAfterTheBoot(t *testing.T) {
	train := sha256.Sum256([]byte("train"))
	w := newWorld(t, slow, 1, func(w *world) {
		w.files = &ima.Rules{Files: map[string][]string{"/usr/bin/train": {fmt.Sprintf("sha256:%x", train)}}}
	})
	m := w.nodes[0]
	m.kernel()
	m.measures("/usr/bin/train", train)
	m.start()
	m.enrol()
	m.leased()
	m.proved(2)
	w.Wait("evidence without what is known", func(s *authority.State) bool {
		_, p := m.passed(s)
		return p != nil && p.Evidence.IMAFrom > 0 && p.Evidence.IMA == attest.Digest{}
	})
	m.measures("/usr/bin/train", train)
	if p := m.proved(3); p.Evidence.IMAFrom == 0 {
		t.Error("the whole list was sent again")
	}
	m.measures("/usr/bin/nc", sha256.Sum256([]byte("nc")))
	var why string
	w.until("the lease to be lost", func() bool { why = m.status().NoLease; return why != "" })
	if !strings.Contains(why, "/usr/bin/nc") || !strings.Contains(why, "no rule allows it") {
		t.Errorf("lost because %s", why)
	}
}

// What the kernel measured between a lease and a claim is proved by both, and no
// epoch takes the one for a gap in the other.
func TestFilesAroundAClaim(t *testing.T) {
	train := sha256.Sum256([]byte("train"))
	w := newWorld(t, slow, 1, func(w *world) {
		w.files = &ima.Rules{Files: map[string][]string{"/usr/bin/train": {fmt.Sprintf("sha256:%x", train)}}}
	})
	m := w.nodes[0]
	m.kernel()
	m.start()
	m.enrol()
	m.leased()
	warrant := w.launch("inputs", 3, m)
	m.listed(warrant)
	for i := range 3 {
		m.measures("/usr/bin/train", train)
		if err := m.run(t.Context(), warrant, w.probe).end(); err != nil {
			t.Fatalf("use %d: %v", i+1, err)
		}
		if s := m.status(); s.Lease == 0 {
			t.Fatalf("after use %d: %s", i+1, s.NoLease)
		}
	}
	m.proved(4)
	w.State(func(_ *authority.Authority, s *authority.State) {
		if n := s.Nodes[m.id]; n.Claimed == 0 || n.Past.IMA == nil {
			t.Errorf("claimed at entry %d, past %+v", n.Claimed, n.Past)
		}
	})
}

// Without a list a node does not pass rules for files.
func TestAttackKernelWithoutAList(t *testing.T) {
	w := newWorld(t, slow, 1, func(w *world) { w.files = &ima.Rules{Digests: []string{"sha256:" + strings.Repeat("0", 64)}} })
	m := w.nodes[0]
	m.start()
	m.enrol()
	w.Wait("a verdict", func(s *authority.State) bool {
		l, _, ok := s.Epoch.Lease(m.id)
		return ok && strings.Contains(l.Reason, "the kernel measured nothing")
	})
	if m.status().Lease != 0 {
		t.Error("a lease without a list")
	}
}
