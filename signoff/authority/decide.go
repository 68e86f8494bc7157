package authority

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/policy"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
)

// A decision is one verified document at one index. decide says what it
// changes; it never changes anything itself.
type decision struct {
	state     *State
	authority *Authority
	doc       *signoff.Signed
	id        Digest // the document's
	index     uint64
	blobs     Blobs
}

func (d decision) decide() ([]change, error) {
	s := d.state
	if c, ok := d.doc.Doc.(*signoff.Charter); ok {
		return d.charter(c)
	}
	if a, ok := d.doc.Doc.(*signoff.Acceptance); ok {
		if !a.Request.IsZero() {
			return d.newToken(a)
		}
		return d.acceptance(a)
	}
	if !s.InForce {
		return nil, fmt.Errorf("the charter is not in force: %d of %d founders have accepted it", len(s.Accepted), len(s.Charter.People))
	}
	switch doc := d.doc.Doc.(type) {
	case *signoff.Commitment:
		return d.commitment(doc)
	case *signoff.Dealing:
		return d.dealing(doc)
	case *signoff.Transcript:
		return d.transcript(doc)
	case *signoff.DealerAnswer:
		return d.answer(doc)
	case *signoff.SigningFault:
		return d.fault(doc)
	case *signoff.Tick:
		return d.tick(doc)
	case *signoff.Object:
		return d.object(doc)
	case *signoff.Deals:
		return d.deals(doc)
	case *signoff.Redealing:
		return d.redealing(doc)
	case *signoff.Custody:
		return d.custody(doc)
	case *signoff.Request:
		return d.request(doc)
	case *signoff.Approval:
		return d.approval(doc)
	case *signoff.Warrant:
		return d.warrant(doc)
	case *signoff.Activation:
		return d.activation(doc)
	case *signoff.Epoch:
		return d.epoch(doc)
	case *signoff.Claim:
		return d.claim(doc)
	case *signoff.Release:
		return d.release(doc)
	case *signoff.Receipt:
		return d.receipt(doc)
	case *signoff.Halt:
		return d.halt(doc)
	case *signoff.Ceremony:
		return d.ceremony(doc)
	case *signoff.Recovery:
		return d.recovery(doc)
	case *signoff.Joining:
		return d.joining(doc)
	case *signoff.Takeover:
		return d.takeover(doc)
	}
	return nil, fmt.Errorf("a %s is no log entry", d.doc.Doc.Kind())
}

// took records that the document took effect.
func (d decision) took() change {
	id, index := d.id, d.index
	return change{key: "document/" + id.Hex(), value: index, put: func(s *State) { s.Documents[id] = index }}
}

// blob reads a large part and refuses an empty one.
func (d decision) blob(digest Digest) ([]byte, error) {
	b, err := fetch(d.blobs, digest)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("blob %s is empty", digest)
	}
	return b, nil
}

// fetch reads a blob. Whatever goes wrong, a lost connection or other bytes
// than the digest names, is a blob that is not here: it says nothing of the
// entry and must never become a reason why the entry is void.
func fetch(blobs Blobs, digest Digest) ([]byte, error) {
	b, err := blobs.Blob(digest)
	if err != nil && !errors.Is(err, ErrMissingBlob) {
		return nil, fmt.Errorf("%w: %s: %w", ErrMissingBlob, digest, err)
	}
	if err != nil {
		return nil, err
	}
	if got := Digest(sha256.Sum256(b)); got != digest {
		return nil, fmt.Errorf("%w: asked for %s, was given %s", ErrMissingBlob, digest, got)
	}
	return b, nil
}

// saw refuses a document whose signer was shown another log.
func (d decision) saw(seen signoff.Seen) error {
	root, ok := d.authority.RootAt(seen.Size)
	if !ok {
		return fmt.Errorf("its signer saw a log of %d entries, this one has %d: keep the document, it may prove a fork", seen.Size, d.index)
	}
	if root != seen.Root {
		return fmt.Errorf("its signer saw root %s at size %d, this log has %s: keep the document, it proves a fork", seen.Root, seen.Size, root)
	}
	return nil
}

func (d decision) charter(c *signoff.Charter) ([]change, error) {
	people := Founders(c)
	compiled, err := compilePolicy(people, c.Policy)
	if err != nil {
		return nil, err
	}
	refs, err := charterReferences(c.References)
	if err != nil {
		return nil, err
	}
	roots, err := charterEKRoots(c.EKRoots)
	if err != nil {
		return nil, err
	}
	signers, err := signersOf(c, people)
	if err != nil {
		return nil, err
	}
	return []change{{key: "charter", value: d.id, put: func(s *State) {
		s.Charter, s.Time, s.Policy = c, c.Created, compiled
		s.signsLog(c.Log)
		s.signers, s.People = signers, people
		maps.Copy(s.Tokens, people.Tokens())
		s.setReferences(refs...)
		for _, r := range roots {
			s.EKRoots[r.ID] = r
		}
		s.Ticks = &TickRound{Round: 1, Times: map[Digest]int64{}}
		s.Terms = []*Term{{Number: 1, Council: c.Council()}}
		s.Keygen = keygen(c.Council())
		s.watched(d.index)
	}}}, nil
}

func signersOf(c *signoff.Charter, people *Roster) (map[Digest]signer, error) {
	out, err := people.signers()
	if err != nil {
		return nil, err
	}
	for i := range c.Notaries {
		n := &c.Notaries[i]
		pub, err := n.Signing.Public()
		if err != nil {
			return nil, err
		}
		out[n.ID()] = signer{notary: n, index: uint16(i + 1), public: pub}
	}
	return out, nil
}

func (d decision) acceptance(a *signoff.Acceptance) ([]change, error) {
	if d.state.Accepted[a.Person] {
		return nil, errors.New("this person has already accepted the charter")
	}
	if d.state.InForce {
		return nil, errors.New("the charter is in force; who comes later accepts the request that adds them")
	}
	all := len(d.state.Accepted)+1 == len(d.state.Charter.People)
	return []change{{key: "accepted/" + a.Person.Hex(), value: all, put: func(s *State) {
		s.Accepted = maps.Clone(s.Accepted)
		s.Accepted[a.Person] = true
		s.InForce = all
	}}}, nil
}

func (d decision) tick(t *signoff.Tick) ([]change, error) {
	r := d.state.Ticks
	if t.Round != r.Round {
		return nil, fmt.Errorf("tick of round %d, round %d is being collected", t.Round, r.Round)
	}
	if _, ok := r.Times[t.Notary]; ok {
		return nil, fmt.Errorf("this notary has already ticked in round %d", t.Round)
	}
	times := maps.Clone(r.Times)
	times[t.Notary] = t.Time
	next, now := &TickRound{Round: r.Round, Times: times}, d.state.Time
	if len(times) >= d.state.Council().Quorum() {
		now = max(now, median(times))
		next = &TickRound{Round: r.Round + 1, Times: map[Digest]int64{}}
	}
	changes := []change{{key: "tick", value: []any{next, now}, put: func(s *State) { s.Ticks, s.Time = next, now }}}
	if k := d.state.reshareTicked(t.Notary, now); k != nil {
		changes = append(changes, putKeygen(k))
	}
	if next.Round > r.Round {
		changes = append(changes, d.disputesTicked(r.Round, now)...)
	}
	return changes, nil
}

// median of the times; of an even number, the lower of the two in the middle,
// so that with q = 2f+1 or more ticks at least one honest clock is not behind.
func median(times map[Digest]int64) int64 {
	sorted := slices.Sorted(maps.Values(times))
	return sorted[(len(sorted)-1)/2]
}

func (d decision) object(o *signoff.Object) ([]change, error) {
	q := d.state.Council().Quorum()
	if !d.state.People.TakesThreshold(d.state.Charter, o.Lockbox.People.Threshold) || o.Lockbox.Machines.Threshold != q {
		return nil, fmt.Errorf("lockbox thresholds %d and %d, it takes %d people and %d notaries",
			o.Lockbox.People.Threshold, o.Lockbox.Machines.Threshold, d.state.People.Threshold, q)
	}
	r := &Object{ID: d.id, Doc: o, Signer: d.doc.Hint, Index: d.index}
	if o.Claim.IsZero() {
		return []change{putObject(r)}, nil
	}
	if err := d.state.makes(o); err != nil {
		return nil, err
	}
	claim := *d.state.Claims[o.Claim]
	claim.Kept++
	return []change{putObject(r), putClaim(&claim)}, nil
}

func putObject(r *Object) change {
	return change{key: "object/" + r.ID.Hex(), value: r, put: func(s *State) { s.Objects[r.ID] = r }}
}

func (d decision) deals(x *signoff.Deals) ([]change, error) {
	old, ok := d.state.Objects[x.Object]
	if !ok {
		return nil, fmt.Errorf("object %s is not in the log; append it first", x.Object)
	}
	if old.Doc.Sealer != x.Sealer {
		return nil, fmt.Errorf("deals signed by %s, the object was sealed by %s", x.Sealer, old.Doc.Sealer)
	}
	if old.People.Epoch != 0 {
		return nil, errors.New("this object's shares are dealt; the holders deal again, not the sealer")
	}
	if x.Epoch != 1 {
		return nil, fmt.Errorf("deals of epoch %d, a sealer deals epoch 1", x.Epoch)
	}
	blob, err := d.blob(x.Blob)
	if err != nil {
		return nil, err
	}
	deals, err := lockbox.ParseDeals(blob)
	if err != nil {
		return nil, err
	}
	r := *old
	if r.People, err = d.state.dealtToPeople(old, x.Blob, deals.People); err != nil {
		return nil, err
	}
	if r.Machines, err = d.state.dealtToNotaries(old, x.Blob, deals.Machines); err != nil {
		return nil, err
	}
	return []change{putObject(&r)}, nil
}

// halt takes effect if the policy's halt rule is content with its one signer.
func (d decision) halt(h *signoff.Halt) ([]change, error) {
	rule, err := d.state.Policy.Compiled.Rule(policy.Halt)
	if err != nil {
		return nil, err
	}
	now := d.state.Time
	res := rule.Evaluate(policy.Request{Requester: h.Person, Created: now, Expiry: now + 1},
		[]policy.Vote{{Person: h.Person, Decision: policy.Approve, Time: now, Expiry: now + 1}}, now)
	if !res.Satisfied {
		return nil, fmt.Errorf("this person may not halt: %v", res.Missing)
	}
	if err := d.state.fewHalts(h); err != nil {
		return nil, err
	}
	r := &Halt{ID: d.id, Doc: h, Index: d.index}
	return []change{putHalt(r)}, nil
}

// ErrEnoughHalts means that as many halts of one person and one kind of scope stand
// as a resume can lift.
var ErrEnoughHalts = errors.New("no more halts of this person are taken")

// fewHalts keeps one person from stopping everybody for good: people could sign
// resumes without end and lift fewer halts than come. Whoever has stopped so many
// requests, or nodes, can stop everything; whoever has stopped everything has.
func (s *State) fewHalts(h *signoff.Halt) error {
	n := 0
	for _, x := range s.Halts {
		if x.Lifted.IsZero() && x.Doc.Person == h.Person && x.Doc.Like(h) {
			n++
		}
	}
	if n >= signoff.MaxResumeHalts {
		return fmt.Errorf("%w: %d of the same kind stand; halt everything instead, if that is not it, or have some lifted", ErrEnoughHalts, n)
	}
	return nil
}

func putHalt(r *Halt) change {
	return change{key: "halt/" + r.ID.Hex(), value: r, put: func(s *State) { s.Halts[r.ID] = r }}
}

// compilePolicy reads a policy and compiles it for the roster. A rule that
// opens objects must not be satisfiable by fewer people than their lockboxes
// need.
func compilePolicy(people *Roster, text string) (*PolicyRecord, error) {
	parsed, err := policy.Parse([]byte(text))
	if err != nil {
		return nil, err
	}
	t := uint(people.Threshold)
	compiled, err := parsed.Compile(people.policyRoster(), policy.Limits{MinShares: map[policy.Action]uint{
		policy.WeightsExport: t, policy.WeightsOpen: t, policy.TrainingLaunch: t,
	}})
	if err != nil {
		return nil, err
	}
	return &PolicyRecord{Digest: dsse.Sum("keyturn/policy/v1", []byte(text)), Compiled: compiled, Text: text}, nil
}

// CheckCharter reports whether the fold would take the charter as entry 0:
// its form, its policy against its people, and its reference values.
func CheckCharter(c *signoff.Charter) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if _, err := compilePolicy(Founders(c), c.Policy); err != nil {
		return err
	}
	if _, err := charterEKRoots(c.EKRoots); err != nil {
		return err
	}
	_, err := charterReferences(c.References)
	return err
}
