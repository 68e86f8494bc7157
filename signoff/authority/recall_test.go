package authority_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
)

// noEvidence has no evidence sets: who asks for one appraises.
type noEvidence struct {
	authority.Blobs
	sets map[Digest]bool
}

func (b noEvidence) Blob(d Digest) ([]byte, error) {
	if b.sets[d] {
		return nil, fmt.Errorf("evidence set %s was asked for", d)
	}
	return b.Blobs.Blob(d)
}

// longLog has epochs and claims, with and without effect. It returns the evidence
// sets that they name.
func longLog(t *testing.T) (*log, []*machine, map[Digest]bool) {
	l, ms := withNodes(t, 2)
	sets := map[Digest]bool{}
	epoch := func(ms ...*machine) *signoff.Signed {
		var evidence []Digest
		for _, m := range ms {
			evidence = append(evidence, l.present(m.proves(attest.DomainEpoch, Digest{}, nil)))
		}
		doc := l.epoch(evidence...)
		sets[doc.Doc.(*signoff.Epoch).Evidence] = true
		return doc
	}
	l.takes(epoch(ms[0], ms[1]))
	request, warrant := l.launch(4, ms[0])
	late := epoch(ms[0])
	l.takes(ms[0].claims(request, warrant, 1))
	l.voids(ms[0].claims(request, warrant, 3), "claims use 3")
	l.takes(epoch(ms[0]))
	l.voids(late, "epoch 2 after root")
	forged := *epoch(ms[0], ms[1]).Doc.(*signoff.Epoch)
	forged.Root = Digest{7}
	l.voids(l.signed(l.proposer().Signing, &forged), "lease root")
	l.takes(ms[0].claims(request, warrant, 2))
	l.takes(epoch(ms[0], ms[1]))
	return l, ms, sets
}

// folds folds entries from to below.
func (l *log) folds(a *authority.Authority, from, below int, blobs authority.Blobs) error {
	return a.ApplyAll(l.lines[from:below], blobs, func(authority.Outcome, []byte) {})
}

// What a fold kept at any size lets the next one come to the same state, with all
// that it knows of nodes, and without the evidence of before.
func TestRecallAtEverySize(t *testing.T) {
	l, ms, sets := longLog(t)
	first, err := authority.New(l.ID)
	l.must(err)
	whole := l.fold
	for i := range l.lines {
		l.must(l.folds(first, i, i+1, l.blobs))
		b, err := first.Keep()
		l.must(err)
		a, err := authority.New(l.ID)
		l.must(err)
		l.must(a.Recall(b))
		if !a.Recalling() {
			t.Fatal("recalls nothing")
		}
		l.must(l.folds(a, 0, i+1, noEvidence{l.blobs, sets}))
		if a.Recalling() || a.StateDigest() != first.StateDigest() {
			t.Fatalf("size %d: another state", i+1)
		}
		again, err := a.Keep()
		l.must(err)
		if !bytes.Equal(again, b) {
			t.Fatalf("size %d: keeps %s, was given %s", i+1, again, b)
		}
		if i+1 < len(l.lines) {
			l.must(l.folds(a, i+1, len(l.lines), l.blobs))
		}
		if a.StateDigest() != whole.StateDigest() {
			t.Fatalf("from size %d on: another end", i+1)
		}
		for _, m := range ms[:2] {
			want, _, _ := whole.State().Epoch.Lease(m.id)
			got, _, ok := a.State().Epoch.Lease(m.id)
			if !ok || got.Verdict != want.Verdict || got.Reason != want.Reason || got.Past.Clock != want.Past.Clock {
				t.Fatalf("from size %d on: %s has lease %+v, want %+v", i+1, m.name, got, want)
			}
			if a.State().Nodes[m.id].Past != whole.State().Nodes[m.id].Past {
				t.Fatalf("from size %d on: %s proved another past", i+1, m.name)
			}
		}
	}
}

// What was kept of another log, or edited, is found out at the entry where it ends,
// or is nobody's.
func TestAttackEditedRecall(t *testing.T) {
	l, ms, _ := longLog(t)
	b, err := l.fold.Keep()
	l.must(err)
	lease, _, _ := l.state().Epoch.Lease(ms[1].id)
	for name, edit := range map[string]func(string) string{
		"verdict":    func(s string) string { return strings.ReplaceAll(s, `"verdict":"pass"`, `"verdict":"fail"`) },
		"lease gone": func(s string) string { return s[:strings.Index(s, `"leases":[`)] + `"leases":[],"past":[]}` },
		"past gone":  func(s string) string { return s[:strings.Index(s, `"past":[`)] + `"past":[]}` },
		"void gone": func(s string) string {
			i := strings.Index(s, `"void":[`)
			return s[:i] + `"void":[` + s[i+strings.Index(s[i:], "]"):]
		},
		"other state": func(s string) string { return strings.Replace(s, l.fold.StateDigest().Hex(), Digest{7}.Hex(), 1) },
		"other node": func(s string) string {
			return strings.Replace(s, `"past":[{"node":"`+ms[0].id.String(), `"past":[{"node":"`+ms[1].id.String(), 1)
		},
		"other size": func(s string) string {
			return strings.Replace(s, fmt.Sprintf(`"size":%d`, len(l.lines)), fmt.Sprintf(`"size":%d`, len(l.lines)-1), 1)
		},
		"lease's name": func(s string) string { return strings.ReplaceAll(s, lease.Evidence.Hex(), Digest{7}.Hex()) },
	} {
		t.Run(name, func(t *testing.T) {
			edited := edit(string(b))
			if edited == string(b) {
				t.Fatal("nothing was edited")
			}
			a, err := authority.New(l.ID)
			l.must(err)
			l.must(a.Recall([]byte(edited)))
			if err := l.folds(a, 0, len(l.lines), l.blobs); !errors.Is(err, authority.ErrRecall) {
				t.Errorf("%v, want ErrRecall", err)
			}
		})
	}
	a, err := authority.New(Digest{7})
	l.must(err)
	for what, edited := range map[string][]byte{"another cluster's": b, "nothing": nil, "a newer version's": bytes.Replace(b, []byte("appraised 1"), []byte("appraised 2"), 1)} {
		if err := a.Recall(edited); err == nil {
			t.Errorf("recalled %s", what)
		}
	}
	if _, err := l.witness(l.void()).Keep(); err == nil {
		t.Error("who appraised nothing kept verdicts")
	}
}
