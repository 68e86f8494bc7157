package notary_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// fillingSealer fills the disk just before its second secret is saved: the
// first is the notary's dealing, the second its share.
type fillingSealer struct {
	hsm.Sealer
	filler string
	mu     sync.Mutex
	sealed int
}

func (s *fillingSealer) Seal(ctx context.Context, plaintext, ad []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sealed++; s.sealed == 2 {
		if err := os.WriteFile(s.filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			return nil, errors.New("the disk did not fill")
		}
	}
	return s.Sealer.Seal(ctx, plaintext, ad)
}

// A notary that cannot save its share agrees to no key: without it there is
// none. Once there is room it goes on by itself, with the share it was dealt.
func TestFaultDiskFullWhileSavingShare(t *testing.T) {
	c := signofftest.Keys(t, nil)
	n := c.Notaries[0]
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", n.Dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("mounting a small tmpfs needs root: " + err.Error())
	}
	t.Cleanup(func() {
		n.Stop()
		if err := syscall.Unmount(n.Dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(n.Dir, "filler")
	n.Sealer = &fillingSealer{Sealer: n.Sealer, filler: filler}
	c.Found()
	for _, n := range c.Notaries {
		c.StartNotary(n)
	}
	for deadline := time.Now().Add(2 * time.Minute); !c.Logged("notary=n1", "save share-", "no space left"); time.Sleep(10 * time.Millisecond) {
		if t.Failed() || time.Now().After(deadline) {
			t.Fatal("the notary never met the full disk")
		}
	}
	// The others all agreed; it did not.
	c.Wait("the others' agreement", func(s *authority.State) bool { return s.Keygen != nil && len(s.Keygen.Transcripts) == 3 })
	c.State(func(_ *authority.Authority, s *authority.State) {
		if s.Group != nil || s.Keygen.Transcripts[n.Doc.ID()] != nil {
			t.Error("it agreed to a key without its share on disk")
		}
	})
	if files, err := filepath.Glob(filepath.Join(n.Dir, "share-*")); err != nil || len(files) > 0 {
		t.Errorf("a share stands on the full disk: %v %v", files, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	c.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	c.Tick()
	req := c.Request("alice", signoff.ActionPolicyChange, func(r *signoff.Request) {
		r.Policy = &signoff.PolicyChange{Policy: signofftest.Policy + "# changed\n"}
	})
	if err := c.Append(req); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"bob", "carol", "dave", "erin"} {
		if err := c.Append(c.Decide(p, req.Digest(), signoff.Approve)); err != nil {
			t.Fatal(err)
		}
	}
	c.Notaries[3].Stop() // so that its share is needed
	c.Wait("the warrant", func(s *authority.State) bool { return !s.Requests[req.Digest()].Warrant.IsZero() })
}
