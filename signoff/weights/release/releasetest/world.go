// Package releasetest makes sealed weights and release bundles for tests: by
// the real lockbox, the real engine and real signatures with software keys, but
// without a cluster. Each document can be made wrong on its own and signed all
// the same, which no cluster would do.
package releasetest

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/lockbox"
	"github.com/keyturn/keyturn/signoff/proof"
	"github.com/keyturn/keyturn/signoff/signofftest"
	"github.com/keyturn/keyturn/signoff/weights"
	"github.com/keyturn/keyturn/signoff/weights/release"
	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// A World is the keys of a cluster that does not run, a group key whole in one
// hand, and a recipient.
type World struct {
	*signofftest.Cluster
	Group        hsm.Key
	Recipient    hsm.Decrypter
	RecipientURI string
	Now          int64
}

// New makes the keys. Edits change the charter before it is signed.
func New(t testing.TB, edits ...func(*signoff.Charter)) *World {
	t.Helper()
	w := &World{Cluster: signofftest.Keys(t, func(c *signoff.Charter) {
		for _, edit := range edits {
			edit(c)
		}
	}), Now: time.Now().Unix()}
	group, err := file.Open(w.generate("group", hsm.KindEd25519), nil)
	w.must(err)
	w.Group = group
	w.RecipientURI = w.generate("recipient", hsm.KindECDH)
	w.Recipient, err = file.OpenDecrypter(w.RecipientURI, nil)
	w.must(err)
	return w
}

func (w *World) generate(name string, kind hsm.Kind) string {
	w.T.Helper()
	uri := "file:" + filepath.Join(w.Dir, name+".pem")
	_, err := file.Generate(uri, kind)
	w.must(err)
	return uri
}

// NewRecipient makes another recipient.
func (w *World) NewRecipient(name string) hsm.Decrypter {
	w.T.Helper()
	k, err := file.OpenDecrypter(w.generate(name, hsm.KindECDH), nil)
	w.must(err)
	return k
}

func (w *World) must(err error) {
	w.T.Helper()
	if err != nil {
		w.T.Fatal(err)
	}
}

// By signs any document with any key.
func (w *World) By(k hsm.Key, d signoff.Document) *signoff.Signed {
	w.T.Helper()
	s, err := signoff.Sign(context.Background(), k, d)
	w.must(err)
	return s
}

// Public is a key as documents carry it.
func (w *World) Public(pub any) signoff.PublicKey {
	w.T.Helper()
	k, err := signoff.NewPublicKey(pub, hsm.ClassSoftware)
	w.must(err)
	return k
}

// An Object is sealed weights.
type Object struct {
	*signoff.Signed
	Doc   *signoff.Object
	Deals lockbox.Deals
	Plain string // directory
	Dir   string // sealed directory
}

// Seal makes a directory of the files and seals it by alice.
func (w *World) Seal(name string, files map[string][]byte) *Object {
	w.T.Helper()
	return w.sealBy(w.People["alice"].Signing, name, files, func(d *signoff.Object) { d.Sealer = w.People["alice"].Doc.ID() })
}

// Snapshot is Seal by a node, in a run.
func (w *World) Snapshot(name string, files map[string][]byte) *Object {
	w.T.Helper()
	node, err := file.Open(w.generate("node-of-"+name, hsm.KindP256), nil)
	w.must(err)
	return w.sealBy(node, name, files, func(d *signoff.Object) { d.Sealer, d.Claim = dsse.Digest{1}, dsse.Digest{2} })
}

func (w *World) sealBy(key hsm.Key, name string, files map[string][]byte, edit func(*signoff.Object)) *Object {
	w.T.Helper()
	o := &Object{Plain: filepath.Join(w.Dir, name), Dir: filepath.Join(w.Dir, name+".sealed")}
	for n, content := range files {
		p := filepath.Join(o.Plain, n)
		w.must(os.MkdirAll(filepath.Dir(p), 0o755))
		w.must(os.WriteFile(p, content, 0o644))
	}
	secrets, box, err := lockbox.New(rand.Reader, w.holders())
	w.must(err)
	defer secrets.Wipe()
	_, err = weights.Seal(context.Background(), o.Plain, o.Dir, weights.Options{Name: name, Finish: func(ctx context.Context, d *weights.Draft) (*weights.Final, error) {
		o.Doc = &signoff.Object{Charter: w.ID, Name: name, Manifest: d.Manifest.Digest(), Created: w.Now,
			Lockbox: signoff.Lockbox{Salt: box.Salt[:], People: sharing(box.People), Machines: sharing(box.Machines)},
			Summary: signoff.Summary{Files: d.Summary.Files, Bytes: d.Summary.Bytes, Tensors: d.Summary.Tensors, Parameters: d.Summary.Parameters, DTypes: d.Summary.DTypes}}
		edit(o.Doc)
		o.Signed = w.By(key, o.Doc)
		manifest, err := weights.SignManifest(ctx, key, d.Manifest)
		w.must(err)
		o.Deals, err = secrets.Deal(o.Digest(), 1)
		w.must(err)
		return &weights.Final{Object: o.Digest(), Documents: map[string][]byte{"manifest.json": manifest, "object.json": append(o.Line(), '\n')},
			Wrap: func(i int, k stream.FileKey) ([]byte, error) { return secrets.WrapFileKey(o.Digest(), uint32(i), k) }}, nil
	}})
	w.must(err)
	return o
}

func sharing(s lockbox.Sharing) signoff.Sharing {
	return signoff.Sharing{Threshold: s.Threshold(), Commitments: s.Bytes()}
}

func (w *World) holders() lockbox.Params {
	w.T.Helper()
	p := lockbox.Params{Charter: w.ID}
	p.People.Threshold, p.Machines.Threshold = uint16(w.Charter.Threshold), uint16(w.Charter.Quorum())
	for i, x := range w.Charter.People {
		if !x.HoldsShare() {
			continue
		}
		p.People.Holders = append(p.People.Holders, lockbox.Holder{Index: uint16(i + 1), Key: w.recipient(w.People[x.Name].Exchange)})
	}
	for i, n := range w.Notaries {
		p.Machines.Holders = append(p.Machines.Holders, lockbox.Holder{Index: uint16(i + 1), Key: w.recipient(n.Exchange)})
	}
	return p
}

func (w *World) recipient(k hsm.Decrypter) lockbox.Recipient {
	w.T.Helper()
	r, err := lockbox.P256Recipient(k.PublicKey())
	w.must(err)
	return r
}

// Ask makes alice's request to export o to the key.
func (w *World) Ask(o *Object, to *ecdh.PublicKey) *signoff.Signed {
	w.T.Helper()
	return w.Sign("alice", &signoff.Request{Charter: w.ID, Action: signoff.ActionExport, Requester: w.People["alice"].Doc.ID(), Purpose: "a test",
		Created: w.Now, Expiry: w.Now + 3600, Nonce: signofftest.Nonce(), Seen: signoff.Seen{Size: 1, Root: rule},
		Export: &signoff.Export{Object: o.Digest(), Recipient: "partner", RecipientKey: w.Public(to), Destination: "disk 1"}})
}

// rule stands for digests that a bundle's verification only compares.
var rule = dsse.Digest(sha256.Sum256([]byte("rule")))

// Share opens a holder's share of o and seals it to the recipient.
func (w *World) Share(o *Object, side lockbox.Side, index uint16, holder hsm.Decrypter, request dsse.Digest, to *ecdh.PublicKey) signoff.Share {
	w.T.Helper()
	ctx := context.Background()
	id, err := lockbox.TokenIdentity(holder)
	w.must(err)
	deal, err := o.Deals.Find(side, id.Recipient().ID())
	w.must(err)
	doc := o.Doc.Lockbox.People
	if side == lockbox.Machines {
		doc = o.Doc.Lockbox.Machines
	}
	commitments, err := lockbox.ParseSharing(doc.Threshold, doc.Commitments)
	w.must(err)
	where := lockbox.Context{Charter: w.ID, Object: o.Digest(), Side: side, Epoch: 1, Index: index, Holder: id.Recipient().ID()}
	share, err := lockbox.OpenShare(ctx, id, where, commitments, deal)
	w.must(err)
	defer share.Wipe()
	key, err := lockbox.P256Recipient(to)
	w.must(err)
	sealed, err := lockbox.Reseal(share, key, lockbox.ReleaseContext{Context: where, Request: request, Recipient: key.ID()})
	w.must(err)
	return signoff.Share{Object: o.Digest(), Epoch: 1, Index: index, Recipient: key.ID(), Sealed: sealed}
}

// Approve makes a person's approval with the share. edit, if not nil, changes
// it before it is signed.
func (w *World) Approve(person string, o *Object, request dsse.Digest, to *ecdh.PublicKey, edit func(*signoff.Approval)) *signoff.Signed {
	w.T.Helper()
	p := w.People[person]
	index := slices.IndexFunc(w.Charter.People, func(x signoff.Person) bool { return x.Name == person }) + 1
	a := &signoff.Approval{Charter: w.ID, Request: request, Person: p.Doc.ID(), Decision: signoff.Approve, Rule: rule, Reason: "a test",
		Created: w.Now, Expiry: w.Now + 3000, Nonce: signofftest.Nonce(), Display: rule, Seen: signoff.Seen{Size: 1, Root: rule}}
	if w.Charter.People[index-1].HoldsShare() {
		a.Shares = []signoff.Share{w.Share(o, lockbox.People, uint16(index), p.Exchange, request, to)}
	}
	if edit != nil {
		edit(a)
	}
	return w.Sign(person, a)
}

// Warrant makes the warrant of a request and signs it with the group key.
func (w *World) Warrant(request dsse.Digest, approvals ...dsse.Digest) *signoff.Signed {
	w.T.Helper()
	return w.By(w.Group, &signoff.Warrant{Charter: w.ID, Request: request, Action: signoff.ActionExport, Policy: rule, Rule: rule, Index: 7,
		Approvals: approvals, Issued: w.Now, Expiry: w.Now + 3600, Uses: 1})
}

// Release makes notary i's release, from 0.
func (w *World) Release(i int, o *Object, request, warrant dsse.Digest, to *ecdh.PublicKey) *signoff.Signed {
	w.T.Helper()
	n := w.Notaries[i]
	return w.By(n.Signing, &signoff.Release{Charter: w.ID, Notary: n.Doc.ID(), Warrant: warrant,
		Share: w.Share(o, lockbox.Machines, uint16(i+1), n.Exchange, request, to)})
}

// Transcript makes notary i's word on the group key.
func (w *World) Transcript(i int, group hsm.Key) *signoff.Signed {
	w.T.Helper()
	spki := w.Public(group.Public())
	raw, err := spki.Ed25519()
	w.must(err)
	n := w.Notaries[i]
	return w.By(n.Signing, &signoff.Transcript{Charter: w.ID, Notary: n.Doc.ID(), Term: 1, Attempt: 1, Digest: rule, Group: raw})
}

// Prove puts the line into a log of a few entries and has it cosigned by the
// first cosigners notaries.
func (w *World) Prove(line []byte, logKey hsm.Key, cosigners int) string {
	w.T.Helper()
	ctx := context.Background()
	tree := proof.NewTree([][]byte{w.Genesis[0], []byte("an entry"), line, []byte("another")})
	c := proof.Checkpoint{Origin: w.Charter.Name, Size: tree.Size(), Root: tree.Root(), State: rule}
	note, err := proof.SignCheckpoint(ctx, c, w.Charter.Name, logKey)
	w.must(err)
	for _, n := range w.Notaries[:cosigners] {
		sig, err := proof.Cosign(ctx, note, n.Name, n.Witness, uint64(w.Now))
		w.must(err)
		note, err = proof.AddCosignature(note, sig)
		w.must(err)
	}
	path, err := tree.Prove(2)
	w.must(err)
	return string((&proof.Proof{Index: 2, Path: path, Checkpoint: note}).Marshal())
}

// Bundle makes a good bundle for o: bob, carol and dave approve, the first
// three notaries release.
func (w *World) Bundle(o *Object, to *ecdh.PublicKey) *release.Bundle {
	w.T.Helper()
	return w.BundleBy(o, to, "bob", "carol", "dave")
}

// BundleBy is Bundle with other approvers.
func (w *World) BundleBy(o *Object, to *ecdh.PublicKey, approvers ...string) *release.Bundle {
	w.T.Helper()
	q := w.Charter.Quorum()
	request := w.Ask(o, to)
	b := &release.Bundle{Version: release.Version, Charter: string(w.Genesis[0]), Object: string(o.Line()), Request: string(request.Line())}
	var approvals []dsse.Digest
	for _, person := range approvers {
		a := w.Approve(person, o, request.Digest(), to, nil)
		approvals = append(approvals, a.Digest())
		b.Approvals = append(b.Approvals, string(a.Line()))
	}
	warrant := w.Warrant(request.Digest(), approvals...)
	b.Warrant, b.Proof = string(warrant.Line()), w.Prove(warrant.Line(), w.LogKey, q)
	for i := range w.Notaries {
		b.Transcripts = append(b.Transcripts, string(w.Transcript(i, w.Group).Line()))
	}
	for i := range q {
		b.Releases = append(b.Releases, string(w.Release(i, o, request.Digest(), warrant.Digest(), to).Line()))
	}
	return b
}

// Export copies the sealed directory with the bundle beside it.
func (w *World) Export(o *Object, b *release.Bundle, out string) {
	w.T.Helper()
	_, m, err := weights.ReadSigned(must(os.ReadFile(filepath.Join(o.Dir, "manifest.json"))))
	w.must(err)
	d, err := weights.OpenDirectory(o.Dir, m, o.Digest())
	w.must(err)
	defer d.Close()
	data, err := b.Marshal()
	w.must(err)
	w.must(d.Export(context.Background(), out, map[string][]byte{"release.json": data}, weights.Run{}))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
