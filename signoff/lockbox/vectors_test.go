package lockbox

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/mlkem"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

var record = flag.Bool("record", false, "write testdata/vectors.json anew")

// vectors is what another implementation needs to check itself: all bytes in
// hex. Sealed values hold fresh ephemeral keys, so they are opened, not made
// again; everything else follows from the stream and the keys.
type vectors struct {
	Recorded  string        `json:"recorded"`
	Comment   string        `json:"comment"`
	Generator string        `json:"secondGenerator"`
	Stream    string        `json:"stream"` // the random bytes that New consumed
	Charter   string        `json:"charter"`
	Object    string        `json:"object"`
	Epoch     uint32        `json:"epoch"`
	Salt      string        `json:"salt"`
	People    vectorSide    `json:"people"`
	Machines  vectorSide    `json:"machines"`
	Release   vectorRelease `json:"release"`
	File      vectorFile    `json:"file"`
	Redeal    vectorRedeal  `json:"redeal"`
}

type vectorSide struct {
	Threshold   uint16         `json:"threshold"`
	Secret      string         `json:"secret"`
	Blinding    string         `json:"blinding"`
	Commitments []string       `json:"commitments"`
	Holders     []vectorHolder `json:"holders"`
}

type vectorHolder struct {
	Index   uint16 `json:"index"`
	Private string `json:"private"`        // P-256 scalar, big-endian
	Seed    string `json:"seed,omitempty"` // ML-KEM-768 seed of a hybrid holder
	Key     string `json:"key"`            // recipient text
	ID      string `json:"id"`             // fingerprint
	Share   string `json:"share"`          // value ‖ blinding
	Info    string `json:"info"`           // HPKE info of the deal
	Sealed  string `json:"sealed"`         // enc ‖ ciphertext
}

type vectorRelease struct {
	Holder  uint16       `json:"holder"` // index among the people
	Request string       `json:"request"`
	To      vectorHolder `json:"to"` // share, info and sealed are of the release
}

type vectorFile struct {
	Index   uint32 `json:"index"`
	Key     string `json:"key"`
	Wrapped string `json:"wrapped"`
}

type vectorRedeal struct {
	Stream      string         `json:"stream"`
	Epoch       uint32         `json:"epoch"`
	Threshold   uint16         `json:"threshold"`
	Dealers     []vectorDealer `json:"dealers"`
	Holder      vectorHolder   `json:"holder"` // one new holder: share in the new epoch
	Commitments []string       `json:"commitments"`
}

type vectorDealer struct {
	Index       uint16   `json:"index"`
	Commitments []string `json:"commitments"`
	SubShare    string   `json:"subShare"` // for the new holder below
	Info        string   `json:"info"`
	Sealed      string   `json:"sealed"`
}

// A tape draws from a seeded stream and remembers what was drawn.
type tape struct {
	source *rand.ChaCha8
	drawn  bytes.Buffer
}

func newTape(seed string) *tape {
	return &tape{source: rand.NewChaCha8(fill(seed))}
}

func (r *tape) Read(b []byte) (int, error) {
	n, err := r.source.Read(b)
	r.drawn.Write(b[:n])
	return n, err
}

func hexPoints(s Sharing) (out []string) {
	for _, p := range s {
		out = append(out, hex.EncodeToString(p[:]))
	}
	return out
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// member rebuilds a holder from its private values.
func (v vectorHolder) member(t testing.TB) member {
	t.Helper()
	private, err := ecdh.P256().NewPrivateKey(unhex(t, v.Private))
	if err != nil {
		t.Fatal(err)
	}
	m := member{key: &countedKey{PrivateKey: private}}
	if v.Seed == "" {
		m.id, err = TokenIdentity(m.key)
	} else {
		pq, kerr := mlkem.NewDecapsulationKey768(unhex(t, v.Seed))
		if kerr != nil {
			t.Fatal(kerr)
		}
		m.id, err = HybridIdentity(m.key, pq)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.Holder = Holder{Index: v.Index, Key: m.id.Recipient()}
	return m
}

func vectorMember(t testing.TB, seed string, index uint16, hybrid bool) vectorHolder {
	t.Helper()
	stream := newTape(seed)
	v := vectorHolder{Index: index}
	for {
		b := make([]byte, 32)
		stream.Read(b)
		if _, err := ecdh.P256().NewPrivateKey(b); err == nil {
			v.Private = hex.EncodeToString(b)
			break
		}
	}
	if hybrid {
		b := make([]byte, mlkem.SeedSize)
		stream.Read(b)
		v.Seed = hex.EncodeToString(b)
	}
	m := v.member(t)
	id := m.ID()
	v.Key, v.ID = m.Key.String(), hex.EncodeToString(id[:])
	return v
}

func TestVectors(t *testing.T) {
	path := filepath.Join("testdata", "vectors.json")
	if *record {
		data, err := json.MarshalIndent(makeVectors(t), "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	checkVectors(t, v)
}

// replay seals again with the recorded randomness.
func replay(t testing.TB, v vectors) *world {
	t.Helper()
	w := &world{t: t, object: [32]byte(unhex(t, v.Object))}
	for _, h := range v.People.Holders {
		w.people = append(w.people, h.member(t))
	}
	for _, h := range v.Machines.Holders {
		w.machines = append(w.machines, h.member(t))
	}
	w.params = Params{[32]byte(unhex(t, v.Charter)), groupOf(int(v.People.Threshold), w.people), groupOf(int(v.Machines.Threshold), w.machines)}
	stream := bytes.NewReader(unhex(t, v.Stream))
	var err error
	w.secrets, w.commitments, err = New(stream, w.params)
	w.must(err)
	if stream.Len() != 0 {
		t.Fatalf("%d bytes of the stream were left", stream.Len())
	}
	copy(w.fileKey[:], unhex(t, v.File.Key))
	w.wrapped, err = w.secrets.WrapFileKey(w.object, v.File.Index, w.fileKey)
	w.must(err)
	return w
}

func checkVectors(t *testing.T, v vectors) {
	same := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %s, recorded %s", what, got, want)
		}
	}
	g := encodePoint(secondGenerator)
	same("second generator", hex.EncodeToString(g[:]), v.Generator)
	w := replay(t, v)
	same("salt", hex.EncodeToString(w.commitments.Salt[:]), v.Salt)
	same("wrapped file key", hex.EncodeToString(w.wrapped), v.File.Wrapped)
	shares := map[Side][]*Share{}
	for side, recorded := range map[Side]vectorSide{People: v.People, Machines: v.Machines} {
		f := w.secrets.people
		members := w.people
		if side == Machines {
			f, members = w.secrets.machines, w.machines
		}
		same("secret and blinding", hex.EncodeToString(f[0].bytes()), recorded.Secret+recorded.Blinding)
		for k, c := range hexPoints(w.sharing(side)) {
			same("commitment", c, recorded.Commitments[k])
		}
		for i, h := range recorded.Holders {
			m := members[i]
			id := m.ID()
			c := w.context(side, m)
			c.Epoch = v.Epoch
			same("recipient", m.Key.String(), h.Key)
			same("holder id", hex.EncodeToString(id[:]), h.ID)
			same("info", hex.EncodeToString(c.dealInfo()), h.Info)
			s, err := OpenShare(context.Background(), m.id, c, w.sharing(side), Deal{c.Object, side, c.Epoch, c.Index, c.Holder, unhex(t, h.Sealed)})
			w.must(err)
			same("share", hex.EncodeToString(s.secret.bytes()), h.Share)
			shares[side] = append(shares[side], s)
		}
	}
	u, err := Unlock(w.object, w.commitments, shares[People], shares[Machines])
	w.must(err)
	key, err := u.FileKey(v.File.Index, unhex(t, v.File.Wrapped))
	w.must(err)
	same("file key", hex.EncodeToString(key[:]), v.File.Key)
	checkReleaseVector(t, w, v, shares[People])
	checkRedealVector(t, w, v, shares[People])
}

func checkReleaseVector(t *testing.T, w *world, v vectors, people []*Share) {
	to := v.Release.To.member(t)
	c := ReleaseContext{people[v.Release.Holder-1].Context(), [32]byte(unhex(t, v.Release.Request)), to.ID()}
	if got := hex.EncodeToString(c.info()); got != v.Release.To.Info {
		t.Errorf("release info %s, recorded %s", got, v.Release.To.Info)
	}
	s, err := OpenRelease(context.Background(), to.id, c, w.commitments.People, unhex(t, v.Release.To.Sealed))
	w.must(err)
	if got := hex.EncodeToString(s.secret.bytes()); got != v.Release.To.Share {
		t.Errorf("released share %s, recorded %s", got, v.Release.To.Share)
	}
}

func checkRedealVector(t *testing.T, w *world, v vectors, people []*Share) {
	m := v.Redeal.Holder.member(t)
	others := []member{m, vectorMember(t, "new 2", 2, false).member(t)}
	r := &Redeal{w.params.Charter, w.object, People, v.Epoch, v.Redeal.Epoch, w.commitments.People, groupOf(int(v.Redeal.Threshold), others)}
	stream := bytes.NewReader(unhex(t, v.Redeal.Stream))
	var subs []*SubDeals
	for _, d := range v.Redeal.Dealers {
		sub, err := r.Deal(stream, people[d.Index-1])
		w.must(err)
		for k, c := range hexPoints(sub.Commitments) {
			if c != d.Commitments[k] {
				t.Errorf("dealer %d: commitment %d is %s, recorded %s", d.Index, k, c, d.Commitments[k])
			}
		}
		if got := hex.EncodeToString(r.info(r.slot(m.Holder), d.Index)); got != d.Info {
			t.Errorf("dealer %d: info %s, recorded %s", d.Index, got, d.Info)
		}
		sub.Deals[0].Sealed = unhex(t, d.Sealed)
		opened, err := r.openSub(context.Background(), m.id, m.Holder, sub)
		w.must(err)
		if got := hex.EncodeToString(opened.secret.bytes()); got != d.SubShare {
			t.Errorf("dealer %d: sub-share %s, recorded %s", d.Index, got, d.SubShare)
		}
		subs = append(subs, sub)
	}
	s, _, err := r.Accept(context.Background(), m.id, m.Index, subs)
	w.must(err)
	if got := hex.EncodeToString(s.secret.bytes()); got != v.Redeal.Holder.Share {
		t.Errorf("re-dealt share %s, recorded %s", got, v.Redeal.Holder.Share)
	}
	sharing, err := r.Sharing(subs)
	w.must(err)
	c := r.slot(m.Holder)
	deal := Deal{c.Object, c.Side, c.Epoch, c.Index, c.Holder, unhex(t, v.Redeal.Holder.Sealed)}
	_, err = OpenShare(context.Background(), m.id, c, sharing, deal)
	w.must(err)
	for k, c := range hexPoints(sharing) {
		if c != v.Redeal.Commitments[k] {
			t.Errorf("re-dealt commitment %d is %s, recorded %s", k, c, v.Redeal.Commitments[k])
		}
	}
}

// makeVectors fills in everything from fixed seeds.
func makeVectors(t testing.TB) vectors {
	g, charter, object, request := encodePoint(secondGenerator), fill("vector charter"), fill("vector object"), fill("vector request")
	v := vectors{
		Recorded: "2026-11-24", Comment: "keyturn lockbox v1; all bytes in hex; see docs/lockbox.md",
		Generator: hex.EncodeToString(g[:]), Charter: hex.EncodeToString(charter[:]), Object: hex.EncodeToString(object[:]), Epoch: 1,
		People:   vectorSide{Threshold: 2, Holders: []vectorHolder{vectorMember(t, "person 1", 1, false), vectorMember(t, "person 2", 2, false), vectorMember(t, "person 3", 3, true)}},
		Machines: vectorSide{Threshold: 3, Holders: []vectorHolder{vectorMember(t, "notary 1", 1, false), vectorMember(t, "notary 2", 2, false), vectorMember(t, "notary 3", 3, false), vectorMember(t, "notary 4", 4, false)}},
		File:     vectorFile{Index: 7, Key: "000102030405060708090a0b0c0d0e0f"},
	}
	stream := newTape("vector stream")
	need := make([]byte, 32+128*5)
	stream.Read(need)
	v.Stream = hex.EncodeToString(need)
	w := replay(t, v)
	v.Salt, v.File.Wrapped = hex.EncodeToString(w.commitments.Salt[:]), hex.EncodeToString(w.wrapped)
	deals, err := w.secrets.Deal(w.object, v.Epoch)
	w.must(err)
	w.deals = deals
	w.recordSide(&v.People, People, w.secrets.people, w.people)
	w.recordSide(&v.Machines, Machines, w.secrets.machines, w.machines)

	to := vectorMember(t, "recipient", 1, false)
	c := ReleaseContext{w.context(People, w.people[0]), request, to.member(t).ID()}
	share := w.open(People, w.people[0])
	sealed, err := Reseal(share, to.member(t).Key, c)
	w.must(err)
	to.Share, to.Info, to.Sealed = hex.EncodeToString(share.secret.bytes()), hex.EncodeToString(c.info()), hex.EncodeToString(sealed)
	v.Release = vectorRelease{Holder: 1, Request: hex.EncodeToString(request[:]), To: to}
	v.Redeal = w.recordRedeal()
	return v
}

func (w *world) recordSide(v *vectorSide, side Side, f polynomial, members []member) {
	secret := f[0].bytes()
	v.Secret, v.Blinding = hex.EncodeToString(secret[:32]), hex.EncodeToString(secret[32:])
	v.Commitments = hexPoints(w.sharing(side))
	for i, m := range members {
		h := &v.Holders[i]
		h.Share = hex.EncodeToString(f.at(m.Index).bytes())
		h.Info = hex.EncodeToString(w.context(side, m).dealInfo())
		h.Sealed = hex.EncodeToString(w.deal(side, m).Sealed)
	}
}

func (w *world) recordRedeal() vectorRedeal {
	first, second := vectorMember(w.t, "new 1", 1, false), vectorMember(w.t, "new 2", 2, false)
	m := first.member(w.t)
	r := &Redeal{w.params.Charter, w.object, People, 1, 2, w.commitments.People, groupOf(2, []member{m, second.member(w.t)})}
	stream := newTape("vector re-deal")
	v := vectorRedeal{Epoch: 2, Threshold: 2}
	var subs []*SubDeals
	for _, dealer := range []member{w.people[0], w.people[2]} {
		sub, err := r.Deal(stream, w.open(People, dealer))
		w.must(err)
		opened, err := r.openSub(context.Background(), m.id, m.Holder, sub)
		w.must(err)
		v.Dealers = append(v.Dealers, vectorDealer{
			dealer.Index, hexPoints(sub.Commitments), hex.EncodeToString(opened.secret.bytes()),
			hex.EncodeToString(r.info(r.slot(m.Holder), dealer.Index)), hex.EncodeToString(sub.Deals[0].Sealed),
		})
		subs = append(subs, sub)
	}
	s, deal, err := r.Accept(context.Background(), m.id, 1, subs)
	w.must(err)
	first.Share, first.Info, first.Sealed = hex.EncodeToString(s.secret.bytes()), hex.EncodeToString(s.context.dealInfo()), hex.EncodeToString(deal.Sealed)
	sharing, err := r.Sharing(subs)
	w.must(err)
	v.Stream, v.Holder, v.Commitments = hex.EncodeToString(stream.drawn.Bytes()), first, hexPoints(sharing)
	return v
}
