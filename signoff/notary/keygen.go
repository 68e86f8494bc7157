package notary

import (
	"bytes"
	"context"
	"crypto/hpke"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/frost"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// Sealed files are named by what they belong to, so that none overwrites
// another: an attempt may fail that this notary has already agreed to.
const (
	sharePrefix   = "share-"
	dealingPrefix = "dealing-"
	sealedSuffix  = ".sealed"
)

func shareFile(g *frost.Group) string {
	d := g.Digest()
	return fmt.Sprintf("%s%x%s", sharePrefix, d[:16], sealedSuffix)
}

func dealingFile(c *frost.Ceremony) string {
	d := c.Digest()
	return fmt.Sprintf("%s%x%s", dealingPrefix, d[:16], sealedSuffix)
}

// sealAD binds a sealed file to the charter, the notary and its name, so that
// a share file copied to another host or place does not open.
func (n *Notary) sealAD(name string) []byte {
	d := dsse.Sum("keyturn/notary-seal/v1", n.cfg.Charter[:], n.id[:], []byte(name))
	return d[:]
}

// saveSealed seals a secret and sees it open before it is relied on: a notary that
// agreed to a share that it cannot open is lost, and all of one maker at once.
func (n *Notary) saveSealed(ctx context.Context, name string, secret []byte) error {
	if err := n.knowsSealer(ctx); err != nil {
		return fmt.Errorf("notary: seal %s: %w", name, err)
	}
	sealed, err := n.cfg.Sealer.Seal(ctx, secret, n.sealAD(name))
	if err != nil {
		return fmt.Errorf("notary: seal %s: %w", name, err)
	}
	opened, err := n.cfg.Sealer.Unseal(ctx, sealed, n.sealAD(name))
	defer clear(opened)
	if err != nil || subtle.ConstantTimeCompare(opened, secret) != 1 {
		return fmt.Errorf("notary: seal %s: %s does not open what it sealed: %w", name, n.cfg.Sealer.Info().URI, errors.Join(hsm.ErrWrongIdentity, err))
	}
	return n.store.write(name, sealed)
}

// knowsSealer refuses a sealing key that opens nothing of what the directory has:
// it has no public half to pin, and another token may answer to its name.
func (n *Notary) knowsSealer(ctx context.Context) error {
	files, err := os.ReadDir(n.store.dir)
	if err != nil {
		return err
	}
	var reasons []error
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), sealedSuffix) {
			continue
		}
		opened, err := n.loadSealed(ctx, f.Name())
		clear(opened)
		if err == nil {
			return nil
		}
		reasons = append(reasons, err)
	}
	if len(reasons) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s opens none of the files that it sealed: %w", hsm.ErrWrongIdentity, n.cfg.Sealer.Info().URI, errors.Join(reasons...))
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

// A longWait is what this notary has been waiting for, so that its journal says so
// when that takes long.
type longWait struct {
	what  string
	since time.Time
	told  time.Duration // after since; 0: not yet
}

// due reports whether to say now that this is waited for: after a minute, and
// then each time that it has taken twice as long.
func (w *longWait) due(what string, now time.Time) bool {
	if what == "" || what != w.what {
		*w = longWait{what: what, since: now}
		return false
	}
	age := now.Sub(w.since)
	if age < max(time.Minute, 2*w.told) {
		return false
	}
	w.told = age
	return true
}

// tellWaiting says in the journal which others the making of shares waits for.
func (n *Notary) tellWaiting(l look) {
	kind, from := l.state.Awaited()
	var names []string
	for _, y := range from {
		if y.ID() != n.id {
			names = append(names, y.Name)
		}
	}
	what := ""
	if len(names) > 0 {
		what = fmt.Sprint(l.state.Keygen.Term, l.state.Keygen.Attempt, kind, names)
	}
	if n.waiting.due(what, l.now) {
		n.cfg.Log.Warn("the making of shares waits for other notaries", "term", l.state.Keygen.Term, "attempt", l.state.Keygen.Attempt, "for", kind, "of", names)
	}
}

// planKeygen takes the next step of the making of shares that the log lacks.
func (n *Notary) planKeygen(l look) (func(context.Context) error, error) {
	n.tellWaiting(l)
	s, k := l.state, l.state.Keygen
	if k.Done || len(s.Dealers()) == 0 || k.Term > 1 && !l.isFinal(s.Documents[k.Warrant]) {
		return nil, nil
	}
	ceremony, err := s.Ceremony()
	if err != nil {
		return nil, err
	}
	run := keygen{n: n, ceremony: ceremony, old: s.Group, self: l.index, charter: s.ID, term: k.Term, attempt: k.Attempt}
	dealers := s.Dealers()
	_, me, member := k.Members.Find(n.id)
	waits := slices.ContainsFunc(k.Disputes, func(x authority.Dispute) bool { return x.Accuser == n.id && x.Open() })
	accused := slices.IndexFunc(k.Disputes, func(x authority.Dispute) bool { return x.Dealer == n.id && x.Open() && l.isFinal(x.Index) })
	switch {
	case s.Dealing(n.id) && k.Commitments[n.id] == nil:
		return run.commit, nil
	case s.Dealing(n.id) && len(k.Commitments) == len(dealers) && k.Dealings[n.id] == nil:
		return func(ctx context.Context) error { return run.deal(ctx, k.Members) }, nil
	case accused >= 0:
		accuser := k.Disputes[accused].Accuser
		_, to, _ := k.Members.Find(accuser)
		return func(ctx context.Context) error {
			return run.answer(ctx, accuser, to, k.Digest(s.ID), k.Commitments[n.id])
		}, nil
	case member && len(k.Dealings) == len(dealers) && k.Transcripts[n.id] == nil && !waits:
		round1s, _ := s.Round1s()
		received := make([]subshare, len(dealers))
		for i, y := range dealers {
			received[i].sealed = k.Dealings[y.ID()].Shares[me-1]
			for _, x := range k.Disputes {
				if x.Accuser == n.id && x.Dealer == y.ID() {
					received[i].published = x.Share[:]
				}
			}
		}
		run.self = me
		digest := k.Digest(s.ID)
		return func(ctx context.Context) error { return run.finish(ctx, dealers, digest, round1s, received) }, nil
	}
	return nil, nil
}

// A subshare is what one dealer dealt this notary: sealed, or, once it had to
// answer for that, published.
type subshare struct{ sealed, published []byte }

// keygen is one attempt, as this notary takes part in it.
type keygen struct {
	n        *Notary
	ceremony *frost.Ceremony
	old      *frost.Group // reshare only
	self     uint16       // index among those who deal, or, for finish, among those who get shares
	charter  Digest
	term     uint32
	attempt  uint32
}

// dealing returns this notary's polynomial for the attempt. It is sealed on
// disk before anything made from it is said; a notary killed in between says
// the same again.
func (k keygen) dealing(ctx context.Context) (*frost.Dealing, error) {
	d, err := k.kept(ctx)
	if err != nil {
		return nil, err
	}
	if d != nil {
		// It may be of a write that failed in the end, and gone if power fails.
		if err := k.n.store.sync(); err != nil {
			d.Wipe()
			return nil, err
		}
		return d, nil
	}
	if d, err = k.fresh(ctx); err != nil {
		return nil, err
	}
	secret, err := d.MarshalSecret()
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	return d, k.n.saveSealed(ctx, dealingFile(k.ceremony), secret)
}

// kept is the polynomial that is on disk; nil if none is.
func (k keygen) kept(ctx context.Context) (*frost.Dealing, error) {
	secret, err := k.n.loadSealed(ctx, dealingFile(k.ceremony))
	if err != nil || secret == nil {
		return nil, err
	}
	defer clear(secret)
	return k.ceremony.UnmarshalDealing(secret)
}

// fresh makes the polynomial: in a reshare, of this notary's share.
func (k keygen) fresh(ctx context.Context) (d *frost.Dealing, err error) {
	if k.term == 1 {
		return k.ceremony.Deal(rand.Reader, k.self)
	}
	err = k.n.withShare(ctx, k.old, func(share *frost.KeyShare) error {
		d, err = k.ceremony.Redeal(rand.Reader, share)
		return err
	})
	return d, err
}

func (k keygen) commit(ctx context.Context) error {
	d, err := k.dealing(ctx)
	if err != nil {
		return err
	}
	defer d.Wipe()
	r := d.Round1()
	doc := &signoff.Commitment{Charter: k.charter, Notary: k.n.id, Term: k.term, Attempt: k.attempt, Proof: r.Proof[:]}
	for _, c := range r.Commitments {
		doc.Commitments = append(doc.Commitments, bytes.Clone(c[:]))
	}
	return k.n.append(ctx, doc)
}

// info is the HPKE context of one sub-share. The ceremony's digest stands for
// charter, term, attempt, dealers and numbers.
func (k keygen) info(from, to uint16) []byte {
	c := k.ceremony.Digest()
	d := dsse.Sum("keyturn/dkg-share/v1", k.charter[:], c[:], fmt.Append(nil, from), fmt.Append(nil, to))
	return d[:]
}

func (k keygen) deal(ctx context.Context, to signoff.Council) error {
	d, err := k.dealing(ctx)
	if err != nil {
		return err
	}
	defer d.Wipe()
	doc := &signoff.Dealing{Charter: k.charter, Notary: k.n.id, Term: k.term, Attempt: k.attempt}
	for i, y := range to.Notaries {
		sealed, err := k.seal(d, y.Exchange, uint16(i+1))
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
	return hpke.Seal(recipient, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), k.info(k.self, index), share[:])
}

// answer publishes the sub-share of a member that accused this notary, if it is
// that of the commitment in the log: any other would be taken for a proof.
func (k keygen) answer(ctx context.Context, accuser Digest, to uint16, transcript Digest, committed *signoff.Commitment) error {
	d, err := k.kept(ctx)
	if err != nil {
		return err
	}
	if d == nil {
		return fmt.Errorf("notary: answer %s: the dealing is not on this host any more; this attempt will fail", accuser)
	}
	defer d.Wipe()
	if r := d.Round1(); !bytes.Equal(r.Proof[:], committed.Proof) {
		return fmt.Errorf("notary: answer %s: the dealing on this host is not the one that was committed to; this attempt will fail", accuser)
	}
	share, err := d.Share(to)
	if err != nil {
		return err
	}
	return k.n.append(ctx, &signoff.DealerAnswer{Charter: k.charter, Notary: k.n.id, Term: k.term, Attempt: k.attempt,
		Digest: transcript, Accuser: accuser, Share: share[:]})
}

// finish opens and verifies what was dealt, keeps the share under the token's
// seal, and only then agrees. A sub-share that does not open or verify is
// accused instead.
func (k keygen) finish(ctx context.Context, dealers []signoff.Notary, transcript Digest, round1s []frost.Round1, received []subshare) error {
	doc := &signoff.Transcript{Charter: k.charter, Notary: k.n.id, Term: k.term, Attempt: k.attempt, Digest: transcript}
	group, err := k.ceremony.Group(round1s)
	if err != nil {
		return err
	}
	doc.Group = group.PublicKey[:]
	private, err := hsm.HPKEPrivate(ctx, k.n.cfg.Exchange)
	if err != nil {
		return err
	}
	// What is sealed here to the own key must open, before and after:
	// otherwise the own token is at fault and nobody is accused.
	if err := k.n.selfTest(private); err != nil {
		return err
	}
	subshares := make([][32]byte, len(received))
	defer clear(subshares)
	for i, from := range k.ceremony.Dealers() {
		share, err := received[i].published, error(nil)
		if share == nil {
			share, err = hpke.Open(private, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), k.info(from, k.self), received[i].sealed)
		}
		if err != nil || len(share) != 32 || k.ceremony.VerifySubshare(from, k.self, round1s[i], [32]byte(share)) != nil {
			doc.Accused = append(doc.Accused, dealers[i].ID())
			continue
		}
		subshares[i] = [32]byte(share)
		clear(share)
	}
	if err := k.n.selfTest(private); err != nil {
		return err
	}
	if len(doc.Accused) == 0 {
		if err := k.keep(ctx, round1s, subshares); err != nil {
			return err
		}
	}
	return k.n.append(ctx, doc)
}

// selfTest reports whether the own key opens what is sealed to it.
func (n *Notary) selfTest(private hpke.PrivateKey) error {
	sealed, err := hpke.Seal(private.PublicKey(), hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), nil, n.cfg.Charter[:])
	if err != nil {
		return err
	}
	if got, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), nil, sealed); err != nil || !bytes.Equal(got, n.cfg.Charter[:]) {
		return fmt.Errorf("notary: the exchange key does not open what is sealed to it: %w", err)
	}
	return nil
}

func (k keygen) keep(ctx context.Context, round1s []frost.Round1, subshares [][32]byte) error {
	share, group, err := k.ceremony.Finish(k.self, round1s, subshares)
	if err != nil {
		return err
	}
	defer share.Wipe()
	secret, err := share.Marshal()
	if err != nil {
		return err
	}
	defer clear(secret)
	return k.n.saveSealed(ctx, shareFile(group), secret)
}

// withShare unwraps this notary's share of the group key for one use.
func (n *Notary) withShare(ctx context.Context, group *frost.Group, use func(*frost.KeyShare) error) error {
	if err := n.store.hold(ctx); err != nil {
		return err
	}
	unsealed, err := n.loadSealed(ctx, shareFile(group))
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
