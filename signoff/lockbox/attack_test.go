package lockbox

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

// openDealAs opens the first person's deal under a context and with a deal that
// an attacker changed, and returns the error with the token operations it cost.
func openDealAs(w *world, change func(*Context, *Deal)) (Context, int, error) {
	w.t.Helper()
	m := w.people[0]
	c, d := w.context(People, m), w.deal(People, m)
	d.Sealed = bytes.Clone(d.Sealed)
	change(&c, &d)
	before := m.key.operations
	_, err := OpenShare(context.Background(), m.id, c, w.commitments.People, d)
	return c, m.key.operations - before, err
}

// A deal of something else is named by what it says of itself, at no cost, and
// stays shut when it is relabelled to say what is wanted.
func TestAttackDealOfAnother(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 3)
	other := fill("other")
	for name, tc := range map[string]struct {
		fault  Fault
		change func(*Context, *Deal)
		label  func(*Context, *Deal)
	}{
		"object": {Foreign, func(c *Context, d *Deal) { c.Object = other }, func(c *Context, d *Deal) { d.Object = other }},
		"side":   {Foreign, func(c *Context, d *Deal) { c.Side = Machines }, func(c *Context, d *Deal) { d.Side = Machines }},
		"epoch":  {Replayed, func(c *Context, d *Deal) { c.Epoch = 2 }, func(c *Context, d *Deal) { d.Epoch = 2 }},
		"index":  {Foreign, func(c *Context, d *Deal) { c.Index = 2 }, func(c *Context, d *Deal) { d.Index = 2 }},
	} {
		t.Run(name, func(t *testing.T) {
			c, ops, err := openDealAs(w, tc.change)
			wantFault(t, err, tc.fault, c)
			if ops != 0 {
				t.Errorf("%d token operations on a deal that names itself another", ops)
			}
			c, _, err = openDealAs(w, func(c *Context, d *Deal) { tc.change(c, d); tc.label(c, d) })
			wantFault(t, err, Unopened, c)
		})
	}
	c, _, err := openDealAs(w, func(c *Context, d *Deal) { c.Charter = other })
	wantFault(t, err, Unopened, c)
}

func TestAttackShareOfAnotherHolder(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 3)
	thief, victim := w.people[0], w.people[1]
	stolen := w.deal(People, victim)
	_, err := OpenShare(context.Background(), thief.id, w.context(People, thief), w.commitments.People, stolen)
	wantFault(t, err, Foreign, w.context(People, thief))
	_, err = OpenShare(context.Background(), thief.id, w.context(People, victim), w.commitments.People, stolen)
	wantFault(t, err, Foreign, w.context(People, victim))
	stolen.Index, stolen.Holder = thief.Index, thief.ID()
	_, err = OpenShare(context.Background(), thief.id, w.context(People, thief), w.commitments.People, stolen)
	wantFault(t, err, Unopened, w.context(People, thief))
}

// A release serves one request, one recipient, one holder, one epoch.
func TestAttackReleaseOfAnother(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 3)
	to, eve := newMember(t, 1, false), newMember(t, 2, false)
	c, sealed := w.release(People, w.people[0], to, fill("request"))
	other := fill("other")
	for name, change := range map[string]func(*ReleaseContext){
		"charter": func(c *ReleaseContext) { c.Charter = other },
		"object":  func(c *ReleaseContext) { c.Object = other },
		"side":    func(c *ReleaseContext) { c.Side = Machines },
		"epoch":   func(c *ReleaseContext) { c.Epoch = 2 },
		"index":   func(c *ReleaseContext) { c.Index = 2 },
		"holder":  func(c *ReleaseContext) { c.Holder = other },
		"request": func(c *ReleaseContext) { c.Request = other },
	} {
		changed := c
		change(&changed)
		_, err := OpenRelease(context.Background(), to.id, changed, w.commitments.People, sealed)
		if !errors.Is(err, Unopened) {
			t.Errorf("release opened as that of another %s: %v", name, err)
		}
	}
	_, err := OpenRelease(context.Background(), eve.id, c, w.commitments.People, sealed)
	wantFault(t, err, Foreign, c.Context)
	relabelled := c
	relabelled.Recipient = eve.ID()
	_, err = OpenRelease(context.Background(), eve.id, relabelled, w.commitments.People, sealed)
	wantFault(t, err, Unopened, c.Context)
	if _, err = OpenRelease(context.Background(), to.id, c, w.commitments.People, sealed); err != nil {
		t.Fatalf("the release itself: %v", err)
	}
}

// A deal is no release and a release no deal: their labels differ.
func TestAttackDealAsRelease(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	m := w.people[0]
	c := ReleaseContext{w.context(People, m), fill("request"), m.ID()}
	_, err := OpenRelease(context.Background(), m.id, c, w.commitments.People, w.deal(People, m).Sealed)
	wantFault(t, err, Unopened, c.Context)
	_, sealed := w.release(People, m, m, fill("request"))
	d := w.deal(People, m)
	d.Sealed = sealed
	_, err = OpenShare(context.Background(), m.id, c.Context, w.commitments.People, d)
	wantFault(t, err, Unopened, c.Context)
}

// What a holder re-seals is exactly what it was shown, to exactly that key.
func TestAttackResealToAnother(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	to, eve := newMember(t, 1, false), newMember(t, 2, false)
	s := w.open(People, w.people[0])
	good := ReleaseContext{s.Context(), fill("request"), to.ID()}
	for name, change := range map[string]func(*ReleaseContext){
		"object":       func(c *ReleaseContext) { c.Object = fill("other") },
		"charter":      func(c *ReleaseContext) { c.Charter = fill("other") },
		"side":         func(c *ReleaseContext) { c.Side = Machines },
		"epoch":        func(c *ReleaseContext) { c.Epoch = 9 },
		"index":        func(c *ReleaseContext) { c.Index = 9 },
		"holder":       func(c *ReleaseContext) { c.Holder = fill("other") },
		"recipient":    func(c *ReleaseContext) { c.Recipient = eve.ID() },
		"no recipient": func(c *ReleaseContext) { c.Recipient = [32]byte{} },
		"no request":   func(c *ReleaseContext) { c.Request = [32]byte{} },
		"no epoch":     func(c *ReleaseContext) { c.Epoch = 0 },
		"nothing":      func(c *ReleaseContext) { *c = ReleaseContext{} },
	} {
		c := good
		change(&c)
		if _, err := Reseal(s, to.Key, c); err == nil {
			t.Errorf("re-sealed with another or missing %s", name)
		}
	}
	if _, err := Reseal(s, eve.Key, good); err == nil {
		t.Error("re-sealed to another key than was displayed")
	}
	if _, err := Reseal(s, Recipient{}, good); err == nil {
		t.Error("re-sealed to nobody")
	}
	if _, err := Reseal(nil, to.Key, good); err == nil {
		t.Error("re-sealed no share")
	}
}

func TestAttackOneShortOfPeople(t *testing.T) {
	w := newWorld(t, 3, 5, 3, 4)
	people, machines := w.openAll(People, w.people), w.openAll(Machines, w.machines)
	_, err := Unlock(w.object, w.commitments, people[:2], machines)
	if err == nil || !strings.Contains(err.Error(), "2 good shares of side people, want 3") {
		t.Fatalf("t-1 people with all machines: %v", err)
	}
	// The attacker may also drop a commitment to lower the threshold.
	lowered := w.commitments
	lowered.People = lowered.People[:2]
	if _, err := Unlock(w.object, lowered, people[:2], machines); err == nil {
		t.Fatal("t-1 people unlocked under fewer commitments")
	}
}

func TestAttackPeopleWithoutMachines(t *testing.T) {
	w := newWorld(t, 2, 5, 3, 4)
	people := w.openAll(People, w.people)
	for name, machines := range map[string][]*Share{
		"none": nil, "nil shares": {nil, nil, nil}, "the people's own": people,
	} {
		if _, err := Unlock(w.object, w.commitments, people, machines); err == nil {
			t.Errorf("all people with machines %s unlocked", name)
		}
	}
	same := w.commitments
	same.Machines = same.People
	u, err := Unlock(w.object, same, people, w.openAll(Machines, w.machines))
	if err == nil {
		if _, err := u.FileKey(7, w.wrapped); err == nil {
			t.Error("the people's secret served for both")
		}
	}
}

func TestAttackDuplicateIndexCountsOnce(t *testing.T) {
	w := newWorld(t, 3, 5, 2, 3)
	machines := w.openAll(Machines, w.machines)
	a, b, c := w.open(People, w.people[0]), w.open(People, w.people[1]), w.open(People, w.people[2])
	copyOfA := *a
	if _, err := Unlock(w.object, w.commitments, []*Share{a, a, &copyOfA, b, b}, machines); err == nil {
		t.Fatal("one holder counted more than once")
	}
	if _, err := Unlock(w.object, w.commitments, []*Share{a, &copyOfA, b, b, c}, machines); err != nil {
		t.Fatal(err)
	}
}

func TestAttackIndexZero(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	c, _, err := openDealAs(w, func(c *Context, d *Deal) { c.Index, d.Index = 0, 0 })
	if err == nil {
		t.Fatalf("%s opened", c)
	}
	m := w.people[0]
	if _, err := Reseal(w.open(People, m), m.Key, ReleaseContext{c, fill("request"), m.ID()}); err == nil {
		t.Fatal("index 0 re-sealed")
	}
}

// Every bit of the ciphertext, flipped alone.
func TestAttackMalleatedHPKE(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	m := w.people[0]
	size := len(w.deal(People, m).Sealed)
	for bit := range 8 * size {
		c, _, err := openDealAs(w, func(_ *Context, d *Deal) { d.Sealed[bit/8] ^= 1 << (bit % 8) })
		fault := Unopened
		if bit/8 < pointSize {
			fault = Malformed // the point left the curve
		}
		wantFault(t, err, fault, c)
	}
	for n := range size {
		c, ops, err := openDealAs(w, func(_ *Context, d *Deal) { d.Sealed = d.Sealed[:n] })
		wantFault(t, err, Malformed, c)
		if ops != 0 {
			t.Fatalf("%d bytes reached the token", n)
		}
	}
	c, _, err := openDealAs(w, func(_ *Context, d *Deal) { d.Sealed = append(d.Sealed, 0) })
	wantFault(t, err, Malformed, c)
}

// The reflected ephemeral point is on the curve and gives the same x coordinate:
// HPKE binds the encoding all the same.
func TestAttackReflectedEphemeral(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	c, _, err := openDealAs(w, func(_ *Context, d *Deal) { negate(d.Sealed[:pointSize]) })
	wantFault(t, err, Unopened, c)
}

// negate replaces an uncompressed P-256 point by its inverse.
func negate(point []byte) {
	p, _ := new(big.Int).SetString("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff", 16)
	y := new(big.Int).SetBytes(point[33:pointSize])
	y.Sub(p, y).FillBytes(point[33:pointSize])
}

// Points of the ephemeral key that are not good ones never reach the token.
func TestAttackEphemeralPoints(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	coordinate := func(x, y string) []byte {
		out := make([]byte, pointSize)
		out[0] = 4
		for i, v := range []string{x, y} {
			n, _ := new(big.Int).SetString(v, 16)
			n.FillBytes(out[1+32*i : 33+32*i])
		}
		return out
	}
	for name, point := range map[string][]byte{
		"identity, padded":   make([]byte, pointSize),
		"origin":             coordinate("0", "0"),
		"another curve":      coordinate("0", "1"),
		"x not reduced":      coordinate("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff", "66485c780e2f83d72433bd5d84a06bb6541c2af31dae871728bf856a174f93f4"),
		"hybrid-form (6)":    append([]byte{6}, bytes.Repeat([]byte{1}, 64)...),
		"compressed, padded": append([]byte{2}, bytes.Repeat([]byte{1}, 64)...),
		"all ones":           bytes.Repeat([]byte{0xff}, pointSize),
	} {
		c, ops, err := openDealAs(w, func(_ *Context, d *Deal) { copy(d.Sealed, point) })
		wantFault(t, err, Malformed, c)
		if ops != 0 {
			t.Errorf("%s reached the token", name)
		}
	}
}

// A dealer who is able to seal to the holder deals other shares.
func TestAttackWrongShare(t *testing.T) {
	w := newWorld(t, 2, 3, 2, 3)
	m := w.people[0]
	c := w.context(People, m)
	good := w.open(People, m).secret
	one := scalarOf(1)
	for name, p := range map[string]pair{
		"value moved":    {curve.NewScalar().Add(good.value, one), good.blind},
		"blinding moved": {good.value, curve.NewScalar().Add(good.blind, one)},
		"swapped":        {good.blind, good.value},
		"zero":           zeroPair(),
		"another's":      w.open(People, w.people[1]).secret,
	} {
		d, err := sealDeal(c, m.Key, p)
		w.must(err)
		_, err = OpenShare(context.Background(), m.id, c, w.commitments.People, d)
		wantFault(t, err, Wrong, c)
		if t.Failed() {
			t.Fatalf("in case %q", name)
		}
	}
}

// What opens under HPKE is still judged: non-canonical scalars, other lengths.
func TestAttackWellSealedNonsense(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	m := w.people[0]
	c := w.context(People, m)
	for _, plain := range [][]byte{
		bytes.Repeat([]byte{0xff}, pairSize), bytes.Repeat([]byte{0x80}, pairSize), make([]byte, pairSize-1), make([]byte, pairSize+1), nil,
	} {
		sealed, err := hpke.Seal(m.Key.key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), c.dealInfo(), plain)
		w.must(err)
		d := w.deal(People, m)
		d.Sealed = sealed
		_, err = OpenShare(context.Background(), m.id, c, w.commitments.People, d)
		wantFault(t, err, Malformed, c)
	}
}

// Another KEM, KDF or AEAD is another ciphertext.
func TestAttackOtherSuite(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	m := w.people[0]
	c := w.context(People, m)
	plain := w.open(People, m).secret.bytes()
	for name, suite := range map[string]struct {
		kdf  hpke.KDF
		aead hpke.AEAD
	}{
		"AES-256-GCM": {hpke.HKDFSHA256(), hpke.AES256GCM()},
		"HKDF-SHA512": {hpke.HKDFSHA512(), hpke.ChaCha20Poly1305()},
	} {
		sealed, err := hpke.Seal(m.Key.key, suite.kdf, suite.aead, c.dealInfo(), plain)
		w.must(err)
		d := w.deal(People, m)
		d.Sealed = sealed
		_, err = OpenShare(context.Background(), m.id, c, w.commitments.People, d)
		if !errors.Is(err, Unopened) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAttackInvalidCommitment(t *testing.T) {
	w := newWorld(t, 3, 3, 2, 2)
	m := w.people[0]
	c, d := w.context(People, m), w.deal(People, m)
	identity, generator := [32]byte{}, encodePoint(curve.Generator())
	var notCanonical [32]byte
	for i := range notCanonical {
		notCanonical[i] = 0xff
	}
	for k := range w.commitments.People {
		for name, point := range map[string][32]byte{"identity": identity, "non-canonical": notCanonical} {
			bad := append(Sharing{}, w.commitments.People...)
			bad[k] = point
			before := m.key.operations
			if _, err := OpenShare(context.Background(), m.id, c, bad, d); err == nil || errors.Is(err, Wrong) {
				t.Errorf("commitment %d %s: %v", k, name, err)
			}
			if m.key.operations != before {
				t.Errorf("commitment %d %s: the token was asked", k, name)
			}
		}
		bad := append(Sharing{}, w.commitments.People...)
		bad[k] = generator
		_, err := OpenShare(context.Background(), m.id, c, bad, d)
		wantFault(t, err, Wrong, c)
	}
	for _, bad := range []Sharing{nil, w.commitments.People[:1], w.commitments.People[:2], append(w.commitments.People[:3:3], generator)} {
		if _, err := OpenShare(context.Background(), m.id, c, bad, d); err == nil {
			t.Errorf("opened under %d commitments, want %d", len(bad), len(w.commitments.People))
		}
	}
}

// Two lockboxes with the same holders: one's deals or releases, offered under
// the other's manifest, make nobody open for the wrong object.
func TestAttackConfusedDeputy(t *testing.T) {
	people, machines := newMembers(t, 3), newMembers(t, 3)
	cheap, dear := sealWorld(t, 2, 2, people, machines), sealWorld(t, 2, 2, people, machines)
	m := people[0]
	cheapID := fill("cheap object")
	asked := Context{cheap.params.Charter, cheapID, People, 1, m.Index, m.ID()}
	d := dear.deal(People, m)
	_, err := OpenShare(context.Background(), m.id, asked, dear.commitments.People, d)
	wantFault(t, err, Foreign, asked)
	d.Object = cheapID
	_, err = OpenShare(context.Background(), m.id, asked, dear.commitments.People, d)
	wantFault(t, err, Unopened, asked)
	// Even the same object id does not mix the shares of two lockboxes.
	mixed := []*Share{cheap.open(People, people[0]), dear.open(People, people[1])}
	_, err = Unlock(dear.object, dear.commitments, mixed, dear.openAll(Machines, machines))
	if !errors.Is(err, Wrong) {
		t.Fatalf("shares of two lockboxes combined: %v", err)
	}
	// Nor does an unlocker of one object open the file keys of another.
	u, err := Unlock(cheap.object, cheap.commitments, cheap.openAll(People, people), cheap.openAll(Machines, machines))
	cheap.must(err)
	if _, err := u.FileKey(7, dear.wrapped); err == nil {
		t.Fatal("one lockbox opened another's file key")
	}
	// Shares of one object are not counted for another.
	_, err = Unlock(cheapID, dear.commitments, dear.openAll(People, people), dear.openAll(Machines, machines))
	if !errors.Is(err, Foreign) {
		t.Fatalf("shares counted for another object: %v", err)
	}
}

// One bad share among enough good ones is passed over; it is named when it
// leaves too few.
func TestBadShareIsPassedOverAndNamed(t *testing.T) {
	w := newWorld(t, 3, 4, 2, 2)
	people, machines := w.openAll(People, w.people), w.openAll(Machines, w.machines)
	people[1] = &Share{people[1].context, people[0].secret}
	u, err := Unlock(w.object, w.commitments, people, machines)
	w.must(err)
	if key, err := u.FileKey(7, w.wrapped); err != nil || key != w.fileKey {
		t.Fatal("a bad share spoiled the good ones")
	}
	_, err = Unlock(w.object, w.commitments, people[:3], machines)
	wantFault(t, err, Wrong, people[1].context)
	if want := fmt.Sprintf("people holder %d", people[1].context.Index); !strings.Contains(err.Error(), want) {
		t.Fatalf("error %q does not name %q", err, want)
	}
}

// Approvals of requests that were vetoed pile up at one recipient. They give
// the people's side of that object, for which the notaries never release.
func TestAttackVetoedApprovalsAccumulate(t *testing.T) {
	w := newWorld(t, 3, 5, 3, 4)
	to := newMember(t, 1, false)
	var people []*Share
	for i, m := range w.people[:3] {
		c, sealed := w.release(People, m, to, fill(fmt.Sprintf("vetoed request %d", i)))
		s, err := OpenRelease(context.Background(), to.id, c, w.commitments.People, sealed)
		w.must(err)
		people = append(people, s)
	}
	// f = 1 hostile notary adds its own.
	if _, err := Unlock(w.object, w.commitments, people, w.openAll(Machines, w.machines[:1])); err == nil {
		t.Fatal("approvals of vetoed requests opened the object")
	}
}

func TestAttackWrappedFileKey(t *testing.T) {
	w := newWorld(t, 2, 2, 2, 2)
	u, err := Unlock(w.object, w.commitments, w.openAll(People, w.people), w.openAll(Machines, w.machines))
	w.must(err)
	for bit := range 8 * len(w.wrapped) {
		bad := bytes.Clone(w.wrapped)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := u.FileKey(7, bad); err == nil {
			t.Fatalf("opened with bit %d flipped", bit)
		}
	}
	for n := range WrappedFileKeySize {
		if _, err := u.FileKey(7, w.wrapped[:n]); err == nil {
			t.Fatalf("opened %d bytes", n)
		}
	}
	if _, err := u.FileKey(7, append(bytes.Clone(w.wrapped), 0)); err == nil {
		t.Fatal("opened with a byte too many")
	}
	salted := w.commitments
	salted.Salt[0] ^= 1
	u, err = Unlock(w.object, salted, w.openAll(People, w.people), w.openAll(Machines, w.machines))
	w.must(err)
	if _, err := u.FileKey(7, w.wrapped); err == nil {
		t.Fatal("opened under another salt")
	}
	salted.Salt = [32]byte{}
	if _, err := Unlock(w.object, salted, w.openAll(People, w.people), w.openAll(Machines, w.machines)); err == nil {
		t.Fatal("unlocked without a salt")
	}
}

// The fields of an info are told apart by their lengths.
func TestAttackFieldBoundaries(t *testing.T) {
	if bytes.Equal(join("a", []byte("bc"), []byte("d")), join("a", []byte("b"), []byte("cd"))) ||
		bytes.Equal(join("a", nil, []byte("b")), join("a", []byte("b"), nil)) ||
		bytes.Equal(join("a", []byte("b")), join("a", []byte("b"), nil)) {
		t.Fatal("two lists of fields give one info")
	}
}

// A hybrid ciphertext depends on both halves.
func TestAttackHybridHalves(t *testing.T) {
	w := sealWorld(t, 2, 2, []member{newMember(t, 1, true), newMember(t, 2, true)}, newMembers(t, 2))
	for name, at := range map[string]int{"ML-KEM ciphertext": 5, "tag": hybridSealedSize - 1} {
		c, _, err := openDealAs(w, func(_ *Context, d *Deal) { d.Sealed[at] ^= 1 })
		if !errors.Is(err, Unopened) {
			t.Errorf("%s of %s: %v", name, c, err)
		}
	}
	other, err := ecdh.P256().GenerateKey(rand.Reader)
	w.must(err)
	c, _, err := openDealAs(w, func(_ *Context, d *Deal) {
		copy(d.Sealed[hybridSealedSize-sealedSize:], other.PublicKey().Bytes())
	})
	wantFault(t, err, Unopened, c)
}

// A share that the sealer released itself opens where a holder's would, and
// under no other context.
func TestAttackSealersRelease(t *testing.T) {
	members := newMembers(t, 8)
	people, machines := members[:4], members[4:]
	secrets, box, err := New(rand.Reader, Params{fill("charter"), groupOf(2, people), groupOf(3, machines)})
	if err != nil {
		t.Fatal(err)
	}
	defer secrets.Wipe()
	to := newMember(t, 1, false)
	c := ReleaseContext{Context{fill("charter"), fill("object"), People, 1, 2, fill("sealer")}, fill("request"), to.ID()}
	sealed, err := secrets.Release(c, to.Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRelease(t.Context(), to.id, c, box.People, sealed); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*ReleaseContext){
		"as a holder's": func(c *ReleaseContext) { c.Holder = people[1].ID() },
		"other request": func(c *ReleaseContext) { c.Request = fill("other") },
		"other index":   func(c *ReleaseContext) { c.Index = 3 },
		"other side":    func(c *ReleaseContext) { c.Side = Machines },
		"other object":  func(c *ReleaseContext) { c.Object = fill("other") },
	} {
		other := c
		edit(&other)
		var bad *ShareError
		if _, err := OpenRelease(t.Context(), to.id, other, box.People, sealed); !errors.As(err, &bad) || bad.Fault != Unopened {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, edit := range map[string]func(*ReleaseContext){
		"second object": func(c *ReleaseContext) { c.Object = fill("other") },
		"other charter": func(c *ReleaseContext) { c.Charter = fill("other") },
		"no request":    func(c *ReleaseContext) { c.Request = [32]byte{} },
		"other key":     func(c *ReleaseContext) { c.Recipient = fill("other") },
	} {
		other := c
		edit(&other)
		if _, err := secrets.Release(other, to.Key); err == nil {
			t.Errorf("%s: released", name)
		}
	}
}
