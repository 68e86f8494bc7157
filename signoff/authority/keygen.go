package authority

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// keygen is the first attempt of the first term.
func keygen(c signoff.Council) *Keygen {
	k := &Keygen{Term: 1, Attempt: 1, Members: c}
	for i := range c.Notaries {
		k.Dealers = append(k.Dealers, uint16(i+1))
	}
	return k.empty()
}

// empty takes the attempt's documents away.
func (k *Keygen) empty() *Keygen {
	k.Commitments, k.Dealings, k.Transcripts = map[Digest]*signoff.Commitment{}, map[Digest]*signoff.Dealing{}, map[Digest]*signoff.Transcript{}
	k.Seen, k.Disputes, k.group = nil, nil, nil
	return k
}

// copy returns a record that can be changed without changing k.
func (k *Keygen) copy() *Keygen {
	c := *k
	c.Commitments, c.Dealings, c.Transcripts = maps.Clone(k.Commitments), maps.Clone(k.Dealings), maps.Clone(k.Transcripts)
	c.Dealers, c.Late, c.Seen, c.Disputes = slices.Clone(k.Dealers), slices.Clone(k.Late), slices.Clone(k.Seen), slices.Clone(k.Disputes)
	return &c
}

// Digest commits to every commitment and dealing of the attempt, in the order
// of the log: what a Transcript signs.
func (k *Keygen) Digest(charter Digest) Digest {
	fields := [][]byte{charter[:]}
	for _, d := range k.Seen {
		fields = append(fields, d[:])
	}
	return dsse.Sum("keyturn/dkg/v1", fields...)
}

// Ceremony is the making of shares under way, bound to this charter, term,
// attempt and warrant. A reshare has none before its dealers are known.
func (s *State) Ceremony() (*frost.Ceremony, error) {
	k := s.Keygen
	p := frost.Params{Threshold: uint16(k.Members.Quorum()), Members: uint16(len(k.Members.Notaries))}
	d := dsse.Sum("keyturn/dkg-context/v1", s.ID[:], fmt.Append(nil, k.Term), fmt.Append(nil, k.Attempt), k.Warrant[:])
	if k.Term == 1 {
		return frost.NewKeyGen(p, d[:])
	}
	return frost.NewReshare(s.Group, k.Dealers, p, d[:])
}

// Dealing reports whether this notary deals in the attempt under way.
func (s *State) Dealing(id Digest) bool {
	_, index, ok := s.Notary(id)
	return ok && slices.Contains(s.Keygen.Dealers, index) && s.dealersKnown()
}

func (s *State) dealersKnown() bool {
	return s.Keygen.Term == 1 || len(s.Keygen.Dealers) == s.Council().Quorum()
}

// WantsDealers reports whether a reshare waits for notaries to tick, which is
// how its dealers are found.
func (s *State) WantsDealers() bool { return !s.Keygen.Done && !s.dealersKnown() }

// dealers are those who deal, in the order of their indices.
func (s *State) dealers() []signoff.Notary {
	var out []signoff.Notary
	for _, i := range s.Keygen.Dealers {
		out = append(out, s.Council().Notaries[i-1])
	}
	return out
}

// Dealers are the notaries that deal, in the ceremony's order; none before they
// are all known.
func (s *State) Dealers() []signoff.Notary {
	if !s.dealersKnown() {
		return nil
	}
	return s.dealers()
}

// Awaited are those for whose next document the making of shares waits, and of
// which kind it is: all dealers commit, then all deal, then all members agree. It
// waits for each of them, however long that takes.
func (s *State) Awaited() (kind signoff.Kind, from []signoff.Notary) {
	k := s.Keygen
	if k.Done || !s.dealersKnown() {
		return "", nil
	}
	list, has := s.dealers(), func(id Digest) bool { return k.Commitments[id] != nil }
	switch kind = signoff.KindCommitment; {
	case len(k.Dealings) == len(k.Dealers):
		kind, list, has = signoff.KindTranscript, k.Members.Notaries, func(id Digest) bool { return k.Transcripts[id] != nil }
	case len(k.Commitments) == len(k.Dealers):
		kind, has = signoff.KindDealing, func(id Digest) bool { return k.Dealings[id] != nil }
	}
	for _, y := range list {
		if !has(y.ID()) {
			from = append(from, y)
		}
	}
	return kind, from
}

// Round1s returns the attempt's first-round messages in the ceremony's order,
// once all are there.
func (s *State) Round1s() ([]frost.Round1, bool) {
	if !s.dealersKnown() {
		return nil, false
	}
	var out []frost.Round1
	for _, y := range s.dealers() {
		c, ok := s.Keygen.Commitments[y.ID()]
		if !ok {
			return nil, false
		}
		out = append(out, round1(c))
	}
	return out, true
}

func round1(c *signoff.Commitment) frost.Round1 {
	r := frost.Round1{Proof: [64]byte(c.Proof)}
	for _, p := range c.Commitments {
		r.Commitments = append(r.Commitments, [32]byte(p))
	}
	return r
}

func (d decision) keygenOpen(term, attempt uint32) error {
	k := d.state.Keygen
	switch {
	case k.Done:
		return fmt.Errorf("the notaries have their shares of term %d", k.Term)
	case term != k.Term:
		return fmt.Errorf("shares of term %d, those of term %d are being made", term, k.Term)
	case attempt != k.Attempt:
		return fmt.Errorf("attempt %d, attempt %d is under way", attempt, k.Attempt)
	}
	return nil
}

// dealerOpen is keygenOpen for what only a dealer of the attempt may say.
func (d decision) dealerOpen(term, attempt uint32, notary Digest) error {
	if err := d.keygenOpen(term, attempt); err != nil {
		return err
	}
	if !d.state.Dealing(notary) {
		return errors.New("this notary does not deal in this attempt")
	}
	return nil
}

func (d decision) commitment(c *signoff.Commitment) ([]change, error) {
	s := d.state
	if err := d.dealerOpen(c.Term, c.Attempt, c.Notary); err != nil {
		return nil, err
	}
	if _, ok := s.Keygen.Commitments[c.Notary]; ok {
		return nil, errors.New("this notary has already committed")
	}
	_, index, _ := s.Notary(c.Notary)
	ceremony, err := s.Ceremony()
	if err != nil {
		return nil, err
	}
	if err := ceremony.VerifyRound1(index, round1(c)); err != nil {
		return nil, err
	}
	k := s.Keygen.copy()
	k.Commitments[c.Notary] = c
	k.Seen = append(k.Seen, d.id)
	return []change{putKeygen(k)}, nil
}

func putKeygen(k *Keygen) change {
	return change{key: "keygen", value: k, put: func(s *State) { s.Keygen = k }}
}

func (d decision) dealing(x *signoff.Dealing) ([]change, error) {
	s := d.state
	if err := d.dealerOpen(x.Term, x.Attempt, x.Notary); err != nil {
		return nil, err
	}
	if len(s.Keygen.Commitments) < len(s.Keygen.Dealers) {
		return nil, errors.New("not every dealer has committed yet")
	}
	if _, ok := s.Keygen.Dealings[x.Notary]; ok {
		return nil, errors.New("this notary has already dealt")
	}
	if n := len(s.Keygen.Members.Notaries); len(x.Shares) != n {
		return nil, fmt.Errorf("%d shares for %d notaries", len(x.Shares), n)
	}
	k := s.Keygen.copy()
	k.Dealings[x.Notary] = x
	k.Seen = append(k.Seen, d.id)
	return []change{putKeygen(k)}, nil
}

// derivedGroup is the group that the attempt's commitments make, worked out
// once: no commitment changes after all are there.
func (s *State) derivedGroup() (*frost.Group, error) {
	if s.Keygen.group != nil {
		return s.Keygen.group, nil
	}
	round1s, ok := s.Round1s()
	if !ok {
		return nil, errors.New("not every dealer has committed yet")
	}
	ceremony, err := s.Ceremony()
	if err != nil {
		return nil, err
	}
	return ceremony.Group(round1s)
}

// transcript counts a member's agreement. All must agree before the shares are
// in force; one that accuses agrees when its dealers have answered.
func (d decision) transcript(t *signoff.Transcript) ([]change, error) {
	s := d.state
	if err := d.keygenOpen(t.Term, t.Attempt); err != nil {
		return nil, err
	}
	if _, _, ok := s.Keygen.Members.Find(t.Notary); !ok {
		return nil, errors.New("this notary gets no share")
	}
	if len(s.Keygen.Dealings) < len(s.Keygen.Dealers) || !s.dealersKnown() {
		return nil, errors.New("not every dealer has dealt yet")
	}
	if want := s.Keygen.Digest(s.ID); t.Digest != want {
		return nil, fmt.Errorf("transcript %s, this log gives %s: the notary saw other messages", t.Digest, want)
	}
	if _, ok := s.Keygen.Transcripts[t.Notary]; ok {
		return nil, errors.New("this notary has already agreed")
	}
	if len(t.Accused) > 0 {
		return d.accusation(t)
	}
	for _, x := range s.Keygen.Disputes {
		if x.Accuser == t.Notary && x.Open() {
			return nil, fmt.Errorf("agrees, and waits for the answer of %s, whom it accused", x.Dealer)
		}
	}
	group, err := s.derivedGroup()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(t.Group, group.PublicKey[:]) {
		return nil, fmt.Errorf("group key %x, this log gives %x", t.Group, group.PublicKey)
	}
	k := s.Keygen.copy()
	k.group = group
	k.Transcripts[t.Notary] = t
	if len(k.Transcripts) < len(k.Members.Notaries) {
		return []change{putKeygen(k)}, nil
	}
	k.Done, k.Index = true, d.index
	if k.Term > 1 {
		return []change{{key: "keygen", value: k, put: func(s *State) { s.Keygen = k; s.watched(k.Index) }}}, nil
	}
	first, err := firstGroup(group)
	return []change{putKeygen(k), first}, err
}

// firstGroup puts the group key into force, for good.
func firstGroup(group *frost.Group) (change, error) {
	public := ed25519.PublicKey(bytes.Clone(group.PublicKey[:]))
	id, err := hsm.Fingerprint(public)
	return change{key: "group", value: group.PublicKey[:], put: func(s *State) {
		s.Group, s.groupID = group, id
		first := *s.Term()
		first.Group, s.Terms = group, []*Term{&first}
		s.signers = maps.Clone(s.signers)
		s.signers[id] = signer{public: public}
	}}, err
}

// reshareTime is how long, in fold time, the dealers of an attempt have until
// all have dealt.
const reshareTime = 60

// reshare begins the making of shares for the council of a change, in place of
// any that was under way and not yet in office.
func (s *State) reshare(n *signoff.NotaryChange, warrant Digest) *Keygen {
	k := &Keygen{Term: n.Term + 1, Attempt: 1, Warrant: warrant, Began: s.Time, Members: n.Council()}
	if s.Keygen.Term == k.Term {
		k.Attempt, k.Late = s.Keygen.Attempt+1, s.Keygen.Late
	}
	return k.empty()
}

// nextAttempt starts over. In a reshare those at fault deal again only if too
// few others are left.
func (s *State) nextAttempt(why string, fault []Digest, now int64) *Keygen {
	k := s.Keygen.copy()
	k.Attempt, k.Failed, k.Began = k.Attempt+1, fmt.Sprintf("attempt %d: %s", k.Attempt, why), now
	if k.Term > 1 {
		n, q := len(s.Council().Notaries), s.Council().Quorum()
		k.Dealers, k.Late = nil, append(without(k.Late, fault), fault...)
		if n-len(k.Late) < q {
			k.Late = fault
		}
		if n-len(k.Late) < q {
			k.Late = nil
		}
	}
	return k.empty()
}

func without(ds, gone []Digest) []Digest {
	return slices.DeleteFunc(slices.Clone(ds), func(d Digest) bool { return contains(gone, d) })
}

// reshareTicked returns the reshare after a tick, or nil if the tick changes
// nothing about it. Who keeps time deals: the dealers of an attempt are the
// first q notaries in office to tick in it. Dealers that have not dealt in
// reshareTime end the attempt.
func (s *State) reshareTicked(notary Digest, now int64) *Keygen {
	k := s.Keygen
	if k.Term == 1 || k.Done {
		return nil
	}
	if s.dealersKnown() {
		silent := s.silentDealers()
		if len(silent) == 0 || now-k.Began <= reshareTime {
			return nil
		}
		return s.nextAttempt(fmt.Sprintf("%d dealers were silent", len(silent)), silent, now)
	}
	_, index, ok := s.Notary(notary)
	if !ok || contains(k.Late, notary) || slices.Contains(k.Dealers, index) {
		return nil
	}
	next := k.copy()
	next.Dealers = append(next.Dealers, index)
	slices.Sort(next.Dealers)
	if len(next.Dealers) == s.Council().Quorum() {
		next.Began = now
	}
	return next
}

// silentDealers are those for whose next document the attempt waits.
func (s *State) silentDealers() []Digest {
	k := s.Keygen
	all := len(k.Commitments) == len(k.Dealers)
	var out []Digest
	for _, y := range s.dealers() {
		id := y.ID()
		if k.Commitments[id] == nil || all && k.Dealings[id] == nil {
			out = append(out, id)
		}
	}
	return out
}
