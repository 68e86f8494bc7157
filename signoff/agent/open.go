package agent

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/tpm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/weights"
	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// Documents of a sealed directory that an agent reads.
const (
	ManifestFile = "manifest.json" // as weights.SignManifest writes it
	ObjectFile   = "object.json"   // bundle line of the signoff.Object, with a newline
)

// An input is one object on this node, checked as far as that goes without keys.
type input struct {
	object *authority.Object
	dir    *weights.Directory
	bytes  uint64        // that the plaintext takes in memory, with some to spare
	name   string        // of its directory among the run's inputs
	people []sealedShare // of a snapshot: what its sealer released to this node
	unlock *lockbox.Unlocker
}

// close forgets the secrets.
func (in *input) close() {
	if in.unlock != nil {
		in.unlock.Wipe()
	}
	in.dir.Close()
}

func closeAll(inputs []*input) {
	for _, in := range inputs {
		in.close()
	}
}

// find opens the sealed directories of a plan's objects.
func (a *Agent) find(p *plan) ([]*input, error) {
	var out []*input
	for _, o := range p.objects {
		dir, err := a.directory(o.ID)
		if err != nil {
			closeAll(out)
			return nil, err
		}
		in, err := openSealed(dir, o, p.sealers[o.ID])
		if err != nil {
			closeAll(out)
			return nil, fmt.Errorf("agent: %s: %w", dir, err)
		}
		in.name = o.ID.Hex()
		out = append(out, in)
		if o == p.resume {
			in.name = ResumeName
			if in.people, err = a.resumeShares(dir, p); err != nil {
				closeAll(out)
				return nil, fmt.Errorf("agent: %s: %w", dir, err)
			}
		}
	}
	return out, nil
}

// directory finds the sealed directory whose object document has the id.
func (a *Agent) directory(id Digest) (string, error) {
	var bad []error
	snapshots, err := a.snapshots()
	if err != nil {
		return "", err
	}
	for _, dir := range append(slices.Clone(a.cfg.Objects), snapshots...) {
		b, err := readFile(filepath.Join(dir, ObjectFile), dsse.MaxLine+1)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		doc, err := signoff.ReadLine(bytes.TrimSuffix(b, []byte("\n")))
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", dir, err))
			continue
		}
		if doc.Digest() == id {
			return dir, nil
		}
	}
	return "", errors.Join(append([]error{fmt.Errorf("agent: object %s is in none of %d sealed directories; name its directory under objects in the agent's configuration", id, len(a.cfg.Objects))}, bad...)...)
}

// readFile reads a file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return b, err
}

// openSealed takes the manifest that the object document names, signed by the
// object's sealer, and looks at every file's header.
func openSealed(dir string, o *authority.Object, sealer crypto.PublicKey) (*input, error) {
	b, err := readFile(filepath.Join(dir, ManifestFile), weights.MaxSigned)
	if err != nil {
		return nil, err
	}
	env, m, err := weights.ReadSigned(b)
	if err != nil {
		return nil, err
	}
	if env.Digest() != o.Doc.Manifest {
		return nil, fmt.Errorf("its manifest has digest %s, the object's is %s", env.Digest(), o.Doc.Manifest)
	}
	if err := env.Verify(sealer); err != nil {
		return nil, err
	}
	d, err := weights.OpenDirectory(dir, m, o.ID)
	if err != nil {
		return nil, err
	}
	sealed, err := d.Size()
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	// Ciphertext is longer than plaintext; beyond that each file and its
	// directory takes a page or two.
	return &input{object: o, dir: d, bytes: uint64(sealed) + uint64(len(m.Files))*3*4096 + 1<<20}, nil
}

// openSide opens shares with a key until there are enough good ones. A bad
// share is its maker's fault and is passed over; trouble of the key is not.
func openSide(ctx context.Context, key hsm.Decrypter, sharing lockbox.Sharing, sealed []sealedShare) (good []*lockbox.Share, err error) {
	id, err := lockbox.TokenIdentity(key)
	if err != nil {
		return nil, err
	}
	bad := []error{}
	for _, s := range sealed {
		if len(good) == sharing.Threshold() {
			return good, nil
		}
		share, err := lockbox.OpenRelease(ctx, id, s.where, sharing, s.sealed)
		var fault *lockbox.ShareError
		switch {
		case err == nil:
			good = append(good, share)
		case errors.As(err, &fault):
			bad = append(bad, err)
		default:
			wipe(good)
			return nil, err
		}
	}
	if len(good) < sharing.Threshold() {
		wipe(good)
		return nil, errors.Join(append(bad, &tooFew{len(good), sharing.Threshold()})...)
	}
	return good, nil
}

// tooFew: more shares may still come.
type tooFew struct{ have, want int }

func (e *tooFew) Error() string {
	return fmt.Sprintf("agent: %d good shares, it takes %d", e.have, e.want)
}

func wipe(shares []*lockbox.Share) {
	for _, s := range shares {
		s.Wipe()
	}
}

// epochOf is the newest epoch among shares, 0 without any. A share of another
// one does not open with them.
func epochOf(shares []sealedShare) uint32 {
	var e uint32
	for _, s := range shares {
		e = max(e, s.where.Epoch)
	}
	return e
}

// openMachines opens notaries' shares of one epoch, the newest of which there
// are enough good ones: they may have been dealt anew while they were released,
// and those of two epochs do not combine.
func openMachines(ctx context.Context, key hsm.Decrypter, held authority.Holding, sealed []sealedShare) (good []*lockbox.Share, sharing lockbox.Sharing, err error) {
	var bad error = &tooFew{0, held.Threshold()}
	for epoch := held.Epoch; epoch > 0; epoch-- {
		var of []sealedShare
		for _, s := range sealed {
			if s.where.Epoch == epoch {
				of = append(of, s)
			}
		}
		if sharing, err = held.Sharing(epoch); err != nil {
			return nil, nil, err
		}
		if len(of) < sharing.Threshold() {
			continue
		}
		var few *tooFew
		if good, err = openSide(ctx, key, sharing, of); !errors.As(err, &few) {
			return good, sharing, err
		}
		bad = err
	}
	return nil, nil, bad
}

// combine opens both sides' shares of one object. The people's layer needs the
// enrolled key in an approved boot, the machines' the key of this use.
func (a *Agent) combine(ctx context.Context, in *input, people, machines []sealedShare, fresh hsm.Decrypter) error {
	box := lockbox.Commitments{Salt: [32]byte(in.object.Doc.Lockbox.Salt)}
	ours, sharing, err := openMachines(ctx, fresh, in.object.Machines, machines)
	if err != nil {
		return fmt.Errorf("agent: notaries' shares: %w", err)
	}
	defer wipe(ours)
	box.Machines = sharing
	if box.People, err = in.object.People.Sharing(epochOf(people)); err != nil {
		return err
	}
	theirs, err := openSide(ctx, a.identity.StorageKey, box.People, people)
	if err != nil {
		// No more of them will come: the warrant counts these and no others.
		return fmt.Errorf("agent: people's shares: %v", err)
	}
	defer wipe(theirs)
	in.unlock, err = lockbox.Unlock(in.object.ID, box, theirs, ours)
	return err
}

// approveBoot gives the storage key the boots that people approved.
func (a *Agent) approveBoot() error {
	b, err := readFile(a.cfg.BootApproval, 1<<20)
	if err != nil {
		return fmt.Errorf("agent: approved boots: %w", err)
	}
	var approvals []tpm.BootApproval
	for line := range bytes.Lines(b) {
		var one tpm.BootApproval
		if err := dsse.Decode(line, &one); err != nil {
			return fmt.Errorf("agent: %s, line %d: %w", a.cfg.BootApproval, len(approvals)+1, err)
		}
		approvals = append(approvals, one)
	}
	return a.identity.StorageKey.SetApprovals(approvals)
}

// fill decrypts every object below dir, each into a directory named by the hex
// digits of its id, or ResumeName, and compares all of it with the manifests.
func fill(ctx context.Context, inputs []*input, dir *os.Root) error {
	at, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer at.Close()
	for _, in := range inputs {
		keyFor := func(file int, s stream.Stanza) (stream.FileKey, error) {
			return in.unlock.FileKey(uint32(file), s.Body)
		}
		// The directory has no path but this one.
		out := path.Join(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), in.name)
		if err := in.dir.Open(ctx, out, keyFor, weights.Run{}); err != nil {
			return err
		}
		in.unlock.Wipe()
	}
	return nil
}
