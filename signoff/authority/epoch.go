package authority

import (
	"crypto/ecdh"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// epoch accepts a notary's epoch only if its root is what this fold computes
// at this very index.
func (d decision) epoch(e *signoff.Epoch) ([]change, error) {
	s := d.state
	number, previous := uint64(1), Digest{}
	if s.Epoch != nil {
		number, previous = s.Epoch.Number+1, s.Epoch.Root
	}
	if e.Number != number || e.Previous != previous {
		return nil, fmt.Errorf("epoch %d after root %s, want %d after %s", e.Number, e.Previous.Short(), number, previous.Short())
	}
	if e.Policy != s.Policy.Digest {
		return nil, fmt.Errorf("made under policy %s, in force is %s", e.Policy, s.Policy.Digest)
	}
	recent, err := s.proposes(e.Notary)
	if err == nil {
		err = d.doubted()
	}
	if err != nil {
		return nil, err
	}
	rec := &Epoch{Number: number, Index: d.index, Time: s.Time, Root: e.Root, Proposers: recent}
	changes := []change{{key: "epoch", value: rec, put: func(s *State) { s.Epoch = rec }}}
	if d.authority.takesWord() {
		return changes, nil
	}
	leases, err := d.authority.Leases(e.Evidence, d.blobs)
	if err != nil {
		return nil, err
	}
	root, err := LeaseRoot(leases)
	if err != nil {
		return nil, err
	}
	if root != e.Root {
		return nil, fmt.Errorf("lease root %s, this log gives %s", e.Root, root)
	}
	rec.Leases = leases
	return changes, nil
}

// proposes lets a notary propose an epoch unless one of the last f was its own.
// Of any f+1 epochs one is then an honest notary's, which leaves no node out: f
// hostile ones cannot use up leases by proposing without pause. It returns the
// last f proposers with this one, newest first.
func (s *State) proposes(notary Digest) ([]Digest, error) {
	recent := []Digest{notary}
	if s.Epoch != nil {
		if slices.Contains(s.Epoch.Proposers, notary) {
			return nil, fmt.Errorf("one of the last %d epochs was this notary's: it is another's turn", len(s.Epoch.Proposers))
		}
		recent = append(recent, s.Epoch.Proposers...)
	}
	return recent[:min(len(recent), s.Council().Faults)], nil
}

// MayPropose reports whether the next epoch may be this notary's.
func (s *State) MayPropose(notary Digest) bool {
	_, err := s.proposes(notary)
	return err == nil
}

// claimEvidence appraises the quote of a claim and returns the key made for
// this use and what the quote proves.
func (d decision) claimEvidence(c *signoff.Claim, r *Request) ([]byte, attest.Past, error) {
	blob, err := d.blob(c.Evidence)
	if err != nil {
		return nil, attest.Past{}, err
	}
	p, err := ParsePresented(blob)
	if err != nil {
		return nil, attest.Past{}, err
	}
	var fresh *ecdh.PublicKey
	var past attest.Past
	if d.authority.takesWord() {
		fresh, err = p.Evidence.FreshKey()
	} else {
		fresh, past, err = d.claimVerdict(p, c, r)
	}
	if err != nil {
		return nil, past, err
	}
	spki, err := x509.MarshalPKIXPublicKey(fresh)
	if err != nil {
		return nil, past, err
	}
	if other, used := d.state.fresh[sha256.Sum256(spki)]; used {
		return nil, past, fmt.Errorf("the fresh key was used by claim %s", other)
	}
	return spki, past, nil
}

func (d decision) claimVerdict(p *Presented, c *signoff.Claim, r *Request) (*ecdh.PublicKey, attest.Past, error) {
	n := d.state.Nodes[c.Node]
	v, err := d.authority.appraiser(d.blobs).appraise(n, p, attest.DomainClaim, r.ID, d.state.Epoch.Index+1)
	if err != nil {
		return nil, attest.Past{}, err
	}
	if !v.Passed() || v.Fresh == nil {
		return nil, attest.Past{}, fmt.Errorf("evidence of node %s: %s (%s)", n.Name, v.Reason, v.Remedy)
	}
	// How far the kernel's list was proved is said by leaves alone, which nodes
	// go by; a claim moves the clock.
	past := attest.Past{Clock: v.Clock}
	if before := d.state.past(n); before != nil && !v.Rebooted {
		past.IMA = before.IMA
	}
	return v.Fresh, past, nil
}

// enrolment fetches and verifies what a node brings to its enrolment.
func (d decision) enrolment(e *signoff.Enrol) (*attest.Node, error) {
	blob, err := d.blob(e.Enrolment)
	if err != nil {
		return nil, err
	}
	return d.state.VerifyEnrolment(e, blob)
}

// VerifyEnrolment checks an enrolment blob at the fold's time against the
// EK roots in force. A development charter takes emulated TPMs and marks them.
func (s *State) VerifyEnrolment(e *signoff.Enrol, blob []byte) (*attest.Node, error) {
	parsed, err := attest.ParseEnrolment(blob)
	if err != nil {
		return nil, err
	}
	pool := s.ekRootsInForce()
	switch {
	case s.Charter.BootPolicy == nil:
		return nil, errors.New("the charter names no boot policy key, so no node can enrol")
	case pool == nil:
		return nil, errors.New("no TPM maker's root is in force, so no node can enrol; keyturn request ek-roots --add asks for one")
	}
	boot, err := s.Charter.BootPolicy.P256()
	if err != nil {
		return nil, err
	}
	roots := attest.Roots{Vendor: pool}
	if s.Charter.Development {
		roots = attest.Roots{Vendor: x509.NewCertPool(), Development: pool}
	}
	node, err := attest.VerifyEnrolment(parsed, roots, boot, time.Unix(s.Time, 0))
	if err != nil {
		return nil, err
	}
	if Digest(node.ID) != e.Node {
		return nil, fmt.Errorf("the enrolment is of node %s, the request names %s", Digest(node.ID), e.Node)
	}
	if node.Emulated && !s.Charter.Development {
		return nil, fmt.Errorf("node %s has an emulated TPM, which a production charter refuses", e.Node)
	}
	return node, nil
}

// nodeKeysUnused refuses keys that another node brought, at any time, or that stand
// in any other place.
func (s *State) nodeKeysUnused(keys *attest.Node) error {
	ids, err := nodeKeyIDs(keys)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if n, used := s.nodeKeys[id]; used && n != Digest(keys.ID) {
			return fmt.Errorf("a key of this enrolment belongs to node %s", s.Nodes[n].Name)
		}
	}
	used, err := s.Keys()
	if err != nil {
		return err
	}
	for _, k := range []any{keys.TLSKey, keys.SignKey, keys.StorageKey} {
		p, err := signoff.NewPublicKey(k, "")
		if err != nil {
			return err
		}
		if use, ok := used[p.Fingerprint()]; ok {
			return fmt.Errorf("a key of this enrolment is %s", use)
		}
	}
	return nil
}

// nodeKeyIDs tells a node's keys apart by role and value.
func nodeKeyIDs(keys *attest.Node) ([]Digest, error) {
	ids := []Digest{dsse.Sum("ak", keys.AKName)}
	for role, key := range map[string]any{"tls": keys.TLSKey, "sign": keys.SignKey, "storage": keys.StorageKey} {
		spki, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return nil, fmt.Errorf("%s key: %w", role, err)
		}
		ids = append(ids, dsse.Sum(role, spki))
	}
	return ids, nil
}

// StorageFingerprint names the key that people seal this node's shares to.
func (n *Node) StorageFingerprint() Digest {
	k, err := signoff.NewPublicKey(n.Keys.StorageKey, "")
	if err != nil {
		return Digest{}
	}
	return k.Fingerprint()
}
