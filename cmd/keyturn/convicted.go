package main

import (
	"fmt"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A convictView is a notary whose own signed message shows that it cheated.
type convictView struct {
	Notary  string `json:"notary"`
	Term    uint32 `json:"term"`
	Reason  string `json:"reason"`
	ShownBy string `json:"shownBy"`
	Entry   uint64 `json:"entry"` // has the proof

	id dsse.Digest
}

func (c convictView) text(w writer, more string) {
	fmt.Fprintf(w, "%-12s notary %s: %s in term %d; proof: its own message in entry %d, shown by %s%s\n", "CONVICTED", c.Notary, c.Reason, c.Term, c.Entry, c.ShownBy, more)
}

func allConvictions(s *authority.State) []convictView {
	out := []convictView{}
	for _, c := range s.Convicts {
		out = append(out, convictView{notaryName(s, c.Notary), c.Term, c.Reason, notaryName(s, c.By), c.Index, c.Notary})
	}
	return out
}

// convictionsIn are those of notaries in the council, in whichever term.
func convictionsIn(s *authority.State, council signoff.Council) []convictView {
	out := []convictView{}
	for _, c := range allConvictions(s) {
		if _, _, ok := council.Find(c.id); ok {
			out = append(out, c)
		}
	}
	return out
}

// staysText warns who decides about a change of notaries.
func staysText(w writer, stay []convictView) {
	for _, c := range stay {
		c.text(w, "; IT STAYS IN OFFICE by this request")
	}
}
