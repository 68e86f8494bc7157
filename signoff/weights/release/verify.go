package release

import (
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/proof"
)

// A Release is a verified bundle.
type Release struct {
	CharterID Digest
	Charter   *signoff.Charter
	Council   signoff.Council            // notaries in office when it was made
	People    *authority.Roster          // when the warrant was issued
	Tokens    map[Digest]authority.Owned // of people until then, by signing key
	ObjectID  Digest
	Object    *signoff.Object
	RequestID Digest
	Request   *signoff.Request
	WarrantID Digest
	Warrant   *signoff.Warrant
	Approvers []string            // names of those whose approvals the bundle holds
	Log       proof.Checkpoint    // final; the warrant is below it
	Witnesses []proof.Cosignature // who made it final
	box       lockbox.Commitments // with the sides that were dealt anew as they are now
	people    []sealedShare
	machines  []sealedShare
}

// A sealedShare is a share on its way to the recipient, with the context that
// the verified documents give.
type sealedShare struct {
	where  lockbox.ReleaseContext
	sealed []byte
}

// Verify checks everything that can be checked without the recipient's key.
// anchor is the charter digest that the recipient was given on a way of its own.
func (b *Bundle) Verify(anchor Digest) (*Release, error) {
	if anchor.IsZero() {
		return nil, errors.New("release: no charter digest given; ask the sender's organisation for the one it published")
	}
	v := &verifier{Bundle: b, r: &Release{CharterID: anchor}}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"charter", v.charter}, {"group key", v.group}, {"notaries", v.terms}, {"people", v.people}, {"object", v.object}, {"sharing", v.sharing}, {"request", v.request}, {"warrant", v.warrant},
		{"proof", v.proof}, {"approvals", v.approvals}, {"releases", v.releases},
	} {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("release: %s: %w", step.what, err)
		}
	}
	return v.r, nil
}

// A verifier is one run of Verify. Each step relies on those before it.
type verifier struct {
	*Bundle
	r        *Release
	key      crypto.PublicKey  // the group's
	logKey   signoff.PublicKey // in force in the last term
	councils []signoff.Council // of all terms
}

// read parses a line that must hold a document of type T of this cluster.
func read[T signoff.Document](v *verifier, line string) (*signoff.Signed, T, error) {
	var none T
	s, err := signoff.ReadLine([]byte(line))
	if err != nil {
		return nil, none, err
	}
	d, ok := s.Doc.(T)
	if !ok {
		return nil, none, fmt.Errorf("a %s stands where a %s belongs", s.Doc.Kind(), none.Kind())
	}
	if s.Doc.Cluster() != v.r.CharterID {
		return nil, none, fmt.Errorf("it belongs to charter %s, not to %s", s.Doc.Cluster(), v.r.CharterID)
	}
	return s, d, nil
}

func (v *verifier) charter() error {
	s, err := signoff.ReadLine([]byte(v.Charter))
	if err != nil {
		return err
	}
	if s.Digest() != v.r.CharterID {
		return fmt.Errorf("its digest is %s, the one to trust is %s: do not go on until you know which is right", s.Digest(), v.r.CharterID)
	}
	c, ok := s.Doc.(*signoff.Charter)
	if !ok {
		return fmt.Errorf("a %s stands where the charter belongs", s.Doc.Kind())
	}
	v.r.Charter, v.r.People = c, authority.Founders(c)
	v.r.Tokens = v.r.People.Tokens()
	v.logKey, v.r.Council, v.councils = c.Log, c.Council(), []signoff.Council{c.Council()}
	return nil
}

// office is the council of the last term.
func (v *verifier) office() signoff.Council { return v.councils[len(v.councils)-1] }

// people follows who belonged from the charter to the warrant.
func (v *verifier) people() error {
	for _, c := range v.People {
		s, q, err := read[*signoff.Request](v, c.Request)
		if err != nil {
			return err
		}
		if q.People == nil {
			return fmt.Errorf("a request for %s stands where a change of people belongs", q.Action)
		}
		if _, err := v.person(s, q.Requester); err != nil {
			return err
		}
		w, warrant, err := read[*signoff.Warrant](v, c.Warrant)
		if err != nil {
			return err
		}
		if err := w.Verify(v.key); err != nil {
			return err
		}
		if warrant.Request != s.Digest() || warrant.Action != q.Action {
			return fmt.Errorf("a warrant for request %s stands beside request %s", warrant.Request, s.Digest())
		}
		keys, err := v.r.Charter.Keys()
		if err != nil {
			return err
		}
		for _, t := range v.r.Tokens {
			keys.Put(t.Name+"'s key", t.Signing)
			keys.Put(t.Name+"'s key", t.Exchange)
		}
		if v.r.People, err = v.r.People.Changed(q.People, v.r.Charter.Development, keys, v.r.Tokens); err != nil {
			return err
		}
		maps.Copy(v.r.Tokens, v.r.People.Tokens())
	}
	return nil
}

// person checks that the person signed, and returns the token that did.
func (v *verifier) person(s *signoff.Signed, id Digest) (authority.Owned, error) {
	t, ok := v.r.Tokens[s.Hint]
	if !ok || t.Person != id {
		return t, fmt.Errorf("signed with key %s, which is none of person %s", s.Hint, id)
	}
	return t, signedBy(s, t.Signing)
}

// notary is person for the notaries of one council.
func (v *verifier) notary(c signoff.Council, s *signoff.Signed, id Digest) (*signoff.Notary, uint16, error) {
	n, index, ok := c.Find(id)
	if !ok {
		return nil, 0, fmt.Errorf("%s is not a notary of its term", id)
	}
	return n, index, signedBy(s, n.Signing)
}

func signedBy(s *signoff.Signed, k signoff.PublicKey) error {
	pub, err := k.Public()
	if err != nil {
		return err
	}
	return s.Verify(pub)
}

func (v *verifier) object() error {
	s, o, err := read[*signoff.Object](v, v.Object)
	if err != nil {
		return err
	}
	// A node signed a snapshot, with a key that stands in the log alone; that
	// people approved this object's id says that it was there.
	if o.Claim.IsZero() {
		if _, err := v.person(s, o.Sealer); err != nil {
			return err
		}
	}
	// It was sealed in one of the terms; which one, the shares show.
	t, q := o.Lockbox.People.Threshold, o.Lockbox.Machines.Threshold
	if !v.r.People.TakesThreshold(v.r.Charter, t) || !slices.ContainsFunc(v.councils, func(c signoff.Council) bool { return c.Quorum() == q }) {
		return fmt.Errorf("lockbox thresholds %d and %d, it takes %d people and %d notaries", t, q, v.r.People.Threshold, v.office().Quorum())
	}
	v.r.ObjectID, v.r.Object = s.Digest(), o
	return nil
}

// sharing takes the commitments of later epochs. Nobody has to vouch for them:
// they commit to the secrets of the object's own, so what opens under them is it.
func (v *verifier) sharing() error {
	var err error
	if v.r.box, err = commitments(v.r.Object); err != nil {
		return err
	}
	if err = v.redealt(lockbox.People, v.Sharing); err != nil {
		return err
	}
	return v.redealt(lockbox.Machines, v.Machines)
}

func (v *verifier) redealt(side lockbox.Side, later [][]byte) error {
	if len(later) == 0 {
		return nil
	}
	s, err := lockbox.ParseSharing(len(later), later)
	if err == nil {
		v.r.box, err = v.r.box.Redealt(side, s)
	}
	return err
}

func (v *verifier) request() error {
	s, q, err := read[*signoff.Request](v, v.Request)
	if err != nil {
		return err
	}
	if _, err := v.person(s, q.Requester); err != nil {
		return err
	}
	if q.Export == nil {
		return fmt.Errorf("it asks for %s, not for an export", q.Action)
	}
	if q.Export.Object != v.r.ObjectID {
		return fmt.Errorf("it asks for object %s, the bundle is of %s", q.Export.Object, v.r.ObjectID)
	}
	v.r.RequestID, v.r.Request = s.Digest(), q
	return nil
}

func (v *verifier) warrant() error {
	s, w, err := read[*signoff.Warrant](v, v.Warrant)
	if err != nil {
		return err
	}
	if err := s.Verify(v.key); err != nil {
		return err
	}
	if w.Request != v.r.RequestID || w.Action != v.r.Request.Action {
		return fmt.Errorf("it is for %s of request %s, the bundle is of %s", w.Action, w.Request, v.r.RequestID)
	}
	v.r.WarrantID, v.r.Warrant = s.Digest(), w
	return nil
}

// group takes the notaries' joint key: the one that every notary of the charter
// signed as the outcome of one and the same key generation.
func (v *verifier) group() error {
	var first *signoff.Transcript
	seen := map[Digest]bool{}
	for _, line := range v.Transcripts {
		s, t, err := read[*signoff.Transcript](v, line)
		if err != nil {
			return err
		}
		if _, _, err := v.notary(v.office(), s, t.Notary); err != nil {
			return err
		}
		if first == nil {
			first = t
		}
		if t.Term != 1 || len(t.Accused) > 0 || t.Attempt != first.Attempt || t.Digest != first.Digest || !slices.Equal(t.Group, first.Group) {
			return errors.New("the notaries' transcripts do not agree on one group key")
		}
		seen[t.Notary] = true
	}
	if n := len(v.r.Charter.Notaries); len(seen) != n {
		return fmt.Errorf("%d notaries vouch for the group key, all %d have to", len(seen), n)
	}
	v.key = ed25519.PublicKey(first.Group)
	return nil
}

// terms follows the notaries from one term to the next, and the log key through
// all of them.
func (v *verifier) terms() error {
	if err := v.recovery(v.Recovery); err != nil {
		return err
	}
	for i, c := range v.Terms {
		if err := v.term(uint32(i+2), c); err != nil {
			return fmt.Errorf("term %d: %w", i+2, err)
		}
		if err := v.recovery(c.Recovery); err != nil {
			return err
		}
	}
	return nil
}

// term takes the council of a term, if the group granted the change to it and
// quorums of it and of the one before stand on one checkpoint.
func (v *verifier) term(number uint32, c Term) error {
	asked, q, err := read[*signoff.Request](v, c.Request)
	if err != nil {
		return err
	}
	granted, w, err := read[*signoff.Warrant](v, c.Warrant)
	if err != nil {
		return err
	}
	if err := granted.Verify(v.key); err != nil {
		return err
	}
	if q.Notaries == nil || q.Notaries.Term != number-1 || w.Request != asked.Digest() || w.Action != q.Action {
		return errors.New("the warrant is not for a change of the notaries from the term before")
	}
	taken, err := v.r.Charter.Keys()
	if err != nil {
		return err
	}
	next := q.Notaries.Council()
	if err := next.Follows(v.councils, !v.r.Charter.Development, taken); err != nil {
		return err
	}
	_, x, err := read[*signoff.Takeover](v, c.Takeover)
	if err != nil {
		return err
	}
	if x.Term != number {
		return fmt.Errorf("the takeover begins term %d", x.Term)
	}
	trust, err := v.trust(v.office(), next)
	if err != nil {
		return err
	}
	if _, _, err := proof.OpenFinal([]byte(x.Checkpoint), trust); err != nil {
		return err
	}
	v.councils, v.r.Council = append(v.councils, next), next
	return nil
}

func (v *verifier) proof() error {
	trust, err := v.trust(v.office())
	if err != nil {
		return err
	}
	p, err := proof.ParseProof([]byte(v.Proof))
	if err != nil {
		return err
	}
	v.r.Log, v.r.Witnesses, err = proof.VerifyLeaf(trust, p, []byte(v.Warrant))
	return err
}

// trust is whose signatures make a checkpoint: the log key in force and quorums
// of the councils.
func (v *verifier) trust(councils ...signoff.Council) (proof.Trust, error) {
	return proof.TrustIn(v.r.Charter.Name, v.logKey, councils...)
}

// recovery takes the log key that a quorum of the notaries in office put in
// place, if there is such an entry.
func (v *verifier) recovery(line string) error {
	if line == "" {
		return nil
	}
	s, x, err := read[*signoff.Recovery](v, line)
	if err != nil {
		return fmt.Errorf("recovery: %w", err)
	}
	if _, _, err := v.notary(v.office(), s, s.Hint); err != nil {
		return fmt.Errorf("recovery: %w", err)
	}
	stated, err := v.stated(x)
	if err != nil {
		return fmt.Errorf("recovery: %w", err)
	}
	if q := v.office().Quorum(); stated < q {
		return fmt.Errorf("recovery: %d notaries stated their position, want %d", stated, q)
	}
	v.logKey = x.Log
	return nil
}

// stated counts the notaries in office that mean this log key. While they hand
// over, the positions are also of those to come, which do not count here.
func (v *verifier) stated(x *signoff.Recovery) (int, error) {
	want, stated := x.Log.Fingerprint(), map[Digest]bool{}
	for _, line := range x.Positions {
		s, p, err := read[*signoff.Position](v, line)
		if err != nil {
			return 0, err
		}
		if _, _, ok := v.office().Find(p.Notary); !ok {
			continue
		}
		if _, _, err := v.notary(v.office(), s, p.Notary); err != nil {
			return 0, err
		}
		if !slices.Equal(p.Answer, want[:]) {
			return 0, fmt.Errorf("notary %s stated its position for another log key", p.Notary)
		}
		stated[p.Notary] = true
	}
	return len(stated), nil
}

// approvals wants every approval that the warrant counts. Others of the same
// request may stand beside them and serve if a counted share turns out bad.
func (v *verifier) approvals() error {
	counted := map[Digest]bool{}
	for _, d := range v.r.Warrant.Approvals {
		counted[d] = false
	}
	people := map[Digest]bool{}
	for _, line := range v.Approvals {
		s, a, err := read[*signoff.Approval](v, line)
		if err != nil {
			return err
		}
		p, err := v.person(s, a.Person)
		if err != nil {
			return err
		}
		if people[a.Person] {
			return fmt.Errorf("two by %s", p.Name)
		}
		people[a.Person] = true
		if a.Decision != signoff.Approve || a.Request != v.r.RequestID || a.Rule != v.r.Warrant.Rule {
			return fmt.Errorf("%s signed %s for request %s under rule %s, the warrant is for %s under %s", p.Name, a.Decision, a.Request, a.Rule, v.r.RequestID, v.r.Warrant.Rule)
		}
		if p.HoldsShare() { // others only sign
			share, err := v.share(lockbox.People, p.Index, p.Exchange, a.Shares...)
			if err != nil {
				return fmt.Errorf("%s: %w", p.Name, err)
			}
			v.r.people = append(v.r.people, share)
		}
		if _, ok := counted[s.Digest()]; ok {
			counted[s.Digest()] = true
		}
		v.r.Approvers = append(v.r.Approvers, p.Name)
	}
	for d, there := range counted {
		if !there {
			return fmt.Errorf("approval %s, which the warrant counts, is not in the bundle", d)
		}
	}
	return enough("people's", v.r.people, v.r.box.People, len(v.Sharing) > 0)
}

// enough wants as many shares as open a side, all of one epoch: the first, or
// the one whose commitments are given.
func enough(whose string, shares []sealedShare, sharing lockbox.Sharing, later bool) error {
	if n, t := len(shares), sharing.Threshold(); n < t {
		return fmt.Errorf("%d %s shares, it takes %d", n, whose, t)
	}
	for _, s := range shares {
		if e := s.where.Epoch; e != shares[0].where.Epoch || (e > 1) != later {
			return fmt.Errorf("a share of epoch %d among shares of epoch %d, with later commitments given: %v", e, shares[0].where.Epoch, later)
		}
	}
	return nil
}

func (v *verifier) releases() error {
	seen := map[Digest]bool{}
	for _, line := range v.Releases {
		s, x, err := read[*signoff.Release](v, line)
		if err != nil {
			return err
		}
		n, index, err := v.holder(s, x)
		if err != nil {
			return err
		}
		if seen[x.Notary] {
			return fmt.Errorf("two by %s", n.Name)
		}
		seen[x.Notary] = true
		if x.Warrant != v.r.WarrantID || !x.Claim.IsZero() {
			return fmt.Errorf("%s released for warrant %s, the bundle is of %s", n.Name, x.Warrant, v.r.WarrantID)
		}
		share, err := v.share(lockbox.Machines, index, n.Exchange, x.Share)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		v.r.machines = append(v.r.machines, share)
	}
	return enough("notaries'", v.r.machines, v.r.box.Machines, len(v.Machines) > 0)
}

// holder finds the notary in a term in which it had the share's index. What
// the share is worth shows when it is opened: it is sealed for this index and
// this notary, and the object commits to it.
func (v *verifier) holder(s *signoff.Signed, x *signoff.Release) (*signoff.Notary, uint16, error) {
	for _, c := range v.councils {
		if n, index, ok := c.Find(x.Notary); ok && index == x.Share.Index {
			return n, index, signedBy(s, n.Signing)
		}
	}
	return nil, 0, fmt.Errorf("%s is not a notary that held share %d", x.Notary, x.Share.Index)
}

// share builds the context of the one share that a holder sealed to the
// recipient, from verified documents alone.
func (v *verifier) share(side lockbox.Side, index uint16, holder signoff.PublicKey, shares ...signoff.Share) (sealedShare, error) {
	to := v.r.Request.Export.RecipientKey.Fingerprint()
	if len(shares) != 1 {
		return sealedShare{}, fmt.Errorf("%d shares, want exactly 1", len(shares))
	}
	s := shares[0]
	if s.Object != v.r.ObjectID || s.Recipient != to || s.Index != index {
		return sealedShare{}, fmt.Errorf("share %d of object %s for %s, want share %d of %s for %s", s.Index, s.Object, s.Recipient, index, v.r.ObjectID, to)
	}
	return sealedShare{lockbox.ReleaseContext{
		Context: lockbox.Context{Charter: v.r.CharterID, Object: v.r.ObjectID, Side: side, Epoch: s.Epoch, Index: index, Holder: holder.Fingerprint()},
		Request: v.r.RequestID, Recipient: to,
	}, s.Sealed}, nil
}
