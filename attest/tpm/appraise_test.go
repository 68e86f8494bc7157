package tpm

import (
	"bytes"
	"crypto/sha256"
	"maps"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/attest"
)

var (
	agentNonce    = []byte("a nonce of the agent")
	defaultPCRs   = []int{0, 1, 2, 3, 4, 5, 6, 7, 8}
	claimedByTest = attest.Digest{7}
)

// referenceFor is a set that describes the boot that a machine has now.
func (b *bench) referenceFor(t *testing.T, version uint64) *attest.ReferenceSet {
	t.Helper()
	values, err := b.device.ReadPCRs(t.Context(), []int{4, 8})
	if err != nil {
		t.Fatal(err)
	}
	return &attest.ReferenceSet{
		Name: "test", Version: version, NotBefore: now.Unix() - 1, NotAfter: now.Unix() + 1,
		PCRs: map[int][]attest.Digest{4: {values[4]}, 8: {values[8]}},
	}
}

func expectation() attest.Expectation {
	return attest.Expectation{Domain: attest.DomainEpoch, Nonce: nonce, Now: now.Unix()}
}

func (b *bench) evidence(t *testing.T, exp attest.Expectation, fresh *FreshKey) *attest.Evidence {
	t.Helper()
	ev, err := b.identity.Evidence(t.Context(), attest.Binding{
		Domain: exp.Domain, Nonce: exp.Nonce, AgentNonce: agentNonce, Request: exp.Request, EventLog: sha256.Sum256(b.log),
	}, defaultPCRs, fresh)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func (b *bench) logs() attest.Logs { return attest.Logs{Boot: attest.ReadBootLog(b.log)} }

func wantRefusal(t *testing.T, v attest.Verdict, part string) {
	t.Helper()
	if v.Passed() || v.Status != attest.StatusFail || v.Fresh != nil {
		t.Fatalf("passed: %s; want a refusal with %q", v.Reason, part)
	}
	if !strings.Contains(v.Reason, part) || v.Remedy == "" {
		t.Fatalf("refused with %q (%q); want %q in it", v.Reason, v.Remedy, part)
	}
}

func TestAppraise(t *testing.T) {
	b := machine(t, 0)
	set := b.referenceFor(t, 1)
	sets := []*attest.ReferenceSet{set}
	ev := b.evidence(t, expectation(), nil)
	v := attest.Appraise(ev, b.logs(), b.node, sets, expectation())
	if !v.Passed() || !v.Emulated || v.Rebooted || len(v.References) != 1 || !v.References[0].Matches || len(v.PCRs) != 9 {
		t.Fatalf("verdict %+v", v)
	}
	// Evidence survives its encoding, and the same arguments give the same verdict.
	encoded, err := ev.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := attest.ParseEvidence(encoded)
	if err != nil {
		t.Fatal(err)
	}
	if again := attest.Appraise(decoded, b.logs(), b.node, sets, expectation()); again.Reason != v.Reason || again.Clock != v.Clock {
		t.Errorf("verdict %+v, then %+v", v, again)
	}
	exp := expectation()
	exp.Previous = &attest.Past{Clock: v.Clock}
	if next := attest.Appraise(b.evidence(t, exp, nil), b.logs(), b.node, sets, exp); !next.Passed() || next.Rebooted {
		t.Errorf("next verdict %+v", next)
	}
}

func TestAppraiseFreshKey(t *testing.T) {
	b, other := machine(t, 0), machine(t, 1)
	sets := []*attest.ReferenceSet{b.referenceFor(t, 1)}
	fresh, err := b.identity.FreshKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	exp := attest.Expectation{Domain: attest.DomainClaim, Nonce: nonce, Request: claimedByTest, NeedsFresh: true, Now: now.Unix()}
	ev := b.evidence(t, exp, fresh)
	v := attest.Appraise(ev, b.logs(), b.node, sets, exp)
	if !v.Passed() || !v.Fresh.Equal(fresh.PublicKey()) {
		t.Fatalf("verdict %+v", v)
	}

	wantRefusal(t, attest.Appraise(ev, b.logs(), b.node, nil, exp), "no current reference set")
	wantRefusal(t, attest.Appraise(ev, b.logs(), b.node, make([]*attest.ReferenceSet, 65), exp), "more than 64")
	wantRefusal(t, attest.Appraise(b.evidence(t, exp, nil), b.logs(), b.node, sets, exp), "no key made for this use")
	stripped := *ev
	stripped.Fresh = nil
	lax := exp
	lax.NeedsFresh = false
	wantRefusal(t, attest.Appraise(&stripped, b.logs(), b.node, sets, lax), "extra data")
	another := exp
	another.Request = attest.Digest{8}
	wantRefusal(t, attest.Appraise(ev, b.logs(), b.node, sets, another), "extra data")

	foreign, err := other.identity.FreshKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	wantRefusal(t, attest.Appraise(b.evidence(t, exp, foreign), b.logs(), b.node, sets, exp), "fresh key")

	// The storage key outlives the boot: certified as fresh, it is none.
	c, err := b.identity.certify(t.Context(), attest.RoleFresh, b.identity.StorageKey.Object())
	if err != nil {
		t.Fatal(err)
	}
	swapped := *ev
	swapped.Fresh = &c
	wantRefusal(t, attest.Appraise(&swapped, b.logs(), b.node, sets, exp), "not a primary key of hierarchy")
	swapped.Fresh = &attest.CertifiedKey{}
	wantRefusal(t, attest.Appraise(&swapped, b.logs(), b.node, sets, exp), "fresh key")
}

func TestAppraiseRefusals(t *testing.T) {
	b, other := machine(t, 0), machine(t, 1)
	set := b.referenceFor(t, 1)
	sets := []*attest.ReferenceSet{set}
	good := b.evidence(t, expectation(), nil)
	for name, c := range map[string]struct {
		change func(*attest.Evidence, *attest.Expectation)
		part   string
	}{
		"relayed from another node": {func(ev *attest.Evidence, _ *attest.Expectation) {
			q := other.evidence(t, expectation(), nil)
			ev.Quote, ev.Signature, ev.PCRs = q.Quote, q.Signature, q.PCRs
		}, "does not verify"},
		"another node's evidence": {func(ev *attest.Evidence, _ *attest.Expectation) { *ev = *other.evidence(t, expectation(), nil) }, "names node"},
		"nonce replay":            {func(_ *attest.Evidence, exp *attest.Expectation) { exp.Nonce = []byte("another nonce of the verifier") }, "extra data"},
		"another purpose":         {func(_ *attest.Evidence, exp *attest.Expectation) { exp.Domain = attest.DomainClaim }, "extra data"},
		"agent nonce changed":     {func(ev *attest.Evidence, _ *attest.Expectation) { ev.AgentNonce = bytes.Repeat([]byte{1}, 16) }, "extra data"},
		"agent nonce short":       {func(ev *attest.Evidence, _ *attest.Expectation) { ev.AgentNonce = nil }, "agent's nonce"},
		"no nonce":                {func(_ *attest.Evidence, exp *attest.Expectation) { exp.Nonce = nil }, "no nonce of its own"},
		"no time":                 {func(_ *attest.Evidence, exp *attest.Expectation) { exp.Now = 0 }, "no time"},
		"another AK":              {func(ev *attest.Evidence, _ *attest.Expectation) { ev.AKName = other.node.AKName }, "attestation key"},
		"another TLS key":         {func(ev *attest.Evidence, _ *attest.Expectation) { ev.TLSName = other.node.TLSName }, "TLS key"},
		"value changed":           {func(ev *attest.Evidence, _ *attest.Expectation) { ev.PCRs[4] = attest.Digest{1} }, "is not that of the PCR values"},
		"value left out":          {func(ev *attest.Evidence, _ *attest.Expectation) { delete(ev.PCRs, 4) }, "signed selection"},
		"value added":             {func(ev *attest.Evidence, _ *attest.Expectation) { ev.PCRs[9] = attest.Digest{1} }, "signed selection"},
		"policy wants more":       {func(_ *attest.Evidence, exp *attest.Expectation) { exp.PCRs = []int{11} }, "PCR 11 was not quoted"},
		"rollback of the reset count": {func(_ *attest.Evidence, exp *attest.Expectation) {
			exp.Previous = &attest.Past{Clock: attest.Clock{ResetCount: 1 << 20}}
		}, "reset count went back"},
		"rollback of the clock": {func(_ *attest.Evidence, exp *attest.Expectation) {
			v := attest.Appraise(good, b.logs(), b.node, sets, expectation())
			later := v.Clock
			later.Milliseconds++
			exp.Previous = &attest.Past{Clock: later}
		}, "clock went back"},
		"sets ran out": {func(_ *attest.Evidence, exp *attest.Expectation) { exp.Now += 2 }, "no current reference set"},
	} {
		t.Run(name, func(t *testing.T) {
			ev, exp := *good, expectation()
			ev.PCRs = maps.Clone(good.PCRs)
			c.change(&ev, &exp)
			wantRefusal(t, attest.Appraise(&ev, b.logs(), b.node, sets, exp), c.part)
		})
	}
	wantRefusal(t, attest.Appraise(nil, b.logs(), b.node, sets, expectation()), "no evidence")
	wantRefusal(t, attest.Appraise(good, b.logs(), nil, sets, expectation()), "not enrolled")
}

// A log that does not lead to the quoted values is the node's own word, and ends
// its lease.
func TestAttackLogsThatDoNotExplain(t *testing.T) {
	b := machine(t, 0)
	sets := []*attest.ReferenceSet{b.referenceFor(t, 1)}
	edited := bytes.Clone(b.log)
	edited[bytes.Index(edited, []byte("synthetic loader"))-5] ^= 1 // a byte of its digest
	for name, c := range map[string]struct {
		log  []byte
		part string
	}{
		"empty log":                {nil, "log is empty"},
		"log without measurements": {specIDEvent(), "PCR 0"},
		"tail of the log cut":      {b.log[:len(b.log)-1], "left"},
		"event changed":            {edited, "PCR 4"},
	} {
		t.Run(name, func(t *testing.T) {
			other := *b
			other.log = c.log
			v := attest.Appraise(other.evidence(t, expectation(), nil), other.logs(), b.node, sets, expectation())
			wantRefusal(t, v, c.part)
			if !v.Proved() {
				t.Error("what the node's TPM signed was taken for somebody else's word")
			}
		})
	}
}

// Whoever holds a node's genuine evidence and shows it otherwise shows evidence
// of nobody, which must not cost the node its lease.
func TestAttackGenuineQuoteWithOtherLogs(t *testing.T) {
	b := machine(t, 0)
	good := b.evidence(t, expectation(), nil)
	if v := attest.Verify(good, b.node, expectation()); !v.Proved() || v.Passed() {
		t.Fatalf("verdict %+v", v)
	}
	for name, change := range map[string]func(*attest.Evidence){
		"event log":       func(ev *attest.Evidence) { ev.EventLog[0] ^= 1 },
		"kernel's list":   func(ev *attest.Evidence) { ev.IMA[0] ^= 1 },
		"where it begins": func(ev *attest.Evidence) { ev.IMAFrom = 1 },
		"PCR value":       func(ev *attest.Evidence) { ev.PCRs[4] = attest.Digest{1} },
		"PCR left out":    func(ev *attest.Evidence) { delete(ev.PCRs, 8) },
		"PCR added":       func(ev *attest.Evidence) { ev.PCRs[9] = attest.Digest{} },
		"agent's nonce":   func(ev *attest.Evidence) { ev.AgentNonce = bytes.Repeat([]byte{1}, 16) },
		"fresh key":       func(ev *attest.Evidence) { ev.Fresh = &attest.CertifiedKey{} },
		"signature": func(ev *attest.Evidence) {
			ev.Signature = bytes.Clone(ev.Signature)
			ev.Signature[len(ev.Signature)-1] ^= 1
		},
		"nothing at all": func(ev *attest.Evidence) { *ev = attest.Evidence{Node: ev.Node} },
	} {
		t.Run(name, func(t *testing.T) {
			ev := *good
			ev.PCRs = maps.Clone(good.PCRs)
			change(&ev)
			v := attest.Verify(&ev, b.node, expectation())
			if v.Proved() || v.Clock != (attest.Clock{}) || v.Reason == "" {
				t.Errorf("altered evidence counts as the node's: %+v", v)
			}
			if judged := v.Judge(&ev, b.logs(), attest.NewReferences(nil, now.Unix()), expectation()); judged.Passed() || judged.Proved() {
				t.Errorf("and was judged: %+v", judged)
			}
		})
	}
	// The right digest beside other bytes is no evidence either.
	sets := []*attest.ReferenceSet{b.referenceFor(t, 1)}
	wantRefusal(t, attest.Appraise(good, attest.Logs{Boot: attest.ReadBootLog(specIDEvent())}, b.node, sets, expectation()), "is not there")
	wantRefusal(t, attest.Appraise(good, attest.Logs{}, b.node, sets, expectation()), "is not there")
}

// The quote covers what the reference sets name: with none, only PCR 0 to 7 are
// judged, and nothing may pass.
func TestAttackNoReferenceConsulted(t *testing.T) {
	b := machine(t, 0)
	ev, err := b.identity.Evidence(t.Context(), attest.Binding{Domain: attest.DomainEpoch, Nonce: nonce, AgentNonce: agentNonce, EventLog: sha256.Sum256(b.log)},
		[]int{0, 1, 2, 3, 4, 5, 6, 7}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, sets := range [][]*attest.ReferenceSet{nil, {}, {nil}, {{}}} {
		wantRefusal(t, attest.Appraise(ev, b.logs(), b.node, sets, expectation()), "no current reference set was consulted")
	}
}

func TestAppraiseGenerations(t *testing.T) {
	b := machine(t, 0)
	current := b.referenceFor(t, 2)
	older, newer := *current, *current
	older.Version, newer.Version = 1, 3
	older.PCRs = map[int][]attest.Digest{4: {{1}}, 8: {{1}}}
	newer.PCRs = map[int][]attest.Digest{4: {{3}}, 8: {{3}}}
	ev := b.evidence(t, expectation(), nil)
	v := attest.Appraise(ev, b.logs(), b.node, []*attest.ReferenceSet{&older, current}, expectation())
	if !v.Passed() || len(v.References) != 2 {
		t.Errorf("an overlap: %+v", v)
	}
	if v = attest.Appraise(ev, b.logs(), b.node, []*attest.ReferenceSet{current, &newer}, expectation()); !v.Passed() {
		t.Errorf("an overlap: %+v", v)
	}
	fourth := newer
	fourth.Version = 4
	wantRefusal(t, attest.Appraise(ev, b.logs(), b.node, []*attest.ReferenceSet{current, &newer, &fourth}, expectation()), "none of 2 reference sets matches")
	wantRefusal(t, attest.Appraise(ev, b.logs(), b.node, []*attest.ReferenceSet{&older}, expectation()), "PCR 4 is")
	// Values of two generations may not be mixed.
	mixed := *current
	mixed.PCRs = map[int][]attest.Digest{4: current.PCRs[4], 8: {{1}}}
	wantRefusal(t, attest.Appraise(ev, b.logs(), b.node, []*attest.ReferenceSet{&mixed, &newer}, expectation()), "none of 2 reference sets matches")
}

// A changed boot is refused, a reboot is seen, and a machine that measured
// nothing is refused whatever the sets say.
func TestAttackChangedAndUnmeasuredBoot(t *testing.T) {
	b := newBench(t)
	sets := []*attest.ReferenceSet{b.referenceFor(t, 1)}
	first := attest.Appraise(b.evidence(t, expectation(), nil), b.logs(), b.node, sets, expectation())
	if !first.Passed() {
		t.Fatal(first.Reason)
	}
	exp := expectation()
	exp.Previous = &attest.Past{Clock: first.Clock}

	d := b.device
	if err := Extend(t.Context(), d, 4, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, attest.Appraise(b.evidence(t, exp, nil), b.logs(), b.node, sets, exp), "PCR 4")

	b.emulator.Reset(t)
	b.open(t)
	b.load(t)
	v := attest.Appraise(b.evidence(t, exp, nil), b.logs(), b.node, sets, exp)
	if !v.Passed() || !v.Rebooted {
		t.Errorf("after a reboot: %+v", v)
	}

	b.emulator.Reset(t)
	var err error
	if b.device, err = Open(b.emulator.Path); err != nil {
		t.Fatal(err)
	}
	b.load(t)
	b.log = specIDEvent()
	wantRefusal(t, attest.Appraise(b.evidence(t, exp, nil), b.logs(), b.node, sets, exp), "no measured boot")
}

// A snapshot of a virtual TPM is restored: its counts are those of the past.
func TestAttackSnapshotRollback(t *testing.T) {
	b := newBench(t)
	sets := []*attest.ReferenceSet{b.referenceFor(t, 1)}
	snapshot := b.emulator.Snapshot(t)
	reboot := func() attest.Verdict {
		b.emulator.Reset(t)
		b.open(t)
		b.load(t)
		return attest.Appraise(b.evidence(t, expectation(), nil), b.logs(), b.node, sets, expectation())
	}
	var v attest.Verdict
	for range 2 {
		if v = reboot(); !v.Passed() {
			t.Fatal(v.Reason)
		}
	}
	exp := expectation()
	exp.Previous = &attest.Past{Clock: v.Clock}
	b.emulator.Restore(t, snapshot)
	b.open(t)
	b.load(t)
	wantRefusal(t, attest.Appraise(b.evidence(t, exp, nil), b.logs(), b.node, sets, exp), "reset count went back")
}

func TestSyntheticBootOnce(t *testing.T) {
	b := machine(t, 0)
	_, err := SyntheticBoot(t.Context(), b.device, components())
	wantError(t, err, "extended already")
}

// The binding's fields cannot be shifted into one another.
func TestBindingIsInjective(t *testing.T) {
	seen := map[[32]byte]bool{}
	for _, b := range []attest.Binding{
		{}, {Domain: "ab"}, {Domain: "a", Nonce: []byte("b")}, {Nonce: []byte("ab")}, {AgentNonce: []byte("ab")},
		{TLSName: []byte("ab")}, {FreshName: []byte("ab")}, {TLSName: []byte("a"), FreshName: []byte("b")}, {Request: attest.Digest{1}},
	} {
		if d := b.Digest(); seen[d] {
			t.Errorf("%+v has the digest of another", b)
		} else {
			seen[d] = true
		}
	}
}
