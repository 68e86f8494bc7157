package tpm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/tpm/swtpm"
)

// bench is one enrolled machine with a synthetic boot.
type bench struct {
	emulator *swtpm.Emulator
	device   *Device
	identity *Identity
	state    *State
	boot     *ecdsa.PrivateKey // the charter's boot-policy key
	node     *attest.Node
	enrol    *attest.Enrolment
	roots    attest.Roots
	log      []byte
}

var now = time.Unix(1_800_000_000, 0)

func components() []Measured {
	return []Measured{
		{0, EventSCRTMVersion, []byte("synthetic firmware 1")},
		{4, EventBootApplication, []byte("synthetic loader 1")},
		{8, EventIPL, []byte("synthetic kernel command line")},
	}
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{emulator: swtpm.New(t)}
	var err error
	if b.boot, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if b.roots, err = attest.NewRoots(b.emulator.CA); err != nil {
		t.Fatal(err)
	}
	b.open(t)
	if b.state, err = b.device.Provision(t.Context(), &b.boot.PublicKey); err != nil {
		t.Fatal(err)
	}
	b.load(t)
	if b.enrol, err = b.identity.Enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.node, err = attest.VerifyEnrolment(b.enrol, b.roots, &b.boot.PublicKey, now); err != nil {
		t.Fatal(err)
	}
	return b
}

// open connects, and boots.
func (b *bench) open(t *testing.T) {
	t.Helper()
	var err error
	if b.device, err = Open(b.emulator.Path); err != nil {
		t.Fatal(err)
	}
	d := b.device
	t.Cleanup(func() { _ = d.Close() })
	if b.log, err = SyntheticBoot(t.Context(), b.device, components()); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) load(t *testing.T) {
	t.Helper()
	var err error
	if b.identity, err = b.device.Load(t.Context(), b.state, &b.boot.PublicKey); err != nil {
		t.Fatal(err)
	}
}

func TestEnrolAndActivate(t *testing.T) {
	b := newBench(t)
	if !b.node.Emulated {
		t.Error("a software TPM was not marked as emulated")
	}
	if b.node.ID != b.identity.Node() {
		t.Errorf("node id %v, the device says %v", b.node.ID, b.identity.Node())
	}
	secret := [32]byte{1, 2, 3}
	blob, enc, err := attest.ChallengeFor(rand.Reader, b.enrol, b.node, secret)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.identity.Activate(context.Background(), blob, enc)
	if err != nil || got != secret {
		t.Fatalf("activate: %x, %v", got, err)
	}
}
