package weights

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strconv"

	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// treeName is where an opening puts finished files inside its workspace;
// unfinished ones lie beside it.
const treeName = "tree"

// Run says how to open, verify or export.
type Run struct {
	// Workers is the number of cores to use; 0 means all.
	Workers int
	// Progress, if set, is called often, never from two goroutines at once.
	Progress func(Progress)
}

// Open decrypts the directory into the new directory out, and compares every
// file with the manifest. out appears when all of it is right. If Open fails or
// is killed there is no out; the next Open to the same place checks the files
// that were finished and goes on from there.
func (d *Directory) Open(ctx context.Context, out string, keyFor KeyFunc, r Run) (err error) {
	if keyFor == nil {
		return errors.New("weights: open: no way to unwrap keys")
	}
	each, total, err := d.bodies()
	if err != nil {
		return err
	}
	w, err := newWorkspace(out, secret, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	o := &opening{Directory: d, out: w, engine: stream.NewEngine(r.Workers), meter: newMeter(r.Progress, total), keyFor: keyFor}
	if err := o.prepare(ctx); err != nil {
		return err
	}
	pairs := pairUp(each)
	if err := forEach(ctx, r.Workers, len(pairs), func(ctx context.Context, i int) error {
		return o.files(ctx, pairs[i])
	}); err != nil {
		return err
	}
	return w.commit(treeName)
}

// bodies returns the plaintext sizes of all files and their sum, after checking
// their form: what cannot succeed fails before anything is written.
func (d *Directory) bodies() (each []int64, total int64, err error) {
	for i, f := range d.manifest.Files {
		s, err := d.open(i)
		if err != nil {
			return nil, 0, about("open", f.Name, err)
		}
		s.Close()
		n, err := stream.PlainSize(s.body)
		if err != nil {
			return nil, 0, about("open", f.Name, err)
		}
		each = append(each, n)
		total += n
	}
	return each, total, nil
}

// An opening is one run of Open.
type opening struct {
	*Directory
	out    *workspace
	engine *stream.Engine
	meter  *meter
	keyFor KeyFunc
}

// prepare removes what does not belong to this manifest and makes directories.
func (o *opening) prepare(ctx context.Context) error {
	if err := o.out.keepOnly(ctx, treeName, o.manifest.Names()); err != nil {
		return about("go on at", o.out.partial(), err)
	}
	for _, f := range o.manifest.Files {
		if err := o.out.mkdirFor(path.Join(treeName, f.Name)); err != nil {
			return about("create the directory of", f.Name, err)
		}
	}
	return nil
}

// files opens one or two files, unless an earlier run finished them. A pair that
// fails is opened one by one, to learn which is to blame and keep the other.
func (o *opening) files(ctx context.Context, pair []int) error {
	var left []int
	for _, i := range pair {
		done, err := o.finished(ctx, o.manifest.Files[i])
		if err != nil {
			return err
		}
		if !done {
			left = append(left, i)
		}
	}
	if len(left) == 2 && o.decrypt(ctx, left) == nil {
		return nil
	}
	for _, i := range left {
		if err := errors.Join(ctx.Err(), o.decrypt(ctx, []int{i})); err != nil {
			return about("open", o.manifest.Files[i].Name, err)
		}
	}
	return nil
}

// finished reports whether the file is there and right. A wrong one is left
// from a crash, and is removed.
func (o *opening) finished(ctx context.Context, want File) (bool, error) {
	f, err := o.out.root.Open(path.Join(treeName, want.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, about("open", want.Name, err)
	}
	h := newHashing(f, o.manifest.Sharded, o.meter.writer(want.Name))
	defer h.close()
	if err := hashFiles(ctx, []*hashing{h}); err != nil {
		return false, about("check", want.Name, err)
	}
	if h.digest.check(want) == nil {
		return true, nil
	}
	o.meter.add(want.Name, -h.digest.size)
	return false, about("remove", want.Name, o.out.root.Remove(path.Join(treeName, want.Name)))
}

// decrypt writes the plaintext of one or two files under temporary names, and
// renames them once they are proved to be what was signed.
func (o *opening) decrypt(ctx context.Context, files []int) (err error) {
	var open []*cipherFile
	defer func() {
		for _, f := range open {
			err = errors.Join(err, f.end(o, err))
		}
	}()
	for _, i := range files {
		f, err := o.begin(i)
		if err != nil {
			return err
		}
		open = append(open, f)
	}
	if len(open) == 1 {
		err = o.engine.Decrypt(ctx, open[0].body, tee{open[0].digest, open[0].meter})
	} else {
		err = o.engine.DecryptPair(ctx, open[0].body, open[1].body, func(p, q []byte) error {
			write2(open[0].digest, open[1].digest, p, q)
			open[0].meter.Write(p)
			open[1].meter.Write(q)
			return nil
		})
	}
	for _, f := range open {
		if err == nil {
			err = f.digest.check(f.want)
		}
	}
	return err
}

// A cipherFile is one age file on its way back to plaintext.
type cipherFile struct {
	want      File
	src       *sealedFile
	dst       *os.File
	temporary string
	body      stream.Sealed
	digest    *digester
	meter     meterWriter
}

func (o *opening) begin(i int) (_ *cipherFile, err error) {
	f := &cipherFile{want: o.manifest.Files[i], temporary: strconv.Itoa(i) + ".tmp", digest: newDigester(o.manifest.Sharded)}
	f.meter = o.meter.writer(f.want.Name)
	if f.src, err = o.open(i); err != nil {
		return nil, err
	}
	key, err := f.src.key(i, o.keyFor)
	defer key.Wipe()
	if err == nil {
		err = o.out.root.Remove(f.temporary)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		f.dst, err = o.out.create(f.temporary)
	}
	if err != nil {
		return nil, errors.Join(err, f.src.Close())
	}
	f.body = f.src.sealed(f.dst, key)
	return f, nil
}

// end puts the plaintext into its place, or after a failure removes it: what is
// forged or half written is not kept.
func (f *cipherFile) end(o *opening, failed error) error {
	f.body.Key.Wipe()
	err := errors.Join(f.src.Close(), f.dst.Close())
	if failed != nil || err != nil {
		o.meter.add(f.want.Name, -f.digest.size)
		return errors.Join(err, o.out.root.Remove(f.temporary))
	}
	return o.out.root.Rename(f.temporary, path.Join(treeName, f.want.Name))
}
