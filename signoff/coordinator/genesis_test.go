package coordinator_test

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/coordinator"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/log"
	"github.com/keyturn/keyturn/signoff/log/etcd"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A coordinator killed at any step of its first start begins its log all the
// same, and never begins it twice.
func TestKilledAtGenesis(t *testing.T) {
	c, ctx := signofftest.Keys(t, nil), context.Background()
	dir := t.TempDir()
	order, archive := ground(t, dir)
	start := func(genesis [][]byte) error {
		_, err := coordinator.New(ctx, coordinator.Config{Charter: c.ID, Genesis: genesis, Order: order, Archive: archive, LogKey: c.LogKey, Log: c.Log})
		return err
	}
	for n := range len(c.Genesis) + 1 {
		// The first n entries are what an earlier start came to.
		if err := start(c.Genesis[:n]); err != nil {
			t.Fatal(err)
		}
		if head, err := order.Head(ctx); err != nil || head != uint64(n) {
			t.Fatalf("%d entries, want %d: %v", head, n, err)
		}
		if n > 1 {
			other := slices.Clone(c.Genesis)
			other[1] = other[0]
			if err := start(append(other, other[0])); err == nil {
				t.Fatal("started on the log of another beginning")
			}
		}
	}
	if err := start(c.Genesis); err != nil {
		t.Fatal(err)
	}
	got, err := order.Entries(ctx, 0, 100)
	if err != nil || !slices.EqualFunc(got, c.Genesis, slices.Equal) {
		t.Fatalf("%d entries: %v", len(got), err)
	}
}

// What an earlier run kept is a help and no condition: garbage, and the verdicts on
// another log, are passed over.
func TestStartsWhateverWasKept(t *testing.T) {
	ctx := t.Context()
	c, other := signofftest.Keys(t, nil), signofftest.Keys(t, nil)
	fold := func(c *signofftest.Cluster, lines [][]byte) []byte {
		a, err := authority.New(c.ID)
		if err == nil {
			err = a.ApplyAll(lines, nil, func(authority.Outcome, []byte) {})
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := a.Keep()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	dir := t.TempDir()
	order, archive := ground(t, dir)
	halted := append(slices.Clone(c.Genesis), c.Sign("bob", &signoff.Halt{Charter: c.ID, Person: c.People["bob"].Doc.ID(), Everything: true, Reason: "a test", Created: 1, Nonce: signofftest.Nonce()}).Line())
	kept := follow.InFile(filepath.Join(dir, "appraised.json"))
	for _, b := range [][]byte{nil, []byte("{"), fold(other, other.Genesis), fold(c, c.Genesis[:2]), fold(c, c.Genesis), fold(c, halted)} {
		if b != nil {
			if err := kept.Save(b); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := coordinator.New(ctx, coordinator.Config{Charter: c.ID, Genesis: c.Genesis, Order: order, Archive: archive, LogKey: c.LogKey, Log: c.Log, Memory: kept}); err != nil {
			t.Errorf("with %.60q kept: %v", b, err)
		}
	}
}

// ground is what a coordinator stands on.
func ground(t *testing.T, dir string) (*etcd.Order, *log.Archive) {
	t.Helper()
	order, err := etcd.OpenEmbedded(t.Context(), filepath.Join(dir, "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { order.Close() })
	archive, err := log.Open(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { archive.Close() })
	return order, archive
}
