package weights

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// Options say how to seal.
type Options struct {
	// Name is the model's name in the manifest.
	Name string
	// Sharded describes files by shards of ShardSize in the manifest, for
	// models whose files are so large that verifiers want to hash their parts
	// side by side. It hashes everything twice.
	Sharded bool
	// Workers is the number of cores to use; 0 means all.
	Workers int
	// Progress, if set, is called often, never from two goroutines at once.
	Progress func(Progress)
	// Finish is called once, when the plaintext is encrypted and described.
	// It signs what has to be signed and returns what is still missing. Its
	// error undoes everything.
	Finish func(context.Context, *Draft) (*Final, error)
}

// A Draft is a sealed directory without headers and documents.
type Draft struct {
	Manifest *Manifest
	Summary  Summary
}

// A Final is what the caller adds to a Draft.
type Final struct {
	// Object is the id that every header names.
	Object Digest
	// Wrap returns the body of the stanza for the file's key. It is called
	// for every index of the manifest, in order.
	Wrap func(file int, key stream.FileKey) ([]byte, error)
	// Documents are further files of the sealed directory, by plain name:
	// the signed manifest, the object, the deals.
	Documents map[string][]byte
}

// Sealed describes what Seal made.
type Sealed struct {
	Object   Digest
	Manifest *Manifest
	Summary  Summary
}

// Seal encrypts the directory src into the new directory dst. If it fails or is
// killed there is no dst; nothing is resumed, since a key must never see a
// second version of a file, and the next attempt clears what is left. It fails
// with ErrChanged if src changes meanwhile and ErrExists if dst exists.
func Seal(ctx context.Context, src, dst string, o Options) (*Sealed, error) {
	if o.Finish == nil || o.Name == "" {
		return nil, errors.New("weights: seal: options lack a name or a Finish function")
	}
	t, err := openTree(src)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return seal(ctx, plainTree{t}, dst, o)
}

// seal is Seal from any source.
func seal(ctx context.Context, src source, dst string, o Options) (_ *Sealed, err error) {
	entries, err := src.list(ctx)
	if err != nil {
		return nil, err
	}
	s, err := newSealing(src, entries, o)
	if err != nil {
		return nil, err
	}
	defer s.wipe()
	if s.out, err = newWorkspace(dst, public, false); err != nil {
		return nil, err
	}
	sealed, err := s.run(ctx)
	if err != nil {
		return nil, errors.Join(err, s.out.discard())
	}
	return sealed, s.out.Close()
}

// A sealing is one run of Seal.
type sealing struct {
	o       Options
	src     source
	entries []entry
	paths   []string // of the age files, below the result
	out     *workspace
	engine  *stream.Engine
	meter   *meter

	// One for each entry; each written by the goroutine that seals it.
	keys    []stream.FileKey
	files   []File
	sums    []Digest
	tensors []*Tensors
}

func newSealing(src source, entries []entry, o Options) (*sealing, error) {
	if len(entries) == 0 || len(entries) > maxResources {
		return nil, fmt.Errorf("weights: seal: there are %d files, want 1 to %d", len(entries), maxResources)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.name
		if o.Sharded && strings.Contains(e.name, ":") {
			return nil, fmt.Errorf("weights: seal: OMS cannot name shards of %q: it has a colon; rename it or seal without shards", e.name)
		}
	}
	paths, err := sealedNames(names)
	if err != nil {
		return nil, err
	}
	for i := range paths {
		paths[i] = path.Join(filesName, paths[i])
	}
	_, total := sizes(entries)
	return &sealing{
		o: o, src: src, entries: entries, paths: paths,
		engine: stream.NewEngine(o.Workers), meter: newMeter(o.Progress, total),
		keys: make([]stream.FileKey, len(entries)), files: make([]File, len(entries)),
		sums: make([]Digest, len(entries)), tensors: make([]*Tensors, len(entries)),
	}, nil
}

func (s *sealing) wipe() {
	for i := range s.keys {
		s.keys[i].Wipe()
	}
}

func (s *sealing) run(ctx context.Context) (*Sealed, error) {
	for _, p := range s.paths {
		if err := s.out.mkdirFor(p); err != nil {
			return nil, about("create the directory of", p, err)
		}
	}
	each, _ := sizes(s.entries)
	pairs := pairUp(each)
	if err := forEach(ctx, s.o.Workers, len(pairs), func(ctx context.Context, i int) error {
		return s.bodies(ctx, pairs[i])
	}); err != nil {
		return nil, err
	}
	if err := s.src.unchanged(ctx, s.entries); err != nil {
		return nil, err
	}
	draft, err := s.draft()
	if err != nil {
		return nil, err
	}
	final, err := s.o.Finish(ctx, draft)
	if err != nil {
		return nil, fmt.Errorf("weights: seal: %w", err)
	}
	if err := s.finish(ctx, draft, final); err != nil {
		return nil, err
	}
	return &Sealed{final.Object, draft.Manifest, draft.Summary}, s.out.commit(".")
}

// bodies hashes and encrypts one or two files, leaving room for the headers.
func (s *sealing) bodies(ctx context.Context, files []int) (err error) {
	var open []*plainFile
	defer func() {
		for _, f := range open {
			err = errors.Join(err, f.src.Close(), f.dst.Close())
		}
	}()
	for _, i := range files {
		f, err := s.prepare(i)
		if err != nil {
			return about("seal", s.entries[i].name, err)
		}
		open = append(open, f)
	}
	failed := s.encrypt(ctx, open)
	for _, f := range open {
		if err := f.src.unchanged(); err != nil {
			return err // which may be why it failed
		}
	}
	if failed != nil {
		return about("seal", open[0].name, failed)
	}
	for _, f := range open {
		s.files[f.index], s.sums[f.index] = f.digest.file(f.name), f.digest.sum()
	}
	return nil
}

// A plainFile is one file on its way into an age file.
type plainFile struct {
	entry
	index  int
	src    sourceFile
	dst    *os.File
	body   stream.Body
	digest *digester
	meter  meterWriter
}

func (s *sealing) prepare(i int) (_ *plainFile, err error) {
	f := &plainFile{entry: s.entries[i], index: i, digest: newDigester(s.o.Sharded), meter: s.meter.writer(s.entries[i].name)}
	if f.src, err = s.src.openPlain(i, f.entry); err != nil {
		return nil, err
	}
	if err := s.readTensors(f); err != nil {
		return nil, errors.Join(err, f.src.Close())
	}
	if f.dst, err = s.out.create(s.paths[i]); err != nil {
		return nil, errors.Join(err, f.src.Close())
	}
	s.keys[i] = stream.NewFileKey()
	f.body = stream.Body{
		Dst: f.dst, Off: stream.BodyOffset, Src: f.src, Size: f.id.size,
		Key: s.keys[i], Nonce: stream.NewNonce(),
	}
	if _, err := f.dst.WriteAt(f.body.Nonce[:], stream.HeaderSize); err != nil {
		return nil, errors.Join(err, f.src.Close(), f.dst.Close())
	}
	return f, nil
}

func (s *sealing) readTensors(f *plainFile) error {
	if !strings.HasSuffix(f.name, ".safetensors") {
		return nil
	}
	t, err := ReadTensors(f.src, f.id.size)
	s.tensors[f.index] = &t
	return err
}

func (s *sealing) encrypt(ctx context.Context, f []*plainFile) error {
	if len(f) == 1 {
		return s.engine.Encrypt(ctx, f[0].body, tee{f[0].digest, f[0].meter})
	}
	return s.engine.EncryptPair(ctx, f[0].body, f[1].body, func(p, q []byte) error {
		write2(f[0].digest, f[1].digest, p, q)
		f[0].meter.Write(p)
		f[1].meter.Write(q)
		return nil
	})
}

func (s *sealing) draft() (*Draft, error) {
	d := &Draft{}
	for i, f := range s.files {
		d.Summary.add(f.Size, s.tensors[i])
	}
	var err error
	d.Manifest, err = newManifest(s.o.Name, s.o.Sharded, s.files)
	return d, err
}

// finish writes what only the caller's signatures made possible.
func (s *sealing) finish(ctx context.Context, d *Draft, f *Final) error {
	if f == nil || f.Wrap == nil || f.Object == (Digest{}) {
		return errors.New("weights: seal: Finish returned no object id or no way to wrap keys")
	}
	for i := range s.entries {
		if err := errors.Join(ctx.Err(), s.header(i, f)); err != nil {
			return about("write the header of", s.entries[i].name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.Documents)) {
		if err := checkDocument(name); err != nil {
			return err
		}
		if err := s.out.writeFile(name, f.Documents[name]); err != nil {
			return about("write", name, err)
		}
	}
	sums, err := s.out.create(sumsName)
	if err != nil {
		return about("write", sumsName, err)
	}
	err = writeSums(bufio.NewWriter(sums), d.Manifest.Names(), s.sums)
	return about("write", sumsName, errors.Join(err, sums.Close()))
}

func (s *sealing) header(i int, f *Final) error {
	wrapped, err := f.Wrap(i, s.keys[i])
	if err != nil {
		return err
	}
	header, err := stream.MarshalHeader(s.keys[i], []stream.Stanza{newStanza(f.Object, i, wrapped)}, stream.HeaderSize)
	if err != nil {
		return err
	}
	dst, err := s.out.root.OpenFile(s.paths[i], os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = dst.WriteAt(header, 0)
	return errors.Join(err, dst.Close())
}

// checkDocument refuses names that are not plain or are taken.
func checkDocument(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if strings.Contains(name, "/") || name == filesName || name == sumsName {
		return fmt.Errorf("weights: a document cannot be named %q in a sealed directory", name)
	}
	return nil
}

func newStanza(object Digest, file int, wrapped []byte) stream.Stanza {
	return stream.Stanza{
		Type: StanzaType,
		Args: []string{hex.EncodeToString(object[:]), strconv.Itoa(file)},
		Body: wrapped,
	}
}

// tee writes to a digester and a meter.
type tee struct {
	d *digester
	m meterWriter
}

func (t tee) Write(p []byte) (int, error) {
	t.d.Write(p)
	return t.m.Write(p)
}

// forEach calls f for 0 to n-1 from up to workers goroutines (0: one a core)
// and returns the first error.
func forEach(ctx context.Context, workers, n int, f func(context.Context, int) error) error {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(workers, n) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := f(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
