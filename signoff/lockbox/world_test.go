package lockbox

import (
	"context"
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/keyturn/keyturn/hsm"
)

// A countedKey is a software agreement key that counts what a token would be
// asked for.
type countedKey struct {
	*ecdh.PrivateKey
	operations int
	fails      error
}

func newKey(t testing.TB) *countedKey {
	t.Helper()
	k, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &countedKey{PrivateKey: k}
}

func (k *countedKey) Info() hsm.Info {
	return hsm.Info{URI: "test:counted", Class: hsm.ClassSoftware}
}

func (k *countedKey) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	return k.ECDHContext(context.Background(), peer)
}

func (k *countedKey) ECDHContext(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	k.operations++
	if err := errors.Join(k.fails, hsm.ContextError(ctx)); err != nil {
		return nil, err
	}
	return k.PrivateKey.ECDH(peer)
}

// A member is a holder together with what only the holder has.
type member struct {
	Holder
	key *countedKey
	id  *Identity
}

func newMember(t testing.TB, index uint16, hybrid bool) member {
	t.Helper()
	m := member{key: newKey(t)}
	var err error
	if hybrid {
		pq, kerr := mlkem.GenerateKey768()
		if kerr != nil {
			t.Fatal(kerr)
		}
		m.id, err = HybridIdentity(m.key, pq)
	} else {
		m.id, err = TokenIdentity(m.key)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.Holder = Holder{Index: index, Key: m.id.Recipient()}
	return m
}

func newMembers(t testing.TB, n int) []member {
	t.Helper()
	out := make([]member, n)
	for i := range out {
		out[i] = newMember(t, uint16(i+1), false)
	}
	return out
}

func groupOf(threshold int, members []member) Group {
	g := Group{Threshold: uint16(threshold)}
	for _, m := range members {
		g.Holders = append(g.Holders, m.Holder)
	}
	return g
}

// A world is one sealed object with everybody's keys.
type world struct {
	t                testing.TB
	people, machines []member
	params           Params
	object           [32]byte
	secrets          *Secrets
	commitments      Commitments
	deals            Deals
	fileKey          [16]byte
	wrapped          []byte
}

func newWorld(t testing.TB, threshold, people, quorum, machines int) *world {
	t.Helper()
	return sealWorld(t, threshold, quorum, newMembers(t, people), newMembers(t, machines))
}

func sealWorld(t testing.TB, threshold, quorum int, people, machines []member) *world {
	t.Helper()
	w := &world{t: t, people: people, machines: machines}
	w.params = Params{Charter: fill("charter"), People: groupOf(threshold, people), Machines: groupOf(quorum, machines)}
	w.object = fill("object")
	rand.Read(w.fileKey[:])
	w.must(w.seal())
	return w
}

func (w *world) seal() (err error) {
	if w.secrets, w.commitments, err = New(rand.Reader, w.params); err != nil {
		return err
	}
	if w.deals, err = w.secrets.Deal(w.object, 1); err != nil {
		return err
	}
	w.wrapped, err = w.secrets.WrapFileKey(w.object, 7, w.fileKey)
	return err
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// fill makes a digest that a reader recognises.
func fill(text string) (d [32]byte) {
	copy(d[:], text)
	return d
}

func (w *world) context(side Side, m member) Context {
	return Context{w.params.Charter, w.object, side, 1, m.Index, m.ID()}
}

func (w *world) sharing(side Side) Sharing {
	w.t.Helper()
	s, err := w.commitments.Side(side)
	w.must(err)
	return s
}

func (w *world) deal(side Side, m member) Deal {
	w.t.Helper()
	d, err := w.deals.Find(side, m.ID())
	w.must(err)
	return d
}

func (w *world) open(side Side, m member) *Share {
	w.t.Helper()
	s, err := OpenShare(context.Background(), m.id, w.context(side, m), w.sharing(side), w.deal(side, m))
	w.must(err)
	return s
}

func (w *world) openAll(side Side, members []member) (out []*Share) {
	w.t.Helper()
	for _, m := range members {
		out = append(out, w.open(side, m))
	}
	return out
}

func (w *world) release(side Side, m, to member, request [32]byte) (ReleaseContext, []byte) {
	w.t.Helper()
	c := ReleaseContext{w.context(side, m), request, to.ID()}
	sealed, err := Reseal(w.open(side, m), to.Key, c)
	w.must(err)
	return c, sealed
}

// wantFault fails the test unless err is a ShareError with that fault about
// that share.
func wantFault(t testing.TB, err error, fault Fault, c Context) {
	t.Helper()
	var bad *ShareError
	if !errors.As(err, &bad) || !errors.Is(err, fault) {
		t.Fatalf("got error %v, want a share error that is %q", err, fault)
	}
	if bad.Context.Index != c.Index || bad.Context.Side != c.Side || bad.Context.Holder != c.Holder {
		t.Fatalf("the error is about %s, want %s", bad.Context, c)
	}
}
