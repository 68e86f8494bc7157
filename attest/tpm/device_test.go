package tpm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
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

// suite stands for the whole run of this package's tests: what it starts lives
// as long. Making a machine takes seconds, so two are shared by the tests that
// leave them as they were.
type suite struct{ cleanups []func() }

func (s *suite) Helper()           {}
func (s *suite) Cleanup(f func())  { s.cleanups = append(s.cleanups, f) }
func (s *suite) Skip(args ...any)  { panic(fmt.Sprint(args...)) }
func (s *suite) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

var (
	run    suite
	shared [2]*bench
)

func TestMain(m *testing.M) {
	code := m.Run()
	for _, f := range slices.Backward(run.cleanups) {
		f()
	}
	os.Exit(code)
}

// machine returns one of the two shared machines.
func machine(t *testing.T, which int) *bench {
	t.Helper()
	if err := swtpm.Available(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	if shared[which] == nil {
		shared[which] = newBench(&run)
	}
	b := *shared[which] // a test may spoil its copy
	identity := *b.identity
	b.identity = &identity
	return &b
}

// newBench makes and enrols a machine.
func newBench(tb swtpm.TB) *bench {
	tb.Helper()
	b := &bench{emulator: swtpm.New(tb)}
	var err error
	if b.boot, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		tb.Fatal(err)
	}
	if b.roots, err = attest.NewRoots(b.emulator.CA); err != nil {
		tb.Fatal(err)
	}
	b.open(tb)
	if b.state, err = b.device.Provision(context.Background(), &b.boot.PublicKey); err != nil {
		tb.Fatal(err)
	}
	b.load(tb)
	if b.enrol, err = b.identity.Enrol(context.Background()); err != nil {
		tb.Fatal(err)
	}
	if b.node, err = attest.VerifyEnrolment(b.enrol, b.roots, &b.boot.PublicKey, now); err != nil {
		tb.Fatal(err)
	}
	return b
}

// open connects, and boots.
func (b *bench) open(t swtpm.TB) {
	t.Helper()
	var err error
	if b.device, err = Open(b.emulator.Path); err != nil {
		t.Fatal(err)
	}
	d := b.device
	t.Cleanup(func() { _ = d.Close() })
	if b.log, err = SyntheticBoot(context.Background(), b.device, components()); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) load(t swtpm.TB) {
	t.Helper()
	var err error
	if b.identity, err = b.device.Load(context.Background(), b.state, &b.boot.PublicKey); err != nil {
		t.Fatal(err)
	}
}

func TestEnrolAndActivate(t *testing.T) {
	b := machine(t, 0)
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
