package notary_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/notary"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A fleet sends more evidence than one answer of the mailbox holds, and anyone
// can send more still: an epoch's proposer reads to the end, each piece once,
// and no more than it can look at.
func TestAttackFloodOfEvidence(t *testing.T) {
	c := signofftest.Keys(t, nil)
	c.Found()
	first := c.Notaries[0]
	n, err := notary.New(notary.Config{Charter: c.ID, Dir: first.Dir, Client: c.Client, Signing: first.Signing, Exchange: first.Exchange,
		Witness: first.Witness, Sealer: first.Sealer, Log: c.Log})
	if err != nil {
		t.Fatal(err)
	}
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
