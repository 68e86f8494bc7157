package signoff

import (
	"fmt"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// The shares of the group key are made by documents in the log. In the first
// term's key generation every notary deals, in a later term's reshare a quorum
// of the notaries in office does. Each dealer publishes a Commitment, then a
// Dealing; every member of the new council agrees with a Transcript. It is done
// once all of them name the same bytes. A member that got a wrong sub-share
// accuses its dealer first, who publishes that one sub-share in a DealerAnswer. An
// attempt that fails is started again under the next number.

// A Commitment is a dealer's first round: commitments to its polynomial and
// the proof that it knows the constant term (hsm/frost Round1).
type Commitment struct {
	Charter     Digest   `json:"charter"`
	Notary      Digest   `json:"notary"`
	Term        uint32   `json:"term"`        // whose shares are made, from 1
	Attempt     uint32   `json:"attempt"`     // from 1
	Commitments [][]byte `json:"commitments"` // q points, 32 bytes each
	Proof       []byte   `json:"proof"`       // 64 bytes
}

// Kind is KindCommitment.
func (c *Commitment) Kind() Kind { return KindCommitment }

// Cluster is the charter the commitment belongs to.
func (c *Commitment) Cluster() Digest { return c.Charter }

func (c *Commitment) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("charter", c.Charter)}
}

// Validate checks the lengths.
func (c *Commitment) Validate() error {
	if c.Notary.IsZero() || c.Term == 0 || c.Attempt == 0 {
		return missing("notary, term or attempt")
	}
	if n := len(c.Commitments); n < 2 || n > MaxNotaries {
		return fmt.Errorf("%d commitments, want 2 to %d", n, MaxNotaries)
	}
	for _, p := range c.Commitments {
		if len(p) != 32 {
			return fmt.Errorf("a commitment of %d bytes, want 32", len(p))
		}
	}
	if len(c.Proof) != 64 {
		return fmt.Errorf("a proof of %d bytes, want 64", len(c.Proof))
	}
	return nil
}

// A Dealing is a dealer's second round: one sub-share for each notary of the
// term, in its council's order, HPKE-sealed to its exchange key. The dealer's
// own place is filled too, so that a notary killed in between needs nothing but
// its token and the log.
type Dealing struct {
	Charter Digest   `json:"charter"`
	Notary  Digest   `json:"notary"`
	Term    uint32   `json:"term"`
	Attempt uint32   `json:"attempt"`
	Shares  [][]byte `json:"shares"`
}

// Kind is KindDealing.
func (d *Dealing) Kind() Kind { return KindDealing }

// Cluster is the charter the dealing belongs to.
func (d *Dealing) Cluster() Digest { return d.Charter }

func (d *Dealing) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("charter", d.Charter)}
}

// Validate checks the lengths.
func (d *Dealing) Validate() error {
	if d.Notary.IsZero() || d.Term == 0 || d.Attempt == 0 {
		return missing("notary, term or attempt")
	}
	if n := len(d.Shares); n < 4 || n > MaxNotaries {
		return fmt.Errorf("%d shares, want 4 to %d", n, MaxNotaries)
	}
	for _, s := range d.Shares {
		if n := len(s); n == 0 || n > MaxSealedShare {
			return fmt.Errorf("a sealed share of %d bytes, want 1 to %d", n, MaxSealedShare)
		}
	}
	return nil
}

// A Transcript is a notary's word on an attempt. With Accused empty it is its
// last, and says: every sub-share I received verified, and Digest and Group are
// what I derive. Otherwise it names the dealers whose sub-share did not verify,
// each of which has to answer.
type Transcript struct {
	Charter Digest   `json:"charter"`
	Notary  Digest   `json:"notary"`
	Term    uint32   `json:"term"`
	Attempt uint32   `json:"attempt"`
	Digest  Digest   `json:"digest"` // over all commitments and dealings
	Group   []byte   `json:"group"`  // Ed25519 public key, 32 bytes
	Accused []Digest `json:"accused,omitempty"`
}

// Kind is KindTranscript.
func (t *Transcript) Kind() Kind { return KindTranscript }

// Cluster is the charter the transcript belongs to.
func (t *Transcript) Cluster() Digest { return t.Charter }

func (t *Transcript) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("transcript", t.Digest)}
}

// Validate checks the lengths.
func (t *Transcript) Validate() error {
	if t.Notary.IsZero() || t.Term == 0 || t.Attempt == 0 || t.Digest.IsZero() {
		return missing("notary, term, attempt or digest")
	}
	if len(t.Group) != 32 {
		return fmt.Errorf("a group key of %d bytes, want 32", len(t.Group))
	}
	if len(t.Accused) > 0 {
		return checkDigests("accused", t.Accused, MaxNotaries)
	}
	return nil
}

// A DealerAnswer is an accused dealer's sub-share for its accuser, in clear. Whoever
// reads the log judges it by the dealer's Commitment. It gives nothing away: if
// the accuser lies, the liar had it; if not, the dealer's polynomial protects
// nobody.
type DealerAnswer struct {
	Charter Digest `json:"charter"`
	Notary  Digest `json:"notary"` // the dealer
	Term    uint32 `json:"term"`
	Attempt uint32 `json:"attempt"`
	Digest  Digest `json:"digest"` // over all commitments and dealings
	Accuser Digest `json:"accuser"`
	Share   []byte `json:"share"` // 32 bytes
}

// Kind is KindAnswer.
func (a *DealerAnswer) Kind() Kind { return KindAnswer }

// Cluster is the charter the answer belongs to.
func (a *DealerAnswer) Cluster() Digest { return a.Charter }

func (a *DealerAnswer) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("transcript", a.Digest), dsse.About("accuser", a.Accuser)}
}

// Validate checks the lengths.
func (a *DealerAnswer) Validate() error {
	if a.Notary.IsZero() || a.Term == 0 || a.Attempt == 0 || a.Digest.IsZero() || a.Accuser.IsZero() {
		return missing("notary, term, attempt, digest or accuser")
	}
	if len(a.Share) != 32 {
		return fmt.Errorf("a sub-share of %d bytes, want 32", len(a.Share))
	}
	return nil
}

// A Tick is one notary's clock. Ticks of one round name the round before;
// when q notaries' ticks of a round stand in the log, the fold's time becomes
// the later of what it was and their median.
type Tick struct {
	Charter Digest `json:"charter"`
	Notary  Digest `json:"notary"`
	Round   uint64 `json:"round"` // from 1
	Time    int64  `json:"time"`
}

// Kind is KindTick.
func (t *Tick) Kind() Kind { return KindTick }

// Cluster is the charter the tick belongs to.
func (t *Tick) Cluster() Digest { return t.Charter }

func (t *Tick) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("charter", t.Charter)}
}

// Validate refuses round or time zero.
func (t *Tick) Validate() error {
	if t.Notary.IsZero() || t.Round == 0 || t.Time <= 0 {
		return missing("notary, round or time")
	}
	return nil
}

// A Recovery replaces the log key after the log forked or stalled. Positions
// are q notaries' signed statements of the checkpoint each cosigned last; the
// log goes on from the longest of them.
type Recovery struct {
	Charter   Digest    `json:"charter"`
	Log       PublicKey `json:"log"`
	Base      Seen      `json:"base"`      // where the log goes on
	Positions []string  `json:"positions"` // bundle lines of Position documents
}

// Kind is KindRecovery.
func (r *Recovery) Kind() Kind { return KindRecovery }

// Cluster is the charter the recovery belongs to.
func (r *Recovery) Cluster() Digest { return r.Charter }

func (r *Recovery) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("checkpoint", r.Base.Root), dsse.About("log key", r.Log.Fingerprint())}
}

// Validate checks the key and the number of positions.
func (r *Recovery) Validate() error {
	if err := r.Log.check("log key", false); err != nil {
		return err
	}
	if _, err := r.Log.Ed25519(); err != nil {
		return err
	}
	if n := len(r.Positions); n == 0 || n > MaxNotaries {
		return fmt.Errorf("%d positions, want 1 to %d", n, MaxNotaries)
	}
	return r.Base.check()
}

// A Position is a notary's signed statement of the last checkpoint that it
// cosigned. It is exchanged between notaries and put into a Recovery; alone
// it is no log entry. Answer repeats the 16-byte nonce of a notary that
// restarted, or is the 32-byte fingerprint of a recovery's new log key, so that
// nobody who asks where a notary stands gets a word to recover with.
type Position struct {
	Charter Digest `json:"charter"`
	Notary  Digest `json:"notary"`
	Seen    Seen   `json:"seen,omitzero"` // zero: none yet
	Answer  []byte `json:"answer"`
}

// Kind is KindPosition.
func (p *Position) Kind() Kind { return KindPosition }

// Cluster is the charter the position belongs to.
func (p *Position) Cluster() Digest { return p.Charter }

func (p *Position) subjects() []dsse.Subject {
	return []dsse.Subject{dsse.About("charter", p.Charter)}
}

// Validate wants a notary, an answer of one of the two lengths, which keep a
// restart's question and a recovery's apart, and a whole checkpoint or none.
func (p *Position) Validate() error {
	if p.Notary.IsZero() {
		return missing("notary")
	}
	if n := len(p.Answer); n != 16 && n != 32 {
		return fmt.Errorf("an answer of %d bytes, want 16 for a restart or 32 for a recovery", n)
	}
	if p.Seen == (Seen{}) {
		return nil
	}
	return p.Seen.check()
}
