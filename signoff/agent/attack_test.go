package agent_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/agent"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// The agent's directory on another machine is of no use there.
func TestAttackIdentityCopiedWithoutItsTPM(t *testing.T) {
	w := newWorld(t, slow, 2)
	one, two := w.nodes[0], w.nodes[1]
	one.start()
	one.enrol()
	one.stop() // it writes what it saw last, beside
	cfg := two.config()
	if err := os.CopyFS(cfg.Dir, os.DirFS(one.config().Dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.New(t.Context(), cfg); !errors.Is(err, hsm.ErrWrongIdentity) {
		t.Fatalf("error %v, want that it is another TPM", err)
	}
}

// A coordinator that leaves out a policy change shows another log than the one
// that a quorum cosigned; nothing of it counts.
func TestAttackLogOmitsPolicyChange(t *testing.T) {
	w := newWorld(t, slow, 1)
	w.changePolicy(signofftest.Policy + "# tighter\n")
	m := w.nodes[0]
	for name, answer := range map[string]func([][]byte) [][]byte{
		"as it is": func(lines [][]byte) [][]byte { return lines },
		"left out": func(lines [][]byte) [][]byte { return slices.DeleteFunc(lines, isWarrant) },
		"void":     func(lines [][]byte) [][]byte { return replace(lines, isWarrant, []byte("{}")) },
		"reordered": func(lines [][]byte) [][]byte {
			if n := len(lines); n > 1 {
				lines[n-1], lines[n-2] = lines[n-2], lines[n-1]
			}
			return lines
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := m.config()
			cfg.Dir = t.TempDir()
			cfg.Endpoints = w.hostile(func(rw http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != "/v1/entries" {
					return false
				}
				from, _ := strconv.ParseUint(r.FormValue("from"), 10, 64)
				to, _ := strconv.ParseUint(r.FormValue("to"), 10, 64)
				lines, err := w.Client.Entries(r.Context(), from, to)
				if err != nil {
					return false
				}
				rw.Write(append(bytes.Join(answer(lines), []byte("\n")), '\n'))
				return true
			})
			m.startWith(cfg)
			time.Sleep(1500 * time.Millisecond)
			if s := m.status(); (s.Size == 0) == (name == "as it is") || s.Lease != 0 {
				t.Errorf("the agent believes %d entries, lease %d", s.Size, s.Lease)
			}
			m.stop()
		})
	}
}

func isWarrant(line []byte) bool {
	doc, err := signoff.ReadLine(line)
	return err == nil && doc.Doc.Kind() == signoff.KindWarrant
}

func replace(lines [][]byte, is func([]byte) bool, by []byte) [][]byte {
	for i, l := range lines {
		if is(l) {
			lines[i] = by
		}
	}
	return lines
}

func (w *world) changePolicy(text string) {
	w.t.Helper()
	w.Tick()
	req := w.Request("alice", signoff.ActionPolicyChange, func(r *signoff.Request) { r.Policy = &signoff.PolicyChange{Policy: text} })
	w.must(w.Append(req))
	for _, p := range []string{"bob", "carol", "dave", "erin"} {
		w.must(w.Append(w.Decide(p, req.Digest(), signoff.Approve)))
	}
	w.Wait("the policy", func(s *authority.State) bool { return s.Policy.Text == text })
}

// Last week's log is genuine, final and old. An agent that has seen more
// refuses it; one that lost its memory finds no lease in it that answers a
// nonce of its own.
func TestAttackLastWeeksLeaseRoot(t *testing.T) {
	w, m, _ := single(t, slow)
	warrant := w.launch("inputs", 1, m)
	m.listed(warrant)
	old := w.finalNote()
	size := noteSize(t, old)
	w.until("a longer log", func() bool { return m.status().Size > size+3 })
	m.stop()
	cfg := m.config()
	cfg.Endpoints = w.hostile(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v1/checkpoint" {
			return false
		}
		if min, _ := strconv.ParseUint(r.FormValue("size"), 10, 64); min > size {
			time.Sleep(50 * time.Millisecond)
			http.Error(rw, "{}", http.StatusNotFound)
			return true
		}
		rw.Write(old)
		return true
	})

	m.startWith(cfg)
	time.Sleep(time.Second)
	if s := m.status(); s.Size != 0 || s.Lease != 0 {
		t.Errorf("the agent went back to %d entries, lease %d", s.Size, s.Lease)
	}
	m.stop()

	if err := os.Remove(filepath.Join(cfg.Dir, "seen.json")); err != nil {
		t.Fatal(err)
	}
	m.startWith(cfg)
	w.until("the old log", func() bool { return m.status().Size == size })
	time.Sleep(500 * time.Millisecond)
	if s := m.status(); s.Lease != 0 || !strings.Contains(s.NoLease, "no epoch has answered this agent yet") {
		t.Errorf("lease %d, %q; want none from an old root", s.Lease, s.NoLease)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := m.run(ctx, warrant, w.probe).end(); err == nil {
		t.Error("a use was taken on an old lease")
	}
}

// A coordinator shows another node's leaf for this one's, or says that an epoch had
// no effect which had one. The agent takes neither, and goes on once it is told the
// truth.
func TestAttackCoordinatorLiesAboutNodes(t *testing.T) {
	w := newWorld(t, slow, 2)
	m, other := w.nodes[0], w.nodes[1]
	for _, n := range w.nodes {
		n.start()
		n.enrol()
		n.leased()
	}
	m.stop()
	var lie atomic.Value
	lie.Store("void")
	var told atomic.Int64
	cfg := m.config()
	cfg.Endpoints = w.hostile(func(rw http.ResponseWriter, r *http.Request) bool {
		switch {
		case lie.Load() == "void" && r.URL.Path == "/v1/void":
			var epoch uint64
			w.State(func(_ *authority.Authority, s *authority.State) { epoch = s.Epoch.Index })
			fmt.Fprintf(rw, "[%d]", epoch)
			told.Add(1)
			return true
		case lie.Load() == "lease" && strings.HasPrefix(r.URL.Path, "/v1/leases/"):
			r.URL.Path = "/v1/leases/" + other.id.Hex()
			told.Add(1)
		}
		return false
	})
	m.startWith(cfg)
	w.until("two lies about an epoch", func() bool { return told.Load() > 1 })
	if s := m.status(); s.Size != 0 || s.Lease != 0 {
		t.Fatalf("the agent follows a log in which an epoch was left out: %d entries, lease %d", s.Size, s.Lease)
	}
	lie.Store("lease")
	told.Store(0)
	w.until("three lies about a lease", func() bool { return told.Load() > 2 })
	if s := m.status(); s.Size == 0 || s.Lease != 0 || s.NoLease != "no lease: no epoch has answered this agent yet" {
		t.Fatalf("%d entries, lease %d: %s", s.Size, s.Lease, s.NoLease)
	}
	lie.Store("")
	m.leased()
}

// A coordinator lies about an epoch, breaks off, and tells the truth from then on. The
// agent has verified all of it and must not go on with the lie that it heard first.
func TestAttackCoordinatorTakesALieBack(t *testing.T) {
	w := newWorld(t, slow, 1)
	m := w.nodes[0]
	m.start()
	m.enrol()
	m.leased()
	epoch := w.finalEpoch()
	m.stop()
	cfg := m.config()
	var lied, broke atomic.Bool
	cfg.Endpoints = w.hostile(func(rw http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/v1/void" && lied.CompareAndSwap(false, true):
			fmt.Fprintf(rw, "[%d]", epoch)
			return true
		case r.URL.Path == "/v1/entries" && r.FormValue("from") != "0" && broke.CompareAndSwap(false, true):
			http.Error(rw, "later", http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	m.startWith(cfg)
	m.leased()
	if !lied.Load() || !broke.Load() {
		t.Fatal("no lie was told")
	}
}

// finalEpoch is the index of an epoch in the final log.
func (w *world) finalEpoch() (index uint64) {
	w.t.Helper()
	w.Wait("an epoch", func(s *authority.State) bool {
		if s.Epoch != nil {
			index = s.Epoch.Index
		}
		return s.Epoch != nil
	})
	w.until("a final epoch", func() bool { return noteSize(w.t, w.finalNote()) > index })
	return index
}

// A hostile notary gets a challenge that no TPM opens in front of every other's. Those
// are answered all the same.
func TestAttackChallengesThatNoTPMOpens(t *testing.T) {
	w := newWorld(t, slow, 1)
	m, hostile := w.nodes[0], w.Notaries[0]
	var sent atomic.Int64
	cfg := m.config()
	cfg.Endpoints = w.hostile(func(rw http.ResponseWriter, r *http.Request) bool {
		topic, ok := strings.CutPrefix(r.URL.Path, "/v1/mail/")
		name, enrols := strings.CutPrefix(topic, "enrol-")
		if !ok || !enrols || r.Method != http.MethodGet {
			return false
		}
		request, err := dsse.ParseDigest("sha256:" + name)
		after, err2 := strconv.ParseUint(r.FormValue("after"), 10, 64)
		mail, err3 := w.Client.Receive(r.Context(), topic, after, 0)
		c, err4 := signoff.Sign(r.Context(), hostile.Signing, &signoff.Challenge{Charter: w.ID, Notary: hostile.Doc.ID(), Request: request, Credential: []byte("junk"), Secret: []byte("junk")})
		if errors.Join(err, err2, err3, err4) != nil || len(mail.Messages) == 0 {
			return false // the sum below tells
		}
		mail.Messages = slices.Insert(mail.Messages, 0, api.Message{Number: after + 1, Body: c.Line()})
		b, err := dsse.Encode(mail)
		if err != nil {
			return false
		}
		rw.Write(b)
		sent.Add(1)
		return true
	})
	m.startWith(cfg)
	m.enrol()
	if sent.Load() == 0 {
		t.Fatal("no bad challenge was sent")
	}
}

// listed waits until the agent's lease lists the warrant.
func (m *machine) listed(warrant signoff.Digest) {
	m.w.t.Helper()
	m.w.until("the warrant on the lease", func() bool { return slices.Contains(m.status().Live, warrant) })
}

func noteSize(t *testing.T, note []byte) uint64 {
	t.Helper()
	c, err := proof.Unverified(note)
	if err != nil {
		t.Fatal(err)
	}
	return c.Size
}

// A claim that a quorum has not cosigned releases nothing and starts nothing.
// When it does become final, after whoever asked has gone, it is spent.
func TestAttackReleaseAskedBeforeFinal(t *testing.T) {
	w, m, _ := single(t, slow)
	warrant := w.launch("inputs", 1, m)
	m.listed(warrant)
	for _, n := range w.Notaries[2:] {
		n.Stop()
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := m.run(ctx, warrant, w.probe)
	kinds := func() []signoff.Kind {
		lines, err := w.Client.Entries(t.Context(), 0, 1<<20)
		w.must(err)
		var out []signoff.Kind
		for _, l := range lines {
			if doc, err := signoff.ReadLine(l); err == nil {
				out = append(out, doc.Doc.Kind())
			}
		}
		return out
	}
	w.until("the claim in the log", func() bool { return slices.Contains(kinds(), signoff.KindClaim) })
	time.Sleep(time.Second)
	if slices.Contains(kinds(), signoff.KindRelease) || r.has(agent.EventClaimed) {
		t.Error("a claim that is not final was taken for one")
	}
	cancel()
	r.end()
	w.until("the agent to see that nobody asks any more", func() bool { return len(m.status().Runs) == 0 })
	for _, n := range w.Notaries[2:] {
		w.StartNotary(n)
	}
	if got := w.ended(warrant, 1); strings.Contains(got[0], "exited") {
		t.Errorf("the run ended with %q", got[0])
	}
	wantErr(t, m.run(t.Context(), warrant, w.probe).end(), "all 1 uses")
}

// A warrant counts once, however often it is sent, and one for another request
// or with another signature not at all.
func TestAttackReplayedWarrant(t *testing.T) {
	w, m, _ := single(t, slow)
	warrant := w.launch("inputs", 1, m)
	if err := m.run(t.Context(), warrant, w.probe).end(); err != nil {
		t.Fatal(err)
	}
	lines, err := w.Client.Entries(t.Context(), 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(lines, func(l []byte) bool {
		doc, err := signoff.ReadLine(l)
		return err == nil && doc.Digest() == warrant
	})
	var refused *api.Error
	if _, err := w.Client.Append(t.Context(), lines[i]); !errors.As(err, &refused) || refused.Status != http.StatusUnprocessableEntity {
		t.Errorf("the warrant again: %v, want 422", err)
	}
	w.ended(warrant, 1)
	wantErr(t, m.run(t.Context(), warrant, w.probe).end(), "all 1 uses")
	wantErr(t, m.run(t.Context(), signoff.Digest{1}, w.probe).end(), "not in the log")
}

// Who shows a certificate must be an enrolled node; a stranger's is refused,
// and so is the node's once it is retired.
func TestAttackStrangersCertificate(t *testing.T) {
	w, m, _ := single(t, slow)
	key := w.People["bob"].Signing
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	endpoints := []api.Endpoint{{URL: w.URL, TLS: w.Charter.Coordinators[0].TLS}}
	stranger, err := api.NewClient(endpoints, &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Checkpoint(t.Context(), true, 1, time.Second); err == nil {
		t.Error("a stranger's certificate was taken")
	}
	w.Tick()
	req := w.Request("alice", signoff.ActionRetire, func(r *signoff.Request) { r.Retire = &signoff.Retire{Node: m.id} })
	w.must(w.Append(req))
	w.must(w.Append(w.Decide("bob", req.Digest(), signoff.Approve)))
	w.until("the end of the lease", func() bool { return m.status().Lease == 0 && !m.status().Enrolled })
}

// A coordinator that answers nothing any more cannot keep a halt from working:
// what stops is judged on a fold that no call to it blocks.
func TestAttackStallingCoordinator(t *testing.T) {
	w := newWorld(t, slow, 1)
	m := w.nodes[0]
	var stall atomic.Bool
	cfg := m.config()
	cfg.Endpoints = w.hostile(func(rw http.ResponseWriter, r *http.Request) bool {
		if stall.Load() && r.URL.Path == "/v1/entries" && r.Method == http.MethodGet {
			select {
			case <-r.Context().Done():
			case <-t.Context().Done():
			}
			return true
		}
		return false
	})
	m.startWith(cfg)
	m.enrol()
	m.leased()
	r := ticking(w, m, w.launch("tick", 1, m))
	stall.Store(true)
	time.Sleep(1500 * time.Millisecond) // the follower hangs in a fetch by now
	at := time.Now()
	if err := m.client.Halt(t.Context(), w.halt("dave").Line()); err != nil {
		t.Fatal(err)
	}
	r.await(agent.EventFrozen)
	t.Logf("frozen after %v", time.Since(at)) // a second at most, where the machine is not busy
	stall.Store(false)
}

// Weights whose ciphertext or manifest is not what people approved do not
// reach a run, and what the manifest does not say never does.
func TestAttackOtherWeightsOnTheNode(t *testing.T) {
	w, m, _ := single(t, slow)
	warrant := w.launch("inputs", 2, m)
	path := filepath.Join(w.sealed, "files", "model.bin.age")
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(body)
	flipped[len(flipped)-1] ^= 1
	if err := os.WriteFile(path, flipped, 0o600); err != nil {
		t.Fatal(err)
	}
	r := m.run(t.Context(), warrant, w.probe)
	wantErr(t, r.end(), "model.bin")
	if r.has(agent.EventStarted) || r.output() != "" {
		t.Error("the executable ran on altered weights")
	}
	if got := w.ended(warrant, 1); !strings.Contains(got[0], "did not start") {
		t.Errorf("the receipt says %q", got[0])
	}
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(w.sealed, agent.ManifestFile)
	signed, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(manifest, signed[:len(signed)-2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.run(t.Context(), warrant, w.probe).end(); err == nil {
		t.Error("a run started with a damaged manifest")
	}
	w.State(func(_ *authority.Authority, s *authority.State) {
		if used := s.Warrants[warrant].Used; used != 1 {
			t.Errorf("%d uses taken, want 1: what can be seen before the claim costs none", used)
		}
	})
}
