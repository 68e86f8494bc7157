package keys

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
)

// untouched is a key that does nothing before its person was told.
type untouched struct {
	hsm.Key
	hsm.Decrypter
	told chan struct{}
}

func (u untouched) Info() hsm.Info { return u.Key.Info() }

func (u untouched) SignContext(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	<-u.told
	return u.Key.SignContext(ctx, digest, opts)
}

func (u untouched) ECDHContext(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	<-u.told
	return u.Decrypter.ECDHContext(ctx, peer)
}

// Who waits for a touch is told so: these operations would not end otherwise.
func TestWaitingIsTold(t *testing.T) {
	uri := func(name string) string { return "file:" + filepath.Join(t.TempDir(), name) }
	signing, exchange := uri("sign"), uri("exchange")
	_, err := file.Generate(signing, hsm.KindP256)
	check(t, err)
	_, err = file.Generate(exchange, hsm.KindECDH)
	check(t, err)
	k, err := file.Open(signing, nil)
	check(t, err)
	d, err := file.OpenDecrypter(exchange, nil)
	check(t, err)
	u := untouched{k, d, make(chan struct{}, 1)}
	r := New(nil)
	if r.waiting(u) != hsm.Key(u) {
		t.Error("a key is wrapped though nobody wants to be told")
	}
	var names []string
	r.Waits = func(info hsm.Info) { names = append(names, info.URI); u.told <- struct{}{} }
	_, err = hsm.SignMessage(t.Context(), r.waiting(u), []byte("message"))
	check(t, err)
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	check(t, err)
	_, err = r.waitingDecrypter(u).ECDHContext(t.Context(), peer.PublicKey())
	check(t, err)
	if len(names) != 2 || names[0] != signing {
		t.Errorf("told of %v", names)
	}
}
