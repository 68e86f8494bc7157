package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/policy/enforce"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/weights"
	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// ResumeName is the directory among a run's inputs that holds the snapshot it
// resumes from.
const ResumeName = "resume"

// More documents of a snapshot's sealed directory.
const (
	DealsFile  = "deals.json"  // bundle line of the signoff.Deals
	SharesFile = "shares.json" // the blob that it names
	ResumeFile = "resume.json" // people's shares for the nodes of the run's pool
)

const (
	snapshotSuffix = ".sealed"
	lookEvery      = 250 * time.Millisecond
	registerLimit  = 10 * time.Minute // for a sealed snapshot to become final
	maxResume      = 8 << 20          // bytes of resume.json
	maxNames       = 1024             // looked at at once in a run's output
	maxLost        = 64               // failures of one run that are told; then it keeps no more
	maxName        = 64               // bytes of a snapshot's name
)

// firstEpoch is the epoch of the deals made while sealing.
const firstEpoch = 1

// A keeper seals what a run renames to a finished name in its output directory,
// each directory as an object of its own, and removes the plaintext when the
// object is in the final log. Sealing needs public keys only. The plaintext is
// nowhere but in the run's memory; everything in it is hostile.
type keeper struct {
	*Agent
	claim Digest
	plan  *plan
	tell  func(Event)
	dir   *os.File // nil if the run has no output
	given map[string]bool
}

func newKeeper(a *Agent, claim Digest, p *plan, tell func(Event)) *keeper {
	return &keeper{Agent: a, claim: claim, plan: p, tell: tell, given: map[string]bool{}}
}

// output is what the gate is asked for.
func (k *keeper) output() enforce.Output {
	if k.plan.launch.Output == 0 {
		return enforce.Output{}
	}
	return enforce.Output{Bytes: uint64(k.plan.launch.Output), Opened: func(dir *os.File) { k.dir = dir }}
}

func (k *keeper) close() {
	if k.dir != nil {
		k.dir.Close()
	}
}

// watch keeps snapshots until the run has ended, then what it left. It closes
// the channel after that. A run's last snapshot is kept even if the agent is
// asked to end.
func (k *keeper) watch(ctx context.Context, ended <-chan struct{}) <-chan struct{} {
	done := make(chan struct{})
	if k.dir == nil {
		close(done)
		return done
	}
	go func() {
		defer close(done)
		ctx := context.WithoutCancel(ctx)
		for over := false; !over; {
			select {
			case <-ended:
				over = true
			case <-time.After(lookEvery):
			}
			k.look(ctx)
		}
	}()
	return done
}

// look keeps each finished directory: one whose name does not begin with a dot.
// What could not be kept is not tried again under the same name.
func (k *keeper) look(ctx context.Context) {
	names, err := k.names()
	if err != nil {
		k.cfg.Log.Warn("cannot look for snapshots", "claim", k.claim, "err", err)
		return
	}
	for _, name := range names {
		if strings.HasPrefix(name, ".") || k.given[name] || len(k.given) == maxLost {
			continue
		}
		object, err := k.keep(ctx, name)
		if err == nil {
			k.tell(Event{Event: EventKept, Claim: k.claim, Object: object, Text: name})
			err = k.remove(name)
		}
		if err != nil {
			k.given[name] = true
			k.cfg.Log.Warn("snapshot not kept, or not removed", "claim", k.claim, "err", err)
			k.tell(Event{Event: EventLost, Claim: k.claim, Text: clean(err.Error())})
		}
	}
}

func (k *keeper) names() ([]string, error) {
	root, err := os.OpenRoot(k.path())
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxNames)
	slices.Sort(names)
	if errors.Is(err, io.EOF) { // there are none
		err = nil
	}
	return names, err
}

// path leads to the output directory, which has no other.
func (k *keeper) path() string { return fmt.Sprintf("/proc/self/fd/%d", k.dir.Fd()) }

// checkSnapshot accepts names that mean nothing to a shell or a file system.
func checkSnapshot(name string) error {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r)
	}
	if name == "" || len(name) > maxName || strings.ContainsRune("-_.", rune(name[0])) || strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) {
		return fmt.Errorf("agent: snapshot %.80q: want 1 to %d letters, digits, - _ or ., beginning with a letter or digit", name, maxName)
	}
	return nil
}

// keep seals one directory and brings it into the log.
func (k *keeper) keep(ctx context.Context, name string) (Digest, error) {
	if err := checkSnapshot(name); err != nil {
		return Digest{}, err
	}
	// Never through a link: the run may have put one there that leads to the
	// host's files.
	fd, err := unix.Openat(int(k.dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Digest{}, fmt.Errorf("agent: snapshot %s: no directory of the run: %w", name, err)
	}
	defer unix.Close(fd)
	s := &snapshot{keeper: k, name: name, pool: map[Digest]lockbox.Recipient{}}
	if err := s.prepare(); err != nil {
		return Digest{}, fmt.Errorf("agent: snapshot %s: %w", name, err)
	}
	defer s.secrets.Wipe()
	place := filepath.Join(k.cfg.Snapshots, k.claim.Hex()[:16]+"-"+name+snapshotSuffix)
	_, err = weights.Seal(ctx, fmt.Sprintf("/proc/self/fd/%d", fd), place, weights.Options{Name: s.title(), Finish: s.finish})
	if err != nil {
		return Digest{}, fmt.Errorf("agent: snapshot %s: %w", name, err)
	}
	if err := s.register(ctx); err != nil {
		return Digest{}, errors.Join(fmt.Errorf("agent: snapshot %s: %w", name, err), os.RemoveAll(place))
	}
	return s.object.Digest(), nil
}

// remove makes room in the run's memory; that the name is gone tells the run
// that the snapshot is kept.
func (k *keeper) remove(name string) error {
	root, err := os.OpenRoot(k.path())
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(name), root.Close())
}

// A snapshot is one directory on its way into the log.
type snapshot struct {
	*keeper
	name          string
	secrets       *lockbox.Secrets
	box           lockbox.Commitments
	pool          map[Digest]lockbox.Recipient // the nodes' storage keys, by fingerprint
	object, deals *signoff.Signed
	shares        []byte
}

// prepare makes a lockbox for the people and notaries of now.
func (s *snapshot) prepare() error {
	var params lockbox.Params
	if err := s.state(func(st *authority.State) (err error) {
		if params, err = st.Holders(); err != nil {
			return err
		}
		for _, id := range s.plan.launch.Pool {
			n := st.Nodes[id]
			if n.Retired {
				continue
			}
			to, err := lockbox.P256Recipient(n.Keys.StorageKey)
			if err != nil {
				return err
			}
			s.pool[to.ID()] = to
		}
		return nil
	}); err != nil {
		return err
	}
	var err error
	s.secrets, s.box, err = lockbox.New(rand.Reader, params)
	return err
}

// finish signs with the node's key what names the snapshot and where it comes
// from, and gives the people's side to the run's own pool.
func (s *snapshot) finish(ctx context.Context, d *weights.Draft) (*weights.Final, error) {
	manifest, err := weights.SignManifest(ctx, s.identity.SignKey, d.Manifest)
	if err != nil {
		return nil, err
	}
	if s.object, err = s.sign(ctx, s.describe(d)); err != nil {
		return nil, err
	}
	id := s.object.Digest()
	dealt, err := s.secrets.Deal(id, firstEpoch)
	if err != nil {
		return nil, err
	}
	if s.shares, err = dsse.Encode(dealt); err != nil {
		return nil, err
	}
	s.deals, err = s.sign(ctx, &signoff.Deals{Charter: s.cfg.ID, Sealer: s.id, Object: id, Epoch: firstEpoch, Blob: sha256.Sum256(s.shares)})
	if err != nil {
		return nil, err
	}
	resume, err := s.give(id)
	if err != nil {
		return nil, err
	}
	return &weights.Final{Object: id,
		Wrap: func(file int, key stream.FileKey) ([]byte, error) {
			return s.secrets.WrapFileKey(id, uint32(file), key)
		},
		Documents: map[string][]byte{ManifestFile: manifest, ObjectFile: append(s.object.Line(), '\n'),
			DealsFile: append(s.deals.Line(), '\n'), SharesFile: s.shares, ResumeFile: resume}}, nil
}

func (s *snapshot) sign(ctx context.Context, doc signoff.Document) (*signoff.Signed, error) {
	return signoff.Sign(ctx, s.identity.SignKey, doc)
}

func (s *snapshot) describe(d *weights.Draft) *signoff.Object {
	return &signoff.Object{Charter: s.cfg.ID, Sealer: s.id, Claim: s.claim, Name: s.title(), Manifest: d.Manifest.Digest(), Created: time.Now().Unix(),
		Lockbox: signoff.Lockbox{Salt: s.box.Salt[:],
			People:   signoff.Sharing{Threshold: s.box.People.Threshold(), Commitments: s.box.People.Bytes()},
			Machines: signoff.Sharing{Threshold: s.box.Machines.Threshold(), Commitments: s.box.Machines.Bytes()}},
		Summary: signoff.Summary{Files: d.Summary.Files, Bytes: d.Summary.Bytes, Tensors: d.Summary.Tensors, Parameters: d.Summary.Parameters, DTypes: d.Summary.DTypes}}
}

// title is the name that people are shown.
func (s *snapshot) title() string {
	return fmt.Sprintf("%s, use %d: %s", s.plan.launch.Name, s.plan.use, s.name)
}

// The people's side for the nodes that may resume: to each, shares 1 to t. They
// open nothing without the notaries' shares, which a new claim has to earn.
type resumeFile struct {
	Nodes []resumeNode `json:"nodes"`
}

type resumeNode struct {
	Recipient Digest   `json:"recipient"` // fingerprint of the node's storage key
	Sealed    [][]byte `json:"sealed"`
}

// resumeContext is what share i of a snapshot is sealed under: the sealing
// node's key stands in the place of a holder's.
func resumeContext(charter, object, sealer, request, recipient Digest, i int) lockbox.ReleaseContext {
	return lockbox.ReleaseContext{
		Context: lockbox.Context{Charter: charter, Object: object, Side: lockbox.People, Epoch: firstEpoch, Index: uint16(i), Holder: sealer},
		Request: request, Recipient: recipient,
	}
}

func (s *snapshot) give(object Digest) ([]byte, error) {
	sealer, err := hsm.Fingerprint(s.identity.SignKey.Public())
	if err != nil {
		return nil, err
	}
	var out resumeFile
	for id, to := range s.pool {
		n := resumeNode{Recipient: id}
		for i := 1; i <= s.box.People.Threshold(); i++ {
			sealed, err := s.secrets.Release(resumeContext(s.cfg.ID, object, sealer, s.plan.request.ID, id, i), to)
			if err != nil {
				return nil, err
			}
			n.Sealed = append(n.Sealed, sealed)
		}
		out.Nodes = append(out.Nodes, n)
	}
	return dsse.Encode(out)
}

// resumeShares reads what an earlier use left for this node.
func (a *Agent) resumeShares(dir string, p *plan) ([]sealedShare, error) {
	b, err := readFile(filepath.Join(dir, ResumeFile), maxResume)
	if err != nil {
		return nil, err
	}
	id, err := lockbox.TokenIdentity(a.identity.StorageKey)
	if err != nil {
		return nil, err
	}
	me := Digest(id.Recipient().ID())
	shares, err := parseResume(b, me, p.resume.Doc.Lockbox.People.Threshold)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ResumeFile, err)
	}
	var out []sealedShare
	for n, sealed := range shares {
		out = append(out, sealedShare{resumeContext(a.cfg.ID, p.resume.ID, p.resume.Signer, p.request.ID, me, n+1), sealed})
	}
	return out, nil
}

// parseResume finds the shares for one recipient. There are exactly as many as
// it takes, for each that is tried costs the TPM an operation.
func parseResume(b []byte, recipient Digest, threshold int) ([][]byte, error) {
	var f resumeFile
	if err := dsse.Decode(b, &f); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(f.Nodes, func(n resumeNode) bool { return n.Recipient == recipient })
	if i < 0 {
		return nil, errors.New("it holds nothing for this node")
	}
	if n := len(f.Nodes[i].Sealed); n != threshold {
		return nil, fmt.Errorf("it holds %d shares for this node, the object takes %d", n, threshold)
	}
	return f.Nodes[i].Sealed, nil
}

// register brings the snapshot into the log and waits until it is final there.
// A coordinator that is away for a moment is asked again.
func (s *snapshot) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, registerLimit, fmt.Errorf("it is not in the log after %v", registerLimit))
	defer cancel()
	send := []*signoff.Signed{s.object, s.deals}
	for {
		news, there := s.news(), false
		if err := s.state(func(st *authority.State) error {
			o, ok := st.Objects[s.object.Digest()]
			there = ok && o.People.Epoch > 0
			return nil
		}); err == nil && there {
			return nil
		}
		var refused *api.Error
		err := s.send(ctx, &send)
		if errors.As(err, &refused) && refused.Status == http.StatusUnprocessableEntity {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-news:
		case <-time.After(2 * time.Second):
		}
	}
}

// send appends what is left to append.
func (s *snapshot) send(ctx context.Context, left *[]*signoff.Signed) error {
	if len(*left) == 0 {
		return nil
	}
	if _, err := s.client().PutBlob(ctx, s.shares); err != nil {
		return err
	}
	for len(*left) > 0 {
		out, err := s.client().Append(ctx, (*left)[0].Line())
		if err == nil && out.Void != "" {
			err = &api.Error{Status: http.StatusUnprocessableEntity, Text: out.Void}
		}
		if err != nil {
			return err
		}
		*left = (*left)[1:]
	}
	return nil
}

// snapshots lists the sealed directories of earlier runs.
func (a *Agent) snapshots() ([]string, error) {
	if a.cfg.Snapshots == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(a.cfg.Snapshots)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && strings.HasSuffix(e.Name(), snapshotSuffix) {
			out = append(out, filepath.Join(a.cfg.Snapshots, e.Name()))
		}
	}
	return out, nil
}
