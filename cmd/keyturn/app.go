package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/keys"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/durable"
	"github.com/keyturn/keyturn/hsm/secret"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/proof"
)

// An app is one run of the command line: configuration, keys, and a verified
// copy of the log, each made when first needed.
type app struct {
	*ui.Printer
	configFile    string
	pinFD         int
	pinCredential string
	pins          hsm.PIN // see pinSource
	carry         string  // file to work from instead of a coordinator
	wait          time.Duration
	journals      func(path string) (journalMedium, error) // of ceremonies; nil: files

	conf     *config.Person
	charter  *signoff.Charter
	id       dsse.Digest
	ring     *keys.Ring
	client   *api.Client
	follower *follow.Follower
	leaves   [][]byte     // every entry folded, in order
	seen     signoff.Seen // the final checkpoint accepted last
}

const envConfig = "KEYTURN_CONFIG"

// load reads the configuration and the charter it names.
func (a *app) load() error {
	if a.conf != nil {
		return nil
	}
	file := a.configFile
	if file == "" {
		file = os.Getenv(envConfig)
	}
	if file == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return err
		}
		file = filepath.Join(dir, "keyturn", "keyturn.yaml")
	}
	var conf config.Person
	if err := config.Load(file, &conf); err != nil {
		return ui.WithHint(err, "name a configuration with --config FILE or %s; see keyturn help config", envConfig)
	}
	charter, id, err := conf.Anchor(file)
	if err != nil {
		return err
	}
	conf.State, conf.MLKEM768 = config.Beside(file, conf.State), config.Beside(file, conf.MLKEM768)
	a.configFile, a.conf, a.charter, a.id = file, &conf, charter, id
	return nil
}

// pinSource is the terminal, the descriptor that --pin-fd names, or the service
// credential that --pin-credential names.
func (a *app) pinSource() hsm.PIN {
	switch {
	case a.pins != nil:
	case a.pinFD > 0:
		a.pins = keys.DescriptorPIN(keys.FD(a.pinFD))
	case a.pinCredential != "":
		a.pins = keys.CredentialPIN(a.pinCredential)
	default:
		a.pins = keys.PromptPIN
	}
	return a.pins
}

// keyring opens keys and asks for each token's PIN once.
func (a *app) keyring() *keys.Ring {
	if a.ring == nil {
		a.ring = keys.New(a.pinSource())
		a.ring.Attended = a.pinFD == 0 && a.pinCredential == "" // somebody types it
		a.ring.Waits = func(k hsm.Info) { a.Note("waiting for %s; touch it if it wants a touch", k.URI) }
	}
	return a.ring
}

func (a *app) close() {
	if a.ring != nil {
		a.ring.Close()
	}
}

// me is who the configuration says that I am, by the roster of the log as it
// was last seen: a halt must not wait for a coordinator.
func (a *app) me() (*authority.Member, error) {
	if err := a.load(); err != nil {
		return nil, err
	}
	people, err := a.people()
	if err != nil {
		return nil, err
	}
	if m, ok := people.Named(a.conf.Name); ok {
		return m, nil
	}
	return nil, ui.WithHint(fmt.Errorf("%q is nobody among the people of %s", a.conf.Name, a.charter.Name), "set name in %s to your name as keyturn people lists it", a.configFile)
}

// people is the roster: of the log if it was followed, else as it was last
// seen, else the charter's.
func (a *app) people() (people *authority.Roster, err error) {
	if a.seen.Size > 0 {
		return people, a.view(func(_ *authority.Authority, s *authority.State) error {
			people = s.People
			return nil
		})
	}
	if ok, err := a.recalled("people", &people); ok || err != nil {
		return people, err
	}
	return authority.Founders(a.charter), nil
}

// council is the notaries in office, in the same way.
func (a *app) council() (council signoff.Council, err error) {
	if a.seen.Size > 0 {
		return council, a.view(func(_ *authority.Authority, s *authority.State) error {
			council = s.Council()
			return nil
		})
	}
	if ok, err := a.recalled("notaries", &council); ok || err != nil {
		return council, err
	}
	return a.charter.Council(), nil
}

// recalled reads what was kept of the log when it was last seen.
func (a *app) recalled(what string, into any) (bool, error) {
	if a.conf.State == "" {
		return false, nil
	}
	b, err := os.ReadFile(a.stateFile(what))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, dsse.Decode(b, into)
}

// token says which of my tokens is at hand, and opens its signing key, pinned
// to what the roster says it is.
func (a *app) token(ctx context.Context) (signoff.Token, hsm.Key, error) {
	me, err := a.me()
	if err != nil {
		return signoff.Token{}, nil, err
	}
	var bad []error
	for _, t := range me.Tokens() {
		pub, err := t.Signing.Public()
		if err != nil {
			return t, nil, err
		}
		key, err := a.keyring().Key(ctx, a.conf.Signing, crypto.PublicKey(pub))
		if err == nil {
			return t, key, nil
		}
		bad = append(bad, err)
	}
	return signoff.Token{}, nil, errors.Join(bad...)
}

// signer opens my signing key.
func (a *app) signer(ctx context.Context) (hsm.Key, error) {
	_, key, err := a.token(ctx)
	return key, err
}

// exchange opens the key of the same token that opens shares. From then on half
// of it may be in memory, and what it opens will be.
func (a *app) exchange(ctx context.Context) (*lockbox.Identity, error) {
	if err := a.unswapped(secret.CheckSwap()); err != nil {
		return nil, err
	}
	t, _, err := a.token(ctx)
	if err != nil {
		return nil, err
	}
	if !t.HoldsShare() {
		return nil, fmt.Errorf("the token that signs as %s has no exchange key: it holds no share and opens nothing", a.conf.Name)
	}
	return a.keyring().Identity(ctx, keys.Exchange{URI: a.conf.Exchange, Seal: a.conf.Seal, MLKEM768: a.conf.MLKEM768}, t.Exchange)
}

// coordinator returns the client of the charter's coordinators.
func (a *app) coordinator() (*api.Client, error) {
	if err := a.load(); err != nil {
		return nil, err
	}
	if a.carry != "" {
		return nil, errors.New("working from a file: there is no coordinator to speak to")
	}
	if a.client == nil {
		client, err := api.NewClient(config.Endpoints(a.charter), nil)
		if err != nil {
			return nil, err
		}
		a.client = client
	}
	return a.client, nil
}

// sync brings the verified copy of the log to a final checkpoint of at least
// size entries, from a coordinator or from the file carried here.
func (a *app) sync(ctx context.Context, size uint64) error {
	if err := a.load(); err != nil {
		return err
	}
	if a.carry != "" {
		return a.syncFile(ctx)
	}
	client, err := a.coordinator()
	if err != nil {
		return err
	}
	if err := a.follow(client); err != nil {
		return err
	}
	note, err := client.Checkpoint(ctx, true, size, a.wait)
	if err != nil {
		if answered := (*api.Error)(nil); errors.As(err, &answered) {
			return ui.WithHint(err, "nothing is final before a quorum of notaries cosigns it: see that they run, and what their journals say")
		}
		return ui.WithHint(err, "see that this machine reaches the coordinator; without a network work from a file that keyturn carry wrote elsewhere (--file)")
	}
	return a.accept(ctx, note)
}

func (a *app) follow(source follow.Source) error {
	if a.follower != nil {
		return nil
	}
	f, err := follow.Remember(a.id, source, func(out authority.Outcome, line []byte) { a.leaves = append(a.leaves[:out.Index], line) }, a.memory())
	a.follower = f
	return err
}

// memory spares the next command the evidence of nodes that this one read.
func (a *app) memory() follow.Memory {
	if a.conf.State == "" {
		return nil
	}
	return noted{follow.InFile(a.stateFile("appraised")), a}
}

// noted writes the file as the others of the state are written, and says so if it
// cannot.
type noted struct {
	follow.InFile
	a *app
}

func (n noted) Save(b []byte) error {
	err := writeFile(string(n.InFile), b)
	if err != nil {
		n.a.Note("verdicts on nodes are not kept: %v", err)
	}
	return err
}

// accept folds up to the note and refuses a log shorter than, or different
// from, what this person saw before.
func (a *app) accept(ctx context.Context, note []byte) error {
	a.leaves = a.leaves[:min(len(a.leaves), int(a.follower.Seen().Size))]
	c, err := a.follower.Final(ctx, note)
	if err != nil {
		return err
	}
	a.seen = signoff.Seen{Size: c.Size, Root: dsse.Digest(c.Root)}
	seen, err := a.lastSeen()
	if err != nil {
		return err
	}
	root, ok := dsse.Digest{}, false
	if err := a.view(func(auth *authority.Authority, _ *authority.State) error {
		root, ok = auth.RootAt(seen.Size)
		return nil
	}); err != nil {
		return err
	}
	if seen.Size > 0 && (!ok || root != seen.Root) {
		return ui.WithHint(fmt.Errorf("the log has %d entries and does not contain the checkpoint of %d entries seen before: %w", c.Size, seen.Size, follow.ErrRollback),
			"do not sign anything; ask the notaries and auditors what happened")
	}
	if c.Size > seen.Size {
		return a.remember(a.seen)
	}
	return nil
}

// view looks at the verified state.
func (a *app) view(fn func(*authority.Authority, *authority.State) error) error {
	return a.follower.View(func(auth *authority.Authority, _ proof.Checkpoint, _ []byte) error { return fn(auth, auth.State()) })
}

// stateFile is where this person keeps one thing that was last seen of the log.
func (a *app) stateFile(what string) string {
	return filepath.Join(a.conf.State, what+"-"+a.id.Hex()[:16]+".json")
}

func (a *app) lastSeen() (seen signoff.Seen, err error) {
	_, err = a.recalled("seen", &seen)
	return seen, err
}

// remember keeps who belongs before how much of the log was seen.
func (a *app) remember(seen signoff.Seen) error {
	if a.conf.State == "" {
		return nil
	}
	people, err := a.people()
	if err != nil {
		return err
	}
	council, err := a.council()
	if err != nil {
		return err
	}
	for _, x := range []struct {
		what  string
		value any
	}{{"people", people}, {"notaries", council}, {"seen", seen}} {
		b, err := dsse.Encode(x.value)
		if err != nil {
			return err
		}
		if err := writeFile(a.stateFile(x.what), b); err != nil {
			return err
		}
	}
	return nil
}

// writeFile replaces a file durably, making its directory.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.Replace(path, data, 0o600)
}

// writeNew writes a file that must not exist.
func writeNew(path string, data []byte) error { return durable.Create(path, data, 0o644) }

// submit appends a document, waits until it is final, and saves its proof.
func (a *app) submit(ctx context.Context, s *signoff.Signed) (api.Appended, error) {
	client, err := a.coordinator()
	if err != nil {
		return api.Appended{}, err
	}
	out, err := client.Append(ctx, s.Line())
	if err != nil {
		return out, err
	}
	if out.Void != "" {
		return out, fmt.Errorf("entry %d is void: %s", out.Index, out.Void)
	}
	if err := a.sync(ctx, out.Index+1); err != nil {
		return out, &ui.Exit{Err: fmt.Errorf("entry %d is committed but not final yet: %w", out.Index, err), Code: ui.ExitNotFinal}
	}
	if out.Index >= uint64(len(a.leaves)) || !bytes.Equal(a.leaves[out.Index], s.Line()) {
		return out, &ui.Exit{Err: fmt.Errorf("entry %d of the final log is another document than was sent", out.Index), Code: ui.ExitNotFinal}
	}
	return out, a.saveProof(out.Index, s)
}

// saveProof keeps what shows, without any server, that the entry is final.
func (a *app) saveProof(index uint64, s *signoff.Signed) error {
	if a.conf.State == "" {
		return nil
	}
	var note []byte
	if err := a.follower.View(func(_ *authority.Authority, c proof.Checkpoint, n []byte) error {
		note = n
		return nil
	}); err != nil {
		return err
	}
	path, err := proof.NewTree(a.leaves).Prove(index)
	if err != nil {
		return err
	}
	p := &proof.Proof{Index: index, Path: path, Checkpoint: note}
	base := filepath.Join(a.conf.State, "proofs", s.Digest().Hex())
	return errors.Join(writeFile(base+".json", append(s.Line(), '\n')), writeFile(base+".tlog-proof", p.Marshal()))
}

// freshTime wakes the notaries until the fold's time is near the clock, so
// that expiries mean the same to both.
func (a *app) freshTime(ctx context.Context) error {
	client, err := a.coordinator()
	if err != nil {
		return err
	}
	if err := a.sync(ctx, 1); err != nil {
		return err
	}
	for deadline := time.Now().Add(a.wait); ; {
		var lag int64
		if err := a.view(func(_ *authority.Authority, s *authority.State) error {
			lag = time.Now().Unix() - s.Time
			return nil
		}); err != nil {
			return err
		}
		if lag < 60 {
			return nil
		}
		if time.Now().After(deadline) {
			return ui.WithHint(fmt.Errorf("the log's time is %d s behind", lag), "a quorum of notaries must be running; see keyturn status")
		}
		if err := client.Send(ctx, api.TopicWake, []byte("time")); err != nil {
			return err
		}
		if err := a.sync(ctx, a.follower.Seen().Size+1); err != nil {
			return err
		}
	}
}

func nonce() []byte {
	b := make([]byte, 16)
	rand.Read(b)
	return b
}

func textDigest(text string) dsse.Digest { return sha256.Sum256([]byte(text)) }
