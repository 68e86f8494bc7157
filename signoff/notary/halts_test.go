package notary_test

import (
	"testing"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// Anybody can write what looks like a halt. However many of those there are, the
// one by somebody who may halt gets through.
func TestAttackFloodOfHalts(t *testing.T) {
	c := signofftest.Keys(t, nil)
	c.Found()
	stranger := c.NewKey("stranger", "p256")
	fp, err := signoff.NewPublicKey(stranger.Public(), "")
	if err != nil {
		t.Fatal(err)
	}
	halt := func(by signoff.Digest) *signoff.Halt {
		return &signoff.Halt{Charter: c.ID, Person: by, Everything: true, Reason: "a test", Created: time.Now().Unix(), Nonce: signofftest.Nonce()}
	}
	for range 1100 {
		junk, err := signoff.Sign(t.Context(), stranger, halt(fp.Fingerprint()))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Client.Send(t.Context(), api.TopicHalts, junk.Line()); err != nil {
			t.Fatal(err)
		}
	}
	genuine := c.Sign("bob", halt(c.People["bob"].Doc.ID()))
	if err := c.Client.Send(t.Context(), api.TopicHalts, genuine.Line()); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Notaries {
		c.StartNotary(n)
	}
	c.Wait("the halt", func(s *authority.State) bool { return s.Halts[genuine.Digest()] != nil })
}
