package weights

import (
	"context"
	"errors"
	"io/fs"
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
	total, err := d.bodies()
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
	if err := forEach(ctx, r.Workers, len(d.paths), o.file); err != nil {
		return err
	}
	return w.commit(treeName)
}

// bodies returns the number of plaintext bytes in all files, after checking
// their form: what cannot succeed fails before anything is written.
func (d *Directory) bodies() (total int64, err error) {
	for i, f := range d.manifest.Files {
		s, err := d.open(i)
		if err != nil {
			return 0, about("open", f.Name, err)
		}
		s.Close()
		n, err := stream.PlainSize(s.body)
		if err != nil {
			return 0, about("open", f.Name, err)
		}
		total += n
	}
	return total, nil
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

// file opens one file unless an earlier run finished it.
func (o *opening) file(ctx context.Context, i int) error {
	want := o.manifest.Files[i]
	done, err := o.finished(ctx, want)
	if err != nil || done {
		return err
	}
	return about("open", want.Name, o.decrypt(ctx, i, want))
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

// decrypt writes the plaintext under a temporary name and renames it once it is
// proved to be what was signed.
func (o *opening) decrypt(ctx context.Context, i int, want File) (err error) {
	src, err := o.Directory.open(i)
	if err != nil {
		return err
	}
	defer src.Close()
	key, err := src.key(i, o.keyFor)
	if err != nil {
		return err
	}
	defer key.Wipe()
	temporary := strconv.Itoa(i) + ".tmp"
	if err := o.out.root.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dst, err := o.out.create(temporary)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // forged or half-written plaintext is not kept
			err = errors.Join(err, o.out.root.Remove(temporary))
		}
	}()
	d := newDigester(o.manifest.Sharded)
	err = o.engine.Decrypt(ctx, dst, src, stream.BodyOffset, src.body, key, src.nonce, tee{d, o.meter.writer(want.Name)})
	if err == nil {
		err = d.check(want)
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return err
	}
	return o.out.root.Rename(temporary, path.Join(treeName, want.Name))
}
