package notary_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/notary"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

// mortalEnv makes the test binary a notary's process.
const mortalEnv = "KEYTURN_TEST_MORTAL"

func TestMain(m *testing.M) {
	if spec := os.Getenv(fusedEnv); spec != "" {
		fmt.Fprintln(os.Stderr, armAndDie(spec))
		os.Exit(1)
	}
	if spec := os.Getenv(mortalEnv); spec != "" {
		fmt.Fprintln(os.Stderr, liveAndDie(spec))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// mortal is a notary that runs in a process of its own.
type mortal struct {
	Charter signoff.Digest
	URL     string
	TLS     signoff.Digest
	Dir     string
	Keys    string // its key files' common beginning
	Ledger  string // file: the steps at which it was killed already
}

// liveAndDie runs the notary until it has done something on its disk for the
// first time ever; there it kills itself.
func liveAndDie(spec string) error {
	var m mortal
	if err := json.Unmarshal([]byte(spec), &m); err != nil {
		return err
	}
	client, err := api.NewClient([]api.Endpoint{{URL: m.URL, TLS: m.TLS}}, nil)
	if err != nil {
		return err
	}
	cfg := notary.Config{Charter: m.Charter, Dir: m.Dir, Client: client, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if cfg.Signing, err = file.Open(m.Keys+".pem", nil); err != nil {
		return err
	}
	if cfg.Witness, err = file.Open(m.Keys+"-w.pem", nil); err != nil {
		return err
	}
	if cfg.Exchange, err = file.OpenDecrypter(m.Keys+"-x.pem", nil); err != nil {
		return err
	}
	if cfg.Sealer, err = file.OpenSealer(m.Keys + "-s.pem"); err != nil {
		return err
	}
	n, err := notary.New(cfg)
	if err != nil {
		return err
	}
	ledger, err := os.OpenFile(m.Ledger, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	known, err := io.ReadAll(ledger)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	n.OnStep(func(done, name string, data []byte) {
		mu.Lock()
		defer mu.Unlock()
		step := done + " " + name
		if name == "position.json" { // written often, with other bytes each time
			sum := sha256.Sum256(data)
			step += " " + hex.EncodeToString(sum[:8])
		}
		if strings.Contains(string(known), step+"\n") {
			return
		}
		fmt.Fprintln(ledger, step)
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	})
	return n.Run(context.Background())
}

// A post is a document that left the victim's process, whoever heard of it.
type post struct {
	life int
	doc  *signoff.Signing
	body []byte
}

// A grave starts the victim again each time that it was killed, and kills it
// itself at each document it posts: once before the coordinator hears of it,
// once before the victim knows that it did.
type grave struct {
	t      *testing.T
	victim *signofftest.Notary
	spec   []byte
	ledger string

	mu    sync.Mutex
	cmd   *exec.Cmd
	lives int
	seen  map[string]bool // deaths at what was posted
	posts []post
	over  bool
	ended chan struct{}
}

// run gives the victim one life after another until bury.
func (g *grave) run() {
	defer close(g.ended)
	for {
		g.mu.Lock()
		if g.over {
			g.mu.Unlock()
			return
		}
		g.lives++
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), mortalEnv+"="+string(g.spec))
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			g.t.Error(err)
			g.mu.Unlock()
			return
		}
		g.cmd = cmd
		g.mu.Unlock()
		cmd.Wait()
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			g.t.Errorf("the victim ended by itself: %v\n%s", cmd.ProcessState, &said)
			return
		}
	}
}

// bury kills the victim for good.
func (g *grave) bury() {
	g.mu.Lock()
	g.over = true
	if g.cmd != nil {
		g.cmd.Process.Kill()
	}
	g.mu.Unlock()
	<-g.ended
}

// step names what the victim posts, the same for the same step of another
// life; empty for what others post.
func (g *grave) step(path string, body []byte) (name string, doc *signoff.Signing) {
	if path == "/v1/cosignatures" {
		if c, err := proof.Unverified(body); err == nil && bytes.Contains(body, []byte("\n— "+g.victim.Name+" ")) {
			return fmt.Sprintf("cosignature at %d", c.Size), nil
		}
		return "", nil
	}
	signed, err := signoff.ReadLine(body)
	if err != nil || signed.Hint != g.victim.Doc.ID() {
		return "", nil
	}
	switch d := signed.Doc.(type) {
	case *signoff.Signing:
		return fmt.Sprintf("signing %d, share %t", d.Term, len(d.Share) > 0), d
	case *signoff.Commitment:
		return fmt.Sprintf("commitment %d", d.Term), nil
	case *signoff.Dealing:
		return fmt.Sprintf("dealing %d", d.Term), nil
	case *signoff.Transcript:
		return fmt.Sprintf("transcript %d", d.Term), nil
	}
	return string(signed.Doc.Kind()), nil
}

func (g *grave) meddle(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodPost {
			next.ServeHTTP(w, req)
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		step, doc := g.step(req.URL.Path, body)
		g.mu.Lock()
		if step == "" || g.cmd == nil {
			g.mu.Unlock()
			next.ServeHTTP(w, req)
			return
		}
		defer g.mu.Unlock()
		if doc != nil {
			g.posts = append(g.posts, post{g.lives, doc, body})
		}
		switch {
		case g.over:
		case !g.seen[step+", unheard"]:
			g.seen[step+", unheard"] = true
			g.cmd.Process.Kill()
		case !g.seen[step+", unanswered"]:
			g.seen[step+", unanswered"] = true
			next.ServeHTTP(discarded{}, req)
			g.cmd.Process.Kill()
		default:
			next.ServeHTTP(w, req)
			return
		}
		panic(http.ErrAbortHandler)
	})
}

type discarded struct{}

func (discarded) Header() http.Header         { return http.Header{} }
func (discarded) Write(b []byte) (int, error) { return len(b), nil }
func (discarded) WriteHeader(int)             {}

// deaths lists all steps at which the victim died.
func (g *grave) deaths() []string {
	b, err := os.ReadFile(g.ledger)
	if err != nil {
		g.t.Fatal(err)
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	for step := range g.seen {
		all = append(all, step)
	}
	slices.Sort(all)
	return all
}

// noncesOnce wants every share signed with a nonce that the same life offered
// and no share before it used. Nonces are in memory only, so a share in a life
// that has not offered any came from somewhere it must not.
func (g *grave) noncesOnce() {
	offered := map[string]string{} // offer to the post that made it
	life, fresh := 0, false
	shares := 0
	for _, p := range g.posts {
		if p.life != life {
			life, fresh = p.life, false
		}
		if len(p.doc.Share) > 0 {
			if shares++; !fresh {
				g.t.Errorf("life %d signs with a nonce that it has not offered, or twice with one", p.life)
			}
			fresh = false
		}
		if len(p.doc.Offer) > 0 {
			if was, ok := offered[string(p.doc.Offer)]; ok && was != string(p.body) {
				g.t.Error("one nonce was offered twice")
			}
			offered[string(p.doc.Offer)], fresh = string(p.body), true
		}
	}
	if shares < 2 {
		g.t.Errorf("%d shares of signatures, want one for each death at one", shares)
	}
}

// A notary's process is killed by SIGKILL at every step of key generation, of
// signing, of a reshare in which it deals and gets a share, of the hand-over, of
// moving an object's shares and of signing after it: after each part of each write to its disk, and before
// and after each document it posts and each size it cosigns is heard. Each step
// kills once, so that the end is reached; no step is left out by chance.
//
// With KEYTURN_SLOW set every notary of the first council that goes on is the
// victim in turn, otherwise one.
func TestFaultKilledAtEveryStep(t *testing.T) {
	victims := []int{1}
	if os.Getenv("KEYTURN_SLOW") != "" {
		victims = []int{0, 1, 2}
	}
	for _, i := range victims {
		t.Run(fmt.Sprintf("n%d", i+1), func(t *testing.T) { killedAtEveryStep(t, i) })
	}
}

func killedAtEveryStep(t *testing.T, i int) {
	c := signofftest.Keys(t, nil)
	victim := c.Notaries[i]
	g := &grave{t: t, victim: victim, ledger: filepath.Join(c.Dir, "deaths"), seen: map[string]bool{}, ended: make(chan struct{})}
	var err error
	if g.spec, err = json.Marshal(mortal{c.ID, c.URL, c.Charter.Coordinators[0].TLS, victim.Dir, "file:" + filepath.Join(c.Dir, victim.Name), g.ledger}); err != nil {
		t.Fatal(err)
	}
	c.Host.Meddle = g.meddle
	c.Found()
	for _, n := range c.Notaries {
		if n != victim {
			c.StartNotary(n)
		}
	}
	go g.run()
	t.Cleanup(g.bury)
	c.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	var key [32]byte
	c.State(func(_ *authority.Authority, s *authority.State) { key = s.Group.PublicKey })
	old := c.Notaries[3]
	signedWithout(c, old)

	object := c.Seal("model")[0]
	n5 := c.Newcomer("n5")
	c.StartNotary(n5)
	council := append(slices.Clone(c.Notaries[:3]), n5)
	signedBy(c, signoff.ActionNotaries, []string{"bob", "carol", "dave"}, nil, func(r *signoff.Request) {
		r.Notaries = &signoff.NotaryChange{Term: 1, Faults: 1}
		for _, n := range council {
			r.Notaries.Notaries = append(r.Notaries.Notaries, n.Doc)
		}
	})
	c.Wait("the next term", func(s *authority.State) bool { return s.Term().Number == 2 })
	c.Wait("the object's shares to follow", func(s *authority.State) bool { return s.Objects[object].Machines.Epoch == 2 })
	signedWithout(c, n5)
	for deadline := time.Now().Add(2 * time.Minute); len(g.sealedFiles()) != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the victim keeps %v, want its share alone", g.sealedFiles())
		}
	}
	g.bury()
	g.judge(c, key, council)
}

// signedWithout has a warrant signed while one notary is stopped for good, so
// that all others are needed.
func signedWithout(c *signofftest.Cluster, gone *signofftest.Notary) {
	signedBy(c, signoff.ActionPolicyChange, []string{"bob", "carol", "dave", "erin"}, gone, func(r *signoff.Request) {
		r.Policy = &signoff.PolicyChange{Policy: signofftest.Policy + "# without " + gone.Name + "\n"}
	})
}

func signedBy(c *signofftest.Cluster, action string, people []string, gone *signofftest.Notary, edit func(*signoff.Request)) {
	c.T.Helper()
	c.Tick()
	req := c.Request("alice", action, edit)
	if err := c.Append(req); err != nil {
		c.T.Fatal(err)
	}
	var docs []*signoff.Signed
	for _, p := range people {
		docs = append(docs, c.Decide(p, req.Digest(), signoff.Approve))
	}
	if gone != nil {
		gone.Stop()
	}
	for _, d := range docs {
		if _, err := c.Client.Append(c.T.Context(), d.Line()); err != nil {
			c.T.Fatal(err)
		}
	}
	c.Wait("the warrant", func(s *authority.State) bool { return !s.Requests[req.Digest()].Warrant.IsZero() })
}

// judge looks at what is left, by other means than the notaries'.
func (g *grave) judge(c *signofftest.Cluster, key [32]byte, council []*signofftest.Notary) {
	t := g.t
	deaths := g.deaths()
	t.Logf("%d lives, killed at %d steps:\n%s", g.lives, len(deaths), strings.Join(deaths, "\n"))
	want := map[string]int{"erased dealing-": 2, "erased share-": 1}
	for _, done := range []string{"written ", "synced ", "renamed "} {
		want[done+"dealing-"], want[done+"share-"], want[done+"position.json "] = 2, 2, 10
	}
	for _, step := range []string{"commitment", "dealing", "transcript", "signing"} {
		want[step+" 1, "], want[step+" 2, "] = 2, 2
	}
	want["signing 1, "], want["signing 2, "] = 4, 4
	want["redealing, "], want["custody, "] = 2, 2
	for step, n := range want {
		got := slices.DeleteFunc(slices.Clone(deaths), func(d string) bool { return !strings.HasPrefix(d, step) })
		if len(got) < n {
			t.Errorf("killed %d times at %q, want at least %d", len(got), step, n)
		}
	}
	g.noncesOnce()
	for _, n := range append(council, c.Notaries...) {
		n.Stop()
	}
	size := c.Follower.Seen().Size
	lines, err := c.Client.Entries(t.Context(), 0, size)
	if err != nil {
		t.Fatal(err)
	}
	// A reshare has a deadline, which deaths on a busy machine may cost an
	// attempt; key generation has none.
	transcripts, warrants := map[[2]uint32]map[signoff.Digest]bool{}, 0
	agreed := map[[2]uint32]signoff.Digest{}
	for _, line := range lines {
		doc, err := signoff.ReadLine(line)
		if err != nil {
			t.Fatal(err)
		}
		switch d := doc.Doc.(type) {
		case *signoff.Transcript:
			attempt := [2]uint32{d.Term, d.Attempt}
			if transcripts[attempt] == nil {
				transcripts[attempt], agreed[attempt] = map[signoff.Digest]bool{}, d.Digest
			}
			transcripts[attempt][d.Notary] = true
			if d.Digest != agreed[attempt] || len(d.Accused) > 0 || !bytes.Equal(d.Group, key[:]) {
				t.Errorf("transcript of term %d, attempt %d: %s, group key %x, accuses %v", d.Term, d.Attempt, d.Digest, d.Group, d.Accused)
			}
		case *signoff.Warrant:
			if warrants++; !ed25519.Verify(key[:], dsse.PAE(doc.Payload), doc.Sig) {
				t.Error("a warrant's signature does not verify")
			}
		}
	}
	c.State(func(_ *authority.Authority, s *authority.State) {
		if len(transcripts[[2]uint32{1, 1}]) != 4 || len(transcripts[[2]uint32{2, s.Keygen.Attempt}]) != 4 || warrants < 3 {
			t.Errorf("transcripts %v, %d warrants; want one of each notary in two terms, three warrants", transcripts, warrants)
		}
		if s.Group.PublicKey != key {
			t.Error("the group key changed")
		}
		for _, n := range council {
			y := c.OpenNotary(n)
			if err := y.HasShare(t.Context(), s.Group); err != nil {
				t.Errorf("%s: %v", n.Name, err)
			}
			y.Close()
		}
	})
}

// sealedFiles are the secrets on the victim's disk, half written ones too.
func (g *grave) sealedFiles() []string {
	files, err := filepath.Glob(filepath.Join(g.victim.Dir, "*.sealed*"))
	if err != nil {
		g.t.Fatal(err)
	}
	return files
}
