package vault_test

import (
	"testing"
	"time"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// A notary keeps its share by Vault's transit engine. While Vault is sealed it
// signs nothing and says why; opened, it goes on by itself.
func TestFaultVaultSealedUnderNotary(t *testing.T) {
	s := startServer(t)
	store := openStore(t, s.config(s.appRole(t, "keyturn", nil)))
	c := signofftest.Keys(t, nil)
	c.Notaries[0].Sealer = openSealer(t, store, s.newKey(t, "north", "aes256-gcm96"))
	c.Found()
	for _, n := range c.Notaries {
		c.StartNotary(n)
	}
	c.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	c.Tick()
	c.Notaries[3].Stop() // so that the first one's share is needed
	req := c.Request("alice", signoff.ActionPolicyChange, func(r *signoff.Request) {
		r.Policy = &signoff.PolicyChange{Policy: signofftest.Policy + "# changed\n"}
	})
	if err := c.Append(req); err != nil {
		t.Fatal(err)
	}
	check(t, s.root.Sys().Seal())
	for _, p := range []string{"bob", "carol", "dave", "erin"} {
		if err := c.Append(c.Decide(p, req.Digest(), signoff.Approve)); err != nil {
			t.Fatal(err)
		}
	}
	for !c.Logged("notary=n1", "key store sealed") {
		if t.Context().Err() != nil || t.Failed() {
			t.Fatal("the notary never met the sealed Vault")
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.Sync(1)
	c.State(func(_ *authority.Authority, s *authority.State) {
		if r := s.Requests[req.Digest()]; r.Satisfied == nil || !r.Warrant.IsZero() {
			t.Errorf("satisfied %v, warrant %s: it was signed without the share", r.Satisfied != nil, r.Warrant)
		}
	})
	s.open(t)
	c.Wait("the warrant", func(s *authority.State) bool { return !s.Requests[req.Digest()].Warrant.IsZero() })
}
