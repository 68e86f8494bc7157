package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// quota bounds etcd's database: it refuses writes (ErrNoSpace) before it
	// grows beyond. 100,000 entries of 4 KiB take about 0.5 GiB.
	quota = 8 << 30
	// minFree is what must be free on the disk for a write to be tried.
	// etcd ends the whole process when a write of its own fails; it fills
	// files of 64 MiB in advance, and a snapshot may come at any time.
	minFree = 256 << 20
	// maxSocket is what a unix socket address holds, less the ending zero.
	maxSocket = 107
)

// server is an etcd in this process.
type server struct {
	etcd  *embed.Etcd
	core  *slogCore
	lock  *os.File
	extra string // directory to remove at the end, if any
}

// OpenEmbedded starts an etcd of one member with its data under dir, which is
// made with mode 0700 if absent, and connects to it over a unix socket there.
// Only one process at a time can open a directory. When its disk
// fails, etcd says so to slog.Default and ends the process.
func OpenEmbedded(ctx context.Context, dir string) (*Order, error) {
	return openEmbedded(ctx, dir, quota)
}

func openEmbedded(ctx context.Context, dir string, quota int64) (*Order, error) {
	if dir == "" {
		return nil, errors.New("etcd: open: no directory was given")
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("etcd: open: %w", err)
	}
	if err := freeSpace(dir, minFree); err != nil {
		return nil, err
	}
	s, endpoint, err := start(ctx, dir, quota)
	if err != nil {
		return nil, err
	}
	o, err := Dial(ctx, []string{endpoint}, nil)
	if err != nil {
		s.close()
		return nil, err
	}
	o.server = s
	o.space = func() error { return freeSpace(dir, minFree) }
	return o, nil
}

// freeSpace returns ErrNoSpace if less than least bytes are free at dir.
func freeSpace(dir string, least uint64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fmt.Errorf("etcd: look at the free space of %s: %w: %w", dir, ErrNoSpace, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < least {
		return fmt.Errorf("etcd: %d MiB are free at %s and %d are needed; make room: %w", free>>20, dir, least>>20, ErrNoSpace)
	}
	return nil
}

// start runs etcd until it is ready, and returns the endpoint of its socket.
func start(ctx context.Context, dir string, quota int64) (_ *server, endpoint string, err error) {
	s := &server{core: &slogCore{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.lock, err = lockDir(dir); err != nil {
		return nil, "", err
	}
	sockets := dir
	if len(dir)+len("/client.sock") > maxSocket {
		// The socket's address has no room for dir. A directory of ours
		// elsewhere is as private.
		if s.extra, err = os.MkdirTemp("", "keyturn"); err != nil {
			return nil, "", fmt.Errorf("etcd: open: %w", err)
		}
		sockets = s.extra
	}
	client := url.URL{Scheme: "unix", Path: filepath.Join(sockets, "client.sock")}
	peer := url.URL{Scheme: "unix", Path: filepath.Join(sockets, "peer.sock")}
	if s.etcd, err = embed.StartEtcd(config(dir, client, peer, quota, s.core)); err != nil {
		return nil, "", fmt.Errorf("etcd: start under %s: %w", dir, err)
	}
	select {
	case <-s.etcd.Server.ReadyNotify():
		return s, client.String(), nil
	case err := <-s.etcd.Err():
		return nil, "", fmt.Errorf("etcd: start under %s: %w", dir, err)
	case <-ctx.Done():
		return nil, "", fmt.Errorf("etcd: start under %s: %w: %w", dir, ErrTimeout, ctx.Err())
	}
}

// config is an etcd of one member that no other ever joins: the short ticks,
// which let it elect itself at once, would be wrong for more.
func config(dir string, client, peer url.URL, quota int64, core zapcore.Core) *embed.Config {
	c := embed.NewConfig()
	c.Name = "keyturn"
	c.Dir = filepath.Join(dir, "etcd")
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls = []url.URL{peer}
	// The member's own name for itself is kept in its data, so it must not
	// change when the directory moves.
	c.AdvertisePeerUrls = []url.URL{{Scheme: "unix", Host: "peer"}}
	c.InitialCluster = c.Name + "=" + c.AdvertisePeerUrls[0].String()
	c.TickMs, c.ElectionMs = 10, 100
	c.QuotaBackendBytes = quota
	// Old revisions of head and checkpoint are of no use.
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModeRevision, "10000"
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(core))
	return c
}

// lockDir keeps a second process out, which etcd itself would make wait.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("etcd: open: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("etcd: open %s: another process has it open: %w", dir, err)
	}
	return f, nil
}

// close ends what was started.
func (s *server) close() {
	s.core.quiet.Store(true) // etcd reports its own end as errors
	if s.etcd != nil {
		s.etcd.Close()
	}
	if s.lock != nil {
		s.lock.Close()
	}
	if s.extra != "" {
		_ = os.RemoveAll(s.extra)
	}
}

// slogCore hands to slog what etcd says before it ends the process, as errors.
// What etcd itself calls errors includes harmless races of its start: for
// debugging. The rest is for etcd's developers.
type slogCore struct{ quiet atomic.Bool }

func (c *slogCore) Enabled(l zapcore.Level) bool      { return l >= zapcore.ErrorLevel && !c.quiet.Load() }
func (c *slogCore) With([]zapcore.Field) zapcore.Core { return c }
func (c *slogCore) Sync() error                       { return nil }
func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	level := slog.LevelDebug
	if e.Level > zapcore.ErrorLevel {
		level = slog.LevelError
	}
	slog.Log(context.Background(), level, "etcd: "+e.Message, "fields", enc.Fields)
	return nil
}
