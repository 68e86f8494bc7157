package authority

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
)

// An EKRoot is a certificate of a maker of TPMs that people put into force, with
// the charter or by a warrant. It stays known after it was removed.
type EKRoot struct {
	ID      Digest            `json:"id"`      // SHA-256 of the certificate (DER)
	Index   uint64            `json:"index"`   // of the entry that put it into force
	Added   Digest            `json:"added"`   // request; zero for the charter's
	Removed Digest            `json:"removed"` // request; zero while it is in force
	Cert    *x509.Certificate `json:"-"`
}

// InForce reports whether EK certificates may chain to the root.
func (r *EKRoot) InForce() bool { return r.Removed.IsZero() }

func putEKRoot(r *EKRoot) change {
	return change{key: "ekroot/" + r.ID.Hex(), value: r, put: func(s *State) { s.EKRoots[r.ID] = r }}
}

// charterEKRoots reads the certificates that a charter begins with.
func charterEKRoots(ders [][]byte) ([]*EKRoot, error) {
	var out []*EKRoot
	for i, der := range ders {
		// Here a charter is read as it always was: what signs no EK certificate
		// does no harm.
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("EK root %d of the charter: %w", i+1, err)
		}
		out = append(out, &EKRoot{ID: sha256.Sum256(der), Cert: cert})
	}
	return out, nil
}

// AllEKRoots lists every EK root that was ever in force, by subject.
func (s *State) AllEKRoots() []*EKRoot {
	return slices.SortedFunc(maps.Values(s.EKRoots), func(a, b *EKRoot) int {
		return cmp.Or(strings.Compare(a.Cert.Subject.String(), b.Cert.Subject.String()), compareDigests(a.ID, b.ID))
	})
}

// ekRootsInForce is nil if there are none.
func (s *State) ekRootsInForce() *x509.CertPool {
	var pool *x509.CertPool
	for _, r := range s.EKRoots {
		if !r.InForce() {
			continue
		}
		if pool == nil {
			pool = x509.NewCertPool()
		}
		pool.AddCert(r.Cert)
	}
	return pool
}

// VouchedFor returns nil if a root in force stands behind the node's TPM. It looks
// at no dates: the chain was good when people admitted the node, and a maker's
// certificate that ends makes no TPM a worse one.
func (s *State) VouchedFor(n *Node) error {
	var last *EKRoot
	for _, id := range n.Keys.EK.Anchors {
		r, ok := s.EKRoots[Digest(id)]
		if ok && r.InForce() {
			return nil
		}
		if ok {
			last = r
		}
	}
	if last == nil {
		return fmt.Errorf("no EK root that was ever in force stands behind the TPM of node %s", n.Name)
	}
	return fmt.Errorf("the EK root behind the TPM of node %s, %q, was removed by request %s", n.Name, last.Cert.Subject, last.Removed)
}

// Behind counts the nodes that are not retired and for whose TPM the root vouches,
// and lists by name those for whom no other root in force does.
func (s *State) Behind(root Digest) (nodes int, alone []string) {
	alone = []string{}
	for _, n := range s.Nodes {
		if n.Retired || !slices.Contains(n.Keys.EK.Anchors, attest.Digest(root)) {
			continue
		}
		nodes++
		if !slices.ContainsFunc(n.Keys.EK.Anchors, func(id attest.Digest) bool {
			r, ok := s.EKRoots[Digest(id)]
			return ok && r.InForce() && r.ID != root
		}) {
			alone = append(alone, n.Name)
		}
	}
	slices.Sort(alone)
	return nodes, alone
}

// changeableEKRoots wants roots to add that are not in force and have not ended,
// and roots to remove that are.
func (s *State) changeableEKRoots(c *signoff.EKRootsChange) error {
	count := -len(c.Remove)
	for _, r := range s.EKRoots {
		if r.InForce() {
			count++
		}
	}
	if count += len(c.Add); count > signoff.MaxEKRoots {
		return fmt.Errorf("%d EK roots would be in force, at most %d; remove some first", count, signoff.MaxEKRoots)
	}
	for _, der := range c.Add {
		cert, err := signoff.ParseEKRoot(der)
		if err != nil {
			return err
		}
		if r, ok := s.EKRoots[sha256.Sum256(der)]; ok && r.InForce() {
			return fmt.Errorf("EK root %q is in force since entry %d", cert.Subject, r.Index)
		}
		if end := cert.NotAfter.Unix(); end <= s.Time {
			return fmt.Errorf("EK root %q ended at %d, it is %d", cert.Subject, end, s.Time)
		}
	}
	for _, id := range c.Remove {
		if r, ok := s.EKRoots[id]; !ok || !r.InForce() {
			return fmt.Errorf("%s is not an EK root in force", id)
		}
	}
	return nil
}

// changeEKRoots does what changeableEKRoots has found possible.
func (d decision) changeEKRoots(request Digest, c *signoff.EKRootsChange) ([]change, error) {
	var out []change
	for _, id := range c.Remove {
		r := *d.state.EKRoots[id]
		r.Removed = request
		out = append(out, putEKRoot(&r))
	}
	for _, der := range c.Add {
		cert, err := signoff.ParseEKRoot(der)
		if err != nil {
			return nil, err
		}
		out = append(out, putEKRoot(&EKRoot{ID: sha256.Sum256(der), Index: d.index, Added: request, Cert: cert}))
	}
	return out, nil
}
