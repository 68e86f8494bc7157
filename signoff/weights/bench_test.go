package weights

import (
	"bytes"
	"context"
	"crypto/cipher"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/keyturn/keyturn/signoff/weights/sha2x"
	"github.com/keyturn/keyturn/signoff/weights/stream"
)

// The benchmarks compare ways of doing the same work in one run, in turn and
// many times over, and report the best that each showed: what else the machine
// does meanwhile adds to every one of them and takes nothing away. Peers run as
// real processes. "cpu" is user and system time of this process and of those it
// started; per-core ratios are of that, and do not notice other work unless it
// shares the caches.

// A cost is what one way of doing the work took at best.
type cost struct{ wall, user, cpu time.Duration }

// A contest holds the cost of each way, by name.
type contest struct {
	*testing.B
	bytes int64 // handled by each, each time
	best  map[string]cost
}

func newContest(b *testing.B, bytes int64) *contest {
	return &contest{b, bytes, map[string]cost{}}
}

const rounds = 12

// run has every way do the work, rounds times for each iteration.
func (c *contest) run(ways map[string]func() error) {
	c.Helper()
	for c.Loop() {
		for range rounds {
			for name, way := range ways {
				c.once(name, way)
			}
		}
	}
}

func (c *contest) once(name string, way func() error) {
	c.Helper()
	user, cpu, start := used()
	if err := way(); err != nil {
		c.Fatalf("%s: %v", name, err)
	}
	u, p, end := used()
	now := cost{end.Sub(start), u - user, p - cpu}
	if old, ok := c.best[name]; ok {
		now = cost{min(now.wall, old.wall), min(now.user, old.user), min(now.cpu, old.cpu)}
	}
	c.best[name] = now
}

func used() (user, cpu time.Duration, now time.Time) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			panic(err)
		}
		user += time.Duration(u.Utime.Nano())
		cpu += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return user, cpu, time.Now()
}

func (c *contest) rate(d time.Duration) float64 { return float64(c.bytes) / 1e9 / d.Seconds() }

// perCPU reports GB for each second of user and system time.
func (c *contest) perCPU(names ...string) {
	for _, n := range names {
		c.ReportMetric(c.rate(c.best[n].cpu), n+"-GB/cpu-s")
	}
}

// times reports how many times faster than peer a way is, by CPU time and by
// the clock.
func (c *contest) times(way, peer string) {
	c.ReportMetric(float64(c.best[peer].cpu)/float64(c.best[way].cpu), "cpu-x-"+peer)
}

func (c *contest) timesWall(way, peer string) {
	c.ReportMetric(float64(c.best[peer].wall)/float64(c.best[way].wall), "wall-x-"+peer)
}

// memoryDir returns a directory on tmpfs, so that the disk does not count.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "keyturn-test-")
	if err != nil {
		t.Skipf("no tmpfs at /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// command runs a peer, which has to succeed.
func command(name string, args ...string) func() error {
	return func() error {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

func need(b *testing.B, programs ...string) {
	b.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			b.Skipf("needs %s (make deps)", p)
		}
	}
}

// blank and nowhere are a source and a place that cost nothing.
type blank struct{}

func (blank) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }

type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// BenchmarkEncrypt compares the engine with the bare cipher on one core, which
// is its ceiling, and one core with two.
func BenchmarkEncrypt(b *testing.B) {
	const size = 64 << 20
	aead := must(chacha20poly1305.New(make([]byte, 32)))
	with := func(workers int) func() error {
		e := stream.NewEngine(workers)
		return func() error {
			return e.Encrypt(context.Background(), stream.Body{Dst: nowhere{}, Src: blank{}, Size: size, Key: stream.NewFileKey(), Nonce: stream.NewNonce()}, nil)
		}
	}
	c := newContest(b, size)
	c.run(map[string]func() error{"cipher": bare(aead, size), "engine": with(1), "engine2": with(2)})
	c.perCPU("cipher", "engine")
	c.times("engine", "cipher")
	c.ReportMetric(float64(c.best["engine"].wall)/float64(c.best["engine2"].wall), "wall-x-one-core")
}

// bare seals as many bytes in one buffer that stays in the core's cache.
func bare(aead cipher.AEAD, size int) func() error {
	buf, nonce := make([]byte, stream.ChunkSize+stream.Overhead), make([]byte, aead.NonceSize())
	return func() error {
		for range size / stream.ChunkSize {
			aead.Seal(buf[:0], nonce, buf[:stream.ChunkSize], nil)
		}
		return nil
	}
}

// BenchmarkDecrypt has Debian's age and the engine decrypt one file on tmpfs.
func BenchmarkDecrypt(b *testing.B) {
	need(b, "age")
	const size = 256 << 20
	dir := memoryDir(b)
	id := must(age.GenerateX25519Identity())
	identity, sealed := filepath.Join(dir, "identity"), filepath.Join(dir, "file.age")
	if err := os.WriteFile(identity, []byte(id.String()+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("age", "-r", id.Recipient().String(), "-o", sealed)
	cmd.Stdin = bytes.NewReader(random(size))
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("age: %v: %s", err, out)
	}
	body, f := ageBody(b, sealed, id)
	defer f.Close()
	null := must(os.OpenFile(os.DevNull, os.O_WRONLY, 0))
	defer null.Close()
	body.Dst = null
	with := func(workers int) func() error {
		e := stream.NewEngine(workers)
		return func() error { return e.Decrypt(context.Background(), body, nil) }
	}
	c := newContest(b, size)
	c.run(map[string]func() error{
		"cipher": bare(must(chacha20poly1305.New(make([]byte, 32))), size), "engine": with(1), "engine2": with(2),
		"age": command("age", "-d", "-i", identity, "-o", os.DevNull, sealed),
	})
	c.perCPU("cipher", "engine", "age")
	c.times("engine", "age")
	c.timesWall("engine2", "age")
}

// ageBody finds the body of a file that age wrote.
func ageBody(b *testing.B, path string, id *age.X25519Identity) (stream.Sealed, *os.File) {
	b.Helper()
	f := must(os.Open(path))
	h := must(stream.ParseHeader(f))
	var stanzas []*age.Stanza
	for _, s := range h.Stanzas {
		stanzas = append(stanzas, &age.Stanza{Type: s.Type, Args: s.Args, Body: s.Body})
	}
	s := stream.Sealed{Src: f, Off: h.Size + stream.NonceSize, Key: stream.FileKey(must(id.Unwrap(stanzas)))}
	if _, err := f.ReadAt(s.Nonce[:], h.Size); err != nil {
		b.Fatal(err)
	}
	s.Size = must(f.Stat()).Size() - s.Off
	return s, f
}

const benchFile = 64 << 20

// benchModel writes four files of 64 MiB.
func benchModel(b *testing.B, dir string) string {
	b.Helper()
	src := filepath.Join(dir, "model")
	if err := os.Mkdir(src, 0o755); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		if err := os.WriteFile(filepath.Join(src, name), random(benchFile), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return src
}

// BenchmarkDigest has openssl, sha256sum and Verify hash the same four files.
// Two SHA-256 instructions can start in a core every four cycles and each takes
// four, so a core hashes two streams at most twice as fast as one.
func BenchmarkDigest(b *testing.B) {
	need(b, "openssl", "sha256sum")
	src := benchModel(b, memoryDir(b))
	var files []string
	for _, name := range []string{"a", "b", "c", "d"} {
		files = append(files, filepath.Join(src, name))
	}
	dst := filepath.Join(b.TempDir(), "sealed")
	s, err := Seal(b.Context(), src, dst, Options{Name: "model", Finish: newBox().finish})
	if err != nil {
		b.Fatal(err)
	}
	c := newContest(b, 4*benchFile)
	c.run(map[string]func() error{
		"verify":    func() error { return Verify(context.Background(), src, s.Manifest, Run{Workers: 1}) },
		"openssl":   command("openssl", append([]string{"dgst", "-sha256"}, files...)...),
		"sha256sum": command("sha256sum", files...),
		"cached":    cached,
	})
	c.perCPU("verify", "openssl", "sha256sum", "cached")
	c.times("verify", "openssl")
	c.times("verify", "sha256sum")
}

// cached hashes as many bytes without reading any.
func cached() error {
	p, x, y := make([]byte, readSize), sha2x.New(), sha2x.New()
	for range 2 * benchFile / readSize {
		sha2x.Write2(x, y, p, p)
	}
	return nil
}

// BenchmarkModel seals, opens and copies four files of 64 MiB, in memory and on
// the disk. In memory the system time is that of copying to and from tmpfs, as
// cp has it.
func BenchmarkModel(b *testing.B) {
	for name, dir := range map[string]func(testing.TB) string{"tmpfs": memoryDir, "disk": testing.TB.TempDir} {
		b.Run(name, func(b *testing.B) { benchmarkModel(b, dir(b)) })
	}
}

func benchmarkModel(b *testing.B, dir string) {
	src := benchModel(b, dir)
	dst, out, copied := filepath.Join(dir, "sealed"), filepath.Join(dir, "out"), filepath.Join(dir, "copied")
	box := newBox()
	seal := func() (*Sealed, error) {
		return Seal(context.Background(), src, dst, Options{Name: "model", Finish: box.finish})
	}
	s, err := seal()
	if err != nil {
		b.Fatal(err)
	}
	kept := filepath.Join(dir, "kept")
	if err := os.Rename(dst, kept); err != nil {
		b.Fatal(err)
	}
	d := directory(b, kept, s)
	c := newContest(b, 4*benchFile)
	for c.Loop() {
		for range rounds / 2 {
			c.once("seal", func() error { _, err := seal(); return err })
			c.once("open", func() error { return d.Open(context.Background(), out, box.keyFor, Run{}) })
			c.once("cp", command("sh", "-c", "cp -r --reflink=never $0 $1 && sync -f $1", src, copied))
			for _, p := range []string{dst, out, copied} {
				os.RemoveAll(p)
			}
		}
	}
	for _, n := range []string{"seal", "open"} {
		c.ReportMetric(c.rate(c.best[n].user), n+"-GB/user-s")
	}
	c.perCPU("seal", "open", "cp")
	for _, n := range []string{"seal", "open", "cp"} {
		c.ReportMetric(c.rate(c.best[n].wall), n+"-GB/s")
	}
}
