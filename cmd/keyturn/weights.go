package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/weights"
	"github.com/keyturn/keyturn/signoff/weights/release"
)

// The documents of a sealed directory; package weights has the rest of its
// layout.
const (
	manifestFile = "manifest.json" // OMS v1 manifest, signed by the sealer
	objectFile   = "object.json"   // signed Object; the digest of its payload is the object id
	dealsFile    = "deals.json"    // signed Deals: which shares are dealt
	sharesFile   = "shares.json"   // the blob that Deals names: every holder's sealed share
	releaseFile  = "release.json"  // of an export: the release bundle
	receiptFile  = "receipt.json"  // of an export: the requester's signed receipt
)

func weightsCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "weights", Short: "seal weights, look at them, export and open them",
		Long: `Sealed weights are a directory:

  manifest.json   OMS v1 manifest, signed by whoever sealed
  object.json     the object: manifest, lockbox, thresholds; its digest is the object id
  deals.json      which shares of the lockbox are dealt
  shares.json     the shares, each sealed to its holder's token
  SHA256SUMS      digests of the plaintext, for sha256sum -c
  files/NAME.age  one age v1 file for each file

An export has release.json and receipt.json besides, and opens with
keyturn weights open, or with age and age-plugin-keyturn.`}
	cmd.AddCommand(sealCmd(a), resealCmd(a), registerCmd(a), weightsInfoCmd(a), weightsVerifyCmd(a), exportCmd(a), openCmd(a), identityCmd(a), recipientCmd(a), drillCmd(a), redealCmd(a))
	return cmd
}

// A sealedDir is the verified documents of a sealed directory.
type sealedDir struct {
	path string
	trusted
	object   *signoff.Object
	objectID dsse.Digest
	signed   *signoff.Signed // the object's document
	manifest *weights.Manifest
}

// trusted is against what sealed directories are checked.
type trusted struct {
	anchor  dsse.Digest
	charter *signoff.Charter
	people  *authority.Roster
	council signoff.Council                 // notaries
	tokens  map[dsse.Digest]authority.Owned // whose signatures count, by signing key
}

// sealedAt reads the documents of a sealed directory and checks them: signed by
// the sealer, and about each other.
func sealedAt(path string, t trusted) (*sealedDir, error) {
	d := &sealedDir{path: path, trusted: t}
	s, err := readLineFile(filepath.Join(path, objectFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ui.WithHint(err, "give a directory that keyturn weights seal or export made")
	}
	if err != nil {
		return nil, err
	}
	o, ok := s.Doc.(*signoff.Object)
	if !ok || o.Charter != t.anchor {
		return nil, fmt.Errorf("%s holds a %s of charter %s, want an object of %s", filepath.Join(path, objectFile), s.Doc.Kind(), s.Doc.Cluster(), t.anchor)
	}
	d.object, d.objectID, d.signed = o, s.Digest(), s
	if err := d.sealedBy(s.Envelope); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(path, objectFile), err)
	}
	env, m, err := readManifest(filepath.Join(path, manifestFile))
	if err != nil {
		return nil, err
	}
	if dsse.Digest(m.Digest()) != o.Manifest {
		return nil, fmt.Errorf("%s has digest %s, the object names %s", filepath.Join(path, manifestFile), dsse.Digest(m.Digest()), o.Manifest)
	}
	if err := d.sealedBy(env); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(path, manifestFile), err)
	}
	d.manifest = m
	return d, nil
}

// sealedBy checks that the object's sealer signed the envelope. A snapshot was
// signed by a node, whose key stands in the log alone: there its object counts
// if it is registered, and in a release if people approved its id. That id
// covers the manifest.
func (d *sealedDir) sealedBy(e *dsse.Envelope) error {
	if !d.object.Claim.IsZero() {
		return nil
	}
	return d.verify(e, d.object.Sealer)
}

func readManifest(path string) (*dsse.Envelope, *weights.Manifest, error) {
	b, err := readBounded(path, weights.MaxSigned)
	if err != nil {
		return nil, nil, err
	}
	return weights.ReadSigned(b)
}

// manifest reads a manifest that one of the people signed.
func (t trusted) manifest(path string) (*weights.Manifest, error) {
	env, m, err := readManifest(path)
	if err != nil {
		return nil, err
	}
	if err := t.verify(env, t.tokens[env.Hint].Person); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// verify checks that a token of the person signed the envelope.
func (t trusted) verify(e *dsse.Envelope, person dsse.Digest) error {
	x, ok := t.tokens[e.Hint]
	if !ok || x.Person != person {
		return ui.WithHint(fmt.Errorf("signed with key %s, which is nobody's here, or not the signer's", e.Hint), "somebody who came lately is known after keyturn status")
	}
	pub, err := x.Signing.Public()
	if err != nil {
		return err
	}
	return e.Verify(pub)
}

// open opens the files of the directory for reading.
func (d *sealedDir) open() (*weights.Directory, error) {
	return weights.OpenDirectory(d.path, d.manifest, d.objectID)
}

// trustFlags say what the charter is: the configuration's, or, for people who
// have none such as recipients, the one inside a release bundle, whose digest
// they were given.
type trustFlags struct {
	anchor, release string
}

func (t *trustFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.anchor, "charter", "", "charter digest to trust, sha256:HEX, instead of a configuration")
	cmd.Flags().StringVar(&t.release, "release", "", "release bundle with the charter (default "+releaseFile+" in the directory)")
}

// trusted returns what to check against. dir is where the bundle is if no flag
// says so.
func (t *trustFlags) trusted(a *app, dir string) (trusted, error) {
	if t.anchor == "" {
		return a.trusted()
	}
	r, err := t.bundle(a, dir)
	if err != nil {
		return trusted{}, err
	}
	return trustedBy(r), nil
}

func trustedBy(r *release.Release) trusted {
	return trusted{anchor: r.CharterID, charter: r.Charter, people: r.People, council: r.Council, tokens: r.Tokens}
}

// trusted is the charter of the configuration and who belongs by the log as it
// was last seen.
func (a *app) trusted() (trusted, error) {
	if err := a.load(); err != nil {
		return trusted{}, err
	}
	people, err := a.people()
	if err != nil {
		return trusted{}, err
	}
	council, err := a.council()
	if err != nil {
		return trusted{}, err
	}
	t := trusted{anchor: a.id, charter: a.charter, people: people, council: council, tokens: authority.Founders(a.charter).Tokens()}
	maps.Copy(t.tokens, people.Tokens())
	if a.seen.Size > 0 {
		err = a.view(func(_ *authority.Authority, s *authority.State) error {
			maps.Copy(t.tokens, s.Tokens)
			return nil
		})
	}
	return t, err
}

// bundle reads and verifies the release bundle.
func (t *trustFlags) bundle(a *app, dir string) (*release.Release, error) {
	anchor, err := t.digest(a)
	if err != nil {
		return nil, err
	}
	file := t.release
	if file == "" {
		file = filepath.Join(dir, releaseFile)
	}
	b, err := readBounded(file, release.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ui.WithHint(err, "only an export has one and opens: keyturn request export, then keyturn weights export")
	}
	if err != nil {
		return nil, err
	}
	parsed, err := release.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	r, err := parsed.Verify(anchor)
	if err != nil {
		return nil, ui.WithHint(fmt.Errorf("%s: %w", file, err), "ask the sender for the bundle of this export; nothing was opened")
	}
	return r, nil
}

func (t *trustFlags) digest(a *app) (dsse.Digest, error) {
	if t.anchor != "" {
		return dsse.ParseDigest(t.anchor)
	}
	if err := a.load(); err != nil {
		return dsse.Digest{}, ui.WithHint(err, "give the charter's digest with --charter, or a configuration")
	}
	return a.id, nil
}

// readBounded reads a regular file of at most limit bytes. The medium may be
// somebody else's: a pipe or a device in its place would have no end.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// vacant refuses an output that is there before any work is done.
func vacant(path string) error {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = ui.WithHint(fmt.Errorf("%s exists and is not overwritten", path), "choose another place or remove it")
	}
	return err
}

// progress draws a bar for a long operation; call done at its end.
func (a *app) progress(what string) (report func(weights.Progress), done func()) {
	update, done := a.Progress(what)
	return func(p weights.Progress) { update(p.Bytes, p.Total) }, done
}

// holders returns who holds shares of what is sealed now: the people and the
// notaries as last seen.
func (t trusted) holders() (lockbox.Params, error) {
	return authority.Holders(t.anchor, t.people, t.council)
}

// A weightsView is sealed weights as seal and info answer them.
type weightsView struct {
	Object     dsse.Digest `json:"object"`
	Name       string      `json:"name"`
	Sealer     string      `json:"sealer"`
	Claim      dsse.Digest `json:"claim,omitzero"` // of a snapshot: the use of a launch that made it
	Created    int64       `json:"created"`
	Manifest   dsse.Digest `json:"manifest"`
	Files      int         `json:"files"`
	Bytes      int64       `json:"bytes"`
	Tensors    int         `json:"tensors"`
	Parameters int64       `json:"parameters"`
	DTypes     []string    `json:"dtypes"`
	People     sideView    `json:"people"`
	Machines   sideView    `json:"machines"`
	Epoch      uint32      `json:"epoch"`            // of the people's shares, here or, if the log was asked, there; 0 if there are none
	HeldBy     []string    `json:"heldBy,omitempty"` // people who hold shares; empty if the log was not asked
	Redeal     *redealView `json:"redeal"`           // what moving the shares to the people of today waits for; null if they are there
	Term       uint32      `json:"term,omitzero"`    // of the notaries in office; omitted if the log was not asked
	Notaries   uint32      `json:"notaries"`         // epoch of the notaries' shares, as of the people's
	Handover   *redealView `json:"handover"`         // what moving them to the notaries in office waits for; null if they are there
	Registered *bool       `json:"registered"`       // what the log says; null if it was not asked
	Quantum    *bool       `json:"postQuantum"`      // whether recorded shares withstand a quantum computer; null if only the log could say
	Path       string      `json:"path"`
}

type sideView struct {
	Threshold int `json:"threshold"`
	Holders   int `json:"holders"`
	// Of the epoch that is worst off, see authority.Exposure: holders whose share
	// was sealed to P-256 alone, and how many shares it takes.
	Classic int `json:"classic"`
	Takes   int `json:"takes"`
}

func (d *sealedDir) view() (weightsView, error) {
	params, err := d.holders()
	if err != nil {
		return weightsView{}, err
	}
	o := d.object
	v := weightsView{Object: d.objectID, Name: o.Name, Sealer: d.tokens[d.signed.Hint].Name, Created: o.Created, Manifest: o.Manifest, Path: d.path,
		Files: o.Summary.Files, Bytes: o.Summary.Bytes, Tensors: o.Summary.Tensors, Parameters: o.Summary.Parameters, DTypes: o.Summary.DTypes,
		People:   sideView{Threshold: o.Lockbox.People.Threshold, Holders: len(d.people.Members)},
		Machines: sideView{Threshold: o.Lockbox.Machines.Threshold, Holders: len(params.Machines.Holders)}}
	if v.Claim = o.Claim; !o.Claim.IsZero() {
		v.Sealer = "node " + o.Sealer.String()
	}
	return v, d.exposed(&v)
}

// exposed says what the deals at hand withstand. That they withstand is not the
// whole answer, as the log has what became of them.
func (d *sealedDir) exposed(v *weightsView) error {
	_, shares, err := d.deals()
	if err != nil {
		return err
	}
	deals, err := lockbox.ParseDeals(shares)
	if err != nil {
		return err
	}
	x, err := authority.NewExposure(&authority.Object{ID: d.objectID, Doc: d.object}, d.tokens)
	if err != nil {
		return err
	}
	x.Deals(append(deals.People, deals.Machines...)...)
	v.expose(x)
	if *v.Quantum {
		v.Quantum = nil
	}
	return nil
}

func (v *weightsView) expose(x *authority.Exposure) {
	v.People.Classic, v.People.Takes = x.Side(lockbox.People)
	v.Machines.Classic, v.Machines.Takes = x.Side(lockbox.Machines)
	withstands := x.Withstands()
	v.Quantum = &withstands
}

// withstands is the answer of Exposure in words.
func (v weightsView) withstands() string {
	sides := fmt.Sprintf("under P-256 alone stand %d people's shares where %d open it, and %d notaries' where %d do",
		v.People.Classic, v.People.Takes, v.Machines.Classic, v.Machines.Takes)
	switch {
	case v.Quantum == nil:
		return "as it was dealt, a quantum computer to which a copy is shown later; what was released since, the log knows (--log): " + sides
	case *v.Quantum:
		return "a quantum computer to which a copy is shown later, until it is released, as long as ML-KEM-768 does (signatures do not): " + sides
	}
	return "no quantum computer: " + sides
}

func (v weightsView) text(w io.Writer) {
	shares := "not dealt"
	if v.Epoch > 0 {
		shares = fmt.Sprintf("dealt, epoch %d", v.Epoch)
	}
	switch {
	case v.Registered == nil:
		shares += "; the log was not asked (--log)"
	case *v.Registered:
		shares += "; in the log"
		if v.Redeal != nil {
			shares += "; NOT where the people are: " + v.Redeal.String()
		}
	default:
		shares += "; NOT in the log: keyturn weights register"
	}
	sealer := v.Sealer
	opens := fmt.Sprintf("%d of %d people and %d of %d notaries", v.People.Threshold, v.People.Holders, v.Machines.Threshold, v.Machines.Holders)
	if !v.Claim.IsZero() {
		sealer = fmt.Sprintf("%s in claim %s, if the log says so", v.Sealer, v.Claim)
		opens += "; in later uses of its run, the notaries alone"
	}
	rows := [][]string{
		{"object", v.Object.String()}, {"name", v.Name}, {"sealed by", sealer}, {"manifest", v.Manifest.String()},
		{"content", strings.TrimSuffix(fmt.Sprintf("%d files, %s, %d tensors, %d parameters, %s", v.Files, ui.Bytes(v.Bytes), v.Tensors, v.Parameters, strings.Join(v.DTypes, " ")), ", ")},
		{"opens with", opens},
		{"shares", shares}, {"withstands", v.withstands()},
	}
	if len(v.HeldBy) > 0 {
		rows = append(rows, []string{"held by", strings.Join(v.HeldBy, ", ")})
	}
	if v.Term > 0 {
		held := fmt.Sprintf("epoch %d, with the notaries of term %d", v.Notaries, v.Term)
		if v.Handover != nil {
			held = fmt.Sprintf("epoch %d; on their way to the notaries of term %d: %s", v.Notaries, v.Term, v.Handover)
		}
		rows = append(rows, []string{"notaries' shares", held})
	}
	ui.Table(w, rows)
}
