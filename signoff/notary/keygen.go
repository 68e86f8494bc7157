package notary

import (
	"bytes"
	"context"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

const shareFile = "share.sealed"

func dealingFile(attempt uint32) string { return fmt.Sprintf("dealing-%d.sealed", attempt) }

// sealAD binds a sealed file to the charter, the notary and its name, so that
// a share file copied to another host or place does not open.
func (n *Notary) sealAD(name string) []byte {
	d := dsse.Sum("keyturn/notary-seal/v1", n.cfg.Charter[:], n.id[:], []byte(name))
	return d[:]
}

func (n *Notary) saveSealed(ctx context.Context, name string, secret []byte) error {
	sealed, err := n.cfg.Sealer.Seal(ctx, secret, n.sealAD(name))
	if err != nil {
		return fmt.Errorf("notary: seal %s: %w", name, err)
	}
	return n.store.write(name, sealed)
}

// loadSealed returns nil if there is no such file.
func (n *Notary) loadSealed(ctx context.Context, name string) ([]byte, error) {
	sealed, err := n.store.read(name)
	if err != nil || sealed == nil {
		return nil, err
	}
	secret, err := n.cfg.Sealer.Unseal(ctx, sealed, n.sealAD(name))
	if err != nil {
		return nil, fmt.Errorf("notary: unseal %s: %w", name, err)
	}
	return secret, nil
}

// planKeygen takes the next step of the key generation that the log lacks.
func (n *Notary) planKeygen(l look) (func(context.Context) error, error) {
	s := l.state
	if s.Group != nil {
		return nil, nil
	}
	k, members := s.Keygen, len(s.Charter.Notaries)
	ceremony, err := s.Ceremony()
	if err != nil {
		return nil, err
	}
	run := keygen{n, ceremony, s.ID, k.Attempt}
	switch {
	case k.Commitments[n.id] == nil:
		return run.commit, nil
	case len(k.Commitments) == members && k.Dealings[n.id] == nil:
		return func(ctx context.Context) error { return run.deal(ctx, s.Charter) }, nil
	case len(k.Dealings) == members && k.Transcripts[n.id] == nil:
		round1s, _ := s.Round1s()
		received, err := n.received(s)
		if err != nil {
			return nil, err
		}
		digest := k.Digest(s.ID)
		return func(ctx context.Context) error { return run.finish(ctx, s.Charter, digest, round1s, received) }, nil
	}
	return nil, nil
}

// received collects the ciphertexts dealt to this notary, in charter order.
func (n *Notary) received(s *authority.State) ([][]byte, error) {
	var out [][]byte
	for i := range s.Charter.Notaries {
		d := s.Keygen.Dealings[s.Charter.Notaries[i].ID()]
		if int(n.index) > len(d.Shares) {
			return nil, fmt.Errorf("notary: %s dealt %d shares", s.Charter.Notaries[i].Name, len(d.Shares))
		}
		out = append(out, d.Shares[n.index-1])
	}
	return out, nil
}

// keygen is one attempt, as this notary takes part in it.
type keygen struct {
	n        *Notary
	ceremony *frost.Ceremony
	charter  Digest
	attempt  uint32
}

// dealing returns this notary's polynomial for the attempt. It is sealed on
// disk before anything made from it is said; a notary killed in between says
// the same again.
func (k keygen) dealing(ctx context.Context) (*frost.Dealing, error) {
	name := dealingFile(k.attempt)
	secret, err := k.n.loadSealed(ctx, name)
	if err != nil {
		return nil, err
	}
	if secret != nil {
		defer clear(secret)
		return k.ceremony.UnmarshalDealing(secret)
	}
	d, err := k.ceremony.Deal(rand.Reader, k.n.index)
	if err != nil {
		return nil, err
	}
	if secret, err = d.MarshalSecret(); err != nil {
		return nil, err
	}
	defer clear(secret)
	return d, k.n.saveSealed(ctx, name, secret)
}

func (k keygen) commit(ctx context.Context) error {
	d, err := k.dealing(ctx)
	if err != nil {
		return err
	}
	defer d.Wipe()
	r := d.Round1()
	doc := &signoff.Commitment{Charter: k.charter, Notary: k.n.id, Attempt: k.attempt, Proof: r.Proof[:]}
	for _, c := range r.Commitments {
		doc.Commitments = append(doc.Commitments, bytes.Clone(c[:]))
	}
	return k.n.append(ctx, doc)
}

// info is the HPKE context of one sub-share.
func (k keygen) info(from, to uint16) []byte {
	d := dsse.Sum("keyturn/dkg-share/v1", k.charter[:], fmt.Append(nil, k.attempt), fmt.Append(nil, from), fmt.Append(nil, to))
	return d[:]
}

func (k keygen) deal(ctx context.Context, c *signoff.Charter) error {
	d, err := k.dealing(ctx)
	if err != nil {
		return err
	}
	defer d.Wipe()
	doc := &signoff.Dealing{Charter: k.charter, Notary: k.n.id, Attempt: k.attempt}
	for i := range c.Notaries {
		to := uint16(i + 1)
		sealed, err := k.seal(d, c.Notaries[i].Exchange, to)
		if err != nil {
			return err
		}
		doc.Shares = append(doc.Shares, sealed)
	}
	return k.n.append(ctx, doc)
}

func (k keygen) seal(d *frost.Dealing, to signoff.PublicKey, index uint16) ([]byte, error) {
	share, err := d.Share(index)
	if err != nil {
		return nil, err
	}
	defer clear(share[:])
	pub, err := to.ECDH()
	if err != nil {
		return nil, err
	}
	recipient, err := hpke.NewDHKEMPublicKey(pub)
	if err != nil {
		return nil, err
	}
	return hpke.Seal(recipient, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), k.info(k.n.index, index), share[:])
}

// finish opens and verifies what was dealt, keeps the share under the token's
// seal, and only then agrees. A sub-share that does not open or verify is
// accused instead.
func (k keygen) finish(ctx context.Context, c *signoff.Charter, transcript Digest, round1s []frost.Round1, received [][]byte) error {
	doc := &signoff.Transcript{Charter: k.charter, Notary: k.n.id, Attempt: k.attempt, Digest: transcript}
	group, err := k.ceremony.Group(round1s)
	if err != nil {
		return err
	}
	doc.Group = group.PublicKey[:]
	private, err := hsm.HPKEPrivate(ctx, k.n.cfg.Exchange)
	if err != nil {
		return err
	}
	subshares := make([][32]byte, len(received))
	defer clear(subshares)
	open := func(from uint16) ([]byte, error) {
		return hpke.Open(private, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), k.info(from, k.n.index), received[from-1])
	}
	// What this notary dealt itself must open, before and after: otherwise
	// the own token is at fault and nobody is accused.
	if _, err := open(k.n.index); err != nil {
		return err
	}
	for i := range received {
		from := uint16(i + 1)
		share, err := open(from)
		if err != nil || len(share) != 32 || k.ceremony.VerifySubshare(from, k.n.index, round1s[i], [32]byte(share)) != nil {
			doc.Accused = append(doc.Accused, c.Notaries[i].ID())
			continue
		}
		subshares[i] = [32]byte(share)
		clear(share)
	}
	if _, err := open(k.n.index); err != nil {
		return err
	}
	if len(doc.Accused) == 0 {
		if err := k.keep(ctx, round1s, subshares); err != nil {
			return err
		}
	}
	return k.n.append(ctx, doc)
}

func (k keygen) keep(ctx context.Context, round1s []frost.Round1, subshares [][32]byte) error {
	share, _, err := k.ceremony.Finish(k.n.index, round1s, subshares)
	if err != nil {
		return err
	}
	defer share.Wipe()
	secret, err := share.Marshal()
	if err != nil {
		return err
	}
	defer clear(secret)
	return k.n.saveSealed(ctx, shareFile, secret)
}

// withShare unwraps this notary's share of the group key for one use.
func (n *Notary) withShare(ctx context.Context, group *frost.Group, use func(*frost.KeyShare) error) error {
	unsealed, err := n.loadSealed(ctx, shareFile)
	if err != nil {
		return err
	}
	if unsealed == nil {
		return errors.New("notary: the group key share is not on this host; the notary must be replaced")
	}
	defer clear(unsealed)
	share, err := frost.UnmarshalKeyShare(group, unsealed)
	if err != nil {
		return err
	}
	defer secret.Scrub()
	defer share.Wipe()
	return use(share)
}
