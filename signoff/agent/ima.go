package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
)

// imaTries is how often the kernel's list is read for one quote.
const imaTries = 10

// An imaList says which part of the kernel's measurement list goes with the
// next evidence.
type imaList struct {
	wanted bool // a reference set has rules for files
	from   uint64
	before *attest.Measured // proved in this boot, nil for nothing
}

// list leaves out what was allowed before, as long as the rules that allowed it
// are there. How much that is stands in the leaf of the epoch in force; it is of
// this boot if an epoch has answered this process. Otherwise, and after a refusal,
// all of it goes out.
func (p *proving) list(refs *attest.References, inForce *authority.Epoch) imaList {
	var l imaList
	if inForce != nil && p.epoch == inForce.Number && p.lease.Epoch > 0 && !p.no {
		l.before = p.leaf.Past.IMA
	}
	var onlyNew bool
	if l.wanted, onlyNew = refs.WantIMA(l.before); !onlyNew {
		l.before = nil
	}
	if l.before != nil {
		l.from = l.before.Offset
	}
	return l
}

// read returns the list from there on. A kernel without a list has none, which
// is the verdict's to refuse.
func (l imaList) read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("agent: measurement list: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(int64(l.from), io.SeekStart); err != nil {
		return nil, fmt.Errorf("agent: measurement list: %w", err)
	}
	part, err := io.ReadAll(io.LimitReader(f, api.MaxBlob+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("agent: measurement list: %w", err)
	case len(part) > api.MaxBlob:
		return nil, fmt.Errorf("agent: measurement list: more than %d bytes from byte %d on", api.MaxBlob, l.from)
	}
	return part, nil
}

// leads reports whether the part leads to what was quoted. An empty list is sent
// as it is.
func (l imaList) leads(part []byte, ev *attest.Evidence) bool {
	return len(part) == 0 && l.from == 0 || attest.LeadsTo(part, l.before, ev.PCRs)
}
