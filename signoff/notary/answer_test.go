package notary_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// An accused dealer's process is killed at every step of key generation, at its
// answer too: before the coordinator hears of it, and before the dealer knows that
// it did. It still answers, once and rightly: another polynomial than the one that
// it committed to would be a proof against it.
func TestFaultKilledWhileAnswering(t *testing.T) {
	c := signofftest.Keys(t, nil)
	victim, accuser := c.Notaries[1], c.Notaries[2]
	g := sentence(c, victim, way{Every: true})
	m := &signofftest.Misreader{Decrypter: accuser.Exchange, Dealer: victim.Doc.ID(), Place: 2}
	accuser.Exchange = m
	c.Host.Meddle = func(next http.Handler) http.Handler { return g.meddle(m.Meddle(next)) }
	g.carryOut(c)
	c.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	g.bury()
	deaths := g.deaths()
	t.Logf("%d lives, killed at %d steps:\n%s", g.lives, len(deaths), strings.Join(deaths, "\n"))
	for _, step := range []string{"commitment 1, unheard", "dealing 1, unanswered", "dkg-answer, unheard", "dkg-answer, unanswered", "transcript 1, unheard"} {
		if !slices.Contains(deaths, step) {
			t.Errorf("never killed at %q", step)
		}
	}
	c.State(func(_ *authority.Authority, s *authority.State) {
		k := s.Keygen
		if k.Attempt != 1 || len(s.Aborts) > 0 || len(k.Disputes) != 1 || k.Disputes[0].Dealer != victim.Doc.ID() {
			t.Errorf("attempt %d, aborts %v, disputes %+v", k.Attempt, s.Aborts, k.Disputes)
		}
	})
	lines, err := c.Client.Entries(t.Context(), 0, c.Follower.Seen().Size)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]int{}
	for _, line := range lines {
		doc, err := signoff.ReadLine(line)
		if err != nil {
			t.Fatal(err)
		}
		if a, ok := doc.Doc.(*signoff.DealerAnswer); ok {
			said[string(a.Share)]++
		}
	}
	if len(said) != 1 {
		t.Errorf("%d different sub-shares were published, want one", len(said))
	}
}
