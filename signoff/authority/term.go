package authority

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/proof"
)

// A Term is the time from one entry on in which one council is in office. The
// charter's council has term 1.
type Term struct {
	Number  uint32          `json:"number"`
	Index   uint64          `json:"index"`   // of the entry that began it
	Warrant Digest          `json:"warrant"` // that ordered it; zero for term 1
	Council signoff.Council `json:"-"`
	Group   *frost.Group    `json:"-"` // that signs in it; in term 1 nil until the key generation is complete
}

// A Watch says whose signatures make a checkpoint of a size, from one size on:
// the log key, and a quorum of each council.
type Watch struct {
	From     uint64
	LogKey   signoff.PublicKey
	Councils []signoff.Council
}

// Term is the term under way.
func (s *State) Term() *Term { return s.Terms[len(s.Terms)-1] }

// Council is the notaries in office.
func (s *State) Council() signoff.Council { return s.Term().Council }

// Incoming is the council whose members all have their shares and that has not
// taken over yet, if there is one. Until it has, checkpoints need its quorum
// besides that of the council in office.
func (s *State) Incoming() (signoff.Council, bool) {
	if k := s.Keygen; k != nil && k.Done && k.Term > s.Term().Number {
		return k.Members, true
	}
	return signoff.Council{}, false
}

// councils are those of which a quorum makes a checkpoint of this state final.
func (s *State) councils() []signoff.Council {
	out := []signoff.Council{s.Council()}
	if next, ok := s.Incoming(); ok {
		out = append(out, next)
	}
	return out
}

// watched notes whose signatures count for checkpoints that contain the entry
// at index and nothing that changes them again.
func (s *State) watched(index uint64) {
	s.Watches = append(slices.Clip(s.Watches), Watch{From: index + 1, LogKey: s.LogKey, Councils: s.councils()})
}

// WatchAt is the watch for checkpoints of the given size.
func (s *State) WatchAt(size uint64) (Watch, bool) {
	for _, w := range slices.Backward(s.Watches) {
		if w.From <= size {
			return w, true
		}
	}
	return Watch{}, false
}

// Trust is the watch as package proof holds checkpoints to it.
func (w Watch) Trust(name string) (proof.Trust, error) {
	return proof.TrustIn(name, w.LogKey, w.Councils...)
}

// follows checks a council asked for against all that were in office and every
// key that is in use.
func (s *State) follows(n *signoff.NotaryChange) error {
	if k := s.Keygen; s.Group == nil || k.Done && k.Term > s.Term().Number {
		return errors.New("the notaries' shares are being made or handed over; ask again when that is done")
	}
	if now := s.Term().Number; n.Term != now {
		return fmt.Errorf("ends term %d, the term under way is %d: look at who is in office and ask again", n.Term, now)
	}
	taken, err := s.oldKeys()
	if err != nil {
		return err
	}
	var before []signoff.Council
	for _, t := range s.Terms {
		before = append(before, t.Council)
	}
	return n.Council().Follows(before, !s.Charter.Development, taken)
}

// Joiners are the notaries that the change brings in.
func (s *State) Joiners(n *signoff.NotaryChange) []signoff.Notary {
	var out []signoff.Notary
	for _, y := range n.Notaries {
		if !s.Council().Has(y) {
			out = append(out, y)
		}
	}
	return out
}

// Unjoined are the notaries that the request brings in and that have not shown
// their keys. Requests of other kinds bring in none.
func (s *State) Unjoined(r *Request) []signoff.Notary {
	if r.Doc.Notaries == nil {
		return nil
	}
	return slices.DeleteFunc(s.Joiners(r.Doc.Notaries), func(y signoff.Notary) bool { return contains(r.Joined, y.ID()) })
}

// joiner finds a notary that an open request brings in.
func (s *State) joiner(request, id Digest) (*signoff.Notary, error) {
	r, ok := s.Requests[request]
	if !ok || r.Doc.Notaries == nil || r.Ended != "" {
		return nil, fmt.Errorf("%s is not an open change of notaries", request)
	}
	y, _, ok := r.Doc.Notaries.Council().Find(id)
	if !ok || s.Council().Has(*y) {
		return nil, fmt.Errorf("%s is no notary that request %s brings in", id, request)
	}
	return y, nil
}

func (s *State) byJoiner(p prepared, j *signoff.Joining) error {
	y, err := s.joiner(j.Request, j.Notary)
	if err != nil {
		return err
	}
	pub, err := y.Signing.Public()
	if err != nil {
		return err
	}
	return p.bySigner(j.Notary, signer{public: pub})
}

func (d decision) joining(j *signoff.Joining) ([]change, error) {
	y, err := d.state.joiner(j.Request, j.Notary)
	if err != nil {
		return nil, err
	}
	r := *d.state.Requests[j.Request]
	if contains(r.Joined, j.Notary) {
		return nil, errors.New("this notary has already joined")
	}
	key, err := y.Witness.Ed25519()
	if err != nil {
		return nil, err
	}
	if !ed25519.Verify(key, j.Message(), j.Witness) {
		return nil, fmt.Errorf("notary %s's witness key did not sign this joining: whoever sent it does not have that key", y.Name)
	}
	r.Joined = append(slices.Clone(r.Joined), j.Notary)
	return []change{putRequest(&r)}, nil
}

// byMember wants a notary of the council in office or of the one whose shares
// are being made, which is not in office yet.
func (s *State) byMember(p prepared, id Digest) error {
	if k := s.Keygen; k != nil && k.Term > s.Term().Number {
		if y, _, ok := k.Members.Find(id); ok {
			pub, err := y.Signing.Public()
			if err != nil {
				return err
			}
			return p.bySigner(id, signer{public: pub})
		}
	}
	return s.byNotary(p, id)
}

// takeover lets the incoming council begin its term. What it shows is a
// checkpoint after the entry that made it incoming, cosigned by both quorums:
// an honest notary of each stands on this very log, so neither can go on with
// another one.
func (d decision) takeover(t *signoff.Takeover) ([]change, error) {
	s := d.state
	next, ok := s.Incoming()
	if !ok || t.Term != s.Keygen.Term {
		return nil, fmt.Errorf("no council waits to begin term %d", t.Term)
	}
	note := []byte(t.Checkpoint)
	c, err := proof.Unverified(note)
	if err != nil {
		return nil, err
	}
	watch, ok := s.WatchAt(c.Size)
	if !ok || len(watch.Councils) < 2 || c.Size < s.Recovered {
		return nil, fmt.Errorf("a checkpoint of %d entries, from before all new notaries had their shares, or before the log key was replaced", c.Size)
	}
	trust, err := watch.Trust(s.Charter.Name)
	if err != nil {
		return nil, err
	}
	if _, _, err := proof.OpenFinal(note, trust); err != nil {
		return nil, err
	}
	if err := d.saw(signoff.Seen{Size: c.Size, Root: Digest(c.Root)}); err != nil {
		return nil, err
	}
	term := &Term{Number: t.Term, Index: d.index, Warrant: s.Keygen.Warrant, Council: next, Group: s.Keygen.group}
	signers, err := s.seat(next)
	if err != nil {
		return nil, err
	}
	return []change{{key: "term", value: term, put: func(s *State) { s.begin(term, signers) }}}, nil
}

// seat returns all signers with the notaries of the council in office and all
// others out of it.
func (s *State) seat(c signoff.Council) (map[Digest]signer, error) {
	signers := maps.Clone(s.signers)
	for id, g := range signers {
		if g.notary != nil {
			g.index = 0
			signers[id] = g
		}
	}
	for i := range c.Notaries {
		n := &c.Notaries[i]
		pub, err := n.Signing.Public()
		if err != nil {
			return nil, err
		}
		signers[n.ID()] = signer{notary: n, index: uint16(i + 1), public: pub}
	}
	return signers, nil
}

// begin puts the term's council into office: from here on its members alone
// tick, cosign, propose and sign.
func (s *State) begin(t *Term, signers map[Digest]signer) {
	s.Terms, s.signers = append(slices.Clip(s.Terms), t), signers
	s.Group = t.Group
	s.Ticks = &TickRound{Round: s.Ticks.Round + 1, Times: map[Digest]int64{}}
	s.watched(t.Index)
}
