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

func newKeygen(attempt uint32) *Keygen {
	return &Keygen{Attempt: attempt, Commitments: map[Digest]*signoff.Commitment{}, Dealings: map[Digest]*signoff.Dealing{}, Transcripts: map[Digest]*signoff.Transcript{}}
}

// copy returns a record that can be changed without changing k.
func (k *Keygen) copy() *Keygen {
	return &Keygen{Attempt: k.Attempt, Commitments: maps.Clone(k.Commitments), Dealings: maps.Clone(k.Dealings),
		Transcripts: maps.Clone(k.Transcripts), Seen: slices.Clone(k.Seen), Failed: k.Failed, group: k.group}
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

// Ceremony is the key generation under way, q of n, bound to this charter and
// attempt.
func (s *State) Ceremony() (*frost.Ceremony, error) {
	d := dsse.Sum("keyturn/dkg-context/v1", s.ID[:], []byte(fmt.Sprint(s.Keygen.Attempt)))
	return frost.NewKeyGen(frost.Params{Threshold: uint16(s.Charter.Quorum()), Members: uint16(len(s.Charter.Notaries))}, d[:])
}

// Round1s returns the attempt's first-round messages in the charter's order,
// once all are there.
func (s *State) Round1s() ([]frost.Round1, bool) {
	var out []frost.Round1
	for i := range s.Charter.Notaries {
		c, ok := s.Keygen.Commitments[s.Charter.Notaries[i].ID()]
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

func (d decision) keygenOpen(attempt uint32) error {
	if d.state.Group != nil {
		return errors.New("the notaries have their group key")
	}
	if attempt != d.state.Keygen.Attempt {
		return fmt.Errorf("key generation attempt %d, attempt %d is under way", attempt, d.state.Keygen.Attempt)
	}
	return nil
}

func (d decision) commitment(c *signoff.Commitment) ([]change, error) {
	s := d.state
	if err := d.keygenOpen(c.Attempt); err != nil {
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
	if err := d.keygenOpen(x.Attempt); err != nil {
		return nil, err
	}
	if len(s.Keygen.Commitments) < len(s.Charter.Notaries) {
		return nil, errors.New("not every notary has committed yet")
	}
	if _, ok := s.Keygen.Dealings[x.Notary]; ok {
		return nil, errors.New("this notary has already dealt")
	}
	if len(x.Shares) != len(s.Charter.Notaries) {
		return nil, fmt.Errorf("%d shares for %d notaries", len(x.Shares), len(s.Charter.Notaries))
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
		return nil, errors.New("not every notary has committed yet")
	}
	ceremony, err := s.Ceremony()
	if err != nil {
		return nil, err
	}
	return ceremony.Group(round1s)
}

// transcript counts a notary's agreement. All must agree before the group key
// is in force; one accusation ends the attempt and starts the next.
func (d decision) transcript(t *signoff.Transcript) ([]change, error) {
	s := d.state
	if err := d.keygenOpen(t.Attempt); err != nil {
		return nil, err
	}
	if len(s.Keygen.Dealings) < len(s.Charter.Notaries) {
		return nil, errors.New("not every notary has dealt yet")
	}
	if want := s.Keygen.Digest(s.ID); t.Digest != want {
		return nil, fmt.Errorf("transcript %s, this log gives %s: the notary saw other messages", t.Digest, want)
	}
	if len(t.Accused) > 0 {
		k := newKeygen(t.Attempt + 1)
		k.Failed = fmt.Sprintf("attempt %d: %s accuses %d notaries", t.Attempt, t.Notary.Short(), len(t.Accused))
		return []change{putKeygen(k)}, nil
	}
	if _, ok := s.Keygen.Transcripts[t.Notary]; ok {
		return nil, errors.New("this notary has already agreed")
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
	changes := []change{putKeygen(k)}
	if len(k.Transcripts) == len(s.Charter.Notaries) {
		public := ed25519.PublicKey(bytes.Clone(t.Group))
		id, err := hsm.Fingerprint(public)
		if err != nil {
			return nil, err
		}
		changes = append(changes, change{key: "group", value: t.Group, put: func(s *State) {
			s.Group, s.groupID = group, id
			s.signers = maps.Clone(s.signers)
			s.signers[id] = signer{public: public}
		}})
	}
	return changes, nil
}
