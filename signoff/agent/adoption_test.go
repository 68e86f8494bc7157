package agent_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
)

// adopt puts a set into force beside the charter's: what the machine booted, and
// a value of PCR 12, which the charter's set does not name.
func (m *machine) adopt(version uint64, pcr12 attest.Digest) {
	w := m.w
	w.t.Helper()
	values, err := m.device.ReadPCRs(w.t.Context(), []int{4, 8})
	w.must(err)
	set := &attest.ReferenceSet{Name: "test", Version: version, NotBefore: 1, NotAfter: time.Now().Unix() + 86400,
		PCRs: map[int][]attest.Digest{4: {values[4]}, 8: {values[8]}, 12: {pcr12}}}
	text, err := set.Marshal()
	w.must(err)
	id, err := w.Client.PutBlob(w.t.Context(), text)
	w.must(err)
	w.Tick()
	req := w.Request("alice", signoff.ActionReferenceAdopt, func(r *signoff.Request) {
		r.Adopt = &signoff.ReferenceAdopt{Name: set.Name, Version: version, Set: id}
	})
	w.must(w.Append(req))
	for _, p := range []string{"bob", "erin"} {
		w.must(w.Append(w.Decide(p, req.Digest(), signoff.Approve)))
	}
	w.Wait("the set to be adopted", func(s *authority.State) bool { return s.References[id] != nil })
}

// An agent that runs quotes a further PCR as soon as a set that people adopt
// names it, and loses its lease if no set that counts allows what is there.
func TestAdoptedSetNamesAnotherPCR(t *testing.T) {
	w := newWorld(t, slow, 1)
	m := w.nodes[0]
	m.start()
	m.enrol()
	m.leased()
	m.adopt(2, attest.Digest{}) // as after a boot to which nothing was added
	w.Wait("evidence with PCR 12", func(s *authority.State) bool {
		l, p := m.passed(s)
		if p == nil {
			return false
		}
		_, quoted := p.Evidence.PCRs[12]
		return quoted && strings.Contains(l.Reason, "version 2")
	})
	// The set of before may still pass it; with two newer ones it counts no longer.
	m.adopt(3, attest.Digest{1})
	m.adopt(4, attest.Digest{1})
	var why string
	w.until("the lease to be lost", func() bool { why = m.status().NoLease; return why != "" })
	if !strings.Contains(why, "PCR 12 is sha256:0000") || !strings.Contains(why, "does not allow") {
		t.Errorf("lost because %s", why)
	}
}
