package signofftest_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// deaths has a victim die at each of its steps until stop is called, which
// says how often it died where.
func (w *world) deaths(victim *signofftest.Notary, r *reaper) (stop func() map[string]int) {
	quit, gone, died := make(chan struct{}), make(chan struct{}), map[string]int{}
	go func() {
		defer close(gone)
		for {
			select {
			case step := <-r.dead:
				died[step]++
				victim.Stop()
				w.StartNotary(victim)
			case <-quit:
				return
			}
		}
	}()
	return func() map[string]int {
		close(quit)
		<-gone
		return died
	}
}

// diedAt wants a death before and one after each step was heard.
func (w *world) diedAt(died map[string]int, steps ...string) {
	w.t.Helper()
	w.t.Log(slices.Sorted(maps.Keys(died)))
	for _, step := range steps {
		for _, how := range []string{", unheard", ", unanswered"} {
			if died[step+how] == 0 {
				w.t.Errorf("the notary never died at: %s%s", step, how)
			}
		}
	}
}

// reshareUnder lets the victim die at each step while n5 takes n4's place, and
// wants a working term and one share on its disk.
func reshareUnder(t *testing.T, pick func(w *world, n5 *signofftest.Notary) *signofftest.Notary, steps ...string) {
	t.Parallel()
	w := &world{signofftest.Keys(t, nil), t}
	r := &reaper{dead: make(chan string), seen: map[string]int{}, victim: &signofftest.Notary{Name: "nobody yet", Doc: w.NewNotary("nobody").Doc}}
	w.Host.Meddle = r.meddle
	w.Found()
	w.start(1, 2, 3, 4)
	w.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	w.Notaries[3].Stop() // so that the other three deal, and every one is needed
	n5 := w.Newcomer("n5")
	victim := pick(w, n5)
	r.mu.Lock()
	r.victim = victim
	r.mu.Unlock()
	stop := w.deaths(victim, r)
	w.StartNotary(n5)
	key := w.groupKey()
	w.changeNotaries(1, w.Notaries[0], w.Notaries[1], w.Notaries[2], n5)
	w.inOffice(2)
	w.stop(3) // so that the victim is needed from here on
	w.changePolicy("signed by those who are left")
	w.diedAt(stop(), steps...)
	if w.groupKey() != key {
		t.Error("the group key changed")
	}
	victim.Stop()
	if files := w.sealedFiles(victim); len(files) != 1 {
		t.Errorf("%s keeps %v", victim.Name, files)
	}
}

// A dealer is killed at each step of a reshare, before and after it is heard.
func TestDeadDealerAtEachStep(t *testing.T) {
	reshareUnder(t, func(w *world, _ *signofftest.Notary) *signofftest.Notary { return w.Notaries[1] },
		string(signoff.KindCommitment), string(signoff.KindDealing), string(signoff.KindTranscript), "cosignature")
}

// So is the newcomer, from its joining on.
func TestDeadNewcomerAtEachStep(t *testing.T) {
	reshareUnder(t, func(_ *world, n5 *signofftest.Notary) *signofftest.Notary { return n5 },
		string(signoff.KindJoining), string(signoff.KindTranscript), "cosignature")
}
