package authority

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/keyturn/keyturn/signoff"
)

// A prepared entry is parsed, and its signature is checked as far as that
// needs nothing but keys that never change. Preparing changes no outcome: it
// is the part of the work that can be done on all cores, ahead of the fold.
type prepared struct {
	line    []byte
	doc     *signoff.Signed
	id      Digest // the document's
	err     error  // why the line is no document
	checked bool   // the signature was checked against the key that the hint names
	sigErr  error  // and this came of it
}

// ApplyAll folds entries one after the other, like Apply, and shows each to
// observe. An error stops it after the last entry shown.
func (a *Authority) ApplyAll(lines [][]byte, blobs Blobs, observe func(Outcome, []byte)) error {
	entries := make([]prepared, len(lines))
	ready := make([]chan struct{}, len(lines))
	for i := range ready {
		ready[i] = make(chan struct{})
	}
	// The fold replaces this map and never writes to it.
	signers := a.state.signers
	var next, stop atomic.Int64
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(1)
	for range min(runtime.GOMAXPROCS(0), len(lines)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(lines)) && stop.Load() == 0; i = next.Add(1) - 1 {
				entries[i] = prepare(lines[i])
				entries[i].check(signers)
				close(ready[i])
			}
		})
	}
	for i := range lines {
		<-ready[i]
		out, err := a.apply(entries[i], blobs)
		if err != nil {
			return err
		}
		observe(out, lines[i])
		entries[i] = prepared{}
	}
	return nil
}

func prepare(line []byte) prepared {
	doc, err := signoff.ReadLine(line)
	if err != nil {
		return prepared{line: line, err: err}
	}
	return prepared{line: line, doc: doc, id: doc.Digest()}
}

// check verifies with the key that the hint names, if it is that of one of the
// charter's people or notaries, or of their group.
func (p *prepared) check(signers map[Digest]signer) {
	if p.err != nil {
		return
	}
	if g, ok := signers[p.doc.Hint]; ok {
		p.checked, p.sigErr = true, p.doc.VerifyKnown(p.doc.Hint, g.public)
	}
}

// bySigner wants the document signed by the person, notary or group with this
// fingerprint.
func (p prepared) bySigner(id Digest, g signer) error {
	if p.checked && p.doc.Hint == id {
		return p.sigErr
	}
	return p.doc.VerifyKnown(id, g.public)
}
