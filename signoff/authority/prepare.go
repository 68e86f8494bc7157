package authority

import (
	"runtime"
	"sync"

	"github.com/keyturn/keyturn/signoff"
)

// A Prepared is an entry that was parsed and whose signature was checked, as
// far as that needs nothing but the charter. Preparing changes no outcome: it
// is the part of the work that can be done on all cores, in any order.
type Prepared struct {
	line    []byte
	doc     *signoff.Signed
	err     error // why the line is no document
	checked bool  // the signature was checked against the person's or notary's key that the hint names
	sigErr  error // and this came of it
}

// Prepare prepares entries that follow the charter. Nothing must be applied
// while it runs.
func (a *Authority) Prepare(lines [][]byte) []Prepared {
	out := make([]Prepared, len(lines))
	workers := min(runtime.GOMAXPROCS(0), len(lines))
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(lines); i += workers {
				out[i] = a.prepare(lines[i])
				if p := &out[i]; p.err == nil {
					p.checked, p.sigErr = a.state.checkSignature(p.doc)
				}
			}
		})
	}
	wg.Wait()
	return out
}

func (a *Authority) prepare(line []byte) Prepared {
	doc, err := signoff.ReadLine(line)
	return Prepared{line: line, doc: doc, err: err}
}

// checkSignature verifies with the key that the hint names, if it is one of
// the charter's people or notaries or their group's; these never change.
func (s *State) checkSignature(doc *signoff.Signed) (bool, error) {
	g, ok := s.signers[doc.Hint]
	if !ok {
		return false, nil
	}
	return true, doc.VerifyKnown(doc.Hint, g.public)
}

// bySigner wants the document signed by the person or notary with this
// fingerprint.
func (p Prepared) bySigner(id Digest, g signer) error {
	if p.checked && p.doc.Hint == id {
		return p.sigErr
	}
	return p.doc.VerifyKnown(id, g.public)
}
