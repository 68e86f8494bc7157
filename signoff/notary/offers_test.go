package notary_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/notary"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// idle is a notary that does nothing by itself.
func idle(t *testing.T) (*signofftest.Cluster, *notary.Notary) {
	t.Helper()
	c := signofftest.Keys(t, nil)
	c.Found()
	first := c.Notaries[0]
	n, err := notary.New(notary.Config{Charter: c.ID, Dir: first.Dir, Client: c.Client, Signing: first.Signing, Exchange: first.Exchange,
		Witness: first.Witness, Sealer: first.Sealer, Log: c.Log})
	if err != nil {
		t.Fatal(err)
	}
	return c, n
}

// Anybody can put blobs and name them as evidence. A thousand of the largest, which
// a batch would hold at once, are 8 GiB.
func TestAttackEvidenceThatFillsMemory(t *testing.T) {
	c, n := idle(t)
	var named []signoff.Digest
	for _, size := range []int{authority.MaxPresented, authority.MaxPresented + 1, api.MaxBlob} {
		d, err := c.Client.PutBlob(t.Context(), make([]byte, size))
		if err != nil {
			t.Fatal(err)
		}
		named = append(named, d)
	}
	got := n.Fetch(t.Context(), named)
	if len(got[0]) != authority.MaxPresented || got[1] != nil || got[2] != nil {
		t.Fatalf("looked at %d, %d and %d bytes of evidence, which has at most %d", len(got[0]), len(got[1]), len(got[2]), authority.MaxPresented)
	}
}

// A fleet sends more evidence than one answer of the mailbox holds, and anyone
// can send more still: an epoch's proposer reads to the end, each piece once,
// and no more than it can look at.
func TestAttackFloodOfEvidence(t *testing.T) {
	c, n := idle(t)
	ctx := context.Background()
	send := func(msg string) {
		if err := c.Client.Send(ctx, api.TopicEvidence, []byte(msg)); err != nil {
			t.Fatal(err)
		}
	}
	var want []signoff.Digest
	for i := range 12_000 {
		d := signoff.Digest(sha256.Sum256(fmt.Append(nil, i)))
		want = append(want, d)
		send(d.String())
		if i%1000 == 0 {
			send(d.String())
			send("not a digest")
		}
	}
	got, err := n.NewOffers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%d pieces of evidence, want %d", len(got), len(want))
	}
	if again, err := n.NewOffers(ctx); err != nil || len(again) != 0 {
		t.Fatalf("%d pieces were read twice: %v", len(again), err)
	}
}
