package authority

import (
	"fmt"
	"sync"

	"github.com/keyturn/keyturn/attest"
)

// An appraiser judges evidence at one state, from many goroutines if need be.
type appraiser struct {
	a     *Authority
	refs  *attest.References
	blobs Blobs
}

func (a *Authority) appraiser(blobs Blobs) *appraiser {
	return &appraiser{a, attest.NewReferences(a.state.consulted, a.state.Time), blobs}
}

// A Weighed is what a piece of evidence would come to in the next epoch.
type Weighed struct {
	Node   Digest
	Proved bool // the node's TPM made it, for this epoch
	Passed bool
}

// Weigh judges pieces of evidence as the next epoch would, for a notary that
// chooses what to put forward. What cannot be read, and what names a log that is
// not to be had, counts as nobody's: whoever meant it sends again.
func (a *Authority) Weigh(pieces [][]byte, blobs Blobs) []Weighed {
	e := a.appraiser(blobs)
	out := make([]Weighed, len(pieces))
	parallel(len(pieces), func(i int) error {
		p, err := ParsePresented(pieces[i])
		if err != nil {
			return nil
		}
		if n, v, err := e.forEpoch(p); err == nil && n != nil {
			out[i] = Weighed{n.ID, v.Proved(), v.Passed()}
		}
		return nil
	})
	return out
}

// Answers reports whether the checkpoint is one that evidence for the node's next
// epoch may answer. It looks at no signature.
func (a *Authority) Answers(p *Presented) bool {
	n, ok := a.state.Nodes[Digest(p.Evidence.Node)]
	if !ok || n.Retired || p.Seen.Size < a.state.epochFloor(n) {
		return false
	}
	root, ok := a.RootAt(p.Seen.Size)
	return ok && root == p.Seen.Root
}

// forEpoch appraises evidence for the next epoch.
func (e *appraiser) forEpoch(p *Presented) (*Node, attest.Verdict, error) {
	n, ok := e.a.state.Nodes[Digest(p.Evidence.Node)]
	if !ok || n.Retired {
		return nil, attest.Verdict{}, nil
	}
	v, err := e.appraise(n, p, attest.DomainEpoch, Digest{}, e.a.state.epochFloor(n))
	return n, v, err
}

// epochFloor is the size of the log that evidence for the next epoch must at
// least have seen: past the last epoch, the node's own enrolment, its last claim,
// which brought a newer quote, and the last change of reference sets, which may ask
// for more. So a node has one answer to give, and whoever proposes the epoch cannot
// choose among several.
func (s *State) epochFloor(n *Node) uint64 {
	floor := max(n.Index, n.Claimed, s.referenced) + 1
	if s.Epoch != nil {
		floor = max(floor, s.Epoch.Index+1)
	}
	return floor
}

// EvidenceFloor is the size of the log that evidence of the node must at least
// have seen to count in the next epoch.
func (s *State) EvidenceFloor(node Digest) (uint64, bool) {
	n, ok := s.Nodes[node]
	if !ok {
		return 0, false
	}
	return s.epochFloor(n), true
}

// appraise judges one piece of evidence whose nonce is the log's root at a size
// of at least floor. Logs are looked up for evidence alone that is the node's own:
// nobody else can make the fold ask for a blob.
func (e *appraiser) appraise(n *Node, p *Presented, domain string, request Digest, floor uint64) (attest.Verdict, error) {
	fail := func(format string, args ...any) (attest.Verdict, error) {
		return attest.Verdict{Node: attest.Digest(n.ID), Status: attest.StatusFail, Reason: fmt.Sprintf(format, args...), Remedy: "let the agent answer the newest checkpoint"}, nil
	}
	s := e.a.state
	root, ok := e.a.RootAt(p.Seen.Size)
	if !ok || root != p.Seen.Root {
		return fail("the evidence answers a checkpoint that is not of this log (size %d)", p.Seen.Size)
	}
	if p.Seen.Size < floor {
		return fail("the evidence answers an old checkpoint of size %d, wanted %d or newer", p.Seen.Size, floor)
	}
	exp := attest.Expectation{
		Domain: domain, Nonce: EvidenceNonce(s.ID, root), Request: attest.Digest(request),
		NeedsFresh: domain == attest.DomainClaim, Now: s.Time, Previous: s.past(n),
	}
	v := attest.Verify(&p.Evidence, n.Keys, exp)
	if !v.Proved() {
		return v, nil
	}
	logs, err := e.logs(&p.Evidence)
	if err != nil {
		return v, err
	}
	return v.Judge(&p.Evidence, logs, e.refs, exp), nil
}

// logs looks up what the evidence names, and of the kernel's list only what a
// reference set asks for.
func (e *appraiser) logs(ev *attest.Evidence) (attest.Logs, error) {
	boot, err := e.a.bootLogs.get(Digest(ev.EventLog), e.blobs)
	if err != nil {
		return attest.Logs{}, err
	}
	logs := attest.Logs{Boot: boot}
	if files, _ := e.refs.WantIMA(nil); files && !ev.IMA.IsZero() {
		logs.IMA, err = fetch(e.blobs, Digest(ev.IMA))
	}
	return logs, err
}

// bootLogs keeps event logs that were replayed: a fleet has few distinct ones. It
// changes no verdict, only how often a log is read. Its methods may be called
// from many goroutines.
type bootLogs struct {
	mu    sync.Mutex
	known map[Digest]*attest.BootLog
	bytes int // of the logs themselves
}

// maxBootLogs bounds the bytes of logs kept, which take about twice as much
// replayed: 1,900 distinct logs of 34 kB.
const maxBootLogs = 64 << 20

func (b *bootLogs) get(d Digest, blobs Blobs) (*attest.BootLog, error) {
	b.mu.Lock()
	log, ok := b.known[d]
	b.mu.Unlock()
	if ok {
		return log, nil
	}
	data, err := fetch(blobs, d)
	if err != nil {
		return nil, err
	}
	log = attest.ReadBootLog(data)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bytes += len(data); b.known == nil || b.bytes > maxBootLogs {
		b.known, b.bytes = map[Digest]*attest.BootLog{}, len(data)
	}
	b.known[d] = log
	return log, nil
}
