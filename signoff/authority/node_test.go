package authority_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/tpm"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A machine is a node with a software TPM of its own and a synthetic boot.
type machine struct {
	l         *log
	name      string
	id        Digest
	bios      []byte
	pcrs      []int
	identity  *tpm.Identity
	enrolment []byte
	device    *tpm.Device
}

// hardware is made once for all tests: each has its own log, and a TPM does not
// mind in how many it is enrolled.
var hardware struct {
	once     sync.Once
	boot     hsm.Key
	machines []*machine
	roots    [][][]byte // EK roots of each machine
	set      *attest.ReferenceSet
	cleanups []func()
}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	for _, f := range slices.Backward(hardware.cleanups) {
		f()
	}
	os.Exit(code)
}

// kept is a testing.TB whose resources live until all tests are over.
type kept struct{ testing.TB }

func (kept) Cleanup(f func()) { hardware.cleanups = append(hardware.cleanups, f) }

// makeHardware makes three machines, and the key that signs their boots.
func makeHardware(t testing.TB) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "keyturn-authority")
	must(err)
	kept{t}.Cleanup(func() { os.RemoveAll(dir) })
	uri := "file:" + filepath.Join(dir, "boot.pem")
	_, err = file.Generate(uri, hsm.KindP256)
	must(err)
	hardware.boot, err = file.Open(uri, nil)
	must(err)
	hardware.set = &attest.ReferenceSet{Name: "test", Version: 1, NotBefore: 1, NotAfter: began + 1<<30, PCRs: map[int][]attest.Digest{}}
	for i := range 3 {
		emulator := swtpm.New(kept{t})
		device, err := tpm.Open(emulator.Path)
		must(err)
		kept{t}.Cleanup(func() { device.Close() })
		m := &machine{name: fmt.Sprintf("node-%d", i+1)}
		m.bios, err = tpm.SyntheticBoot(context.Background(), device, []tpm.Measured{
			{PCR: 0, Type: tpm.EventSCRTMVersion, Data: []byte("firmware")}, {PCR: 4, Type: tpm.EventBootApplication, Data: []byte("kernel")}})
		must(err)
		values, err := device.ReadPCRs(context.Background(), []int{4})
		must(err)
		hardware.set.PCRs[4] = []attest.Digest{values[4]}
		m.device = device
		m.provision(t, device)
		m.pcrs = attest.Selection([]*attest.ReferenceSet{hardware.set}, nil, began)
		hardware.machines, hardware.roots = append(hardware.machines, m), append(hardware.roots, emulator.CA)
	}
}

func (m *machine) provision(t testing.TB, device *tpm.Device) {
	t.Helper()
	boot := hardware.boot.Public().(*ecdsa.PublicKey)
	state, err := device.Provision(context.Background(), boot)
	if err == nil {
		m.identity, err = device.Load(context.Background(), state, boot)
	}
	if err != nil {
		t.Fatal(err)
	}
	e, err := m.identity.Enrol(context.Background())
	if err == nil {
		m.enrolment, err = e.Marshal()
	}
	if err != nil {
		t.Fatal(err)
	}
	m.id = Digest(m.identity.Node())
}

// withNodes is a log in which so many of three machines are enrolled; the
// charter knows the makers of the first two.
func withNodes(t testing.TB, enrolled int) (*log, []*machine) {
	t.Helper()
	if err := swtpm.Available(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	hardware.once.Do(func() { makeHardware(t) })
	text, err := hardware.set.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	bootKey, err := signoff.NewPublicKey(hardware.boot.Public(), hsm.ClassSoftware)
	if err != nil {
		t.Fatal(err)
	}
	l := ready(t, func(c *signoff.Charter) {
		c.Created = time.Now().Unix() + 1 // EK certificates are valid from when they were made
		c.BootPolicy, c.References = &bootKey, []string{string(text)}
		c.EKRoots = slices.Concat(hardware.roots[0], hardware.roots[1])
		c.Policy = strings.Replace(c.Policy, "leases: {epoch: 2, lease: 8, drainGrace: 2}", "leases: {epoch: 600, lease: 3600, drainGrace: 60}", 1)
	})
	var machines []*machine
	for i, made := range hardware.machines {
		m := *made
		m.l = l
		machines = append(machines, &m)
		if i < enrolled {
			m.enrol()
		}
	}
	return l, machines
}

func (m *machine) asks() *signoff.Signed {
	blob := m.l.blobs.put(m.enrolment)
	return m.l.asks("alice", signoff.ActionEnrol, func(r *signoff.Request) {
		r.Enrol = &signoff.Enrol{Name: m.name, Node: m.id, Enrolment: blob}
	})
}

// activate has so many notaries say that the node's keys are in one TPM.
func (m *machine) activate(request Digest, notaries int) {
	for _, y := range m.l.Notaries[:notaries] {
		m.l.takes(m.l.signed(y.Signing, &signoff.Activation{Charter: m.l.ID, Notary: y.Doc.ID(), Request: request, Node: m.id, Enrolment: m.l.blobs.put(m.enrolment)}))
	}
}

func (m *machine) enrol() {
	m.l.t.Helper()
	r := m.l.takes(m.asks())
	m.l.approves(r, "bob", "erin")
	m.activate(r, 3)
	m.l.takes(m.l.warrant(r))
}

// proves puts evidence of the machine forward, on the log as it stands.
func (m *machine) proves(domain string, request Digest, fresh *tpm.FreshKey) *authority.Presented {
	l := m.l
	l.t.Helper()
	seen := l.seen()
	b := attest.Binding{Domain: domain, Nonce: authority.EvidenceNonce(l.ID, seen.Root), AgentNonce: signofftest.Nonce(), Request: attest.Digest(request),
		EventLog: attest.Digest(l.blobs.put(m.bios))}
	ev, err := m.identity.Evidence(context.Background(), b, m.pcrs, fresh)
	l.must(err)
	return &authority.Presented{Seen: seen, Evidence: *ev}
}

func (l *log) present(p *authority.Presented) Digest {
	l.t.Helper()
	blob, err := dsse.Encode(p)
	l.must(err)
	return l.blobs.put(blob)
}

// set is the evidence set of an epoch.
func (l *log) set(evidence ...Digest) Digest {
	if len(evidence) == 0 {
		return Digest{}
	}
	return l.blobs.put(signoff.EncodeEvidenceSet(evidence))
}

// proposer is the first notary that may propose the next epoch.
func (l *log) proposer() *signofftest.Notary {
	i := slices.IndexFunc(l.Notaries, func(y *signofftest.Notary) bool { return l.state().MayPropose(y.Doc.ID()) })
	return l.Notaries[i]
}

// epoch is a notary's epoch over the evidence given.
func (l *log) epoch(evidence ...Digest) *signoff.Signed {
	l.t.Helper()
	s, y, set := l.state(), l.proposer(), l.set(evidence...)
	leases, err := l.fold.Leases(set, l.blobs)
	l.must(err)
	root, err := authority.LeaseRoot(leases)
	l.must(err)
	e := &signoff.Epoch{Charter: l.ID, Notary: y.Doc.ID(), Number: 1, Policy: s.Policy.Digest, Evidence: set, Root: root}
	if s.Epoch != nil {
		e.Number, e.Previous = s.Epoch.Number+1, s.Epoch.Root
	}
	return l.signed(y.Signing, e)
}

// leased gives the machines a lease.
func (l *log) leased(machines ...*machine) {
	l.t.Helper()
	var evidence []Digest
	for _, m := range machines {
		evidence = append(evidence, l.present(m.proves(attest.DomainEpoch, Digest{}, nil)))
	}
	l.takes(l.epoch(evidence...))
	for _, m := range machines {
		if got, _, ok := l.state().Epoch.Lease(m.id); !ok || got.Verdict != authority.VerdictPass {
			l.t.Fatalf("%s has no lease: %s", m.name, got.Reason)
		}
	}
}

// launch asks for a run on the machines, with so many uses, and gets it.
func (l *log) launch(uses int, pool ...*machine) (request, warrant Digest) {
	l.t.Helper()
	return l.launchWithOutput(uses, 0, pool...)
}

func (l *log) launchWithOutput(uses int, output int64, pool ...*machine) (request, warrant Digest) {
	l.t.Helper()
	object := l.sealed("model " + string(rune('a'+len(l.lines)%26)))
	request = l.takes(l.asks("dave", signoff.ActionLaunch, func(r *signoff.Request) {
		r.Launch = &signoff.Launch{Name: "run", Executable: Digest{1}, Argv: []string{"run"}, Objects: []Digest{object}, Uses: uses, Seconds: 60, Output: output}
		for _, m := range pool {
			r.Launch.Pool = append(r.Launch.Pool, m.id)
		}
	}))
	l.approves(request, "alice", "bob", "carol")
	return request, l.takes(l.warrant(request))
}

// claims takes a use with a quote for the request and a key for it alone.
func (m *machine) claims(request, warrant Digest, use int, edits ...func(*signoff.Claim)) *signoff.Signed {
	l := m.l
	l.t.Helper()
	fresh, err := m.identity.FreshKey(context.Background())
	l.must(err)
	defer fresh.Close()
	c := &signoff.Claim{Charter: l.ID, Node: m.id, Warrant: warrant, Use: use, Created: l.state().Time, Nonce: signofftest.Nonce(),
		Evidence: l.present(m.proves(attest.DomainClaim, request, fresh))}
	for _, edit := range edits {
		edit(c)
	}
	return l.signed(m.identity.SignKey, c)
}

// opens is a notary's release for a claim.
func (l *log) opens(i int, request, warrant, claim Digest) *signoff.Signed {
	l.t.Helper()
	return l.release(i, warrant, func(r *signoff.Release) {
		r.Claim, r.Share.Object = claim, l.state().Requests[request].Doc.Objects()[0]
		if c, ok := l.state().Claims[claim]; ok {
			r.Share.Recipient = c.FreshFingerprint()
		}
	})
}

func TestAttackUsesOfALaunch(t *testing.T) {
	l, ms := withNodes(t, 2)
	in, out := ms[0], ms[1]
	request, warrant := l.launch(2, in)

	l.voids(in.claims(request, warrant, 1), "no lease in the epoch")
	l.takes(l.epoch())
	l.voids(in.claims(request, warrant, 1), authority.ReasonSilent)
	l.leased(in, out)
	l.voids(out.claims(request, warrant, 1), "is not in the pool")
	l.voids(in.claims(request, warrant, 2), "the next is 1 of 2")
	l.voids(in.claims(Digest{7}, warrant, 1), "evidence of node")
	l.voids(in.claims(request, Digest{7}, 1), "is not in the log")
	l.voids(in.claims(request, warrant, 1, func(c *signoff.Claim) { c.Node = out.id }), "names key")
	l.voids(in.claims(request, warrant, 1, func(c *signoff.Claim) { c.Evidence = l.present(in.proves(attest.DomainEpoch, Digest{}, nil)) }), "evidence of node")
	l.voids(in.claims(request, warrant, 1, func(c *signoff.Claim) { c.Evidence = l.blobs.put([]byte("{}")) }), "")
	l.voids(l.opens(0, request, warrant, Digest{7}), "is not of warrant") // released before any claim

	first := in.claims(request, warrant, 1)
	id := l.takes(first)
	l.voids(first, "already took effect")
	used := first.Doc.(*signoff.Claim)
	l.voids(in.claims(request, warrant, 2, func(c *signoff.Claim) { c.Evidence = used.Evidence }), "fresh key was used")
	l.takes(l.opens(0, request, warrant, id))
	l.voids(l.opens(0, request, warrant, id), "already took effect")
	l.takes(in.claims(request, warrant, 2))
	l.voids(in.claims(request, warrant, 3), "no use left of 2")
	if used := l.state().Warrants[warrant].Used; used != 2 {
		t.Fatalf("%d uses taken of 2", used)
	}
	if again := l.again(); again.StateDigest() != l.fold.StateDigest() {
		t.Fatal("the same entries folded to another state")
	}
	void := l.void()
	if len(void) < 8 {
		t.Fatalf("%d epochs and claims without effect", len(void))
	}
	if got := l.witness(void); got.StateDigest() != l.fold.StateDigest() {
		t.Fatal("who takes epochs and claims as the notaries did comes to another state")
	}
	// Told nothing, it takes for effect what had none, and sees another state than
	// the notaries signed.
	if got := l.witness(nil); got.StateDigest() == l.fold.StateDigest() {
		t.Error("entries without effect leave no trace in the state")
	}
}

func TestAttackReleaseAfterTheEnd(t *testing.T) {
	l, ms := withNodes(t, 1)
	m := ms[0]
	request, warrant := l.launch(4, m)
	l.leased(m)
	claim := l.takes(m.claims(request, warrant, 1))
	ends := func(claim Digest) *signoff.Signed {
		return l.signed(m.identity.SignKey, &signoff.Receipt{Charter: l.ID, Signer: m.id, Warrant: warrant, Claim: claim, Event: signoff.EventEnded, Detail: "exit 0", Created: began})
	}
	l.takes(ends(claim))
	l.voids(l.opens(0, request, warrant, claim), "has ended")
	l.voids(ends(claim), "already took effect")

	claim = l.takes(m.claims(request, warrant, 2))
	l.takes(l.opens(0, request, warrant, claim))
	h := l.takes(l.halts("bob", func(h *signoff.Halt) { h.Node = m.id }))
	l.voids(l.opens(1, request, warrant, claim), h.String())
	l.voids(m.claims(request, warrant, 3), h.String())
	r := l.takes(l.resume("dave", h))
	l.approves(r, "alice", "bob", "carol")
	l.takes(l.warrant(r))
	l.takes(l.opens(1, request, warrant, claim))

	retire := l.takes(l.asks("alice", signoff.ActionRetire, func(r *signoff.Request) { r.Retire = &signoff.Retire{Node: m.id} }))
	l.approves(retire, "bob")
	l.takes(l.warrant(retire))
	l.voids(l.opens(2, request, warrant, claim), "is retired")
	l.voids(m.claims(request, warrant, 3), "is not an enrolled node")
	l.voids(m.asks(), "out for good")
}

// When epochs stop coming, a lease is over at its end and not at the next epoch.
func TestAttackLeaseWithoutEnd(t *testing.T) {
	l, ms := withNodes(t, 1)
	m := ms[0]
	request, warrant := l.launch(4, m)
	l.leased(m)
	now := l.state().Time
	l.tick(now + 3599)
	l.takes(m.claims(request, warrant, 1))
	l.tick(now + 3600)
	request, warrant = l.launch(4, m) // so that its own life is not the reason
	l.voids(m.claims(request, warrant, 1), "ended: the epoch in force is 3600 s old")
}

// void lists the epochs and claims of the log that had no effect.
func (l *log) void() map[uint64]bool {
	l.t.Helper()
	void := map[uint64]bool{}
	a, err := authority.New(l.ID)
	l.must(err)
	l.must(a.ApplyAll(l.lines, l.blobs, func(out authority.Outcome, _ []byte) {
		if out.Void != nil && (out.Kind == signoff.KindEpoch || out.Kind == signoff.KindClaim) {
			void[out.Index] = true
		}
	}))
	return void
}

// witness folds the log without appraising nodes.
func (l *log) witness(void map[uint64]bool) *authority.Authority {
	l.t.Helper()
	a, err := authority.NewWitnessed(l.ID)
	l.must(err)
	a.Doubt(void)
	l.must(a.ApplyAll(l.lines, l.blobs, func(authority.Outcome, []byte) {}))
	return a
}

// A node takes its lease from the root by a proof, and no other for its own.
func TestAttackLeaseProof(t *testing.T) {
	l, ms := withNodes(t, 2)
	l.leased(ms[0])
	epoch := l.state().Epoch
	witness := l.witness(l.void()).State().Epoch
	if len(witness.Leases) != 0 || witness.Root != epoch.Root {
		t.Fatalf("%d leases under root %s", len(witness.Leases), witness.Root)
	}
	for _, m := range ms[:2] {
		p, err := epoch.Prove(m.id)
		l.must(err)
		want, _, _ := epoch.Lease(m.id)
		got, err := witness.Open(p)
		if err != nil || got.Node != m.id || got.Verdict != want.Verdict || got.Reason != want.Reason {
			t.Errorf("%s: %+v, %v", m.name, got, err)
		}
		for name, change := range map[string]func(*authority.LeaseProof){
			"another verdict": func(p *authority.LeaseProof) { p.Leaf = bytes.Replace(p.Leaf, []byte(`"fail"`), []byte(`"pass"`), 1) },
			"longer":          func(p *authority.LeaseProof) { p.Leaf = append(p.Leaf, ' ') },
			"another place":   func(p *authority.LeaseProof) { p.Index ^= 1 },
			"no place":        func(p *authority.LeaseProof) { p.Index = p.Size },
			"another size":    func(p *authority.LeaseProof) { p.Size += 2 },
			"no path":         func(p *authority.LeaseProof) { p.Path = nil },
			"nothing":         func(p *authority.LeaseProof) { *p = authority.LeaseProof{} },
		} {
			bad := *p
			bad.Leaf, bad.Path = slices.Clone(p.Leaf), slices.Clone(p.Path)
			change(&bad)
			if bytes.Equal(bad.Leaf, p.Leaf) && bad.Index == p.Index && bad.Size == p.Size && len(bad.Path) == len(p.Path) {
				continue // a lease that passed says no "fail"
			}
			if got, err := witness.Open(&bad); err == nil {
				t.Errorf("%s, %s: opened to %+v", m.name, name, got)
			}
		}
	}
	if _, err := epoch.Prove(ms[2].id); err == nil {
		t.Error("a proof for a node that is not there")
	}
}

// verdict is the node's lease in an epoch over the evidence.
func (m *machine) verdict(given ...*authority.Presented) authority.Lease {
	l := m.l
	l.t.Helper()
	var evidence []Digest
	for _, p := range given {
		evidence = append(evidence, l.present(p))
	}
	leases, err := l.fold.Leases(l.set(evidence...), l.blobs)
	l.must(err)
	i := slices.IndexFunc(leases, func(x authority.Lease) bool { return x.Node == m.id })
	return leases[i]
}

// others are ways to show evidence of a node that its TPM did not make for this
// epoch, beside the genuine one.
func (m *machine) others(stale, genuine *authority.Presented, other *machine) map[string]*authority.Presented {
	relay := *other.proves(attest.DomainEpoch, Digest{}, nil)
	relay.Evidence.Node = genuine.Evidence.Node
	flipped := *genuine
	flipped.Evidence.Signature = append([]byte{}, genuine.Evidence.Signature...)
	flipped.Evidence.Signature[len(flipped.Evidence.Signature)-1] ^= 1
	rewrapped := *genuine
	rewrapped.Evidence.EventLog = attest.Digest(m.l.blobs.put([]byte("another log beside the same quote")))
	lost := *genuine
	lost.Evidence.EventLog = attest.Digest{0xab}
	listed := *genuine
	listed.Evidence.IMA = attest.Digest(m.l.blobs.put([]byte("a list of the kernel")))
	valued := *genuine
	valued.Evidence.PCRs = maps.Clone(genuine.Evidence.PCRs)
	valued.Evidence.PCRs[4] = attest.Digest{1}
	another := *genuine
	another.Evidence.AgentNonce = signofftest.Nonce()
	elsewhere := *genuine
	elsewhere.Seen.Size--
	return map[string]*authority.Presented{
		"relayed": &relay, "signature flipped": &flipped, "of an earlier epoch": stale, "another event log": &rewrapped, "an event log that nobody has": &lost,
		"another list": &listed, "another value": &valued, "another nonce": &another, "another checkpoint": &elsewhere,
		"made for a claim": m.proves(attest.DomainClaim, Digest{}, nil),
	}
}

// A blob that names a node but does not come from its TPM, or the node's own
// quote wrapped anew, puts nobody out. Two quotes do.
func TestAttackDisputeByForgery(t *testing.T) {
	l, ms := withNodes(t, 2)
	m, other := ms[0], ms[1]
	stale := m.proves(attest.DomainEpoch, Digest{}, nil)
	l.takes(l.epoch())
	genuine := m.proves(attest.DomainEpoch, Digest{}, nil)
	for name, p := range m.others(stale, genuine, other) {
		if got := m.verdict(genuine, p); got.Verdict != authority.VerdictPass {
			t.Errorf("%s: the node is out: %s", name, got.Reason)
		}
	}
	if got := m.verdict(genuine, m.proves(attest.DomainEpoch, Digest{}, nil)); got.Verdict == authority.VerdictPass || !strings.Contains(got.Reason, "two different") {
		t.Errorf("two quotes in one epoch: %s %s", got.Verdict, got.Reason)
	}
}

// A hostile notary proposes an epoch in which a node's genuine quote stands with
// logs that do not explain it, or with anything else of its making. That is
// evidence of nobody: the node counts as silent, and keeps the lease it holds.
func TestAttackHostileNotarySpendsALease(t *testing.T) {
	l, ms := withNodes(t, 2)
	m, other := ms[0], ms[1]
	stale := m.proves(attest.DomainEpoch, Digest{}, nil)
	l.leased(m)
	for name, p := range m.others(stale, m.proves(attest.DomainEpoch, Digest{}, nil), other) {
		if got := m.verdict(p); got.Reason != authority.ReasonSilent || len(got.Nonce) != 0 || !got.Evidence.IsZero() {
			t.Errorf("%s: counts as the node's word: %s", name, got.Reason)
		}
	}
}

// What a node sent before it claimed a use shows an earlier clock than the claim.
// Put forward afterwards it is no word on the node, and no second piece of evidence.
func TestAttackEvidenceFromBeforeTheClaim(t *testing.T) {
	l, ms := withNodes(t, 1)
	m := ms[0]
	request, warrant := l.launch(2, m)
	l.leased(m)
	before := m.proves(attest.DomainEpoch, Digest{}, nil)
	l.takes(m.claims(request, warrant, 1))
	if got := m.verdict(before); got.Reason != authority.ReasonSilent {
		t.Errorf("evidence from before the claim counts: %s", got.Reason)
	}
	if got := m.verdict(before, m.proves(attest.DomainEpoch, Digest{}, nil)); got.Verdict != authority.VerdictPass {
		t.Errorf("the node is out: %s", got.Reason)
	}
}

// A change of reference sets asks for a new answer, which may be about more PCRs.
// The old one is no second piece of evidence beside it.
func TestAttackEvidenceFromBeforeAnAdoption(t *testing.T) {
	l, ms := withNodes(t, 1)
	m := ms[0]
	before := m.proves(attest.DomainEpoch, Digest{}, nil)
	floor, _ := l.state().EvidenceFloor(m.id)
	l.adopted(kernel("another", 1, "kernel"))
	if got, ok := l.state().EvidenceFloor(m.id); !ok || got <= floor {
		t.Errorf("evidence must have seen %d entries, before the adoption %d", got, floor)
	}
	if got := m.verdict(before); got.Reason != authority.ReasonSilent {
		t.Errorf("evidence from before the adoption counts: %s", got.Reason)
	}
	if got := m.verdict(before, m.proves(attest.DomainEpoch, Digest{}, nil)); got.Verdict != authority.VerdictPass {
		t.Errorf("the node is out: %s", got.Reason)
	}
}

// A node that is silent for an epoch is held to the clock it showed last.
func TestAttackRollbackDuringSilence(t *testing.T) {
	l, ms := withNodes(t, 1)
	m := ms[0]
	l.leased(m)
	shown, _, _ := l.state().Epoch.Lease(m.id)
	l.takes(l.epoch())
	silent, _, _ := l.state().Epoch.Lease(m.id)
	if silent.Past.Clock != shown.Past.Clock || silent.Past.Clock == (attest.Clock{}) {
		t.Fatalf("the epoch of silence remembers clock %+v, shown was %+v", silent.Past.Clock, shown.Past.Clock)
	}
	if silent.Before != shown.Evidence {
		t.Errorf("the last evidence that passed is %s, want %s", silent.Before, shown.Evidence)
	}
}

// A notary that proposes epochs of silence without pause is passed over for one
// of another notary, in which those who answered are not left out.
func TestAttackEpochsWithoutPause(t *testing.T) {
	l, _ := withNodes(t, 1)
	hostile := l.proposer()
	l.takes(l.epoch())
	again := *l.epoch().Doc.(*signoff.Epoch)
	again.Notary = hostile.Doc.ID()
	l.voids(l.signed(hostile.Signing, &again), "another's turn")
	l.takes(l.epoch())
	if l.proposer() != hostile {
		t.Error("it is not its turn after another's epoch")
	}
}

func TestAttackEvidenceSets(t *testing.T) {
	l, ms := withNodes(t, 1)
	one, two := l.present(ms[0].proves(attest.DomainEpoch, Digest{}, nil)), l.blobs.put([]byte("two"))
	sorted := signoff.EncodeEvidenceSet([]Digest{one, two})
	for name, c := range map[string]struct {
		set    []byte
		reason string
	}{
		"descending": {slices.Concat(sorted[32:], sorted[:32]), "is not greater"},
		"repeated":   {slices.Concat(sorted[:32], sorted[:32]), "is not greater"},
		"cut":        {sorted[:63], "evidence set of 63 bytes"},
		"too many":   {make([]byte, 32*(signoff.MaxEvidence+1)), "evidence set of"},
	} {
		e := *l.epoch(one).Doc.(*signoff.Epoch)
		e.Evidence = l.blobs.put(c.set)
		t.Run(name, func(t *testing.T) { l.voids(l.signed(l.Notaries[0].Signing, &e), c.reason) })
	}
	for name, lost := range map[string]Digest{"set": {0xab}, "evidence": l.set(Digest{0xab})} {
		e := *l.epoch(one).Doc.(*signoff.Epoch)
		e.Evidence = lost
		if _, err := l.fold.Apply(l.signed(l.Notaries[0].Signing, &e).Line(), l.blobs); !errors.Is(err, authority.ErrMissingBlob) {
			t.Errorf("an epoch whose %s nobody has was folded: %v", name, err)
		}
	}
	l.takes(l.epoch(one, two))
	if x, _, _ := l.state().Epoch.Lease(ms[0].id); x.Verdict != authority.VerdictPass {
		t.Errorf("what cannot be read put a node out: %s", x.Reason)
	}
}

func TestAttackEpochs(t *testing.T) {
	l, ms := withNodes(t, 1)
	m := ms[0]
	good := l.present(m.proves(attest.DomainEpoch, Digest{}, nil))
	y := l.Notaries[0]
	for name, c := range map[string]struct {
		edit   func(*signoff.Epoch)
		reason string
	}{
		"another root":      {func(e *signoff.Epoch) { e.Root[0] ^= 1 }, "this log gives"},
		"another number":    {func(e *signoff.Epoch) { e.Number = 2 }, "want 1 after"},
		"another previous":  {func(e *signoff.Epoch) { e.Previous = Digest{1} }, "want 1 after"},
		"another policy":    {func(e *signoff.Epoch) { e.Policy = Digest{1} }, "in force is"},
		"evidence left out": {func(e *signoff.Epoch) { e.Evidence = Digest{} }, "this log gives"},
		"another notary's":  {func(e *signoff.Epoch) { e.Notary = l.Notaries[1].Doc.ID() }, "names key"},
	} {
		e := *l.epoch(good).Doc.(*signoff.Epoch)
		c.edit(&e)
		t.Run(name, func(t *testing.T) { l.voids(l.signed(y.Signing, &e), c.reason) })
	}
	l.takes(l.epoch(good))
	l.takes(l.epoch(good))
	if x, _, _ := l.state().Epoch.Lease(m.id); x.Verdict == authority.VerdictPass {
		t.Error("a lease was renewed by the quote of the last epoch")
	}
}

func TestAttackEnrolment(t *testing.T) {
	l, ms := withNodes(t, 1)
	enrolled, free, foreign := ms[0], ms[1], ms[2]
	l.voids(enrolled.asks(), "enrolled before")
	renamed := *enrolled
	renamed.name = "node-9"
	l.voids(renamed.asks(), "keeps that name")
	l.voids(foreign.asks(), "") // its maker is not in the charter
	taken := *free
	taken.name = enrolled.name
	l.voids(taken.asks(), "another name")
	taken.name, taken.id = "node-9", foreign.id
	l.voids(taken.asks(), "the request names")
	l.takes(free.asks())
}

// Of two enrolments of one machine the later warrant is void; and what too few
// notaries activated is none.
func TestAttackEnrolTwice(t *testing.T) {
	l, ms := withNodes(t, 1)
	m := ms[1]
	a, b := l.takes(m.asks()), l.takes(m.asks())
	l.approves(a, "bob", "erin").approves(b, "bob", "erin")
	m.activate(a, 2)
	if l.satisfied(a) {
		t.Fatal("two activations are not a quorum")
	}
	third := func(node Digest) *signoff.Signed {
		y := l.Notaries[2]
		return l.signed(y.Signing, &signoff.Activation{Charter: l.ID, Notary: y.Doc.ID(), Request: a, Node: node, Enrolment: l.blobs.put(m.enrolment)})
	}
	l.voids(third(Digest{1}), "another node")
	l.takes(third(m.id))
	m.activate(b, 3)
	late := l.warrant(b)
	l.takes(l.warrant(a))
	l.voids(late, "enrolled before")
}
