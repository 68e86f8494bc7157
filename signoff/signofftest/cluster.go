// Package signofftest makes small clusters for tests: people, notaries and a
// coordinator with software keys, joined by real TLS on the loopback, a real
// etcd and real tiles. Nothing in it is a mock; only the keys are soft.
package signofftest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/notary"
	"github.com/keyturn/keyturn/signoff/proof"
)

// Policy is the policy of a test cluster.
const Policy = `version: 1
leases: {epoch: 2, lease: 8, drainGrace: 2}
rules:
  - name: export-weights
    action: weights.export
    quorum:
      all:
        - atLeast: {k: 1, role: security}
        - atLeast: {k: 1, role: leadership}
        - atLeast: {k: 1, roles: [security, research, leadership, safety]}
    veto: [safety]
    expiry: 86400
  - name: launch-training
    action: training.launch
    quorum: {atLeast: {k: 3, roles: [security, research, leadership, safety]}}
    veto: [safety]
    expiry: 86400
    uses: 4
  - name: enrol-node
    action: node.enrol
    quorum: {atLeast: {k: 2, roles: [security, research]}}
    expiry: 86400
  - name: retire-node
    action: node.retire
    quorum: {atLeast: {k: 1, role: security}}
    expiry: 86400
  - name: change-policy
    action: policy.change
    quorum: {atLeast: {k: 4, roles: [security, research, leadership, safety]}}
    expiry: 86400
  - name: adopt-reference-set
    action: reference.adopt
    quorum: {atLeast: {k: 2, roles: [security, research]}}
    veto: [safety]
    expiry: 86400
  - name: withdraw-reference-set
    action: reference.withdraw
    quorum: {atLeast: {k: 1, role: security}}
    expiry: 86400
  - name: change-people
    action: people.change
    quorum: {atLeast: {k: 3, roles: [security, research, leadership, safety]}}
    veto: [safety]
    expiry: 86400
  - name: change-notaries
    action: notaries.change
    quorum: {atLeast: {k: 3, roles: [security, research, leadership, safety]}}
    expiry: 86400
  - name: change-ek-roots
    action: ekroots.change
    quorum: {atLeast: {k: 2, roles: [security, research, leadership, safety]}}
    expiry: 86400
  - name: anyone-may-halt
    action: halt
    quorum: {atLeast: {k: 1, roles: [security, research, leadership, safety]}}
    expiry: 3600
  - name: resume
    action: resume
    quorum: {atLeast: {k: 3, roles: [security, research, leadership, safety]}}
    expiry: 86400
`

// A Person is a person with the private halves of the keys.
type Person struct {
	Name     string
	Doc      signoff.Person
	Signing  hsm.Key
	Exchange hsm.Decrypter
}

// A Notary is a notary with the private halves of its keys.
type Notary struct {
	Name     string
	Dir      string
	Doc      signoff.Notary
	Signing  hsm.Key
	Exchange hsm.Decrypter
	Witness  hsm.Key
	Sealer   hsm.Sealer
	Fuse     *notary.Fuse // nil: none
	Wire     *Wire        // what it reaches the coordinator by
	stop     context.CancelFunc
	done     chan struct{}
}

// A Cluster is a running cluster of alice (research), bob (security), carol
// (leadership), dave (safety) and erin (security, research), with notaries n1
// to n4 of which one may be hostile.
type Cluster struct {
	T        testing.TB
	Dir      string
	Charter  *signoff.Charter
	ID       signoff.Digest
	Genesis  [][]byte
	People   map[string]*Person
	Notaries []*Notary
	LogKey   hsm.Key
	TLS      hsm.Key
	URL      string
	Client   *api.Client
	Follower *follow.Follower
	Log      *slog.Logger
	Host     *Host         // its coordinator
	Patience time.Duration // of Wait, 2 minutes

	source *Wire // the follower's
	logged *logWriter
}

// Keys makes the people, notaries and charter without starting anything.
// edit, if not nil, changes the charter before it is signed; more names further
// people, of research.
func Keys(t testing.TB, edit func(*signoff.Charter), more ...string) *Cluster {
	t.Helper()
	c := &Cluster{T: t, Dir: t.TempDir(), People: map[string]*Person{}, logged: &logWriter{t: t}, Patience: 2 * time.Minute}
	c.Log = slog.New(slog.NewTextHandler(c.logged, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c.LogKey, c.TLS = c.key("log", hsm.KindEd25519), c.key("tls", hsm.KindP256)
	c.Host = c.NewHost("")
	c.URL = c.Host.URL
	c.Charter = &signoff.Charter{
		Name: "test-cluster", Format: signoff.FormatLevel, Development: true, Created: time.Now().Unix() - 10, Threshold: 3,
		Faults: 1, Log: c.public(c.LogKey.Public()), Policy: Policy,
		Coordinators: []signoff.Coordinator{{URL: c.URL, TLS: c.public(c.TLS.Public()).Fingerprint()}},
	}
	for _, p := range []struct {
		name, org string
		roles     []string
	}{{"alice", "lab", []string{"research"}}, {"bob", "lab", []string{"security"}}, {"carol", "lab", []string{"leadership"}},
		{"dave", "watch", []string{"safety"}}, {"erin", "watch", []string{"security", "research"}}} {
		c.addPerson(p.name, p.org, p.roles)
	}
	for _, name := range more {
		c.addPerson(name, "lab", []string{"research"})
	}
	for i := range 4 {
		c.addNotary(fmt.Sprintf("n%d", i+1))
	}
	if edit != nil {
		edit(c.Charter)
	}
	for _, p := range c.Charter.People {
		c.People[p.Name].Doc = p
	}
	c.found()
	return c
}

func (c *Cluster) uri(name string) string { return "file:" + filepath.Join(c.Dir, name+".pem") }

func (c *Cluster) exchangeFile(n *Notary) string {
	return strings.TrimPrefix(c.uri(n.Name+"-x"), "file:")
}

// HasExchangeKey reports whether the notary's exchange key is still on its disk.
func (c *Cluster) HasExchangeKey(n *Notary) bool {
	_, err := os.Stat(c.exchangeFile(n))
	return err == nil
}

func (c *Cluster) key(name string, kind hsm.Kind) hsm.Key {
	c.T.Helper()
	c.generate(name, kind)
	k, err := file.Open(c.uri(name), nil)
	c.must(err)
	return k
}

func (c *Cluster) exchange(name string) hsm.Decrypter {
	c.T.Helper()
	c.generate(name, hsm.KindECDH)
	k, err := file.OpenDecrypter(c.uri(name), nil)
	c.must(err)
	return k
}

func (c *Cluster) generate(name string, kind hsm.Kind) {
	c.T.Helper()
	_, err := file.Generate(c.uri(name), kind)
	c.must(err)
}

func (c *Cluster) must(err error) {
	c.T.Helper()
	if err != nil {
		c.T.Fatal(err)
	}
}

func (c *Cluster) public(pub any) signoff.PublicKey {
	c.T.Helper()
	k, err := signoff.NewPublicKey(pub, hsm.ClassSoftware)
	c.must(err)
	return k
}

func (c *Cluster) addPerson(name, org string, roles []string) {
	c.Charter.People = append(c.Charter.People, c.NewPerson(name, org, roles...).Doc)
}

// NewPerson makes a person with a token, whom no charter names yet.
func (c *Cluster) NewPerson(name, org string, roles ...string) *Person {
	c.T.Helper()
	p := &Person{Name: name, Signing: c.key(name, hsm.KindP256), Exchange: c.exchange(name + "-x")}
	p.Doc = signoff.Person{Name: name, Organisation: org, Roles: roles, Token: signoff.Token{Signing: c.public(p.Signing.Public()), Exchange: c.public(p.Exchange.PublicKey())}}
	c.People[name] = p
	return p
}

// SignsOnlyWith gives a founder another signing key and no exchange key, and
// founds the cluster again, which nothing may have read yet.
func (c *Cluster) SignsOnlyWith(name string, k hsm.Key) {
	c.T.Helper()
	p := c.People[name]
	p.Signing, p.Exchange = k, nil
	p.Doc.Token = signoff.Token{Signing: c.public(k.Public())}
	for i := range c.Charter.People {
		if c.Charter.People[i].Name == name {
			c.Charter.People[i] = p.Doc
		}
	}
	c.found()
}

func (c *Cluster) addNotary(name string) {
	n := c.NewNotary(name)
	c.Notaries = append(c.Notaries, n)
	c.Charter.Notaries = append(c.Charter.Notaries, n.Doc)
}

// NewNotary makes the keys of a notary that the charter does not name.
func (c *Cluster) NewNotary(name string) *Notary {
	c.T.Helper()
	n := &Notary{Name: name, Dir: filepath.Join(c.Dir, name), Signing: c.key(name, hsm.KindP256), Exchange: c.exchange(name + "-x"), Witness: c.key(name+"-w", hsm.KindEd25519)}
	c.generate(name+"-s", hsm.KindSeal)
	sealer, err := file.OpenSealer(c.uri(name + "-s"))
	c.must(err)
	n.Sealer = sealer
	c.describe(n)
	return n
}

func (c *Cluster) describe(n *Notary) {
	n.Doc = signoff.Notary{Name: n.Name, Organisation: "org-" + n.Name, Signing: c.public(n.Signing.Public()), Exchange: c.public(n.Exchange.PublicKey()), Witness: c.public(n.Witness.Public())}
}

// Rekey founds the cluster again, which nothing may have read yet, after a
// founding notary was given other keys.
func (c *Cluster) Rekey(n *Notary) {
	c.T.Helper()
	c.describe(n)
	for i := range c.Charter.Notaries {
		if c.Charter.Notaries[i].Name == n.Name {
			c.Charter.Notaries[i] = n.Doc
		}
	}
	c.found()
}

// Newcomer is a notary to be, with its directory made.
func (c *Cluster) Newcomer(name string) *Notary {
	c.T.Helper()
	n := c.NewNotary(name)
	c.initNotary(n)
	return n
}

// found signs the charter and everybody's acceptance of it.
func (c *Cluster) found() {
	c.T.Helper()
	ctx := context.Background()
	first, err := signoff.Sign(ctx, c.People[c.Charter.People[0].Name].Signing, c.Charter)
	c.must(err)
	c.ID = first.Digest()
	c.Genesis = [][]byte{first.Line()}
	for _, p := range c.Charter.People {
		a, err := signoff.Sign(ctx, c.People[p.Name].Signing, &signoff.Acceptance{Charter: c.ID, Person: p.ID()})
		c.must(err)
		c.Genesis = append(c.Genesis, a.Line())
	}
}

// Start runs the coordinator and all notaries and waits for the group key.
func Start(t testing.TB, edit func(*signoff.Charter)) *Cluster {
	t.Helper()
	c := Keys(t, edit)
	c.Found()
	for _, n := range c.Notaries {
		c.StartNotary(n)
	}
	c.Wait("a group key", func(s *authority.State) bool { return s.Group != nil })
	return c
}

// Found runs the coordinator and makes the notaries' directories; no notary
// runs yet.
func (c *Cluster) Found() {
	c.T.Helper()
	c.StartCoordinator()
	c.Client = c.Host.Client
	c.source = c.NewWire(c.Host)
	c.Follower = c.NewFollower(c.source.Client)
	for _, n := range c.Notaries {
		c.initNotary(n)
	}
}

func (c *Cluster) initNotary(n *Notary) {
	c.T.Helper()
	n.Wire = c.NewWire(c.Host)
	if n.Fuse != nil {
		c.must(notary.InitFused(context.Background(), c.config(n)))
		return
	}
	c.must(notary.Init(n.Dir, c.ID))
}

// NewFollower returns a follower that has seen nothing yet.
func (c *Cluster) NewFollower(from follow.Source) *follow.Follower {
	c.T.Helper()
	f, err := follow.New(c.ID, from, nil)
	c.must(err)
	return f
}

// StartCoordinator runs the coordinator on what its directory holds.
func (c *Cluster) StartCoordinator() {
	c.T.Helper()
	c.Host.Start()
}

// StopCoordinator stops it; StartCoordinator can follow.
func (c *Cluster) StopCoordinator() { c.Host.Stop() }

// OpenNotary opens a notary's directory without running it.
func (c *Cluster) OpenNotary(n *Notary) *notary.Notary {
	c.T.Helper()
	y, err := notary.New(c.config(n))
	c.must(err)
	return y
}

func (c *Cluster) config(n *Notary) notary.Config {
	return notary.Config{Charter: c.ID, Dir: n.Dir, Client: n.Wire.Client, Signing: n.Signing, Exchange: n.Exchange,
		Witness: n.Witness, Sealer: n.Sealer, Fuse: n.Fuse, Log: c.Log.With("notary", n.Name),
		Forget: func(context.Context) error { return os.Remove(c.exchangeFile(n)) }}
}

// TryNotary opens a notary's directory and closes it again.
func (c *Cluster) TryNotary(n *Notary) error {
	y, err := notary.New(c.config(n))
	if err != nil {
		return err
	}
	return y.Close()
}

// Use makes a host the one that the test speaks to. The cluster's follower
// goes on from what it has seen.
func (c *Cluster) Use(h *Host) {
	c.Host, c.Client, c.LogKey = h, h.Client, h.LogKey
	c.source.Lay(h)
}

// NewKey makes a key of the test's own.
func (c *Cluster) NewKey(name string, kind hsm.Kind) hsm.Key {
	c.T.Helper()
	return c.key(name, kind)
}

// StartNotary runs one notary on what its directory holds.
func (c *Cluster) StartNotary(n *Notary) {
	c.T.Helper()
	y := c.OpenNotary(n)
	ctx, cancel := context.WithCancel(context.Background())
	n.stop, n.done = cancel, make(chan struct{})
	go func() {
		defer close(n.done)
		if err := y.Run(ctx); err != nil && ctx.Err() == nil {
			c.T.Errorf("notary %s: %v", n.Name, err)
		}
	}()
	c.T.Cleanup(n.Stop)
}

// Stop stops the notary; StartNotary can follow.
func (n *Notary) Stop() {
	if n.stop != nil {
		n.stop()
		<-n.done
		n.stop = nil
	}
}

// Sync brings the cluster's own follower to the newest final checkpoint.
func (c *Cluster) Sync(minSize uint64) {
	c.T.Helper()
	ctx := context.Background()
	note, err := c.Client.Checkpoint(ctx, true, minSize, 20*time.Second)
	c.must(err)
	_, err = c.Follower.Final(ctx, note)
	c.must(err)
}

// State looks at the followed state.
func (c *Cluster) State(fn func(*authority.Authority, *authority.State)) {
	c.T.Helper()
	c.must(c.Follower.View(func(a *authority.Authority, _ proof.Checkpoint, _ []byte) error {
		fn(a, a.State())
		return nil
	}))
}

// Wait syncs until the final state satisfies ok.
func (c *Cluster) Wait(what string, ok func(*authority.State) bool) {
	c.T.Helper()
	deadline := time.Now().Add(c.Patience)
	for {
		c.Sync(c.Follower.Seen().Size)
		done := false
		c.State(func(_ *authority.Authority, s *authority.State) { done = ok(s) })
		if done {
			return
		}
		if time.Now().After(deadline) {
			c.T.Fatalf("waited %s for %s", c.Patience, what)
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// Sign signs a document by a person.
func (c *Cluster) Sign(person string, d signoff.Document) *signoff.Signed {
	c.T.Helper()
	s, err := signoff.Sign(context.Background(), c.People[person].Signing, d)
	c.must(err)
	return s
}

// Append appends a document and waits until it is final.
func (c *Cluster) Append(s *signoff.Signed) error {
	c.T.Helper()
	out, err := c.Client.Append(context.Background(), s.Line())
	if err != nil {
		return err
	}
	if out.Void != "" {
		return fmt.Errorf("void: %s", out.Void)
	}
	c.Sync(out.Index + 1)
	return nil
}

// Tick wakes the notaries until fold time is near the clock.
func (c *Cluster) Tick() {
	c.T.Helper()
	var woken time.Time
	c.Wait("the time", func(s *authority.State) bool {
		if time.Since(woken) > 3*time.Second { // again, as whoever waits does: a notary is awake for 10 seconds
			c.must(c.Client.Send(context.Background(), api.TopicWake, []byte("now")))
			woken = time.Now()
		}
		return time.Now().Unix()-s.Time < 5
	})
}

// Nonce returns 16 random bytes.
func Nonce() []byte {
	b := make([]byte, 16)
	rand.Read(b)
	return b
}

// Request fills in what every request has. Fill the part in edit.
func (c *Cluster) Request(person, action string, edit func(*signoff.Request)) *signoff.Signed {
	c.T.Helper()
	now := time.Now().Unix()
	r := &signoff.Request{Charter: c.ID, Action: action, Requester: c.People[person].Doc.ID(), Purpose: "a test", Created: now, Expiry: now + 3600, Nonce: Nonce(), Seen: c.Follower.Seen()}
	edit(r)
	return c.Sign(person, r)
}

// Decide makes a person's decision on a request in the log, without shares.
func (c *Cluster) Decide(person string, request signoff.Digest, d signoff.Decision) *signoff.Signed {
	c.T.Helper()
	now := time.Now().Unix()
	a := &signoff.Approval{Charter: c.ID, Request: request, Person: c.People[person].Doc.ID(), Decision: d, Reason: "a test", Created: now, Expiry: now + 3000, Nonce: Nonce(), Seen: c.Follower.Seen()}
	c.State(func(_ *authority.Authority, s *authority.State) {
		rule, _, err := s.Evaluate(s.Requests[request])
		c.must(err)
		text, err := s.Display(request)
		c.must(err)
		a.Rule, a.Display = s.RuleDigest(rule), dsse.Digest(sha256.Sum256([]byte(text)))
	})
	return c.Sign(person, a)
}

// Logged reports whether any program of the cluster has warned with all of
// the words.
func (c *Cluster) Logged(words ...string) bool {
	c.logged.mu.Lock()
	defer c.logged.mu.Unlock()
	return slices.ContainsFunc(c.logged.lines, func(line string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) })
	})
}

type logWriter struct {
	t     testing.TB
	mu    sync.Mutex
	lines []string
}

func (w *logWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, string(b))
	if w.t.Context().Err() == nil {
		w.t.Log(string(b))
	}
	return len(b), nil
}
