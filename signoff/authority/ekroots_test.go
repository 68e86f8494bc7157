package authority_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
)

func (l *log) ekRoots(person string, c signoff.EKRootsChange) *signoff.Signed {
	l.t.Helper()
	return l.asks(person, signoff.ActionEKRoots, func(r *signoff.Request) { r.EKRoots = &c })
}

// believes changes the EK roots with everybody's consent that it takes.
func (l *log) believes(c signoff.EKRootsChange) Digest {
	l.t.Helper()
	r := l.takes(l.ekRoots("alice", c))
	l.approves(r, "bob", "erin")
	l.takes(l.warrant(r))
	return r
}

// rootsOf are the ids of the roots of a machine's maker that are in force.
func (l *log) rootsOf(machine int) []Digest {
	var out []Digest
	for _, der := range hardware.roots[machine] {
		if r, ok := l.state().EKRoots[sha256.Sum256(der)]; ok && r.InForce() {
			out = append(out, r.ID)
		}
	}
	return out
}

// A maker that the charter does not name comes by warrant, and goes by warrant: its
// machines lose their leases and get no other, and come back with it.
func TestMakersComeAndGo(t *testing.T) {
	l, machines := withNodes(t, 1)
	third := machines[2]
	l.voids(third.asks(), "unknown authority")
	added := l.believes(signoff.EKRootsChange{Add: hardware.roots[2]})
	third.enrol()
	for _, id := range l.rootsOf(2) {
		if r := l.state().EKRoots[id]; r.Added != added {
			t.Errorf("root %s was added by %s, want %s", id, r.Added, added)
		}
	}
	l.leased(machines[0], third)
	request, warrant := l.launch(3, third)
	claim := l.takes(third.claims(request, warrant, 1))
	l.takes(l.opens(0, request, warrant, claim))

	removed := l.believes(signoff.EKRootsChange{Remove: l.rootsOf(2)})
	why := "was removed by request " + removed.String()
	l.voids(l.opens(1, request, warrant, claim), why)
	l.voids(third.claims(request, warrant, 2), why)
	l.takes(l.epoch(l.present(machines[0].proves(attest.DomainEpoch, Digest{}, nil)), l.present(third.proves(attest.DomainEpoch, Digest{}, nil))))
	if lease, _, _ := l.state().Epoch.Lease(third.id); lease.Verdict == authority.VerdictPass || !strings.Contains(lease.Reason, why) || lease.Remedy == "" {
		t.Errorf("lease of a machine whose maker is not believed: %+v", lease)
	}
	if lease, _, _ := l.state().Epoch.Lease(machines[0].id); lease.Verdict != authority.VerdictPass {
		t.Errorf("another maker's machine: %s", lease.Reason)
	}

	l.believes(signoff.EKRootsChange{Add: hardware.roots[2]})
	l.leased(machines[0], third)
	l.takes(l.opens(1, request, warrant, claim))
	if l.again().StateDigest() != l.fold.StateDigest() || l.witness(l.void()).StateDigest() != l.fold.StateDigest() {
		t.Error("the same entries folded to another state")
	}
}

// An enrolment that was asked for under a root is granted under it alone: a maker
// who is found out in between admits nobody.
func TestAttackEnrolmentOutlivesItsRoot(t *testing.T) {
	l, machines := withNodes(t, 0)
	first := machines[0]
	r := l.takes(first.asks())
	l.approves(r, "bob", "erin")
	first.activate(r, 3)
	late := l.warrant(r)
	l.believes(signoff.EKRootsChange{Remove: l.rootsOf(0)})
	l.voids(late, "unknown authority")
}

func TestEKRootsChangeRefused(t *testing.T) {
	l, machines := withNodes(t, 1)
	inForce := hardware.roots[0][0]
	authorityOf := func(edit func(*x509.Certificate)) []byte { return selfSigned(t, l.state().Time, edit) }
	for name, c := range map[string]struct {
		change signoff.EKRootsChange
		why    string
	}{
		"in force already": {signoff.EKRootsChange{Add: [][]byte{inForce}}, "is in force since entry 0"},
		"ended":            {signoff.EKRootsChange{Add: [][]byte{authorityOf(func(c *x509.Certificate) { c.NotAfter = time.Unix(l.state().Time, 0) })}}, "ended at"},
		"never in force":   {signoff.EKRootsChange{Remove: []Digest{{7}}}, "is not an EK root in force"},
		"too many":         {signoff.EKRootsChange{Add: many(t, l.state().Time, signoff.MaxEKRoots)}, "would be in force, at most 64"},
	} {
		t.Run(name, func(t *testing.T) { l.voids(l.ekRoots("alice", c.change), c.why) })
	}
	// Two people ask for the same: the second comes too late.
	one, two := l.takes(l.ekRoots("alice", signoff.EKRootsChange{Add: hardware.roots[2]})), l.takes(l.ekRoots("bob", signoff.EKRootsChange{Add: hardware.roots[2]}))
	l.approves(one, "bob", "erin").approves(two, "alice", "erin")
	late := l.warrant(two)
	l.takes(l.warrant(one))
	l.voids(late, "is in force since entry")
	var alone []string
	for _, id := range l.rootsOf(0) { // its own certificate, and that by which it signs, at which the chain ends
		nodes, names := l.state().Behind(id)
		if nodes != len(names) {
			t.Errorf("%d nodes behind %s, %v alone", nodes, id, names)
		}
		alone = append(alone, names...)
	}
	if !slices.Equal(alone, []string{machines[0].name}) {
		t.Errorf("%v behind the first maker's roots", alone)
	}
	// A root less can leave none at all, and then nobody enrols.
	l.believes(signoff.EKRootsChange{Remove: slices.Concat(l.rootsOf(0), l.rootsOf(1), l.rootsOf(2))})
	l.voids(machines[1].asks(), "no TPM maker's root is in force")
}

func many(t *testing.T, now int64, n int) [][]byte {
	var out [][]byte
	for range n {
		out = append(out, selfSigned(t, now, func(*x509.Certificate) {}))
	}
	return out
}

// selfSigned is an authority's certificate that a year is left of.
func selfSigned(t *testing.T, now int64, edit func(*x509.Certificate)) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "maker"}, NotBefore: time.Unix(now-60, 0), NotAfter: time.Unix(now, 0).AddDate(1, 0, 0),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	edit(c)
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
