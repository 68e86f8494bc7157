package authority

import (
	"errors"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// ErrRecall means that what an earlier fold kept is not of this log: fold again
// without it.
var ErrRecall = errors.New("what was kept of an earlier fold is not of this log")

const keptVersion = "keyturn appraised 1"

// kept is what a fold concluded from evidence of nodes, up to a size of the log.
// It holds no more than that fold's own verdicts, and nothing that is secret.
type kept struct {
	Version string    `json:"version"`
	Charter Digest    `json:"charter"`
	Size    uint64    `json:"size"`
	State   Digest    `json:"state"`
	Void    []uint64  `json:"void"`   // epochs and claims without effect, ascending
	Leases  []Lease   `json:"leases"` // of the epoch in force
	Past    []claimed `json:"past"`   // ascending by node
}

// A claimed is what a node's last claim proved.
type claimed struct {
	Node Digest      `json:"node"`
	Past attest.Past `json:"past"`
}

// Keep writes down what the fold concluded from evidence so far, for [Authority.Recall].
func (a *Authority) Keep() ([]byte, error) {
	if a.witnessed || a.Recalling() {
		return nil, errors.New("authority: a fold that appraised nothing has nothing to keep")
	}
	k := kept{Version: keptVersion, Charter: a.state.ID, Size: a.Size(), State: a.digest, Void: a.unheeded}
	if a.state.Epoch != nil {
		k.Leases = a.state.Epoch.Leases
	}
	for _, n := range a.state.Nodes {
		if n.Claimed > 0 {
			k.Past = append(k.Past, claimed{n.ID, n.Past})
		}
	}
	slices.SortFunc(k.Past, func(x, y claimed) int { return compareDigests(x.Node, y.Node) })
	return dsse.Encode(k)
}

// Recall has an empty fold take the verdicts on evidence from what one of the
// caller's own folds kept: it reads no evidence up to there, and all after it. The
// log decides all else. Apply answers [ErrRecall] at the entry where the log turns
// out to be another one. Until there the fold says nothing that was not kept: ask
// Recalling.
func (a *Authority) Recall(b []byte) error {
	var k kept
	if err := dsse.Decode(b, &k); err != nil {
		return fmt.Errorf("authority: read what was kept: %w", err)
	}
	switch {
	case a.Size() > 0 || a.witnessed:
		return errors.New("authority: a fold recalls before its first entry")
	case k.Version != keptVersion:
		return fmt.Errorf("authority: what was kept is of version %.40q, this program reads %q", k.Version, keptVersion)
	case k.Charter != a.state.ID || k.Size == 0:
		return fmt.Errorf("authority: what was kept is of charter %s at size %d: %w", k.Charter, k.Size, ErrRecall)
	}
	a.recalled = &k
	void := make(map[uint64]bool, len(k.Void))
	for _, i := range k.Void {
		void[i] = true
	}
	a.Doubt(void)
	return nil
}

// Recalling reports whether the fold has not come to the end of what was kept.
func (a *Authority) Recalling() bool { return a.recalled != nil }

// Recalled is the number of the epoch in force at the end of what was recalled, 0 if
// nothing was.
func (a *Authority) Recalled() uint64 { return a.took }

// takesWord reports whether verdicts on evidence come from elsewhere.
func (a *Authority) takesWord() bool { return a.witnessed || a.Recalling() }

// takeUp ends the recalling at its last entry, if it is of this log.
func (a *Authority) takeUp() error {
	k := a.recalled
	if k == nil || a.Size() < k.Size {
		return nil
	}
	if a.digest != k.State {
		return fmt.Errorf("authority: at size %d the log gives state %s, what was kept is of %s: %w", k.Size, a.digest, k.State, ErrRecall)
	}
	if err := a.state.recallLeases(k.Leases); err != nil {
		return err
	}
	if err := a.state.recallPast(k.Past); err != nil {
		return err
	}
	if a.state.Epoch != nil {
		a.took = a.state.Epoch.Number
	}
	a.recalled, a.void = nil, nil
	return nil
}

// recallPast puts back what nodes' last claims proved, of each that claimed: one
// that is left out could go back behind its own clock.
func (s *State) recallPast(all []claimed) error {
	past := make(map[Digest]attest.Past, len(all))
	for _, c := range all {
		past[c.Node] = c.Past
	}
	for id, n := range s.Nodes {
		if n.Claimed == 0 {
			continue
		}
		p, ok := past[id]
		if !ok {
			return fmt.Errorf("authority: nothing was kept of the last claim of node %s: %w", id, ErrRecall)
		}
		again := *n
		again.Past = p
		s.Nodes[id] = &again
		delete(past, id)
	}
	if len(past) > 0 {
		return fmt.Errorf("authority: claims of %d nodes were kept that claimed nothing: %w", len(past), ErrRecall)
	}
	return nil
}

// recallLeases puts the leases of the epoch in force back. Its root, which is in
// the log, says that they are these.
func (s *State) recallLeases(leases []Lease) error {
	if s.Epoch == nil {
		if len(leases) > 0 {
			return fmt.Errorf("authority: %d leases were kept and no epoch is in force: %w", len(leases), ErrRecall)
		}
		return nil
	}
	root, err := LeaseRoot(leases)
	if err != nil {
		return errors.Join(err, ErrRecall)
	}
	if root != s.Epoch.Root {
		return fmt.Errorf("authority: the leases kept have root %s, the epoch in force %s: %w", root, s.Epoch.Root, ErrRecall)
	}
	if !slices.IsSortedFunc(leases, func(x, y Lease) int { return compareDigests(x.Node, y.Node) }) {
		return fmt.Errorf("authority: the leases kept are not in order: %w", ErrRecall)
	}
	s.Epoch = &Epoch{Number: s.Epoch.Number, Index: s.Epoch.Index, Time: s.Epoch.Time, Root: s.Epoch.Root, Proposers: s.Epoch.Proposers, Leases: leases}
	return nil
}

// heed remembers which epochs and claims had no effect.
func (a *Authority) heed(out Outcome) {
	if out.Void != nil && (out.Kind == signoff.KindEpoch || out.Kind == signoff.KindClaim) {
		a.unheeded = append(a.unheeded, out.Index)
	}
}

// Void lists the epochs and claims that had no effect, ascending. The caller must
// not change it.
func (a *Authority) Void() []uint64 { return a.unheeded }
