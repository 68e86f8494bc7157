// Package agent is the machine on a node: it proves the node, holds its lease,
// starts what a warrant allows and stops it when it must.
//
// It believes nothing but the charter digest. It folds the whole log itself,
// acts on final checkpoints only, and never goes back below one that it has
// seen, not even over a restart. Root on a coordinator can withhold the log
// from it, which ends its lease; it cannot make the agent start anything, and
// it cannot keep it from stopping: what an agent must obey (the end of a lease,
// a halt that reached it on any way) is judged on a fold of its own that no
// network call ever blocks.
//
// A run takes these steps, and this is what is true if the agent dies between
// them:
//
//  1. judge: nothing has happened;
//  2. claim one numbered use, final in the log: the use is spent, nothing ran;
//  3. open people's shares with the enrolled storage key and the notaries' with
//     a key made for this use, which is flushed at once: it is gone;
//  4. receipt "started", then the gate decrypts into memory that only the run
//     sees and executes: the kernel ends the run with the agent;
//  5. receipt "ended".
//
// An agent that starts ends what an earlier one left, and signs "ended" for
// every claim of its node that has no end yet. So a use is taken once or lost,
// never taken twice.
package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/tpm"
	"github.com/keyturn/keyturn/policy/enforce"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// Digest is a SHA-256 value, written sha256:<hex>.
type Digest = dsse.Digest

// Config is what an agent runs with.
type Config struct {
	ID           Digest           // of the charter: the trust anchor
	Charter      *signoff.Charter // the charter of that digest
	Endpoints    []api.Endpoint   // coordinators; none means those of the charter
	TPM          *tpm.Device      // the caller closes it
	Dir          string           // key blobs and what must survive a restart; no secret is in it
	EventLog     string           // file of the firmware's log, binary_bios_measurements
	IMA          string           // file of the kernel's list, binary_runtime_measurements; it need not be there
	BootApproval string           // file of approved boots, one JSON hsm/tpm.BootApproval a line; read at each use
	Objects      []string         // directories of sealed weights on this node
	Snapshots    string           // directory that gets sealed snapshots of runs; empty: no run with an output starts here
	Socket       string           // path of the control socket, made with mode 0600
	Gate         enforce.Gate
	Log          *slog.Logger
}

// An Agent is a node's agent. Run does its work.
type Agent struct {
	cfg      Config
	store    store
	identity *tpm.Identity
	id       Digest
	enrol    []byte // the node's enrolment, as people ask for it
	boot     *ecdsa.PublicKey

	stranger *api.Client // shows no certificate: before the node is enrolled
	member   *api.Client // shows the node's TLS key

	quoting sync.Mutex // one piece of evidence at a time, sent in the order of their clocks; guards bootLog

	bootLog   attest.Digest // the event log that this process stored
	launching sync.Mutex    // a TPM may hold one key for one use at a time

	mu       sync.Mutex // guards what follows
	ledger   *ledger
	proving  proving
	halts    map[Digest]*signoff.Signed // standing, not yet in the final log
	runs     map[*use]bool              // that this process began and that have not ended
	enrolled bool
	changed  chan struct{} // closed and replaced when any of it changed
}

// New loads the node's identity from cfg.Dir, or makes it. It ends what an
// earlier agent left running.
func New(ctx context.Context, cfg Config) (*Agent, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	a, err := identify(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := a.connect(); err != nil {
		return nil, err
	}
	if err := a.loadHalts(); err != nil {
		return nil, err
	}
	if a.ledger, err = newLedger(cfg.ID, a.client, a.store); err != nil {
		return nil, err
	}
	return a, a.adopt()
}

// Provision loads the node's identity, or makes it, and returns its enrolment
// without doing anything else. Of cfg it needs charter, TPM and directory.
func Provision(ctx context.Context, cfg Config) (enrolment []byte, node Digest, err error) {
	if err := cfg.checkAnchor(); err != nil {
		return nil, node, err
	}
	a, err := identify(ctx, cfg)
	if err != nil {
		return nil, node, err
	}
	return a.enrol, a.id, nil
}

// identify makes an agent with its identity and nothing more.
func identify(ctx context.Context, cfg Config) (*Agent, error) {
	a := &Agent{cfg: cfg, store: store{cfg.Dir}, halts: map[Digest]*signoff.Signed{}, runs: map[*use]bool{},
		changed: make(chan struct{}), proving: proving{sent: map[string]sending{}}}
	var err error
	if a.boot, err = cfg.Charter.BootPolicy.P256(); err != nil {
		return nil, err
	}
	return a, a.loadIdentity(ctx)
}

func (c Config) check() error {
	if c.Gate == nil || c.Log == nil || c.EventLog == "" {
		return errors.New("agent: configuration lacks the gate, the logger or the event log")
	}
	if _, err := boottime(); err != nil {
		return err
	}
	return c.checkAnchor()
}

func (c Config) checkAnchor() error {
	switch {
	case c.Charter == nil || c.TPM == nil || c.Dir == "":
		return errors.New("agent: configuration lacks the charter, the TPM or the directory")
	case c.Charter.BootPolicy == nil:
		return errors.New("agent: the charter names no boot policy key, so no node can enrol")
	}
	payload, err := signoff.Write(c.Charter)
	if err != nil {
		return err
	}
	if got := Digest(sha256.Sum256(payload)); got != c.ID {
		return fmt.Errorf("agent: the charter given has digest %s, the anchor is %s", got, c.ID)
	}
	return nil
}

// connect makes the two ways to speak to coordinators.
func (a *Agent) connect() error {
	endpoints := a.cfg.Endpoints
	if len(endpoints) == 0 {
		for _, c := range a.cfg.Charter.Coordinators {
			endpoints = append(endpoints, api.Endpoint{URL: c.URL, TLS: c.TLS})
		}
	}
	cert, err := certificate(a.identity.TLSKey)
	if err != nil {
		return err
	}
	if a.stranger, err = api.NewClient(endpoints, nil); err != nil {
		return err
	}
	a.member, err = api.NewClient(endpoints, cert)
	return err
}

// client is how to speak to a coordinator now: a node that is not enrolled
// would be refused with its certificate.
func (a *Agent) client() *api.Client {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.enrolled {
		return a.member
	}
	return a.stranger
}

// Node returns the node's id.
func (a *Agent) Node() Digest { return a.id }

// Enrolment returns the node's enrolment (JSON of attest.Enrolment), for
// keyturn request enrol. It stays the same over restarts.
func (a *Agent) Enrolment() []byte { return a.enrol }

// Run works until ctx ends; then it asks runs to end, kills what does not
// within the policy's grace, and signs their receipts as far as it can.
func (a *Agent) Run(ctx context.Context) error {
	listener, err := a.listen()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context){a.follow, a.activate, a.prove, a.renew, a.hearHalts, a.tellHalts, a.watch, a.endLost} {
		wg.Go(func() { loop(ctx) })
	}
	wg.Go(func() { a.serve(ctx, listener) })
	wg.Wait()
	return nil
}

// announce wakes everyone who waits for news. The caller holds mu.
func (a *Agent) announce() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// news returns a channel that closes at the next change.
func (a *Agent) news() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// state calls fn with the state at the newest final checkpoint, under the lock.
func (a *Agent) state(fn func(*authority.State) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, err := a.ledger.state()
	if err != nil {
		return err
	}
	return fn(s)
}

// pause waits a moment, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
