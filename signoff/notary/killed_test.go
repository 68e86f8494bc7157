package notary_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/hsm/tpm/swtpm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/notary"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
)

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

// A way is how the lives of a victim end.
type way struct {
	// Hardware: its keys are on a token, and it has a fuse. Otherwise its keys are
	// in files and it has none.
	Hardware bool
	// Every: each size that is cosigned is a step of its own, and so is each step of
	// the fuse at a start after each other step at which a life can end. Otherwise
	// those are steps once in each phase.
	Every bool
	// Full: at a step on its disk nothing is killed, but what comes next of that
	// finds the disk full. Others do not kill it either.
	Full bool
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
	mortal mortal
	url    string // the coordinator's

	mu     sync.Mutex
	cmd    *exec.Cmd
	phase  string
	lives  int
	seen   map[string]bool // deaths at what was posted
	killed string          // at what was posted, in this life
	begun  int64           // size of the ledger at its beginning
	copies map[string]bool // position.json as it was left by each life
	posts  []post
	over   bool
	ended  chan struct{}
}

// enter says what the cluster is about from here on.
func (g *grave) enter(phase string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.phase = phase
	// In one step: the victim reads it at any time.
	check(g.t, os.WriteFile(g.mortal.Phase+".new", []byte(phase), 0o600))
	check(g.t, os.Rename(g.mortal.Phase+".new", g.mortal.Phase))
}

// lifePath and its number begin the paths of what a life asks the coordinator: what
// it said last can arrive in the next.
const lifePath = "/life/"

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
		g.killed = ""
		g.mortal.URL = fmt.Sprintf("%s%s%d", g.url, lifePath, g.lives)
		if info, err := os.Stat(g.mortal.Ledger); err == nil {
			g.begun = info.Size()
		}
		spec, err := json.Marshal(g.mortal)
		if err != nil {
			g.t.Error(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), mortalEnv+"="+string(spec))
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
		status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
		noRoom := g.mortal.Full && strings.Contains(said.String(), "no space left on device") // which a fuse ends for
		if !ok || status.Signal() != syscall.SIGKILL && !noRoom {
			g.t.Errorf("the victim ended by itself: %v\n%s", cmd.ProcessState, &said)
			return
		}
		if err := g.mourn(); err != nil {
			g.t.Error(err)
			return
		}
	}
}

var numbers = regexp.MustCompile(`[0-9a-f]{32}|\.\d{4,}| at \d+`)

// mourn keeps what the life left, and at which step it ended: the same for the
// same kind of step in one phase. What ends at a step of the fuse ended before it.
func (g *grave) mourn() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	position, err := os.ReadFile(filepath.Join(g.victim.Dir, "position.json"))
	if err != nil {
		return err
	}
	g.copies[string(position)] = true
	end := g.killed
	if end == "" {
		if end, err = g.last(); err != nil {
			return err
		}
	}
	if !strings.HasPrefix(end, "fuse") {
		g.mortal.After = numbers.ReplaceAllString(end, "") + ", " + g.phase
	}
	return nil
}

// last is the step that the victim wrote down last.
func (g *grave) last() (string, error) {
	b, err := os.ReadFile(g.mortal.Ledger)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1], err
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
			if g.mortal.Every {
				return fmt.Sprintf("cosignature at %d", c.Size), nil
			}
			return "cosignature in " + g.phase, nil
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
		rest, mine := strings.CutPrefix(req.URL.Path, lifePath)
		number, path, _ := strings.Cut(rest, "/")
		if mine {
			req.URL.Path = "/" + path
		}
		if !mine || req.Method != http.MethodPost {
			next.ServeHTTP(w, req)
			return
		}
		life, err := strconv.Atoi(number)
		if err != nil {
			panic(err)
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		g.mu.Lock()
		step, doc := g.step(req.URL.Path, body)
		if step == "" {
			g.mu.Unlock()
			next.ServeHTTP(w, req)
			return
		}
		defer g.mu.Unlock()
		if doc != nil {
			g.posts = append(g.posts, post{life, doc, body})
		}
		switch {
		case g.over, life < g.lives:
		case g.mortal.Full:
			g.keepsStill(step)
			next.ServeHTTP(w, req)
			return
		case !g.seen[step+", unheard"]:
			g.kill(step + ", unheard")
		case !g.seen[step+", unanswered"]:
			next.ServeHTTP(discarded{}, req)
			g.kill(step + ", unanswered")
		default:
			next.ServeHTTP(w, req)
			return
		}
		panic(http.ErrAbortHandler)
	})
}

// keepsStill wants nothing posted that waits for what this life has no room for.
func (g *grave) keepsStill(step string) {
	b, err := os.ReadFile(g.mortal.Ledger)
	if err != nil || int64(len(b)) == g.begun {
		return
	}
	failed := string(b[g.begun:])
	for file, waits := range map[string][]string{
		"dealing-":               {"commitment", "dealing"},
		"share-":                 {"transcript"},
		"position.json":          {"cosignature"},
		"fuse, before a share: ": {"share true"},
		"fuse, at a start: ":     {""},
	} {
		for _, what := range waits {
			if strings.Contains(failed, file) && strings.Contains(step, what) {
				g.t.Errorf("with no room at %q it posted %q", strings.TrimSpace(failed), step)
			}
		}
	}
}

// kill ends this life at a step. The caller has the lock.
func (g *grave) kill(step string) {
	g.seen[step], g.killed = true, step
	g.cmd.Process.Kill()
}

type discarded struct{}

func (discarded) Header() http.Header         { return http.Header{} }
func (discarded) Write(b []byte) (int, error) { return len(b), nil }
func (discarded) WriteHeader(int)             {}

// deaths lists all steps at which the victim died.
func (g *grave) deaths() []string {
	b, err := os.ReadFile(g.mortal.Ledger)
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
// and no share before it used, and of each list of commitments one share at most.
// Nonces are in memory only, so a share in a life that has not offered any came
// from somewhere it must not.
func (g *grave) noncesOnce() {
	offered := map[string]string{}  // offer to the post that made it
	signed := map[[32]byte][]byte{} // list to the share
	life, fresh := 0, false
	shares := 0
	slices.SortStableFunc(g.posts, func(a, b post) int { return a.life - b.life })
	for _, p := range g.posts {
		if p.life != life {
			life, fresh = p.life, false
		}
		if len(p.doc.Share) > 0 {
			if shares++; !fresh {
				g.t.Errorf("life %d signs with a nonce that it has not offered, or twice with one", p.life)
			}
			fresh = false
			if was := signed[p.doc.List]; was != nil && !bytes.Equal(was, p.doc.Share) {
				g.t.Errorf("two shares of one session, of list %s", p.doc.List)
			}
			signed[p.doc.List] = p.doc.Share
		}
		if len(p.doc.Offer) > 0 {
			if was, ok := offered[string(p.doc.Offer)]; ok && was != string(p.body) {
				g.t.Error("one nonce was offered twice")
			}
			offered[string(p.doc.Offer)], fresh = string(p.body), true
		}
	}
	if shares < 2 && !g.mortal.Full {
		g.t.Errorf("%d shares of signatures, want one for each death at one", shares)
	}
}

// A notary's process is killed by SIGKILL at every step of key generation, of
// signing, of a reshare in which it deals and gets a share, of the hand-over, of
// moving an object's shares and of signing after it: after each part of each write
// to its disk, after its counter was moved, and before and after each document it
// posts and each size it cosigns is heard. Each step kills once, so that the end
// is reached; no step is left out by chance. The helper of its token is killed as
// each operation is asked of it.
//
// With KEYTURN_SLOW set every notary of the first council that goes on is the
// victim in turn, with keys in files and with a token and a fuse, and every step is
// enumerated in both, see way.
func TestFaultKilledAtEveryStep(t *testing.T) {
	if os.Getenv("KEYTURN_SLOW") == "" {
		t.Parallel()
		t.Run("n2, files", func(t *testing.T) { t.Parallel(); lifeCycle(t, 1, way{Every: true}) })
		t.Run("n1, token and fuse", func(t *testing.T) { t.Parallel(); lifeCycle(t, 0, way{Hardware: true}) })
		return
	}
	for i := range 3 {
		t.Run(fmt.Sprintf("n%d, files", i+1), func(t *testing.T) { lifeCycle(t, i, way{Every: true}) })
		t.Run(fmt.Sprintf("n%d, token and fuse", i+1), func(t *testing.T) { lifeCycle(t, i, way{Hardware: true, Every: true}) })
	}
}

// The disk of a notary with a token and a fuse is full at every step of the same:
// at each part of each write, of a dealing, of a share, of the position and of the
// fuse. As long as that is so it says nothing that depends on it. Then it is
// started again and there is room.
func TestFaultDiskFullAtEveryStep(t *testing.T) {
	t.Parallel()
	probe := make(chan error)
	go func() { probe <- fill(unix.SYS_RENAMEAT, "") }() // its thread ends with it
	if err := <-probe; err != nil {
		t.Skip("needs the right to filter system calls: ", err)
	}
	lifeCycle(t, 2, way{Hardware: true, Full: true})
}

// sentence makes a notary of a cluster that is to be founded the victim.
func sentence(c *signofftest.Cluster, victim *signofftest.Notary, w way) *grave {
	t := c.T.(*testing.T)
	t.Helper()
	g := &grave{t: t, victim: victim, seen: map[string]bool{}, copies: map[string]bool{}, ended: make(chan struct{})}
	g.url = c.URL
	g.mortal = mortal{TLS: c.Charter.Coordinators[0].TLS, Dir: victim.Dir,
		Ledger: filepath.Join(c.Dir, "deaths"), Phase: filepath.Join(c.Dir, "phase"), After: "nothing", way: w}
	if w.Hardware {
		g.mortal.Token, g.mortal.TPM = newToken(t), swtpm.New(t).Path
		tok, err := holdToken(t.Context(), g.mortal.Token, victim)
		check(t, err)
		t.Cleanup(func() { tok.Close() })
		c.Rekey(victim)
		victim.Fuse = &notary.Fuse{TPM: openTPM(t, g.mortal.TPM), Index: fuseIndex}
	} else {
		g.mortal.Files = "file:" + filepath.Join(c.Dir, victim.Name)
	}
	g.mortal.Charter = c.ID
	c.Host.Meddle = g.meddle
	return g
}

// carryOut founds the cluster and runs all its notaries.
func (g *grave) carryOut(c *signofftest.Cluster) {
	g.t.Helper()
	c.Found()
	if g.victim.Fuse != nil { // swtpm serves one at a time
		check(g.t, g.victim.Fuse.TPM.Close())
	}
	for _, n := range c.Notaries {
		if n != g.victim {
			c.StartNotary(n)
		}
	}
	g.enter("key generation")
	go g.run()
	g.t.Cleanup(g.bury)
}

func lifeCycle(t *testing.T, i int, w way) {
	began := time.Now()
	c := signofftest.Keys(t, nil)
	c.Patience = 10 * time.Minute // for dozens of lives, in some phases
	g := sentence(c, c.Notaries[i], w)
	g.carryOut(c)
	c.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	var key [32]byte
	c.State(func(_ *authority.Authority, s *authority.State) { key = s.Group.PublicKey })
	old := c.Notaries[3]
	g.enter("signing")
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
	g.enter("reshare")
	c.Wait("the next term", func(s *authority.State) bool { return s.Term().Number == 2 })
	g.enter("moving")
	c.Wait("the object's shares to follow", func(s *authority.State) bool { return s.Objects[object].Machines.Epoch == 2 })
	g.enter("signing again")
	signedWithout(c, n5)
	for deadline := time.Now().Add(c.Patience); len(g.sealedFiles()) != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the victim keeps %v, want its share alone", g.sealedFiles())
		}
	}
	g.bury()
	t.Logf("the life cycle took %s", time.Since(began).Round(time.Second))
	if w.Hardware {
		g.victim.Fuse.TPM = openTPM(t, g.mortal.TPM)
	}
	g.judge(c, key, council)
	if w.Hardware {
		g.copiesRefused(c.ID)
	}
}

// copiesRefused starts the notary on its directory with what each life left of
// its position. Only what was left last starts.
func (g *grave) copiesRefused(charter signoff.Digest) {
	cfg := notary.Config{Charter: charter, Dir: g.victim.Dir, Log: slog.New(slog.DiscardHandler), Signing: g.victim.Signing, Sealer: g.victim.Sealer, Fuse: g.victim.Fuse}
	path := filepath.Join(cfg.Dir, "position.json")
	newest, err := os.ReadFile(path)
	check(g.t, err)
	for position := range g.copies {
		check(g.t, os.WriteFile(path, []byte(position), 0o600))
		refused(g.t, "a copy of what a life left", cfg, "a copy of an older state")
	}
	check(g.t, os.WriteFile(path, newest, 0o600))
	check(g.t, armed(g.t, cfg).Close())
	g.t.Logf("%d copies refused", len(g.copies))
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
	t.Logf("%d lives, ended at %d steps:\n%s", g.lives, len(deaths), strings.Join(deaths, "\n"))
	for step, n := range g.wanted() {
		got := slices.DeleteFunc(slices.Clone(deaths), func(d string) bool { return !strings.HasPrefix(d, step) })
		if len(got) < n {
			t.Errorf("%d lives ended at %q, want at least %d", len(got), step, n)
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
		case *signoff.SigningFault:
			t.Errorf("notary %s is shown as a cheat; all are honest", d.Accused)
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

// wanted is how many steps of which kind a life has to have ended at, at least.
func (g *grave) wanted() map[string]int {
	want := map[string]int{}
	positions := 5 // phases
	switch {
	case g.mortal.Every:
		positions = 10
	case g.mortal.Full:
		positions = 1
	}
	for _, done := range []string{"created ", "written ", "synced ", "renamed "} {
		want[done+"dealing-"], want[done+"share-"], want[done+"position.json"] = 2, 2, positions
	}
	if g.mortal.Full {
		for _, done := range []string{"created", "written", "synced", "renamed"} {
			for _, of := range []string{"intent", "count"} {
				want["fuse, at a start: "+done+" "+of], want["fuse, before a share: "+done+" "+of] = 1, 1
			}
		}
		return want
	}
	want["erased dealing-"], want["erased share-"] = 2, 1
	// Of what is not done again, one may be done just as something else kills.
	want["renamed dealing-"], want["renamed share-"] = 1, 1
	for _, step := range []string{"commitment", "dealing", "transcript", "signing"} {
		want[step+" 1, "], want[step+" 2, "] = 2, 2
	}
	want["signing 1, "], want["signing 2, "] = 4, 4
	want["redealing, "], want["custody, "], want["cosignature "] = 2, 2, 2*positions
	if g.mortal.TPM != "" {
		for _, phase := range []string{"key generation", "signing", "reshare", "moving", "signing again"} {
			want["fuse, at a start: "] += 9
			for _, operation := range []string{"sign", "cosign"} {
				want["helper, "+operation+", "+phase] = 1
			}
		}
		want["fuse, before a share: "] = 9
		want["helper, unseal, signing"], want["helper, unseal, signing again"] = 1, 1
		for _, phase := range []string{"key generation", "reshare", "moving"} {
			want["helper, agree, "+phase] = 1
		}
		want["helper, seal, key generation"], want["helper, seal, reshare"] = 1, 1
	}
	return want
}

// sealedFiles are the secrets on the victim's disk but its fuse's, half written
// ones too.
func (g *grave) sealedFiles() []string {
	files, err := filepath.Glob(filepath.Join(g.victim.Dir, "*.sealed*"))
	if err != nil {
		g.t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f string) bool { return filepath.Base(f) == "fuse.sealed" })
}
