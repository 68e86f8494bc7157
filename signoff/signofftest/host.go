package signofftest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/coordinator"
	"github.com/keyturn/keyturn/signoff/follow"
	"github.com/keyturn/keyturn/signoff/log"
	"github.com/keyturn/keyturn/signoff/log/etcd"
)

// A Host runs a coordinator on what its directory holds. A test that plays
// root on it reaches into Order, Archive and Meddle.
type Host struct {
	Dir     string
	URL     string
	LogKey  hsm.Key
	Client  *api.Client
	Order   *etcd.Order  // while it runs
	Archive *log.Archive // while it runs

	// Meddle, if not nil, stands between the wire and the coordinator. Set
	// it while the host is stopped.
	Meddle func(http.Handler) http.Handler

	c        *Cluster
	address  string
	listener net.Listener
	stop     func()
}

// NewHost makes a host with an empty directory. All hosts of a cluster have
// the TLS key and, unless changed, the log key of the charter.
func (c *Cluster) NewHost(name string) *Host {
	c.T.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	address := l.Addr().String()
	h := &Host{Dir: filepath.Join(c.Dir, name), URL: "https://" + address, LogKey: c.LogKey, c: c, address: address, listener: l}
	h.Client = c.client(h.URL)
	return h
}

func (c *Cluster) client(url string) *api.Client {
	c.T.Helper()
	client, err := api.NewClient([]api.Endpoint{{URL: url, TLS: c.public(c.TLS.Public()).Fingerprint()}}, nil)
	c.must(err)
	return client
}

// LogDir is where its tiles and blobs are.
func (h *Host) LogDir() string { return filepath.Join(h.Dir, "log") }

// Start runs the coordinator.
func (h *Host) Start() {
	c := h.c
	c.T.Helper()
	c.must(h.TryStart())
}

// TryStart is Start for a coordinator that may refuse to.
func (h *Host) TryStart() (err error) {
	c := h.c
	ctx, cancel := context.WithCancel(context.Background())
	h.Order, err = etcd.OpenEmbedded(ctx, filepath.Join(h.Dir, "etcd"))
	c.must(err)
	h.Archive, err = log.Open(h.LogDir())
	c.must(err)
	co, err := coordinator.New(ctx, coordinator.Config{Charter: c.ID, Genesis: c.Genesis, Order: h.Order, Archive: h.Archive, LogKey: h.LogKey, Log: c.Log,
		Memory: follow.InFile(filepath.Join(h.Dir, "appraised.json"))})
	if err != nil {
		cancel()
		h.Archive.Close()
		h.Order.Close()
		return err
	}
	if h.listener == nil {
		h.listener, err = net.Listen("tcp", h.address)
		c.must(err)
	}
	handler := co.Handler()
	if h.Meddle != nil {
		handler = h.Meddle(handler)
	}
	srv := &http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug)}
	done := make(chan struct{})
	go func() { defer close(done); co.Run(ctx) }()
	cert := selfSigned(c.T, c.TLS)
	go srv.Serve(tls.NewListener(h.listener, co.TLS(func() *tls.Certificate { return &cert })))
	h.listener = nil
	h.stop = func() {
		srv.Close()
		cancel()
		<-done
		h.Archive.Close()
		h.Order.Close()
	}
	c.T.Cleanup(h.Stop)
	return nil
}

// Stop stops the coordinator; Start can follow.
func (h *Host) Stop() {
	if h.stop != nil {
		h.stop()
		h.stop = nil
	}
}

// Put appends a line straight to the order, behind the coordinator's door,
// and returns its index.
func (h *Host) Put(line []byte) uint64 {
	h.c.T.Helper()
	index, _, err := h.Order.Append(context.Background(), [16]byte(Nonce()), line)
	h.c.must(err)
	return index
}

// Copy returns a host whose tiles and blobs are a copy of this one's, which
// must be stopped. Its order is made from the tiles.
func (h *Host) Copy(name string) *Host {
	h.c.T.Helper()
	to := h.c.NewHost(name)
	h.c.must(os.CopyFS(to.LogDir(), os.DirFS(h.LogDir())))
	return to
}

func selfSigned(t testing.TB, k hsm.Key) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// A Wire joins a client to a host and can be laid to another while both run,
// as a hostile network can.
type Wire struct {
	Client *api.Client

	mu    sync.Mutex
	to    string // address; empty while cut
	conns map[net.Conn]bool
}

// NewWire lays a wire to a host.
func (c *Cluster) NewWire(h *Host) *Wire {
	c.T.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	c.T.Cleanup(func() { l.Close() })
	w := &Wire{Client: c.client("https://" + l.Addr().String()), to: h.address, conns: map[net.Conn]bool{}}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go w.carry(conn)
		}
	}()
	return w
}

// Lay moves the wire to a host; nil cuts it.
func (w *Wire) Lay(h *Host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to = ""
	if h != nil {
		w.to = h.address
	}
	for conn := range w.conns {
		conn.Close()
	}
}

func (w *Wire) carry(near net.Conn) {
	defer near.Close()
	w.mu.Lock()
	to := w.to
	w.mu.Unlock()
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	w.mu.Lock()
	w.conns[near], w.conns[far] = true, true
	stale := w.to != to
	w.mu.Unlock()
	if stale {
		return
	}
	go func() { io.Copy(far, near); far.Close() }()
	io.Copy(near, far)
	w.mu.Lock()
	delete(w.conns, near)
	delete(w.conns, far)
	w.mu.Unlock()
}
