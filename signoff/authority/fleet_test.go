package authority

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/policy"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// A fleet is a state with many nodes and one epoch's evidence of all of them. All
// boot alike, as machines of a cluster do: the log and values are those of a
// recorded boot. Keys are made in software and quotes written as a TPM writes
// them, each with its own P-256 signature.
type fleet struct {
	*Authority
	blobs fleetBlobs
	set   Digest
	bare  []bareCheck
}

type fleetBlobs map[Digest][]byte

func (b fleetBlobs) Blob(d Digest) ([]byte, error) {
	if data, ok := b[d]; ok {
		return data, nil
	}
	return nil, ErrMissingBlob
}

func (b fleetBlobs) put(data []byte) Digest {
	d := Digest(sha256.Sum256(data))
	b[d] = data
	return d
}

// A bareCheck is what no appraisal can do without.
type bareCheck struct {
	key    *ecdsa.PublicKey
	digest [32]byte
	sig    []byte // ASN.1
}

const fleetTime = 1_790_000_000

// fleetPolicy gives leases of six hours.
const fleetPolicy = `version: 1
leases: {epoch: 600, lease: 21600, drainGrace: 60}
rules:
  - name: anyone-may-halt
    action: halt
    quorum: {atLeast: {k: 1, role: safety}}
    expiry: 3600
  - name: resume
    action: resume
    quorum: {atLeast: {k: 2, role: safety}}
    expiry: 86400
`

func fleetPolicyRecord(tb testing.TB) *PolicyRecord {
	tb.Helper()
	parsed, err := policy.Parse([]byte(fleetPolicy))
	if err != nil {
		tb.Fatal(err)
	}
	roster := policy.Roster{}
	for i := range 3 {
		roster.People = append(roster.People, policy.Person{ID: Digest{byte(i + 1)}, Name: fmt.Sprintf("p%d", i), Organisation: "lab", Roles: []string{"safety"}})
	}
	compiled, err := parsed.Compile(roster, policy.Limits{})
	if err != nil {
		tb.Fatal(err)
	}
	return &PolicyRecord{Digest: Digest{3}, Compiled: compiled}
}

// fleetMaker made the TPMs of all nodes.
var fleetMaker = attest.Digest{4}

func newFleet(tb testing.TB, nodes int) *fleet {
	tb.Helper()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	a, err := New(Digest{1})
	must(err)
	f := &fleet{Authority: a, blobs: fleetBlobs{}}
	log, values := recordedBoot(tb)
	eventLog := f.blobs.put(log)
	a.roots = []Digest{{2}}
	s := a.state
	s.Time = fleetTime
	s.EKRoots[Digest(fleetMaker)] = &EKRoot{ID: Digest(fleetMaker)}
	s.Policy = fleetPolicyRecord(tb)
	s.consulted = []*attest.ReferenceSet{{Name: "fleet", Version: 1, NotBefore: 1, NotAfter: fleetTime + 1,
		PCRs: map[int][]attest.Digest{4: {values[4]}, 7: {values[7]}, 8: {values[8]}, 9: {values[9]}}}}
	evidence := make([]Digest, nodes)
	pieces := make([][]byte, nodes)
	f.bare = make([]bareCheck, nodes)
	var mu sync.Mutex
	must(parallel(nodes, func(i int) error {
		n, blob, bare, err := s.forge(i, eventLog, values)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		s.Nodes[n.ID], pieces[i], f.bare[i] = n, blob, bare
		return nil
	}))
	for i, blob := range pieces {
		evidence[i] = f.blobs.put(blob)
	}
	f.set = f.blobs.put(signoff.EncodeEvidenceSet(evidence))
	return f
}

// recordedBoot is the event log of a machine and the PCRs it led to
// (attest/testdata/local-boot).
func recordedBoot(tb testing.TB) ([]byte, map[int]attest.Digest) {
	const dir, name = "../../attest/testdata/local-boot/", "secureboot-shim-grub"
	log, err := os.ReadFile(dir + name + ".bios")
	if err != nil {
		tb.Fatal(err)
	}
	text, err := os.ReadFile(dir + "expected-sha256.json")
	if err != nil {
		tb.Fatal(err)
	}
	var boots map[string]map[string]string
	if err := json.Unmarshal(text, &boots); err != nil {
		tb.Fatal(err)
	}
	values := map[int]attest.Digest{}
	for pcr := range 10 {
		v, err := hex.DecodeString(boots[name][strconv.Itoa(pcr)])
		if err != nil || len(v) != 32 {
			tb.Fatalf("PCR %d is not recorded", pcr)
		}
		values[pcr] = attest.Digest(v)
	}
	return log, values
}

// forge makes a node and its evidence.
func (s *State) forge(i int, eventLog Digest, values map[int]attest.Digest) (*Node, []byte, bareCheck, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, bareCheck{}, err
	}
	ak, err := attest.ParsePublic(tpmPublic(key))
	if err != nil {
		return nil, nil, bareCheck{}, err
	}
	id := dsse.Sum("node", fmt.Append(nil, i))
	keys := &attest.Node{ID: attest.Digest(id), EK: &attest.EK{Anchors: []attest.Digest{fleetMaker}}, AK: ak, AKName: ak.Name(), TLSName: slices.Concat([]byte{0, 11}, id[:])}
	nonce := id[:]
	extra := attest.Binding{Domain: attest.DomainEpoch, Nonce: EvidenceNonce(s.ID, Digest{2}), AgentNonce: nonce, TLSName: keys.TLSName, EventLog: attest.Digest(eventLog)}.Digest()
	quote := tpmQuote(extra, values)
	digest := sha256.Sum256(quote)
	der, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return nil, nil, bareCheck{}, err
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		return nil, nil, bareCheck{}, err
	}
	sig := []byte{0x00, 0x18, 0x00, 0x0b} // ECDSA, SHA-256
	sig = tpm2b(tpm2b(sig, rs.R.FillBytes(make([]byte, 32))), rs.S.FillBytes(make([]byte, 32)))
	blob, err := dsse.Encode(Presented{Seen: signoff.Seen{Size: 1, Root: Digest{2}}, Evidence: attest.Evidence{
		Node: keys.ID, AKName: keys.AKName, Quote: quote, Signature: sig, PCRs: values, EventLog: attest.Digest(eventLog), TLSName: keys.TLSName, AgentNonce: nonce,
	}})
	return &Node{ID: id, Name: fmt.Sprintf("node-%d", i), Keys: keys}, blob, bareCheck{&key.PublicKey, digest, der}, err
}

func tpm2b(dst, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(b))), b...)
}

// tpmPublic is the TPMT_PUBLIC of a restricted signing key on P-256 (Part 2,
// section 12.2.4).
func tpmPublic(key *ecdsa.PrivateKey) []byte {
	point, err := key.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	b := []byte{0x00, 0x23, 0x00, 0x0b, 0x00, 0x05, 0x00, 0x72, 0, 0} // ECC, SHA-256 name, attributes, no policy
	b = append(b, 0x00, 0x10, 0x00, 0x18, 0x00, 0x0b, 0x00, 0x03, 0x00, 0x10)
	return tpm2b(tpm2b(b, point[1:33]), point[33:])
}

// tpmQuote is the TPMS_ATTEST of a quote of PCR 0 to 9 (Part 2, section 10.12.12).
func tpmQuote(extra [32]byte, values map[int]attest.Digest) []byte {
	b := []byte{0xff, 'T', 'C', 'G', 0x80, 0x18}
	b = tpm2b(tpm2b(b, append([]byte{0, 11}, make([]byte, 32)...)), extra[:])
	b = binary.BigEndian.AppendUint64(b, 1_000_000) // clock
	b = append(b, 0, 0, 0, 3, 0, 0, 0, 1, 1)        // reset, restart, safe
	b = binary.BigEndian.AppendUint64(b, 7)         // firmware
	b = append(b, 0, 0, 0, 1, 0x00, 0x0b, 3, 0xff, 0x03, 0x00)
	h := sha256.New()
	for pcr := range 10 {
		v := values[pcr]
		h.Write(v[:])
	}
	return tpm2b(b, h.Sum(nil))
}

func (f *fleet) epoch(tb testing.TB) (Digest, []Lease) {
	f.leases = leaseMemo{}
	leases, err := f.Leases(f.set, f.blobs)
	if err != nil {
		tb.Fatal(err)
	}
	root, err := LeaseRoot(leases)
	if err != nil {
		tb.Fatal(err)
	}
	return root, leases
}

// TestFleet: every node of a small fleet passes, however many cores look, and in
// whatever order.
func TestFleet(t *testing.T) {
	const nodes = 300
	f := newFleet(t, nodes)
	root, leases := f.epoch(t)
	if len(leases) != nodes {
		t.Fatalf("%d leases", len(leases))
	}
	for _, l := range leases {
		if l.Verdict != VerdictPass || l.Past.Clock.ResetCount != 3 || l.Evidence.IsZero() {
			t.Fatalf("%+v", l)
		}
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	if alone, _ := f.epoch(t); alone != root {
		t.Errorf("root %s on one core, %s on all", alone, root)
	}
	f.bootLogs = bootLogs{}
	if fresh, _ := f.epoch(t); fresh != root {
		t.Errorf("root %s with the event log read anew, %s before", fresh, root)
	}
}

// heap is how many bytes the heap's objects hold.
func heap() float64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return float64(s[0].Value.Uint64())
}

// peak samples how much the heap holds above what it held at the start, garbage
// included.
func peak(f func()) float64 {
	runtime.GC()
	start, most := heap(), 0.0
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
				most = max(most, heap()-start)
			}
		}
	}()
	f()
	close(done)
	<-stopped
	return max(most, heap()-start)
}

// A spent is time by the clock and by the processor, which what else the machine
// does changes little.
type spent struct{ clock, cpu time.Duration }

func (s *spent) run(tb testing.TB, f func()) {
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			tb.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	began, used := time.Now(), cpu()
	f()
	s.clock += time.Since(began)
	s.cpu += cpu() - used
}

// BenchmarkFleet appraises one epoch of 100,000 nodes, builds the tree of leases
// and signs its root. floor is what cannot be done without: one bare P-256
// verification for each node, and one pass of SHA-256 over the same bytes, on the
// same cores. MB-kept is what the leases take until the next epoch, MB-peak what the
// heap held meanwhile above nodes and evidence, garbage included.
func BenchmarkFleet(b *testing.B) {
	const nodes = 100_000
	f := newFleet(b, nodes)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	blobs := make([][]byte, 0, len(f.blobs))
	bytes := 0
	for _, blob := range f.blobs {
		blobs, bytes = append(blobs, blob), bytes+len(blob)
	}
	var epoch, floor spent
	most := 0.0
	runtime.GC()
	before := heap()
	for b.Loop() {
		epoch.run(b, func() {
			most = max(most, peak(func() {
				root, _ := f.epoch(b)
				ed25519.Sign(key, root[:])
			}))
		})
		floor.run(b, func() {
			_ = parallel(nodes, func(i int) error {
				c := f.bare[i]
				if !ecdsa.VerifyASN1(c.key, c.digest[:], c.sig) {
					b.Error("a signature does not verify")
				}
				return nil
			})
			_ = parallel(len(blobs), func(i int) error { sha256.Sum256(blobs[i]); return nil })
		})
	}
	runtime.GC()
	kept := heap() - before
	runtime.KeepAlive(f)
	b.ReportMetric(epoch.clock.Seconds()/float64(b.N), "s/epoch")
	b.ReportMetric(epoch.cpu.Seconds()/float64(b.N), "cpu-s/epoch")
	b.ReportMetric(float64(epoch.clock)/float64(floor.clock), "epoch/floor")
	b.ReportMetric(float64(epoch.cpu)/float64(floor.cpu), "cpu-epoch/floor")
	b.ReportMetric(kept/1e6, "MB-kept")
	b.ReportMetric(most/1e6, "MB-peak")
	b.ReportMetric(float64(bytes)/nodes, "B/node")
}
