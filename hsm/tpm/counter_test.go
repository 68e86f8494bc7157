package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
)

const (
	ccNVIncrement = 0x134
	ccNVRead      = 0x14e
	testIndex     = 0x01800100
)

func newCounter(t *testing.T, d *TPM) (*Counter, CounterKey) {
	t.Helper()
	key, err := d.NewCounter(t.Context(), testIndex)
	if err != nil {
		t.Fatal(err)
	}
	return openCounter(t, d, key), key
}

func openCounter(t *testing.T, d *TPM, key CounterKey) *Counter {
	t.Helper()
	c, err := d.Counter(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func value(t *testing.T, get func(context.Context) (uint64, error)) uint64 {
	t.Helper()
	v, err := get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func undefine(t *testing.T, d *TPM) {
	t.Helper()
	public := counterPublic(testIndex, true)
	name, err := tpm2.NVName(&public)
	if err != nil {
		t.Fatal(err)
	}
	err = d.Run(t.Context(), "delete", func(tr transport.TPM) error {
		_, err := tpm2.NVUndefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: testIndex, Name: *name},
		}.Execute(tr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCounter(t *testing.T) {
	e := swtpm.New(t)
	d := open(t, e)
	c, key := newCounter(t, d)
	first := value(t, c.Read)
	if got := value(t, c.Increment); got != first+1 {
		t.Errorf("after %d came %d", first, got)
	}
	if _, err := d.NewCounter(t.Context(), testIndex); !errors.Is(err, tpm2.TPMRCNVDefined) {
		t.Errorf("defined twice: %v", err)
	}
	for _, index := range []uint32{0, 0x017fffff, 0x01c00002, 0x81000001} {
		if _, err := d.NewCounter(t.Context(), index); err == nil {
			t.Errorf("counter at 0x%08x", index)
		}
	}
	for _, k := range []CounterKey{
		{}, {testIndex, key.Auth[:31], key.Root}, {testIndex, make([]byte, 32), key.Root}, {testIndex, key.Auth, nil}, {0x81000001, key.Auth, key.Root},
	} {
		if _, err := d.Counter(t.Context(), k); err == nil {
			t.Errorf("opened %+v", k)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if n := loaded(t, d); n != 0 {
		t.Errorf("%d objects and sessions stay in the TPM", n)
	}
	if _, err := c.Read(t.Context()); err == nil {
		t.Error("read after Close")
	}
	// A power cut, and another connection.
	d.Close()
	e.Reset(t)
	c = openCounter(t, open(t, e), key)
	if got := value(t, c.Read); got != first+1 {
		t.Errorf("after a reset %d, want %d", got, first+1)
	}
}

// Who has the wrong secret neither reads nor moves the counter, and locks nobody out.
func TestAttackCounterWithoutSecret(t *testing.T) {
	d := open(t, swtpm.New(t))
	c, key := newCounter(t, d)
	before := value(t, c.Read)
	key.Auth = bytes.Repeat([]byte("x"), 32)
	stranger := openCounter(t, d, key)
	for range 40 { // more than a TPM takes wrong PINs
		if v, err := stranger.Increment(t.Context()); !errors.Is(err, hsm.ErrWrongIdentity) {
			t.Fatalf("a stranger's increment: %d, %v", v, err)
		}
	}
	if v, err := stranger.Read(t.Context()); err == nil {
		t.Errorf("a stranger read %d", v)
	}
	if got := value(t, c.Read); got != before {
		t.Errorf("the counter moved from %d to %d", before, got)
	}
}

// A counter that is deleted is gone, and one defined in its place, even under the
// same secret, begins above it.
func TestAttackCounterDefinedAnew(t *testing.T) {
	d := open(t, swtpm.New(t))
	c, key := newCounter(t, d)
	for range 5 {
		value(t, c.Increment)
	}
	last := value(t, c.Read)
	undefine(t, d)
	if v, err := c.Read(t.Context()); !errors.Is(err, hsm.ErrGone) {
		t.Errorf("read of a deleted counter: %d, %v", v, err)
	}
	again, err := d.NewCounter(t.Context(), testIndex)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := openCounter(t, d, key).Read(t.Context()); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("under the old secret: %d, %v", v, err)
	}
	if got := value(t, openCounter(t, d, again).Read); got <= last {
		t.Errorf("the new counter is at %d, the old one was at %d", got, last)
	}
}

// What sits on the bus neither changes nor replays a reading, and cannot have an
// increment be taken for done.
func TestAttackInterposerOnCounter(t *testing.T) {
	e := swtpm.New(t)
	bus := swtpm.NewBus(t, e)
	d, err := Open(bus.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c, key := newCounter(t, d)
	if bytes.Contains(bus.Passed(), key.Auth) {
		t.Error("the secret passed the bus")
	}
	before := value(t, c.Read)

	var kept []byte
	bus.Change(func(code uint32, answer []byte) {
		if code == ccNVRead {
			kept = bytes.Clone(answer)
		}
	})
	value(t, c.Read)
	value(t, c.Increment)
	changed := 0
	for name, change := range map[string]func(code uint32, answer []byte){
		"changed": func(code uint32, answer []byte) {
			if code == ccNVRead {
				// Behind tag, size, code, size of parameters and its own size.
				binary.BigEndian.PutUint64(answer[16:], before)
				changed++
			}
		},
		"replayed": func(code uint32, answer []byte) {
			if code == ccNVRead && len(answer) == len(kept) {
				copy(answer, kept)
				changed++
			}
		},
	} {
		changed = 0
		c := openCounter(t, d, key)
		bus.Change(change)
		if v, err := c.Read(t.Context()); err == nil || changed == 0 {
			t.Errorf("%s (%d): read %d, %v", name, changed, v, err)
		}
		bus.Change(nil)
		if err := c.Close(); err != nil { // a TPM without a resource manager has room for three
			t.Error(err)
		}
	}
	if got := value(t, openCounter(t, d, key).Read); got != before+1 {
		t.Errorf("afterwards %d, want %d", got, before+1)
	}
}

// Another TPM is refused before anything is believed of it.
func TestAttackCounterOfAnotherTPM(t *testing.T) {
	_, key := newCounter(t, open(t, swtpm.New(t)))
	other := open(t, swtpm.New(t))
	if _, err := other.NewCounter(t.Context(), testIndex); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Counter(t.Context(), key); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("opened in another TPM: %v", err)
	}
}

// Two copies of a process's memory have one session: the TPM takes a command from
// one of them.
func TestAttackCopiedMemory(t *testing.T) {
	d := open(t, swtpm.New(t))
	c, _ := newCounter(t, d)
	value(t, c.Read)
	copied := *c
	session := reflect.New(reflect.TypeOf(c.session).Elem())
	session.Elem().Set(reflect.ValueOf(c.session).Elem())
	copied.session = session.Interface().(tpm2.Session)

	value(t, copied.Read) // whichever comes first
	if v, err := c.Read(t.Context()); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Errorf("the second copy read %d, %v", v, err)
	}
	value(t, copied.Read)
}

// A TPM that loses power at any moment of an increment did it or did not.
func TestFaultTPMKilledAtIncrement(t *testing.T) {
	e := swtpm.New(t)
	d := open(t, e)
	c, key := newCounter(t, d)
	at := value(t, c.Read)
	lost := 0
	for round := range 12 {
		var stop atomic.Bool
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			// The moment is the test's dice; an increment takes under a millisecond.
			time.Sleep(time.Duration(round) * 300 * time.Microsecond)
			_ = e.Kill()
			stop.Store(true)
		}()
		for !stop.Load() {
			v, err := c.Increment(t.Context())
			if err != nil {
				if !errors.Is(err, hsm.ErrGone) {
					t.Errorf("a dead TPM: %v", err)
				}
				break
			}
			if v != at+1 {
				t.Fatalf("after %d came %d", at, v)
			}
			at = v
		}
		<-killed
		d.Close()
		e.Reset(t)
		d = open(t, e)
		c = openCounter(t, d, key)
		switch got := value(t, c.Read); got {
		case at:
		case at + 1:
			at, lost = got, lost+1
		default:
			t.Fatalf("before the kill %d, after it %d", at, got)
		}
	}
	t.Logf("%d of 12 answers were lost", lost)
}
