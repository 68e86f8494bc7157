package frost

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"filippo.io/edwards25519"
)

// Commitment is what a signer publishes in the first round of signing, for one
// [Nonce] and one signature.
type Commitment struct {
	ID      uint16   `json:"id"`
	Hiding  [32]byte `json:"hiding"`
	Binding [32]byte `json:"binding"`
}

const commitmentSize = 2 + 32 + 32

// MarshalBinary encodes signer (16 bits, big-endian), hiding and binding point.
func (c Commitment) MarshalBinary() ([]byte, error) {
	return slices.Concat(u16(c.ID), c.Hiding[:], c.Binding[:]), nil
}

// UnmarshalBinary decodes what MarshalBinary wrote and nothing else.
func (c *Commitment) UnmarshalBinary(b []byte) error {
	if len(b) != commitmentSize {
		return fmt.Errorf("frost: a commitment of %d bytes: need %d", len(b), commitmentSize)
	}
	*c = Commitment{binary.BigEndian.Uint16(b), [32]byte(b[2:]), [32]byte(b[34:])}
	return nil
}

// Nonce is the secret half of a [Commitment]. It signs once, lives in memory
// and cannot be encoded: three uses of one nonce reveal the share, so nothing
// may bring one back, neither a restart nor a snapshot. Copies of a Nonce are
// the same nonce.
type Nonce struct{ *nonceState }

type nonceState struct {
	commitment Commitment
	group      [32]byte

	mu              sync.Mutex
	spent           bool
	hiding, binding *edwards25519.Scalar
}

// spend hands the secrets over, once; they are the caller's to wipe.
func (s *nonceState) spend() (hiding, binding *edwards25519.Scalar, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spent {
		return nil, nil, ErrSpent
	}
	hiding, binding = s.hiding, s.binding
	s.spent, s.hiding, s.binding = true, nil, nil
	return hiding, binding, nil
}

// Discard spends the nonce without signing.
func (n *Nonce) Discard() {
	if n == nil || n.nonceState == nil {
		return
	}
	if d, e, err := n.spend(); err == nil {
		wipe(d)
		wipe(e)
	}
}

var errNonceEncoded = errors.New("frost: a nonce is never written down")

// MarshalBinary refuses, for encoding/gob and its like.
func (n Nonce) MarshalBinary() ([]byte, error) { return nil, errNonceEncoded }

// MarshalText refuses, for every JSON, YAML or XML encoder.
func (n Nonce) MarshalText() ([]byte, error) { return nil, errNonceEncoded }

// Format prints a placeholder for every verb.
func (n Nonce) Format(f fmt.State, _ rune) { redact(f, "Nonce") }

// Commit is the first round of signing (RFC 9591 section 5.1): a fresh nonce,
// kept, and its commitment, sent.
func (k *KeyShare) Commit(rand io.Reader) (*Nonce, Commitment, error) {
	if err := k.usable(); err != nil {
		return nil, Commitment{}, err
	}
	hiding, err := hedgedScalar(rand, k.secret)
	if err != nil {
		return nil, Commitment{}, err
	}
	binding, err := hedgedScalar(rand, k.secret)
	if err != nil {
		wipe(hiding)
		return nil, Commitment{}, err
	}
	if hiding.Equal(binding) == 1 {
		wipe(hiding)
		wipe(binding)
		return nil, Commitment{}, errors.New("frost: the source of randomness repeats itself")
	}
	c := Commitment{
		ID:      k.id,
		Hiding:  encodePoint(new(edwards25519.Point).ScalarBaseMult(hiding)),
		Binding: encodePoint(new(edwards25519.Point).ScalarBaseMult(binding)),
	}
	return &Nonce{&nonceState{commitment: c, group: k.group, hiding: hiding, binding: binding}}, c, nil
}

// Sign is the second round (RFC 9591 section 5.2): this member's share of the
// signature on msg under the given commitments, ascending by signer. The list
// must hold at least Threshold signers, each once, and this member's own
// commitment unchanged. A refusal leaves the nonce unused; otherwise it is
// spent before anything is computed from it, and a second call, be it at the
// same time, returns [ErrSpent]. A share that does not verify is not handed out:
// it would name this member as a cheat, and a computation that went wrong may
// have put the secret into it.
func (k *KeyShare) Sign(n *Nonce, g *Group, msg []byte, list []Commitment) ([32]byte, error) {
	if err := k.belongs(g); err != nil {
		return [32]byte{}, err
	}
	s, err := newSession(g, msg, list)
	if err != nil {
		return [32]byte{}, err
	}
	i, err := k.own(n, list)
	if err != nil {
		return [32]byte{}, err
	}
	hiding, binding, err := n.spend()
	if err != nil {
		return [32]byte{}, err
	}
	defer wipe(hiding)
	defer wipe(binding)
	// z = d + e rho + lambda s c
	z := new(edwards25519.Scalar).Multiply(s.weight(i), k.secret)
	z.MultiplyAdd(z, s.challenge, hiding)
	z.MultiplyAdd(binding, s.factors[i], z)
	share := encodeScalar(z)
	if err := s.verify(i, share); err != nil {
		return [32]byte{}, fmt.Errorf("frost: member %d computed a wrong share and keeps it; is its memory sound? %w", k.id, err)
	}
	return share, nil
}

// own finds the nonce's commitment in the list.
func (k *KeyShare) own(n *Nonce, list []Commitment) (int, error) {
	if n == nil || n.nonceState == nil {
		return 0, errors.New("frost: signing without a nonce; commit to one first")
	}
	if n.group != k.group {
		return 0, fmt.Errorf("frost: the nonce was made for group %x, the share is of %x; commit afresh", n.group, k.group)
	}
	i := slices.IndexFunc(list, func(c Commitment) bool { return c.ID == k.id })
	if i < 0 {
		return 0, fmt.Errorf("frost: member %d is not among the signers", k.id)
	}
	if list[i] != n.commitment {
		return 0, fmt.Errorf("frost: the list gives member %d another commitment than this nonce's, made by member %d", k.id, n.commitment.ID)
	}
	return i, nil
}

// session is what follows from group, message and list, all of it public.
type session struct {
	group           *Group
	ids             []uint16
	hiding, binding []*edwards25519.Point
	factors         []*edwards25519.Scalar
	commitment      *edwards25519.Point // R
	challenge       *edwards25519.Scalar
}

func newSession(g *Group, msg []byte, list []Commitment) (*session, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	if len(list) < int(g.Threshold) {
		return nil, fmt.Errorf("frost: %d signers: need at least %d", len(list), g.Threshold)
	}
	s := &session{group: g}
	for _, c := range list {
		s.ids = append(s.ids, c.ID)
	}
	if err := g.checkIDs(s.ids); err != nil {
		return nil, err
	}
	if err := s.decode(list); err != nil {
		return nil, err
	}
	s.bind(msg, list)
	if isIdentity(s.commitment) {
		return nil, errors.New("frost: the signers' commitments cancel; commit afresh")
	}
	R := s.commitment.Bytes()
	s.challenge = h2(R, g.PublicKey[:], msg)
	return s, nil
}

// decode names every signer whose points are no commitments.
func (s *session) decode(list []Commitment) error {
	cheats := blame{CheatError{Step: "nonce commitment"}}
	for _, c := range list {
		hiding, binding, err := c.points()
		if err != nil {
			cheats.add(c.ID, err)
		}
		s.hiding, s.binding = append(s.hiding, hiding), append(s.binding, binding)
	}
	return cheats.verdict()
}

// Validate refuses points that no signer commits to.
func (c Commitment) Validate() error {
	_, _, err := c.points()
	return err
}

func (c Commitment) points() (hiding, binding *edwards25519.Point, err error) {
	if hiding, err = decodePoint(c.Hiding); err != nil {
		return nil, nil, fmt.Errorf("hiding: %w", err)
	}
	if binding, err = decodePoint(c.Binding); err != nil {
		return nil, nil, fmt.Errorf("binding: %w", err)
	}
	return hiding, binding, nil
}

// bind computes binding factors and group commitment (RFC 9591 sections 4.4
// and 4.5). Because each factor hashes the whole list and the message, shares
// of concurrent sessions cannot be combined into a third signature.
func (s *session) bind(msg []byte, list []Commitment) {
	for _, in := range bindingInputs(s.group.PublicKey, msg, list) {
		s.factors = append(s.factors, h1(in))
	}
	s.commitment = new(edwards25519.Point).VarTimeMultiScalarMult(s.factors, s.binding)
	for _, p := range s.hiding {
		s.commitment.Add(s.commitment, p)
	}
}

func bindingInputs(key [32]byte, msg []byte, list []Commitment) [][]byte {
	var com []byte
	for _, c := range list {
		com = append(com, scalarOf(c.ID).Bytes()...)
		com = append(com, c.Hiding[:]...)
		com = append(com, c.Binding[:]...)
	}
	m, l := h4(msg), h5(com)
	var inputs [][]byte
	for _, c := range list {
		inputs = append(inputs, slices.Concat(key[:], m[:], l[:], scalarOf(c.ID).Bytes()))
	}
	return inputs
}

// weight is the Lagrange coefficient of the i-th signer.
func (s *session) weight(i int) *edwards25519.Scalar { return lagrange(s.ids, s.ids[i], 0) }

// verify checks z B = D + rho E + lambda c Y (RFC 9591 section 5.4).
func (s *session) verify(i int, share [32]byte) error {
	z, err := decodeScalar(share)
	if err != nil {
		return err
	}
	y, err := s.group.share(s.ids[i])
	if err != nil {
		return err
	}
	lc := s.weight(i)
	lc.Multiply(lc, s.challenge)
	want := new(edwards25519.Point).VarTimeMultiScalarMult(
		[]*edwards25519.Scalar{s.factors[i], lc}, []*edwards25519.Point{s.binding[i], y})
	want.Add(want, s.hiding[i])
	if new(edwards25519.Point).ScalarBaseMult(z).Equal(want) != 1 {
		return errors.New("the share does not fit key share, message and commitments")
	}
	return nil
}

// VerifyShare checks one signer's share of a signature on msg under the list.
// It returns a *[CheatError] naming the signer when the share is at fault.
func VerifyShare(g *Group, id uint16, share [32]byte, msg []byte, list []Commitment) error {
	s, err := newSession(g, msg, list)
	if err != nil {
		return err
	}
	i := slices.Index(s.ids, id)
	if i < 0 {
		return fmt.Errorf("frost: member %d is not among the signers %v", id, s.ids)
	}
	if err := s.verify(i, share); err != nil {
		return &CheatError{Step: "signature share", IDs: []uint16{id}, Err: err}
	}
	return nil
}

// Aggregate adds the shares of all signers in the list (RFC 9591 section 5.3)
// and returns the signature after verifying it with crypto/ed25519. When it
// does not verify, the error is a *[CheatError] naming every signer whose share
// is wrong.
func Aggregate(g *Group, msg []byte, list []Commitment, shares map[uint16][32]byte) ([64]byte, error) {
	s, err := newSession(g, msg, list)
	if err != nil {
		return [64]byte{}, err
	}
	if len(shares) != len(s.ids) {
		return [64]byte{}, fmt.Errorf("frost: shares of %d signers: need those of exactly %v", len(shares), s.ids)
	}
	z := edwards25519.NewScalar()
	for _, id := range s.ids {
		share, ok := shares[id]
		if !ok {
			return [64]byte{}, fmt.Errorf("frost: no share of member %d: need those of exactly %v", id, s.ids)
		}
		zi, err := decodeScalar(share)
		if err != nil {
			return [64]byte{}, s.blame(shares)
		}
		z.Add(z, zi)
	}
	sig := [64]byte(slices.Concat(s.commitment.Bytes(), z.Bytes()))
	if !ed25519.Verify(g.PublicKey[:], msg, sig[:]) {
		return [64]byte{}, s.blame(shares)
	}
	return sig, nil
}

// blame verifies share by share, after the whole was refused.
func (s *session) blame(shares map[uint16][32]byte) error {
	cheats := blame{CheatError{Step: "signature share"}}
	for i, id := range s.ids {
		if err := s.verify(i, shares[id]); err != nil {
			cheats.add(id, err)
		}
	}
	if err := cheats.verdict(); err != nil {
		return err
	}
	return errors.New("frost: every share verifies and the signature does not; the group is inconsistent, validate it")
}
