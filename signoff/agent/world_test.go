package agent_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/ima"
	"github.com/keyturn/keyturn/attest/tpm"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	keys "github.com/keyturn/keyturn/hsm/tpm"
	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
	"github.com/keyturn/keyturn/policy/enforce/linux"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/agent"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/signofftest"
	"github.com/keyturn/keyturn/signoff/weights"
	"github.com/keyturn/keyturn/signoff/weights/stream"
)

func TestMain(m *testing.M) {
	linux.Init()
	code := m.Run()
	if probeDir != "" {
		os.RemoveAll(probeDir)
	}
	os.Exit(code)
}

// secret is the plaintext that only a run may see.
const secret = "the weights of the model"

// A machine is a node of its own: a software TPM with a synthetic boot, a
// directory and an agent.
type machine struct {
	w        *world
	name     string
	emulator *swtpm.Emulator
	device   *tpm.Device
	dir      string
	log      string // event log
	approval string
	id       signoff.Digest
	enrolled []byte // what people enrol
	client   *agent.Client
	gate     *linux.Gate
	stop     func()
}

// A world is a cluster with machines and sealed weights.
type world struct {
	*signofftest.Cluster
	t      *testing.T
	boot   hsm.Key // the charter's boot-policy key
	nodes  []*machine
	object signoff.Digest
	sealed string
	output int64  // bytes, of the launches asked for
	probe  string // path
	leases string
	files  *ima.Rules // of the reference set, nil for none

	snapshots string // directory on a file system that all machines share
}

// slow leases do not run out while a busy test machine thinks.
const slow = "leases: {epoch: 1, lease: 60, drainGrace: 20}"

// newWorld starts a cluster whose charter accepts the boot of the machines made
// here, and enrols the first.
func newWorld(t *testing.T, leases string, machines int, edits ...func(*world)) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: the gate needs root")
	}
	if err := swtpm.Available(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	t.Parallel() // most of a test is waiting
	w := &world{t: t, leases: leases, probe: buildProbe(t), snapshots: t.TempDir()}
	w.boot = w.bootKey()
	for i := range machines {
		w.nodes = append(w.nodes, w.newMachine(fmt.Sprintf("node-%d", i+1)))
	}
	for _, edit := range edits {
		edit(w)
	}
	w.Cluster = signofftest.Start(t, w.editCharter)
	w.seal()
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) bootKey() hsm.Key {
	uri := "file:" + filepath.Join(w.t.TempDir(), "boot.pem")
	_, err := file.Generate(uri, hsm.KindP256)
	w.must(err)
	k, err := file.Open(uri, nil)
	w.must(err)
	return k
}

func (w *world) newMachine(name string) *machine {
	m := &machine{w: w, name: name, emulator: swtpm.New(w.t), dir: w.t.TempDir()}
	m.log, m.approval = filepath.Join(m.dir, "bios"), filepath.Join(m.dir, "boots")
	m.boot("kernel 1")
	values, err := m.device.ReadPCRs(w.t.Context(), approvedPCRs)
	w.must(err)
	approval, err := keys.ApproveBoot(w.t.Context(), w.boot, values)
	w.must(err)
	line, err := dsse.Encode(approval)
	w.must(err)
	w.must(os.WriteFile(m.approval, append(line, '\n'), 0o600))
	return m
}

var approvedPCRs = []int{0, 4, 8}

// boot connects to the TPM and measures a boot.
func (m *machine) boot(kernel string) {
	t := m.w.t
	t.Helper()
	var err error
	m.device, err = tpm.Open(m.emulator.Path)
	m.w.must(err)
	d := m.device
	t.Cleanup(func() { d.Close() })
	log, err := tpm.SyntheticBoot(context.Background(), d, []tpm.Measured{
		{PCR: 0, Type: tpm.EventSCRTMVersion, Data: []byte("synthetic firmware")},
		{PCR: 4, Type: tpm.EventBootApplication, Data: []byte(kernel)},
		{PCR: 8, Type: tpm.EventIPL, Data: []byte("synthetic command line")},
	})
	m.w.must(err)
	m.w.must(os.WriteFile(m.log, log, 0o600))
}

// editCharter admits the machines' TPMs and what they booted.
func (w *world) editCharter(c *signoff.Charter) {
	const leases = "leases: {epoch: 2, lease: 8, drainGrace: 2}"
	if !strings.Contains(c.Policy, leases) {
		w.t.Fatalf("the policy does not say %q", leases)
	}
	c.Policy = strings.Replace(c.Policy, leases, w.leases, 1)
	boot, err := signoff.NewPublicKey(w.boot.Public(), hsm.ClassSoftware)
	w.must(err)
	c.BootPolicy = &boot
	set := &attest.ReferenceSet{Name: "test", Version: 1, NotBefore: 1, NotAfter: time.Now().Unix() + 86400, PCRs: map[int][]attest.Digest{}, IMA: w.files}
	for _, m := range w.nodes {
		c.EKRoots = append(c.EKRoots, m.emulator.CA...)
		values, err := m.device.ReadPCRs(w.t.Context(), []int{4, 8})
		w.must(err)
		set.PCRs = map[int][]attest.Digest{4: {values[4]}, 8: {values[8]}}
	}
	text, err := set.Marshal()
	w.must(err)
	c.References = []string{string(text)}
}

// group is the cgroup of the machine's runs.
func (m *machine) group() string {
	return fmt.Sprintf("keyturn-agent-test-%d-%s-%s", os.Getpid(), m.w.t.Name(), m.name)
}

// cgroups is where cgroup v2 is mounted.
func cgroups(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("findmnt", "-n", "-o", "TARGET", "-t", "cgroup2").Output()
	if err != nil {
		t.Fatal("findmnt: ", err)
	}
	return strings.TrimSpace(strings.SplitN(string(out), "\n", 2)[0])
}

// config is what the machine's agent runs with.
func (m *machine) config() agent.Config {
	if m.gate == nil {
		gate, err := linux.New(linux.Config{Parent: m.group()})
		m.w.must(err)
		m.gate = gate
		group := filepath.Join(cgroups(m.w.t), m.group())
		m.w.t.Cleanup(func() { os.Remove(group) }) // it stays if a run is left in it
	}
	return agent.Config{ID: m.w.ID, Charter: m.w.Charter, TPM: m.device, Dir: filepath.Join(m.dir, "state"), EventLog: m.log, IMA: filepath.Join(m.dir, "ima"), BootApproval: m.approval,
		Objects: []string{m.w.sealed}, Socket: filepath.Join(filepath.Dir(strings.TrimPrefix(m.emulator.Path, "unix:")), "agent"), Gate: m.gate, Snapshots: m.w.snapshots, Log: m.w.Log.With("node", m.name)}
}

// start runs the machine's agent.
func (m *machine) start() { m.startWith(m.config()) }

func (m *machine) startWith(cfg agent.Config) {
	t := m.w.t
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a, err := agent.New(ctx, cfg)
	m.w.must(err)
	m.id, m.enrolled = a.Node(), a.Enrolment()
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent %s: %v", m.name, err)
		}
	})
	t.Cleanup(m.stop)
	m.dial(cfg.Socket)
}

// dial waits until the agent answers.
func (m *machine) dial(socket string) {
	m.w.t.Helper()
	m.w.until("the control socket", func() (ok bool) {
		var err error
		m.client, err = agent.Dial(socket)
		return err == nil
	})
}

// status asks the agent.
func (m *machine) status() *agent.Status {
	m.w.t.Helper()
	s, err := m.client.Status(context.Background())
	m.w.must(err)
	return s
}

// until polls for at most half a minute.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited 2 min for %s", what)
		}
	}
}

// enrol has the machine enrolled by two people.
func (m *machine) enrol() {
	w := m.w
	w.t.Helper()
	blob, err := w.Client.PutBlob(w.t.Context(), m.enrolled)
	w.must(err)
	w.Tick()
	req := w.Request("alice", signoff.ActionEnrol, func(r *signoff.Request) {
		r.Enrol = &signoff.Enrol{Name: m.name, Node: m.id, Enrolment: blob}
	})
	w.must(w.Append(req))
	for _, p := range []string{"bob", "erin"} {
		w.must(w.Append(w.Decide(p, req.Digest(), signoff.Approve)))
	}
	w.Wait("the node", func(s *authority.State) bool { return s.Nodes[m.id] != nil })
}

// leased waits until the agent holds a lease.
func (m *machine) leased() {
	m.w.t.Helper()
	m.w.until("a lease of "+m.name, func() bool { return m.status().Lease > 0 })
}

// seal seals one file as alice and puts the object with its deals into the log.
func (w *world) seal() {
	w.t.Helper()
	src := filepath.Join(w.t.TempDir(), "model")
	w.must(os.Mkdir(src, 0o700))
	w.must(os.WriteFile(filepath.Join(src, "model.bin"), []byte(secret), 0o600))
	w.sealed = src + ".sealed"
	var object *signoff.Signed
	var secrets *lockbox.Secrets
	sealed, err := weights.Seal(w.t.Context(), src, w.sealed, weights.Options{Name: "model", Finish: func(ctx context.Context, d *weights.Draft) (*weights.Final, error) {
		s, c, err := lockbox.New(rand.Reader, w.lockboxParams())
		if err != nil {
			return nil, err
		}
		secrets, object = s, w.Sign("alice", &signoff.Object{Charter: w.ID, Sealer: w.People["alice"].Doc.ID(), Name: "model", Manifest: d.Manifest.Digest(),
			Lockbox: signoff.Lockbox{Salt: c.Salt[:], People: signoff.Sharing{Threshold: c.People.Threshold(), Commitments: c.People.Bytes()},
				Machines: signoff.Sharing{Threshold: c.Machines.Threshold(), Commitments: c.Machines.Bytes()}},
			Summary: signoff.Summary{Files: d.Summary.Files, Bytes: d.Summary.Bytes}, Created: time.Now().Unix()})
		manifest, err := weights.SignManifest(ctx, w.People["alice"].Signing, d.Manifest)
		id := [32]byte(object.Digest())
		return &weights.Final{Object: id, Documents: map[string][]byte{agent.ManifestFile: manifest, agent.ObjectFile: append(object.Line(), '\n')},
			Wrap: func(file int, key stream.FileKey) ([]byte, error) { return s.WrapFileKey(id, uint32(file), key) }}, err
	}})
	w.must(err)
	defer secrets.Wipe()
	w.object = sealed.Object
	deals, err := secrets.Deal(sealed.Object, 1)
	w.must(err)
	text, err := dsse.Encode(deals)
	w.must(err)
	blob, err := w.Client.PutBlob(w.t.Context(), text)
	w.must(err)
	w.must(w.Append(object))
	w.must(w.Append(w.Sign("alice", &signoff.Deals{Charter: w.ID, Sealer: w.People["alice"].Doc.ID(), Object: w.object, Epoch: 1, Blob: blob})))
}

func (w *world) lockboxParams() lockbox.Params {
	p := lockbox.Params{Charter: w.ID, People: lockbox.Group{Threshold: uint16(w.Charter.Threshold)}, Machines: lockbox.Group{Threshold: uint16(w.Charter.Quorum())}}
	holder := func(g *lockbox.Group, k signoff.PublicKey) {
		pub, err := k.ECDH()
		w.must(err)
		to, err := lockbox.P256Recipient(pub)
		w.must(err)
		g.Holders = append(g.Holders, lockbox.Holder{Index: uint16(len(g.Holders) + 1), Key: to})
	}
	for _, x := range w.Charter.People {
		holder(&p.People, x.Exchange)
	}
	for _, x := range w.Charter.Notaries {
		holder(&p.Machines, x.Exchange)
	}
	return p
}

// approve makes a person's approval of a launch, with the shares it carries.
func (w *world) approve(person string, request signoff.Digest) *signoff.Signed {
	w.t.Helper()
	a := w.Decide(person, request, signoff.Approve).Doc.(*signoff.Approval)
	w.State(func(_ *authority.Authority, s *authority.State) {
		r := s.Requests[request]
		for _, object := range r.Doc.Objects() {
			share := w.openShare(person, s, s.Objects[object])
			for _, node := range r.Doc.Launch.Pool {
				to, err := lockbox.P256Recipient(s.Nodes[node].Keys.StorageKey)
				w.must(err)
				sealed, err := lockbox.Reseal(share, to, lockbox.ReleaseContext{Context: share.Context(), Request: request, Recipient: to.ID()})
				w.must(err)
				a.Shares = append(a.Shares, signoff.Share{Object: object, Epoch: 1, Index: share.Context().Index, Recipient: to.ID(), Sealed: sealed})
			}
		}
	})
	return w.Sign(person, a)
}

func (w *world) openShare(person string, s *authority.State, o *authority.Object) *lockbox.Share {
	blob, err := w.Client.Blob(w.t.Context(), o.People.Deals)
	w.must(err)
	deals, err := lockbox.ParseDeals(blob)
	w.must(err)
	id, err := lockbox.TokenIdentity(w.People[person].Exchange)
	w.must(err)
	deal, err := deals.Find(lockbox.People, id.Recipient().ID())
	w.must(err)
	sharing, err := o.People.Sharing(o.People.Epoch)
	w.must(err)
	m, _ := s.Person(w.People[person].Doc.ID())
	share, err := lockbox.OpenShare(w.t.Context(), id, lockbox.Context{Charter: w.ID, Object: o.ID, Side: lockbox.People, Epoch: o.People.Epoch, Index: m.Index, Holder: id.Recipient().ID()}, sharing, deal)
	w.must(err)
	return share
}

// askLaunch puts a request to run the probe into the log.
func (w *world) askLaunch(act string, uses int, pool ...*machine) signoff.Digest {
	w.t.Helper()
	w.Tick()
	image, err := os.ReadFile(w.probe)
	w.must(err)
	req := w.Request("alice", signoff.ActionLaunch, func(r *signoff.Request) {
		r.Launch = &signoff.Launch{Name: "probe", Executable: sha256.Sum256(image), Argv: []string{"probe", act}, Objects: []signoff.Digest{w.object}, Uses: uses, Seconds: 120, Output: w.output}
		for _, m := range pool {
			r.Launch.Pool = append(r.Launch.Pool, m.id)
		}
	})
	w.must(w.Append(req))
	return req.Digest()
}

// launch brings a request all the way to its warrant.
func (w *world) launch(act string, uses int, pool ...*machine) signoff.Digest {
	w.t.Helper()
	request := w.askLaunch(act, uses, pool...)
	for _, p := range []string{"bob", "carol", "erin"} {
		w.must(w.Append(w.approve(p, request)))
	}
	var warrant signoff.Digest
	w.Wait("the warrant", func(s *authority.State) bool {
		warrant = s.Requests[request].Warrant
		return !warrant.IsZero()
	})
	return warrant
}

// A running is a run as its asker sees it.
type running struct {
	w    *world
	mu   sync.Mutex
	seen []agent.Event
	out  strings.Builder
	done chan error
}

// run asks the machine's agent for a use.
func (m *machine) run(ctx context.Context, warrant signoff.Digest, path string) *running {
	return m.resume(ctx, warrant, path, signoff.Digest{})
}

// resume asks for a use that opens a snapshot as well.
func (m *machine) resume(ctx context.Context, warrant signoff.Digest, path string, resume signoff.Digest) *running {
	r := &running{w: m.w, done: make(chan error, 1)}
	go func() {
		r.done <- m.client.Run(ctx, warrant, path, resume, func(e agent.Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if e.Event == agent.EventOutput {
				r.out.Write(e.Output)
				return
			}
			r.seen = append(r.seen, e)
		})
	}()
	return r
}

func (r *running) has(event string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.seen {
		if e.Event == event {
			return true
		}
	}
	return false
}

// await waits for an event.
func (r *running) await(event string) {
	r.w.t.Helper()
	r.w.until("the event "+event, func() bool {
		select {
		case err := <-r.done:
			r.done <- err
			if !r.has(event) {
				r.w.t.Fatalf("the run ended without the event %s: %v; %+v", event, err, r.seen)
			}
		default:
		}
		return r.has(event)
	})
}

func (r *running) output() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.String()
}

// end waits for the answer's end.
func (r *running) end() error {
	r.w.t.Helper()
	select {
	case err := <-r.done:
		r.done <- err
		return err
	case <-time.After(2 * time.Minute):
		r.w.t.Fatal("waited 2 min for the end of a run")
		return nil
	}
}

// ended is what the final log says of a warrant's claims: uses taken, and the
// words of those that ended.
func (w *world) ended(warrant signoff.Digest, n int) []string {
	w.t.Helper()
	var out []string
	w.Wait(fmt.Sprintf("%d ended claims", n), func(s *authority.State) bool {
		out = nil
		for _, c := range s.Claims {
			if c.Doc.Warrant == warrant && c.Ended != "" {
				out = append(out, c.Ended)
			}
		}
		return len(out) >= n
	})
	return out
}

func wantErr(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Fatalf("error %v, want one with %q", err, part)
	}
}

var (
	probeOnce sync.Once
	probeDir  string
	probeErr  error
)

func buildProbe(t *testing.T) string {
	t.Helper()
	probeOnce.Do(func() {
		if probeDir, probeErr = os.MkdirTemp("", "keyturn-probe"); probeErr != nil {
			return
		}
		build := exec.Command("go", "build", "-o", filepath.Join(probeDir, "probe"), "./testdata/probe")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			probeErr = fmt.Errorf("building the probe: %w: %s", err, out)
		}
	})
	if probeErr != nil {
		t.Fatal(probeErr)
	}
	return filepath.Join(probeDir, "probe")
}

// send mails a message to a topic.
func (w *world) send(topic string, body []byte) { w.must(w.Client.Send(w.t.Context(), topic, body)) }

var _ = api.TopicHalts
